"""What the grounded layer finds and what its parts bring: python -m benchmarks.grounded [NAME ...] [--page].

Experiments by NAME (all, if none is given) on latents that are known, each kept in a file of results/grounded/ layer
by layer: what is there is not measured again. `--page` writes docs/grounded_results.md.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

import fusion
from fusion.evaluation.dependence import explained_variance
from fusion.grounded.covariance import Coherence
from fusion.grounded.ions import Noise
from fusion.grounded.settled import Settled
from fusion.grounded.spectral import Spectrum
from fusion.grounded.transport import opening
from fusion.layers.cell_gmf import CellGMF
from fusion.layers.imputation import Imputation
from fusion.layers.layer import Fused
from fusion.layers.presence import Presence
from pnp.atomic import replacing

from .grounded_cost import cost_table
from .measure import table

FOLDER = Path(__file__).parent / "results" / "grounded"
PAGE = Path(__file__).parents[1] / "docs" / "grounded_results.md"
SEEDS = 8
TWO = {"a": 32, "b": 24}
THREE = {"a": 32, "b": 28, "c": 24}
SHARED, PRIVATE, SAMPLES = 5, 5, 3000
RECIPE = fusion.Recipe(extractor=64)
UNSEEN = fusion.Recipe(extractor=64, random_subsets=False, each_alone=False)


class Sigmoid(CellGMF):
    """Gates that are logistic functions of the same valences, and the energy of ions that do not feel each other."""

    def _settled(
        self, coherence: Coherence, noise: Mapping[str, Noise], *, with_gradients: bool
    ) -> dict[str, Settled]:
        found = {}
        for name, one in noise.items():
            spectrum = Spectrum.of(coherence.predictability(name))
            argument = (spectrum.values - one.level) / (1 - one.level) * one.voltage
            gates = torch.sigmoid(argument)
            energy = -torch.nn.functional.softplus(argument.abs() * 2).mean() / one.voltage
            found[name] = _settled(spectrum, gates, energy)
        return found


class Even(CellGMF):
    """Every gate half open: nothing is told apart."""

    def _settled(
        self, coherence: Coherence, noise: Mapping[str, Noise], *, with_gradients: bool
    ) -> dict[str, Settled]:
        found = {}
        for name in noise:
            spectrum = Spectrum.of(coherence.predictability(name))
            gates = torch.full_like(spectrum.values, 0.5)
            found[name] = _settled(spectrum, gates, gates.sum() * 0)
        return found


class NothingFilledIn(CellGMF):
    """An absent modality is zeros in whitened coordinates, its mean, whatever the others say."""

    def __init__(self, dims: Mapping[str, int], **settings: Any) -> None:
        super().__init__(dims, **settings)
        self.imputation = _Zeros(self.dims)


class _Zeros(Imputation):
    """Leaves what is absent as it is."""

    def fill(self, whitened: Mapping[str, Tensor], present: Presence, coherence: Tensor) -> dict[str, Tensor]:
        return dict(whitened)


class OwnUnits(CellGMF):
    """The features in standard deviations, filled in, side by side: no whitening, no parts."""

    @property
    def fused_dims(self) -> dict[str, int]:
        """Those of the features."""
        return dict(self.dims)

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """See the class."""
        found = super().fuse(features, present).completed
        return Fused(found, completed=found)


class NoCell(NothingFilledIn, OwnUnits):
    """The features in standard deviations, zeros where absent: of the grounded layer its head alone is left."""


class DeepCCA(CellGMF):
    """Canonical correlations as the loss and a hard choice of directions: so many, or all there are."""

    def __init__(self, dims: Mapping[str, int], rank: int | None = None, **settings: Any) -> None:
        super().__init__(dims, **settings)
        self.rank = rank

    def _settled(
        self, coherence: Coherence, noise: Mapping[str, Noise], *, with_gradients: bool
    ) -> dict[str, Settled]:
        found = {}
        for name in noise:
            spectrum = Spectrum.of(coherence.predictability(name))
            kept = self.common_dim if self.rank is None else self.rank
            correlations = spectrum.values[-kept:].clamp(min=1e-9).sqrt()
            gates = torch.zeros_like(spectrum.values).detach()
            gates[-kept:] = 1.0
            found[name] = _settled(spectrum, gates, -correlations.mean())
        return found


def _settled(spectrum: Spectrum, gates: Tensor, energy: Tensor) -> Settled:
    parts = [
        spectrum.function(share.clamp(min=1e-16).sqrt(), torch.zeros_like(share))
        for share in (opening(gates), 1 - opening(gates), gates)
    ]
    return Settled(opening(gates), parts[0], parts[1], parts[2], energy)


JOINT = partial(CellGMF, readout="joint")
"""With the perceptron that the other layers have, so that only what the maps find differs."""
LAYERS: dict[str, Callable[[Mapping[str, int]], Any]] = {
    "concat": fusion.find_layer("concat"),
    "sum": fusion.find_layer("sum"),
    "gmf": fusion.GMF,
    "misa": fusion.MISA,
    "cell": JOINT,
    "cell, its own head": CellGMF,
    "cell, no free energy": partial(JOINT, free_energy_weight=0.0),
    "cell, five times the energy": partial(JOINT, free_energy_weight=5.0),
    "plain sigmoid": partial(Sigmoid, readout="joint"),
    "deep CCA": partial(DeepCCA, readout="joint"),
    "deep CCA, told the rank": partial(DeepCCA, rank=SHARED, readout="joint"),
}


def untrained(seed: int, dims: Mapping[str, int], shared: int = SHARED) -> dict[str, float]:
    """What the maps find in features that are linear in the latents, without any training."""
    features, latents = fusion.shared_private(
        SAMPLES, dims, shared=shared, private=PRIVATE, noise=0.3, seed=seed
    )
    layer = CellGMF(dims)
    found = layer.fit(features.modalities)
    out = layer.eval()(features.modalities)
    scores = origins(out.invariant, out.specific, latents) if shared else {}
    scores["dimension"] = statistics.mean(one.invariant_dimension for one in found.channels.values())
    if shared:
        whole = torch.cat(list(features.modalities.values()), dim=-1)
        scores["oracle"] = statistics.mean(
            explained_variance(values, latents["shared"]) for values in features.modalities.values()
        )
        scores["oracle of all"] = explained_variance(whole, latents["shared"])
    return scores


def nonlinear(seed: int, dims: Mapping[str, int], label: str) -> tuple[fusion.Features, dict[str, Tensor]]:
    """Features that are nonlinear in the latents, with a split."""
    made, latents = fusion.shared_private(
        SAMPLES,
        dims,
        shared=SHARED,
        private=PRIVATE,
        noise=0.2,
        seed=seed,
        nonlinear=True,
        label_from=label,
    )
    return made.with_split(seed), latents


def told(seed: int, dims: Mapping[str, int]) -> dict[str, float]:
    """What an encoder of each modality makes of the features that is trained on the latents themselves."""
    features, latents = nonlinear(seed, dims, "shared")
    train, validation, test = ((features.split == part).nonzero().squeeze(-1) for part in range(3))
    found: dict[str, list[float]] = {"invariant, shared": [], "specific, private": []}
    for name, values in features.modalities.items():
        inputs = (values - values[train].mean(0)) / values[train].std(0)
        targets = torch.cat([latents["shared"], latents[f"private {name}"]], dim=-1)
        torch.manual_seed(seed)
        model = torch.nn.Sequential(
            fusion.ResidualEncoder(dims[name], width=64), torch.nn.Linear(dims[name], SHARED + PRIVATE)
        )
        optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
        best, outputs = math.inf, torch.empty(0)
        for _ in range(100):
            for batch in train[torch.randperm(len(train))].split(64):
                optimiser.zero_grad()
                (model(inputs[batch]) - targets[batch]).square().mean().backward()
                optimiser.step()
            with torch.no_grad():
                error = float((model(inputs[validation]) - targets[validation]).square().mean())
                if error < best:
                    best, outputs = error, model(inputs[test])
        for key, wanted in (
            ("invariant, shared", latents["shared"]),
            ("specific, private", targets[:, SHARED:]),
        ):
            found[key].append(explained_variance(outputs, wanted[test]))
    return {key: statistics.mean(values) for key, values in found.items()}


def trained(
    seed: int,
    maker: Any,
    label: str,
    recipe: fusion.Recipe,
    dims: Mapping[str, int],
    encoder: Any = fusion.ResidualEncoder,
) -> dict[str, float]:
    """Accuracy, and what the parts hold, behind encoders of features that are nonlinear in the latents."""
    features, latents = nonlinear(seed, dims, label)
    with mock.patch("fusion.training.run.ResidualEncoder", encoder):
        run = fusion.train(maker, features, recipe=recipe, seed=seed, progress=False)
    accuracy = {case: found["accuracy"] for case, found in fusion.evaluate(run, features).items()}
    whole = accuracy.pop("all")
    scores = {"all": whole, "incomplete": statistics.mean(accuracy.values())}
    invariant, specific = run.parts(features.test)
    if invariant:
        rows = (features.split == 2).nonzero().squeeze(-1)
        scores |= origins(invariant, specific, {name: values[rows] for name, values in latents.items()})
    if isinstance(run.model.layer, CellGMF):
        scores["dimension"] = statistics.mean(
            float(run.model.layer.maps[name].invariant.square().sum()) for name in dims
        )
    return scores


def _perceptron(channels: int, width: int) -> fusion.VectorEncoder:
    return fusion.VectorEncoder(channels, channels, width=width)


def origins(
    invariant: Mapping[str, Tensor], specific: Mapping[str, Tensor], latents: Mapping[str, Tensor]
) -> dict[str, float]:
    """R² of shared and private latents from the two parts, means over modalities."""
    found = {}
    for what, part in (("invariant", invariant), ("specific", specific)):
        found[f"{what}, shared"] = statistics.mean(
            explained_variance(values, latents["shared"]) for values in part.values()
        )
        found[f"{what}, private"] = statistics.mean(
            explained_variance(values, latents[f"private {name}"]) for name, values in part.items()
        )
    return found


def experiments() -> dict[str, dict[str, Callable[[int], dict[str, float]]]]:
    """Rows of each experiment: name → figures of a seed."""
    found: dict[str, dict[str, Callable[[int], dict[str, float]]]] = {
        "untrained": {
            "two modalities": lambda seed: untrained(seed, TWO),
            "three modalities": lambda seed: untrained(seed, THREE),
        }
        | {f"{count} shared": partial(untrained, dims=TWO, shared=count) for count in (0, 2, 10)},
    }
    few = {name: LAYERS[name] for name in ("concat", "gmf", "cell", "plain sigmoid", "deep CCA")}
    for name, label, recipe, dims, layers in (
        ("trained, shared", "shared", RECIPE, TWO, LAYERS),
        ("trained, both", "both", RECIPE, TWO, LAYERS),
        ("trained, three", "shared", RECIPE, THREE, few),
        ("unseen, shared", "shared", UNSEEN, TWO, LAYERS),
    ):
        row = partial(trained, label=label, recipe=recipe, dims=dims)
        found[name] = {"encoders told the latents": partial(told, dims=dims)}
        found[name] |= {layer: partial(row, maker=maker) for layer, maker in layers.items()}
        found[name]["cell, encoders without a shortcut"] = partial(row, maker=JOINT, encoder=_perceptron)
    return found


def _path(name: str) -> Path:
    return FOLDER / f"{name.replace(', ', '_')}.json"


def run(name: str, rows: Mapping[str, Callable[[int], dict[str, float]]]) -> None:
    """Measure what is not there yet."""
    known = loaded(name)
    for row, figures in rows.items():
        if row in known:
            continue
        known[row] = [figures(seed) for seed in range(SEEDS)]
        with replacing(_path(name)) as temporary:
            temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(name, row, flush=True)


def loaded(name: str) -> dict[str, list[dict[str, float]]]:
    """What was measured, row by row, seed by seed."""
    path = _path(name)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def rows_of(name: str, columns: Mapping[str, str]) -> str:
    """A table of means and standard deviations over the seeds; empty where a row has no such figure."""
    rows = []
    for row, seeds in loaded(name).items():
        cells = []
        for figure in columns:
            found = [one[figure] for one in seeds if figure in one]
            cells.append(f"{statistics.mean(found):.3f} ± {statistics.stdev(found):.3f}" if found else "")
        rows.append([row, *cells])
    return table(["", *columns.values()], rows)


ORIGINS = {
    "invariant, shared": "invariant → shared",
    "invariant, private": "invariant → private",
    "specific, shared": "specific → shared",
    "specific, private": "specific → private",
}
PROSE = """# What the grounded layer finds

Written by `python -m benchmarks.grounded --page` from what the same command without `--page` measures (results in
`benchmarks/results/grounded/`). Means and standard deviations over {seeds} seeds. Latents are known: {shared} shared
and {private} private of each modality, {samples} samples; R² of latents from a part is that of a cross-validated
ridge regression. How the layer works is [here](grounded.md).

## Without training

Features linear in the latents, 32 and 24 channels (three modalities: 32, 28 and 24). *Oracle*: the R² of the shared
latents from all channels of a modality. The dimension is the sum of the gates, which is not told how many shared
directions there are.

{untrained}
## Behind encoders that are trained through it

Features nonlinear in the latents, an encoder for each modality that adds a perceptron's correction to the features
(`fusion.ResidualEncoder`), the full recipe but where it says so. *Incomplete* is the mean accuracy over every case
with modalities missing. *Told the latents*: encoders and a linear map trained on the latents themselves, the most that
these parts could hold. *Plain sigmoid* has the same valences and no cell; *deep CCA* maximises correlations and divides
hard. All have the same perceptron as head but for *its own head*, `readout="pooled"`, which is what `CellGMF` has
unless told otherwise and which the [accuracies on real data](fusion_results.md) are measured with. *Without a
shortcut*: encoders that are perceptrons and add nothing.

{trained}
{conclusion}
## What a training step costs

`python -m benchmarks.grounded_cost`: two modalities of 512 channels, batches of 64, forward, backward and AdamW of the
whole model, CPU time of one core. *Following*: with the settling of the channels every `refresh` passes, its share in
every step.

{cost}"""
TRAINED = {
    "trained, shared": "Two modalities, labels of the shared latents",
    "trained, both": "Two modalities, labels of all latents",
    "trained, three": "Three modalities, labels of the shared latents",
    "unseen, shared": "Two modalities, labels of the shared latents, no missing case in training",
}
CONCLUSION = """The cell separates where the others do not: .83 of the shared latents' variance is in its invariant
parts and .82 of the private ones' in its specific parts, where encoders told the latents reach .85, and less than a
hundredth in the wrong ones; GMF's and the MISA-like layer's parts both hold something of everything. With
labels of all latents it is .81 and .81, with three modalities .84 and .84, with at most .04 of private latents
in the invariant parts. About as many directions are invariant as there are, five; with its own head or five
times the energy one or two more, because functions of shared latents are shared.

That encoders only correct the features is most of this: perceptrons without a shortcut lose what no loss asks
for (.62 of the private latents kept) and make twelve invariant directions of five latents. The free energy adds
.02 of the shared latents, .07 where labels depend on all. A plain sigmoid of the same valences with its own
energy does as well as the cell, as it does without training; here the cell brings nothing beyond it. Deep CCA
that is not told the rank mixes both parts; told the rank it separates as well as the cell, which is not told.

With its own head the cell has better mean accuracies than concat, sum, GMF and MISA in each table of two
modalities: by less than the deviations where missing cases are trained, and by .06 with one modality alone
where none is (.81 beside .75), where all layers that fill in what is missing are level. With the usual
perceptron it is level with the others, and with three modalities .03 behind with everything present.
"""


def page() -> str:
    """The page, with what was measured."""
    figures = {"all": "accuracy, all", "incomplete": "incomplete"} | ORIGINS | {"dimension": "dimension"}
    return PROSE.format(
        seeds=SEEDS,
        shared=SHARED,
        private=PRIVATE,
        samples=SAMPLES,
        untrained=rows_of("untrained", ORIGINS | {"oracle": "oracle", "dimension": "dimension"}),
        trained="\n".join(f"### {title}\n\n{rows_of(name, figures)}" for name, title in TRAINED.items()),
        conclusion=CONCLUSION,
        cost=cost_table(),
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = experiments()
    for name in options.names or ([] if options.page else known):
        run(name, known[name])
    if options.page:
        with replacing(PAGE) as temporary:
            temporary.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
