from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from sonde.learn import blend, lexical, logistic
from sonde.learn.blend import Blend
from sonde.learn.calibration import fit_temperature, to_probabilities
from sonde.learn.metrics import log_loss
from sonde.learn.problem import Outcome, Problem, Record
from sonde.learn.splitting import Folds, make_folds
from sonde.learn.targets import encode

NAME = "0/hidden.1/mean"


@dataclass(frozen=True)
class Opinion:
    """A stand-in for a learner: its logits are columns of a block."""

    name: str
    needs: tuple[str, ...]
    reads_text: bool = False

    def logits(self, blocks: Any, texts: Sequence[str]) -> np.ndarray:
        return np.asarray(blocks[self.name])

    def record(self) -> Record:
        return Record({}, {})

    @classmethod
    def from_record(cls, record: Record) -> "Opinion":
        raise NotImplementedError


def opinion(name: str) -> tuple[str, Callable[[Problem], Outcome]]:
    return name, lambda given: Outcome(Opinion(name, (name,)), given.blocks[name].copy(), {"name": name})


def problem(rows: int = 600, multilabel: bool = False, **blocks: tuple[float, float]) -> Problem:
    """Three classes; a block (signal, scale) holds logits that know the truth as well as the signal says."""
    draw = np.random.default_rng(0)
    truth = draw.integers(3, size=rows)
    labels: list[Any] = truth.tolist() if not multilabel else [[int(one), int(one + 1) % 3] for one in truth]
    targets = encode(labels)
    noise = {name: draw.normal(size=(rows, 3)) for name in blocks}
    logits = {
        name: (scale * (signal * (2 * targets.indicator - 1) + noise[name])).astype(np.float32)
        for name, (signal, scale) in blocks.items()
    }
    texts = [f"text {row}" for row in range(rows)]
    folds = make_folds(texts, targets, seed=0)
    return Problem(logits, texts, targets, np.ones(rows), folds, "accuracy", 0)


def loss(held_out: np.ndarray, given: Problem) -> float:
    chosen = given.folds.choosing
    multilabel = given.targets.multilabel
    return log_loss(
        given.targets.indicator[chosen], to_probabilities(held_out[chosen], multilabel), multilabel=multilabel
    )


@pytest.mark.parametrize("multilabel", [False, True])
def test_independent_opinions_are_better_together(multilabel: bool) -> None:
    given = problem(a=(1.0, 1.0), b=(1.0, 30.0), multilabel=multilabel)
    outcome = blend.fit(given, [opinion("a"), opinion("b")])
    assert outcome.summary["weights"] == pytest.approx({"a": 0.5, "b": 0.5}, abs=0.15)
    alone = [blend.fit(given, [opinion(name)]) for name in ("a", "b")]
    assert loss(outcome.held_out, given) < min(loss(one.held_out, given) for one in alone) - 0.05
    np.testing.assert_allclose(outcome.model.logits(given.blocks, given.texts), outcome.held_out, rtol=1e-5)


def test_what_it_returns_is_calibrated() -> None:
    given = problem(a=(1.0, 0.2), b=(1.0, 30.0))
    held_out, rows = blend.fit(given, [opinion("a"), opinion("b")]).held_out, given.folds.choosing
    assert fit_temperature(held_out[rows], given.targets.take(rows), given.weights[rows]) == pytest.approx(1, rel=0.01)


def test_an_opinion_without_weight_is_not_needed() -> None:
    given = problem(good=(3.0, 1.0), noise=(0.0, 1.0))
    outcome = blend.fit(given, [opinion("good"), opinion("noise")])
    assert outcome.summary["weights"] == {"good": 1.0, "noise": 0.0}
    assert outcome.model.needs == ("good",)
    assert isinstance(outcome.model, Blend) and outcome.model.names == ("good",)


def test_three_opinions_share_one_weight() -> None:
    given = problem(a=(1.0, 1.0), b=(0.7, 1.0), c=(0.7, 1.0))
    weights = blend.fit(given, [opinion(name) for name in "abc"]).summary["weights"]
    assert sum(weights.values()) == pytest.approx(1)
    assert weights["a"] == max(weights.values()) and min(weights.values()) > 0.1


def test_all_weights_of_a_grid_are_tried_once() -> None:
    tried = list(blend._simplex(3, 4))
    assert len(tried) == len({tuple(np.round(weights, 9)) for weights in tried}) == 15
    assert all(sum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in tried)


def test_only_rows_that_choose_choose() -> None:
    given = problem(a=(1.0, 1.0), b=(1.0, 1.0))
    calibrates = given.folds.conformal
    spoilt = {**given.blocks, "a": np.where(calibrates[:, None], -given.blocks["a"], given.blocks["a"])}
    plain = blend.fit(given, [opinion("a"), opinion("b")])
    other = blend.fit(replace(given, blocks=spoilt), [opinion("a"), opinion("b")])
    assert other.summary["weights"] == plain.summary["weights"]
    backwards = {**given.blocks, "a": -given.blocks["a"]}
    assert blend.fit(replace(given, blocks=backwards), [opinion("a"), opinion("b")]).summary["weights"]["a"] == 0


def test_rows_of_weight_zero_choose_nothing() -> None:
    given = problem(a=(1.0, 1.0), b=(1.0, 1.0))
    odd = np.arange(len(given.texts)) % 2 == 1
    spoilt = {**given.blocks, "a": np.where(odd[:, None], -given.blocks["a"], given.blocks["a"])}
    silent = replace(given, blocks=spoilt, weights=np.where(odd, 0.0, 1.0))
    assert blend.fit(silent, [opinion("a"), opinion("b")]).summary["weights"]["a"] > 0.3


def test_without_rows_that_choose_all_weigh_the_same() -> None:
    given = problem(a=(1.0, 1.0), b=(1.0, 1.0))
    never = Folds(np.full(len(given.texts), -1), np.ones(len(given.texts), bool), np.zeros(len(given.texts), bool), 0)
    outcome = blend.fit(replace(given, folds=never), [opinion("a"), opinion("b")])
    assert outcome.summary["weights"] == {"a": 0.5, "b": 0.5}


def test_macro_f1_may_choose_other_weights() -> None:
    given = problem(a=(1.0, 1.0), b=(0.8, 1.0))
    path = blend.fit(given, [opinion("a"), opinion("b")]).summary["path"]
    outcome = blend.fit(replace(given, metric="macro_f1"), [opinion("a"), opinion("b")])
    best = max(path, key=lambda one: one["macro_f1"])
    assert outcome.summary["weights"] == dict(zip("ab", best["weights"], strict=True))


@pytest.fixture
def fitted(texts: list[str], labels: list[str]) -> tuple[Problem, Outcome]:
    draw = np.random.default_rng(0)
    targets = encode(labels)
    block = (targets.indicator @ draw.normal(size=(3, 8)) + draw.normal(size=(60, 8))).astype(np.float32)
    given = Problem({NAME: block}, texts, targets, np.ones(60), make_folds(texts, targets, seed=0), "accuracy", 0)
    return given, blend.fit(given, [("layers", partial(logistic.fit, names=[NAME])), ("lexical", lexical.fit)])


def test_a_record_gives_identical_logits(fitted: tuple[Problem, Outcome]) -> None:
    given, outcome = fitted
    record = outcome.model.record()
    assert any(name.startswith("layers/") for name in record.arrays)
    again = Blend.from_record(record)
    assert again.needs == outcome.model.needs == (NAME,)
    np.testing.assert_array_equal(
        again.logits(given.blocks, given.texts), outcome.model.logits(given.blocks, given.texts)
    )


def test_the_summary_tells_of_the_parts(fitted: tuple[Problem, Outcome]) -> None:
    assert set(fitted[1].summary["parts"]) == {"layers", "lexical"}
    assert "C" in fitted[1].summary["parts"]["layers"]
