"""What every solution must keep, on random cells."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from scipy import constants

import pnp

from . import sweep
from .problems import Canonical
from .random_cells import NODES, RandomCell, random_cells, stacked

# These must hold on any grid, so coarse ones serve.
pytestmark = pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")

EXAMPLES = settings(max_examples=40)
TIMES = np.array([0.0, 1e-4, 1e-3, 0.01, 0.1, 1.0])


def few(count: int) -> settings:
    """For transients, which take seconds: they are not made smaller when they fail."""
    return settings(max_examples=count, phases=[Phase.explicit, Phase.generate])


def grid_of(cell: pnp.Cell) -> pnp.Grid:
    return pnp.Grid.refined(cell, NODES)


def equilibrium(random: RandomCell) -> pnp.Solution:
    return pnp.solve_equilibrium(random.cell(), grid_of(random.cell()))


def assert_kept(solution: pnp.Solution) -> None:
    kept = solution.check()
    assert float(kept.smallest_concentration.min()) > 0
    assert float(kept.gauss_error.max()) < 1e-12
    assert float(kept.amount_error.max()) < 1e-12


def assert_same(one: pnp.Solution, two: pnp.Solution, tolerance: float = 1e-11) -> None:
    """Equal potentials (of order one and more) and relative concentrations."""
    assert torch.allclose(one.potential, two.potential, rtol=tolerance, atol=tolerance)
    largest = two.concentrations.amax(-1, keepdim=True)
    assert float(((one.concentrations - two.concentrations).abs() / largest).max()) < 10 * tolerance


def conjugated(solution: pnp.Solution) -> pnp.Solution:
    return replace(solution, potential=-solution.potential)


def mirrored(solution: pnp.Solution) -> pnp.Solution:
    return replace(
        solution, potential=solution.potential.flip(-1), concentrations=solution.concentrations.flip(-1)
    )


# ---- equilibria


@EXAMPLES
@given(random_cells(neutral=False, debyes=(0.1, 3.0)))
def test_equilibria_keep_what_they_must(random):
    assert_kept(equilibrium(random))


@EXAMPLES
@given(random_cells())
def test_equilibria_of_neutral_cells_keep_what_they_must(random):
    assert_kept(equilibrium(random))


@EXAMPLES
@given(random_cells())
def test_charge_conjugation(random):
    assert_same(conjugated(equilibrium(random.conjugated())), equilibrium(random))


@EXAMPLES
@given(random_cells())
def test_mirror_symmetry(random):
    assert_same(mirrored(equilibrium(random.mirrored())), equilibrium(random))


@settings(max_examples=15)
@given(random_cells(size=5))
def test_batch_of_equilibria_equals_single_ones(cells):
    batch = pnp.solve_equilibrium(stacked(cells), grid_of(stacked(cells)))
    for i, random in enumerate(cells):
        single = equilibrium(random)
        assert torch.allclose(batch.potential[i], single.potential, rtol=1e-12, atol=1e-12)
        assert torch.allclose(batch.concentrations[i], single.concentrations, rtol=1e-10, atol=0)


# ---- the coupled solver


@EXAMPLES
@given(random_cells(voltage=8.0, debyes=(0.03, 3.0), grounds=False))
def test_coupled_solver_finds_the_equilibrium(random):
    cell = random.cell()
    solution = pnp.solve_steady(cell, grid_of(cell))
    assert_kept(solution)
    assert float(solution.check().residual) < 1e-12
    assert_same(solution, pnp.solve_equilibrium(cell, grid_of(cell)))


TORN = RandomCell(
    valences=(2.0, -1.0),
    diffusivities=(1.0, 1.0),
    filling=(1.0, 2.0),
    debye=0.0034,
    length=1.0,
    potentials=(-13.0, -18.0),
    stern=(None, None),
    ground=0.34,
    fixed_charge=0.0,
)
"""Cations at both electrodes, none between them."""


@EXAMPLES
@example(TORN)
@given(random_cells())
def test_coupled_solver_finds_the_equilibrium_of_any_neutral_cell(random):
    cell = random.cell()
    assert_same(pnp.solve_steady(cell, grid_of(cell)), pnp.solve_equilibrium(cell, grid_of(cell)))


@pytest.mark.parametrize(
    ("filling", "potentials", "debye", "ground"),
    [((2.0, 1.0), (-10.0, 16.0), 0.01, 0.5), ((3.0, 0.3), (10.0, 10.0), 0.05, 0.3)],
)
def test_torn_cells(filling, potentials, debye, ground):
    """Ions that a depleted region splits: any share of them on either side looks steady, one is."""
    random = RandomCell(
        valences=(1.0, -1.0),
        diffusivities=(1.0, 1.0),
        filling=filling,
        debye=debye,
        length=1.0,
        potentials=potentials,
        stern=(None, None),
        ground=ground,
        fixed_charge=0.0,
    )
    found = pnp.solve_steady(random.cell(), grid_of(random.cell()))
    assert_same(found, equilibrium(random))


@settings(max_examples=15)
@given(random_cells(size=5, voltage=8.0, debyes=(0.03, 3.0), grounds=False))
def test_batch_of_steady_states_equals_single_ones(cells):
    batch = pnp.solve_steady(stacked(cells), grid_of(stacked(cells)))
    for i, random in enumerate(cells):
        single = pnp.solve_steady(random.cell(), grid_of(random.cell()))
        assert torch.allclose(batch.potential[i], single.potential, rtol=1e-12, atol=1e-12)
        assert torch.allclose(batch.concentrations[i], single.concentrations, rtol=1e-10, atol=1e-12)
        assert int(batch.stats.iterations[i]) == int(single.stats.iterations)


# ---- transients


def transient(cells: list[RandomCell], times: np.ndarray = TIMES) -> pnp.Solution:
    """Random cells side by side, brought to equal relaxation times so that they share their times."""
    equal = [replace(one, diffusivities=tuple(np.array(one.diffusivities) * one.relaxation)) for one in cells]
    cell = stacked(equal)
    return pnp.solve_transient(cell, pnp.Grid.refined(cell, 31), times=times)


def potentials(cell: pnp.Cell) -> torch.Tensor:
    """What an amount of every species is worth to what it can turn into or leave to, `(*batch, species)`.

    Reactions come to rest where the standard potentials balance, :math:`k_f/k_b = e^{-\\sum\\nu\\mu^0}`; a bath
    takes ions up at its own chemical potential, and a reduction costs its electrons :math:`n(U - E^0)`.
    """
    electrolyte = cell.electrolyte
    energies = dict(zip(electrolyte.names, torch.zeros_like(cell.concentrations).unbind(-1), strict=True))
    for end in (cell.left, cell.right):
        if isinstance(end, pnp.Electrode):
            for transfer in end.reactions:
                ((oxidised, _),) = transfer.oxidised.items()
                valence = electrolyte.valences[..., electrolyte.names.index(oxidised)]
                work = valence * (end.potential - transfer.standard_potential)
                energies[oxidised] = energies[oxidised] - work
    for reaction in electrolyte.reactions:
        (product,) = reaction.products
        parts = sum(energies[name] for name in reaction.reactants)
        energies[product] = parts + torch.log(reaction.backward / reaction.forward)
    found = torch.stack(list(energies.values()), dim=-1)
    for end in (cell.left, cell.right):
        if isinstance(end, pnp.Reservoir):
            # Where the bath is in balance with the reactions, this is all that an ion is worth.
            found = -torch.log(end.concentrations) - electrolyte.valences * end.potential[..., None]
            if electrolyte.has_finite_ions:
                room = 1 - (electrolyte.molar_volumes * end.concentrations).sum(-1, keepdim=True)
                sizes = electrolyte.molar_volumes / electrolyte.solvent_volume[..., None]
                found = found + sizes * torch.log(room)
    return found


def available_energy(solution: pnp.Solution) -> torch.Tensor:
    """What can only fall in a cell at constant potentials, with at most one bath or reacting electrode."""
    worth = solution.over_time(potentials(solution.cell), trailing=1)
    return pnp.free_energy(solution) + (worth * pnp.amounts(solution)).sum(-1)


def assert_dissipates(solution: pnp.Solution, rest: pnp.Solution | None = None) -> None:
    """The free energy falls, and never below that of the equilibrium."""
    energy = available_energy(solution)
    if rest is None:
        rest = pnp.solve_equilibrium(solution.cell, solution.grid)
    final = available_energy(rest).unsqueeze(-1)
    allowed = 1e-9 * (energy[:, :1] - final).abs() + 1e-13 * energy.abs().amax(-1, keepdim=True)
    assert bool((energy.diff(dim=-1) <= allowed).all())
    assert bool((final - energy <= allowed).all())
    assert bool((energy[:, -1:] < energy[:, :1] - 100 * allowed).all())


@few(2)
@given(random_cells(size=6, voltage=5.0))
def test_transients_keep_what_they_must(cells):
    solution = transient(cells)
    assert_kept(solution)
    assert_dissipates(solution)


@few(1)
@given(random_cells(size=6))
def test_transients_at_high_voltage_keep_what_they_must(cells):
    solution = transient(cells)
    assert_kept(solution)
    assert_dissipates(solution)


@pytest.mark.parametrize(("voltage", "debye"), [(40.0, 0.1), (20.0, 0.001)])
def test_long_steps_at_high_voltage_keep_the_amounts(voltage, debye):
    """Where rounding of the fluxes, times a long step, is far above rounding of the amounts."""
    cell = Canonical(voltage, debye).cell()
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 31), times=[1.0, 100.0])
    assert_kept(solution)


@few(1)
@given(random_cells(size=3, voltage=10.0))
def test_batch_of_transients_equals_single_ones(cells):
    batch = transient(cells, TIMES[2:])
    for i, random in enumerate(cells):
        single = transient([random], TIMES[2:])
        assert torch.allclose(batch.potential[i], single.potential[0], rtol=1e-12, atol=1e-12)
        assert torch.allclose(batch.concentrations[i], single.concentrations[0], rtol=1e-9, atol=1e-12)
        assert int(batch.stats.steps[i]) == int(single.stats.steps)


@few(1)
@given(random_cells(size=3, voltage=5.0))
def test_symmetries_of_transients(cells):
    times = TIMES[3:5]
    plain = transient(cells, times)
    assert_same(conjugated(transient([one.conjugated() for one in cells], times)), plain, 1e-10)
    assert_same(mirrored(transient([one.mirrored() for one in cells], times)), plain, 1e-9)


# ---- every kind of end and medium


COUNT = 3
FEW_NODES = 21
LOOSE = pnp.StepControl(relative=0.02, absolute=0.002)


def assert_equal(one: pnp.Solution, two: pnp.Solution, tolerance: float) -> None:
    """Equal where solved: potentials relative to one and more, concentrations to the largest.

    That of the species or, where species turn into each other and one may all but vanish, of all species.
    """
    solved = two.solved
    wanted = two.potential[solved]
    assert float(((one.potential[solved] - wanted).abs() / (1 + wanted.abs())).max()) < tolerance
    wanted = two.concentrations[solved]
    reacts = two.cell.electrolyte.reactions or two.cell.electrode_reactions
    largest = wanted.amax((-2, -1) if reacts else -1, keepdim=True)
    assert float(((one.concentrations[solved] - wanted).abs() / largest).max()) < tolerance


def element(solution: pnp.Solution, index: int) -> pnp.Solution:
    """One element of a batch, as a batch of its own."""
    names = ("potential", "concentrations", "status")
    return replace(solution, **{name: getattr(solution, name)[[index]] for name in names})


@pytest.mark.parametrize(("ends", "medium"), list(sweep.kinds()))
def test_batch_of_every_kind_equals_single_ones(ends, medium):
    cell = sweep.random_cells(ends, medium, COUNT)
    batch = pnp.solve_steady(cell, grid_of(cell), throw=False)
    assert bool(batch.solved.any())
    for index in range(COUNT):
        cell = sweep.random_cells(ends, medium, COUNT, only=[index])
        single = pnp.solve_steady(cell, grid_of(cell), throw=False)
        assert int(single.status) == int(batch.status[index])
        if single.solved:
            assert_equal(single, element(batch, index), 1e-12)


AT_REST = [kind for kind in sweep.kinds() if sweep.random_cells(*kind, 1).comes_to_rest]


@pytest.mark.parametrize(("ends", "medium"), AT_REST)
def test_batch_of_equilibria_of_every_kind_equals_single_ones(ends, medium):
    cell = sweep.random_cells(ends, medium, COUNT)
    batch = pnp.solve_equilibrium(cell, grid_of(cell))
    for index in range(COUNT):
        cell = sweep.random_cells(ends, medium, COUNT, only=[index])
        single = pnp.solve_equilibrium(cell, grid_of(cell))
        assert int(single.stats.iterations) == int(batch.stats.iterations[index])
        assert_equal(single, element(batch, index), 1e-12)


@pytest.mark.parametrize(
    ("ends", "medium"),
    [
        ("two electrodes", "point ions"),
        ("Stern layers", "finite ions"),
        ("electrodes and ground", "finite ions"),
        ("electrode and bath", "association"),
        ("two baths", "layers"),
        ("charged wall and electrode", "association"),
        ("charged walls", "point ions"),
        ("reacting electrodes", "association"),
        ("reacting electrode and bath", "layers"),
        ("driven electrodes", "layers"),
        ("periodic", "finite ions"),
    ],
)
def test_batch_of_transients_of_a_kind_equals_single_ones(ends, medium):
    def solve(only: list[int] | None) -> pnp.Solution:
        cell = sweep.random_cells(ends, medium, COUNT, only=only)
        grid = pnp.Grid.refined(cell, FEW_NODES)
        return pnp.solve_transient(cell, grid, times=TIMES[2:4], step_control=LOOSE)

    batch = solve(None)
    for index in range(COUNT):
        single = solve([index])
        assert_equal(single, element(batch, index), 1e-12)
        assert int(single.stats.steps) == int(batch.stats.steps[index])


FREQUENCIES = [0.01, 1.0, 100.0]
TWO_TERMINALS = [
    ends for ends in sweep.ENDS if not any(word in ends for word in ("ground", "wall", "periodic"))
]


def impedances(cell: pnp.Cell, nodes: int = FEW_NODES) -> torch.Tensor:
    return pnp.impedance(pnp.solve_steady(cell, pnp.Grid.refined(cell, nodes)), FREQUENCIES)


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float(((found - wanted).abs() / wanted.abs()).max())


@pytest.mark.parametrize("medium", sweep.MEDIA)
@pytest.mark.parametrize("ends", TWO_TERMINALS)
def test_batch_of_impedances_of_every_kind_equals_single_ones(ends, medium):
    batch = impedances(sweep.random_cells(ends, medium, COUNT))
    for index in range(COUNT):
        single = impedances(sweep.random_cells(ends, medium, COUNT, only=[index]))
        assert relative_error(single[0], batch[index]) < 1e-10


@pytest.mark.parametrize("nodes", [FEW_NODES, 201])
@pytest.mark.parametrize("medium", sweep.MEDIA)
@pytest.mark.parametrize("ends", TWO_TERMINALS)
def test_impedance_of_every_kind_turned_around(ends, medium, nodes):
    """Also where layers are full: a wall may hold a million times the ions of the middle."""
    cell = sweep.random_cells(ends, medium, COUNT)
    found = impedances(sweep.mirrored(cell), nodes)
    assert relative_error(found, impedances(cell, nodes)) < 1e-9


def grounded(solution: pnp.Solution) -> pnp.Solution:
    """With its potential zero in the middle where nothing but convention fixes it."""
    if not solution.cell.floats:
        return solution
    return replace(
        solution, potential=solution.potential - solution.potential[..., [solution.potential.shape[-1] // 2]]
    )


@pytest.mark.parametrize(("ends", "medium"), list(sweep.kinds()))
def test_symmetries_of_every_kind(ends, medium):
    cell = sweep.random_cells(ends, medium, COUNT)
    plain, signs, sides = (
        grounded(pnp.solve_steady(one, grid_of(one), throw=False))
        for one in (cell, sweep.conjugated(cell), sweep.mirrored(cell))
    )
    solved = plain.solved
    assert bool(solved.any())
    assert torch.equal(signs.solved, solved)
    assert torch.equal(sides.solved, solved)
    assert_equal(conjugated(signs), plain, 1e-12)
    assert_equal(mirrored(sides), plain, 1e-12)


@pytest.mark.parametrize(
    ("ends", "medium"),
    [
        ("charged wall and electrode", "finite ions"),
        ("reacting electrode and bath", "association"),
        ("driven electrodes", "layers"),
        ("periodic", "finite ions"),
    ],
)
def test_symmetries_of_transients_of_a_kind(ends, medium):
    cell = sweep.random_cells(ends, medium, COUNT)
    plain, signs, sides = (
        grounded(
            pnp.solve_transient(one, pnp.Grid.refined(one, FEW_NODES), times=TIMES[2:5], step_control=LOOSE)
        )
        for one in (cell, sweep.conjugated(cell), sweep.mirrored(cell))
    )
    assert_equal(conjugated(signs), plain, 1e-12)
    assert_equal(mirrored(sides), plain, 1e-9)


def one_reacts(cell: pnp.Cell) -> pnp.Cell:
    """With an insulating wall in the place of the right end, so that the left one comes to rest."""
    return replace(cell, right=pnp.ChargedWall())


def without_drop(cell: pnp.Cell) -> pnp.Cell:
    """A ring without a field around it, which comes to rest."""
    ring = pnp.Periodic()
    return replace(cell, left=ring, right=ring)


def balanced_bath(cell: pnp.Cell) -> pnp.Cell:
    """With backward rates at which reactions rest in the bath."""
    bath = dict(zip(cell.electrolyte.names, cell.right.concentrations.unbind(-1), strict=True))

    def balanced(reaction: pnp.Reaction) -> pnp.Reaction:
        sides = (reaction.reactants, reaction.products)
        used, made = (math.prod(bath[name] ** count for name, count in side.items()) for side in sides)
        return replace(reaction, backward=reaction.forward * used / made)

    reactions = [balanced(one) for one in cell.electrolyte.reactions]
    return replace(cell, electrolyte=replace(cell.electrolyte, reactions=reactions))


@pytest.mark.parametrize(
    ("ends", "medium", "change"),
    [
        ("two electrodes", "finite ions", None),
        ("two electrodes", "association", None),
        ("two electrodes", "layers", None),
        ("Stern layers", "finite ions", None),
        ("Stern layers", "association", None),
        ("electrodes and ground", "finite ions", None),
        ("electrodes and ground", "layers", None),
        ("charged wall and electrode", "finite ions", None),
        ("charged wall and electrode", "association", None),
        ("charged wall and electrode", "layers", None),
        ("charged walls", "finite ions", None),
        ("charged walls", "association", None),
        ("charged walls", "layers", None),
        ("electrode and bath", "point ions", None),
        ("electrode and bath", "finite ions", None),
        ("electrode and bath", "association", balanced_bath),
        ("electrode and bath", "layers", None),
        ("periodic", "point ions", without_drop),
        ("periodic", "finite ions", without_drop),
        ("periodic", "association", without_drop),
        ("periodic", "layers", without_drop),
        ("reacting electrodes", "point ions", one_reacts),
        ("reacting electrodes", "finite ions", one_reacts),
        ("reacting electrodes", "association", one_reacts),
    ],
)
def test_every_kind_that_comes_to_rest_dissipates(ends, medium, change):
    cell = sweep.random_cells(ends, medium, COUNT, seed=7)
    cell = cell if change is None else change(cell)
    grid = pnp.Grid.refined(cell, FEW_NODES)
    solution = pnp.solve_transient(cell, grid, times=[*TIMES, 10.0], step_control=LOOSE)
    assert_kept(solution)
    assert_dissipates(solution, pnp.solve_steady(cell, grid))


# ---- units


def dimensional(random: RandomCell, temperature: float = 310.0, unit: float = 20e-9, filling: float = 15.0):
    """The same cell in SI units: lengths in `unit`, concentrations in `filling`, and the unit of time."""
    volt = constants.R * temperature / constants.value("Faraday constant")
    permittivity = filling * constants.value("Faraday constant") * unit**2 / volt
    diffusivity = 1.3e-9
    base = random.cell()
    species = [
        pnp.Species(one.name, valence=one.valence, diffusivity=one.diffusivity * diffusivity)
        for one in base.electrolyte.species
    ]
    capacitance = permittivity / unit

    def electrode(end):
        stern = None if end.stern_capacitance is None else end.stern_capacitance * capacitance
        return pnp.Electrode(potential=end.potential * volt, stern_capacitance=stern)

    cell = pnp.Cell(
        pnp.Electrolyte(
            species,
            relative_permittivity=base.electrolyte.permittivity * permittivity / constants.epsilon_0,
            temperature=temperature,
        ),
        length=base.length * unit,
        concentrations=base.concentrations * filling,
        left=electrode(base.left),
        right=electrode(base.right),
        fixed_charge=base.fixed_charge * filling,
        ground=None if base.ground is None else base.ground * unit,
    )
    return cell, volt, filling, unit, diffusivity


def assert_same_in_other_units(one, two, volt, filling, unit, diffusivity, tolerance):
    """Every observable, with the unit it must have."""
    faraday = constants.value("Faraday constant")

    def close(a, b, factor):
        assert torch.allclose(
            a, b * factor, rtol=tolerance, atol=tolerance * factor * (1 + float(b.abs().max()))
        )

    close(one.potential, two.potential, volt)
    close(one.concentrations, two.concentrations, filling)
    close(pnp.charge_density(one), pnp.charge_density(two), faraday * filling)
    close(pnp.electric_field(one), pnp.electric_field(two), volt / unit)
    for side in ("left", "right", "ground"):
        a, b = getattr(pnp.surface_charge(one), side), getattr(pnp.surface_charge(two), side)
        scale = faraday * filling * unit
        assert float((a / scale - b).abs().max()) < tolerance * float(pnp.diffuse_charge(two).max() + 1)
    close(pnp.amounts(one), pnp.amounts(two), filling * unit)
    close(pnp.diffuse_charge(one), pnp.diffuse_charge(two), faraday * filling * unit)
    close(pnp.debye_length(one), pnp.debye_length(two), unit)
    close(pnp.debye_length(one.cell), pnp.debye_length(two.cell), unit)


@EXAMPLES
@given(random_cells())
def test_si_and_dimensionless_cells_are_the_same(random):
    cell, *units = dimensional(random)
    one = pnp.solve_equilibrium(cell, grid_of(cell))
    assert_same_in_other_units(one, equilibrium(random), *units, 1e-9)


@few(1)
@given(random_cells(debyes=(0.1, 3.0), voltage=5.0))
def test_si_and_dimensionless_transients_are_the_same(random):
    cell, volt, filling, unit, diffusivity = dimensional(random)
    time = unit**2 / diffusivity
    times = TIMES[2:] * random.relaxation
    one = pnp.solve_transient(cell, grid_of(cell), times=times * time)
    two = pnp.solve_transient(random.cell(), grid_of(random.cell()), times=times)
    assert_same_in_other_units(one, two, volt, filling, unit, diffusivity, 1e-9)
    flux = filling * diffusivity / unit
    a, b = pnp.ion_flux(one) / flux, pnp.ion_flux(two)
    assert torch.allclose(a, b, rtol=1e-7, atol=1e-9 * float(b.abs().max()))
    current = flux * constants.value("Faraday constant")
    a, b = pnp.current_density(one) / current, pnp.current_density(two)
    assert torch.allclose(a, b, rtol=1e-7, atol=1e-9 * float(b.abs().max()))


def test_debye_length_of_a_physiological_solution():
    # Bard & Faulkner: 3.04 nm in 10 mM and 0.96 nm in 100 mM of a 1:1 salt in water at 25 degrees
    ions = [
        pnp.Species("Na+", valence=1, diffusivity=1.33e-9),
        pnp.Species("Cl-", valence=-1, diffusivity=2.03e-9),
    ]
    water = pnp.Electrolyte(ions)
    assert float(pnp.debye_length(water, [10.0, 10.0])) == pytest.approx(3.04e-9, rel=2e-3)
    assert float(pnp.debye_length(water, [100.0, 100.0])) == pytest.approx(0.961e-9, rel=2e-3)
    assert float(water.thermal_voltage) == pytest.approx(25.693e-3, rel=1e-4)
