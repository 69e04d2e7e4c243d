"""The span of few rows of many features, in which the solution of every regularised regression lies.

    RowSpace     coordinates of all rows in the span of each fold's training rows
    row_space    of a matrix and the standardisation of each fold
    FEW          fewer rows than this share of the features are solved there

With the squared norm as penalty the best coefficients are a combination of the training rows (representer theorem:
Kimeldorf and Wahba 1971), and turning the features changes neither losses nor norm. With 400 rows of 5,376 features a
step then costs a thirteenth, and its preconditioner knows every direction.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from sonde.learn.products import by_fold

FEW = 0.25
# Directions whose variance is below this fraction of the largest are dropped: at the penalties that are tried no loss
# gains by them, and those of repeated rows are rounding.
NOTHING = 1e-10


@dataclass(frozen=True)
class RowSpace:
    """Principal directions of each fold's training rows; those that a fold lacks are 0."""

    values: Tensor
    """(fold, row, direction): every row's coordinates, standardised as the fold's training rows are."""
    combination: Tensor
    """(fold, row, direction): each direction as a combination of training rows."""
    variances: Tensor
    """(direction, fold, 1): mean square of the coordinates of the training rows."""

    def inward(self, products: Tensor) -> Tensor:
        """Coefficients of the directions, (direction, fold, column), from the products of rows and coefficients.

        Parameters
        ----------
        products : Tensor (row, fold, column)
            Of the standardised features.
        """
        return by_fold(self.combination.mT, products)

    def outward(self, inside: Tensor) -> Tensor:
        """The combination of training rows, (row, fold, column), that these coefficients of directions are."""
        return by_fold(self.combination, inside)

    def predict(self, inside: Tensor) -> Tensor:
        """Products of rows and coefficients, (row, fold, column), from the coefficients of the directions."""
        return by_fold(self.values, inside)

    def pull(self, residual: Tensor) -> Tensor:
        """Sums of coordinates, (direction, fold, column), weighted by (row, fold, column)."""
        return by_fold(self.values.mT, residual)


def row_space(x: Tensor, mean: Tensor, scale: Tensor, weights: Tensor) -> RowSpace:
    """The span of the rows that weigh anything, for each fold.

    Parameters
    ----------
    x : Tensor (row, feature)
    mean, scale : Tensor (feature, fold, 1)
        Subtracted from the features, and multiplied with them then.
    weights : Tensor (row, fold, 1)
    """
    folds = [_directions(((x - mean[:, k, 0]) * scale[:, k, 0]), weights[:, k, 0] > 0) for k in range(mean.shape[1])]
    width = max(values.shape[1] for values, _ in folds)
    values, combination = (
        torch.stack([torch.nn.functional.pad(some, (0, width - some.shape[1])) for some in parts])
        for parts in zip(*folds, strict=True)
    )
    share = weights[:, :, 0] / weights.sum(dim=0)[:, 0].clamp(min=torch.finfo(torch.float32).tiny)  # row fold
    variances = (share.T[:, None] @ values.square())[:, 0]  # fold 1 row, fold row direction -> fold direction
    return RowSpace(values, combination, variances.T[:, :, None].contiguous())


def _directions(standard: Tensor, trains: Tensor) -> tuple[Tensor, Tensor]:
    """Values and combination, (row, direction), of one fold."""
    rows = torch.nonzero(trains)[:, 0]
    products = standard.double() @ standard[rows].double().T  # row feature, train feature -> row train
    variances, turn = torch.linalg.eigh(products[rows])  # ascending
    kept = variances > NOTHING * variances[-1:].clamp(min=torch.finfo(torch.float64).tiny)
    own = turn[:, kept] / variances[kept].sqrt()  # train direction
    combination = torch.zeros(len(standard), own.shape[1])
    combination[rows] = own.float()
    return (products @ own).float(), combination
