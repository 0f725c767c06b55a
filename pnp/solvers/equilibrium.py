r"""Equilibrium of a cell with any number of species: one convex problem in the potential.

A cell with at most one reservoir comes to rest with no flux at all. Species meet only through the
potential, and each is a Boltzmann distribution that keeps its amount, or what the reservoir holds,

.. math:: c_j(x) = N_j \frac{e^{-z_j\phi(x)}}{\int e^{-z_j\phi}\,dx}
          \qquad\text{or}\qquad c_j(x) = c^\mathrm{bath}_j\,e^{-z_j(\phi(x) - \phi^\mathrm{bath})},

so the cell is the minimum of the strictly convex

.. math:: G(\phi) = \int \frac{\epsilon}{2}|\phi'|^2 - \rho_\mathrm{fixed}\,\phi\;dx
          + \sum_\mathrm{Stern}\frac{C_S}{2}(\phi - U)^2
          + \sum_j N_j \ln\int e^{-z_j\phi}\,dx

(for a reservoir the last term is :math:`\sum_j\int c_j\,dx`).

Newton's method with backtracking finds it from the Laplace field. The cost is linear in the species; the
discrete solution is the very one that the coupled steady solver finds, because the Scharfetter-Gummel flux
vanishes exactly for Boltzmann distributions.

References:
    Lee, Lee, Hyon, Lin & Liu, Nonlinearity 24, 431 (2011), charge-conserving Poisson-Boltzmann equations.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..cell import Cell
from ..finite_volume.jacobian import poisson_matrix
from ..finite_volume.residual import held_nodes, poisson_residual
from ..grid import Grid
from ..scaling import State, System, scale
from ..solution import Solution
from .finish import failed_status, finish, steady_statistics
from .newton import Newton, NewtonResult
from .start import check_initial, laplace_potential

DEFAULT_NODES = 200
SUFFICIENT_DECREASE = 1e-4
MOST_HALVINGS = 40


def solve_equilibrium(
    cell: Cell,
    grid: Grid | None = None,
    *,
    initial: Solution | None = None,
    throw: bool = True,
    newton_settings: Newton = Newton(max_iterations=200),  # noqa: B008 (frozen)
) -> Solution:
    """Equilibrium of a cell with at most one reservoir, for any number of species.

    Differentiable with respect to every number of the cell, at the cost of one more linear solve.

    Arguments:
        cell: A cell with a blocking electrode at one end or both.
        grid: Default: `Grid.refined(cell, 200)`.
        initial: A solution on as many nodes whose potential to start from; default: the Laplace field.
        throw: Whether an element that fails raises; otherwise see `solution.status`.
        newton_settings: Settings of Newton's method.

    Raises:
        SolveError: `throw` and some element failed.
        ValueError: The cell has two reservoirs, or `grid` or `initial` do not fit it.

    Warns:
        UnderResolvedWarning: The spacing at a wall exceeds the local Debye length.
    """
    if not cell.comes_to_rest:
        raise ValueError("solve_equilibrium: a cell with two reservoirs is never at rest; use solve_steady.")
    grid = Grid.refined(cell, DEFAULT_NODES) if grid is None else grid
    system, scales = scale(cell, grid)
    fixed = system.detach()
    start = laplace_potential(fixed)
    if initial is not None:
        check_initial(initial, fixed, scales)
        start = _held_to(
            fixed, scales.to_scaled(initial.concentrations, initial.potential).potential.detach()
        )
    result = minimise(fixed, start, newton_settings)
    state = result.state
    if system.requires_grad():
        state = equilibrium_gradient(system, result)
    status = failed_status(result.converged, result.change)
    return finish(cell, grid, scales, state, status, steady_statistics(result), throw)


class _Bath(NamedTuple):
    """What the reservoir holds: concentrations `(B, S)` and potential `(B,)`."""

    concentrations: Tensor
    potential: Tensor


def boltzmann(system: System, potential: Tensor) -> Tensor:
    """Concentrations in equilibrium with a potential `(B, N)`, `(B, S, N)`."""
    bath = _bath(system)
    if bath is not None:
        lifted = system.valences[:, :, None] * (potential - bath.potential[:, None])[:, None, :]
        return bath.concentrations[:, :, None] * torch.exp(-lifted)
    exponent = -system.valences[:, :, None] * potential[:, None, :]
    exponent = exponent - exponent.detach().amax(-1, keepdim=True)
    weight = torch.exp(exponent)
    return weight * (system.amounts / (system.volumes[:, None, :] * weight).sum(-1))[..., None]


def _bath(system: System) -> _Bath | None:
    for end in (system.left, system.right):
        if end.bath is not None:
            return _Bath(end.bath, end.potential)
    return None


def functional(system: System, potential: Tensor) -> Tensor:
    """The convex functional G of a potential, `(B,)`."""
    field = (system.permittivity[:, None] / 2 * potential.diff(dim=-1) ** 2 / system.spacings).sum(-1)
    if system.is_closed:
        exponent = torch.log(system.volumes)[:, None, :] - system.valences[:, :, None] * potential[:, None, :]
        mobile = (system.amounts * torch.logsumexp(exponent, dim=-1)).sum(-1)
    else:
        mobile = (system.volumes[:, None, :] * boltzmann(system, potential)).sum((-2, -1))
    value = field + mobile - (system.volumes * system.fixed_charge * potential).sum(-1)
    for node, end in ((0, system.left), (-1, system.right)):
        if end.stern_capacitance is not None:
            value = value + end.stern_capacitance / 2 * (potential[:, node] - end.potential) ** 2
    return value


@dataclass(frozen=True, eq=False)
class _Curvature:
    """Cholesky factor of the second derivative of G, with held potentials as identity rows."""

    factor: Tensor
    free: Tensor

    def solve(self, residual: Tensor) -> Tensor:
        """Newton update for a residual of Gauss's law, `(B, N)`; differentiable."""
        return torch.cholesky_solve((residual * self.free).unsqueeze(-1), self.factor).squeeze(-1)


def _curvature(system: System, concentrations: Tensor) -> _Curvature:
    free = torch.ones_like(system.volumes[0])
    free[held_nodes(system)] = 0.0
    share = system.volumes[:, None, :] * concentrations
    charge = system.valences[:, :, None] ** 2 * share
    matrix = poisson_matrix(system).dense() + torch.diag_embed(charge.sum(1))
    if system.is_closed:
        matrix = matrix - torch.einsum("bsn,bsm->bnm", charge / system.amounts[..., None], share)
    matrix = matrix * free * free[:, None]
    return _Curvature(torch.linalg.cholesky_ex(matrix + torch.diag(1 - free)).L, free)


@torch.no_grad()
def minimise(system: System, potential: Tensor, settings: Newton) -> NewtonResult:
    """Newton's method with backtracking on G for every element of the batch, from `potential` `(B, N)`."""
    batch, device = potential.shape[0], potential.device
    iterations = torch.zeros(batch, dtype=torch.int64, device=device)
    change = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
    converged = torch.zeros(batch, dtype=torch.bool, device=device)
    potential, active, current = potential.clone(), torch.arange(batch, device=device), system
    for _ in range(settings.max_iterations):
        here = potential[active]
        c = boltzmann(current, here)
        residual = poisson_residual(current, State(c, here))
        update = _curvature(current, c).solve(residual)
        fraction = _backtrack(current, here, update, residual)
        moved = (fraction[:, None] * update).abs().amax(-1) / (1 + here.abs().amax(-1))
        finite = torch.isfinite(update).all(-1)
        potential[active[finite]] = (here - fraction[:, None] * update)[finite]
        change[active] = torch.where(finite, moved, torch.nan)
        iterations[active] += 1
        done = finite & (fraction == 1) & (moved < settings.tolerance)
        converged[active] = done
        proceed = torch.nonzero(finite & ~done).squeeze(-1)
        if proceed.numel() == 0:
            break
        if proceed.numel() < active.numel():
            active, current = active[proceed], current.select(proceed)
    return NewtonResult(State(boltzmann(system, potential), potential), converged, iterations, change)


def _backtrack(system: System, potential: Tensor, update: Tensor, residual: Tensor) -> Tensor:
    """Fraction of the update that decreases G enough, `(B,)`."""
    value = functional(system, potential)
    descent = (update * residual).sum(-1)
    # Differences of G below its own rounding say nothing.
    rounding = 1e-13 * (1 + value.abs())
    fraction = torch.ones_like(value)
    for _ in range(MOST_HALVINGS):
        trial = functional(system, potential - fraction[:, None] * update)
        poor = ~(trial <= value - SUFFICIENT_DECREASE * fraction * descent + rounding)
        if not bool(poor.any()):
            break
        fraction = torch.where(poor, fraction / 2, fraction)
    return fraction


def equilibrium_gradient(system: System, result: NewtonResult) -> State:
    """The state of `result` with implicit gradients where it converged."""
    solved = torch.nonzero(result.converged).squeeze(-1)
    part, state = system.select(solved), result.state.select(solved)
    with torch.no_grad():
        curvature = _curvature(part.detach(), state.concentrations)
    held = _held_to(part, state.potential)
    step = curvature.solve(poisson_residual(part, State(boltzmann(part, held), held)))
    potential = held - (step - step.detach())
    return result.state.replaced(solved, State(boltzmann(part, potential), potential))


def _held_to(system: System, potential: Tensor) -> Tensor:
    """The potential with the held nodes set to what holds them."""
    potential = potential.clone()
    for node, end in ((0, system.left), (-1, system.right)):
        if end.holds_potential:
            potential[:, node] = end.potential
    if system.ground_node is not None:
        potential[:, system.ground_node] = 0.0
    return potential
