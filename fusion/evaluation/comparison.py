"""Several fusion layers under one recipe, over several seeds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from ..data.features import Features
from ..extras import require
from ..layers.plain import Concatenation
from ..layers.registry import LAYERS, Maker, find_layer
from ..training.loop import train
from ..training.recipe import DEFAULT, Recipe
from ..training.run import Run, build_model
from ..training.task import TASKS
from .cost import flops, relative_times
from .diagnostics import diagnose, probes_alone
from .scores import evaluate, is_better_higher, with_mean_of_incomplete
from .statistics import TEST_SHARE, half_width, holm, paired_test
from .tables import comparison_table, save_comparison

PROPOSED = ("gmf", "scfae", "cell")
"""What the names of layers begin with that are to be judged; all others are baselines."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        scores: Layer → case → metric → one value for each seed; the case `incomplete` is the mean over all
            cases with something missing.
        parameters: Layer → trainable parameters of the whole model.
        recipe: Of every run.
        seeds: How many.
        random_split: Whether each seed drew its own split, because the features had none.
        flops: Layer → floating-point operations of a sample's forward pass, sequences as long as they may be.
        times: Layer → time of a training step's passes over that of concatenation, measured side by side.
        baselines: The layers among them that are baselines.
        diagnostics: Layer → figure → one value for each seed, where they were asked for.
        task: What was learnt.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> quick = fusion.Recipe(epochs=1)
        >>> found = fusion.compare(data, ["gmf", "sum"], recipe=quick, seeds=2, progress=False)
        >>> found.table().splitlines()[0], len(found.rows())
        ('| layer | parameters | MFLOP | time | all | incomplete |', 24)
    """

    scores: dict[str, dict[str, dict[str, list[float]]]]
    parameters: dict[str, int]
    recipe: Recipe
    seeds: int
    random_split: bool
    flops: dict[str, int]
    times: dict[str, float]
    baselines: tuple[str, ...]
    diagnostics: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    task: str = TASKS[0]

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary for each layer, case and metric.

        `mean`, `standard_deviation` (the sample's, N − 1) and `half_width` of the 95 % confidence interval,
        both None for a single seed; the `values`; `parameters`, `flops` and `relative_time`; and the test
        against the best baseline of the case: its name `against` (None for itself), the mean `difference`
        from it, and the p-value, as it is and `adjusted` by Holm for the layers tested in that case and metric.
        """
        tests = self._tests()
        return [
            {
                "layer": layer,
                "case": case,
                "metric": metric,
                "mean": fmean(values),
                "standard_deviation": stdev(values) if len(values) > 1 else None,
                "half_width": half_width(values, overlap=self.overlap),
                "values": values,
                "parameters": self.parameters[layer],
                "flops": self.flops[layer],
                "relative_time": self.times[layer],
            }
            | tests.get(
                (layer, case, metric), {"against": None, "difference": None, "p": None, "adjusted": None}
            )
            for layer, by_case in self.scores.items()
            for case, by_metric in by_case.items()
            for metric, values in by_metric.items()
        ]

    @property
    def metrics(self) -> list[str]:
        """All that were measured, the leading one first."""
        return list(dict.fromkeys(row for cases in self.scores.values() for m in cases.values() for row in m))

    def best_baseline(self, case: str, metric: str) -> str | None:
        """The baseline with the best mean; None if no baseline was measured so."""
        means = {
            layer: fmean(self.scores[layer][case][metric])
            for layer in self.baselines
            if metric in self.scores[layer].get(case, {})
        }
        if not means:
            return None
        return (max if is_better_higher(metric) else min)(means, key=lambda layer: means[layer])

    def table(self, metric: str | None = None) -> str:
        """Markdown: layers by cases, with their cost, and lines on what the figures mean.

        Arguments:
            metric: Which; None: the first.

        Raises:
            ValueError: A metric that was not measured.
        """
        return comparison_table(self, metric)

    def save(self, folder: Path | str, *, html: bool = False) -> None:
        """Write `comparison.json`, `comparison.md` and if wanted `comparison.html`, each atomically.

        Raises:
            ModuleNotFoundError: jinja2 is not installed (for `html`).
        """
        save_comparison(self, Path(folder), html=html)

    @property
    def overlap(self) -> float:
        """Test over training samples where seeds draw their own splits, else 0; for intervals and tests."""
        return TEST_SHARE if self.random_split else 0.0

    def _tests(self) -> dict[tuple[str, str, str], dict[str, Any]]:
        found: dict[tuple[str, str, str], dict[str, Any]] = {}
        for case in next(iter(self.scores.values())):
            for metric in self.metrics:
                best = self.best_baseline(case, metric)
                if best is None:
                    continue
                bar = self.scores[best][case][metric]
                tested = {
                    layer: cases[case][metric]
                    for layer, cases in self.scores.items()
                    if layer != best and metric in cases.get(case, {})
                }
                raw = [paired_test(values, bar, overlap=self.overlap) for values in tested.values()]
                for (layer, values), p, adjusted in zip(tested.items(), raw, holm(raw), strict=True):
                    found[layer, case, metric] = {
                        "against": best,
                        "difference": fmean(values) - fmean(bar),
                        "p": p,
                        "adjusted": adjusted,
                    }
        return found


def compare(
    features: Features,
    layers: Iterable[str] | Mapping[str, Maker] | None = None,
    *,
    recipe: Recipe = DEFAULT,
    seeds: int = 5,
    task: str | None = None,
    baselines: Iterable[str] | None = None,
    diagnostics: bool = False,
    progress: bool = True,
) -> Comparison:
    """Train and score every layer with seeds 0, 1, ... under the same recipe.

    If the features have their own split, seeds vary initial weights, batches and dropout, and the intervals
    know nothing of how lucky the choice of test samples was; otherwise each seed also draws its split, and
    they do. The splits of different seeds overlap, which intervals and tests take into account
    (:mod:`fusion.evaluation.statistics`). Each layer sees the same seeds and splits, so layers are compared
    seed by seed, with the baseline that is best in the same case on the same test samples: that choice
    favours the baseline, and makes the bar for the others higher, not lower.

    Arguments:
        features: With what the task needs.
        layers: Names in the registry, or name → function that builds a layer from `dims`; None: all.
        seeds: How many, 1 or more; fewer than 5 say little.
        task: See :func:`train`.
        baselines: Names out of `layers`; None: all but those that begin with gmf, scfae or cell.
        diagnostics: Also look inside, see :func:`~fusion.evaluation.diagnostics.diagnose`; if the recipe has
            extractors each seed also trains them alone.

    Raises:
        ValueError: An unknown layer or baseline, no layer or no seed; or what :func:`train` finds wrong.
        ModuleNotFoundError: scikit-learn, or tqdm (for `progress`), is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> quick = fusion.Recipe(epochs=1)
        >>> found = fusion.compare(data, ["gmf", "sum"], recipe=quick, seeds=2, progress=False)
        >>> sorted(found.parameters), found.metrics[0]
        (['gmf', 'sum'], 'accuracy')
    """
    makers = _makers(LAYERS if layers is None else layers)
    bars = _baselines(makers, baselines)
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}.")
    scores: dict[str, dict[str, dict[str, list[float]]]] = {name: {} for name in makers}
    inside: dict[str, dict[str, list[float]]] = {}
    first: dict[str, Run] = {}
    alone: dict[int, dict[str, float]] = {}
    runs: Iterable[tuple[str, int]] = [(name, seed) for name in makers for seed in range(seeds)]
    for name, seed in require("tqdm").tqdm(runs, desc="compare") if progress else runs:
        run = train(makers[name], features, recipe=recipe, seed=seed, task=task, progress=False)
        first.setdefault(name, run)
        for case, by_metric in with_mean_of_incomplete(evaluate(run, features)).items():
            _append(scores[name].setdefault(case, {}), by_metric)
        if diagnostics:
            if recipe.extractor is not None and seed not in alone:
                alone[seed] = probes_alone(features, recipe, seed, task)
            _append(inside.setdefault(name, {}), diagnose(run, features, alone.get(seed)))
    steps = {name: features.modalities[name].shape[1] for name in features.steps}
    return Comparison(
        scores,
        {name: run.parameters for name, run in first.items()},
        recipe,
        seeds,
        random_split=features.split is None,
        flops={name: flops(run.model, steps) for name, run in first.items()},
        times=_times(first, features, recipe, steps),
        baselines=bars,
        diagnostics=inside,
        task=next(iter(first.values())).task.kind,
    )


def _append(lists: dict[str, list[float]], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        lists.setdefault(name, []).append(value)


def _times(
    first: dict[str, Run], features: Features, recipe: Recipe, steps: Mapping[str, int]
) -> dict[str, float]:
    run = next(iter(first.values()))
    beside = build_model(Concatenation(run.dims), run.task, recipe, run.sequences).to(features.device)
    return relative_times(
        {name: one.model for name, one in first.items()},
        beside=beside,
        batch=min(recipe.batch_size, len(features)),
        steps=steps,
    )


def _makers(layers: Iterable[str] | Mapping[str, Maker]) -> dict[str, Maker]:
    makers = dict(layers) if isinstance(layers, Mapping) else {name: find_layer(name) for name in layers}
    if not makers:
        raise ValueError("layers must name at least one layer, got none.")
    return makers


def _baselines(makers: Mapping[str, Maker], wanted: Iterable[str] | None) -> tuple[str, ...]:
    if wanted is None:
        return tuple(name for name in makers if not name.startswith(PROPOSED))
    wanted = tuple(wanted)
    if unknown := [name for name in wanted if name not in makers]:
        raise ValueError(f"baselines must be among the layers {', '.join(makers)}, got {', '.join(unknown)}.")
    return wanted
