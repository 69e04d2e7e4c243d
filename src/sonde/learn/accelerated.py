"""L1-penalised smooth convex problems, many side by side: accelerated proximal steps in a metric that all share.

    Objective      what the solver asks of the problems
    Metric         the metric
    minimise_l1    run all problems until each has converged

Parameters are a matrix (parameter, problem); a problem is `Objective.loss(predictions) + sum |parameter|`, the last
parameter (the intercept) without penalty. The Hessian of every problem is X' D X with positive D below 1/4 of the row
weights; steps are taken in the metric X' W X, which is the same for all, times a number of each problem's own, that
grows where a step turns out too long. So a step sees how features correlate, and costs the same two matrix products
with the data as a plain gradient step.

Sources: Beck and Teboulle 2009 (FISTA, section 4, with its backtracking), in a metric as in Lee, Sun and Saunders 2014;
restarts of O'Donoghue and Candes 2015, section 3.2; the model of a step is minimised by ADMM (Boyd et al. 2011,
sections 3.4 and 6.4), whose matrix is inverted once, by its eigenvectors, for all problems.
"""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

GROWTH = 2.0  # of the length of the metric where a step was too long (Beck and Teboulle: any number above 1)
SHRINKAGE = 0.9  # of that length at every step that was not: curvature falls as probabilities become sure
SHORTEST = 1e-6  # of that length: shorter ones say that nothing curves any more
STALLED = 6  # steps that together must bring the decrease that is asked of a step
RELAXATION = 1.6  # Boyd et al., section 3.4.3: 1.5 to 1.8
INNER = 10  # steps of ADMM between looks at its residuals
INNER_LOOKS = 8  # at most
INNER_RESIDUAL = 0.05  # relative to the step: a step need not be exact, the next one mends it
TIGHTER = 0.2  # of that residual after a plain step without a decrease
SMALLEST_RESIDUAL = 1e-3  # more is not to be had in float32
BALANCE = 10.0  # ratio of residuals at which ADMM's step length changes (Boyd et al., section 3.4.1)


class Objective(Protocol):
    """Convex problems whose predictions are linear in their parameters, without their penalty."""

    @property
    def longest(self) -> float:
        """The multiple of the metric that bounds every Hessian from above."""
        ...

    def take(self, problems: Tensor) -> Self:
        """Some of the problems."""
        ...

    def predict(self, theta: Tensor) -> Tensor:
        """Predictions (row, problem), linear in theta."""
        ...

    def loss(self, predictions: Tensor) -> Tensor:
        """Smooth part of the objective, (problem,) float64."""
        ...

    def gradient(self, predictions: Tensor) -> Tensor:
        """Gradient of the smooth part (parameter, problem)."""
        ...


@dataclass(frozen=True)
class Metric:
    """A positive semidefinite matrix over the parameters by its eigenvectors."""

    vectors: Tensor
    """(parameter, direction)."""
    values: Tensor
    """(direction, 1), not negative."""

    @classmethod
    def of(cls, matrix: Tensor) -> "Metric":
        """The metric of a symmetric matrix."""
        values, vectors = torch.linalg.eigh(matrix)
        return cls(vectors, values.clamp(min=0)[:, None])

    def times(self, theta: Tensor) -> Tensor:
        """The matrix times parameters."""
        return self.vectors @ (self.values * (self.vectors.T @ theta))


@dataclass(frozen=True)
class Solution:
    """Where the problems ended."""

    theta: Tensor
    """(parameter, problem)."""
    predictions: Tensor
    """(row, problem)."""
    iterations: int
    """Of the slowest problem."""
    unfinished: int
    """Problems that had not converged."""


@dataclass
class _State:
    """The problems that still run."""

    objective: Objective
    index: Tensor
    """(problem,): place among all."""
    theta: Tensor
    """(parameter, problem): the best so far."""
    predictions: Tensor
    """(row, problem): of the best so far."""
    value: Tensor
    """(problem,): objective of the best so far."""
    ahead: Tensor
    """(parameter, problem): where the next gradient is taken."""
    seen: Tensor
    """(row, problem): predictions there."""
    momentum: Tensor
    """(1, problem): of the acceleration."""
    length: Tensor
    """(1, problem): multiple of the metric."""
    pace: Tensor
    """(1, problem): step length of ADMM."""
    residual: Tensor
    """(1, problem): at which ADMM may stop, relative to the step."""
    past: Tensor
    """(step, problem): values of the last steps."""

    def take(self, keep: Tensor) -> "_State":
        """Some of the problems."""
        tensors = {name: value[..., keep] for name, value in vars(self).items() if name != "objective"}
        return _State(self.objective.take(keep), **tensors)


def minimise_l1(objective: Objective, metric: Metric, theta: Tensor, tolerance: float, max_iterations: int) -> Solution:
    """Minimise every problem of `objective` plus its L1 penalty from `theta`.

    Parameters
    ----------
    objective : Objective
    metric : Metric
    theta : Tensor (parameter, problem)
    tolerance : float
        A problem has converged when a step without momentum promises, and the last steps brought, at most this
        fraction of its objective.
    max_iterations : int

    Returns
    -------
    Solution
    """
    state = _start(objective, metric, theta)
    done = Solution(theta.clone(), state.predictions.clone(), 0, 0)
    for iteration in range(1, max_iterations + 1):
        ended = _advance(state, metric, tolerance)
        if bool(ended.any()):
            left = state.index[ended]
            done.theta[:, left], done.predictions[:, left] = state.theta[:, ended], state.predictions[:, ended]
            if bool(ended.all()):
                return Solution(done.theta, done.predictions, iteration, 0)
            state = state.take(~ended)
    done.theta[:, state.index], done.predictions[:, state.index] = state.theta, state.predictions
    return Solution(done.theta, done.predictions, max_iterations, len(state.index))


def _start(objective: Objective, metric: Metric, theta: Tensor) -> _State:
    predictions = objective.predict(theta)
    value = objective.loss(predictions) + penalty(theta)
    ones = torch.ones(1, theta.shape[1], dtype=theta.dtype, device=theta.device)
    length = objective.longest / 4 * ones  # backtracking finds the right one
    return _State(
        objective=objective,
        index=torch.arange(theta.shape[1], device=theta.device),
        theta=theta,
        predictions=predictions,
        value=value,
        length=length,
        momentum=ones,
        ahead=theta,
        seen=predictions,
        # between the curvatures of all directions, where ADMM is fastest (Ghadimi et al. 2015, theorem 4)
        pace=(length * metric.values.median()).clamp(min=torch.finfo(theta.dtype).tiny),
        residual=INNER_RESIDUAL * ones,
        past=torch.full((STALLED, theta.shape[1]), torch.inf, dtype=torch.float64, device=theta.device),
    )


def _advance(state: _State, metric: Metric, tolerance: float) -> Tensor:
    """One step of all problems; which of them have converged."""
    gradient, before = state.objective.gradient(state.seen), state.objective.loss(state.seen)
    stretched = metric.times(state.ahead)  # parameter problem
    while True:
        found, exact = _model_step(state, metric, gradient, stretched)
        predictions = state.objective.predict(found)
        reached = state.objective.loss(predictions)
        moved = found - state.ahead
        slope = (gradient * moved).sum(dim=0, dtype=torch.float64)
        curved = (moved * metric.times(moved)).sum(dim=0, dtype=torch.float64) * state.length[0] / 2
        rounding = 8 * torch.finfo(found.dtype).eps * before
        long = (reached > before + slope + curved + rounding) & (state.length[0] < state.objective.longest)
        if not bool(long.any()):
            break
        state.length = torch.where(long, (GROWTH * state.length).clamp(max=state.objective.longest), state.length)
    value = reached + penalty(found)
    promised = before + penalty(state.ahead) - (before + slope + curved + penalty(found))
    little = exact & (promised.abs() <= tolerance * state.value)  # below 0: the model was not solved
    return _move(state, found, predictions, value, little, tolerance)


def _move(state: _State, found: Tensor, predictions: Tensor, value: Tensor, little: Tensor, tolerance: float) -> Tensor:
    """Go where the objective fell, with momentum; else drop the momentum. Which problems are at their end."""
    plain, better = state.momentum[0] == 1, value <= state.value
    momentum = (1 + (1 + 4 * state.momentum**2).sqrt()) / 2
    share = (state.momentum - 1) / momentum
    state.ahead = torch.where(better, found + share * (found - state.theta), state.theta)
    state.seen = torch.where(better, predictions + share * (predictions - state.predictions), state.predictions)
    state.momentum = torch.where(better, momentum, 1.0)
    state.theta = torch.where(better, found, state.theta)
    state.predictions = torch.where(better, predictions, state.predictions)
    state.value = torch.where(better, value, state.value)
    slow = state.past[0] - state.value < tolerance * state.value
    state.past = torch.cat([state.past[1:], state.value[None]])
    failed = plain & ~better  # the model was not solved well enough, or all that is left is rounding, which is slow
    state.residual = torch.where(failed, TIGHTER * state.residual, state.residual).clamp(min=SMALLEST_RESIDUAL)
    state.length = torch.where(failed, GROWTH * state.length, SHRINKAGE * state.length)
    state.length = state.length.clamp(SHORTEST, state.objective.longest)
    return (little & (plain | better)) | slow


def _model_step(state: _State, metric: Metric, gradient: Tensor, stretched: Tensor) -> tuple[Tensor, Tensor]:
    """Parameters that minimise the model of a step (its slope, the metric, the penalty), and where they nearly do.

    Where they do not, the next step goes on with a better pace: a poor step must not pass for the end.
    """
    linear = gradient - state.length * stretched  # parameter problem
    sparse, pace = state.ahead, state.pace
    dual = -gradient / pace
    dual[:-1] = dual[:-1].clamp(-1 / pace, 1 / pace)
    dual[-1] = 0
    for _ in range(INNER_LOOKS):
        inverse = 1 / (state.length * metric.values + pace)  # direction problem
        for _ in range(INNER):
            dense = metric.vectors @ (inverse * (metric.vectors.T @ (pace * (sparse - dual) - linear)))
            relaxed = RELAXATION * dense + (1 - RELAXATION) * sparse
            shifted = relaxed + dual
            last, sparse = sparse, _shrunk(shifted, 1 / pace)
            dual = shifted - sparse
        primal = (dense - sparse).norm(dim=0, keepdim=True)
        moved = (pace * (sparse - last)).norm(dim=0, keepdim=True)
        scale = (sparse - state.ahead).norm(dim=0, keepdim=True)
        bent = (gradient + pace * dual).norm(dim=0, keepdim=True)
        near = ((primal <= state.residual * scale) & (moved <= state.residual * bent))[0]
        if bool(near.all()):
            break
        up, down = primal * bent > BALANCE * moved * scale, moved * scale > BALANCE * primal * bent
        change = torch.where(up, 2.0, torch.where(down, 0.5, 1.0))
        pace, dual = pace * change, dual / change
    state.pace = pace
    return sparse, near


def _shrunk(theta: Tensor, by: Tensor) -> Tensor:
    """Soft thresholding of all but the intercept."""
    moved = theta.sign() * (theta.abs() - by).clamp(min=0)
    moved[-1] = theta[-1]
    return moved


def penalty(theta: Tensor) -> Tensor:
    """Sum of the absolute coefficients of each problem, (problem,) float64."""
    return theta[:-1].abs().sum(dim=0, dtype=torch.float64)
