"""Scores of a run and comparisons of layers, against numbers computed by hand."""

import json

import numpy as np
import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.data.features import Features
from fusion.evaluation.comparison import compare
from fusion.evaluation.scores import evaluate, scores
from fusion.layers.plain import Sum
from fusion.training.loop import train
from fusion.training.recipe import Recipe
from fusion.training.task import Task

QUICK = Recipe(epochs=2, batch_size=32, hidden=8)


def problem(modalities=3, split=True):
    dims = dict(list({"a": 4, "b": 6, "c": 3}.items())[:modalities])
    features, _ = shared_private(150, dims, shared=2, private=2, seed=0, classes=3)
    return features.with_split(0) if split else features


def numbers(features):
    label = 100 + 10 * features.modalities["a"].sum(-1)
    return Features(features.modalities, label=label, split=features.split)


@pytest.mark.parametrize("layer", ["gmf", "late"])
def test_accuracy_of_every_case_is_that_of_the_model(layer):
    features = problem()
    run = train(layer, features, recipe=QUICK, progress=False)
    found = evaluate(run, features)
    pattern = {
        "all": "abc",
        "without a": "bc",
        "without b": "ac",
        "without c": "ab",
        "only a": "a",
        "only b": "b",
        "only c": "c",
    }
    assert list(found) == list(pattern)
    test = features.split == 2
    given = {name: values[test] for name, values in features.modalities.items()}
    for case, names in pattern.items():
        present = {name: torch.full((int(test.sum()),), name in names) for name in "abc"}
        with torch.no_grad():
            logits = run.model(given, present).logits
        right = [
            int(row.argmax()) == int(label) for row, label in zip(logits, features.label[test], strict=True)
        ]
        assert found[case] == {"accuracy": pytest.approx(sum(right) / len(right))}


def test_of_two_modalities_one_without_the_other_is_enough():
    features = problem(2)
    run = train("sum", features, recipe=QUICK, progress=False)
    assert list(evaluate(run, features)) == ["all", "without a", "without b"]


def test_scores_by_hand():
    classes = Task("classification", 3)
    assert scores(classes, torch.tensor([0, 1, 2, 2]), torch.tensor([0, 1, 1, 2])) == {"accuracy": 0.75}
    truth, guess = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2.0, 2.0, 2.0, 10.0])
    found = scores(Task("regression", 1), guess, truth)
    assert found["mae"] == pytest.approx((1 + 0 + 2 + 2) / 4)
    assert found["correlation"] == pytest.approx(np.corrcoef(truth, guess)[0, 1])
    assert scores(Task("regression", 1), torch.ones(4), truth)["correlation"] == 0


def test_regression_is_scored_in_units_of_the_label():
    features = numbers(problem())
    run = train("concat", features, recipe=QUICK, progress=False)
    found = evaluate(run, features)["all"]
    difference = run.predict(features.test) - features.test.label
    assert found["mae"] == pytest.approx(float(difference.abs().mean()))


def test_parts():
    features = problem()
    run = train("concat", features, recipe=QUICK, progress=False)
    right = run.predict(features) == features.label
    for part, number in (("train", 0), ("validation", 1), ("test", 2)):
        expected = right[features.split == number].double().mean().item()
        assert evaluate(run, features, part=part)["all"]["accuracy"] == pytest.approx(expected)
    assert evaluate(run, features, part="all")["all"]["accuracy"] == pytest.approx(
        right.double().mean().item()
    )
    with pytest.raises(ValueError, match="part must be one of train, validation, test, all, got 'rest'"):
        evaluate(run, features, part="rest")


def test_features_without_a_split_are_split_as_in_training():
    features = problem(split=False)
    run = train("concat", features, recipe=QUICK, seed=3, progress=False)
    assert evaluate(run, features) == evaluate(run, features.with_split(3))
    assert evaluate(run, features) != evaluate(run, features.with_split(4))


def test_other_features_without_a_split_have_no_test_samples():
    features = problem(split=False)
    run = train("concat", features, recipe=QUICK, progress=False)
    others = Features({m: f + 1 for m, f in features.modalities.items()}, label=features.label)
    with pytest.raises(ValueError, match="features have no split and are not those of the training"):
        evaluate(run, others)
    assert set(evaluate(run, others, part="all")) >= {"all"}


def test_features_that_do_not_suit_the_run():
    features = problem()
    run = train("concat", features, recipe=QUICK, progress=False)
    with pytest.raises(ValueError, match="modalities must be distinct names out of a, b, got a, b, c"):
        evaluate(run, features.select(["a", "b"]))
    with pytest.raises(ValueError, match="label must suit the classification of the run, got regression"):
        evaluate(run, numbers(features))
    unlabelled = Features(features.modalities, split=features.split)
    with pytest.raises(ValueError, match="label must suit the classification of the run, got no label"):
        evaluate(run, unlabelled)
    more = Features(features.modalities, label=features.label + 3, split=features.split)
    with pytest.raises(ValueError, match="label must be one of the 3 classes of the run, got class 5"):
        evaluate(run, more)


def test_comparison_has_the_scores_of_its_runs():
    features = problem(2)
    found = compare(features, ["concat", "sum"], recipe=QUICK, seeds=3, progress=False)
    assert not found.random_split
    rows = {(row["layer"], row["case"]): row for row in found.rows()}
    assert len(rows) == 2 * 3
    for layer in ("concat", "sum"):
        runs = [train(layer, features, recipe=QUICK, seed=seed, progress=False) for seed in range(3)]
        for case in ("all", "without a", "without b"):
            values = [evaluate(run, features)[case]["accuracy"] for run in runs]
            row = rows[layer, case]
            assert row["values"] == values
            assert row["mean"] == pytest.approx(np.mean(values))
            assert row["standard_deviation"] == pytest.approx(np.std(values, ddof=1))
            assert row["parameters"] == sum(p.numel() for p in runs[0].model.parameters())


def test_table_and_files(tmp_path):
    features = problem(2)
    found = compare(features, ["late"], recipe=QUICK, seeds=2, progress=False)
    row = found.rows()[1]
    cell = f"{row['mean']:.3f} ± {row['standard_deviation']:.3f}"
    lines = found.table().splitlines()
    assert lines[0] == "| layer | parameters | all | without a | without b |"
    assert lines[2].split(" | ")[1] == f"{row['parameters']:,}"
    assert lines[2].split(" | ")[3] == cell
    assert lines[-1] == (
        "Accuracy on the test samples, mean ± standard deviation over 2 seeds, which vary initial weights, "
        "batches and dropout."
    )
    found.save(tmp_path)
    assert (tmp_path / "comparison.md").read_text() == found.table()
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"] == found.rows()
    with pytest.raises(ValueError, match="metric must be one of accuracy, got 'mae'"):
        found.table("mae")


def test_features_without_a_split_are_split_by_each_seed():
    features = problem(2, split=False)
    found = compare(features, ["concat"], recipe=QUICK, seeds=2, progress=False)
    assert found.random_split
    assert "over 2 seeds, which vary the split, initial weights" in found.table()
    run = train("concat", features, recipe=QUICK, seed=1, progress=False)
    assert found.rows()[0]["values"][1] == evaluate(run, features.with_split(1))["all"]["accuracy"]


def test_one_seed_has_no_error_bar():
    found = compare(numbers(problem(2)), ["concat"], recipe=QUICK, seeds=1, progress=False)
    assert {row["standard_deviation"] for row in found.rows()} == {None}
    assert "±" not in found.table()
    assert found.table("correlation").endswith("one seed: differences may be chance.\n")


def test_layers_may_be_functions():
    found = compare(
        problem(2), {"narrow": lambda dims: Sum(dims, width=2)}, recipe=QUICK, seeds=1, progress=False
    )
    assert found.parameters == {"narrow": 2 * (4 + 1) + 2 * (6 + 1) + 8 * (2 + 1) + 3 * (8 + 1)}


@pytest.mark.parametrize(
    ("layers", "seeds", "message"),
    [
        (["concat", "attention"], 2, "layer must be one of gmf"),
        ([], 2, "layers must name at least one layer, got none"),
        (["concat"], 0, "seeds must be 1 or more, got 0"),
    ],
)
def test_comparisons_of_nothing(layers, seeds, message):
    with pytest.raises(ValueError, match=message):
        compare(problem(2), layers, seeds=seeds, progress=False)
