"""Running a study: chunks of a table over threads, devices or the workers of a cluster."""

import ctypes
import functools
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..cell import Cell
from ..errors import UnderResolvedWarning
from ..solution import Solution
from .chunks import Chunk, Observable, Study, solve_rows, solve_safely
from .fingerprint import fingerprint
from .store import Plan, Store
from .tables import Table

if TYPE_CHECKING:
    import xarray

TRIED_FIRST = 16
"""Rows, spread over the table, that are solved first to learn what the results look like."""
FEWEST_CHUNKS, SMALLEST_CHUNK = 16, 256
"""Of a chunk size that is chosen: many chunks to resume and to share, but none so small that overhead rules."""
CPU_BYTES = 256e6
"""Memory for a chunk on a CPU, where larger batches are not faster."""


def run(
    cell: Callable[..., Cell],
    table: Table,
    observables: Mapping[str, Callable[[Solution], Any] | Observable],
    *,
    out: Path | str,
    solve: Callable[[Cell], Solution] = solve_safely,
    chunk: int | None = None,
    memory: float | None = None,
    devices: Sequence[torch.device | str] | None = None,
    client: Any = None,
    overwrite: bool = False,
    progress: bool = True,
) -> "xarray.Dataset":
    """Solve the cells of a table, chunk by chunk, and keep observables of each in one file::

        def cell(voltage, debye):  # columns of the table, `(row,)`
            salt = pnp.Electrolyte.dimensionless(..., permittivity=2 * debye**2)
            return pnp.Cell(salt, ..., left=pnp.Electrode(potential=voltage))

        data = pnp.sweep.run(cell, table, {"charge": pnp.diffuse_charge}, out="study.nc")

    Every finished chunk is a file in the folder `out.parts`; the same call after a kill takes up there and gives
    the same bits, and after the end it returns what is in `out`. No gradients are kept.

    Arguments:
        cell: Takes the columns by name as tensors on the device, and returns a batch of as many cells.
        table: :func:`grid`, :func:`latin_hypercube`, :func:`read_csv` or a :class:`Table`.
        observables: By name, functions such as `pnp.diffuse_charge`, or an :class:`Observable` with labels.
        out: NetCDF file to write.
        solve: Takes the batch and returns its :class:`~pnp.Solution`, with `throw=False` inside, so that an element
            that fails does not stop the others; default: `solve_steady` on its default grid.
        chunk: Rows solved at a time. Default: as many as `memory` holds by an estimate from the nodes, species and
            times of a few rows that are solved first, and so few that there are sixteen chunks, and four to a
            worker, of at least 256 rows.
        memory: Bytes for one chunk; default: 256 MB on a CPU or with a `client`, a quarter of what is free on a GPU.
        devices: One thread solves on each; default: all CUDA devices, else every core of the CPU.
        client: A `dask.distributed.Client`, whose workers solve instead, each on its CUDA device if it has one.
        overwrite: Give up another study that `out` or its parts hold.
        progress: Show a bar, with the number of cells that failed.

    Returns:
        A dataset that reads from `out` as needed, with the axes of the table as dimensions: the parameters and the
        observables, NaN where `status` is not zero, and how the solves went (`iterations`, `wall_spacing`, ...).
        Where anything failed, `reason` has a text for every `failure`, a row of the table counted from 0.

    Raises:
        ImportError: xarray or tqdm is not installed.
        TypeError: `cell`, `observables` or `solve` return what they must not.
        ValueError: `out` holds another study, none of the first rows is a cell that can be solved, names clash, or
            `chunk` or `memory` is not positive, or `devices` are given with `client`.

    Warns:
        UnderResolvedWarning: Cells whose double layers the grid does not resolve, where `wall_spacing` exceeds 1.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> from dataclasses import replace
        >>> def at(voltage):
        ...     return replace(cell, left=pnp.Electrode(potential=voltage))
        ...
        >>> table = pnp.sweep.grid({"voltage": [1.0, 2.0]})
        >>> data = pnp.sweep.run(at, table, {"charge": pnp.diffuse_charge}, out="study.nc", progress=False)
        >>> data.charge.values.round(4).tolist()
        [0.2227, 0.3072]
    """
    _check(chunk, memory, devices, client)
    study = Study(
        cell,
        {name: one if isinstance(one, Observable) else Observable(one) for name, one in observables.items()},
        solve,
    )
    store = Store(Path(out), table, fingerprint(study, table))
    engine = _Threads(devices) if client is None else _Dask(client)
    with _quiet():
        if not store.is_finished(overwrite):
            plan = store.resume(chunk, overwrite)
            if plan is None:
                plan = _plan(study, table, store.settings, chunk, memory, engine)
                store.begin(plan)
            _solve_missing(study, table, store, plan, engine, progress)
            store.join(plan)
    store.clean()
    return _opened(store.out)


def _check(chunk: int | None, memory: float | None, devices: Any, client: Any) -> None:
    for name in ("xarray", "tqdm"):
        if find_spec(name) is None:
            raise ImportError(f"pnp.sweep.run needs {name}: pip install 'pnp-fusion[sweep]'.")
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ValueError(f"run: chunk must be an integer of at least 1, got {chunk!r}.")
    if memory is not None and not memory > 0:
        raise ValueError(f"run: memory must be a positive number of bytes, got {memory!r}.")
    if devices is not None and (client is not None or not len(devices)):
        raise ValueError(
            f"run: devices must be at least one, and none with a client, whose workers have their own; got {devices!r}."
        )


def _plan(
    study: Study,
    table: Table,
    settings: dict[str, str],
    size: int | None,
    memory: float | None,
    engine: "_Engine",
) -> Plan:
    """Solve a few rows to see what there is to store, and how many fit into a chunk."""
    rows = np.unique(np.linspace(0, len(table) - 1, TRIED_FIRST).astype(int))
    tried = solve_rows(study, _columns(table, rows), engine.first_device)
    if not tried.values:
        raise ValueError(
            f"run: none of the {len(rows)} cells that were tried first could be made and solved: {tried.reasons[0]}"
        )
    if size is None:
        share = math.ceil(len(table) / max(FEWEST_CHUNKS, 4 * engine.workers()))
        size = max(1, min(max(share, SMALLEST_CHUNK), int((memory or engine.memory()) / tried.bytes_per_row)))
    return Plan(settings, size, tried.variables, tried.coordinates)


def _columns(table: Table, rows: Any) -> dict[str, np.ndarray]:
    return {name: column.numpy()[rows] for name, column in table.columns.items()}


def _solve_missing(
    study: Study, table: Table, store: Store, plan: Plan, engine: "_Engine", progress: bool
) -> None:
    from tqdm import tqdm

    rows = [slice(start, start + plan.size) for start in range(0, len(table), plan.size)]
    finished = store.finished()
    done = sum(len(range(len(table))[rows[index]]) for index in finished)
    failed = store.failures()
    with (
        tqdm(total=len(table), initial=done, unit="cell", disable=not progress) as bar,
        engine.started() as submit,
    ):
        missing = sorted(set(range(len(rows))) - set(finished))
        tasks = ((index, (study, _columns(table, rows[index]))) for index in missing)
        for index, chunk in _completed(submit, tasks, lambda: 2 * engine.workers()):
            store.write(index, plan, chunk)
            failed += len(chunk.reasons)
            bar.set_postfix(failed=failed, refresh=False)
            bar.update(len(chunk.status))


def _completed(
    submit: Callable[..., "Future[Chunk]"], tasks: Iterable[tuple[int, Any]], most: Callable[[], int]
) -> Iterator[tuple[int, Chunk]]:
    """Results as they come, with no more than so many tasks under way, so that memory does not grow with the table."""
    tasks = iter(tasks)
    waiting: dict[Future[Chunk], int] = {}
    try:
        while True:
            for index, arguments in islice(tasks, max(0, most() - len(waiting))):
                waiting[submit(*arguments)] = index
            if not waiting:
                return
            for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                yield waiting.pop(future), future.result()
    finally:
        for future in waiting:
            future.cancel()


class _Threads:
    """Threads of this process, each with a device; the GIL is released in the operations of torch."""

    def __init__(self, devices: Sequence[torch.device | str] | None) -> None:
        if devices is None and torch.cuda.is_available():
            devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
        elif devices is None:
            devices = ["cpu"] * _cores()
        self.devices = [str(device) for device in devices]
        self.first_device = self.devices[0]

    def workers(self) -> int:
        return len(self.devices)

    def memory(self) -> float:
        free = [torch.cuda.mem_get_info(one)[0] / 4 for one in self.devices if one.startswith("cuda")]
        return min(free, default=CPU_BYTES)

    @contextmanager
    def started(self) -> Iterator[Callable[..., "Future[Chunk]"]]:
        idle: SimpleQueue[str] = SimpleQueue()
        for device in self.devices:
            idle.put(device)

        def solve(study: Study, columns: Mapping[str, np.ndarray]) -> Chunk:
            device = idle.get()
            try:
                return solve_rows(study, columns, device)
            finally:
                idle.put(device)

        # The matrices are small: several threads for one operation would mostly wait for each other.
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(len(self.devices), "sweep", torch.set_num_threads, (1,)) as pool:
                yield lambda *arguments: pool.submit(solve, *arguments)
        finally:
            torch.set_num_threads(before)


class _Dask:
    """Workers of a cluster, which may come and go."""

    first_device = "cpu"

    def __init__(self, client: Any) -> None:
        self.client = client

    def workers(self) -> int:
        return max(1, sum(self.client.nthreads().values()))

    def memory(self) -> float:
        return CPU_BYTES

    @contextmanager
    def started(self) -> Iterator[Callable[..., "Future[Chunk]"]]:
        with self.client.get_executor(pure=False) as pool:
            yield lambda *arguments: pool.submit(_solve_on_worker, *arguments)


_Engine = _Threads | _Dask


def _solve_on_worker(study: Study, columns: Mapping[str, np.ndarray]) -> Chunk:
    _relax_malloc()
    with _quiet():
        return solve_rows(study, columns)


@functools.cache
def _relax_malloc() -> None:
    """Give glibc's malloc in a worker the thresholds that it reaches by itself elsewhere.

    With those that Dask sets by default, each large tensor is mapped anew, which takes three times the time.
    """
    if os.environ.get("MALLOC_TRIM_THRESHOLD_") == "65536":
        with suppress(OSError, AttributeError, TypeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD
            mallopt(-1, 64 << 20)  # M_TRIM_THRESHOLD


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of single chunks, for which there is one at the end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnderResolvedWarning)
        yield


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _opened(out: Path) -> "xarray.Dataset":
    import xarray

    data = xarray.open_dataset(out, engine="scipy")
    unresolved = data.attrs["unresolved"]
    if unresolved:
        warnings.warn(
            f"The grid does not resolve the double layers of {unresolved} of {data.status.size} cells, those whose "
            "wall_spacing is above 1: use Grid.refined(cell, nodes) with more nodes, in `solve`.",
            UnderResolvedWarning,
            stacklevel=3,
        )
    return data
