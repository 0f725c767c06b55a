r"""What must vanish: the balance of every species and Gauss's law in every control volume.

.. math::
    V_k\,(c_{i,k} - c^\mathrm{known}_{i,k}) + \tau\,(J_{i,k+1/2} - J_{i,k-1/2}) &= 0 \\
    \epsilon\frac{\phi_k - \phi_{k+1}}{h_{k+1/2}} + \epsilon\frac{\phi_k - \phi_{k-1}}{h_{k-1/2}}
    - V_k\Big(\sum_i z_i c_{i,k} + \rho_k\Big) &= 0

Blocking walls have no flux across the outer face of their half volume. A potential that is held (electrode
without Stern layer, reservoir, ground) replaces Gauss's law at its node, a bath replaces the balances.
"""

import torch
from torch import Tensor

from ..scaling import State, System
from .fluxes import scharfetter_gummel


def ion_fluxes(system: System, state: State) -> Tensor:
    """Fluxes across the edges, positive to the right, shape `(B, S, E)`."""
    c = state.concentrations
    mobility, drop = edge_coefficients(system, state)
    return scharfetter_gummel(mobility, drop, c[..., :-1], c[..., 1:])


def edge_coefficients(system: System, state: State) -> tuple[Tensor, Tensor]:
    """Mobilities D/h and potential drops z dphi of the edges, `(B, S, E)` each."""
    mobility = system.diffusivities[:, :, None] / system.spacings[:, None, :]
    return mobility, system.valences[:, :, None] * state.potential.diff(dim=-1)[:, None, :]


def divergence(fluxes: Tensor) -> Tensor:
    """Outflow of every control volume with blocking outer faces, `(..., E)` to `(..., N)`."""
    return torch.nn.functional.pad(fluxes, (0, 1)) - torch.nn.functional.pad(fluxes, (1, 0))


def charge_density(system: System, state: State) -> Tensor:
    """Mobile and fixed charge, shape `(B, N)`."""
    return (system.valences[:, :, None] * state.concentrations).sum(1) + system.fixed_charge


def gauss_defect(system: System, state: State) -> Tensor:
    """Flux of displacement out of every control volume minus the charge in it, shape `(B, N)`.

    At an inner node it vanishes; at an electrode it is the charge on the metal, at the ground its charge.
    """
    displacement = -system.permittivity[:, None] * state.potential.diff(dim=-1) / system.spacings
    return divergence(displacement) - system.volumes * charge_density(system, state)


def species_residual(
    system: System, state: State, *, known: Tensor | None = None, step: Tensor | None = None
) -> Tensor:
    """Balances of the species, `(B, S, N)`: of a steady state, or of an implicit step from `known`."""
    residual = divergence(ion_fluxes(system, state))
    if known is not None and step is not None:
        change = system.volumes[:, None, :] * (state.concentrations - known)
        residual = change + step[:, None, None] * residual
    for node, end in ((0, system.left), (-1, system.right)):
        if end.bath is not None:
            residual = _replace(residual, node, state.concentrations[..., node] - end.bath)
    return residual


def poisson_residual(system: System, state: State) -> Tensor:
    """Gauss's law at every node, or the potential that is held there, shape `(B, N)`."""
    residual = gauss_defect(system, state)
    for node, end in ((0, system.left), (-1, system.right)):
        excess = state.potential[:, node] - end.potential
        if end.stern_capacitance is not None:
            excess = residual[:, node] + end.stern_capacitance * excess
        residual = _replace(residual, node, excess)
    if system.ground_node is not None:
        residual = _replace(residual, system.ground_node, state.potential[:, system.ground_node])
    return residual


def held_nodes(system: System) -> list[int]:
    """Indices of the nodes whose potential is given."""
    nodes = [node for node, end in ((0, system.left), (-1, system.right)) if end.holds_potential]
    return nodes if system.ground_node is None else [*nodes, system.ground_node]


def _replace(tensor: Tensor, node: int, value: Tensor) -> Tensor:
    changed = tensor.clone()
    changed[..., node] = value
    return changed
