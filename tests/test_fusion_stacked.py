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


@pytest.mark.parametrize("partner", ["next", "mean"])
@pytest.mark.parametrize("front", [GMF, SCFAE])
def test_every_step_is_divided_and_joined_by_what_its_partners_share_on_average(front, partner):
    layer = Stacked(front(DIMS, partner=partner).double(), partial(MBT, width=8, heads=2))
    steps, lengths = {"a": 4, "b": 2, "c": 1}, {"a": torch.tensor([3, 4, 0]), "b": torch.tensor([2, 0, 1])}
    lengths["c"] = torch.tensor([1, 1, 0])
    features = {name: torch.randn(3, steps[name], length).double() for name, length in DIMS.items()}
    valid = {name: torch.arange(steps[name]) < lengths[name][:, None] for name in DIMS}
    features = {name: values * valid[name][..., None] for name, values in features.items()}
    found, holding = layer.front.fuse_steps(features, valid)
    parts = layer.front({name: values.flatten(0, 1) for name, values in stretched(features).items()})
    for name, length in DIMS.items():
        own = layer.front.specific_lengths[name]
        specific = parts.specific[name].reshape(3, 4, own)[:, : steps[name]]
        torch.testing.assert_close(found.fused[name][..., -own:], specific)
        for row in range(3):
            shared = {}
            for other in DIMS:
                c = parts.invariant[other].reshape(3, 4, -1)[row]
                shared[other] = c[: max(1, lengths[other][row])].mean(0)
            others = layer.front.partners[name]
            here = [other for other in others if lengths[other][row]] if partner == "mean" else others
            expected = torch.stack([shared[other] for other in here or [name]]).mean(0)
            rest = found.fused[name][row, :, :-own]
            torch.testing.assert_close(rest, expected.expand(steps[name], -1))
            torch.testing.assert_close(found.invariant[name][row], shared[name])
        assert found.specific[name].shape == (3, length)
    # A modality that is absent has one step, if a partner has put something into it.
    assert holding["a"].sum(-1).tolist() == [3, 4, 1]
    assert holding["b"].sum(-1).tolist() == [2, 1, 1]
    assert holding["c"].sum(-1).tolist() == [1, 1, 1 if partner == "mean" else 0]
    if front is GMF:  # whose maps are linear
        means = {name: v.sum(1) / lengths[name].clamp(min=1)[:, None] for name, v in features.items()}
        whole = layer.front(means, {name: lengths[name] > 0 for name in DIMS})
        for name in DIMS:
            counted = valid[name] | ~valid[name].any(-1, keepdim=True)
            mean = (found.fused[name] * counted[..., None]).sum(1) / counted.sum(-1, keepdim=True)
            torch.testing.assert_close(mean, whole.fused[name])
            torch.testing.assert_close(found.specific[name], whole.specific[name])
    errors = [
        layer.front.distance(features[name], layer.front.reconstruction[name](found.fused[name]))[valid[name]]
        for name in DIMS
    ]
    torch.testing.assert_close(found.losses["reconstruction"], sum(one.mean() for one in errors))


def stretched(features):
    """The same sequences with four steps each."""
    return {
        name: torch.nn.functional.pad(values, (0, 0, 0, 4 - values.shape[1]))
        for name, values in features.items()
    }


def test_a_back_of_vectors_gets_means():
    layer, lengths = Stacked(GMF(DIMS), partial(MISA, width=8, heads=2)), torch.tensor([1, 3, 2, 3, 1, 2])
    assert not layer.tokens
    assert not Stacked(CellGMF(DIMS), MBT).tokens
    features = draw() | {"b": torch.randn(6, 3, 7)}
    means = features | {
        "b": torch.stack([f[:n].mean(0) for f, n in zip(features["b"], lengths, strict=True)])
    }
    torch.testing.assert_close(layer(features, None, {"b": lengths}).fused, layer(means).fused)


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
