"""What a comparison found, as tables in markdown and HTML and as JSON."""

import json
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from pnp.atomic import replacing

from ..report import Section, Table, write_report
from .scores import EVERY_SUBSET, INCOMPLETE, is_better_higher
from .statistics import half_width

if TYPE_CHECKING:
    from .comparison import Comparison

TITLES = {"auc": "AUC", "mae": "MAE", "macro_f1": "Macro-F1"}
ALARM = 0.05
"""Adjusted p-values below this are marked."""


def summary(found: "Comparison", metric: str) -> Table:
    """Layers, their cost, and the score with all modalities and over all cases with some missing."""
    cases = [case for case in _cases(found) if case in ("all", INCOMPLETE)]
    head = ["layer", "parameters", "MFLOP", "time", *cases]
    rows = []
    for layer, cells in _cells(found, metric).items():
        cost = [
            f"{found.parameters[layer]:,}",
            f"{found.flops[layer] / 1e6:.3g}",
            f"{found.times[layer]:.2f}",
        ]
        rows.append([_named(found, layer), *cost, *(cells.get(case, "–") for case in cases)])
    return Table(head, rows, _caption(found, metric))


def by_case(found: "Comparison", metric: str) -> Table:
    """The score of every layer in every case; cases are rows, since there may be sixty."""
    cells = _cells(found, metric)
    head = ["case", *(_named(found, layer) for layer in cells)]
    rows = [[case, *(cells[layer].get(case, "–") for layer in cells)] for case in _cases(found)]
    modalities = sum(case.startswith("without ") for case in _cases(found))
    caption = "Every case on its own."
    if modalities > EVERY_SUBSET:
        caption += (
            f" Of {modalities} modalities there are {2**modalities - 2:,} subsets; only those without one and "
            "those of one alone are measured."
        )
    return Table(head, rows, caption)


def inside(found: "Comparison") -> Table:
    """The diagnostics: layers by figures, means and half widths of their intervals."""
    figures = list(dict.fromkeys(figure for one in found.diagnostics.values() for figure in one))
    rows = []
    for layer, values in found.diagnostics.items():
        rows.append([_named(found, layer), *(_interval(values.get(figure), found) for figure in figures)])
    unit = "mean ± half the 95 % confidence interval" if found.seeds > 1 else "one seed"
    return Table(["layer", *figures], rows, f"What the layers do inside, on the test samples; {unit}.")


def comparison_table(found: "Comparison", metric: str | None = None) -> str:
    """All tables of a comparison in markdown, for one metric; None: the leading one.

    Raises:
        ValueError: A metric that was not measured.
    """
    metric = found.metrics[0] if metric is None else metric
    if metric not in found.metrics:
        raise ValueError(f"metric must be one of {', '.join(found.metrics)}, got {metric!r}.")
    return "\n".join(_markdown(table) for table in _tables(found, metric))


def save_comparison(found: "Comparison", folder: Path, *, html: bool) -> None:
    """See :meth:`Comparison.save`."""
    settings = ("seeds", "random_split", "task", "baselines", "diagnostics")
    described: dict[str, Any] = {"recipe": asdict(found.recipe)}
    described |= {name: getattr(found, name) for name in settings}
    markdown = [comparison_table(found)]
    markdown += [f"## {metric}\n\n{comparison_table(found, metric)}" for metric in found.metrics[1:]]
    texts = {
        "comparison.json": json.dumps(described | {"rows": found.rows()}, indent=1) + "\n",
        "comparison.md": "\n".join(markdown),
    }
    for name, text in texts.items():
        with replacing(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    if html:
        sections = [Section(metric, tables=_tables(found, metric)) for metric in found.metrics]
        lead = f"{len(found.parameters)} fusion layers trained under one recipe with {found.seeds} seeds: {found.task}."
        write_report(folder / "comparison.html", title="Fusion layers compared", lead=lead, sections=sections)


def _tables(found: "Comparison", metric: str) -> list[Table]:
    tables = [summary(found, metric), by_case(found, metric)]
    return [*tables, inside(found)] if found.diagnostics and metric == found.metrics[0] else tables


def _markdown(table: Table) -> str:
    lines = [table.head, ["---"] + ["---:"] * (len(table.head) - 1), *table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{table.caption}\n"


def _cases(found: "Comparison") -> list[str]:
    return list(dict.fromkeys(case for cases in found.scores.values() for case in cases))


def _cells(found: "Comparison", metric: str) -> dict[str, dict[str, str]]:
    """Layer → case → what its cell says."""
    cells: dict[str, dict[str, str]] = {layer: {} for layer in found.scores}
    for row in found.rows():
        if row["metric"] == metric:
            text = f"{row['mean']:.3f}"
            text += "" if row["half_width"] is None else f" ± {row['half_width']:.3f}"
            cells[row["layer"]][row["case"]] = text + _mark(row)
    return cells


def _mark(row: dict[str, Any]) -> str:
    if row["adjusted"] is None or row["adjusted"] >= ALARM:
        return ""
    return " ▲" if (row["difference"] > 0) == is_better_higher(row["metric"]) else " ▼"


def _interval(values: list[float] | None, found: "Comparison") -> str:
    if not values:
        return "–"
    width = half_width(values, overlap=found.overlap)
    return f"{fmean(values):.3f}" + ("" if width is None else f" ± {width:.3f}")


def _named(found: "Comparison", layer: str) -> str:
    return f"{layer} (baseline)" if layer in found.baselines else layer


def _caption(found: "Comparison", metric: str) -> str:
    title = TITLES.get(metric, metric if "@" in metric else metric.capitalize())
    cost = (
        " MFLOP: millions of floating-point operations of one sample's forward pass. Time: of a forward and "
        "backward pass over that of concatenation, side by side in this run."
    )
    if INCOMPLETE in _cases(found):
        cost += " Incomplete: mean of all cases with something missing."
    if found.seeds == 1:
        return f"{title} on the test samples, one seed: differences may be chance." + cost
    varied = "initial weights, batches and dropout"
    if found.random_split:
        varied = "the split, " + varied
    told = (
        f"{title} on the test samples, mean ± half the 95 % confidence interval over {found.seeds} seeds, "
        + (f"which vary {varied}.")
    )
    if found.random_split:
        told += " Splits overlap, so intervals and tests are widened after Nadeau and Bengio (2003)."
    if found.baselines:
        told += (
            " ▲ better, ▼ worse than the best baseline of the same case: paired t-test, adjusted by Holm over "
            f"the layers, p < {ALARM}."
        )
    if found.seeds < 5:
        told += " Fewer than five seeds say little."
    return told + cost
