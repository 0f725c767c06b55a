"""Training shared by two processes that torchrun starts: the same losses as one process with the whole batch."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.data.feature_file import save_features
from fusion.training.loop import train
from fusion.training.recipe import Recipe
from fusion.training.run import load_run

# The script lies elsewhere, and should find this code however it was installed.
PATHS = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
TRAIN = textwrap.dedent("""
    import json, os, signal, sys, torch
    from pathlib import Path
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    from fusion.training import loop
    from fusion.data.feature_file import load_features
    from fusion.training.recipe import Recipe

    path, out, recipe, layer, task, epoch_of_death = sys.argv[1:]
    original = loop._Trainer.train_epoch

    def train_epoch(trainer, epoch, *arguments):
        if epoch == int(epoch_of_death):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(trainer, epoch, *arguments)

    loop._Trainer.train_epoch = train_epoch
    recipe, task = Recipe(**json.loads(recipe)), json.loads(task)
    more = Path(path).with_name("more.npz")
    run = loop.train(
        layer,
        load_features(path),
        recipe=recipe,
        task=task,
        unlabelled=load_features(more) if more.exists() else None,
        out=out,
        progress=False,
    )
    losses = [[e.train_loss, e.validation_loss] for e in run.history]
    Path(out).with_name(f"losses_{os.environ['RANK']}.json").write_text(json.dumps(losses))
""")


@pytest.fixture(scope="module")
def features():
    """90 training samples with gaps: batches of 15 in each of two processes, 30 in one."""
    gaps = torch.rand(150, generator=torch.Generator().manual_seed(0)) < 0.8
    return replace(more_samples(150), present={"b": gaps})


def more_samples(count):
    """So many of three modalities, in float64."""
    made, _ = shared_private(count, {"a": 6, "b": 4, "c": 5}, shared=3, private=2, seed=0, classes=3)
    doubled = {name: values.double() for name, values in made.modalities.items()}
    return replace(made, modalities=doubled).with_split(0)


def in_steps(features):
    """The same as sequences of mixed lengths, noise added."""
    generator, modalities = torch.Generator().manual_seed(0), dict(features.modalities)
    for name in ("a", "b"):
        noise = torch.randn(150, 4, features.dims[name], generator=generator, dtype=torch.float64)
        modalities[name] = modalities[name][:, None] + noise
    lengths = {"b": torch.randint(1, 5, (150,), generator=generator)}
    return type(features)(modalities, lengths, features.label, features.split, features.present)


def start(path, out, recipe, layer, task, die_in=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = path.parent / "train.py"
    script.write_text(TRAIN)
    given = [str(script), str(path), str(out), json.dumps(recipe), layer, json.dumps(task), str(die_in)]
    return subprocess.run([*command, *given], capture_output=True, text=True, env=PATHS, check=False)


@pytest.mark.parametrize(
    ("layer", "task"),
    [("gmf", None), ("sum", None), ("cell", None), ("perceiver", None), ("concat", "retrieval")],
)
def test_two_processes_train_like_one_with_the_doubled_batch(features, tmp_path, layer, task):
    recipe = {"epochs": 4, "batch_size": 16, "hidden": 8, "dropout": 0.0, "clip": 1.0, "warm_up": 2}
    if layer == "gmf":  # whose own loss is a mean over the samples that are present
        features = replace(features, present={})
    if layer == "cell":  # which measures pairs of modalities where no sample has all
        features, lacks = more_samples(450), torch.arange(450) % 3
        features = replace(features, present={name: lacks != place for place, name in enumerate("abc")})
        recipe |= {"batch_size": 50}
    if layer != "gmf":
        recipe |= {"extractor": 5}
    if layer == "cell":
        # AdamW makes steps of 1e-11 of the rounding errors that are the gradients of biases which standardising
        # takes out again, and the noise that the layer measures makes ten times that of them.
        recipe |= {"optimiser": "sgd", "learning_rate": 0.1}
    if layer == "perceiver":
        features, recipe = in_steps(features), recipe | {"epochs": 2}
    path, unlabelled = tmp_path / "features.npz", None
    if layer == "sum":
        recipe |= {"confidence": 0.4}
        unlabelled = type(features)(features.modalities, present=features.present)
        save_features(tmp_path / "more.npz", unlabelled)
    save_features(path, features)
    if layer == "sum":  # and these are killed on their way
        assert start(path, tmp_path / "two", recipe, layer, task, die_in=3).returncode != 0
        assert len(torch.load(tmp_path / "two" / "checkpoint.pt", weights_only=True)["history"]) == 2
    two = start(path, tmp_path / "two", recipe, layer, task)
    assert two.returncode == 0, two.stderr
    losses = [json.loads((tmp_path / f"losses_{rank}.json").read_text()) for rank in range(2)]
    assert losses[0] == losses[1]
    doubled = Recipe(**recipe | {"batch_size": 2 * recipe["batch_size"]})
    torch.set_default_dtype(torch.float64)
    try:
        settings = {"task": task, "unlabelled": unlabelled, "out": tmp_path / "one", "progress": False}
        one = train(layer, features, recipe=doubled, **settings)
    finally:
        torch.set_default_dtype(torch.float32)
    found = torch.tensor(losses[0], dtype=torch.float64)
    expected = [[epoch.train_loss, epoch.validation_loss] for epoch in one.history]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == names
    saved = load_run(tmp_path / "two").model.state_dict()
    for name, values in one.model.state_dict().items():
        torch.testing.assert_close(saved[name], values.to(saved[name]), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"processes was 2, now 1"):
        train(layer, features, recipe=Recipe(**recipe), task=task, out=tmp_path / "two", progress=False)
