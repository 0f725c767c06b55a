"""Heads that decide on what a layer gives, and the one that the grounded layer asks for."""

import pytest
import torch
from torch import nn

from fusion.data.datasets import shared_private
from fusion.heads import AverageHead, GatedHead, JointHead
from fusion.layers.cell_gmf import CellGMF
from fusion.layers.plain import LateFusion, Sum
from fusion.model import FusionModel

DIMS = {"a": 6, "b": 5, "c": 4}


@pytest.fixture(scope="module")
def features():
    return shared_private(3000, DIMS, shared=2, private=2, noise=0.4, seed=0)[0].modalities


@pytest.fixture
def model(features):
    torch.manual_seed(0)
    layer = CellGMF(DIMS)
    layer.fit(features)
    return FusionModel(layer, 3).eval()


def without(name, samples=3000):
    return {name: torch.zeros(samples, dtype=torch.bool)}


def test_every_layer_gets_its_head():
    assert isinstance(FusionModel(Sum(DIMS), 3).head, JointHead)
    assert isinstance(FusionModel(LateFusion(DIMS), 3).head, AverageHead)
    assert isinstance(FusionModel(CellGMF(DIMS), 3).head, GatedHead)
    assert isinstance(FusionModel(CellGMF(DIMS, readout="joint"), 3).head, JointHead)
    assert isinstance(FusionModel(CellGMF(DIMS), 3, hidden=None).head, JointHead)
    own = nn.Linear(CellGMF(DIMS).out_features, 3)
    assert FusionModel(CellGMF(DIMS), own).head.decision is own
    with pytest.raises(ValueError, match="readout must be one of gated, joint, got 'sum'"):
        CellGMF(DIMS, readout="sum")


def test_a_gated_head_decides_as_its_equation_says(model, features):
    fused = model.fuse(features)
    total = 0
    for name, values in features.items():
        standardised = (values - values.mean(0)) / values.std(0, correction=0)
        linear, gate = model.head.maps[name], model.head.gates[name]
        total = total + torch.tanh(standardised @ linear.weight.T + linear.bias) * torch.sigmoid(
            fused.concatenated() @ gate.weight.T + gate.bias
        )
    expected = model.head.decision(total)
    torch.testing.assert_close(model(features).logits, expected, rtol=1e-4, atol=1e-5)


def test_completed_features_are_regressions_on_what_is_present(model, features):
    layer = model.layer.double()
    double = {name: values.double() for name, values in features.items()}
    found = layer(double, without("b")).completed
    others = torch.cat([double["a"], double["c"], torch.ones(3000, 1)], dim=-1)
    standardised = (double["b"] - double["b"].mean(0)) / double["b"].std(0, correction=0)
    expected = others @ torch.linalg.lstsq(others, standardised).solution
    assert (
        found["b"] - expected
    ).norm() < 0.02 * expected.norm()  # whitening is shrunk, the regression is not
    torch.testing.assert_close(
        found["a"], (double["a"] - double["a"].mean(0)) / double["a"].std(0, correction=0)
    )


def test_what_was_absent_in_training_is_left_out_and_else_it_counts_as_filled_in(model, features):
    whole, filled_in = model(features).logits, model(features, without("b")).logits
    model.train()(features, without("a"))
    model.eval()
    assert model.head.absent_in_training.tolist() == [True, False, False]
    torch.testing.assert_close(model(features).logits, whole)
    torch.testing.assert_close(model(features, without("b")).logits, filled_in)
    model.train()(features, without("b"))
    left_out = model.eval()(features, without("b")).logits
    assert (left_out - filled_in).abs().max() > 1e-3
    with torch.no_grad():  # what its own map makes of it then has no say
        model.head.maps["b"].weight.mul_(5.0)
    torch.testing.assert_close(model(features, without("b")).logits, left_out)
