"""Baselines against their equations, written out another way."""

import numpy as np
import pytest
import torch
from torch import nn

from fusion.layers.cross_attention import CrossAttention
from fusion.layers.gated import GatedFusion
from fusion.layers.low_rank import LowRankTensorFusion
from fusion.layers.mbt import MBT
from fusion.layers.misa import MISA, central_moment_discrepancy
from fusion.layers.perceiver import Perceiver
from fusion.layers.plain import Sum

DIMS = {"a": 3, "b": 5, "c": 4}
SMALL = {"width": 8, "heads": 2}
ATTENTION = [CrossAttention, MBT, Perceiver, MISA]


def draw(samples=6, dims=DIMS):
    return {name: torch.randn(samples, length, dtype=torch.float64) for name, length in dims.items()}


def sequences(samples=6):
    return {name: torch.randn(samples, 4, length, dtype=torch.float64) for name, length in DIMS.items()}


def all_steps(samples=6):
    return {name: torch.full((samples,), 4) for name in DIMS}


def test_gated_fusion_is_its_equation():
    layer, features = GatedFusion(DIMS, width=7).double(), draw()
    everything = torch.cat([features[name] for name in DIMS], dim=1)
    expected = 0
    for name in DIMS:
        gate = 1 / (1 + torch.exp(-(everything @ layer.gate[name].weight.T + layer.gate[name].bias)))
        part = features[name] @ layer.projection[name].weight.T + layer.projection[name].bias
        expected = expected + gate * torch.tanh(part)
    torch.testing.assert_close(layer(features).fused, {"gated": expected})


def test_low_rank_fusion_is_the_contraction_of_the_whole_tensor():
    layer, features = LowRankTensorFusion(DIMS, width=7, rank=2).double(), draw()
    nn.init.normal_(layer.weights)
    nn.init.normal_(layer.bias)
    # [f; 1] of each modality, and a weight tensor with an axis for each and one for the output
    extended = {name: torch.cat([f, torch.ones(6, 1).double()], dim=1) for name, f in features.items()}
    factors = {
        name: torch.cat([one.weight, one.bias[:, None]], dim=1).reshape(2, 7, -1)
        for name, one in layer.factors.items()
    }
    whole = torch.einsum("r,rwi,rwj,rwk->ijkw", layer.weights, *(factors[name] for name in DIMS))
    outer = torch.einsum("ni,nj,nk->nijk", *(extended[name] for name in DIMS))
    expected = torch.einsum("nijk,ijkw->nw", outer, whole) + layer.bias
    torch.testing.assert_close(layer(features).fused, {"product": expected})
    # Without a modality, what is left are the products that do not contain it: those with its constant.
    absent = layer(features, {"b": torch.zeros(6).bool()}).fused["product"]
    without = torch.einsum("nik,ikw->nw", outer[:, :, -1], whole[:, -1]) + layer.bias
    torch.testing.assert_close(absent, without)


def test_cross_attention_asks_the_others():
    layer, features = CrossAttention({"a": 3, "b": 5}, **SMALL).double(), draw(dims={"a": 3, "b": 5})

    def tokens(name):
        first = layer.tokenise.classes[name].expand(6, 1, -1)
        return torch.cat([first, layer.tokenise.projection[name](features[name])[:, None]], dim=1)

    for name, other in (("a", "b"), ("b", "a")):
        found = layer.blocks[name][0](tokens(name), tokens(other))[:, 0]
        torch.testing.assert_close(layer(features).fused[name], layer.norm[name](found))
    gone = layer(features, {"a": torch.arange(6) > 2}).fused["a"]
    assert not gone[:3].any()
    assert gone[3:].all()


def test_bottlenecks_are_the_only_way_between_modalities():
    features = {name: values.requires_grad_() for name, values in draw().items()}

    def reached(depth):
        """From which modalities the class token of `a` hears, when the others' are not asked."""
        torch.manual_seed(0)
        layer = MBT(DIMS, depth=depth, **SMALL).double()
        kept = {}
        layer.blocks["a"][-1].register_forward_hook(lambda _, __, result: kept.update(a=result[:, 0]))
        layer(features)
        grads = torch.autograd.grad(kept["a"].square().sum(), list(features.values()), allow_unused=True)
        return [name for name, g in zip(DIMS, grads, strict=True) if g is not None and g.any()]

    assert reached(1) == ["a"]
    assert reached(2) == ["a", "b", "c"]


@pytest.mark.parametrize("there", [("a", "b"), ("a",)])
def test_bottleneck_transformer_step_by_step(there):
    dims = {"a": 3, "b": 5}
    layer, features = MBT(dims, depth=2, bottlenecks=3, **SMALL).double(), draw(dims=dims)
    nn.init.normal_(layer.bottleneck)
    present = {name: torch.full((6,), name in there) for name in dims}
    shared, streams = layer.bottleneck.expand(6, 3, 8), {}
    for name in there:
        first = layer.tokenise.classes[name].expand(6, 1, -1)
        streams[name] = torch.cat([first, layer.tokenise.projection[name](features[name])[:, None]], dim=1)
    for step in range(2):
        joint = {name: layer.blocks[name][step](torch.cat([streams[name], shared], 1)) for name in there}
        streams = {name: values[:, :2] for name, values in joint.items()}
        shared = sum(values[:, 2:] for values in joint.values()) / len(there)
    expected = sum(layer.norm(values[:, 0]) for values in streams.values()) / len(there)
    torch.testing.assert_close(layer(features, present).fused, {"class": expected})


def test_perceiver_step_by_step():
    layer, features = Perceiver(DIMS, latents=3, depth=2, **SMALL).double(), sequences()
    seen = torch.cat([layer.tokenise.projection[name](features[name]) for name in DIMS], dim=1)
    latents = layer.latents.expand(6, 3, 8)
    for block in layer.blocks:
        latents = block(latents, seen)
    expected = layer.norm(latents).mean(1)
    torch.testing.assert_close(layer(features, None, all_steps()).fused, {"latents": expected})


@pytest.mark.parametrize("maker", [CrossAttention, MBT, Perceiver])
def test_every_valid_step_is_seen_and_no_place_is(maker):
    layer, features = maker(DIMS, **SMALL).double().eval(), sequences()
    found = layer(features, None, all_steps()).concatenated()
    order = torch.tensor([2, 0, 3, 1])
    turned = layer(features | {"b": features["b"][:, order]}, None, all_steps()).concatenated()
    torch.testing.assert_close(found, turned)
    for step in range(4):
        changed = features["b"].clone()
        changed[:, step] += 1
        other = layer(features | {"b": changed}, None, all_steps()).concatenated()
        assert ((other - found).abs().amax(1) > 1e-6).all()


def test_misa_losses_are_their_equations():
    layer, features = MISA(DIMS, **SMALL, difference_weight=0.5, reconstruction_weight=2.0).double(), draw(9)
    present = {"a": torch.arange(9) > 2, "b": torch.arange(9) < 7}
    out = layer(features, present)
    u, s, p = {}, {}, {}
    for name, values in features.items():
        u[name] = layer.projection[name](values).detach().numpy()
        s[name], p[name] = out.invariant[name].detach().numpy(), out.specific[name].detach().numpy()
    rows = {"a": slice(3, 9), "b": slice(0, 7), "c": slice(0, 9)}

    def unit(values, name):
        found = np.zeros_like(values)
        centred = values[rows[name]] - values[rows[name]].mean(0)
        found[rows[name]] = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        return found

    def overlap(one, other):
        return np.mean((one.T @ other) ** 2)

    pairs = [("a", "b"), ("a", "c"), ("b", "c")]
    difference = sum(overlap(unit(s[n], n), unit(p[n], n)) for n in DIMS)
    difference += sum(overlap(unit(p[n], n), unit(p[k], k)) for n, k in pairs)
    assert float(out.losses["difference"].detach()) == pytest.approx(0.5 * difference)

    def moments(values):
        mean = values.mean(0)
        return [mean, *(((values - mean) ** k).mean(0) for k in range(2, 6))]

    similarity = np.mean(
        [
            sum(
                np.linalg.norm(x - y)
                for x, y in zip(moments(s[n][rows[n]]), moments(s[k][rows[k]]), strict=True)
            )
            for n, k in pairs
        ]
    )
    assert float(out.losses["similarity"].detach()) == pytest.approx(similarity)
    rebuilt = {n: layer.reconstruction[n](out.invariant[n] + out.specific[n]).detach().numpy() for n in DIMS}
    reconstruction = np.mean([((u[n] - rebuilt[n])[rows[n]] ** 2).mean() for n in DIMS])
    assert float(out.losses["reconstruction"].detach()) == pytest.approx(2 * reconstruction)


def test_misa_shares_one_encoder_and_attends_among_those_present():
    layer, features = MISA(DIMS, **SMALL).double(), draw()
    out = layer(features)
    expected = 1 / (1 + torch.exp(-layer.shared[0](layer.projection["b"](features["b"]))))
    torch.testing.assert_close(out.invariant["b"], expected)
    tokens = torch.stack([part[n] for n in DIMS for part in (out.invariant, out.specific)], dim=1)
    attended = layer.attention(tokens)
    torch.testing.assert_close(out.fused["c"], attended[:, 4:].flatten(1))
    absent = layer(features, {"a": torch.zeros(6).bool()})
    torch.testing.assert_close(absent.fused["c"], layer.attention(tokens[:, 2:])[:, 2:].flatten(1))
    assert not absent.fused["a"].any()


def test_central_moment_discrepancy_knows_distributions():
    torch.manual_seed(0)
    everyone = torch.ones(4000).bool()
    first, second = torch.rand(4000, 2), torch.rand(4000, 2)
    narrow = 0.5 + (first - 0.5) / 2  # the same mean, a quarter of the variance 1/12

    def distance(other):
        return float(central_moment_discrepancy(first, other, everyone, everyone))

    assert distance(first) == 0
    assert distance(second) < 0.03
    # Of both columns: variance 1/12 (1 - 1/4), and the fourth moment 1/80 (1 - 1/16)
    assert distance(narrow) == pytest.approx(2**0.5 * (0.75 / 12 + 15 / 16 / 80), rel=0.05)
    assert float(central_moment_discrepancy(first, second, everyone, ~everyone)) == 0


@pytest.mark.parametrize("maker", ATTENTION)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 6, "heads": 4}, "width must be a multiple of the 4 heads, got 6"),
        ({"width": 0}, "width must be an integer of 1 or more, got 0"),
        ({"heads": 0}, "heads must be an integer of 1 or more, got 0"),
        ({"dropout": 1.0}, r"dropout must be from 0 to below 1, got 1\.0"),
    ],
)
def test_settings_of_transformers_out_of_range(maker, options, message):
    with pytest.raises(ValueError, match=message):
        maker(DIMS, **options)


@pytest.mark.parametrize(
    ("maker", "options", "message"),
    [
        (Sum, {"width": 2.5}, "width must be an integer of 1 or more, got 2.5"),
        (GatedFusion, {"width": 0}, "width must be an integer of 1 or more, got 0"),
        (LowRankTensorFusion, {"rank": True}, "rank must be an integer of 1 or more, got True"),
        (MBT, {"bottlenecks": 0}, "bottlenecks must be an integer of 1 or more, got 0"),
        (MBT, {"depth": 0}, "depth must be an integer of 1 or more, got 0"),
        (Perceiver, {"latents": -1}, "latents must be an integer of 1 or more, got -1"),
        (CrossAttention, {"depth": 0}, "depth must be an integer of 1 or more, got 0"),
        (MISA, {"difference_weight": -1.0}, r"difference_weight must be 0 or more, got -1\.0"),
        (MISA, {"similarity_weight": float("inf")}, "similarity_weight must be 0 or more, got inf"),
        (MISA, {"reconstruction_weight": float("nan")}, "reconstruction_weight must be 0 or more, got nan"),
    ],
)
def test_settings_out_of_range(maker, options, message):
    with pytest.raises(ValueError, match=message):
        maker(DIMS, **options)
