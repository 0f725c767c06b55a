r"""One implicit step in time: TR-BDF2, or backward Euler where that must stand in.

Both are two stages of the same form, :math:`V(c - c^\mathrm{known}) + \tau\,\nabla\!\cdot J(c,\phi) = 0` with
Gauss's law, so one batch can hold elements of either. With :math:`\gamma = 2 - \sqrt2` TR-BDF2 is L-stable,
second order, and its two stages share :math:`\tau = \gamma\Delta t/2`. Backward Euler (two half steps of
lengths :math:`\gamma\Delta t` and :math:`(1-\gamma)\Delta t`) is first order and keeps every positive state
positive for any step: it takes the first step after a jump, and a step whose TR-BDF2 stage has no positive
solution.

References:
    Bank et al., IEEE Trans. Electron Devices 32, 1992 (1985);
    Hosea & Shampine, Appl. Numer. Math. 20, 21 (1996).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ..finite_volume.jacobian import jacobian
from ..finite_volume.residual import (
    balances,
    charging_rate,
    field_residual,
    metal_charges,
    species_residual,
)
from ..system import CURRENT, Batched, State, System
from .implicit_gradient import attach_gradient
from .linear import Factorisation, factorise, pin_amounts, pinned_imbalance
from .newton import Newton, newton

STEP_NEWTON = Newton(max_iterations=25, tolerance=1e-6)
GAMMA = 2 - math.sqrt(2)
SPAN = GAMMA * (2 - GAMMA)
ERROR = (-3 * GAMMA**2 + 4 * GAMMA - 2) / (6 * (2 - GAMMA))


@dataclass(frozen=True, eq=False)
class StageProblem(Batched):
    """Balances of one implicit stage of length `step` `(B,)` from `known` `(B, S, N)`, and Gauss's law.

    `charges` `(B, 2)` are those on the electrodes from which driven currents go on; `amounts` `(B, L)` are the
    combinations that the cell keeps.
    """

    system: System
    known: Tensor
    charges: Tensor
    step: Tensor
    amounts: Tensor

    def residual(self, state: State) -> tuple[Tensor, Tensor]:
        """See :class:`~pnp.solvers.newton.Problem`."""
        species = species_residual(self.system, state, known=self.known, step=self.step)
        if self.system.laws:
            species = pin_amounts(species, self.system, state, self.amounts)
        return species, field_residual(self.system, state, known=self.charges, step=self.step)

    def factorise(self, state: State) -> Factorisation:
        """See :class:`~pnp.solvers.newton.Problem`."""
        return factorise(self.system, state, jacobian(self.system, state, step=self.step), pinned=True)

    def imbalance(self, state: State) -> Tensor:
        """See :class:`~pnp.solvers.newton.Problem`."""
        residual = species_residual(self.system, state, known=self.known, step=self.step)
        return pinned_imbalance(self.system, state, residual, self.amounts, self.step)


@dataclass(frozen=True, eq=False)
class Step(Batched):
    """A step to try: where it starts, its length, by which method, and the amounts to keep.

    Attributes:
        state: At the start.
        levels: What the ends impose at the start, after the first stage and at the end, `(B, 3, 2)`.
        length: `(B,)`.
        euler: Whether by backward Euler, `(B,)`.
        amounts: See :class:`StageProblem`.
    """

    system: System
    state: State
    levels: Tensor
    length: Tensor
    euler: Tensor
    amounts: Tensor

    def first_stage(self) -> StageProblem:
        """The equations for the state in the middle."""
        tau = self.length * self._either(GAMMA, GAMMA / 2)
        explicit = tau * self._either(0.0, 1.0)
        start = self.at(0)
        known = self.state.concentrations + explicit[:, None, None] * rate(start, self.state)
        charges = metal_charges(start, self.state) + explicit[:, None] * charging_rates(start, self.state)
        return StageProblem(self.at(1), known, charges, tau, self.amounts)

    def second_stage(self, middle: State) -> StageProblem:
        """The equations for the state at the end."""
        tau = self.length * self._either(1 - GAMMA, GAMMA / 2)
        weight = self._either(1.0, 1 / SPAN)[:, None, None]
        known = weight * middle.concentrations + (1 - weight) * self.state.concentrations
        weight = weight[..., 0]
        charges = weight * metal_charges(self.system, middle) + (1 - weight) * metal_charges(
            self.system, self.state
        )
        return StageProblem(self.at(2), known, charges, tau, self.amounts)

    def take(self) -> "StepResult":
        """Try the step, without gradients."""
        return take_step(self, STEP_NEWTON)

    def traced(self, middle: State | None, end: State) -> State:
        """See :class:`Traceable`."""
        assert middle is not None
        middle = attach_gradient(self.first_stage(), middle)
        return attach_gradient(self.second_stage(middle), end)

    def _either(self, euler: float, tr_bdf2: float) -> Tensor:
        """One number for each method, `(B,)`, in float64: two plain numbers in `torch.where` are float32."""
        is_euler = self.euler.to(torch.float64)
        return is_euler * euler + (1 - is_euler) * tr_bdf2

    def at(self, moment: int) -> System:
        """The system with what the ends impose at the start, the middle or the end."""
        return self.system.with_levels(self.levels[:, moment])


@dataclass(frozen=True, eq=False)
class StepResult(Batched):
    """A step that was tried.

    Attributes:
        end: State at its end.
        error: Local error of the concentrations, `(B, S, N)`.
        converged, iterations: Of Newton's method, `(B,)`.
        middle: State after the first of two stages.
    """

    end: State
    error: Tensor
    converged: Tensor
    iterations: Tensor
    middle: State | None = None


@torch.no_grad()
def take_step(step: Step, settings: Newton) -> StepResult:
    """Try a step, without gradients."""
    first = newton(step.first_stage(), step.state, settings)
    problem = step.second_stage(first.state)
    second = newton(problem, first.state, settings)
    end = with_amounts(step.system, step.amounts, second.state)
    states = (step.state, first.state, end)
    rates = (rate(step.at(moment), state) for moment, state in enumerate(states))
    error = _error(step.length, step.euler, *rates)
    # The stiff part of the estimate is filtered by the matrix of the step itself.
    system = problem.system
    matrix = factorise(system, end, jacobian(system, end, step=problem.step), pinned=False)
    weighted = error * system.volumes[:, None, :]
    filtered = matrix.solve(weighted, torch.zeros_like(end.fields)).concentrations
    return StepResult(
        end,
        filtered,
        first.converged & second.converged,
        first.iterations + second.iterations,
        first.state,
    )


def with_amounts(system: System, amounts: Tensor, state: State) -> State:
    """Without what the positivity of all but empty nodes has added to the `amounts`, a part in 1e10 at most."""
    if system.conserved is not None:
        return state
    found = (system.volumes[:, None, :] * state.concentrations).sum(-1)
    return State(state.concentrations * (amounts / found).unsqueeze(-1), state.fields)


class Traceable(Protocol):
    """A step of some method."""

    def tensors(self) -> list[Tensor]:
        """All that it depends on."""
        ...

    def with_tensors(self, tensors: Iterable[Tensor]) -> Self:
        """The same step with other tensors."""
        ...

    def detach(self) -> Self:
        """The same step without gradients."""
        ...

    def traced(self, middle: State | None, end: State) -> State:
        """The known end of the step, differentiable."""
        ...


def trace_step(step: Traceable, taken: StepResult) -> State:
    """The end of a step that was taken, as a differentiable function of its start and of the system.

    Only the states are kept for the backward pass; matrices are built and factorised there, so that the memory
    of a long run is that of its states.
    """
    tensors = step.tensors()
    return State(*_Recomputed.apply(step, taken, *tensors))


class _Recomputed(torch.autograd.Function):
    """The known end of a step; its graph is built when the backward pass asks for it.

    That is what `torch.utils.checkpoint` does, without solving once more on the way forward.
    """

    @staticmethod
    def forward(ctx: Any, step: Traceable, taken: StepResult, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        ctx.step, ctx.middle = step.detach(), taken.middle
        end = taken.end.concentrations.clone(), taken.end.fields.clone()
        # Saved as the outputs that they are, and so kept once.
        ctx.save_for_backward(*tensors, *end)
        return end

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[2:]
        *saved, concentrations, fields = ctx.saved_tensors
        inputs = [one.detach().requires_grad_(need) for one, need in zip(saved, wanted, strict=True)]
        with torch.enable_grad():
            end = ctx.step.with_tensors(inputs).traced(ctx.middle, State(concentrations, fields))
        needed = [one for one, need in zip(inputs, wanted, strict=True) if need]
        outputs = (end.concentrations, end.fields)
        found = iter(torch.autograd.grad(outputs, needed, grads, allow_unused=True))
        return (None, None, *(next(found) if need else None for need in wanted))


def debye_time(system: System) -> Tensor:
    """Time in which the filling screens a charge, scaled, `(B,)`."""
    strength = (system.valences**2 * system.filling).sum(-1).detach()
    return system.permittivity.detach().amax(-1) / strength.clamp(min=1e-12)


def rate(system: System, state: State) -> Tensor:
    """Rate of change of the concentrations, `(B, S, N)`; zero where a bath holds them."""
    change = -balances(system, state)
    if system.is_periodic:  # the last node is the first, and has no volume of its own
        change = change[..., :-1] / system.volumes[:, None, :-1]
        return torch.cat([change, change[..., :1]], dim=-1)
    change = change / system.volumes[:, None, :]
    for node, end in system.ends:
        if end.bath is not None:
            held = torch.zeros_like(change)
            held[..., node] = 1.0
            change = change * (1 - held)
    return change


def charging_rates(system: System, state: State) -> Tensor:
    """Rates of change of the charges on metals through which a current is driven, zero elsewhere, `(B, 2)`."""
    rates = [
        charging_rate(system, state, node, end) if end.control == CURRENT else torch.zeros_like(end.level)
        for node, end in system.ends
    ]
    return torch.stack(rates, dim=-1)


def _error(step: Tensor, euler: Tensor, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """Local error of the concentrations from the rates at start, middle and end of the step."""
    dt = step[:, None, None]
    third = ERROR * dt * (start / GAMMA - middle / (GAMMA * (1 - GAMMA)) + end / (1 - GAMMA))
    second = dt / 2 * (GAMMA * (middle - start) + (1 - GAMMA) * (end - middle))
    return torch.where(euler[:, None, None], second, third)
