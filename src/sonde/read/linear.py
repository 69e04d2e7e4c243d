"""Dense layers in bfloat16 on a CPU, without the passes over memory that torch takes beside their products.

quicken        make the dense layers of a model run so, in place, where that gives the same values
QuickLinear    a linear map whose product adds its bias itself, and a residual where one is given
QuickSum       a linear map, the residual and a layer norm, as BERT and its kin end every half of a block
is_allowed, is_bfloat16_on_cpu   what all shorter ways ask first, those of `sonde.read.attention` too

torch adds the bias of a linear map by copying it into every row of the result before the product, and the residual in
another pass; oneDNN's own operation adds both on the way. The weights stay as they are, no second copy is made of them.
oneDNN can apply GELU in the product too, but that takes as long as the product and GELU one after the other; GELU that
overwrites what it reads is no faster either.
`torch.backends.mkldnn.enabled = False` before a backbone is loaded switches all this off; float32 never uses it.
"""

from inspect import signature

import torch
from torch import Tensor, nn

_PROBE_ROWS = 3
_SAME = 2**-6  # relative: two roundings of bfloat16 (2^-9 each) in another order, with room
_SUM = {"dense", "LayerNorm", "dropout"}
_SUM_TAKES = ["hidden_states", "input_tensor"]


class QuickLinear(nn.Linear):
    """`nn.Linear` with a bias in bfloat16, for inference on a CPU."""

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., input) -> (..., output), the residual added."""
        if not _is_quick(input):
            found = super().forward(input)
            return found if residual is None else found + residual
        if residual is None:
            return _product(input, self.weight, self.bias)
        return _product_and_sum(input, residual, self.weight, self.bias)


class QuickSum(nn.Module):
    """Linear map, dropout, residual, layer norm."""

    dense: QuickLinear
    dropout: nn.Module
    LayerNorm: nn.Module

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        """(..., input) and (..., output) -> (..., output)."""
        if self.training:
            hidden_states = self.dropout(self.dense(hidden_states)) + input_tensor
        else:
            hidden_states = self.dense(hidden_states, input_tensor)  # hooks on `dense` see what they saw
        found: Tensor = self.LayerNorm(hidden_states)
        return found


def quicken(model: nn.Module) -> int:
    """Make the dense layers of a model quick, in place; how many linear maps are. None where this torch cannot."""
    linear = [module for module in model.modules() if type(module) is nn.Linear]
    maps = [module for module in linear if module.bias is not None and is_bfloat16_on_cpu(module.weight)]
    if not maps or not _works(maps[0]):
        return 0
    for module in maps:
        module.__class__ = QuickLinear
    for part in list(model.modules()):
        _quicken_sum(part)
    return len(maps)


def _quicken_sum(module: nn.Module) -> None:
    dense = getattr(module, "dense", None)
    if {name for name, _ in module.named_children()} != _SUM or not isinstance(dense, QuickLinear):
        return
    if module.training or list(signature(module.forward).parameters) != _SUM_TAKES:
        return
    given = _probe(dense.in_features), _probe(dense.out_features).flip(-1)
    own = type(module)
    with torch.inference_mode():
        expected = module(*given)
        module.__class__ = QuickSum
        if not _is_same(module(*given), expected):
            module.__class__ = own


def is_allowed() -> bool:
    """Whether this torch has oneDNN, and nobody has switched it off."""
    backend = torch.backends.mkldnn
    return bool(backend.is_available() and backend.enabled)  # type: ignore[no-untyped-call]


def is_bfloat16_on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor is what the shorter ways are made for."""
    return tensor.dtype == torch.bfloat16 and tensor.device.type == "cpu"


def _is_quick(input: Tensor) -> bool:
    """The operations have no derivative."""
    return not torch.is_grad_enabled() and is_bfloat16_on_cpu(input)


def _works(module: nn.Linear) -> bool:
    """Whether this torch has the operations, may use them, and gets from them what the module gives."""
    if not is_allowed():
        return False
    probe, residual = _probe(module.in_features), _probe(module.out_features).flip(-1)
    with torch.inference_mode():
        expected = module(probe)
        try:
            found = _product(probe, module.weight, module.bias)
            summed = _product_and_sum(probe, residual, module.weight, module.bias)
        except (AttributeError, RuntimeError):  # another build of torch, or a processor that oneDNN does not serve
            return False
    return _is_same(found, expected) and _is_same(summed, expected + residual)


def _is_same(found: Tensor, expected: Tensor) -> bool:
    found, expected = found.float(), expected.float()
    return found.shape == expected.shape and bool((found - expected).norm() <= _SAME * expected.norm())


def _probe(width: int) -> Tensor:
    return torch.linspace(-1, 1, _PROBE_ROWS * width).to(torch.bfloat16).view(1, _PROBE_ROWS, -1)


def _product(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return found


def _product_and_sum(input: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(input, residual, weight, bias, "add")
    return found
