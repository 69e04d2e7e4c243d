"""Logistic heads beside scikit-learn's, at equal loss: the part of `training.py` that compares solvers.

compared       features and labels -> losses and times of one C, and of a whole path over C
heads_table    the figures, as a table
objective      what both sides minimise

Both standardise the features that are more than rounding and minimise C * sum of losses + ||W||^2 / 2 with free
intercepts. Of each of scikit-learn's solvers the loosest tolerance is taken that comes within `GAP` of the lowest loss
anybody found, so that nobody works longer than equality asks; the fastest solver is the one that is compared. saga is
left out: on dense standardised features it passes over the rows hundreds of times where the others need a dozen.
"""

import itertools
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from ratios import Times, against, interleaved, ratio, shown, timed
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sonde.bench.cells import table
from sonde.bench.datasets import TITLES
from sonde.errors import DataError
from sonde.learn import logistic
from sonde.learn.problem import Problem
from sonde.learn.regressions import varies
from sonde.learn.splitting import Folds, make_folds
from sonde.learn.targets import Targets, encode

GAP = 1e-5
"""Most that a loss may lie above the lowest, as a share of it."""
SOLVERS = ("lbfgs", "newton-cg", "newton-cholesky")
TOLERANCES = tuple(10.0**-power for power in range(1, 9))
MOST_ITERATIONS = 5000  # none stops for want of steps
LEAST = 1.0
"""Never slower than scikit-learn."""
BLOCK = "0/hidden/mean"  # the name means nothing here


@dataclass(frozen=True)
class Solver:
    """One of scikit-learn's, with the tolerance that gives equal losses."""

    name: str
    """As `LogisticRegression` calls it."""
    tolerance: float
    """Its `tol`."""

    def model(self, c: float, warm: bool = False) -> LogisticRegression:
        """An unfitted one."""
        return LogisticRegression(C=c, solver=self.name, tol=self.tolerance, max_iter=MOST_ITERATIONS, warm_start=warm)


def compared(x: np.ndarray, labels: np.ndarray, path_rows: int, rounds: int, seed: int) -> dict[str, Any]:
    """Losses and times of one C over all rows, and of the path over C on some of them."""
    targets, c = encode(labels.tolist()), logistic.UNCHOSEN_C
    x = open_units(x)
    solvers, losses = equal_solvers(x, targets, c)
    alone = problem_of(x, targets, Folds(np.full(len(x), -1), np.ones(len(x), bool), np.zeros(len(x), bool), 0), seed)
    losses["sonde"] = ours_at(alone)
    lowest = min(losses.values())
    gaps = {name: loss / lowest - 1 for name, loss in losses.items()}
    if gaps["sonde"] > GAP:
        raise DataError(
            f"sonde's loss lies {gaps['sonde']:.1e} above the lowest, more than {GAP}: times of unequal work are not "
            "compared."
        )
    contenders = {one.name: _turn(beside, x, targets, one, c) for one in solvers}
    times = interleaved({"sonde": _turn(logistic.fit, alone, [BLOCK]), **contenders}, rounds, warm_up=lambda: None)
    best = min(solvers, key=lambda one: statistics.median(t["seconds"] for t in times[one.name]))
    return {
        "rows": len(x), "features": x.shape[1], "classes": targets.n_classes, "C": c, "gaps": gaps, "times": times,
        "tolerances": {one.name: one.tolerance for one in solvers}, "best": best.name,
        "path": path(x[:path_rows], targets.take(np.arange(min(path_rows, len(x)))), best, rounds, seed),
    }  # fmt: skip


def open_units(x: np.ndarray) -> np.ndarray:
    """The features that are more than rounding.

    sonde leaves the others out; scikit-learn divides 1e-33 by its deviation and learns from it.
    """
    wide = torch.from_numpy(x).double()
    return np.ascontiguousarray(x[:, varies(wide.mean(dim=0), wide.std(dim=0)).numpy()])


def path(x: np.ndarray, targets: Targets, solver: Solver, rounds: int, seed: int) -> dict[str, Any]:
    """Times of all folds over all values of C that ours tries, then of the final model at the C that it chose."""
    problem = problem_of(x, targets, make_folds([str(row) for row in range(len(x))], targets, seed=seed), seed)
    outcome = logistic.fit(problem, [BLOCK])
    tried, chosen = [one["C"] for one in outcome.summary["path"]], outcome.summary["C"]
    ours, theirs = loss_of(outcome.model, x, targets, chosen), beside_path(problem, solver, tried, chosen)
    contenders = {
        "sonde": _turn(logistic.fit, problem, [BLOCK]),
        "sklearn": _turn(beside_path, problem, solver, tried, chosen),
    }
    return {
        "rows": len(x), "folds": problem.folds.n_folds, "tried": tried, "C": chosen,
        "gap": ours / min(ours, theirs) - 1, "gap_sklearn": theirs / min(ours, theirs) - 1,
        "times": interleaved(contenders, rounds, warm_up=lambda: None),
    }  # fmt: skip


def _turn(work: Callable[..., object], *arguments: Any) -> Callable[[], Times]:
    return lambda: timed(lambda: work(*arguments))


def problem_of(x: np.ndarray, targets: Targets, folds: Folds, seed: int) -> Problem:
    """The rows as sonde's learners take them."""
    return Problem({BLOCK: x}, [""] * len(x), targets, np.ones(len(x)), folds, "accuracy", seed)


def equal_solvers(x: np.ndarray, targets: Targets, c: float) -> tuple[list[Solver], dict[str, float]]:
    """Solvers with the loosest tolerance that comes near the lowest loss, and their losses."""
    found = {}
    for name in SOLVERS:
        previous = np.inf
        for tolerance in TOLERANCES:
            loss = beside(x, targets, Solver(name, tolerance), c)
            found[Solver(name, tolerance)] = loss
            if previous - loss <= GAP * loss / 10:  # a tenfold tolerance changes hardly anything
                break
            previous = loss
    lowest = min(found.values())
    kept: dict[str, Solver] = {}
    for solver, loss in found.items():  # loosest first
        if loss <= lowest * (1 + GAP):
            kept.setdefault(solver.name, solver)
    return list(kept.values()), {solver.name: found[solver] for solver in kept.values()}


def beside(x: np.ndarray, targets: Targets, solver: Solver, c: float) -> float:
    """Fit scikit-learn's on standardised features; its loss."""
    scaler = StandardScaler()
    standard = scaler.fit_transform(x)
    model = solver.model(c)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a loose tolerance may end in a line search that finds nothing better
        model.fit(standard, targets.ids)
    return objective(standard, targets.ids, model.coef_.T, model.intercept_, c)


def beside_path(problem: Problem, solver: Solver, tried: Sequence[float], chosen: float) -> float:
    """Every fold over every C, each started where the last one ended, as ours; then all rows at one C: its loss."""
    x, ids = problem.blocks[BLOCK], problem.targets.ids
    for fold in range(problem.folds.n_folds):
        train, held = problem.folds.train(fold), problem.folds.held_out(fold)
        scaler, model = StandardScaler(), solver.model(tried[0], warm=True)
        standard, unseen = scaler.fit_transform(x[train]), scaler.transform(x[held])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for c in tried:
                model.set_params(C=c).fit(standard, ids[train])
                model.decision_function(unseen)
    return beside(x, problem.targets, solver, chosen)


def ours_at(problem: Problem) -> float:
    """The loss of sonde's model where no C is chosen."""
    model = logistic.fit(problem, [BLOCK]).model
    return loss_of(model, problem.blocks[BLOCK], problem.targets, logistic.UNCHOSEN_C)


def loss_of(model: Any, x: np.ndarray, targets: Targets, c: float) -> float:
    """The loss of a model of sonde's."""
    standard = (x.astype(np.float64) - model.mean) * model.scale  # row feature
    weights, intercept = model.coefficients, model.intercept
    if targets.n_classes == 2:  # its two columns are halves of one
        weights, intercept = weights[:, 1:] - weights[:, :1], intercept[1:] - intercept[:1]
    return objective(standard, targets.ids, weights, intercept, c)


def objective(x: np.ndarray, ids: np.ndarray, weights: np.ndarray, intercept: np.ndarray, c: float) -> float:
    """C * sum of cross entropies + ||W||^2 / 2 in float64; W is (feature, 1) for two classes, else (feature, class)."""
    weights = weights.astype(np.float64)
    logits = x.astype(np.float64) @ weights + intercept  # row feature -> row column
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)  # row class
    losses = logsumexp(logits, axis=1) - logits[np.arange(len(ids)), ids]  # row class -> row
    return float(c * losses.sum() + (weights**2).sum() / 2)


def heads_table(content: Mapping[str, Any]) -> str:
    """Ratios and losses, one C and a path, by set."""
    rows = []
    for name, one in content.items():
        way = one["path"]
        found = ratio(one["times"][one["best"]], one["times"]["sonde"])
        whole = ratio(way["times"]["sklearn"], way["times"]["sonde"])
        rows += [
            [f"{TITLES[name]}, one C", f"{one['rows']:,}", _median(one["times"]["sonde"]),
             f"{_median(one['times'][one['best']])} ({one['best']})", shown(found), against(found, LEAST),
             f"{one['gaps']['sonde']:.1e}, {one['gaps'][one['best']]:.1e}"],
            [f"{TITLES[name]}, {way['folds']} folds, {len(way['tried'])} values of C", f"{way['rows']:,}",
             _median(way["times"]["sonde"]), f"{_median(way['times']['sklearn'])} ({one['best']})", shown(whole),
             against(whole, LEAST), f"{way['gap']:.1e}, {way['gap_sklearn']:.1e}"],
        ]  # fmt: skip
    heads = ["what", "rows", "sonde, seconds", "scikit-learn, seconds", "scikit-learn / sonde", f"at least {LEAST:g}",
             "loss above the lower: sonde, scikit-learn"]  # fmt: skip
    return table(heads, rows)


def solvers_sentence(content: Mapping[str, Any]) -> str:
    """The times of every solver at one C."""
    parts = [
        f"{TITLES[name]}: "
        + ", ".join(
            f"{solver} (tol {tol:g}) {_median(one['times'][solver])} s" for solver, tol in one["tolerances"].items()
        )
        for name, one in content.items()
    ]
    return f"Solvers of scikit-learn at one C, equal loss: {'; '.join(parts)}."


def _median(times: Sequence[Times]) -> str:
    return f"{statistics.median(itertools.chain(one['seconds'] for one in times)):.2f}"
