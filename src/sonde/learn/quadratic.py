"""L1-penalised quadratic models, many side by side.

    Quadratics    models of as many problems, padded to one size
    minimised     where they are lowest

Sources: ADMM (Boyd et al. 2011, sections 3.4 and 6.4); what it finds is polished on its support, where the minimum
solves a linear system (Stellato et al. 2020, section 4).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

INEXACT = 0.1  # length of the smallest subgradient relative to that at the start: the next step mends the rest
RELAXATION = 1.6  # Boyd et al., section 3.4.3: 1.5 to 1.8
PACE = 0.1  # ADMM's first step length, of the mean of a Hessian's diagonal: most eigenvalues lie below the mean
INNER = 15  # steps of ADMM between polishings
LOOKS = 6  # polishings, at most
BALANCE = 5.0  # ratio of relative residuals at which ADMM's step length changes (Boyd et al., section 3.4.1)
STRIDE = 3.0  # by this factor


@dataclass(frozen=True)
class Quadratics:
    """Gradient and Hessian of smooth functions at a point, and the weight of the penalty."""

    hessian: Tensor
    """(problem, parameter, parameter), positive definite."""
    start: Tensor
    """(problem, parameter): the point."""
    gradient: Tensor
    """(problem, parameter): there."""
    bound: Tensor
    """(problem, parameter): weight of the penalty."""

    def times(self, theta: Tensor) -> Tensor:
        """The Hessians times parameters."""
        return torch.bmm(self.hessian, theta[:, :, None]).squeeze(2)

    def change(self, theta: Tensor) -> Tensor:
        """What the models with their penalty change from their start, (problem,) float64."""
        moved = theta - self.start
        smooth = moved * (self.gradient + self.times(moved) / 2)
        return (smooth + self.bound * (theta.abs() - self.start.abs())).sum(dim=1, dtype=torch.float64)

    def residual(self, theta: Tensor) -> Tensor:
        """Length of the smallest subgradient, (problem,)."""
        slope = self.gradient + self.times(theta - self.start)
        resting = (slope.abs() - self.bound).clamp(min=0)
        smallest = torch.where(theta == 0, resting, slope + self.bound * theta.sign())
        length: Tensor = torch.linalg.vector_norm(smallest, dim=1)
        return length


def minimised(models: Quadratics) -> tuple[Tensor, Tensor]:
    """Parameters (problem, parameter) at which the models are nearly lowest, and (problem,) which of them are."""
    linear = models.gradient - models.times(models.start)  # problem parameter
    wanted = INEXACT * models.residual(models.start)
    best, lowest = models.start, torch.zeros_like(wanted, dtype=torch.float64)
    pace = PACE * models.hessian.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None]
    sparse = models.start
    dual = (-models.gradient / pace).clamp(-models.bound / pace, models.bound / pace)
    for _ in range(LOOKS):
        inverse = torch.cholesky_inverse(_factor(models.hessian, pace.expand_as(sparse)))
        for _ in range(INNER):
            dense = torch.bmm(inverse, (pace * (sparse - dual) - linear)[:, :, None]).squeeze(2)
            shifted = RELAXATION * dense + (1 - RELAXATION) * sparse + dual
            last, sparse = sparse, shifted - shifted.clamp(-models.bound / pace, models.bound / pace)
            dual = shifted - sparse
        for candidate in (sparse, _polished(models, linear, sparse)):
            change = models.change(candidate)
            lower = change < lowest
            best, lowest = torch.where(lower[:, None], candidate, best), torch.where(lower, change, lowest)
        near = models.residual(best) <= wanted
        if bool(near.all()):
            break
        primal, moved = (dense - sparse).norm(dim=1), (sparse - last).norm(dim=1)
        apart, along = primal * dual.norm(dim=1), moved * sparse.norm(dim=1)  # relative, times the same product
        factor = torch.where(apart > BALANCE * along, STRIDE, torch.where(along > BALANCE * apart, 1 / STRIDE, 1.0))
        pace, dual = pace * factor[:, None], dual / factor[:, None]
    return best, near


def _polished(models: Quadratics, linear: Tensor, sparse: Tensor) -> Tensor:
    """The lowest point with the signs of `sparse`; what would change its sign becomes 0."""
    free = ((sparse != 0) | (models.bound == 0)).to(sparse.dtype)
    signs = models.bound * sparse.sign()
    inside = models.hessian * free[:, :, None] * free[:, None, :]
    found = torch.cholesky_solve((-free * (linear + signs))[:, :, None], _factor(inside, 1 - free))[:, :, 0]
    return torch.where(found * signs >= 0, found, 0.0)


def _factor(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """Cholesky factors of the matrices with a diagonal added."""
    raised = matrix.clone()
    raised.diagonal(dim1=1, dim2=2).add_(diagonal)
    factor: Tensor = torch.linalg.cholesky_ex(raised).L  # where rounding spoils one, what comes of it is no lower
    return factor
