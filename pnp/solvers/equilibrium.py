r"""Equilibrium of a cell with any number of species: one convex problem in the potential.

A cell with at most one reservoir comes to rest with no flux at all. Species meet only through the
potential, and each is a Boltzmann distribution that keeps its amount, or what the reservoir holds,

.. math:: c_j(x) = N_j \frac{e^{-z_j\phi(x)}}{\int e^{-z_j\phi}\,dx}
          \qquad\text{or}\qquad c_j(x) = c^\mathrm{bath}_j\,e^{-z_j(\phi(x) - \phi^\mathrm{bath})},

so the cell is the minimum of the strictly convex

.. math:: G(\phi) = \int \frac{\epsilon}{2}|\phi'|^2 - \rho_\mathrm{fixed}\,\phi\;dx
          + \sum_\mathrm{Stern}\frac{C_S}{2}(\phi - U)^2 - \sum_\mathrm{walls}\sigma\phi
          + \sum_j N_j \ln\int e^{-z_j\phi}\,dx

(for a reservoir the last term is :math:`\sum_j\int c_j\,dx`). Ions of finite size join their pressure to the
potential: :math:`z_j\phi` becomes :math:`z_j\phi + w_j p`, and :math:`\int (p + e^{-p})/v_0\,dx` is added,
whose derivative makes :math:`\sum_j v_j c_j = 1 - e^{-p}`. G is convex in both together.

Newton's method with backtracking finds it from the Laplace field. The cost is linear in the species; the
discrete solution is the very one that the coupled steady solver finds, because the Scharfetter-Gummel flux
vanishes exactly for Boltzmann distributions.

References:
    Lee, Lee, Hyon, Lin & Liu, Nonlinearity 24, 431 (2011), charge-conserving Poisson-Boltzmann equations.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..cell import Cell
from ..compiled import attempt
from ..elementary import exp, expm1, log
from ..finite_volume.jacobian import poisson_matrix
from ..finite_volume.residual import field_residual, held_nodes
from ..grid import Grid
from ..scaling import scale
from ..solution import Solution
from ..system import CHARGE, State, System
from .finish import failed_status, finish, steady_statistics
from .newton import Newton, NewtonResult
from .start import check_initial, laplace_potential, scaled_state, with_pressure

DEFAULT_NODES = 201
"""Odd, so that every other node is a grid too."""
SUFFICIENT_DECREASE = 1e-4
MOST_HALVINGS = 40
LONGEST_STEP = 10.0
"""Of the fields of finite ions: where they leave next to no room, G is flat in the pressure."""
SMALLEST = 1e-280
"""Boltzmann factors stop falling here, so that no concentration underflows to zero."""
REGULAR = 1e-14
"""Relative increase of the diagonal of the curvature, against rounding."""


def solve_equilibrium(
    cell: Cell,
    grid: Grid | None = None,
    *,
    initial: Solution | None = None,
    throw: bool = True,
    newton_settings: Newton = Newton(max_iterations=200),  # noqa: B008 (frozen)
) -> Solution:
    """Equilibrium of a cell with at most one reservoir, for any number of species.

    Differentiable with respect to every number of the cell, at the cost of one more linear solve. Point ions are
    solved by compiled kernels (:mod:`pnp.compiled`) where numba is installed.

    Arguments:
        cell: A cell with at most one reservoir, in which nothing reacts and no current is driven.
        grid: Default: `Grid.refined(cell, 201)`.
        initial: A solution on as many nodes whose potential to start from; default: the Laplace field.
        throw: Whether an element that fails raises; otherwise see `solution.status`.
        newton_settings: Settings of Newton's method.

    Raises:
        SolveError: `throw` and some element failed.
        ValueError: The cell never comes to rest, or `grid` or `initial` do not fit it.

    Warns:
        UnderResolvedWarning: The spacing at a wall exceeds the local Debye length.

    Example:
        >>> import pnp
        >>> import torch
        >>> ions = [pnp.Species(f"{z:+.2f}", valence=z, diffusivity=1.0) for z in torch.linspace(-1, 1, 100)]
        >>> many = pnp.Electrolyte.dimensionless(ions, permittivity=0.1)
        >>> ends = dict(left=pnp.Electrode(potential=2.0), right=pnp.Electrode(potential=-2.0))
        >>> cell = pnp.Cell(many, length=1.0, concentrations=0.01, ground=0.5, **ends)
        >>> rest = pnp.solve_equilibrium(cell)
        >>> tuple(rest.concentrations.shape), rest.solved.item()
        ((100, 201), True)
    """
    if not cell.comes_to_rest:
        raise ValueError(
            "solve_equilibrium: a cell with two reservoirs, reactions, a given current or periodic ends is not "
            "known to come to rest with these amounts; use solve_steady."
        )
    grid = Grid.refined(cell, DEFAULT_NODES) if grid is None else grid
    system, scales = scale(cell, grid)
    fixed = system.detach()
    start = None
    if initial is not None:
        check_initial(initial, fixed, scales)
        start = _held_to(fixed, scaled_state(fixed, scales, initial).fields.detach())
    result, solver = compiled_equilibrium(fixed, start, newton_settings), "compiled"
    if result is None:
        start = resting_fields(fixed) if start is None else start
        result, solver = minimise(fixed, start, newton_settings), "torch"
    state = result.state
    if system.requires_grad():
        state = equilibrium_gradient(system, result)
    status = failed_status(result.converged, result.change)
    return finish(
        cell,
        grid,
        scales,
        state,
        status,
        steady_statistics(result, solver),
        throw,
        again=lambda other: solve_equilibrium(cell, other, throw=throw, newton_settings=newton_settings),
    )


def compiled_equilibrium(system: System, start: Tensor | None, settings: Newton) -> NewtonResult | None:
    """Equilibria by compiled kernels from the fields `start` `(B, P, N)`, default cold; None where there are none.

    What a kernel does not solve is minimised in torch.
    """

    def compiled() -> NewtonResult | None:
        from ..compiled import dispatch  # needs numba, which takes its time to import

        potential = None if start is None else start[:, 0]
        return dispatch.resting_state(system, potential, settings) if dispatch.can_rest(system) else None

    found = attempt(compiled)
    if found is not None and not bool(found.converged.all()):
        failed = torch.nonzero(~found.converged).squeeze(-1)
        part = system.select(failed)
        again = minimise(part, resting_fields(part), settings)
        again = replace(again, iterations=again.iterations + found.iterations[failed])
        found = found.replaced(failed, again)
    return found


def resting_fields(system: System) -> Tensor:
    """Where the minimisation starts: the potential without ions, and the pressure of the filling, `(B, P, N)`."""
    filling = system.filling[:, :, None].expand(-1, -1, system.volumes.shape[-1])
    return with_pressure(system, filling, laplace_potential(_without_wall_charges(system)))


def _without_wall_charges(system: System) -> System:
    """Without ions to screen them, charges of walls would make an absurd potential."""
    left, right = (
        replace(end, level=torch.zeros_like(end.level)) if end.control == CHARGE else end
        for _, end in system.ends
    )
    return replace(system, left=left, right=right)


class _Bath(NamedTuple):
    """What the reservoir holds: concentrations `(B, S)` and fields `(B, P)`."""

    concentrations: Tensor
    fields: Tensor


def boltzmann(system: System, fields: Tensor) -> Tensor:
    """Concentrations in equilibrium with fields `(B, P, N)`, `(B, S, N)`."""
    bath = _bath(system)
    if bath is not None:
        lifted = _energy(system, fields - bath.fields[..., None])
        return bath.concentrations[:, :, None] * exp(-lifted).clamp(min=SMALLEST)
    exponent = -_energy(system, fields)
    exponent = exponent - exponent.detach().amax(-1, keepdim=True)
    weight = exp(exponent).clamp(min=SMALLEST)
    return weight * (system.amounts / (system.volumes[:, None, :] * weight).sum(-1))[..., None]


def _energy(system: System, fields: Tensor) -> Tensor:
    """What the fields cost every ion, in thermal energies, `(B, S, N)`."""
    return torch.einsum("bsp,bpn->bsn", system.couplings, fields)


def _bath(system: System) -> _Bath | None:
    for _, end in system.ends:
        if end.bath is not None:
            fields = with_pressure(system, end.bath.unsqueeze(-1), end.level.unsqueeze(-1))
            return _Bath(end.bath, fields.squeeze(-1))
    return None


def functional(system: System, fields: Tensor) -> Tensor:
    """The convex functional G of the fields `(B, P, N)`, `(B,)`."""
    potential = fields[:, 0]
    value = (system.permittivity / 2 * potential.diff(dim=-1) ** 2 / system.spacings).sum(-1)
    if _bath(system) is None:
        exponent = log(system.volumes)[:, None, :] - _energy(system, fields)
        value = value + (system.amounts * torch.logsumexp(exponent, dim=-1)).sum(-1)
    else:
        value = value + (system.volumes[:, None, :] * boltzmann(system, fields)).sum((-2, -1))
    value = value - (system.volumes * system.fixed_charge * potential).sum(-1)
    if system.crowding is not None:
        pressure = fields[:, 1]
        room = (system.volumes * (pressure + expm1(-pressure))).sum(-1)
        value = value + room / system.crowding.solvent
    for node, end in system.ends:
        if end.control == CHARGE:
            value = value - end.level * potential[:, node]
        elif end.stern_capacitance is not None:
            value = value + end.stern_capacitance / 2 * (potential[:, node] - end.level) ** 2
    return value


@dataclass(frozen=True, eq=False)
class _Curvature:
    """Cholesky factor of the second derivative of G, with held potentials as identity rows."""

    factor: Tensor
    free: Tensor

    def solve(self, residual: Tensor) -> Tensor:
        """Newton update for a residual of the fields, `(B, P, N)`; differentiable."""
        flat = (residual.flatten(1) * self.free).unsqueeze(-1)
        return torch.cholesky_solve(flat, self.factor).reshape(residual.shape)


def _curvature(system: System, concentrations: Tensor, fields: Tensor) -> _Curvature:
    batch, count, nodes = fields.shape
    free = torch.ones(count, nodes, dtype=torch.float64, device=fields.device)
    free[0, held_nodes(system)] = 0.0
    free = free.flatten()
    share = system.volumes[:, None, :] * concentrations
    couplings = system.couplings
    local = torch.einsum("bsp,bsq,bsn->bpqn", couplings, couplings, share)
    if system.crowding is not None:
        local[:, 1, 1] += system.volumes / system.crowding.solvent[:, None] * exp(-fields[:, 1])
    matrix = torch.diag_embed(local).transpose(2, 3)
    matrix[:, 0, :, 0] += poisson_matrix(system).dense()
    matrix = matrix.reshape(batch, count * nodes, count * nodes)
    if _bath(system) is None:
        moved = torch.einsum("bsp,bsn->bspn", couplings, share).flatten(2)
        matrix = matrix - (moved / system.amounts[..., None]).transpose(1, 2) @ moved
    # Where ions leave no room at all, their pressure hardly shows in G.
    matrix = matrix + REGULAR * torch.diag_embed(matrix.diagonal(dim1=-2, dim2=-1))
    matrix = matrix * free * free[:, None]
    return _Curvature(torch.linalg.cholesky_ex(matrix + torch.diag(1 - free)).L, free)


@torch.no_grad()
def minimise(system: System, fields: Tensor, settings: Newton) -> NewtonResult:
    """Newton's method with backtracking on G for every element of the batch, from `fields` `(B, P, N)`."""
    batch, device = fields.shape[0], fields.device
    iterations = torch.zeros(batch, dtype=torch.int64, device=device)
    change = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
    converged = torch.zeros(batch, dtype=torch.bool, device=device)
    fields, active, current = fields.clone(), torch.arange(batch, device=device), system
    for _ in range(settings.max_iterations):
        here = fields[active]
        c = boltzmann(current, here)
        residual = field_residual(current, State(c, here))
        update = _curvature(current, c, here).solve(residual)
        fraction = _backtrack(current, here, update, residual)
        size = fraction[:, None] * update.abs().amax(-1) / (1 + here.abs().amax(-1))
        finite = torch.isfinite(update).all(-1).all(-1)
        fields[active[finite]] = (here - fraction[:, None, None] * update)[finite]
        moved = size.amax(-1)
        change[active] = torch.where(finite, moved, torch.nan)
        iterations[active] += 1
        done = finite & (fraction == 1) & (moved < settings.tolerance)
        converged[active] = done
        proceed = torch.nonzero(finite & ~done).squeeze(-1)
        if proceed.numel() == 0:
            break
        if proceed.numel() < active.numel():
            active, current = active[proceed], current.select(proceed)
    return NewtonResult(State(boltzmann(system, fields), fields), converged, iterations, change)


def _backtrack(system: System, fields: Tensor, update: Tensor, residual: Tensor) -> Tensor:
    """Fraction of the update that decreases G enough, `(B,)`."""
    value = functional(system, fields)
    descent = (update * residual).sum((-2, -1))
    # Differences of G below its own rounding say nothing.
    rounding = 1e-13 * (1 + value.abs())
    fraction = torch.ones_like(value)
    if system.crowding is not None:
        longest = LONGEST_STEP + fields.abs().amax((-2, -1))
        fraction = (longest / update.abs().amax((-2, -1))).clamp(max=1.0)
    for _ in range(MOST_HALVINGS):
        trial = functional(system, fields - fraction[:, None, None] * update)
        poor = ~(trial <= value - SUFFICIENT_DECREASE * fraction * descent + rounding)
        if not bool(poor.any()):
            break
        fraction = torch.where(poor, fraction / 2, fraction)
    return fraction


def equilibrium_gradient(system: System, result: NewtonResult) -> State:
    """The state of `result` with implicit gradients where it converged."""

    def compiled() -> State | None:
        from ..compiled import dispatch

        return dispatch.resting_gradient(system, result) if dispatch.can_rest(system) else None

    found = attempt(compiled)
    if found is not None:
        return found
    solved = torch.nonzero(result.converged).squeeze(-1)
    part, state = system.select(solved), result.state.select(solved)
    with torch.no_grad():
        curvature = _curvature(part.detach(), state.concentrations, state.fields)
    held = _held_to(part, state.fields)
    step = curvature.solve(field_residual(part, State(boltzmann(part, held), held)))
    fields = held - (step - step.detach())
    return result.state.replaced(solved, State(boltzmann(part, fields), fields))


def _held_to(system: System, fields: Tensor) -> Tensor:
    """The fields with the potential of the held nodes set to what holds it."""
    fields = fields.clone()
    for node, end in system.ends:
        if end.holds_potential:
            fields[:, 0, node] = end.level
    if system.ground_node is not None:
        fields[:, 0, system.ground_node] = 0.0
    if system.floats:
        fields[:, 0, -1] = 0.0
    return fields
