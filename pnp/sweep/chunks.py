"""Some rows of a table, solved as one batch: what a thread or a worker of a cluster does."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from .. import observables as known
from ..cell import Cell
from ..errors import Status
from ..solution import Solution
from ..solvers.steady import solve_steady

T = TypeVar("T")

REFUSED = -1
"""Status of a row whose parameters (or whose solution) raised an error; others are :class:`pnp.Status`."""
LONGEST_REASON = 300


class Observable(NamedTuple):
    """Something to read off the solutions of a study, with labels for the results.

    Attributes:
        function: Takes a :class:`~pnp.Solution`; returns a tensor `(*batch, ...)` or a tuple of them, whose
            parts are then named `name_field` or `name_0`. Complex ones are stored as `_real` and `_imaginary`.
        axes: Names of the axes after those of the batch (and of `time`, which comes first in a transient);
            default: those of an observable of `pnp`, of others `name_axis0`, ...
        units: Default: those of an observable of `pnp` in SI, "1" in a dimensionless cell; of others none.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> wall = pnp.sweep.Observable(lambda solution: solution.potential[..., 0], axes=(), units="1")
        >>> wall.units, f"{float(wall.function(pnp.solve_steady(cell))):.1f}"
        ('1', '2.0')
    """

    function: Callable[[Solution], Any]
    axes: tuple[str, ...] | None = None
    units: str | None = None


_KNOWN: dict[Callable[..., Any], tuple[tuple[str, ...], str]] = {
    known.amounts: (("species",), "mol m-2"),
    known.charge_density: (("node",), "C m-3"),
    known.current_density: (("edge",), "A m-2"),
    known.debye_length: (("node",), "m"),
    known.diffuse_charge: ((), "C m-2"),
    known.electric_field: (("edge",), "V m-1"),
    known.electrode_potential: ((), "V"),
    known.free_energy: ((), "J m-2"),
    known.ion_flux: (("species", "edge"), "mol m-2 s-1"),
    known.reaction_rate: (("species",), "mol m-2 s-1"),
    known.surface_charge: ((), "C m-2"),
    known.total_charge: ((), "C m-2"),
}


def solve_safely(cell: Cell) -> Solution:
    """Steady states on the default grid; elements that fail have their status."""
    return solve_steady(cell, throw=False)


@dataclass(frozen=True)
class Study:
    """What is done with each row.

    Attributes:
        cell: Takes the columns by name, `(row,)` each, and returns a batch of cells.
        observables: What is kept, by name.
        solve: Takes the cells, and returns their solution.
    """

    cell: Callable[..., Cell]
    observables: Mapping[str, Observable]
    solve: Callable[[Cell], Solution] = solve_safely


class Variable(NamedTuple):
    """Axes of a variable after those of the table, their sizes, and its units."""

    axes: tuple[str, ...]
    shape: tuple[int, ...]
    units: str


@dataclass
class Chunk:
    """Rows that were solved.

    Attributes:
        values: Variables by name, `(row, ...)`, NaN in rows that have none; no variables if all rows were refused.
        status: `(row,)`.
        reasons: Why a row was not solved, by its index.
        variables: Labels of `values`.
        coordinates: Coordinates of axes that are the same in all rows, and their units.
        bytes_per_row: Memory that solving takes for each row, estimated from the sizes of the problem.
    """

    values: dict[str, np.ndarray]
    status: np.ndarray
    reasons: dict[int, str]
    variables: dict[str, Variable] = field(default_factory=dict)
    coordinates: dict[str, tuple[list[Any], str]] = field(default_factory=dict)
    bytes_per_row: float = 0.0


@torch.no_grad()
def solve_rows(study: Study, columns: Mapping[str, np.ndarray], device: str | None = None) -> Chunk:
    """Solve rows as one batch, without those that are refused, which give their reason instead.

    Rows whose parameters raise are found by halving the batch, first of the cells, which costs next to nothing, then
    of the solutions. A batch that does not fit the device's memory is halved by the same means.

    Arguments:
        study: What to do.
        columns: Parameters by name, `(row,)`.
        device: Where; default: the current CUDA device where there is one, otherwise the CPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    given = {name: torch.as_tensor(column, device=device) for name, column in columns.items()}
    count = len(next(iter(given.values())))
    chunk = Chunk({}, np.full(count, REFUSED, np.int32), {})
    rows = torch.arange(count, device=device)
    accepted = [part for part, _ in _attempt(lambda part: _build(study, given, part), rows, chunk.reasons)]
    if accepted:
        rows = torch.cat(accepted)
        for part, found in _attempt(lambda part: _solve(study, given, part), rows, chunk.reasons):
            _merge(chunk, part.cpu().numpy(), found)
    return chunk


def _build(study: Study, given: Mapping[str, Tensor], rows: Tensor) -> Cell:
    cell = study.cell(**{name: column[rows] for name, column in given.items()})
    if not isinstance(cell, Cell):
        raise TypeError(f"run: cell must return a pnp.Cell, got {cell!r}.")
    if cell.batch_shape != rows.shape:
        raise TypeError(
            f"run: cell must return a batch of {tuple(rows.shape)} cells for columns of that shape, got "
            f"{tuple(cell.batch_shape)}; every number of the cell that varies must come from the columns."
        )
    return cell


def _solve(study: Study, given: Mapping[str, Tensor], rows: Tensor) -> Chunk:
    solution = study.solve(_build(study, given, rows))
    status = solution.status.to("cpu", torch.int32).numpy()
    failed = np.flatnonzero(status)
    reasons = {int(index): Status(int(status[index])).reason for index in failed}
    values, variables = _statistics(solution)
    for name, observable in study.observables.items():
        for full, part in _parts(name, observable.function(solution)):
            variables[full] = _labelled(full, observable, part, solution)
            values[full] = np.array(part.to("cpu", torch.float64).numpy())
            values[full][failed] = np.nan
    stored = sum(one[0].nbytes for one in values.values())
    return Chunk(
        values, status, reasons, variables, _coordinates(solution), _bytes_per_row(solution) + 2 * stored
    )


def _bytes_per_row(solution: Solution) -> float:
    """Memory that a solver takes for each element at its peak, fitted to measurements of 2 to 60 species."""
    fields = solution.concentrations.shape[-2] + 1 + (solution.pressure is not None)
    per_node = 30 * fields**2  # blocks of the Jacobian, of its factors and of their temporaries
    if fields > 8 and not solution.cell.electrolyte.reactions:  # species are eliminated one by one
        per_node = min(per_node, 1500 + 10 * fields)
    times = 1 if solution.times is None else len(solution.times)
    return 8 * solution.potential.shape[-1] * (per_node + 3 * times * fields)


def _statistics(solution: Solution) -> tuple[dict[str, np.ndarray], dict[str, Variable]]:
    """What the solve cost, and whether the grid resolved the double layers."""
    names = (
        ["iterations", "change"] if solution.times is None else ["iterations", "steps", "rejected", "reached"]
    )
    values = {name: getattr(solution.stats, name) for name in names}
    values["wall_spacing"] = solution.check().wall_spacing
    units = dict.fromkeys(values, "1")
    if solution.times is not None and not solution.cell.electrolyte.is_dimensionless:
        units["reached"] = "s"
    return (
        {name: one.to("cpu", torch.float64).numpy() for name, one in values.items()},
        {name: Variable((), (), unit) for name, unit in units.items()},
    )


def _parts(name: str, values: Any) -> Iterator[tuple[str, Tensor]]:
    """Real tensors of what an observable returned, with their names."""
    if isinstance(values, tuple):
        for label, part in zip(getattr(values, "_fields", range(len(values))), values, strict=True):
            yield from _parts(f"{name}_{label}", part)
    elif not isinstance(values, Tensor):
        raise TypeError(f"run: the observable {name} must be a tensor or a tuple of tensors, got {values!r}.")
    elif values.is_complex():  # which NetCDF does not know
        yield from ((f"{name}_real", values.real), (f"{name}_imaginary", values.imag))
    else:
        yield name, values


def _labelled(name: str, observable: Observable, values: Tensor, solution: Solution) -> Variable:
    batch = solution.status.shape
    shape = tuple(values.shape[len(batch) :])
    if values.shape[: len(batch)] != batch or 0 in shape:
        raise TypeError(
            f"run: the observable {name} must begin with the batch axes {tuple(batch)} and hold numbers, got shape "
            f"{tuple(values.shape)}."
        )
    axes, units = _KNOWN.get(observable.function, (None, ""))
    if axes is not None and solution.cell.electrolyte.is_dimensionless:
        units = "1"
    axes = axes if observable.axes is None else tuple(observable.axes)
    time = solution.times is not None and shape[:1] == solution.times.shape
    if axes is None:
        axes = tuple(f"{name}_axis{index}" for index in range(len(shape) - time))
    if time and len(axes) == len(shape) - 1:
        axes = ("time", *axes)
    if len(axes) != len(shape):
        raise TypeError(
            f"run: axes of the observable {name} must be as many as those of its values after the batch, "
            f"{shape}, got {axes}."
        )
    return Variable(axes, shape, units if observable.units is None else observable.units)


def _coordinates(solution: Solution) -> dict[str, tuple[list[Any], str]]:
    coordinates: dict[str, tuple[list[Any], str]] = {"species": (list(solution.cell.electrolyte.names), "")}
    if solution.times is not None:
        second = "1" if solution.cell.electrolyte.is_dimensionless else "s"
        coordinates["time"] = (solution.times.tolist(), second)
    return coordinates


def _attempt(
    function: Callable[[Tensor], T], rows: Tensor, reasons: dict[int, str]
) -> Iterator[tuple[Tensor, T]]:
    """Apply a function to rows, in as many pieces as it takes to leave out those that it refuses."""
    try:
        result = function(rows)
    except (ValueError, ArithmeticError, RuntimeError) as error:  # others are mistakes in the program
        refusal = str(error)[:LONGEST_REASON] or type(error).__name__
    else:
        yield rows, result
        return
    # Out here the error, and with it the memory of what was being solved, is gone.
    if len(rows) == 1:
        reasons[int(rows)] = refusal
        return
    for half in rows.chunk(2):
        yield from _attempt(function, half, reasons)


def _merge(chunk: Chunk, rows: np.ndarray, found: Chunk) -> None:
    """Put the rows of a piece where they belong in the chunk."""
    chunk.status[rows] = found.status
    chunk.reasons |= {int(rows[index]): reason for index, reason in found.reasons.items()}
    for name, values in found.values.items():
        if name not in chunk.values:
            chunk.values[name] = np.full((len(chunk.status), *values.shape[1:]), np.nan)
        chunk.values[name][rows] = values
    chunk.variables, chunk.coordinates = found.variables, found.coordinates
    chunk.bytes_per_row = found.bytes_per_row
