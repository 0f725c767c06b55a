"""Steady states by fully coupled Newton iterations from a cold start."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..cell import Cell
from ..finite_volume.jacobian import jacobian
from ..finite_volume.residual import poisson_residual, species_residual
from ..grid import Grid
from ..scaling import State, System, scale
from ..solution import Solution
from .equilibrium import minimise, solve_equilibrium
from .finish import failed_status, finish, steady_statistics
from .implicit_gradient import attach_gradient
from .linear import FEW_SPECIES, Factorisation, PinnedAmounts, factorise, pin_amounts
from .newton import NEGLIGIBLE, Newton, NewtonResult, newton
from .start import laplace_potential, start_state

DEFAULT_NODES = 200
AT_REST = 1e-6
"""Largest difference of an electrochemical potential, in thermal voltages, that counts as equilibrium."""


@dataclass(frozen=True, eq=False)
class SteadyProblem:
    """Vanishing divergence of every flux, Gauss's law and, in a closed cell, the amounts of the filling."""

    system: System

    def residual(self, state: State) -> tuple[Tensor, Tensor]:
        """See :class:`~pnp.solvers.newton.Problem`."""
        species = species_residual(self.system, state)
        if self.system.is_closed:
            species = pin_amounts(species, self.system, state, self.system.amounts)
        return species, poisson_residual(self.system, state)

    def factorise(self, state: State) -> Factorisation:
        """See :class:`~pnp.solvers.newton.Problem`."""
        matrix = jacobian(self.system, state)
        return PinnedAmounts(matrix, self.system, state) if self.system.is_closed else factorise(matrix)

    def select(self, elements: Tensor) -> "SteadyProblem":
        """See :class:`~pnp.solvers.newton.Problem`."""
        return SteadyProblem(self.system.select(elements))

    def detach(self) -> "SteadyProblem":
        """See :class:`~pnp.solvers.newton.Problem`."""
        return SteadyProblem(self.system.detach())


def solve_steady(
    cell: Cell,
    grid: Grid | None = None,
    *,
    initial: Solution | None = None,
    throw: bool = True,
    newton_settings: Newton = Newton(),  # noqa: B008 (frozen)
) -> Solution:
    r"""Steady state of a cell: constant ion fluxes, :math:`\nabla\cdot J_i = 0`, and Gauss's law.

    A cell closed at both ends keeps the amounts of its filling. Every batch element iterates and converges
    on its own, from a cold start; elements that fail and come to rest (at most one reservoir) are tried
    again from their equilibrium potential. Such cells of more than six species are solved as the
    equilibria they are (:func:`solve_equilibrium`).

    The solution is differentiable with respect to every number of the cell (and to the positions of the
    grid) by the implicit function theorem, at the cost of one transposed linear solve. How strongly a refined
    grid is graded counts as a constant: pass `grid` to compare with finite differences.

    Arguments:
        cell: What to solve; batch axes anywhere in it are batch axes of the solution.
        grid: Default: `Grid.refined(cell, 200)`.
        initial: A solution on as many nodes to start from; default: the filling and a linear potential.
        throw: Whether an element that fails raises; otherwise see `solution.status`.
        newton_settings: Settings of Newton's method.

    Raises:
        SolveError: `throw` and some element failed; says which, how far they got and what to try.
        ValueError: `grid` or `initial` do not fit the cell.

    Warns:
        UnderResolvedWarning: The spacing at a wall exceeds the local Debye length.
    """
    grid = Grid.refined(cell, DEFAULT_NODES) if grid is None else grid
    if cell.comes_to_rest and len(cell.electrolyte.species) > FEW_SPECIES:
        return solve_equilibrium(cell, grid, initial=initial, throw=throw, newton_settings=newton_settings)
    system, scales = scale(cell, grid)
    problem = SteadyProblem(system.detach())
    result = newton(problem, start_state(problem.system, scales, initial), newton_settings)
    if cell.comes_to_rest:
        failed = _not_at_rest(problem.system, result)
        if failed.numel():
            result = _restart_from_equilibrium(problem, result, failed, newton_settings)
    state = _differentiable(system, result) if system.requires_grad() else result.state
    return finish(
        cell,
        grid,
        scales,
        state,
        failed_status(result.converged, result.change),
        steady_statistics(result),
        throw,
    )


def _restart_from_equilibrium(
    problem: SteadyProblem, result: NewtonResult, failed: Tensor, settings: Newton
) -> NewtonResult:
    """Solve the elements `failed` again, from the minimum of the convex functional of a cell at rest.

    The cold start is quicker where it works; this works where double layers are extreme.
    """
    part = problem.select(failed)
    rest = minimise(part.system, laplace_potential(part.system), settings)
    again = newton(part, rest.state, settings)

    def put(old: Tensor, new: Tensor) -> Tensor:
        return old.index_copy(0, failed, new)

    return NewtonResult(
        State(
            put(result.state.concentrations, again.state.concentrations),
            put(result.state.potential, again.state.potential),
        ),
        put(result.converged, again.converged),
        result.iterations.index_add(0, failed, rest.iterations + again.iterations),
        put(result.change, again.change),
    )


def _not_at_rest(system: System, result: NewtonResult) -> Tensor:
    """Indices of elements that failed, or whose ions are not in equilibrium with each other.

    A depleted region can split a species into two parts that no flux above rounding joins: any share of them
    satisfies the balances, but only one has the same electrochemical potential on both sides.
    """
    c = result.state.concentrations
    electrochemical = torch.log(c) + system.valences[:, :, None] * result.state.potential[:, None, :]
    there = c > NEGLIGIBLE * c.amax(-1, keepdim=True)
    highest = torch.where(there, electrochemical, -torch.inf).amax(-1)
    lowest = torch.where(there, electrochemical, torch.inf).amin(-1)
    at_rest = result.converged & ((highest - lowest) < AT_REST).all(-1)
    return torch.nonzero(~at_rest).squeeze(-1)


def _differentiable(system: System, result: NewtonResult) -> State:
    """Attach implicit gradients to the elements that converged; the others stay constants."""
    solved = torch.nonzero(result.converged).squeeze(-1)
    attached = attach_gradient(SteadyProblem(system.select(solved)), result.state.select(solved))
    return State(
        result.state.concentrations.index_copy(0, solved, attached.concentrations),
        result.state.potential.index_copy(0, solved, attached.potential),
    )
