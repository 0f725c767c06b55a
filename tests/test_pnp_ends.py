"""Charged and insulating walls, driven electrodes and periodic cells, against closed forms and collocation."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from scipy import constants
from scipy.integrate import solve_bvp
from scipy.optimize import brentq

import pnp

from .problems import Canonical, GouyChapman, electrolyte
from .reference import build, entries, solve, values

SALT = {"concentrations": 1.0, "length": 1.0}


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def wall_potential(solution: pnp.Solution) -> torch.Tensor:
    return solution.potential[..., 0]


# ---- charged walls


def test_charged_wall_before_a_bath_obeys_grahame():
    charges = tensor(-30.0, -4.0, -0.3, 0.0, 1.0, 12.0)
    cell = GouyChapman(0.0).cell(left=pnp.ChargedWall(charge=charges))
    solution = pnp.solve_steady(cell)
    found = solution.richardson(wall_potential)
    wanted = 2 * torch.asinh(charges / math.sqrt(8 * 2.0))
    assert torch.allclose(found.value, wanted, rtol=1e-6, atol=1e-12)
    assert 1e-5 < float(found.error.max()) < 1e-3
    assert torch.allclose(pnp.surface_charge(solution).left, charges, rtol=1e-11, atol=1e-11)
    # The whole profile of one of them.
    profile = solution.richardson(lambda some: some.potential).value[-2]
    exact = GouyChapman(0.0).potential(solution.grid.nodes[..., ::2].numpy(), float(wanted[-2]))
    assert np.abs(profile.numpy() - (exact[-2] if exact.ndim > 1 else exact)).max() < 2e-6


def test_grahame_in_si_units_of_an_asymmetric_salt():
    """-50 mC/m² before 3 mM of a 2:1 salt: the charge density integrated over the potential."""
    thermal, salt = 298.15 * constants.R / constants.value("Faraday constant"), tensor(3.0, 6.0)
    species = [
        pnp.Species("Mg2+", valence=2, diffusivity=7e-10),
        pnp.Species("Cl-", valence=-1, diffusivity=2e-9),
    ]
    cell = pnp.Cell(
        pnp.Electrolyte(species),
        length=1e-7,
        concentrations=salt,
        left=pnp.ChargedWall(charge=-0.05),
        right=pnp.Reservoir(concentrations=salt, potential=0.0),
    )
    found = pnp.solve_steady(cell).richardson(wall_potential)

    def excess(phi: float) -> float:
        pressure = 3 * math.expm1(-2 * phi) + 6 * math.expm1(phi)
        energy = 2 * 78.5 * constants.epsilon_0 * constants.R * 298.15
        return math.sqrt(energy * pressure) - 0.05

    assert float(found.value) == pytest.approx(thermal * brentq(excess, -20.0, -1e-6, xtol=1e-14), rel=1e-5)


def test_wall_with_the_charge_of_crowded_ions_has_their_potential():
    group = [entry for entry in entries("steric", "surface_charge") if entry["id"].startswith("steric-")]
    voltages = tensor(*(entry["cell"]["left"]["potential"] for entry in group))
    cell = replace(build(*group), left=pnp.ChargedWall(charge=values(group)))
    found = pnp.solve_steady(cell, solve(group).grid).richardson(wall_potential)
    assert float((found.value / voltages - 1).abs().max()) < 1e-5
    assert 1e-5 < float((found.error / voltages).max()) < 1e-3


@pytest.mark.parametrize("charge", [0.3, 3.0, 30.0])
def test_counter_ions_between_equal_walls(charge):
    """Without salt, z c'' ... has the solution c = m/cos²(k (x - L/2)), k tan(k L/2) = charge/(2 permittivity)."""
    permittivity = 0.5
    ions = pnp.Electrolyte.dimensionless(
        [pnp.Species("counter", valence=-1.0, diffusivity=1.0)], permittivity=permittivity
    )
    wall = pnp.ChargedWall(charge=charge)
    cell = pnp.Cell(ions, length=1.0, concentrations=2 * charge, left=wall, right=wall)
    solution = pnp.solve_steady(cell)
    k = 2 * brentq(
        lambda u: 2 * u * math.tan(u) - charge / (2 * permittivity), 1e-9, math.pi / 2 - 1e-12, xtol=1e-15
    )
    wanted = 2 * permittivity * k**2 / torch.cos(k * (solution.grid.nodes[::2] - 0.5)) ** 2
    found = solution.richardson(lambda some: torch.log(some.concentrations[0])).value
    assert float((found - torch.log(wanted)).abs().max()) < 1e-5
    assert float(solution.potential[-1]) == 0.0
    assert float(solution.potential[0]) == pytest.approx(0.0, abs=1e-10)


def test_opposite_walls_are_a_charged_capacitor():
    """With the charge of the canonical cell's electrodes on its walls, it has their potentials."""
    case = Canonical(2.0, 0.1)
    entry = next(e for e in entries("steady", "surface_charge") if e["id"].startswith("canonical-U2-eps0.1-"))
    walls = [pnp.ChargedWall(charge=sign * entry["value"]) for sign in (1, -1)]
    cell = case.cell(left=walls[0], right=walls[1])
    grid = pnp.Grid.refined(case.cell(), 201)
    found = pnp.solve_steady(cell, grid).richardson(lambda some: some.potential)
    assert torch.allclose(
        found.value, torch.from_numpy(case.potential(grid.nodes[::2].numpy())) + 2.0, rtol=0, atol=3e-6
    )
    assert torch.allclose(
        pnp.solve_equilibrium(cell, grid).potential, pnp.solve_steady(cell, grid).potential, atol=1e-9
    )


def test_insulating_wall_is_a_plane_of_symmetry():
    """Half of a cell that is its own mirror image: at rest and on the way there, to rounding."""

    def charge(x: torch.Tensor) -> torch.Tensor:
        return -1.5 * torch.cos(math.pi * x)  # over the half, of nothing in total

    def cell(length: float, right: Any) -> pnp.Cell:
        return pnp.Cell(
            electrolyte(0.05, (2.0, -1.0), (1.0, 0.4)),
            length=length,
            concentrations=[0.5, 1.0],
            left=pnp.Electrode(potential=2.0, stern_capacitance=0.4),
            right=right,
            fixed_charge=charge,
        )

    whole, half = cell(2.0, pnp.Electrode(potential=2.0, stern_capacitance=0.4)), cell(1.0, pnp.ChargedWall())
    grids = pnp.Grid.uniform(whole, 81), pnp.Grid.uniform(half, 41)
    one, two = (pnp.solve_steady(c, grid) for c, grid in zip((whole, half), grids, strict=True))
    assert torch.allclose(one.potential[:41], two.potential, rtol=0, atol=1e-10)
    assert torch.allclose(one.concentrations[:, :41], two.concentrations, rtol=1e-10)
    # Together with a current that its mirror image sends back.
    settings = {"times": [0.01, 0.1], "step_control": pnp.StepControl(relative=1e-3)}
    one, two = (
        pnp.solve_transient(c, grid, **settings) for c, grid in zip((whole, half), grids, strict=True)
    )
    assert torch.allclose(one.concentrations[..., :41], two.concentrations, rtol=1e-4)
    assert float(one.concentrations[0].max() - one.concentrations[0].min()) > 0.1
    assert float(pnp.current_density(two).abs().max()) == 0.0
    assert float(pnp.current_density(one).abs().max()) < 1e-10


# ---- driven electrodes


@pytest.mark.parametrize("stern", [None, 0.3])
@pytest.mark.parametrize("side", ["left", "right"])
def test_current_charges_a_blocking_electrode(side, stern):
    """The charge is I t to rounding; afterwards the cell is the one that was given the potential it has reached."""
    currents, length = tensor(0.5, -0.2), 0.4
    pulse = pnp.step(currents, 0.0, at=length)
    ends = {
        side: pnp.Electrode(current=pulse, stern_capacitance=stern),
        {"left": "right", "right": "left"}[side]: pnp.Electrode(potential=0.7, stern_capacitance=stern),
    }
    cell = pnp.Cell(electrolyte(0.05, diffusivities=(1.0, 0.3)), **SALT, **ends)
    grid = pnp.Grid.uniform(cell, 41)
    times = tensor(0.003, 0.1, 0.4, 1.0, 40.0)
    solution = pnp.solve_transient(cell, grid, times=times)
    charge = getattr(pnp.surface_charge(solution), side)
    passed = currents[:, None] * times.clamp(max=length) * (1 if side == "left" else -1)
    assert torch.allclose(charge, passed, rtol=1e-10, atol=1e-12)
    # The other metal is charged by as much.
    total = pnp.surface_charge(solution).left + pnp.surface_charge(solution).right
    assert float(total.abs().max()) < 1e-10
    current = pnp.current_density(solution)[..., 0]
    assert torch.allclose(current[:, :2], currents[:, None].expand(-1, 2))
    assert float(current[:, 2:].abs().max()) == 0.0
    reached = getattr(pnp.electrode_potential(solution), side)[:, -1]
    held = replace(cell, **{side: pnp.Electrode(potential=reached, stern_capacitance=stern)})
    rest = pnp.solve_steady(held, grid)
    assert torch.allclose(getattr(pnp.surface_charge(rest), side), passed[:, -1], rtol=1e-6)
    assert torch.allclose(rest.concentrations, solution.concentrations[:, -1], rtol=1e-5)
    assert float((reached - 0.7).abs().min()) > 0.5


def test_currents_on_both_sides_of_a_ground():
    cell = pnp.Cell(
        electrolyte(0.05, diffusivities=(1.0, 0.3)),
        **SALT,
        left=pnp.Electrode(current=0.5),
        right=pnp.Electrode(current=-0.3),
        ground=0.4,
    )
    solution = pnp.solve_transient(cell, pnp.Grid.uniform(cell, 41), times=[0.05, 0.4])
    charge = pnp.surface_charge(solution)
    assert torch.allclose(charge.left, 0.5 * solution.times, rtol=1e-10)
    assert torch.allclose(charge.right, 0.3 * solution.times, rtol=1e-10)
    current = pnp.current_density(solution)
    assert torch.allclose(current[:, 0], tensor(0.5, 0.5))
    assert torch.allclose(current[:, -1], tensor(-0.3, -0.3))


def test_charge_is_the_integral_of_a_current_that_varies():
    # Straight lines are integrated exactly, but for the first short steps after each bend.
    wave = pnp.piecewise_linear([0.0, 0.2, 0.3, 0.6], [0.0, 1.0, -0.5, 0.2])
    cell = pnp.Cell(
        electrolyte(0.05), **SALT, left=pnp.Electrode(current=wave), right=pnp.Electrode(potential=0.0)
    )
    times = tensor(0.1, 0.2, 0.25, 0.3, 0.6, 0.8)
    solution = pnp.solve_transient(cell, pnp.Grid.uniform(cell, 31), times=times)
    wanted = tensor(0.025, 0.1, 0.1 + 0.05 * 0.625, 0.125, 0.125 - 0.045, 0.08 + 0.04)
    assert torch.allclose(pnp.surface_charge(solution).left, wanted, rtol=0, atol=1e-7)


def test_galvanostat_in_si_units():
    """1 A/m² into 0.1 M charges 5 mC/m² in 5 ms: SI in, SI out."""
    species = [pnp.Species("K", valence=1, diffusivity=2e-9), pnp.Species("Cl", valence=-1, diffusivity=2e-9)]
    cell = pnp.Cell(
        pnp.Electrolyte(species),
        length=1e-6,
        concentrations=100.0,
        left=pnp.Electrode(current=1.0, stern_capacitance=0.2),
        right=pnp.Electrode(potential=0.0),
    )
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 121), times=[1e-3, 5e-3])
    assert torch.allclose(pnp.surface_charge(solution).left, tensor(1e-3, 5e-3), rtol=1e-9)
    # One Stern layer, two diffuse ones (Grahame) and the electrolyte's resistance in series.
    thermal, charge = 298.15 * constants.R / constants.value("Faraday constant"), 5e-3
    unit = math.sqrt(8 * 78.5 * constants.epsilon_0 * constants.R * 298.15 * 100.0)
    conductivity = 2 * 100.0 * 2e-9 * constants.value("Faraday constant") / thermal
    wanted = charge / 0.2 + 4 * thermal * math.asinh(charge / unit) + 1e-6 / conductivity
    found = solution.richardson(lambda some: pnp.electrode_potential(some).left[-1])
    assert float(found.value) == pytest.approx(wanted, rel=3e-5)


DRIVEN = [f"reactive{number}" for number in (1, 4, 6)]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", DRIVEN)
def test_given_potential_and_given_current_are_one_steady_state(name, side):
    cell = build(next(entry for entry in entries("reactive") if entry["id"].startswith(name)))
    grid = pnp.Grid.refined(cell, 101)
    held = pnp.solve_steady(cell, grid)
    end = getattr(cell, side)
    current = pnp.current_density(held).mean(-1)
    driven = pnp.Electrode(current=current, stern_capacitance=end.stern_capacitance, reactions=end.reactions)
    other = pnp.solve_steady(replace(cell, **{side: driven}), grid)
    assert torch.allclose(other.potential, held.potential, rtol=0, atol=1e-8)
    assert torch.allclose(other.concentrations, held.concentrations, rtol=1e-8)
    potential = getattr(pnp.electrode_potential(other), side)
    assert float(potential) == pytest.approx(float(end.potential), abs=1e-8)
    # And back.
    back = pnp.Electrode(
        potential=potential, stern_capacitance=end.stern_capacitance, reactions=end.reactions
    )
    again = pnp.solve_steady(replace(cell, **{side: back}), grid)
    assert float(pnp.current_density(again).mean(-1)) == pytest.approx(float(current), rel=1e-8)


def test_driven_cell_settles_in_its_steady_state():
    entry = next(entry for entry in entries("reactive") if entry["id"].startswith("reactive3"))
    cell = build(entry)
    driven = pnp.Electrode(current=-0.5, stern_capacitance=1.0, reactions=cell.left.reactions)
    cell = replace(cell, left=driven)
    grid = pnp.Grid.uniform(cell, 31)
    late = pnp.solve_transient(cell, grid, times=[1.0, 30.0])
    steady = pnp.solve_steady(cell, grid)
    assert torch.allclose(late.concentrations[-1], steady.concentrations, rtol=1e-5)
    assert torch.allclose(late.potential[-1], steady.potential, rtol=0, atol=1e-5)
    flux = pnp.ion_flux(steady)
    assert torch.allclose(flux[0], tensor(-0.5).expand(30), rtol=1e-9)


# ---- periodic cells


VALENCES, DIFFUSIVITIES, FILLING = (1.0, -2.0), (1.0, 0.4), (1.2, 0.6)


def wavy(x: torch.Tensor) -> torch.Tensor:
    return 3 * torch.cos(2 * math.pi * x)


def ring(
    drop: Any, permittivity: float = 0.05, length: float = 1.0, charge: Any = wavy, **changes: Any
) -> pnp.Cell:
    end = pnp.Periodic(potential_drop=drop)
    arguments = {
        "length": length,
        "concentrations": FILLING,
        "left": end,
        "right": end,
        "fixed_charge": charge,
    }
    return pnp.Cell(electrolyte(permittivity, VALENCES, DIFFUSIVITIES), **(arguments | changes))


def collocated(drop: float, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Concentrations and potential `(3, position)`, and fluxes, of the ring by collocation with periodic ends."""
    z, d, filling = (np.array(part) for part in (VALENCES, DIFFUSIVITIES, FILLING))

    def ode(x, y, p):
        c, slope = y[:2], y[3]
        density = z @ c + 3 * np.cos(2 * np.pi * x)
        return np.concatenate(
            [-(p / d)[:, None] - z[:, None] * c * slope, slope[None], -density[None] / 0.05, c]
        )

    def ends(a, b, _p):
        # That phi' is periodic follows from the amounts, which make the ring neutral.
        return np.concatenate([a[:2] - b[:2], [a[2], b[2] + drop], a[4:], b[4:] - filling])

    x = np.linspace(0, 1, 201)
    state = np.concatenate([filling[:, None] + 0 * x[None], [-drop * x, -drop + 0 * x], filling[:, None] * x])
    found = None
    fluxes = np.array(DIFFUSIVITIES) * z * filling * drop
    for part in (0.3, 1.0):

        def partly(x, y, p, part=part):
            rates = ode(x, y, p)
            rates[3] = -(z @ y[:2] + part * 3 * np.cos(2 * np.pi * x)) / 0.05
            return rates

        found = solve_bvp(partly, ends, x, state, fluxes, tol=1e-9 if part == 1 else 1e-4, max_nodes=50_000)
        assert found.success
        x, state, fluxes = found.x, found.y, found.p
    return found.sol(positions)[:3], found.p


@pytest.mark.parametrize("drop", [0.0, 0.8, -6.0])
def test_ring_against_collocation(drop):
    cell = ring(drop)
    solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 161))
    state, fluxes = collocated(drop, solution.grid.nodes[::2].numpy())
    potential = solution.richardson(lambda some: some.potential)
    concentrations = solution.richardson(lambda some: some.concentrations)
    flux = solution.richardson(lambda some: pnp.ion_flux(some).mean(-1))
    assert float((potential.value - torch.from_numpy(state[2])).abs().max()) < 1e-6
    assert float((concentrations.value - torch.from_numpy(state[:2])).abs().max()) < 1e-6
    assert float((flux.value - torch.from_numpy(fluxes)).abs().max()) < 1e-6
    assert float(potential.error.max()) > 1e-5
    # What flows, flows everywhere, also across the seam.
    all_fluxes = pnp.ion_flux(solution)
    assert float((all_fluxes.amax(-1) - all_fluxes.amin(-1)).max()) < 1e-10
    current = pnp.current_density(solution)
    assert float((current - tensor(*VALENCES) @ torch.from_numpy(fluxes)).abs().max()) < 1e-3
    assert (float(current.abs().max()) < 1e-10) == (drop == 0)


def test_ring_of_two_periods_is_twice_the_ring():
    one, two = ring(0.7), ring(1.4, length=2.0)
    single = pnp.solve_steady(one, pnp.Grid.uniform(one, 41))
    double = pnp.solve_steady(two, pnp.Grid.uniform(two, 81))
    for part, shift in ((slice(0, 41), 0.0), (slice(40, 81), 0.7)):
        assert torch.allclose(double.potential[part] + shift, single.potential, rtol=0, atol=1e-10)
        assert torch.allclose(double.concentrations[:, part], single.concentrations, rtol=1e-10)
    assert torch.allclose(pnp.current_density(double)[:40], pnp.current_density(single), rtol=1e-10)


@pytest.mark.parametrize("finite", [False, True])
def test_where_the_ring_is_cut_does_not_matter(finite):
    """With the fixed charge moved by seven nodes everything moves by seven nodes, over the seam; in time, too."""

    def moved(nodes: int) -> pnp.Cell:
        species = [
            pnp.Species(f"s{i}", valence=z, diffusivity=d, diameter=0.5 * finite)
            for i, (z, d) in enumerate(zip(VALENCES, DIFFUSIVITIES, strict=True))
        ]
        cell = ring(
            0.7, charge=lambda x: wavy(x - nodes / 40) * (1 + torch.sin(2 * math.pi * (x - nodes / 40)))
        )
        return replace(cell, electrolyte=pnp.Electrolyte.dimensionless(species, permittivity=0.05))

    grid = pnp.Grid.uniform(moved(0), 41)

    def fields(solution: pnp.Solution, shift: int) -> tuple[torch.Tensor, torch.Tensor]:
        c = torch.roll(solution.concentrations[..., :-1], shift, -1)
        return c, torch.roll(pnp.electric_field(solution), shift, -1)

    transient = partial(
        pnp.solve_transient, times=[0.01, 0.2], step_control=pnp.StepControl(relative=1e-3, absolute=1e-5)
    )
    # In time, too: the error that chooses the steps is a mean over nodes, the seam among them once.
    for how in (pnp.solve_steady, transient):
        wanted, found = fields(how(moved(0), grid), 7), fields(how(moved(7), grid), 0)
        for one, two in zip(found, wanted, strict=True):
            assert torch.allclose(one, two, rtol=0, atol=1e-12)


def test_uniform_ring_conducts_by_ohms_law():
    """At once and for ever, exactly: every ion drifts by itself."""
    cell = ring(tensor(0.5, -3.0), charge=0.0, length=2.0)
    field = tensor(0.25, -1.5)
    wanted = (
        sum(z**2 * d * c for z, d, c in zip(VALENCES, DIFFUSIVITIES, FILLING, strict=True)) * field[:, None]
    )
    grid = pnp.Grid.uniform(cell, 11)
    steady = pnp.solve_steady(cell, grid)
    assert torch.allclose(pnp.current_density(steady), wanted.expand(-1, 10), rtol=1e-12)
    assert torch.allclose(steady.potential, -field[:, None] * grid.nodes, rtol=0, atol=1e-12)
    assert torch.allclose(pnp.electric_field(steady), field[:, None].expand(-1, 10), rtol=1e-12)
    later = pnp.solve_transient(cell, grid, times=[0.0, 0.3])
    assert torch.allclose(pnp.current_density(later), wanted[:, None].expand(-1, 2, 10), rtol=1e-12)
    assert torch.allclose(
        later.concentrations, steady.concentrations[:, None].expand(-1, 2, -1, -1), rtol=1e-12
    )


def test_waves_of_salt_decay_on_a_ring():
    """Sines and cosines are eigenvectors of the ring, so that the rate on a grid is known, also at the seam."""
    nodes, amplitude = 25, 0.4
    end = pnp.Periodic()
    cell = pnp.Cell(electrolyte(0.5), **SALT, left=end, right=end)
    grid = pnp.Grid.uniform(cell, nodes)
    phase = 2 * math.pi * grid.nodes
    wave = torch.cos(phase) + 0.5 * torch.sin(2 * phase)
    start = (1 + amplitude * wave).expand(2, -1)
    time, spacing = 0.02, 1 / (nodes - 1)
    solution = pnp.solve_transient(
        cell, grid, times=[time], initial=start, step_control=pnp.StepControl(relative=1e-6, absolute=1e-8)
    )
    rates = [2 * (1 - math.cos(2 * math.pi * k * spacing)) / spacing**2 for k in (1, 2)]
    wanted = 1 + amplitude * (
        math.exp(-rates[0] * time) * torch.cos(phase)
        + 0.5 * math.exp(-rates[1] * time) * torch.sin(2 * phase)
    )
    assert float((solution.concentrations[0] - wanted).abs().max()) < 2e-5
    assert torch.allclose(pnp.amounts(solution), torch.ones(1, 2, dtype=torch.float64), rtol=1e-12)
