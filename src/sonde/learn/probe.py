"""L1-regularised logistic probes: what each neuron of some blocks says about each class.

    fit, Probes    a block -> its probes, for every fold and for all trainable rows, C by out-of-fold loss
    fit_layer      the same for all blocks of a layer: sites and poolings
    path, Step     the same as `fit` for one C after the other
    GRID           values of C that are tried

One probe for each class against the rest (one for two classes) and fold; the last "fold" is the model on all trainable
rows, the only one trained where the fold of a validation set has the same rows. The objective is scikit-learn's,
C * sum_i w_i loss_i + sum_j |w_j| with a free intercept, on features standardised by the weighted mean and deviation of
the rows of each fold. All probes of one C are solved together and start from those of the next larger penalty; a
problem that has converged takes no part any more. Where rows are many times the features, steps are taken in a metric
that all problems share (`sonde.learn.accelerated`: two matrix products a step); else they are Newton steps on the
features that have a weight or ask for one (`sonde.learn.proximal`): so large a metric costs more than all the rest.
Sites and poolings of a layer share targets, weights and folds, which stand in memory once for all of them, but no
feature: their products are taken one after the other, which costs what batched ones cost (20,000 x 384 with 6 probes of
two poolings each, one thread: 18.9 and 21.0 ms; 6,500 x 384 with 312: 56.7 and 54.4), and each path ends on its own.

Why not a library (`benchmarks/probe.py --libraries`: one layer of SST-2, 20,000 x 384, one thread, until the objective
is within 1e-5 of the least, C = .1 and 10): skglm 0.5 takes .72 and 2.8 seconds, celer 0.7.4 6.9 and 16, this module
.17 and .19. Neither of them has sample weights in its logistic loss or runs on a GPU, and both solve one class and one
fold after the other; skglm has a free intercept, celer none. scikit-learn's solvers have weights, but take one problem
after the other too; liblinear penalises the intercept, and saga is what the paper's released code stops before it
converges: until its grid is at its best it needs some 30 times as long as the path here.

Source: Sparsify-then-Classify (arXiv 2311.15983), step 3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.nn.functional import softplus

from sonde.errors import warn
from sonde.learn import accelerated, proximal
from sonde.learn.problem import Problem
from sonde.learn.products import times_few
from sonde.learn.regressions import CONSTANT, moments, varies
from sonde.learn.splitting import Folds

GRID = (0.1, 0.2, 1.0, 10.0, 100.0)
"""The paper's values of C."""
PATIENCE = 2  # values of C without a lower loss after which the path ends: the loss has one valley, noise may ripple it
# Of the objective: so that it is within 1e-5 of that of saga run to the end, and probabilities within 1e-3 (a test). At
# 1e-7, held-out probabilities of a layer of SST-2 were up to .002 from those of the optimum; now below .001.
TOLERANCE = 1e-8
# While C is chosen: losses at neighbouring values of C differ by far more than what this leaves (R8, 4,000 rows: 5% and
# 0.01% at the best C), in about half of the time. The probes of the chosen C are then finished.
PATH_TOLERANCE = 1e-5
MAX_ITERATIONS = 500
# Rows a feature from which on the shared metric is faster. CPU seconds of one layer, metric / Newton: SST-2, 5,000 x
# 384, .2 / .8; R8, 2,000 x 384, 2.5 / 3.5; the support mails, 682 x 384, 2.3 / 1.4, and 682 x 1,536, 46 / 2.
TALL = 5
FOLD_SPREAD = 1.5  # ratio of a feature's variance over all rows and over those of a fold, at most; more only costs time

Found = accelerated.Solution | proximal.Solution


@dataclass(frozen=True)
class Step:
    """The probes of a block at one C."""

    c: float
    """Weight of the loss against the penalty."""
    coefficients: Float32[np.ndarray, "fold feature column"]
    """Of features standardised over the rows of each fold; the last fold is the model on all trainable rows."""
    intercepts: Float32[np.ndarray, "fold column"]
    """Of the same models."""
    held_out: Float32[np.ndarray, "row column"]
    """Logits by the model that did not see the row; NaN where a row is never held out."""
    loss: float
    """Log loss of the rows that choose, summed over columns; 0 if no row chooses."""
    iterations: int
    """Of the slowest problem."""
    unfinished: int
    """Problems that had not converged."""


@dataclass(frozen=True)
class Probes:
    """Fitted probes of a block."""

    best: Step
    """At the C with the lowest loss; the smallest C if no row chooses."""
    losses: dict[float, float]
    """Loss at each C that was tried; only the probes of the chosen C are run to the full tolerance."""
    skipped: tuple[float, ...]
    """Values of C that were not tried, because the loss had stopped falling."""
    dropped: int
    """Features that are constant on the trainable rows."""


def fit(
    problem: Problem,
    name: str,
    *,
    grid: Sequence[float] = GRID,
    tolerance: float = TOLERANCE,
    device: torch.device | str = "cpu",
    used: Bool[np.ndarray, "fold feature"] | None = None,
) -> Probes:
    """Train the probes of a block and choose their C.

    Parameters
    ----------
    problem : Problem
    name : str
        The block.
    grid : sequence of float
        Values of C, tried from the smallest up until the loss has not fallen for two of them.
    tolerance : float
        Relative, of the objective, at the chosen C.
    device : torch.device or str
    used : (fold + 1, feature) bool, optional
        Features that the probes of each fold, and last the final ones, may use; by default all.

    Returns
    -------
    Probes

    Warns
    -----
    SondeWarning
        not_converged: some of the probes reached the largest number of iterations.
    """
    return _fit(_Solver.of(_Rows.of(problem, torch.device(device)), name, used), name, grid, tolerance)


def fit_layer(
    problem: Problem,
    names: Sequence[str],
    *,
    grid: Sequence[float] = GRID,
    tolerance: float = TOLERANCE,
    device: torch.device | str = "cpu",
) -> dict[str, Probes]:
    """Train the probes of several blocks that share nothing but their rows; arguments, result and warnings as `fit`."""
    rows = _Rows.of(problem, torch.device(device))
    return {name: _fit(_Solver.of(rows, name), name, grid, tolerance) for name in names}


def _fit(solver: "_Solver", name: str, grid: Sequence[float], tolerance: float) -> Probes:
    found = chosen = solver.start()
    tried: list[Step] = []
    for c in sorted(grid):
        step, found = solver.solve(c, found, max(tolerance, PATH_TOLERANCE))
        if all(step.loss < one.loss for one in tried):
            chosen = found
        tried.append(step)
        place = int(np.argmin([one.loss for one in tried]))
        if len(tried) - 1 - place == PATIENCE:
            break
    if tolerance < PATH_TOLERANCE:
        tried[place], _ = solver.solve(tried[place].c, chosen, tolerance)
    unfinished = sum(step.unfinished for step in tried)
    if unfinished:
        warn(f"{unfinished} probes of {name} stopped after {MAX_ITERATIONS} iterations.", "not_converged", unfinished)
    dropped = int((solver.data.scale[:, -1] == 0).sum())  # of the last mask: all trainable rows
    skipped = tuple(sorted(grid))[len(tried) :]
    return Probes(tried[place], {step.c: step.loss for step in tried}, skipped, dropped)


def path(
    problem: Problem,
    name: str,
    *,
    grid: Sequence[float] = GRID,
    tolerance: float = TOLERANCE,
    device: torch.device | str = "cpu",
) -> Iterator[Step]:
    """The probes of a block for one C after the other, from the largest penalty down; arguments as in `fit`."""
    solver = _Solver.of(_Rows.of(problem, torch.device(device)), name)
    found = solver.start()
    for c in sorted(grid):
        step, found = solver.solve(c, found, tolerance)
        yield step


@dataclass(frozen=True)
class _Rows:
    """What the probes of all blocks share: problem = mask * columns + column."""

    problem: Problem
    """The training run."""
    masks: Bool[np.ndarray, "row mask"]
    """The sets of rows that train some model, all trainable rows last."""
    place: Int64[np.ndarray, " fold"]
    """Which of the solved models is that of each fold."""
    by_mask: Tensor
    """(row, mask): weights of the rows that train it, 0 elsewhere."""
    truth: Tensor
    """(row, problem) 0/1."""
    weights: Tensor
    """(row, problem), 0 where a row does not train the fold of the problem, or nothing can be learned."""
    prior: Tensor
    """(problem,): log-odds of the column's frequency, half a row added to either side."""

    @classmethod
    def of(cls, problem: Problem, device: torch.device) -> "_Rows":
        masks, place = _masks(problem.folds)
        truth = torch.from_numpy(_truth(problem))
        by_mask = torch.from_numpy(problem.weights[:, None] * masks)  # row mask
        there, total = by_mask.T @ truth.double(), by_mask.sum(dim=0)[:, None]  # mask column; mask 1
        alive = ((there > 0) & (there < total)).flatten()
        weights = by_mask.float().repeat_interleave(truth.shape[1], dim=1) * alive  # row problem
        prior = torch.log((there + 0.5) / (total - there + 0.5)).float().flatten()
        truth = truth.repeat(1, masks.shape[1])  # row problem
        return cls(problem, masks, place, by_mask, truth.to(device), weights.to(device), prior.to(device))


@dataclass(frozen=True)
class _Solver:
    """All probes of a block, at one C after the other."""

    problem: Problem
    """The training run."""
    data: "_Problems"
    """Its probes as the solver sees them."""
    metric: accelerated.Metric | None
    """Of all trainable rows; None = Newton steps."""
    place: Int64[np.ndarray, " fold"]
    """Which of the solved models is that of each fold."""

    @classmethod
    def of(cls, rows: _Rows, name: str, used: Bool[np.ndarray, "fold feature"] | None = None) -> "_Solver":
        data, masks = _problems(rows, name), rows.masks.shape[1]
        if used is not None:
            folds = [int(np.flatnonzero(rows.place == mask)[0]) for mask in range(masks - 1)]
            by_mask = torch.from_numpy(used[[*folds, -1]].T.copy())  # feature mask
            scale = data.scale * by_mask.repeat_interleave(len(data.prior) // masks, dim=1).to(data.scale.device)
            data = replace(data, scale=scale)  # a feature of scale 0 has no slope and keeps no weight
        return cls(rows.problem, data, data.metric() if data.is_tall else None, rows.place)

    def start(self) -> Found:
        """No coefficients; intercepts from the class frequencies."""
        theta = torch.zeros(self.data.x.shape[1] + 1, len(self.data.prior), device=self.data.x.device)
        theta[-1] = self.data.prior
        if self.metric is None:
            return proximal.Solution.start(self.data, theta)
        return accelerated.Solution(theta, self.data.predict(theta), 0, 0)

    def solve(self, c: float, start: Found, tolerance: float) -> tuple[Step, Found]:
        """The probes at one C, from those of another, and the solver's own view of them."""
        found: Found
        if isinstance(start, proximal.Solution):
            found = proximal.minimise_l1(replace(self.data, c=c), start, tolerance, MAX_ITERATIONS)
        else:
            assert self.metric is not None
            data = replace(self.data, c=c)
            found = accelerated.minimise_l1(data, self.metric, start.theta, tolerance, MAX_ITERATIONS)
        shape = (-1, _truth(self.problem).shape[1])  # mask column
        held = self.problem.folds.held
        by_mask = found.predictions.cpu().numpy().reshape(len(held), *shape)  # row mask column
        own = by_mask[np.arange(len(held)), self.place[np.maximum(held, 0)]]  # row column
        own[held < 0] = np.nan
        by_mask = (
            found.theta[:-1].reshape(len(found.theta) - 1, *shape).movedim(0, 1).cpu().numpy()
        )  # mask feature column
        coefficients = by_mask[self.place]  # fold feature column
        intercepts = found.theta[-1].reshape(shape).cpu().numpy()[self.place]  # fold column
        loss = _loss(self.problem, own)
        return Step(c, coefficients, intercepts, own, loss, found.iterations, found.unfinished), found


def _loss(problem: Problem, held_out: Float32[np.ndarray, "row column"]) -> float:
    rows = problem.folds.choosing & (problem.weights > 0)
    if not rows.any():
        return 0.0
    logits, truth = held_out[rows].astype(np.float64), _truth(problem)[rows]
    losses = (np.logaddexp(0, logits) - truth * logits).sum(axis=1)  # row column -> row
    return float(np.average(losses, weights=problem.weights[rows]))


def _truth(problem: Problem) -> Float32[np.ndarray, "row column"]:
    """One column a class; of two classes, the second."""
    targets = problem.targets
    return targets.indicator if targets.multilabel or targets.n_classes > 2 else targets.indicator[:, 1:]


@dataclass(frozen=True)
class _Problems:
    """The probes of one block as the solver sees them: problem = mask * columns + column."""

    x: Tensor
    """(row, feature), standardised over all trainable rows."""
    trained: Tensor
    """(row, 1): weights of the last fold, which trains on all trainable rows."""
    truth: Tensor
    """(row, problem) 0/1."""
    weights: Tensor
    """(row, problem), 0 where a row does not train the fold of the problem, or nothing can be learned."""
    mean: Tensor
    """(feature, problem)."""
    scale: Tensor
    """(feature, problem)."""
    prior: Tensor
    """(problem,): log-odds of the column's frequency, half a row added to either side."""
    c: float = 1.0
    """Weight of the loss against the penalty."""

    @property
    def is_tall(self) -> bool:
        """Whether there are many rows for each feature."""
        return self.x.shape[0] >= TALL * self.x.shape[1]

    @property
    def longest(self) -> float:
        """A quarter bounds the second derivative of the loss; folds scale features a little differently than all."""
        return self.c / 4 * FOLD_SPREAD

    def metric(self) -> accelerated.Metric:
        """X' W X over all trainable rows, whose features have mean 0: the intercept stands apart from them."""
        products = self.x.T @ (self.x * self.trained)  # row feature -> feature feature
        matrix = torch.zeros(len(products) + 1, len(products) + 1, dtype=products.dtype, device=products.device)
        matrix[:-1, :-1], matrix[-1, -1] = products, self.trained.sum()
        return accelerated.Metric.of(matrix)

    def take(self, problems: Tensor) -> "_Problems":
        return replace(
            self, truth=self.truth[:, problems], weights=self.weights[:, problems], mean=self.mean[:, problems],
            scale=self.scale[:, problems], prior=self.prior[problems],
        )  # fmt: skip

    def predict(self, theta: Tensor) -> Tensor:
        raw = theta[:-1] * self.scale  # feature problem
        return times_few(self.x, raw).add_(theta[-1] - (self.mean * raw).sum(dim=0))  # row problem

    def loss(self, predictions: Tensor) -> Tensor:
        losses = self.weights * (softplus(predictions) - self.truth * predictions)
        return self.c * losses.sum(dim=0, dtype=torch.float64)

    def gradient(self, predictions: Tensor) -> Tensor:
        residual = (torch.sigmoid(predictions) - self.truth) * self.weights  # row problem
        total = residual.sum(dim=0)
        slope = times_few(self.x.T, residual)  # feature problem
        return self.c * torch.cat([self.scale * (slope - self.mean * total), total[None]])

    def curvature(self, predictions: Tensor) -> Tensor:
        sure = torch.sigmoid(predictions)
        return self.c * self.weights * sure * (1 - sure)  # row problem

    def hessian(self, problem: int, parameters: Tensor, curvature: Tensor) -> Tensor:
        some = parameters[:-1]  # the intercept comes last
        mean, scale = self.mean[some, problem], self.scale[some, problem]
        x = self.x.T if len(some) == self.x.shape[1] else self.x.T[some]  # row feature -> kept row
        curved, total = x * curvature, curvature.sum()
        sums = curved @ torch.ones_like(curvature)  # kept row -> kept
        out = x.new_empty(len(parameters), len(parameters))
        out[:-1, :-1] = curved @ x.T - torch.outer(mean, sums - total * mean) - torch.outer(sums, mean)
        out[:-1, :-1] *= torch.outer(scale, scale)
        out[:-1, -1] = out[-1, :-1] = scale * (sums - total * mean)
        out[-1, -1] = total
        return out


def _masks(folds: Folds) -> tuple[Bool[np.ndarray, "row mask"], Int64[np.ndarray, " fold"]]:
    """The sets of rows that train some model, all trainable rows last, and which of them is that of each fold.

    The one fold of a validation set trains on the rows of the last model: one mask, and half of the work.
    """
    masks: list[np.ndarray] = []
    place = np.full(folds.n_folds + 1, -1, dtype=np.int64)
    for fold in range(folds.n_folds):
        mask = folds.train(fold)
        if (mask != folds.trainable).any():
            place[fold] = len(masks)
            masks.append(mask)
    return np.stack([*masks, folds.trainable], axis=1), place


def _problems(rows: _Rows, name: str) -> _Problems:
    x, mean, scale = _standardised(rows.problem.blocks[name], rows.by_mask)
    device, columns = rows.truth.device, rows.truth.shape[1] // rows.masks.shape[1]
    found = _Problems(
        x=x.to(device),
        trained=rows.by_mask[:, -1:].float().to(device),
        truth=rows.truth,
        weights=rows.weights,
        mean=mean.repeat_interleave(columns, dim=1).to(device),
        scale=scale.repeat_interleave(columns, dim=1).to(device),
        prior=rows.prior,
    )
    return found if found.is_tall else replace(found, x=found.x.T.contiguous().T)  # as Hessians take features


def _standardised(block: np.ndarray, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block standardised over all trainable rows, and what each fold does to that: mean, scale (feature, fold)."""
    x = torch.from_numpy(np.array(block, dtype=np.float32))  # a copy
    mean, deviation = moments(x, weights[:, -1:])
    constant = ~varies(mean, deviation)
    x -= mean[:, 0].float()
    x *= _inverse(deviation, constant)[:, 0]
    if weights.shape[1] == 1:  # no fold differs from all trainable rows
        return x, torch.zeros_like(mean).float(), (~constant).float()
    mean, deviation = moments(x, weights)
    return x, mean.float(), _inverse(deviation, deviation <= CONSTANT)


def _inverse(deviation: Tensor, constant: Tensor) -> Tensor:
    return torch.where(constant, 0.0, 1 / deviation.masked_fill(constant, 1.0)).float()
