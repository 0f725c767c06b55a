"""What the pages say is true of the code: Python blocks run and print what they show, commands and links exist.

The blocks of a page share their names and run from top to bottom, in an empty folder but for what a reader is told to
bring. Blocks of more cells, of GPUs or of a cluster run with what `STANDS_IN` puts in their place.
"""

import contextlib
import importlib.util
import io
import re
import shlex
import tomllib
from pathlib import Path

import pytest

import fusion.__main__
import pnp.__main__
from fusion import save_features, shared_private

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")] if "_build" not in path.parts
)
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
TEXTS = dict(zip(NAMES, (path.read_text(encoding="utf-8") for path in PAGES), strict=True))
FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1[ ]*$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!\\)\]\(<?([^)>\s]+)[)>]")


def python_blocks(text):
    """Every Python block, and the text block right behind it or nothing."""
    found, end = [], -1
    for fence in FENCE.finditer(text):
        if fence[2] == "text" and found and not text[end : fence.start()].strip():
            found[-1] = (found[-1][0], fence[3])
        elif fence[2] == "python":
            found.append((fence[3], ""))
            end = fence.end()
    return found


def commands(text):
    """The words of every line of the shell blocks, without comments, continued lines joined."""
    for fence in FENCE.finditer(text):
        if fence[2] in ("", "sh"):
            for line in fence[3].replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    yield words


EXAMPLES = {name: python_blocks(text) for name, text in TEXTS.items()}

STANDS_IN = {
    "docs/grounded.md": [("Recipe(extractor=64)", "Recipe(epochs=1, extractor=6)")],  # few: compiled
    "docs/howto/gpu.md": [('"cuda"', '"cpu"')],
    "docs/howto/many_cells.md": [("10_000", "100")],
    "docs/howto/watch_migration.md": [
        ("logspace(-5, 0.5, 12", "logspace(-5, 0.5, 3"),
        ("times=times)", "times=times, nodes=15)"),
    ],
    "docs/sweeps.md": [
        ("100_000", "100"),
        ('"cell.toml"', repr(str(ROOT / "docs" / "examples" / "charging.toml"))),
        (
            "LocalCluster(n_workers=8, threads_per_worker=1)",
            "LocalCluster(processes=False, dashboard_address=None)",
        ),
    ],
}
"""What a test cannot have, or has no time for, and what it has instead."""


@pytest.fixture
def reader(tmp_path, monkeypatch):
    """A folder with the feature file that pages tell the reader to bring, and a plotting library without screen."""
    features, _ = shared_private(200, {"audio": 12, "video": 10}, shared=3, private=3, seed=0)
    save_features(tmp_path / "FEATURES.npz", features)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    yield
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.mark.parametrize("name", [name for name, blocks in EXAMPLES.items() if blocks])
def test_blocks_run_and_print_what_the_page_shows(name, reader):
    names = {"__name__": "__main__"}
    for code, output in EXAMPLES[name]:
        for what, instead in STANDS_IN.get(name, []):
            code = code.replace(what, instead)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, name, "exec"), names)
        assert printed.getvalue().rstrip() == output.rstrip(), code


def test_what_stands_in_is_asked_for():
    for name, pairs in STANDS_IN.items():
        for what, _ in pairs:
            assert any(what in code for code, _ in EXAMPLES[name]), (name, what)


@pytest.mark.parametrize("name", [name for name in NAMES if any(commands(TEXTS[name]))])
def test_commands_exist(name):
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(pyproject["project"]["optional-dependencies"])
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(TEXTS[name]):
        while "=" in words[0]:  # NAME=value before a command
            words = words[1:]
        if words[0] == "torchrun":
            words = ["python", *words[words.index("-m") :]]
        match words:
            case ["make", target]:
                assert target in targets
            case ["pip", "install", what] | ["pip", "install", "-e", what]:
                assert set(re.findall(r"[a-z]+", what.partition("[")[2])) <= extras
            case ["python", "-m", "fusion", *rest]:
                fusion.__main__._parser().parse_args(rest)
            case ["python", "-m", "pnp", *rest]:
                pnp.__main__._parser().parse_args(rest)
            case ["python", "-m", module, *rest]:
                source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
                assert all(word in source for word in rest if word.startswith("--"))
            case ["python", script, *_]:
                assert (ROOT / script).is_file()
            case ["git", "clone" | "status", *_] | ["cd", _]:
                pass
            case _:
                raise AssertionError(f"what is {shlex.join(words)!r}?")


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name):
    for target in LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", TEXTS[name]))):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
