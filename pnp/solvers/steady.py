"""Steady states by fully coupled Newton iterations from a cold start."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..cell import Cell
from ..finite_volume.jacobian import jacobian
from ..finite_volume.residual import poisson_residual, species_residual
from ..grid import Grid
from ..scaling import State, System, scale
from ..solution import Solution
from .equilibrium import equilibrium_gradient, minimise, solve_equilibrium
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
    on its own, from a cold start; in cells that come to rest (at most one reservoir) elements that fail are
    solved again as equilibria (:func:`solve_equilibrium`), and so are all of more than six species.

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
    resting = _not_at_rest(problem.system, result) if cell.comes_to_rest else result.iterations.new_empty(0)
    if resting.numel():
        part = problem.system.select(resting)
        rest = minimise(part, laplace_potential(part), newton_settings)
        total = rest.iterations + result.iterations[resting]
        result = result.replaced(resting, replace(rest, iterations=total))
    state = _differentiable(system, result, resting) if system.requires_grad() else result.state
    status = failed_status(result.converged, result.change)
    return finish(cell, grid, scales, state, status, steady_statistics(result), throw)


def _not_at_rest(system: System, result: NewtonResult) -> Tensor:
    """Indices of elements that failed, or that look steady and are not the equilibrium of their cell.

    A depleted region can tear a species into parts that no flux above rounding joins. Any share of it on
    either side then satisfies the balances, and the matrix that should fix the amount is singular; only one
    share has the amount and the same electrochemical potential on both sides.
    """
    c = result.state.concentrations
    electrochemical = torch.log(c) + system.valences[:, :, None] * result.state.potential[:, None, :]
    there = c > NEGLIGIBLE * c.amax(-1, keepdim=True)
    highest = torch.where(there, electrochemical, -torch.inf).amax(-1)
    lowest = torch.where(there, electrochemical, torch.inf).amin(-1)
    settled = result.converged & ((highest - lowest) < AT_REST).all(-1)
    if system.is_closed:
        amounts = (system.volumes[:, None, :] * c).sum(-1)
        settled = settled & ((amounts / system.amounts - 1).abs() < AT_REST).all(-1)
    return torch.nonzero(~settled).squeeze(-1)


def _differentiable(system: System, result: NewtonResult, resting: Tensor) -> State:
    """Attach implicit gradients to what converged, to elements `resting` those of the convex problem.

    A ground can tear a cell almost, and then the coupled matrix has lost the digits that decide how many
    ions are on either side, so there all gradients of a cell at rest are those of the convex problem.
    """
    at_most_one_bath = system.left.bath is None or system.right.bath is None
    if system.ground_node is not None and at_most_one_bath:
        return equilibrium_gradient(system, result)
    coupled = torch.nonzero(result.converged.index_fill(0, resting, False)).squeeze(-1)
    attached = attach_gradient(SteadyProblem(system.select(coupled)), result.state.select(coupled))
    state = result.state.replaced(coupled, attached)
    if resting.numel():
        settled = equilibrium_gradient(system.select(resting), result.select(resting))
        state = state.replaced(resting, settled)
    return state
