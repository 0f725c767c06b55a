r"""Small-signal impedance by linearisation about a steady state.

A potential :math:`\delta U\,e^{i\omega t}` at the left end moves the steady state by
:math:`\delta u\,e^{i\omega t}` with

.. math:: (J + i\omega M)\,\delta u = -\frac{\partial R}{\partial U}\,\delta U,

where *J* is the Jacobian of the solver and *M* holds the control volumes. The impedance is
:math:`Z(\omega) = \delta U/\delta I` with the whole current, of ions and of displacement.

References:
    | Debye & Falkenhagen, Phys. Z. 29, 121 (1928)
    | Barsoukov & Macdonald, Impedance Spectroscopy (2005), ch. 2
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .boundaries import Electrode
from .errors import Status
from .finite_volume.jacobian import Jacobian, Tridiagonal, jacobian
from .finite_volume.kinetics import Production
from .finite_volume.residual import electrode_production
from .observables import electrode_potential
from .quantity import Quantity, as_quantity
from .scaling import scale
from .solution import Solution
from .solvers.linear import Bordered, Coupled, Factorisation, Pins
from .solvers.start import scaled_state
from .system import POTENTIAL, State, System

SIDE_BY_SIDE = 2000
"""How many systems of elements times frequencies are solved at once."""


def impedance(solution: Solution, frequencies: Quantity) -> Tensor:
    r"""Impedance of a cell between its two ends, about a steady state.

    Both ends are linearised with the potentials they have, also where a current was given; a reservoir counts
    as an ideal reversible electrode. Differentiable with respect to every number of the cell.

    Arguments:
        solution: A steady state of a cell without ground whose ends are electrodes or reservoirs.
        frequencies: :math:`\omega/2\pi > 0` [Hz] (in the dimensionless form 1 over the unit of time), one axis.

    Returns:
        :math:`Z` [Ω m²], complex, `(*batch, frequency)`; NaN never: an element whose steady state failed is
        an error.

    Raises:
        ValueError: A transient, a state that was not solved, a ground, a charged wall or periodic ends,
            frequencies that are not positive.
    """
    frequencies = as_quantity(frequencies, "impedance: frequencies", above=0.0)
    _check(solution, frequencies)
    system, scales = scale(solution.cell, solution.grid)
    system = _at_potentials(system, solution, scales.potential)
    state = scaled_state(system, scales, solution)
    omega = 2 * math.pi * frequencies.to(state.fields.device) * scales.time[:, None]
    together = max(1, SIDE_BY_SIDE // omega.shape[0])
    admittance = torch.cat([_admittances(system, state, some) for some in omega.split(together, -1)], -1)
    unit = scales.potential * scales.time / scales.charge
    return (unit[:, None] / admittance).reshape(*scales.batch_shape, -1)


def _check(solution: Solution, frequencies: Tensor) -> None:
    cell = solution.cell
    if solution.times is not None:
        raise ValueError("impedance: a transient is no steady state; take one with solve_steady.")
    if frequencies.dim() != 1 or frequencies.numel() == 0:
        raise ValueError(
            f"impedance: frequencies must be one axis of numbers, got shape {tuple(frequencies.shape)}."
        )
    if not bool(solution.solved.all()):
        failed = int((solution.status != Status.CONVERGED).sum())
        raise ValueError(f"impedance: {failed} of {solution.status.numel()} steady states were not solved.")
    if cell.ground is not None:
        raise ValueError("impedance: a cell with a ground has three terminals, and no single impedance.")
    for end in (cell.left, cell.right):
        if not hasattr(end, "potential"):
            raise ValueError(
                f"impedance: both ends must be electrodes or reservoirs, got {type(end).__name__}."
            )


def _at_potentials(system: System, solution: Solution, unit: Tensor) -> System:
    """The system with the potentials that its electrodes have in the place of the currents given."""
    metals = electrode_potential(solution)
    ends = []
    for end, described, metal in (
        (system.left, solution.cell.left, metals.left),
        (system.right, solution.cell.right, metals.right),
    ):
        if isinstance(described, Electrode) and described.current is not None:
            end = replace(end, control=POTENTIAL, level=metal.reshape(-1) / unit)
        ends.append(end)
    return replace(system, left=ends[0], right=ends[1])


@dataclass(frozen=True, eq=False)
class _Linearised:
    """The equations of a small oscillation, `matrix du = drive`."""

    matrix: Jacobian
    drive: State
    made: Production | None
    pins: Pins | None

    def factorised(self, system: System) -> Factorisation:
        """The matrix, factorised; amounts that nothing changes stand for balances, which lose them at low frequency."""
        return Coupled(self.matrix) if self.pins is None else Bordered(system, self.matrix, self.pins)

    def defect(self, change: State) -> State:
        """What `change` leaves of the equations."""
        dc, fields = change.concentrations, change.fields
        matrix = self.matrix
        species = matrix.transport @ dc + (matrix.migration @ fields.unsqueeze(1)).sum(2)
        if matrix.kinetics is not None:
            species = species + torch.einsum("bstn,btn->bsn", matrix.kinetics.to(dc.dtype), dc)
        gauss = (matrix.fields @ fields.unsqueeze(1)).sum(2)
        gauss = gauss + torch.einsum("bpsn,bsn->bpn", matrix.charge.to(dc.dtype), dc)
        species = species - self.drive.concentrations
        if self.pins is not None:
            species = self.pins.put(species, self.pins.amounts(dc.unsqueeze(-1)).squeeze(-1))
        return State(species, gauss - self.drive.fields)


def _linearised(system: System, state: State, omega: Tensor) -> _Linearised:
    matrix = jacobian(system, state)
    storage = system.volumes[:, None, :].repeat(1, state.concentrations.shape[1], 1)
    for node, end in system.ends:
        if end.bath is not None:
            storage[..., node] = 0.0
    lower, diagonal, upper = matrix.transport.bands()
    diagonal = torch.complex(diagonal, omega[:, None, None] * storage)
    transport = Tridiagonal(lower.to(diagonal.dtype), diagonal, upper.to(diagonal.dtype))
    left = system.left
    made = electrode_production(system, state, 0, left)
    species, fields = torch.zeros_like(state.concentrations), torch.zeros_like(state.fields)
    fields[:, 0, 0] = 1.0 if left.stern_capacitance is None else left.stern_capacitance
    if made is not None and left.stern_capacitance is not None:
        species[..., 0] = made.by_step.squeeze(-1)
    pins = Pins.of(system, state) if system.laws else None
    if pins is not None:
        species = pins.put(species, torch.zeros_like(pins.nodes, dtype=species.dtype))
    drive = State(species.to(diagonal.dtype), fields.to(diagonal.dtype))
    return _Linearised(replace(matrix, transport=transport), drive, made, pins)


def _admittances(system: System, state: State, omega: Tensor) -> Tensor:
    """Scaled current over potential at angular frequencies `(B, W)`, `(B, W)`."""
    count = omega.shape[1]

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(count, dim=0)

    return _admittance(system.map(repeated), state.map(repeated), omega.flatten()).reshape(omega.shape)


def _admittance(system: System, state: State, omega: Tensor) -> Tensor:
    """Scaled current over potential at one angular frequency of each element, `(B,)`."""
    with torch.no_grad():
        fixed = _linearised(system.detach(), state.detach(), omega.detach())
        factors = fixed.factorised(system.detach())
        change = factors.solve(fixed.drive.concentrations, fixed.drive.fields)
    equations = _linearised(system, state, omega)
    if torch.is_grad_enabled() and (system.requires_grad() or state.requires_grad()):
        defect = equations.defect(change)
        step = factors.solve(defect.concentrations, defect.fields)
        change = State(
            change.concentrations - (step.concentrations - step.concentrations.detach()),
            change.fields - (step.fields - step.fields.detach()),
        )
    return _current(system, state, equations, change, 1j * omega)


def _current(system: System, state: State, equations: _Linearised, change: State, rate: Tensor) -> Tensor:
    """Change of the whole current at the left end, `(B,)`."""
    stiffness = system.permittivity[:, 0] / system.spacings[:, 0]
    displacement = stiffness * (change.fields[:, 0, 0] - change.fields[:, 0, 1])
    left = system.left
    if left.bath is not None:
        # Balances at a bath do not hold, so that the flux across the first edge counts.
        inner = replace(system, left=replace(left, bath=None))
        matrix, z = jacobian(inner, state), system.valences.to(change.fields.dtype)
        flux = (matrix.transport @ change.concentrations)[..., 0]
        flux = flux + (matrix.migration @ change.fields.unsqueeze(1)).sum(2)[..., 0]
        return (z * flux).sum(-1) + rate * displacement
    here = change.concentrations[..., 0]
    charge = displacement - system.volumes[:, 0] * (system.valences * here).sum(-1)
    current = rate * charge
    made = equations.made
    if made is None:
        return current
    log_activity = here / state.concentrations[..., 0]
    if system.crowding is not None:
        log_activity = log_activity + system.couplings[:, :, 1] * change.fields[:, 1, :1]
    faradaic = (made.charge_by_log_activity.squeeze(-1) * log_activity).sum(-1)
    if left.stern_capacitance is not None:
        faradaic = faradaic + made.charge_by_step.squeeze(-1) * (1 - change.fields[:, 0, 0])
    return current - faradaic
