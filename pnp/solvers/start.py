"""Where iterations and time steps start."""

import torch
from torch import Tensor

from ..finite_volume.jacobian import poisson_matrix
from ..finite_volume.residual import poisson_residual
from ..quantity import broadcast_batch
from ..scaling import Scales, State, System
from ..solution import Solution
from .block_tridiagonal import BlockTridiagonal


def start_state(system: System, scales: Scales, initial: Solution | None) -> State:
    """The filling and the potential of an uncharged cell, or the state of `initial`."""
    nodes = system.volumes.shape[-1]
    if initial is not None:
        check_initial(initial, system, scales)
        return scales.to_scaled(initial.concentrations.detach(), initial.potential.detach()).detach()
    filling = system.filling[:, :, None].expand(-1, -1, nodes).clone()
    for node, end in ((0, system.left), (-1, system.right)):
        if end.bath is not None:
            filling[..., node] = end.bath.clamp(min=1e-30)
    return State(filling, laplace_potential(system))


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
    uncharged = State(torch.zeros_like(system.volumes)[:, None, :], torch.zeros_like(system.volumes))
    bare = System(**{**vars(system), "valences": system.valences[:, :1], "fixed_charge": uncharged.potential})
    return poisson_potential(bare, uncharged.concentrations)


def poisson_potential(system: System, concentrations: Tensor) -> Tensor:
    """The potential that satisfies Gauss's law with these concentrations, `(B, N)`; differentiable."""
    matrix = poisson_matrix(system)
    bands = (band[..., None, None] for band in (matrix.lower, matrix.diagonal, matrix.upper))
    zero = State(concentrations, torch.zeros_like(system.volumes))
    residual = poisson_residual(system, zero)
    return -BlockTridiagonal(*bands).solve(residual[..., None, None])[..., 0, 0]
