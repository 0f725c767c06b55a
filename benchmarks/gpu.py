"""Cells per second on a GPU, and what the CPU gives for the same cells: python -m benchmarks.gpu [--quick].

Clocks run from parameters on the device to the diffuse charge there: description, grid, solve and result. The first
call, which compiles, is reported apart. Every batch up to some size is solved on the CPU too and compared.
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import pnp

from .cells import NODES, as_parameters, cell_of, sample
from .measure import options, save, table

SIZES = [1, 10, 100, 1000, 10_000, 100_000, 1_000_000]
COMPARED = 100_000
"""Most cells that are solved on the CPU too."""
BYTES = 280
"""Least that two species read and write for each node and iteration."""
BLOCK = 2**28
"""Numbers that are copied to see how quick the memory is."""


def seconds(call: Callable[[], Any], rounds: int) -> list[float]:
    """Wall times of calls and of all that they queue."""
    found = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return found


def bandwidth() -> float:
    """Bytes that a copy of a large array reads and writes in a second."""
    source = torch.ones(BLOCK, dtype=torch.float64, device="cuda")
    target = torch.empty_like(source)
    return 2 * 8 * BLOCK / min(seconds(lambda: target.copy_(source), 5))


def solved(parameters: dict[str, Tensor]) -> pnp.Solution:
    """Steady states of a batch where its parameters are."""
    return pnp.solve_steady(cell_of(**parameters))


def gradient(solve: Callable[[dict[str, Tensor]], pnp.Solution], parameters: dict[str, Tensor]) -> Tensor:
    """Of the sum of all diffuse charges by the voltages."""
    voltage = parameters["voltage"].detach().requires_grad_()
    charges = pnp.diffuse_charge(solve(parameters | {"voltage": voltage}))
    return torch.autograd.grad(charges.sum(), voltage)[0]


def charged(parameters: dict[str, Tensor]) -> pnp.Solution:
    """Transients to one charging time, which is the unit of time."""
    cell = cell_of(**parameters)
    return pnp.solve_transient(cell, pnp.Grid.refined(cell, NODES), times=[1.0])


def difference(one: Tensor, two: Tensor) -> float:
    """Largest, of numbers of about one and more relative."""
    two = two.to(one.device)
    return float(((one - two).abs() / (1 + two.abs())).max())


def of_batch(size: int, floor: float) -> dict[str, Any]:
    """Rates of a batch, and how far it is from the CPU."""
    here = as_parameters(*sample(size, seed=1))
    there = {name: one.cuda() for name, one in here.items()}
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        first = seconds(lambda: solved(there), 1)[0]
        solution = solved(there)
        rounds = seconds(lambda: pnp.diffuse_charge(solved(there)), 5)
    row = {
        "batch": size,
        "solver": solution.stats.solver,
        "first": first,
        "seconds": statistics.median(rounds),
        "iterations": float(solution.stats.iterations.double().mean()),
        "memory": torch.cuda.max_memory_allocated(),
    }
    least = BYTES * NODES * row["iterations"] * size / floor
    row["of_floor"] = least / row["seconds"]
    if size <= COMPARED:
        with torch.no_grad():
            wanted = solved(here)
        row["potential"] = difference(wanted.potential, solution.potential)
        row["concentrations"] = difference(wanted.concentrations, solution.concentrations)
        gradient(solved, there)
        row["gradient_seconds"] = statistics.median(seconds(lambda: gradient(solved, there), 3))
        row["gradient"] = difference(gradient(solved, here), gradient(solved, there))
    return row


def of_transients(size: int) -> dict[str, Any]:
    """Rates of transients, and how far they are from the CPU."""
    here = as_parameters(*sample(size, seed=1))
    there = {name: one.cuda() for name, one in here.items()}
    with torch.no_grad():
        first = seconds(lambda: charged(there), 1)[0]
        solution = charged(there)
        row = {
            "batch": size,
            "solver": solution.stats.solver,
            "first": first,
            "seconds": seconds(lambda: charged(there), 1)[0],
        }
        if size <= 1000:
            row["potential"] = difference(charged(here).potential, solution.potential)
    gradient(charged, there)
    row["gradient_seconds"] = seconds(lambda: gradient(charged, there), 1)[0]
    if size <= 1000:
        row["gradient"] = difference(gradient(charged, here), gradient(charged, there))
    return row


def measure(quick: bool) -> dict[str, Any]:
    """All of it, as numbers."""
    warnings.simplefilter("ignore", pnp.UnderResolvedWarning)
    floor = bandwidth()
    sizes = SIZES[:4] if quick else SIZES
    return {
        "device": torch.cuda.get_device_name(),
        "bandwidth": floor,
        "steady": [of_batch(size, floor) for size in sizes],
        "transient": [of_transients(size) for size in sizes[:-2]],
    }


def _written(row: dict[str, Any]) -> list[str]:
    """What both tables begin with."""
    rate = f"{row['batch'] / row['seconds']:,.0f}"
    first, each = f"{row['first']:.2f}", f"{1e3 * row['seconds']:.3g}"
    return [f"{row['batch']:,}", row["solver"], first, each, rate]


def _with_gradient(row: dict[str, Any]) -> str:
    return f"{1e3 * row['gradient_seconds']:.3g}" if "gradient_seconds" in row else ""


def _differences(row: dict[str, Any], *names: str) -> list[str]:
    return [f"{row[name]:.1e}" if name in row else "" for name in names]


def page(found: dict[str, Any]) -> str:
    """The numbers as Markdown; differences are those from the CPU."""
    head = ["cells", "solver", "first call, s", "ms", "cells per second"]
    differ = ["potential", "concentrations", "gradient"]
    still = [
        [
            *_written(row),
            f"{row['iterations']:.1f}",
            f"{100 * row['of_floor']:.2g} %",
            _with_gradient(row),
            f"{row['memory'] / 2**30:.1f}",
            *_differences(row, *differ),
        ]
        for row in found["steady"]
    ]
    more = ["iterations", "of the floor", "with gradient, ms", "GiB"]
    moving = [
        [*_written(row), _with_gradient(row), *_differences(row, "potential", "gradient")]
        for row in found["transient"]
    ]
    return (
        f"{found['device']}, {found['bandwidth'] / 1e12:.2f} TB/s in a copy. Steady states:\n\n"
        + table([*head, *more, *differ], still)
        + "\nTransients to one charging time:\n\n"
        + table([*head, "with gradient, ms", "potential", "gradient"], moving)
    )


if __name__ == "__main__":
    chosen = options(__doc__.splitlines()[0])
    if not torch.cuda.is_available():
        print("There is no CUDA device that torch can use; nothing was measured.")
        raise SystemExit
    numbers = measure(chosen.quick)
    if not chosen.quick:
        save("gpu", numbers)
    print(page(numbers))
