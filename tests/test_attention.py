"""Attention of short texts gives what a slow softmax gives, in any company, and leaves to torch what it cannot do."""

from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from sonde.read import attention
from sonde.read.attention import LONGEST, NAME, quicken_attention
from sonde.read.backbone import load_backbone

pytestmark = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN, and nothing is quickened"
)
HEADS, DIM = 3, 16
FAMILIES = ("bert", "roberta", "distilbert", "electra", "modernbert", "llama", "gpt2", "bart", "t5")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def heads(rows: int, tokens: int, seed: int = 0, size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key, value as transformers hands them over: (row, head, token, dim), tokens outermost in memory."""
    draw = torch.Generator().manual_seed(seed)
    made = [torch.randn((rows, tokens, HEADS * DIM), generator=draw) * size for _ in range(3)]
    query, key, value = (one.bfloat16().view(rows, tokens, HEADS, DIM).transpose(1, 2) for one in made)
    return query, key, value


def slow(query: Tensor, key: Tensor, value: Tensor, keep: Tensor) -> Tensor:
    """Softmax in float64, as it is written; (row, token, head, dim)."""
    scores = query.double() @ key.double().transpose(2, 3) / DIM**0.5
    scores = scores.masked_fill(~keep, -torch.inf)
    return (scores.softmax(dim=-1) @ value.double()).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, **asked: Any) -> Tensor:
    found, weights = attention._attend(nn.Identity(), query, key, value, mask, scaling=DIM**-0.5, **asked)
    assert weights is None
    return found


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("tokens", [1, 2, 11, 32, 53, 200, LONGEST, LONGEST + 1])
def test_values_are_those_of_a_slow_softmax(tokens: int) -> None:
    query, key, value = heads(4, tokens)
    keep = torch.ones(tokens, tokens, dtype=torch.bool)
    assert error(attend(query, key, value, is_causal=False), slow(query, key, value, keep)) < 8e-3
    assert error(attend(query, key, value, is_causal=True), slow(query, key, value, keep.tril())) < 8e-3


def test_pads_say_nothing_to_the_last_bit() -> None:
    query, key, value = heads(5, 23)
    alone = attend(query, key, value, is_causal=False)
    longer = [
        torch.cat([one, other], dim=2) for one, other in zip((query, key, value), heads(5, 4, seed=9), strict=True)
    ]
    mask = (torch.arange(27) < 23).expand(5, 1, 1, 27)
    assert torch.equal(attend(*longer, mask, is_causal=False)[:, :23], alone)
    few = [one[1:3] for one in longer]
    assert torch.equal(attend(*few, mask[1:3], is_causal=False)[:, :23], alone[1:3])


@pytest.mark.parametrize("causal", [False, True])
def test_scores_out_of_range_are_the_business_of_their_own_row(causal: bool) -> None:
    """Row 1 would overflow; all scores of row 2 would vanish: e to the power of -500 and 500."""
    query, key, value = heads(4, 9)
    query[1], key[1] = query[1] * 20, key[1] * 20
    query[2], key[2] = query[2].abs() * 8 + 8, -key[2].abs() * 8 - 8
    keep = torch.ones(9, 9, dtype=torch.bool)
    expected = slow(query, key, value, keep.tril() if causal else keep)
    found = attend(query, key, value, is_causal=causal)
    assert bool(found.isfinite().all())
    for row in range(4):
        assert error(found[row], expected[row]) < 2e-2, row
    calm = [one[[0, 3]] for one in (query, key, value)]
    assert torch.equal(attend(*calm, is_causal=causal), found[[0, 3]])


def test_not_a_number_stays_one() -> None:
    query, key, value = heads(3, 7)
    value[1, 0, 2, 0] = torch.nan
    found = attend(query, key, value, is_causal=False)
    assert bool(found[1].isnan().any()) and bool(found[[0, 2]].isfinite().all())


def calls_of_torch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    seen: list[tuple[int, ...]] = []
    real = attention.sdpa_attention_forward

    def noted(module: nn.Module, query: Tensor, *rest: Any, **asked: Any) -> Any:
        seen.append(tuple(query.shape))
        return real(module, query, *rest, **asked)

    monkeypatch.setattr(attention, "sdpa_attention_forward", noted)
    return seen


def test_what_is_not_plain_attention_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = calls_of_torch(monkeypatch)
    query, key, value = heads(2, 8)
    attend(query, key, value, is_causal=False)
    assert not seen
    by_token = torch.ones(2, 1, 8, 8, dtype=torch.bool).tril()
    added = torch.zeros(2, 1, 1, 8)
    attend(query, key, value, by_token, is_causal=False)
    attend(query, key, value, added.bfloat16(), is_causal=False)
    attend(query, key, value, is_causal=False, position_bias=torch.zeros(1, HEADS, 8, 8).bfloat16())
    attend(query[:, :, :1], key, value, is_causal=False)
    attend(query.float(), key.float(), value.float(), is_causal=False)
    attend(*heads(1, LONGEST + 1), is_causal=False)
    assert len(seen) == 6
    with torch.inference_mode(False), torch.enable_grad():
        attend(*(one.clone().requires_grad_() for one in heads(2, 8)), is_causal=False)
    assert len(seen) == 7


def last_hidden(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    if model.config.is_encoder_decoder:
        model = model.get_encoder()
    found: Tensor = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask].float()
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_models_give_what_they_gave(family: str) -> None:
    model = load_backbone(str(tiny.build(family)), dtype="bfloat16", device="cpu")._forward.model
    ids = torch.randint(5, 40, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(12) < torch.tensor([12, 9, 4])[:, None]
    found = last_hidden(model, ids, mask)
    quick = model.config._attn_implementation == NAME
    model.set_attn_implementation("sdpa")
    expected = last_hidden(model, ids, mask)
    model.set_attn_implementation(NAME)
    assert float((found - expected).norm() / expected.norm()) < 2e-2
    assert quick  # also T5, whose scores have a bias that torch's kernel adds


def test_a_backbone_in_bfloat16_on_a_cpu_uses_it() -> None:
    def used(dtype: str) -> str:
        return str(
            load_backbone(str(tiny.build("bert")), dtype=dtype, device="cpu")._forward.model.config._attn_implementation
        )

    assert used("bfloat16") == NAME
    assert used("float32") == "sdpa"


def fresh() -> tuple[Any, Tensor]:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(str(tiny.build("bert")), dtype=torch.bfloat16).eval().requires_grad_(False)
    return model, torch.tensor([[2, 7, 9, 11, 3]])


def test_one_setting_of_torch_switches_it_off() -> None:
    model, probe = fresh()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not quicken_attention(model, probe)
    assert model.config._attn_implementation == "sdpa"
    assert quicken_attention(model, probe)


def fails(*_: object) -> Tensor:
    raise RuntimeError("no such operation")


def doubles(*asked: Any, real: Any = attention._short) -> Tensor:
    return 2 * real(*asked)  # type: ignore[no-any-return]


@pytest.mark.parametrize("faulty", [fails, doubles])
def test_where_it_does_not_work_or_gives_other_values_the_model_is_left_alone(
    faulty: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, probe = fresh()
    monkeypatch.setattr(attention, "_short", faulty)
    assert not quicken_attention(model, probe)
    assert model.config._attn_implementation == "sdpa"
