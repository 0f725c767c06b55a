"""The model around a layer: standardisation, encoders and heads, with modalities missing."""

import pytest
import torch
from torch import nn

from fusion.encoders import RecurrentEncoder
from fusion.layers.gmf import GMF
from fusion.layers.perceiver import Perceiver
from fusion.layers.plain import Concatenation, LateFusion, Sum
from fusion.layers.registry import LAYERS
from fusion.model import FusionModel, Standardise

DIMS = {"a": 3, "b": 5}


def features(samples=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": 100 + 5 * torch.randn(samples, 3, generator=generator),
        "b": 0.01 * torch.randn(samples, 5, generator=generator),
    }


def test_standardised_training_batch_has_zero_mean_and_unit_variance():
    scale, values = Standardise(3), features()["a"]
    out = scale(values, torch.ones(40).bool())
    torch.testing.assert_close(out.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(out.std(0, correction=0), torch.ones(3))


def test_absent_samples_never_enter_the_statistics():
    present = torch.arange(40) % 3 > 0
    values = features()["a"].double()
    spoilt = values.masked_fill(~present[:, None], torch.nan)
    with_absent, with_others, without_them = (Standardise(3).double() for _ in range(3))
    out = with_absent(spoilt, present)
    assert torch.equal(out, with_others(values, present))
    assert not out[~present].any()
    # Zeros in a sum change its order, and so its last bit.
    expected = without_them(values[present], torch.ones(int(present.sum())).bool())
    torch.testing.assert_close(out[present], expected, rtol=1e-12, atol=1e-12)
    for name, value in with_absent.state_dict().items():
        assert torch.equal(value, with_others.state_dict()[name]), name
        torch.testing.assert_close(value, without_them.state_dict()[name], rtol=1e-13, atol=0)


def test_running_statistics_are_those_of_all_batches_so_far():
    scale, values = Standardise(3), features()["a"]
    for start in (0, 20):
        scale(values[start : start + 20], torch.ones(20).bool())
    torch.testing.assert_close(scale.mean, values.mean(0))
    torch.testing.assert_close(scale.variance, (values[:20].var(0) + values[20:].var(0)) / 2)


def test_old_batches_are_forgotten():
    scale, everyone = Standardise(3), torch.ones(40).bool()
    for shift in [0.0] * 20 + [7.0] * 100:  # 0.9^100 is 3e-5
        scale(torch.randn(40, 3) + shift, everyone)
    torch.testing.assert_close(scale.mean, torch.full((3,), 7.0), atol=0.3, rtol=0)


@pytest.mark.parametrize("samples", [0, 1])
def test_tiny_batches_are_scaled_by_running_statistics(samples):
    scale, values = Standardise(3), features()["a"]
    scale(values, torch.ones(40).bool())
    before = {name: value.clone() for name, value in scale.state_dict().items()}
    present = torch.arange(2) < samples
    expected = (values[:samples] - values.mean(0)) / values.std(0)
    torch.testing.assert_close(scale(values[:2], present)[present], expected)
    assert all(torch.equal(value, before[name]) for name, value in scale.state_dict().items())


def test_a_channel_that_was_constant_stays_bounded():
    scale, values = Standardise(3), torch.zeros(40, 3)
    scale(values, torch.ones(40).bool())
    surprise = scale.eval()(torch.ones(1, 3), torch.ones(1).bool())
    assert torch.equal(surprise, torch.full((1, 3), Standardise.limit))


def test_evaluation_does_not_depend_on_the_batch():
    model = FusionModel(Sum(DIMS), 4)
    model(features())
    model.eval()
    whole = model(features()).logits
    one_by_one = torch.stack([model({m: f[i] for m, f in features().items()}).logits for i in range(40)])
    torch.testing.assert_close(whole, one_by_one)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch", [(), (6,), (2, 3)], ids=str)
def test_every_layer_gets_a_head_that_fits(name, batch):
    layer = LAYERS[name](DIMS)
    if layer.measured:
        layer.fit(features())
    model = FusionModel(layer, 4).eval()
    logits = model({m: torch.randn(*batch, length) for m, length in DIMS.items()}).logits
    assert logits.shape == (*batch, 4)


def test_absent_samples_influence_nothing():
    present = {"a": torch.arange(40) % 2 == 0}
    spoilt = features()
    spoilt["a"][~present["a"]] = torch.nan
    for layer in (GMF(DIMS), LateFusion(DIMS)):
        model = FusionModel(layer, 4).eval()
        assert torch.equal(model(spoilt, present).logits, model(features(), present).logits)


def test_late_fusion_averages_the_decisions_of_those_present():
    model = FusionModel(LateFusion(DIMS), 4, standardise=False).eval()
    given = features()
    of_a, of_b = (model.head.decisions[name](given[name]) for name in DIMS)
    torch.testing.assert_close(model(given).logits, (of_a + of_b) / 2)
    present = {"a": torch.arange(40) < 10}
    logits = model(given, present).logits
    torch.testing.assert_close(logits[:10], (of_a + of_b)[:10] / 2)
    torch.testing.assert_close(logits[10:], of_b[10:])


def test_losses_of_the_layer_come_through():
    model = FusionModel(GMF(DIMS), 4, standardise=False)
    given = features()
    assert model(given).losses["reconstruction"] == model.layer(given).losses["reconstruction"]
    assert FusionModel(Sum(DIMS), 4)(given).losses == {}


def test_a_layer_that_standardises_gets_raw_features():
    class Whitening(Concatenation):
        standardises = True

    assert len(FusionModel(Whitening(DIMS), 4).standardise) == 0
    assert len(FusionModel(Concatenation(DIMS), 4, standardise=False).standardise) == 0
    assert len(FusionModel(Concatenation(DIMS), 4).standardise) == 2


def test_linear_head():
    head = FusionModel(Concatenation(DIMS), 4, hidden=None).head.decision
    assert isinstance(head, nn.Linear)
    assert (head.in_features, head.out_features) == (8, 4)


def test_encoders_make_features_of_raw_input():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 3), nn.BatchNorm1d(3))
    model = FusionModel(GMF(DIMS), 4, encoders={"a": encoder})
    images = torch.randn(6, 2, 4, 4)
    present = {"a": torch.tensor([True, True, True, False, True, False])}
    images[~present["a"]] = torch.nan
    prediction = model({"a": images, "b": torch.randn(6, 5)}, present)
    prediction.logits.square().sum().backward()
    assert torch.isfinite(prediction.logits).all()
    assert all(torch.isfinite(p.grad).all() for p in encoder.parameters())
    assert any(p.grad.any() for p in encoder.parameters())


def sequence_input(samples=8):
    """A sequence and a vector, the sequence with garbage behind its valid steps."""
    lengths = {"a": torch.arange(samples) % 4 + 1}
    values = 3 + torch.randn(samples, 5, 3)
    clean = {"a": torch.where(torch.arange(5)[None, :, None] < lengths["a"][:, None, None], values, 0.0)}
    clean["b"] = torch.randn(samples, 5)
    spoilt = clean | {"a": torch.where(clean["a"] == 0, torch.nan, clean["a"])}
    return clean, spoilt, lengths


@pytest.mark.parametrize("layer", [GMF, Perceiver, LateFusion])
@pytest.mark.parametrize("encoder", [None, RecurrentEncoder(3, 3), RecurrentEncoder(3, 3, tokens=True)])
def test_sequences_with_and_without_an_encoder(layer, encoder):
    model = FusionModel(layer(DIMS), 4, encoders={} if encoder is None else {"a": encoder}, dropout=0.0)
    clean, spoilt, lengths = sequence_input()
    trained = model(spoilt, None, lengths)
    trained.logits.square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    model.eval()
    logits = model(spoilt, None, lengths).logits
    assert torch.equal(logits, model(clean, None, lengths).logits)
    for i in range(8):
        alone = model(
            {"a": clean["a"][i : i + 1, : lengths["a"][i]], "b": clean["b"][i : i + 1]},
            None,
            {"a": lengths["a"][i : i + 1]},
        )
        torch.testing.assert_close(alone.logits[0], logits[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [Perceiver, Concatenation])
def test_what_is_standardised_is_what_the_layer_gets(layer):
    model = FusionModel(layer(DIMS), 4)
    clean, spoilt, lengths = sequence_input(400)
    model.fuse(spoilt, None, lengths)
    rows = clean["a"][clean["a"].any(-1)]  # every valid step
    if not model.layer.tokens:
        rows = torch.stack([clean["a"][i, :n].mean(0) for i, n in enumerate(lengths["a"])])
        torch.testing.assert_close(model.vectors(spoilt, None, lengths)["a"], rows)
        fused = model.eval().fuse(clean, None, lengths).fused["a"]
        torch.testing.assert_close(fused, (rows - rows.mean(0)) / rows.std(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.standardise["a"].mean, rows.mean(0))
    torch.testing.assert_close(model.standardise["a"].variance, rows.var(0))


@pytest.mark.parametrize("encoder", [None, RecurrentEncoder(3, 3)])
def test_a_sequence_without_a_step_is_absent(encoder):
    model = FusionModel(LateFusion(DIMS), 4, encoders={} if encoder is None else {"a": encoder}).eval()
    clean, _, lengths = sequence_input()
    lengths["a"][:3] = 0
    logits = model(clean, None, lengths).logits
    assert torch.equal(logits, model(clean, {"a": torch.arange(8) > 2}, lengths).logits)
    nobody = model(clean, {"a": torch.zeros(8).bool()}, lengths).logits
    torch.testing.assert_close(logits[:3], nobody[:3])


@pytest.mark.parametrize("layer", [GMF, Perceiver, LateFusion])
def test_a_model_is_one_graph(layer):
    torch._dynamo.reset()
    model = FusionModel(layer(DIMS), 4)
    clean, spoilt, lengths = sequence_input()
    present = {"a": torch.arange(8) % 3 > 0}
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    compiled(spoilt, present, lengths).logits.sum().backward()
    assert model.standardise["a"].batches == 1
    model.eval()
    found = compiled(spoilt, present, lengths).logits
    torch.testing.assert_close(found, model(clean, present, lengths).logits)


def test_mixed_precision():
    encoder = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model = FusionModel(GMF(DIMS), 4, encoders={"a": encoder})
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(features(), {"a": torch.arange(40) > 3})
    (prediction.logits.square().mean() + prediction.losses["reconstruction"]).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert encoder[0].weight.grad.any()


def test_frozen_encoders_stay_as_they_are():
    def encoder(inputs):
        return nn.Sequential(nn.Linear(inputs, inputs), nn.BatchNorm1d(inputs), nn.Dropout(0.5))

    model = FusionModel(GMF(DIMS), 4, encoders={"a": encoder(3), "b": encoder(5)}, frozen=["a"])
    before = {name: value.clone() for name, value in model.encoders.state_dict().items()}
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=0.1)
    assert [part.training for part in model.encoders.values()] == [False, True]
    model(features()).logits.square().sum().backward()
    optimiser.step()
    after = model.encoders.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("a."))
    assert not torch.equal(before["b.0.weight"], after["b.0.weight"])
    assert not torch.equal(before["b.1.running_mean"], after["b.1.running_mean"])
    assert all(p.grad is None for p in model.encoders["a"].parameters())


def test_a_head_of_your_own():
    layer = GMF(DIMS)
    head = nn.Linear(layer.out_features, 2, bias=False)
    model = FusionModel(layer, head, standardise=False)
    given = features()
    torch.testing.assert_close(model(given).logits, layer(given).concatenated() @ head.weight.T)
    with pytest.raises(
        ValueError, match="outputs must be a number for LateFusion, which has a head for each"
    ):
        FusionModel(LateFusion(DIMS), head)


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        (0, {}, "outputs must be 1 or more, got 0"),
        (4, {"hidden": 0}, "hidden must be 1 or more, or None for a linear head, got 0"),
        (4, {"dropout": 1.0}, "dropout must be from 0 to below 1, got 1.0"),
        (4, {"frozen": ["a"]}, r"frozen names a, which is none of the encoders \(there are none\)"),
        (4, {"encoders": {"c": nn.Identity()}}, "encoders name c, which is none of a, b"),
    ],
)
def test_settings_out_of_range(outputs, options, message):
    with pytest.raises(ValueError, match=message):
        FusionModel(Concatenation(DIMS), outputs, **options)
