"""Fluxes, and the Jacobian against autograd through the residual, for every kind of end."""

import math

import pytest
import torch

import pnp
from pnp.finite_volume.fluxes import scharfetter_gummel, scharfetter_gummel_derivatives
from pnp.finite_volume.jacobian import jacobian, poisson_matrix
from pnp.finite_volume.residual import divergence, poisson_residual, species_residual
from pnp.scaling import State, System, scale
from pnp.solvers.linear import CoupledElimination, PinnedAmounts, SpeciesElimination

from .problems import electrolyte

ELECTRODE = pnp.Electrode(potential=1.5)
STERN = pnp.Electrode(potential=-0.7, stern_capacitance=0.8)
BATH = pnp.Reservoir(concentrations=[1.2, 0.6, 0.8], potential=0.4)  # neutral: 1.2 - 2 * 0.6 + 0
ENDS = {
    "electrodes": (ELECTRODE, pnp.Electrode(potential=-1.5)),
    "stern": (STERN, STERN),
    "electrode-stern": (ELECTRODE, STERN),
    "baths": (BATH, pnp.Reservoir(concentrations=[0.4, 0.2, 0.1], potential=-1.0)),
    "electrode-bath": (ELECTRODE, BATH),
    "bath-stern": (BATH, STERN),
}
GROUNDS = [None, 0.8]
STEPS = [None, 0.03]


def system_of(kind: str, ground: float | None, batch: int = 2, nodes: int = 9) -> System:
    left, right = ENDS[kind]
    cell = pnp.Cell(
        electrolyte(torch.tensor([0.3, 0.02][:batch]), (1.0, -2.0, 0.0), (1.0, 0.5, 2.0)),
        length=2.0,
        concentrations=[1.0, 0.5, 0.7],
        left=left,
        right=right,
        ground=ground,
    )
    return scale(cell, pnp.Grid.refined(cell, nodes))[0]


def random_state(system: System) -> State:
    batch, species = system.valences.shape
    nodes = system.volumes.shape[-1]
    return State(
        torch.rand(batch, species, nodes, dtype=torch.float64) + 0.1,
        torch.randn(batch, nodes, dtype=torch.float64),
    )


def flat_residual(system: System, vector: torch.Tensor, step: float | None) -> torch.Tensor:
    """Residual of one cell as a function of (species and potential, node) in one vector."""
    species, nodes = system.valences.shape[1], system.volumes.shape[-1]
    parts = vector.reshape(1, species + 1, nodes)
    state = State(parts[:, :-1], parts[:, -1])
    extra = {}
    if step is not None:
        extra = {
            "known": torch.full_like(parts[:, :-1], 0.9),
            "step": torch.tensor([step], dtype=torch.float64),
        }
    return torch.cat(
        [species_residual(system, state, **extra).flatten(), poisson_residual(system, state).flatten()]
    )


def dense(matrix, element: int) -> torch.Tensor:
    """The Jacobian of one element as a matrix over (species and potential, node)."""
    species, nodes = matrix.charge.shape[1:]
    full = torch.zeros(species + 1, nodes, species + 1, nodes, dtype=torch.float64)
    for i in range(species):
        full[i, :, i, :] = matrix.transport.dense()[element, i]
        full[i, :, -1, :] = matrix.migration.dense()[element, i]
        full[-1, :, i, :] = torch.diag(matrix.charge[element, i])
    full[-1, :, -1, :] = matrix.poisson.dense()[element]
    return full.flatten(2).flatten(0, 1)


def autograd_jacobian(system: System, state: State, step: float | None) -> torch.Tensor:
    vector = torch.cat([state.concentrations[0].flatten(), state.potential[0]])
    return torch.autograd.functional.jacobian(lambda v: flat_residual(system, v, step), vector)


def as_step(step: float | None, system: System) -> torch.Tensor | None:
    return None if step is None else torch.full_like(system.permittivity, step)


# ---- fluxes


def test_flux_vanishes_for_a_boltzmann_distribution():
    drop = torch.tensor([-40.0, -3.0, -1e-9, 0.0, 0.1, 5.0, 100.0], dtype=torch.float64)
    left = torch.full_like(drop, 2.0)
    right = left * torch.exp(-drop)
    flux = scharfetter_gummel(torch.tensor(3.0), drop, left, right)
    size = 3.0 * torch.maximum(left, right) * (1 + drop.abs())
    assert (flux.abs() / size).max() < 1e-15


@pytest.mark.parametrize("drop", [-20.0, -0.3, 1e-6, 2.0, 30.0])
def test_flux_is_exact_in_a_constant_field(drop):
    # J = -D (c' + E c) with constant J, on an edge of length h: solved by quadrature of c e^{drop x/h}
    d, h, left, right = 1.7, 0.3, 2.0, 0.4
    wanted = d / h * drop * (left - right * math.exp(drop)) / math.expm1(drop)
    flux = scharfetter_gummel(*torch.tensor([d / h, drop, left, right], dtype=torch.float64))
    assert float(flux) == pytest.approx(wanted, rel=1e-14)


def test_flux_is_diffusion_without_field_and_upwind_in_a_strong_one():
    left, right, mobility = (torch.tensor(x, dtype=torch.float64) for x in (2.0, 0.5, 3.0))

    def flux(drop):
        return float(scharfetter_gummel(mobility, torch.tensor(drop, dtype=torch.float64), left, right))

    assert flux(0.0) == 4.5
    assert flux(-500.0) == pytest.approx(3.0 * 500 * 2.0)
    assert flux(500.0) == pytest.approx(-3.0 * 500 * 0.5)


def test_flux_turns_with_the_edge():
    drop = torch.tensor([-2.0, 0.3, 7.0], dtype=torch.float64)
    one = scharfetter_gummel(torch.tensor(1.0), drop, torch.tensor(2.0), torch.tensor(0.3))
    two = scharfetter_gummel(torch.tensor(1.0), -drop, torch.tensor(0.3), torch.tensor(2.0))
    assert torch.allclose(one, -two, rtol=1e-15)


def test_flux_derivatives_agree_with_autograd():
    drop = torch.tensor([-700.0, -3.0, -0.2, 0.0, 1e-9, 0.26, 40.0], dtype=torch.float64, requires_grad=True)
    left = torch.rand(7, dtype=torch.float64, requires_grad=True)
    right = torch.rand(7, dtype=torch.float64, requires_grad=True)
    mobility = torch.rand(7, dtype=torch.float64)
    flux = scharfetter_gummel(mobility, drop, left, right)
    expected = torch.autograd.grad(flux.sum(), (left, right, drop))
    found = scharfetter_gummel_derivatives(mobility, drop.detach(), left.detach(), right.detach())
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-13, atol=1e-280)


def test_divergence_telescopes_to_nothing():
    assert divergence(torch.randn(3, 7, dtype=torch.float64)).sum(-1).abs().max() < 1e-14


# ---- the Jacobian


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("kind", ENDS)
def test_jacobian_is_the_derivative_of_the_residual(kind, ground, step):
    system = system_of(kind, ground, batch=1)
    state = random_state(system)
    found = dense(jacobian(system, state, step=as_step(step, system)), 0)
    wanted = autograd_jacobian(system, state, step)
    assert torch.allclose(found, wanted, rtol=1e-12, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ENDS)
def test_poisson_matrix_and_residual_agree(kind):
    system = system_of(kind, None)
    state = random_state(system)
    other = State(state.concentrations, torch.zeros_like(state.potential))
    change = poisson_residual(system, state) - poisson_residual(system, other)
    product = (poisson_matrix(system).dense() @ state.potential.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(product, change, rtol=1e-12, atol=1e-12)


# ---- elimination


# A closed cell without a time step is singular: see the test of PinnedAmounts.
SOLVABLE = [(kind, 0.03) for kind in ENDS] + [(kind, None) for kind in ENDS if "bath" in kind]


@pytest.mark.parametrize("elimination", [CoupledElimination, SpeciesElimination])
@pytest.mark.parametrize(("kind", "step"), SOLVABLE)
def test_eliminations_solve_the_linearised_equations(kind, step, elimination):
    system = system_of(kind, 0.8 if step else None)
    state = random_state(system)
    matrix = jacobian(system, state, step=as_step(step, system))
    rhs = random_state(system)
    found = elimination(matrix).solve(rhs.concentrations, rhs.potential)
    for element in range(2):
        column = torch.cat([rhs.concentrations[element].flatten(), rhs.potential[element]])
        wanted = torch.linalg.solve(dense(matrix, element), column)
        solved = torch.cat([found.concentrations[element].flatten(), found.potential[element]])
        assert torch.allclose(solved, wanted, rtol=1e-9, atol=1e-11 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["electrodes", "stern", "electrode-stern"])
@pytest.mark.parametrize("ground", GROUNDS)
def test_pinned_amounts_solve_the_bordered_equations(kind, ground):
    system = system_of(kind, ground)
    state, rhs = random_state(system), random_state(system)
    pinned = state.concentrations.argmax(-1)
    wanted = []
    for element in range(2):
        full = dense(jacobian(system, state), element)
        nodes = system.volumes.shape[-1]
        for species, node in enumerate(pinned[element].tolist()):
            row = species * nodes + node
            full[row] = 0.0
            full[row, species * nodes : (species + 1) * nodes] = system.volumes[element]
        column = torch.cat([rhs.concentrations[element].flatten(), rhs.potential[element]])
        wanted.append(torch.linalg.solve(full, column))
    found = PinnedAmounts(jacobian(system, state), system, state).solve(rhs.concentrations, rhs.potential)
    for element, column in enumerate(wanted):
        solved = torch.cat([found.concentrations[element].flatten(), found.potential[element]])
        assert torch.allclose(solved, column, rtol=1e-9, atol=1e-10 * float(column.abs().max()))
