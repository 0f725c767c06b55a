"""Adaptive implicit time stepping of a batch whose elements choose their own steps."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cell import Cell
from ..errors import Status
from ..grid import Grid
from ..quantity import Quantity, as_quantity
from ..scaling import Batched, Scales, State, System, scale
from ..solution import Solution, Statistics
from .finish import report, unflatten
from .linear import FEW_SPECIES
from .newton import Newton
from .start import check_initial, poisson_potential
from .steady import DEFAULT_NODES
from .step_size import StepControl
from .time_step import Step, StepResult, take_step, trace_step

STEP_NEWTON = Newton(max_iterations=25, tolerance=1e-6)
FIRST_STEP = 1e-3
"""First step in units of the Debye time; error control takes over from there."""
SMALLEST_STEP = 1e-16


def solve_transient(
    cell: Cell,
    grid: Grid | None = None,
    *,
    times: Quantity,
    initial: Solution | Quantity | None = None,
    throw: bool = True,
    step_control: StepControl = StepControl(),  # noqa: B008 (frozen)
) -> Solution:
    r"""Evolution of a cell after its potentials are switched on at :math:`t = 0`.

    TR-BDF2 with error control, backward Euler for the first step and wherever positivity asks for it. Every
    element of the batch takes its own steps, from the Debye time to the bulk diffusion time in one run, and
    steps exactly onto the requested times, so that what is returned has the guarantees of the scheme
    (positive concentrations, amounts, Gauss's law) without interpolation. Differentiable through every
    step, with the step sizes held constant; memory then grows with the number of steps.

    Arguments:
        cell: What to solve.
        grid: Default: `Grid.refined(cell, 200)`.
        times: Increasing times [s] at which the state is returned, `(time,)`, from 0 on; they need not be
            the steps.
        initial: State at :math:`t = 0`: a solution on as many nodes (its concentrations), or concentrations
            `(*batch, species, node)` [mol m⁻³]; default: the filling. The potential at :math:`t = 0`
            follows from Gauss's law with the cell's boundaries.
        throw: Whether an element that fails raises; otherwise see `solution.status`. States after the
            failure repeat the last one that was reached.
        step_control: Tolerances and limits of the steps.

    Returns:
        A solution with a time axis after the batch axes.

    Raises:
        SolveError: `throw` and some element failed.
        ValueError: `times` not increasing from 0 on, or `grid` or `initial` do not fit the cell.

    Warns:
        UnderResolvedWarning: The spacing at a wall exceeds the local Debye length.
    """
    grid = Grid.refined(cell, DEFAULT_NODES) if grid is None else grid
    times = _checked_times(times)
    system, scales = scale(cell, grid)
    start = _initial_state(system, scales, initial)
    outputs = times.to(cell.device).detach() / scales.time.detach()[:, None]
    run = _integrate(system, start, outputs, step_control)
    batch, species, nodes = scales.batch_shape, start.concentrations.shape[1], grid.nodes.shape[-1]
    volumes = system.volumes[:, None, :]
    unit = (scales.concentration * scales.length)[:, None]
    solution = Solution(
        cell=cell,
        grid=grid,
        potential=(run.potential * scales.potential[:, None, None]).reshape(*batch, -1, nodes),
        concentrations=(run.concentrations * scales.concentration[:, None, None, None]).reshape(
            *batch, -1, species, nodes
        ),
        status=run.status.reshape(batch),
        stats=unflatten(run.statistics(scales), batch),
        expected_amounts=((volumes * start.concentrations).sum(-1) * unit).reshape(*batch, species),
        times=times,
    )
    report(solution, throw)
    return solution


def _checked_times(times: Quantity) -> Tensor:
    times = as_quantity(times, "solve_transient: times", at_least=0.0)
    if times.dim() != 1 or times.numel() == 0 or bool((times.diff() <= 0).any()):
        raise ValueError(
            f"solve_transient: times must be one axis of increasing times, got shape {tuple(times.shape)}"
            + (" that does not increase." if times.dim() == 1 and times.numel() else ".")
        )
    return times


def _initial_state(system: System, scales: Scales, initial: Solution | Quantity | None) -> State:
    nodes = system.volumes.shape[-1]
    if initial is None:
        c = system.filling[:, :, None].expand(-1, -1, nodes)
    elif isinstance(initial, Solution):
        check_initial(initial, system, scales)
        c = scales.to_scaled(initial.concentrations, initial.potential).concentrations
    else:
        given = as_quantity(initial, "solve_transient: initial", above=0.0)
        wanted = (system.filling.shape[-1], nodes)
        if tuple(given.shape[-2:]) != wanted:
            raise ValueError(
                f"solve_transient: initial must have (species, node) = {wanted}, got {tuple(given.shape)}."
            )
        c = scales.to_scaled(given.to(system.volumes.device), system.volumes.new_zeros(nodes)).concentrations
    for node, end in ((0, system.left), (nodes - 1, system.right)):
        if end.bath is not None:
            here = torch.zeros_like(c)
            here[..., node] = 1.0
            c = c * (1 - here) + here * end.bath.clamp(min=1e-30).unsqueeze(-1)
    return State(c, poisson_potential(system, c))


@dataclass(frozen=True, eq=False)
class _Front(Batched):
    """Where the unfinished elements stand."""

    system: System
    state: State
    outputs: Tensor  # (B, T), scaled
    time: Tensor
    step: Tensor
    euler: Tensor
    reached: Tensor  # index of the next output
    amounts: Tensor | None  # what a closed cell keeps, (B, S)


@dataclass(eq=False)
class _Run:
    """What the integration collects for the whole batch."""

    concentrations: Tensor  # (B, T, S, N)
    potential: Tensor  # (B, T, N)
    status: Tensor
    time: Tensor
    iterations: Tensor
    steps: Tensor
    rejected: Tensor

    def record(self, elements: Tensor, index: Tensor, state: State) -> None:
        """Store states as the output `index` of `elements`."""
        self.concentrations[elements, index] = state.concentrations
        self.potential[elements, index] = state.potential

    def statistics(self, scales: Scales) -> Statistics:
        """What the run cost."""
        change = torch.zeros_like(self.time)
        return Statistics(
            self.iterations, change, self.steps, self.rejected, self.time * scales.time.detach()
        )


def _integrate(system: System, start: State, outputs: Tensor, control: StepControl) -> _Run:
    front, run = _begin(system, start, outputs)
    elements = torch.arange(outputs.shape[0], device=outputs.device)
    front, elements = _drop(front, elements, front.reached < outputs.shape[1])
    while elements.numel():
        remaining = front.outputs.gather(1, front.reached[:, None]).squeeze(1) - front.time
        # Either all of what remains, or half of it, rather than a sliver at the end.
        step = torch.where(front.step >= remaining / 2, remaining / 2, front.step)
        step = torch.where(front.step >= remaining * (1 - 1e-12), remaining, step)
        trial = Step(front.system, front.state, step, front.euler, front.amounts)
        tried = take_step(trial, STEP_NEWTON)
        norm = control.error_norm(tried.error, tried.end.concentrations)
        accepted = tried.converged & (norm <= 1)
        failed = ~tried.converged | ~torch.isfinite(norm)
        run.iterations[elements] += tried.iterations
        run.steps[elements] += accepted
        run.rejected[elements] += ~accepted
        front = _advance(front, _end_states(trial, tried, accepted), step, remaining, accepted)
        run.time[elements] = front.time
        arrived = accepted & (step == remaining)
        there = torch.nonzero(arrived).squeeze(-1)
        run.record(elements[there], front.reached[there], front.state.select(there))
        front = _next_step(front, step, norm, accepted, failed, control)
        front = replace(front, reached=front.reached + arrived)
        elements, front = _give_up(run, front, elements, control)
    return run


def _begin(system: System, start: State, outputs: Tensor) -> tuple[_Front, _Run]:
    batch, count = outputs.shape
    zero = torch.zeros_like(outputs[:, 0])
    none = torch.zeros(batch, dtype=torch.int64, device=outputs.device)
    run = _Run(
        concentrations=start.concentrations.unsqueeze(1).repeat(1, count, 1, 1),
        potential=start.potential.unsqueeze(1).repeat(1, count, 1),
        status=none.clone(),
        time=zero.clone(),
        iterations=none.clone(),
        steps=none.clone(),
        rejected=none.clone(),
    )
    strength = (system.valences**2 * system.filling).sum(-1).detach()
    debye_time = system.permittivity.detach() / strength.clamp(min=1e-12)
    front = _Front(
        system=system,
        state=start,
        outputs=outputs,
        time=zero,
        step=(FIRST_STEP * debye_time).clamp(max=1.0),
        euler=torch.ones_like(zero, dtype=torch.bool),
        reached=(outputs[:, 0] == 0).long(),
        amounts=_kept_amounts(system, start),
    )
    return front, run


def _kept_amounts(system: System, start: State) -> Tensor | None:
    """Amounts that steps are made to keep exactly, where the matrix of few species allows it."""
    if not system.is_closed or start.concentrations.shape[1] > FEW_SPECIES:
        return None
    return (system.volumes[:, None, :] * start.concentrations).sum(-1)


def _end_states(trial: Step, tried: StepResult, accepted: Tensor) -> State:
    """Ends of the steps, differentiable where they were accepted and anything requires a gradient."""
    wanted = trial.requires_grad() and torch.is_grad_enabled()
    kept = torch.nonzero(accepted).squeeze(-1)
    if not wanted or not kept.numel():
        return tried.end
    end = trace_step(trial.select(kept), tried.select(kept))
    return State(
        tried.end.concentrations.index_copy(0, kept, end.concentrations),
        tried.end.potential.index_copy(0, kept, end.potential),
    )


def _advance(front: _Front, state: State, step: Tensor, remaining: Tensor, accepted: Tensor) -> _Front:
    """Move the accepted elements to the end of their step."""
    target = front.outputs.gather(1, front.reached[:, None]).squeeze(1)
    time = torch.where(step == remaining, target, front.time + step)
    return replace(
        front,
        state=State(
            torch.where(accepted[:, None, None], state.concentrations, front.state.concentrations),
            torch.where(accepted[:, None], state.potential, front.state.potential),
        ),
        time=torch.where(accepted, time, front.time),
    )


def _next_step(
    front: _Front, step: Tensor, norm: Tensor, accepted: Tensor, failed: Tensor, control: StepControl
) -> _Front:
    """Size and method of the next step."""
    order = torch.where(front.euler, 1.0, 2.0)
    factor = control.factor(torch.where(failed, 1.0, norm), order)
    proposed = step * factor
    # A step cut short to land on an output time does not hold back the next one.
    proposed = torch.where(
        accepted, torch.maximum(proposed, torch.where(factor >= 1, front.step, 0.0)), proposed
    )
    # TR-BDF2 without a positive solution: the same step by backward Euler; if that fails too, a shorter one.
    retry = failed & ~front.euler
    proposed = torch.where(retry, step, torch.where(failed, step * control.shrink, proposed))
    euler = torch.where(accepted, False, torch.where(failed, True, front.euler))
    return replace(front, step=proposed, euler=euler)


def _give_up(run: _Run, front: _Front, elements: Tensor, control: StepControl) -> tuple[Tensor, _Front]:
    """Keep the elements that have further to go; give those that cannot their status and last state."""
    unfinished = front.reached < front.outputs.shape[1]
    tiny = front.step < SMALLEST_STEP * torch.maximum(front.time, front.step.new_tensor(1e-6))
    spent = (run.steps + run.rejected)[elements] >= control.max_steps
    for stuck, status in ((tiny, Status.STEP_TOO_SMALL), (spent & ~tiny, Status.MAX_STEPS)):
        lost = torch.nonzero(unfinished & stuck).squeeze(-1)
        run.status[elements[lost]] = int(status)
        for index in lost.tolist():
            later = slice(int(front.reached[index]), None)
            run.concentrations[elements[index], later] = front.state.concentrations[index]
            run.potential[elements[index], later] = front.state.potential[index]
    front, elements = _drop(front, elements, unfinished & ~tiny & ~spent)
    return elements, front


def _drop(front: _Front, elements: Tensor, keep: Tensor) -> tuple[_Front, Tensor]:
    if bool(keep.all()):
        return front, elements
    kept = torch.nonzero(keep).squeeze(-1)
    return front.select(kept), elements[kept]
