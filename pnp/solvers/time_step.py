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
from ..scaling import State, System
from .implicit_gradient import attach_gradient
from .linear import Factorisation, factorise
from .newton import Newton, newton

GAMMA = 2 - math.sqrt(2)
_SPAN = GAMMA * (2 - GAMMA)
_ERROR = (-3 * GAMMA**2 + 4 * GAMMA - 2) / (6 * (2 - GAMMA))


@dataclass(frozen=True, eq=False)
class StageProblem:
    """Balances of one implicit stage of length `step` `(B,)` from `known` `(B, S, N)`, and Gauss's law."""

    system: System
    known: Tensor
    step: Tensor

    def residual(self, state: State) -> tuple[Tensor, Tensor]:
        """See :class:`~pnp.solvers.newton.Problem`."""
        species = species_residual(self.system, state, known=self.known, step=self.step)
        return species, poisson_residual(self.system, state)

    def factorise(self, state: State) -> Factorisation:
        """See :class:`~pnp.solvers.newton.Problem`."""
        return factorise(jacobian(self.system, state, step=self.step))

    def select(self, elements: Tensor) -> "StageProblem":
        """See :class:`~pnp.solvers.newton.Problem`."""
        return StageProblem(self.system.select(elements), self.known[elements], self.step[elements])

    def detach(self) -> "StageProblem":
        """The same stage without gradients."""
        return StageProblem(self.system.detach(), self.known.detach(), self.step)


@dataclass(frozen=True, eq=False)
class StepResult:
    """A step that was tried: end state, local error `(B, S, N)`, and what Newton's method did, `(B,)`."""

    state: State
    error: Tensor
    converged: Tensor
    iterations: Tensor


def take_step(system: System, state: State, step: Tensor, euler: Tensor, settings: Newton) -> StepResult:
    """Try a step of length `step` `(B,)` from `state`, by backward Euler where `euler` `(B,)`."""
    start_rate = rate(system, state)
    tau = step * torch.where(euler, GAMMA, GAMMA / 2)
    explicit = torch.where(euler, 0.0, tau)[:, None, None] * start_rate
    middle, converged, iterations = _stage(system, state, state.concentrations + explicit, tau, settings)
    middle_rate = rate(system, middle)
    weight = torch.where(euler, 1.0, 1 / _SPAN)[:, None, None]
    known = weight * middle.concentrations + (1 - weight) * state.concentrations
    tau = step * torch.where(euler, 1 - GAMMA, GAMMA / 2)
    end, also, more = _stage(system, middle, known, tau, settings)
    with torch.no_grad():
        error = _error(step, euler, start_rate, middle_rate, rate(system, end))
        # The stiff part of the estimate is filtered by the matrix of the step itself.
        matrix = StageProblem(system.detach(), known.detach(), tau).factorise(end.detach())
        error = matrix.solve(_without_baths(system, error), torch.zeros_like(end.potential)).concentrations
    return StepResult(end, error, converged & also, iterations + more)


def rate(system: System, state: State) -> Tensor:
    """Rate of change of the concentrations by the fluxes, `(B, S, N)`; zero where a bath holds them."""
    change = -divergence(ion_fluxes(system, state)) / system.volumes[:, None, :]
    for node, end in ((0, system.left), (-1, system.right)):
        if end.bath is not None:
            held = torch.zeros_like(change)
            held[..., node] = 1.0
            change = change * (1 - held)
    return change


def _stage(
    system: System, start: State, known: Tensor, tau: Tensor, settings: Newton
) -> tuple[State, Tensor, Tensor]:
    problem = StageProblem(system, known, tau)
    fixed = problem.detach()
    result = newton(fixed, start.detach(), settings)
    if not (torch.is_grad_enabled() and (system.requires_grad() or known.requires_grad)):
        return result.state, result.converged, result.iterations
    with torch.no_grad():
        factorisation = fixed.factorise(result.state)
    state = attach_gradient(result.state, factorisation, problem.residual(result.state))
    return state, result.converged, result.iterations


def _error(step: Tensor, euler: Tensor, start: Tensor, middle: Tensor, end: Tensor) -> Tensor:
    """Local error of the concentrations from the rates at start, middle and end of the step."""
    dt = step[:, None, None]
    third = _ERROR * dt * (start / GAMMA - middle / (GAMMA * (1 - GAMMA)) + end / (1 - GAMMA))
    second = dt / 2 * (GAMMA * (middle - start) + (1 - GAMMA) * (end - middle))
    return torch.where(euler[:, None, None], second, third)


def _without_baths(system: System, error: Tensor) -> Tensor:
    weighted = error * system.volumes[:, None, :]
    for node, end in ((0, system.left), (-1, system.right)):
        if end.bath is not None:
            weighted[..., node] = 0.0
    return weighted
