"""Cascades: which rows leave where, what is lost, and that leaving changes no answer."""

import math

import numpy as np
import pytest
import tiny

from sonde.classifier import TextClassifier
from sonde.errors import ArgumentError, ModelError, RecipeError
from sonde.evaluation import evaluate
from sonde.learn import cascade, learning, sparsify
from sonde.learn.attribution import attributor
from sonde.learn.cascade import Cascade
from sonde.learn.problem import Problem, Record
from sonde.learn.selection import depth
from sonde.learn.splitting import make_folds
from sonde.learn.targets import encode
from sonde.loading import load
from sonde.read.extract import read
from sonde.scoring import blocks_of

NAMES = tuple(f"0/hidden.{layer}/mean" for layer in range(4))


def a_problem(rows: int = 900, seed: int = 0, multilabel: bool = False) -> Problem:
    """Two thirds of the rows are told in every layer, the others in the last one alone."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, size=rows)
    easy = rng.random(rows) < 2 / 3
    signs = 2 * ids - 1
    blocks = {name: rng.normal(size=(rows, 8)).astype(np.float32) for name in NAMES}
    for name in NAMES:
        blocks[name][:, 2] += 6 * signs * easy
    blocks[NAMES[-1]][:, 5] += 6 * signs
    labels = (
        [[f"a{i}"] if row % 2 else [f"a{i}", "odd"] for row, i in enumerate(ids)]
        if multilabel
        else [f"a{i}" for i in ids]
    )
    if multilabel:
        for name in NAMES:
            blocks[name][:, 7] += np.where(np.arange(rows) % 2, -6, 6)
    texts, targets = [f"text {i}" for i in range(rows)], encode(labels)
    return Problem(blocks, texts, targets, np.ones(rows), make_folds(texts, targets, seed=0), "accuracy", seed)


def fitted(problem: Problem, loss: float = 0.01, **settings: object) -> tuple[Cascade, dict[str, object]]:
    outcome = cascade.fit(problem, sparsify.select(problem, NAMES, layers=3, **settings), loss)  # type: ignore[arg-type]
    assert isinstance(outcome.model, Cascade)
    return outcome.model, {**outcome.summary, "held_out": outcome.held_out}


def test_easy_rows_leave_early_and_hard_ones_go_on() -> None:
    model, summary = fitted(a_problem())
    unseen = a_problem(seed=1)
    logits, reached = model.leave(unseen.blocks, unseen.rows)
    hard = np.abs(unseen.blocks[NAMES[0]][:, 2]) < 2
    depths = model.depths[reached]
    assert depths[~hard].mean() < 1 and depths[hard].mean() > 2
    assert (logits.argmax(axis=1) == unseen.targets.ids).mean() > 0.97
    exits = summary["exits"]
    assert isinstance(exits, dict) and exits["depths"] == [0, 1, 2, 3]
    assert exits["mean_depth"] == pytest.approx(np.dot(exits["shares"], exits["depths"]), abs=1e-3)
    assert abs(exits["mean_depth"] - depths.mean()) < 0.2, "what was seen out of fold is what happens"


def test_no_more_is_lost_out_of_fold_than_allowed() -> None:
    problem = a_problem()
    depths = []
    for loss in (0.0, 0.02, 0.2, 0.9):
        _, summary = fitted(problem, loss)
        exits = summary["exits"]
        assert isinstance(exits, dict)
        assert exits["accuracy_of_each"][-1] - exits["accuracy"] <= loss + 1e-4  # these are rounded
        depths.append(exits["mean_depth"])
    assert depths == sorted(depths, reverse=True) and depths[-1] == 0, "where all may be lost, all leave at once"
    assert depths[0] > depths[2]


def test_what_luck_may_hide_counts_as_lost() -> None:
    """An exit that is right as often as the deepest head, but elsewhere, may lose as many on the next texts."""
    rng = np.random.default_rng(0)
    truth = np.eye(2)[rng.integers(2, size=400)]
    flips = rng.permutation(400)[:80]
    logits = [8 * (2 * truth - 1) for _ in range(2)]
    logits[0][flips[:40]] *= -1  # row class -> row class
    logits[1][flips[40:]] *= -1
    search = cascade._Search(logits, np.array([1, 2]), multilabel=False)
    weights = np.ones(400)
    assert search.choose(truth, weights, "accuracy", 0.01)[1]["mean_depth"] == 2
    assert search.choose(truth, weights, "accuracy", 0.04)[1]["mean_depth"] == 1
    assert search.choose(truth, weights, "macro_f1", 0.01)[1]["mean_depth"] == 2


@pytest.mark.parametrize(("rows", "loss", "left"), [(40, 0.02, False), (60, 0.02, True), (60, 0.0, False)])
def test_heads_that_agree_on_few_rows_promise_little(rows: int, loss: float, left: bool) -> None:
    truth = np.eye(2)[np.arange(rows) % 2]
    search = cascade._Search([8 * (2 * truth - 1) for _ in range(2)], np.array([1, 2]), multilabel=False)
    for metric in ("accuracy", "macro_f1"):
        threshold, measured = search.choose(truth, np.ones(rows), metric, loss)
        assert measured["mean_depth"] == (1 if left else 2)
        assert (threshold < 1) == left and measured[metric] == 1


def test_a_row_has_the_logits_of_the_exit_where_it_leaves() -> None:
    problem = a_problem(rows=300)
    model, _ = fitted(problem)
    logits, reached = model.leave(problem.blocks, problem.rows)
    for row in range(0, 300, 7):
        own = {name: block[row : row + 1] for name, block in problem.blocks.items()}
        for stage in range(len(model.exits)):
            one, further = model.at(stage, own, 1)
            if not further[0]:
                break
        assert stage == reached[row]
        np.testing.assert_allclose(one[0], logits[row], atol=1e-5)
    np.testing.assert_array_equal(model.logits(problem.blocks, problem.texts), logits)


def test_every_stage_reads_what_the_ones_before_did_not() -> None:
    model, _ = fitted(a_problem(rows=300))
    names = [name for stage in model.stages for name in stage]
    assert sorted(names) == sorted(model.needs) and len(set(names)) == len(names)
    for stage, limit in zip(model.stages, model.depths, strict=True):
        assert all(depth(name) <= limit for name in stage)
    kept = {name: model.columns[name] for name in model.needs}
    narrow = {name: a_problem(rows=300).blocks[name][:, own] for name, own in kept.items()}
    whole = a_problem(rows=300)
    np.testing.assert_allclose(model.logits(narrow, whole.texts), model.logits(whole.blocks, whole.texts), atol=1e-5)


def test_with_several_labels_every_decision_must_be_sure() -> None:
    problem = a_problem(multilabel=True)
    model, _ = fitted(problem)
    logits, reached = model.leave(problem.blocks, problem.rows)
    assert 0 < (reached < len(model.exits) - 1).mean() < 1
    early = reached < len(model.exits) - 1
    probabilities = 1 / (1 + np.exp(-logits[early]))
    assert np.maximum(probabilities, 1 - probabilities).min() >= model.threshold


def test_held_out_logits_are_those_of_the_exits() -> None:
    problem = a_problem()
    _, summary = fitted(problem)
    held_out = summary["held_out"]
    assert isinstance(held_out, np.ndarray)
    seen = ~np.isnan(held_out[:, 0])
    assert seen.all() and (held_out.argmax(axis=1) == problem.targets.ids).mean() > 0.95


def test_a_record_comes_back_as_it_was_and_damage_is_refused() -> None:
    problem = a_problem(rows=300)
    model, _ = fitted(problem)
    record = learning.describe(model)
    again = learning.restore(record)
    np.testing.assert_array_equal(
        again.logits(problem.blocks, problem.texts), model.logits(problem.blocks, problem.texts)
    )
    exits = record.settings["exits"]
    for settings in (
        {"temperatures": [1.0]},
        {"threshold": math.nan},
        {"threshold": -1},
        {"temperatures": [0.0] * len(exits)},
        {"exits": exits[::-1], "temperatures": record.settings["temperatures"]},
    ):
        with pytest.raises(ModelError, match="the model is damaged"):
            learning.restore(Record({**record.settings, **settings}, record.arrays))


# The classifier


def rows_of(n: int = 240) -> tuple[list[str], list[str]]:
    rng = np.random.default_rng(0)
    words = sorted({word for sentence in tiny.SENTENCES for word in sentence.split()})
    texts = [" ".join(rng.choice(words, size=rng.integers(2, 14))) for _ in range(n)]
    return texts, ["long" if len(text.split()) > 7 else "short" for text in texts]


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_cascade_answers_as_if_all_had_been_read(name: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    texts, labels = rows_of()
    classifier = TextClassifier(
        "stc-hidden", (str(tiny.build(name)),), cache=None, dtype="float32", exit_loss=0.05
    ).fit(texts, labels)
    model = classifier.model_
    assert isinstance(model, Cascade)
    report = evaluate(classifier, texts, labels)
    assert report["mean_depth"] < model.depths[-1], "some leave early"
    sources = classifier.sources()
    window = read(texts, sources, list(blocks_of(model, sources).values()))
    logits, reached = model.leave(window.blocks, len(texts))
    expected = logits / classifier.temperature_
    expected = np.exp(expected - expected.max(axis=1, keepdims=True))
    np.testing.assert_allclose(
        classifier.predict_proba(texts), expected / expected.sum(axis=1, keepdims=True), atol=1e-4
    )
    assert report["mean_depth"] == pytest.approx(model.depths[reached].mean(), abs=0.02)
    classifier.save(tmp_path / "model")
    again = load(tmp_path / "model")
    np.testing.assert_allclose(again.predict_proba(texts[::-1]), classifier.predict_proba(texts)[::-1], atol=1e-5)


def test_a_row_is_explained_by_the_exit_at_which_it_leaves() -> None:
    model, _ = fitted(a_problem())
    unseen = a_problem(seed=1)
    logits, reached = model.leave(unseen.blocks, unseen.rows)
    attribute, direction = attributor(model), np.array([-1.0, 1.0])
    some = [int(np.flatnonzero(reached == stage)[0]) for stage in np.unique(reached)]
    assert len(some) > 1, "rows leave at several exits"
    for row in some:
        blocks = {name: block[row : row + 1] for name, block in unseen.blocks.items()}
        found = attribute(direction, blocks, "")
        added = sum(float(((blocks[part.block][0] - part.centre) * part.weights).sum()) for part in found.parts)
        assert found.exact and found.bias + added == pytest.approx(float(logits[row] @ direction), abs=1e-4)
        used = {part.block for part in found.parts if part.weights.any()}
        assert used <= set(model.exits[reached[row]].needs), "what it did not read says nothing"


@pytest.mark.parametrize("given", [-0.1, 1, "much", True, math.nan])
def test_what_may_be_lost_is_a_share(given: object) -> None:
    with pytest.raises(ArgumentError, match=r"exit_loss is .*; it must be the share of accuracy"):
        TextClassifier("stc", exit_loss=given).fit(["a", "b"], ["a", "b"])  # type: ignore[arg-type]


def test_exits_are_of_stc_and_one_backbone() -> None:
    with pytest.raises(RecipeError, match="'linear' chooses no neurons; leave out exit_loss, or use stc"):
        TextClassifier("linear", exit_loss=0.1).fit(["a", "b"], ["a", "b"])
    with pytest.raises(RecipeError, match="Early exits take one backbone"):
        TextClassifier("stc", ("one", "two"), exit_loss=0.1).fit(["a", "b"], ["a", "b"])
