"""Time and memory of a large sweep: python -m benchmarks.study [--cells N] [--nodes N].

The study of docs/sweeps.md, steady states of one process that uses every core; prints wall and processor time and the
peak of resident memory, and how much of that was there before.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

import pnp
import pnp.sweep
from pnp.quantity import Quantity

from .cells import cell_of

RANGES = {"voltage": (0.1, 10.0), "debye": pnp.sweep.log(0.005, 0.1)}


def peak() -> float:
    """Resident memory at its highest so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--nodes", type=int, default=201, help="default: %(default)s")
    options = parser.parse_args()

    def cell(voltage: Quantity, debye: Quantity) -> pnp.Cell:
        return cell_of(voltage, 2 * debye**2)

    def solve(cells: pnp.Cell) -> pnp.Solution:
        return pnp.solve_steady(cells, pnp.Grid.refined(cells, options.nodes), throw=False)

    pnp.solve_steady(cell(1.0, 0.1))  # compiles
    table = pnp.sweep.latin_hypercube(RANGES, options.cells, seed=0)
    before, wall, busy = peak(), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "study.nc"
        found = pnp.sweep.run(cell, table, {"charge": pnp.diffuse_charge}, out=out, solve=solve)
        solved = int((found.status == 0).sum())
        found.close()
    wall, busy = time.perf_counter() - wall, time.process_time() - busy
    print(
        f"{solved} of {options.cells} cells on {options.nodes} nodes: {wall:.1f} s, {busy:.1f} s of processor, "
        f"{os.cpu_count()} cores, {before:.2f} GB before and {peak():.2f} GB at the peak"
    )


if __name__ == "__main__":
    main()
