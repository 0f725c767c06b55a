"""Several fusion layers under one recipe, over several seeds."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pnp.atomic import replacing

from ..data.features import Features
from ..extras import require
from ..layers.registry import LAYERS, Maker, find_layer
from ..training.loop import train
from ..training.recipe import DEFAULT, Recipe
from .scores import evaluate


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        scores: Layer → case → metric → one value for each seed.
        parameters: Layer → trainable parameters of the whole model.
        recipe: Of every run.
        seeds: How many.
        random_split: Whether each seed drew its own split, because the features had none.
    """

    scores: dict[str, dict[str, dict[str, list[float]]]]
    parameters: dict[str, int]
    recipe: Recipe
    seeds: int
    random_split: bool

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary for each layer, case and metric: mean, standard deviation, values, parameters.

        The standard deviation is the sample's (N − 1), and None for a single seed.
        """
        return [
            {
                "layer": layer,
                "case": case,
                "metric": metric,
                "mean": fmean(values),
                "standard_deviation": stdev(values) if len(values) > 1 else None,
                "values": values,
                "parameters": self.parameters[layer],
            }
            for layer, by_case in self.scores.items()
            for case, by_metric in by_case.items()
            for metric, values in by_metric.items()
        ]

    def table(self, metric: str | None = None) -> str:
        """A markdown table, layers by cases, and a line on what the error bars mean.

        Arguments:
            metric: Which; None: the first, `accuracy` or `mae`.

        Raises:
            ValueError: A metric that was not measured.
        """
        measured = list(dict.fromkeys(row["metric"] for row in self.rows()))
        metric = measured[0] if metric is None else metric
        if metric not in measured:
            raise ValueError(f"metric must be one of {', '.join(measured)}, got {metric!r}.")
        rows = [row for row in self.rows() if row["metric"] == metric]
        columns = ["layer", "parameters", *dict.fromkeys(row["case"] for row in rows)]
        lines = [columns, ["---"] + ["---:"] * (len(columns) - 1)]
        for layer, count in self.parameters.items():
            lines.append([layer, f"{count:,}"] + [_cell(row) for row in rows if row["layer"] == layer])
        return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{self._caption(metric)}\n"

    def save(self, folder: Path | str) -> None:
        """Write `comparison.json` and `comparison.md`, each atomically."""
        found = {"recipe": asdict(self.recipe), "seeds": self.seeds, "random_split": self.random_split}
        texts = {
            "comparison.json": json.dumps(found | {"rows": self.rows()}, indent=1) + "\n",
            "comparison.md": self.table(),
        }
        for name, text in texts.items():
            with replacing(Path(folder) / name) as temporary:
                temporary.write_text(text, encoding="utf-8")

    def _caption(self, metric: str) -> str:
        if self.seeds == 1:
            return f"{metric.capitalize()} on the test samples, one seed: differences may be chance."
        varied = "initial weights, batches and dropout"
        if self.random_split:
            varied = "the split, " + varied
        return f"{metric.capitalize()} on the test samples, mean ± standard deviation over {self.seeds} " + (
            f"seeds, which vary {varied}."
        )


def compare(
    features: Features,
    layers: Iterable[str] | Mapping[str, Maker] | None = None,
    *,
    recipe: Recipe = DEFAULT,
    seeds: int = 5,
    progress: bool = True,
) -> Comparison:
    """Train and score every layer with seeds 0, 1, ... under the same recipe.

    The standard deviation over seeds says how far a single training may be off. If the features have their
    own split, seeds vary initial weights, batches and dropout, and the error bars know nothing of how lucky
    the choice of test samples was; otherwise each seed also draws its split, and they do. The splits of
    different seeds overlap, so dividing by the root of their number gives no standard error. Each layer sees
    the same seeds and splits, so two layers may be compared seed by seed (`rows()` has the values).

    Arguments:
        features: With labels.
        layers: Names in the registry, or name → function that builds a layer from `dims`; None: all.
        seeds: How many, 1 or more.

    Raises:
        ValueError: An unknown layer, no layer or no seed; or what :func:`train` finds wrong.
        ModuleNotFoundError: scikit-learn, or tqdm (for `progress`), is not installed.
    """
    makers = _makers(LAYERS if layers is None else layers)
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}.")
    scores: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in makers}
    parameters = {}
    runs: Iterable[tuple[str, int]] = [(name, seed) for name in makers for seed in range(seeds)]
    for name, seed in require("tqdm").tqdm(runs, desc="compare") if progress else runs:
        run = train(makers[name], features, recipe=recipe, seed=seed, progress=False)
        parameters[name] = run.parameters
        for case, by_metric in evaluate(run, features).items():
            for metric, value in by_metric.items():
                scores[name].setdefault(case, {}).setdefault(metric, []).append(value)
    return Comparison(scores, parameters, recipe, seeds, random_split=features.split is None)


def _makers(layers: Iterable[str] | Mapping[str, Maker]) -> dict[str, Maker]:
    makers = dict(layers) if isinstance(layers, Mapping) else {name: find_layer(name) for name in layers}
    if not makers:
        raise ValueError("layers must name at least one layer, got none.")
    return makers


def _cell(row: dict[str, Any]) -> str:
    spread = row["standard_deviation"]
    return f"{row['mean']:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
