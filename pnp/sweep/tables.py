"""Tables of parameters: one row is one cell."""

import csv
import keyword
import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..quantity import Quantity, as_quantity


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Parameters of many cells, one row each.

    Arguments:
        columns: Values of each parameter `(row,)` by its name, which is the keyword that the cell function takes.
        units: Units by name, for the results.
        axes: Dimensions of the results and their sizes, of which the rows are all combinations, the last
            fastest; default: one dimension `cell`.

    Raises:
        TypeError: Values that are no real numbers.
        ValueError: No columns or rows, columns of several lengths, a value that is not finite, a name that cannot
            be a keyword, units of no column, axes that do not multiply to the number of rows, or an axis named
            like a column that varies along another.

    Example:
        >>> import pnp
        >>> table = pnp.sweep.Table({"voltage": [0.1, 0.2, 0.5]}, units={"voltage": "V"})
        >>> len(table), list(table.columns)
        (3, ['voltage'])
    """

    columns: Mapping[str, Quantity]
    _: KW_ONLY
    units: Mapping[str, str] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        columns = {name: _column(name, values) for name, values in self.columns.items()}
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ValueError(
                f"Table: columns must be at least one, of one length of at least 1, got {lengths}."
            )
        unknown = [name for name in self.units if name not in columns]
        if unknown:
            raise ValueError(f"Table: units must name columns out of {list(columns)}, got {unknown}.")
        rows = next(iter(lengths.values()))
        axes = dict(self.axes) or {"cell": rows}
        if math.prod(axes.values()) != rows:
            raise ValueError(f"Table: axes must multiply to the number of rows, {rows}, got {axes}.")
        for name in set(axes) & set(columns):
            along = columns[name].reshape(tuple(axes.values())).movedim(list(axes).index(name), -1)
            if not torch.equal(along, along.reshape(-1, axes[name])[0].expand_as(along)):
                raise ValueError(
                    f"Table: {name} must vary along its own axis only, which {axes} puts elsewhere."
                )
        object.__setattr__(self, "columns", columns)
        object.__setattr__(self, "axes", axes)

    def __len__(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name}: {size}" for name, size in self.axes.items())
        return f"Table({', '.join(self.columns)}; {sizes})"

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of the axes."""
        return tuple(self.axes.values())

    def coordinates(self) -> dict[str, tuple[tuple[str, ...], Tensor]]:
        """Dimensions and values of each parameter in the results: of one that is an axis, one value a place."""
        dims, found = tuple(self.axes), {}
        for name, column in self.columns.items():
            values = column.reshape(self.shape)
            if name in self.axes:
                own = dims.index(name)
                values = values.movedim(own, -1).reshape(-1, self.axes[name])[0]
            found[name] = ((name,) if name in self.axes else dims, values)
        return found


def grid(values: Mapping[str, Quantity], *, units: Mapping[str, str] | None = None) -> Table:
    """All combinations of the values of several parameters, which stay axes of the results.

        pnp.sweep.grid({"voltage": [0.1, 1, 10], "debye": torch.logspace(-3, -1, 50)})

    Raises TypeError or ValueError as :class:`Table` does.

    Example:
        >>> import pnp
        >>> table = pnp.sweep.grid({"voltage": [0.1, 1.0, 10.0], "debye": [0.01, 0.1]})
        >>> len(table), {name: len(column) for name, column in table.columns.items()}
        (6, {'voltage': 6, 'debye': 6})
    """
    ticks = {name: _column(name, given) for name, given in values.items()}
    columns = torch.meshgrid(*ticks.values(), indexing="ij") if ticks else ()
    return Table(
        {name: column.reshape(-1) for name, column in zip(ticks, columns, strict=True)},
        units=units or {},
        axes={name: len(given) for name, given in ticks.items()},
    )


def latin_hypercube(
    ranges: Mapping[str, Any], count: int, *, seed: int = 0, units: Mapping[str, str] | None = None
) -> Table:
    """Random rows that fill the ranges evenly: in each parameter, one value in each of `count` equal shares.

        pnp.sweep.latin_hypercube({"voltage": (0.1, 10), "debye": pnp.sweep.log(0.005, 0.1)}, 100_000)

    Arguments:
        ranges: For each parameter `(low, high)`, or a distribution with a method `ppf`: :func:`log`, or any of
            `scipy.stats` with its parameters.
        count: Number of rows, at least 1.
        seed: The same seed gives the same rows.
        units: Units by name.

    Raises:
        TypeError: A range that is neither.
        ValueError: `count` below one, a low end that is not below the high one, or what :class:`Table` refuses.

    Example:
        >>> import pnp
        >>> ranges = {"voltage": (0.1, 10.0), "debye": pnp.sweep.log(0.005, 0.1)}
        >>> table = pnp.sweep.latin_hypercube(ranges, 4, seed=0)
        >>> quarters = (table.columns["voltage"] - 0.1) / 9.9 * 4
        >>> sorted(quarters.int().tolist())  # one in each
        [0, 1, 2, 3]
    """
    from scipy.stats import qmc, uniform

    if not isinstance(count, int) or count < 1:
        raise ValueError(f"latin_hypercube: count must be an integer of at least 1, got {count!r}.")
    shares = qmc.LatinHypercube(max(len(ranges), 1), seed=np.random.default_rng(seed)).random(count)
    columns = {}
    for (name, given), share in zip(ranges.items(), shares.T, strict=False):
        if not hasattr(given, "ppf"):
            low, high = _ends(given, f"latin_hypercube: {name}")
            given = uniform(low, high - low)
        columns[name] = torch.as_tensor(given.ppf(share), dtype=torch.float64)
    return Table(columns, units=units or {})


def log(low: float, high: float) -> Any:
    """A range whose logarithm is uniform, `0 < low < high`; ValueError where it is not.

    Example:
        >>> import pnp
        >>> f"{pnp.sweep.log(0.01, 1.0).ppf(0.5):.3f}"  # the median
        '0.100'
    """
    from scipy.stats import loguniform

    low, high = _ends((low, high), "log")
    if low <= 0:
        raise ValueError(f"log: low must be above 0, got {low:g}.")
    return loguniform(low, high)


def read_csv(
    path: Path | str, *, columns: Sequence[str] | None = None, units: Mapping[str, str] | None = None
) -> Table:
    """Rows of a CSV file: a line of names, then lines of numbers, with commas between.

    Arguments:
        path: The file, in UTF-8. Lines without anything are skipped.
        columns: Which columns to take; default: all.
        units: Units by name.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line with more or fewer cells than there are names, a cell that is empty or no finite
            number (both say line and column), a name twice or absent, or what :class:`Table` refuses.

    Example:
        >>> import pnp
        >>> from pathlib import Path
        >>> _ = Path("cells.csv").write_text("voltage,debye\\n0.1,0.01\\n0.2,0.05\\n")
        >>> pnp.sweep.read_csv("cells.csv").columns["debye"].tolist()
        [0.01, 0.05]
    """
    with open(path, newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        names = [name.strip() for name in next(lines, [])]
        twice = [name for name in names if names.count(name) > 1]
        absent = [name for name in columns or () if name not in names]
        if twice or absent:
            problem = f"has the column {twice[0]!r} twice" if twice else f"has no column {absent[0]!r}"
            raise ValueError(f"{path}, line 1: the file {problem}; its columns are {names}.")
        rows: dict[str, list[float]] = {name: [] for name in (names if columns is None else columns)}
        for cells in lines:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {lines.line_num}"
            if len(cells) != len(names):
                raise ValueError(
                    f"{where}: must have {len(names)} cells, one for each of {names}, got {len(cells)}."
                )
            by_name = dict(zip(names, cells, strict=True))
            for name, taken in rows.items():
                taken.append(_number(by_name[name], f"{where}, column {name!r}"))
    if not next(iter(rows.values()), []):
        raise ValueError(f"{path}: must have a line of names and at least one line of numbers.")
    return Table(
        {name: torch.tensor(taken, dtype=torch.float64) for name, taken in rows.items()}, units=units or {}
    )


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: must be a finite number, got {text!r}.")
    return value


def _column(name: str, values: Quantity) -> Tensor:
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name):
        raise ValueError(
            f"Table: names must be such that the cell function can take them as keywords, got {name!r}."
        )
    column = as_quantity(values, f"Table: {name}").detach().cpu()
    if column.dim() != 1:
        raise ValueError(f"Table: {name} must have one axis, `(row,)`, got shape {tuple(column.shape)}.")
    return column


def _ends(given: Any, name: str) -> tuple[float, float]:
    try:
        low, high = as_quantity(given, name).tolist()
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be two finite numbers (low, high), got {given!r}.") from error
    if not low < high:
        raise ValueError(f"{name}: low must be below high, got {low:g} and {high:g}.")
    return low, high
