"""Newton updates: solution of the linearised equations for a residual of species and potential.

Every factorisation offers `solve(species, poisson) -> State`, differentiable with respect to the residual,
which is all that an implicit gradient needs.
"""

from typing import Protocol

import torch
from torch import Tensor

from ..finite_volume.jacobian import Jacobian, Tridiagonal
from ..scaling import State, System
from .block_tridiagonal import BlockTridiagonal

FEW_SPECIES = 6
"""Up to here blocks of all species and the potential are cheaper than eliminating the species one by one."""


class Factorisation(Protocol):
    """A matrix that has been factorised."""

    def solve(self, species: Tensor, poisson: Tensor) -> State:
        """Update for a residual of the species `(B, S, N)` and of Gauss's law `(B, N)`."""
        ...


def factorise(jacobian: Jacobian) -> Factorisation:
    """The cheaper of the two eliminations for this number of species."""
    few = jacobian.charge.shape[1] <= FEW_SPECIES
    return CoupledElimination(jacobian) if few else SpeciesElimination(jacobian)


class CoupledElimination:
    """Blocks of S concentrations and the potential at every node, eliminated together."""

    def __init__(self, jacobian: Jacobian) -> None:
        self._matrix = BlockTridiagonal(*_blocks(jacobian))

    def solve(self, species: Tensor, poisson: Tensor) -> State:
        """See :class:`Factorisation`."""
        x = self.solve_columns(torch.cat([species, poisson.unsqueeze(1)], dim=1).unsqueeze(-1))[..., 0]
        return State(x[:, :-1], x[:, -1])

    def solve_columns(self, rhs: Tensor) -> Tensor:
        """Solve for `(B, S + 1, N, k)`, potential last."""
        return self._matrix.solve(rhs.transpose(1, 2)).transpose(1, 2)


class SpeciesElimination:
    r"""Every species eliminated by its own tridiagonal matrix, then one dense system for the potential.

    With :math:`T_i\,\delta c_i + M_i\,\delta\phi = r_i` and
    :math:`P\,\delta\phi + \sum_i Q_i\,\delta c_i = r_\phi`,

    .. math:: \Big(P - \sum_i Q_i T_i^{-1} M_i\Big)\,\delta\phi = r_\phi - \sum_i Q_i T_i^{-1} r_i .

    Species meet only in the potential, so the cost is linear in their number, :math:`S N^2 + N^3`.
    """

    def __init__(self, jacobian: Jacobian) -> None:
        self._charge = jacobian.charge
        self._matrix = BlockTridiagonal(*(_scalar_blocks(part) for part in _bands(jacobian.transport)))
        self._response = self._matrix.solve(jacobian.migration.dense().unsqueeze(-2)).squeeze(-2)
        schur = jacobian.poisson.dense() - torch.einsum("bsn,bsnm->bnm", self._charge, self._response)
        self._scale = 1 / schur.abs().amax(-1, keepdim=True)
        self._schur = torch.linalg.lu_factor_ex(schur * self._scale)[:2]

    def solve(self, species: Tensor, poisson: Tensor) -> State:
        """See :class:`Factorisation`."""
        free = self._matrix.solve(species[..., None, None])[..., 0, 0]
        rhs = poisson - (self._charge * free).sum(1)
        potential = torch.linalg.lu_solve(*self._schur, self._scale * rhs.unsqueeze(-1))[..., 0]
        return State(free - torch.einsum("bsnm,bm->bsn", self._response, potential), potential)


def most_populated(state: State) -> Tensor:
    """Index of the node where each species is most populated, `(B, S)`."""
    return state.concentrations.argmax(-1)


def pin_amounts(residual: Tensor, system: System, state: State, amounts: Tensor) -> Tensor:
    """Replace the balance at the most populated node of every species by the amount that is missing."""
    missing = (system.volumes[:, None, :] * state.concentrations).sum(-1) - amounts
    return residual.scatter(-1, most_populated(state).unsqueeze(-1), missing.unsqueeze(-1))


class PinnedAmounts:
    r"""The matrix of a closed cell in which an amount replaces one redundant balance per species.

    The balances of a species sum to the change of its amount, so one of them, at the node where the species
    is most populated (at a depleted node the matrix would be singular), gives way to
    :math:`\sum_k V_k\,\delta c_{i,k} = r_i`. The factorised matrix has :math:`\delta c = \alpha_i` there
    instead; the :math:`\alpha` follow from S more right-hand sides.

    Arguments:
        jacobian: At `state`, without the replacement.
    """

    def __init__(self, jacobian: Jacobian, system: System, state: State) -> None:
        pinned = most_populated(state)
        self._pinned, self._volumes = pinned, system.volumes
        here = torch.nn.functional.one_hot(pinned, system.volumes.shape[-1]).to(torch.bool)
        transport, migration = jacobian.transport, jacobian.migration
        for part in (transport.lower, transport.upper, migration.lower, migration.diagonal, migration.upper):
            part.masked_fill_(here, 0.0)
        transport.diagonal.masked_fill_(here, 1.0)
        self._matrix = CoupledElimination(jacobian)
        batch, species, nodes = here.shape
        unit = here.new_zeros(batch, species + 1, nodes, species, dtype=torch.float64)
        unit[:, :species] = torch.diag_embed(here.transpose(1, 2).double()).transpose(1, 2)
        self._columns = self._matrix.solve_columns(unit)
        self._amounts = torch.linalg.inv_ex(self._amount_of(self._columns[:, :species])).inverse
        self._here = here

    def solve(self, species: Tensor, poisson: Tensor) -> State:
        """See :class:`Factorisation`; the pinned rows of `species` hold the amount residuals."""
        amounts = species.gather(-1, self._pinned.unsqueeze(-1)).squeeze(-1)
        free = self._matrix.solve(species.masked_fill(self._here, 0.0), poisson)
        missing = amounts - self._amount_of(free.concentrations.unsqueeze(-1)).squeeze(-1)
        alpha = (self._amounts @ missing.unsqueeze(-1)).squeeze(-1)
        correction = torch.einsum("bsnk,bk->bsn", self._columns, alpha)
        return State(free.concentrations + correction[:, :-1], free.potential + correction[:, -1])

    def _amount_of(self, concentrations: Tensor) -> Tensor:
        return (self._volumes[:, None, :, None] * concentrations).sum(-2)


def _bands(matrix: Tridiagonal) -> tuple[Tensor, Tensor, Tensor]:
    return matrix.lower, matrix.diagonal, matrix.upper


def _scalar_blocks(band: Tensor) -> Tensor:
    return band[..., None, None]


def _blocks(jacobian: Jacobian) -> list[Tensor]:
    """Lower, diagonal and upper blocks, `(B, N, S + 1, S + 1)`."""
    batch, species, nodes = jacobian.charge.shape
    blocks = []
    for transport, migration, poisson in zip(
        _bands(jacobian.transport), _bands(jacobian.migration), _bands(jacobian.poisson), strict=True
    ):
        block = transport.new_zeros(batch, nodes, species + 1, species + 1)
        block[..., :species, :species] = torch.diag_embed(transport.transpose(1, 2))
        block[..., :species, species] = migration.transpose(1, 2)
        block[..., species, species] = poisson
        blocks.append(block)
    blocks[1][..., species, :species] = jacobian.charge.transpose(1, 2)
    return blocks
