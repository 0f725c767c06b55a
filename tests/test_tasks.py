"""Retrieval and the detection of conflicts: metrics by hand, data as documented, training that learns."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, top_k_accuracy_score

from fusion.data.conflict import with_conflicts
from fusion.data.datasets import shared_private
from fusion.data.features import Features
from fusion.evaluation.retrieval import retrieval_scores
from fusion.evaluation.scores import evaluate
from fusion.training.contrast import contrastive_loss
from fusion.training.loop import train
from fusion.training.recipe import Recipe

DIMS = {"a": 6, "b": 9, "c": 4}


@pytest.fixture(scope="module")
def features():
    made, _ = shared_private(400, DIMS, shared=4, private=1, noise=0.1, seed=0, classes=3)
    return made.with_split(0)


def test_average_precision_of_a_whole_ranking_is_scikit_learns():
    queries, gallery = torch.randn(20, 5), torch.randn(30, 5)
    wanted, offered = torch.randint(3, (20,)), torch.randint(3, (30,))
    found = retrieval_scores(queries, wanted, gallery, offered, k=30)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], gallery, dim=-1)
    expected = [
        average_precision_score((offered == label).numpy(), row.numpy())
        for row, label in zip(cosines, wanted, strict=True)
    ]
    assert found["map@30"] == pytest.approx(np.mean(expected))


def test_recall_of_single_answers_is_top_k_accuracy():
    queries, gallery = torch.randn(25, 4), torch.randn(25, 4)
    each = torch.arange(25)
    found = retrieval_scores(queries, each, gallery, each, k=5)
    cosines = torch.nn.functional.cosine_similarity(queries[:, None], gallery, dim=-1).numpy()
    for k in (1, 5):
        assert found[f"recall@{k}"] == pytest.approx(top_k_accuracy_score(each.numpy(), cosines, k=k))


def test_precision_at_k_by_hand():
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 1.0], [0.0, 1.0]])
    found = retrieval_scores(
        torch.tensor([[1.0, 0.0]]), torch.tensor([1]), gallery, torch.tensor([0, 1, 0, 1]), k=3
    )
    assert found == {"map@3": pytest.approx((1 / 2) / 2), "recall@1": 0, "recall@3": 1}
    # Three are right and two places are looked at: the best there can be is 1.
    many = retrieval_scores(
        torch.tensor([[1.0, 0.0]]), torch.tensor([1]), gallery, torch.tensor([1, 1, 0, 1]), k=2
    )
    assert many["map@2"] == 1
    nothing = retrieval_scores(torch.ones(1, 2), torch.tensor([7]), gallery, torch.zeros(4).long())
    assert set(nothing.values()) == {0}
    with pytest.raises(ValueError, match="k must be 1 or more, got 0"):
        retrieval_scores(gallery, torch.zeros(4), gallery, torch.zeros(4), k=0)


def test_contrastive_loss_is_the_cross_entropy_of_pairs():
    one, other = (torch.nn.functional.normalize(torch.randn(8, 3), dim=-1) for _ in range(2))
    each, present = torch.arange(8), torch.ones(2, 8).bool()
    logits = one @ other.T / 0.2
    entropy = torch.nn.functional.cross_entropy
    expected = (entropy(logits, each) + entropy(logits.T, each)) / 2
    torch.testing.assert_close(contrastive_loss(torch.stack([one, other]), each, present, 0.2), expected)
    # Two of a class are both right: soft targets.
    pairs = torch.arange(8) // 2
    soft = (pairs[:, None] == pairs).float() / 2
    expected = (entropy(logits, soft) + entropy(logits.T, soft)) / 2
    torch.testing.assert_close(contrastive_loss(torch.stack([one, other]), pairs, present, 0.2), expected)


def test_absent_samples_have_no_part_in_the_contrast():
    embeddings = torch.randn(2, 6, 3, requires_grad=True)
    present = torch.ones(2, 6).bool()
    present[1, 4:] = False
    each = torch.arange(6)
    loss = contrastive_loss(embeddings, each, present, 0.2)
    one, other = torch.nn.functional.normalize(embeddings, dim=-1)
    # Four have a partner in the second modality; the first modality offers all six.
    logits, entropy = one @ other.T / 0.2, torch.nn.functional.cross_entropy
    expected = (entropy(logits[:4, :4], each[:4]) + entropy(logits.T[:4], each[:4])) / 2
    torch.testing.assert_close(loss, expected)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    assert torch.isfinite(gradient).all()
    assert (gradient[1, 4:] == 0).all()
    assert contrastive_loss(embeddings, each, torch.tensor([[True], [False]]).expand(2, 6), 0.2) == 0


@pytest.mark.parametrize("layer", ["gmf", "cell", "concat", "sum", "late"])
def test_retrieval_is_learnt(features, layer):
    pairs = Features(features.modalities, split=features.split)  # no labels: each sample belongs to itself
    recipe = Recipe(epochs=8, batch_size=64, hidden=32)
    run = train(layer, pairs, recipe=recipe, task="retrieval", progress=False)
    found = evaluate(run, pairs)
    assert list(found) == ["all", "a → b", "a → c", "b → a", "b → c", "c → a", "c → b"]
    chance = 10 / len(features.test)
    assert found["all"]["recall@10"] > 4 * chance
    assert found["all"]["map@10"] == pytest.approx(np.mean([found[c]["map@10"] for c in found if c != "all"]))
    assert ("invariant_map@10" in found["all"]) == (layer in ("gmf", "cell"))
    test = features.test
    present = {name: torch.full((len(test),), name == "a") for name in DIMS}
    other = Features(test.modalities | {"b": torch.randn(len(test), 9)})
    assert torch.equal(run.predict(test, present), run.predict(other, present))


def test_classes_belong_together(features):
    recipe = Recipe(epochs=8, batch_size=64, hidden=32)
    run = train("concat", features, recipe=recipe, task="retrieval", progress=False)
    shares = torch.bincount(features.test.label) / len(features.test)
    assert evaluate(run, features)["all"]["map@10"] > 1.3 * float((shares**2).sum())


def test_conflicts_are_as_documented(features):
    made = with_conflicts(features, seed=1)
    assert made.label.unique().tolist() == [0, 1]
    where = {
        name: torch.cdist(values, features.modalities[name]).argmin(1)
        for name, values in made.modalities.items()
    }
    moved = torch.stack([source != torch.arange(400) for source in where.values()])
    assert torch.equal(moved.sum(0), made.label)  # exactly one modality, and only there
    assert all(moved.sum(1) > 30)  # each in its turn
    for source, here in zip(where.values(), moved, strict=True):
        assert (features.label[source] != features.label)[here].all()
        assert torch.equal(features.split[source], features.split)
    for part in range(3):
        assert made.label[features.split == part].double().mean() == pytest.approx(0.5, abs=0.02)
    assert torch.equal(with_conflicts(features, seed=1).label, made.label)
    only = with_conflicts(features, modality="b", fraction=0.2)
    assert torch.equal(only.modalities["a"], features.modalities["a"])
    assert only.label.double().mean() == pytest.approx(0.2, abs=0.02)


def test_conflicts_are_found_between_modalities_and_not_within(features):
    run = train("concat", features, recipe=Recipe(epochs=25), task="conflict", progress=False)
    found = evaluate(run, features)
    assert found["all"]["auc"] > 0.1 + max(found[f"only {name}"]["auc"] for name in DIMS)
    assert evaluate(run, features, part="all")["all"]["auc"] > found["all"]["auc"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 1.5}, r"fraction must be between 0 and 1, got 1\.5"),
        ({"modality": "x"}, "modality must be one of a, b, c, got 'x'"),
    ],
)
def test_conflicts_that_cannot_be_made(features, changes, message):
    with pytest.raises(ValueError, match=message):
        with_conflicts(features, **changes)


def test_labels_that_pose_no_task(features):
    numbers = Features(features.modalities, label=torch.randn(400), split=features.split)
    single = Features(features.modalities, label=(features.split == 0).long(), split=features.split)
    for task, given, message in (
        ("conflict", numbers, "label must hold classes to make conflicts of, got regression"),
        ("conflict", single, "two classes or more in the train samples"),
        ("retrieval", numbers, "label must hold classes for retrieval, or be left out; got floats"),
        ("classification", numbers, "label must hold classes for classification, got floats"),
        ("clustering", features, "task must be one of classification, regression, retrieval, conflict"),
    ):
        with pytest.raises(ValueError, match=message):
            train("concat", given, task=task, progress=False)


def test_classes_may_be_taken_as_numbers(features):
    run = train("concat", features, recipe=Recipe(epochs=2), task="regression", progress=False)
    found = evaluate(run, features)["all"]
    assert list(found) == ["mae", "correlation"]
    expected = (run.predict(features.test) - features.test.label).abs().mean()
    assert found["mae"] == pytest.approx(float(expected))
    assert 0 < found["correlation"] < 1
    assert evaluate(run, features, part="all")["all"]["mae"] > 0
