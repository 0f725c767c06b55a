"""Figures of solutions. Every function draws on `ax` (or on new axes) and returns the axes it drew on.

Matplotlib is imported when a figure is drawn. Colours are those of :mod:`pnp.palette`: cations vermilion, anions
blue, the potential black, the ground green.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from .film import Film, film_path
from .observables import current_density
from .palette import ANION, CATION, GROUND, NEUTRAL, POTENTIAL, SEQUENTIAL
from .solution import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Unit(NamedTuple):
    """A label, and what to multiply SI (or dimensionless) values with to get there."""

    label: str
    factor: float


def plot_profiles(
    solution: Solution,
    *,
    moments: Sequence[int] | None = None,
    element: int = 0,
    log: bool = False,
    ax: "Axes | None" = None,
) -> "Axes":
    """Concentrations of all species, the potential (right-hand axis) and the ground over the cell.

    Arguments:
        solution: A steady state or a transient.
        moments: Indices of the times to draw, pale to dark; default: the last.
        element: Which element of a flattened batch.
        log: Logarithmic concentrations.
        ax: Where to draw.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> from pnp.plotting import plot_profiles
        >>> plot_profiles(pnp.solve_steady(cell)).get_xlabel()
        'position (L)'
    """
    ax = _axes(ax)
    x, concentrations, potential = _profiles(solution, element)
    length, volts, content = units(solution)
    chosen = [len(potential) - 1] if moments is None else list(moments)
    twin = ax.twinx()
    for rank, index in enumerate(chosen):
        alpha = 0.25 + 0.75 * (rank + 1) / len(chosen)
        for name, color, profile in zip(
            solution.cell.electrolyte.names, species_colors(solution), concentrations[index], strict=True
        ):
            label = name if rank == len(chosen) - 1 else None
            ax.plot(x * length.factor, profile * content.factor, color=color, alpha=alpha, label=label)
        label = "potential" if rank == len(chosen) - 1 else None
        twin.plot(
            x * length.factor,
            potential[index] * volts.factor,
            "--",
            color=POTENTIAL,
            alpha=alpha,
            label=label,
        )
    if solution.cell.ground is not None:
        place = float(solution.cell.ground.detach().expand(solution.status.shape).reshape(-1)[element])
        ax.axvline(place * length.factor, color=GROUND, ls="--", label="ground b")
    if log:
        ax.set_yscale("log")
    ax.set_xlabel(f"position ({length.label})")
    ax.set_ylabel(f"concentration ({content.label})")
    twin.set_ylabel(f"potential ({volts.label})")
    ax.set_xlim(x[0] * length.factor, x[-1] * length.factor)
    handles = [*ax.get_lines(), *twin.get_lines()]
    named = [line for line in handles if not str(line.get_label()).startswith("_")]
    twin.legend(named, [str(line.get_label()) for line in named], loc="upper center", frameon=False, ncols=4)
    # Room for the legend above the curves.
    low, high = ax.get_ylim()
    ax.set_ylim(low, high**1.3 / low**0.3 if log else high + 0.15 * (high - low))
    low, high = twin.get_ylim()
    twin.set_ylim(low, high + 0.15 * (high - low))
    return ax


def plot_space_time(
    solution: Solution, species: int | str = 0, *, element: int = 0, ax: "Axes | None" = None
) -> "Axes":
    """Concentration of one species over position and (logarithmic) time.

    Raises ValueError for a steady state, or a species the electrolyte does not have.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.01, 0.02, 0.05, 0.1])
        >>> ax = pnp.plotting.plot_space_time(charging, "+")
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('position (L)', 'time (L² / D)')
    """
    _need_times(solution, "plot_space_time")
    from matplotlib.colors import LogNorm

    names = solution.cell.electrolyte.names
    if species not in names and species not in range(len(names)):
        raise ValueError(
            f"plot_space_time: species must be one of {list(names)} or an index, got {species!r}."
        )
    index = names.index(species) if isinstance(species, str) else species
    ax = _axes(ax)
    x, concentrations, _ = _profiles(solution, element)
    length, _, content = units(solution)
    times, unit = _times(solution)
    positive = times > 0
    values = concentrations[positive, index] * content.factor
    norm = LogNorm(values.min(), values.max()) if values.max() > 30 * values.min() else None
    mesh = ax.pcolormesh(
        x * length.factor,
        times[positive],
        values,
        norm=norm,
        cmap=SEQUENTIAL,
        shading="gouraud",
        rasterized=True,
    )
    ax.set_yscale("log")
    ax.set_xlabel(f"position ({length.label})")
    ax.set_ylabel(f"time ({unit})")
    bar = ax.figure.colorbar(mesh, ax=ax)
    bar.set_label(f"{names[index]} ({content.label})")
    return ax


def plot_current(solution: Solution, *, element: int = 0, ax: "Axes | None" = None) -> "Axes":
    """Magnitude of the current density through the left electrode over time, both logarithmic.

    Raises ValueError for a steady state.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.01, 0.02, 0.05, 0.1])
        >>> ax = pnp.plotting.plot_current(charging)
        >>> ax.get_xlabel(), ax.get_ylabel()
        ('time (L² / D)', 'current density (F D c / L)')
    """
    _need_times(solution, "plot_current")
    ax = _axes(ax)
    times, unit = _times(solution)
    current = current_density(solution)[..., 0].detach().reshape(-1, len(times))[element].abs().cpu().numpy()
    positive = times > 0
    ax.loglog(times[positive], current[positive], color=POTENTIAL)
    ax.set_xlabel(f"time ({unit})")
    # What rounding leaves of a current that has died away is not worth decades of axis.
    ax.set_ylim(max(current[positive].min() / 2, current.max() * 1e-7), current.max() * 3)
    label = "F D c / L" if solution.cell.electrolyte.is_dimensionless else "A m⁻²"
    ax.set_ylabel(f"current density ({label})")
    return ax


def animate_profiles(
    solution: Solution,
    path: Path | str | None = None,
    *,
    captions: Sequence[str] | None = None,
    element: int = 0,
    log: bool = False,
    title: str | None = None,
    first: int = 0,
    frames_per_second: float = 8.0,
) -> Film:
    """The moments of a transient, or the elements of a batch of steady states, on axes that stand still.

    Arguments:
        solution: What :func:`plot_profiles` can draw.
        path: Where to write it, see :meth:`pnp.film.Film.save`; None: nowhere.
        captions: One a picture; None: the times of a transient, the numbers of elements.
        element: Which element of a flattened batch of transients.
        log: Logarithmic concentrations.
        first: Index of the picture that a page shows at the beginning.

    Returns:
        What a notebook shows with a slider.

    Raises:
        ValueError: Captions of another number, `first` out of range, another suffix than `.gif` and `.html`, or
            a rate that is not positive.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.0, 0.01, 0.1])
        >>> pnp.plotting.animate_profiles(charging, "charging.html")
        Film of 3 pictures
    """
    from matplotlib.figure import Figure

    path = None if path is None else film_path(path)
    if solution.times is None:
        elements = range(solution.status.numel())
        pictures = [
            tuple(part[0] if part.ndim > 1 else part for part in _profiles(solution, one)) for one in elements
        ]
        usual, element = [f"element {one}" for one in elements], 0
    else:
        x, concentrations, potential = _profiles(solution, element)
        pictures = [(x, *one) for one in zip(concentrations, potential, strict=True)]
        times, unit = _times(solution)
        usual = [f"t = {time:.3g} {unit}" for time in times]
    captions = usual if captions is None else list(captions)
    if len(captions) != len(pictures):
        raise ValueError(f"animate_profiles: captions must be {len(pictures)}, got {len(captions)}.")
    length, volts, content = units(solution)
    figure = Figure(figsize=(6.4, 3.8), dpi=90, layout="constrained")
    ax = plot_profiles(solution, moments=[0], element=element, log=log, ax=figure.add_subplot())
    twin = figure.axes[1]
    ax.set_ylim(_roomy(np.stack([one[1] for one in pictures]) * content.factor, log))
    twin.set_ylim(_roomy(np.stack([one[2] for one in pictures]) * volts.factor, False))
    ax.set_title(title or "")
    curves = ax.get_lines()[: len(solution.cell.electrolyte.names)]

    def draw(index: int) -> None:
        x, profiles, potential = pictures[index]
        for curve, profile in zip(curves, profiles, strict=True):
            curve.set_data(x * length.factor, profile * content.factor)
        twin.get_lines()[0].set_data(x * length.factor, potential * volts.factor)

    film = Film.of(figure, draw, captions, first=first, frames_per_second=frames_per_second)
    if path is not None:
        film.save(path)
    return film


def units(solution: Solution) -> tuple[Unit, Unit, Unit]:
    """Units of length, potential and concentration that suit the cell."""
    if solution.cell.electrolyte.is_dimensionless:
        return Unit("L", 1.0), Unit("thermal voltages", 1.0), Unit("c₀", 1.0)
    length = float(solution.grid.nodes.detach().max())
    steps = (Unit("nm", 1e9), Unit("µm", 1e6), Unit("mm", 1e3))
    suitable = [unit for unit in steps if length * unit.factor < 1e3]
    return (suitable or [Unit("m", 1.0)])[0], Unit("mV", 1e3), Unit("mM", 1.0)


def species_colors(solution: Solution) -> list[str]:
    """Vermilion for cations, blue for anions, grey for what is neutral."""
    valences = solution.cell.electrolyte.valences.detach()
    mean = valences.reshape(-1, valences.shape[-1]).mean(0).tolist()
    return [CATION if z > 0 else ANION if z < 0 else NEUTRAL for z in mean]


def _profiles(solution: Solution, element: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions `(node)`, concentrations `(time, species, node)` and potential `(time, node)`."""
    nodes = solution.potential.shape[-1]
    moments = 1 if solution.times is None else len(solution.times)
    batch = solution.status.shape
    x = solution.grid.nodes.detach().expand((*batch, nodes)).reshape(-1, nodes)[element]
    potential = solution.potential.detach().reshape(-1, moments, nodes)[element]
    species = solution.concentrations.shape[-2]
    concentrations = solution.concentrations.detach().reshape(-1, moments, species, nodes)[element]
    return x.cpu().numpy(), concentrations.cpu().numpy(), potential.cpu().numpy()


def _roomy(values: np.ndarray, log: bool) -> tuple[float, float]:
    """Limits of an axis for all values, with room for a legend above."""
    low, high = float(values.min()), float(values.max())
    if log:
        return low / 1.5, high * (high / low) ** 0.25
    return low - 0.05 * (high - low), high + 0.2 * (high - low)


def _times(solution: Solution) -> tuple[np.ndarray, str]:
    times = torch.as_tensor(solution.times).detach().cpu().numpy()
    if solution.cell.electrolyte.is_dimensionless:
        return times, "L² / D"
    steps = (Unit("s", 1.0), Unit("ms", 1e3), Unit("µs", 1e6), Unit("ns", 1e9))
    unit = next((unit for unit in steps if times.max() * unit.factor >= 1), steps[-1])
    return times * unit.factor, unit.label


def _need_times(solution: Solution, who: str) -> None:
    if solution.times is None:
        raise ValueError(f"{who}: the solution is a steady state; it needs a transient.")


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")[1]
