"""Steady states and equilibria of closed cells, and of a layer against a bath, against exact solutions."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_bvp

import pnp
from pnp.scaling import scale
from pnp.solvers.equilibrium import functional

from .problems import Canonical, DebyeHueckel, DilutePartition, GouyChapman, electrolyte

SOLVERS = [pnp.solve_steady, pnp.solve_equilibrium]
NODES = (101, 201, 401)
VOLTAGES, DEBYES = (1.0, 4.0, 10.0), (0.1, 0.01, 0.001)


def orders(errors):
    """Orders of convergence between meshes that halve their spacing."""
    errors = np.abs(np.asarray(errors))
    return np.log2(errors[:-1] / errors[1:])


def canonical_batch() -> tuple[pnp.Cell, list[list[Canonical]]]:
    """The nine cells of the project in one batch, `(voltage, debye)`."""
    voltage = torch.tensor(VOLTAGES, dtype=torch.float64).unsqueeze(-1)
    debye = torch.tensor(DEBYES, dtype=torch.float64)
    cell = pnp.Cell(
        electrolyte(2 * debye**2),
        length=2.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )
    return cell, [[Canonical(U, e) for e in DEBYES] for U in VOLTAGES]


@pytest.mark.parametrize("solve", SOLVERS)
def test_canonical_cells_converge_to_the_exact_solution(solve):
    cell, problems = canonical_batch()
    charge = np.array([[one.charge for one in row] for row in problems])
    charge_errors, potential_errors = [], []
    for nodes in NODES:
        solution = solve(cell, pnp.Grid.refined(cell, nodes))
        charge_errors.append(pnp.diffuse_charge(solution).numpy() / charge - 1)
        exact = [
            [one.potential(solution.grid.nodes[i, j].numpy()) for j, one in enumerate(row)]
            for i, row in enumerate(problems)
        ]
        difference = np.abs(solution.potential.numpy() - np.array(exact)).max(-1)
        potential_errors.append(difference / np.array(VOLTAGES)[:, None])
    assert np.abs(orders(charge_errors) - 2).max() < 0.1
    assert np.abs(orders(potential_errors) - 2).max() < 0.1
    # What a second-order scheme with a hundredth of a wall layer per spacing has to reach.
    assert (np.abs(charge_errors[-1]) < [6e-5, 2e-4, 4e-4]).all()
    assert (potential_errors[-1] < [1e-4, 2e-4, 4e-4]).all()


@pytest.mark.parametrize("solve", SOLVERS)
def test_concentrations_of_the_canonical_cell(solve):
    problem = Canonical(4.0, 0.1)
    errors = []
    for nodes in NODES:
        solution = solve(problem.cell(), pnp.Grid.refined(problem.cell(), nodes))
        exact = problem.concentrations(solution.positions.numpy())
        errors.append(np.abs(solution.concentrations.numpy() / exact - 1).max())
    assert np.abs(orders(errors) - 2).max() < 0.1
    assert errors[-1] < 3e-4


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("debye", [0.1, 0.01, 0.001])
def test_cold_start_at_eighty_thermal_voltages(solve, debye):
    problem = Canonical(80.0, debye)
    solution = solve(problem.cell(), pnp.Grid.refined(problem.cell(), 201))
    # Every ion has left the middle: the charge tells little, the potential in the middle all.
    assert float(pnp.diffuse_charge(solution)) == pytest.approx(2.0, rel=1e-12)
    middle = np.linspace(0.2, 1.8, 9)
    found = np.interp(middle, solution.positions.numpy(), solution.potential.numpy())
    assert np.abs(found - problem.potential(middle)).max() < 2e-3 * 80
    assert bool(solution.check().passed)


# ---- Debye-Hueckel


@pytest.mark.parametrize("stern", [None, 0.05, 2.0])
@pytest.mark.parametrize("debye", [0.3, 0.02])
def test_linear_response(debye, stern):
    problem = DebyeHueckel(debye, stern=stern)
    charge_errors, potential_errors = [], []
    for nodes in NODES:
        grid = pnp.Grid.refined(problem.cell(), nodes)
        solution = pnp.solve_steady(problem.cell(), grid)
        charge_errors.append(float(pnp.surface_charge(solution).left) / problem.surface_charge - 1)
        exact = problem.potential(solution.positions.numpy())
        potential_errors.append(np.abs(solution.potential.numpy() - exact).max() / problem.voltage)
    assert np.abs(orders(charge_errors) - 2).max() < 0.1
    assert np.abs(orders(potential_errors) - 2).max() < 0.1
    assert abs(charge_errors[-1]) < 1e-4
    assert potential_errors[-1] < 1e-4


# ---- Gouy-Chapman


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("voltage", [0.1, 1.0, 4.0, -4.0, 8.0])
def test_layer_against_a_bath(voltage, solve):
    problem = GouyChapman(voltage)
    charge_errors, potential_errors = [], []
    for nodes in NODES:
        solution = solve(problem.cell(), pnp.Grid.refined(problem.cell(), nodes))
        charge_errors.append(float(pnp.surface_charge(solution).left) / problem.surface_charge() - 1)
        exact = problem.potential(solution.positions.numpy())
        potential_errors.append(np.abs(solution.potential.numpy() - exact).max() / abs(voltage))
    assert np.abs(orders(charge_errors) - 2).max() < 0.1
    assert np.abs(orders(potential_errors) - 2).max() < 0.1
    assert abs(charge_errors[-1]) < 5e-4
    assert potential_errors[-1] < 5e-4


@pytest.mark.parametrize("voltage", [1.0, 6.0, 15.0])
@pytest.mark.parametrize("capacitance", [0.3, 3.0])
def test_layer_behind_a_stern_layer(voltage, capacitance):
    problem = GouyChapman(voltage)
    wall = problem.behind_stern(capacitance)
    electrode = pnp.Electrode(potential=voltage, stern_capacitance=capacitance)
    # The grid of the voltage that the diffuse layer really carries.
    grids = [pnp.Grid.refined(GouyChapman(wall).cell(), nodes) for nodes in NODES]
    errors = []
    for grid in grids:
        solution = pnp.solve_steady(problem.cell(left=electrode), grid)
        errors.append(float(solution.potential[0]) / wall - 1)
        charge = float(pnp.surface_charge(solution).left)
        assert charge == pytest.approx(capacitance * (voltage - float(solution.potential[0])), rel=1e-9)
    assert np.abs(orders(errors) - 2).max() < 0.1
    assert abs(errors[-1]) < 2e-4
    assert charge == pytest.approx(problem.surface_charge(wall), rel=1e-3)


# ---- other electrolytes


ASYMMETRIC = {"permittivity": 0.05, "valences": (2.0, -1.0), "amounts": np.array([1.0, 2.0]), "voltage": 3.0}


@pytest.fixture(scope="module")
def poisson_boltzmann():
    """Closed cell of unit length at ±voltage by scipy's collocation; unknown: potential and amounts so far."""
    permittivity, z, amounts, voltage = (np.asarray(value) for value in ASYMMETRIC.values())

    def equation(_x, y, log_amplitude):
        c = np.exp(log_amplitude[:, None] - z[:, None] * y[0])
        return np.concatenate([y[1:2], -(z @ c)[None] / permittivity, c])

    def ends(left, right, _log_amplitude):
        held = [left[0] - voltage, right[0] + voltage]
        return np.array([*held, *left[2:], *(right[2:] - amounts)])

    x = np.linspace(0, 1, 101)
    potential = [voltage * (1 - 2 * x), np.full_like(x, -2 * voltage)]
    start = np.array([*potential, *(amounts[:, None] * x)])
    solved = solve_bvp(equation, ends, x, start, p=np.log(amounts), tol=1e-8, max_nodes=100_000)
    assert solved.success, solved.message

    def profiles(positions):
        found = solved.sol(positions)[0]
        return found, np.exp(solved.p[:, None] - z[:, None] * found)

    return profiles


@pytest.mark.parametrize("solve", SOLVERS)
def test_asymmetric_salt_against_scipy(solve, poisson_boltzmann):
    voltage = ASYMMETRIC["voltage"]
    cell = pnp.Cell(
        electrolyte(ASYMMETRIC["permittivity"], ASYMMETRIC["valences"], (1.0, 0.3)),
        length=1.0,
        concentrations=ASYMMETRIC["amounts"],
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )
    potential_errors, concentration_errors = [], []
    for nodes in NODES:
        solution = solve(cell, pnp.Grid.refined(cell, nodes))
        potential, c = poisson_boltzmann(solution.positions.numpy())
        potential_errors.append(np.abs(solution.potential.numpy() - potential).max())
        concentration_errors.append(np.abs(solution.concentrations.numpy() / c - 1).max())
    assert np.abs(orders(potential_errors) - 2).max() < 0.1
    assert np.abs(orders(concentration_errors) - 2).max() < 0.1
    assert potential_errors[-1] < 1e-4
    assert concentration_errors[-1] < 3e-4


@pytest.mark.parametrize("solve", SOLVERS)
@pytest.mark.parametrize("valences", [(2.0, 0.5, -0.3, -1.0), tuple(np.linspace(-1.5, 1.6, 12))])
def test_dilute_cell_with_a_ground(solve, valences):
    problem = DilutePartition(valences, 3.0)
    solution = solve(problem.cell(), pnp.Grid.uniform(problem.cell(), 401))
    x = solution.positions
    assert torch.allclose(solution.potential, 3.0 * (1 - 2 * x), atol=1e-8)
    # Boltzmann's ratios hold exactly, amounts to the order of the quadrature.
    exact = torch.as_tensor(problem.concentrations(x.numpy()))
    ratio = solution.concentrations / exact
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-7)
    right = torch.where(x > 0.5, 1.0, torch.where(x == 0.5, 0.5, 0.0)) * solution.grid.volumes
    fraction = (solution.concentrations * right).sum(-1) * len(valences)
    assert np.abs(fraction.numpy() - problem.fraction_right).max() < 1e-5


def test_fixed_charge_is_compensated_by_counter_ions():
    # Far from the walls of a charged gel: Donnan equilibrium, sum z c + rho = 0 with c+ c- = A^2
    rho = 0.8
    cell = pnp.Cell(
        electrolyte(2 * 0.01**2),
        length=1.0,
        concentrations=[1.0, 1.8],
        left=pnp.Electrode(potential=0.0),
        right=pnp.Electrode(potential=0.0),
        fixed_charge=rho,
    )
    solution = pnp.solve_equilibrium(cell)
    middle = solution.concentrations[:, 100]
    assert float(middle[1] - middle[0]) == pytest.approx(rho, rel=1e-10)
    # Boltzmann from the wall, where the potential is zero, to the middle
    donnan = float(solution.potential[100])
    walls = solution.concentrations[:, 0]
    assert float(middle[0]) == pytest.approx(float(walls[0]) * math.exp(-donnan), rel=1e-10)
    assert float(middle[1]) == pytest.approx(float(walls[1]) * math.exp(donnan), rel=1e-10)
    neutral = cell.concentrations.numpy() @ [1.0, -1.0] + rho
    assert neutral == pytest.approx(0.0, abs=1e-15)


def test_fixed_charge_as_a_function_of_position_equals_the_number():
    arguments = {
        "length": 1.0,
        "concentrations": [1.0, 1.3],
        "left": pnp.Electrode(potential=1.0),
        "right": pnp.Electrode(potential=-1.0),
    }
    number = pnp.Cell(electrolyte(0.02), fixed_charge=0.3, **arguments)
    function = pnp.Cell(electrolyte(0.02), fixed_charge=lambda x: torch.full_like(x, 0.3), **arguments)
    one, two = pnp.solve_steady(number), pnp.solve_steady(function)
    assert torch.equal(one.potential, two.potential)
    assert torch.equal(pnp.charge_density(one), pnp.charge_density(two))


# ---- two solvers, one answer


@pytest.mark.parametrize("ground", [None, 0.6])
@pytest.mark.parametrize("stern", [None, 5.0])
def test_steady_solver_and_equilibrium_solver_agree_to_rounding(stern, ground):
    cell = pnp.Cell(
        electrolyte(torch.tensor([1.0, 0.05, 0.002], dtype=torch.float64), (1.0, -2.0, 0.5), (1.0, 0.2, 3.0)),
        length=1.0,
        concentrations=[1.0, 0.6, 0.4],
        left=pnp.Electrode(potential=4.0, stern_capacitance=stern),
        right=pnp.Electrode(potential=-2.0),
        ground=ground,
    )
    grid = pnp.Grid.refined(cell, 101)
    one, two = pnp.solve_steady(cell, grid), pnp.solve_equilibrium(cell, grid)
    assert (one.potential - two.potential).abs().max() < 1e-12
    assert ((one.concentrations - two.concentrations).abs() / two.concentrations).max() < 1e-11


def test_start_from_another_solution():
    problem = Canonical(10.0, 0.01)
    grid = pnp.Grid.refined(problem.cell(), 101)
    cold = pnp.solve_steady(problem.cell(), grid)
    for solve in SOLVERS:
        warm = solve(problem.cell(), grid, initial=cold)
        assert int(warm.stats.iterations) <= 2
        assert torch.allclose(warm.potential, cold.potential, atol=1e-12)


def test_default_grid_is_the_refined_one_of_201_nodes():
    problem = Canonical(2.0, 0.1)
    solution = pnp.solve_steady(problem.cell())
    assert torch.equal(solution.grid.nodes, pnp.Grid.refined(problem.cell(), 201).nodes)


# ---- many species


def many_species(count: int, seed: int = 0, **changes) -> pnp.Cell:
    generator = np.random.default_rng(seed)
    arguments = {
        "length": 1.0,
        "concentrations": generator.uniform(0.1, 2.0, count) / count,
        "left": pnp.Electrode(potential=3.0),
        "right": pnp.Electrode(potential=-3.0),
        "ground": 0.4,
    }
    valences = generator.uniform(-1.5, 1.5, count)
    diffusivities = generator.uniform(0.5, 2.0, count)
    return pnp.Cell(electrolyte(0.01, valences.tolist(), diffusivities.tolist()), **(arguments | changes))


@pytest.mark.parametrize("count", [7, 40, 512])
def test_many_species_obey_boltzmann_and_gauss(count):
    """Checked in numpy, from the definition."""
    cell = many_species(count)
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 61))
    c, phi = solution.concentrations.numpy(), solution.potential.numpy()
    z, h, v = cell.electrolyte.valences.numpy(), solution.grid.spacings.numpy(), solution.grid.volumes.numpy()
    chemical = np.log(c) + z[:, None] * phi
    assert np.ptp(chemical, axis=1).max() < 1e-11
    assert np.abs(c @ v / cell.concentrations.numpy() - 1).max() < 1e-13
    displacement = -0.01 * np.diff(phi) / h
    gauss = np.diff(displacement) - v[1:-1] * (z @ c)[1:-1]
    gauss[solution.grid.ground_node - 1] = phi[solution.grid.ground_node]
    assert np.abs(gauss).max() < 1e-12
    assert (phi[0], phi[-1]) == (3.0, -3.0)


def test_splitting_a_species_changes_nothing():
    # Ten species of which groups are the same ion: the equilibrium of the two that they really are.
    few = pnp.Cell(
        electrolyte(0.02),
        length=1.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=2.0),
        right=pnp.Electrode(potential=-2.0),
    )
    many = pnp.Cell(
        electrolyte(0.02, (1.0,) * 5 + (-1.0,) * 5, (1.0,) * 10),
        length=1.0,
        concentrations=0.2,
        left=few.left,
        right=few.right,
    )
    grid = pnp.Grid.refined(few, 101)
    one, two = pnp.solve_steady(few, grid), pnp.solve_steady(many, grid)
    assert torch.allclose(one.potential, two.potential, atol=1e-12)
    assert torch.allclose(two.concentrations[:5].sum(0), one.concentrations[0], rtol=1e-11)


@pytest.mark.parametrize("kind", ["closed", "bath"])
def test_equilibrium_is_the_minimum_of_its_functional(kind):
    cell = many_species(9, left=pnp.Electrode(potential=3.0, stern_capacitance=0.5))
    if kind == "bath":
        z = cell.electrolyte.valences
        neutral = torch.where(z > 0, 1 / z[z > 0].sum(), -1 / z[z < 0].sum())
        bath = pnp.Reservoir(concentrations=neutral, potential=-3.0)
        cell = pnp.Cell(
            cell.electrolyte, length=1.0, concentrations=neutral, left=cell.left, right=bath, ground=0.4
        )
    grid = pnp.Grid.refined(cell, 41)
    system, scales = scale(cell, grid)
    solution = pnp.solve_equilibrium(cell, grid)
    potential = scales.to_flat(solution.potential, scales.potential).unsqueeze(1)
    least = float(functional(system, potential))
    for size in (1e-3, 1e-1, 1.0):
        for _ in range(5):
            change = size * torch.randn_like(potential)
            change[..., -1], change[..., grid.ground_node] = 0.0, 0.0
            assert float(functional(system, potential + change)) > least


# ---- a finer grid than the one there is


@pytest.mark.parametrize(("voltage", "debye"), [(1.0, 0.1), (4.0, 0.01), (10.0, 0.01), (10.0, 0.001)])
def test_richardson_extrapolates_to_fourth_order_and_estimates_the_error(voltage, debye):
    problem = Canonical(voltage, debye)
    cell, errors = problem.cell(), []
    for nodes in (101, 201):
        solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, nodes))
        found = solution.richardson(pnp.diffuse_charge)
        true = abs(float(pnp.diffuse_charge(solution)) - problem.charge)
        assert float(found.error) == pytest.approx(true, rel=0.05)
        errors.append(abs(float(found.value) / problem.charge - 1))
    assert errors[1] < 2e-6
    assert math.log2(errors[0] / errors[1]) > 3.5 or errors[1] < 1e-7
    profile = solution.richardson(lambda one: one.potential)
    exact = problem.potential(solution.positions.numpy()[::2])
    assert (
        np.abs(profile.value.numpy() - exact).max()
        < np.abs(solution.potential.numpy()[::2] - exact).max() / 10
    )


def test_richardson_is_differentiable_and_needs_the_whole_solution():
    voltage = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    cell = Canonical(1.0, 0.1).cell(
        left=pnp.Electrode(potential=voltage), right=pnp.Electrode(potential=-voltage)
    )
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 101))
    (slope,) = torch.autograd.grad(solution.richardson(pnp.diffuse_charge).value, voltage)
    step = 1e-4
    wanted = (Canonical(2 + step, 0.1).charge - Canonical(2 - step, 0.1).charge) / (2 * step)
    assert float(slope) == pytest.approx(wanted, rel=1e-5)
    moved = pnp.solve_transient(cell, pnp.Grid.refined(cell, 41), times=[0.01, 0.02])
    with pytest.raises(ValueError, match="ask the whole one"):
        moved.at(0).richardson(pnp.diffuse_charge)
