"""Channels as ions: valences, the noise level, gates and migration."""

import math

import pytest
import torch

import pnp
from fusion.grounded.ions import jacobi_edge, noise_edge, valence
from fusion.grounded.measure import measure
from fusion.grounded.transport import centres, channel_cell, equilibrate, gates, migrate

VALENCES = torch.tensor([-0.8, -0.1, 0.0, 0.3, 1.0], dtype=torch.float64)


def test_valence_vanishes_at_the_noise_level_and_is_one_at_full_predictability():
    assert valence(torch.tensor([0.2, 1.0, 0.0]), 0.2).tolist() == pytest.approx([0.0, 1.0, -0.25])
    with pytest.raises(ValueError, match="noise_level must be at least 0 and below 1, got 1"):
        valence(torch.tensor([0.2]), 1.0)


def largest_by_chance(p, q, samples, draws=8):
    """Mean of the largest squared canonical correlation of unrelated Gaussians, by QR and SVD."""
    generator = torch.Generator().manual_seed(3)
    total = 0.0
    for _ in range(draws):
        one, other = (
            torch.linalg.qr(torch.randn(samples, size, dtype=torch.float64, generator=generator))[0]
            for size in (p, q)
        )
        total += float(torch.linalg.svdvals(one.mT @ other)[0]) ** 2
    return total / draws


@pytest.mark.parametrize(("p", "q", "samples"), [(40, 30, 20_000), (20, 20, 10_000)])
def test_noise_edge_is_the_largest_canonical_correlation_of_unrelated_gaussians(p, q, samples):
    torch.manual_seed(0)
    features = {name: torch.randn(samples, size) @ mixing(size) for name, size in (("a", p), ("b", q))}
    found = noise_edge(measure(features, shuffles=8, seed=0))
    # Means of eight draws, each of which varies by about 5 %; with so many samples shrinkage is negligible.
    assert found["a"] == pytest.approx(largest_by_chance(p, q, samples), rel=0.06)
    assert found["a"] == pytest.approx(found["b"], rel=1e-9)


def mixing(size):
    """A rotation of channels whose standard deviations lie between one and three."""
    return torch.linspace(1, 3, size)[:, None] * torch.linalg.qr(torch.randn(size, size))[0]


def test_jacobi_edge_is_where_chance_ends():
    # The largest of finitely many eigenvalues lies just inside the edge of the limit.
    assert 0.97 < largest_by_chance(60, 90, 3000) / jacobi_edge(60, 90, 3000) < 1.0
    assert jacobi_edge(30, 30, 50) == 1.0


def test_gate_of_a_dilute_cell_is_logistic():
    voltage = 7.0
    solution = equilibrate(channel_cell(VALENCES, voltage=voltage, debye_length=1e3))
    torch.testing.assert_close(gates(solution), torch.sigmoid(VALENCES * voltage), rtol=0, atol=2e-3)


def test_gate_of_a_dilute_cell_with_the_ground_off_centre():
    voltage, b = 3.0, 0.3
    solution = equilibrate(channel_cell(VALENCES, voltage=voltage, debye_length=1e3, ground=b))
    # The potential falls linearly from +U to 0 at b and from 0 to -U behind it.
    z = VALENCES * voltage
    safe = torch.where(z == 0, 1.0, z)
    before = torch.where(z == 0, b, b * -torch.expm1(-safe) / safe)
    beyond = torch.where(z == 0, 1 - b, (1 - b) * torch.expm1(safe) / safe)
    torch.testing.assert_close(gates(solution), beyond / (before + beyond), rtol=0, atol=2e-3)


def test_screening_weakens_the_gates():
    far, near = (
        gates(equilibrate(channel_cell(VALENCES, voltage=5.0, debye_length=d))) for d in (10.0, 0.02)
    )
    assert (near - 0.5).abs().max() < (far - 0.5).abs().max()
    assert far[-1] > 0.99 > near[-1] > 0.5


def test_gates_are_differentiable_in_valence_voltage_ground_and_debye_length(monkeypatch):
    # The grading of the grid is a constant of the gradient.
    monkeypatch.setattr(pnp.grid, "_grading", lambda ratio: torch.full_like(ratio, 1.0))

    def gate(z, voltage, ground, debye):
        cell = channel_cell(z, voltage=voltage, ground=ground, debye_length=debye)
        return gates(pnp.solve_equilibrium(cell, pnp.Grid.refined(cell, 25)))

    others = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (4.0, 0.45, 0.8)]
    assert torch.autograd.gradcheck(gate, (VALENCES.clone().requires_grad_(), *others), eps=1e-6, atol=1e-7)


def test_migration_conserves_the_channels_and_ends_at_equilibrium():
    cell = channel_cell(VALENCES, voltage=8.0)
    way = migrate(cell)
    rest = equilibrate(cell, nodes=61)
    torch.testing.assert_close(way.potential[-1], rest.potential, rtol=0, atol=1e-6)
    assert float(way.check().amount_error) < 1e-12
    energy = pnp.free_energy(way)
    assert bool((energy.diff() <= 1e-9 * energy.abs().max()).all())
    # Every channel starts in the middle; cations end right of the ground, anions left of it.
    path = centres(way)
    torch.testing.assert_close(path[0], torch.full((5,), 0.5, dtype=torch.float64))
    assert bool((torch.sign(path[-1] - 0.5)[VALENCES != 0] == torch.sign(VALENCES[VALENCES != 0])).all())


def test_the_most_charged_channel_migrates_first():
    way = migrate(channel_cell(VALENCES, voltage=8.0))
    path = centres(way)[:, 3:]  # valences 0.3 and 1
    arrival = [int((path[:, j] > 0.6).nonzero()[0]) for j in range(2)]
    assert arrival[1] < arrival[0]


def test_gates_need_a_ground():
    cell = channel_cell(VALENCES, voltage=1.0)
    bare = pnp.Cell(cell.electrolyte, length=1.0, concentrations=0.2, left=cell.left, right=cell.right)
    with pytest.raises(ValueError, match="the cell has no ground"):
        gates(pnp.solve_equilibrium(bare))


def test_default_times_cover_the_migration():
    way = migrate(channel_cell(VALENCES, voltage=8.0))
    assert float(way.times[0]) == 0.0
    early = centres(way)[1]
    assert (early - 0.5).abs().max() < 0.01
    assert math.isclose(float(way.times[-1]), 10**0.5, rel_tol=1e-6)
