r"""From the user's units to the scaled equations and back; nothing else knows both.

Lengths are in units of the cell's length, potentials in thermal voltages, concentrations in units of the
largest filling, diffusivities in units of the largest, times in :math:`L^2/D`. The scaled permittivity

.. math:: \epsilon = \frac{\varepsilon V_T}{F c_0 L^2}

is the square of a Debye length over the cell's length. Batch axes are flattened to one. Gradients flow
through both directions, so it does not matter which quantity serves as a unit.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .boundaries import Boundary, Reservoir
from .cell import Cell
from .grid import Grid
from .quantity import broadcast_batch


@dataclass(frozen=True, eq=False)
class Batched:
    """A dataclass of tensors that share their first axis."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Any:
        """Apply `function` to every tensor inside."""
        changed = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changed[part.name] = function(value)
            elif isinstance(value, Batched):
                changed[part.name] = value.map(function)
        return replace(self, **changed)

    def select(self, elements: Tensor) -> Any:
        """The batch elements with these indices."""
        return self.map(lambda tensor: tensor.index_select(0, elements))

    def replaced(self, elements: Tensor, other: Any) -> Any:
        """With the batch elements of these indices taken from `other`, which holds them alone."""
        changed = {}
        for part in fields(self):
            value, new = getattr(self, part.name), getattr(other, part.name)
            if isinstance(value, Tensor):
                changed[part.name] = value.index_copy(0, elements, new)
            elif isinstance(value, Batched):
                changed[part.name] = value.replaced(elements, new)
        return replace(self, **changed)

    def detach(self) -> Any:
        """The same numbers without gradients."""
        return self.map(Tensor.detach)

    def requires_grad(self) -> bool:
        """Whether any tensor inside requires a gradient."""
        values = (getattr(self, part.name) for part in fields(self))
        return any(
            value.requires_grad if isinstance(value, Tensor) else value.requires_grad()
            for value in values
            if isinstance(value, Tensor | Batched)
        )


@dataclass(frozen=True, eq=False)
class End(Batched):
    """One boundary, scaled: potential `(B,)`, Stern capacitance `(B,)` or None, bath `(B, S)` or None."""

    potential: Tensor
    stern_capacitance: Tensor | None
    bath: Tensor | None

    @property
    def holds_potential(self) -> bool:
        """Whether the potential of the end node is given (no Stern layer in between)."""
        return self.stern_capacitance is None


@dataclass(frozen=True, eq=False)
class System(Batched):
    """All numbers of the scaled equations on a grid, for a flat batch of B cells."""

    valences: Tensor  # (B, S)
    diffusivities: Tensor  # (B, S)
    permittivity: Tensor  # (B,)
    fixed_charge: Tensor  # (B, N)
    filling: Tensor  # (B, S)
    spacings: Tensor  # (B, N - 1)
    volumes: Tensor  # (B, N)
    left: End
    right: End
    ground_node: int | None

    @property
    def is_closed(self) -> bool:
        """Whether both ends are blocking."""
        return self.left.bath is None and self.right.bath is None

    @property
    def amounts(self) -> Tensor:
        """Amounts of the filling, shape `(B, S)`."""
        return self.filling * self.volumes.sum(-1, keepdim=True)


@dataclass(frozen=True, eq=False)
class State(Batched):
    """Scaled concentrations `(B, S, N)` and potential `(B, N)`."""

    concentrations: Tensor
    potential: Tensor


@dataclass(frozen=True, eq=False)
class Scales(Batched):
    """The units, each `(B,)`, and the batch shape that was flattened."""

    length: Tensor
    concentration: Tensor
    potential: Tensor
    diffusivity: Tensor
    batch_shape: torch.Size

    @property
    def time(self) -> Tensor:
        """Bulk diffusion time of the fastest species, `(B,)`."""
        return self.length**2 / self.diffusivity

    def to_scaled(self, concentrations: Tensor, potential: Tensor) -> State:
        """Flatten the batch of `(*batch, S, N)` and `(*batch, N)` and scale it."""
        concentrations = concentrations.expand((*self.batch_shape, *concentrations.shape[-2:]))
        potential = potential.expand((*self.batch_shape, potential.shape[-1]))
        return State(
            concentrations.reshape(-1, *concentrations.shape[-2:]) / self.concentration[:, None, None],
            potential.reshape(-1, potential.shape[-1]) / self.potential[:, None],
        )

    def to_user(self, state: State) -> tuple[Tensor, Tensor]:
        """Concentrations `(*batch, S, N)` and potential `(*batch, N)` in the user's units."""
        concentrations = state.concentrations * self.concentration[:, None, None]
        potential = state.potential * self.potential[:, None]
        return (
            concentrations.reshape(*self.batch_shape, *concentrations.shape[1:]),
            potential.reshape(*self.batch_shape, *potential.shape[1:]),
        )


def scale(cell: Cell, grid: Grid) -> tuple[System, Scales]:
    """Scaled equations of `cell` on `grid`, and the units they are in.

    Raises ValueError when the batch axes of cell and grid do not broadcast, when the grid does not end at
    the cell's length, when cell and grid do not agree on a ground, or when a species has a diameter.
    """
    _check_point_ions(cell)
    batch = broadcast_batch(cell=cell.batch_shape, grid=grid.nodes.shape[:-1])
    _check_grid(cell, grid)

    def flat(tensor: Tensor, trailing: int = 0) -> Tensor:
        tensor = tensor.to(cell.device)
        shape = tensor.shape[tensor.dim() - trailing :]
        return tensor.expand((*batch, *shape)).reshape((-1, *shape))

    electrolyte = cell.electrolyte
    # A unit is no variable: with it, times in units of L²/D would depend on the length.
    length, potential = flat(cell.length).detach(), flat(electrolyte.thermal_voltage)
    filling, diffusivities = flat(cell.concentrations, 1), flat(electrolyte.diffusivities, 1)
    concentration = filling.detach().amax(-1)
    diffusivity = diffusivities.detach().amax(-1)
    charge = electrolyte.faraday_constant * concentration * length

    def end(boundary: Boundary) -> End:
        volts = flat(boundary.potential) / potential
        if isinstance(boundary, Reservoir):
            return End(volts, None, flat(boundary.concentrations, 1) / concentration[:, None])
        if boundary.stern_capacitance is None:
            return End(volts, None, None)
        return End(volts, flat(boundary.stern_capacitance) * potential / charge, None)

    fixed = cell.fixed_charge(grid.nodes) if callable(cell.fixed_charge) else cell.fixed_charge.unsqueeze(-1)
    system = System(
        valences=flat(electrolyte.valences, 1),
        diffusivities=diffusivities / diffusivity[:, None],
        permittivity=flat(electrolyte.permittivity) * potential / (charge * length),
        fixed_charge=flat(fixed.expand(*fixed.shape[:-1], grid.nodes.shape[-1]), 1) / concentration[:, None],
        filling=filling / concentration[:, None],
        spacings=flat(grid.spacings, 1) / length[:, None],
        volumes=flat(grid.volumes, 1) / length[:, None],
        left=end(cell.left),
        right=end(cell.right),
        ground_node=grid.ground_node,
    )
    return system, Scales(length, concentration, potential, diffusivity, batch)


def _check_point_ions(cell: Cell) -> None:
    for species in cell.electrolyte.species:
        if bool((species.diameter != 0).any()):
            raise ValueError(
                f"Species({species.name!r}): diameter must be 0, got {species.diameter.max().item():g}; "
                "this version solves for point ions only."
            )


def _check_grid(cell: Cell, grid: Grid) -> None:
    if (cell.ground is None) != (grid.ground_node is None):
        raise ValueError("grid: the cell has a ground and the grid has no node for it, or the reverse.")
    end = grid.nodes[..., -1].detach().to(cell.device)
    if bool(((end - cell.length.detach().to(cell.device)).abs() > 1e-9 * end).any()):
        raise ValueError(
            f"grid: must end at the cell's length, {cell.length.max().item():g}, "
            f"but ends at {end.max().item():g}."
        )
    if grid.ground_node is None:
        return
    place = grid.nodes[..., grid.ground_node].detach().to(cell.device)
    if bool(((place - cell.ground.detach().to(cell.device)).abs() > 1e-9 * end).any()):
        raise ValueError(
            f"grid: node {grid.ground_node} must lie at the ground of the cell, {cell.ground.max().item():g}, "
            f"but lies at {place.max().item():g}."
        )
