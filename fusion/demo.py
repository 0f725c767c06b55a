"""The main job on real data: a cell charges, the channels of two views migrate, layers are compared."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

import pnp

from .data.datasets import digits_two_views
from .evaluation.comparison import Comparison, compare
from .evaluation.tables import by_case
from .extras import require
from .grounded.subspaces import Subspaces, dissociate
from .grounded.transport import migrate
from .report import Picture, Section, Table, picture, write_report
from .training.recipe import DEFAULT, Recipe

VOLTAGE = 0.1
LENGTH = 400e-9
SALT = 1.0
LAYERS = ("cell", "gmf", "sum", "concat", "late")
GROUNDED = (
    "'cell' is the grounded layer: its maps are measured on the training features, none of them is trained. "
    "'gmf' is the published layer. Every layer has the same head, the same batches and the same splits."
)


def demo(out: Path, *, seeds: int = 5, recipe: Recipe = DEFAULT, progress: bool = True) -> Path:
    """Run the three parts and gather figures, numbers and `report.html` in the folder `out`.

    Returns the path of the report.
    """
    matplotlib = require("matplotlib", "plot")
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    began = time.monotonic()
    steps: list[tuple[str, Callable[[], Section]]] = [
        ("an electrolytic cell charges", lambda: charging(out)),
        ("the channels of two views migrate", lambda: migration(out)),
        ("fusion layers are trained and compared", lambda: comparison(out, seeds, recipe, progress)),
    ]
    sections = []
    for number, (what, step) in enumerate(steps, start=1):
        if progress:
            print(f"[{number}/{len(steps)}] {what} ...", flush=True)
        sections.append(step())
    matplotlib.use(backend)
    report = out / "report.html"
    write_report(
        report,
        title="Features as ions: a run of pnp-fusion",
        lead="An electrolytic cell, the channels of two real modalities as ions in such cells, and fusion "
        "layers trained on them beside their baselines. "
        f"Made in {time.monotonic() - began:.0f} s by python -m fusion demo.",
        sections=sections,
    )
    if progress:
        print(f"Report: {report}")
    return report


def canonical_cell() -> pnp.Cell:
    """1 mM of a 1:1 salt in 400 nm of water between electrodes at +100 mV and -100 mV."""
    ions = [
        pnp.Species("cation", valence=+1, diffusivity=2e-9),
        pnp.Species("anion", valence=-1, diffusivity=2e-9),
    ]
    return pnp.Cell(
        pnp.Electrolyte(ions),
        length=LENGTH,
        concentrations=SALT,
        left=pnp.Electrode(potential=+VOLTAGE),
        right=pnp.Electrode(potential=-VOLTAGE),
    )


def charging(out: Path) -> Section:
    """(a) The canonical cell from the mixed state to rest."""
    from pnp.analytic import canonical_cell as exact_cell

    cell = canonical_cell()
    debye = float(pnp.debye_length(cell))
    times = torch.cat([torch.zeros(1), torch.logspace(-10, -4, 49)]).double()
    solution = pnp.solve_transient(cell, times=times)
    steady = pnp.solve_steady(cell)
    exact = exact_cell(VOLTAGE / float(cell.electrolyte.thermal_voltage), debye / (LENGTH / 2))
    unit = float(cell.electrolyte.faraday_constant) * SALT * LENGTH
    error = float(pnp.diffuse_charge(steady)) / (unit * exact.charge) - 1
    relaxed = float((solution.potential[-1] - steady.potential).abs().max() * 1e3)
    check = solution.check()

    section = Section("(a) An electrolytic cell charges", figures=[_draw_charging(solution, debye, out)])
    section.paragraphs = [
        f"A 1:1 salt at {SALT:g} mM fills {LENGTH * 1e9:.0f} nm of water between blocking electrodes at "
        f"+{VOLTAGE * 1e3:.0f} mV (left) and −{VOLTAGE * 1e3:.0f} mV (right); its Debye length is "
        f"{debye * 1e9:.1f} nm. When the potentials are switched on the ions, mixed at first, migrate apart "
        "until double layers screen the electrodes.",
    ]
    section.tables = [
        Table(
            ("what was checked", "measured"),
            (
                ("diffuse charge of the steady state against the exact solution, relative", f"{error:.1e}"),
                ("end of the transient against the steady solver", f"{relaxed:.1e} mV"),
                ("amounts of the ions, relative", f"{float(check.amount_error):.1e}"),
                ("Gauss's law, relative", f"{float(check.gauss_error):.1e}"),
                ("smallest concentration", f"{float(check.smallest_concentration):.1e} mM"),
                (
                    "time steps, of which rejected",
                    f"{int(solution.stats.steps)}, {int(solution.stats.rejected)}",
                ),
            ),
        )
    ]
    return section


def _draw_charging(solution: pnp.Solution, debye: float, out: Path) -> Picture:
    """Profiles, cations over space and time, and the current with its two time scales."""
    from matplotlib import pyplot

    from pnp.palette import LIMIT
    from pnp.plotting import plot_current, plot_profiles, plot_space_time

    figure, axes = pyplot.subplots(
        1, 3, figsize=(12.5, 3.6), layout="constrained", width_ratios=(1.2, 1, 0.9)
    )
    plot_profiles(solution, moments=[0, 28, 34, 49], log=True, ax=axes[0])
    plot_space_time(solution, "cation", ax=axes[1])
    plot_current(solution, ax=axes[2])
    diffusivity = float(solution.cell.electrolyte.diffusivities[0])
    axes[2].axvline(debye * LENGTH / 2 / diffusivity * 1e6, color=LIMIT, ls=":", label="λ L / 2D")
    axes[2].axvline((LENGTH / 2) ** 2 / diffusivity * 1e6, color=LIMIT, ls="--", label="(L/2)² / D")
    axes[2].legend(frameon=False, loc="lower left")
    return picture(
        figure,
        out / "charging.png",
        caption="Left: concentrations and potential, from switching on (pale) to rest (dark). Middle: the "
        "cations gather at the negative electrode. Right: the current falls on two time scales, that of "
        "charging the double layers and that of diffusion from the bulk.",
    )


def draw_migration(subspaces: Subspaces, out: Path) -> list[Picture]:
    """Draw how the channels of every modality migrate, where they end up, and the gates that follow.

    Writes `migration.png`, `channels.png`, `gates.png` and `parts.png` into the folder `out`.
    """
    from matplotlib import pyplot

    from .plotting import plot_channels, plot_gates, plot_migration, plot_parts

    count = len(subspaces.channels)
    figure, axes = pyplot.subplots(1, count, figsize=(5.6 * count, 3.9), layout="constrained", squeeze=False)
    places, rows = pyplot.subplots(count, 3, figsize=(13.5, 3.5 * count), layout="constrained", squeeze=False)
    for ax, row, (name, channels) in zip(axes[0], rows, subspaces.channels.items(), strict=True):
        way = migrate(channels.cell)
        plot_migration(channels, way, title=name, ax=ax)
        for place, moment in zip(row, (12, 22, -1), strict=True):
            plot_channels(channels, way, moment=moment, title=name, ax=place)
    gates, ax = pyplot.subplots(figsize=(6.5, 3.9), layout="constrained")
    plot_gates(subspaces, ax=ax)
    parts, ax = pyplot.subplots(figsize=(6.5, 3.9), layout="constrained")
    plot_parts(subspaces, ax=ax)
    return [
        picture(
            figure,
            out / "migration.png",
            caption="Centres of mass of all channels. Those that the other modalities predict better than "
            "chance are cations and migrate beyond the ground b, the best predicted first; the others stay "
            "before it.",
        ),
        picture(
            places,
            out / "channels.png",
            caption="Where the channels are, early, on the way and at the end. The white line divides "
            "cations (above) from anions; the green one is the ground.",
        ),
        picture(gates, out / "gates.png", caption="The gates that follow, sharp at the noise level of R²."),
        picture(parts, out / "parts.png", caption="What went where, and the total charge of every modality."),
    ]


def film_migration(subspaces: Subspaces, out: Path, suffix: str) -> list[Path]:
    """Film the channels of every modality, `migration_NAME.SUFFIX` in the folder `out`; `gif` or `html`."""
    from .plotting import animate_channels

    paths = {name: out / f"migration_{name}.{suffix}" for name in subspaces.channels}
    for name, path in paths.items():
        animate_channels(subspaces.channels[name], path, title=name)
    return list(paths.values())


def migration(out: Path) -> Section:
    """(b) Two views of handwritten digits as ions."""
    features = digits_two_views()
    subspaces = dissociate(features.modalities)
    figures = draw_migration(subspaces, out)
    figures[0] = replace(
        figures[0],
        caption=figures[0].caption + " Of two views, the shared directions have the same R² in both.",
    )
    section = Section("(b) The channels of two views migrate", figures=figures)
    section.paragraphs = [
        "The 1797 handwritten digits of scikit-learn, seen by two sensors of unequal length: the 32 pixels "
        "of the upper half of each image, and the 20 lowest frequencies of a cosine transform of the lower "
        "half. No pixel is in both views, so what they share is the digit and its writer, not the "
        "measurement.",
        "Each view is whitened and turned into the directions that the other view predicts best. A direction "
        "becomes an ion whose valence says how much better than chance it is predicted. All ions of a view "
        "enter one cell; the fraction of an ion beyond b is the gate that splits its channel into an "
        "invariant and a specific part. Nothing here was trained, and no label was used.",
    ]
    rows = [
        (
            name,
            str(len(one.gates)),
            f"{one.invariant_dimension:.1f}",
            f"{one.noise_level:.3f}",
            f"{float(one.predictability.max()):.2f}",
            f"{float(one.valences.sum()):+.2f}",
        )
        for name, one in subspaces.channels.items()
    ]
    head = ("view", "channels", "invariant (sum of gates)", "noise level of R²", "largest R²", "total charge")
    section.tables = [Table(head, rows)]
    return section


def comparison(out: Path, seeds: int, recipe: Recipe, progress: bool) -> Section:
    """(c) The layers under the full recipe, and with no missing case in training."""
    from matplotlib import pyplot

    from .plotting import plot_comparison

    features = digits_two_views()
    recipes = {
        "trained on random subsets and on each view alone": recipe,
        "trained with both views always present": replace(recipe, random_subsets=False, each_alone=False),
    }
    found = {
        name: compare(features, LAYERS, recipe=one, seeds=seeds, progress=progress)
        for name, one in recipes.items()
    }
    figure, axes = pyplot.subplots(1, len(found), figsize=(11.5, 4.0), layout="constrained", sharey=True)
    for ax, (name, one) in zip(axes, found.items(), strict=True):
        plot_comparison(one, ax=ax)
        ax.set_title(name, pad=28)
    shown: list[Picture] = [
        picture(
            figure,
            out / "comparison.png",
            caption=f"Accuracy on test samples; mean and 95 % confidence interval over {seeds} seeds, each of "
            "which draws its own split, initial weights and batches.",
        )
    ]
    section = Section("(c) Fusion layers side by side", figures=shown)
    section.paragraphs = [GROUNDED, *(_verdict(name, one) for name, one in found.items())]
    for number, (name, one) in enumerate(found.items(), start=1):
        one.save(out / f"comparison_{number}")
        section.tables.append(_table(one, name))
    return section


def _table(found: Comparison, name: str) -> Table:
    table = by_case(found, found.metrics[0])
    return replace(table, caption=name[0].upper() + name[1:] + ".")


def _verdict(name: str, found: Comparison) -> str:
    """One sentence per recipe: the grounded layer against the best other layer, seed by seed."""
    parts = []
    values = {
        (row["layer"], row["case"]): torch.tensor(row["values"])
        for row in found.rows()
        if row["metric"] == found.metrics[0]
    }
    for case in dict.fromkeys(case for _, case in values):
        others = {layer: values[layer, case] for layer in found.parameters if layer != "cell"}
        best = max(others, key=lambda layer: float(others[layer].mean()))
        gap = values["cell", case] - others[best]
        spread = f" ± {float(gap.std()):.3f}" if len(gap) > 1 else ""
        parts.append(f"{case}: {float(gap.mean()):+.3f}{spread} against {best}")
    return (
        f"{name[0].upper() + name[1:]}, the grounded layer differs from the best other one (mean and standard "
        "deviation of the differences, seed by seed) by " + "; ".join(parts) + "."
    )
