"""Adaptive implicit time stepping of a batch whose elements choose their own steps."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..compiled import attempt
from ..errors import Status
from ..finite_volume.residual import metal_charges
from ..scaling import Scales
from ..solution import Statistics
from ..system import Batched, State, System
from .rosenbrock import ORDER, RosenbrockStep, suits
from .schedule import Schedule, Stops
from .start import poisson_potential
from .step_size import SMALLEST_STEP, StepControl
from .time_step import GAMMA, Step, StepResult, debye_time, trace_step

ROSENBROCK, TR_BDF2 = "Rosenbrock", "TR-BDF2"
FIRST_STEP = 1e-3
"""First step in units of the Debye time; error control takes over from there."""


@dataclass(frozen=True, eq=False)
class _Front(Batched):
    """Where the unfinished elements stand."""

    system: System
    state: State
    stops: Stops
    time: Tensor
    step: Tensor
    euler: Tensor
    reached: Tensor  # index of the next stop
    first_step: Tensor
    amounts: Tensor  # the combinations that the cell keeps, (B, L)
    linear: bool  # whether steps are by Rosenbrock's method

    def trial(self, schedule: Schedule, elements: Tensor, step: Tensor) -> Step | RosenbrockStep:
        """The next step, of a length."""
        if self.linear:
            return RosenbrockStep(self.system, self.state, step, self.amounts)
        levels = _levels(schedule, elements, self, step)
        return Step(self.system, self.state, levels, step, self.euler, self.amounts)

    @property
    def next_stop(self) -> Tensor:
        """Time of the next stop, `(B,)`."""
        return self._of_next(self.stops.times)

    @property
    def unfinished(self) -> Tensor:
        """Whether there is a next stop, `(B,)`."""
        inside = self.reached < self.stops.times.shape[1]
        return inside & torch.isfinite(self.next_stop)

    def _of_next(self, per_stop: Tensor) -> Tensor:
        index = self.reached.clamp(max=per_stop.shape[1] - 1)
        return per_stop.gather(1, index[:, None]).squeeze(1)

    @property
    def next_output(self) -> Tensor:
        """Index of the output that the next stop is, or -1."""
        return self._of_next(self.stops.output)

    @property
    def next_broken(self) -> Tensor:
        """Whether a waveform jumps or bends at the next stop."""
        return self._of_next(self.stops.broken)


@dataclass(eq=False)
class Run:
    """What the integration collects for the whole batch."""

    concentrations: Tensor  # (B, T, S, N)
    fields: Tensor  # (B, T, P, N)
    status: Tensor
    time: Tensor
    iterations: Tensor
    steps: Tensor
    rejected: Tensor
    solver: str = "torch"
    method: str = TR_BDF2

    def record(self, elements: Tensor, index: Tensor, state: State) -> None:
        """Store states as the output `index` of `elements`."""
        self.concentrations[elements, index] = state.concentrations
        self.fields[elements, index] = state.fields

    def statistics(self, scales: Scales) -> Statistics:
        """What the run cost."""
        change = torch.zeros_like(self.time)
        return Statistics(
            self.iterations,
            change,
            self.steps,
            self.rejected,
            self.time * scales.time.detach(),
            self.solver,
            self.method,
        )


def run(
    system: System,
    start: State,
    outputs: Tensor,
    schedule: Schedule,
    control: StepControl,
    progress: Callable[[float], None] | None,
) -> Run:
    """The run by Rosenbrock's method where nothing varies, in compiled kernels or in torch; else by TR-BDF2.

    What Rosenbrock's method leaves is begun anew by TR-BDF2.
    """
    if schedule.varies or not suits(system):
        return integrate(system, start, outputs, schedule, control, progress)
    found = _compiled_run(system, start, outputs, control)
    if found is None:
        found = integrate(system, start, outputs, schedule, control, progress, linear=True)
    failed = torch.nonzero(found.status).squeeze(-1)
    if failed.numel():
        again = integrate(
            system.select(failed),
            start.select(failed),
            outputs[failed],
            schedule.select(failed),
            control,
            progress,
        )
        for part in fields(Run):
            if part.name not in ("solver", "method"):
                whole = getattr(found, part.name).index_copy(0, failed, getattr(again, part.name))
                setattr(found, part.name, whole)
    if progress is not None:
        progress(1.0)
    return found


def _compiled_run(system: System, start: State, outputs: Tensor, control: StepControl) -> Run | None:
    """The run by compiled kernels; None where there are none."""

    def compiled() -> tuple[Tensor, Tensor, Tensor] | None:
        from ..compiled import dispatch  # needs numba, which takes its time to import

        if not dispatch.can_march(system):
            return None
        return dispatch.marched(system, start, outputs, _first_step(system), control)

    found = attempt(compiled)
    if found is None:
        return None
    concentrations, potential, report = found
    status, time, steps, rejected = report.unbind(-1)
    return Run(
        concentrations,
        potential.unsqueeze(2),
        status.long(),
        time,
        torch.zeros_like(steps, dtype=torch.int64),
        steps.long(),
        rejected.long(),
        solver="compiled",
        method=ROSENBROCK,
    )


def _first_step(system: System) -> Tensor:
    return (FIRST_STEP * debye_time(system)).clamp(max=1.0)


def integrate(
    system: System,
    start: State,
    outputs: Tensor,
    schedule: Schedule,
    control: StepControl,
    progress: Callable[[float], None] | None,
    linear: bool = False,
) -> Run:
    """The run in torch, by TR-BDF2, or by Rosenbrock's method if `linear`."""
    front, run = _begin(system, start, schedule.stops(outputs), outputs, linear)
    elements = torch.arange(outputs.shape[0], device=outputs.device)
    front, elements = _drop(front, elements, front.unfinished)
    while elements.numel():
        remaining = front.next_stop - front.time
        # Either all of what remains, or half of it, rather than a sliver at the end.
        step = torch.where(front.step >= remaining / 2, remaining / 2, front.step)
        step = torch.where(front.step >= remaining * (1 - 1e-12), remaining, step)
        trial = front.trial(schedule, elements, step)
        tried = trial.take()
        own = trial.system.own_nodes
        norm = control.error_norm(tried.error[..., own], tried.end.concentrations[..., own])
        accepted = tried.converged & (norm <= 1)
        failed = ~tried.converged | ~torch.isfinite(norm)
        run.iterations[elements] += tried.iterations
        run.steps[elements] += accepted
        run.rejected[elements] += ~accepted
        front = _advance(front, _end_states(trial, tried, accepted), step, remaining, accepted)
        run.time[elements] = front.time
        arrived = accepted & (step == remaining)
        front = _next_step(front, step, norm, accepted, failed, control)
        front = _past_breaks(schedule, elements, front, arrived & front.next_broken)
        there = torch.nonzero(arrived & (front.next_output >= 0)).squeeze(-1)
        run.record(elements[there], front.next_output[there], front.state.select(there))
        front = replace(front, reached=front.reached + arrived)
        elements, front = _give_up(run, front, elements, control)
        if progress is not None:
            behind = torch.where(run.status == Status.CONVERGED, run.time / outputs[:, -1], 1.0)
            progress(float(behind.min()))
    return run


def _begin(system: System, start: State, stops: Stops, outputs: Tensor, linear: bool) -> tuple[_Front, Run]:
    batch, count = outputs.shape
    zero = torch.zeros_like(outputs[:, 0])
    none = torch.zeros(batch, dtype=torch.int64, device=outputs.device)
    run = Run(
        concentrations=start.concentrations.unsqueeze(1).repeat(1, count, 1, 1),
        fields=start.fields.unsqueeze(1).repeat(1, count, 1, 1),
        status=none.clone(),
        time=zero.clone(),
        iterations=none.clone(),
        steps=none.clone(),
        rejected=none.clone(),
        method=ROSENBROCK if linear else TR_BDF2,
    )
    first_step = _first_step(system)
    front = _Front(
        system=system,
        state=start,
        stops=stops,
        time=zero,
        step=first_step,
        euler=torch.full_like(zero, not linear, dtype=torch.bool),
        reached=(outputs[:, 0] == 0).long(),
        first_step=first_step,
        amounts=system.combined((start.concentrations * system.volumes[:, None, :]).sum(-1, keepdim=True))[
            ..., 0
        ],
        linear=linear,
    )
    return front, run


def _levels(schedule: Schedule, elements: Tensor, front: _Front, step: Tensor) -> Tensor:
    """What the ends impose at the start, in the middle and at the end of a step, `(B, 3, 2)`."""
    if not schedule.varies:
        return front.system.levels.unsqueeze(1).expand(-1, 3, -1)
    inside = front.time + step / 2
    moments = (front.time, front.time + GAMMA * step, front.time + step)
    return torch.stack([schedule.levels(elements, moment, inside) for moment in moments], dim=1)


def _past_breaks(schedule: Schedule, elements: Tensor, front: _Front, broken: Tensor) -> _Front:
    """Elements that arrived at a break go on with what is imposed after it, by small steps again."""
    here = torch.nonzero(broken).squeeze(-1)
    if not here.numel():
        return front
    part = front.select(here)
    levels = schedule.levels(elements[here], part.time, part.time + part.first_step / 2)
    system = part.system.with_levels(levels)
    charges = metal_charges(system, part.state)
    potential = poisson_potential(system, part.state.concentrations, charges)
    fields = torch.cat([potential.unsqueeze(1), part.state.fields[:, 1:]], dim=1)
    state = State(front.state.concentrations, front.state.fields.index_copy(0, here, fields))
    return replace(
        front,
        state=state,
        step=torch.where(broken, front.first_step, front.step),
        euler=front.euler | broken,
    )


def _end_states(trial: Step | RosenbrockStep, tried: StepResult, accepted: Tensor) -> State:
    """Ends of the steps, differentiable where they were accepted and anything requires a gradient."""
    wanted = trial.requires_grad() and torch.is_grad_enabled()
    kept = torch.nonzero(accepted).squeeze(-1)
    if not wanted or not kept.numel():
        return tried.end
    if kept.numel() == accepted.numel():
        return trace_step(trial, tried)
    end = trace_step(trial.select(kept), tried.select(kept))
    return State(
        tried.end.concentrations.index_copy(0, kept, end.concentrations),
        tried.end.fields.index_copy(0, kept, end.fields),
    )


def _advance(front: _Front, state: State, step: Tensor, remaining: Tensor, accepted: Tensor) -> _Front:
    """Move the accepted elements to the end of their step."""
    time = torch.where(step == remaining, front.next_stop, front.time + step)
    if bool(accepted.all()):
        return replace(front, state=state, time=time)
    return replace(
        front,
        state=State(
            torch.where(accepted[:, None, None], state.concentrations, front.state.concentrations),
            torch.where(accepted[:, None, None], state.fields, front.state.fields),
        ),
        time=torch.where(accepted, time, front.time),
    )


def _next_step(
    front: _Front, step: Tensor, norm: Tensor, accepted: Tensor, failed: Tensor, control: StepControl
) -> _Front:
    """Size and method of the next step."""
    order = torch.full_like(step, ORDER) if front.linear else 2.0 - front.euler.to(torch.float64)
    factor = control.factor(torch.where(failed, 1.0, norm), order)
    proposed = step * factor
    # A step cut short to land on an output time does not hold back the next one.
    proposed = torch.where(
        accepted, torch.maximum(proposed, torch.where(factor >= 1, front.step, 0.0)), proposed
    )
    # TR-BDF2 without a positive solution: the same step by backward Euler; if that fails too, a shorter one.
    retry = failed & ~front.euler & (not front.linear)
    proposed = torch.where(retry, step, torch.where(failed, step * control.shrink, proposed))
    euler = torch.where(accepted, False, torch.where(failed, not front.linear, front.euler))
    return replace(front, step=proposed, euler=euler)


def _give_up(run: Run, front: _Front, elements: Tensor, control: StepControl) -> tuple[Tensor, _Front]:
    """Keep the elements that have further to go; give those that cannot their status and last state."""
    unfinished = front.unfinished
    tiny = front.step < SMALLEST_STEP * torch.maximum(front.time, front.step.new_tensor(1e-6))
    spent = (run.steps + run.rejected)[elements] >= control.max_steps
    for stuck, status in ((tiny, Status.STEP_TOO_SMALL), (spent & ~tiny, Status.MAX_STEPS)):
        lost = torch.nonzero(unfinished & stuck).squeeze(-1)
        run.status[elements[lost]] = int(status)
        for index in lost.tolist():
            stops = front.stops.output[index, int(front.reached[index]) :]
            later = stops[stops >= 0]
            run.concentrations[elements[index], later] = front.state.concentrations[index]
            run.fields[elements[index], later] = front.state.fields[index]
    front, elements = _drop(front, elements, unfinished & ~tiny & ~spent)
    return elements, front


def _drop(front: _Front, elements: Tensor, keep: Tensor) -> tuple[_Front, Tensor]:
    if bool(keep.all()):
        return front, elements
    kept = torch.nonzero(keep).squeeze(-1)
    return front.select(kept), elements[kept]
