"""L1 probes against scikit-learn's saga, and what a path promises."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sonde.errors import SondeWarning
from sonde.learn import probe
from sonde.learn.problem import Problem
from sonde.learn.quadratic import Quadratics, minimised
from sonde.learn.splitting import Folds, make_folds, validation_folds
from sonde.learn.targets import encode

NAME = "0/hidden.1/mean"


def a_problem(rows: int = 300, features: int = 24, classes: int = 3, seed: int = 0, noise: float = 1.5) -> Problem:
    """Correlated features of very different scales, some of which tell the classes apart."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(classes, size=rows)
    centres = np.zeros((classes, features))
    centres[:, :6] = rng.normal(size=(classes, 6))
    mixing = np.eye(features) + 0.5 * rng.normal(size=(features, features)) / np.sqrt(features)
    x = ((centres[ids] + noise * rng.normal(size=(rows, features))) @ mixing) * np.logspace(-2, 2, features) + 3
    texts = [f"text {i}" for i in range(rows)]
    targets = encode([f"class {i}" for i in ids])
    blocks = {NAME: x.astype(np.float32)}
    return Problem(blocks, texts, targets, np.ones(rows), make_folds(texts, targets, seed=0), "accuracy", seed)


def reference(x: np.ndarray, truth: np.ndarray, c: float, weights: np.ndarray | None = None) -> LogisticRegression:
    slow = LogisticRegression(l1_ratio=1, C=c, solver="saga", tol=1e-8, max_iter=100_000, random_state=0)
    return slow.fit(x, truth, sample_weight=weights)


def objective(x: np.ndarray, truth: np.ndarray, c: float, weight: np.ndarray, intercept: float) -> float:
    logits = x @ weight + intercept
    return float(c * (np.logaddexp(0, logits) - truth * logits).sum() + np.abs(weight).sum())


@pytest.fixture(params=[0, 10**9], ids=["metric", "newton"])
def solver(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both solvers, whatever the shape of the problem asks for."""
    monkeypatch.setattr(probe, "TALL", request.param)


@pytest.mark.usefixtures("solver")
@pytest.mark.parametrize("c", [0.1, 1.0, 10.0])
def test_probes_equal_saga_run_to_the_end(c: float) -> None:
    problem = a_problem()
    (step,) = probe.path(problem, NAME, grid=[c])
    x = StandardScaler().fit_transform(problem.blocks[NAME].astype(np.float64))
    for column in range(3):
        truth = problem.targets.indicator[:, column].astype(np.float64)
        slow = reference(x, truth, c)
        weight, intercept = step.coefficients[-1, :, column].astype(np.float64), float(step.intercepts[-1, column])
        least = objective(x, truth, c, slow.coef_[0], slow.intercept_[0])
        assert objective(x, truth, c, weight, intercept) <= least * (1 + 1e-5)
        ours = 1 / (1 + np.exp(-(x @ weight + intercept)))
        np.testing.assert_allclose(ours, slow.predict_proba(x)[:, 1], atol=1e-3)
        np.testing.assert_allclose(weight, slow.coef_[0], atol=5e-3)
    assert step.unfinished == 0


@pytest.mark.usefixtures("solver")
def test_every_c_of_a_path_is_at_its_optimum() -> None:
    """Of features that few directions explain: a step whose model was poorly solved must not pass for the end."""
    rng, rows = np.random.default_rng(1), 2000
    factor, noise = rng.normal(size=(rows + 200, 8)), rng.normal(size=(rows + 200, 192))
    x = (0.15 * noise + factor @ rng.normal(size=(8, 192))).astype(np.float32)
    truth = (x[:, :4].sum(axis=1) + 4 * rng.normal(size=rows + 200) > 0).astype(np.float64)
    targets, texts, weights = encode([str(int(one)) for one in truth]), ["text"] * len(x), np.ones(len(x))
    folds = validation_folds(rows, targets, seed=0)
    problem = Problem({NAME: x}, texts, targets, weights, folds, "accuracy", 0)
    seen = StandardScaler().fit_transform(x[:rows].astype(np.float64))
    for step in probe.path(problem, NAME):
        (alone,) = probe.path(problem, NAME, grid=[step.c], tolerance=1e-10)
        reached, least = (
            objective(seen, truth[:rows], step.c, one.coefficients[-1, :, 0].astype(np.float64), one.intercepts[-1, 0])
            for one in (step, alone)
        )
        assert abs(reached / least - 1) <= 1e-6, step.c


@pytest.mark.parametrize("classes", [2, 3])
def test_fold_models_see_their_own_rows_only(classes: int) -> None:
    problem = a_problem(classes=classes)
    (step,) = probe.path(problem, NAME, grid=[1.0])
    for fold in range(problem.folds.n_folds):
        seen, unseen = problem.folds.train(fold), problem.folds.held_out(fold)
        scaler = StandardScaler().fit(problem.blocks[NAME][seen].astype(np.float64))
        truth = problem.targets.indicator[:, -1].astype(np.float64)
        slow = reference(scaler.transform(problem.blocks[NAME][seen].astype(np.float64)), truth[seen], 1.0)
        expected = slow.decision_function(scaler.transform(problem.blocks[NAME][unseen].astype(np.float64)))
        assert step.held_out.shape[1] == (1 if classes == 2 else 3)
        np.testing.assert_allclose(step.held_out[unseen, -1], expected, atol=2e-2)


def with_validation(labels: list[str], n_train: int, features: int = 12) -> Problem:
    """Rows whose labels show in some features, the last rows a validation set."""
    targets, rng = encode(labels), np.random.default_rng(5)
    x = rng.normal(size=(len(labels), features)).astype(np.float32)
    x[:, : targets.n_classes] += targets.indicator
    texts = [f"text {i}" for i in range(len(labels))]
    folds = validation_folds(n_train, targets, seed=0)
    return Problem({NAME: x}, texts, targets, np.ones(len(labels)), folds, "accuracy", 0)


def test_models_of_a_validation_set_are_trained_once(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, solved = with_validation(["a", "b", "c"] * 50, 120), []

    whole = probe._Solver.start

    def counted(solver: Any) -> Any:
        found = whole(solver)
        solved.append(found.theta.shape[1])
        return found

    monkeypatch.setattr(probe._Solver, "start", counted)
    (step,) = probe.path(problem, NAME, grid=[1.0])
    assert solved == [3]
    assert step.coefficients.shape == (2, 12, 3) and step.intercepts.shape == (2, 3)
    np.testing.assert_array_equal(step.coefficients[0], step.coefficients[1])
    seen = problem.blocks[NAME][:120]
    unseen = StandardScaler().fit(seen).transform(problem.blocks[NAME][120:])
    np.testing.assert_allclose(step.held_out[120:], unseen @ step.coefficients[0] + step.intercepts[0], atol=1e-4)
    assert np.isnan(step.held_out[:120]).all()


def test_a_label_that_only_the_validation_set_has_disturbs_no_other() -> None:
    problem = with_validation([*["one", "other"] * 60, *["one", "other", "unseen"] * 10], 120)
    (step,) = probe.path(problem, NAME, grid=[1.0])
    x = StandardScaler().fit_transform(problem.blocks[NAME][:120].astype(np.float64))
    for column in range(2):
        slow = reference(x, problem.targets.indicator[:120, column].astype(np.float64), 1.0)
        np.testing.assert_allclose(step.coefficients[-1, :, column], slow.coef_[0], atol=5e-3)
    assert not step.coefficients[:, :, 2].any() and (step.intercepts[:, 2] < -5).all()


@pytest.mark.usefixtures("solver")
def test_a_row_of_weight_two_is_a_row_that_stands_twice() -> None:
    problem = a_problem(rows=120)
    targets, texts = problem.targets, list(problem.texts)
    doubled = np.arange(40)
    folds = validation_folds(120, targets, seed=0)
    weights = np.ones(120)
    weights[doubled] = 2
    rows = np.concatenate([np.arange(120), doubled])
    longer = targets.take(rows)
    once = Problem(problem.blocks, texts, targets, weights, folds, "accuracy", 0)
    twice = Problem(
        {NAME: problem.blocks[NAME][rows]}, [texts[i] for i in rows], longer, np.ones(160),
        validation_folds(160, longer, seed=0), "accuracy", 0,
    )  # fmt: skip
    (one,), (other,) = (probe.path(p, NAME, grid=[1.0]) for p in (once, twice))
    np.testing.assert_allclose(one.coefficients[-1], other.coefficients[-1], atol=5e-3)


def test_a_path_ends_when_the_loss_stops_falling_and_says_what_it_skipped() -> None:
    problem = a_problem(rows=60, noise=6.0)
    found = probe.fit(problem, NAME, grid=(0.01, 0.1, 1.0, 10.0, 100.0, 1000.0))
    tried = list(found.losses)
    assert found.skipped and (*tried, *found.skipped) == (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    best = tried.index(found.best.c)
    assert found.losses[found.best.c] == min(found.losses.values()) and len(tried) == best + 1 + probe.PATIENCE


def test_the_probes_of_the_chosen_c_are_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PATH_TOLERANCE", 1e-2)
    problem = a_problem()
    found = probe.fit(problem, NAME).best
    (exact,) = probe.path(problem, NAME, grid=[found.c])
    ours, expected = (1 / (1 + np.exp(-step.held_out)) for step in (found, exact))
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert found.unfinished == 0


def test_constant_features_are_counted_and_get_no_weight() -> None:
    problem = a_problem()
    problem.blocks[NAME][:, 3] = 7.0
    found = probe.fit(problem, NAME)
    assert found.dropped == 1 and not found.best.coefficients[:, 3].any()


def test_a_strong_penalty_keeps_nothing_and_a_weak_one_everything() -> None:
    problem = a_problem()
    nothing, everything = (next(iter(probe.path(problem, NAME, grid=[c]))) for c in (1e-6, 100.0))
    assert not nothing.coefficients.any()
    share = problem.targets.indicator.mean(axis=0)
    np.testing.assert_allclose(nothing.intercepts[-1], np.log(share / (1 - share)), atol=1e-2)
    assert (everything.coefficients != 0).mean() > 0.95


@pytest.mark.usefixtures("solver")
def test_a_label_that_a_fold_lacks_says_nothing_there() -> None:
    problem = a_problem(rows=60)
    rare = encode([*(["one", "other"] * 29), "rare", "rare"])
    folds = make_folds(problem.texts, encode(["a", "b"] * 30), seed=0)
    lonely = Problem(problem.blocks, problem.texts, rare, np.ones(60), folds, "accuracy", 0)
    (step,) = probe.path(lonely, NAME, grid=[1.0])
    assert np.isfinite(step.coefficients).all() and np.isfinite(step.loss)


def wide(rows: int, features: int, labels: list[str], seed: int = 0) -> tuple[np.ndarray, Problem]:
    """More features than rows, driven by few directions, some of which tell the labels apart."""
    rng = np.random.default_rng(seed)
    targets = encode(labels)
    factor = rng.normal(size=(rows, 12))
    factor[:, : targets.n_classes] += 1.5 * targets.indicator
    x = (factor @ rng.normal(size=(12, features)) + rng.normal(size=(rows, features))).astype(np.float32)
    texts = [f"text {i}" for i in range(rows)]
    return x, Problem({NAME: x}, texts, targets, np.ones(rows), make_folds(texts, targets, seed=0), "accuracy", 0)


def surely_least(x: np.ndarray, truth: np.ndarray, c: float, weight: np.ndarray, intercept: float) -> float:
    """What no parameters can fall below: the dual objective near those given (Koh, Kim and Boyd 2007, section 2.2)."""
    share = 1 / (1 + np.exp(-(x @ weight + intercept)))
    residual = share - truth
    residual = (residual - residual.mean()) / max(1.0, c * np.abs(x.T @ (residual - residual.mean())).max())
    share = np.clip(truth + residual, 1e-300, 1 - 1e-16)
    return float(-c * (share * np.log(share) + (1 - share) * np.log1p(-share)).sum())


def test_probes_of_more_features_than_rows_are_at_the_optimum_of_every_c() -> None:
    """Most features never enter a model, more ask to than may at once, and models are kept from one C to the next."""
    x, problem = wide(150, 400, [f"class {i % 3}" for i in range(150)])
    standard = StandardScaler().fit_transform(x.astype(np.float64))
    for step in probe.path(problem, NAME, grid=(0.1, 1.0, 10.0)):
        assert step.unfinished == 0 and (step.coefficients != 0).mean() < 0.3
        for column in range(3):
            truth = problem.targets.indicator[:, column].astype(np.float64)
            weight, intercept = step.coefficients[-1, :, column].astype(np.float64), float(step.intercepts[-1, column])
            least = surely_least(standard, truth, step.c, weight, intercept)
            assert least <= objective(standard, truth, step.c, weight, intercept) <= least * (1 + 1e-3)


@pytest.mark.usefixtures("solver")
def test_labels_of_multi_label_rows_are_probed_each_for_itself() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(200, 10)).astype(np.float32)
    matrix = (x[:, :2] + rng.normal(size=(200, 2)) > 0).astype(np.int64)
    weights, texts = rng.uniform(0.5, 2, size=200), [f"text {i}" for i in range(200)]
    targets = encode(matrix)
    problem = Problem({NAME: x}, texts, targets, weights, make_folds(texts, targets, seed=0), "accuracy", 0)
    (step,) = probe.path(problem, NAME, grid=[1.0])
    mean = np.average(x.astype(np.float64), axis=0, weights=weights)
    standard = (x - mean) / np.sqrt(np.average((x - mean) ** 2, axis=0, weights=weights))
    for column in range(2):
        slow = reference(standard, matrix[:, column].astype(np.float64), 1.0, weights)
        np.testing.assert_allclose(step.coefficients[-1, :, column], slow.coef_[0], atol=5e-3)


def test_a_class_that_no_row_of_a_fold_has_gets_no_weight_there() -> None:
    _, problem = wide(90, 120, ["one", "other", "third"] * 30)
    held = np.where(problem.targets.indicator[:, 2] > 0, 0, 1 + np.arange(90) % 2)  # fold 0 holds out all of a class
    folds = Folds(held, np.ones(90, dtype=bool), np.zeros(90, dtype=bool), 3)
    for step in probe.path(replace(problem, folds=folds), NAME):
        assert not step.coefficients[0, :, 2].any() and step.intercepts[0, 2] < -3
        assert step.coefficients[1:, :, 2].any(axis=1).all() and np.isfinite(step.held_out).all()
        assert step.unfinished == 0


def test_one_row_of_each_class_is_enough_to_run() -> None:
    x, problem = wide(6, 50, ["a", "b", "c", "d", "e", "f"])
    assert problem.folds.n_folds == 0
    found = probe.fit(problem, NAME)
    assert found.best.c == min(found.losses) and np.isfinite(found.best.coefficients).all()
    for step in probe.path(problem, NAME):
        assert step.unfinished == 0 and np.isfinite(step.coefficients).all() and np.isfinite(step.intercepts).all()
    logits = StandardScaler().fit_transform(x) @ step.coefficients[-1] + step.intercepts[-1]
    np.testing.assert_array_equal(logits.argmax(axis=1), np.arange(6))


@pytest.mark.usefixtures("solver")
def test_features_that_are_constant_everywhere_or_in_a_fold_alone_disturb_none() -> None:
    x, problem = wide(90, 40, ["one", "other", "third"] * 30)
    x[:, 5] = 7.0
    x[problem.folds.train(0), 6] = 1.0
    for step in probe.path(problem, NAME):
        assert not step.coefficients[:, 5].any() and not step.coefficients[0, 6].any() and step.unfinished == 0
    x[:] = 3.0
    nothing = probe.fit(problem, NAME)
    assert nothing.dropped == 40 and not nothing.best.coefficients.any()


def test_models_are_minimised_where_no_subgradient_is_left() -> None:
    """Of different sizes side by side, one of them without curvature."""
    torch.manual_seed(0)
    root = torch.randn(3, 30, 20)
    root[1, :, 12:] = 0  # padding
    root[2] = 0
    hessian = root.mT @ root + 1e-3 * torch.eye(20)
    gradient = 2 * torch.randn(3, 20)
    gradient[1, 12:], gradient[2] = 0, 0
    bound = torch.ones(3, 20)
    bound[:, -1] = 0  # the intercept
    models = Quadratics(hessian, torch.zeros(3, 20), gradient, bound)
    best, near = minimised(models)
    assert near.all()
    assert (models.residual(best) <= 0.1 * models.residual(models.start)).all() and (models.change(best) <= 0).all()
    assert not best[2].any() and not best[1, 12:].any() and (best[0] == 0).any()


def test_probes_that_do_not_converge_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "MAX_ITERATIONS", 1)
    with pytest.warns(SondeWarning, match=r"probes of 0/hidden.1/mean stopped after 1 iterations"):
        probe.fit(a_problem(), NAME)


def test_the_shape_chooses_the_solver() -> None:
    tall, wide = a_problem(rows=300, features=24), a_problem(rows=90, features=24)
    assert [_solver(one).metric is None for one in (tall, wide)] == [False, True]


def _solver(problem: Problem) -> probe._Solver:
    return probe._Solver.of(probe._Rows.of(problem, torch.device("cpu")), NAME)


@pytest.mark.usefixtures("solver")
def test_the_blocks_of_a_layer_share_their_rows_and_nothing_else() -> None:
    """Each has its own path: the second one, noise, ends elsewhere; what they share is left as it was."""
    problem = a_problem()
    noise = np.random.default_rng(5).normal(size=(300, 7)).astype(np.float32)
    both = replace(problem, blocks={**problem.blocks, "0/hidden.1/max": noise})
    found = probe.fit_layer(both, list(both.blocks))
    assert list(found) == list(both.blocks)
    for name, probes in found.items():
        alone = probe.fit(both, name)
        assert probes.losses == alone.losses and probes.skipped == alone.skipped
        np.testing.assert_array_equal(probes.best.coefficients, alone.best.coefficients)
    assert len({probes.best.c for probes in found.values()}) == 2


def test_permuted_labels_give_chance() -> None:
    problem = a_problem(rows=400, classes=2)
    order = np.random.default_rng(3).permutation(400)
    shuffled = Problem(
        {NAME: problem.blocks[NAME][order]}, problem.texts, problem.targets, problem.weights, problem.folds,
        "accuracy", 0,
    )  # fmt: skip
    found = probe.fit(shuffled, NAME)
    right = (found.best.held_out[:, 0] > 0) == (problem.targets.indicator[:, 1] > 0)
    assert abs(right.mean() - 0.5) < 0.1
