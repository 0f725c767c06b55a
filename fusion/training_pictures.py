"""Pictures of a :class:`~fusion.MigrationRecord`: how training moved the channels of a modality.

Colours are those of :mod:`fusion.plotting`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from pnp.film import Film, film_path

from .grounded.migration_record import Course, MigrationRecord
from .grounded.transport import migrate
from .plotting import (
    POTENTIAL,
    draw_colours,
    draw_paths,
    plot_channels,
    predictability_norm,
    ramp,
)
from .report import picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def plot_training(
    record: MigrationRecord,
    modality: str,
    *,
    epochs: Sequence[int] | None = None,
    axes: "Sequence[Axes] | None" = None,
) -> "list[Axes]":
    """Centres of mass of the channels of a modality over logarithmic time, before, during and after training.

    One panel an epoch, with the total charge, on one scale of colours: what the other modalities predict better as
    training goes on turns vermilion and leaves for the invariant side.

    Arguments:
        record: Of :class:`~fusion.MigrationRecorder`.
        modality: Whose channels.
        epochs: Of the record; None: the first, the one whose total charge is nearest to half-way, and the last.
        axes: One for each epoch; None: new ones, side by side.

    Raises:
        ValueError: A modality or an epoch that was not recorded, or another number of axes.
    """
    course = record.course(modality)
    epochs = _before_during_after(record, course) if epochs is None else epochs
    axes = _row(len(epochs)) if axes is None else axes
    if len(axes) != len(epochs):
        raise ValueError(f"plot_training needs an ax for each of {len(epochs)} epochs, got {len(axes)}.")
    states = [record.ions(modality, epoch) for epoch in epochs]
    norm = predictability_norm(course.predictability, float(course.noise_level[-1]))
    firsts = []
    for ax, epoch, state in zip(axes, epochs, states, strict=True):
        draw_paths(ax, state, migrate(state.cell, nodes=41, relative=1e-2), norm)
        firsts.append(ax.get_xlim()[0])
        ax.set_title(
            f"{_when(record, epoch)}\ntotal charge {state.charge:+.2f}, "
            f"{state.invariant_dimension:.1f} of {len(state.gates)} invariant"
        )
    for ax in axes:
        ax.set_xlim(left=max(firsts))
        ax.label_outer()
    axes[0].set_ylabel(f"{modality}: centre of mass (L)")
    draw_colours(norm, list(axes))
    return list(axes)


def plot_course(record: MigrationRecord, modality: str, *, ax: "Axes | None" = None) -> "Axes":
    """Valences of the channels of a modality after every epoch of training, coloured by their gates.

    What rises above zero is predicted better than chance, and its gate opens. A line is a place in the order of
    valences, not one direction: training turns directions.

    Arguments:
        record: Of :class:`~fusion.MigrationRecorder`.
        modality: Whose channels.

    Raises:
        ValueError: A modality that was not recorded.
    """
    from matplotlib import pyplot
    from matplotlib.collections import LineCollection
    from matplotlib.colors import Normalize

    course = record.course(modality)
    if ax is None:
        ax = pyplot.subplots(figsize=(6.0, 3.8), layout="constrained")[1]
    lines = LineCollection([], cmap=ramp(), norm=Normalize(0, 1), lw=1.4)
    times, valences, gates = np.array(record.epochs), course.valences.numpy(), course.gates.numpy()
    points = np.stack(np.broadcast_arrays(times[:, None], valences), axis=-1)
    # Epoch by epoch and channel by channel; the best predicted, which come first, are drawn last.
    pieces = np.stack([points[:-1], points[1:]], axis=2)[:, ::-1]
    lines.set_segments(list(pieces.reshape(-1, 2, 2)))
    lines.set_array(((gates[:-1] + gates[1:]) / 2)[:, ::-1].reshape(-1))
    ax.add_collection(lines)
    ax.axhline(0, color=POTENTIAL, lw=1, ls=":")
    ax.set_xlim(times[0], max(times[-1], times[0] + 1))
    low, high = valences.min(), valences.max()
    ax.set_ylim(low - 0.08 * (high - low), high + 0.05 * (high - low))
    ax.set_xlabel("epoch")
    ax.set_ylabel("valence (0: the noise level)")
    ax.figure.colorbar(lines, ax=ax).set_label("gate (0 closed, 1 open)")
    before, after = (float(one) for one in course.charge[[0, -1]])
    ax.set_title(f"{modality}: total charge {before:+.2f} → {after:+.2f}")
    return ax


def animate_training(
    record: MigrationRecord, modality: str, path: Path | str | None = None, *, frames_per_second: float = 4.0
) -> Film:
    """A film of where channels come to rest, epoch by epoch, which a notebook shows with a slider.

    Every frame is :func:`~fusion.plotting.plot_channels` of the equilibrium after that epoch.

    Arguments:
        path: A `.gif`, or an `.html` with buttons, replaced atomically; None: nowhere.

    Raises:
        ValueError: Another suffix, or a modality that was not recorded.
    """
    from matplotlib.figure import Figure

    path = None if path is None else film_path(path)
    states = [record.ions(modality, epoch) for epoch in record]
    figure = Figure(figsize=(6.4, 4.2), dpi=90, layout="constrained")
    highest = max(float(one.solution.potential.abs().max()) for one in states)

    def draw(index: int) -> None:
        figure.clear()
        state = states[index]
        ax = plot_channels(state, title=modality, ax=figure.add_subplot())
        twin = next(one for one in figure.axes if one.get_ylabel().startswith("potential"))
        twin.set_ylim(-1.05 * highest, 1.05 * highest)
        ax.set_title(
            f"{modality}, {_when(record, record.epochs[index])}: total charge {state.charge:+.2f}, "
            f"{state.invariant_dimension:.1f} invariant"
        )

    captions = [f"epoch {epoch}" for epoch in record]
    film = Film.of(figure, draw, captions, frames_per_second=frames_per_second)
    if path is not None:
        film.save(path)
    return film


def draw_training(
    record: MigrationRecord, modalities: Sequence[str], out: Path, films: str | None = None
) -> list[Path]:
    """Write all pictures of modalities into a folder: `training_NAME.png`, `course_NAME.png`, and perhaps films.

    Arguments:
        record: Of :class:`~fusion.MigrationRecorder`.
        modalities: Whose channels.
        out: The folder, made if it is missing.
        films: `gif` or `html`, for `training_NAME.gif` or `.html` too.

    Raises:
        ValueError: A modality that was not recorded.
    """
    paths = []
    for name in modalities:
        for what, ax in (
            ("training", plot_training(record, name)[0]),
            ("course", plot_course(record, name)),
        ):
            figure = cast("Figure", ax.figure)
            paths.append(picture(figure, out / f"{what}_{name}.png", caption="").path)
        if films is not None:
            paths.append(out / f"training_{name}.{films}")
            animate_training(record, name, paths[-1])
    return paths


def _before_during_after(record: MigrationRecord, course: Course) -> list[int]:
    if len(record) < 3:
        return list(record)
    half = (course.charge[0] + course.charge[-1]) / 2
    middle = 1 + int((course.charge[1:-1] - half).abs().argmin())
    return [record.epochs[index] for index in (0, middle, -1)]


def _when(record: MigrationRecord, epoch: int) -> str:
    if epoch == 0:
        return "before training"
    return f"{'after' if epoch == record.epochs[-1] else 'during training,'} epoch {epoch}"


def _row(count: int) -> "list[Axes]":
    from matplotlib import pyplot

    width = 3.9 * count + 1.2
    axes = pyplot.subplots(1, count, figsize=(width, 3.7), sharey=True, layout="constrained", squeeze=False)[
        1
    ]
    return list(axes[0])
