"""A fusion layer before another one."""

from functools import partial

import pytest
import torch

from fusion.layers.cell_gmf import CellGMF
from fusion.layers.cross_attention import CrossAttention
from fusion.layers.gmf import GMF
from fusion.layers.mbt import MBT
from fusion.layers.misa import MISA
from fusion.layers.plain import Concatenation, LateFusion
from fusion.layers.registry import find_layer
from fusion.layers.scfae import SCFAE
from fusion.layers.stacked import Stacked
from fusion.model import FusionModel

DIMS = {"a": 4, "b": 7, "c": 5}


def draw(samples=6):
    return {name: torch.randn(samples, length) for name, length in DIMS.items()}


@pytest.mark.parametrize("front", [GMF, SCFAE, MISA])
def test_the_entries_of_the_front_are_the_modalities_of_the_back(front):
    layer, features = Stacked(front(DIMS), partial(CrossAttention, width=8, heads=2)), draw()
    first = layer.front(features)
    assert layer.back.dims == {name: values.shape[1] for name, values in first.fused.items()}
    out = layer(features)
    torch.testing.assert_close(out.fused, layer.back(first.fused).fused)
    torch.testing.assert_close(out.invariant, first.invariant)
    torch.testing.assert_close(out.specific, first.specific)
    torch.testing.assert_close(out.losses, first.losses)


def test_losses_of_both_are_kept_apart():
    layer = Stacked(GMF(DIMS), partial(MISA, width=8, heads=2))
    out = layer(draw())
    assert set(out.losses) == {"reconstruction", "back_difference", "back_similarity", "back_reconstruction"}
    sum(out.losses.values()).backward()
    assert layer.front.reconstruction["a"].weight.grad.any()
    assert layer.back.reconstruction["a"].weight.grad.any()


def test_the_back_knows_which_entries_hold_something():
    layer, features = Stacked(Concatenation(DIMS), CrossAttention), draw()
    present = {"b": torch.tensor([True, False] * 3)}
    torch.testing.assert_close(layer(features, present).fused, layer.back(features, present).fused)
    # GMF has put the invariant part of c into the entry of b, and that of b into the entry of a.
    layer = Stacked(GMF(DIMS), CrossAttention)
    alone = {"a": torch.zeros(6).bool(), "b": torch.zeros(6).bool()}
    front = layer.front(features, alone)
    expected = layer.back(front.fused, {"a": torch.zeros(6).bool()})
    torch.testing.assert_close(layer(features, alone).fused, expected.fused)


@pytest.mark.parametrize(
    ("name", "back"), [("g-mbt", "MBT"), ("g-perceiver", "Perceiver"), ("g-attention", "CrossAttention")]
)
def test_names_of_the_paper(name, back):
    layer = find_layer(name)(DIMS)
    assert (type(layer.front).__name__, type(layer.back).__name__) == ("GMF", back)
    assert "reconstruction" in layer(draw()).losses


def test_a_front_that_measures_lends_its_method():
    layer, features = Stacked(CellGMF(DIMS), MBT), draw(60)
    assert layer.standardises
    layer.fit(features)
    assert layer.front.fitted
    assert layer(features).concatenated().shape == (60, 128)
    assert not Stacked(GMF(DIMS), MBT).measured


def test_late_fusion_of_what_the_front_gives():
    model = FusionModel(Stacked(GMF(DIMS), LateFusion), 3, standardise=False).eval()
    features, alone = draw(), {"a": torch.zeros(6).bool(), "b": torch.zeros(6).bool()}
    fused = model.layer(features, alone).fused
    logits = [model.head.decisions[name](fused[name]) for name in ("b", "c")]
    torch.testing.assert_close(model(features, alone).logits, (logits[0] + logits[1]) / 2)


def test_a_back_may_be_a_layer_that_fits():
    front = GMF(DIMS)
    assert Stacked(front, MBT(front.fused_dims)).fused_dims == {"class": 128}
    with pytest.raises(
        ValueError, match=r"back must be made for the entries \{'a': 8, 'b': 11, 'c': 9\} of the"
    ):
        Stacked(front, MBT(DIMS))
    with pytest.raises(ValueError, match="front must be a layer of vectors, got MBT, which takes tokens"):
        Stacked(MBT(DIMS), GMF)
