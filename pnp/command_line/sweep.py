"""Batch axes of a description: parameters that take several values.

A table `[sweep]` is one axis, and several parameters in it vary in step; `[[sweep]]` repeated gives one axis each,
and all combinations.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .toml_lines import Document, Place, suggestion


@dataclass
class Axis:
    """A batch axis: parameters of the cell that take several values, all in step.

    Attributes:
        given: What stands in the file, by the name of the parameter.
        places: Where it stands.
        values: SI values, `(value,)`, and units of those parameters that have been asked for.
    """

    given: dict[str, list[Any]] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its dimension, that of the first parameter."""
        return label(next(iter(self.given)))

    @property
    def labels(self) -> list[str]:
        """For every value, the first parameter as people wrote it: `left.potential = 10 mV`."""
        name, values = next(iter(self.given.items()))
        return [f"{name} = {value}" for value in values]


def label(parameter: str) -> str:
    """Name of a parameter in a dataset: `left.potential` becomes `left_potential`."""
    return re.sub(r"[^\w+-]", "_", parameter)


def read_axes(file: Document) -> list[Axis]:
    """The batch axes: one of a table `[sweep]`, several of an array `[[sweep]]`."""
    content = file.content.get("sweep", [])
    tables = [content] if isinstance(content, dict) else content
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise file.error(("sweep",), f"sweep must be a table [sweep], got {content!r}.")
    axes: list[Axis] = []
    for index, table in enumerate(tables):
        place: Place = ("sweep",) if isinstance(content, dict) else ("sweep", index)
        axis = Axis()
        _collect(file, place, table, "", axis)
        if not axis.given:
            raise file.error(place, 'sweep is empty; write for instance left.potential = ["10 mV", "50 mV"].')
        twice = [name for name in axis.given if any(name in other.given for other in axes)]
        if twice:
            raise file.error(axis.places[twice[0]], f"{twice[0]} is swept twice.")
        axes.append(axis)
    return axes


def _collect(file: Document, place: Place, table: dict[str, Any], name: str, axis: Axis) -> None:
    """Parameters of one axis; `left.potential` is a table in a table, unless it stands in quotes."""
    for key, values in table.items():
        here, full = (*place, key), f"{name}.{key}" if name else key
        if isinstance(values, dict):
            _collect(file, here, values, full, axis)
            continue
        if not isinstance(values, list) or not values:
            raise file.error(here, f"the sweep of {full} must be a list of values, got {values!r}.")
        for first, other in axis.given.items():
            if len(values) != len(other):
                raise file.error(
                    here,
                    f"parameters of one sweep vary in step, but {first} has {len(other)} values and {full} "
                    f"{len(values)}; write [[sweep]] twice for all combinations.",
                )
        axis.given[full], axis.places[full] = values, here


def check_axes(file: Document, axes: list[Axis], quantities: set[str]) -> None:
    """Refuse a sweep of something that is not among the `quantities` of the cell."""
    names = sorted(quantities)
    for axis in axes:
        for name in axis.given:
            if name in axis.values:
                continue
            message = (
                f"{name} is no quantity of this cell.{suggestion(name, names)} Accepted: {', '.join(names)}."
            )
            raise file.error(axis.places[name], message)
