"""Grids: ends, ground, volumes, spacings, batches."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pnp

from .problems import electrolyte


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


def cell(voltage=5.0, debye=0.01, length=1.0, ground=None, **changes):
    arguments = {
        "length": length,
        "concentrations": 1.0,
        "left": pnp.Electrode(potential=voltage),
        "right": pnp.Electrode(potential=-voltage),
        "ground": ground,
    }
    return pnp.Cell(electrolyte(2 * debye**2), **(arguments | changes))


def assert_sound(grid, length, nodes):
    x = grid.nodes
    assert x.shape[-1] == nodes
    assert bool((x[..., 0] == 0).all())
    assert torch.allclose(x[..., -1], torch.as_tensor(length, dtype=torch.float64), rtol=1e-15, atol=0)
    assert bool((grid.spacings > 0).all())
    assert bool((x.diff(dim=-1) >= 0).all())
    assert torch.allclose(grid.spacings.sum(-1), x[..., -1], rtol=1e-13)
    assert torch.allclose(grid.volumes.sum(-1), x[..., -1], rtol=1e-13)
    # spacings know digits that positions lose, so they agree only to the rounding of a position
    assert bool(((x.diff(dim=-1) - grid.spacings).abs() <= 2e-15 * x[..., -1:]).all())


@given(
    nodes=st.integers(5, 120),
    voltage=st.floats(0.0, 80.0),
    log_debye=st.floats(-4.0, 1.0),
    length=st.floats(1e-9, 1e3),
    ground=st.none() | st.floats(0.02, 0.98),
    kind=st.sampled_from([pnp.Grid.refined, pnp.Grid.uniform]),
)
def test_any_grid_is_sound(nodes, voltage, log_debye, length, ground, kind):
    position = None if ground is None else ground * length
    one = cell(voltage, 10**log_debye * length, length, position)
    grid = kind(one, nodes)
    assert_sound(grid, length, nodes)
    if ground is not None:
        assert float(grid.nodes[grid.ground_node]) == position


def test_uniform_grid_is_uniform():
    grid = pnp.Grid.uniform(cell(length=3.0), 31)
    assert np.allclose(grid.nodes, np.linspace(0, 3, 31), rtol=1e-15)
    assert torch.allclose(grid.spacings, torch.full((30,), 0.1, dtype=torch.float64), rtol=1e-13)
    with_ground = pnp.Grid.uniform(cell(length=3.0, ground=1.0), 31)
    assert np.allclose(with_ground.nodes[:16], np.linspace(0, 1, 16), rtol=1e-14)
    assert np.allclose(with_ground.nodes[15:], np.linspace(1, 3, 16), rtol=1e-14)


@pytest.mark.parametrize("nodes", [100, 200, 401])
@pytest.mark.parametrize("debye", [0.1, 0.01, 0.001])
@pytest.mark.parametrize("voltage", [0.1, 4.0, 10.0, 40.0])
def test_wall_spacing_is_what_the_docstring_promises(voltage, debye, nodes):
    # 0.02 (200 / N) of the inner Debye length; its map has a slope at the wall that is right to O(N^-2)
    grid = pnp.Grid.refined(cell(voltage, debye), nodes)
    inner = debye * max(1 / np.cosh(voltage / 2), 2 * debye)
    wanted = 0.02 * 200 / nodes * inner
    assert float(grid.spacings[0]) == pytest.approx(wanted, rel=0.02)
    assert float(grid.spacings[-1]) == pytest.approx(float(grid.spacings[0]), rel=1e-12)


def test_wall_spacing_follows_the_potential_a_wall_carries():
    # against a bath or a ground one layer carries all of its electrode's potential
    bath = pnp.Reservoir(concentrations=1.0, potential=0.0)

    def spacing(voltage, **changes):
        return float(pnp.Grid.refined(cell(voltage, 1e-4, **changes), 400).spacings[0])

    assert spacing(5.0, right=bath) == pytest.approx(spacing(5.0), rel=0.01)
    assert spacing(5.0, ground=0.5) == pytest.approx(spacing(5.0), rel=0.01)
    grounded = pnp.Electrode(potential=0.0)
    assert spacing(5.0, right=grounded) == pytest.approx(spacing(2.5), rel=0.01)


def test_refined_grid_is_its_own_mirror_image():
    grid = pnp.Grid.refined(cell(voltage=10.0, debye=1e-3), 101)
    assert torch.allclose(grid.spacings, grid.spacings.flip(-1), rtol=1e-13, atol=0)
    assert torch.allclose(grid.nodes, 1 - grid.nodes.flip(-1), rtol=0, atol=1e-15)


def test_no_gap_in_the_middle():
    # a cell of exponential mesh that covers most of the half width would be wrong without notice
    grid = pnp.Grid.refined(cell(voltage=10.0, debye=1e-3), 201)
    assert float(grid.spacings.max()) < 0.1
    ratio = grid.spacings[1:] / grid.spacings[:-1]
    assert 0.8 < float(ratio.min()) < float(ratio.max()) < 1.25


def test_thick_layers_get_a_uniform_grid():
    grid = pnp.Grid.refined(cell(voltage=0.1, debye=5.0), 51)
    assert torch.allclose(grid.nodes, pnp.Grid.uniform(cell(), 51).nodes, atol=1e-15)


@pytest.mark.parametrize("kind", [pnp.Grid.refined, pnp.Grid.uniform])
def test_batch_of_grids_equals_single_grids(kind):
    voltage, length = f64([1.0], [9.0]), f64(1.0, 2.0, 5.0)
    ground = length * 0.3
    grid = kind(cell(voltage, 0.01, length, ground), 40)
    nodes, spacings = grid.nodes.expand(2, 3, 40), grid.spacings.expand(2, 3, 39)
    assert_sound(grid, length, 40)
    for i, j in [(0, 0), (1, 2), (0, 1)]:
        single = kind(cell(float(voltage[i]), 0.01, float(length[j]), float(ground[j])), 40)
        assert torch.allclose(nodes[i, j], single.nodes, rtol=1e-14)
        assert torch.allclose(spacings[i, j], single.spacings, rtol=1e-13)


def test_positions_follow_length_and_ground_differentiably(monkeypatch):
    monkeypatch.setattr("pnp.grid._grading", lambda ratio: torch.full_like(ratio, 3.0))
    length = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    ground = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def positions(length, ground):
        grid = pnp.Grid.refined(cell(length=length, ground=ground), 12)
        return grid.nodes, grid.spacings

    assert torch.autograd.gradcheck(positions, (length, ground), eps=1e-6, atol=1e-8)


def test_own_nodes_are_taken_as_they_are():
    grid = pnp.Grid(f64(0.0, 0.2, 0.5, 1.0))
    assert torch.allclose(grid.spacings, f64(0.2, 0.3, 0.5), rtol=1e-15)
    assert torch.allclose(grid.volumes, f64(0.1, 0.25, 0.4, 0.25), rtol=1e-15)
    assert pnp.Grid(torch.linspace(0, 1, 5)).nodes.dtype == torch.float64
