"""TOML files whose errors can say where: tomllib reads the values, and a scan of the text finds their lines."""

import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

Place = tuple[str | int, ...]
"""Keys and indices that lead to a value, for instance `("species", 0, "valence")`."""

_TOKEN = re.compile(
    r'''(?P<space>[ \t\r]+|\#[^\n]*)
    | (?P<newline>\n)
    | (?P<string>"""(?:\\.|[^\\])*?"""(?:"{0,2}) | \'\'\'.*?\'\'\'(?:'{0,2}) | "(?:\\.|[^"\\\n])*" | '[^'\n]*')
    | (?P<mark>[=,\[\]{}])
    | (?P<bare>[^\s=,\[\]{}#"']+)''',
    re.VERBOSE | re.DOTALL,
)


class DescriptionError(ValueError):
    """Something in a file that cannot be meant; the text names the file, the line, and what is accepted.

    Attributes:
        line: Line number, from one.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, eq=False)
class Document:
    """A TOML file that was read.

    Attributes:
        path: Where it lies.
        text: As it was written.
        content: As tomllib understands it.
        lines: Line number, from one, of every table and value.
    """

    path: Path
    text: str
    content: dict[str, Any]
    lines: dict[Place, int]

    def error(self, place: Place, message: str) -> DescriptionError:
        """An error at `place`, or at the nearest table around it that is written down."""
        while place and place not in self.lines:
            place = place[:-1]
        return _error_at(self.path, self.text, self.lines.get(place, 1), message)


def read_toml(path: Path) -> Document:
    """Read a TOML file.

    Raises:
        OSError: It cannot be read.
        DescriptionError: It is not TOML.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DescriptionError(f"{path}: the file must be UTF-8 text, but {error.reason}.", 1) from error
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"^(.*) \(at (?:line (\d+)|end)", str(error))
        last = max(1, len(text.splitlines()))
        line = int(found[2]) if found and found[2] else last
        cause = found[1] if found else str(error)
        advice = 'Quantities and names with a sign stand in quotes: "100 nm", "Na+".'
        raise _error_at(path, text, line, f"not TOML: {cause}. {advice}") from error
    return Document(path, text, content, _Scan(text).lines)


def suggestion(word: str, options: Iterable[str]) -> str:
    """A sentence (after a space) with the option that `word` may have been meant to be; empty if none is close."""
    by_lower = {option.lower(): option for option in options}
    close = get_close_matches(word.lower(), list(by_lower), n=1)
    return f" Did you mean '{by_lower[close[0]]}'?" if close else ""


def _error_at(path: Path, text: str, line: int, message: str) -> DescriptionError:
    rows = text.splitlines()
    shown = rows[line - 1].strip() if line <= len(rows) else ""
    return DescriptionError(f"{path}, line {line}: {shown}\n  {message}", line)


class _Scan:
    """One pass over text that tomllib has accepted, which therefore need not be checked again."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self._counts: dict[Place, int] = {}  # of arrays of tables
        self._tokens = _tokens(text)
        self._at = 0
        table: Place = ()
        while self._peek() is not None:
            if self._peek() == "\n":
                self._at += 1
            elif self._peek() == "[":
                table = self._header()
            else:
                self._pair(table)

    def _peek(self) -> str | None:
        return self._tokens[self._at][0] if self._at < len(self._tokens) else None

    def _header(self) -> Place:
        """`[a.b]` or `[[a.b]]`: the place of the table that it opens."""
        line = self._tokens[self._at][1]
        repeated = self._tokens[self._at + 1][0] == "["
        self._at += 2 if repeated else 1
        keys = self._keys("]")
        self._at += 2 if repeated else 1
        place: Place = ()
        for depth, key in enumerate(keys):
            place = (*place, key)
            self.lines.setdefault(place, line)
            last = depth == len(keys) - 1
            if last and repeated:
                self._counts[place] = self._counts.get(place, 0) + 1
            if place in self._counts:  # keys after it belong to its newest table
                place = (*place, self._counts[place] - 1)
        self.lines[place] = line
        return place

    def _pair(self, table: Place) -> None:
        line = self._tokens[self._at][1]
        place = table
        for key in self._keys("="):
            place = (*place, key)
            self.lines.setdefault(place, line)
        self._at += 1
        self._value(place)

    def _value(self, place: Place) -> None:
        if self._peek() == "[":
            self._array(place)
        elif self._peek() == "{":
            self._inline_table(place)
        else:  # a date may be two tokens
            while self._peek() not in ("\n", ",", "]", "}", None):
                self._at += 1

    def _array(self, place: Place) -> None:
        self._at += 1
        index = 0
        while self._peek() != "]":
            if self._peek() in ("\n", ","):
                self._at += 1
                continue
            self.lines[(*place, index)] = self._tokens[self._at][1]
            self._value((*place, index))
            index += 1
        self._at += 1

    def _inline_table(self, place: Place) -> None:
        self._at += 1
        while self._peek() != "}":
            if self._peek() in ("\n", ","):
                self._at += 1
            else:
                self._pair(place)
        self._at += 1

    def _keys(self, end: str) -> list[str]:
        """The parts of a dotted key, up to the mark that ends it."""
        keys: list[str] = []
        while self._peek() != end:
            word = self._tokens[self._at][0]
            if word[0] in "\"'":
                keys.append(tomllib.loads(f"key = {word}")["key"])
            else:
                keys += [part for part in word.split(".") if part]
            self._at += 1
        return keys


def _tokens(text: str) -> list[tuple[str, int]]:
    """Words, strings, marks and line ends, each with its line."""
    tokens, line = [], 1
    for match in _TOKEN.finditer(text):
        if match.lastgroup != "space":
            tokens.append((match.group(), line))
        line += match.group().count("\n")
    return tokens
