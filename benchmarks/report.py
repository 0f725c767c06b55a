"""Measure everything and write docs/performance.md: python -m benchmarks.report [--peers] [--only PART] [--page].

With --page the page and its figure are made again from the numbers of the last run; with --only some of them are
measured again.
"""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib

from pnp.palette import MODALITIES, POTENTIAL, STYLE

from . import startup, steady, transient
from .measure import load, machine, options, save

DOCS = Path(__file__).parents[1] / "docs"
FIGURE = DOCS / "figures" / "performance.png"
OURS, (EXPERT, *OTHERS) = POTENTIAL, MODALITIES

PAGE = """# Performance

Every number on this page was measured by `OMP_NUM_THREADS=1 python -m benchmarks.report{peers}` (`make benchmark`),
which writes the page; the raw numbers are in `benchmarks/results`. Times are CPU times of one thread, medians of two
to eleven alternating rounds, with the garbage collector off as in `timeit`; calls of more than ten seconds and large
batches of transients have one turn. The machine is shared: trust ratios, not milliseconds.

{machine}

The cells: a 1:1 salt of equal diffusivities between blocking electrodes at $\\pm U_0$, $U_0$ uniform over 0.1..10
thermal voltages, $\\epsilon = \\lambda_D/(L/2)$ log-uniform over 0.005..0.1, every cell different. *Error* is that
of the diffuse charge $Q$, relative, against the exact solution (steady states) or a spectral solver (transients).

The **expert** (`benchmarks/expert.py`) is what a specialist would write for this very problem in numpy: the same
grids, fluxes and tolerances, no code in common with `pnp`, one cell after another, LAPACK's band solver. It may use
that there are two ions of opposite valence and equal diffusivity; `pnp` may not, and also checks its input, resolution
and balances. The tests hold it to the exact solution and to `pnp` (`tests/test_benchmarks.py`). Other codes are in
`benchmarks/peers.py`, with what is fair and unfair about each.

What the numbers of the others mean:

- `solve_bvp` solves Poisson-Boltzmann's equation of half a symmetric cell, which is all that is left of this steady
  state, but not a transient, unequal ions or a reaction. Its method is of fourth order.
- PyBaMM has the same fluxes and grids written in its expressions, one model for all cells, made off the clock; a steady
  state is a transient to 100 diffusion times. IDAKLU's orders go up to five.
- devsim gives the expert's numbers to all digits. Half of its time sets up a device a cell; it reaches the steady
  state of a closed cell by implicit steps; its transients take steps in proportion to the time, TR-BDF2.
- matscipy has uniform grids only, and dense matrices.
- FiPy solves Poisson-Boltzmann's equation, too, with both amounts given.

![Cells per second against batch, nodes and species; transients: cost against error.](figures/performance.png)

What ours depend on: glibc returns the memory of a batch to the system after every call, which then hands it out page by
page again, at up to half the price of the solve. The first compiled solve therefore has it keep half a gigabyte
(`pnp/compiled/memory.py`), unless the environment has a setting of its own (`MALLOC_...`); the numbers here have no
other help. Blocks of more than 32 MB, which batches of more than 20,000 cells need, it never keeps: hence the drop at
the end of the curve. With `THP_MEM_ALLOC_ENABLE=1` in the environment torch takes large pages for those, which is
faster; or solve in chunks, as `pnp.sweep` does.

What compiled kernels do not do yet, and the torch solver does slowly: waveforms, driven currents, reactions, ions of
finite size, and steady states with a flux. One transient alone leaves seven of eight vector lanes idle. A gradient of a
transient goes back over its recorded steps, each of which is begun once more; it keeps one state a step, some 5 kB
for 201 nodes and two species.

CUDA tensors are solved by the same kernels, compiled for one cell a thread, where numba-cuda is installed (the extra
`cuda`). For a gradient of transients a GPU takes the steps once more to record them, as many cells at a time as half of
its free memory has room for. This has been compiled and simulated but **not yet run on a GPU**, so there are no
numbers; with one, `python -m benchmarks.gpu` measures them from 1 to 1,000,000 cells and compares with the CPU.

## Steady states

{steady}
## Transients

From switching on to ten charging times. The error is the largest over 20 moments; the median is over the cells.

{transient}
## Start

Wall times of fresh processes. Compiled functions, where there are any, are kept in a cache on disk.

{startup}"""


def figure(found: dict[str, Any]) -> None:
    """Four pictures side by side."""
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter

    canvas, axes = pyplot.subplots(2, 2, figsize=(10.5, 9.5), layout="constrained")
    batch, nodes, species, precision = axes.flat
    still, moving = found["steady"], found["transient"]
    costs = {row["solver"]: row["cpu"] for row in still["comparison"]}
    expert = costs.pop("expert")
    costs.pop("pnp")

    rows = still["batch"]
    batch.loglog(
        [r["batch"] for r in rows], [r["batch"] / r["seconds"] for r in rows], "o-", color=OURS, label="pnp"
    )
    batch.axhline(1 / expert, color=EXPERT, ls="--", label="expert, one by one")
    for (name, cost), color in zip(costs.items(), OTHERS, strict=False):
        batch.axhline(1 / cost, color=color, ls=":", label=name)
    batch.set(xlabel="cells in a call", ylabel="cells per CPU second", title="steady states, 201 nodes")

    rows = still["nodes"]
    sizes = [r["nodes"] for r in rows]
    nodes.loglog(
        sizes, [r["batch"] / r["seconds"] for r in rows], "o-", color=OURS, label="pnp, 64 in a call"
    )
    nodes.loglog(sizes, [1 / r["expert"] for r in rows], "s--", color=EXPERT, label="expert, one by one")
    nodes.set(xlabel="nodes", ylabel="cells per CPU second", title="steady states against grid size")

    rows = still["species"]
    sizes = [r["species"] for r in rows]
    species.loglog(sizes, [1 / r["seconds"] for r in rows], "o-", color=OURS, label="value")
    with_gradient = [1 / r["seconds_with_gradient"] for r in rows]
    species.loglog(sizes, with_gradient, "^:", color=OURS, label="value and gradient")
    species.set(xlabel="species", ylabel="cells per CPU second", title="one cell of many species, 201 nodes")

    styles = {"pnp, batch": (OURS, "o-"), "pnp, one by one": (OURS, "^:"), "expert": (EXPERT, "s--")}
    fewest = min(row["cells"] for row in moving["precision"] if row["solver"] == "expert")
    others = iter(OTHERS[1:])
    for name in dict.fromkeys(row["solver"] for row in moving["precision"]):
        color, style = styles.get(name) or (next(others), "d-.")
        for grid in sorted({row["nodes"] for row in moving["precision"] if row["solver"] == name}):
            rows = [r for r in moving["precision"] if (r["solver"], r["nodes"]) == (name, grid)]
            rows = [r for r in rows if r["median_error"] and r["cells"] >= fewest]
            if rows:
                precision.loglog(
                    [r["median_error"] for r in rows],
                    [1e3 * r["cpu"] for r in rows],
                    style,
                    color=color,
                    alpha=1.0 if grid < 300 else 0.45,
                    label=f"{name}, {grid} nodes",
                )
    precision.set(
        xlabel="error of Q(t), median", ylabel="CPU ms a cell", title="transients, several tolerances"
    )
    ticks = [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    precision.set_xticks(ticks, [f"{tick:.0e}" for tick in ticks])
    precision.xaxis.set_minor_formatter(NullFormatter())
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    FIGURE.parent.mkdir(exist_ok=True)
    canvas.savefig(FIGURE)
    pyplot.close(canvas)


def main() -> None:
    """Measure, unless only the page is wanted, and write."""
    chosen = options(
        __doc__.splitlines()[0],
        page={"action": "store_true", "help": "make the page from the last numbers, without measuring"},
        only={
            "nargs": "+",
            "choices": list(PARTS),
            "default": list(PARTS),
            "help": "measure these parts only",
        },
    )
    if not chosen.page:
        for name in chosen.only:
            part = PARTS[name]
            numbers = part.measure(chosen.quick, chosen.peers)
            print(f"# {name}\n\n{part.page(numbers)}", flush=True)
            if not chosen.quick:
                save(name, numbers)
        if chosen.quick:
            return
        save("machine", machine() | {"peers": chosen.peers})
    found, about = {name: load(name) for name in PARTS}, load("machine")
    first = f"{about.pop('processor')}, {about.pop('cores')} cores"
    peers = " --peers" if about.pop("peers") else ""
    versions = textwrap.fill(", ".join([first, *(f"{name} {value}" for name, value in about.items())]), 110)
    figure(found)
    parts = {name: part.page(found[name]) for name, part in PARTS.items()}
    text = PAGE.format(peers=peers, machine=versions + ".", **parts)
    (DOCS / "performance.md").write_text(text, encoding="utf-8")


PARTS: dict[str, Any] = {"steady": steady, "transient": transient, "startup": startup}

if __name__ == "__main__":
    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
    main()
