"""Compiled equilibria of many species: those of torch, with their gradients, for every kind of cell."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

import pnp
from pnp import compiled
from pnp.solvers.newton import Newton, NewtonResult

pytest.importorskip("numba")

from pnp.compiled import dispatch, lanes, many

from .problems import electrolyte
from .test_pnp_steady import many_species

pytestmark = pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")

KINDS = (
    "electrodes",
    "ground",
    "Stern layers",
    "bath",
    "charged wall",
    "charged walls",
    "fixed charge",
    "layers",
)


@dataclass(frozen=True)
class Many:
    """A cell of many species with all its numbers in one vector, and in it what its kind needs."""

    kind: str
    count: int

    @property
    def numbers(self) -> torch.Tensor:
        """Valences, concentrations, potentials, Stern layers, permittivity, charges, length, ground, and a node."""
        generator = np.random.default_rng(self.count)
        valences = generator.uniform(0.2, 1.5, self.count)
        valences[::2] *= -1
        filling = generator.uniform(0.1, 2.0, self.count) / self.count
        # Neutral, for charged walls and for the bath.
        positive = valences > 0
        filling[positive] *= -(valences * filling)[~positive].sum() / (valences * filling)[positive].sum()
        others = [2.5, -1.5, 0.7, 1.9, 0.02, 0.3, 0.4, 1.3, 0.45, 0.5]
        return torch.from_numpy(np.concatenate([valences, filling, others]))

    def __call__(self, numbers: torch.Tensor, nodes: int = 61) -> tuple[pnp.Cell, pnp.Grid]:
        valences, filling = numbers[: self.count], numbers[self.count : 2 * self.count]
        left, right, stern, layer, permittivity, wall, fixed, length, ground, node = numbers[-10:].unbind()
        ends = [pnp.Electrode(potential=left), pnp.Electrode(potential=right)]
        changes = {}
        if self.kind == "ground":
            changes["ground"] = ground
        elif self.kind == "Stern layers":
            ends = [
                pnp.Electrode(potential=one, stern_capacitance=two)
                for one, two in ((left, stern), (right, layer))
            ]
        elif self.kind == "bath":
            there = torch.ones_like(filling).index_fill(0, torch.tensor(0), 0.0)
            ends[1] = pnp.Reservoir(concentrations=there * filling, potential=right)
            changes["charged"] = True
        elif self.kind == "charged wall":
            ends[0] = pnp.ChargedWall(charge=wall)
        elif self.kind == "charged walls":
            ends = [pnp.ChargedWall(charge=wall), pnp.ChargedWall(charge=-wall)]
        elif self.kind == "fixed charge":
            changes["fixed_charge"] = lambda x: fixed * torch.exp(-10 * (x - 0.7) ** 2)
        elif self.kind == "layers":
            changes["permittivity_profile"] = lambda x: 1 - stern * x / 2
        cell = pnp.Cell(
            electrolyte(permittivity, valences.unbind(), [1.0] * self.count),
            length=length,
            concentrations=filling,
            left=ends[0],
            right=ends[1],
            **changes,
        )
        grid = pnp.Grid.refined(cell, nodes)
        if self.kind != "electrodes":
            return cell, grid
        # One node by hand, to see that positions matter.
        moved = grid.nodes.detach().clone() * length / length.detach()
        place = torch.zeros_like(moved).index_fill(0, torch.tensor(nodes // 2), 1.0)
        return cell, pnp.Grid(moved + place * 0.01 * (node - 0.5))


def both_ways(solve) -> tuple:
    """What `solve` gives with the compiled kernel and in torch."""
    found = solve()
    with compiled.torch_only():
        return found, solve()


def assert_same(one: pnp.Solution, two: pnp.Solution, tolerance: float) -> None:
    assert one.status.tolist() == two.status.tolist()
    assert float(((one.potential - two.potential).abs() / (1 + two.potential.abs())).max()) < tolerance
    there = two.concentrations > 0
    ratio = torch.where(there, one.concentrations / two.concentrations, 1.0)
    assert torch.equal(one.concentrations > 0, there)
    assert float((ratio - 1).abs().max()) < tolerance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [7, 40, 300])
def test_equilibria_are_those_of_torch(kind, count):
    build = Many(kind, count)
    cell, grid = build(build.numbers)
    found, wanted = both_ways(lambda: pnp.solve_steady(cell, grid))
    assert (found.stats.solver, wanted.stats.solver) == ("compiled", "torch")
    assert_same(found, wanted, 1e-11)
    if cell.is_closed:
        assert float((pnp.amounts(found) / found.expected_amounts - 1).abs().max()) < 1e-13


@pytest.mark.parametrize(
    ("ends", "voltage", "permittivity"),
    [
        ("electrodes", 30.0, 0.01),
        ("electrodes", 200.0, 1e-3),
        ("electrodes", 3.0, 1e-8),
        ("electrodes", 1e-6, 0.01),
        ("bath", 30.0, 0.01),
        ("bath", 3.0, 1e-8),
    ],
)
def test_hard_and_easy_cells(ends, voltage, permittivity):
    """With layers that the few ions are no good stand-in for, and with next to none."""
    build = Many(ends, 40)
    numbers = build.numbers
    numbers[-10:-8], numbers[-6] = torch.tensor([voltage, -voltage / 2]), permittivity
    cell, grid = build(numbers, 101)
    found, wanted = both_ways(lambda: pnp.solve_equilibrium(cell, grid))
    assert found.stats.solver == "compiled"
    # As far as G decides: what its own rounding leaves open differs.
    assert_same(found, wanted, 1e-9)


def weighted(solution: pnp.Solution) -> torch.Tensor:
    """A number that depends on all potentials and concentrations, and on the energy where all ions are there."""
    c, phi = solution.concentrations, solution.potential
    by_c = torch.cos(torch.arange(c.numel(), dtype=torch.float64)).reshape(c.shape)
    by_phi = torch.cos(torch.arange(phi.numel(), dtype=torch.float64)).reshape(phi.shape)
    value = (by_c * c).sum() + (by_phi * phi).sum()
    return value + pnp.free_energy(solution).sum() if bool((c > 0).all()) else value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [7, 60])
def test_gradients_are_those_of_torch(kind, count):
    """By every number, valences and concentrations among them, also of what the bath has none of."""
    build = Many(kind, count)

    def gradient() -> torch.Tensor:
        numbers = build.numbers.requires_grad_()
        return torch.autograd.grad(weighted(pnp.solve_equilibrium(*build(numbers))), numbers)[0]

    found, wanted = both_ways(gradient)
    parts = [slice(count), slice(count, 2 * count), *range(2 * count, 2 * count + 10)]
    assert sum(bool((wanted[part] != 0).any()) for part in parts) >= 5
    for part in parts:
        size = float(wanted[part].abs().max())
        assert float((found[part] - wanted[part]).abs().max()) <= 1e-8 * size


def test_batches_and_threads_change_no_bit():
    potentials = torch.linspace(0.1, 6.0, 5, dtype=torch.float64)

    def solve(potential: torch.Tensor) -> tuple[pnp.Solution, torch.Tensor]:
        potential = potential.clone().requires_grad_()
        cell = many_species(40, left=pnp.Electrode(potential=potential))
        grid = pnp.Grid.uniform(cell, 50)
        solution = pnp.solve_equilibrium(cell, grid)
        (gradient,) = torch.autograd.grad(weighted(solution), potential)
        return solution, gradient

    try:
        torch.set_num_threads(3)
        together, gradients = solve(potentials)
    finally:
        torch.set_num_threads(1)
    assert together.stats.solver == "compiled"
    for index, potential in enumerate(potentials):
        alone, _ = solve(potential)
        assert torch.equal(alone.potential, together.potential[index])
        assert torch.equal(alone.concentrations, together.concentrations[index])
        assert int(alone.stats.iterations) == int(together.stats.iterations[index])
    assert torch.equal(solve(potentials)[1], gradients)


def test_goes_on_from_a_state():
    cell = many_species(40)
    grid = pnp.Grid.refined(cell, 61)
    solution = pnp.solve_equilibrium(cell, grid)
    again = pnp.solve_equilibrium(cell, grid, initial=solution)
    assert again.stats.solver == "compiled"
    assert int(again.stats.iterations) < int(solution.stats.iterations)
    assert_same(again, solution, 1e-13)


@pytest.mark.parametrize("count", [7, 15, 16, 17, 500])
def test_few_ions_have_the_moments_of_many(count):
    """Twice as many as there are few, in proportion to the moments of the sizes."""
    generator = np.random.default_rng(count)
    valences = generator.uniform(-2, 2, (3, count))
    valences[1] = valences[1].round()  # at most five that differ
    amounts = generator.uniform(0.1, 1.0, (3, count))
    few, shares = many.few_ions(valences, amounts)
    assert few.shape == shares.shape == (3, lanes.LANES)
    assert (shares >= 0).all()
    assert (shares[1] > 1e-12).sum() <= 5
    for power in range(2 * lanes.LANES):
        whole = (amounts * valences**power).sum(-1)
        size = (amounts * np.abs(valences) ** power).sum(-1)
        assert (np.abs((shares * few**power).sum(-1) - whole) < 1e-12 * size).all()


def test_the_few_decide_how_long_it_takes_but_not_what_comes_out(monkeypatch):
    cell = many_species(40)
    grid = pnp.Grid.refined(cell, 61)
    wanted = pnp.solve_equilibrium(cell, grid)
    exact = many.few_ions

    def poor(valences, amounts):
        few, shares = exact(valences, amounts)
        return 0.8 * few, 1.5 * shares

    monkeypatch.setattr(dispatch, "few_ions", poor)
    found = pnp.solve_equilibrium(cell, grid)
    assert found.stats.solver == "compiled"
    assert int(found.stats.iterations) > int(wanted.stats.iterations)
    assert_same(found, wanted, 1e-12)


def test_memory_is_that_of_the_result():
    """Which is 34 MB; pairs of nodes would take 134 MB."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("the system does not tell the highest memory of a while")
    cell = many_species(1024)
    grid = pnp.Grid.refined(cell, 4096)
    pnp.solve_equilibrium(cell, pnp.Grid.refined(cell, 21))
    Path("/proc/self/clear_refs").write_text("5")
    before = highest_memory()
    solution = pnp.solve_equilibrium(cell, grid)
    assert solution.stats.solver == "compiled"
    assert highest_memory() - before < 2 * 8 * solution.concentrations.numel() < 8 * 4096**2


def highest_memory() -> int:
    """Bytes, since it was last forgotten."""
    (line,) = (one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
    return 1024 * int(line.split()[1])


def test_a_broken_kernel_is_reported_and_replaced(monkeypatch):
    cell = many_species(9)
    grid = pnp.Grid.uniform(cell, 31)
    wanted = pnp.solve_equilibrium(cell, grid)

    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(dispatch, "rest_many", broken)
    with pytest.warns(compiled.CompiledPathWarning, match="no such instruction"):
        solution = pnp.solve_equilibrium(cell, grid)
    assert solution.stats.solver == "torch"
    assert_same(solution, wanted, 1e-11)


def test_what_the_kernel_leaves_is_solved_in_torch(monkeypatch):
    cell = many_species(9, left=pnp.Electrode(potential=[1.0, 2.0, 3.0]))
    grid = pnp.Grid.uniform(cell, 31)
    wanted = pnp.solve_equilibrium(cell, grid)
    kernel = dispatch.resting_state

    def partly(*arguments: object) -> NewtonResult:
        found = kernel(*arguments)
        found.state.fields[1] = torch.nan
        return replace(found, converged=torch.tensor([True, False, True]))

    monkeypatch.setattr(dispatch, "resting_state", partly)
    assert_same(pnp.solve_equilibrium(cell, grid), wanted, 1e-11)


def test_out_of_iterations():
    settings = Newton(max_iterations=1)
    cell = many_species(9, left=pnp.Electrode(potential=[0.0, 9.0]), right=pnp.Electrode(potential=0.0))
    solution = pnp.solve_equilibrium(cell, throw=False, newton_settings=settings)
    assert not bool(solution.solved[1])
    assert bool(torch.isfinite(solution.concentrations).all())


def test_transients_and_finite_ions_of_many_species_stay_in_torch():
    cell = many_species(8)
    grid = pnp.Grid.uniform(cell, 21)
    assert pnp.solve_transient(cell, grid, times=[0.01]).stats.solver == "torch"
    species = [pnp.Species(f"s{i}", valence=(-1.0) ** i, diffusivity=1.0, diameter=0.3) for i in range(8)]
    finite = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=0.02),
        length=1.0,
        concentrations=0.1,
        left=pnp.Electrode(potential=1.0),
        right=pnp.Electrode(potential=0.0),
    )
    assert pnp.solve_equilibrium(finite, pnp.Grid.uniform(finite, 21)).stats.solver == "torch"


def test_kept_machine_code_is_that_of_these_sources():
    for kernel in (many.rest_many, many.rest_many_adjoint):
        assert kernel._cache._cache_file._source_stamp == lanes._digest()
