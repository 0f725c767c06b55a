r"""Newton updates for hundreds and thousands of species, at a cost linear in their number.

With :math:`T_i\,\delta c_i + M_i\,\delta\psi = r_i` and
:math:`P\,\delta\psi + \sum_i Q_i\,\delta c_i = r_\psi`, species meet only in the fields :math:`\psi`
(the potential and, of finite ions, the pressure):

.. math:: \Big(P - \sum_i Q_i T_i^{-1} M_i\Big)\,\delta\psi = r_\psi - \sum_i Q_i T_i^{-1} r_i .

The matrix on the left is never formed: GMRES needs its products, which take one tridiagonal solve a
species, and converges in a number of iterations that does not depend on the number of species when it is
preconditioned with Gummel's matrix, :math:`P` with the response of ions that move freely,
:math:`V\sum_i q_i^2 c_i`, damped by the share of drift in a time step.

References:
    | Gummel, IEEE Trans. Electron Devices 11, 455 (1964)
    | Saad & Schultz, SIAM J. Sci. Stat. Comput. 7, 856 (1986)
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..finite_volume.jacobian import Jacobian, Tridiagonal
from ..system import State
from .block_tridiagonal import BlockTridiagonal
from .tridiagonal import TridiagonalSolver

TOLERANCE = 1e-11
MOST_ITERATIONS = 200


class ManySpecies:
    """Species by species, and GMRES for the fields.

    Arguments:
        jacobian: At a state with `concentrations` `(B, S, N)` that fields move by `couplings` `(B, S, P)`.
        pinned: Nodes `(B, S)` at which amounts take the place of balances, and the volumes `(B, N)`.
    """

    def __init__(
        self,
        jacobian: Jacobian,
        couplings: Tensor,
        concentrations: Tensor,
        pinned: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._jacobian = jacobian
        migration = jacobian.migration
        if pinned is not None:
            here = torch.nn.functional.one_hot(pinned[0], migration.diagonal.shape[-1]).bool().unsqueeze(2)
            migration = Tridiagonal(*(band.masked_fill(here, 0.0) for band in migration.bands()))
        self._species = _Species(jacobian.transport, pinned)
        self._migration = migration
        self._gummel = _gummel(jacobian, couplings, concentrations)

    def solve(self, species: Tensor, fields: Tensor) -> State:
        """See :class:`~pnp.solvers.linear.Factorisation`."""
        return State(*_Solve.apply(species, fields, self))

    def solved(self, species: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """The solution, without gradients."""
        free = self._species.solve(species)
        rhs = fields - self._charge_of(free)
        potential = gmres(self._apply, self._precondition, rhs)
        return free - self._species.solve(self._moved_by(potential)), potential

    def solved_transposed(self, species: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """The solution with the transposed matrix, without gradients."""
        free = self._species.solve_transposed(species)
        rhs = fields - self._moved_by_transposed(free)
        potential = gmres(self._apply_transposed, self._precondition_transposed, rhs)
        charge = torch.einsum("bpsn,bpn->bsn", self._jacobian.charge, potential)
        return free - self._species.solve_transposed(charge), potential

    def _apply(self, x: Tensor) -> Tensor:
        response = self._species.solve(self._moved_by(x))
        return _times(self._jacobian.fields, x) - self._charge_of(response)

    def _apply_transposed(self, x: Tensor) -> Tensor:
        charge = torch.einsum("bpsn,bpn->bsn", self._jacobian.charge, x)
        response = self._species.solve_transposed(charge)
        return _times(_swapped(self._jacobian.fields), x) - self._moved_by_transposed(response)

    def _charge_of(self, concentrations: Tensor) -> Tensor:
        return torch.einsum("bpsn,bsn->bpn", self._jacobian.charge, concentrations)

    def _moved_by(self, x: Tensor) -> Tensor:
        return (self._migration @ x.unsqueeze(1)).sum(2)

    def _moved_by_transposed(self, concentrations: Tensor) -> Tensor:
        return (self._migration.transposed() @ concentrations.unsqueeze(2)).sum(1)

    def _precondition(self, x: Tensor) -> Tensor:
        return self._gummel.solve(x.transpose(1, 2).unsqueeze(-1)).squeeze(-1).transpose(1, 2)

    def _precondition_transposed(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            probe = torch.zeros_like(x).requires_grad_()
            return torch.autograd.grad(self._precondition(probe), probe, x)[0]


class _Solve(torch.autograd.Function):
    """A linear solve whose backward pass is the transposed one."""

    @staticmethod
    def forward(ctx: Any, species: Tensor, fields: Tensor, matrix: ManySpecies) -> tuple[Tensor, Tensor]:
        ctx.matrix = matrix
        return matrix.solved(species, fields)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        return (*ctx.matrix.solved_transposed(*grads), None)


class _Species:
    """The tridiagonal matrices of all species, each with at most one row that is an amount."""

    def __init__(self, transport: Tridiagonal, pinned: tuple[Tensor, Tensor] | None) -> None:
        self._here = None
        if pinned is not None:
            nodes, volumes = pinned
            self._here = torch.nn.functional.one_hot(nodes, volumes.shape[-1]).bool()
            lower, diagonal, upper = transport.bands()
            transport = Tridiagonal(
                lower.masked_fill(self._here, 0.0),
                diagonal.masked_fill(self._here, 1.0),
                upper.masked_fill(self._here, 0.0),
            )
        self._transport, self._matrix = transport, TridiagonalSolver(transport)
        if self._here is not None:
            unit = self._here.double()
            # The row of amounts is that of the identity and this difference.
            self._difference = volumes[:, None, :] - unit
            self._column = self._matrix.solve(unit)
            self._pivot = (volumes[:, None, :] * self._column).sum(-1, keepdim=True)

    @cached_property
    def _transposed(self) -> TridiagonalSolver:
        return TridiagonalSolver(self._transport.transposed())

    @cached_property
    def _adjoint(self) -> Tensor:
        return self._transposed.solve(self._difference)

    def solve(self, rhs: Tensor) -> Tensor:
        """For `(B, S, N)`."""
        if self._here is None:
            return self._matrix.solve(rhs)
        wanted = (rhs * self._here).sum(-1, keepdim=True)
        free = self._matrix.solve(rhs.masked_fill(self._here, 0.0))
        amount = ((self._difference + self._here) * free).sum(-1, keepdim=True)
        return free + self._column * (wanted - amount) / self._pivot

    def solve_transposed(self, rhs: Tensor) -> Tensor:
        """For `(B, S, N)`, with the transposed matrices."""
        free = self._transposed.solve(rhs)
        if self._here is None:
            return free
        top = (free * self._here).sum(-1, keepdim=True)
        bottom = 1 + (self._adjoint * self._here).sum(-1, keepdim=True)
        return free - self._adjoint * top / bottom


def gmres(apply: Callable[[Tensor], Tensor], precondition: Callable[[Tensor], Tensor], rhs: Tensor) -> Tensor:
    """Solve for a batch of right-hand sides `(B, P, N)`, preconditioned from the right.

    All elements iterate until the last has converged; one whose residual is zero stays where it is.
    """
    size = rhs.flatten(1).norm(dim=-1)
    safe = torch.where(size > 0, size, torch.ones_like(size))
    basis, directions = [rhs / safe[:, None, None]], []
    columns: list[Tensor] = []
    coefficients = torch.zeros_like(rhs[:, 0, :1])
    for iteration in range(min(MOST_ITERATIONS, rhs[0].numel())):
        directions.append(precondition(basis[-1]))
        new = apply(directions[-1])
        column: list[Tensor] = []
        for _ in range(2):  # twice is enough to be orthogonal
            for rank, known in enumerate(basis):
                part = (known * new).flatten(1).sum(-1)
                new = new - part[:, None, None] * known
                if len(column) <= rank:
                    column.append(part)
                else:
                    column[rank] = column[rank] + part
        norm = new.flatten(1).norm(dim=-1)
        columns.append(torch.stack([*column, norm], dim=-1))
        basis.append(new / torch.where(norm > 0, norm, torch.ones_like(norm))[:, None, None])
        hessenberg = torch.stack(
            [torch.nn.functional.pad(one, (0, iteration + 2 - one.shape[-1])) for one in columns], dim=-1
        )
        target = torch.zeros_like(hessenberg[..., 0])
        target[:, 0] = 1.0
        upper, lower = torch.linalg.qr(hessenberg, mode="complete")
        rotated = (upper.transpose(-1, -2) @ target.unsqueeze(-1)).squeeze(-1)
        diagonal = lower[:, : iteration + 1]
        pivot = diagonal.diagonal(dim1=-2, dim2=-1)
        diagonal = diagonal + torch.diag_embed(torch.where(pivot.abs() > 0, 0.0, 1.0))
        coefficients = torch.linalg.solve_triangular(diagonal, rotated[:, :-1, None], upper=True).squeeze(-1)
        if bool((rotated[:, -1].abs() <= TOLERANCE).all() | ~torch.isfinite(norm).all()):
            break
    total = sum(coefficients[:, i, None, None] * one for i, one in enumerate(directions))
    return size[:, None, None] * total


def _gummel(jacobian: Jacobian, couplings: Tensor, concentrations: Tensor) -> BlockTridiagonal:
    """The field equations with ions that respond at once, as far as a time step lets them."""
    transport = jacobian.transport
    # The columns of balances sum to what is stored in a time step, and to zero in a steady state.
    stored = transport.diagonal + _neighbours(transport)
    moved = concentrations * ((transport.diagonal - stored) / transport.diagonal).clamp(0, 1)
    response = torch.einsum("bpsn,bsq,bsn->bpqn", jacobian.charge, couplings, moved)
    lower, diagonal, upper = jacobian.fields.bands()
    return BlockTridiagonal(*(band.permute(0, 3, 1, 2) for band in (lower, diagonal - response, upper)))


def _neighbours(transport: Tridiagonal) -> Tensor:
    """Sum of what each column holds off the diagonal."""
    pad = torch.nn.functional.pad
    return pad(transport.lower[..., 1:], (0, 1)) + pad(transport.upper[..., :-1], (1, 0))


def _times(matrix: Tridiagonal, x: Tensor) -> Tensor:
    """Coupled fields `(B, P, P, N)` times `(B, P, N)`."""
    return (matrix @ x.unsqueeze(1)).sum(2)


def _swapped(matrix: Tridiagonal) -> Tridiagonal:
    turned = matrix.transposed()
    return Tridiagonal(*(band.transpose(1, 2) for band in turned.bands()))
