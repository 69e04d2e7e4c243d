"""L1-penalised smooth convex problems, many side by side: Newton steps, each on the few parameters that may move.

    Objective      what the solver asks of the problems
    Solution       where they are: before the first step, or at their end
    minimise_l1    run all problems until each has converged

Parameters are a matrix (parameter, problem); a problem is `Objective.loss(predictions) + sum |parameter|`, the last
parameter (the intercept) without penalty. A step goes to the minimum of the second-order model of the loss plus the
penalty, over the parameters that are not zero and those whose gradient says that they should not be; all others stay
zero. Of 1,536 neurons of a feed-forward layer some hundred have a weight, so the Hessian of a model is small. It is
computed anew only where the curvature of the loss at the rows has changed by more than a factor. Models of about one
size are minimised together.

Sources: proximal Newton steps as in Lee, Sun and Saunders 2014, inexact as in Byrd, Nocedal and Oztoprak 2016, on a
working set as in Yuan, Ho and Lin 2012 (newGLMNET).
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from sonde.learn.accelerated import penalty
from sonde.learn.quadratic import Quadratics, minimised

# Parameters without a weight that may join a model in one step, those of the largest gradients first: so many, or one
# for so many rows (the more rows, the more parameters get a weight), or this share of those with a weight. Most of
# those that ask at the first step of a new penalty go again. The best of a few values each on layers of R8, SST-2 and
# the support mails; neighbours differ little.
JOINING, ROWS_EACH, SHARE = 64, 50, 0.5
# Change of the curvature of the rows, relative and but for a factor, at which a Hessian is computed anew. Below, steps
# still converge fast. Chosen in the same way.
DRIFT = 0.2
CROWDED = 0.5  # share of all parameters in a model from which on its Hessian is computed by all: it then lasts longer
RIDGE = 1e-5  # of the mean of a Hessian's diagonal, added to it: smaller eigenvalues are rounding in float32
FLOOR = 1e-6  # added too: nothing beside a penalty of 1, and what problems without rows have instead of a curvature
BATCH = 2**22  # numbers in the Hessians of a batch of models: few enough for the cache of a processor
ALIKE = 1.3  # ratio of the sizes in a batch, at most: the smaller are padded
DECREASE = 1e-4  # of what the slope promises, that a step must bring (Nocedal and Wright, section 3.1)
HALVINGS = 20  # of a step, at most; it then is nothing
STALLED = 4  # steps that together must bring the decrease that is asked of a step


class Objective(Protocol):
    """Convex problems whose predictions are linear in their parameters, without their penalty."""

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

    def curvature(self, predictions: Tensor) -> Tensor:
        """Second derivative of the smooth part by each prediction (row, problem)."""
        ...

    def hessian(self, problem: int, parameters: Tensor, curvature: Tensor) -> Tensor:
        """Hessian of one problem by some parameters, from its curvature (row,)."""
        ...


@dataclass(frozen=True)
class Hessians:
    """The Hessians of as many problems, each by some of its parameters, when they were last computed."""

    curvature: Tensor
    """(row, problem): at that time."""
    parameters: list[Tensor]
    """(kept,) of each problem."""
    matrices: list[Tensor]
    """(kept, kept) of each problem."""

    def take(self, problems: list[int]) -> "Hessians":
        """Those of some problems."""
        parameters, matrices = ([values[i] for i in problems] for values in (self.parameters, self.matrices))
        return Hessians(self.curvature[:, problems], parameters, matrices)

    def put(self, problem: int, curvature: Tensor, parameters: Tensor, matrix: Tensor) -> None:
        """Replace that of one problem."""
        self.curvature[:, problem] = curvature
        self.parameters[problem], self.matrices[problem] = parameters, matrix


@dataclass(frozen=True)
class Solution:
    """Where the problems are."""

    theta: Tensor
    """(parameter, problem)."""
    predictions: Tensor
    """(row, problem)."""
    hessians: Hessians
    """Of the last steps."""
    iterations: int = 0
    """Of the slowest problem."""
    unfinished: int = 0
    """Problems that had not converged."""

    @classmethod
    def start(cls, objective: Objective, theta: Tensor) -> "Solution":
        """Before the first step."""
        predictions, count = objective.predict(theta), theta.shape[1]
        none = torch.zeros(0, dtype=torch.int64, device=theta.device)
        hessians = Hessians(torch.zeros_like(predictions), [none] * count, [theta.new_zeros(0, 0)] * count)
        return cls(theta, predictions, hessians)


@dataclass
class _State:
    """The problems that still run."""

    objective: Objective
    index: Tensor
    """(problem,): place among all."""
    theta: Tensor
    """(parameter, problem)."""
    predictions: Tensor
    """(row, problem)."""
    value: Tensor
    """(problem,): the objective."""
    past: Tensor
    """(step, problem): values of the last steps."""
    hessians: Hessians

    def take(self, keep: Tensor) -> "_State":
        """Some of the problems."""
        apart = {"objective", "hessians"}
        tensors = {name: value[..., keep] for name, value in vars(self).items() if name not in apart}
        hessians = self.hessians.take(keep.nonzero()[:, 0].tolist())
        return _State(objective=self.objective.take(keep), hessians=hessians, **tensors)


def minimise_l1(objective: Objective, start: Solution, tolerance: float, max_iterations: int) -> Solution:
    """Minimise every problem of `objective` plus its L1 penalty.

    Parameters
    ----------
    objective : Objective
    start : Solution
        Where to start: `Solution.start`, or the end of the same problems with another weight of their loss.
    tolerance : float
        A problem has converged when a step promised, or the last steps brought, at most this fraction of its objective.
    max_iterations : int

    Returns
    -------
    Solution
    """
    count = start.theta.shape[1]
    every = torch.arange(count, device=start.theta.device)
    value = objective.loss(start.predictions) + penalty(start.theta)
    past = torch.full((STALLED, count), torch.inf, dtype=value.dtype, device=value.device)
    hessians = start.hessians.take(list(range(count)))
    done = Solution(start.theta.clone(), start.predictions.clone(), hessians.take(list(range(count))))
    state = _State(objective, every, start.theta, start.predictions, value, past, hessians)
    for iteration in range(1, max_iterations + 1):
        ended = _advance(state, tolerance)
        _keep(done, state.take(ended))
        if bool(ended.all()):
            return replace(done, iterations=iteration)
        state = state.take(~ended)
    _keep(done, state)
    return replace(done, iterations=max_iterations, unfinished=len(state.index))


def _keep(done: Solution, state: _State) -> None:
    done.theta[:, state.index], done.predictions[:, state.index] = state.theta, state.predictions
    parts = zip(state.hessians.curvature.T, state.hessians.parameters, state.hessians.matrices, strict=True)
    for problem, part in zip(state.index.tolist(), parts, strict=True):
        done.hessians.put(problem, *part)


def _advance(state: _State, tolerance: float) -> Tensor:
    """One step of all problems; which of them have converged."""
    gradient = state.objective.gradient(state.predictions)
    asked, whole = _asked(state, gradient)
    hessians = _renewed(state, asked)
    found, change, near = state.theta.clone(), torch.zeros_like(state.value), torch.zeros_like(whole)
    for problems in _batches(asked):
        inside, where, models = _models(state, gradient, asked, hessians, problems)
        best, near[problems] = minimised(models)
        change[problems] = models.change(best)
        found[where] = best[inside]
    slow = _search(state, gradient, found, tolerance)
    return (whole & near & (-change <= tolerance * state.value)) | slow


def _asked(state: _State, gradient: Tensor) -> tuple[list[Tensor], Tensor]:
    """The parameters of each problem that may move, the intercept last; which problems get all that they ask for."""
    weighted = state.theta != 0
    weighted[-1] = True
    joining = (gradient.abs() > 1) & ~weighted
    whole = torch.ones_like(weighted[0])
    asked = []
    for problem in range(len(whole)):
        old, new = weighted[:, problem].nonzero()[:, 0], joining[:, problem].nonzero()[:, 0]
        room = max(JOINING, len(state.predictions) // ROWS_EACH, int(SHARE * len(old)))
        if len(new) > room:
            new, whole[problem] = new[gradient[new, problem].abs().topk(room).indices], False
        asked.append(torch.cat([new, old]))
    return asked, whole


def _renewed(state: _State, asked: list[Tensor]) -> list[Tensor]:
    """Hessians by the parameters that may move, computed anew where they are stale or lack some of these."""
    known, present = state.hessians, state.objective.curvature(state.predictions)  # row problem
    factor = present.sum(dim=0) / known.curvature.sum(dim=0).clamp(min=torch.finfo(present.dtype).tiny)
    stale = (present - factor * known.curvature).abs().sum(dim=0) > DRIFT * present.sum(dim=0)
    every = torch.arange(len(state.theta), device=factor.device)
    found = []
    for problem, some in enumerate(asked):
        place = _places(known.parameters[problem], every)[some]
        if stale[problem] or bool((place < 0).any()):
            kept = every if len(some) > CROWDED * len(every) else some
            matrix = state.objective.hessian(problem, kept, present[:, problem])
            known.put(problem, present[:, problem], kept, matrix)
            factor[problem], place = 1.0, _places(kept, every)[some]
        hessian = known.matrices[problem][place[:, None], place] * factor[problem]
        hessian.diagonal().add_(RIDGE * hessian.diagonal().mean() + FLOOR)
        found.append(hessian)
    return found


def _places(kept: Tensor, every: Tensor) -> Tensor:
    """Where each of all parameters stands among those that are kept; -1: nowhere."""
    return torch.full_like(every, -1).scatter_(0, kept, every[: len(kept)])


def _batches(asked: list[Tensor]) -> Iterator[list[int]]:
    """Problems whose models are about as large."""
    sizes = [len(some) for some in asked]
    batch: list[int] = []
    for problem in sorted(range(len(sizes)), key=sizes.__getitem__):
        if batch and (sizes[problem] > ALIKE * sizes[batch[0]] or (len(batch) + 1) * sizes[problem] ** 2 > BATCH):
            yield batch
            batch = []
        batch.append(problem)
    yield batch


def _models(
    state: _State, gradient: Tensor, asked: list[Tensor], hessians: list[Tensor], problems: list[int]
) -> tuple[Tensor, tuple[Tensor, Tensor], Quadratics]:
    """The models of some problems, which of their parameters are no padding, and where these stand in theta."""
    sizes = [len(asked[problem]) for problem in problems]
    inside = torch.zeros(len(problems), max(sizes), dtype=torch.bool, device=gradient.device)
    hessian = gradient.new_zeros(len(problems), max(sizes), max(sizes))
    for place, (problem, size) in enumerate(zip(problems, sizes, strict=True)):
        inside[place, :size] = True
        hessian[place, :size, :size] = hessians[problem]
    hessian.diagonal(dim1=1, dim2=2).add_(~inside)  # padding stays at 0
    columns = torch.tensor(problems, device=gradient.device).repeat_interleave(inside.sum(dim=1))
    where = torch.cat([asked[problem] for problem in problems]), columns
    start, slope, bound = (gradient.new_zeros(*inside.shape) for _ in range(3))  # problem kept
    start[inside], slope[inside] = state.theta[where], gradient[where]
    bound[inside] = (where[0] < len(gradient) - 1).to(bound.dtype)
    return inside, where, Quadratics(hessian, start, slope, bound)


def _search(state: _State, gradient: Tensor, found: Tensor, tolerance: float) -> Tensor:
    """Go towards what was found as far as the objective falls; which problems hardly fall any more."""
    moved, ahead = found - state.theta, state.objective.predict(found) - state.predictions
    slope = (gradient * moved).sum(dim=0, dtype=torch.float64) + penalty(found) - penalty(state.theta)
    rounding = 8 * torch.finfo(found.dtype).eps * state.value
    step = torch.ones(1, found.shape[1], dtype=found.dtype, device=found.device)
    for _ in range(HALVINGS):
        theta, predictions = state.theta + step * moved, state.predictions + step * ahead
        value = state.objective.loss(predictions) + penalty(theta)
        fell = value <= state.value + DECREASE * step[0] * slope + rounding
        if bool(fell.all()):
            break
        step = torch.where(fell, step, step / 2)
    state.theta = torch.where(step == 1, found, theta)
    state.predictions, state.value = predictions, value
    slow = state.past[0] - value < tolerance * value
    state.past = torch.cat([state.past[1:], value[None]])
    return slow
