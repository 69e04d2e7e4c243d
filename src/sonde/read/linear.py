"""Linear maps in bfloat16 on a CPU, by a product that adds its bias itself.

quicken      make a model's linear maps run so, where that gives the same values
QuickLinear  a linear map that does

torch adds the bias of such a map by copying it into every row of the result before the product: a tenth of a reading.
oneDNN's own operation adds it on the way. The weights stay as they are, no second copy is made of them.
`torch.backends.mkldnn.enabled = False` before a backbone is loaded switches this off; float32 never uses it.
"""

import torch
from torch import Tensor, nn

_PROBE_ROWS = 3
_SAME = 2**-6  # relative: two roundings of bfloat16 (2^-9 each) in another order, with room


class QuickLinear(nn.Linear):
    """`nn.Linear` with a bias in bfloat16, for inference on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., input) -> (..., output)."""
        if torch.is_grad_enabled() or input.dtype != torch.bfloat16 or input.device.type != "cpu":
            return super().forward(input)  # the operation has no derivative
        return _product(input, self.weight, self.bias)


def quicken(model: nn.Module) -> int:
    """Turn the linear maps of a model into `QuickLinear`, in place; how many. None where this torch cannot."""
    maps = [module for module in model.modules() if type(module) is nn.Linear and _fits(module)]
    if not maps or not _works(maps[0]):
        return 0
    for module in maps:
        module.__class__ = QuickLinear
    return len(maps)


def _fits(module: nn.Linear) -> bool:
    weight = module.weight
    return module.bias is not None and weight.dtype == torch.bfloat16 and weight.device.type == "cpu"


def _works(module: nn.Linear) -> bool:
    """Whether this torch has the operation, may use it, and gets from it what the module gives."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return False
    probe = torch.linspace(-1, 1, _PROBE_ROWS * module.in_features).to(torch.bfloat16).view(1, _PROBE_ROWS, -1)
    with torch.inference_mode():
        expected = module(probe).float()
        try:
            found = _product(probe, module.weight, module.bias).float()
        except (AttributeError, RuntimeError):  # another build of torch, or a processor that oneDNN does not serve
            return False
    return found.shape == expected.shape and bool((found - expected).norm() <= _SAME * expected.norm())


def _product(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found
