"""Train fusion layers as docs/fusion_results.md reports: python -m benchmarks.fusion_accuracy [NAME ...] [--page].

Experiments by NAME (all, if none is given), each kept in a file of results/fusion/ layer by layer: what is there is
not trained again. `--file FEATURES.npz` adds experiments on a feature file, `--layers` chooses some. `--page` writes
the page.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fusion
from fusion.evaluation.comparison import PROPOSED, Comparison
from fusion.evaluation.scores import with_mean_of_incomplete
from fusion.evaluation.tables import ALARM
from fusion.layers.cell_gmf import CellGMF
from fusion.randomness import seeded
from pnp.atomic import replacing

from .grounded import Even, NoCell, NothingFilledIn, OwnUnits, Sigmoid
from .measure import table

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
    "modern": fusion.Recipe.modern(),
}
ABLATION = ["".join(parts) for size in range(4) for parts in itertools.combinations("abc", size)]
SETS = {"digits": fusion.digits_two_views, "quadrants": fusion.digits_views}
MANY, EACH = 100, 30
"""Classes of the made set that has many, and samples of each."""
LABELS = (50, 150)
FEW = ["concat", "sum", "late", "gated", "misa"]
ALONE, MEASURED = "cell on labelled samples only", "cell that only measures the unlabelled"
TOO = " and unlabelled"
ABLATED = ["gmf", "cell", "concat", "sum"]
FIGURES = ("scores", "parameters", "flops", "times")
OPTIONS: dict[str, dict[str, Any]] = {
    "gmf": {},
    "gmf, mean of the others": {"partner": "mean"},
    "gmf, half the specific part": {"specific_share": 0.5},
    "gmf, learned placeholder": {"absent": "learned"},
    "gmf, all three": {"partner": "mean", "specific_share": 0.5, "absent": "learned"},
    "gmf, no reconstruction": {"reconstruction_weight": 0.0},
}
PROSE = """# What came out

Written by `python -m benchmarks.fusion_accuracy --page` from what the same command without `--page` measures (hours on
one core; each layer of each experiment is kept in `benchmarks/results/fusion/`). Accuracy on test samples, mean ± half
the 95 % confidence interval over five seeds, each with a split of its own, after Nadeau and Bengio; *incomplete* is the
mean over every case with modalities missing. ▲ better, ▼ worse than the best baseline of the column, p < 0.05 after
Holm. Layers are those of [the list](layers.md), with their usual settings; how they are judged is [here](judging.md).

Data: *digits*, two views of scikit-learn's handwritten digits that share no pixel (`fusion.digits_two_views`), and
*quadrants*, the four quarters of the same images (`fusion.digits_views`). `--file FEATURES.npz` adds a set of your
own; this page was written with two sets of the UCI Machine Learning Repository (CC BY 4.0). `--file mfeat6.npz`: 2000
handwritten numerals in six views of 76, 216, 64, 240, 47 and 6 channels (Multiple Features, R. Duin, M. van Breukelen
and others), with a split of its own: 1000 samples to train, 200 to validate and 800 to test, the same number of every
digit. There seeds vary the initial weights only, so intervals know nothing of the choice of test samples. `--file
segment.npz`: 2310 regions of outdoor photographs in seven classes, in three views, their position (2 channels), lines
and edges (6) and colours (10) (Image Segmentation, Vision Group of the University of Massachusetts; the number of
pixels, which is constant, is left out).

## The recipe decides, not the layer

*plain*: AdamW, all modalities always present. *a*: features standardised. *full*: also half the loss on random subsets
of the modalities and the mean loss with each alone, the default of `fusion.Recipe`.

Digits:

{digits}
Quadrants:

{quadrants}
{files}\
With everything present no layer is ahead of the best baseline by more than chance, under any recipe. With something
missing the recipe moves every layer on digits to about .89, and then they are alike again. Under the full recipe the
grounded layer (`cell`) has, with the gated and the MISA-like layer, the best means: on digits .981 and .904 beside .979
and .903 of the gated one, on quadrants .982 and .884 beside .984 and .887 of the MISA-like one and .986 and .883 of the
gated one, on mfeat6 .987 and .9654 beside .987 and .9647 of the gated one, on segment .967 and .727 beside .967 and
.724 of the gated one and .964 and .726 of the MISA-like one. None of the three is ahead of the others by more than
chance there. On [noisy latents](separation.md), where gates are no use, and where [classes are many](#many-classes),
the cell is ahead.

The cell fits six numbers, the weights of its three decisions, to the validation samples; no other layer sees these.

What differs is what a layer does where **no missing case was seen in training** (*plain*, *a*, *paper*): the grounded
layer, which fills in what is missing, has the best mean there by .04 to .14 on views of digits, significantly so but
for *a* on digits, and with everything present it is level with the best, but for mfeat6, where it is .003 behind (under
*paper*, whose head is linear, .06 behind). On segment, whose views say little about each other, filling in is worth
little: .549 beside .580 of the MISA-like layer and .556 of the gated one. GMF and SCFAE as published are not ahead
anywhere, nor does GMF help the attention layers it is put before (`g-mbt` beside `mbt`, and so on).

The paper's own training (plain SGD, 20 epochs, a linear head; `Recipe.paper()`), and the full recipe with warm-up,
early stopping, clipping and up to 60 epochs (`Recipe.modern()`), digits:

{paper}
## Which part of the recipe does it

Digits; a: standardised features, b: random subsets, c: each modality alone. Means of five seeds; half intervals are
.01 to .03.

{ablation}
Either of b and c does nearly all of it: with two modalities a random subset *is* one of them alone. Standardisation
matters where neither is there. The grounded layer standardises by itself and is the only one that can do without the
recipe; a changes nothing in it, so its rows with and without a are one measurement.

## What the parts of the grounded layer bring

The same layer with one thing changed. *a*: no missing case in training.

{parts}
*Same head without a cell*: the features themselves and zeros for what is absent, under the three decisions that the
cell's head pools. Beside it the cell brings .06 in the incomplete cases where none was trained; where all were, .03 on
[many classes](#many-classes) and .003 to .006 on digits and their quadrants. With everything present it brings .005 on
digits under the full recipe and nothing elsewhere: there the head does it. Of its three decisions the gated one alone
is as good on digits and quadrants, costs .09 and .14 with many classes and .11 and .04 on
[noisy latents](separation.md). The usual perceptron costs .01 on digits and .03 on quadrants where a modality is
missing, under the full recipe.

What the cell brings is mostly what it fills in: the gated head loses .05 to .06 without it where no missing case was
trained, and .002 where all were, because then the head has learned what to do.

**The gates of the cell bring no accuracy**: a plain sigmoid of the same valences, and even gates that tell nothing
apart, do as well under either recipe. They bring the separation, which [known latents](grounded_results.md) show, and
invariant parts that find each other (below). Whitening brings .007 to .016 in the incomplete cases under the usual
perceptron, which decides on it alone. The free energy is for encoders that are trained, which there are none of here.

## Many classes

Made features: 100 classes of 30 samples each, two views of 512 and 384 channels that are nonlinear in latents with the
class as their centre, of variances that decay as those of trained encoders do (`many_classes` in the script). Full
recipe.

{many}
With something missing the cell is .04 ahead of every other layer, and with everything present level with late fusion,
the only other one that has a decision for each modality. Where samples of a class are so few the gated layer, which is
best on digits, is behind all that concatenate or add, and low-rank fusion does better with something missing than with
everything. SCFAE and the MISA-like layer stay at chance at the recipe's learning rate; at a fifth of it they learn, the
MISA-like layer to .945 and .867 (one seed).

## Few labels

So many training samples have a label, as many of each class; the other training samples, a thousand in all, have
none; validation samples are left out. Where a row says *and unlabelled*, and in the row `cell`, these were given to
`fusion.train(..., unlabelled=...)`: what the model is sure of with everything present it is taught with modalities
missing (`fusion.Recipe`). The cell is measured on them too. Full recipe, 100 epochs.

{few}\
**With unlabelled samples the cell is ahead of every layer that does not use them**: on digits by .02 with everything
present and .08 with something missing, with 50 labels by .04 and .09, on quadrants by .05 and .08, on mfeat6 by .03 and
.06. The teaching does it. That the cell is only measured on them brings .01 with 50 labels on quadrants and, with
something missing, on digits, else nothing. Nor is the teaching the cell's own: under the same loss all layers gain.
The gated layer is level with the cell then on digits and quadrants; the MISA-like one is .01 ahead with 50 labels on
digits and something missing, and .02 behind with everything present, all within chance. The others are .01 to .05
behind, and on mfeat6 all are, by up to .02. Without unlabelled samples no layer is ahead of late fusion by more than
chance, but for the cell on mfeat6 with something missing, by .01.

## What GMF needs on top

Quadrants, full recipe, with the usual perceptron as head and with a linear one. Partners are the mean of the others
instead of the next one, the specific part is half as long (so that the reconstruction cannot do without the invariant
part), an absent modality is a learned vector instead of zeros, the reconstruction loss is left out.

{options}
Under a perceptron nothing on the list moves GMF by more than the noise. A linear head costs it .02 to .03 with
everything present and .05 to .06 in the incomplete cases, and the sum as much. Under that head GMF as published falls
behind the sum, and the mean of the others makes up for it. That GMF without the reconstruction loss does as well as
with it agrees with [the theory](theory.md): the specific part alone can give the features back, so the loss asks for
no separation.

## SCFAE without layer normalisation

Digits; a layer normalisation before each map is this project's addition.

{normalisation}
Under the full recipe it makes no difference there; in *plain* the incomplete cases have the better mean without it, and
wide intervals. It stays the default because features are not scaled in every use.

## Other tasks

Digits, full recipe. Conflict: half of the samples have one view of another digit. Retrieval: the other view of the same
digit, by what the model makes of each view alone, and by the layer's invariant parts as they are, with no training for
that.

{tasks}
Low-rank tensor fusion, which multiplies its modalities, sees conflicts best, the grounded layer second best; late
fusion cannot see any. The gated and the grounded layer have the best means in retrieval, and only the latter's
invariant parts find the other view as they are, because they are in common coordinates. At the default learning rate of
5e-3 the MISA-like layer did not learn conflicts in any seed, retrieval in four of five, and quadrants under *plain* in
most.
"""


@dataclass(frozen=True)
class Experiment:
    """Layers under one recipe on one set of features."""

    features: Callable[[], fusion.Features]
    layers: Mapping[str, Any]
    recipe: fusion.Recipe
    task: str = "classification"
    labels: int | None = None
    """How many of the training samples have one, the same number of each class; None: all."""


def many_classes() -> fusion.Features:
    """Two wide views of classes that scatter about their centres, with variances that decay as in trained encoders."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    samples, hidden = MANY * EACH, 256
    label = torch.randperm(samples, generator=generator) % MANY
    common = normal(MANY, 40)[label] + 0.9 * normal(samples, 40)
    decay = torch.arange(1.0, hidden + 1, dtype=torch.float64) ** -0.5
    modalities = {}
    for name, length, seen, private in (("image", 512, 40, 30), ("text", 384, 25, 20)):
        latents = torch.cat([common[:, :seen], normal(samples, private)], dim=-1)
        units = torch.tanh(1.2 * latents @ normal(seen + private, hidden) / (seen + private) ** 0.5)
        basis = torch.linalg.qr(normal(hidden, hidden)).Q * decay
        mixed = units @ basis @ normal(hidden, length) / hidden**0.5
        modalities[name] = (mixed + 0.03 * normal(samples, length)).float()
    return fusion.Features(modalities, label=label)


def experiments(files: Iterable[Path]) -> dict[str, Experiment]:
    """All experiments by name."""
    named = SETS | {file.stem: partial(fusion.load_features, file) for file in files}
    found = {}
    for data, features in named.items():
        for name in ("plain", "a", "full"):
            layers = QUICK + (ATTENTION if data == "digits" and name == "full" else [])
            found[f"{data} {name}"] = Experiment(features, _named(layers), RECIPES[name])
    found["classes full"] = Experiment(many_classes, _named(QUICK), RECIPES["full"])
    digits = fusion.digits_two_views
    for name in ("paper", "modern"):
        found[f"digits {name}"] = Experiment(digits, _named(QUICK), RECIPES[name])
    for parts in ABLATION:
        recipe = fusion.Recipe(**OFF | {PARTS[part]: True for part in parts})
        found[f"ablation {parts or 'none'}"] = Experiment(digits, _named(ABLATED), recipe)
    for name, hidden in (("perceptron", 128), ("linear", None)):
        layers = {one: partial(fusion.GMF, **given) for one, given in OPTIONS.items()} | _named(["sum"])
        found[f"options {name}"] = Experiment(fusion.digits_views, layers, fusion.Recipe(hidden=hidden))
    bare = {"scfae": fusion.SCFAE, "scfae, not normalised": partial(fusion.SCFAE, normalise=False)}
    for name in ("plain", "full"):
        found[f"normalisation {name}"] = Experiment(digits, bare, RECIPES[name])
    parts = {
        "cell": CellGMF,
        "same head without a cell": NoCell,
        "gated head alone": partial(CellGMF, readout="gated"),
        "gated, plain sigmoid for the cell": partial(Sigmoid, readout="gated"),
        "gated, all channels half open": partial(Even, readout="gated"),
        "gated, nothing filled in": partial(NothingFilledIn, readout="gated"),
        "usual perceptron": partial(CellGMF, readout="joint"),
        "usual perceptron, nothing filled in": partial(NothingFilledIn, readout="joint"),
        "usual perceptron, own units": partial(OwnUnits, readout="joint"),
    }
    for data, features in {**SETS, "classes": many_classes}.items():
        for name in ("a", "full"):
            found[f"parts {data} {name}"] = Experiment(features, parts, RECIPES[name])
    layers = _named(["cell", *FEW]) | {ALONE: CellGMF, MEASURED: CellGMF}
    layers |= {name + TOO: maker for name, maker in _named(FEW).items()}
    for data in named:
        for labels in LABELS:
            found[f"{data} {labels} labels"] = Experiment(
                named[data], layers, fusion.Recipe(epochs=100), labels=labels
            )
    for task in ("retrieval", "conflict"):
        found[task] = Experiment(digits, _named(QUICK), RECIPES["full"], task)
    return found


def _named(layers: Iterable[str]) -> dict[str, Any]:
    return {name: fusion.find_layer(name) for name in layers}


def _path(name: str) -> Path:
    return FOLDER / f"{name.replace(' ', '_')}.json"


def run(name: str, experiment: Experiment) -> None:
    """Train what is not there yet."""
    path = _path(name)
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    features = experiment.features()
    for layer, maker in experiment.layers.items():
        if layer in known:
            continue
        if experiment.labels is not None:
            known[layer] = few_labels(layer, maker, experiment)
        else:
            found = fusion.compare(
                features,
                {layer: maker},
                recipe=experiment.recipe,
                seeds=SEEDS,
                task=experiment.task,
                baselines=[],
                progress=False,
            )
            known[layer] = {what: getattr(found, what)[layer] for what in FIGURES}
            known[layer] |= {"random_split": found.random_split}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(name, layer, flush=True)


def few_labels(name: str, maker: Any, experiment: Experiment) -> dict[str, Any]:
    """Scores where few training samples have a label and no others count; the name says who gets the unlabelled."""
    recipe = replace(experiment.recipe, unlabelled_weight=0.0) if name == MEASURED else experiment.recipe
    taught = name in ("cell", MEASURED) or name.endswith(TOO)
    scores: dict[str, dict[str, list[float]]] = {}
    features = experiment.features()
    for seed in range(SEEDS):
        whole = features.with_split(seed)
        assert whole.split is not None
        assert whole.label is not None
        each = (experiment.labels or 0) // (whole.classes or 1)
        with seeded(seed):
            order = torch.randperm(len(whole))
        rank = torch.zeros(len(whole), dtype=torch.int64)
        for group in whole.label.unique():
            members = order[(whole.label[order] == group) & (whole.split[order] == 0)]
            rank[members] = torch.arange(len(members))
        rest = (whole.split == 0) & (rank >= each)
        kept = ~rest & (whole.split != 1)
        some = replace(whole.rows(kept), split=whole.split[kept])
        unlabelled = whole.rows(rest) if taught else None
        run = fusion.train(maker, some, recipe=recipe, seed=seed, unlabelled=unlabelled, progress=False)
        for case, found in with_mean_of_incomplete(fusion.evaluate(run, some)).items():
            for metric, value in found.items():
                scores.setdefault(case, {}).setdefault(metric, []).append(value)
    return {"scores": scores, "parameters": run.parameters, "random_split": features.split is None}


def loaded(name: str, experiment: Experiment) -> Comparison | None:
    """What was measured; None if nothing was."""
    path = _path(name)
    if not path.exists():
        return None
    known = json.loads(path.read_text(encoding="utf-8"))
    layers = [layer for layer in experiment.layers if layer in known]
    figures = {what: {one: known[one].get(what) for one in layers} for what in FIGURES}
    return Comparison(
        recipe=experiment.recipe,
        seeds=SEEDS,
        random_split=known[layers[0]]["random_split"],
        baselines=tuple(one for one in layers if not one.startswith(PROPOSED)),
        task=experiment.task,
        **figures,
    )


def cells(found: Comparison | None, case: str, metric: str) -> dict[str, str]:
    """Layer → mean ± half the interval, with a mark where it differs from the best baseline."""
    rows = [] if found is None else found.rows()
    return {
        row["layer"]: f"{row['mean']:.3f} ± {row['half_width']:.3f}{_mark(row)}"
        for row in rows
        if row["case"] == case and row["metric"] == metric
    }


def _mark(row: Mapping[str, Any]) -> str:
    if row["adjusted"] is None or row["adjusted"] >= ALARM:
        return ""
    return " ▲" if row["difference"] > 0 else " ▼"


def columns(wanted: Mapping[str, tuple[str, str, str]], known: Mapping[str, Experiment]) -> str:
    """A table of layers by columns, each of an experiment, a case and a metric."""
    compared = {name: loaded(name, known[name]) for name, _, _ in wanted.values()}
    found = [cells(compared[name], case, metric) for name, case, metric in wanted.values()]
    layers = dict.fromkeys(layer for column in found for layer in column)
    rows = [[layer, *(column.get(layer, "–") for column in found)] for layer in layers]
    return table(["", *wanted], rows)


def page(known: Mapping[str, Experiment], files: Iterable[str]) -> str:
    """The page, with a table for everything that was measured, also on `files` of features."""

    def recipes(data: str, names: Iterable[str]) -> str:
        wanted = {
            f"{name}, {short}": (f"{data} {name}", case, "accuracy")
            for name in names
            if _path(f"{data} {name}").exists()
            for short, case in (("all", "all"), ("incomplete", "incomplete"))
        }
        return columns(wanted, known)

    rows = []
    for parts in ABLATION:
        name = f"ablation {parts or 'none'}"
        compared = loaded(name, known[name])
        found = [cells(compared, case, "accuracy") for case in ("all", "incomplete")]
        if found[0]:
            each = [column[layer].split(" ±")[0] for layer in found[0] for column in found]
            rows.append([" + ".join(parts) or "none", *each])
    head = ["", *(f"{layer}, {case}" for layer in ABLATED for case in ("all", "incomplete"))]
    options = {
        f"{head}, {case}": (f"options {head}", case, "accuracy")
        for head in ("perceptron", "linear")
        for case in ("all", "incomplete")
    }
    tasks = {
        "conflict: AUC": ("conflict", "all", "auc"),
        "retrieval: mAP@10": ("retrieval", "all", "map@10"),
        "of invariant parts alone": ("retrieval", "all", "invariant_map@10"),
    }
    normalisation = {
        f"{name}, {case}": (f"normalisation {name}", case, "accuracy")
        for name in ("plain", "full")
        for case in ("all", "incomplete")
    }

    def labels(data: str) -> str:
        wanted = {
            f"{count} labels, {case}": (f"{data} {count} labels", case, "accuracy")
            for count in LABELS
            if _path(f"{data} {count} labels").exists()
            for case in ("all", "incomplete")
        }
        return columns(wanted, known)

    def brought() -> str:
        wanted = {
            f"{data}, {name}, {case}": (f"parts {data} {name}", case, "accuracy")
            for data in (*SETS, "classes")
            for name in ("a", "full")
            if _path(f"parts {data} {name}").exists()
            for case in ("all", "incomplete")
        }
        return columns(wanted, known)

    return PROSE.format(
        normalisation=columns(normalisation, known),
        digits=recipes("digits", ("plain", "a", "full")),
        paper=recipes("digits", ("paper", "modern")),
        quadrants=recipes("quadrants", ("plain", "a", "full")),
        files="".join(f"{name.capitalize()}:\n\n{recipes(name, ('a', 'full'))}\n" for name in files),
        many=recipes("classes", ("full",)),
        few="".join(
            f"{name.capitalize()}:\n\n{labels(name)}\n"
            for name in (*SETS, *files)
            if any(_path(f"{name} {count} labels").exists() for count in LABELS)
        ),
        parts=brought(),
        ablation=table(head, rows),
        options=columns(options, known),
        tasks=columns(tasks, known),
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--file", type=Path, action="append", default=[], metavar="FEATURES")
    parser.add_argument("--layers", help="which, by name, separated by commas (default: all)")
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    known = experiments(options.file)
    for name in options.names or ([] if options.page else known):
        layers = known[name].layers
        some = options.layers.split(",") if options.layers else layers
        run(name, replace(known[name], layers={layer: layers[layer] for layer in some}))
    if options.page:
        with replacing(PAGE) as temporary:
            temporary.write_text(page(known, [file.stem for file in options.file]), encoding="utf-8")


if __name__ == "__main__":
    main()
