"""Channels that take room: how many fit, and that every door knows of it."""

from itertools import pairwise

import pytest
import torch

import fusion
from fusion.grounded.channels import Ions
from fusion.grounded.ions import Noise
from fusion.grounded.settings import CellSettings
from fusion.grounded.transport import channel_cell, equilibrate, gates


def fractions(valences, **settings):
    return gates(equilibrate(channel_cell(valences, **settings)))


def test_no_more_channels_get_beyond_the_ground_than_fit_there():
    # Sixteen of twenty want to, and 20 · 0.3 / 0.8 = 7.5 fit.
    valences = torch.cat([torch.linspace(1.0, 0.2, 16), torch.full((4,), -0.5)]).double()
    capacity = 20 * 0.3 / 0.8
    sums = []
    for voltage in (1.0, 10.0, 60.0):
        found = fractions(valences, voltage=voltage, ground=0.7, ion_size=0.8)
        assert found.sum() < capacity
        assert all(one >= other for one, other in pairwise(found))  # the most positive go first
        sums.append(float(found.sum()))
    assert sums == sorted(sums)
    assert sums[-1] > 0.97 * capacity
    # Points all go.
    assert fractions(valences, voltage=60.0, ground=0.7).sum() > 15.9


def test_small_ions_are_points():
    valences = torch.linspace(-0.3, 1.0, 6).double()
    points = fractions(valences, voltage=8.0)
    torch.testing.assert_close(fractions(valences, voltage=8.0, ion_size=1e-9), points, rtol=1e-6, atol=1e-9)
    assert (fractions(valences, voltage=8.0, ion_size=0.5) - points).abs().max() > 0.01


def test_gates_of_finite_ions_are_differentiable():
    def found(valences, ground):
        return fractions(valences, voltage=4.0, ground=ground, ion_size=0.6, debye_length=0.5)

    valences = torch.tensor([0.8, 0.3, -0.4], dtype=torch.float64, requires_grad=True)
    ground = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(found, (valences, ground), atol=1e-6)


def test_every_door_knows_of_the_size(tmp_path):
    features, _ = fusion.shared_private(400, {"a": 8, "b": 6}, shared=3, private=2, noise=0.2)
    settings = {"ground": 0.8, "ion_size": 0.7, "voltage": 20.0}
    found = fusion.dissociate(features.modalities, **settings)
    one = found.channels["a"]
    assert one.invariant_dimension < 8 * 0.2 / 0.7 + 0.1  # three are shared
    expected = Ions.at_rest(one.predictability, Noise(one.noise_level, 20.0), CellSettings(**settings))
    torch.testing.assert_close(one.gates, expected.gates)
    fusion.save_subspaces(tmp_path / "found.safetensors", found)
    again = fusion.load_subspaces(tmp_path / "found.safetensors").channels["a"]
    torch.testing.assert_close(again.solution.concentrations, one.solution.concentrations)
    layer = fusion.CellGMF(features.dims, **settings)
    layer.fit(features.modalities)
    squares = layer.maps["b"].invariant.square().sum()
    torch.testing.assert_close(squares, found.channels["b"].gates.sum())
    recorder = fusion.MigrationRecorder()
    recorder.add(0, features.modalities, layer=layer)
    torch.testing.assert_close(recorder.record.ions("a", 0).gates, one.gates)
    with pytest.raises(ValueError, match="ion_size must be at least 0 and below 1, got 1"):
        fusion.dissociate(features.modalities, ion_size=1.0)
    with pytest.raises(ValueError, match=r"ion_size must be at least 0 and below 1, got -0\.1"):
        fusion.channel_cell(torch.ones(2).double(), voltage=1.0, ion_size=-0.1)
