"""The parts of `auto`: which are trained on which blocks, what a blend of them needs, saves and says."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tiny import build

from sonde.classifier import TextClassifier
from sonde.learn import auto, learning, lexical
from sonde.learn.attribution import attributor
from sonde.learn.blend import Blend
from sonde.learn.problem import Outcome, Problem
from sonde.learn.recipes import find
from sonde.learn.splitting import make_folds
from sonde.learn.targets import encode
from sonde.read import extract
from sonde.read.blocks import Window

LAYERS = [f"0/hidden.{layer}/{pooling}" for pooling in ("mean", "max") for layer in range(4)]
SECOND = [f"1/encoder.hidden.{layer}/{pooling}" for pooling in ("mean", "max") for layer in range(3)]


def problem(rows: int, names: Sequence[str] = LAYERS, *, spread: float = 1.5, telling: str = "") -> Problem:
    """Three classes; blocks whose names hold `telling` know them, others are noise; words that know them a little."""
    draw = np.random.default_rng(0)
    truth = draw.integers(3, size=rows)
    targets = encode(truth.tolist())
    blocks = {}
    for name in names:
        signal = targets.indicator @ draw.normal(size=(3, 8)) if telling in name else 0.0
        blocks[name] = (signal + spread * draw.normal(size=(rows, 8))).astype(np.float32)
    words = np.where(draw.random(rows) < 0.6, truth, draw.integers(3, size=rows))
    texts = [f"text {row} {['red', 'green', 'blue'][word]}" for row, word in enumerate(words)]
    return Problem(blocks, texts, targets, np.ones(rows), make_folds(texts, targets, seed=0), "accuracy", 0)


@pytest.fixture(scope="module")
def both() -> tuple[Problem, Outcome]:
    given = problem(240, spread=4)
    return given, auto.fit(given, LAYERS, parts=("last", "network"))


def read_by_parts(given: Problem, blocks: Sequence[str], parts: Sequence[str] | None = None) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, learner in auto.learners(given, blocks, parts):
        settings: dict[str, Any] = getattr(learner, "keywords", {})
        found[name] = settings.get("names", settings.get("deep", []))
    return found


def test_a_network_is_trained_where_there_are_rows_to_choose_it_by() -> None:
    assert auto.usual(problem(1400)) == ("last", "network")
    assert auto.usual(problem(1000)) == ("last", "layers")  # a fifth of them chooses nothing
    silent = replace(problem(1400), weights=np.where(np.arange(1400) < 400, 0.0, 1.0))
    assert auto.usual(silent) == ("last", "layers")


def test_every_part_reads_its_own_of_the_hidden_layers() -> None:
    deep = ["0/hidden.3/mean", "0/hidden.2/mean", "0/hidden.1/mean"]
    parts = {"last": ["0/hidden.3/mean"], "network": deep, "layers": LAYERS, "stc": LAYERS, "lexical": []}
    assert read_by_parts(problem(60), LAYERS, list(auto.PARTS)) == parts


def test_every_backbone_has_parts_of_its_own() -> None:
    both = [*LAYERS[:4], *SECOND[:3], *LAYERS[4:], *SECOND[3:]]
    found = read_by_parts(problem(1400, both), both)
    assert list(found) == ["last", "network", "last 2", "network 2", "lexical"]
    assert found["last 2"] == ["1/encoder.hidden.2/mean"]
    assert found["network 2"] == ["1/encoder.hidden.2/mean", "1/encoder.hidden.1/mean"]
    assert read_by_parts(problem(60, both), both)["layers 2"] == SECOND


def test_nothing_is_read_that_no_part_uses() -> None:
    assert auto.reads(problem(1400), LAYERS) == [f"0/hidden.{layer}/mean" for layer in (1, 2, 3)]
    assert auto.reads(problem(60), LAYERS) == LAYERS
    both = [*LAYERS, *SECOND]
    assert set(auto.reads(problem(1400), both)) == {name for name in both if re.search(r"[123]/mean", name)}


@pytest.mark.parametrize(
    ("names", "last", "network"),
    [
        (["0/hidden.1/max", "0/hidden.2/max"], ["0/hidden.2/max"], ["0/hidden.2/max", "0/hidden.1/max"]),
        (["0/sentence"], ["0/sentence"], ["0/sentence"]),
        (["0/hidden.1/max", "0/pooler"], ["0/pooler"], ["0/pooler", "0/hidden.1/max"]),
        (["0/hidden.0/mean"], ["0/hidden.0/mean"], ["0/hidden.0/mean"]),
        (["0/hidden.3/last", "0/sentence"], ["0/sentence"], ["0/sentence", "0/hidden.3/last"]),
    ],
)
def test_other_sites_and_poolings_take_the_place_of_means(
    names: list[str], last: list[str], network: list[str]
) -> None:
    found = read_by_parts(problem(1400, names), names)
    assert (found["last"], found["network"]) == (last, network)


def test_what_reads_no_blocks_is_trained_before_they_take_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    given, order = problem(240, LAYERS[:2]), []
    whole = lexical.fit

    def fit(one: Problem, **settings: Any) -> Outcome:
        order.append(("lexical", len(one.blocks)))
        return whole(one, **settings)

    monkeypatch.setattr(lexical, "fit", fit)
    early = learning.early(find("auto"), replace(given, blocks={}))
    outcome = auto.fit(given, LAYERS[:2], early=early)
    assert order == [("lexical", 0)]
    assert outcome.summary["weights"] == auto.fit(given, LAYERS[:2]).summary["weights"] and len(order) == 2
    texts, labels = [f"text {i} {'no' if i % 2 else 'yes'}" for i in range(60)], ["n", "y"] * 30
    TextClassifier("auto", str(build("bert")), cache=None).fit(texts, labels)
    assert len(order) == 3
    assert learning.early(find("linear"), given) == {}


def test_a_fit_reads_what_its_parts_use(monkeypatch: pytest.MonkeyPatch) -> None:
    texts, labels = [f"text {i} {'no' if i % 2 else 'yes'}" for i in range(60)], ["n", "y"] * 30
    seen: list[set[str]] = []
    whole = extract.read

    def read(*given: Any, **settings: Any) -> Window:
        seen.append({block.name for block in given[2]})
        return whole(*given, **settings)

    monkeypatch.setattr(extract, "read", read)
    for fewest in (10**6, 10):
        monkeypatch.setattr(auto, "FEWEST_FOR_NETWORK", fewest)
        TextClassifier("auto", str(build("bert")), cache=None).fit(texts, labels)
    assert len(seen[0]) == 2 * 4 and seen[1] == {f"0/hidden.{layer}/mean" for layer in (1, 2, 3)}


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
def test_parts_can_be_asked_for() -> None:
    given = problem(100, LAYERS[:2])
    weights = auto.fit(given, LAYERS[:2], parts=["last", "layers"]).summary["weights"]
    assert list(weights) == ["last", "layers", "lexical"] and sum(weights.values()) == pytest.approx(1)


def test_views_of_one_model_are_better_together(both: tuple[Problem, Outcome]) -> None:
    given, outcome = both
    path = outcome.summary["path"]
    alone, together = [one["log_loss"] for one in path[:3]], path[3]["log_loss"]
    assert together < min(alone)
    assert outcome.summary["weights"]["lexical"] > 0.05
    rows = given.folds.choosing & np.isfinite(outcome.held_out).all(axis=1)
    assert outcome.summary["rows"] == rows.sum() > 0.75 * given.rows


def test_a_saved_blend_with_a_network_gives_the_same_logits(both: tuple[Problem, Outcome]) -> None:
    given, outcome = both
    assert isinstance(outcome.model, Blend) and "network" in outcome.model.names
    again = learning.restore(learning.describe(outcome.model))
    np.testing.assert_array_equal(
        again.logits(given.blocks, given.texts), outcome.model.logits(given.blocks, given.texts)
    )


def test_reasons_of_a_blend_with_a_network_are_named_approximate(both: tuple[Problem, Outcome]) -> None:
    given, outcome = both
    found = attributor(outcome.model)(np.array([1.0, -0.5, -0.5]), {n: b[:1] for n, b in given.blocks.items()}, "red")
    assert not found.exact


def test_a_backbone_that_tells_nothing_is_not_needed() -> None:
    both = [*LAYERS, *SECOND]
    given = problem(400, both, spread=3, telling="encoder")
    model = auto.fit(replace(given, texts=[f"text {i}" for i in range(400)]), both).model
    assert isinstance(model, Blend) and any(name.endswith(" 2") for name in model.names)
    assert model.needs and all(name in SECOND for name in model.needs)
    assert not model.reads_text
