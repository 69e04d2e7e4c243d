"""L-BFGS on many independent smooth convex problems side by side, preconditioned.

    Objective    what the solver asks of the problems
    Solution     where they ended
    minimise     run them all until each has converged

Parameters are one tensor (parameter, fold, column). The problems lie along its last two axes: either every
(fold, column) is one, or all columns of a fold together; `Objective.dot` knows which, and gives numbers of the shape
(fold, problem) that broadcast against (fold, column). Each problem has its own step length and its own end; those that
have ended stay put.

Source: Nocedal and Wright 2006, algorithm 7.4 (two loops) and section 3.5 (line search); for a convex function the
slope alone tells whether a step is too long or too short. Predictions are linear in the parameters, so that a line
search costs no matrix product.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

MEMORY = 10  # pairs of steps and gradient changes remembered; Nocedal and Wright advise 3 to 20
TRIALS = 20  # trial steps of one line search: enough to halve the step to a millionth
SLOPE_LEFT = 0.5  # a step is accepted when the slope has fallen to this fraction: close to the minimum of a quadratic
ROUNDING = 1e-6  # relative rise of the objective that is put down to float32
STALLED = (
    5  # iterations that together must bring the decrease that is still promised, else rounding is all that is left
)
NARROWEST = 0.1  # a trial step stays this fraction of the bracket away from its ends, so that the bracket shrinks


class Objective(Protocol):
    """Convex problems whose predictions are linear in their parameters."""

    def predict(self, theta: Tensor) -> Tensor:
        """Predictions (row, fold, column), linear in theta."""
        ...

    def along(self, at: "Point", toward: "Point", step: Tensor) -> tuple[Tensor, Tensor]:
        """Value and slope, (fold, problem) float64, at `at + step * toward`."""
        ...

    def gradient(self, at: "Point") -> Tensor:
        """Gradient, shaped like theta."""
        ...

    def precondition(self, gradient: Tensor) -> Tensor:
        """An approximate inverse Hessian times a gradient."""
        ...

    def dot(self, left: Tensor, right: Tensor) -> Tensor:
        """Inner product per problem, (fold, problem) float64."""
        ...


@dataclass(frozen=True)
class Point:
    """Parameters and the predictions that belong to them."""

    theta: Tensor
    """(parameter, fold, column)."""
    predictions: Tensor
    """(row, fold, column)."""

    def plus(self, step: Tensor, other: "Point") -> "Point":
        """`self + step * other`."""
        return Point(self.theta + step * other.theta, self.predictions + step * other.predictions)


@dataclass(frozen=True)
class Solution:
    """Where the problems ended."""

    at: Point
    """The parameters and their predictions."""
    iterations: int
    """Of the slowest problem."""
    problems: int
    """How many there were."""
    unfinished: int
    """How many had not converged."""


@dataclass(frozen=True)
class _Pair:
    """One remembered step."""

    moved: Tensor
    """Change of theta."""
    bent: Tensor
    """Change of the gradient."""
    inverse: Tensor
    """One over their inner product per problem; 0 where the problem did not move."""


def minimise(objective: Objective, theta: Tensor, tolerance: float, max_iterations: int) -> Solution:
    """Minimise every problem of `objective` from `theta`.

    Parameters
    ----------
    objective : Objective
    theta : Tensor (parameter, fold, column)
    tolerance : float
        A problem has converged when half its slope along the next step, the decrease that a quadratic model promises,
        is at most this fraction of its objective.
    max_iterations : int

    Returns
    -------
    Solution
    """
    at = Point(theta, objective.predict(theta))
    gradient = objective.gradient(at)
    pairs: list[_Pair] = []
    ended = torch.zeros((), dtype=torch.bool)
    values: list[Tensor] = []
    for iteration in range(max_iterations + 1):
        direction = _direction(objective, gradient, pairs)
        slope = objective.dot(direction, gradient)
        toward = Point(direction, objective.predict(direction))
        value, _ = objective.along(at, toward, torch.zeros_like(slope))
        values = [*values, value][-STALLED - 1 :]
        if len(values) > STALLED:
            ended = ended | (values[0] - value < tolerance * value)
        going = (-slope / 2 > tolerance * value) & ~ended
        if not going.any() or iteration == max_iterations:
            break
        found, settled = _step(objective, at, toward, value, slope, going)
        ended = ended | (~settled & (-slope / 2 < ROUNDING * value))
        step = found.to(theta.dtype)
        at = at.plus(step, toward)
        before, gradient = gradient, objective.gradient(at)
        pairs = [*pairs, _pair(objective, step * direction, gradient - before)][-MEMORY:]
    return Solution(at, iteration, going.numel(), int(going.sum()))


def _direction(objective: Objective, gradient: Tensor, pairs: list[_Pair]) -> Tensor:
    """Minus the approximate inverse Hessian times the gradient (the two loops)."""
    direction = -gradient
    weights = []
    for pair in reversed(pairs):
        weight = (pair.inverse * objective.dot(pair.moved, direction)).to(gradient.dtype)
        direction = direction - weight * pair.bent
        weights.append(weight)
    direction = objective.precondition(direction)
    for pair, weight in zip(pairs, reversed(weights), strict=True):
        other = (pair.inverse * objective.dot(pair.bent, direction)).to(gradient.dtype)
        direction = direction + (weight - other) * pair.moved
    return direction


def _pair(objective: Objective, moved: Tensor, bent: Tensor) -> _Pair:
    product = objective.dot(moved, bent)
    useful = product > torch.finfo(moved.dtype).tiny
    return _Pair(moved, bent, torch.where(useful, 1 / product.where(useful, torch.ones_like(product)), 0.0))


def _step(
    objective: Objective, at: Point, toward: Point, value: Tensor, slope: Tensor, going: Tensor
) -> tuple[Tensor, Tensor]:
    """Step lengths (fold, problem), 0 where a problem has ended; and whether a good one was found.

    None is found where the decrease that is left drowns in the rounding of float32: such a problem is at its end too.
    """
    step = torch.ones_like(slope)
    low, low_slope = torch.zeros_like(slope), slope
    high, high_slope = torch.full_like(slope, math.inf), torch.zeros_like(slope)
    for _ in range(TRIALS):
        reached, here = objective.along(at, toward, step)
        long = (here > -SLOPE_LEFT * slope) | (reached > value * (1 + ROUNDING))
        short = here < SLOPE_LEFT * slope
        if not (going & (long | short)).any():
            break
        high, high_slope = torch.where(long, step, high), torch.where(long, here, high_slope)
        forward = short & ~long
        low, low_slope = torch.where(forward, step, low), torch.where(forward, here, low_slope)
        step = torch.where(long | short, _trial(low, low_slope, high, high_slope), step)
    else:
        step = torch.where(long, low, step)  # what is not settled by now goes to the last step known to be short
    return torch.where(going, step, 0.0), ~(going & (long | short))


def _trial(low: Tensor, low_slope: Tensor, high: Tensor, high_slope: Tensor) -> Tensor:
    """The zero of the slope by linear interpolation, twice as far where there is no upper end yet."""
    width = high - low
    part = (low_slope / (low_slope - high_slope)).nan_to_num(0.5).clamp(NARROWEST, 1 - NARROWEST)
    return torch.where(torch.isinf(high), 2 * low.clamp(min=0.5), low + part * width.where(~torch.isinf(high), low))
