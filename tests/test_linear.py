"""Linear maps that add their bias on the way give what torch gives, and step aside where they cannot."""

import pytest
import tiny
import torch
from torch import nn

from sonde.read import linear
from sonde.read.backbone import load_backbone
from sonde.read.linear import QuickLinear, QuickSum, quicken


def a_model(dtype: torch.dtype = torch.bfloat16) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return (
            nn.Sequential(nn.Linear(40, 56), nn.GELU(), nn.Linear(56, 24, bias=False)).to(dtype).requires_grad_(False)
        )


needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, and nothing is quickened"
)


@needs_onednn
@pytest.mark.parametrize("shape", [(40,), (7, 40), (2, 3, 40), (0, 3, 40)])
def test_values_are_those_of_torch(shape: tuple[int, ...]) -> None:
    model = a_model()
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    with torch.inference_mode():
        expected = model(x)
        assert quicken(model) == 1
        found = model(x)
    assert type(model[0]) is QuickLinear and type(model[2]) is nn.Linear  # without a bias there is nothing to gain
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


@needs_onednn
def test_rows_that_are_no_rows_of_memory_are_read_right() -> None:
    model = a_model()
    x = torch.randn((3, 40, 5), generator=torch.Generator().manual_seed(1)).to(torch.bfloat16).transpose(1, 2)
    with torch.inference_mode():
        expected = model(x)
        quicken(model)
        torch.testing.assert_close(model(x), expected, rtol=2e-2, atol=2e-2)


def test_float32_is_left_alone() -> None:
    assert quicken(a_model(torch.float32)) == 0


def test_one_setting_of_torch_switches_it_off() -> None:
    with torch.backends.mkldnn.flags(enabled=False):
        assert quicken(a_model()) == 0


@pytest.mark.parametrize("fault", [AttributeError, RuntimeError])
def test_a_torch_without_the_operation_is_left_alone(fault: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> None:
        raise fault("no such operation")

    for operation in ("_product", "_product_and_sum"):
        with monkeypatch.context() as broken:
            broken.setattr(linear, operation, absent)
            assert quicken(a_model()) == 0


def test_an_operation_that_gives_other_values_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_product", lambda x, weight, bias: nn.functional.linear(x, weight))  # no bias
    assert quicken(a_model()) == 0


@needs_onednn
def test_derivatives_still_flow() -> None:
    model = a_model()
    quicken(model)
    x = torch.ones((2, 40), dtype=torch.bfloat16, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None and bool((x.grad != 0).any())


@needs_onednn
def test_a_backbone_in_bfloat16_on_a_cpu_uses_it() -> None:
    def quick(dtype: str) -> int:
        model = load_backbone(str(tiny.build("bert")), dtype=dtype, device="cpu")._forward.model
        return sum(type(module) is QuickLinear for module in model.modules())

    assert quick("bfloat16") > 6 * tiny.LAYERS - 1
    assert quick("float32") == 0


class Sum(nn.Module):
    """The end of half a block, as BERT writes it."""

    def __init__(self, after: str = "LayerNorm") -> None:
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = nn.Linear(40, 24), nn.Dropout(0.5), nn.LayerNorm(24)
        self.after = after

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        summed = self.dropout(self.dense(hidden_states)) + input_tensor
        return self.LayerNorm(summed) if self.after == "LayerNorm" else self.LayerNorm(input_tensor) + summed


def made(module: nn.Module) -> nn.Sequential:
    return nn.Sequential(module).to(torch.bfloat16).eval().requires_grad_(False)


def drawn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@needs_onednn
def test_a_sum_before_a_layer_norm_is_made_in_the_product() -> None:
    block, seen = made(Sum()), []
    x, residual = drawn(2, 3, 40), drawn(2, 3, 24, seed=2)
    with torch.inference_mode():
        expected = block[0](x, residual)
        quicken(block)
        block[0].dense.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
        found = block[0](x, residual)
        torch.testing.assert_close(block[0](hidden_states=x, input_tensor=residual), found)
    assert type(block[0]) is QuickSum
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
    assert seen[0] is x  # what a tap of the feed-forward activations reads
    block.train()
    with torch.inference_mode():
        assert not torch.equal(block[0](x, residual), block[0](x, residual))  # dropout drops again
    leaf = x.clone().requires_grad_()
    block.eval()[0](leaf, residual).square().sum().backward()
    assert leaf.grad is not None and bool((leaf.grad != 0).any())


@needs_onednn
def test_a_module_that_only_looks_like_such_a_sum_is_left_alone() -> None:
    block = made(Sum(after="nothing"))
    x, residual = drawn(2, 3, 40), drawn(2, 3, 24, seed=2)
    with torch.inference_mode():
        expected = block[0](x, residual)
        quicken(block)
        torch.testing.assert_close(block[0](x, residual), expected, rtol=2e-2, atol=2e-2)
    assert type(block[0]) is Sum


@needs_onednn
def test_a_bert_in_bfloat16_sums_in_its_products() -> None:
    model = load_backbone(str(tiny.build("bert")), dtype="bfloat16", device="cpu")._forward.model
    assert [type(module) for module in model.modules()].count(QuickSum) == 2 * tiny.LAYERS
