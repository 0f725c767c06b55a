r"""From the user's units to the scaled equations and back; nothing else knows both.

Lengths are in units of the cell's length, potentials in thermal voltages, concentrations in units of the
largest filling, diffusivities in units of the largest, times in :math:`L^2/D`. The scaled permittivity

.. math:: \epsilon = \frac{\varepsilon V_T}{F c_0 L^2}

is the square of a Debye length over the cell's length. Batch axes are flattened to one. Gradients flow
through both directions, so it does not matter which quantity serves as a unit.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .boundaries import Boundary, ChargedWall, Electrode, Periodic, Reservoir
from .cell import Cell, electrons
from .elementary import log
from .grid import Grid
from .quantity import as_quantity, broadcast_batch
from .reactions import ElectrodeReaction, numbers_of
from .system import CHARGE, CURRENT, PERIODIC, POTENTIAL, Batched, Crowding, End, Kinetics, MassAction, System
from .waveforms import at_start


@dataclass(frozen=True, eq=False)
class Scales(Batched):
    """The units, each `(B,)`, and the batch shape that was flattened."""

    length: Tensor
    concentration: Tensor
    potential: Tensor
    diffusivity: Tensor
    charge: Tensor  # per area
    pressure: Tensor
    batch_shape: torch.Size

    @property
    def time(self) -> Tensor:
        """Bulk diffusion time of the fastest species, `(B,)`."""
        return self.length**2 / self.diffusivity

    def to_scaled(self, concentrations: Tensor) -> Tensor:
        """Flatten the batch of `(*batch, S, N)` and scale it."""
        wide = concentrations.expand((*self.batch_shape, *concentrations.shape[-2:]))
        return wide.reshape(-1, *concentrations.shape[-2:]) / self.concentration[:, None, None]

    def to_flat(self, profile: Tensor, unit: Tensor) -> Tensor:
        """Flatten the batch of `(*batch, N)` and divide by `unit` `(B,)`."""
        wide = profile.expand((*self.batch_shape, profile.shape[-1]))
        return wide.reshape(-1, profile.shape[-1]) / unit[:, None]


def scale(cell: Cell, grid: Grid) -> tuple[System, Scales]:
    """Scaled equations of `cell` on `grid` at time zero, and the units they are in.

    Raises ValueError when the batch axes of cell and grid do not broadcast, when the grid does not end at
    the cell's length, when cell and grid do not agree on a ground, when a profile is not positive, or when a
    cell without any electrode to hold a charge is not neutral.
    """
    batch = broadcast_batch(cell=cell.batch_shape, grid=grid.nodes.shape[:-1])
    _check_grid(cell, grid)
    flat = Flattener(cell, batch)
    electrolyte, units = cell.electrolyte, scale_units(cell, batch)
    length, potential, charge = units.length, units.potential, units.charge
    if callable(cell.fixed_charge):
        fixed = cell.fixed_charge(grid.nodes)
        fixed = fixed.expand(*fixed.shape[:-1], grid.nodes.shape[-1])
    else:
        fixed = cell.fixed_charge.unsqueeze(-1)
    system = System(
        valences=flat(electrolyte.valences, 1),
        diffusivities=(flat(electrolyte.diffusivities, 1) / units.diffusivity[:, None])[:, :, None]
        * _diffusivity_profile(cell, grid, flat),
        permittivity=(flat(electrolyte.permittivity) * potential / (charge * length))[:, None]
        * _permittivity_profile(cell, grid, flat),
        fixed_charge=flat(fixed, 1) / units.concentration[:, None],
        filling=flat(cell.concentrations, 1) / units.concentration[:, None],
        spacings=flat(grid.spacings, 1) / length[:, None],
        volumes=flat(_volumes(cell, grid), 1) / length[:, None],
        conserved=None if cell.keeps_amounts else flat(cell.conserved, 2),
        left=_end(cell, cell.left, flat, units),
        right=_end(cell, cell.right, flat, units),
        ground_node=grid.ground_node,
        floats=cell.floats,
        crowding=_crowding(cell, flat, units),
        reactions=_mass_action(cell, flat, units),
    )
    _check_neutral(system)
    return system, units


def scale_units(cell: Cell, batch: torch.Size) -> Scales:
    """The units of a cell whose batch is broadcast to `batch` and flattened."""
    flat, electrolyte = Flattener(cell, batch), cell.electrolyte
    # A unit is no variable: with it, times in units of L²/D would depend on the length.
    length, potential = flat(cell.length).detach(), flat(electrolyte.thermal_voltage)
    concentration = flat(cell.concentrations, 1).detach().amax(-1)
    return Scales(
        length=length,
        concentration=concentration,
        potential=potential,
        diffusivity=flat(electrolyte.diffusivities, 1).detach().amax(-1),
        charge=electrolyte.faraday_constant * concentration * length,
        pressure=_pressure_unit(cell, flat),
        batch_shape=batch,
    )


@dataclass(frozen=True)
class Flattener:
    """Broadcasts to the batch of a cell and flattens it to one axis, on the cell's device."""

    cell: Cell
    batch: torch.Size

    def __call__(self, tensor: Tensor, trailing: int = 0) -> Tensor:
        """`(*batch, ...)` with `trailing` own axes to `(B, ...)`."""
        tensor = tensor.to(self.cell.device)
        shape = tensor.shape[tensor.dim() - trailing :]
        return tensor.expand((*self.batch, *shape)).reshape((self.batch.numel(), *shape))


def end_level(end: Boundary, units: Scales, flat: Flattener, value: Tensor | None = None) -> Tensor:
    """What a boundary imposes, scaled, `(B,)`: at time zero, or the `value` of its waveform."""
    if isinstance(end, ChargedWall):
        return flat(end.charge) / units.charge
    if isinstance(end, Periodic):
        return flat(end.potential_drop) / units.potential
    if isinstance(end, Electrode) and end.current is not None:
        given = at_start(end.current) if value is None else value
        return flat(given) * units.time / units.charge
    given = at_start(end.potential) if value is None else value
    return flat(given) / units.potential


def _end(cell: Cell, end: Boundary, flat: Flattener, units: Scales) -> End:
    level = end_level(end, units, flat)
    if isinstance(end, Reservoir):
        return End(level, POTENTIAL, None, flat(end.concentrations, 1) / units.concentration[:, None], None)
    if not isinstance(end, Electrode):
        return End(level, CHARGE if isinstance(end, ChargedWall) else PERIODIC, None, None, None)
    stern = end.stern_capacitance
    if stern is not None:
        stern = flat(stern) * units.potential / units.charge
    control = POTENTIAL if end.potential is not None else CURRENT
    kinetics = electrode_kinetics(cell, end.reactions, flat, units) if end.reactions else None
    return End(level, control, stern, None, kinetics)


def electrode_kinetics(
    cell: Cell, reactions: Sequence[ElectrodeReaction], flat: Flattener, units: Scales
) -> Kinetics:
    """Reactions at an electrode, scaled."""
    names, rows = cell.electrolyte.names, []
    default = torch.tensor(1.0 if cell.electrolyte.is_dimensionless else 1000.0, dtype=torch.float64)
    for reaction in reactions:
        standard = default if reaction.standard_concentration is None else reaction.standard_concentration
        standard = flat(standard) / units.concentration
        rows.append(
            (
                log(flat(reaction.rate_constant) * units.length / units.diffusivity * standard),
                log(standard),
                flat(reaction.standard_potential) / units.potential,
                flat(reaction.transfer_coefficient),
                flat(electrons(reaction, cell.electrolyte)),
                flat(numbers_of(reaction.oxidised, names, "oxidised"), 1),
                flat(numbers_of(reaction.reduced, names, "reduced"), 1),
            )
        )
    return Kinetics(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))


def _mass_action(cell: Cell, flat: Flattener, units: Scales) -> MassAction | None:
    reactions, names = cell.electrolyte.reactions, cell.electrolyte.names
    if not reactions:
        return None
    rows = []
    for reaction in reactions:
        sides = [numbers_of(side, names, "Reaction") for side in (reaction.reactants, reaction.products)]
        constants = [
            flat(constant) * units.time * units.concentration ** (float(side.sum()) - 1)
            for constant, side in zip((reaction.forward, reaction.backward), sides, strict=True)
        ]
        rows.append((*constants, *(flat(side, 1) for side in sides)))
    return MassAction(*(torch.stack(column, dim=1) for column in zip(*rows, strict=True)))


def _crowding(cell: Cell, flat: Flattener, units: Scales) -> Crowding | None:
    electrolyte = cell.electrolyte
    if not electrolyte.has_finite_ions:
        return None
    volumes = flat(electrolyte.molar_volumes, 1) * units.concentration[:, None]
    solvent = flat(electrolyte.solvent_volume) * units.concentration
    # Elements of the batch whose ions are all points.
    return Crowding(volumes, torch.where(solvent > 0, solvent, torch.ones_like(solvent)))


def _pressure_unit(cell: Cell, flat: Flattener) -> Tensor:
    """RT over the molar volume of the solvent, `(B,)`; infinite without any volume."""
    electrolyte = cell.electrolyte
    solvent = flat(electrolyte.solvent_volume)
    thermal = flat(electrolyte.thermal_voltage) * electrolyte.faraday_constant
    return torch.where(solvent > 0, thermal / torch.where(solvent > 0, solvent, 1.0), 0.0)


def _permittivity_profile(cell: Cell, grid: Grid, flat: Flattener) -> Tensor:
    """Relative permittivity profile on the edges, `(B, E)` or `(B, 1)`."""
    if cell.permittivity_profile is None:
        return flat(torch.ones(1, dtype=torch.float64), 1)
    middles = grid.middles.expand(*flat.batch, -1)
    values = as_quantity(cell.permittivity_profile(middles), "Cell: permittivity_profile", above=0.0)
    return flat(values.expand(torch.broadcast_shapes(values.shape, middles.shape[-1:])), 1)


def _diffusivity_profile(cell: Cell, grid: Grid, flat: Flattener) -> Tensor:
    """`(B, S or 1, E or 1)`."""
    if cell.diffusivity_profile is None:
        return flat(torch.ones(1, 1, dtype=torch.float64), 2)
    middles = grid.middles.expand(*flat.batch, -1)
    values = as_quantity(cell.diffusivity_profile(middles), "Cell: diffusivity_profile", above=0.0)
    if values.dim() > middles.dim():
        return flat(values, 2)
    return flat(values.expand(torch.broadcast_shapes(values.shape, middles.shape[-1:])), 1).unsqueeze(1)


def _volumes(cell: Cell, grid: Grid) -> Tensor:
    """Control volumes; in a periodic cell the first node has those of both ends."""
    volumes = grid.volumes
    if not cell.is_periodic:
        return volumes
    both = volumes[..., :1] + volumes[..., -1:]
    return torch.cat([both, volumes[..., 1:-1], torch.zeros_like(both)], dim=-1)


def _check_neutral(system: System) -> None:
    if not system.floats:
        return
    held = 0.0 if system.is_periodic else system.left.level + system.right.level
    ions, fixed = system.valences * system.amounts, system.volumes * system.fixed_charge
    net = (ions.sum(-1) + fixed.sum(-1) + held).detach()
    size = (ions.abs().sum(-1) + fixed.abs().sum(-1)).detach()
    if bool((net.abs() > 1e-9 * size).any()):
        raise ValueError(
            "Cell: without electrode, bath or ground nothing can hold a charge, so ions, fixed charge and walls must "
            f"be neutral together, but {(net.abs() / size).max().item():.2g} of the charge is left over."
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
