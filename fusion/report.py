"""A self-contained HTML page of paragraphs, tables and figures."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from pnp.atomic import replacing

from .extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """A table: a head, rows of cells and a caption."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure that was saved as PNG, with what it shows."""

    path: Path
    caption: str
    data: str
    inches: float

    @property
    def alt(self) -> str:
        """What stands in for the figure where it cannot be shown."""
        return self.path.stem.replace("_", " ")


@dataclass
class Section:
    """A heading with paragraphs, then tables, then figures."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    figures: list[Picture] = field(default_factory=list)


def picture(figure: "Figure", path: Path, *, caption: str) -> Picture:
    """Save a matplotlib figure as PNG at `path` and keep a copy for the page."""
    from matplotlib import pyplot

    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
    pyplot.close(figure)
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return Picture(path, caption, data, figure.get_size_inches()[0])


def write_report(path: Path, *, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write the page, with everything it shows inside, at `path`."""
    jinja2 = require("jinja2", "demo")
    template = files("fusion").joinpath("report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True).from_string(template)
    with replacing(path) as temporary:
        temporary.write_text(page.render(title=title, lead=lead, sections=sections), encoding="utf-8")
