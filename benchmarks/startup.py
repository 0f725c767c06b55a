"""Time until the first result in a fresh process: python -m benchmarks.startup [--quick]."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from .measure import options, save, table

ROOT = Path(__file__).parents[1]
CELL = """
import time
start = time.perf_counter()
import torch, pnp
torch.set_num_threads(1)
salt = [pnp.Species(name, valence=z, diffusivity=1.0) for name, z in (("+", 1), ("-", -1))]
voltage = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64, requires_grad={gradient})
cell = pnp.Cell(pnp.Electrolyte.dimensionless(salt, permittivity=5e-3), length=2.0, concentrations=1.0,
                left=pnp.Electrode(potential=voltage), right=pnp.Electrode(potential=-voltage))
for _ in range(2):
    first = time.perf_counter()
    {call}
    print(time.perf_counter() - first)
"""
STEADY = "found = pnp.diffuse_charge(pnp.solve_steady(cell))"
TRANSIENT = "found = pnp.diffuse_charge(pnp.solve_transient(cell, times=torch.tensor([0.01, 0.1, 0.5])))"
GRADIENT = "; torch.autograd.grad(found.sum(), voltage)"
CALLS = {
    "steady state": (STEADY, False),
    "steady state and gradient": (STEADY + GRADIENT, True),
    "transient": (TRANSIENT, False),
    "transient and gradient": (TRANSIENT + GRADIENT, True),
}
IMPORTS = {"nothing": "pass", "import torch": "import torch", "import pnp": "import pnp"}


def fresh(code: str, cache: str | None) -> tuple[float, str]:
    """Wall seconds of a new process, and what it prints; `cache` is the folder of compiled functions."""
    environment = dict(os.environ) | ({"NUMBA_CACHE_DIR": cache} if cache else {})
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    return time.perf_counter() - start, done.stdout


def measure(quick: bool = False, with_peers: bool = False) -> dict[str, Any]:
    """All tables of this page, as numbers."""
    rounds = 1 if quick else 2
    rows: dict[str, Any] = {"imports": {}, "first_calls": {}}
    for name, code in IMPORTS.items():
        rows["imports"][name] = statistics.median(fresh(code, None)[0] for _ in range(rounds))
    for name, (call, gradient) in CALLS.items():
        code = CELL.format(call=call, gradient=gradient)
        with tempfile.TemporaryDirectory() as empty:
            # The first process finds an empty cache, the others what it left there.
            seen = [[float(line) for line in fresh(code, empty)[1].split()] for _ in range(1 + rounds)]
        filled = [statistics.median(column) for column in zip(*seen[1:], strict=True)]
        rows["first_calls"][name] = [seen[0][0], *filled]
    return rows


def page(found: dict[str, Any]) -> str:
    """The numbers as Markdown."""
    text = table(
        ["a fresh process", "wall s"], [[name, f"{value:.2f}"] for name, value in found["imports"].items()]
    )
    return (
        text
        + "\nFour cells, after the imports:\n\n"
        + table(
            ["first call of", "empty cache, wall s", "filled cache, wall s", "second call, wall s"],
            [[name, *(f"{value:.3f}" for value in values)] for name, values in found["first_calls"].items()],
        )
    )


if __name__ == "__main__":
    chosen = options(__doc__.splitlines()[0])
    numbers = measure(chosen.quick)
    if not chosen.quick:
        save("startup", numbers)
    print(page(numbers))
