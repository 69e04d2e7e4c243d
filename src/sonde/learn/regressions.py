"""The problems that `sonde.learn.logistic` solves: many regularised logistic regressions over one matrix.

    Regressions    data, weights and standardisation of every problem; `solve` them at one C
    regressions    one problem (or one per label) for each set of training rows
    principal      the directions in which the features vary most
    moments        weighted mean and standard deviation of every feature
    varies         which features are more than rounding
    slices         runs of rows that are worked on at a time
    CONSTANT       below this relative deviation a feature is constant

Parameters are (feature + 1, fold, column), the intercept last. Columns are classes (softmax), labels (one sigmoid
each), or the second of two classes (one sigmoid).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.functional import softplus

from sonde.learn.lbfgs import Point, Solution, minimise
from sonde.learn.problem import Problem
from sonde.learn.products import by_fold, times_few
from sonde.learn.rowspace import RowSpace, row_space

# A feature is constant if its deviation is below this fraction of its mean (for a fold: of its deviation over all
# rows). What is left then is float32 rounding, by other kernels too.
CONSTANT = 1e-5
# It is so too if its deviation is below this fraction of the median feature's: a unit that is nearly shut on all
# training rows (GELU gives -1e-33) would, divided by its deviation, outweigh all others on a text that opens it.
SHUT = 1e-6
DIRECTIONS = 384  # principal directions of the preconditioner; more cost more than the iterations that they save
# Extra directions that make the last of them accurate; Halko et al. 2011, section 4.2, advise 5 or more.
SPARE_DIRECTIONS = 32
SAMPLED_ROWS = 8192  # rows that the principal directions are computed from
CHUNK = 2**20  # numbers worked on at a time where a temporary copy of everything would be large
IMPOSSIBLE = -1e4  # added to the logit of a class without rows: its exponential is 0 in float32
SMALLEST_CURVATURE = 1e-3  # of what the class frequencies alone give: keeps first steps finite on separated classes


@dataclass(frozen=True)
class Spectrum:
    """Where the features vary most."""

    directions: Tensor
    """(fold, feature, direction): leading principal directions; one for all folds where they use the same features."""
    variances: Tensor
    """(direction, fold, 1): their variances."""
    rest: float
    """Mean variance of the other directions."""

    def inward(self, values: Tensor) -> Tensor:
        """Coordinates (direction, fold, column) of (feature, fold, column)."""
        return self._times(self.directions.mT, values)

    def outward(self, inside: Tensor) -> Tensor:
        """The (feature, fold, column) that have these coordinates."""
        return self._times(self.directions, inside)

    def _times(self, matrices: Tensor, values: Tensor) -> Tensor:
        if len(matrices) > 1:
            return by_fold(matrices, values)
        return times_few(matrices[0], values.flatten(1)).view(-1, *values.shape[1:])

    def within(self, used: Tensor) -> "Spectrum":
        """The directions of each fold if it uses some of the features alone, (feature, fold) bool.

        What varies along a direction D (of variance v above the rest) is v D D'; cut to the features of a fold, these
        are no longer principal directions, but span the same few dimensions, in which the new ones are found.
        """
        excess = (self.variances[:, 0, 0] - self.rest).clamp(min=0)  # direction
        heavy = self.directions[0] * excess.sqrt()  # feature direction
        found = []
        for fold in used.T:
            own = heavy * fold[:, None]
            excess, turn = torch.linalg.eigh(own.T @ own)  # ascending
            real = excess > torch.finfo(excess.dtype).eps * len(own) * excess[-1]
            found.append((own @ turn * torch.where(real, excess, torch.inf).rsqrt(), torch.where(real, excess, 0.0)))
        directions, excesses = (torch.stack(parts) for parts in zip(*found, strict=True))
        return Spectrum(directions, excesses.T[:, :, None] + self.rest, self.rest)


@dataclass(frozen=True)
class Regressions:
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
    spectrum: Spectrum | RowSpace
    """Principal directions of the features, for the preconditioner; of few rows those in which they are solved."""

    def start(self) -> Tensor:
        """No coefficients; intercepts from the class frequencies."""
        theta = torch.zeros(self.x.shape[1] + 1, *self.prior.shape)
        theta[-1] = self.prior
        return theta

    def solve(self, c: float, theta: Tensor, tolerance: float, max_iterations: int) -> Solution:
        """Minimise every problem; columns that cannot be learned get an intercept that says so."""
        objective = _Objective(self, c, self.curvature)
        logits = objective.predict(theta)
        curvature = self._curvature(logits)
        if isinstance(self.spectrum, RowSpace):
            inside = torch.cat([self.spectrum.inward(logits - theta[-1]), theta[-1:]])
            solution = minimise(_Inside(self, c, curvature, self.spectrum), inside, tolerance, max_iterations)
            solution = replace(solution, at=replace(solution.at, theta=self._outward(solution.at.theta)))
        else:
            solution = minimise(replace(objective, curvature=curvature), theta, tolerance, max_iterations)
        return replace(solution, at=self._with_unknown(solution.at))

    def _outward(self, inside: Tensor) -> Tensor:
        """Parameters of the features from those of the directions."""
        assert isinstance(self.spectrum, RowSpace)
        rows = self.spectrum.outward(inside[:-1])  # row fold column
        raw = (self.x.T @ rows.flatten(1)).view(-1, *inside.shape[1:])  # feature fold column
        return torch.cat([self.scale * (raw - self.mean * rows.sum(dim=0)), inside[-1:]])

    def _curvature(self, logits: Tensor) -> Tensor:
        total = torch.zeros_like(self.prior)
        for rows in self.runs():
            p = self.errors(rows, logits[rows])[1] + self.truth[rows]
            total += (self.weights[rows] * p * (1 - p)).sum(dim=0)  # row fold column -> fold column
        return torch.maximum(total, SMALLEST_CURVATURE * self.curvature)

    def _with_unknown(self, at: Point) -> Point:
        """Give classes without rows the mean log-odds of half a row."""
        if not self.joint or bool(self.alive.all()):
            return at
        known = torch.logsumexp(at.predictions + self._bar(), dim=2)  # row fold column -> row fold
        weights = self.weights[:, :, 0]
        mean = (weights * known).sum(dim=0) / weights.sum(dim=0)  # row fold -> fold
        intercept = torch.where(self.alive, at.theta[-1], mean[:, None] + self.prior)
        predictions = torch.where(self.alive, at.predictions, intercept)
        return Point(torch.cat([at.theta[:-1], intercept[None]]), predictions)

    def _bar(self) -> Tensor:
        return torch.where(self.alive, 0.0, IMPOSSIBLE)

    def errors(self, rows: slice, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Losses (row, fold, problem), and probabilities minus truth (row, fold, column).

        The softmax is written out: over few classes torch's own takes six times as long, and the loss needs its parts.
        """
        truth = self.truth[rows]
        if not self.joint:
            return self.alive * (softplus(logits) - truth * logits), self.alive * (torch.sigmoid(logits) - truth)
        barred = logits + self._bar()
        top = barred.amax(dim=2, keepdim=True)  # row fold column -> row fold 1
        raised = (barred - top).exp_()
        total = raised.sum(dim=2, keepdim=True)
        losses = top + total.log() - (truth * barred).sum(dim=2, keepdim=True)
        return losses, self.alive * (raised.div_(total) - truth)

    def runs(self) -> Iterator[slice]:
        """Runs of rows short enough for temporary copies of their logits."""
        return slices(len(self.x), self.prior.numel())


@dataclass(frozen=True)
class _Objective:
    """The problems at one C, as the solver sees them."""

    problems: Regressions
    """The data."""
    c: float
    """Weight of the loss against the penalty."""
    curvature: Tensor
    """(fold, column): sum of w p (1 - p), for the preconditioner."""

    def predict(self, theta: Tensor) -> Tensor:
        data = self.problems
        raw = theta[:-1] * data.scale  # feature fold column
        intercept = theta[-1] - (data.mean * raw).sum(dim=0)  # fold column
        logits = times_few(data.x, raw.flatten(1))  # row feature -> row (fold column)
        return logits.add_(intercept.flatten()).view(-1, *intercept.shape)

    def along(self, at: Point, toward: Point, step: Tensor) -> tuple[Tensor, Tensor]:
        data, step32 = self.problems, step.float()
        value, slope = torch.zeros_like(step), torch.zeros_like(step)
        for rows in data.runs():
            ahead, weights = toward.predictions[rows], data.weights[rows]
            losses, residual = data.errors(rows, at.predictions[rows] + step32 * ahead)
            value += (weights * losses).sum(dim=0, dtype=torch.float64)
            slope += self._per_problem(residual.mul_(weights).mul_(ahead))
        theta, direction = at.theta[:-1], toward.theta[:-1]
        across, length = self.dot(theta, direction), self.dot(direction, direction)
        penalty = self.dot(theta, theta) / 2 + step * across + step**2 * length / 2
        return self.c * value + penalty, self.c * slope + across + step * length

    def gradient(self, at: Point) -> Tensor:
        data = self.problems
        gradient = torch.zeros_like(at.theta)
        flat = gradient[:-1].flatten(1)
        for rows in data.runs():
            residual = data.errors(rows, at.predictions[rows])[1].mul_(data.weights[rows])
            flat += times_few(data.x[rows].T, residual.flatten(1))  # row feature -> feature (fold column)
            gradient[-1] += residual.sum(dim=0)
        gradient[:-1] -= data.mean * gradient[-1]
        gradient[:-1] *= data.scale
        gradient *= self.c
        gradient[:-1] += at.theta[:-1]
        return gradient

    def precondition(self, gradient: Tensor) -> Tensor:
        spectrum, sharp = self.problems.spectrum, self.c * self.curvature  # fold column
        assert isinstance(spectrum, Spectrum)
        plain = 1 / (1 + sharp * spectrum.rest)
        inside = spectrum.inward(gradient[:-1])  # direction fold column
        inside *= 1 / (1 + sharp * spectrum.variances) - plain
        out = torch.empty_like(gradient)
        out[:-1] = plain * gradient[:-1] + spectrum.outward(inside)
        out[-1] = gradient[-1] / sharp
        return out

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        return self._per_problem(left * right)

    def _per_problem(self, values: Tensor) -> Tensor:
        summed = values.sum(dim=0, dtype=torch.float64)  # any fold column -> fold column
        return summed.sum(dim=1, keepdim=True) if self.problems.joint else summed


@dataclass(frozen=True)
class _Inside(_Objective):
    """The same problems in the span of their rows; parameters are (direction + 1, fold, column)."""

    space: RowSpace
    """The span."""

    def predict(self, theta: Tensor) -> Tensor:
        return self.space.predict(theta[:-1]) + theta[-1]

    def gradient(self, at: Point) -> Tensor:
        data = self.problems
        residual = torch.empty_like(at.predictions)
        for rows in data.runs():
            residual[rows] = data.errors(rows, at.predictions[rows])[1].mul_(data.weights[rows])
        gradient = torch.cat([self.space.pull(residual), residual.sum(dim=0, keepdim=True)]).mul_(self.c)
        gradient[:-1] += at.theta[:-1]
        return gradient

    def precondition(self, gradient: Tensor) -> Tensor:
        sharp = self.c * self.curvature  # fold column
        return torch.cat([gradient[:-1] / (1 + sharp * self.space.variances), gradient[-1:] / sharp])


def regressions(
    x: Tensor, problem: Problem, masks: Bool[np.ndarray, "row fold"], spectrum: Spectrum | None,
    used: Tensor | None = None,
) -> Regressions:  # fmt: skip
    """One problem, or one per label, for each column of `masks`, which says where it trains.

    Without a spectrum they are solved in the span of their rows. `used` (feature, fold) says which features a fold may
    use; by default all.
    """
    targets = problem.targets
    joint = not targets.multilabel and targets.n_classes > 2
    truth = targets.indicator if joint or targets.multilabel else targets.indicator[:, 1:]  # row column
    weights = torch.from_numpy(problem.weights[:, None] * masks)  # row fold
    mean, deviation = moments(x, weights)
    known = deviation > CONSTANT if used is None else (deviation > CONSTANT) & used
    scale = torch.where(known, 1 / deviation.where(known, torch.ones_like(deviation)), 0.0).float()[:, :, None]
    center, heavy = mean.float()[:, :, None], weights.float()[:, :, None]
    there, total = weights.T @ torch.from_numpy(truth).double(), weights.sum(dim=0)[:, None]  # fold column; fold 1
    if spectrum is None:
        space: Spectrum | RowSpace = row_space(x, center, scale, heavy)
    else:
        space = spectrum if used is None else spectrum.within(used)
    return Regressions(
        x=x,
        truth=torch.from_numpy(truth)[:, None, :],
        weights=heavy,
        mean=center,
        scale=scale,
        alive=there > 0 if joint else (there > 0) & (there < total),
        prior=torch.log((there + 0.5) / (total - there + 0.5)).float(),
        curvature=((there + 0.5) * (total - there + 0.5) / (total + 1)).float(),
        joint=joint,
        spectrum=space,
    )


def moments(x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation, (feature, fold) float64."""
    sums = torch.zeros(x.shape[1], weights.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(sums)
    for rows in slices(len(x), x.shape[1]):
        wide = x[rows].double()
        sums += wide.T @ weights[rows]  # row feature, row fold -> feature fold
        squares += wide.square_().T @ weights[rows]
    total = weights.sum(dim=0).clamp(min=torch.finfo(torch.float64).tiny)
    mean = sums / total
    return mean, (squares / total - mean**2).clamp(min=0).sqrt()


def varies(mean: Tensor, deviation: Tensor) -> Tensor:
    """Which features, by their (feature, ...) mean and deviation, are more than rounding: bool (feature, ...)."""
    typical = deviation.median(dim=0, keepdim=True).values
    return deviation > torch.maximum(CONSTANT * mean.abs(), SHUT * typical)


def principal(x: Tensor, trainable: Bool[np.ndarray, " row"]) -> Spectrum:
    """Leading principal directions of the trainable rows, from a sample of them.

    Source: Halko, Martinsson and Tropp 2011, algorithm 4.4 (randomised subspace iteration).
    """
    rows = torch.from_numpy(np.flatnonzero(trainable))
    sample = x[rows[:: math.ceil(len(rows) / SAMPLED_ROWS)]]  # row feature
    width = min(DIRECTIONS + SPARE_DIRECTIONS, *sample.shape)
    basis, inside = None, sample
    if width < x.shape[1]:
        basis = torch.randn(x.shape[1], width, generator=torch.Generator().manual_seed(0))  # feature direction
        for _ in range(2):  # each squares the ratio by which leading directions stand out
            basis = torch.linalg.qr(sample.T @ (sample @ basis))[0]
        inside = sample @ basis  # row direction
    variances, turn = torch.linalg.eigh(inside.T @ inside / len(sample))  # ascending
    kept = variances.clamp(min=0).flip(0)[:DIRECTIONS]
    total = float(sample.square().sum()) / len(sample)
    rest = max(total - float(kept.sum()), 0.0) / max(x.shape[1] - len(kept), 1)
    directions = turn if basis is None else basis @ turn
    return Spectrum(directions.flip(1)[None, :, :DIRECTIONS].contiguous(), kept[:, None, None], rest)


def slices(rows: int, width: int) -> Iterator[slice]:
    """Runs of rows of about CHUNK numbers."""
    step = max(1, CHUNK // max(width, 1))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
