"""From a scaled state to the solution a user gets, or the error that explains why there is none."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from ..cell import Cell
from ..errors import SolveError, Status, UnderResolvedWarning, describe_failure
from ..grid import Grid, wall_drop
from ..scaling import Scales
from ..solution import Solution, Statistics
from ..system import State
from .newton import NewtonResult


def failed_status(converged: Tensor, change: Tensor) -> Tensor:
    """Status codes of a Newton iteration, `(B,)`."""
    code = torch.where(torch.isfinite(change), int(Status.MAX_ITERATIONS), int(Status.NOT_FINITE))
    return torch.where(converged, int(Status.CONVERGED), code)


def steady_statistics(result: NewtonResult, solver: str = "torch") -> Statistics:
    """Statistics of a solve without time."""
    zero = torch.zeros_like(result.iterations)
    reached = torch.where(result.converged, torch.inf, 0.0).to(result.change)
    return Statistics(result.iterations, result.change.nan_to_num(nan=torch.inf), zero, zero, reached, solver)


def finish(
    cell: Cell,
    grid: Grid,
    scales: Scales,
    state: State,
    status: Tensor,
    stats: Statistics,
    throw: bool,
    again: Callable[[Grid], Solution],
) -> Solution:
    """Assemble the solution of a steady state in the user's units, raise or warn where it has to be."""
    concentrations = in_units(state.concentrations, scales.concentration[:, None, None])
    potential = in_units(state.potential, scales.potential[:, None])
    batch = scales.batch_shape
    solution = Solution(
        cell=cell,
        grid=grid,
        potential=potential.reshape(*batch, -1),
        concentrations=concentrations.reshape(*batch, *concentrations.shape[1:]),
        pressure=user_pressure(state.fields, scales),
        status=status.reshape(scales.batch_shape),
        stats=unflatten(stats, scales.batch_shape),
        expected_amounts=cell.concentrations.to(cell.device) * cell.length.to(cell.device).unsqueeze(-1),
        again=again,
    )
    report(solution, throw)
    return solution


def in_units(values: Tensor, unit: Tensor) -> Tensor:
    """`values`, which nobody else needs, times `unit`; a unit of one, as dimensionless cells have, costs nothing."""
    if not unit.requires_grad and bool((unit == 1).all()):
        return values
    return values * unit if values.requires_grad or unit.requires_grad else values.mul_(unit)


def user_pressure(fields: Tensor, scales: Scales) -> Tensor | None:
    """Pressure in the user's units, `(*batch, ..., N)`, of fields `(B, ..., P, N)`; None of point ions."""
    if fields.shape[-2] == 1:
        return None
    unit = scales.pressure.reshape(-1, *[1] * (fields.dim() - 2))
    pressure = fields[..., 1, :] * unit
    return pressure.reshape(*scales.batch_shape, *pressure.shape[1:])


def unflatten(stats: Statistics, batch: torch.Size) -> Statistics:
    """Give the statistics the user's batch axes."""
    tensors = {name: one.reshape(batch) for name, one in vars(stats).items() if isinstance(one, Tensor)}
    return Statistics(**tensors, solver=stats.solver, method=stats.method)


def report(solution: Solution, throw: bool) -> None:
    """Raise SolveError for failed elements if `throw`; warn of double layers the grid does not resolve."""
    from ..certificate import wall_spacing  # which reads observables off a Solution

    if throw and not bool(solution.solved.all()):
        raise SolveError(_failure_text(solution), solution.status)
    with torch.no_grad():
        spacing = wall_spacing(solution)[solution.solved]
    if spacing.numel() and bool((spacing > 1).any()):
        nodes = solution.grid.nodes.shape[-1]
        coarse = int((spacing > 1).flatten(1).any(-1).sum())
        warnings.warn(
            f"The first spacing at a wall is {spacing.max().item():.2g} local Debye lengths in "
            f"{coarse} of {spacing.shape[0]} cells: the double layer is not resolved. Use "
            f"Grid.refined(cell, nodes), or more nodes than {nodes} "
            f"(about {int(nodes * spacing.max().item() * 4)} of this grid's kind).",
            UnderResolvedWarning,
            stacklevel=4,
        )


def _failure_text(solution: Solution) -> str:
    stats, batch = solution.stats, solution.status.shape
    drops = wall_drop(solution.cell) / solution.cell.electrolyte.thermal_voltage.to(solution.cell.device)
    transient = solution.times is not None
    progress = []
    for index, drop in enumerate(drops.expand(batch).reshape(-1).tolist()):
        iterations = int(stats.iterations.reshape(-1)[index])
        detail = (
            f"reached t = {stats.reached.reshape(-1)[index].item():.3g} in "
            f"{int(stats.steps.reshape(-1)[index])} steps ({int(stats.rejected.reshape(-1)[index])} rejected)"
            if transient
            else f"last relative change {stats.change.reshape(-1)[index].item():.1e}"
        )
        progress.append(f"{detail}, {iterations} Newton iterations, wall drop {drop:.3g} thermal voltages")
    if transient:
        advice = "a finer grid; a looser StepControl(relative=...); StepControl(max_steps=...)."
    else:
        advice = (
            "Newton(max_iterations=200); a finer grid, Grid.refined(cell, nodes); "
            "start from a solution at lower voltage (initial=...)."
        )
    return describe_failure(solution.status, progress, advice)
