r"""Small-signal impedance by linearisation about a steady state.

A potential :math:`\delta U\,e^{i\omega t}` at the left end moves the steady state by
:math:`\delta u\,e^{i\omega t}` with

.. math:: (J + i\omega M)\,\delta u = -\frac{\partial R}{\partial U}\,\delta U,

where *J* is the Jacobian of the equations and *M* holds the control volumes. The impedance is
:math:`Z(\omega) = \delta U/\delta I` with the whole current, of ions and of displacement. The unknowns are changes of
electrochemical potentials, see :mod:`pnp.finite_volume.oscillation`.

References:
    | Debye & Falkenhagen, Phys. Z. 29, 121 (1928)
    | Barsoukov & Macdonald, Impedance Spectroscopy (2005), ch. 2
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from .boundaries import Electrode
from .errors import Status
from .finite_volume.oscillation import Oscillation
from .observables import electrode_potential
from .quantity import Quantity, as_quantity
from .scaling import scale
from .solution import Solution
from .solvers.block_tridiagonal import BlockTridiagonal
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

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> impedance = pnp.impedance(pnp.solve_steady(cell), [0.1, 10.0])
        >>> [f"{z.real:.2f} {z.imag:+.2f}i" for z in impedance.tolist()]
        ['0.49 -18.02i', '0.42 -0.34i']
    """
    frequencies = as_quantity(frequencies, "impedance: frequencies", above=0.0)
    _check(solution, frequencies)
    system, scales = scale(solution.cell, solution.grid)
    system = _at_potentials(system, solution, scales.potential)
    state = scaled_state(system, scales, solution)
    omega = 2 * math.pi * frequencies.to(state.fields.device) * scales.time[:, None]
    together = max(1, SIDE_BY_SIDE // omega.shape[0])
    at_rest = solution.cell.comes_to_rest
    admittance = torch.cat(
        [_admittances(system, state, some, at_rest) for some in omega.split(together, -1)], -1
    )
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


def _admittances(system: System, state: State, omega: Tensor, at_rest: bool) -> Tensor:
    """Scaled current over potential at angular frequencies `(B, W)`, `(B, W)`."""
    count = omega.shape[1]

    def repeated(tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(count, dim=0)

    found = _admittance(system.map(repeated), state.map(repeated), omega.flatten(), at_rest)
    return found.reshape(omega.shape)


def _admittance(system: System, state: State, omega: Tensor, at_rest: bool) -> Tensor:
    """Scaled current over potential at one angular frequency of each element, `(B,)`."""
    with torch.no_grad():
        fixed = Oscillation(system.detach(), state.detach(), omega.detach(), at_rest=at_rest).rows()
        # Ions before fields, so that what they store at low frequency is not lost beside Gauss's law.
        species = state.concentrations.shape[1]
        matrix = BlockTridiagonal(fixed.lower, fixed.sums, fixed.upper, sums=True, first=species)
        change = matrix.solve(fixed.drive.unsqueeze(-1)).squeeze(-1)
    oscillation = Oscillation(system, state, omega, at_rest=at_rest)
    if torch.is_grad_enabled() and (system.requires_grad() or state.requires_grad()):
        step = matrix.solve(oscillation.rows().defect(change).unsqueeze(-1)).squeeze(-1)
        change = change - (step - step.detach())
    return oscillation.current(change)
