"""Transients: from a cell and a row of times to a solution at those times."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..cell import Cell
from ..finite_volume.residual import metal_charges
from ..grid import Grid
from ..quantity import Quantity, as_quantity
from ..scaling import Scales, scale
from ..solution import Solution
from ..system import State, System
from .equilibrium import DEFAULT_NODES
from .finish import in_units, report, unflatten, user_pressure
from .integration import run
from .schedule import Schedule
from .start import check_initial, poisson_potential, scaled_state, with_baths, with_pressure
from .step_size import StepControl


def solve_transient(
    cell: Cell,
    grid: Grid | None = None,
    *,
    times: Quantity,
    initial: Solution | Quantity | None = None,
    throw: bool = True,
    step_control: StepControl = StepControl(),  # noqa: B008 (frozen)
    progress: Callable[[float], None] | None = None,
) -> Solution:
    r"""Evolution of a cell whose potentials or currents are switched on at :math:`t = 0`.

    Where nothing reacts, no current is driven, nothing imposed varies and ions are points, Rosenbrock's method of order
    four (:mod:`pnp.solvers.rosenbrock`); else, and for what that leaves, TR-BDF2, with backward Euler for the first
    step and wherever positivity asks for it; `solution.stats.method` says which of the two it was. Every
    element of the batch takes its own steps, from the Debye time to the bulk diffusion time in one run, and
    steps exactly onto the requested times, so that what is returned has the guarantees of the scheme
    (positive concentrations, amounts, Gauss's law) without interpolation; at a jump of a waveform that is the
    state just after it. Differentiable through every step, with the step sizes held constant; only one or two
    states a step are kept for that, and their matrices are factorised anew backwards. Cells of up to six
    species of point ions between constant potentials or charges are solved by compiled kernels
    (:mod:`pnp.compiled`) where numba is installed, with and without gradients; `solution.stats.solver` says which it
    was. First derivatives only: a second one through the compiled path raises.

    Arguments:
        cell: What to solve.
        grid: Default: `Grid.refined(cell, 201)`.
        times: Increasing times [s] at which the state is returned, `(time,)`, from 0 on; they need not be
            the steps.
        initial: State at :math:`t = 0`: a solution on as many nodes (its concentrations), or concentrations
            `(*batch, species, node)` [mol m⁻³]; default: the filling. The potential at :math:`t = 0`
            follows from Gauss's law with the cell's boundaries; a metal whose current is given starts
            uncharged, or with its charge in a solution.
        throw: Whether an element that fails raises; otherwise see `solution.status`. States after the
            failure repeat the last one that was reached.
        step_control: Tolerances and limits of the steps.
        progress: Called after every step with the share of the time span that the slowest element has behind
            it, from 0 to 1; after a compiled kernel, which does not stop in between, once.

    Returns:
        A solution with a time axis after the batch axes.

    Raises:
        SolveError: `throw` and some element failed.
        ValueError: `times` not increasing from 0 on, or `grid` or `initial` do not fit the cell.

    Warns:
        UnderResolvedWarning: The spacing at a wall exceeds the local Debye length.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.01, 0.1, 1.0])
        >>> [f"{charge:.3f}" for charge in pnp.diffuse_charge(charging).tolist()]
        ['0.073', '0.278', '0.307']
    """
    grid = Grid.refined(cell, DEFAULT_NODES) if grid is None else grid
    times = _checked_times(times)
    system, scales = scale(cell, grid)
    start = _initial_state(system, scales, initial)
    outputs = times.to(cell.device).detach() / scales.time.detach()[:, None]
    schedule = Schedule.of(cell, system, scales)
    found = run(system, start, outputs, schedule, step_control, progress)
    batch = scales.batch_shape
    amounts = (system.volumes[:, None, :] * start.concentrations).sum(-1)
    concentrations = in_units(found.concentrations, scales.concentration[:, None, None, None])
    potential = in_units(found.fields[:, :, 0], scales.potential[:, None, None])
    solution = Solution(
        cell=cell,
        grid=grid,
        potential=potential.reshape(*batch, *potential.shape[1:]),
        concentrations=concentrations.reshape(*batch, *concentrations.shape[1:]),
        pressure=user_pressure(found.fields, scales),
        status=found.status.reshape(batch),
        stats=unflatten(found.statistics(scales), batch),
        expected_amounts=(amounts * (scales.concentration * scales.length)[:, None]).reshape(*batch, -1),
        times=times,
        again=lambda other: solve_transient(
            cell, other, times=times, initial=_thinned(initial), throw=throw, step_control=step_control
        ),
    )
    report(solution, throw)
    return solution


def _thinned(initial: Solution | Quantity | None) -> Tensor | None:
    """The same start on every other node."""
    if initial is None:
        return None
    c = initial.concentrations if isinstance(initial, Solution) else as_quantity(initial, "initial")
    return c[..., ::2]


def _checked_times(times: Quantity) -> Tensor:
    times = as_quantity(times, "solve_transient: times", at_least=0.0)
    if times.dim() != 1 or times.numel() == 0 or bool((times.diff() <= 0).any()):
        raise ValueError(
            f"solve_transient: times must be one axis of increasing times, got shape {tuple(times.shape)}"
            + (" that does not increase." if times.dim() == 1 and times.numel() else ".")
        )
    return times


def _initial_state(system: System, scales: Scales, initial: Solution | Quantity | None) -> State:
    nodes, charges = system.volumes.shape[-1], None
    if initial is None:
        c = system.filling[:, :, None].expand(-1, -1, nodes)
    elif isinstance(initial, Solution):
        check_initial(initial, system, scales)
        c = scales.to_scaled(initial.concentrations)
        charges = metal_charges(system, scaled_state(system, scales, initial))
    else:
        given = as_quantity(initial, "solve_transient: initial", above=0.0)
        wanted = (system.filling.shape[-1], nodes)
        if tuple(given.shape[-2:]) != wanted:
            raise ValueError(
                f"solve_transient: initial must have (species, node) = {wanted}, got {tuple(given.shape)}."
            )
        c = scales.to_scaled(given.to(system.volumes.device))
    c = with_baths(system, c)
    if system.is_periodic:
        c = torch.cat([c[..., :-1], c[..., :1]], dim=-1)
    return State(c, with_pressure(system, c, poisson_potential(system, c, charges)))
