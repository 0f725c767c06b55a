"""Pictures of features as ions, and of what layers make of them.

Every function draws on `ax` (or on new axes) and returns the axes it drew on. Colours are those of :mod:`pnp.palette`:
channels run from blue (unpredictable) to vermilion (predictable), the ground is green.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

import pnp
from pnp.film import Film, film_path
from pnp.palette import GROUND, MARKERS, MODALITIES, PALE, POTENTIAL, PREDICTABILITY, SEQUENTIAL, ink

from .grounded.channels import Ions
from .grounded.sharing import Sharing
from .grounded.subspaces import Subspaces
from .grounded.transport import centres, migrate, opening

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, TwoSlopeNorm

    from .evaluation.comparison import Comparison


def plot_migration(
    channels: Ions,
    solution: pnp.Solution | None = None,
    *,
    title: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Centres of mass of the channels of a modality over logarithmic time, coloured by R².

    Grey is the noise level: what others predict better turns vermilion and migrates beyond the ground *b*.

    Arguments:
        channels: From :func:`fusion.dissociate`, or of a :class:`fusion.MigrationRecord`.
        solution: A transient of their cell from :func:`fusion.grounded.transport.migrate`; None: compute it.
        title: Goes before the number of channels and the total charge, which migration conserves.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import fusion.plotting
        >>> data, _ = fusion.shared_private(2000, {"a": 6, "b": 5}, shared=2, private=2, seed=0)
        >>> channels = fusion.dissociate(data.modalities).channels["a"]
        >>> way = fusion.migrate(channels.cell, times=[0.001, 0.1, 10.0], nodes=31)
        >>> ax = fusion.plotting.plot_migration(channels, way)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('time (L² / D)', 'centre of mass (L)')
    """
    ax = _axes(ax)
    solution = migrate(channels.cell) if solution is None else solution
    if solution.times is None:
        raise ValueError("plot_migration: the solution must be a transient, from fusion.migrate.")
    norm = predictability_norm(channels.predictability, channels.noise_level)
    draw_paths(ax, channels, solution, norm)
    ax.set_ylabel("centre of mass (L)")
    draw_colours(norm, [ax])
    count = len(channels.gates)
    ax.set_title(f"{title + ': ' if title else ''}{count} channels, total charge {channels.charge:+.2f}")
    return ax


def draw_paths(ax: "Axes", channels: Ions, solution: pnp.Solution, norm: "TwoSlopeNorm") -> None:
    """Centres of mass over logarithmic time, coloured by R², and the ground."""
    assert solution.times is not None
    times = solution.times.cpu().numpy()
    paths = centres(solution).detach().cpu().numpy()
    shared = channels.predictability.cpu().numpy()
    moving = times > 0
    for index in np.argsort(shared):
        ax.plot(times[moving], paths[moving, index], color=ramp()(norm(shared[index])), lw=1.2)
    draw_ground(ax, float(channels.cell.ground.detach()))
    ax.set_xscale("log")
    ax.set_ylim(0, 1)
    ax.set_xlim(times[moving][0], times[-1])
    ax.set_xlabel("time (L² / D)")


def draw_ground(ax: "Axes", place: float) -> None:
    """A line at the ground, with its name at the left end, where paths have not parted yet."""
    ax.axhline(place, color=GROUND, lw=1.2, ls="--")
    where = ax.get_yaxis_transform()
    ax.annotate("b", (0, place), (6, 5), xycoords=where, textcoords="offset points", color=GROUND)


def draw_colours(norm: "TwoSlopeNorm", axes: "list[Axes]") -> None:
    """The scale of R², with the noise level on it."""
    from matplotlib.cm import ScalarMappable

    bar = axes[-1].figure.colorbar(ScalarMappable(norm, ramp()), ax=axes)
    level, top = norm.vcenter, norm.vmax or 1.0
    bar.set_ticks(
        [0.0, level, (level + top) / 2, top],
        labels=["0", f"{level:.2f} (noise)", f"{(level + top) / 2:.2f}", f"{top:.2f}"],
    )
    bar.minorticks_off()
    bar.set_label("R² from the other modalities")


def plot_channels(
    channels: Ions,
    solution: pnp.Solution | None = None,
    *,
    moment: int = -1,
    title: str | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """Where the channels of a modality are: channels by position, with the potential and the ground *b*.

    Channels are ordered by valence, most positive on top; colours are concentrations over the mixed state's,
    logarithmic.

    Arguments:
        channels: From :func:`fusion.dissociate`, or of a :class:`fusion.MigrationRecord`.
        solution: A transient from :func:`fusion.grounded.transport.migrate` to take `moment` from; None: the
            equilibrium of the cell.
        moment: Index of a time of the transient.

    Example:
        >>> import fusion.plotting
        >>> data, _ = fusion.shared_private(2000, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> channels = fusion.dissociate(data.modalities).channels["a"]
        >>> ax = fusion.plotting.plot_channels(channels)  # at rest
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('position (L)', 'channel, by valence')
    """
    from matplotlib.colors import LogNorm

    ax = _axes(ax)
    solution = channels.solution if solution is None else solution
    state = solution if solution.times is None else solution.at(moment)
    nodes = state.grid.nodes.detach().cpu().numpy()
    rows = _by_valence(channels, state)
    image = ax.imshow(
        rows,
        aspect="auto",
        extent=(0, 1, len(rows) + 0.5, 0.5),
        cmap=SEQUENTIAL,
        norm=LogNorm(1e-2, 1e2),
        interpolation="nearest",
    )
    ax.axvline(float(channels.cell.ground.detach()), color=GROUND, lw=1.5, ls="--")
    cations = int((channels.valences > 0).sum())
    if 0 < cations < len(rows):
        ax.axhline(cations + 0.5, color="white", lw=1)
    twin = ax.twinx()
    twin.plot(nodes, state.potential.detach().cpu().numpy(), color="white", lw=1.2, ls="--")
    twin.set_ylabel("potential (dashed; thermal voltages)")
    ax.set_xlim(0, 1)
    ax.set_xlabel("position (L)")
    ax.set_ylabel("channel, by valence")
    ax.locator_params(axis="y", integer=True)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.12)
    bar.set_label("concentration / mixed state")
    when = "" if solution.times is None else f"t = {float(solution.times[moment]):.2g} L²/D"
    ax.set_title(": ".join(part for part in (title, when) if part))
    return ax


def _by_valence(channels: Ions, state: pnp.Solution) -> np.ndarray:
    """Concentrations over the mixed state's, the most positive channel first, at even positions `(l, 300)`."""
    order = channels.valences.cpu().numpy().argsort()[::-1]
    nodes = state.grid.nodes.detach().cpu().numpy()
    rows = state.concentrations.detach().cpu().numpy()[order] * len(order)
    return np.stack([np.interp(np.linspace(0, 1, 300), nodes, row) for row in rows]).clip(1e-2, 1e2)


def plot_gates(subspaces: Subspaces, *, ax: "Axes | None" = None) -> "Axes":
    """Gate of every channel against its valence, one colour a modality, with the gates of ions that feel no others.

    At valence zero a channel is predicted just as well as chance can, so this is the noise level of every modality;
    valences are linear around it, where gates decide, and logarithmic beyond.

    Example:
        >>> import fusion.plotting
        >>> data, _ = fusion.shared_private(2000, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> ax = fusion.plotting.plot_gates(fusion.dissociate(data.modalities))
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('valence (0: noise level, 1: predicted fully)', 'gate (0 closed, 1 open)')
    """
    ax = _axes(ax)
    narrow = min(5 / one.voltage for one in subspaces.channels.values())
    ends = np.array([float(end) for one in subspaces.channels.values() for end in one.valences.aminmax()])
    raster = torch.from_numpy(
        np.concatenate([-np.geomspace(narrow / 50, 1)[::-1], np.geomspace(narrow / 50, 1)])
    )
    for rank, (name, one) in enumerate(subspaces.channels.items()):
        color = MODALITIES[rank % len(MODALITIES)]
        alone = opening(torch.sigmoid(raster * one.voltage))
        ax.plot(raster, alone, color=color, lw=1, label="without other ions" if rank == 0 else None)
        label = (
            f"{name}: {one.invariant_dimension:.1f} of {len(one.gates)} invariant,\n"
            f"noise level {one.noise_level:.3f}, total charge {one.charge:+.2f}"
        )
        # Two modalities share their R², so the rings are of different size.
        size = max(10 - 4 * rank, 3)
        valences, gates = one.valences.cpu().numpy(), one.gates.cpu().numpy()
        ax.plot(valences, gates, "o", ms=size, mfc="none", mec=color, mew=1.8, label=label)
    ax.axvline(0, color=POTENTIAL, lw=1, ls=":")
    ax.set_xscale("symlog", linthresh=narrow)
    ax.set_xlim(1.5 * min(ends.min(), -narrow), 1.5 * ends.max())
    ax.set_xlabel("valence (0: noise level, 1: predicted fully)")
    ax.set_ylabel("gate (0 closed, 1 open)")
    ax.set_ylim(-0.05, 1.05)
    ax.legend(frameon=False, loc="center right", fontsize="small")
    return ax


def plot_sharing(sharing: Sharing, *, title: str | None = None, ax: "Axes | None" = None) -> "Axes":
    """With whom a modality shares its invariant directions: directions by other modalities, coloured by R².

    Arguments:
        sharing: One modality's of :meth:`fusion.Subspaces.shared_by`.

    Example:
        >>> import fusion.plotting
        >>> dims = {"a": 12, "b": 10, "c": 8}
        >>> data, _ = fusion.shared_private(2000, dims, shared=2, private=2, pairwise=1, seed=0)
        >>> sharing = fusion.dissociate(data.modalities).shared_by()["a"]
        >>> ax = fusion.plotting.plot_sharing(sharing)
        >>> sharing.counts
        {'a+b+c': 2, 'a+b': 1, 'a+c': 1}
    """
    ax = _axes(ax)
    others = list(sharing.r_squared)
    order = sorted(
        range(len(sharing.names)), key=lambda row: (-sharing.names[row].count("+"), sharing.names[row])
    )
    values = np.stack([sharing.r_squared[other].cpu().numpy()[order] for other in others], axis=-1)
    names = [sharing.names[row] for row in order]
    image = ax.imshow(values, aspect="auto", cmap=SEQUENTIAL, vmin=0, vmax=1, interpolation="nearest")
    starts = [row for row, name in enumerate(names) if row == 0 or name != names[row - 1]]
    ends = [*starts[1:], len(names)]
    labels = [f"{names[start]}: {end - start}" for start, end in zip(starts, ends, strict=True)]
    ax.set_yticks([(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)], labels)
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", lw=1.5)
    ax.set_xticks(range(len(others)), others, rotation=20, ha="right")
    ax.tick_params(length=0)
    ax.set_xlabel("explained by")
    ax.set_ylabel("shared directions")
    ax.figure.colorbar(image, ax=ax).set_label("R²")
    if title:
        ax.set_title(title)
    return ax


def plot_parts(subspaces: Subspaces, *, ax: "Axes | None" = None) -> "Axes":
    """What went where: channels that are a modality's own, with whom it shares the others, and the total charge.

    Example:
        >>> import fusion.plotting
        >>> data, _ = fusion.shared_private(2000, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> ax = fusion.plotting.plot_parts(fusion.dissociate(data.modalities))
        >>> ax.get_xlabel()
        'channels'
    """
    ax = _axes(ax)
    found = subspaces.shared_by()
    parts = sorted(
        {part for one in found.values() for part in one.names}, key=lambda part: (-part.count("+"), part)
    )
    colours = {part: MODALITIES[rank % len(MODALITIES)] for rank, part in enumerate(parts)}
    colours["its own"] = PALE
    shares = {}
    for name, one in found.items():
        total = len(subspaces.channels[name].gates)
        counts = one.counts | {"its own": total - len(one.names)}
        shares[name] = {part: counts.get(part, 0) for part in [*parts, "its own"]}
    left = np.zeros(len(found))
    for part in [*parts, "its own"]:
        width = np.array([shares[name][part] for name in found])
        bars = ax.barh(list(found), width, left=left, color=colours[part], label=part, height=0.6)
        texts = [str(count) if count else "" for count in width]
        ax.bar_label(bars, texts, label_type="center", color=ink(colours[part]))
        left += width
    charges = [f"charge {subspaces.channels[name].charge:+.2f}" for name in found]
    ax.bar_label(bars, charges, padding=6)
    ax.margins(x=0.3)
    ax.invert_yaxis()
    ax.set_xlabel("channels")
    ax.set_ylabel("modality")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), title="shared by")
    return ax


def animate_channels(
    channels: Ions,
    path: Path | str | None = None,
    solution: pnp.Solution | None = None,
    *,
    title: str | None = None,
    frames_per_second: float = 8.0,
) -> Film:
    """A film of :func:`plot_channels` over time, which a notebook shows with a slider.

    Arguments:
        channels: From :func:`fusion.dissociate`, or of a :class:`fusion.MigrationRecord`.
        path: A `.gif`, or an `.html` with buttons, replaced atomically; None: nowhere.
        solution: A transient of their cell from :func:`fusion.grounded.transport.migrate`; None: compute it.

    Raises:
        ValueError: Another suffix, or a solution that is no transient.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import fusion.plotting
        >>> data, _ = fusion.shared_private(2000, {"a": 6, "b": 5}, shared=2, private=2, seed=0)
        >>> channels = fusion.dissociate(data.modalities).channels["a"]
        >>> way = fusion.migrate(channels.cell, times=[0.001, 0.1, 10.0], nodes=31)
        >>> fusion.plotting.animate_channels(channels, "channels.gif", way)
        Film of 3 pictures
    """
    from matplotlib.figure import Figure

    path = None if path is None else film_path(path)
    solution = migrate(channels.cell) if solution is None else solution
    if solution.times is None:
        raise ValueError("animate_channels: the solution must be a transient, from fusion.migrate.")
    figure = Figure(figsize=(6.4, 4.2), dpi=90, layout="constrained")
    ax = plot_channels(channels, solution, moment=0, title=title, ax=figure.add_subplot())
    ax.set_title(title or "")
    twin = next(one for one in figure.axes if one.get_ylabel().startswith("potential"))
    # One scale for all: the potential would seem to stand still if its axis moved.
    low, high = (float(one) for one in solution.potential.detach().aminmax())
    twin.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))

    def draw(moment: int) -> None:
        state = solution.at(moment)
        ax.images[0].set_data(_by_valence(channels, state))
        twin.get_lines()[0].set_ydata(state.potential.detach().cpu().numpy())

    captions = [f"t = {float(time):.2g} L²/D" for time in solution.times]
    film = Film.of(figure, draw, captions, frames_per_second=frames_per_second)
    if path is not None:
        film.save(path)
    return film


def plot_comparison(
    comparison: "Comparison", *, metric: str | None = None, ax: "Axes | None" = None
) -> "Axes":
    """Score of every layer in every case, mean and 95 % confidence interval over the seeds.

    Arguments:
        metric: Which; None: the first.

    Example:
        >>> import fusion.plotting
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> quick = fusion.Recipe(epochs=1)
        >>> found = fusion.compare(data, ["gmf", "sum"], recipe=quick, seeds=2, progress=False)
        >>> fusion.plotting.plot_comparison(found).get_ylabel()
        'accuracy (mean ± 95 % interval)'
    """
    ax = _axes(ax)
    rows = comparison.rows()
    metric = rows[0]["metric"] if metric is None else metric
    chosen = {(row["layer"], row["case"]): row for row in rows if row["metric"] == metric}
    layers = list(dict.fromkeys(layer for layer, _ in chosen))
    cases = list(dict.fromkeys(case for _, case in chosen))
    for rank, layer in enumerate(layers):
        here = [chosen[layer, case] for case in cases]
        places = np.arange(len(cases)) + (rank - (len(layers) - 1) / 2) * 0.6 / len(layers)
        ax.errorbar(
            places,
            [row["mean"] for row in here],
            [row["half_width"] or 0.0 for row in here],
            fmt=MARKERS[rank % len(MARKERS)],
            color=MODALITIES[rank % len(MODALITIES)],
            mec=POTENTIAL,
            mew=0.5,
            ms=7,
            capsize=3,
            label=layer,
        )
    ax.set_xticks(range(len(cases)), cases)
    ax.set_xlim(-0.5, len(cases) - 0.5)
    ax.set_ylabel(f"{metric} (mean ± 95 % interval)")
    ax.grid(axis="y", alpha=0.3)
    ax.legend(frameon=False, ncols=len(layers), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return ax


def plot_history(histories: Mapping[str, Sequence[float]], *, ax: "Axes | None" = None) -> "Axes":
    """Loss of every epoch, one line a name.

    Example:
        >>> import fusion.plotting
        >>> ax = fusion.plotting.plot_history({"training": [2.3, 1.1, 0.7], "validation": [2.2, 1.3, 1.0]})
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('epoch', 'loss')
    """
    ax = _axes(ax)
    for rank, (name, values) in enumerate(histories.items()):
        ax.plot(range(1, len(values) + 1), values, color=MODALITIES[rank % len(MODALITIES)], label=name)
    ax.set_xlabel("epoch")
    ax.set_ylabel("loss")
    ax.legend(frameon=False)
    return ax


def predictability_norm(predictability: Tensor, noise_level: float) -> "TwoSlopeNorm":
    """R² to colour, grey at the noise level."""
    from matplotlib.colors import TwoSlopeNorm

    return TwoSlopeNorm(noise_level, 0.0, max(float(predictability.max()), 1.001 * noise_level))


def ramp() -> "Colormap":
    """From blue by grey to vermilion."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("predictability", PREDICTABILITY)


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.0, 3.8), layout="constrained")[1]
