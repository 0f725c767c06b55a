"""The expert's baseline of the benchmarks solves the same problem, as well: a wrong one would be no baseline."""

import math

import numpy as np
import pytest
import torch

import pnp
from benchmarks import cells, choices
from benchmarks.expert import Expert, graded_nodes
from pnp.solvers import rosenbrock
from tests.problems import Canonical
from tests.spectral import SpectralCell, two_sided

CASES = [(0.1, 0.1), (1.0, 0.01), (4.0, 0.05), (10.0, 0.1), (10.0, 0.005)]


def expert_charge(voltage: float, debye: float, nodes: int) -> float:
    cell = Expert(voltage, debye, graded_nodes(voltage, debye, nodes))
    return cell.charge(cell.steady().state)


@pytest.mark.parametrize(("voltage", "debye"), CASES)
def test_expert_approaches_the_exact_charge_with_second_order(voltage, debye):
    exact = Canonical(voltage, debye).exact.charge
    errors = [abs(expert_charge(voltage, debye, nodes) / exact - 1) for nodes in (201, 401)]
    assert errors[0] < 1e-3
    assert math.log2(errors[0] / errors[1]) == pytest.approx(2.0, abs=0.02)


@pytest.mark.parametrize(("voltage", "debye"), CASES)
def test_expert_and_pnp_agree_on_one_grid(voltage, debye):
    nodes = graded_nodes(voltage, debye, 201)
    cell = Canonical(voltage, debye).cell()
    grid = pnp.Grid(torch.as_tensor(nodes))
    ours = float(pnp.diffuse_charge(pnp.solve_steady(cell, grid))) / 2
    expert = Expert(voltage, debye, nodes)
    assert expert.charge(expert.steady().state) == pytest.approx(ours, rel=1e-8)
    # and the grid itself is that of `pnp`
    assert np.allclose(pnp.Grid.refined(cell, 201).nodes.numpy(), nodes, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(("voltage", "debye"), [(1.0, 0.1), (4.0, 0.05)])
def test_expert_charges_as_the_spectral_reference(voltage, debye):
    times = debye * np.array([0.1, 0.3, 1.0, 3.0, 10.0])
    inner = debye / math.cosh(voltage / 2)
    reference = SpectralCell(two_sided(2.0, 1.5 * inner, 16), 2 * debye**2, (voltage, -voltage))
    exact = reference.diffuse_charge(reference.solve(times, 1e-8)) / 2
    expert = Expert(voltage, debye, graded_nodes(voltage, debye, 401))
    errors = [
        np.abs(expert.charging(times, rtol, rtol / 100).charges / exact - 1).max() for rtol in (1e-4, 1e-6)
    ]
    assert errors[0] < 2e-3
    assert errors[1] < 2e-4


def test_expert_keeps_the_ions_of_a_transient():
    expert = Expert(10.0, 0.05, graded_nodes(10.0, 0.05, 201))
    late = expert.charging(np.array([1e3]), 1e-5, 1e-7).charges[0]
    assert late == pytest.approx(expert.charge(expert.steady().state), rel=1e-7)


def test_cells_have_the_charge_that_is_called_exact():
    voltages, debye = cells.sample(4)
    solution = pnp.solve_steady(cells.cell_of(**cells.as_parameters(voltages, debye)))
    found = pnp.diffuse_charge(solution).numpy() / 2
    assert found == pytest.approx(cells.exact_charges(voltages, debye), rel=1e-3)


NOW = rosenbrock.SHARE, rosenbrock.REACHED, rosenbrock.REMEMBERED


@pytest.mark.parametrize(
    ("method", "order"), [(choices.RODAS3, 3), (choices.RODAS4, 4), (choices.RODAS4P, 4), (NOW, 4)]
)
def test_rosenbrock_methods_are_of_their_order(method, order):
    """On y' = y: half the step, a 2^(order + 1)th of the error."""
    share, reached, remembered = method
    errors = []
    for step in (0.04, 0.02):
        increments: list[float] = []
        for a, c in zip(reached, remembered, strict=True):
            at = 1 + np.dot(a, increments)
            increments.append(share * (step * at + np.dot(c, increments)) / (1 - share * step))
        errors.append(abs(at + increments[-1] - math.exp(step)))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order + 1, abs=0.2)
