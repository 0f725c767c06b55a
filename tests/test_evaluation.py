"""Scores of a run and comparisons of layers, against numbers computed by hand."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score

from fusion.data.datasets import shared_private
from fusion.data.features import Features
from fusion.evaluation.comparison import Comparison, compare
from fusion.evaluation.scores import cases, evaluate, scores, with_mean_of_incomplete
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
        assert found[case]["accuracy"] == pytest.approx(sum(right) / len(right))
        assert list(found[case]) == ["accuracy", "macro_f1", "auc"]


def test_of_two_modalities_one_without_the_other_is_enough():
    features = problem(2)
    run = train("sum", features, recipe=QUICK, progress=False)
    assert list(evaluate(run, features)) == ["all", "without a", "without b"]


@pytest.mark.parametrize("modalities", [2, 3, 4, 5, 6])
def test_every_subset_is_a_case_once(modalities):
    names = list("abcdef"[:modalities])
    found = cases(names)
    assert len(set(found.values())) == len(found) == 2**modalities - 1
    assert found["all"] == tuple(names)


def test_of_seven_modalities_only_the_ends_are_cases():
    assert len(cases(list("abcdefg"))) == 1 + 7 + 7


def test_the_mean_of_incomplete_cases_counts_each_once():
    given = {"all": {"accuracy": 1.0}, "without a": {"accuracy": 0.5}, "without b": {"accuracy": 0.25}}
    found = with_mean_of_incomplete(given)
    assert list(found) == ["all", "incomplete", "without a", "without b"]
    assert found["incomplete"]["accuracy"] == 0.375


def test_samples_that_lack_what_a_case_keeps_are_left_out():
    features = problem(2)
    gaps = torch.arange(150) % 3 > 0
    holey = Features(features.modalities, label=features.label, split=features.split, present={"a": gaps})
    run = train("concat", holey, recipe=QUICK, progress=False)
    found = evaluate(run, holey)
    some = (features.split == 2) & gaps
    rest = Features({name: v[some] for name, v in features.modalities.items()}, label=features.label[some])
    absent = {"b": torch.zeros(len(rest)).bool()}
    assert found["without b"]["accuracy"] == pytest.approx(
        (run.predict(rest, absent) == rest.label).double().mean().item()
    )
    # What a sample lacks is unknown to the model, whatever the array holds.
    noise = {
        "a": torch.where(gaps[:, None], features.modalities["a"], torch.nan),
        "b": features.modalities["b"],
    }
    other = Features(noise, label=features.label, split=features.split, present={"a": gaps})
    assert evaluate(run, other) == found


def test_scores_by_hand():
    classes, label = Task("classification", 3), torch.tensor([0, 1, 1, 2])
    chances = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.3, 0.5], [0.3, 0.3, 0.4]])
    found = scores(classes, chances.log(), label)
    assert found["accuracy"] == 0.75
    assert found["macro_f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    # Class 0 stands above all others; 1 has one tie of four pairs; class 2 loses one pair of three.
    assert found["auc"] == pytest.approx((1 + 3.5 / 4 + 2 / 3) / 3)
    assert found["auc"] == pytest.approx(roc_auc_score(label, chances, multi_class="ovr"))
    assert scores(classes, chances.log(), torch.zeros(4).long())["auc"] == 0.5
    assert next(iter(scores(Task("conflict", 2), torch.zeros(4, 2), label.clamp(max=1)))) == "auc"
    truth, guess = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([2.0, 2.0, 2.0, 10.0])
    found = scores(Task("regression", 1), guess[:, None], truth)
    assert found["mae"] == pytest.approx((1 + 0 + 2 + 2) / 4)
    assert found["correlation"] == pytest.approx(np.corrcoef(truth, guess)[0, 1])
    assert scores(Task("regression", 1), torch.ones(4, 1), truth)["correlation"] == 0


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
    rows = {(row["layer"], row["case"]): row for row in found.rows() if row["metric"] == "accuracy"}
    assert len(rows) == 2 * 4
    one, other = (rows[layer, "all"] for layer in ("concat", "sum"))
    best, worse = (one, other) if one["mean"] >= other["mean"] else (other, one)
    assert (best["against"], best["p"]) == (None, None)
    assert worse["against"] == best["layer"]
    assert worse["difference"] == pytest.approx(worse["mean"] - best["mean"])
    if worse["p"] is not None:
        assert worse["p"] == pytest.approx(stats.ttest_rel(worse["values"], best["values"]).pvalue)
    assert best["half_width"] == pytest.approx(stats.sem(best["values"]) * stats.t.ppf(0.975, 2))
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
    row = next(row for row in found.rows() if row["case"] == "incomplete")
    cell = f"{row['mean']:.3f} ± {row['half_width']:.3f}"
    lines = found.table().splitlines()
    assert lines[0] == "| layer | parameters | MFLOP | time | all | incomplete |"
    assert lines[2].split(" | ")[1] == f"{row['parameters']:,}"
    assert lines[2].split(" | ")[-1] == cell + " |"
    assert "which vary initial weights, batches and dropout. " in lines[4]
    assert [line.split(" | ")[0] for line in lines[8:12]] == [
        "| all",
        "| incomplete",
        "| without a",
        "| without b",
    ]
    found.save(tmp_path, html=True)
    assert (tmp_path / "comparison.md").read_text().startswith(found.table())
    assert cell in (tmp_path / "comparison.html").read_text()
    assert json.loads((tmp_path / "comparison.json").read_text())["rows"] == found.rows()
    with pytest.raises(ValueError, match="metric must be one of accuracy, macro_f1, auc, got 'mae'"):
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
    assert "Correlation on the test samples, one seed: differences may be chance." in found.table(
        "correlation"
    )


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
        (["concat"], 1, "baselines must be among the layers concat, got sum"),
        (["concat"], 0, "seeds must be 1 or more, got 0"),
    ],
)
def test_comparisons_of_nothing(layers, seeds, message):
    with pytest.raises(ValueError, match=message):
        compare(problem(2), layers, seeds=seeds, baselines=["sum"] if seeds == 1 else None, progress=False)


def test_a_layer_that_is_worse_is_marked():
    """Three layers with made-up scores: one that is below the best baseline in every seed, one that is like it."""
    bar = [0.90, 0.91, 0.92, 0.90, 0.93]
    made = {
        "concat": bar,
        "sum": [0.7, 0.71, 0.7, 0.69, 0.73],
        "gmf": [0.95, 0.965, 0.97, 0.948, 0.98],
        "cell": [0.91, 0.90, 0.92, 0.91, 0.92],
    }
    found = Comparison(
        {name: {"all": {"accuracy": values}} for name, values in made.items()},
        dict.fromkeys(made, 1),
        QUICK,
        5,
        random_split=True,
        flops=dict.fromkeys(made, 1),
        times=dict.fromkeys(made, 1.0),
        baselines=("concat", "sum"),
    )
    rows = {row["layer"]: row for row in found.rows()}
    raw = [rows[name]["p"] for name in ("sum", "gmf", "cell")]
    ordinary = stats.ttest_rel(made["gmf"], bar).statistic / np.sqrt(1 + 5 / 3)
    assert rows["gmf"]["p"] == pytest.approx(2 * stats.t.sf(ordinary, 4))
    assert sorted(rows[name]["adjusted"] for name in ("sum", "gmf", "cell")) == pytest.approx(
        sorted([3 * min(raw), 2 * sorted(raw)[1], max(raw)])
    )
    lines = {line.split(" | ")[0]: line for line in found.table().splitlines()}
    assert "▲" in lines["| gmf"]
    assert "▼" in lines["| sum (baseline)"]
    assert "▲" not in lines["| cell"]
    assert "▼" not in lines["| cell"]


def test_one_modality_has_one_case():
    features = problem(modalities=1)
    run = train("gmf", features, recipe=QUICK, progress=False)
    assert list(evaluate(run, features)) == ["all"]
