"""The free energy of channels in a cell: how it depends on their charges."""

import pytest
import torch

import pnp
from fusion.grounded.transport import channel_cell, equilibrate, gate_slopes, gates, separation_energy

CASES, CHANNELS = 2000, 6


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levelled(valences, seed):
    """Two channels of each case moved towards each other, their sum kept: Robin Hood's transfer."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.stack([torch.randperm(CHANNELS, generator=generator)[:2] for _ in range(len(valences))])
    share = torch.rand(len(valences), 1, generator=generator, dtype=torch.float64)
    rich, poor = valences.gather(-1, pair).unbind(-1)
    mixed = torch.stack([rich, poor], -1) * (1 - share) + torch.stack([poor, rich], -1) * share
    return valences.scatter(-1, pair, mixed)


def test_unequal_charges_have_the_lower_energy():
    """Schur-concavity, on thousands of cells of all voltages, grounds and Debye lengths."""
    valences = draw(CASES, CHANNELS, seed=0)
    numbers = torch.rand(3, CASES, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = {
        "voltage": 0.1 * 300 ** numbers[0],
        "ground": 0.2 + 0.6 * numbers[1],
        "debye_length": 0.05 * 40 ** numbers[2],
    }
    before = separation_energy(equilibrate(channel_cell(valences, **settings)))
    after = separation_energy(equilibrate(channel_cell(levelled(valences, 2), **settings)))
    assert int((after < before - 1e-9).sum()) == 0
    assert float((after - before).mean()) > 1e-3  # and it could have failed


def energy_of(valences, amounts):
    """With amounts of one's own, which `channel_cell` makes equal."""
    species = [
        pnp.Species(str(index), valence=z, diffusivity=1.0) for index, z in enumerate(valences.unbind(-1))
    ]
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=1.0),
        length=1.0,
        concentrations=amounts,
        left=pnp.Electrode(potential=4.0),
        right=pnp.Electrode(potential=-4.0),
        ground=0.5,
    )
    return separation_energy(equilibrate(cell))


def test_unequal_amounts_are_the_counterexample():
    """A transfer of charge from a scarce to an abundant channel can lower the energy although it levels charges."""
    charges = torch.tensor([[2.0, 0.0], [1.0, 1.0]], dtype=torch.float64)
    unequal, level = energy_of(charges, torch.tensor([0.1, 0.9], dtype=torch.float64))
    assert level < unequal - 0.1
    unequal, level = energy_of(charges, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert level > unequal


def test_its_limits_are_those_of_strong_and_weak_fields():
    valences = draw(20, CHANNELS, seed=3)
    strong = separation_energy(equilibrate(channel_cell(valences, voltage=2000.0, debye_length=5.0)))
    torch.testing.assert_close(strong, -valences.abs().mean(-1), rtol=0.02, atol=0.02)
    # Ions in the bare field phi = U (1 - 2 x): -log of the integral of exp(-z phi), the mean over channels. The
    # entropy of a mixed cell, which does not depend on charges, is part of the energy.
    voltage = 0.05
    weak = separation_energy(equilibrate(channel_cell(valences, voltage=voltage, debye_length=50.0)))
    fields = valences * voltage
    bare = (
        -torch.log(torch.sinh(fields) / fields).mean(-1) - (1 + torch.log(torch.tensor(6.0)).double())
    ) / voltage
    torch.testing.assert_close(weak, bare, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("debye_length", [0.1, 1.0])
def test_slopes_of_gates_are_those_at_a_potential_that_stays(debye_length):
    valences = draw(CHANNELS, seed=4)
    solution = equilibrate(channel_cell(valences, voltage=3.0, ground=0.4, debye_length=debye_length))

    def beyond(z):
        densities = torch.exp(-z.unsqueeze(-1) * solution.potential)
        held = solution.grid.spacings * (densities[:, 1:] + densities[:, :-1]) / 2
        return held[:, solution.grid.ground_node :].sum(-1) / held.sum(-1)

    torch.testing.assert_close(beyond(valences), gates(solution), rtol=0, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(beyond, valences)
    torch.testing.assert_close(gate_slopes(solution), jacobian.diagonal(), rtol=1e-7, atol=1e-9)


def test_a_cell_without_a_ground_has_no_gates():
    cell = channel_cell(torch.tensor([1.0, -0.5]).double(), voltage=1.0)
    bare = pnp.Cell(cell.electrolyte, length=1.0, concentrations=0.5, left=cell.left, right=cell.right)
    solution = pnp.solve_equilibrium(bare, pnp.Grid.refined(bare, 41))
    for function in (gates, gate_slopes):
        with pytest.raises(ValueError, match="the cell has no ground"):
            function(solution)
