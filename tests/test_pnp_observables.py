"""Shapes of every observable, their definitions, and conventions of sign."""

import math

import numpy as np
import pytest
import torch

import pnp

from .problems import Canonical, GouyChapman, electrolyte

NODES, TIMES = 21, [0.0, 0.01, 0.1]
OWN_AXES = {
    "debye_length": ("node",),
    "charge_density": ("node",),
    "electric_field": ("edge",),
    "ion_flux": ("species", "edge"),
    "current_density": ("edge",),
    "total_charge": (),
    "diffuse_charge": (),
    "amounts": ("species",),
    "free_energy": (),
}
SIZES = {"node": NODES, "edge": NODES - 1, "species": 2, "time": len(TIMES)}
ENDS = {
    "electrodes": {},
    "stern and ground": {"ground": 0.4, "right": pnp.Electrode(potential=-1.0, stern_capacitance=2.0)},
    "bath": {"right": pnp.Reservoir(concentrations=[1.0, 0.5], potential=-1.0)},
}
SOLVES = {
    "steady": (pnp.solve_steady, ()),
    "transient": (lambda cell, grid: pnp.solve_transient(cell, grid, times=TIMES), ("time",)),
}
# Where the batch axes sit: which numbers carry them must make no difference to the shapes.
BATCHES = {
    "none": ((), {}),
    "of potentials": ((3,), {"left": pnp.Electrode(potential=torch.ones(3))}),
    "of lengths": ((3,), {"length": torch.tensor([1.0, 1.5, 2.0])}),
    "of fillings and fixed charges": (
        (2, 3),
        {
            "concentrations": torch.tensor([1.0, 0.5]) * torch.ones(3, 1),
            "fixed_charge": torch.zeros(2, 1),
        },
    ),
}


def cell_of(ends: str, batch: str) -> pnp.Cell:
    arguments = {
        "length": 1.0,
        "concentrations": [1.0, 0.5],
        "left": pnp.Electrode(potential=1.0),
        "right": pnp.Electrode(potential=-1.0),
    }
    return pnp.Cell(electrolyte(0.3, (1.0, -2.0)), **(arguments | ENDS[ends] | BATCHES[batch][1]))


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("kind", SOLVES)
def test_shapes(kind, ends, batch):
    (solve, time), (leading, _) = SOLVES[kind], BATCHES[batch]
    cell = cell_of(ends, batch)
    assert cell.batch_shape == leading
    solution = solve(cell, pnp.Grid.refined(cell, NODES))

    def shape(*axes):
        return (*leading, *(SIZES[axis] for axis in (*time, *axes)))

    assert solution.potential.shape == shape("node")
    assert solution.concentrations.shape == shape("species", "node")
    for name, axes in OWN_AXES.items():
        assert getattr(pnp, name)(solution).shape == shape(*axes), name
    surface = pnp.surface_charge(solution)
    assert [one.shape for one in surface] == [shape()] * 3
    assert solution.status.shape == leading
    assert solution.solved.shape == leading
    costs = {name: value for name, value in vars(solution.stats).items() if not isinstance(value, str)}
    for name, value in costs.items():
        assert value.shape == leading, name
    for name, value in vars(solution.check(grid=True)).items():
        assert value.shape == leading, name
    assert solution.check().passed.shape == leading
    if time:
        moment = solution.at(1)
        assert moment.times is None
        assert moment.potential.shape == (*leading, NODES)
        assert torch.equal(pnp.ion_flux(moment), pnp.ion_flux(solution)[..., 1, :, :])
        assert torch.equal(pnp.free_energy(moment), pnp.free_energy(solution)[..., 1])


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("kind", SOLVES)
def test_observables_of_a_batch_are_those_of_its_elements(kind, ends):
    """Against a slip of axes that happen to have equal lengths: as many cells as species, times and ions."""
    lengths = torch.tensor([0.7, 1.3], dtype=torch.float64)
    solve = SOLVES[kind][0]

    def solved(length):
        base = cell_of(ends, "none")
        cell = pnp.Cell(
            base.electrolyte,
            length=length,
            concentrations=base.concentrations,
            left=base.left,
            right=base.right,
            ground=base.ground,
        )
        return solve(cell, pnp.Grid.refined(cell, NODES))

    both, singles = solved(lengths), [solved(float(length)) for length in lengths]
    for name in OWN_AXES:
        found = getattr(pnp, name)(both)
        for i, single in enumerate(singles):
            wanted = getattr(pnp, name)(single)
            assert torch.allclose(found[i], wanted, rtol=1e-9, atol=1e-10), name


@pytest.fixture(scope="module")
def charged():
    problem = Canonical(3.0, 0.1)
    return pnp.solve_steady(problem.cell(), pnp.Grid.refined(problem.cell(), 201))


def test_definitions_in_numpy(charged):
    x, phi, c = (value.numpy() for value in (charged.positions, charged.potential, charged.concentrations))
    h = charged.grid.spacings.numpy()
    rho = c[0] - c[1]
    assert np.allclose(pnp.charge_density(charged), rho, rtol=1e-14)
    assert np.allclose(pnp.electric_field(charged), -np.diff(phi) / h, rtol=1e-13)
    assert np.allclose(pnp.amounts(charged), np.trapezoid(c, x), rtol=1e-12)
    assert np.isclose(float(pnp.total_charge(charged)), np.trapezoid(rho, x), atol=1e-13)
    assert np.isclose(float(pnp.diffuse_charge(charged)), np.trapezoid(np.abs(rho), x) / 2, rtol=1e-12)
    assert np.allclose(pnp.debye_length(charged), np.sqrt(0.02 / c.sum(0)), rtol=1e-13)
    assert float(pnp.debye_length(charged.cell)) == pytest.approx(0.1, rel=1e-14)
    assert float(pnp.debye_length(charged.cell.electrolyte, [1.0, 1.0])) == pytest.approx(0.1, rel=1e-14)


def test_signs(charged):
    """Positive electrode on the left: field and current run right, anions gather left."""
    assert float(charged.potential[0]) == 3.0
    assert float(charged.potential[-1]) == -3.0
    surface = pnp.surface_charge(charged)
    assert float(surface.left) > 0 > float(surface.right)
    assert float(surface.left) == pytest.approx(-float(surface.right), rel=1e-10)
    assert bool((pnp.electric_field(charged) > 0).all())
    assert float(charged.concentrations[1, 0]) > float(charged.concentrations[0, 0])
    problem = Canonical(3.0, 0.1)
    moving = pnp.solve_transient(problem.cell(), pnp.Grid.refined(problem.cell(), 41), times=[0.01])
    assert bool((pnp.current_density(moving) > 0).all())
    flux = pnp.ion_flux(moving)[0, :, 20]
    assert float(flux[0]) > 0 > float(flux[1])


def test_current_right_after_the_jump_is_ohms_law():
    problem = Canonical(3.0, 0.1)
    start = pnp.solve_transient(problem.cell(), pnp.Grid.refined(problem.cell(), 41), times=[0.0])
    assert torch.allclose(pnp.current_density(start), torch.tensor(2 * 3.0, dtype=torch.float64), rtol=1e-10)


def test_free_energy_of_an_uncharged_cell_is_that_of_an_ideal_solution():
    cell = pnp.Cell(
        electrolyte(0.1),
        length=2.0,
        concentrations=[0.5, 0.5],
        left=pnp.Electrode(potential=0.0),
        right=pnp.Electrode(potential=0.0),
    )
    solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 11))
    assert float(pnp.free_energy(solution)) == pytest.approx(2 * 2.0 * 0.5 * (math.log(0.5) - 1), rel=1e-13)


def test_free_energy_of_a_capacitor():
    """No ions to speak of: -C V^2 / 2 with the voltage held, plate and Stern capacitances in series."""
    voltage, permittivity, stern = 3.0, 0.4, 0.7
    cell = pnp.Cell(
        electrolyte(permittivity),
        length=1.0,
        concentrations=1e-12,
        left=pnp.Electrode(potential=voltage, stern_capacitance=stern),
        right=pnp.Electrode(potential=0.0),
    )
    solution = pnp.solve_equilibrium(cell, pnp.Grid.uniform(cell, 21))
    capacitance = 1 / (1 / permittivity + 1 / stern)
    assert float(pnp.surface_charge(solution).left) == pytest.approx(capacitance * voltage, rel=1e-9)
    assert float(pnp.free_energy(solution)) == pytest.approx(-capacitance * voltage**2 / 2, rel=1e-9)


def test_charge_of_the_ground():
    """It closes Gauss's law: electrodes, ground and ions together are neutral."""
    cell = Canonical(3.0, 0.2).cell(right=pnp.Electrode(potential=1.0), ground=0.7)
    solution = pnp.solve_equilibrium(cell, pnp.Grid.refined(cell, 101))
    surface = pnp.surface_charge(solution)
    assert float(surface.ground) < -0.01
    closed = surface.left + surface.right + surface.ground + pnp.total_charge(solution)
    assert float(closed.abs()) < 1e-13
    without = pnp.solve_equilibrium(Canonical(3.0, 0.2).cell())
    assert float(pnp.surface_charge(without).ground) == 0.0


def test_wall_charge_is_the_field_at_the_wall_to_second_order():
    problem = GouyChapman(4.0)
    errors = []
    for nodes in (101, 201):
        solution = pnp.solve_steady(problem.cell(), pnp.Grid.refined(problem.cell(), nodes))
        first_edge = problem.permittivity * float(pnp.electric_field(solution)[0])
        errors.append(
            (
                float(pnp.surface_charge(solution).left) - problem.surface_charge(),
                first_edge - problem.surface_charge(),
            )
        )
    good, naive = np.abs(np.array(errors)).T
    assert good[0] / good[1] == pytest.approx(4, rel=0.1)
    assert naive[0] / naive[1] == pytest.approx(2, rel=0.2)
