"""Figures of a described cell that was solved, without a screen. Matplotlib is imported when one is drawn."""

import itertools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..boundaries import Electrode, Periodic
from ..observables import current_density, electrode_potential, surface_charge
from ..plotting import POTENTIAL, plot_profiles, plot_space_time
from ..solution import Solution
from ..waveforms import Waveform
from .description import Description, Impedance, Transient
from .units import prefix, with_prefix

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS, MOST_LEGEND, MOST_SPECIES, MOMENTS = 6, 8, 4, 4
DECADES = 1e-4
"""Smallest concentration on a logarithmic axis, over the largest: co-ions at a wall fall much further."""


class _Curves(NamedTuple):
    """Values for every element of a flattened batch, `(element, point)`, in a unit that suits them."""

    values: np.ndarray
    label: str


def draw(
    description: Description, solution: Solution, impedance: Tensor | None = None
) -> dict[str, "Figure"]:
    """All figures that suit a run, by name.

    `profiles` always; `current`, `space_time` and, where a potential varies in time, `voltammogram` of a
    transient; `sweep` of steady states over one axis; `impedance` (Nyquist and Bode) `(*batch, frequency)`.
    """
    figures = {"profiles": _profiles(description, solution)}
    run = description.run
    if isinstance(run, Transient):
        figures["current"] = _current(description, solution, run)
        if run.times.gt(0).sum() > 1:
            figures["space_time"] = _space_time(description, solution, run)
        if _is_swept_in_time(solution):
            figures["voltammogram"] = _voltammogram(description, solution)
    elif isinstance(run, Impedance) and impedance is not None:
        figures["impedance"] = _impedance(description, run.frequencies.numpy(), impedance)
    elif len(description.axes) == 1:
        figures["sweep"] = _sweep(description, solution)
    return figures


def labels(description: Description) -> list[str]:
    """What distinguishes the elements of the flattened batch; one empty text if nothing is swept."""
    rows = itertools.product(*(axis.labels for axis in description.axes))
    return [", ".join(row) for row in rows]


def _figure(rows: int, columns: int, title: str, height: float = 3.6) -> tuple["Figure", list["Axes"]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(min(6.4, 5.0 + 1.4 / columns) * columns, height * rows), layout="constrained")
    figure.suptitle(title, parse_math=False)  # a title may hold any sign, $ included
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _profiles(description: Description, solution: Solution) -> "Figure":
    names = labels(description)
    count = min(len(names), MOST_PANELS)
    shown = np.linspace(0, len(names) - 1, count).round().astype(int).tolist()
    columns = min(count, 3)
    title, moments = description.title, None
    if isinstance(description.run, Transient):
        times = description.run.times.tolist()
        moments = sorted(set(np.linspace(0, len(times) - 1, MOMENTS).round().astype(int).tolist()))
        title += f"\n{_time(solution, times[0])} (pale) to {_time(solution, times[-1])} (dark)"
    figure, panels = _figure(-(-count // columns), columns, title)
    c = solution.concentrations.detach()
    log = bool(c.max() > 100 * c.min())
    for ax, element in zip(panels, shown, strict=False):
        plot_profiles(solution, moments=moments, element=element, log=log, ax=ax)
        low, high = ax.get_ylim()
        if log and low < DECADES * high:
            top = max(float(np.max(line.get_ydata())) for line in ax.get_lines())
            ax.set_ylim(DECADES * top, top * DECADES**-0.35)  # room for the legend above the curves
        ax.set_title(names[element], fontsize="medium")
    for ax in panels[count:]:
        ax.set_axis_off()
    return figure


def _current(description: Description, solution: Solution, run: Transient) -> "Figure":
    """Current over time, and below it the potential difference if that varies."""
    times = _suited(solution, run.times.unsqueeze(0), "s", "L² / D")
    current, voltage = _left_current(solution), _voltage(solution)
    varies = np.ptp(voltage.values, axis=-1).max() > 1e-9 * np.abs(voltage.values).max()
    figure, panels = _figure(1 + varies, 1, description.title, height=2.7 if varies else 3.6)
    if varies:
        panels[1].sharex(panels[0])
    _current_over_time(panels[0], description, times, current, run.logarithmic)
    if varies:
        seen = times.values[0] > 0 if run.logarithmic else slice(None)
        _lines(panels[1], times.values[:, seen], voltage.values[:, seen], description)
        panels[1].set_ylabel(f"left − right ({voltage.label})")
        panels[0].tick_params(labelbottom=False)
    panels[-1].set_xlabel(f"time ({times.label})")
    _legend(figure, panels[0], description)
    return figure


def _current_over_time(
    ax: "Axes", description: Description, times: _Curves, current: _Curves, logarithmic: bool
) -> None:
    sizes = np.abs(current.values)
    if not logarithmic or sizes.max() == 0:
        _lines(ax, times.values, current.values, description)
        ax.set_ylabel(f"current ({current.label})")
        return
    seen = times.values[0] > 0
    _lines(ax, times.values[:, seen], sizes[:, seen], description)
    ax.set_xscale("log")
    ax.set_yscale("log")
    # What rounding leaves of a current that has died away is not worth decades of axis.
    ax.set_ylim(max(sizes[:, seen].min() / 2, sizes.max() * 1e-7), sizes.max() * 3)
    ax.set_ylabel(f"|current| ({current.label})")


def _space_time(description: Description, solution: Solution, run: Transient) -> "Figure":
    """Concentration of every species, of the first element, over position and time."""
    names = solution.cell.electrolyte.names[:MOST_SPECIES]
    first = labels(description)[0]
    title = f"{description.title}\n{first}" if first else description.title
    figure, panels = _figure(1, len(names), title)
    for ax, name in zip(panels, names, strict=True):
        mesh = plot_space_time(solution, name, ax=ax).collections[0]
        low, high = mesh.get_clim()
        if low < DECADES * high:
            mesh.set_clim(DECADES * high, high)
        if not run.logarithmic:
            ax.set_yscale("linear")
    return figure


def _is_swept_in_time(solution: Solution) -> bool:
    """Whether a potential is a waveform that takes many values, so that current over potential is a curve."""
    ends = (solution.cell.left, solution.cell.right)
    varies = any(isinstance(getattr(end, "potential", None), Waveform) for end in ends)
    return varies and len(np.unique(_voltage(solution).values[0])) > 10


def _voltammogram(description: Description, solution: Solution) -> "Figure":
    figure, (ax,) = _figure(1, 1, description.title)
    voltage, current = _voltage(solution), _left_current(solution)
    _lines(ax, voltage.values, current.values, description)
    ax.set_xlabel(f"left − right ({voltage.label})")
    ax.set_ylabel(f"current density ({current.label})")
    _legend(figure, ax, description)
    return figure


def _sweep(description: Description, solution: Solution) -> "Figure":
    """What follows from the parameter that was swept: charge, potential and current, where they are not given."""
    (axis,) = description.axes
    name, values = next(iter(axis.values.items()))
    letter, factor = prefix(float(values.abs().max())) if axis.units[name] else ("", 1.0)
    symbol = axis.units[name].replace("^2", "²").replace("^3", "³")
    unit = f" ({letter}{symbol})" if symbol else ""
    outcomes = _outcomes(solution)
    figure, panels = _figure(1, len(outcomes), description.title)
    for ax, (what, curve) in zip(panels, outcomes.items(), strict=True):
        ax.plot(values * factor, curve.values.reshape(-1), "o-", color=POTENTIAL)
        ax.set_xlabel(f"{name}{unit}")
        ax.set_ylabel(f"{what} ({curve.label})")
    return figure


def _outcomes(solution: Solution) -> dict[str, _Curves]:
    """Numbers of steady states that are not given from the start, one for every element."""
    cell, outcomes = solution.cell, {}
    ends = [end for end in (cell.left, cell.right) if not isinstance(end, Periodic)]
    if isinstance(cell.left, Electrode):
        charge = surface_charge(solution).left
        outcomes["charge, left end"] = _suited(solution, charge.unsqueeze(0), "C m⁻²", "F c L")
    if any(getattr(end, "potential", None) is None for end in ends):
        outcomes["left − right"] = _voltage(solution)
    if not cell.comes_to_rest or not outcomes:
        outcomes["current density"] = _left_current(solution)
    return outcomes


def _impedance(description: Description, frequencies: np.ndarray, impedance: Tensor) -> "Figure":
    """Nyquist's plot, and Bode's magnitude and phase."""
    dimensionless = description.cell.electrolyte.is_dimensionless
    z = impedance.detach().cpu().reshape(-1, len(frequencies)).numpy()
    letter, factor = ("", 1.0) if dimensionless else prefix(float(np.abs(z).max()))
    unit = "dimensionless" if dimensionless else f"{letter}Ω m²"
    figure, (nyquist, bode) = _figure(1, 2, description.title)
    _lines(nyquist, z.real * factor, -z.imag * factor, description, marker=".")
    nyquist.set_xlabel(f"Re Z ({unit})")
    nyquist.set_ylabel(f"−Im Z ({unit})")
    size = _nyquist_scale(nyquist, z * factor)
    widest = z[np.argmax(z.real.max(-1))]
    _mark_decades(nyquist, frequencies, widest * factor, size, dimensionless)
    _lines(bode, frequencies[None], np.abs(z) * factor, description)
    phase = bode.twinx()
    _lines(phase, frequencies[None], np.degrees(np.angle(z)), description, linestyle="--")
    bode.set_xscale("log")
    bode.set_yscale("log")
    bode.set_xlabel("frequency (D / L²)" if dimensionless else "frequency (Hz)")
    bode.set_ylabel(f"|Z| ({unit}), solid")
    phase.set_ylabel("phase (°), dashed")
    _legend(figure, bode, description)
    return figure


def _nyquist_scale(ax: "Axes", z: np.ndarray) -> float:
    """Show as much of the imaginary part as of the real one, on equal scales; returns the size of the view.

    The capacitance of blocking electrodes would make a semicircle too small to be seen.
    """
    right, top = float(z.real.max()), float((-z.imag).max())
    size = right if top > 2 * right > 0 else max(right, top)
    ax.set_xlim(min(0.0, float(z.real.min())) - 0.05 * size, max(right, size) + 0.3 * size)
    ax.set_ylim(max(-size, min(0.0, float((-z.imag).min()))) - 0.05 * size, min(top, size) + 0.1 * size)
    ax.set_aspect("equal", adjustable="datalim" if top < size / 2 else "box")
    return size


def _mark_decades(
    ax: "Axes", frequencies: np.ndarray, z: np.ndarray, size: float, dimensionless: bool
) -> None:
    """Write whole decades of frequency beside the points of one curve that are in view and stand apart."""
    logs, last = np.log10(frequencies), None
    for decade in range(math.floor(logs.min()), math.ceil(logs.max()) + 1):
        index = int(np.abs(logs - decade).argmin())
        point = z[index]
        apart = last is None or abs(point - last) > 0.1 * size
        if abs(logs[index] - decade) < 0.1 and -point.imag <= size and apart:
            text = with_prefix(10.0**decade, "" if dimensionless else "Hz")
            place = (point.real, -point.imag)
            ax.annotate(text, place, xytext=(6, 3), textcoords="offset points", fontsize=8)
            last = point


def _lines(ax: "Axes", x: np.ndarray, y: np.ndarray, description: Description, **style: Any) -> None:
    """One curve for every element; `x` may be shared."""
    from matplotlib import colormaps

    colors = colormaps["viridis"](np.linspace(0, 0.85, len(y))) if len(y) > 1 else [POTENTIAL]
    for values, along, color, label in zip(
        y, np.broadcast_to(x, y.shape), colors, labels(description), strict=True
    ):
        ax.plot(along, values, color=color, label=label or None, **style)


def _legend(figure: "Figure", ax: "Axes", description: Description) -> None:
    if 1 < len(labels(description)) <= MOST_LEGEND:
        handles, names = ax.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False, fontsize="small")


def _left_current(solution: Solution) -> _Curves:
    with torch.no_grad():
        return _suited(solution, current_density(solution)[..., 0], "A m⁻²", "F D c / L")


def _voltage(solution: Solution) -> _Curves:
    with torch.no_grad():
        ends = electrode_potential(solution)
    return _suited(solution, ends.left - ends.right, "V", "thermal voltages")


def _suited(solution: Solution, values: Tensor, unit: str, dimensionless: str) -> _Curves:
    """One row for every element, with the SI prefix that suits the largest number."""
    rows = values.detach().cpu().reshape(-1, values.shape[-1] if values.dim() else 1).numpy()
    if solution.cell.electrolyte.is_dimensionless:
        return _Curves(rows, dimensionless)
    letter, factor = prefix(float(np.abs(rows).max()))
    return _Curves(rows * factor, letter + unit)


def _time(solution: Solution, time: float) -> str:
    return with_prefix(time, "" if solution.cell.electrolyte.is_dimensionless else "s")
