"""Every script of the gallery draws a figure whose axes have names, and the page is what the scripts say."""

import importlib
from pathlib import Path

import matplotlib
import pytest

pytest.importorskip("sklearn")

from gallery.__main__ import SCRIPTS, page

matplotlib.use("agg")

DOCS = Path(__file__).parent.parent / "docs"

# The same figures of less, because two of them take half a minute.
QUICK = {
    "cyclic_voltammogram": {"RATES": (8.0,), "MOMENTS": 11},
    "migration_of_six_views": {"VIEWS": ("lower_left", "frequencies"), "MOMENTS": 6, "NODES": 15},
    "subspaces_before_and_after_training": {"EPOCHS": 2},
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_draws_a_figure_with_names_and_units(name, monkeypatch):
    script = importlib.import_module(f"gallery.{name}")
    for setting, value in QUICK.get(name, {}).items():
        monkeypatch.setattr(script, setting, value)
    figure = script.draw()
    panels = [ax for ax in figure.axes if ax.get_label() != "<colorbar>" and ax.has_data()]
    assert panels
    # Panels that share an axis have its name at the edge of the figure.
    for ax in panels:
        place = ax.get_subplotspec()
        assert ax.get_ylabel() or not place.is_first_col()
        assert ax.get_xlabel() or not place.is_last_row()


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_short_and_drawn(name):
    lines = (Path(__file__).parent.parent / "gallery" / f"{name}.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 90
    assert 10_000 < (DOCS / "images" / "gallery" / f"{name}.png").stat().st_size < 200_000


def test_page_is_that_of_the_scripts():
    assert (DOCS / "gallery.md").read_text(encoding="utf-8") == page()
