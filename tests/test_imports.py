"""Who may know whom: `pnp` nothing of `fusion`, `fusion` of `pnp` only what it exports, and no import for show."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scipy import constants

import pnp
import pnp.constants

ROOT = Path(__file__).parent.parent
HEAVY = {
    *("matplotlib", "pint", "xarray", "sklearn", "fusion", "safetensors", "jinja2"),
    *("dask", "distributed", "scipy.constants", "scipy.stats"),
}

DOORS = ("analytic", "atomic", "film", "palette", "plotting")
"""Modules of `pnp` that are used by their own name."""


def sources(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert len(found) > 10
    return found


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """Absolute imports anywhere in a file, as (module, name or None)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.module or "", alias.name) for alias in node.names)


@pytest.mark.parametrize("path", sources("pnp"), ids=lambda path: str(path.relative_to(ROOT)))
def test_pnp_knows_nothing_of_fusion(path):
    assert "fusion" not in {module.split(".")[0] for module, _ in imports(path)}


@pytest.mark.parametrize("path", sources("fusion"), ids=lambda path: str(path.relative_to(ROOT)))
def test_fusion_uses_what_pnp_exports(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for module, name in imports(path):
        if module.split(".")[0] == "pnp":
            assert module in {"pnp", *(f"pnp.{one}" for one in DOORS)}, module
            assert name is None or module != "pnp" or name in {*pnp.__all__, *DOORS}, name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "pnp":
            assert node.attr in {*pnp.__all__, *DOORS}, node.attr


def test_everything_exported_exists_and_is_documented():
    for name in pnp.__all__:
        assert getattr(pnp, name).__doc__, name
    assert sorted(pnp.__all__, key=str.lower) == sorted(set(pnp.__all__), key=str.lower)


def test_constants_of_nature_are_those_of_scipy():
    assert pnp.constants.AVOGADRO == constants.N_A
    assert constants.value("Faraday constant") == pnp.constants.FARADAY
    assert pnp.constants.GAS == constants.R
    # Other releases of scipy hold other tables.
    assert pytest.approx(constants.epsilon_0, rel=1e-9) == pnp.constants.VACUUM_PERMITTIVITY


def test_importing_pnp_brings_nothing_heavy():
    code = f"import sys, pnp; print(sorted({HEAVY!r} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["pnp", "fusion"])
def test_imports_go_one_way(package):
    """No module imports, at its top, one that imports it."""
    graph: dict[str, set[str]] = {}
    for path in sources(package):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        here = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        parent = parts[:-1]
        graph[here] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.ImportFrom) or node.level == 0:
                continue
            base = parent[: len(parent) - node.level + 1]
            target = ".".join([*base, *(node.module.split(".") if node.module else [])])
            graph[here] |= {f"{target}.{alias.name}" for alias in node.names} | {target}
    graph = {name: {one for one in found if one in graph and one != package} for name, found in graph.items()}

    def reach(start: str, seen: set[str]) -> set[str]:
        for following in graph[start] - seen:
            seen.add(following)
            reach(following, seen)
        return seen

    assert [name for name in graph if name in reach(name, set())] == []
