"""GMF: the published parameter counts, the published equations, and a map that loses nothing."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.fusion_layers import BATCH, DIMS, bare_products, both_ways, flops
from fusion.data.datasets import shared_private
from fusion.layers.cell_gmf import CellGMF
from fusion.layers.gmf import GMF

THREE = {"a": 4, "b": 7, "c": 5}


def parameters(layer):
    return sum(parameter.numel() for parameter in layer.parameters())


def counted(dims, expansion=4, boundary=0.5):
    """Weights and biases of the four maps, from the equations alone."""
    total, common = 0, min(dims.values())
    for length in dims.values():
        lifted = expansion * length
        inner = int(boundary * lifted)
        for inputs, outputs in (
            (length, lifted),
            (inner, common),
            (lifted - inner, length),
            (common + length, length),
        ):
            total += (inputs + 1) * outputs
    return total


def test_published_count_of_two_equal_modalities():
    assert parameters(GMF({"audio": 512, "video": 512})) == counted({"a": 512, "v": 512}) == 5_250_048


def test_published_count_of_unequal_modalities():
    dims = {"audio": 128, "video": 4096}
    with torch.device("meta"):
        layer = GMF(dims)
    assert parameters(layer) == counted(dims) == 119_202_816  # the paper says 119 M


@pytest.mark.parametrize(("expansion", "boundary"), [(2, 0.5), (3, 0.25), (4, 0.75), (1, 0.4)])
def test_count_with_other_settings(expansion, boundary):
    dims = {"a": 5, "b": 12, "c": 7}
    layer = GMF(dims, expansion=expansion, boundary=boundary)
    assert parameters(layer) == counted(dims, expansion, boundary)


def test_outputs_are_the_published_equations():
    torch.manual_seed(0)
    dims = {"a": 4, "b": 7, "c": 5}
    layer = GMF(dims, expansion=3, boundary=0.4).double()
    features = {name: torch.randn(6, length, dtype=torch.float64) for name, length in dims.items()}
    out = layer(features)
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def linear(kind, name, values):
        return values @ weights[f"{kind}.{name}.weight"].T + weights[f"{kind}.{name}.bias"]

    common, specific = {}, {}
    for name, length in dims.items():
        lifted = linear("dissociation", name, features[name])
        inner = (4 * 3 * length) // 10  # floor(0.4 · 3 · l)
        assert lifted.shape == (6, 3 * length)
        common[name] = linear("gather_invariant", name, lifted[:, :inner])
        specific[name] = linear("gather_specific", name, lifted[:, inner:])
        assert common[name].shape == (6, 4)
        torch.testing.assert_close(out.invariant[name], common[name])
        torch.testing.assert_close(out.specific[name], specific[name])
    loss = 0
    for name, partner in (("a", "b"), ("b", "c"), ("c", "a")):  # k = (m + 1) mod M
        fused = torch.cat([common[partner], specific[name]], dim=1)
        torch.testing.assert_close(out.fused[name], fused)
        loss += (features[name] - linear("reconstruction", name, fused)).square().mean()
    torch.testing.assert_close(out.losses["reconstruction"], loss)


def test_reconstruction_of_a_reversible_map_is_exact():
    """Theorem 3.4 of the paper: maps chosen to lose nothing give the features back, to rounding."""
    dims = {"a": 4, "b": 6}
    layer = GMF(dims).double()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        for name, length in dims.items():
            inner = 2 * length
            mix = torch.linalg.qr(torch.randn(length, length, dtype=torch.float64)).Q
            layer.dissociation[name].weight[inner : inner + length] = mix  # all of it on the specific side
            layer.gather_specific[name].weight[:, :length] = 3.0 * torch.eye(length)
            layer.reconstruction[name].weight[:, 4:] = mix.T / 3.0
    features = {name: torch.randn(20, length, dtype=torch.float64) for name, length in dims.items()}
    assert layer(features).losses["reconstruction"] < 1e-28
    with torch.no_grad():
        layer.reconstruction["b"].weight[:, 4] = 0  # forget one coordinate, and the loss must say so
    assert layer(features).losses["reconstruction"] > 1e-2


def test_reconstruction_counts_present_samples_only():
    torch.manual_seed(0)
    layer = GMF({"a": 4, "b": 6}).double()
    features = {"a": torch.randn(5, 4).double(), "b": torch.randn(5, 6).double()}
    present = {"a": torch.tensor([True, True, False, False, False])}
    zeroed = features | {"a": torch.where(present["a"][:, None], features["a"], 0.0)}
    fused = layer(zeroed).fused
    of_a = (features["a"] - layer.reconstruction["a"](fused["a"]))[:2].square().mean()
    of_b = (features["b"] - layer.reconstruction["b"](fused["b"])).square().mean()
    torch.testing.assert_close(layer(features, present).losses["reconstruction"], of_a + of_b)


def test_an_absent_partner_is_what_the_biases_make_of_zero():
    torch.manual_seed(0)
    layer = GMF({"a": 4, "b": 6})
    features = {"a": torch.randn(3, 4), "b": torch.randn(3, 6)}
    absent = layer(features, {"b": torch.zeros(3).bool()})
    lifted = layer.dissociation["b"].bias
    expected = layer.gather_invariant["b"](lifted[:12])
    torch.testing.assert_close(absent.fused["a"][:, :4], expected.expand(3, 4))


def test_dissociated_parts_are_the_lifted_features():
    torch.manual_seed(0)
    layer = GMF({"a": 4, "b": 6}, boundary=0.25)
    features = {"b": torch.randn(2, 3, 6), "a": torch.randn(2, 3, 4)}
    invariant, specific = layer.dissociate(features)
    assert {name: part.shape[-1] for name, part in invariant.items()} == {"a": 4, "b": 6}
    assert {name: part.shape[-1] for name, part in specific.items()} == {"a": 12, "b": 18}
    for name, values in features.items():
        together = torch.cat([invariant[name], specific[name]], dim=-1)
        torch.testing.assert_close(together, layer.dissociation[name](values))
    with pytest.raises(ValueError, match="features must hold the modalities"):
        layer.dissociate({"a": features["a"]})


def test_published_cost():
    layer = GMF({"audio": 512, "video": 512})
    with FlopCounterMode(display=False) as counter:
        layer({"audio": torch.randn(1, 512), "video": torch.randn(1, 512)})
    weights = sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
    assert counter.get_total_flops() == 2 * weights == 10_485_760
    assert round(counter.get_total_flops() / 1e9, 2) == 0.01  # GFLOP, as in the paper


def test_the_bare_products_of_the_benchmark_are_those_of_the_layer():
    layer = GMF(DIMS)
    with FlopCounterMode(display=False) as bare:
        bare_products()()
    with FlopCounterMode(display=False) as whole:
        both_ways(layer)()
    # Forward, and backward to the weights and to the input of each map
    assert bare.get_total_flops() == whole.get_total_flops() == 3 * BATCH * flops(layer)


def test_a_single_modality_is_its_own_partner():
    layer, features = GMF({"a": 4}), {"a": torch.randn(3, 4)}
    out = layer(features)
    torch.testing.assert_close(out.fused["a"], torch.cat([out.invariant["a"], out.specific["a"]], dim=-1))
    averaged = GMF({"a": 4}, partner="mean")
    averaged.load_state_dict(layer.state_dict())
    assert torch.equal(averaged(features).fused["a"], out.fused["a"])


def test_mean_of_the_others_counts_those_present():
    layer = GMF(THREE, partner="mean").double()
    features = {name: torch.randn(4, length, dtype=torch.float64) for name, length in THREE.items()}
    present = {
        "a": torch.tensor([True, True, True, False]),
        "b": torch.tensor([True, False, False, True]),
        "c": torch.tensor([True, True, False, False]),
    }
    out = layer(features, present)
    c = out.invariant
    own = {name: values[:, :4] for name, values in out.fused.items()}
    torch.testing.assert_close(own["a"][0], (c["b"][0] + c["c"][0]) / 2)
    torch.testing.assert_close(own["b"][1], (c["a"][1] + c["c"][1]) / 2)
    torch.testing.assert_close(own["a"][1], c["c"][1])
    torch.testing.assert_close(own["a"][2], c["a"][2])  # nobody else is there
    torch.testing.assert_close(own["c"][3], c["b"][3])


def test_learned_placeholders_stand_for_the_absent():
    layer, published = GMF(THREE, absent="learned"), GMF(THREE)
    features = {name: torch.randn(3, length) for name, length in THREE.items()}
    present = {"b": torch.tensor([True, False, False])}
    layer.load_state_dict(published.state_dict(), strict=False)
    assert torch.equal(layer(features, present).concatenated(), published(features, present).concatenated())
    with torch.no_grad():
        layer.placeholders["b"][:] = torch.arange(7.0)
    as_if = features | {"b": torch.stack([features["b"][0], *(torch.arange(7.0),) * 2])}
    torch.testing.assert_close(layer(features, present).concatenated(), published(as_if).concatenated())
    layer(features, present).concatenated().square().sum().backward()
    assert layer.placeholders["b"].grad.any()
    assert layer.placeholders["a"].grad is None or not layer.placeholders["a"].grad.any()
    count = sum(p.numel() for p in layer.parameters()) - sum(p.numel() for p in published.parameters())
    assert count == sum(THREE.values())


def test_lengths_may_differ_between_modalities():
    layer = GMF(
        {"a": 10, "b": 20},
        expansion={"b": 2, "a": 4},
        boundary={"a": 0.25, "b": 0.75},
        specific_share={"a": 0.55, "b": 0.01},
    )
    invariant, specific = layer.dissociate({"a": torch.ones(10), "b": torch.ones(20)})
    assert {name: len(part) for name, part in invariant.items()} == {"a": 10, "b": 30}
    assert {name: len(part) for name, part in specific.items()} == {"a": 30, "b": 10}
    out = layer({"a": torch.ones(10), "b": torch.ones(20)})
    assert {name: len(part) for name, part in out.specific.items()} == {"a": 5, "b": 1}
    assert {name: len(part) for name, part in out.fused.items()} == layer.fused_dims == {"a": 15, "b": 11}


def test_a_small_specific_part_needs_the_invariant_parts():
    """With the same features in both modalities, all the loss may be without them is half of the variance."""

    def loss(share, invariant):
        torch.manual_seed(0)
        layer = GMF({"a": 6, "b": 6}, specific_share=share).double()
        values = torch.randn(200, 6, dtype=torch.float64)
        if not invariant:
            for parameter in layer.gather_invariant.parameters():
                parameter.requires_grad_(False).zero_()
        optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
        for _ in range(400):
            optimiser.zero_grad()
            found = layer({"a": values, "b": values}).losses["reconstruction"]
            found.backward()
            optimiser.step()
        return float(found.detach())

    assert loss(1.0, invariant=False) < 1e-3
    # A map of rank 3 leaves at least half of the variance of six independent channels, less what chance gives.
    assert loss(0.5, invariant=False) > 0.8
    assert loss(0.5, invariant=True) < 1e-3


def test_reconstruction_weight():
    layer, heavy, none = (GMF(THREE, reconstruction_weight=w) for w in (1, 2.5, 0))
    features = {name: torch.randn(3, length) for name, length in THREE.items()}
    for other in (heavy, none):
        other.load_state_dict(layer.state_dict())
    loss = layer(features).losses["reconstruction"]
    torch.testing.assert_close(heavy(features).losses["reconstruction"], 2.5 * loss)
    assert none(features).losses["reconstruction"] == 0


def test_an_entry_holds_something_if_it_has_a_part_of_someone_present():
    only_b = {"a": torch.tensor(False), "b": torch.tensor(True), "c": torch.tensor(False)}
    found = {name: bool(value) for name, value in GMF(THREE).fused_present(only_b).items()}
    assert found == {"a": True, "b": True, "c": False}  # a has the invariant part of b
    assert all(GMF(THREE, partner="mean").fused_present(only_b).values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partner": "previous"}, "partner must be one of next, mean, got 'previous'"),
        ({"absent": "noise"}, "absent must be one of zeros, learned, got 'noise'"),
        ({"specific_share": 0}, "specific_share must be above 0 and at most 1, got 0"),
        ({"specific_share": {"a": 0.5, "b": 1.5}}, "specific_share must be above 0 and at most 1, got 1.5"),
        ({"expansion": {"a": 4}}, "expansion must name the modalities a, b, got a"),
        ({"boundary": {"a": 0.5, "b": 0.5, "c": 0.5}}, "boundary must name the modalities a, b, got a, b, c"),
        ({"reconstruction_weight": -1}, "reconstruction_weight must be 0 or more, got -1"),
        ({"expansion": 0}, "expansion must be a positive number, got 0"),
        ({"expansion": -1.0}, "expansion must be a positive number, got -1.0"),
        ({"expansion": float("nan")}, "expansion must be a positive number, got nan"),
        ({"boundary": 0.0}, "boundary must be between 0 and 1, both excluded, got 0.0"),
        ({"boundary": 1}, "boundary must be between 0 and 1, both excluded, got 1"),
        (
            {"expansion": 1, "boundary": 0.1},
            "expansion 1 and boundary 0.1 split the 4 channels of 'a' into 0 and 4; both sides need",
        ),
        ({"expansion": 0.25, "boundary": 0.5}, "split the 4 channels of 'a' into 0 and 1"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        GMF({"a": 4, "b": 6}, **options)


def test_boundary_is_not_lost_to_rounding():
    # 0.29 * 100 is 28.999999999999996 in floating point.
    layer = GMF({"a": 100, "b": 100}, expansion=1, boundary=0.29)
    assert layer.dissociate({"a": torch.ones(100), "b": torch.ones(100)})[0]["a"].shape == (29,)


def test_it_may_start_from_a_cell():
    dims = {"a": 12, "b": 8, "c": 6}
    features = shared_private(2000, dims, shared=3, private=2, noise=0.2, seed=0)[0].modalities
    values = {name: one.double() * 3 + 1 for name, one in features.items()}
    cell = CellGMF(dims).double()
    cell.fit(values)
    expected = cell(values)
    layer = GMF.from_cell(cell, standardised=False).double()
    found = layer(values)
    for name in dims:
        torch.testing.assert_close(found.invariant[name], expected.invariant[name], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.specific[name], expected.specific[name], rtol=1e-5, atol=1e-5)
        # With its own invariant part in the place of the partner's the reconstruction is exact.
        own = torch.cat([found.invariant[name], found.specific[name]], dim=-1)
        torch.testing.assert_close(layer.reconstruction[name](own), values[name], rtol=1e-4, atol=1e-4)
    # Scaled features, as a FusionModel gives them, with the cell fitted to raw ones.
    scaled = {name: (one - one.mean(0)) / one.std(0, correction=0) for name, one in values.items()}
    behind = GMF.from_cell(cell).double()(scaled)
    torch.testing.assert_close(behind.specific["a"], expected.specific["a"], rtol=1e-5, atol=1e-5)
    # Everything can still be learned: no gradient is stuck at zero.
    (found.concatenated().sum() + found.losses["reconstruction"]).backward()
    for name in dims:
        assert float(layer.gather_invariant[name].weight.grad.abs().min(dim=0).values.max()) > 0
    with pytest.raises(ValueError, match="leave 'a' 3 and 9 channels; its parts have 6 and 12"):
        GMF.from_cell(cell, expansion=1, boundary=0.25)
    with pytest.raises(ValueError, match="from_cell needs the parts of the cell"):
        GMF.from_cell(cell, specific_share=0.5)
    with pytest.raises(RuntimeError, match="call fit"):
        GMF.from_cell(CellGMF(dims))
