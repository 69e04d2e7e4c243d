import json
import math
import threading
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from sonde.errors import SondeWarning
from sonde.learn import logistic, regressions
from sonde.learn.calibration import fit_temperature, to_probabilities
from sonde.learn.logistic import GRID, Logistic, fit
from sonde.learn.metrics import log_loss, macro_f1
from sonde.learn.problem import Problem
from sonde.learn.splitting import make_folds, validation_folds
from sonde.learn.targets import encode
from sonde.learn.threads import one_thread

NAMES = ("0/hidden.1/mean", "0/hidden.2/mean")


def _blocks(x):
    half = x.shape[1] // 3
    return {NAMES[0]: np.ascontiguousarray(x[:, :half]), NAMES[1]: np.ascontiguousarray(x[:, half:])}


def _problem(x, labels, weights=None, folds=None, metric="accuracy", texts=None):
    targets = encode(labels)
    texts = [f"text {i}" for i in range(len(x))] if texts is None else texts
    weights = np.ones(len(x)) if weights is None else weights
    folds = make_folds(texts, targets, seed=0) if folds is None else folds
    return Problem(_blocks(x), texts, targets, weights, folds, metric, 0)


def _draw(rows, features, classes, seed=0, noise=2.0):
    """Correlated features far from the origin, on different scales; logits that depend on them."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(features, features)))[0]
    x = (rng.normal(size=(rows, features)) * np.arange(1, features + 1) ** -0.7) @ turn
    logits = x / x.std(axis=0) @ rng.normal(size=(features, classes)) * 0.4 + rng.gumbel(size=(rows, classes)) * noise
    return (x * rng.uniform(0.1, 30, features) + rng.normal(size=features) * 20).astype(np.float32), logits


def _standard(x, weights):
    mean = np.average(x.astype(np.float64), axis=0, weights=weights)
    return (x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))


def _objective(problem, model, x, c):
    """What scikit-learn minimises, at our coefficients."""
    logits = model.logits(problem.blocks, problem.texts).astype(np.float64)
    multilabel, truth = problem.targets.multilabel, problem.targets.indicator
    probabilities = to_probabilities(logits, multilabel)
    loss = log_loss(truth, probabilities, multilabel=multilabel, weights=problem.weights) * problem.weights.sum()
    square = (model.coefficients.astype(np.float64) ** 2).sum()
    two = not multilabel and truth.shape[1] == 2  # (w/2)^2 + (w/2)^2 = w^2 / 2
    return c * loss * (truth.shape[1] if multilabel else 1) + square * (1 if two else 0.5)


@pytest.mark.parametrize("c", [0.001, 0.1, 10.0])
@pytest.mark.parametrize(
    ("features", "classes", "multilabel"),
    [(30, 5, False), (30, 2, False), (30, 4, True), (260, 3, False), (900, 3, False)],
)
def test_optimum_equals_scikit_learn(features, classes, multilabel, c):
    x, logits = _draw(200, features, classes)
    labels = (logits > 2).astype(int) if multilabel else logits.argmax(axis=1)
    weights = np.random.default_rng(1).uniform(0.2, 3, 200)
    problem = _problem(x, labels, weights)
    model = fit(problem, NAMES, grid=[c]).model
    probabilities = to_probabilities(model.logits(problem.blocks, problem.texts).astype(np.float64), multilabel)
    standard = _standard(x, weights)
    columns = labels.T if multilabel else [labels]
    references = [LogisticRegression(C=c, tol=1e-10, max_iter=20000).fit(standard, y, weights) for y in columns]
    expected = [reference.predict_proba(standard) for reference in references]
    expected = np.stack([each[:, 1] for each in expected], axis=1) if multilabel else expected[0]
    assert np.abs(probabilities - expected).max() < 1e-3
    best = c * sum(
        log_loss(np.eye(classes if not multilabel else 2)[y], reference.predict_proba(standard), weights=weights)
        for y, reference in zip(columns, references, strict=True)
    ) * weights.sum() + 0.5 * sum((reference.coef_**2).sum() for reference in references)
    assert _objective(problem, model, x, c) == pytest.approx(best, rel=3e-5)


@pytest.mark.parametrize("features", [20, 1300])
def test_fold_models_equal_scikit_learn_on_their_own_standardisation(features):
    x, logits = _draw(300, features, 3)
    labels = logits.argmax(axis=1)
    problem = _problem(x, labels)
    held_out = fit(problem, NAMES, grid=[0.1]).held_out
    for k in range(5):
        train, test = problem.folds.train(k), problem.folds.held_out(k)
        mean, deviation = x[train].mean(axis=0, dtype=np.float64), x[train].std(axis=0, dtype=np.float64)
        reference = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit((x[train] - mean) / deviation, labels[train])
        expected = reference.predict_proba((x[test] - mean) / deviation)
        assert np.abs(to_probabilities(held_out[test], False) - expected).max() < 5e-3  # fold models: looser tolerance


@pytest.mark.parametrize("labels", ["two", "three", "several", "one row of a class"])
def test_in_the_span_of_few_rows_the_models_are_those_of_all_features(labels, monkeypatch):
    x, logits = _draw(90, 400, 3)
    x[60] = x[61]  # a direction less
    x[:, 5] = 7.0
    classes = {
        "two": logits.argmax(axis=1) == 1,
        "three": logits.argmax(axis=1),
        "several": (logits > 1).astype(int),
        "one row of a class": np.where(np.arange(90) == 7, 9, logits.argmax(axis=1)),
    }[labels]
    weights = np.random.default_rng(1).uniform(0.2, 3, 90)
    weights[3:9] = 0
    problem = _problem(x, classes, weights)
    kept = {name: np.random.default_rng(2).random((6, block.shape[1])) < 0.9 for name, block in problem.blocks.items()}
    found = []
    for few in (0.0, 0.25):
        monkeypatch.setattr(logistic, "FEW", few)
        found.append([fit(problem, NAMES, grid=GRID[6:11], kept=some) for some in (None, kept)])
    for whole, inside in zip(*found, strict=True):
        assert inside.summary["C"] == whole.summary["C"]
        np.testing.assert_allclose(inside.model.coefficients, whole.model.coefficients, atol=1e-4)
        np.testing.assert_allclose(inside.model.intercept, whole.model.intercept, atol=1e-3)
        np.testing.assert_allclose(inside.held_out, whole.held_out, atol=2e-2)
    assert not np.allclose(found[0][0].held_out, found[0][1].held_out, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_weight_two_is_a_repeated_row(classes):
    x, logits = _draw(150, 12, classes)
    labels = logits.argmax(axis=1)
    twice = np.random.default_rng(2).random(150) < 0.3
    repeats = np.repeat(np.arange(150), np.where(twice, 2, 1))
    texts = [f"text {i}" for i in range(150)]
    weighted = fit(_problem(x, labels, np.where(twice, 2.0, 1.0)), NAMES)
    repeated = fit(_problem(x[repeats], labels[repeats], texts=[texts[i] for i in repeats]), NAMES)
    assert weighted.summary["C"] == repeated.summary["C"]
    ours, theirs = (to_probabilities(each.model.logits(_blocks(x), texts), False) for each in (weighted, repeated))
    assert np.abs(ours - theirs).max() < 1e-4
    np.testing.assert_allclose(weighted.held_out[repeats], repeated.held_out, atol=1e-2)


def test_labels_drawn_by_lot_are_predicted_by_chance_out_of_fold():
    rng = np.random.default_rng(0)
    x, _ = _draw(200, 300, 2)  # more features than rows: any labels can be learned by heart
    labels = rng.permutation(np.arange(200) % 4)
    copies = np.tile(np.arange(200), 2)
    texts = [f"Text {i}" if copy < 200 else f" text  {i}" for copy, i in enumerate(copies)]
    problem = _problem(x[copies], labels[copies], texts=texts)
    outcome = fit(problem, NAMES, grid=[1.0])
    held = problem.folds.held >= 0
    assert held.all()
    learned = outcome.model.logits(problem.blocks, texts).argmax(axis=1) == labels[copies]
    assert learned.mean() == 1.0
    assert (outcome.held_out.argmax(axis=1) == labels[copies]).mean() < 0.35  # chance .25, standard error .031


def test_c_is_the_best_of_the_path_on_rows_that_choose():
    x, logits = _draw(400, 40, 4)
    problem = _problem(x, logits.argmax(axis=1))
    outcome = fit(problem, NAMES)
    tried = outcome.summary["path"]
    rows = problem.folds.choosing.sum()
    prices = {each["C"]: each["log_loss"] + math.log10(each["C"] / logistic.UNCHOSEN_C) ** 2 / rows for each in tried}
    assert outcome.summary["C"] == min(prices, key=lambda c: prices[c])
    assert len(tried) >= 4 and [each["C"] for each in tried] == list(logistic.GRID[: len(tried)])
    assert [each["C"] for each in tried][-3] == outcome.summary["C"]  # two without improvement end the path
    choosing = problem.folds.choosing
    logits, targets = outcome.held_out[choosing].astype(np.float64), problem.targets.take(np.flatnonzero(choosing))
    probabilities = to_probabilities(logits / fit_temperature(logits, targets, np.ones(rows)), False)
    loss = log_loss(targets.indicator, probabilities)
    assert next(each["log_loss"] for each in tried if each["C"] == outcome.summary["C"]) == pytest.approx(loss)
    assert json.loads(json.dumps(outcome.summary)) == outcome.summary


@pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
def test_few_rows_do_not_move_c_far_from_its_default(monkeypatch):
    def summaries(rows):
        drawn = [_draw(rows, 10, 2, seed=seed) for seed in range(4 if rows < 100 else 2)]
        return [fit(_problem(x, logits.argmax(axis=1)), NAMES).summary for x, logits in drawn]

    def decades(found):
        return np.abs(np.log10([each["C"] / logistic.UNCHOSEN_C for each in found]))

    few, many = summaries(16), summaries(600)
    for each in many:
        losses = {one["C"]: one["log_loss"] for one in each["path"]}
        assert losses[each["C"]] < 1.002 * min(losses.values())
    monkeypatch.setattr(logistic, "PRIOR", 0.0)
    free = summaries(16)
    assert (decades(few) <= decades(free)).all() and decades(few).mean() + 0.25 < decades(free).mean()


def test_macro_f1_chooses_by_macro_f1():
    x, logits = _draw(400, 40, 3)
    labels = (logits + np.array([3.0, 0.0, -1.0])).argmax(axis=1)
    problem = _problem(x, labels, metric="macro_f1")
    outcome = fit(problem, NAMES)
    tried = outcome.summary["path"]
    assert outcome.summary["C"] == min(tried, key=lambda each: (-each["macro_f1"], each["log_loss"]))["C"]
    assert outcome.summary["C"] > min(tried, key=lambda each: each["log_loss"])["C"]
    choosing = problem.folds.choosing
    predicted = np.eye(3)[outcome.held_out[choosing].argmax(axis=1)]
    assert max(each["macro_f1"] for each in tried) == pytest.approx(
        macro_f1(problem.targets.indicator[choosing], predicted)
    )


def test_rows_never_held_out_have_no_held_out_logits():
    x, logits = _draw(120, 8, 2)
    labels = logits.argmax(axis=1)
    labels[:3] = 2
    with pytest.warns(SondeWarning, match="1 classes"):
        problem = _problem(x, labels)
    held_out = fit(problem, NAMES, grid=[0.1]).held_out
    assert held_out.shape == (120, 3) and held_out.dtype == np.float32
    assert (np.isnan(held_out).all(axis=1) == (problem.folds.held < 0)).all()
    assert np.isnan(held_out).any(axis=1).sum() == 3


def test_directions_within_some_features_are_those_of_the_spectrum_cut_to_them(monkeypatch):
    monkeypatch.setattr(regressions, "DIRECTIONS", 20)
    x, _ = _draw(300, 60, 3)
    standard = torch.from_numpy(_standard(x, np.ones(300)).astype(np.float32))
    whole = regressions.principal(standard, np.ones(300, dtype=bool))
    used = torch.rand(60, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    used[:, 2], used[:, 3] = True, torch.arange(60) < 5  # all of them; fewer than there are directions
    cut = whole.within(used)
    values = torch.randn(60, 4, 3, generator=torch.Generator().manual_seed(1))
    for fold, mask in enumerate(used.T):
        directions, excess = cut.directions[fold], cut.variances[:, fold, 0] - cut.rest
        plain = whole.directions[0] * mask[:, None]
        expected = plain @ torch.diag(whole.variances[:, 0, 0] - whole.rest) @ plain.T
        torch.testing.assert_close(directions @ torch.diag(excess) @ directions.T, expected, atol=1e-4, rtol=1e-4)
        real = excess > 0
        inner = directions[:, real].T @ directions[:, real]
        torch.testing.assert_close(inner, torch.eye(int(real.sum())), atol=1e-4, rtol=0)
        torch.testing.assert_close(cut.inward(values)[:, fold], directions.T @ values[:, fold], atol=1e-4, rtol=1e-4)
    assert int((cut.variances[:, 3] > cut.rest).sum()) == 5


def test_folds_that_use_features_of_their_own_take_no_more_steps():
    """With directions of all features, folds that use other ones took three times as many."""
    x, logits = _draw(1200, 300, 3, noise=0.3)
    problem = _problem(x, logits.argmax(axis=1).tolist())
    draw = np.random.default_rng(0)
    kept = {name: draw.random((problem.folds.n_folds + 1, problem.blocks[name].shape[1])) < 0.6 for name in NAMES}
    steps = [sum(one["iterations"] for one in fit(problem, NAMES, kept=some).summary["path"]) for some in (None, kept)]
    assert steps[1] <= 1.2 * steps[0]


def test_constant_columns_are_dropped_and_change_nothing():
    x, logits = _draw(120, 9, 3)
    labels = logits.argmax(axis=1)
    constant = np.full((120, 3), [1234.567, 0.0, -1e-9], dtype=np.float32)
    more = np.concatenate([x, constant], axis=1)
    one, two = (fit(_problem(each, labels), NAMES, grid=[0.1]) for each in (x, more))
    assert (one.summary["dropped_columns"], two.summary["dropped_columns"]) == (0, 3)
    assert (two.model.scale[-3:] == 0).all()
    changed = more.copy()
    changed[:, -3:] = 1e6  # whatever they are later
    texts = [""] * 120
    ours, theirs = one.model.logits(_blocks(x), texts), two.model.logits(_blocks(changed), texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-3)


def test_units_that_are_shut_on_all_training_rows_do_not_outweigh_the_rest_when_they_open():
    x, logits = _draw(120, 9, 3)
    labels = logits.argmax(axis=1)
    shut = np.random.default_rng(0).normal(size=(120, 1)).astype(np.float32) * 1e-33
    found = fit(_problem(np.concatenate([x, shut], axis=1), labels), NAMES, grid=[0.1])
    assert found.summary["dropped_columns"] == 1 and found.model.scale[-1] == 0
    opened = np.concatenate([x, np.full((120, 1), 0.3, dtype=np.float32)], axis=1)
    assert np.abs(found.model.logits(_blocks(opened), [""] * 120)).max() < 100


def test_a_column_that_is_constant_outside_one_fold_stays_out_of_that_folds_model():
    x, logits = _draw(120, 9, 2)
    labels = logits.argmax(axis=1)
    problem = _problem(x, labels)
    x[:, 4] = np.where(problem.folds.held == 2, np.random.default_rng(0).normal(size=120) * 1e4, 3.0)
    with_column = fit(_problem(x, labels), NAMES, grid=[0.1]).held_out
    x[:, 4] = 3.0
    without = fit(_problem(x, labels), NAMES, grid=[0.1]).held_out
    fold = problem.folds.held == 2
    np.testing.assert_allclose(with_column[fold], without[fold], atol=1e-2)
    assert np.abs(with_column[~fold] - without[~fold]).max() > 0


def test_a_validation_set_chooses_and_does_not_train():
    x, logits = _draw(300, 10, 3)
    labels = logits.argmax(axis=1)
    folds = validation_folds(200, encode(labels), 0)
    outcome = fit(_problem(x, labels, folds=folds), NAMES)
    assert np.isnan(outcome.held_out[:200]).all() and np.isfinite(outcome.held_out[200:]).all()
    assert outcome.summary["rows"] == 200
    texts = [""] * 300
    final = outcome.model.logits(_blocks(x), texts)
    np.testing.assert_allclose(
        to_probabilities(final[200:], False), to_probabilities(outcome.held_out[200:], False), atol=2e-2
    )
    x[200:] += 100  # the final model must not have seen these rows
    other = fit(_problem(x, labels, folds=folds), NAMES, grid=[outcome.summary["C"]])
    np.testing.assert_allclose(other.model.coefficients, outcome.model.coefficients, atol=2e-3)


@pytest.mark.parametrize("multilabel", [False, True])
def test_a_class_that_only_the_validation_set_has_is_improbable_and_finite(multilabel):
    x, logits = _draw(300, 10, 3)
    labels = logits.argmax(axis=1)
    labels[290:] = 3
    given = np.eye(4, dtype=int)[labels] if multilabel else labels
    problem = _problem(x, given, folds=validation_folds(290, encode(given), 0))
    outcome = fit(problem, NAMES)
    assert np.isfinite(outcome.held_out[290:]).all()
    probabilities = to_probabilities(outcome.model.logits(problem.blocks, problem.texts), multilabel)
    assert 0 < probabilities[:, 3].mean() < 0.01
    assert (outcome.model.coefficients[:, 3] == 0).all()


def test_without_held_out_rows_the_default_c_is_taken():
    x, _ = _draw(6, 5, 2)
    with pytest.warns(SondeWarning, match="No rows can be held out"):
        problem = _problem(x, list("abcdef"))
    outcome = fit(problem, NAMES)
    assert outcome.summary["C"] == logistic.UNCHOSEN_C
    assert outcome.summary["path"] == []
    assert np.isnan(outcome.held_out).all()
    assert np.isfinite(outcome.model.logits(problem.blocks, problem.texts)).all()


def test_two_classes_give_two_opposite_columns():
    x, logits = _draw(100, 6, 2)
    problem = _problem(x, np.where(logits.argmax(axis=1) == 1, "yes", "no"))
    model = fit(problem, NAMES, grid=[1.0]).model
    given = model.logits(problem.blocks, problem.texts)
    assert given.shape == (100, 2)
    np.testing.assert_array_equal(given[:, 0], -given[:, 1])
    assert (problem.targets.classes[given.argmax(axis=1)] == "yes").mean() == pytest.approx(
        problem.targets.indicator[:, 1].mean(), abs=0.15
    )


def test_not_converging_is_said(monkeypatch):
    x, logits = _draw(100, 40, 3)
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 2)
    with pytest.warns(SondeWarning, match=r"after 2 iterations before \d of 6 problems had converged") as caught:
        fit(_problem(x, logits.argmax(axis=1)), NAMES, grid=[10.0])
    assert caught[0].message.code == "not_converged"
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(_problem(x, logits.argmax(axis=1)), NAMES, grid=[10.0])


def test_the_record_brings_the_model_back_and_rows_do_not_depend_on_each_other():
    x, logits = _draw(100, 9, 3)
    problem = _problem(x, logits.argmax(axis=1))
    model = fit(problem, NAMES, grid=[0.1]).model
    record = model.record()
    assert json.loads(json.dumps(record.settings)) == record.settings
    again = Logistic.from_record(record)
    assert again.needs == NAMES and not again.reads_text
    whole = model.logits(problem.blocks, problem.texts)
    np.testing.assert_array_equal(again.logits(problem.blocks, problem.texts), whole)
    alone = np.concatenate([model.logits(_blocks(x[[i]]), ["one"]) for i in range(5)])
    np.testing.assert_allclose(alone, whole[:5], rtol=1e-5, atol=1e-5)
    assert whole.dtype == np.float32


def test_fitting_changes_neither_blocks_nor_global_state():
    x, logits = _draw(100, 9, 3)
    problem = _problem(x, logits.argmax(axis=1))
    before = {name: block.copy() for name, block in problem.blocks.items()}
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    first, second = fit(problem, NAMES), fit(problem, NAMES)
    assert all((problem.blocks[name] == before[name]).all() for name in NAMES)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(first.model.coefficients, second.model.coefficients)
    np.testing.assert_array_equal(first.held_out, second.held_out)
    assert torch.get_num_threads() == threads


def test_fits_that_overlap_leave_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first, second = one_thread(wanted=True), one_thread(wanted=True)
        with first:
            assert torch.get_num_threads() == 1
            second.__enter__()
        second.__exit__(None, None, None)
        with one_thread(wanted=False):
            assert torch.get_num_threads() == 2
        other = []
        thread = threading.Thread(target=lambda: other.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert other == [2]
    finally:
        torch.set_num_threads(before)
