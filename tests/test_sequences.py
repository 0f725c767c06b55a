"""Sequences from the file to the report: whole where a layer takes steps, and nothing of the padding anywhere."""

import math
from functools import partial

import pytest
import torch

from fusion.data.conflict import with_conflicts
from fusion.data.datasets import shared_private
from fusion.data.feature_file import load_features, save_features
from fusion.data.features import Features
from fusion.evaluation.comparison import compare
from fusion.evaluation.cost import flops
from fusion.evaluation.scores import evaluate
from fusion.layers.cell_gmf import CellGMF
from fusion.layers.cross_attention import CrossAttention
from fusion.layers.gmf import GMF
from fusion.layers.mbt import MBT
from fusion.layers.perceiver import Perceiver
from fusion.layers.plain import Concatenation
from fusion.layers.presence import valid_steps
from fusion.layers.registry import find_layer
from fusion.layers.stacked import Stacked
from fusion.training.batch import Batch, batch_of, chunks
from fusion.training.loop import train
from fusion.training.objective import step_loss
from fusion.training.recipe import Recipe
from fusion.training.run import build_model, load_run
from fusion.training.task import Task

DIMS = {"a": 4, "b": 6, "c": 3}
QUICK = Recipe(epochs=2, batch_size=32, hidden=8)
LEARN = Recipe(epochs=18, batch_size=24, hidden=16, each_alone=False, random_subsets=False)
SMALL = {"width": 16, "heads": 2, "depth": 1}
MAKERS = {
    "mbt": partial(MBT, **SMALL),
    "perceiver": partial(Perceiver, **SMALL),
    "cross-attention": partial(CrossAttention, **SMALL),
    "g-mbt": lambda dims: Stacked(GMF(dims), partial(MBT, **SMALL)),
    "gmf": GMF,
    "concat": Concatenation,
}


@pytest.fixture(scope="module")
def features():
    """Two sequences of mixed lengths with gaps, and a vector."""
    made, _ = shared_private(160, DIMS, shared=3, private=2, noise=0.5, classes=3, steps=6, missing=0.2)
    made.modalities["c"] = made.modalities["c"][:, 0]
    del made.lengths["c"]
    return made.with_split(0)


def padded(features, garbage, more=0):
    """The same sequences with garbage behind their ends, and more of it."""
    modalities = dict(features.modalities)
    for name, steps in features.lengths.items():
        longer = torch.nn.functional.pad(modalities[name], (0, 0, 0, more))
        valid = valid_steps(steps, longer.shape[1])[..., None]
        modalities[name] = torch.where(valid, longer, garbage)
    return Features(modalities, features.lengths, features.label, features.split, features.present)


def test_padding_reaches_nothing(features):
    recipe = Recipe(epochs=1, batch_size=48, hidden=8, extractor=5)
    for layer in ("g-mbt", "gmf"):
        run = train(MAKERS[layer], features, recipe=recipe, progress=False)
        for garbage, more in ((torch.nan, 0), (torch.inf, 7)):
            other = padded(features, garbage, more)
            assert train(MAKERS[layer], other, recipe=recipe, progress=False).history == run.history
            assert torch.equal(run.logits(other), run.logits(features))


@pytest.mark.parametrize("layer", ["g-mbt", "perceiver", "gmf", "late"])
@pytest.mark.parametrize("extractor", [None, 5])
def test_the_loss_of_a_batch_is_that_of_its_samples(features, layer, extractor):
    """Without random subsets, every sample counts on its own: as long as it is, with what it has."""
    recipe = Recipe(hidden=8, extractor=extractor, reconstruction_weight=0.0, random_subsets=False)
    task, given = Task.of(features), features.rows(torch.arange(12))
    model = build_model(find_layer(layer)(DIMS), task, recipe, tuple(features.steps)).double()
    like = torch.zeros(1, dtype=torch.float64)
    model(*batch_of(features, torch.arange(100), like))  # some statistics
    model.eval()
    loss, logits = step_loss(model, batch_of(given, torch.arange(12), like), given.label, task, recipe)
    whole, alone = [], {name: [] for name in DIMS}
    for row, label in enumerate(given.label):
        have = [name for name in DIMS if name not in given.present or given.present[name][row]]
        found = model(*one_sample(given, row, have)).logits
        torch.testing.assert_close(found, logits[row : row + 1], rtol=1e-10, atol=1e-10)
        whole.append(task.errors(found, label[None]))
        for name in have:
            found = model(*one_sample(given, row, [name])).logits
            alone[name].append(task.errors(found, label[None]))
    expected = torch.cat(whole).mean() + sum(torch.cat(errors).mean() for errors in alone.values()) / 3
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)


def one_sample(features, row, have):
    """A batch of one sample, whose sequences end where they end; those it has not are of NaN, with three steps."""
    values, lengths = {}, {}
    for name in DIMS:
        steps = features.lengths[name][row] if name in have and name in features.lengths else torch.tensor(3)
        own = features.modalities[name][row].double()
        if name in features.lengths:
            lengths[name] = steps[None]
            own = own[:steps]
        values[name] = own[None] if name in have else torch.full((1, *own.shape), torch.nan).double()
    return Batch(values, {name: torch.tensor([name in have]) for name in DIMS}, lengths)


def steps_that_cancel():
    """Steps ±d of one of two directions d, half with either sign: their mean is zero in every sample."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(240) % 2
    half = 1 + torch.randint(3, (240,), generator=generator)
    sign = torch.tensor([1.0, -1.0]).repeat(3)
    steps = sign[:, None] * torch.eye(2)[label][:, None]
    noise = 0.1 * torch.randn(240, 3, 2, generator=generator).repeat_interleave(2, dim=1)
    made = {"s": steps + sign[:, None] * noise, "v": torch.randn(240, 3, generator=generator)}
    return Features(made, {"s": 2 * half}, label).with_split(0)


def steps_in_an_order():
    """The same two steps in every sample; the label is which comes first."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(240) % 2
    first = torch.eye(2)[label]
    steps = torch.stack([first, 1 - first], dim=1) + 0.1 * torch.randn(240, 2, 2, generator=generator)
    return Features({"s": steps, "v": torch.randn(240, 3, generator=generator)}, label=label).with_split(0)


@pytest.mark.parametrize("layer", MAKERS)
def test_what_only_the_steps_tell_is_learnt_by_layers_of_tokens(layer):
    made = steps_that_cancel()
    assert made.pooled().modalities["s"].abs().max() < 1e-6
    run = train(MAKERS[layer], made, recipe=LEARN, progress=False)
    # Of 48 test samples chance gets half right, with a standard deviation of 0.07.
    found = evaluate(run, made)["all"]["accuracy"]
    assert found > 0.95 if run.model.layer.tokens else found < 0.72


def test_what_only_their_order_tells_is_learnt_by_recurrent_extractors():
    made, recurrent = steps_in_an_order(), Recipe(**vars(LEARN) | {"extractor": 16})
    for layer, recipe in (("concat", recurrent), ("cross-attention", recurrent), ("cross-attention", LEARN)):
        found = evaluate(train(MAKERS[layer], made, recipe=recipe, progress=False), made)["all"]["accuracy"]
        assert found > 0.95 if recipe.extractor else found < 0.72


@pytest.mark.parametrize("layer", ["mbt", "g-mbt", "gmf"])
def test_extractors_give_steps_to_layers_of_tokens(features, layer):
    model = build_model(MAKERS[layer](DIMS), Task.of(features), Recipe(extractor=5), ("a", "b"))
    encoded = model.encode(*batch_of(features, torch.arange(9), torch.zeros(())))
    steps = [features.lengths["a"][:9].max()] if model.layer.tokens else []
    assert encoded["a"].shape == (9, *steps, 4)
    assert encoded["c"].shape == (9, 3)


def test_random_subsets_and_modalities_alone_leave_sequences_out_whole(features):
    layer = MAKERS["mbt"](DIMS)
    seen = []
    original = layer.fuse
    layer.fuse = lambda given, present: (seen.append(present), original(given, present))[1]
    train(layer, features, recipe=Recipe(epochs=1, batch_size=10_000, hidden=8, keep="best"), progress=False)
    training = features.train
    whole, patterns = seen[:2]
    assert whole["a"].shape == (len(training), 6)
    assert patterns["a"].shape == (4 * len(training), 6)
    counts = patterns["a"].sum(-1).reshape(4, -1)
    own = whole["a"].sum(-1)
    assert ((counts == 0) | (counts == own)).all()
    assert sorted(own.tolist()) == sorted((training.lengths["a"] * training.present["a"]).tolist())
    only_a, only_b = counts[1], counts[2]
    assert torch.equal(only_a, own)
    lacks_b = patterns["b"].reshape(4, -1, 6)[2].sum(-1) == 0
    assert torch.equal(only_b, torch.where(lacks_b, own, 0))


def test_a_run_is_read_again_with_its_sequences(features, tmp_path):
    recipe = Recipe(epochs=1, batch_size=48, hidden=8, extractor=5, mixed_precision=True)
    save_features(tmp_path / "features.safetensors", features)
    again = load_features(tmp_path / "features.safetensors", list(DIMS))
    run = train("perceiver", features, recipe=recipe, out=tmp_path / "run", progress=False)
    loaded = load_run(tmp_path / "run")
    assert loaded.sequences == run.sequences == ("a", "b")
    assert torch.equal(loaded.logits(again), run.logits(features))
    assert evaluate(loaded, again) == evaluate(run, features)
    assert all(math.isfinite(epoch.train_loss) for epoch in run.history)
    with pytest.raises(
        ValueError, match=r"the sequences of the training \(a, b\), got none; `pooled\(\)` makes"
    ):
        loaded.predict(features.pooled())
    reordered = GMF(dict(reversed(DIMS.items())))
    assert len(train(reordered, features, recipe=QUICK, progress=False).predict(features)) == 160
    vectors = train("concat", features.pooled(), recipe=QUICK, progress=False)
    with pytest.raises(ValueError, match=r"the sequences of the training \(none\), got a, b"):
        vectors.predict(features)


def test_samples_are_predicted_the_same_in_any_chunk(features, monkeypatch):
    run = train(MAKERS["g-mbt"], features, recipe=QUICK, progress=False)
    at_once = run.logits(features)
    monkeypatch.setattr("fusion.training.batch.CHUNK", 240)
    assert [len(rows) for rows in chunks(features, 32)] == [40, 40, 40, 40]
    assert [len(rows) for rows in chunks(features, 64)] == [64, 64, 32]
    torch.testing.assert_close(run.logits(features), at_once)


def test_reports_of_sequences(features):
    recipe = Recipe(epochs=1, batch_size=48, hidden=8, extractor=4)
    layers = {"g-mbt": MAKERS["g-mbt"], "cell": CellGMF}
    found = compare(features, layers, recipe=recipe, seeds=1, diagnostics=True, progress=False)
    for layer, figures in found.diagnostics.items():
        assert set(figures) >= {"encoder damage", "origin of invariant", "mutual information", "R²"}
        assert all(math.isfinite(value) for values in figures.values() for value in values)
        assert list(found.scores[layer])[-1] == "only c"
    assert "gradient alignment" in found.diagnostics["g-mbt"]
    model = build_model(MAKERS["g-mbt"](DIMS), Task.of(features), recipe, ("a", "b"))
    assert found.flops["g-mbt"] == flops(model, {"a": 6, "b": 6}) > flops(model, {"a": 1, "b": 1})
    assert found.times["g-mbt"] > 1


def test_sequences_are_found_and_contradicted(features):
    made, _ = shared_private(240, DIMS, shared=4, private=1, noise=0.3, classes=3, steps=4, seed=1)
    made = made.with_split(0)
    pairs = Features(made.modalities, made.lengths, split=made.split)
    recipe = Recipe(epochs=12, batch_size=48, hidden=32)
    run = train(MAKERS["cross-attention"], pairs, recipe=recipe, task="retrieval", progress=False)
    assert evaluate(run, pairs)["all"]["recall@10"] > 2 * 10 / len(made.test)
    conflicts = with_conflicts(made)
    source = torch.cdist(conflicts.modalities["a"][:, 0], made.modalities["a"][:, 0]).argmin(1)
    assert torch.equal(conflicts.lengths["a"], made.lengths["a"][source])
    run = train(MAKERS["mbt"], made, recipe=QUICK, task="conflict", progress=False)
    assert list(evaluate(run, made)["all"]) == ["auc", "accuracy", "macro_f1"]
