"""Train fusion layers as docs/fusion_results.md reports: python -m benchmarks.fusion_accuracy [NAME ...] [--page].

Experiments by NAME (all, if none is given), each kept in a file of results/fusion/ layer by layer: what is there is
not trained again. `--file FEATURES.npz` adds experiments on a feature file. `--page` writes the page.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fusion
from pnp.atomic import replacing

FOLDER = Path(__file__).parent / "results" / "fusion"
PAGE = Path(__file__).parents[1] / "docs" / "fusion_results.md"
SEEDS = 5
QUICK = ["gmf", "scfae", "cell", "concat", "sum", "late", "gated", "low-rank", "misa"]
ATTENTION = ["g-mbt", "g-perceiver", "g-attention", "cross-attention", "mbt", "perceiver"]
OFF = {"standardise": False, "random_subsets": False, "each_alone": False}
PARTS = {"a": "standardise", "b": "random_subsets", "c": "each_alone"}
RECIPES = {
    "plain": fusion.Recipe(**OFF),
    "a": fusion.Recipe(**OFF | {"standardise": True}),
    "full": fusion.Recipe(),
    "paper": fusion.Recipe.paper(),
}
ABLATION = ["".join(parts) for size in range(4) for parts in itertools.combinations("abc", size)]
OPTIONS: dict[str, dict[str, Any]] = {
    "gmf": {},
    "gmf, mean of the others": {"partner": "mean"},
    "gmf, half the specific part": {"specific_share": 0.5},
    "gmf, learned placeholder": {"absent": "learned"},
    "gmf, all three": {"partner": "mean", "specific_share": 0.5, "absent": "learned"},
    "gmf, no reconstruction": {"reconstruction_weight": 0.0},
}


@dataclass(frozen=True)
class Experiment:
    """Layers under one recipe on one set of features."""

    title: str
    features: Callable[[], fusion.Features]
    layers: Mapping[str, Any]
    recipe: fusion.Recipe
    task: str = "classification"


def experiments(files: Iterable[Path]) -> dict[str, Experiment]:
    """All experiments by name."""
    named = {"digits": fusion.digits_two_views, "quadrants": fusion.digits_views}
    named |= {file.stem: partial(fusion.load_features, file) for file in files}
    found = {}
    for data, features in named.items():
        for name in ("plain", "a", "full"):
            layers = QUICK + (ATTENTION if data == "digits" and name == "full" else [])
            found[f"{data} {name}"] = Experiment(data, features, _named(layers), RECIPES[name])
    digits = fusion.digits_two_views
    found["digits paper"] = Experiment("digits", digits, _named(QUICK), RECIPES["paper"])
    for parts in ABLATION:
        recipe = fusion.Recipe(**OFF | {PARTS[part]: True for part in parts})
        found[f"ablation {parts or 'none'}"] = Experiment(
            "digits", digits, _named(["gmf", "cell", "concat", "sum"]), recipe
        )
    for name, hidden in (("perceptron", 128), ("linear", None)):
        layers = {one: partial(fusion.GMF, **given) for one, given in OPTIONS.items()} | _named(["sum"])
        found[f"options {name}"] = Experiment(
            "quadrants", fusion.digits_views, layers, fusion.Recipe(hidden=hidden)
        )
    for task in ("retrieval", "conflict"):
        found[task] = Experiment("digits", digits, _named(QUICK), RECIPES["full"], task)
    return found


def _named(layers: Iterable[str]) -> dict[str, Any]:
    return {name: fusion.find_layer(name) for name in layers}


def run(name: str, experiment: Experiment) -> None:
    """Train what is not there yet."""
    path = FOLDER / f"{name.replace(' ', '_')}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    features = experiment.features()
    for layer, maker in experiment.layers.items():
        if layer in known:
            continue
        found = fusion.compare(
            features,
            {layer: maker},
            recipe=experiment.recipe,
            seeds=SEEDS,
            task=experiment.task,
            baselines=[],
            progress=False,
        )
        figures = ("scores", "parameters", "flops", "times")
        known[layer] = {what: getattr(found, what)[layer] for what in figures} | {
            "random_split": found.random_split
        }
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(name, layer, flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--file", type=Path, action="append", default=[], metavar="FEATURES")
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = experiments(options.file)
    for name in options.names or ([] if options.page else known):
        run(name, known[name])


if __name__ == "__main__":
    main()
