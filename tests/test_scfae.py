"""The second version of the published layer: gated maps, cosine distance, one weight."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fusion.layers.scfae import SCFAE


def silu(values):
    return values / (1 + torch.exp(-values))


def normalised(values):
    centred = values - values.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("normalise", [True, False])
def test_outputs_are_the_published_equations(normalise):
    torch.manual_seed(0)
    dims = {"a": 4, "b": 7, "c": 5}
    layer = SCFAE(dims, normalise=normalise, reconstruction_weight=0.3).double()
    features = {name: torch.randn(6, length, dtype=torch.float64) for name, length in dims.items()}
    out = layer(features)
    weights = {name: value.detach() for name, value in layer.named_parameters()}

    def swiglu(kind, name, values):
        values = normalised(values) if normalise else values
        first, second, third = (
            (weights[f"{kind}.{name}.{part}.weight"], weights[f"{kind}.{name}.{part}.bias"])
            for part in ("gate_and_value",) * 2 + ("out",)
        )
        hidden = len(first[1]) // 2
        gate = values @ first[0][:hidden].T + first[1][:hidden]
        value = values @ second[0][hidden:].T + second[1][hidden:]
        return (silu(gate) * value) @ third[0].T + third[1]

    common, specific = {}, {}
    for name, length in dims.items():
        lifted = swiglu("dissociation", name, features[name])
        assert lifted.shape == (6, 2 * length)
        common[name] = swiglu("gather_invariant", name, lifted[:, :length])
        specific[name] = swiglu("gather_specific", name, lifted[:, length:])
    loss = 0
    for name, partner in (("a", "b"), ("b", "c"), ("c", "a")):
        fused = torch.cat([common[partner], specific[name]], dim=1)
        torch.testing.assert_close(out.fused[name], fused)
        rebuilt = swiglu("reconstruction", name, fused)
        cosine = (features[name] * rebuilt).sum(1) / features[name].norm(dim=1) / rebuilt.norm(dim=1)
        loss += (1 - cosine).mean()
    torch.testing.assert_close(out.losses["reconstruction"], 0.3 * loss)


def test_count_of_parameters():
    # Each map from i to o: o (2 i + 2) for the gate and the value, o (o + 1) for the way out, 2 i to normalise.
    total, common = 0, 512
    for length in (512, 512):
        for i, o in ((length, 2 * length), (length, common), (length, length), (common + length, length)):
            total += o * (2 * i + 2) + o * (o + 1) + 2 * i
    layer = SCFAE({"audio": 512, "video": 512})
    assert sum(parameter.numel() for parameter in layer.parameters()) == total == 9_987_072
    with FlopCounterMode(display=False) as counter:
        layer({"audio": torch.randn(1, 512), "video": torch.randn(1, 512)})
    assert counter.get_total_flops() == 2 * sum(
        weight.numel() for name, weight in layer.named_parameters() if weight.ndim == 2
    )


def test_the_loss_minds_directions_only():
    torch.manual_seed(0)
    layer = SCFAE(
        {"a": 4, "b": 6}
    )  # normalised before each map, so that the size of features is not seen at all
    features = {"a": torch.randn(5, 4), "b": torch.randn(5, 6)}
    larger = {name: 10 * values for name, values in features.items()}
    torch.testing.assert_close(layer(larger).losses, layer(features).losses, rtol=1e-3, atol=1e-4)


def test_a_zero_vector_has_no_direction_and_no_nan():
    layer = SCFAE({"a": 4, "b": 6})
    features = {"a": torch.zeros(2, 4, requires_grad=True), "b": torch.randn(2, 6)}
    loss = layer(features).losses["reconstruction"]
    loss.backward()
    assert torch.isfinite(features["a"].grad).all()
    assert 1 <= float(loss.detach()) <= 3  # one of the two distances is 1


def test_reconstruction_can_be_learnt():
    torch.manual_seed(0)
    layer = SCFAE({"a": 4, "b": 6})
    features = {"a": torch.randn(64, 4), "b": torch.randn(64, 6)}
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    first = float(layer(features).losses["reconstruction"].detach())
    for _ in range(150):
        optimiser.zero_grad()
        loss = layer(features).losses["reconstruction"]
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.05 * first
