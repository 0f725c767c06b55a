"""Trainings that are interrupted, and runs that are written and read again."""

import json
import math
import signal
import subprocess
import sys
import textwrap
from dataclasses import asdict

import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.data.feature_file import save_features
from fusion.data.features import Features
from fusion.layers.gmf import GMF
from fusion.layers.layer import Fused
from fusion.layers.plain import Concatenation
from fusion.training.checkpoint import load_checkpoint
from fusion.training.loop import train
from fusion.training.recipe import Recipe
from fusion.training.run import load_run

DIMS = {"a": 6, "b": 9, "c": 4}
QUICK = Recipe(epochs=4, batch_size=32, hidden=16)


@pytest.fixture(scope="module")
def features():
    """Three modalities, 145 training samples: five batches of 29."""
    made, _ = shared_private(240, DIMS, shared=5, private=2, noise=0.2, seed=0, classes=3)
    return made.with_split(0)


KILLED = textwrap.dedent("""
    import json, os, signal, sys, torch
    torch.set_num_threads(1)
    from fusion.training import loop, objective
    from fusion.data.feature_file import load_features
    from fusion.training.recipe import Recipe

    steps = 0
    original = objective.step_loss

    def step_loss(model, *arguments, **named):
        global steps
        steps += model.training
        if steps == 3 * 5 + 3:  # in the middle of the fourth epoch of five steps
            os.kill(os.getpid(), signal.SIGKILL)
        return original(model, *arguments, **named)

    objective.step_loss = step_loss
    recipe = Recipe(**json.loads(sys.argv[3]))
    loop.train(
        sys.argv[4], load_features(sys.argv[1]), recipe=recipe, seed=2, out=sys.argv[2], progress=False
    )
""")

SHORT = {"epochs": 6, "batch_size": 32, "hidden": 16}
RECIPES = {
    "last weights, cosine": Recipe(**SHORT),
    "best weights, plateau": Recipe(**SHORT, keep="best", schedule="plateau"),
    # which diverges soon
    "best weights from before": Recipe(
        **SHORT, keep="best", schedule="constant", warm_up=6, learning_rate=1.0
    ),
    "warm-up, patience, clipping": Recipe.modern(
        **SHORT
        | {"epochs": 40, "patience": 2, "warm_up": 4, "clip": 0.5, "learning_rate": 0.05, "extractor": 8}
    ),
    "mixed precision": Recipe(**SHORT, mixed_precision=True, warm_up=4),
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_a_killed_training_resumes_to_the_same_bits(features, tmp_path, recipe):
    assert_a_killed_training_resumes("gmf", features, tmp_path, recipe)


def test_so_does_one_on_sequences(tmp_path):
    made, _ = shared_private(240, DIMS, shared=5, private=2, seed=0, classes=3, steps=4, missing=0.2)
    recipe = Recipe(**SHORT | {"epochs": 4}, extractor=5)
    assert_a_killed_training_resumes("perceiver", made.with_split(0), tmp_path, recipe)


def test_so_does_one_of_a_cell_that_follows_its_encoders(features, tmp_path):
    assert_a_killed_training_resumes("cell", features, tmp_path, Recipe(**SHORT, extractor=5))


def test_so_does_one_that_learns_from_unlabelled_samples(features, tmp_path):
    def until(epoch):
        class Stop(Exception):
            pass

        class Until:
            def on_epoch(self, now, model, features):
                if now == epoch:
                    raise Stop

        return [Until()], Stop

    labelled, rest = features.with_split(0), features.test
    recipe = Recipe(**SHORT, confidence=0.4)
    callbacks, stop = until(3)
    given = {"recipe": recipe, "seed": 2, "unlabelled": rest, "progress": False}
    with pytest.raises(stop):
        train("cell", labelled, out=tmp_path, callbacks=callbacks, **given)
    resumed, straight = train("cell", labelled, out=tmp_path, **given), train("cell", labelled, **given)
    assert resumed.history == straight.history
    assert straight.history != train("cell", labelled, recipe=recipe, seed=2, progress=False).history
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name
    with pytest.raises(ValueError, match="unlabelled was"):
        train("cell", labelled, out=tmp_path, **given | {"unlabelled": features.train})


def assert_a_killed_training_resumes(layer, features, tmp_path, recipe):
    path, out = tmp_path / "features.npz", tmp_path / "run"
    save_features(path, features)
    command = [sys.executable, "-c", KILLED, str(path), str(out), json.dumps(asdict(recipe)), layer]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    checkpoint = torch.load(out / "checkpoint.pt", weights_only=True)
    assert len(checkpoint["history"]) == 3
    assert not (out / "run.json").exists()
    resumed = train(layer, features, recipe=recipe, seed=2, out=out, progress=False)
    straight = train(layer, features, recipe=recipe, seed=2, progress=False)
    assert resumed.history == straight.history
    assert 3 < len(straight.history) < 40
    assert (out / "log.csv").read_text().count("\n") == 1 + len(straight.history)
    assert resumed.kept == straight.kept
    if recipe.learning_rate == 1:  # the weights to keep come from the process that was killed
        assert straight.kept <= 3
    for name, value in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_a_finished_run_is_returned_and_read_again(features, tmp_path):
    run = train("gmf", features, recipe=QUICK, out=tmp_path, progress=False)
    again = train("gmf", features, recipe=QUICK, out=tmp_path, progress=False)
    loaded = load_run(tmp_path)
    for other in (again, loaded):
        assert other.history == run.history
        assert torch.equal(other.predict(features), run.predict(features))
    for name in ("layer", "task", "recipe", "seed", "data", "kept", "dims"):
        assert getattr(loaded, name) == getattr(run, name)
    assert not loaded.model.training
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "checkpoint.pt",
        "log.csv",
        "model.safetensors",
        "run.json",
    ]


def test_other_settings_do_not_resume(features, tmp_path):
    train("concat", features, recipe=QUICK, out=tmp_path, progress=False)
    changed = Recipe(**(asdict(QUICK) | {"learning_rate": 0.1}))
    with pytest.raises(ValueError, match=r"other settings \(recipe.learning_rate was 0.005, now 0.1\)"):
        train("concat", features, recipe=changed, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"layer was concat, now sum; .*seed was 0, now 1"):
        train("sum", features, recipe=QUICK, seed=1, out=tmp_path, progress=False)
    shifted = Features(
        {name: values + 1 for name, values in features.modalities.items()},
        label=features.label,
        split=features.split,
    )
    with pytest.raises(ValueError, match=r"data was \w+, now \w+"):
        train("concat", shifted, recipe=QUICK, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"modalities was .*'a'.*, now .*'c'"):
        train("concat", features.select(["c", "b", "a"]), recipe=QUICK, out=tmp_path, progress=False)


def test_a_checkpoint_that_is_none(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a checkpoint of this version"):
        load_checkpoint(tmp_path, {}, torch.device("cpu"))


def test_a_layer_given_as_an_object_is_given_again(features, tmp_path):
    run = train(GMF(DIMS, expansion=2), features, recipe=QUICK, out=tmp_path, progress=False)
    with pytest.raises(ValueError, match="holds a layer that was given as an object; pass GMF again"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="does not hold the weights of this run"):
        load_run(tmp_path, GMF(DIMS, expansion=3))
    loaded = load_run(tmp_path, GMF(DIMS, expansion=2))
    assert torch.equal(loaded.predict(features), run.predict(features))


def test_runs_that_cannot_be_read(features, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no finished run: run\.json is missing"):
        load_run(tmp_path)
    train("concat", features, recipe=QUICK, out=tmp_path, progress=False)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="does not hold the weights of this run"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"run\.json is not a run of this version"):
        load_run(tmp_path)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(features, tmp_path):
    class Exploding(Concatenation):
        calls = 0

        def fuse(self, given, present):
            self.calls += self.training
            loss = torch.tensor(math.nan if self.calls > 2 * 5 + 1 else 0.0)
            return Fused(given, losses={"explosion": loss})

    recipe = Recipe(epochs=6, batch_size=32, random_subsets=False, each_alone=False)
    message = (
        r"the loss is nan in epoch 3, step 2\. Try a learning_rate below 0\.00\d+, standardise=True, .*"
        r"The checkpoint of epoch 2 is in "
    )
    with pytest.raises(FloatingPointError, match=message):
        train(Exploding(DIMS), features, recipe=recipe, out=tmp_path, progress=False)
    assert len(torch.load(tmp_path / "checkpoint.pt", weights_only=True)["history"]) == 2
    assert not (tmp_path / "run.json").exists()
