"""Compiled kernels give what the readable torch equations give, and step aside where they cannot."""

import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import pnp
from pnp import compiled
from pnp.finite_volume import bernoulli as readable
from pnp.solvers import integration
from pnp.solvers.newton import NewtonResult

pytest.importorskip("numba")

from numba import njit

from pnp.compiled import dispatch, lanes, resting, stepping, stepping_adjoint
from pnp.compiled.bernoulli import bernoulli

from .problems import Canonical
from .sweep import random_cells
from .test_pnp_gradients import AT_REST, Parametrised

pytestmark = pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")

ENDS = [
    "two electrodes",
    "Stern layers",
    "electrodes and ground",
    "electrode and bath",
    "charged wall and electrode",
    "charged walls",
]
MEDIA = ["point ions", "layers"]
COUNT, NODES = 20, 41
"""More cells than lanes, so that one group is not full."""
TIMES = [0.0, 1e-4, 2e-3]
AT_REST_COMPILED = [name for name in AT_REST if "finite ions" not in name]


@njit
def _numbers(work, count):
    """Every operation of lanes, one row of results for each."""
    for k in range(count):
        x = lanes.load(work, k)
        ahead, back, slope = bernoulli(x)
        lanes.store(work, count + k, ahead)
        lanes.store(work, 2 * count + k, back)
        lanes.store(work, 3 * count + k, slope)
        lanes.store(work, 4 * count + k, lanes.exponential(lanes.smallest(lanes.largest(x, -700.0), 700.0)))
        inside = (x > -1.0) & lanes.opposite(x >= 1.0) | (x == 3.0)
        lanes.store(
            work, 5 * count + k, lanes.where(inside, -x / 3.0, lanes.square_root(lanes.absolute(x)) - 2)
        )
        lanes.store(work, 6 * count + k, lanes.logarithm(lanes.absolute(x) + 1.0))


@pytest.mark.parametrize("together", [1, 4, 8])
def test_arithmetic_of_lanes(together):
    x = np.concatenate(
        [np.geomspace(1e-300, 800, 90), -np.geomspace(1e-300, 800, 90), [0.0, 3.0, 0.25, -0.25]]
    )
    count = -(-x.size // together)
    x = np.resize(x, count * together)
    work = np.concatenate([x, np.zeros(6 * x.size)])
    _numbers(work.view(lanes.rows_of(together)), count)
    ahead, back, slope, exponential, chosen, logarithm = work.reshape(7, -1)[1:]
    t = torch.from_numpy(x)
    assert np.abs(ahead - readable.bernoulli(t).numpy()).max() <= 1e-15 * 800
    assert (np.abs(ahead / readable.bernoulli(t).numpy() - 1)[np.abs(x) < 600]).max() < 2e-15
    assert (np.abs(back / readable.bernoulli(-t).numpy() - 1)[np.abs(x) < 600]).max() < 2e-15
    assert (np.abs(slope - readable.bernoulli_derivative(t).numpy())).max() < 2e-15
    clipped = np.clip(x, -700, 700)
    assert (np.abs(exponential / np.exp(clipped) - 1)).max() < 1e-15
    inside = (x > -1) & ~(x >= 1) | (x == 3)
    assert np.array_equal(chosen, np.where(inside, -x / 3, np.sqrt(np.abs(x)) - 2))
    assert np.abs(logarithm - np.log(np.abs(x) + 1)).max() < 1e-15


def grid_of(cell: pnp.Cell) -> pnp.Grid:
    return pnp.Grid.refined(cell, NODES)


def assert_same(one: pnp.Solution, two: pnp.Solution, tolerance: float, negligible: float = 1e-14) -> None:
    assert one.status.tolist() == two.status.tolist()
    solved = one.solved
    potential = (one.potential - two.potential).abs() / (1 + two.potential.abs())
    largest = two.concentrations.amax(-1, keepdim=True)
    concentrations = (one.concentrations - two.concentrations).abs() / (
        two.concentrations + negligible * largest
    )
    assert float(potential[solved].max()) < tolerance
    assert float(concentrations[solved].max()) < 10 * tolerance


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("solve", [pnp.solve_steady, pnp.solve_equilibrium])
def test_equilibria_are_those_of_torch(solve, ends, medium):
    cell = random_cells(ends, medium, COUNT)
    solution = solve(cell, grid_of(cell), throw=False)
    assert solution.stats.solver == "compiled"
    with compiled.torch_only():
        wanted = solve(cell, grid_of(cell), throw=False)
    assert wanted.stats.solver == "torch"
    assert_same(solution, wanted, 1e-10)


def test_one_cell_is_solved_like_many_side_by_side(monkeypatch):
    """Rows of one lane are the plain numbers of a GPU's thread."""
    cell = random_cells(ENDS[0], "layers", COUNT)
    found = {}
    for together in (1, 4):
        monkeypatch.setattr(dispatch, "RESTING_TOGETHER", together)
        monkeypatch.setattr(dispatch, "MARCHING_TOGETHER", together)
        found[together] = [
            pnp.solve_steady(cell, grid_of(cell)),
            pnp.solve_transient(cell, grid_of(cell), times=TIMES),
        ]
    for one, many in zip(*found.values(), strict=True):
        assert one.stats.solver == many.stats.solver == "compiled"
        assert one.stats.steps is None or torch.equal(one.stats.steps, many.stats.steps)
        assert_same(one, many, 1e-10)


@pytest.mark.parametrize("ends", ENDS)
def test_equilibria_satisfy_the_readable_equations(ends):
    cell = random_cells(ends, "layers", COUNT)
    check = pnp.solve_steady(cell, grid_of(cell)).check()
    assert bool(check.passed.all())
    assert float(check.residual.max()) < 1e-10
    assert float(check.current_variation.max()) < 1e-10


def test_a_gradient_is_the_same_whoever_else_wants_one():
    """Derivatives that nobody wants are not computed."""
    numbers = {
        "voltage": torch.tensor([1.0, 3.0], dtype=torch.float64),
        "permittivity": torch.tensor([0.02, 0.05], dtype=torch.float64),
        "length": torch.tensor([2.0, 1.5], dtype=torch.float64),
        "valence": torch.tensor([1.0, 1.5], dtype=torch.float64),
        "filling": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "charge": torch.tensor([0.1, -0.1], dtype=torch.float64),
    }

    def gradients(*wanted: str) -> list[torch.Tensor]:
        given = {name: one.clone().requires_grad_(name in wanted) for name, one in numbers.items()}
        salt = [
            pnp.Species(name, valence=sign * given["valence"], diffusivity=1.0)
            for name, sign in (("+", 1), ("-", -1))
        ]
        cell = pnp.Cell(
            pnp.Electrolyte.dimensionless(salt, permittivity=given["permittivity"]),
            length=given["length"],
            concentrations=given["filling"].unsqueeze(-1).expand(2, 2),
            left=pnp.Electrode(potential=given["voltage"]),
            right=pnp.Electrode(potential=-given["voltage"], stern_capacitance=1.0),
            fixed_charge=given["charge"],
        )
        solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, NODES))
        assert solution.stats.solver == "compiled"
        wanted_tensors = [given[name] for name in wanted]
        return list(torch.autograd.grad(pnp.free_energy(solution).sum(), wanted_tensors))

    together = gradients(*numbers)
    assert all(bool((one != 0).all()) for one in together)
    for name, one in zip(numbers, together, strict=True):
        assert torch.equal(gradients(name)[0], one)


@pytest.mark.parametrize("kind", AT_REST_COMPILED)
def test_gradients_are_those_of_torch(kind):
    found = []
    for path in (compiled.torch_only, warnings.catch_warnings):
        vector = Parametrised(kind).start.requires_grad_()
        with path():
            solution = pnp.solve_equilibrium(*Parametrised(kind)(vector))
            weights = torch.cos(torch.arange(solution.potential.numel(), dtype=torch.float64))
            value = (solution.potential.flatten() * weights).sum() + pnp.free_energy(solution).sum()
            found.append(torch.autograd.grad(value, vector)[0])
    assert float((found[1] - found[0]).abs().max()) < 1e-9 * float(found[0].abs().max())


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("ends", [*ENDS, "two baths"])
def test_transients_are_those_of_torch(ends, medium):
    """To far less than the tolerance of their steps."""
    cell = random_cells(ends, medium, 5)
    grid = pnp.Grid.refined(cell, 21)
    solution = pnp.solve_transient(cell, grid, times=TIMES, throw=False)
    assert solution.stats.solver == "compiled"
    with compiled.torch_only():
        wanted = pnp.solve_transient(cell, grid, times=TIMES, throw=False)
    assert int((solution.stats.steps == wanted.stats.steps).sum()) >= 4
    assert_same(solution, wanted, 1e-6, negligible=1e-6)
    assert bool(solution.check().passed[solution.solved].all())


def test_three_species():
    names, valences, filling = ("a", "b", "c"), (1.0, 2.0, -1.0), [1.0, 0.5, 2.0]
    species = [
        pnp.Species(n, valence=z, diffusivity=1 + z**2 / 3) for n, z in zip(names, valences, strict=True)
    ]
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=0.02),
        length=1.0,
        concentrations=filling,
        left=pnp.Electrode(potential=[0.5, 4.0]),
        right=pnp.Electrode(potential=-1.0, stern_capacitance=3.0),
        ground=0.3,
    )
    for solve in (pnp.solve_steady, lambda cell, grid: pnp.solve_transient(cell, grid, times=[1e-3, 0.1])):
        solution = solve(cell, grid_of(cell))
        assert solution.stats.solver == "compiled"
        with compiled.torch_only():
            assert_same(solution, solve(cell, grid_of(cell)), 1e-6)


@pytest.mark.parametrize("third", [False, True])
def test_ions_lost_in_long_steps_are_restored(third):
    """With them in place, Gauss's law holds to rounding. Filling up every node by the same share broke it by 1e-12."""
    cell = random_cells("charged walls", "layers", 24, seed=7)
    if third:
        tracer = pnp.Species("tracer", valence=1.0, diffusivity=0.5)
        kinds = [*cell.electrolyte.species, tracer]
        electrolyte = replace(cell.electrolyte, species=tuple(kinds))
        amounts = cell.concentrations
        # A tenth of the cations are the tracer's, of the same charge.
        charge = cell.electrolyte.valences[..., 0]
        amounts = torch.stack([0.9 * amounts[:, 0], amounts[:, 1], 0.1 * charge * amounts[:, 0]], -1)
        cell = replace(cell, electrolyte=electrolyte, concentrations=amounts)
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 21), times=[1e-3, 1.0, 10.0])
    assert solution.stats.solver == "compiled"
    kept = solution.check()
    assert float(kept.gauss_error.max()) < 1e-14
    assert float(kept.amount_error.max()) < 1e-13


@pytest.mark.parametrize("ends", ["two electrodes", "electrode and bath"])
def test_batches_and_threads_change_nothing(ends):
    count = 2 * dispatch.CELLS_PER_THREAD + 5

    def solve(only: list[int] | None) -> tuple[pnp.Solution, pnp.Solution]:
        cell = random_cells(ends, "point ions", count, only=only)
        grid = pnp.Grid.refined(cell, 21)
        return pnp.solve_steady(cell, grid), pnp.solve_transient(cell, grid, times=[1e-4, 1e-3])

    try:
        torch.set_num_threads(3)
        together = solve(None)
    finally:
        torch.set_num_threads(1)
    for one, two in zip(solve(None), together, strict=True):
        assert torch.equal(one.potential, two.potential)
        assert torch.equal(one.concentrations, two.concentrations)
    for index in (0, 77, count - 1):
        for one, two in zip(solve([index]), together, strict=True):
            assert torch.equal(one.potential[0], two.potential[index])
            assert torch.equal(one.stats.iterations[0], two.stats.iterations[index])


def test_goes_on_from_a_state():
    cell = Canonical(3.0, 0.1).cell()
    grid = grid_of(cell)
    solution = pnp.solve_steady(cell, grid)
    again = pnp.solve_steady(cell, grid, initial=solution)
    assert again.stats.solver == "compiled"
    assert int(again.stats.iterations) < int(solution.stats.iterations)
    half = pnp.solve_transient(cell, grid, times=[0.05]).at(0)
    rest = pnp.solve_transient(cell, grid, times=[0.05], initial=half)
    whole = pnp.solve_transient(cell, grid, times=[0.1])
    assert rest.stats.solver == "compiled"
    assert float((rest.potential - whole.potential).abs().max()) < 2e-3


@pytest.mark.parametrize("solve", [pnp.solve_steady, lambda cell: pnp.solve_transient(cell, times=[0.01])])
def test_a_broken_kernel_is_reported_and_replaced(solve, monkeypatch):
    cell = Canonical(2.0, 0.1).cell()
    wanted = solve(cell)

    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    for name in ("resting_state", "marched"):
        monkeypatch.setattr(dispatch, name, broken)
    with pytest.warns(compiled.CompiledPathWarning, match="no such instruction"):
        solution = solve(cell)
    assert solution.stats.solver == "torch"
    assert_same(solution, wanted, 1e-5)


def test_what_a_kernel_leaves_is_solved_in_torch(monkeypatch):
    cell = Canonical(2.0, 0.1).cell(left=pnp.Electrode(potential=[1.0, 2.0, 3.0]))
    wanted = pnp.solve_steady(cell)
    kernel = dispatch.resting_state

    def partly(*arguments: object) -> NewtonResult:
        found = kernel(*arguments)
        return replace(found, converged=torch.tensor([True, False, True]))

    monkeypatch.setattr(dispatch, "resting_state", partly)
    solution = pnp.solve_steady(cell)
    assert_same(solution, wanted, 1e-12)
    assert int(solution.stats.iterations[1]) > int(wanted.stats.iterations[1])

    march = dispatch.marched

    def stuck(*arguments: object) -> tuple[torch.Tensor, ...]:
        concentrations, potential, report = march(*arguments)
        potential[1], report[1, 0] = torch.nan, stepping.STUCK
        return concentrations, potential, report

    wanted = pnp.solve_transient(cell, times=[0.01, 0.1])
    monkeypatch.setattr(dispatch, "marched", stuck)
    found = pnp.solve_transient(cell, times=[0.01, 0.1])
    for index in (0, 2):
        assert torch.equal(found.concentrations[index], wanted.concentrations[index])
    # Begun anew, by the other method.
    monkeypatch.setattr(integration, "suits", lambda system: False)
    again = pnp.solve_transient(cell, times=[0.01, 0.1])
    assert (found.stats.method, again.stats.method) == ("Rosenbrock", "TR-BDF2")
    assert torch.allclose(found.concentrations[1], again.concentrations[1], rtol=1e-10, atol=0.0)
    assert not torch.allclose(found.concentrations[1], wanted.concentrations[1], rtol=1e-7, atol=0.0)
    assert int(found.stats.steps[1]) == int(again.stats.steps[1])


def test_works_without_numba(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert pnp.solve_steady(Canonical(1.0, 0.1).cell()).stats.solver == "torch"


def test_torch_takes_what_kernels_do_not_know():
    cell = Canonical(1.0, 0.1).cell()
    grid = pnp.Grid.refined(cell, 21)
    swept = Canonical(1.0, 0.1).cell(left=pnp.Electrode(potential=pnp.ramp(0.0, 1.0, duration=0.01)))
    assert pnp.solve_transient(swept, grid, times=[0.01]).stats.solver == "torch"
    driven = Canonical(1.0, 0.1).cell(left=pnp.Electrode(current=1.0))
    charged = pnp.solve_transient(driven, grid, times=[0.001])
    assert charged.stats.solver == "torch"
    assert float(pnp.surface_charge(charged).left) == pytest.approx(1e-3, rel=1e-9)
    reacting = random_cells("reacting electrodes", "point ions", 2)
    assert pnp.solve_steady(reacting, pnp.Grid.refined(reacting, 21)).stats.solver == "torch"
    assert "compiled" in repr(pnp.solve_steady(cell, grid))


@lanes.part
def _twice(x):
    return 2.0 * x


@njit
def _four_times(x):
    return _twice(_twice(x))


def test_parts_of_kernels_become_machine_code_with_them_only():
    assert _four_times(3.0) == 12.0
    (twice,), (four_times,) = _twice.overloads.values(), _four_times.overloads.values()
    engine = four_times.library.codegen._engine
    assert engine.is_symbol_defined(four_times.fndesc.llvm_func_name)
    assert not engine.is_symbol_defined(twice.fndesc.llvm_func_name)


def test_kept_machine_code_is_that_of_these_sources():
    """numba alone would not notice a change of a file that a kernel only uses."""
    for kernel in (resting.rest, resting.rest_adjoint, stepping.march, stepping_adjoint.march_adjoint):
        assert kernel._cache._cache_file._source_stamp == lanes._digest()
