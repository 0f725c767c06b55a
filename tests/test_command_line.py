"""python -m fusion: the commands agree with each other, and every mistake is one sentence."""

import json
import subprocess
import sys
from dataclasses import asdict, fields

import numpy as np
import pytest

import fusion
from fusion.__main__ import main
from fusion.data.datasets import shared_private
from fusion.data.feature_file import load_features, save_features
from fusion.evaluation.scores import evaluate, with_mean_of_incomplete
from fusion.layers.registry import LAYERS
from fusion.training.recipe import Recipe
from fusion.training.run import load_run

QUICK = ["--epochs", "2", "--batch-size", "32"]


@pytest.fixture
def path(tmp_path):
    features, _ = shared_private(120, {"a": 4, "b": 6, "c": 3}, shared=2, private=1, classes=3)
    save_features(tmp_path / "features.npz", features)
    return tmp_path / "features.npz"


def test_train_then_evaluate(path, tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["train", str(path), "--out", str(out), "--layer", "sum", "--seed", "3", *QUICK]) == 0
    trained = capsys.readouterr()
    assert main(["evaluate", str(out), str(path)]) == 0
    evaluated = capsys.readouterr()
    assert evaluated.out == "\n".join(trained.out.splitlines()[1:]) + "\n"
    assert main(["evaluate", str(out), str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    run = load_run(out)
    assert found == with_mean_of_incomplete(evaluate(run, load_features(path)))
    assert f"all         {found['all']['accuracy']:11.4f}" in evaluated.out
    assert (run.layer, run.seed, run.recipe.epochs, run.recipe.batch_size) == ("sum", 3, 2, 32)


def test_unlabelled_samples_are_learnt_from(path, tmp_path):
    """The command does what the function does, and that is something else than without them."""
    features = load_features(path)
    save_features(tmp_path / "more.npz", fusion.Features(features.modalities))
    command = ["train", str(path), "--out", str(tmp_path / "run"), "--layer", "sum", "--seed", "3", *QUICK]
    assert main([*command, "--confidence", "0.3", "--unlabelled", str(tmp_path / "more.npz")]) == 0
    run = load_run(tmp_path / "run")
    taught, alone = (
        fusion.train("sum", features, recipe=run.recipe, seed=3, unlabelled=more, progress=False)
        for more in (fusion.Features(features.modalities), None)
    )
    assert run.history == taught.history
    assert run.history != alone.history


def test_options_reach_the_recipe(path, tmp_path):
    switches = ["--no-standardise", "--no-random-subsets", "--no-each-alone", "--learning-rate", "0.1"]
    out = str(tmp_path / "run")
    assert main(["train", str(path), "--out", out, "--modalities", "c,a", *switches, *QUICK]) == 0
    run = load_run(out)
    assert list(run.dims.items()) == [("c", 3), ("a", 4)]
    assert (run.recipe.standardise, run.recipe.random_subsets, run.recipe.each_alone) == (False, False, False)
    assert run.recipe.learning_rate == 0.1
    assert main(["train", str(path), "--out", str(tmp_path / "paper"), "--paper", "--epochs", "1"]) == 0
    assert load_run(tmp_path / "paper").recipe.optimiser == "sgd"


def test_every_setting_of_a_recipe_has_an_option(path, tmp_path):
    """All that a recipe holds can be set, and arrives."""
    given = {
        "epochs": 3,
        "batch_size": 40,
        "optimiser": "sgd",
        "learning_rate": 0.02,
        "weight_decay": 0.001,
        "schedule": "plateau",
        "warm_up": 1,
        "patience": 2,
        "clip": 2.0,
        "mixed_precision": True,
        "standardise": False,
        "all_present": False,
        "random_subsets": True,
        "each_alone": False,
        "reconstruction_weight": 0.5,
        "temperature": 0.3,
        "unlabelled_weight": 0.7,
        "confidence": 0.8,
        "extractor": 6,
        "hidden": 7,
        "dropout": 0.1,
        "keep": "best",
    }
    assert list(given) == [field.name for field in fields(Recipe)]
    options = [f"--{k.replace('_', '-')}={v}" for k, v in given.items() if not isinstance(v, bool)]
    switches = ["--mixed-precision", "--no-standardise", "--no-all-present", "--no-each-alone"]
    assert main(["train", str(path), "--out", str(tmp_path / "run"), *options, *switches]) == 0
    assert asdict(load_run(tmp_path / "run").recipe) == given
    assert main(["train", str(path), "--out", str(tmp_path / "modern"), "--modern", "--epochs", "2"]) == 0
    assert load_run(tmp_path / "modern").recipe == Recipe.modern(epochs=2)


@pytest.mark.parametrize(("task", "metric"), [("retrieval", "map@10"), ("conflict", "auc")])
def test_tasks(path, tmp_path, capsys, task, metric):
    out = str(tmp_path / "run")
    assert main(["train", str(path), "--out", out, "--task", task, "--tensorboard", *QUICK]) == 0
    trained = capsys.readouterr().out
    assert trained.splitlines()[1].split()[:2] == ["case", metric]
    assert main(["evaluate", out, str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == trained.splitlines()[1:]
    assert (tmp_path / "run" / "tensorboard").is_dir()
    assert main(["compare", str(path), "--out", out, "--task", task, "--layers", "gmf,sum,late",
                 "--seeds", "1", "--baselines", "late", "--html", "--diagnostics", *QUICK]) == 0  # fmt: skip
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert (found["task"], found["baselines"]) == (task, ["late"])
    assert {row["against"] for row in found["rows"] if row["layer"] == "sum"} == {"late"}
    assert (tmp_path / "run" / "comparison.html").exists()


def test_compare_writes_what_it_prints(path, tmp_path, capsys):
    out = tmp_path / "found"
    arguments = ["compare", str(path), "--out", str(out), "--layers", "concat,late", "--seeds", "2", *QUICK]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert (out / "comparison.md").read_text().startswith(printed)
    assert printed.splitlines()[2].startswith("| concat (baseline) | ")
    found = json.loads((out / "comparison.json").read_text())
    assert {row["layer"] for row in found["rows"]} == {"concat", "late"}
    assert found["recipe"]["epochs"] == 2


def arrays(**changes):
    sound = {"a": np.ones((6, 2)), "b": np.ones((6, 3)), "label": np.arange(6) % 2}
    return {name: array for name, array in (sound | changes).items() if array is not None}


MALFORMED = {
    "not an archive": (b"hello", "not an npz archive, or one that was cut short."),
    "NaN": (arrays(a=np.full((6, 2), np.nan)), "modality 'a' must be finite, got 12 values"),
    "counts": (arrays(a=np.ones((5, 2))), "same number of samples, got 'a' 5, 'b' 6."),
    "objects": (arrays(a=np.array([[{}]] * 6)), "array 'a' must be numeric, got Python objects"),
    "axes": (arrays(a=np.ones(6)), "modality 'a' must have the shape (N, l) or (N, T, l), got (6,)."),
    "no modality": (arrays(a=None, b=None), "no modality: at least one array"),
    "no label": (arrays(label=None), "features have no label, so there is nothing to learn."),
    "text label": (arrays(label=np.array(list("abcdef"))), "array 'label' must be numeric"),
    "negative class": (arrays(label=np.array([0, 1, -1, 0, 1, 1])), "label must be 0 or more, got -1"),
    "split": (arrays(split=np.full(6, 3)), "split must be between 0 and 2, got 3 at sample 0."),
    "length": (arrays(a_length=np.ones(6, int)), "a_length needs a modality 'a' that is a sequence"),
}


@pytest.mark.parametrize(("content", "sentence"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_file_is_one_sentence(tmp_path, capsys, content, sentence):
    path = tmp_path / "features.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.savez(path, **content)
    assert main(["train", str(path), "--out", str(tmp_path / "run")]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("fusion train: ")
    assert sentence in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not (tmp_path / "run").exists()


MISTAKES = {
    "no file": (["train", "nothing.npz", "--out", "run"], "nothing.npz: no such file."),
    "layer": (
        ["train", "FILE", "--out", "run", "--layer", "lion"],
        "layer must be one of gmf, scfae, cell",
    ),
    "modality": (["train", "FILE", "--out", "run", "--modalities", "a,x"], "out of a, b, c, got a, x."),
    "epochs": (["train", "FILE", "--out", "run", "--epochs", "0"], "epochs must be 1 or more, got 0."),
    "seed": (["train", "FILE", "--out", "run", "--seed", "-2"], "seed must be 0 or more, got -2."),
    "device": (["train", "FILE", "--out", "run", "--device", "gpu"], "device 'gpu' cannot be used"),
    "device of a run": (["evaluate", "RUN", "FILE", "--device", "gpu"], "device 'gpu' cannot be used"),
    "no run": (["evaluate", "nowhere", "FILE"], "nowhere holds no finished run: run.json is missing."),
    "layers": (["compare", "FILE", "--out", "run", "--layers", "sum,lion"], "layer must be one of gmf"),
    "seeds": (["compare", "FILE", "--out", "run", "--seeds", "0"], "seeds must be 1 or more, got 0."),
}


@pytest.mark.parametrize(("arguments", "sentence"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistake_is_one_sentence(path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(path.parent)
    if "RUN" in arguments:
        assert main(["train", str(path), "--out", "RUN", "--layer", "concat", *QUICK]) == 0
        capsys.readouterr()
    assert main([str(path) if argument == "FILE" else argument for argument in arguments]) == 2
    captured = capsys.readouterr().err
    assert sentence in captured
    assert captured.count("\n") == 1


def test_other_settings_in_the_same_folder(path, tmp_path, capsys):
    train = ["train", str(path), "--out", str(tmp_path / "run"), "--layer", "concat", *QUICK]
    assert main(train) == 0
    capsys.readouterr()
    assert main([*train, "--learning-rate", "0.5"]) == 2
    assert "other settings (recipe.learning_rate was 0.005, now 0.5)" in capsys.readouterr().err


def test_divergence_is_one_sentence(path, tmp_path, capsys):
    arguments = ["train", str(path), "--out", str(tmp_path / "run"), "--learning-rate", "1e30"]
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "fusion train: the loss is " in last
    assert "Try a learning_rate below" in last


def test_help_names_every_layer(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["train", "--help"])
    printed = "".join(capsys.readouterr().out.split())  # a line may break at the hyphen of a name
    assert all(name in printed for name in LAYERS)


def test_help_of_the_module():
    command = [sys.executable, "-m", "fusion", "--help"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(command in printed for command in ("train", "evaluate", "compare"))


def test_unknown_command(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["dance"])
    assert "invalid choice: 'dance'" in capsys.readouterr().err


def test_everything_exported_exists():
    assert {name for name in fusion.__all__ if getattr(fusion, name, None) is None} == set()
    with pytest.raises(AttributeError, match="module 'fusion' has no attribute 'Fission'"):
        fusion.Fission  # noqa: B018
