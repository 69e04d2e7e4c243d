import pytest
import torch
from torch import nn

from sonde.read.pooling import pool
from sonde.read.sites import MAIN, Site
from sonde.read.taps import Place, Taps, Tokens, entering, leaving

A, B, C = (Site(MAIN, "hidden", layer) for layer in (0, 1, 2))
EVERY = {MAIN: Tokens(2, 3, None, None)}


class Twice(nn.Module):
    """Calls one linear map twice, and hands back a tuple."""

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(4, 4)
        self.untouched = nn.Linear(4, 4)

    def forward(self, hidden):
        return self.map(self.untouched(self.map(hidden))), None


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Twice()


@pytest.fixture
def hidden():
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


def hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_a_place_is_a_module_and_the_number_of_its_call(model, hidden):
    places = {A: Place(model.map, 0, "output"), B: Place(model.map, 1, "output"), C: Place(model.map, 1, "input")}
    with Taps(places, {A: ["mean"], B: ["mean", "last"], C: ["max"]}, EVERY) as taps:
        out, _ = model(hidden)
    first = model.map(hidden)
    assert taps.taken.keys() == {(A, "mean"), (B, "mean"), (B, "last"), (C, "max")}
    assert torch.equal(taps.taken[A, "mean"], pool(first, None, "mean"))
    assert torch.equal(taps.taken[B, "last"], out[:, -1])
    assert torch.equal(taps.taken[C, "max"], pool(model.untouched(first), None, "max"))


def test_only_the_modules_of_the_sites_carry_hooks_and_lose_them(model, hidden):
    with Taps({A: Place(model.map, 0, "output")}, {A: ["mean"]}, EVERY):
        assert hooks(model) == len(model.map._forward_hooks) == 1
    assert hooks(model) == 0
    with pytest.raises(RuntimeError, match="stop"), Taps({A: Place(model.map, 0, "input")}, {A: ["mean"]}, EVERY):
        raise RuntimeError("stop")
    assert hooks(model) == 0


def test_the_model_computes_the_same_with_taps(model, hidden):
    with Taps({A: Place(model.map, 0, "output")}, {A: ["mean"]}, EVERY):
        tapped, _ = model(hidden)
    assert torch.equal(tapped, model(hidden)[0])


def test_tokens_are_dropped(model, hidden):
    with Taps({A: Place(model.map, 0, "output")}, {A: ["mean"]}, EVERY) as taps:
        model(hidden)
    assert taps.taken[A, "mean"].shape == (2, 4)


def test_flattened_tokens_are_restored_before_pooling(hidden):
    linear = nn.Linear(4, 4)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with Taps({A: Place(linear, 0, "input")}, {A: ["mean", "last"]}, {MAIN: Tokens(2, 3, mask, None)}) as taps:
        linear(hidden.reshape(6, 4))
    assert torch.equal(taps.taken[A, "mean"], pool(hidden, mask, "mean"))
    assert torch.equal(taps.taken[A, "last"][1], hidden[1, 0])


def test_a_second_use_counts_calls_anew(model, hidden):
    taps = Taps({A: Place(model.map, 1, "output")}, {A: ["mean"]}, EVERY)
    for _ in range(2):
        taps.taken.clear()
        with taps:
            model(hidden)
        assert (A, "mean") in taps.taken


def test_what_enters_and_leaves_a_call(hidden):
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert entering((ids, hidden), {}) is hidden
    assert entering((), {"mask": hidden + 1, "hidden_states": hidden}) is hidden
    assert entering((ids,), {}) is None
    assert leaving(hidden) is hidden
    assert leaving((hidden, None)) is hidden
    assert leaving({"last_hidden_state": hidden}) is hidden
    assert leaving(()) is None
