r"""What must vanish: the balance of every species, Gauss's law, and the room that ions take.

.. math::
    V_k\,(c_{i,k} - c^\mathrm{known}_{i,k})
        + \tau\,(J_{i,k+1/2} - J_{i,k-1/2} - V_k R_{i,k} - A_{i,k}) &= 0 \\
    \epsilon\frac{\phi_k - \phi_{k+1}}{h_{k+1/2}} + \epsilon\frac{\phi_k - \phi_{k-1}}{h_{k-1/2}}
    - V_k\Big(\sum_i z_i c_{i,k} + \rho_k\Big) &= 0 \\
    \frac{V_k}{v_0}\Big(1 - e^{-p_k} - \sum_i v_i c_{i,k}\Big) &= 0

:math:`R` is what reactions make in the electrolyte and :math:`A` at the electrodes; there is no other flux
across the outer face of a wall's half volume. A potential that is held (electrode without Stern layer,
reservoir, ground) replaces Gauss's law at its node, a bath replaces the balances, and where a current is
given, the charge on the metal takes the place of its potential,

.. math:: \sigma - \sigma^\mathrm{known} - \tau\,(\pm I + \sum_r n_r r) = 0 .

In a periodic cell the two end nodes are one: the first has the balances of both, the last copies the first.
"""

import torch
from torch import Tensor

from ..elementary import expm1
from ..system import CHARGE, CURRENT, PERIODIC, End, State, System
from .fluxes import scharfetter_gummel
from .kinetics import Production, butler_volmer, log_activities, mass_action


def ion_fluxes(system: System, state: State) -> Tensor:
    """Fluxes across the edges, positive to the right, shape `(B, S, E)`."""
    c = state.concentrations
    mobility, drop = edge_coefficients(system, state)
    return scharfetter_gummel(mobility, drop, c[..., :-1], c[..., 1:])


def edge_coefficients(system: System, state: State) -> tuple[Tensor, Tensor]:
    """Mobilities D/h and drops z dphi + w dp of the edges, `(B, S, E)` each."""
    mobility = system.diffusivities / system.spacings[:, None, :]
    drops = state.fields.diff(dim=-1)
    couplings = system.couplings
    drop = couplings[:, :, :1] * drops[:, :1]
    if system.crowding is not None:
        drop = drop + couplings[:, :, 1:] * drops[:, 1:]
    return mobility, drop


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
    displacement = -system.permittivity * state.potential.diff(dim=-1) / system.spacings
    return _folded(system, divergence(displacement)) - system.volumes * charge_density(system, state)


def electrode_production(system: System, state: State, node: int, end: End) -> Production | None:
    """What the reactions at one end make; None where there are none."""
    if end.kinetics is None:
        return None
    logs = log_activities(system, State(state.concentrations[..., [node]], state.fields[..., [node]]))
    return butler_volmer(end.kinetics, logs.squeeze(-1), potential_step(system, state, node, end))


def potential_step(system: System, state: State, node: int, end: End) -> Tensor:
    """Potential of the metal over that of the end node, which a Stern layer carries, `(B,)`."""
    if end.stern_capacitance is None:
        return torch.zeros_like(end.level)
    if end.control == CURRENT:
        return gauss_defect(system, state)[:, node] / end.stern_capacitance
    return end.level - state.potential[:, node]


def charging_rate(system: System, state: State, node: int, end: End) -> Tensor:
    """Rate of change of the charge on a metal through which a current is driven, `(B,)`."""
    rate = end.level if node == 0 else -end.level
    made = electrode_production(system, state, node, end)
    return rate if made is None else rate + made.charge.squeeze(-1)


def balances(system: System, state: State) -> Tensor:
    """Outflow of every species from every control volume, less what reactions make there, `(B, S, N)`."""
    out = _folded(system, divergence(ion_fluxes(system, state)))
    if system.reactions is not None:
        made = mass_action(system.reactions, log_activities(system, state))
        out = out - system.volumes[:, None, :] * made.species
    for node, end in system.ends:
        at_wall = electrode_production(system, state, node, end)
        if at_wall is not None:
            out = _replace(out, node, out[..., node] - at_wall.species.squeeze(-1))
    return out


def species_residual(
    system: System, state: State, *, known: Tensor | None = None, step: Tensor | None = None
) -> Tensor:
    """Balances of the species, `(B, S, N)`: of a steady state, or of an implicit step from `known`."""
    c = state.concentrations
    residual = balances(system, state)
    if known is not None and step is not None:
        residual = system.volumes[:, None, :] * (c - known) + step[:, None, None] * residual
    for node, end in system.ends:
        if end.bath is not None:
            residual = _replace(residual, node, c[..., node] - end.bath)
    if system.is_periodic:
        residual = _replace(residual, -1, c[..., -1] - c[..., 0])
    return residual


def imbalance(system: System, state: State, residual: Tensor, step: Tensor | None = None) -> Tensor:
    """Largest `residual` of the balances over the largest of the terms it is a difference of, `(B,)`."""
    c = state.concentrations
    mobility = system.diffusivities / system.spacings[:, None, :]
    terms = (mobility * torch.maximum(c[..., :-1], c[..., 1:])).amax(-1)
    if step is not None:
        terms = step[:, None] * terms + (system.volumes[:, None, :] * c).amax(-1)
    if system.has_kinetics:  # of one species there may be next to nothing
        terms = terms.amax(-1, keepdim=True)
    return (residual.abs().amax(-1) / terms).amax(-1)


def field_residual(
    system: System, state: State, *, known: Tensor | None = None, step: Tensor | None = None
) -> Tensor:
    """Gauss's law or what replaces it, and the room of finite ions, `(B, P, N)`.

    `known` `(B, 2)` are the charges on the metal that a driven current adds to in an implicit step.
    """
    gauss = poisson_residual(system, state, known=known, step=step)
    if system.crowding is None:
        return gauss.unsqueeze(1)
    pressure = state.fields[:, 1]
    filled = (system.crowding.volumes[:, :, None] * state.concentrations).sum(1)
    room = system.volumes / system.crowding.solvent[:, None] * (-expm1(-pressure) - filled)
    if system.is_periodic:
        room = _replace(room, -1, pressure[:, -1] - pressure[:, 0])
    return torch.stack([gauss, room], dim=1)


def poisson_residual(
    system: System, state: State, *, known: Tensor | None = None, step: Tensor | None = None
) -> Tensor:
    """Gauss's law at every node, or what replaces it there, shape `(B, N)`."""
    defect = residual = gauss_defect(system, state)
    phi = state.potential
    for side, (node, end) in enumerate(system.ends):
        if end.control == CHARGE:
            row = defect[:, node] - end.level
        elif end.control == CURRENT:
            row = -charging_rate(system, state, node, end)
            if known is not None and step is not None:
                row = defect[:, node] - known[:, side] + step * row
        elif end.control == PERIODIC:
            row = phi[:, 0] if node == 0 else phi[:, -1] - phi[:, 0] + system.left.level
        elif end.stern_capacitance is not None:
            row = defect[:, node] - end.stern_capacitance * (end.level - phi[:, node])
        else:
            row = phi[:, node] - end.level
        residual = _replace(residual, node, row)
    if system.ground_node is not None:
        residual = _replace(residual, system.ground_node, phi[:, system.ground_node])
    if system.floats and not system.is_periodic:
        residual = _replace(residual, -1, phi[:, -1])
    return residual


def held_nodes(system: System) -> list[int]:
    """Indices of the nodes whose potential is given (of cells that are not periodic)."""
    nodes = [node for node, end in system.ends if end.holds_potential]
    if system.ground_node is not None:
        nodes.append(system.ground_node)
    if system.floats:
        nodes.append(-1)
    return nodes


def metal_charges(system: System, state: State) -> Tensor:
    """Charge at the two ends, `(B, 2)`."""
    defect = gauss_defect(system, state)
    return torch.stack([defect[:, 0], defect[:, -1]], dim=-1)


def _folded(system: System, outflow: Tensor) -> Tensor:
    """With the two end nodes of a periodic cell taken together in the first."""
    if not system.is_periodic:
        return outflow
    together = _replace(outflow, 0, outflow[..., 0] + outflow[..., -1])
    return _replace(together, -1, torch.zeros_like(outflow[..., -1]))


def _replace(tensor: Tensor, node: int, value: Tensor) -> Tensor:
    changed = tensor.clone()
    changed[..., node] = value
    return changed
