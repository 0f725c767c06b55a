"""Cells per second to the steady state: python -m benchmarks.steady [--quick] [--peers].

Clocks include the description of the cells and their grids, unless a table says otherwise. One thread.
"""

import os
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import torch

import pnp

from . import peers
from .cells import NODES, as_parameters, cell_of, exact_charges, many_species, sample
from .expert import Expert, graded_nodes
from .measure import Cost, alternating, clock, options, per_call, save, table

SHARED = 10
"""Cells that are solved by all codes but one."""
LONGEST = 4.0
"""Seconds of a call after which no larger one is tried."""


def ours(voltages: np.ndarray, debye: np.ndarray, nodes: int = NODES, gradients: bool = False) -> np.ndarray:
    """Q of a batch by `pnp`, and with `gradients` also those of their sum."""
    parameters = as_parameters(voltages, debye, gradients)
    with torch.set_grad_enabled(gradients):
        cell = cell_of(**parameters)
        # The default grid is the refined one of 201 nodes.
        grid = None if nodes == NODES else pnp.Grid.refined(cell, nodes)
        charges = pnp.diffuse_charge(pnp.solve_steady(cell, grid)) / 2
        if gradients:
            torch.autograd.grad(charges.sum(), list(parameters.values()), allow_unused=True)
    return charges.detach().numpy()


def expert(voltages: np.ndarray, debye: np.ndarray, nodes: int = NODES) -> np.ndarray:
    """Q of one cell after another by the expert's solver."""
    charges = []
    for voltage, length in zip(voltages.tolist(), debye.tolist(), strict=True):
        cell = Expert(voltage, length, graded_nodes(voltage, length, nodes))
        charges.append(cell.charge(cell.steady().state))
    return np.array(charges)


def comparison(quick: bool, with_peers: bool) -> list[dict[str, Any]]:
    """A thousand different cells, and a few of them by every other code."""
    voltages, debye = sample(100 if quick else 1000)
    exact = exact_charges(voltages, debye)
    solvers: dict[str, tuple[int, Callable[..., np.ndarray]]] = {
        "pnp": (len(voltages), ours),
        "expert": (20 if quick else 100, expert),
    }
    if with_peers:
        for name, peer in peers.available("steady"):
            solvers[name] = (3 if quick else peer.enough, peer.steady_charges)
    charges: dict[str, np.ndarray] = {}

    def solve(name: str) -> None:
        count, call = solvers[name]
        charges[name] = call(voltages[:count], debye[:count])

    solve("pnp"), solve("expert")  # once unmeasured: what is done on the first call only is in startup.py
    rounds = alternating({name: partial(solve, name) for name in solvers}, 1 if quick else 3, per_call)
    rows = []
    for name, cost in rounds.items():
        error = np.abs(charges[name] / exact[: len(charges[name])] - 1)
        solved = np.isfinite(error)
        count = len(error)
        rows.append(
            {
                "solver": name,
                "cells": count,
                "failed": int((~solved).sum()),
                "cpu": cost.cpu / count,
                "wall": cost.wall / count,
                "median_error": float(np.median(error[solved])) if solved.any() else None,
                "shared_error": float(np.median(error[:SHARED])) if solved[:SHARED].all() else None,
                "max_error": float(error[solved].max()) if solved.any() else None,
            }
        )
    return rows


def few_cells(quick: bool) -> list[dict[str, Any]]:
    """One cell and ten in a call, a thousand; value, and value with gradient."""
    rows, voltages, debye = [], *sample(100 if quick else 1000)
    for count in (1, 10, len(voltages)):
        part = voltages[:count], debye[:count]
        calls = {"value": partial(ours, *part), "gradient": partial(ours, *part, gradients=True)}
        if count < 100:
            calls["expert"] = partial(expert, *part)
        costs = alternating(calls, 1 if quick else 7, per_call)
        rows.append({"batch": count} | {name: cost.cpu for name, cost in costs.items()})
    return rows


def growing(
    sizes: Iterable[int], measure: Callable[[int], dict[str, Any]], quick: bool
) -> list[dict[str, Any]]:
    """Measurements at growing sizes, as long as they do not take too long."""
    rows = []
    for size in sizes:
        rows.append(measure(size))
        if max(value for key, value in rows[-1].items() if key.startswith("seconds")) > (
            0.5 if quick else LONGEST
        ):
            break
    return rows


def by_threads(threads: int, size: int) -> dict[str, Any]:
    """Time by the clock on the wall of a batch on so many threads."""
    torch.set_num_threads(threads)
    cost = _medians({"pnp": partial(ours, *sample(size, seed=1))})["pnp"]
    torch.set_num_threads(1)
    return {"threads": threads, "batch": size, "wall": cost.wall}


def by_batch(size: int) -> dict[str, Any]:
    """Cells per second in a batch of some size."""
    cost = _medians({"pnp": partial(ours, *sample(size, seed=1))})["pnp"]
    return {"batch": size, "seconds": cost.cpu, "wall": cost.wall}


def by_nodes(nodes: int) -> dict[str, Any]:
    """Cells per second on grids of some size, in a batch and by the expert."""
    batch, few = sample(64, seed=2), sample(8, seed=2)
    found = _medians({"pnp": partial(ours, *batch, nodes), "expert": partial(expert, *few, nodes)})
    cost, other = found["pnp"], found["expert"]
    return {"nodes": nodes, "batch": 64, "seconds": cost.cpu, "wall": cost.wall, "expert": other.cpu / 8}


def by_species(count: int, nodes: int = NODES) -> dict[str, Any]:
    """Equilibrium of one cell with some number of species, its description not included."""
    cell = many_species(count)
    built = clock(lambda: many_species(count))

    def value(cell: pnp.Cell = cell) -> torch.Tensor:
        return pnp.diffuse_charge(pnp.solve_steady(cell, pnp.Grid.refined(cell, nodes)))

    def gradient() -> None:
        voltage = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
        changed = pnp.Cell(
            cell.electrolyte,
            length=cell.length,
            concentrations=cell.concentrations,
            left=pnp.Electrode(potential=voltage),
            right=pnp.Electrode(potential=-voltage),
        )
        torch.autograd.grad(value(changed), voltage)

    found = _medians({"value": torch.no_grad()(value), "gradient": gradient})
    cost, with_gradient = found["value"], found["gradient"]
    return {
        "species": count,
        "nodes": nodes,
        "seconds": cost.cpu,
        "wall": cost.wall,
        "seconds_with_gradient": with_gradient.cpu,
        "description": built.cpu,
    }


def _medians(calls: dict[str, Callable[[], Any]]) -> dict[str, Cost]:
    """Of three alternating rounds, after a first call that is not measured."""
    for call in calls.values():
        call()
    return alternating(calls, 3, partial(per_call, seconds=0.1))


def measure(quick: bool = False, with_peers: bool = False) -> dict[str, Any]:
    """All tables of this page, as numbers."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", pnp.UnderResolvedWarning)
    batches = [1, 3, 10, 30, 100, 300, 1000, 3000, 10000, 30000]
    return {
        "comparison": comparison(quick, with_peers),
        "few": few_cells(quick),
        "batch": growing(batches, by_batch, quick),
        "nodes": growing([51, 101, 201, 401, 801, 1601], by_nodes, quick),
        "species": growing([2, 8, 32, 128, 512, 1024, 2048, 4096], by_species, quick),
        "wide": [] if quick else [by_species(512, 2048)],
        "threads": [by_threads(count, 300 if quick else 10_000) for count in (1, os.cpu_count() or 1)],
    }


def _rate(seconds: float) -> str:
    """Cells per second."""
    return f"{1 / seconds:,.0f}" if seconds < 0.1 else f"{1 / seconds:.2g}"


def page(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    rows = found["comparison"]
    unit = rows[0]["cpu"]
    expert_cost = next(row["cpu"] for row in rows if row["solver"] == "expert")
    lines = [
        [
            row["solver"],
            str(row["cells"]),
            f"{1e3 * row['cpu']:.3g}",
            f"{1e3 * row['wall']:.3g}",
            _rate(row["cpu"]),
            f"{row['cpu'] / unit:.3g}",
            f"{row['cpu'] / expert_cost:.3g}",
            "" if row["median_error"] is None else f"{row['median_error']:.1e}",
            "" if row["shared_error"] is None else f"{row['shared_error']:.1e}",
            "" if row["max_error"] is None else f"{row['max_error']:.1e}",
            str(row["failed"]),
        ]
        for row in rows
    ]
    head = ["solver", "cells", "CPU ms a cell", "wall ms a cell", "cells per CPU second"]
    head += [
        "cost over ours",
        "cost over the expert's",
        "error of Q, median",
        f"of the first {SHARED}",
        "largest",
        "failed",
    ]
    text = table(head, lines)
    text += "\nOf one call, value alone and with its gradient:\n\n" + table(
        ["cells in the call", "CPU ms", "with gradient, CPU ms", "ratio", "expert, CPU ms"],
        [
            [
                str(row["batch"]),
                f"{1e3 * row['value']:.3g}",
                f"{1e3 * row['gradient']:.3g}",
                f"{row['gradient'] / row['value']:.2f}",
                f"{1e3 * row['expert']:.3g}" if "expert" in row else "",
            ]
            for row in found["few"]
        ],
    )
    text += "\nAgainst the size of the batch, 201 nodes:\n\n" + table(
        ["cells in the call", "CPU ms", "cells per CPU second"],
        [
            [str(r["batch"]), f"{1e3 * r['seconds']:.3g}", f"{r['batch'] / r['seconds']:,.0f}"]
            for r in found["batch"]
        ],
    )
    text += "\nOn several threads:\n\n" + table(
        ["threads", "cells in the call", "wall ms", "faster than one"],
        [
            [
                str(r["threads"]),
                str(r["batch"]),
                f"{1e3 * r['wall']:.3g}",
                f"{found['threads'][0]['wall'] / r['wall']:.2f}",
            ]
            for r in found["threads"]
        ],
    )
    text += "\nAgainst the number of nodes, 64 cells in a call:\n\n" + table(
        ["nodes", "cells per CPU second", "expert's", "ratio"],
        [
            [
                str(r["nodes"]),
                f"{r['batch'] / r['seconds']:,.0f}",
                f"{1 / r['expert']:,.0f}",
                f"{r['expert'] * r['batch'] / r['seconds']:.3g}",
            ]
            for r in found["nodes"]
        ],
    )
    text += "\nEquilibrium of one cell of many species, its description not included:\n\n" + table(
        ["species", "nodes", "CPU ms", "with gradient, CPU ms", "ratio", "the description, CPU ms"],
        [
            [
                str(r["species"]),
                str(r["nodes"]),
                f"{1e3 * r['seconds']:.3g}",
                f"{1e3 * r['seconds_with_gradient']:.3g}",
                f"{r['seconds_with_gradient'] / r['seconds']:.2f}",
                f"{1e3 * r['description']:.3g}",
            ]
            for r in [*found["species"], *found["wide"]]
        ],
    )
    return text


if __name__ == "__main__":
    chosen = options(__doc__.splitlines()[0])
    numbers = measure(chosen.quick, chosen.peers)
    if not chosen.quick:
        save("steady", numbers)
    print(page(numbers))
