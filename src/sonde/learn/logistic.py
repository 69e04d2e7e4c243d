"""L2-regularised logistic regression on standardised blocks, its strength chosen by folds.

    fit         blocks -> fitted model: one path over C for all folds at once, then the final model
    Logistic    the fitted model
    GRID        values of C that are tried

The objective is scikit-learn's, C * sum_i w_i loss_i + ||W||^2 / 2 with a free intercept: multinomial for single-label
data (two classes: one sigmoid column), one sigmoid per label for multi-label data. Every fold standardises by the
weighted mean and deviation of its own training rows. The matrix is held once: each fold's standardisation is folded into
its coefficients, and a fold's held-out rows have weight 0 in it, so that one iteration is one matrix product forward and
one backward for all folds and classes together.

The solver is `sonde.learn.lbfgs`, preconditioned by what is known of the Hessian: along the leading principal directions
of the features, whose variances differ by orders of magnitude, times the mean of p (1 - p) at the warm start.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor
from torch.nn.functional import softplus

from sonde.errors import warn
from sonde.learn.calibration import decide, to_probabilities
from sonde.learn.lbfgs import Point, Solution, minimise
from sonde.learn.metrics import log_loss, macro_f1
from sonde.learn.problem import Blocks, Outcome, Problem, Record
from sonde.learn.targets import Targets

# From "hardly anything but the class frequencies" for 100,000 rows of 5,000 features to "hardly any penalty" for 500 rows
# of 400. Half-decades: between neighbours the out-of-fold log loss differs by less than its noise.
GRID = tuple(float(f"{10 ** (half / 2):.2g}") for half in range(-10, 3))
# A feature is constant if its deviation is below this fraction of its mean (of its deviation over all rows, for a fold):
# what is left then is float32 rounding.
CONSTANT = 1e-6
# Taken if no row could be held out: the middle of what folds choose on the benchmark sets.
UNCHOSEN_C = 0.01
# Values of C without improvement after which the path ends: out-of-fold loss has one valley, noise may add a ripple.
PATIENCE = 2
# A problem has converged when the decrease that its next step promises (half the Newton decrement) is this fraction of
# the objective. Fold models only choose and calibrate: at 1e-6 their log loss is right to four digits. For the final
# model 1e-8 keeps probabilities within 1e-3 of the exact optimum, and is still above what float32 gradients resolve.
FOLD_TOLERANCE = 1e-6
FINAL_TOLERANCE = 1e-8
MAX_ITERATIONS = 300  # ten times what the slowest of the benchmark sets needs for one C
DIRECTIONS = 384  # principal directions of the preconditioner; more cost more than the iterations that they save
SPARE_DIRECTIONS = (
    32  # extra ones that make the last of them accurate (Halko et al. 2011, section 4.2 advises 5 to 10 or more)
)
SAMPLED_ROWS = 8192  # rows that the principal directions are computed from
CHUNK = 2**20  # numbers worked on at a time where a temporary copy of everything would be large
IMPOSSIBLE = -1e4  # added to the logit of a class without rows: its exponential is 0 in float32
SMALLEST_CURVATURE = 1e-3  # of what the class frequencies alone give: keeps first steps finite on separated classes


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
    def reads_text(self) -> bool:
        """False: only blocks are read."""
        return False

    def logits(self, blocks: Blocks, texts: Sequence[str]) -> Float32[np.ndarray, "row class"]:
        """Log-odds up to a constant per row; with two classes -z/2 and z/2."""
        logits = np.tile(self.intercept, (len(texts), 1))  # row class
        for name, columns in zip(self.needs, _columns([blocks[name].shape[1] for name in self.needs]), strict=True):
            for rows in _slices(len(texts), columns.stop - columns.start):
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
        return cls(tuple(record.settings["needs"]), **record.arrays)


def fit(problem: Problem, names: Sequence[str], *, grid: Sequence[float] = GRID) -> Outcome:
    """Choose C by folds and train the final model.

    Parameters
    ----------
    problem : Problem
    names : sequence of str
        Blocks to read, concatenated in this order.
    grid : sequence of float
        Values of C, tried from the smallest up until the loss has stopped falling.

    Returns
    -------
    Outcome
        C is chosen by log loss on the rows that choose, also when accuracy is aimed at: it is the smoother measure and
        has one valley. When macro F1 is aimed at, by macro F1, and log loss among equals.

    Warns
    -----
    SondeWarning
        not_converged: some of the problems reached the largest number of iterations.
    """
    x, mean, scale = _standardised(problem, names)
    path = _Path(problem)
    if problem.folds.n_folds and problem.weights[problem.folds.choosing].sum() > 0:
        masks = np.stack([problem.folds.train(k) for k in range(problem.folds.n_folds)], axis=1)  # row fold
        path.follow(_problems(x, problem, masks), sorted(grid))
    final = _problems(x, problem, problem.folds.trainable[:, None])
    start = final.start() if path.theta is None else path.theta.mean(dim=1, keepdim=True)  # fold -> 1
    solution = final.solve(path.c, start, FINAL_TOLERANCE)
    _warn_unfinished([*path.unfinished, (solution.unfinished, solution.problems)])
    weights = _as_classes(solution.at.theta[:, 0, :].numpy(), problem.targets)  # feature+1 class
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


class _Path:
    """Walks up the grid and remembers the best C, its fold models and their held-out logits."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.c = UNCHOSEN_C
        self.theta: Tensor | None = None
        self.held_out = np.full((problem.rows, problem.targets.n_classes), np.nan, dtype=np.float32)
        self.tried: list[dict[str, Any]] = []
        self.unfinished: list[tuple[int, int]] = []

    def follow(self, folds: "_Problems", grid: Sequence[float]) -> None:
        """Solve all folds for one C after another, until the loss has stopped falling."""
        theta = folds.start()
        best, lowest, since = (math.inf, math.inf), math.inf, 0
        for c in grid:
            solution = folds.solve(c, theta, FOLD_TOLERANCE)
            theta = solution.at.theta
            self.unfinished.append((solution.unfinished, solution.problems))
            held_out = self._held_out(solution.at.predictions)
            key = self._measure(c, held_out, solution.iterations)
            since = 0 if key < best or key[-1] < lowest else since + 1
            lowest = min(lowest, key[-1])
            if key < best:
                best, self.c, self.theta, self.held_out = key, c, theta, held_out
            if since == PATIENCE:
                break

    def _held_out(self, logits: Tensor) -> Float32[np.ndarray, "row class"]:
        held = self.problem.folds.held
        own = logits.numpy()[np.arange(len(held)), np.maximum(held, 0)]  # row fold column -> row column
        classes = _as_classes(own, self.problem.targets)
        classes[held < 0] = np.nan
        return classes

    def _measure(self, c: float, held_out: Float32[np.ndarray, "row class"], iterations: int) -> tuple[float, float]:
        choosing, multilabel = self.problem.folds.choosing, self.problem.targets.multilabel
        truth, weights = self.problem.targets.indicator[choosing], self.problem.weights[choosing]
        probabilities = to_probabilities(held_out[choosing].astype(np.float64), multilabel)
        loss = log_loss(truth, probabilities, multilabel=multilabel, weights=weights)
        f1 = macro_f1(truth, decide(probabilities, multilabel), weights)
        self.tried.append({"C": c, "log_loss": loss, "macro_f1": f1, "iterations": iterations})
        return (-f1 if self.problem.metric == "macro_f1" else loss), loss


def _warn_unfinished(unfinished: list[tuple[int, int]]) -> None:
    count, problems = (sum(numbers) for numbers in zip(*unfinished, strict=True))
    if count:
        warn(
            f"Logistic regression stopped after {MAX_ITERATIONS} iterations before {count} of {problems} problems had "
            "converged: their coefficients may be smaller than the optimum.",
            "not_converged",
            count,
        )


@dataclass(frozen=True)
class _Problems:
    """Several problems over one matrix. Parameters are (feature + 1, fold, column), the intercept last."""

    x: Tensor
    """(row, feature), standardised over all trainable rows."""
    truth: Tensor
    """(row, 1, column) 0/1."""
    weights: Tensor
    """(row, fold, 1), 0 where a row does not train."""
    mean: Tensor
    """(feature, fold, 1) of the training rows of each fold."""
    scale: Tensor
    """(feature, fold, 1)."""
    alive: Tensor
    """(fold, column) bool: whether the column can be learned from the fold's rows."""
    prior: Tensor
    """(fold, column): log-odds of the column's frequency, with half a row added to either side."""
    curvature: Tensor
    """(fold, column): sum of w p (1 - p) over the rows where p is the frequency of the column."""
    joint: bool
    """Softmax over the columns: the columns of a fold are one problem. Else each column is one."""
    directions: Tensor
    """(feature, direction): leading principal directions of the features."""
    variances: Tensor
    """(direction,): their variances."""
    rest: float
    """Mean variance of the other directions."""

    def start(self) -> Tensor:
        """No coefficients; intercepts from the class frequencies."""
        theta = torch.zeros(self.x.shape[1] + 1, *self.prior.shape)
        theta[-1] = self.prior
        return theta

    def solve(self, c: float, theta: Tensor, tolerance: float) -> Solution:
        """Minimise every problem; columns that cannot be learned get an intercept that says so."""
        objective = _Objective(self, c, self.curvature)
        logits = objective.predict(theta)
        solution = minimise(replace(objective, curvature=self._curvature(logits)), theta, tolerance, MAX_ITERATIONS)
        if self.joint and not self.alive.all():
            self._place_unknown(solution.at)
        return solution

    def _curvature(self, logits: Tensor) -> Tensor:
        total = torch.zeros_like(self.prior)
        for rows in self.slices():
            p = self.activate(logits[rows])
            total += (self.weights[rows] * p * (1 - p)).sum(dim=0)  # row fold column -> fold column
        return torch.maximum(total, SMALLEST_CURVATURE * self.curvature)

    def _place_unknown(self, at: Point) -> None:
        """Give classes without rows the mean log-odds of half a row."""
        known = torch.logsumexp(at.predictions + self._bar(), dim=2)  # row fold column -> row fold
        weights = self.weights[:, :, 0]
        mean = (weights * known).sum(dim=0) / weights.sum(dim=0)  # row fold -> fold
        at.theta[-1] = torch.where(self.alive, at.theta[-1], mean[:, None] + self.prior)
        at.predictions.copy_(torch.where(self.alive, at.predictions, at.theta[-1]))

    def _bar(self) -> Tensor:
        return torch.where(self.alive, 0.0, IMPOSSIBLE)

    def activate(self, logits: Tensor) -> Tensor:
        """Logits -> probabilities, (row, fold, column)."""
        return torch.softmax(logits + self._bar(), dim=2) if self.joint else torch.sigmoid(logits)

    def losses(self, rows: slice, logits: Tensor) -> Tensor:
        """(row, fold, problem)."""
        if self.joint:
            barred = logits + self._bar()
            return torch.logsumexp(barred, dim=2, keepdim=True) - (self.truth[rows] * barred).sum(dim=2, keepdim=True)
        return self.alive * (softplus(logits) - self.truth[rows] * logits)

    def slices(self) -> Iterator[slice]:
        """Runs of rows short enough for temporary copies of their logits."""
        return _slices(len(self.x), self.prior.numel())


@dataclass(frozen=True)
class _Objective:
    """The problems at one C, as the solver sees them."""

    problems: _Problems
    """The data."""
    c: float
    """Weight of the loss against the penalty."""
    curvature: Tensor
    """(fold, column): sum of w p (1 - p), for the preconditioner."""

    def predict(self, theta: Tensor) -> Tensor:
        data = self.problems
        raw = theta[:-1] * data.scale  # feature fold column
        intercept = theta[-1] - (data.mean * raw).sum(dim=0)  # fold column
        logits = torch.addmm(intercept.flatten(), data.x, raw.flatten(1))  # row feature -> row (fold column)
        return logits.view(-1, *intercept.shape)

    def along(self, at: Point, toward: Point, step: Tensor) -> tuple[Tensor, Tensor]:
        data, step32 = self.problems, step.float()
        value, slope = torch.zeros_like(step), torch.zeros_like(step)
        for rows in data.slices():
            logits = at.predictions[rows] + step32 * toward.predictions[rows]
            value += (data.weights[rows] * data.losses(rows, logits)).sum(dim=0, dtype=torch.float64)
            slope += self._per_problem(self._residual(rows, logits) * toward.predictions[rows])
        theta, direction = at.theta[:-1], toward.theta[:-1]
        across, length = self.dot(theta, direction), self.dot(direction, direction)
        penalty = self.dot(theta, theta) / 2 + step * across + step**2 * length / 2
        return self.c * value + penalty, self.c * slope + across + step * length

    def gradient(self, at: Point) -> Tensor:
        data = self.problems
        gradient = torch.zeros_like(at.theta)
        flat = gradient[:-1].flatten(1)
        for rows in data.slices():
            residual = self._residual(rows, at.predictions[rows])
            flat.addmm_(data.x[rows].T, residual.flatten(1))  # row feature -> feature (fold column)
            gradient[-1] += residual.sum(dim=0)
        gradient[:-1] -= data.mean * gradient[-1]
        gradient[:-1] *= data.scale
        gradient *= self.c
        gradient[:-1] += at.theta[:-1]
        return gradient

    def precondition(self, gradient: Tensor) -> Tensor:
        data, sharp = self.problems, self.c * self.curvature  # fold column
        plain = 1 / (1 + sharp * data.rest)
        inside = (data.directions.T @ gradient[:-1].flatten(1)).view(-1, *sharp.shape)  # direction fold column
        inside *= 1 / (1 + sharp * data.variances[:, None, None]) - plain
        out = torch.empty_like(gradient)
        out[:-1] = plain * gradient[:-1] + (data.directions @ inside.flatten(1)).view(-1, *sharp.shape)
        out[-1] = gradient[-1] / sharp
        return out

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        return self._per_problem(left * right)

    def _residual(self, rows: slice, logits: Tensor) -> Tensor:
        data = self.problems
        return data.alive * data.weights[rows] * (data.activate(logits) - data.truth[rows])

    def _per_problem(self, values: Tensor) -> Tensor:
        summed = values.sum(dim=0, dtype=torch.float64)  # any fold column -> fold column
        return summed.sum(dim=1, keepdim=True) if self.problems.joint else summed


def _problems(x: Tensor, problem: Problem, masks: Bool[np.ndarray, "row fold"]) -> _Problems:
    """One problem, or one per label, for each column of `masks`, which says where it trains."""
    targets = problem.targets
    joint = not targets.multilabel and targets.n_classes > 2
    truth = targets.indicator if joint or targets.multilabel else targets.indicator[:, 1:]  # row column
    weights = torch.from_numpy(problem.weights[:, None] * masks)  # row fold
    mean, deviation = _moments(x, weights)
    known = deviation > CONSTANT
    there, total = weights.T @ torch.from_numpy(truth).double(), weights.sum(dim=0)[:, None]  # fold column; fold 1
    directions, variances, rest = _principal(x, torch.from_numpy(problem.folds.trainable))
    return _Problems(
        x=x,
        truth=torch.from_numpy(truth)[:, None, :],
        weights=weights.float()[:, :, None],
        mean=mean.float()[:, :, None],
        scale=torch.where(known, 1 / deviation.where(known, torch.ones_like(deviation)), 0.0).float()[:, :, None],
        alive=there > 0 if joint else (there > 0) & (there < total),
        prior=torch.log((there + 0.5) / (total - there + 0.5)).float(),
        curvature=((there + 0.5) * (total - there + 0.5) / (total + 1)).float(),
        joint=joint,
        directions=directions,
        variances=variances,
        rest=rest,
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
    mean = _moments(matrix, weights)[0][:, 0]  # feature 1 -> feature
    matrix -= mean.float()
    deviation = _moments(matrix, weights)[1][:, 0]
    known = deviation > CONSTANT * mean.abs()
    scale = torch.where(known, 1 / deviation.where(known, torch.ones_like(deviation)), 0.0).float()
    matrix *= scale
    return matrix, mean.float().numpy(), scale.numpy()


def _moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation, (feature, fold) float64."""
    sums = torch.zeros(x.shape[1], weights.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for rows in _slices(len(x), x.shape[1]):
        wide = x[rows].double()
        sums += wide.T @ weights[rows]  # row feature, row fold -> feature fold
        squares += wide.square_().T @ weights[rows]
    mean = sums / weights.sum(dim=0)
    return mean, (squares / weights.sum(dim=0) - mean**2).clamp(min=0).sqrt()


def _principal(x: Tensor, trainable: Tensor) -> tuple[Tensor, Tensor, float]:
    """Leading principal directions, their variances and the mean variance of the rest, from a sample of the rows.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4 (randomised subspace iteration).
    """
    rows = trainable.nonzero()[:, 0]
    sample = x[rows[:: math.ceil(len(rows) / SAMPLED_ROWS)]]  # row feature
    width = min(DIRECTIONS + SPARE_DIRECTIONS, *sample.shape)
    if width == x.shape[1]:
        basis = torch.eye(width)
    else:
        basis = torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(0))  # feature direction
        for _ in range(2):  # each squares the ratio by which leading directions stand out
            basis = torch.linalg.qr(sample.T @ (sample @ basis))[0]
    inside = sample @ basis  # row direction
    variances, turn = torch.linalg.eigh(inside.T @ inside / len(sample))  # ascending
    kept = variances.clamp(min=0).flip(0)[:DIRECTIONS]
    total = float(sample.square().sum()) / len(sample)
    rest = max(total - float(kept.sum()), 0.0) / max(x.shape[1] - len(kept), 1)
    return (basis @ turn).flip(1)[:, :DIRECTIONS].contiguous(), kept, rest


def _as_classes(columns: Float32[np.ndarray, "any column"], targets: Targets) -> Float32[np.ndarray, "any class"]:
    """Columns of the solver -> columns of classes: one sigmoid column z becomes -z/2 and z/2."""
    if targets.multilabel or targets.n_classes > 2:
        return columns.copy()
    return np.concatenate([-columns / 2, columns / 2], axis=1)


def _columns(widths: Sequence[int]) -> list[slice]:
    ends = np.cumsum(widths).tolist()
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def _slices(rows: int, width: int) -> Iterator[slice]:
    """Runs of rows of about CHUNK numbers."""
    step = max(1, CHUNK // max(width, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
