from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from sonde.learn import blend, lexical, logistic
from sonde.learn.blend import Blend
from sonde.learn.calibration import decide, fit_temperature, to_probabilities
from sonde.learn.metrics import log_loss, macro_f1
from sonde.learn.opinions import pool
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
    assert fit_temperature(held_out[rows], given.targets.take(rows), given.weights[rows]) == pytest.approx(1, rel=0.05)


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


def test_the_weights_are_the_best_of_a_fine_grid() -> None:
    given = problem(a=(1.0, 1.0), b=(0.7, 3.0))
    outcome = blend.fit(given, [opinion("a"), opinion("b")])
    logits, own = [given.blocks[name] for name in "ab"], list(outcome.summary["temperatures"].values())

    def at(weight: float) -> float:
        pooled = pool(logits, (weight / own[0], (1 - weight) / own[1]))
        chosen = given.folds.choosing
        temperature = fit_temperature(pooled[chosen], given.targets.take(np.flatnonzero(chosen)), np.ones(chosen.sum()))
        return loss(pooled / np.float32(temperature), given)

    grid = np.linspace(0, 1, 101)
    best = grid[np.argmin([at(weight) for weight in grid])]
    assert 0.05 < best < 0.95
    assert outcome.summary["weights"]["a"] == pytest.approx(best, abs=0.03)
    assert loss(outcome.held_out, given) == pytest.approx(at(best), rel=1e-3)


def test_few_rows_leave_weights_near_equal_shares() -> None:
    weights = []
    for rows in (30, 3000):
        given = problem(rows, a=(0.5, 1.0), noise=(0.0, 1.0))
        blocks = {"a": given.blocks["a"], "worse": given.blocks["a"] + given.blocks["noise"]}
        fitted = blend.fit(replace(given, blocks=blocks), [opinion("a"), opinion("worse")])
        weights.append(fitted.summary["weights"]["worse"])
    assert weights[1] == 0 < weights[0] < 0.5


def test_a_part_that_repeats_another_is_left_out() -> None:
    given = problem(6000, a=(0.5, 1.0), b=(0.5, 1.0))
    blocks = {**given.blocks, "again": given.blocks["a"] * 3}
    weights = blend.fit(replace(given, blocks=blocks), [opinion(name) for name in ("a", "b", "again")])
    assert sorted(weights.summary["weights"].values()) == pytest.approx([0, 0.5, 0.5], abs=0.05)
    assert weights.summary["weights"]["b"] > 0.4


def test_six_opinions_are_weighed_without_trying_all() -> None:
    given = problem(2000, **dict.fromkeys("abcdef", (0.3, 1.0)))
    summary = blend.fit(given, [opinion(name) for name in "abcdef"]).summary
    assert list(summary["weights"].values()) == pytest.approx([1 / 6] * 6, abs=0.06)
    assert len(summary["path"]) == 7  # each alone, and together


def test_rows_that_a_part_did_not_hold_out_choose_nothing() -> None:
    given = problem(a=(1.0, 1.0), b=(1.0, 1.0))
    first = given.folds.held == 1
    some = np.where(first[:, None], given.blocks["b"], np.float32(np.nan))
    parts = [opinion("a"), ("b", lambda given: Outcome(Opinion("b", ("b",)), some, {}))]
    outcome = blend.fit(given, parts)
    assert outcome.summary["rows"] == first.sum()
    assert outcome.summary["weights"]["b"] == pytest.approx(0.5, abs=0.2)
    assert np.array_equal(np.isfinite(outcome.held_out).all(axis=1), first)


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


def rare() -> Problem:
    """Most rows are of class 0; `sure` knows nothing else, `rare` tells the others apart."""
    draw = np.random.default_rng(0)
    truth = draw.choice(3, size=1500, p=[0.9, 0.05, 0.05])
    targets = encode(truth.tolist())
    sure = np.tile([4.0, 0.0, 0.0], (1500, 1)) + draw.normal(size=(1500, 3)) * 0.1
    logits = {"sure": sure, "rare": 0.5 * (2 * targets.indicator - 1) + draw.normal(size=(1500, 3))}
    texts = [f"text {row}" for row in range(1500)]
    blocks = {name: values.astype(np.float32) for name, values in logits.items()}
    return Problem(blocks, texts, targets, np.ones(1500), make_folds(texts, targets, seed=0), "accuracy", 0)


def test_macro_f1_chooses_weights_of_better_macro_f1() -> None:
    given = rare()
    both = [opinion("sure"), opinion("rare")]
    for_accuracy = blend.fit(given, both)
    for_f1 = blend.fit(replace(given, metric="macro_f1"), both)
    rows = given.folds.choosing

    def f1(outcome: Outcome) -> float:
        return macro_f1(given.targets.indicator[rows], decide(outcome.held_out[rows], False))

    assert f1(for_f1) > f1(for_accuracy) + 0.02
    assert for_f1.summary["weights"]["rare"] > for_accuracy.summary["weights"]["rare"]
    best = max(for_f1.summary["path"], key=lambda one: one["macro_f1"])
    assert f1(for_f1) == pytest.approx(best["macro_f1"], abs=1e-6)


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
