"""What a confidence is worth when something is missing: python -m benchmarks.confidence [--page].

Without `--page` measures and keeps the figures in results/confidence.json; with it writes docs/confidence.md.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats

import fusion
from fusion.evaluation.confidence import claimed_odds
from fusion.evaluation.scores import cases, labelled, pattern
from fusion.layers.cell_gmf import CellGMF
from pnp.atomic import replacing

from .measure import table

RESULTS = Path(__file__).parent / "results" / "confidence.json"
PAGE = Path(__file__).parents[1] / "docs" / "confidence.md"
SEEDS = 5
DATA: dict[str, Callable[[], fusion.Features]] = {
    "two views": fusion.digits_two_views,
    "four quadrants": fusion.digits_views,
}
RECIPES = {
    "every case trained": fusion.Recipe(),
    "no missing case trained": fusion.Recipe(random_subsets=False, each_alone=False),
}
WAYS = ("charge_present as it is", "softmax", "calibrate", "calibrate, with the charge")


def measured(layer: str, data: str, recipe: fusion.Recipe, seed: int) -> dict[str, Any]:
    """Calibration errors over all cases together, and accuracy and charge of each."""
    features = DATA[data]().with_split(seed)
    run = fusion.train(layer, features, recipe=recipe, seed=seed, progress=False)
    confidence, charged = fusion.calibrate(run, features), None
    if isinstance(run.model.layer, CellGMF):
        charged = _with_charge(run, features)
    test = labelled(run, features, "test")
    found: dict[str, list[torch.Tensor]] = {way: [] for way in WAYS}
    right, by_case = [], {}
    for case, names in cases(list(run.dims)).items():
        present, _ = pattern(test, names)
        logits = run.logits(test, present)
        right.append(run.task.decide(logits) == test.label)
        found["softmax"].append(logits.double().softmax(-1).amax(-1))
        found["calibrate"].append(confidence(test, present))
        by_case[case] = {"accuracy": float(right[-1].double().mean())}
        if charged is not None:
            charge = run.model.layer.charge_present(present)
            found["charge_present as it is"].append(charge)
            found["calibrate, with the charge"].append(charged(logits, charge))
            by_case[case]["charge"] = float(charge.mean())
    errors = {
        way: fusion.calibration_error(torch.cat(values), torch.cat(right))
        for way, values in found.items()
        if values
    }
    return {"errors": errors, "cases": by_case}


def _with_charge(
    run: fusion.Run, features: fusion.Features
) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """The same curve with the charge that is present as a second input."""
    from sklearn.linear_model import LogisticRegression

    def inputs(logits: torch.Tensor, charge: torch.Tensor) -> Any:
        return torch.stack([claimed_odds(logits), charge], dim=-1).numpy()

    chosen = labelled(run, features, "validation")
    seen, right = [], []
    for names in cases(list(run.dims)).values():
        present = pattern(chosen, names)[0]
        logits = run.logits(chosen, present)
        seen.append(inputs(logits, run.model.layer.charge_present(present)))
        right.append(run.task.decide(logits) == chosen.label)
    model = LogisticRegression().fit(np.concatenate(seen), torch.cat(right).numpy())
    return lambda logits, charge: torch.from_numpy(model.predict_proba(inputs(logits, charge))[:, 1])


PROSE = """# How far to trust a decision when something is missing

Written by `python -m benchmarks.confidence --page` from what the same command without `--page` measures: the
handwritten digits of scikit-learn as two views and as four quadrants, every subset of them present, test samples of
{seeds} seeds.

```python
import torch
import fusion

features = fusion.digits_two_views()
run = fusion.train("cell", features, recipe=fusion.Recipe(epochs=5), progress=False)
confidence = fusion.calibrate(run, features)  # on validation samples, every case of something missing
absent = torch.zeros(len(features), dtype=torch.bool)  # nobody has the frequencies
probability = confidence(features, {{"frequencies": absent}})  # that the decision is right, (N,)
```

## Calibration errors

Expected calibration error over all cases together (ten bins of equal size): how far what is claimed is from the share
of right decisions, on average. Means and standard deviations over the seeds.

{errors}
`CellGMF.charge_present` is a share of power, **not a probability**, and is the same for all samples that lack the same
modalities. It orders the cases as accuracy does (Spearman's rank correlation over the cases, mean over the seeds:
{correlations}).

`fusion.calibrate` fits a logistic curve through the log-odds that the model claims (Platt's scaling), for any layer.
{conclusion}

## Accuracy and charge, case by case

The grounded layer, four quadrants, means over the seeds.

{cases}"""
CONCLUSION = """Where every case was trained the model's own probabilities are nearly as good: there is little to
calibrate. Where no missing case was trained they claim too much, and the curve takes most of the error away. The charge
that is present adds nothing to that, so it is not part of it: what is missing already shows in the log-odds."""


def page(found: dict[str, list[dict[str, Any]]]) -> str:
    """The page, with what was measured."""
    rows, correlations = [], []
    for name, seeds in found.items():
        cells = []
        for way in WAYS:
            values = [one["errors"][way] for one in seeds if way in one["errors"]]
            cells.append(f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}" if values else "")
        rows.append([name, *cells])
        if name.startswith("cell"):
            ranks = [
                stats.spearmanr(
                    [one["accuracy"] for one in seed["cases"].values()],
                    [one["charge"] for one in seed["cases"].values()],
                ).statistic
                for seed in seeds
            ]
            correlations.append(f"{statistics.mean(ranks):.2f} for {name.partition(', ')[2]}")
    one, other = (found[f"cell, four quadrants, {recipe}"] for recipe in RECIPES)
    lines = [
        [
            case,
            f"{statistics.mean(seed['cases'][case]['charge'] for seed in one):.2f}",
            f"{statistics.mean(seed['cases'][case]['accuracy'] for seed in one):.3f}",
            f"{statistics.mean(seed['cases'][case]['accuracy'] for seed in other):.3f}",
        ]
        for case in one[0]["cases"]
    ]
    return PROSE.format(
        seeds=SEEDS,
        errors=table(["", *WAYS], rows),
        correlations="; ".join(correlations),
        conclusion=CONCLUSION,
        cases=table(["present", "charge", *(f"accuracy, {recipe}" for recipe in RECIPES)], lines),
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.page:
        with replacing(PAGE) as temporary:
            temporary.write_text(page(json.loads(RESULTS.read_text(encoding="utf-8"))), encoding="utf-8")
        return
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for layer in ("cell", "sum"):
        for data in DATA:
            for name, recipe in RECIPES.items():
                key = f"{layer}, {data}, {name}"
                if key not in known:
                    known[key] = [measured(layer, data, recipe, seed) for seed in range(SEEDS)]
                    with replacing(RESULTS) as temporary:
                        temporary.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
                    print(key, flush=True)


if __name__ == "__main__":
    main()
