"""Draw the gallery and its page: python -m gallery [NAME ...] (two minutes)."""

import importlib
import inspect
import sys
from pathlib import Path

import matplotlib

from pnp.palette import STYLE

SCRIPTS = sorted(path.stem for path in Path(__file__).parent.glob("[!_]*.py"))
DOCS = Path(__file__).parents[1] / "docs"

HEAD = """# Gallery

One figure a script of `gallery/`, each of some sixty lines to take as a beginning. `make gallery` draws them all again
and writes this page; colours mean what [Notation](notation.md#colours) says.
"""


def page() -> str:
    """The page, from the scripts' docstrings: a title, and a caption."""
    parts = [HEAD]
    for name in SCRIPTS:
        title, _, caption = (inspect.getdoc(importlib.import_module(f"gallery.{name}")) or "").partition(
            "\n\n"
        )
        parts.append(
            f"## {title}\n\n![{title}](images/gallery/{name}.png)\n\n{caption}\n\n"
            f"[gallery/{name}.py](../gallery/{name}.py)\n"
        )
    return "\n".join(parts)


def main(names: list[str]) -> None:
    """Draw the figures of these scripts, of all if none is named, and write the page."""
    folder = DOCS / "images" / "gallery"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or SCRIPTS:
        with matplotlib.rc_context(STYLE):
            importlib.import_module(f"gallery.{name}").draw().savefig(folder / f"{name}.png")
    (DOCS / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
