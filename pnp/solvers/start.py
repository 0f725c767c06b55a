"""Where iterations and time steps start."""

from dataclasses import replace

import torch
from torch import Tensor

from ..elementary import log1p
from ..finite_volume.jacobian import poisson_matrix
from ..finite_volume.residual import poisson_residual
from ..quantity import broadcast_batch
from ..scaling import Scales
from ..solution import Solution
from ..system import CHARGE, CURRENT, End, State, System
from .block_tridiagonal import solved


def start_state(system: System, scales: Scales, initial: Solution | None) -> State:
    """The filling and the potential of an uncharged cell, or the state of `initial`."""
    if initial is not None:
        check_initial(initial, system, scales)
        return scaled_state(system, scales, initial).detach()
    filling = with_baths(system, system.filling[:, :, None].expand(-1, -1, system.volumes.shape[-1]))
    return State(filling, with_pressure(system, filling, laplace_potential(system)))


def scaled_state(system: System, scales: Scales, solution: Solution) -> State:
    """The state of a solution, differentiable where the solution is."""
    concentrations = scales.to_scaled(solution.concentrations)
    potential = scales.to_flat(solution.potential, scales.potential)
    if system.crowding is None or solution.pressure is None:
        return State(concentrations, with_pressure(system, concentrations, potential))
    unit = torch.where(scales.pressure > 0, scales.pressure, torch.ones_like(scales.pressure))
    pressure = scales.to_flat(solution.pressure, unit)
    return State(concentrations, torch.stack([potential, pressure], dim=1))


def with_baths(system: System, concentrations: Tensor) -> Tensor:
    """Concentrations `(B, S, N)` with the end nodes of reservoirs set to their baths."""
    for node, end in system.ends:
        if end.bath is not None:
            here = torch.zeros_like(concentrations)
            here[..., node] = 1.0
            concentrations = concentrations * (1 - here) + here * end.bath.clamp(min=1e-30).unsqueeze(-1)
    return concentrations


def with_pressure(system: System, concentrations: Tensor, potential: Tensor) -> Tensor:
    """Fields `(B, P, N)` from the potential `(B, N)` and the room that ions leave."""
    if system.crowding is None:
        return potential.unsqueeze(1)
    filled = (system.crowding.volumes[:, :, None] * concentrations).sum(1)
    return torch.stack([potential, -log1p(-filled.clamp(max=1 - 1e-12))], dim=1)


def check_initial(initial: Solution, system: System, scales: Scales) -> None:
    """Raise ValueError unless `initial` is a single state on the nodes, species and batch of the system."""
    wanted = (system.filling.shape[-1], system.volumes.shape[-1])
    if initial.times is not None:
        raise ValueError("initial: a transient has many states; take one with solution.at(index).")
    if tuple(initial.concentrations.shape[-2:]) != wanted:
        raise ValueError(
            f"initial: must have (species, node) = {wanted} like the cell and its grid, "
            f"got {tuple(initial.concentrations.shape[-2:])}."
        )
    batch = tuple(initial.status.shape)
    if broadcast_batch(cell=scales.batch_shape, initial=batch) != scales.batch_shape:
        raise ValueError(f"initial: must have the batch axes {tuple(scales.batch_shape)}, got {batch}.")


def laplace_potential(system: System) -> Tensor:
    """Potential without any charge, `(B, N)`."""
    zero = torch.zeros_like(system.volumes)
    bare = replace(system, fixed_charge=zero)
    return poisson_potential(
        bare, torch.zeros_like(zero[:, None, :]).expand(-1, system.valences.shape[1], -1)
    )


def poisson_potential(system: System, concentrations: Tensor, charges: Tensor | None = None) -> Tensor:
    """The potential that satisfies Gauss's law with these concentrations, `(B, N)`; differentiable.

    `charges` `(B, 2)` are those on metals through which a current is driven; default: none.
    """
    system = _holding_charges(system, charges)
    matrix = poisson_matrix(system)
    zero = State(concentrations, torch.zeros_like(system.volumes).unsqueeze(1))
    residual = poisson_residual(system, zero)
    bands = [band[..., None, None] for band in matrix.bands()]
    if system.is_periodic:
        # Held at zero on the left, the sum of all charges closes the ring by itself; the last node is the drop.
        for band, value in zip(bands, (0.0, 1.0, 0.0), strict=True):
            band[:, [0, -1]] = value
    lower, diagonal, upper = bands
    return -solved(lower, diagonal, upper, residual[..., None, None])[..., 0, 0]


def _holding_charges(system: System, charges: Tensor | None) -> System:
    """The same system with the charge given where the current was."""

    def held(end: End, side: int) -> End:
        if end.control != CURRENT:
            return end
        level = torch.zeros_like(end.level) if charges is None else charges[:, side]
        return replace(end, control=CHARGE, level=level, stern_capacitance=None)

    return replace(system, left=held(system.left, 0), right=held(system.right, 1))
