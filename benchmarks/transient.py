"""Cost of a charging transient at equal error: python -m benchmarks.transient [--quick] [--peers].

Cells charge for ten charging times; the error is the largest of Q over twenty moments, against spectral elements and
Radau's method. Every code runs at several tolerances, so that costs can be read off at equal error.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

import pnp

from . import peers
from .cells import MOMENTS, NODES, as_parameters, cell_of, charging_references, sample
from .expert import Expert, graded_nodes
from .measure import alternating, clock, options, save, table

TOLERANCES = (1e-3, 3e-4, 1e-4, 3e-5)
TARGETS = (3e-4, 5e-4, 1e-3, 2e-3)
"""Errors at which costs are compared."""
FEW = 12
"""Cells whose references are computed, two seconds each."""
PATIENCE = 5.0
"""Seconds that one batch may take."""


def ours(
    voltages: np.ndarray, debye: np.ndarray, tolerance: float, nodes: int, gradients: bool = False
) -> np.ndarray:
    """Q(t) of a batch `(cell, time)` by `pnp`."""
    parameters = as_parameters(voltages, debye, gradients)
    control = pnp.StepControl(relative=tolerance, absolute=tolerance / 100)
    with torch.set_grad_enabled(gradients):
        cell = cell_of(**parameters)
        grid = None if nodes == NODES else pnp.Grid.refined(cell, nodes)
        times = torch.as_tensor(MOMENTS)
        charges = pnp.diffuse_charge(pnp.solve_transient(cell, grid, times=times, step_control=control)) / 2
        if gradients:
            torch.autograd.grad(charges.sum(), list(parameters.values()))
    return charges.detach().numpy()


def expert(voltages: np.ndarray, debye: np.ndarray, tolerance: float, nodes: int) -> np.ndarray:
    """Q(t) of one cell after another by the expert's solver."""
    rows = []
    for voltage, length in zip(voltages.tolist(), debye.tolist(), strict=True):
        cell = Expert(voltage, length, graded_nodes(voltage, length, nodes))
        rows.append(cell.charging(length * MOMENTS, tolerance, tolerance / 100).charges)
    return np.array(rows)


def affordable(quick: bool, together: int) -> int:
    """How many cells can be solved, so many together, without taking too long."""
    seconds = clock(partial(ours, *sample(together), 1e-4, NODES)).wall
    return together if quick else int(np.clip(together * PATIENCE / seconds, together, 1000))


def precision(quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """Pairs of error and cost."""
    voltages, debye = sample(1000)
    few = 3 if quick else FEW
    exact = charging_references(voltages[:few].tolist(), debye[:few].tolist())
    ours(*sample(1), 1e-3, NODES)  # once unmeasured: what is done on the first call only is in startup.py
    many, singles = affordable(quick, 16), min(few, affordable(quick, 1))
    solvers: dict[str, tuple[int, Callable[..., np.ndarray], Sequence[float], Sequence[int]]] = {
        "pnp, batch": (many, ours, TOLERANCES, (NODES, 401)),
        "pnp, one by one": (singles, partial(_singly, ours), TOLERANCES, (NODES,)),
        "expert": (few, expert, TOLERANCES, (NODES, 401)),
    }
    if with_peers:
        for name, peer in peers.available("transient"):
            solvers[name] = (few, peer.transient_charges, peer.tolerances, peer.grids)
    rows = []
    for name, (count, call, tolerances, grids) in solvers.items():
        for nodes in grids:
            for tolerance in tolerances[1:2] if quick else tolerances:
                rows.append(_row(name, call, voltages[:count], debye[:count], tolerance, nodes, exact, quick))
    return rows


def _row(
    name: str,
    call: Callable[..., np.ndarray],
    voltages: np.ndarray,
    debye: np.ndarray,
    tolerance: float,
    nodes: int,
    exact: np.ndarray,
    quick: bool,
) -> dict[str, Any]:
    found: list[np.ndarray] = []
    rounds = 1 if quick or len(voltages) > FEW else 2
    cost = alternating({name: lambda: found.append(call(voltages, debye, tolerance, nodes))}, rounds)[name]
    shared = min(len(exact), len(voltages))
    error = np.abs(found[-1][:shared] / exact[:shared] - 1).max(-1)
    solved = np.isfinite(error)
    return {
        "solver": name,
        "nodes": nodes,
        "tolerance": tolerance,
        "cells": len(voltages),
        "cpu": cost.cpu / len(voltages),
        "wall": cost.wall / len(voltages),
        "median_error": float(np.median(error[solved])) if solved.any() else None,
        "max_error": float(error[solved].max()) if solved.any() else None,
        "failed": int((~solved).sum()),
    }


def _singly(
    call: Callable[..., np.ndarray], voltages: np.ndarray, debye: np.ndarray, *more: Any
) -> np.ndarray:
    return np.concatenate([call(voltages[i : i + 1], debye[i : i + 1], *more) for i in range(len(voltages))])


def gradients(quick: bool) -> list[dict[str, Any]]:
    """Value, and value with gradient."""
    rows = []
    for count in (1, 16) if quick else (1, 16, 64, 256):
        part = *sample(count), 1e-4, NODES
        calls = {"value": partial(ours, *part), "gradient": partial(ours, *part, gradients=True)}
        # First unmeasured: those calls also get memory for tapes and results from the system.
        alternating(calls, 1 if quick else 4)
        costs = alternating(calls, 1 if quick else 11)
        rows.append({"batch": count} | {name: cost.cpu for name, cost in costs.items()})
    return rows


def at_error(rows: list[dict[str, Any]], which: str, target: float, least: int) -> float | None:
    """CPU seconds a cell at which the median or largest error meets a target, between pairs that were measured.

    None for fewer cells than `least`, because those are others, and for errors that were not reached.
    """
    costs = []
    for nodes in {row["nodes"] for row in rows if row["cells"] >= least}:
        here = [row for row in rows if row["nodes"] == nodes and row[which]]
        points = sorted((np.log(row[which]), np.log(row["cpu"])) for row in here)
        if points and points[0][0] <= np.log(target):
            costs.append(float(np.exp(np.interp(np.log(target), *zip(*points, strict=True)))))
    return min(costs, default=None)


def equal_error(rows: list[dict[str, Any]], which: str) -> str:
    """Costs at equal error as Markdown, on the best of the grids that were tried."""
    few = min(row["cells"] for row in rows if row["solver"] == "expert")
    costs: dict[str, list[float | None]] = {}
    for name in dict.fromkeys(row["solver"] for row in rows):
        own = [row for row in rows if row["solver"] == name]
        costs[name] = [at_error(own, which, target, few) for target in TARGETS]
    unit = next(iter(costs.values()))
    head = [
        "solver",
        *(f"CPU ms at error {t:.0e}" for t in TARGETS),
        *(f"over ours, {t:.0e}" for t in TARGETS),
    ]
    lines = []
    for name, found in costs.items():
        times = [f"{1e3 * cost:.3g}" if cost else "" for cost in found]
        ratios = [f"{a / b:.3g}" if a and b else "" for a, b in zip(found, unit, strict=True)]
        lines.append([name, *times, *ratios])
    return table(head, lines)


def measure(quick: bool = False, with_peers: bool = False) -> dict[str, Any]:
    """All tables of this page, as numbers."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pnp.UnderResolvedWarning)
    return {"precision": precision(quick, with_peers), "gradients": gradients(quick)}


def page(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    rows = found["precision"]
    text = table(
        [
            "solver",
            "nodes",
            "tolerance",
            "cells",
            "CPU ms a cell",
            "error of Q(t), median",
            "largest",
            "failed",
        ],
        [
            [
                row["solver"],
                str(row["nodes"]),
                f"{row['tolerance']:.0e}",
                str(row["cells"]),
                f"{1e3 * row['cpu']:.3g}",
                "" if row["median_error"] is None else f"{row['median_error']:.1e}",
                "" if row["max_error"] is None else f"{row['max_error']:.1e}",
                str(row["failed"]),
            ]
            for row in rows
        ],
    )
    text += "\nAt equal error, the median over the cells:\n\n" + equal_error(rows, "median_error")
    text += "\nAt equal error, that of the worst cell:\n\n" + equal_error(rows, "max_error")
    text += "\nOf a call, value alone and with its gradient (after first ones, which get memory from the system):\n\n"
    text += table(
        ["cells in the call", "CPU ms", "with gradient, CPU ms", "ratio"],
        [
            [
                str(row["batch"]),
                f"{1e3 * row['value']:.3g}",
                f"{1e3 * row['gradient']:.3g}",
                f"{row['gradient'] / row['value']:.2f}",
            ]
            for row in found["gradients"]
        ],
    )
    return text


if __name__ == "__main__":
    chosen = options(__doc__.splitlines()[0])
    numbers = measure(chosen.quick, chosen.peers)
    if not chosen.quick:
        save("transient", numbers)
    print(page(numbers))
