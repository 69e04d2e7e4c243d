"""skglm and celer on one layer: how long until the objective is within 1e-5 of its least?

compare    time both libraries and ours at a strong and a weak penalty

None of them stops at a given distance from the optimum, so each is run at one tolerance after the other, from the
loosest, and the first fit that is near enough counts, alone: a user would have to know that tolerance.
"""

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from sklearn.preprocessing import StandardScaler

from sonde.bench.machine import Stopwatch
from sonde.learn import probe
from sonde.learn.problem import Problem
from sonde.learn.splitting import Folds

STRENGTHS = (0.1, 10.0)
WITHIN = 1e-5
LEAST_TOLERANCE = 1e-9  # of the run that tells the least objective
WARM_UP_ROWS = 500  # skglm compiles at its first fit
OURS = "sonde"
Fit = tuple[np.ndarray, float]
Fitter = Callable[[np.ndarray, np.ndarray, float, float], Fit]


def compare(problem: Problem, name: str, n_train: int) -> dict[str, Any]:
    """Fits of one block at each C by every solver that is installed."""
    block, truth = problem.blocks[name][:n_train], problem.targets.indicator[:n_train, 1]
    x = np.asfortranarray(StandardScaler().fit_transform(block.astype(np.float64)))
    fitters = {library: fitter for library, fitter in LIBRARIES.items() if importlib.util.find_spec(library)}
    fits = []
    for c in STRENGTHS:
        own = _own(problem, name, n_train, c)
        fits.append(own[0])
        least = _objective(x, truth, c, *own[1])
        fits[-1]["above"] = _objective(x, truth, c, *own[2]) / least - 1
        fits[-1]["within"] = fits[-1]["above"] <= WITHIN
        for library, (fit, tolerances) in fitters.items():
            fits.append({"solver": library, "C": c, **_timed(fit, tolerances, x, truth, c, least)})
    versions = {library: importlib.metadata.version(library) for library in fitters}
    absent = sorted(LIBRARIES.keys() - fitters.keys())
    return {"block": name, "fits": fits, "versions": versions, "absent": absent}


def _own(problem: Problem, name: str, n_train: int, c: float) -> tuple[dict[str, Any], Fit, Fit]:
    """Our time at the tolerance that `probe` has, the optimum, and what was found in that time."""
    rows, unheld = np.arange(n_train), np.full(n_train, -1)
    everything = Folds(unheld, np.ones(n_train, dtype=bool), np.zeros(n_train, dtype=bool), 0)
    small = Problem(
        {name: problem.blocks[name][rows]}, list(problem.texts)[:n_train], problem.targets.take(rows),
        problem.weights[rows], everything, problem.metric, problem.seed,
    )  # fmt: skip
    exact = _coefficients(next(probe.path(small, name, grid=[c], tolerance=LEAST_TOLERANCE)))
    watch = Stopwatch()
    step = next(probe.path(small, name, grid=[c]))
    return {"solver": OURS, "C": c, "tolerance": probe.TOLERANCE, **watch.read()}, exact, _coefficients(step)


def _coefficients(step: probe.Step) -> Fit:
    return step.coefficients[-1, :, 0].astype(np.float64), float(step.intercepts[-1, 0])


def _timed(
    fit: Fitter, tolerances: Sequence[float], x: np.ndarray, truth: np.ndarray, c: float, least: float
) -> dict[str, Any]:
    few = np.asfortranarray(x[:WARM_UP_ROWS])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(few, truth[:WARM_UP_ROWS], c, tolerances[0])
        tried = list(_ladder(fit, tolerances, x, truth, c))
    if fit is _celer:
        least = min(one["objective"] for one in tried)
    for one in tried:
        one["above"] = one.pop("objective") / least - 1
        one["within"] = one["above"] <= WITHIN
    return next((one for one in tried if one["within"]), tried[-1])


def _ladder(
    fit: Fitter, tolerances: Sequence[float], x: np.ndarray, truth: np.ndarray, c: float
) -> Iterator[dict[str, Any]]:
    for tolerance in tolerances:
        watch = Stopwatch()
        found = fit(x, truth, c, tolerance)
        time = watch.read()
        yield {"tolerance": tolerance, **time, "objective": _objective(x, truth, c, *found)}


def _objective(
    x: Float64[np.ndarray, "row feature"], truth: np.ndarray, c: float, weight: np.ndarray, intercept: float
) -> float:
    logits = x @ weight + intercept
    return float(c * (np.logaddexp(0, logits) - truth * logits).sum() + np.abs(weight).sum())


def _skglm(x: np.ndarray, truth: np.ndarray, c: float, tolerance: float) -> Fit:
    from skglm import SparseLogisticRegression

    model = SparseLogisticRegression(alpha=1 / (c * len(x)), tol=tolerance).fit(x, 2 * truth - 1)
    return model.coef_.ravel(), float(np.ravel(model.intercept_)[0])


def _celer(x: np.ndarray, truth: np.ndarray, c: float, tolerance: float) -> Fit:
    from celer import LogisticRegression

    return LogisticRegression(C=c, tol=tolerance, fit_intercept=False).fit(x, 2 * truth - 1).coef_.ravel(), 0.0


LIBRARIES: dict[str, tuple[Fitter, tuple[float, ...]]] = {
    "celer": (_celer, (0.1, 0.01)),
    "skglm": (_skglm, (1e-3, 1e-4, 1e-5)),
}
"""What each stops at is its own: celer's duality gap, skglm's distance from the optimality conditions."""
