"""Tables of a description: values with their units, swept or not, and errors that point at the line."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor

from .sweep import Axis
from .toml_lines import DescriptionError, Document, Place, suggestion
from .units import NUMBER, Kind, to_si

TOP_LEVEL = (
    "title",
    "dimensionless",
    "temperature",
    "relative_permittivity",
    "permittivity",
    "solvent_diameter",
)
"""Keys that stand in no table. TOML takes a key for one of the table above it, wherever it was meant to be."""
REQUIRED: Any = object()
"""Default of a key that must be given."""


@dataclass(frozen=True, eq=False)
class Reading:
    """What all tables of a description share: the file, whether it is in SI units, and what is swept."""

    file: Document
    dimensionless: bool
    axes: list[Axis]
    quantities: set[str] = field(default_factory=set)  # names of all that can be swept


class Table:
    """A table of the file; remembers which keys were asked for, so that what is left over is an error.

    Arguments:
        reading: The file.
        place: Where in the file the table stands.
        content: Its keys and values.
        name: What messages and sweeps call it; empty for the whole file.
    """

    def __init__(self, reading: Reading, place: Place, content: dict[str, Any], name: str = "") -> None:
        self.reading = reading
        self.place = place
        self.content = content
        self.name = name
        self._asked: dict[str, None] = {}

    def error(self, key: str | None, message: str, index: int | None = None) -> DescriptionError:
        """An error at the line of a key (and of one element of its list), or of the table itself."""
        place = self.place if key is None else (*self.place, key)
        return self.reading.file.error(place if index is None else (*place, index), message)

    def full_name(self, key: str) -> str:
        """What messages and sweeps call a value of this table."""
        return f"{self.name}.{key}" if self.name else key

    def get(self, key: str, default: Any = REQUIRED) -> Any:
        """The value as it stands in the file; DescriptionError when it is required and absent."""
        self._asked[key] = None
        if key in self.content:
            return self.content[key]
        if default is not REQUIRED:
            return default
        raise self.missing(key, f"the key '{key}'")

    def missing(self, key: str, what: str) -> DescriptionError:
        """An error for a key that is absent, or perhaps misspelt."""
        meant = get_close_matches(key, [other for other in self.content if other not in self._asked], n=1)
        if meant:
            return self.error(meant[0], f"{self._here} has no key '{meant[0]}'; did you mean '{key}'?")
        return self.error(None, f"{self._here} needs {what}.")

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """A string that is not empty."""
        value = self.get(key, default)
        if value is default or (isinstance(value, str) and value.strip()):
            return value
        raise self.error(key, f"{self.full_name(key)} must be a text in quotes, got {value!r}.")

    def choice(self, key: str, options: Sequence[str], default: Any = REQUIRED) -> str:
        """One of several words."""
        value = self.get(key, default)
        if value in options:
            return value
        hint = suggestion(str(value), options)
        listed = ", ".join(f'"{option}"' for option in options)
        raise self.error(key, f"{self.full_name(key)} must be one of {listed}; got {value!r}.{hint}")

    def flag(self, key: str, default: bool = False) -> bool:
        """True or false."""
        value = self.get(key, default)
        if isinstance(value, bool):
            return value
        raise self.error(key, f"{self.full_name(key)} must be true or false, got {value!r}.")

    def integer(self, key: str, default: Any = REQUIRED, at_least: int = 1) -> int:
        """A whole number."""
        value = self.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= at_least:
            return value
        raise self.error(
            key, f"{self.full_name(key)} must be a whole number of at least {at_least}, got {value!r}."
        )

    def constant(self, key: str, kind: Kind = NUMBER, default: Any = REQUIRED) -> float:
        """A quantity that cannot be swept, in SI units; the default as it is."""
        value = self.get(key, default)
        return value if key not in self.content else self._si(key, value, kind)

    def quantity(self, key: str, kind: Kind = NUMBER, default: Any = REQUIRED) -> Any:
        """A quantity in SI units: a float, or if it is swept a tensor with its batch axis; the default as it is."""
        name = self.full_name(key)
        self.reading.quantities.add(name)
        for index, axis in enumerate(self.reading.axes):
            if name in axis.given:
                self._asked[key] = None
                values = self._swept(axis, name, kind)
                return values.reshape(-1, *[1] * (len(self.reading.axes) - 1 - index))
        return self.constant(key, kind, default)

    def quantities(self, key: str, kind: Kind = NUMBER) -> Tensor:
        """A list of quantities in SI units, `(value,)`."""
        values = self.get(key)
        if not isinstance(values, list) or not values:
            raise self.error(
                key, f"{self.full_name(key)} must be a list, such as [{kind.example}], got {values!r}."
            )
        return torch.tensor(
            [self._si(key, value, kind, index) for index, value in enumerate(values)], dtype=torch.float64
        )

    def table(self, key: str, default: Any = REQUIRED) -> "Table":
        """A table inside this one."""
        if key not in self.content and default is REQUIRED:
            raise self.missing(key, f"a table [{self.full_name(key)}]")
        value = self.get(key, default)
        if isinstance(value, dict):
            return Table(self.reading, (*self.place, key), value, self.full_name(key))
        raise self.error(key, f"{self.full_name(key)} must be a table, got {value!r}.")

    def tables(self, key: str) -> list["Table"]:
        """An array of tables, which may be absent; the first is called `key.1`."""
        values = self.get(key, [])
        if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
            written = ".".join(str(part) for part in (*self.place, key) if isinstance(part, str))
            raise self.error(key, f"{self.full_name(key)} must be a list of tables: write [[{written}]].")
        name = self.full_name(key)
        return [
            Table(self.reading, (*self.place, key, index), value, f"{name}.{index + 1}")
            for index, value in enumerate(values)
        ]

    def finish(self, noun: str = "key") -> None:
        """Refuse keys that nobody asked for, with the closest one that is accepted."""
        for key in self.content:
            if key in self._asked:
                continue
            hint = suggestion(key, self._asked)
            if self.name and key in TOP_LEVEL:
                hint = " It belongs at the top of the file, before the first [table]."
            listed = ", ".join(self._asked)
            raise self.error(key, f"{self._here} has no {noun} '{key}'.{hint} Accepted: {listed}.")

    @property
    def _here(self) -> str:
        return f"[{self.name}]" if self.name else "the file"

    def _si(self, key: str, value: Any, kind: Kind, index: int | None = None) -> float:
        try:
            return to_si(value, kind, dimensionless=self.reading.dimensionless)
        except ValueError as error:
            raise self.error(key, f"{self.full_name(key)} {error}", index) from error

    def _swept(self, axis: Axis, name: str, kind: Kind) -> Tensor:
        reading, values = self.reading, []
        for index, value in enumerate(axis.given[name]):
            try:
                values.append(to_si(value, kind, dimensionless=reading.dimensionless))
            except ValueError as error:
                raise reading.file.error((*axis.places[name], index), f"{name} {error}") from error
        axis.values[name] = torch.tensor(values, dtype=torch.float64)
        axis.units[name] = "" if reading.dimensionless else kind.unit
        return axis.values[name]


@contextmanager
def pointing(*tables: Table) -> Iterator[None]:
    """Point at the line that is to blame when pnp refuses what these tables describe.

    That is the line of the key which the message names, in the table which it names; else of the first table.
    """
    try:
        yield
    except DescriptionError:
        raise
    except (TypeError, ValueError) as error:
        message = str(error)
        table = max(tables, key=lambda one: _blame(one, message))
        key = _named_key(table, message)
        raise table.error(key, message) from error


def _blame(table: Table, message: str) -> tuple[int, bool]:
    """How much a message says about a table: how often its name, and whether one of its keys."""
    parts = [part for part in table.name.split(".") if part and not part.isdecimal()]
    return sum(_position(part, message) is not None for part in parts), _named_key(table, message) is not None


def _named_key(table: Table, message: str) -> str | None:
    """The first key of a table that a message names."""
    places = {key: _position(key, message) for key in table.content}
    named = {key: at for key, at in places.items() if at is not None}
    return min(named, key=lambda key: named[key]) if named else None


def _position(word: str, message: str) -> int | None:
    """Where a message has a word, in the singular or the plural."""
    found = re.search(rf"(?<!\w){re.escape(word)}s?(?!\w)", message)
    return found.start() if found else None
