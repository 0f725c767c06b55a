"""The documentation builds without a warning, and its reference has every public name once, with examples that run."""

import doctest
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from inspect import cleandoc, isclass, isfunction
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import fusion
import fusion.plotting
import pnp
import pnp.analytic
import pnp.plotting
import pnp.sweep

pytest.importorskip("sphinx")
pytest.importorskip("myst_nb")

ROOT = Path(__file__).parents[1]


def public(module: Any) -> set[str]:
    """Full names of what a module exports: its `__all__`, or the functions and classes that are defined in it."""
    if hasattr(module, "__all__"):
        names = [name for name in module.__all__ if not isinstance(getattr(module, name), type(module))]
    else:
        own = vars(module).items()
        names = [
            name
            for name, one in own
            if (isclass(one) or isfunction(one)) and one.__module__ == module.__name__ and name[0] != "_"
        ]
    return {f"{module.__name__}.{name}" for name in names}


MODULES = (pnp, pnp.analytic, pnp.plotting, pnp.sweep, fusion, fusion.plotting)
PUBLIC = sorted(set().union(*map(public, MODULES)))
WITHOUT_EXAMPLES = {
    "fusion.LAYERS",
    "fusion.plotting.draw_colours",
    "fusion.plotting.draw_ground",
    "fusion.plotting.draw_paths",
    "fusion.plotting.predictability_norm",
    "fusion.plotting.ramp",
    "pnp.plotting.Unit",
    "pnp.plotting.species_colors",
    "pnp.plotting.units",
    "pnp.sweep.REFUSED",
}
"""Tables, and what figures are made of."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-c", "docs", ".", str(out)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_it_builds_without_a_warning(site: Path) -> None:
    pages = {str(path.relative_to(site).with_suffix("")) for path in site.rglob("*.html")}
    sources = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb"), ROOT / "CHANGELOG.md"]
    assert {str(path.relative_to(ROOT).with_suffix("")) for path in sources} <= pages
    for path in site.rglob("*.html"):  # what markdown could not make sense of is left as it was
        assert "](" not in re.sub(r"<(pre|code|script)\b.*?</\1>", "", path.read_text(), flags=re.DOTALL), (
            path
        )


@pytest.mark.slow
def test_pages_need_no_network_and_their_formulas_no_script(site: Path) -> None:
    seen = 0
    for path in site.rglob("*.html"):
        text = path.read_text()
        assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)=.(https?:)?//", text), path
        formulas = re.findall(r"<math\b.*?</math>", text, flags=re.DOTALL)
        assert not any("\\" in formula for formula in formulas), "a command that was not understood"
        seen += len(formulas)
    assert seen > 500


@pytest.mark.slow
def test_the_reference_has_every_public_name_once(site: Path) -> None:
    found = Counter()
    for page in (site / "docs" / "reference").glob("*.html"):
        found.update(re.findall(r'<dt class="sig[^>]*id="([^"]+)"', page.read_text()))
    assert not set(PUBLIC) - set(found), "names that belong on a page of docs/reference"
    assert not [name for name, count in found.items() if count > 1], "names that are there twice"


def resolved(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(sys.modules[module], attribute)


@pytest.mark.parametrize("name", sorted({*PUBLIC} - WITHOUT_EXAMPLES))
def test_examples_in_docstrings_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    given = {} if name == "pnp.Cell" else {"cell": run_examples("pnp.Cell")[1]["cell"]}
    complaints, _ = run_examples(name, given)
    assert not complaints, complaints


def run_examples(name: str, given: Mapping[str, Any] = MappingProxyType({})) -> tuple[str, dict[str, Any]]:
    """Run the examples of a name, in which some names are `given`: what went wrong, and all names in the end."""
    text = cleandoc(resolved(name).__doc__)
    example = doctest.DocTestParser().get_doctest(text, dict(given), name, None, 0)
    assert example.examples, "there is none"
    told: list[str] = []
    doctest.DocTestRunner(verbose=False).run(example, out=told.append, clear_globs=False)
    return "".join(told), example.globs
