"""The notebooks run from a clean kernel, and their committed copies are complete, small and anonymous."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

NOTEBOOKS = sorted(Path(__file__).parent.parent.glob("notebooks/*.ipynb"))
MACHINE_PATH = re.compile(r"/(home|work|root|tmp|Users|usr|opt|var|private|mnt)/|[A-Z]:\\\\?Users")

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: Any) -> list[str]:
    """What a cell put out: the name of each stream, the richest type of each display."""
    return [
        output.name if output.output_type == "stream" else max(output.data, key=str) for output in cell.outputs
    ]


def texts(notebook: Any) -> Iterator[str]:
    """Everything in a notebook that is text: sources, metadata and outputs, without the pixels of figures."""
    yield str(notebook.metadata)
    for cell in notebook.cells:
        yield cell.source
        yield str(cell.metadata)
        for output in cell.get("outputs", []):
            yield str(output.get("metadata", ""))
            yield str(output.get("text", ""))
            for kind, value in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield str(value)


@pytest.mark.slow
# Started inside pytest's own process, the kernel client leaves sockets and an event loop to the garbage
# collector, which pytest would report as errors of whichever test comes next.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_runs_from_a_clean_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    work = tmp_path / "work"
    work.mkdir()
    for variable in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    committed = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in code_cells(fresh):
        cell.outputs, cell.execution_count = [], None
    # No directory to look for kernels in: "python3" is then the interpreter that runs this test.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    nbclient.NotebookClient(
        fresh, km=manager, timeout=600, record_timing=False, resources={"metadata": {"path": str(work)}}
    ).execute()
    assert not list(work.iterdir())
    for before, after in zip(code_cells(committed), code_cells(fresh), strict=True):
        assert kinds(before) == kinds(after), f"outputs of this cell are not up to date:\n{after.source}"


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


def test_is_short_and_small(path: Path) -> None:
    assert len(nbformat.read(path, as_version=4).cells) < 20
    assert path.stat().st_size < 1.5e6


def test_holds_no_trace_of_a_machine(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.metadata.kernelspec.name == "python3"
    assert not [found for text in texts(notebook) if (found := MACHINE_PATH.search(text))]
