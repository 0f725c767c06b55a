"""Newton updates: solution of the linearised equations for a residual of species and fields.

Every factorisation offers `solve(species, fields) -> State`, differentiable with respect to the residual,
which is all that an implicit gradient needs.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..finite_volume.jacobian import Jacobian
from ..finite_volume.residual import imbalance
from ..system import State, System
from .block_tridiagonal import BlockTridiagonal
from .many_species import ManySpecies

FEW_SPECIES = 6
"""Up to here blocks of all species and fields are cheaper than eliminating the species one by one."""


class Factorisation(Protocol):
    """A matrix that has been factorised."""

    def solve(self, species: Tensor, fields: Tensor) -> State:
        """Update for a residual of the species `(B, S, N)` and of the fields `(B, P, N)`."""
        ...


@dataclass(frozen=True, eq=False)
class Pins:
    r"""Where conserved combinations of amounts take the place of redundant balances.

    The balances of a conserved combination sum to nothing, so one of them, at the node where the species
    that is its own is most populated (at a depleted node the matrix would be singular), gives way to
    :math:`\sum_i m_i \sum_k V_k c_{i,k} = N`.

    Attributes:
        system: Whose amounts they are.
        species, nodes: Of the balances that give way, `(B, L)` each.
    """

    system: System
    species: Tensor
    nodes: Tensor

    @classmethod
    def of(cls, system: System, state: State) -> "Pins":
        """The pins of a system at a state."""
        c = state.concentrations.detach()
        if system.is_periodic:  # where the end nodes are not balances of their own
            c = c.clone()
            c[..., [0, -1]] = 0.0
        nodes = c.argmax(-1)
        if system.conserved is None:
            species = torch.arange(c.shape[1], device=c.device).expand(c.shape[0], -1)
            return cls(system, species, nodes)
        own = (system.conserved == 1) & ((system.conserved != 0).sum(1, keepdim=True) == 1)
        species = own.int().argmax(-1)
        return cls(system, species, nodes.gather(1, species))

    def amounts(self, concentrations: Tensor) -> Tensor:
        """The conserved combinations, `(B, L, k)`, of columns `(B, S, N, k)` of concentrations."""
        return self.system.combined(torch.einsum("bn,bsnk->bsk", self.system.volumes, concentrations))

    def index(self, nodes: int) -> Tensor:
        """Position of the rows in `(S N)` flattened, `(B, L)`."""
        return self.species * nodes + self.nodes

    def put(self, residual: Tensor, value: Tensor) -> Tensor:
        """Replace the rows of `residual` `(B, S, N)` by `value` `(B, L)`."""
        flat = residual.flatten(1).scatter(1, self.index(residual.shape[-1]), value)
        return flat.reshape(residual.shape)

    def take(self, residual: Tensor) -> Tensor:
        """The rows of `residual` `(B, S, N)`, `(B, L)`."""
        return residual.flatten(1).gather(1, self.index(residual.shape[-1]))


def pin_amounts(residual: Tensor, system: System, state: State, amounts: Tensor) -> Tensor:
    """Put what is missing from the conserved combinations `amounts` `(B, L)` in the place of balances."""
    pins = Pins.of(system, state)
    return pins.put(residual, pins.amounts(state.concentrations.unsqueeze(-1)).squeeze(-1) - amounts)


def pinned_imbalance(
    system: System, state: State, residual: Tensor, amounts: Tensor, step: Tensor | None = None
) -> Tensor:
    """Relative imbalance of the balances that are solved for, and of the amounts that stand for others, `(B,)`.

    Amounts count a hundredfold, because their errors stay.
    """
    if not system.laws:
        return imbalance(system, state, residual, step)
    pins = Pins.of(system, state)
    rest = pins.put(residual, torch.zeros_like(amounts))
    missing = pins.amounts(state.concentrations.unsqueeze(-1)).squeeze(-1) - amounts
    size = system.amounts if system.conserved is None else system.amounts.amax(-1, keepdim=True)
    return torch.maximum(imbalance(system, state, rest, step), 100 * (missing.abs() / size).amax(-1))


def factorise(system: System, state: State, jacobian: Jacobian, *, pinned: bool) -> Factorisation:
    """The cheapest elimination for this system, with amounts in the place of balances if `pinned`."""
    pins = Pins.of(system, state) if pinned and system.laws else None
    coupled = system.has_kinetics or system.is_periodic
    if coupled or jacobian.charge.shape[2] <= FEW_SPECIES:
        border = pins is not None or system.is_periodic
        return Bordered(system, jacobian, pins) if border else Coupled(jacobian)
    amounts = None if pins is None else (pins.nodes, system.volumes)
    return ManySpecies(jacobian, system.couplings, state.concentrations, amounts)


class Coupled:
    """Blocks of S concentrations and P fields at every node, eliminated together."""

    def __init__(self, jacobian: Jacobian) -> None:
        self._species = jacobian.charge.shape[2]
        self._matrix = BlockTridiagonal(*_blocks(jacobian))

    def solve(self, species: Tensor, fields: Tensor) -> State:
        """See :class:`Factorisation`."""
        rhs = torch.cat([species, fields], dim=1).transpose(1, 2).unsqueeze(-1)
        return _split(self._matrix.solve(rhs).squeeze(-1), self._species)


class Bordered:
    r"""Blocks with a few rows that reach across the cell: amounts, and the seam of a periodic cell.

    The matrix is factorised with :math:`x = \alpha_r` in the place of row *r*; the :math:`\alpha` follow from
    the rows themselves and one more right-hand side each.
    """

    def __init__(self, system: System, jacobian: Jacobian, pins: Pins | None) -> None:
        lower, diagonal, upper = _blocks(jacobian)
        batch, nodes, size = diagonal.shape[:3]
        self._species, self._pins, self._periodic = jacobian.charge.shape[2], pins, system.is_periodic
        replaced = torch.zeros(batch, nodes, size, dtype=torch.bool, device=diagonal.device)
        units = []
        if pins is not None:
            batches = torch.arange(batch, device=diagonal.device)[:, None]
            replaced[batches, pins.nodes, pins.species] = True
            unit = diagonal.new_zeros(batch, nodes, size, pins.nodes.shape[1])
            unit[batches, pins.nodes, pins.species, torch.arange(unit.shape[-1], device=unit.device)] = 1.0
            units.append(unit)
        if self._periodic:
            self._seam = (lower[:, -1], diagonal[:, -1], diagonal[:, 0], upper[:, 0])
            replaced[:, [0, -1]] = True
            unit = diagonal.new_zeros(batch, nodes, size, size)
            unit[:, [0, -1]] = torch.eye(size, dtype=unit.dtype, device=unit.device)
            units.append(unit)
        kept = (~replaced).unsqueeze(-1)
        eye = torch.eye(size, dtype=diagonal.dtype, device=diagonal.device)
        self._replaced = replaced.unsqueeze(-1)
        self._matrix = BlockTridiagonal(lower * kept, torch.where(kept, diagonal, eye), upper * kept)
        self._columns = self._matrix.solve(torch.cat(units, dim=-1))
        self._border = torch.linalg.inv_ex(self._rows(self._columns)).inverse

    def solve(self, species: Tensor, fields: Tensor) -> State:
        """See :class:`Factorisation`; the replaced rows hold the residuals of what replaces them."""
        rhs = torch.cat([species, fields], dim=1).transpose(1, 2).unsqueeze(-1)
        targets = [] if self._pins is None else [self._pins.take(species)]
        inner = rhs.masked_fill(self._replaced, 0.0)
        if self._periodic:
            targets.append(rhs[:, 0].squeeze(-1))
            inner = torch.cat([inner[:, :-1], rhs[:, -1:]], dim=1)
        free = self._matrix.solve(inner)
        missing = torch.cat(targets, dim=-1).unsqueeze(-1) - self._rows(free)
        x = free.squeeze(-1) + torch.einsum(
            "bnmk,bk->bnm", self._columns, (self._border @ missing).squeeze(-1)
        )
        return _split(x, self._species)

    def _rows(self, x: Tensor) -> Tensor:
        """The rows that were replaced, times columns `(B, N, m, k)`, `(B, r, k)`."""
        rows = []
        if self._pins is not None:
            rows.append(self._pins.amounts(x[:, :, : self._species].transpose(1, 2)))
        if self._periodic:
            before, last, first, after = self._seam
            seam = before @ x[:, -2] + last @ x[:, -1] + first @ x[:, 0] + after @ x[:, 1]
            # The potential of the seam is given, instead of Gauss's law there.
            potential = self._species
            seam = torch.cat([seam[:, :potential], x[:, 0, [potential]], seam[:, potential + 1 :]], dim=1)
            rows.append(seam)
        return torch.cat(rows, dim=1)


def _split(x: Tensor, species: int) -> State:
    """Concentrations and fields of `(B, N, S + P)`."""
    x = x.transpose(1, 2)
    return State(x[:, :species], x[:, species:])


def _blocks(jacobian: Jacobian) -> list[Tensor]:
    """Lower, diagonal and upper blocks, `(B, N, S + P, S + P)`."""
    batch, fields, species, nodes = jacobian.charge.shape
    size, blocks = species + fields, []
    for transport, migration, coupling in zip(
        jacobian.transport.bands(), jacobian.migration.bands(), jacobian.fields.bands(), strict=True
    ):
        block = transport.new_zeros(batch, nodes, size, size)
        block[..., :species, :species] = torch.diag_embed(transport.transpose(1, 2))
        block[..., :species, species:] = migration.permute(0, 3, 1, 2)
        block[..., species:, species:] = coupling.permute(0, 3, 1, 2)
        blocks.append(block)
    blocks[1][..., species:, :species] = jacobian.charge.permute(0, 3, 1, 2)
    if jacobian.kinetics is not None:
        blocks[1][..., :species, :species] += jacobian.kinetics.permute(0, 3, 1, 2)
    return blocks
