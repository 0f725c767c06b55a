"""Training: the recipe's parts, learning, and what cannot be learnt."""

import csv
import math
import statistics
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fusion.data.datasets import digits_views, shared_private
from fusion.data.features import Features
from fusion.evaluation.dependence import explained_variance
from fusion.evaluation.scores import evaluate
from fusion.layers.cell_gmf import CellGMF
from fusion.layers.gmf import GMF
from fusion.layers.mbt import MBT
from fusion.layers.plain import Concatenation, Sum
from fusion.layers.presence import random_subsets
from fusion.layers.registry import LAYERS
from fusion.model import FusionModel
from fusion.randomness import seeded
from fusion.training.batch import Batch
from fusion.training.loop import INITIALISE, VALIDATE, train
from fusion.training.objective import Step, guesses, step_loss
from fusion.training.recipe import Recipe
from fusion.training.run import build_model
from fusion.training.task import Task

DIMS = {"a": 6, "b": 9, "c": 4}
QUICK = Recipe(epochs=4, batch_size=32, hidden=16)


@pytest.fixture(scope="module")
def features():
    """Three modalities that share five latents, which decide between three classes."""
    made, _ = shared_private(240, DIMS, shared=5, private=2, noise=0.2, seed=0, classes=3)
    return made.with_split(0)


class Recording(Concatenation):
    """Remembers every pattern of presence it was asked to fuse under, while training."""

    def __init__(self, dims):
        super().__init__(dims)
        self.patterns = []

    def fuse(self, features, present):
        if self.training:
            self.patterns.append(torch.stack(list(present.values()), dim=-1))
        return super().fuse(features, present)


def patterns_of_a_step(features, **parts):
    layer = Recording(DIMS)
    recipe = Recipe(epochs=1, batch_size=10_000, **parts)
    train(layer, features, recipe=recipe, progress=False)
    return layer.patterns


def test_full_recipe_shows_all_then_subsets_and_each_alone(features):
    whole, incomplete = patterns_of_a_step(features)
    samples = len(features.train)
    assert whole.shape == (samples, 3)
    assert whole.all()
    assert incomplete.shape == (1 + 3, samples, 3)
    assert set(incomplete[0].sum(-1).tolist()) == {1, 2}
    for alone in range(3):
        assert torch.equal(incomplete[1 + alone], torch.eye(3).bool()[alone].expand(samples, 3))


def test_parts_of_the_recipe_switch_off(features):
    samples = len(features.train)
    _, alone = patterns_of_a_step(features, random_subsets=False)
    assert torch.equal(alone, torch.eye(3).bool()[:, None].expand(3, samples, 3))
    _, subsets = patterns_of_a_step(features, each_alone=False)
    assert subsets.shape == (1, samples, 3)
    assert set(subsets.sum(-1).unique().tolist()) == {1, 2}
    (whole,) = patterns_of_a_step(features, random_subsets=False, each_alone=False)
    assert whole.all()
    assert len(FusionModel(Concatenation(DIMS), 2, standardise=True).standardise) == 3
    unscaled = train("concat", features, recipe=Recipe(epochs=1, standardise=False), progress=False)
    assert len(unscaled.model.standardise) == 0


@pytest.mark.parametrize("random", [True, False])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_loss_of_a_step_is_the_documented_sum(features, random, alone, weight):
    recipe = Recipe(random_subsets=random, each_alone=alone, reconstruction_weight=weight)
    task = Task.of(features)
    torch.manual_seed(0)
    model = build_model(GMF(DIMS), task, recipe).eval()
    given, label = features.test.modalities, features.test.label
    with seeded(5):
        loss, logits = step_loss(model, Batch(given, {}, {}), label, task, recipe)

    def task_loss(present):
        return torch.nn.functional.cross_entropy(model(given, present).logits, label)

    with seeded(5):
        subsets = random_subsets(list(DIMS), len(label), label.device)
    expected = task_loss(None)
    if random:
        expected = 0.5 * expected + 0.5 * task_loss(subsets)
    if alone:
        truth = {True: torch.ones(len(label)).bool(), False: torch.zeros(len(label)).bool()}
        expected = expected + sum(task_loss({m: truth[m == n] for m in DIMS}) for n in DIMS) / 3
    expected = expected + weight * model(given).losses["reconstruction"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(logits, model(given).logits)


@pytest.mark.parametrize("name", LAYERS)
def test_a_separable_problem_is_learnt(name):
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(300) % 3
    made = {
        m: 2 * torch.randn(3, length, generator=generator)[label]
        + torch.randn(300, length, generator=generator)
        for m, length in DIMS.items()
    }
    features = Features(made, label=label).with_split(0)
    run = train(name, features, recipe=Recipe(epochs=10, batch_size=32), progress=False)
    assert run.task.accuracy(run.model.eval()(features.test.modalities).logits, features.test.label) > 0.95


@pytest.mark.parametrize("layer", [GMF, Sum, partial(MBT, width=8, heads=2, depth=1)])
def test_a_step_of_training_is_one_graph(features, layer):
    torch._dynamo.reset()
    recipe, task = Recipe(hidden=16, dropout=0.0), Task.of(features)
    samples = torch.arange(24)
    have = {"a": samples % 3 > 0, "b": samples != 0, "c": samples < 1}
    have["c"] = have["c"] | ~(have["a"] | have["b"])  # in one sample only, which has no variance
    batch = Batch({name: values[:24] for name, values in features.modalities.items()}, have, {})
    torch.manual_seed(0)
    subsets, steps = random_subsets(list(DIMS), 24, samples.device), []
    for compiled in (False, True):
        torch.manual_seed(1)
        step = Step(build_model(layer(DIMS), task, recipe), task, recipe)
        optimiser = torch.optim.SGD(step.parameters(), lr=0.1)
        run = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled else step
        for _ in range(2):
            optimiser.zero_grad()
            loss = run(batch, features.label[:24], subsets)
            loss.backward()
            optimiser.step()
        gradients = {f"gradient of {name}": one.grad for name, one in step.named_parameters()}
        steps.append({"loss": loss.detach()} | step.state_dict() | gradients)
    # Two passes a step, one with all modalities; in it a single sample has c, which says nothing of a variance.
    assert steps[0]["model.standardise.a.batches"] == 4
    assert steps[0]["model.standardise.c.batches"] == 2
    for name, values in steps[0].items():
        torch.testing.assert_close(steps[1][name], values, rtol=1e-5, atol=1e-5, msg=name)


def test_history_tells_what_happened(features):
    run = train("gmf", features, recipe=QUICK, progress=False)
    assert [epoch.epoch for epoch in run.history] == [1, 2, 3, 4]
    rates = [0.5 * 5e-3 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert [epoch.learning_rate for epoch in run.history] == pytest.approx(rates)
    assert run.history[-1].train_loss < 0.8 * run.history[0].train_loss
    assert run.kept == 4
    right = run.predict(features.validation) == features.validation.label
    assert run.history[-1].validation_accuracy == pytest.approx(right.double().mean().item())
    task, validation = Task.of(features), features.validation
    with seeded(0, VALIDATE), torch.no_grad():
        loss, _ = step_loss(run.model, Batch(validation.modalities, {}, {}), validation.label, task, QUICK)
    assert run.history[-1].validation_loss == pytest.approx(float(loss))


def test_without_validation_samples(features):
    split = torch.where(features.split == 1, 0, features.split)
    whole = Features(features.modalities, label=features.label, split=split)
    run = train("concat", whole, recipe=QUICK, progress=False)
    assert {(epoch.validation_loss, epoch.validation_accuracy) for epoch in run.history} == {(None, None)}


def test_best_keeps_the_epoch_of_lowest_validation_loss(features):
    recipe = Recipe(
        epochs=8, batch_size=32, learning_rate=0.05, schedule="constant", weight_decay=0.0, keep="best"
    )
    noise = Features(features.modalities, label=features.label[torch.randperm(240)], split=features.split)
    run = train("gmf", noise, recipe=recipe, progress=False)
    losses = [epoch.validation_loss for epoch in run.history]
    assert run.kept == 1 + losses.index(min(losses)) < 8
    validation = noise.validation
    with seeded(0, VALIDATE), torch.no_grad():
        loss, _ = step_loss(
            run.model, Batch(validation.modalities, {}, {}), validation.label, run.task, recipe
        )
    assert float(loss) == pytest.approx(min(losses))


def test_batches_cover_every_sample_once_and_are_of_nearly_equal_size(features):
    layer = Recording(DIMS)
    recipe = Recipe(epochs=1, batch_size=60, random_subsets=False, each_alone=False)
    train(layer, features, recipe=recipe, progress=False)
    sizes = [len(pattern) for pattern in layer.patterns]
    assert sum(sizes) == len(features.train) == 145
    assert sizes == [49, 48, 48]


def test_every_epoch_draws_anew(features):
    layer = Recording(DIMS)
    train(layer, features, recipe=Recipe(epochs=2, batch_size=10_000), progress=False)
    (_, first), (_, second) = layer.patterns[:2], layer.patterns[2:]
    assert not torch.equal(first[0], second[0])


def test_seed_decides_everything_and_disturbs_nothing(features):
    torch.manual_seed(11)
    undisturbed = torch.rand(3)
    torch.manual_seed(11)
    first = train("gmf", features, recipe=QUICK, seed=3, progress=False)
    assert torch.equal(torch.rand(3), undisturbed)
    second = train("gmf", features, recipe=QUICK, seed=3, progress=False)  # another global state by now
    other = train("gmf", features, recipe=QUICK, seed=4, progress=False)
    assert first.history == second.history
    assert first.history != other.history
    by_function = train(GMF, features, recipe=QUICK, seed=3, progress=False)
    assert first.history == by_function.history


def test_negative_seed(features):
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        train("gmf", features, seed=-1, progress=False)


def test_the_papers_recipe_trains(features):
    run = train("gmf", features, recipe=Recipe.paper(epochs=3), progress=False)
    assert (run.recipe.optimiser, run.recipe.learning_rate, run.recipe.batch_size) == ("sgd", 0.01, 64)
    assert isinstance(run.model.head.decision, torch.nn.Linear)
    assert run.history[-1].train_loss < run.history[0].train_loss


def test_plateau_lowers_the_learning_rate(features):
    recipe = Recipe(epochs=12, schedule="plateau", learning_rate=0.05, hidden=16)
    noise = Features(features.modalities, label=features.label[torch.randperm(240)], split=features.split)
    rates = [epoch.learning_rate for epoch in train("concat", noise, recipe=recipe, progress=False).history]
    assert rates[0] == 0.05
    assert rates[-1] == pytest.approx(0.005) or rates[-1] == pytest.approx(0.0005)


def test_warm_up_rises_step_by_step(features, monkeypatch):
    rates = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *arguments: (rates.append(self.param_groups[0]["lr"]), original(self, *arguments))[1],
    )
    recipe = Recipe(epochs=4, batch_size=49, warm_up=2, schedule="constant", learning_rate=0.06)
    run = train("concat", features, recipe=recipe, progress=False)
    assert rates == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06] + [0.06] * 6)
    assert [epoch.learning_rate for epoch in run.history] == pytest.approx([0.03, 0.06, 0.06, 0.06])


def test_warm_up_multiplies_the_schedule(features):
    recipe = Recipe(epochs=4, batch_size=32, warm_up=2)
    rates = [
        epoch.learning_rate for epoch in train("concat", features, recipe=recipe, progress=False).history
    ]
    cosine = [0.5 * 5e-3 * (1 + math.cos(math.pi * epoch / 4)) for epoch in range(4)]
    assert rates == pytest.approx([cosine[0] / 2, *cosine[1:]])


def test_patience_ends_a_training_that_no_longer_improves(features):
    noise = Features(features.modalities, label=features.label[torch.randperm(240)], split=features.split)
    recipe = Recipe.modern(epochs=40, patience=3, warm_up=0, learning_rate=0.05)
    run = train("gmf", noise, recipe=recipe, progress=False)
    losses = [epoch.validation_loss for epoch in run.history]
    assert len(losses) == run.kept + 3 < 40
    assert losses[run.kept - 1] == min(losses)
    split = torch.where(features.split == 1, 0, features.split)
    with pytest.raises(ValueError, match="patience 3 needs validation samples"):
        train(
            "gmf", Features(noise.modalities, label=noise.label, split=split), recipe=recipe, progress=False
        )


def test_clipping_limits_the_step(features):
    def moved(clip):
        recipe = Recipe(
            epochs=1, batch_size=1000, optimiser="sgd", learning_rate=1.0, weight_decay=0.0, clip=clip
        )
        run = train("sum", features, recipe=recipe, progress=False)
        with seeded(0, INITIALISE):
            start = build_model(Sum(DIMS), run.task, recipe)
        pairs = zip(run.model.parameters(), start.parameters(), strict=True)
        return torch.cat([(one - other).flatten() for one, other in pairs]).norm().item()

    assert moved(None) > 0.2
    assert moved(0.05) == pytest.approx(0.05, rel=1e-3)


def test_mixed_precision_learns_as_well_and_keeps_single_weights(features):
    recipe = Recipe(epochs=6, batch_size=32, hidden=16, extractor=8)
    whole = train("gmf", features, recipe=recipe, progress=False)
    mixed = train(
        "gmf", features, recipe=Recipe(**asdict(recipe) | {"mixed_precision": True}), progress=False
    )
    assert {values.dtype for values in mixed.model.state_dict().values()} == {torch.float32}
    first, last = whole.history[-1].train_loss, mixed.history[-1].train_loss
    assert first != last
    assert last == pytest.approx(first, rel=0.05)


def test_half_precision_ends_at_the_loss():
    task, label = Task("regression", 1, mean=100.0, scale=3.0), torch.tensor([100.0, 103.03, 97.0])
    logits = torch.tensor([[0.0], [1.0], [-1.0]], dtype=torch.bfloat16)
    torch.testing.assert_close(task.errors(logits, label), torch.tensor([0, 1e-4, 0.0]), atol=1e-6, rtol=0.01)


def test_logs_tell_the_history(features, tmp_path):
    run = train("concat", features, recipe=QUICK, out=tmp_path, tensorboard=True, progress=False)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in rows] == [
        asdict(epoch) for epoch in run.history
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    written = [(event.step, event.value) for event in events.Scalars("train_loss")]
    assert written == [(epoch.epoch, pytest.approx(epoch.train_loss)) for epoch in run.history]
    with pytest.raises(ValueError, match="tensorboard needs a folder"):
        train("concat", features, recipe=QUICK, tensorboard=True, progress=False)


def test_what_is_missing_in_the_features_is_missing_in_training(features):
    gaps = torch.arange(240) % 3 > 0
    present = {"a": gaps, "b": torch.arange(240) % 4 > 0}
    made = Features(features.modalities, label=features.label, split=features.split, present=present)
    layer = Recording(DIMS)
    train(layer, made, recipe=Recipe(epochs=1, batch_size=10_000), progress=False)
    whole, incomplete = layer.patterns
    have = torch.stack([made.train.present["a"], made.train.present["b"], torch.ones(145).bool()], dim=-1)
    assert torch.equal(
        torch.sort(whole.long() @ torch.tensor([1, 2, 4]))[0],
        torch.sort(have.long() @ torch.tensor([1, 2, 4]))[0],
    )
    assert (incomplete <= whole).all()
    assert incomplete.any(-1).all()
    # A sample that lacks a modality has no part in the loss of that one alone.
    task, recipe = Task.of(made), Recipe(all_present=False, random_subsets=False)
    model = build_model(Concatenation(DIMS), task, recipe).eval()
    test = made.test
    loss, _ = step_loss(model, Batch(test.modalities, test.present, {}), test.label, task, recipe)
    expected = []
    for name in DIMS:
        rows = test.present.get(name, torch.ones(len(test)).bool())
        only = {m: torch.full((int(rows.sum()),), m == name) for m in DIMS}
        given = {m: values[rows] for m, values in test.modalities.items()}
        expected.append(torch.nn.functional.cross_entropy(model(given, only).logits, test.label[rows]))
    torch.testing.assert_close(loss, torch.stack(expected).mean())


def test_gaps_may_hold_anything(features):
    gaps = torch.arange(240) % 3 > 0
    holes = features.modalities | {"a": torch.where(gaps[:, None], features.modalities["a"], torch.nan)}
    one, other = (
        Features(values, label=features.label, split=features.split, present={"a": gaps})
        for values in (features.modalities, holes)
    )
    for name in ("cell", "gmf"):
        runs = [train(name, made, recipe=QUICK, progress=False) for made in (one, other)]
        assert runs[0].history == runs[1].history


def test_a_layer_with_fit_sees_the_training_modalities_first(features):
    class Measuring(Concatenation):
        standardises = measured = True
        seen = None

        def fit(self, modalities):
            assert self.seen is None
            self.seen = {name: values.clone() for name, values in modalities.items()}

        def fuse(self, given, present):
            return super().fuse(
                {name: values - self.seen[name].mean(0) for name, values in given.items()}, present
            )

    layer = Measuring(DIMS)
    train(layer, features, recipe=QUICK, progress=False)
    assert all(torch.equal(layer.seen[name], features.train.modalities[name]) for name in DIMS)


def test_regression_is_fitted_and_reported_in_the_units_of_the_label(features):
    label = 5000 + 300 * features.modalities["a"].sum(-1).double()
    numbers = Features(features.modalities, label=label, split=features.split)
    run = train("concat", numbers, recipe=Recipe(epochs=25, batch_size=32), progress=False)
    predicted, truth = run.predict(numbers.test), numbers.test.label
    assert torch.corrcoef(torch.stack([predicted.double(), truth]))[0, 1] > 0.95
    assert (predicted - truth).abs().mean() < 0.4 * truth.std()
    assert run.history[-1].validation_accuracy is None
    assert run.task.mean == pytest.approx(float(numbers.train.label.mean()))


def test_sequences_are_pooled():
    steps = torch.randn(60, 4, 3)
    label = (steps[:, :2].mean(1)[:, 0] > 0).long()
    made = {"s": steps, "a": torch.randn(60, 2)}
    sequences = Features(made, {"s": torch.full((60,), 2)}, label, torch.arange(60) % 3)
    pooled = Features(made | {"s": steps[:, :2].mean(1)}, label=label, split=torch.arange(60) % 3)
    first = train("concat", sequences, recipe=QUICK, progress=False)
    second = train("concat", pooled, recipe=QUICK, progress=False)
    assert [e.train_loss for e in first.history] == pytest.approx([e.train_loss for e in second.history])
    assert torch.equal(first.predict(sequences), second.predict(pooled))


def test_labels_that_cannot_be_learnt(features):
    def given(label):
        return Features(features.modalities, label=label, split=features.split)

    with pytest.raises(ValueError, match="features have no label"):
        train("gmf", given(None), progress=False)
    with pytest.raises(ValueError, match="label must hold two classes or more, got class 0 alone"):
        train("gmf", given(torch.zeros(240).long()), progress=False)
    with pytest.raises(ValueError, match=r"label must vary between training samples, got 2\.5"):
        train("gmf", given(torch.full((240,), 2.5)), progress=False)


def test_modalities_that_do_not_fit(features):
    with pytest.raises(ValueError, match="dims must name at least two modalities, got 'a'"):
        train("cell", features.select(["a"]), progress=False)
    with pytest.raises(ValueError, match="features must hold the modalities 'a', 'b', 'c', got 'a', 'b'"):
        train(GMF(DIMS), features.select(["a", "b"]), progress=False)


def test_a_measured_layer_is_fitted_to_unlabelled_samples_too(features):
    few = features.train.rows(torch.arange(40))
    rest = Features(features.train.rows(torch.arange(40, 140)).modalities)
    labelled = replace(few, split=torch.zeros(40).long())
    run = train("cell", labelled, unlabelled=rest, recipe=QUICK, progress=False)
    seen = {name: torch.cat([few.modalities[name], values]) for name, values in rest.modalities.items()}
    alone = CellGMF(DIMS)
    alone.fit(seen)
    for name in DIMS:
        torch.testing.assert_close(run.model.layer.maps[name].invariant, alone.maps[name].invariant)
    assert not torch.equal(
        train("cell", labelled, recipe=QUICK, progress=False).model.layer.maps["a"].mean, alone.maps["a"].mean
    )
    with pytest.raises(ValueError, match="no use to GMF, which is not measured, in classification with"):
        train("gmf", labelled, unlabelled=rest, recipe=Recipe(unlabelled_weight=0.0), progress=False)
    with pytest.raises(ValueError, match="no use to GMF, which is not measured, in conflict"):
        train("gmf", labelled, unlabelled=rest, task="conflict", progress=False)
    with pytest.raises(ValueError, match="modalities must be distinct names out of a, b, got a, b, c"):
        train("cell", labelled, unlabelled=rest.select(["a", "b"]), progress=False)
    wrong = Features(rest.modalities | {"b": rest.modalities["c"]})
    with pytest.raises(ValueError, match="features\\['b'\\] must have"):
        train("cell", labelled, unlabelled=wrong, progress=False)


def test_a_measured_layer_is_fitted_to_gaps_where_few_samples_have_every_modality(features):
    lacks, first = torch.arange(240) % 3, torch.cumsum(features.split == 0, dim=0)
    # With more whole samples than channels these are measured alone.
    for whole in (0, sum(DIMS.values()), sum(DIMS.values()) + 1):
        complete = (features.split == 0) & (first <= whole)
        present = {name: (lacks != place) | complete for place, name in enumerate(DIMS)}
        made = Features(features.modalities, label=features.label, split=features.split, present=present)
        chosen = complete if whole > sum(DIMS.values()) else features.split == 0
        alone = CellGMF(DIMS)
        alone.fit(
            {name: values[chosen] for name, values in features.modalities.items()},
            present={name: values[chosen] for name, values in present.items()},
        )
        found = train("cell", made, recipe=QUICK, progress=False).model.layer
        for name in DIMS:
            torch.testing.assert_close(found.maps[name].invariant, alone.maps[name].invariant)


def test_what_is_shared_is_found_through_extractors_where_no_sample_has_every_modality():
    made, latents = shared_private(1200, DIMS, shared=2, private=1, noise=0.3, nonlinear=True, seed=0)
    whole, lacks = made.with_split(0), torch.arange(1200) % 3
    present = {name: lacks != place for place, name in enumerate(DIMS)}
    rows, recipe = (
        (whole.split == 2).nonzero().squeeze(-1),
        Recipe(epochs=4, batch_size=64, hidden=8, extractor=8),
    )
    found = []
    for features in (whole, replace(whole, present=present)):
        run = train("cell", features, recipe=recipe, progress=False)
        assert run.model.layer.gaps == bool(features.present)
        invariant, _ = run.parts(whole.test)
        found.append([explained_variance(invariant[name], latents["shared"][rows]) for name in DIMS])
    assert min(found[0]) > 0.5
    np.testing.assert_allclose(found[1], found[0], atol=0.1)


def test_unlabelled_samples_count_with_what_the_model_is_sure_of(features):
    task, recipe = Task.of(features), Recipe(dropout=0.0, unlabelled_weight=0.7, confidence=0.4)
    torch.manual_seed(0)
    step = Step(build_model(Concatenation(DIMS), task, recipe), task, recipe)
    labelled, others = (
        Batch({name: values[rows] for name, values in features.modalities.items()}, {}, {})
        for rows in (slice(0, 40), slice(40, 140))
    )
    label, everything = features.label[:40], random_subsets(list(DIMS), 40, torch.device("cpu"))
    step(labelled, label, everything)  # statistics to standardise by
    probabilities = step.model.eval()(*others).logits.softmax(dim=-1)
    sure, guessed = probabilities.max(dim=-1)
    kept = sure >= 0.4
    assert 5 < kept.sum() < 95
    step.train()
    with seeded(1):
        found = step(labelled, label, everything, others)
    state = step.state_dict()
    with seeded(1):
        alone = step_loss(step.model, labelled, label, task, recipe, everything)[0]
        encoded = step.model(*others).votes[0]
        subset = random_subsets(list(DIMS), 100, torch.device("cpu"))
        only = [{name: torch.full((100,), name == one) for name in DIMS} for one in DIMS]
        patterns = {name: torch.stack([subset[name], *(one[name] for one in only)]) for name in DIMS}
        features_of = {name: values.expand(4, *values.shape) for name, values in others.features.items()}
        under = step.model.decide(features_of, patterns).logits
    errors = [
        (torch.nn.functional.cross_entropy(logits[kept], guessed[kept], reduction="sum") / 100)
        for logits in (encoded, *under)
    ]
    expected = alone + 0.7 * (errors[0] / 2 + errors[1] / 2 + sum(errors[2:]) / 3)
    torch.testing.assert_close(found, expected)
    assert state.keys() == step.state_dict().keys()


def test_unlabelled_samples_teach():
    made = digits_views().with_split(0)
    part = made.split
    few = (part == 0) & (torch.cumsum(part == 0, dim=0) <= 60)
    chosen = few | (part == 2)
    labelled = replace(made.rows(chosen), split=part[chosen])
    rest = made.rows((part == 0) & ~few)

    def accuracy(unlabelled):
        recipe = Recipe(epochs=50)
        run = train("concat", labelled, recipe=recipe, unlabelled=unlabelled, progress=False)
        return statistics.fmean(found["accuracy"] for found in evaluate(run, labelled).values())

    assert accuracy(rest) > accuracy(None) + 0.02


def test_of_numbers_the_guess_is_what_the_model_says(features):
    numbers = replace(features, label=3 + 2 * torch.randn(len(features)))
    task = Task.of(numbers)
    model = build_model(Concatenation(DIMS), task, Recipe()).train()
    batch = Batch(features.modalities, {}, {})
    guessed = guesses(model, batch, task, confidence=0.9)
    assert model.training
    torch.testing.assert_close(guessed, task.decide(model.eval()(*batch).logits))


def test_the_bar_shows_progress(features, capsys):
    train("concat", features, recipe=QUICK)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"epochs": 2.5}, r"epochs must be a whole number, got 2\.5"),
        ({"extractor": "gru"}, "extractor must be a whole number, got 'gru'"),
        ({"hidden": 0}, "hidden must be 1 or more, got 0"),
        ({"batch_size": -1}, "batch_size must be 1 or more, got -1"),
        ({"learning_rate": 0.0}, r"learning_rate must be a positive number, got 0\.0"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number, got nan"),
        ({"weight_decay": -0.1}, r"weight_decay must be 0 or more, got -0\.1"),
        ({"reconstruction_weight": math.inf}, "reconstruction_weight must be 0 or more, got inf"),
        ({"patience": 0}, "patience must be 1 or more, got 0"),
        ({"warm_up": -1}, "warm_up must be 0 or more, got -1"),
        ({"clip": 0.0}, r"clip must be a positive number, got 0\.0"),
        (
            {"all_present": False, "random_subsets": False, "each_alone": False},
            "one of all_present, random_subsets and each_alone must be on",
        ),
        ({"optimiser": "lion"}, "optimiser must be one of adamw, sgd, got 'lion'"),
        ({"schedule": "none"}, "schedule must be one of constant, cosine, plateau, got 'none'"),
        ({"keep": "first"}, "keep must be one of last, best, got 'first'"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**setting)
