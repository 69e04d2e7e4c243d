"""L2-regularised logistic regression on standardised blocks, its strength chosen by folds.

    fit         blocks -> fitted model: one path over C for all folds at once, then the final model
    choose      the path alone: what each C gives
    as_classes  columns of a solver -> columns of classes
    Logistic    the fitted model
    GRID        values of C that are tried

The objective is scikit-learn's, C * sum_i w_i loss_i + ||W||^2 / 2 with a free intercept: multinomial for single-label
data (two classes: one sigmoid column), one sigmoid per label for multi-label data. Every fold standardises by the
weighted mean and deviation of its own training rows. The matrix is held once: the standardisation of each fold is
folded into its coefficients, and its held-out rows have weight 0 in it, so that one iteration is one matrix product
forward and one backward for all folds and classes together.

The solver is `sonde.learn.lbfgs`, preconditioned by what is known of the Hessian: along the leading principal
directions of the features, whose variances differ by orders of magnitude, times the sum of p (1 - p) at the start.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from sonde.errors import ModelError, warn
from sonde.learn.calibration import decide, fit_temperature, to_probabilities
from sonde.learn.metrics import log_loss, macro_f1
from sonde.learn.problem import Blocks, Outcome, Problem, Record
from sonde.learn.regressions import Regressions, Spectrum, moments, principal, regressions, slices, varies
from sonde.learn.rowspace import FEW
from sonde.learn.targets import Targets
from sonde.learn.threads import one_thread
from sonde.progress import tracked

# From "hardly anything but the class frequencies" for 100,000 rows of 5,000 features to "hardly any penalty" for 500
# rows of 400. Half-decades: between neighbours the out-of-fold log loss differs by less than its noise.
GRID = tuple(float(f"{10 ** (half / 2):.2g}") for half in range(-10, 3))
# Taken if no row could be held out: 100 rows then weigh about as much as the penalty.
UNCHOSEN_C = 0.01
# Few rows tell values of C apart by noise alone, and the smallest ones learn nothing: a value k decades away from
# UNCHOSEN_C must lower the log loss of all rows that choose together by k squared. Of thousands that is nothing.
PRIOR = 1.0
# Values of C without improvement after which the path ends: out-of-fold loss has one valley, noise may add a ripple.
PATIENCE = 2
# A problem has converged when the decrease that its next step promises (half the Newton decrement) is this fraction of
# the objective. On the path fold models only choose C, and neighbouring values of C differ by far more; at the chosen C
# they are finished, because they calibrate: at 1e-6 a repeated row and a row of weight 2 gave probabilities that
# differed by 1.2e-4; at these values by 5e-5. All are above what float32 gradients resolve.
COARSE_TOLERANCE = 1e-3
PATH_TOLERANCE = 1e-5
FOLD_TOLERANCE = 1e-7
FINAL_TOLERANCE = 1e-9
# Matrix products of so many multiplications take about a millisecond on one core: not worth a second.
SMALL_PRODUCT = 2**25
MAX_ITERATIONS = 300  # 6,532 rows, 5,376 correlated features and 52 classes needed up to 35 for one C of the path


@dataclass(frozen=True)
class Logistic:
    """A fitted logistic regression."""

    needs: tuple[str, ...]
    """Names of the blocks that it reads, in the order of the features."""
    mean: Float32[np.ndarray, " feature"]
    """Subtracted from each feature."""
    scale: Float32[np.ndarray, " feature"]
    """Then multiplied: one over the standard deviation, 0 for a feature that is constant on the training rows."""
    coefficients: Float32[np.ndarray, "feature class"]
    """Of the standardised features. With two classes the columns are -w/2 and w/2."""
    intercept: Float32[np.ndarray, " class"]
    """Added last."""

    @property
    def columns(self) -> Mapping[str, Int64[np.ndarray, " _"]]:
        """None: blocks are read whole."""
        return {}

    @property
    def reads_text(self) -> bool:
        """False: only blocks are read."""
        return False

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Log-odds up to a constant per row; with two classes -z/2 and z/2."""
        logits = np.tile(self.intercept, (len(texts), 1))  # row class
        for name, columns in zip(self.needs, _columns([blocks[name].shape[1] for name in self.needs]), strict=True):
            for rows in slices(len(texts), columns.stop - columns.start):
                standard = (blocks[name][rows].astype(np.float32) - self.mean[columns]) * self.scale[columns]
                logits[rows] += standard @ self.coefficients[columns]  # row feature -> row class
        return logits

    def record(self) -> Record:
        """The model as plain data."""
        arrays = {name: getattr(self, name) for name in ("mean", "scale", "coefficients", "intercept")}
        return Record({"needs": list(self.needs)}, arrays)

    @classmethod
    def from_record(cls, record: Record) -> "Logistic":
        """The model from plain data."""
        model = cls(tuple(record.settings["needs"]), **record.arrays)
        width = (len(model.mean), len(model.scale), len(model.coefficients))
        if len(set(width)) > 1 or model.coefficients.shape[1:] != model.intercept.shape:
            raise ModelError(f"The arrays of a logistic regression disagree ({width} features): the model is damaged.")
        return model


Kept = Mapping[str, Bool[np.ndarray, "fold _"]]
"""Block name -> the features that the model of each fold may use; the last fold is the final model."""


def fit(problem: Problem, names: Sequence[str], *, grid: Sequence[float] = GRID, kept: Kept | None = None) -> Outcome:
    """Choose C by folds and train the final model.

    Parameters
    ----------
    problem : Problem
    names : sequence of str
        Blocks to read, concatenated in this order.
    grid : sequence of float
        Values of C, tried from the smallest up until the loss has stopped falling.
    kept : mapping of str to (fold + 1, feature) bool, optional
        Features that each fold's model, and last the final one, may use; by default all.

    Returns
    -------
    Outcome
        C is chosen by the log loss of calibrated logits on the rows that choose, also when accuracy is aimed at: it is
        the smoother measure and has one valley. Few rows leave C near its default. When macro F1 is aimed at, by macro
        F1, and log loss among equals.

    Warns
    -----
    SondeWarning
        not_converged: some of the problems reached the largest number of iterations.
    """
    with one_thread(_small(problem, names)):
        return _fit(problem, names, grid, kept)


def _fit(problem: Problem, names: Sequence[str], grid: Sequence[float], kept: Kept | None) -> Outcome:
    x, mean, scale = _standardised(problem, names)
    spectrum = _spectrum(x, problem)
    used = _used(names, kept)
    path = _Path(problem)
    if folds := _folds(problem, x, spectrum, used):
        path.follow(folds, sorted(grid))
        path.finish(folds)
    final = regressions(x, problem, problem.folds.trainable[:, None], spectrum, None if used is None else used[:, -1:])
    start = final.start() if path.theta is None else path.theta.mean(dim=1, keepdim=True)  # fold -> 1
    solution = final.solve(path.c, start, FINAL_TOLERANCE, MAX_ITERATIONS)
    _warn_unfinished([*path.unfinished, (solution.unfinished, solution.problems)])
    weights = as_classes(solution.at.theta[:, 0, :].numpy(), problem.targets)  # feature+1 class
    model = Logistic(tuple(names), mean, scale, weights[:-1].copy(), weights[-1].copy())
    summary = {
        "C": path.c,
        "path": path.tried,
        "iterations": solution.iterations,
        "dropped_columns": int((scale == 0).sum()),
        "rows": int(problem.folds.trainable.sum()),
        "features": len(mean),
    }
    return Outcome(model, path.held_out, summary)


def choose(
    problem: Problem, names: Sequence[str], *, grid: Sequence[float] = GRID, kept: Kept | None = None
) -> list[dict[str, Any]]:
    """C, log loss and macro F1 of the rows that choose, for each C that was tried; arguments as in `fit`.

    Coarsely: to compare whole sets of features, whose losses differ by percents.
    """
    with one_thread(_small(problem, names)):
        x, _, _ = _standardised(problem, names)
        path = _Path(problem)
        folds = _folds(problem, x, _spectrum(x, problem), _used(names, kept))
        if folds:
            path.follow(folds, sorted(grid), COARSE_TOLERANCE)
        return path.tried


def _small(problem: Problem, names: Sequence[str]) -> bool:
    width = min(sum(problem.blocks[name].shape[1] for name in names), problem.rows)
    columns = max(problem.folds.n_folds, 1) * problem.targets.n_classes
    return bool(problem.rows * width * columns <= SMALL_PRODUCT)


def _spectrum(x: Tensor, problem: Problem) -> Spectrum | None:
    """Principal directions of the features; None where the rows are so few that their span is worked in."""
    trainable = problem.folds.trainable
    return None if trainable.sum() <= FEW * x.shape[1] else principal(x, trainable)


def _folds(problem: Problem, x: Tensor, spectrum: Spectrum | None, used: Tensor | None) -> Regressions | None:
    """The problems of all folds; None if no row chooses."""
    folds = problem.folds
    if not folds.n_folds or not problem.weights[folds.choosing].sum() > 0:
        return None
    masks = np.stack([folds.train(k) for k in range(folds.n_folds)], axis=1)  # row fold
    return regressions(x, problem, masks, spectrum, None if used is None else used[:, :-1])


def _used(names: Sequence[str], kept: Kept | None) -> Tensor | None:
    """Features that each fold may use, (feature, fold)."""
    return None if kept is None else torch.from_numpy(np.concatenate([kept[name] for name in names], axis=1).T.copy())


class _Path:
    """Walks up the grid and remembers the best C, its fold models and their held-out logits."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.c = UNCHOSEN_C
        self.theta: Tensor | None = None
        self.held_out = np.full((problem.rows, problem.targets.n_classes), np.nan, dtype=np.float32)
        self.tried: list[dict[str, Any]] = []
        self.unfinished: list[tuple[int, int]] = []

    def follow(self, folds: Regressions, grid: Sequence[float], tolerance: float = PATH_TOLERANCE) -> None:
        """Solve all folds for one C after another, until the loss has stopped falling."""
        theta = folds.start()
        best, lowest, since = (math.inf, math.inf), math.inf, 0
        for c in tracked(grid, "training on layers", "values of C"):
            solution = folds.solve(c, theta, tolerance, MAX_ITERATIONS)
            theta = solution.at.theta
            held_out = self._held_out(solution.at.predictions)
            key = self._measure(c, held_out, solution.iterations)
            since = 0 if key < best or key[-1] < lowest else since + 1
            lowest = min(lowest, key[-1])
            if key < best:
                best, self.c, self.theta, self.held_out = key, c, theta, held_out
            if since == PATIENCE:
                break

    def finish(self, folds: Regressions) -> None:
        """Solve all folds at the chosen C to the end: their logits calibrate."""
        assert self.theta is not None, "a grid has at least one value"
        solution = folds.solve(self.c, self.theta, FOLD_TOLERANCE, MAX_ITERATIONS)
        self.theta, self.held_out = solution.at.theta, self._held_out(solution.at.predictions)
        self.unfinished.append((solution.unfinished, solution.problems))
        self.tried = [one for one in self.tried if one["C"] != self.c]
        self._measure(self.c, self.held_out, solution.iterations)
        self.tried.sort(key=lambda one: float(one["C"]))

    def _held_out(self, logits: Tensor) -> Float32[np.ndarray, "row class"]:
        held = self.problem.folds.held
        own = logits.numpy()[np.arange(len(held)), np.maximum(held, 0)]  # row fold column -> row column
        classes = as_classes(own, self.problem.targets)
        classes[held < 0] = np.nan
        return classes

    def _measure(self, c: float, held_out: Float32[np.ndarray, "row class"], iterations: int) -> tuple[float, float]:
        choosing, multilabel = self.problem.folds.choosing, self.problem.targets.multilabel
        truth, weights = self.problem.targets.indicator[choosing], self.problem.weights[choosing]
        logits = held_out[choosing].astype(np.float64)
        # calibrated, as they will be used: else a timid C passes for better than one that tells more, too loudly
        logits /= fit_temperature(logits, self.problem.targets.take(np.flatnonzero(choosing)), weights)
        probabilities = to_probabilities(logits, multilabel)
        loss = log_loss(truth, probabilities, multilabel=multilabel, weights=weights)
        f1 = macro_f1(truth, decide(probabilities, multilabel), weights)
        self.tried.append({"C": c, "log_loss": loss, "macro_f1": f1, "iterations": iterations})
        price = loss + PRIOR * math.log10(c / UNCHOSEN_C) ** 2 / float(weights.sum())
        return (-f1 if self.problem.metric == "macro_f1" else price), price


def _warn_unfinished(unfinished: list[tuple[int, int]]) -> None:
    count, problems = (sum(numbers) for numbers in zip(*unfinished, strict=True))
    if count:
        warn(
            f"Logistic regression stopped after {MAX_ITERATIONS} iterations before {count} of {problems} problems had "
            "converged: their coefficients may be smaller than the optimum.",
            "not_converged",
            count,
        )


def _standardised(
    problem: Problem, names: Sequence[str]
) -> tuple[Tensor, Float32[np.ndarray, " feature"], Float32[np.ndarray, " feature"]]:
    """The blocks as one matrix, standardised in place over the trainable rows, with the mean and scale used."""
    columns = _columns([problem.blocks[name].shape[1] for name in names])
    x = np.empty((problem.rows, columns[-1].stop), dtype=np.float32)
    for name, place in zip(names, columns, strict=True):
        x[:, place] = problem.blocks[name]
    weights = torch.from_numpy((problem.weights * problem.folds.trainable)[:, None])  # row 1
    matrix = torch.from_numpy(x)
    mean = moments(matrix, weights)[0][:, 0]  # feature 1 -> feature
    matrix -= mean.float()
    deviation = moments(matrix, weights)[1][:, 0]
    known = varies(mean, deviation)
    scale = torch.where(known, 1 / deviation.where(known, torch.ones_like(deviation)), 0.0).float()
    matrix *= scale
    return matrix, mean.float().numpy(), scale.numpy()


def as_classes(columns: Float32[np.ndarray, "any column"], targets: Targets) -> Float32[np.ndarray, "any class"]:
    """Columns of the solver -> columns of classes: one sigmoid column z becomes -z/2 and z/2."""
    if targets.multilabel or targets.n_classes > 2:
        return columns.copy()
    return np.concatenate([-columns / 2, columns / 2], axis=1)


def _columns(widths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(widths).tolist()
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]
