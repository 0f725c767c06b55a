"""Many tridiagonal systems side by side, by elimination from node to node (Thomas).

A round of elimination is one operation on all systems, so that hundreds of species take hardly longer than one.
There is no pivoting; the columns of the species' matrices are diagonally dominant.
"""

import torch
from torch import Tensor

from ..finite_volume.jacobian import Tridiagonal


class TridiagonalSolver:
    """Factorisation of matrices `(..., N)`."""

    def __init__(self, matrix: Tridiagonal) -> None:
        lower, diagonal, upper = (_by_node(band) for band in matrix.bands())
        nodes = diagonal.shape[0]
        pivots, factors = [diagonal[0]], []
        for k in range(1, nodes):
            factors.append(lower[k] / pivots[-1])
            pivots.append(torch.addcmul(diagonal[k], factors[-1], upper[k - 1], value=-1))
        self._factors = factors
        self._inverse = 1 / torch.stack(pivots)
        self._upper = (upper * self._inverse).unbind(0)

    def solve(self, rhs: Tensor) -> Tensor:
        """For right-hand sides `(..., N)`, without gradients."""
        columns = _by_node(rhs)
        swept = torch.empty_like(columns)
        rows, down = columns.unbind(0), swept.unbind(0)
        down[0].copy_(rows[0])
        for k, factor in enumerate(self._factors, start=1):
            torch.addcmul(rows[k], factor, down[k - 1], value=-1, out=down[k])
        swept *= self._inverse
        for k in range(len(rows) - 2, -1, -1):
            down[k].addcmul_(self._upper[k], down[k + 1], value=-1)
        return swept.T.reshape(rhs.shape)


def _by_node(band: Tensor) -> Tensor:
    """`(..., N)` as `(N, ...)`, with one axis for everything else."""
    return band.reshape(-1, band.shape[-1]).T.contiguous()
