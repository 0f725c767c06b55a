"""The notebooks run from a clean kernel, and their committed copies are complete, small and anonymous."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"/(home|work|root|tmp|Users|usr|opt|var|private|mnt)/|[A-Z]:\\")

# Runs in a process of its own, because the kernel client leaves sockets and an event loop to the garbage
# collector, and here that would be an error of whichever test comes next. Without a directory to look for
# kernels in, "python3" is the interpreter that runs this, whatever Jupyter has installed for the user.
EXECUTE = """
import sys
import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

source, target = sys.argv[1:]
notebook = nbformat.read(source, as_version=4)
for cell in notebook.cells:
    if cell.cell_type == "code":
        cell.outputs, cell.execution_count = [], None
manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
NotebookClient(notebook, km=manager, timeout=600, record_timing=False, coalesce_streams=True).execute()
nbformat.write(notebook, target)
"""


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[Any]:
    """What a cell put out: standard output, or the types of a display.

    Not standard error: on a new machine Matplotlib reports there that it builds its font cache.
    """
    found = [output.get("name", sorted(output.get("data", {}))) for output in cell.outputs]
    return [kind for kind in found if kind != "stderr"]


def texts(notebook: Any) -> Iterator[str]:
    """All text of a notebook: metadata, sources and outputs, without the pixels of figures."""
    yield str(notebook.metadata)
    for cell in notebook.cells:
        yield cell.source
        yield str(cell.metadata)
        for output in cell.get("outputs", []):
            yield str(output.get("metadata", ""))
            yield str(output.get("text", ""))
            yield from (str(value) for kind, value in output.get("data", {}).items() if kind[:5] != "image")


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_a_clean_kernel(path: Path, tmp_path: Path) -> None:
    folder, target = tmp_path / "work", tmp_path / path.name
    folder.mkdir()
    own = {
        name: str(tmp_path / name)
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    }
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(target)],
        cwd=folder,
        env=os.environ | own | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir()), "the notebook left files behind"
    committed, fresh = (nbformat.read(one, as_version=4) for one in (path, target))
    for before, after in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert kinds(before) == kinds(after), f"the committed outputs of this cell are old:\n{after.source}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_as_it_was_executed(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_short_and_small(path: Path) -> None:
    assert len(nbformat.read(path, as_version=4).cells) < 20
    assert path.stat().st_size < 1.5e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_holds_no_trace_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not [found.group() for text in texts(notebook) for found in MACHINE_PATH.finditer(text)]
