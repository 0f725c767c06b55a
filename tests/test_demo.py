"""The main job, with fewer seeds and epochs than `make demo` uses."""

import json
import re

import pytest

from fusion.__main__ import main
from fusion.data.datasets import shared_private
from fusion.data.feature_file import save_features
from fusion.demo import demo
from fusion.training.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    demo(out, seeds=2, recipe=Recipe(epochs=2), progress=False)
    return out


def test_figures_numbers_and_report_are_there(folder):
    expected = {
        "report.html",
        "charging.png",
        "migration.png",
        "channels.png",
        "gates.png",
        "parts.png",
        "comparison.png",
    }
    assert expected <= {path.name for path in folder.iterdir()}
    for part in ("comparison_1", "comparison_2"):
        assert (folder / part / "comparison.json").exists()


def test_the_report_needs_nothing_but_itself(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r"src=\"(.{30})", page)
    assert len(sources) == 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]+", "", page)
    assert "{{" not in page


def test_the_report_shows_the_numbers_of_the_comparison(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    rows = json.loads((folder / "comparison_1" / "comparison.json").read_text())["rows"]
    layers = {row["layer"] for row in rows}
    assert layers == {"cell", "gmf", "sum", "concat", "late"}
    for row in rows:
        if row["metric"] == "accuracy":
            assert f"{row['mean']:.3f} ± {row['half_width']:.3f}" in page


def test_the_cell_of_the_report_agrees_with_the_exact_solution(folder):
    page = (folder / "report.html").read_text(encoding="utf-8")
    error = float(re.search(r"exact solution, relative</td><td>([-+.e0-9]+)<", page)[1])
    assert 0 < abs(error) < 1e-3


def test_migrate_draws_the_channels_of_features_of_one_s_own(tmp_path, capsys):
    features, _ = shared_private(300, {"a": 6, "b": 4, "c": 5}, shared=2, private=2, seed=0)
    save_features(tmp_path / "three.npz", features)
    assert main(["migrate", str(tmp_path / "three.npz"), "--out", str(tmp_path / "out")]) == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "migration.png",
        "channels.png",
        "gates.png",
        "parts.png",
    }
    assert "3 modalities, 300 samples" in capsys.readouterr().out
