"""Cost and what layers do inside: against counts by hand, and where the answer is known."""

import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.data.features import Features
from fusion.evaluation.comparison import compare
from fusion.evaluation.cost import flops, relative_times
from fusion.evaluation.diagnostics import (
    diagnose,
    encoder_damage,
    gradient_alignment,
    origin,
    probes,
    probes_alone,
)
from fusion.layers.gmf import GMF
from fusion.layers.layer import Fused
from fusion.layers.mbt import MBT
from fusion.layers.plain import Concatenation, Sum
from fusion.model import FusionModel
from fusion.training.loop import train
from fusion.training.recipe import Recipe
from fusion.training.run import build_model
from fusion.training.task import Task

DIMS = {"a": 6, "b": 4, "c": 5}
QUICK = Recipe(epochs=3, batch_size=32, hidden=8)


@pytest.fixture(scope="module")
def features():
    made, _ = shared_private(240, DIMS, shared=3, private=2, seed=0, classes=3)
    return made.with_split(0)


def test_operations_are_those_of_the_matrix_products():
    model = FusionModel(Sum(DIMS, width=7), 3, hidden=8)
    assert flops(model) == 2 * ((6 + 4 + 5) * 7 + 7 * 8 + 8 * 3)
    assert flops(FusionModel(Concatenation(DIMS), 3, hidden=None)) == 2 * 15 * 3


def test_attention_is_counted_as_the_products_it_consists_of():
    width, steps = 8, {"a": 9}
    layer = MBT(DIMS, width=width, heads=2, depth=3, bottlenecks=4)
    expected = 3 * width  # the head, one multiply-add for each pair
    for name, length in DIMS.items():
        own = steps.get(name, 1)
        tokens = own + 1 + 4  # the class token and the bottleneck
        projections = 4 * tokens * width**2
        attention = 2 * tokens**2 * width
        expected += own * length * width + 3 * (projections + attention + 2 * tokens * 4 * width**2)
    assert flops(FusionModel(layer, 3, hidden=None), steps) == 2 * expected


def test_recurrent_extractors_are_counted_step_by_step():
    model = build_model(Concatenation({"a": 6}), Task("regression", 1), Recipe(extractor=5, hidden=None), "a")
    step = 2 * 3 * 5 * (6 + 5) + 2 * 5 * 6  # two directions of three gates, and the map after them
    assert flops(model, {"a": 7}) == 2 * (7 * step + 6)


def test_the_papers_layer_has_the_papers_cost():
    """5.25 million multiply-adds are the 0.01 GFLOP of its table."""
    model = FusionModel(GMF({"one": 512, "two": 512}), 1, standardise=False, hidden=None)
    head = 2 * 2048
    biases = 2 * (2048 + 3 * 512)
    assert flops(model) - head == 2 * (5_250_048 - biases)


def test_time_is_relative_and_leaves_the_models_as_they_were():
    class Slow(Concatenation):
        def fuse(self, features, present):
            for _ in range(300):
                torch.stack([values @ values.T for values in features.values()]).sum()
            return super().fuse(features, present)

    model, beside = (FusionModel(kind(DIMS), 3, hidden=8).eval() for kind in (Slow, Concatenation))
    state = {name: values.clone() for name, values in model.state_dict().items()}
    found = relative_times({"slow": model, "same": beside}, beside=beside, rounds=7)
    assert found["slow"] > 2 * found["same"]
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, values in model.state_dict().items():
        assert torch.equal(values, state[name])
    with pytest.raises(ValueError, match="rounds must be 1 or more, got 0"):
        relative_times({}, beside=beside, rounds=0)


def with_loss(sign):
    """Concatenation with the task's own kind of loss, or its negative, as a loss of the layer."""

    class WithLoss(Concatenation):
        def fuse(self, features, present):
            return Fused(
                features, losses={"pull": sign * torch.cat(list(features.values()), -1).square().sum()}
            )

    return WithLoss


def test_gradients_align_where_they_are_the_same(features):
    recipe = Recipe(
        epochs=1, batch_size=64, standardise=False, random_subsets=False, each_alone=False, hidden=None,
        dropout=0.0, reconstruction_weight=0.0,
    )  # fmt: skip
    for sign in (1.0, -1.0):
        run = train(with_loss(sign)(DIMS), features, recipe=recipe, progress=False)
        found = gradient_alignment(run, features)
        given = {name: values.clone().requires_grad_() for name, values in features.test.modalities.items()}
        task = torch.nn.functional.cross_entropy(run.model(given).logits, features.test.label)
        gradients = torch.autograd.grad(task, list(given.values()))
        for (name, values), gradient in zip(given.items(), gradients, strict=True):
            expected = torch.cosine_similarity(gradient.flatten(), sign * values.detach().flatten(), dim=0)
            assert found[name] == pytest.approx(float(expected), abs=1e-5)
    assert gradient_alignment(train("sum", features, recipe=QUICK, progress=False), features) == {}


def test_gradients_are_those_of_the_extractors_where_there_are_any(features):
    recipe = Recipe(epochs=1, batch_size=64, extractor=4, each_alone=False, random_subsets=False)
    run = train("gmf", features, recipe=recipe, progress=False)
    found = gradient_alignment(run, features)
    test = features.test
    model = run.model
    predicted = model(test.modalities)
    task = torch.nn.functional.cross_entropy(predicted.logits, test.label)
    for name in DIMS:
        parameters = list(model.encoders[name].parameters())
        both = [
            torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters, retain_graph=True)])
            for loss in (task, predicted.losses["reconstruction"])
        ]
        assert found[name] == pytest.approx(float(torch.cosine_similarity(*both, dim=0)), abs=1e-5)


def test_origin_is_told_where_parts_differ_and_not_where_they_do_not():
    def parts(shift, samples=300):
        return {name: torch.randn(samples, 5) + shift * place for place, name in enumerate("abc")}

    assert origin(parts(0), parts(0)) == pytest.approx(1 / 3, abs=0.08)
    assert origin(parts(4), parts(4)) > 0.99
    unequal = {"a": torch.randn(400, 9), "b": torch.randn(400, 4)}
    assert origin(unequal, {name: torch.randn_like(values) for name, values in unequal.items()}) < 0.6


def test_an_extractor_that_forgets_is_damaged(features):
    recipe = Recipe(epochs=8, batch_size=32, hidden=8, extractor=12)
    alone = probes_alone(features, recipe)
    run = train("late", features, recipe=recipe, progress=False)
    together = probes(run, features)
    assert all(score > 0.4 for score in alone.values())
    assert encoder_damage(run, features, alone) == {name: together[name] - alone[name] for name in DIMS}
    forgets = torch.nn.Linear(DIMS["b"], DIMS["b"])
    torch.nn.init.zeros_(forgets.weight)
    run.model.encoders["b"] = forgets
    damage = encoder_damage(run, features, alone)
    assert damage["b"] < -0.05
    assert damage["a"] == together["a"] - alone["a"]
    with pytest.raises(ValueError, match="extractor must be set in the recipe"):
        probes_alone(features, QUICK)


def test_extractors_alone_see_no_other_modality(features):
    """The extractor of one modality is the same whatever the others hold."""
    recipe = Recipe(epochs=6, batch_size=32, learning_rate=0.03, hidden=8, extractor=5, dropout=0.0)
    noise = features.modalities | {"b": torch.randn(240, 4)}
    other = Features(noise, label=features.label, split=features.split)
    first, second = probes_alone(features, recipe), probes_alone(other, recipe)
    assert (first["a"], first["c"]) == (second["a"], second["c"])


def test_diagnostics_are_columns_of_a_comparison(features):
    recipe = Recipe(epochs=1, batch_size=64, hidden=8, extractor=4)
    found = compare(features, ["gmf", "sum"], recipe=recipe, seeds=2, diagnostics=True, progress=False)
    assert list(found.diagnostics["gmf"]) == [
        "encoder damage",
        "gradient alignment",
        "origin of invariant",
        "origin of specific",
        "mutual information",
        "R²",
    ]
    assert list(found.diagnostics["sum"]) == ["encoder damage"]
    run = train("gmf", features, recipe=recipe, seed=1, progress=False)
    alone = probes_alone(features, recipe, 1)
    assert diagnose(run, features, alone)["R²"] == found.diagnostics["gmf"]["R²"][1]
    last = found.table().splitlines()[-4]
    assert last.startswith("| gmf | ")
    assert f"{sum(found.diagnostics['gmf']['R²']) / 2:.3f}" in last
