"""Steady states where a cold start fails: follow the cell in time until it settles.

Implicit steps keep every concentration positive and are easy while they are short. They grow as long as they
succeed; a state that no longer changes in steps of many diffusion times is where Newton's method on the steady
equations starts again. Where there is no steady state (above a limiting current) the steps stop growing.
"""

import torch
from torch import Tensor

from ..finite_volume.residual import metal_charges
from ..system import State, System
from .newton import Newton, NewtonResult, Problem, newton
from .start import poisson_potential
from .time_step import StageProblem, debye_time

SETTLED = 1e6
"""Length of a step, in diffusion times of the fastest species, after which nothing is left to settle."""
MOST_STEPS = 150
STEP = Newton(max_iterations=12, tolerance=1e-5)
GROW, GROW_FAST, SHRINK = 2.0, 6.0, 0.15
EASY = 5
"""Up to so many iterations a step was easy, and the next one may be much longer."""


@torch.no_grad()
def settle(system: System, start: State) -> tuple[State, Tensor, Tensor]:
    """States after steps that grow beyond all time scales, whether they did, and the iterations spent."""
    fields = start.fields.clone()
    fields[:, 0] = poisson_potential(system, start.concentrations)
    state = State(start.concentrations, fields)
    tau = 0.1 * debye_time(system)
    iterations = torch.zeros_like(tau, dtype=torch.int64)
    smallest = 1e-8 * tau
    for _ in range(MOST_STEPS):
        open_ = torch.nonzero((tau < SETTLED) & (tau > smallest)).squeeze(-1)
        if not open_.numel():
            break
        part, here = system.select(open_), state.select(open_)
        charges = metal_charges(part, here)
        step = StageProblem(part, here.concentrations, charges, tau[open_], part.kept)
        found = newton(step, here, STEP)
        iterations[open_] += found.iterations
        good = torch.nonzero(found.converged).squeeze(-1)
        state = state.replaced(open_[good], found.state.select(good))
        grow = torch.where(found.iterations <= EASY, GROW_FAST, GROW)
        tau[open_] *= torch.where(found.converged, grow, SHRINK)
    return state, tau >= SETTLED, iterations


def newton_after_settling(problem: Problem, start: State, settings: Newton) -> NewtonResult:
    """Newton's method on the steady `problem`, from where the cell settles that starts at `start`."""
    state, settled, spent = settle(problem.system, start)
    result = newton(problem, state, settings)
    return NewtonResult(result.state, result.converged & settled, result.iterations + spent, result.change)
