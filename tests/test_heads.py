"""Heads that decide on what a layer gives, and the one that the grounded layer asks for."""

import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional

from fusion.data.datasets import shared_private
from fusion.heads import AverageHead, CompletedHead, GatedHead, JointHead, PooledHead
from fusion.layers.cell_gmf import CellGMF
from fusion.layers.plain import LateFusion, Sum
from fusion.model import FusionModel
from fusion.training.batch import Batch
from fusion.training.objective import step_loss
from fusion.training.pooling import fit_weights
from fusion.training.recipe import Recipe
from fusion.training.task import Task

DIMS = {"a": 6, "b": 5, "c": 4}


@pytest.fixture(scope="module")
def labelled():
    return shared_private(3000, DIMS, shared=2, private=2, noise=0.4, seed=0, classes=3)[0]


@pytest.fixture(scope="module")
def features(labelled):
    return labelled.modalities


def fitted(features, readout):
    torch.manual_seed(0)
    layer = CellGMF(DIMS, readout=readout)
    layer.fit(features)
    return FusionModel(layer, 3, dropout=0.0).eval()


@pytest.fixture
def model(features):
    return fitted(features, "gated")


@pytest.fixture
def pooled(features):
    """Its linear member knows a little, the others nothing."""
    model = fitted(features, "pooled")
    _, experts, gated = model.head.members
    with torch.no_grad():
        for decision in (*experts.decisions.values(), gated.decision):
            decision[-1].weight.mul_(10.0)
    return model


def without(name, samples=3000):
    return {name: torch.zeros(samples, dtype=torch.bool)}


def test_every_layer_gets_its_head():
    assert isinstance(FusionModel(Sum(DIMS), 3).head, JointHead)
    assert isinstance(FusionModel(LateFusion(DIMS), 3).head, AverageHead)
    pooled = FusionModel(CellGMF(DIMS), 3).head
    assert isinstance(pooled, PooledHead)
    assert [type(member) for member in pooled.members] == [JointHead, CompletedHead, GatedHead]
    assert isinstance(FusionModel(CellGMF(DIMS, readout="gated"), 3).head, GatedHead)
    assert isinstance(FusionModel(CellGMF(DIMS, readout="joint"), 3).head, JointHead)
    assert isinstance(FusionModel(CellGMF(DIMS), 3, hidden=None).head, JointHead)
    own = nn.Linear(CellGMF(DIMS).out_features, 3)
    assert FusionModel(CellGMF(DIMS), own).head.decision is own
    with pytest.raises(ValueError, match="readout must be one of pooled, gated, joint, got 'sum'"):
        CellGMF(DIMS, readout="sum")


def test_a_gated_head_decides_as_its_equation_says(model, features):
    fused = model.fuse(features)
    total = 0
    for name, values in features.items():
        standardised = (values - values.mean(0)) / values.std(0, correction=0)
        linear, gate = model.head.maps[name], model.head.gates[name]
        total = total + torch.tanh(standardised @ linear.weight.T + linear.bias) * torch.sigmoid(
            fused.concatenated() @ gate.weight.T + gate.bias
        )
    expected = model.head.decision(total)
    torch.testing.assert_close(model(features).logits, expected, rtol=1e-4, atol=1e-5)


def test_a_head_of_completed_modalities_is_the_mean_of_their_decisions(pooled, features):
    _, experts, _ = pooled.head.members
    completed = pooled.fuse(features, without("b")).completed
    said = {name: experts.decisions[name](completed[name]) for name in DIMS}
    present = {name: torch.ones(3000, dtype=torch.bool) for name in DIMS} | without("b")
    found = experts(pooled.fuse(features, without("b")), present)
    torch.testing.assert_close(found, sum(said.values()) / 3)
    experts.train()(pooled.fuse(features, without("b")), present)
    found = experts.eval()(pooled.fuse(features, without("b")), present)
    torch.testing.assert_close(found, (said["a"] + said["c"]) / 2)


def test_completed_features_are_regressions_on_what_is_present(model, features):
    layer = model.layer.double()
    double = {name: values.double() for name, values in features.items()}
    found = layer(double, without("b")).completed
    others = torch.cat([double["a"], double["c"], torch.ones(3000, 1)], dim=-1)
    standardised = (double["b"] - double["b"].mean(0)) / double["b"].std(0, correction=0)
    expected = others @ torch.linalg.lstsq(others, standardised).solution
    assert (
        found["b"] - expected
    ).norm() < 0.02 * expected.norm()  # whitening is shrunk, the regression is not
    torch.testing.assert_close(
        found["a"], (double["a"] - double["a"].mean(0)) / double["a"].std(0, correction=0)
    )


def test_what_was_absent_in_training_is_left_out_and_else_it_counts_as_filled_in(model, features):
    whole, filled_in = model(features).logits, model(features, without("b")).logits
    model.train()(features, without("a"))
    model.eval()
    assert model.head.counted.absent_in_training.tolist() == [True, False, False]
    torch.testing.assert_close(model(features).logits, whole)
    torch.testing.assert_close(model(features, without("b")).logits, filled_in)
    model.train()(features, without("b"))
    left_out = model.eval()(features, without("b")).logits
    assert (left_out - filled_in).abs().max() > 1e-3
    with torch.no_grad():  # what its own map makes of it then has no say
        model.head.maps["b"].weight.mul_(5.0)
    torch.testing.assert_close(model(features, without("b")).logits, left_out)


def test_a_pooled_head_adds_what_its_members_say_with_weights_that_know_whether_all_is_there(
    pooled, features
):
    pooled.head.exponents.copy_(torch.tensor([[0.3, -1.0, 0.1], [0.5, 2.0, -0.4]]))
    absent = {"a": torch.arange(3000) % 2 == 0}
    said = pooled(features, absent)
    present = {name: absent.get(name, torch.ones(3000, dtype=torch.bool)) for name in DIMS}
    fused = pooled.fuse(features, absent)
    votes = [member(fused, present) for member in pooled.head.members]
    torch.testing.assert_close(said.votes, torch.stack(votes))
    for found, exponents, rows in (
        (said.logits[::2], [0.3, -1.0, 0.1], slice(0, None, 2)),
        (said.logits[1::2], [0.8, 1.0, -0.3], slice(1, None, 2)),
    ):
        weights = torch.tensor(exponents).exp().log1p()
        expected = sum(weight * vote[rows] for weight, vote in zip(weights, votes, strict=True))
        torch.testing.assert_close(found, expected)


def test_members_are_trained_as_if_each_were_alone(pooled, features, labelled):
    recipe, task = Recipe(dropout=0.0), Task.of(labelled)
    batch = Batch(features, {}, {})
    subsets = {name: torch.arange(3000) % 3 != n for n, name in enumerate(DIMS)}
    for one in pooled.parameters():
        one.grad = None
    step_loss(pooled.train(), batch, labelled.label, task, recipe, subsets)[0].backward()
    for member in pooled.head.members:
        alone = fitted(features, "joint")
        alone.layer, alone.head = pooled.layer, member
        found = step_loss(alone.train(), batch, labelled.label, task, recipe, subsets)[0]
        for one, gradient in zip(
            member.parameters(), torch.autograd.grad(found, list(member.parameters())), strict=True
        ):
            torch.testing.assert_close(3 * one.grad, gradient, rtol=1e-4, atol=1e-6)


def test_weights_are_those_that_held_out_samples_ask_for(pooled, labelled):
    recipe = Recipe(random_subsets=False, each_alone=False)
    votes = pooled(labelled.modalities).votes.detach().double()
    start = pooled.head.exponents[0].double().numpy().copy()

    def objective(exponents):
        weights = torch.tensor(exponents).exp().log1p()
        logits = torch.einsum("k,knc->nc", weights, votes)
        loss = functional.cross_entropy(logits, labelled.label, reduction="sum")
        return float(loss) + ((exponents - start) ** 2).sum() / 2

    expected = minimize(objective, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9}).x
    fit_weights(pooled, labelled, Task.of(labelled), recipe, (0,))
    torch.testing.assert_close(
        pooled.head.exponents[0].double(), torch.tensor(expected), rtol=1e-3, atol=1e-3
    )
    assert not pooled.head.exponents[1].any()  # nothing was missing
    assert not pooled.head.exponents.requires_grad
    fit_weights(pooled, labelled, Task.of(labelled), Recipe(), (0,))
    assert pooled.head.exponents[1].abs().min() > 0.01
