"""Matrix products in the shape in which the solvers need them.

times_few   a matrix, or one a fold, times some columns
by_fold     products of matrices and columns within each fold
"""

from torch import Tensor

MANY = 32  # columns from which on a product as it stands is the faster one


def times_few(matrix: Tensor, columns: Tensor) -> Tensor:
    """`matrix @ columns`; of few columns the other way round: BLAS libraries take down to a tenth of the time so."""
    if columns.shape[-1] >= MANY:
        return matrix @ columns
    return (columns.mT @ matrix.mT).mT.contiguous()


def by_fold(matrices: Tensor, columns: Tensor) -> Tensor:
    """(fold, any, other) and (other, fold, column) -> (any, fold, column): products within each fold."""
    return times_few(matrices, columns.transpose(0, 1)).transpose(0, 1).contiguous()
