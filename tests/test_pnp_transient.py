"""Transients against an independent method, exact decays, steady states, and their own conservation laws."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import pnp
from pnp import Newton, StepControl
from pnp.scaling import scale
from pnp.solvers.rosenbrock import RosenbrockStep
from pnp.solvers.time_step import Step, StepResult, take_step
from pnp.system import State, System

from .problems import BINARY_JUNCTION, Canonical, SaltDiffusion, electrolyte
from .spectral import SpectralCell, two_sided
from .test_pnp_steady import many_species, orders

PRECISE = StepControl(relative=1e-5, absolute=1e-7)
TIGHT = StepControl(relative=1e-7, absolute=1e-9)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


# ---- the independent method


@pytest.fixture(scope="module")
def canonical_reference():
    """Times, cells `(voltage, debye)` and their charges Q(t) by spectral elements, `(cell, time)`."""
    times, cases = (0.002, 0.02, 0.1, 0.5, 2.0), ((10.0, 0.1), (4.0, 0.1), (4.0, 0.01))
    charges = []
    for voltage, debye in cases:
        inner = debye * max(1 / math.cosh(voltage / 2), debye)
        cell = SpectralCell(two_sided(2.0, 1.5 * inner, 14), 2 * debye**2, (voltage, -voltage))
        charges.append(cell.diffuse_charge(cell.solve(times, 1e-8)))
    return times, cases, np.array(charges)


def canonical_charges(cases, times, nodes, control=StepControl()):  # noqa: B008 (frozen)
    voltage, debye = torch.tensor(cases, dtype=torch.float64).T
    cell = pnp.Cell(
        electrolyte(2 * debye**2),
        length=2.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, nodes), times=times, step_control=control)
    return pnp.diffuse_charge(solution).numpy()


def test_charging_of_canonical_cells_at_default_tolerance(canonical_reference):
    times, cases, exact = canonical_reference
    error = np.abs(canonical_charges(cases, times, 201) / exact - 1)
    assert error.max() < 1e-3
    assert error[:2, 0].max() < 3e-5  # a fifth of the Debye time after the jump


def test_charging_of_canonical_cells_is_of_second_order(canonical_reference):
    times, cases, exact = canonical_reference
    errors = [canonical_charges(cases[1:], times, nodes, PRECISE) / exact[1:] - 1 for nodes in (41, 81)]
    # once the error of the grid has outgrown the one of the steps
    assert np.abs(orders(errors)[0, :, 3:] - 2).max() < 0.1
    assert (np.abs(errors[1]).max(-1) < [1.5e-3, 4e-3]).all()


def test_everything_at_once_against_the_independent_method():
    """Unequal valences and diffusivities, fixed charge, a Stern layer, a ground off the middle."""
    ends = np.concatenate([two_sided(0.8, 0.02, 6), 0.8 + two_sided(1.2, 0.02, 6)[1:]])
    reference = SpectralCell(
        ends,
        permittivity=0.1,
        potentials=(3.0, -2.0),
        valences=(2.0, -1.0),
        diffusivities=(0.4, 1.0),
        filling=(0.7, 1.6),
        fixed_charge=0.2,
        stern=(0.5, None),
        ground=6,
    )
    times = (0.01, 0.1, 0.4, 1.5)
    state = reference.solve(times)
    cell = pnp.Cell(
        electrolyte(0.1, (2.0, -1.0), (0.4, 1.0)),
        length=2.0,
        concentrations=[0.7, 1.6],
        left=pnp.Electrode(potential=3.0, stern_capacitance=0.5),
        right=pnp.Electrode(potential=-2.0),
        fixed_charge=0.2,
        ground=0.8,
    )
    errors = []
    for nodes in (31, 61):
        grid = pnp.Grid.refined(cell, nodes)
        solution = pnp.solve_transient(cell, grid, times=times, step_control=PRECISE)
        errors.append(pnp.surface_charge(solution).left.numpy() - reference.surface_charge(state))
    charge = np.abs(reference.surface_charge(state))
    assert np.abs(orders(errors) - 2).max() < 0.1
    assert (np.abs(errors[1]) / charge).max() < 4e-3
    assert (np.abs(4 * errors[1] - errors[0]) / 3 / charge).max() < 2e-4
    # The profiles of the last moment, at nodes of the spectral elements that are nodes of the grid too
    probe = np.array([0.0, 0.8, 2.0])
    found = np.array([np.interp(probe, solution.positions, c) for c in solution.concentrations[-1]])
    wanted = np.array([np.interp(probe, reference.positions, c) for c in state[:, -1].reshape(2, -1)])
    assert np.abs(found / wanted - 1).max() < 1e-2


# ---- exact decays


@pytest.mark.parametrize("debye", [0.1, 0.01])
def test_charging_time(debye):
    """At low voltage the charge relaxes at the rate of the linearised equations, D/(lambda L) for thin layers."""

    def excess(rate: float) -> float:
        k = math.sqrt(1 - rate) / debye
        return rate * k - math.tanh(k)

    # in units of the Debye time; the trivial root is at one
    rate = brentq(excess, debye / 2, 0.9) / debye**2
    assert rate == pytest.approx(1 / debye, rel=debye)
    problem = Canonical(1e-3, debye)
    grid = pnp.Grid.refined(problem.cell(), 201)
    times = f64(0.5, 1.0, 1.5) / rate
    # The signal is a thousandth of the concentrations, whose error is controlled.
    control = StepControl(relative=1e-8, absolute=1e-10)
    solution = pnp.solve_transient(problem.cell(), grid, times=times, step_control=control)
    final = pnp.diffuse_charge(pnp.solve_steady(problem.cell(), grid))
    found = -torch.log(final - pnp.diffuse_charge(solution)).diff() / times.diff()
    assert torch.allclose(found, f64(rate).expand_as(found), rtol=1e-3)


def relaxation(problem: SaltDiffusion, nodes: int, times, control=StepControl()):  # noqa: B008 (frozen)
    cell = problem.cell()
    grid = pnp.Grid.uniform(cell, nodes)
    start = torch.as_tensor(problem.profile(grid.nodes.numpy())).expand(2, -1)
    return pnp.solve_transient(cell, grid, times=times, initial=start, step_control=control)


def test_salt_diffuses_at_the_exact_rate():
    problem = SaltDiffusion(diffusivity=0.7, length=1.3)
    times = np.array([0.3, 1.0, 2.0]) / problem.rate
    solution = relaxation(problem, 201, times, TIGHT)
    exact = [problem.profile(solution.positions.numpy(), math.exp(-problem.rate * t)) for t in times]
    error = np.abs(solution.concentrations.numpy() - np.array(exact)[:, None]).max()
    assert error < 2e-5 * problem.amplitude
    assert float(solution.potential.abs().max()) < 1e-12


METHODS = {
    # order, error of the finest steps
    "Rosenbrock": (4, 5e-8),
    "TR-BDF2": (2, 2e-5),
    "backward Euler": (1, 3e-3),
}


def stepped(method: str, system: System, state: State, length: float) -> StepResult:
    if method == "Rosenbrock":
        return RosenbrockStep(system, state, f64(length), system.kept).take()
    levels, euler = system.levels[:, None].expand(-1, 3, -1), torch.tensor([method == "backward Euler"])
    step = Step(system, state, levels, f64(length), euler, system.kept)
    return take_step(step, Newton(tolerance=1e-10))


def decaying() -> tuple[SaltDiffusion, System, State]:
    """On a uniform grid the decay is known without any error of space."""
    problem, nodes = SaltDiffusion(), 17
    grid = pnp.Grid.uniform(problem.cell(), nodes)
    system, _ = scale(problem.cell(), grid)
    start = torch.as_tensor(problem.profile(grid.nodes.numpy())).expand(1, 2, -1)
    return problem, system, State(start, torch.zeros(1, 1, nodes, dtype=torch.float64))


def decay_error(problem: SaltDiffusion, state: State, time: float) -> float:
    nodes = state.fields.shape[-1]
    exact = problem.profile(
        np.linspace(0, problem.length, nodes), math.exp(-problem.rate_on(nodes - 1) * time)
    )
    return float(np.abs(state.concentrations[0, 0].numpy() - exact).max())


def step_error(method: str, steps: int) -> float:
    """Error of equal steps."""
    time = 0.15
    problem, system, state = decaying()
    for _ in range(steps):
        result = stepped(method, system, state, time / steps)
        assert bool(result.converged)
        state = result.end
    return decay_error(problem, state, time)


@pytest.mark.parametrize("method", METHODS)
def test_order_of_the_steps(method):
    order, finest = METHODS[method]
    errors = [step_error(method, steps) for steps in (8, 16, 32)]
    assert np.abs(orders(errors) - order).max() < 0.1
    assert errors[-1] < finest


@pytest.mark.parametrize("method", ["TR-BDF2", "backward Euler"])
def test_estimate_of_the_local_error(method):
    """One step from a known state, so that its error is the local one."""
    problem, system, state = decaying()
    for step in (0.01, 0.005):
        result = stepped(method, system, state, step)
        true = decay_error(problem, result.end, step)
        assert float(result.error.abs().max()) == pytest.approx(true, rel=0.1)


def test_estimate_of_rosenbrocks_method_is_that_of_its_embedded_one():
    """Of order three, so that the local error is of the fourth; the step itself is better."""
    problem, system, state = decaying()
    estimates = []
    for step in (0.02, 0.01, 0.005):
        result = stepped("Rosenbrock", system, state, step)
        estimates.append(float(result.error.abs().max()))
        embedded = State(result.end.concentrations - result.error, result.end.fields)
        assert estimates[-1] == pytest.approx(decay_error(problem, embedded, step), rel=0.1)
        assert decay_error(problem, result.end, step) < 0.2 * estimates[-1]
    assert np.abs(orders(estimates) - 4).max() < 0.2


def test_next_step_would_just_meet_the_tolerance():
    """The local error is the step to the power of the order and one more; a tenth of the step is a reserve."""
    norm, order = f64(1.0, 8.0, 4.0, 1e9, 0.0), f64(2.0, 2.0, 1.0, 2.0, 2.0)
    wanted = f64(0.9, 0.45, 0.45, 0.2, 5.0)
    factor = StepControl().factor(norm, order)
    assert torch.equal(factor[3:], wanted[3:])
    # Inside the limits the next smaller of sixteen steps an octave.
    sixteenths = 16 * torch.log2(factor[:3])
    assert torch.allclose(sixteenths, sixteenths.round(), atol=1e-9)
    assert bool(((factor <= wanted) & (factor > wanted / 2 ** (1 / 16) - 1e-12))[:3].all())


def test_error_follows_the_tolerance():
    """The local error of the embedded method, of fourth order, is held at the tolerance."""
    problem, nodes = SaltDiffusion(), 17
    time = 1.5 / problem.rate
    errors, steps = [], []
    for tolerance in (1e-7, 1e-8, 1e-9):
        control = StepControl(relative=tolerance, absolute=tolerance * 1e-2)
        solution = relaxation(problem, nodes, [time], control)
        exact = problem.profile(solution.positions.numpy(), math.exp(-problem.rate_on(nodes - 1) * time))
        errors.append(np.abs(solution.concentrations[0, 0].numpy() - exact).max())
        steps.append(int(solution.stats.steps))
    assert np.abs(-np.diff(np.log10(errors)) - 1).max() < 0.1
    assert np.abs(np.diff(np.log10(steps)) - 1 / 4).max() < 0.07
    assert errors[-1] < 5e-10


def test_unequal_ions_diffuse_together():
    # Thin Debye length: one ambipolar diffusivity for both
    d_plus, d_minus, amplitude = 1.0, 0.25, 0.3
    rate = 2 * d_plus * d_minus / (d_plus + d_minus) * math.pi**2
    errors = []
    for debye in (0.04, 0.02):
        cell = pnp.Cell(
            electrolyte(2 * debye**2, (1.0, -1.0), (d_plus, d_minus)),
            length=1.0,
            concentrations=1.0,
            left=pnp.Electrode(potential=0.0, stern_capacitance=1e-9),  # an insulating wall, nearly
            right=pnp.Electrode(potential=0.0, stern_capacitance=1e-9),
        )
        grid = pnp.Grid.uniform(cell, 201)
        start = (1 + amplitude * torch.cos(math.pi * grid.nodes)).expand(2, -1)
        solution = pnp.solve_transient(cell, grid, times=[0.5 / rate], initial=start, step_control=PRECISE)
        salt = solution.concentrations[0].mean(0) - 1
        found = 2 * float((grid.volumes * salt * torch.cos(math.pi * grid.nodes)).sum()) / amplitude
        errors.append(found / math.exp(-0.5) - 1)
    assert abs(errors[1]) < 2e-3
    assert abs(errors[1]) < 0.5 * abs(errors[0])


# ---- where transients end


def test_late_transients_are_steady_states():
    cell = pnp.Cell(
        electrolyte(f64(0.5, 0.02), (1.0, -2.0), (1.0, 0.4)),
        length=1.0,
        concentrations=[1.0, 0.5],
        left=pnp.Electrode(potential=4.0, stern_capacitance=1.0),
        right=pnp.Electrode(potential=-1.0),
        ground=0.5,
    )
    grid = pnp.Grid.refined(cell, 41)
    late = pnp.solve_transient(cell, grid, times=[200.0]).at(0)
    steady = pnp.solve_steady(cell, grid)
    assert (late.potential - steady.potential).abs().max() < 1e-9
    assert ((late.concentrations - steady.concentrations).abs() / steady.concentrations).max() < 1e-8


def test_late_transient_between_baths_is_the_steady_current():
    cell = BINARY_JUNCTION.cell(1.5, 0.02)
    grid = pnp.Grid.refined(cell, 41)
    late = pnp.solve_transient(cell, grid, times=[100.0]).at(0)
    steady = pnp.solve_steady(cell, grid)
    assert (late.potential - steady.potential).abs().max() < 1e-9
    assert torch.allclose(pnp.current_density(late), pnp.current_density(steady), rtol=1e-7)


def test_forty_species_end_in_their_equilibrium():
    cell = many_species(40)
    grid = pnp.Grid.refined(cell, 31)
    late = pnp.solve_transient(cell, grid, times=[100.0]).at(0)
    equilibrium = pnp.solve_equilibrium(cell, grid)
    assert (late.potential - equilibrium.potential).abs().max() < 1e-7
    assert torch.allclose(late.concentrations, equilibrium.concentrations, rtol=1e-6)


# ---- currents


CHARGING = {
    "electrodes": {},
    "stern": {"left": pnp.Electrode(potential=2.0, stern_capacitance=0.3)},
    "bath": {"right": pnp.Reservoir(concentrations=[0.8, 0.4], potential=-1.0)},
}


def charging(kind: str, ground: float | None = None) -> pnp.Cell:
    arguments = {
        "length": 1.0,
        "concentrations": [1.0, 0.5],
        "left": pnp.Electrode(potential=2.0),
        "right": pnp.Electrode(potential=-1.0, stern_capacitance=2.0),
        "ground": ground,
    }
    return pnp.Cell(electrolyte(0.05, (1.0, -2.0), (1.0, 0.4)), **(arguments | CHARGING[kind]))


def total_current(solution: pnp.Solution, permittivity: float) -> tuple[np.ndarray, np.ndarray]:
    """Ion and displacement currents of one moment: Poisson's equation for what the fluxes move, in numpy."""
    cell, grid = solution.cell, solution.grid
    z, h = cell.electrolyte.valences.numpy(), grid.spacings.numpy()
    ionic = z @ pnp.ion_flux(solution).numpy()
    moved = -(np.pad(ionic, (0, 1)) - np.pad(ionic, (1, 0)))  # d/dt of the charge of every volume
    matrix = np.zeros((len(moved), len(moved)))
    for edge, stiffness in enumerate(permittivity / h):
        matrix[edge : edge + 2, edge : edge + 2] += stiffness * np.array([[1, -1], [-1, 1]])
    held = [] if grid.ground_node is None else [grid.ground_node]
    for node, end in ((0, cell.left), (-1, cell.right)):
        if isinstance(end, pnp.Electrode) and end.stern_capacitance is not None:
            matrix[node, node] += float(end.stern_capacitance)
        else:
            held.append(node)
    for node in held:
        matrix[node], moved[node] = 0.0, 0.0
        matrix[node, node] = 1.0
    return ionic, -permittivity * np.diff(np.linalg.solve(matrix, moved)) / h


@pytest.mark.parametrize("ground", [None, 0.4])
@pytest.mark.parametrize("kind", CHARGING)
def test_total_current_is_ion_flux_plus_displacement(kind, ground):
    cell = charging(kind, ground)
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 31), times=[0.02]).at(0)
    ionic, displacement = total_current(solution, 0.05)
    total = ionic + displacement
    assert np.abs(pnp.current_density(solution).numpy() - total).max() < 1e-9 * np.abs(total).max()
    assert np.abs(displacement).max() > 0.1 * np.abs(total).max()
    if ground is None:
        assert np.ptp(total) < 1e-9 * np.abs(total).max()


def test_current_charges_the_electrode():
    """The current is the derivative of the charge on the metal, and its integral is that charge."""
    cell = charging("stern")
    grid = pnp.Grid.refined(cell, 31)
    # Gauss-Legendre nodes of [0.005, 0.2]
    x, weight = np.polynomial.legendre.leggauss(24)
    ends = np.array([0.005, 0.2])
    inner = ends.mean() + np.diff(ends)[0] / 2 * x
    times = np.concatenate([ends[:1], inner, ends[1:]])
    solution = pnp.solve_transient(cell, grid, times=times, step_control=PRECISE)
    current = pnp.current_density(solution)[:, 0].numpy()
    charges = pnp.surface_charge(solution)
    gained = float(charges.left[-1] - charges.left[0])
    assert gained == pytest.approx(float(weight @ current[1:-1]) * np.diff(ends)[0] / 2, rel=3e-4)
    assert float(charges.right[-1] - charges.right[0]) == pytest.approx(-gained, rel=1e-10)


# ---- times


def test_returns_the_start_at_time_zero():
    problem = Canonical(3.0, 0.1)
    grid = pnp.Grid.refined(problem.cell(), 31)
    only = pnp.solve_transient(problem.cell(), grid, times=[0.0])
    more = pnp.solve_transient(problem.cell(), grid, times=[0.0, 0.1])
    for solution in (only, more):
        start = solution.at(0)
        assert torch.equal(start.concentrations, torch.ones(2, 31, dtype=torch.float64))
        assert torch.allclose(start.potential, 3.0 * (1 - start.positions), atol=1e-13)
    assert float(only.stats.reached) == 0.0
    assert int(only.stats.steps) == 0


def test_lands_on_awkward_times():
    problem = SaltDiffusion()
    times = np.array([1e-12, 1e-7, 0.01, 0.01 * (1 + 1e-9), 0.0100001, 1 / 30, 0.1, 0.25]) / problem.rate
    solution = relaxation(problem, 17, times, TIGHT)
    decay = (solution.concentrations[:, 0, 0].numpy() - 1) / problem.amplitude
    exact = np.exp(-problem.rate_on(16) * times)
    assert np.abs(decay - exact).max() < 1e-5
    # Neighbouring moments differ by what passes between them, not by an error of interpolation.
    assert decay[2] - decay[3] == pytest.approx(exact[2] - exact[3], rel=1e-3)
    assert decay[3] - decay[4] == pytest.approx(exact[3] - exact[4], rel=1e-4)
    assert float(solution.stats.reached) == pytest.approx(times[-1], rel=1e-15)
    assert torch.equal(solution.times, torch.as_tensor(times))


def test_requested_times_do_not_change_the_answer():
    problem = Canonical(3.0, 0.1)
    grid = pnp.Grid.refined(problem.cell(), 31)
    one = pnp.solve_transient(problem.cell(), grid, times=[0.3])
    many = pnp.solve_transient(problem.cell(), grid, times=np.linspace(0.01, 0.3, 30))
    assert (one.potential[-1] - many.potential[-1]).abs().max() < 2e-3
    assert float(pnp.diffuse_charge(many)[-1] / pnp.diffuse_charge(one)[-1]) == pytest.approx(1.0, abs=1e-3)


def test_goes_on_from_a_state():
    problem = Canonical(3.0, 0.1)
    grid = pnp.Grid.refined(problem.cell(), 31)
    whole = pnp.solve_transient(problem.cell(), grid, times=[0.1, 0.3], step_control=PRECISE)
    for state in (whole.at(0), whole.at(0).concentrations):
        rest = pnp.solve_transient(problem.cell(), grid, times=[0.2], initial=state, step_control=PRECISE)
        assert (rest.potential[0] - whole.potential[1]).abs().max() < 3e-4
        assert torch.allclose(rest.expected_amounts, whole.expected_amounts, rtol=1e-12)


def test_discharges_when_the_voltage_is_taken_away():
    problem = Canonical(3.0, 0.1)
    grid = pnp.Grid.refined(problem.cell(), 41)
    charged = pnp.solve_steady(problem.cell(), grid)
    short = problem.cell(left=pnp.Electrode(potential=0.0), right=pnp.Electrode(potential=0.0))
    solution = pnp.solve_transient(short, grid, times=[0.0, 0.05, 0.2, 50.0], initial=charged)
    charge = pnp.diffuse_charge(solution)
    assert float(charge[0]) == pytest.approx(float(pnp.diffuse_charge(charged)), rel=1e-12)
    assert bool((charge.diff() < 0).all())
    assert float(charge[-1]) < 1e-10


def test_elements_of_a_batch_take_their_own_steps():
    problem = Canonical(1.0, 0.1)
    voltage = f64(1e-3, 1.0, 8.0)
    cell = problem.cell(left=pnp.Electrode(potential=voltage), right=pnp.Electrode(potential=-voltage))
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 51), times=[0.5])
    assert solution.stats.steps.tolist() == sorted(set(solution.stats.steps.tolist()))
