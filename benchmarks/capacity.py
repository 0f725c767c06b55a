"""How many channels a cell lets be invariant, knob by knob: python -m benchmarks.capacity [--page].

Without `--page` measures and keeps the figures in results/capacity.json; with it writes docs/capacity.md and its
figure.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import fusion
from fusion.grounded.channels import Ions
from fusion.grounded.ions import Noise
from fusion.grounded.settings import CellSettings
from pnp.atomic import replacing

from .measure import table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "capacity.json"
PAGE, FIGURE = ROOT / "docs" / "capacity.md", ROOT / "docs" / "images" / "capacity.png"
DIMS, SHARED, SAMPLES, SEEDS, VOLTAGE = {"a": 32, "b": 24}, 5, 3000, 4, 100.0
KNOBS: dict[str, tuple[dict[str, float], tuple[float, ...]]] = {
    "ground": ({}, (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)),
    "debye_length": ({}, (1.0, 0.3, 0.1, 0.05, 0.03, 0.02, 0.01)),
    "ion_size": ({"ground": 0.5}, (0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9)),
    "ion_size, ground 0.95": ({"ground": 0.95}, (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 0.9)),
}
VOLTAGES = {"the default voltage": None, f"{VOLTAGE:g} thermal voltages": VOLTAGE}
"""Of the first two knobs; finite ions settle slowly in the field of the default voltage."""


def measure() -> dict[str, list[dict[str, float]]]:
    """Every knob, value by value and seed by seed: gates of the shared directions and of the others, summed."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(SEEDS):
        features, _ = fusion.shared_private(SAMPLES, DIMS, shared=SHARED, private=5, noise=0.3, seed=seed)
        one = fusion.dissociate(features.modalities).channels["a"]
        for knob, (fixed, values) in KNOBS.items():
            name = knob.partition(",")[0]
            for label, voltage in VOLTAGES.items():
                if voltage is None and name == "ion_size":
                    continue
                for value in values:
                    noise = Noise(one.noise_level, one.voltage if voltage is None else voltage)
                    settings = CellSettings(**(fixed | {name: value}))
                    gates = Ions.at_rest(one.predictability, noise, settings).gates
                    figures = {
                        "value": value,
                        "shared": float(gates[:SHARED].sum()),
                        "others": float(gates[SHARED:].sum()),
                    }
                    found.setdefault(f"{knob}; {label}", []).append(figures)
        print(f"seed {seed}", flush=True)
    return found


def default() -> list[list[str]]:
    """What the default finds where it is not told, at several numbers of shared directions and of samples."""
    rows = []
    for shared in (0, 2, 5, 10):
        cells = [str(shared)]
        for samples in (300, 1000, 3000):
            counts = []
            for seed in range(SEEDS):
                made, _ = fusion.shared_private(samples, DIMS, shared=shared, private=5, noise=0.3, seed=seed)
                counts.append(fusion.dissociate(made.modalities).channels["a"].invariant_dimension)
            cells.append(f"{statistics.mean(counts):.2f} ± {statistics.stdev(counts):.2f}")
        rows.append(cells)
    return rows


def means(seeds: list[dict[str, float]]) -> dict[float, dict[str, float]]:
    """Means over the seeds, by value."""
    found = {}
    for value in dict.fromkeys(one["value"] for one in seeds):
        here = [one for one in seeds if one["value"] == value]
        found[value] = {key: statistics.mean(one[key] for one in here) for key in ("shared", "others")}
    return found


PROSE = r"""# How many channels may be invariant

Written by `python -m benchmarks.capacity` and `python -m benchmarks.capacity --page`. A modality of 32 channels of
which {shared} directions are shared with another one of 24 (`fusion.shared_private`, {samples} samples, noise 0.3),
means over {seeds} seeds. *Shared* is the sum of the gates of the five best predicted directions, *others* that of the
other 27.

## The default: the noise decides

The number of invariant channels is not set. A direction becomes a cation if others predict it better than chance does
with as many samples, and the default voltage makes that decision sharp. Sum of the gates, by the true number of shared
directions and the samples:

{default}
This is the default because it needs no number of anybody's choice. A knob is for whoever wants fewer channels than are
shared (a narrow bottleneck), or more than are sure.

## What the knobs do

![The sum of the gates against every knob](images/capacity.png)

At the default voltage (some 500 thermal voltages here) the sign of the valence is all that counts: over all values of
`ground` and `debye_length` in the tables below, shared stayed at {least:.2f} and more, others at {most:.2f} and less.
Knobs are for softer fields, {voltage:g} thermal voltages in the tables.

- `ground` moves the valence at which a gate is half open: near 0 it lets noise in, near 1 it closes on what is barely
  shared.
- `debye_length` does nothing down to a twentieth of the cell. Shorter, channels screen the field from each other and
  gates of the others open. It is no means to have fewer.
- `ion_size` with the ground in the middle makes it worse: the other 27 channels crowd their half of the cell, and the
  least specific ones are pushed over the ground.
- `ion_size` with the ground near the right end is a capacity, and the only knob that is one: at most
  $l\,(1 - b)/\mathrm{{ion\_size}}$ channels get beyond the ground, the best predicted first. For at most *k* of *l*,
  take `ground = 1 - k * ion_size / l` with an `ion_size` of 0.6, say, and `voltage=100`: in stronger fields packed
  cells take seconds to settle.

{tables}"""


def page(found: dict[str, list[dict[str, float]]]) -> str:
    """The page, with what was measured."""
    tables, sharp = [], []
    for name, seeds in found.items():
        knob, _, label = name.partition("; ")
        if VOLTAGES.get(label, VOLTAGE) is None:
            sharp += list(means(seeds).values())
        elif label:
            rows = [
                [f"{value:g}", f"{one['shared']:.2f}", f"{one['others']:.2f}"]
                for value, one in means(seeds).items()
            ]
            tables.append(f"`{knob}`:\n\n" + table([knob.partition(",")[0], "shared", "others"], rows))
    return PROSE.format(
        shared=SHARED,
        samples=SAMPLES,
        seeds=SEEDS,
        default=table(["shared", "300 samples", "1000", "3000"], found["default"]),
        least=min(one["shared"] for one in sharp),
        most=max(one["others"] for one in sharp),
        voltage=VOLTAGE,
        tables="\n".join(tables),
    )


def draw(found: dict[str, list[dict[str, float]]]) -> None:
    """One panel a knob."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    from fusion.plotting import INVARIANT, POTENTIAL, SPECIFIC

    figure, axes = pyplot.subplots(1, len(KNOBS), figsize=(14, 3.6), sharey=True, layout="constrained")
    for ax, knob in zip(axes, KNOBS, strict=True):
        for label, style in zip(VOLTAGES, ("-", "--"), strict=True):
            if f"{knob}; {label}" not in found:
                continue
            values = means(found[f"{knob}; {label}"])
            for what, color in (("shared", INVARIANT), ("others", SPECIFIC)):
                ax.plot(
                    list(values),
                    [one[what] for one in values.values()],
                    style,
                    marker="o",
                    ms=3.5,
                    color=color,
                    label=f"{what}, {label}",
                )
        ax.axhline(SHARED, color=POTENTIAL, lw=0.8, ls=":")
        ax.set_title(knob)
        ax.set_xlabel(knob.partition(",")[0])
    axes[1].set_xscale("log")
    length, sizes = DIMS["a"], torch.linspace(0.2, 0.9, 50)
    axes[-1].plot(sizes, length * 0.05 / sizes, color=POTENTIAL, lw=1, label="all that fit beyond the ground")
    axes[0].set_ylabel("sum of the gates")
    axes[0].set_ylim(-0.5, 16)
    axes[0].legend(frameon=False, fontsize="small", loc="upper right")
    axes[-1].legend(frameon=False, fontsize="small", loc="upper right")
    with replacing(FIGURE) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", action="store_true", help="write the page from what was measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.page:
        with replacing(RESULTS) as temporary:
            temporary.write_text(
                json.dumps(measure() | {"default": default()}, indent=1) + "\n", encoding="utf-8"
            )
        return
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    draw(found)
    with replacing(PAGE) as temporary:
        temporary.write_text(page(found), encoding="utf-8")


if __name__ == "__main__":
    main()
