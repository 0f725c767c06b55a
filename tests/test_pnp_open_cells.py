"""Cells between baths: constant field, neutral limit, reversal potentials, diffusion potentials."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

import pnp

from .problems import BINARY_JUNCTION, LITHIUM_JUNCTION, MEMBRANE, Junction, electrolyte

JUNCTIONS = {"KCl": BINARY_JUNCTION, "LiCl": LITHIUM_JUNCTION, "K/Na/Cl": MEMBRANE}


def fluxes(junction: Junction, voltages, permittivity: float, nodes: int = 201) -> np.ndarray:
    """Mean steady fluxes, `(voltage, species)`."""
    cell = junction.cell(torch.as_tensor(voltages, dtype=torch.float64), permittivity)
    flux = pnp.ion_flux(pnp.solve_steady(cell, pnp.Grid.uniform(cell, nodes)))
    assert float((flux.amax(-1) - flux.amin(-1)).max()) < 1e-9 * float(flux.abs().max())
    return flux.mean(-1).numpy()


def reversal(junction: Junction, permittivity: float, nodes: int = 201) -> float:
    """Potential without current, by a scalar search over steady cells."""

    def current(voltage: float) -> float:
        cell = junction.cell(voltage, permittivity)
        return float(pnp.current_density(pnp.solve_steady(cell, pnp.Grid.uniform(cell, nodes))).mean())

    return float(brentq(current, -4.0, 4.0, xtol=1e-13, rtol=1e-13))


VOLTAGES = (-5.0, -1.3, -1e-3, 0.7, 4.0)


@pytest.mark.parametrize("name", JUNCTIONS)
def test_fluxes_in_a_constant_field(name):
    junction = JUNCTIONS[name]
    wanted = np.array([junction.fluxes_constant_field(v) for v in VOLTAGES])
    errors = [np.abs(fluxes(junction, VOLTAGES, 10.0**power, 21) / wanted - 1).max() for power in (4, 6)]
    # The scheme is exact in a constant field, on any grid; what is left is screening, O(1 / permittivity).
    assert errors[0] == pytest.approx(100 * errors[1], rel=0.05)
    assert errors[1] < 1e-5


@pytest.mark.parametrize("name", JUNCTIONS)
def test_fluxes_in_the_neutral_limit(name):
    junction = JUNCTIONS[name]
    wanted = np.array([junction.fluxes_neutral(v) for v in VOLTAGES])
    scale = np.abs(wanted).max(0)
    errors = []
    for permittivity in (4e-4, 1e-4):
        coarse, fine = (fluxes(junction, VOLTAGES, permittivity, nodes) for nodes in (201, 401))
        extrapolated = (4 * fine - coarse) / 3
        errors.append(np.abs((extrapolated - wanted) / scale).max())
    # The deviation is proportional to the permittivity, the square of the Debye length.
    assert errors[0] == pytest.approx(4 * errors[1], rel=0.1)
    assert errors[1] < 1e-3


@pytest.mark.parametrize("name", ["LiCl", "K/Na/Cl"])
def test_fluxes_are_of_second_order(name):
    junction = JUNCTIONS[name]
    found = [fluxes(junction, VOLTAGES, 0.02, nodes) for nodes in (51, 101, 201)]
    order = np.log2(np.abs(found[0] - found[1]).max(0) / np.abs(found[1] - found[2]).max(0))
    assert np.abs(order - 2).max() < 0.1


@pytest.mark.parametrize("name", ["LiCl", "K/Na/Cl"])
def test_thick_debye_length_reverses_at_goldman_hodgkin_katz(name):
    junction = JUNCTIONS[name]
    wanted = junction.reversal_constant_field()
    errors = [reversal(junction, 10.0**power, 41) - wanted for power in (2, 4)]
    assert errors[0] == pytest.approx(100 * errors[1], rel=0.05)
    assert abs(errors[1]) < 1e-5


@pytest.mark.parametrize("name", ["LiCl", "K/Na/Cl"])
def test_thin_debye_length_reverses_at_planck(name):
    junction = JUNCTIONS[name]
    wanted = junction.reversal_neutral()
    errors = []
    for permittivity in (4e-4, 1e-4):
        coarse, fine = (reversal(junction, permittivity, nodes) for nodes in (101, 201))
        errors.append((4 * fine - coarse) / 3 - wanted)
    assert errors[0] == pytest.approx(4 * errors[1], rel=0.15)
    assert abs(errors[1]) < 1e-4
    # The other formulas are far off, so that this test cannot pass for another.
    assert abs(wanted - junction.reversal_constant_field()) > 0.02
    if name == "K/Na/Cl":
        assert abs(wanted - junction.reversal_linear_mixing()) > 0.005


def test_binary_junction_has_the_liquid_junction_potential():
    d_plus, d_minus = LITHIUM_JUNCTION.diffusivities
    henderson = (d_plus - d_minus) / (d_plus + d_minus) * math.log(3.0)
    assert LITHIUM_JUNCTION.reversal_neutral() == pytest.approx(henderson, rel=1e-12)
    assert reversal(LITHIUM_JUNCTION, 1e-5, 401) == pytest.approx(henderson, abs=1e-4)


def test_ambipolar_salt_flux_without_current():
    d_plus, d_minus = LITHIUM_JUNCTION.diffusivities
    ambipolar = 2 * d_plus * d_minus / (d_plus + d_minus)
    voltage = reversal(LITHIUM_JUNCTION, 1e-5, 401)
    found = fluxes(LITHIUM_JUNCTION, [voltage], 1e-5, 401)[0]
    assert found == pytest.approx([2 * ambipolar, 2 * ambipolar], rel=1e-4)


def test_equal_baths_conduct_by_ohms_law():
    cell = Junction((1.0, -1.0), (1.0, 0.5), (2.0, 2.0), (2.0, 2.0)).cell(0.3, 0.01)
    solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 31))
    current = pnp.current_density(solution)
    assert torch.allclose(current, torch.full_like(current, -(1.0 + 0.5) * 2.0 * 0.3), rtol=1e-12)
    assert torch.allclose(solution.concentrations, torch.tensor(2.0, dtype=torch.float64), rtol=1e-12)


def test_empty_bath_gives_the_limiting_flux():
    # Salt runs from c = 1 to c = 0 at zero current; a bath may be empty.
    cell = pnp.Cell(
        electrolyte(1e3, (1.0, -1.0), (1.0, 1.0)),
        length=0.5,
        concentrations=0.5,
        left=pnp.Reservoir(concentrations=1.0, potential=0.0),
        right=pnp.Reservoir(concentrations=0.0, potential=0.0),
    )
    solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 51))
    flux = pnp.ion_flux(solution)
    assert torch.allclose(flux, torch.full_like(flux, 2.0), rtol=1e-6)


def test_electrode_against_a_bath_carries_no_current():
    cell = pnp.Cell(
        electrolyte(0.02, (2.0, -1.0), (1.0, 0.3)),
        length=1.0,
        concentrations=[1.0, 2.0],
        left=pnp.Electrode(potential=3.0),
        right=pnp.Reservoir(concentrations=[1.0, 2.0], potential=0.5),
    )
    solution = pnp.solve_steady(cell)
    assert float(solution.check().residual) < 1e-12
    # Boltzmann against the bath, node by node
    boltzmann = torch.tensor([[1.0], [2.0]]) * torch.exp(
        -torch.tensor([[2.0], [-1.0]]) * (solution.potential - 0.5)
    )
    assert torch.allclose(solution.concentrations, boltzmann, rtol=1e-9)


def test_many_species_between_baths():
    # Split ions of the membrane into equal parts: nine species, the same fluxes.
    parts = 3
    split = Junction(*(tuple(np.repeat(value, parts)) for value in vars(MEMBRANE).values()))
    split = Junction(
        split.valences,
        split.diffusivities,
        tuple(np.array(split.left) / parts),
        tuple(np.array(split.right) / parts),
    )
    one = fluxes(MEMBRANE, [0.7], 0.02, 61)[0]
    two = fluxes(split, [0.7], 0.02, 61)[0].reshape(3, parts)
    assert np.allclose(two, one[:, None] / parts, rtol=1e-10)
