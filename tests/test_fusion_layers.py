"""The contract that every layer in the registry keeps."""

import pytest
import torch

from fusion.layers.layer import Fused, FusionLayer
from fusion.layers.presence import mean_over_present, only, random_subsets, without, zero_absent
from fusion.layers.registry import LAYERS, find_layer

DIMS = {"audio": 5, "video": 12, "text": 7, "pose": 3}


def dims_of(modalities):
    return dict(list(DIMS.items())[:modalities])


def make(name, dims=None, dtype=torch.float32):
    """A layer with reproducible weights; one that measures its features has seen some."""
    dims = dims_of(3) if dims is None else dims
    torch.manual_seed(0)
    layer = find_layer(name)(dims)
    if dtype == torch.float64:
        layer.double()
    if hasattr(layer, "fit"):
        layer.fit(draw(dims, (60,), dtype, seed=7))
    return layer


def draw(dims, batch, dtype=torch.float32, seed=1):
    """Random features that have something in common."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(*batch, 1, generator=generator, dtype=dtype)
    return {
        name: torch.randn(*batch, length, generator=generator, dtype=dtype) + common
        for name, length in dims.items()
    }


def everything(out):
    """All numbers of a result, by name."""
    parts = {"fused": out.fused, "invariant": out.invariant, "specific": out.specific, "loss": out.losses}
    return {f"{part} {name}": value for part, values in parts.items() for name, value in values.items()}


def assert_same(first, second, **tolerance):
    first, second = everything(first), everything(second)
    assert list(first) == list(second)
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], msg=lambda text, n=name: f"{n}: {text}", **tolerance
        )


@pytest.fixture(params=list(LAYERS))
def name(request):
    return request.param


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("batch", [(), (6,), (4, 3)], ids=str)
def test_shapes(name, modalities, batch):
    dims = dims_of(modalities)
    layer = make(name, dims)
    out = layer(draw(dims, batch))
    assert {entry: value.shape for entry, value in out.fused.items()} == {
        entry: (*batch, width) for entry, width in layer.fused_dims.items()
    }
    assert out.concatenated().shape == (*batch, layer.out_features)
    assert all(loss.shape == () for loss in out.losses.values())
    for part in (out.invariant, out.specific):
        assert part == {} or list(part) == list(dims)
        assert all(value.shape[:-1] == batch for value in part.values())
    assert all(torch.isfinite(value).all() for value in everything(out).values())


def test_batch_axes_are_only_an_arrangement(name):
    layer, features = make(name).eval(), draw(dims_of(3), (4, 3))
    arranged, flat = layer(features), layer({m: f.flatten(0, 1) for m, f in features.items()})
    torch.testing.assert_close(arranged.concatenated().flatten(0, 1), flat.concatenated())
    single = layer({m: f[2, 1] for m, f in features.items()})
    torch.testing.assert_close(arranged.concatenated()[2, 1], single.concatenated())


def test_order_of_keys_is_irrelevant(name):
    layer, features = make(name), draw(dims_of(3), (6,))
    present = random_subsets(list(features), 6, torch.device("cpu"))
    backwards = (dict(reversed(features.items())), dict(reversed(present.items())))
    assert_same(layer(features, present), layer(*backwards), rtol=0, atol=0)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_absent_samples_influence_nothing(name, garbage):
    layer, features = make(name), draw(dims_of(3), (9,))
    torch.manual_seed(3)
    present = random_subsets(list(features), 9, torch.device("cpu"))
    spoilt = {
        m: torch.where(present[m][:, None], f, torch.full_like(f, garbage)) for m, f in features.items()
    }
    assert_same(layer(spoilt, present), layer(features, present), rtol=0, atol=0)


def test_absent_samples_influence_no_gradient(name):
    layer, present = make(name), only("video", list(dims_of(3)), [6], torch.device("cpu"))
    features = draw(dims_of(3), (6,))
    features["audio"][:] = torch.nan
    for values in features.values():
        values.requires_grad_()
    out = layer(features, present)
    sum([out.concatenated().square().sum(), *out.losses.values()]).backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    assert not features["audio"].grad.any()
    assert features["video"].grad.any()


def test_a_sample_is_fused_the_same_in_any_company(name):
    layer, features = make(name).eval(), draw(dims_of(3), (6,))
    present = without("audio", list(features), [6], torch.device("cpu"))
    mixed = {m: p.clone() for m, p in present.items()}
    mixed["audio"][3:] = True
    together = layer(features, mixed).concatenated()
    torch.testing.assert_close(together[:3], layer(features, present).concatenated()[:3])
    torch.testing.assert_close(together[3:], layer(features).concatenated()[3:])


def test_presence_left_out_means_present(name):
    layer, features = make(name), draw(dims_of(3), (6,))
    everywhere = {m: torch.ones(6, dtype=torch.bool) for m in features}
    assert_same(layer(features), layer(features, everywhere), rtol=0, atol=0)
    assert_same(layer(features), layer(features, {"audio": everywhere["audio"]}), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept(name, dtype):
    out = make(name, dtype=dtype)(draw(dims_of(3), (6,), dtype))
    assert {value.dtype for value in everything(out).values()} == {dtype}


def test_weights_survive_saving(name):
    layer, features = make(name), draw(dims_of(3), (6,))
    torch.manual_seed(99)
    other = find_layer(name)(dims_of(3))
    other.load_state_dict(layer.state_dict())
    assert_same(layer.eval()(features), other.eval()(features), rtol=0, atol=0)


def test_seed_decides_everything(name):
    features = draw(dims_of(3), (6,))
    assert_same(make(name)(features), make(name)(features), rtol=0, atol=0)


def test_features_are_left_as_they_were(name):
    layer, features = make(name), draw(dims_of(3), (6,))
    copies = {m: f.clone() for m, f in features.items()}
    layer(features, without("audio", list(features), [6], torch.device("cpu")))
    assert list(features) == list(copies)
    assert all(torch.equal(features[m], copies[m]) for m in features)


WRONG_FEATURES = {
    "missing": (
        lambda f: f.pop("video"),
        "features must hold the modalities 'audio', 'video', 'text', got 'audio', 'text'; say with `present`",
    ),
    "unexpected": (lambda f: f.update(smell=torch.ones(6, 2)), "got 'audio', 'video', 'text', 'smell'"),
    "channels": (
        lambda f: f.update(video=torch.ones(6, 11)),
        r"features\['video'\] must have 12 channels on its last axis, got the shape \(6, 11\)",
    ),
    "no axis": (lambda f: f.update(video=torch.tensor(1.0)), r"12 channels .* got the shape \(\)"),
    "batch axes": (
        lambda f: f.update(video=torch.ones(5, 12)),
        r"features must have the same batch axes in every modality, got audio \(6,\), video \(5,\)",
    ),
    "integers": (
        lambda f: f.update(video=torch.ones(6, 12, dtype=torch.int64)),
        r"features\['video'\] must be of floating point, got torch.int64",
    ),
    "dtypes": (
        lambda f: f.update(video=torch.ones(6, 12).double()),
        "features must have the same dtype in every modality, got audio torch.float32, video torch.float64",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG_FEATURES.values(), ids=WRONG_FEATURES.keys())
def test_wrong_features_are_named(name, spoil, message):
    features = draw(dims_of(3), (6,))
    spoil(features)
    with pytest.raises(ValueError, match=message):
        make(name)(features)


WRONG_PRESENCE = {
    "unknown": ({"smell": torch.ones(6).bool()}, "present names 'smell', which is none of 'audio', 'video'"),
    "numbers": ({"audio": torch.ones(6)}, r"present\['audio'\] must be boolean, got torch.float32"),
    "shape": (
        {"audio": torch.ones(6, 1).bool()},
        r"present\['audio'\] must have the shape \(6,\) of the batch, got \(6, 1\)",
    ),
    "nothing": (
        {m: torch.tensor([True, False, True, False, True, True]) for m in dims_of(3)},
        r"present leaves 2 of 6 samples without any modality \(the first at \(1,\)\); at least one",
    ),
}


@pytest.mark.parametrize(("present", "message"), WRONG_PRESENCE.values(), ids=WRONG_PRESENCE.keys())
def test_wrong_presence_is_named(name, present, message):
    with pytest.raises(ValueError, match=message):
        make(name)(draw(dims_of(3), (6,)), present)


WRONG_DIMS = {
    "none": ({}, "dims must name at least (one modality|two modalities), got none"),
    "zero": ({"audio": 5, "video": 0}, r"dims\['video'\] must be an integer of 1 or more, got 0"),
    "negative": ({"audio": -3, "video": 5}, r"dims\['audio'\] must be an integer of 1 or more, got -3"),
    "fraction": ({"audio": 5, "video": 2.5}, r"dims\['video'\] must be an integer of 1 or more, got 2.5"),
    "truth": ({"audio": True, "video": 2}, r"dims\['audio'\] must be an integer of 1 or more, got True"),
    "dotted": ({"au.dio": 5, "video": 2}, "dims: 'au.dio' cannot name a modality"),
    "taken": ({"values": 5, "video": 2}, "dims: 'values' cannot name a modality"),
}


@pytest.mark.parametrize(("dims", "message"), WRONG_DIMS.values(), ids=WRONG_DIMS.keys())
def test_wrong_dims_are_named(name, dims, message):
    with pytest.raises(ValueError, match=message):
        find_layer(name)(dims)


def test_changing_the_dims_afterwards_changes_nothing(name):
    dims = dims_of(2)
    layer = make(name, dims)
    dims["text"] = 7
    assert layer.dims == dims_of(2)


def test_unknown_layer():
    with pytest.raises(ValueError, match=r"layer must be one of gmf, scfae, cell, .*, misa, got 'attention'"):
        find_layer("attention")


def test_a_layer_must_say_how_it_fuses():
    class Incomplete(FusionLayer):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Incomplete(dims_of(2))


def test_concatenation_puts_zeros_for_the_absent():
    features = draw(dims_of(2), (2,))
    present = {"audio": torch.tensor([True, False])}
    expected = torch.cat([features["audio"], features["video"]], dim=-1)
    expected[1, :5] = 0
    assert torch.equal(make("concat", dims_of(2))(features, present).concatenated(), expected)


def test_sum_adds_the_projections_of_those_present():
    layer, features = make("sum"), draw(dims_of(3), (2,))
    present = {"audio": torch.tensor([True, False]), "text": torch.tensor([False, False])}
    expected = features["video"] @ layer.projection["video"].weight.T + layer.projection["video"].bias
    expected[0] += features["audio"][0] @ layer.projection["audio"].weight.T + layer.projection["audio"].bias
    torch.testing.assert_close(layer(features, present).concatenated(), expected)


def test_sum_needs_a_width():
    with pytest.raises(ValueError, match="width must be an integer of 1 or more, got 0"):
        type(make("sum"))(dims_of(2), width=0)


def test_fused_is_concatenated_in_order():
    out = Fused({"b": torch.ones(2, 1), "a": torch.zeros(2, 2)})
    assert out.concatenated().tolist() == [[1, 0, 0], [1, 0, 0]]


def test_random_subsets_are_proper_and_uniform():
    torch.manual_seed(0)
    samples, names = 30_000, list("abcd")
    present = torch.stack(list(random_subsets(names, samples, torch.device("cpu")).values()), dim=-1)
    sizes = present.sum(-1)
    # Each size has probability 1/3, each modality 1/2 (the mean size is 2 of 4), each pair 1/6 of the pairs.
    # The tolerance is five standard deviations of the counts.
    assert sizes.unique().tolist() == [1, 2, 3]
    torch.testing.assert_close(sizes.bincount()[1:] / samples, torch.full((3,), 1 / 3), atol=0.014, rtol=0)
    torch.testing.assert_close(present.float().mean(0), torch.full((4,), 0.5), atol=0.015, rtol=0)
    pairs = present[sizes == 2].float()
    together = (pairs.T @ pairs / len(pairs))[0, 1:]
    torch.testing.assert_close(together, torch.full((3,), 1 / 6), atol=0.02, rtol=0)


def test_patterns_of_presence():
    cpu = torch.device("cpu")
    assert {m: p.tolist() for m, p in only("a", ["a", "b"], [2], cpu).items()} == {
        "a": [True, True],
        "b": [False, False],
    }
    assert {m: p.tolist() for m, p in without("a", ["a", "b"], [1], cpu).items()} == {
        "a": [False],
        "b": [True],
    }


def test_mean_over_present():
    values = torch.tensor([1.0, torch.nan, 5.0])
    assert mean_over_present(values, torch.tensor([True, False, True])) == 3
    assert mean_over_present(values, torch.zeros(3).bool()) == 0


def test_zero_absent_reaches_every_trailing_axis():
    images = torch.full((2, 3, 4, 4), torch.nan)
    images[0] = 1
    assert zero_absent(images, torch.tensor([True, False])).sum() == 48
