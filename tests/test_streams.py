"""Features in chunks, with gaps, wide, and hostile to arithmetic: what dissociation finds stays the same and finite."""

import numpy as np
import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.grounded import covariance, measure, samples
from fusion.grounded.ions import noise_edge
from fusion.grounded.subspaces import dissociate

DIMS = {"a": 14, "b": 10, "c": 6}


def draw(count=1500, dims=DIMS, seed=0):
    return shared_private(count, dims, shared=3, private=2, noise=0.4, seed=seed)[0].modalities


def chunks(features, *sizes):
    """Chunks of the given sizes, again and again."""
    count, start, found = len(next(iter(features.values()))), 0, []
    while start < count:
        size = sizes[len(found) % len(sizes)]
        found.append({name: values[start : start + size] for name, values in features.items()})
        start += size
    return found


def assert_same(one, other, atol=1e-10):
    torch.testing.assert_close(one.coherence.matrix, other.coherence.matrix, rtol=0, atol=atol)
    for name, channels in one.channels.items():
        for what in ("gates", "predictability", "valences"):
            mine, theirs = getattr(channels, what), getattr(other.channels[name], what)
            torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)
        whitenings = one.coherence.whitenings[name], other.coherence.whitenings[name]
        assert whitenings[0].shrinkage == pytest.approx(whitenings[1].shrinkage, abs=atol)


@pytest.fixture
def small_blocks(monkeypatch):
    """Streams are cut into blocks of 250 samples."""
    for module in (samples, measure):
        monkeypatch.setattr(module, "BLOCK", 250)


def test_chunks_give_what_memory_gives():
    features = draw()
    whole = dissociate(features)
    assert_same(dissociate(chunks(features, 400, 1, 77)), whole)
    assert_same(dissociate(lambda: iter(chunks(features, 1500))), whole)
    loader = torch.utils.data.DataLoader(torch.arange(1500), batch_size=128, collate_fn=torch.stack)
    assert_same(dissociate(lambda: ({n: v[i] for n, v in features.items()} for i in loader)), whole)


def test_a_stream_longer_than_memory_differs_by_its_draws_of_the_noise_alone(small_blocks):
    features = draw(4000)
    whole = measure.measure(features, shuffles=4)
    some = measure.measure(chunks(features, 300), shuffles=4)
    torch.testing.assert_close(some.coherence.matrix, whole.coherence.matrix, rtol=0, atol=1e-10)
    edges = noise_edge(whole), noise_edge(some)
    assert edges[0] != edges[1]
    for name in DIMS:
        assert edges[1][name] == pytest.approx(edges[0][name], rel=0.25)
    again = measure.measure(chunks(features, 7, 1200), shuffles=4)  # cut elsewhere
    assert noise_edge(again) == pytest.approx(edges[1], rel=1e-9)


def test_a_sorted_stream_passes_nothing_for_shared_that_is_not(small_blocks):
    # Each modality drifts: within a block its mean is the same before and after shuffling.
    torch.manual_seed(0)
    drift = torch.linspace(-2, 2, 4000)[:, None]
    features = {name: torch.randn(4000, size) + drift for name, size in DIMS.items()}
    streamed = noise_edge(measure.measure(chunks(features, 100), shuffles=4))
    whole = noise_edge(measure.measure(features, shuffles=4))
    for name in DIMS:
        assert streamed[name] == pytest.approx(whole[name], rel=0.6)
        assert streamed[name] < 0.05  # the means of the blocks alone would make it 0.7


def test_gaps_leave_what_the_other_samples_say():
    features = {name: values.double() for name, values in draw(3000).items()}
    generator = torch.Generator().manual_seed(1)
    present = {
        name: torch.rand(3000, generator=generator) < share for name, share in (("a", 0.8), ("c", 0.6))
    }
    for name, there in present.items():
        features[name][~there] = torch.nan
    coherence = measure.measure(features, present=present).coherence
    where, both = coherence.slices(), (present["a"] & present["c"]).numpy()
    white = {}
    for name in ("a", "c"):
        seen = features[name].numpy()[present[name].numpy()]
        whitening = coherence.whitenings[name]
        np.testing.assert_allclose(whitening.mean, seen.mean(0), atol=1e-12)
        np.testing.assert_allclose(whitening.scale, seen.std(0), atol=1e-12)
        rows = (features[name].numpy()[both] - seen.mean(0)) / seen.std(0)
        white[name] = rows @ whitening.matrix.numpy()
    expected = white["a"].T @ white["c"] / both.sum()
    np.testing.assert_allclose(coherence.matrix[where["a"], where["c"]], expected, atol=1e-12)
    parts = [slice(0, 900), slice(900, 3000)]
    pieces = [
        tuple({name: values[rows] for name, values in one.items()} for one in (features, present))
        for rows in parts
    ]
    whole = dissociate(features, present=present)
    assert_same(dissociate(pieces), whole)
    for one in whole.channels.values():
        assert one.invariant_dimension == pytest.approx(3, abs=0.1)


def test_the_way_of_wide_modalities_finds_the_same(monkeypatch):
    features = draw(2000, {"a": 60, "b": 12, "c": 7})
    usual = dissociate(features)
    monkeypatch.setattr(covariance, "WIDE", 8)
    wide = dissociate(features)
    assert torch.equal(
        wide.coherence.whitenings["a"].matrix.tril(-1), torch.zeros(60, 60, dtype=torch.float64)
    )
    common = [one.common(features) for one in (usual, wide)]
    for name, one in usual.channels.items():
        other = wide.channels[name]
        for what in ("gates", "predictability"):
            torch.testing.assert_close(getattr(other, what), getattr(one, what), rtol=0, atol=1e-8)
        unit = torch.eye(len(other.basis), dtype=torch.float64)
        torch.testing.assert_close(other.basis @ other.basis.mT, unit, rtol=0, atol=1e-12)
        torch.testing.assert_close(other.frame.mT @ other.frame, unit[:7, :7], rtol=0, atol=1e-12)
        # Parts of gate near one half are the same up to one rotation for all modalities: lengths agree.
        torch.testing.assert_close(
            common[1][name].norm(dim=-1), common[0][name].norm(dim=-1), rtol=0, atol=1e-4
        )
    back = wide.reconstruct(*wide.split(features))
    for name, values in features.items():
        torch.testing.assert_close(back[name], values.double(), rtol=0, atol=1e-10)
    expected = usual.conflict(features)
    torch.testing.assert_close(wide.conflict(features), expected, rtol=0, atol=1e-6)
    pair = {"a": features["a"]}, {name: features[name] for name in ("b", "c")}
    assert torch.equal(usual.retrieve(*pair, k=3).indices, wide.retrieve(*pair, k=3).indices)


def test_more_channels_than_all_others_together_and_more_than_samples():
    features = draw(900, {"wide": 1300, "narrow": 20})
    found = dissociate(features)
    wide, narrow = found.channels.values()
    torch.testing.assert_close(wide.predictability[:20], narrow.predictability, rtol=0, atol=1e-10)
    assert len(wide.correlating) == 20
    assert float(wide.predictability[20:].max()) == 0
    back = found.reconstruct(*found.split(features))
    torch.testing.assert_close(back["wide"], features["wide"].double(), rtol=0, atol=1e-10)


def rank_deficient(x):
    x["a"][:, 7:] = x["a"][:, :7] @ torch.randn(7, 7)


def constant(x):
    x["a"][:, 2] = 0.1
    x["b"][:] = -3.0


def duplicated(x):
    x["a"][:, 7:] = 1e6 * x["a"][:, :7] + 3


def huge_and_tiny(x):
    x["a"] = x["a"].double() * 10.0 ** torch.linspace(-12, 12, 14).double()
    x["b"] += 1e4


def of_size(size):
    def change(x):
        for name in x:
            x[name] = x[name][:size]

    change.__name__ = f"samples_{size}"
    return change


HOSTILE = [rank_deficient, constant, duplicated, huge_and_tiny, of_size(5), of_size(2)]


@pytest.mark.parametrize("way", ["usual", "wide"])
@pytest.mark.parametrize("change", HOSTILE, ids=lambda one: one.__name__)
def test_hostile_features_stay_finite_and_conserved(change, way, monkeypatch):
    if way == "wide":
        monkeypatch.setattr(covariance, "WIDE", 8)
    torch.manual_seed(0)
    features = draw(300, {"a": 14, "b": 4, "c": 3})
    change(features)
    found = dissociate(features)
    for one in found.channels.values():
        for values in (one.basis, one.predictability, one.valences, one.gates, one.frame):
            assert bool(torch.isfinite(values).all())
        assert 0 <= float(one.gates.min()) <= float(one.gates.max()) <= 1
        assert 0 <= float(one.predictability.min()) <= float(one.predictability.max()) <= 1
    invariant, specific = found.split(features)
    whitened = found.whiten(features)
    for name, back in found.reconstruct(invariant, specific).items():
        size = found.coherence.whitenings[name].scale + features[name].double().abs().amax(0)
        assert float(((back - features[name]).abs() / size).max()) < 1e-10
        total = invariant[name] ** 2 + specific[name] ** 2
        torch.testing.assert_close(total, whitened[name] ** 2, rtol=1e-12, atol=1e-12)
    assert bool(torch.isfinite(found.conflict(features)).all())


def test_a_constant_channel_is_specific():
    features = draw(800)
    features["a"][:, 4] = 5.0
    found = dissociate(features)
    assert float(found.coherence.predictability("a")[4, 4]) < 1e-20
    one = found.channels["a"]
    assert float(one.basis[one.gates > 0.5][:, 4].abs().max()) < 1e-10


@pytest.mark.parametrize("unit", [1.0, -1e12, 1e-12])
def test_duplicated_channels_do_not_count_twice(unit):
    features = {name: values.double() for name, values in draw(1500).items()}
    once = dissociate(features)
    twice = dissociate(features | {"a": torch.cat([features["a"], unit * features["a"]], dim=-1)})
    for name in DIMS:
        assert twice.channels[name].invariant_dimension == pytest.approx(3, abs=0.05)
        expected = once.channels[name].predictability[:3]
        # Shrinkage acts on twice as many channels.
        torch.testing.assert_close(twice.channels[name].predictability[:3], expected, rtol=0, atol=5e-3)


def test_precision_of_the_features_does_not_matter():
    features = {name: values.half().float() for name, values in draw(700).items()}
    assert_same(
        dissociate(features), dissociate({name: values.double() for name, values in features.items()})
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_everything_stays_on_the_device_of_the_features():
    features = draw(700, {"a": 1100, "b": 10})
    there = {name: values.cuda() for name, values in features.items()}
    found, expected = dissociate(chunks(there, 300)), dissociate(features)
    for name, one in found.channels.items():
        assert {one.gates.device.type, one.basis.device.type, one.frame.device.type} == {"cuda"}
        torch.testing.assert_close(one.gates.cpu(), expected.channels[name].gates, rtol=0, atol=1e-7)
    assert found.conflict(there).device.type == "cuda"
    ranking = found.retrieve({"a": there["a"]}, {"b": there["b"]})
    assert ranking.indices.device.type == "cuda"
    assert found.shared_by()["a"].directions.device.type == "cuda"


GOOD = {"a": torch.randn(6, 2), "b": torch.randn(6, 3)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (iter([GOOD]), "this iterator ends after once: give a function"),
        ([GOOD, {"a": GOOD["a"]}], r"chunk 1: features: at least two modalities are needed, got \['a'\]"),
        ([GOOD, {"a": GOOD["a"], "b": GOOD["a"]}], r"chunk 1: features: channels must be \{'a': 2, 'b': 3\}"),
        (
            [GOOD, {"a": GOOD["a"], "b": GOOD["b"][:2]}],
            "chunk 1: features: every modality must have the same",
        ),
        ([GOOD, {"a": GOOD["a"], "b": GOOD["b"] * torch.inf}], r"chunk 1: features\['b'\] must be finite"),
        ([{"a": GOOD["a"] * 1e20, "b": GOOD["b"].double() * 1e160}], "finite and at most 1e[+]150"),
        ([{"a": [1.0], "b": GOOD["b"]}], r"features\['a'\] must be \(samples, channels\), got list"),
        ([torch.ones(3, 2)], "at least two modalities are needed, got Tensor"),
        (
            [(GOOD, {"z": torch.ones(6).bool()})],
            r"present\['z'\] must be booleans \(samples,\) of a modality",
        ),
        ([(GOOD, {"a": torch.zeros(6).bool()})], r"at least two samples are needed, got \{'a': 0, 'b': 6\}"),
        (
            [(GOOD, {"a": torch.arange(6) < 3, "b": torch.arange(6) > 2})],
            "at least two samples must have both 'a' and 'b', got 0",
        ),
        ([], "at least two samples"),
    ],
)
def test_chunks_that_do_not_fit_are_named(source, message):
    with pytest.raises(ValueError, match=message):
        dissociate(source)


def test_chunks_must_be_the_same_both_times():
    turns = iter([[GOOD, GOOD], [GOOD]])
    with pytest.raises(ValueError, match="the chunks must be the same both times"):
        dissociate(lambda: next(turns))
    with pytest.raises(ValueError, match="present: chunks bring their own"):
        dissociate([GOOD], present={})
