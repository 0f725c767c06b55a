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
from dataclasses import dataclass

import torch
from torch import Tensor

from ..finite_volume.jacobian import jacobian
from ..finite_volume.residual import divergence, ion_fluxes, poisson_residual, species_residual
from ..scaling import Batched, State, System
from .implicit_gradient import attach_gradient
from .linear import Factorisation, PinnedAmounts, factorise, pin_amounts
from .newton import Newton, newton

GAMMA = 2 - math.sqrt(2)
_SPAN = GAMMA * (2 - GAMMA)
_ERROR = (-3 * GAMMA**2 + 4 * GAMMA - 2) / (6 * (2 - GAMMA))


@dataclass(frozen=True, eq=False)
class StageProblem(Batched):
    """Balances of one implicit stage of length `step` `(B,)` from `known` `(B, S, N)`, and Gauss's law.

    `amounts` `(B, S)` are what a closed cell has to keep; None: the balances alone keep them.
    """

    system: System
    known: Tensor
    step: Tensor
    amounts: Tensor | None

    def residual(self, state: State) -> tuple[Tensor, Tensor]:
        """See :class:`~pnp.solvers.newton.Problem`."""
        species = species_residual(self.system, state, known=self.known, step=self.step)
        if self.amounts is not None:
            species = pin_amounts(species, self.system, state, self.amounts)
        return species, poisson_residual(self.system, state)

    def factorise(self, state: State) -> Factorisation:
        """See :class:`~pnp.solvers.newton.Problem`."""
        matrix = jacobian(self.system, state, step=self.step)
        return factorise(matrix) if self.amounts is None else PinnedAmounts(matrix, self.system, state)


@dataclass(frozen=True, eq=False)
class Step(Batched):
    """A step to try: where it starts, its length, by which method, and the amounts to keep.

    Attributes:
        state: At the start.
        length: `(B,)`.
        euler: Whether by backward Euler, `(B,)`.
        amounts: See :class:`StageProblem`.
    """

    system: System
    state: State
    length: Tensor
    euler: Tensor
    amounts: Tensor | None

    def first_stage(self) -> StageProblem:
        """The equations for the state in the middle."""
        tau = self.length * torch.where(self.euler, GAMMA, GAMMA / 2)
        explicit = torch.where(self.euler, 0.0, tau)[:, None, None] * rate(self.system, self.state)
        return StageProblem(self.system, self.state.concentrations + explicit, tau, self.amounts)

    def second_stage(self, middle: State) -> StageProblem:
        """The equations for the state at the end."""
        tau = self.length * torch.where(self.euler, 1 - GAMMA, GAMMA / 2)
        weight = torch.where(self.euler, 1.0, 1 / _SPAN)[:, None, None]
        known = weight * middle.concentrations + (1 - weight) * self.state.concentrations
        return StageProblem(self.system, known, tau, self.amounts)


@dataclass(frozen=True, eq=False)
class StepResult(Batched):
    """A step that was tried.

    Attributes:
        middle, end: States after the two stages.
        error: Local error of the concentrations, `(B, S, N)`.
        converged, iterations: Of Newton's method, `(B,)`.
    """

    middle: State
    end: State
    error: Tensor
    converged: Tensor
    iterations: Tensor


@torch.no_grad()
def take_step(step: Step, settings: Newton) -> StepResult:
    """Try a step, without gradients."""
    first = newton(step.first_stage(), step.state, settings)
    problem = step.second_stage(first.state)
    second = newton(problem, first.state, settings)
    rates = (rate(step.system, state) for state in (step.state, first.state, second.state))
    error = _error(step.length, step.euler, *rates)
    # The stiff part of the estimate is filtered by the matrix of the step itself.
    matrix = factorise(jacobian(step.system, second.state, step=problem.step))
    weighted = error * step.system.volumes[:, None, :]
    filtered = matrix.solve(weighted, torch.zeros_like(second.state.potential)).concentrations
    return StepResult(
        first.state,
        second.state,
        filtered,
        first.converged & second.converged,
        first.iterations + second.iterations,
    )


def trace_step(step: Step, taken: StepResult) -> State:
    """The end of a step that was taken, as a differentiable function of its start and of the system."""
    middle = attach_gradient(step.first_stage(), taken.middle)
    return attach_gradient(step.second_stage(middle), taken.end)


def rate(system: System, state: State) -> Tensor:
    """Rate of change of the concentrations by the fluxes, `(B, S, N)`; zero where a bath holds them."""
    change = -divergence(ion_fluxes(system, state)) / system.volumes[:, None, :]
    for node, end in ((0, system.left), (-1, system.right)):
        if end.bath is not None:
            held = torch.zeros_like(change)
            held[..., node] = 1.0
            change = change * (1 - held)
    return change


def _error(step: Tensor, euler: Tensor, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """Local error of the concentrations from the rates at start, middle and end of the step."""
    dt = step[:, None, None]
    third = _ERROR * dt * (start / GAMMA - middle / (GAMMA * (1 - GAMMA)) + end / (1 - GAMMA))
    second = dt / 2 * (GAMMA * (middle - start) + (1 - GAMMA) * (end - middle))
    return torch.where(euler[:, None, None], second, third)
