"""Steady states by fully coupled Newton iterations from a cold start."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..boundaries import Electrode
from ..cell import Cell
from ..finite_volume.jacobian import jacobian
from ..finite_volume.residual import field_residual, species_residual
from ..grid import Grid
from ..scaling import Scales, scale
from ..solution import Solution
from ..system import State, System
from .equilibrium import (
    DEFAULT_NODES,
    boltzmann,
    compiled_equilibrium,
    equilibrium_gradient,
    minimise,
    resting_fields,
    solve_equilibrium,
)
from .finish import failed_status, finish, steady_statistics
from .implicit_gradient import attach_gradient
from .linear import FEW_SPECIES, Factorisation, factorise, pin_amounts, pinned_imbalance
from .newton import NEGLIGIBLE, Newton, NewtonResult, newton
from .pseudo_time import newton_after_settling
from .start import start_state

AT_REST = 1e-6
"""Largest difference of an electrochemical potential, in thermal voltages, that counts as equilibrium."""


@dataclass(frozen=True, eq=False)
class SteadyProblem:
    """Balance of every species, Gauss's law and the amounts that the cell conserves."""

    system: System

    def residual(self, state: State) -> tuple[Tensor, Tensor]:
        """See :class:`~pnp.solvers.newton.Problem`."""
        species = species_residual(self.system, state)
        if self.system.laws:
            species = pin_amounts(species, self.system, state, self.system.kept)
        return species, field_residual(self.system, state)

    def factorise(self, state: State) -> Factorisation:
        """See :class:`~pnp.solvers.newton.Problem`."""
        return factorise(self.system, state, jacobian(self.system, state), pinned=True)

    def imbalance(self, state: State) -> Tensor:
        """See :class:`~pnp.solvers.newton.Problem`."""
        residual = species_residual(self.system, state)
        return pinned_imbalance(self.system, state, residual, self.system.kept)

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

    A cell closed at both ends keeps the amounts of its filling (with reactions: what they conserve). Every
    batch element iterates and converges on its own, from a cold start. In cells that come to rest
    elements that fail are solved again as equilibria (:func:`solve_equilibrium`), and so are all of more
    than six species; in others they are followed in time until they settle. Waveforms count with
    their value at time zero. Cells of point ions that come to rest are solved by compiled kernels
    (:mod:`pnp.compiled`) where numba is installed; `solution.stats.solver` says which it was.

    The solution is differentiable with respect to every number of the cell (and to the positions of the
    grid) by the implicit function theorem, at the cost of one transposed linear solve. How strongly a refined
    grid is graded counts as a constant: pass `grid` to compare with finite differences.

    Arguments:
        cell: What to solve; batch axes anywhere in it are batch axes of the solution.
        grid: Default: `Grid.refined(cell, 201)`.
        initial: A solution on as many nodes to start from; default: the filling and a linear potential.
        throw: Whether an element that fails raises; otherwise see `solution.status`.
        newton_settings: Settings of Newton's method.

    Raises:
        SolveError: `throw` and some element failed; says which, how far they got and what to try.
        ValueError: `grid` or `initial` do not fit the cell, or a current is driven through a blocking electrode,
            which never comes to a steady state.

    Warns:
        UnderResolvedWarning: The spacing at a wall exceeds the local Debye length.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> rest = pnp.solve_steady(cell)
        >>> f"{float(pnp.diffuse_charge(rest)):.4f}"
        '0.3072'
    """
    grid = Grid.refined(cell, DEFAULT_NODES) if grid is None else grid
    for end in (cell.left, cell.right):
        if isinstance(end, Electrode) and end.current is not None and not end.reactions:
            raise ValueError(
                "solve_steady: a current through a blocking electrode charges it for ever; give the electrode "
                "a reaction or a potential, or use solve_transient."
            )
    if cell.comes_to_rest and len(cell.electrolyte.species) > FEW_SPECIES:
        return solve_equilibrium(cell, grid, initial=initial, throw=throw, newton_settings=newton_settings)
    system, scales = scale(cell, grid)
    problem = SteadyProblem(system.detach())
    result, resting, solver = _search(problem, scales, initial, cell, newton_settings)
    state = _differentiable(system, result, resting) if system.requires_grad() else result.state
    status = failed_status(result.converged, result.change)
    return finish(
        cell,
        grid,
        scales,
        state,
        status,
        steady_statistics(result, solver),
        throw,
        again=lambda other: solve_steady(cell, other, throw=throw, newton_settings=newton_settings),
    )


def _search(
    problem: SteadyProblem, scales: Scales, initial: Solution | None, cell: Cell, settings: Newton
) -> tuple[NewtonResult, Tensor, str]:
    """Steady states by the quickest way that works, the elements that the convex problem decided, and the solver.

    Compiled equilibria where there are any; else Newton's method, and what fails and comes to rest, as an
    equilibrium. What still fails is followed in time from the filling.
    """
    system = problem.system
    result, resting, solver = None, system.volumes.new_empty(0, dtype=torch.int64), "compiled"
    if cell.comes_to_rest:
        fields = None if initial is None else start_state(system, scales, initial).fields
        result = compiled_equilibrium(system, fields, settings)
    if result is not None:
        resting = torch.nonzero(result.converged).squeeze(-1)
    else:
        result, solver = newton(problem, start_state(system, scales, initial), settings), "torch"
        if cell.comes_to_rest:
            resting = _not_at_rest(system, result)
            part = system.select(resting)
            if resting.numel():
                result = _improved(result, resting, minimise(part, resting_fields(part), settings))
    failed = torch.nonzero(~result.converged).squeeze(-1)
    if failed.numel():
        filled = start_state(system, scales, None)
        again = newton_after_settling(problem.select(failed), filled.select(failed), settings)
        result = _improved(result, failed, again)
    if cell.comes_to_rest and solver == "torch":
        result = _at_rest(system, result)
    if cell.comes_to_rest and cell.ground is not None:
        # A ground can tear a cell almost, and then the coupled matrix has lost the digits that decide how
        # many ions are on either side.
        resting = torch.arange(result.converged.numel(), device=resting.device)
    return result, resting, solver


def _at_rest(system: System, result: NewtonResult) -> NewtonResult:
    """With the concentrations that belong to the fields, which are right also where next to none are left."""
    solved = torch.nonzero(result.converged).squeeze(-1)
    fields = result.state.fields[solved]
    resting = State(boltzmann(system.select(solved), fields), fields)
    return replace(result, state=result.state.replaced(solved, resting))


def _improved(result: NewtonResult, elements: Tensor, again: NewtonResult) -> NewtonResult:
    total = again.iterations + result.iterations[elements]
    return result.replaced(elements, replace(again, iterations=total))


def _not_at_rest(system: System, result: NewtonResult) -> Tensor:
    """Indices of elements that failed, or that look steady and are not the equilibrium of their cell.

    A depleted region can tear a species into parts that no flux above rounding joins. Any share of it on
    either side then satisfies the balances, and the matrix that should fix the amount is singular; only one
    share has the amount and the same electrochemical potential on both sides.
    """
    c = result.state.concentrations
    energy = torch.einsum("bsp,bpn->bsn", system.couplings, result.state.fields)
    electrochemical = torch.log(c) + energy
    there = c > NEGLIGIBLE * c.amax(-1, keepdim=True)
    highest = torch.where(there, electrochemical, -torch.inf).amax(-1)
    lowest = torch.where(there, electrochemical, torch.inf).amin(-1)
    settled = result.converged & ((highest - lowest) < AT_REST).all(-1)
    if system.laws:
        amounts = (system.volumes[:, None, :] * c).sum(-1)
        settled = settled & ((amounts / system.amounts - 1).abs() < AT_REST).all(-1)
    return torch.nonzero(~settled).squeeze(-1)


def _differentiable(system: System, result: NewtonResult, resting: Tensor) -> State:
    """Attach implicit gradients to what converged, to elements `resting` those of the convex problem."""
    state = result.state
    if resting.numel() == int(result.converged.sum()):
        return equilibrium_gradient(system, result)
    coupled = torch.nonzero(result.converged.index_fill(0, resting, False)).squeeze(-1)
    if coupled.numel():
        attached = attach_gradient(SteadyProblem(system.select(coupled)), result.state.select(coupled))
        state = state.replaced(coupled, attached)
    if resting.numel():
        settled = equilibrium_gradient(system.select(resting), result.select(resting))
        state = state.replaced(resting, settled)
    return state
