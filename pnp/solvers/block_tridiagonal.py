"""Direct solution of batched block-tridiagonal systems by cyclic reduction.

Every level eliminates the odd nodes at once, so that N nodes take log2(N) rounds of batched matrix products
instead of N rounds in a Python loop. There is no pivoting between blocks; rows are equilibrated first.

Where neighbours are coupled far more strongly than anything holds them, the sum of a row's blocks,
:math:`s = l + d + u`, is rounding of :math:`d`. Given as itself it is eliminated as itself, without any subtraction:

.. math:: s'_k = s_k - l_k d_{k-1}^{-1} s_{k-1} - u_k d_{k+1}^{-1} s_{k+1} .

References:
    Buzbee, Golub & Nielson, SIAM J. Numer. Anal. 7, 627 (1970); Heller, SIAM J. Numer. Anal. 13, 484 (1976);
    Grassmann, Taksar & Heyman, Oper. Res. 33, 1107 (1985).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class _Level:
    """What one round of elimination keeps for later right-hand sides."""

    inverse: Tensor  # of the odd diagonal blocks
    lower: Tensor  # odd rows, left neighbour
    upper: Tensor  # odd rows, right neighbour
    from_left: Tensor  # even rows: lower block times inverse
    from_right: Tensor  # even rows: upper block times inverse


class BlockTridiagonal:
    """Factorisation of matrices with blocks `lower[k] x[k-1] + diagonal[k] x[k] + upper[k] x[k+1]`.

    Arguments:
        lower, diagonal, upper: Blocks of shape `(..., node, m, m)`; the first of `lower` and the last of
            `upper` are not used.
        sums: Whether `diagonal` holds the sums of the rows' blocks instead; then the blocks that are not used
            must be zero.
        first: How many unknowns of a node are eliminated before its others; None: in any order.
    """

    def __init__(
        self, lower: Tensor, diagonal: Tensor, upper: Tensor, *, sums: bool = False, first: int | None = None
    ) -> None:
        size = torch.maximum(torch.maximum(lower.abs(), diagonal.abs()), upper.abs()).amax(-1, keepdim=True)
        self._row_scale = 1 / torch.where(size > 0, size, torch.ones_like(size))
        lower, middle, upper = (part * self._row_scale for part in (lower, diagonal, upper))
        self._levels: list[_Level] = []
        while middle.shape[-3] > 1:
            level = _eliminate(lower, middle - lower - upper if sums else middle, upper, first)
            self._levels.append(level)
            lower, middle, upper = _reduced(level, lower, middle, upper, sums)
        self._last = _inverse(middle, first)

    def solve(self, rhs: Tensor) -> Tensor:
        """Solve for right-hand sides `(..., node, m, k)`; differentiable with respect to them."""
        rhs = rhs * self._row_scale
        odd_sides = []
        for level in self._levels:
            even, odd = rhs[..., 0::2, :, :], rhs[..., 1::2, :, :]
            odd_sides.append(odd)
            rhs = even - _onto_even(
                _product(level.from_left, odd), _product(level.from_right, odd), even.shape[-3]
            )
        x = _product(self._last, rhs)
        for level, odd in zip(reversed(self._levels), reversed(odd_sides), strict=True):
            nodes = odd.shape[-3]
            right = x[..., 1 : nodes + 1, :, :]
            right = pad(right, (0, 0, 0, 0, 0, nodes - right.shape[-3]))
            neighbours = _product(level.lower, x[..., :nodes, :, :]) + _product(level.upper, right)
            between = _product(level.inverse, odd - neighbours)
            x = _interleave(x, between)
        return x


def solved(lower: Tensor, diagonal: Tensor, upper: Tensor, rhs: Tensor) -> Tensor:
    """The solution of one system, as :class:`BlockTridiagonal` has them; differentiable by the blocks as well.

    One more solve, with the transposed blocks, has all derivatives; a graph of the elimination has ten times the work.
    """
    return _Solved.apply(lower, diagonal, upper, rhs)


class _Solved(torch.autograd.Function):
    """Solutions as functions of blocks and right-hand sides."""

    @staticmethod
    def forward(ctx: Any, lower: Tensor, diagonal: Tensor, upper: Tensor, rhs: Tensor) -> Tensor:
        x = BlockTridiagonal(lower, diagonal, upper).solve(rhs)
        ctx.save_for_backward(lower, diagonal, upper, x)
        return x

    @staticmethod
    def backward(ctx: Any, by_x: Tensor) -> tuple[Tensor, ...]:
        lower, diagonal, upper, x = ctx.saved_tensors
        before, after = (0, 0, 0, 0, 1, 0), (0, 0, 0, 0, 0, 1)
        from_below, from_above = pad(upper[..., :-1, :, :], before), pad(lower[..., 1:, :, :], after)
        by_rhs = solved(from_below.mT, diagonal.mT, from_above.mT, by_x)
        left, right = pad(x[..., :-1, :, :], before), pad(x[..., 1:, :, :], after)
        by_blocks = (-_product(by_rhs, neighbour.mT) for neighbour in (left, x, right))
        return *by_blocks, by_rhs


def _eliminate(lower: Tensor, diagonal: Tensor, upper: Tensor, first: int | None) -> _Level:
    inverse = _inverse(diagonal[..., 1::2, :, :], first)
    nodes = inverse.shape[-3]
    # The even node left of odd node j has index j, the one right of it j + 1 (absent after a last odd node).
    right_of = lower[..., 2::2, :, :]
    from_left = _product(pad(right_of, (0, 0, 0, 0, 0, nodes - right_of.shape[-3])), inverse)
    from_right = _product(upper[..., 0::2, :, :][..., :nodes, :, :], inverse)
    return _Level(inverse, lower[..., 1::2, :, :], upper[..., 1::2, :, :], from_left, from_right)


def _reduced(
    level: _Level, lower: Tensor, middle: Tensor, upper: Tensor, sums: bool
) -> tuple[Tensor, Tensor, Tensor]:
    even, odd = middle[..., 0::2, :, :], middle[..., 1::2, :, :]
    count, nodes = even.shape[-3], level.inverse.shape[-3]
    left, right = (odd, odd) if sums else (level.upper, level.lower)
    onto = _onto_even(_product(level.from_left, left), _product(level.from_right, right), count)
    next_lower = pad(-_product(level.from_left, level.lower)[..., : count - 1, :, :], (0, 0, 0, 0, 1, 0))
    next_upper = pad(-_product(level.from_right, level.upper), (0, 0, 0, 0, 0, count - nodes))
    return next_lower, even - onto, next_upper


def _onto_even(from_left: Tensor, from_right: Tensor, count: int) -> Tensor:
    """Add the contributions of odd nodes to the even nodes right (`from_left`) and left of them."""
    nodes = from_right.shape[-3]
    return pad(from_left[..., : count - 1, :, :], (0, 0, 0, 0, 1, 0)) + pad(
        from_right, (0, 0, 0, 0, 0, count - nodes)
    )


def _interleave(even: Tensor, odd: Tensor) -> Tensor:
    count, nodes = even.shape[-3], odd.shape[-3]
    filled = pad(odd, (0, 0, 0, 0, 0, count - nodes))
    both = torch.stack([even, filled], dim=-3).flatten(-4, -3)
    return both[..., : count + nodes, :, :]


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Matrix product; for scalar blocks a plain one, which is several times as fast."""
    return left * right if left.shape[-1] == 1 else left @ right


def _inverse(blocks: Tensor, first: int | None = None) -> Tensor:
    if first is None:
        return 1 / blocks if blocks.shape[-1] == 1 else torch.linalg.inv_ex(blocks).inverse
    inner, last = _inverse(blocks[..., :first, :first]), blocks[..., first:, :first]
    right = inner @ blocks[..., :first, first:]
    rest = _inverse(blocks[..., first:, first:] - last @ right)
    below = -rest @ last @ inner
    return torch.cat(
        [torch.cat([inner - right @ below, -right @ rest], -1), torch.cat([below, rest], -1)], -2
    )
