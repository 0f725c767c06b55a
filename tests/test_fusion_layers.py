"""The contract that every layer in the registry keeps."""

import io

import pytest
import torch
from torch.autograd import gradcheck

from fusion.layers.layer import Fused, FusionLayer
from fusion.layers.presence import (
    mean_of_valid,
    mean_over_present,
    only,
    random_subsets,
    valid_steps,
    zero_absent,
)
from fusion.layers.registry import LAYERS, find_layer

DIMS = {"audio": 5, "video": 12, "text": 7, "pose": 3, "touch": 9, "smell": 4}
STEPS = {"audio": 4, "video": 2, "text": 5}
CPU = torch.device("cpu")


def without(
    missing: str, names: list[str], batch: list[int], device: torch.device
) -> dict[str, torch.Tensor]:
    """Every modality but one, in every sample."""
    return {name: torch.full(tuple(batch), name != missing, device=device) for name in names}


def dims_of(modalities):
    return dict(list(DIMS.items())[:modalities])


def make(name, dims=None, dtype=torch.float32):
    """A layer with reproducible weights; one that measures its features has seen some."""
    dims = dims_of(3) if dims is None else dims
    torch.manual_seed(0)
    layer = find_layer(name)(dims)
    if dtype == torch.float64:
        layer.double()
    if layer.measured:
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


def draw_sequences(samples=6, dtype=torch.float32):
    """Sequences with unequal numbers of steps, and how many of them are valid."""
    generator = torch.Generator().manual_seed(2)
    lengths = {m: torch.randint(1, steps + 1, (samples,), generator=generator) for m, steps in STEPS.items()}
    features = {
        m: torch.randn(samples, steps, DIMS[m], generator=generator, dtype=dtype)
        for m, steps in STEPS.items()
    }
    return features, lengths


def spoil(features, present, garbage=torch.nan):
    """The same features with garbage where nothing is present."""
    return {
        m: torch.where(present[m].unsqueeze(-1), f, torch.full_like(f, garbage)) for m, f in features.items()
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


def fewest(name):
    """What the layer measures of a modality is how the others predict it, so it needs another."""
    return 2 if name == "cell" else 1


@pytest.mark.parametrize(
    ("modalities", "batch"),
    [(1, (6,)), (2, ()), (2, (6,)), (3, (4, 3)), (4, (6,)), (5, (6,)), (6, (6,))],
    ids=str,
)
def test_shapes(name, modalities, batch):
    dims = dims_of(modalities)
    if modalities < fewest(name):
        with pytest.raises(ValueError, match="dims must name at least two modalities, got 'audio'"):
            find_layer(name)(dims)
        return
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
    present = random_subsets(list(features), 6, CPU)
    backwards = (dict(reversed(features.items())), dict(reversed(present.items())))
    assert_same(layer(features, present), layer(*backwards), rtol=0, atol=0)


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 1e30])
def test_absent_samples_influence_nothing(name, garbage):
    layer, features = make(name), draw(dims_of(3), (9,))
    torch.manual_seed(3)
    present = random_subsets(list(features), 9, CPU)
    spoilt = spoil(features, present, garbage)
    assert_same(layer(spoilt, present), layer(features, present), rtol=0, atol=0)
    layer.eval()
    with torch.no_grad():
        assert_same(layer(spoilt, present), layer(features, present), rtol=0, atol=0)


def test_absent_samples_influence_no_gradient(name):
    layer, present = make(name), only("video", list(dims_of(3)), [6], CPU)
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
    present = without("audio", list(features), [6], CPU)
    mixed = {m: p.clone() for m, p in present.items()}
    mixed["audio"][3:] = True
    together = layer(features, mixed).concatenated()
    torch.testing.assert_close(together[:3], layer(features, present).concatenated()[:3])
    torch.testing.assert_close(together[3:], layer(features).concatenated()[3:])


def test_a_batch_equals_its_samples_one_by_one(name):
    layer, (features, lengths) = make(name, dtype=torch.float64).eval(), draw_sequences(dtype=torch.float64)
    torch.manual_seed(3)
    present = random_subsets(list(features), 6, CPU)
    together = layer(features, present, lengths).concatenated()
    for i in range(6):
        alone = layer(
            {m: f[i] for m, f in features.items()},
            {m: p[i] for m, p in present.items()},
            {m: n[i] for m, n in lengths.items()},
        )
        # Not to the last bit: matrix products sum in another order for another number of rows.
        torch.testing.assert_close(alone.concatenated(), together[i], rtol=1e-12, atol=1e-13)


def test_padded_steps_influence_nothing(name):
    layer, (features, lengths) = make(name), draw_sequences()
    torch.manual_seed(3)
    present = random_subsets(list(features), 6, CPU)
    valid = {m: valid_steps(lengths[m], steps) & present[m][:, None] for m, steps in STEPS.items()}
    expected = layer(features, present, lengths)
    spoilt = {m: values.requires_grad_() for m, values in spoil(features, valid).items()}
    found = layer(spoilt, present, lengths)
    assert_same(found, expected, rtol=0, atol=0)
    sum([found.concatenated().square().sum(), *found.losses.values()]).backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
    assert not any(spoilt[m].grad[~valid[m]].any() for m in STEPS)
    assert all(spoilt[m].grad[valid[m]].any() for m in STEPS)
    # Ten more steps of padding are ten more steps of nothing.
    longer = {m: torch.nn.functional.pad(f, (0, 0, 0, 10), value=torch.nan) for m, f in spoilt.items()}
    assert_same(layer(longer, present, lengths), expected)


def test_a_layer_of_vectors_gets_the_mean_of_the_valid_steps(name):
    layer, (features, lengths) = make(name).eval(), draw_sequences()
    means = {m: torch.stack([f[i, : lengths[m][i]].mean(0) for i in range(6)]) for m, f in features.items()}
    found, pooled = layer(features, None, lengths).concatenated(), layer(means).concatenated()
    assert layer.tokens == (not torch.allclose(found, pooled, rtol=1e-4, atol=1e-5))


def test_a_vector_is_a_sequence_of_one_step(name):
    layer, features = make(name).eval(), draw(dims_of(3), (6,))
    lengths = {m: torch.ones(6, dtype=torch.int64) for m in ("audio", "text")}
    mixed = {m: f.unsqueeze(1) if m in lengths else f for m, f in features.items()}
    assert_same(layer(mixed, None, lengths), layer(features))


def test_a_sequence_without_a_step_is_absent(name):
    layer, (features, lengths) = make(name).eval(), draw_sequences()
    lengths["text"][:2] = 0
    present = {"text": torch.arange(6) >= 2}
    assert_same(layer(features, None, lengths), layer(features, present, lengths), rtol=0, atol=0)


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
    other.load_state_dict(layer.state_dict(), strict=True)
    assert_same(layer.eval()(features), other.eval()(features), rtol=0, atol=0)


def test_on_the_device(name, device):
    layer, features = make(name).to(device), {m: f.to(device) for m, f in draw(dims_of(3), (6,)).items()}
    out = layer(features, without("audio", list(features), [6], device))
    assert {value.device.type for value in everything(out).values()} == {device.type}


def test_compiled_in_one_graph(name):
    torch._dynamo.reset()
    layer, (features, lengths) = make(name, dims_of(2)), draw_sequences()
    del features["text"], lengths["text"]
    present = without("audio", list(features), [6], CPU)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    assert_same(compiled(features, present, lengths), layer(features, present, lengths))


def test_exported_for_any_batch_and_loaded_again(name):
    dims, samples = dims_of(2), torch.export.Dim("samples", min=2)
    layer, file = make(name, dims).eval(), io.BytesIO()
    given = [(draw(dims, (n,)), without("audio", list(dims), [n], CPU)) for n in (4, 9)]
    axes = {m: {0: samples} for m in dims}
    torch.export.save(torch.export.export(layer, given[0], dynamic_shapes=(axes, axes)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for features, present in given:
        assert_same(loaded(features, present), layer(features, present))


@pytest.mark.parametrize("training", [True, False])
def test_autocast_to_bfloat16(name, training):
    layer, features = make(name).train(training), draw(dims_of(3), (6,))
    features["audio"] = features["audio"].bfloat16()  # as from an encoder under autocast
    present = without("video", list(features), [6], CPU)
    exact = layer(features | {"audio": features["audio"].float()}, present).concatenated().detach()
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        out = layer(features, present)
        loss = sum([out.concatenated().float().square().sum(), *out.losses.values()])
    # bfloat16 has 8 significant bits, and some ten roundings follow one another.
    limits = {"rtol": 0.1, "atol": 0.05 * float(exact.abs().max())}
    torch.testing.assert_close(out.concatenated().float(), exact, **limits)
    if training and list(layer.parameters()):
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)


def test_gradients_are_those_of_finite_differences(name):
    dims = {"audio": 3, "video": 4}
    layer, features = make(name, dims, torch.float64), draw(dims, (3,), torch.float64)
    present = {"audio": torch.tensor([True, False, True])}

    def results(audio, video, *_):
        out = layer({"audio": audio, "video": video}, present)
        return out.concatenated(), *out.losses.values()

    given = [values.requires_grad_() for values in features.values()]
    assert gradcheck(results, (*given, *layer.parameters()), fast_mode=True)


def test_seed_decides_everything(name):
    features = draw(dims_of(3), (6,))
    assert_same(make(name)(features), make(name)(features), rtol=0, atol=0)


def test_features_are_left_as_they_were(name):
    layer, features = make(name), draw(dims_of(3), (6,))
    copies = {m: f.clone() for m, f in features.items()}
    layer(features, without("audio", list(features), [6], CPU))
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


WRONG_LENGTHS = {
    "unknown": ({"smell": torch.ones(6).long()}, "lengths names 'smell', which is none of 'audio', 'video'"),
    "numbers": ({"audio": torch.ones(6)}, r"lengths\['audio'\] must be integers, got torch.float32"),
    "shape": (
        {"audio": torch.ones(6, 1).long()},
        r"lengths\['audio'\] must have the shape \(6,\) of the batch, got \(6, 1\)",
    ),
    "too long": (
        {"audio": torch.tensor([1, 2, 5, 1, 1, 1])},
        r"lengths\['audio'\] must be from 0 to the 4 steps of the sequence, got 1 to 5",
    ),
    "negative": ({"audio": torch.full((6,), -1)}, "from 0 to the 4 steps of the sequence, got -1 to -1"),
    "left out": ({"audio": None}, r"same batch axes in every modality, got audio \(6, 4\), video \(6,\)"),
}


@pytest.mark.parametrize(("changed", "message"), WRONG_LENGTHS.values(), ids=WRONG_LENGTHS.keys())
def test_wrong_lengths_are_named(name, changed, message):
    features, lengths = draw_sequences()
    lengths = {m: n for m, n in (lengths | changed).items() if n is not None}
    with pytest.raises(ValueError, match=message):
        make(name)(features, None, lengths)


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
    present = torch.stack(list(random_subsets(names, samples, CPU).values()), dim=-1)
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
    assert {m: p.tolist() for m, p in only("a", ["a", "b"], [2], CPU).items()} == {
        "a": [True, True],
        "b": [False, False],
    }


def test_mean_over_present():
    values = torch.tensor([1.0, torch.nan, 5.0])
    assert mean_over_present(values, torch.tensor([True, False, True])) == 3
    assert mean_over_present(values, torch.zeros(3).bool()) == 0


def test_mean_of_valid():
    values = torch.tensor([[[1.0], [3.0], [torch.nan]], [[torch.nan], [torch.nan], [torch.nan]]])
    assert mean_of_valid(values, valid_steps(torch.tensor([2, 0]), 3)).tolist() == [[2.0], [0.0]]


def test_a_single_modality_is_its_own_subset():
    assert random_subsets(["a"], 5, CPU)["a"].all()


def test_zero_absent_reaches_every_trailing_axis():
    images = torch.full((2, 3, 4, 4), torch.nan)
    images[0] = 1
    assert zero_absent(images, torch.tensor([True, False])).sum() == 48
