import pytest
import torch

from sonde.errors import BackboneError
from sonde.read.pooling import POOLINGS, pool, pool_all

ROWS, TOKENS, DIM = 5, 7, 12
LENGTHS = [7, 1, 3, 2, 6]


def slow(hidden, mask, how, content):
    """Every pooling as a plain loop over the tokens of each row, in float64."""
    rows = []
    for row, tokens in enumerate(hidden.double()):
        real = [tokens[t] for t in range(len(tokens)) if mask[row, t]]
        inside = [tokens[t] for t in range(len(tokens)) if mask[row, t] and content[row, t]] or real
        chosen = {
            "mean": lambda real=real: sum(real) / len(real),
            "max": lambda real=real: torch.stack(real).max(dim=0).values,
            "first": lambda real=real: real[0],
            "last": lambda real=real: real[-1],
            "mean_content": lambda inside=inside: sum(inside) / len(inside),
        }
        rows.append(chosen[how]())
    return torch.stack(rows)


def batch(side, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(ROWS, TOKENS, DIM, generator=generator).to(dtype) - 0.5
    mask = torch.tensor([[t < n for t in range(TOKENS)] for n in LENGTHS])
    content = torch.rand(ROWS, TOKENS, generator=generator) > 0.4
    content[1] = False
    mask = mask if side == "right" else mask.flip(1)
    hidden[~mask] = 1e4  # a pad that leaks is seen at once
    return hidden, mask, content


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", POOLINGS)
def test_every_pooling_equals_a_plain_loop(how, side):
    hidden, mask, content = batch(side)
    pooled = pool(hidden, mask, how, content)
    assert pooled.dtype == torch.float32
    assert pooled.shape == (ROWS, DIM)
    torch.testing.assert_close(pooled.double(), slow(hidden, mask, how, content), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", POOLINGS)
def test_no_mask_says_that_every_token_is_real(how):
    hidden, _, content = batch("right")
    every = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    torch.testing.assert_close(pool(hidden, None, how, content), pool(hidden, every, how, content), rtol=0, atol=0)
    expected = slow(hidden, every, how, content)
    torch.testing.assert_close(pool(hidden, None, how, content).double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("how", POOLINGS)
def test_bfloat16_stays_close_and_comes_out_as_float32(how, side):
    hidden, mask, content = batch(side, torch.bfloat16)
    pooled = pool(hidden, mask, how, content)
    assert pooled.dtype == torch.float32
    expected = slow(hidden, mask, how, content)
    tolerance = 0 if how in ("max", "first", "last") else 2**-8
    torch.testing.assert_close(pooled.double(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


def test_a_long_bfloat16_mean_does_not_drift():
    hidden = torch.full((1, 4096, 2), 1.0, dtype=torch.bfloat16)
    assert pool(hidden, None, "mean").tolist() == [[1.0, 1.0]]  # a sum kept in bfloat16 would stop at 256


@pytest.mark.parametrize("how", POOLINGS)
def test_a_mask_may_have_gaps(how):
    hidden, mask, content = batch("right")
    mask[0, 2:4] = False
    hidden[~mask] = 1e4
    pooled = pool(hidden, mask, how, content).double()
    torch.testing.assert_close(pooled, slow(hidden, mask, how, content), rtol=1e-5, atol=1e-6)


def test_rows_without_content_equal_the_mean():
    hidden, mask, content = batch("right")
    assert torch.equal(pool(hidden, mask, "mean_content", content)[1], pool(hidden, mask, "mean")[1])
    assert torch.equal(pool(hidden, mask, "mean_content", torch.zeros_like(content)), pool(hidden, mask, "mean"))


def test_content_needs_to_be_known():
    hidden, mask, _ = batch("right")
    with pytest.raises(AssertionError, match="needs to know which tokens are content"):
        pool(hidden, mask, "mean_content")


def test_an_unknown_pooling_lists_those_that_exist():
    hidden, mask, _ = batch("right")
    with pytest.raises(
        BackboneError, match="Pooling 'median' is unknown; it must be one of: mean, max, first, last, mean_content"
    ):
        pool(hidden, mask, "median")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", ["left", "right", None])
def test_several_at_once_are_what_each_is_alone(side, dtype):
    hidden, mask, content = batch(side or "right", dtype)
    mask = mask if side else None
    found = pool_all(hidden, mask, list(POOLINGS), content)
    assert list(found) == list(POOLINGS)
    for how, vectors in found.items():
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors, pool(hidden, mask, how, content), rtol=0, atol=0)


@pytest.mark.parametrize("lengths", [[7, 7, 6, 4, 4], [4, 7, 5, 5, 6], [7, 7, 7, 7, 7], [7, 1, 1, 1, 1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_any_order_of_lengths_have_their_own_maximum(lengths, dtype):
    hidden, _, content = batch("right", dtype)
    mask = torch.arange(TOKENS) < torch.tensor(lengths)[:, None]
    hidden[~mask] = 1e4
    before = hidden.clone()
    found = pool_all(hidden, mask, ["mean", "max"])["max"]
    torch.testing.assert_close(found.double(), slow(hidden, mask, "max", content), rtol=0, atol=0)
    torch.testing.assert_close(hidden, before, rtol=0, atol=0)


def test_a_maximum_among_whole_numbers_is_that_of_the_floats():
    """Columns of one sign, of both, of zeros of both signs, of infinities, of the least and the largest numbers."""
    tiny, huge = 2.0**-133, 3.3e38
    columns = [[-3, -1, -2], [3, -1, 2], [0, -0.0, -1], [-0.0, -1, -2], [-tiny, -huge, -1], [tiny, -huge, huge]]
    hidden = torch.tensor(columns).T[None].to(torch.bfloat16)  # (1, token, column)
    for mask in (None, torch.tensor([[True, True, True]]), torch.tensor([[True, True, False]])):
        found = pool_all(hidden, mask, ["mean", "max"])["max"]
        torch.testing.assert_close(found, pool(hidden, mask, "max"), rtol=0, atol=0)
    assert pool_all(hidden, None, ["mean", "max"])["max"].tolist()[0][0] == -1


@pytest.mark.parametrize("bad", [float("nan"), -float("nan"), float("inf")])
def test_a_value_that_is_no_number_is_in_the_maximum_too(bad):
    hidden = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    hidden[1, 2, 3] = bad
    found = pool_all(hidden, None, ["max", "mean"])
    assert not torch.isfinite(found["max"][1, 3]) and torch.isfinite(found["max"][0]).all()
