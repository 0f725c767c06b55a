"""The kernels on a GPU: the very functions of this package, compiled by numba-cuda, one cell a thread.

A thread has rows of one lane, which are plain numbers. Row r of all threads lies in one piece, `(row, thread)`, so
that the threads of a warp, each at its own cell, read and write neighbours. What :mod:`pnp.compiled.lanes` does for
vectors on a CPU is written here for one number; every other function is made anew from the same Python code.

Arrays stay where torch has them: kernels get their addresses, on the stream that torch uses.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FunctionType
from typing import Any

import numpy as np
import torch
from numba import cuda
from numba.core.dispatcher import Dispatcher
from torch import Tensor

from . import lanes
from .inputs import each_tensor
from .resting import rest_adjoint_in, rest_in
from .stepping import Steps
from .stepping import march as march_on_cpu
from .stepping_adjoint import march_adjoint_in

THREADS = 32
"""Threads of a block: one warp, so that few cells spread over all multiprocessors."""
WORKSPACE = 2**31
"""Most bytes of rows at a time; where they do not suffice, a thread solves one cell after another."""

_made: dict[Any, Any] = {}
"""What stands for a function of the CPU."""


def alone(function: Callable) -> Callable:
    """What the function of the same name in :mod:`pnp.compiled.lanes` does, with one lane."""
    _made[getattr(lanes, function.__name__)] = cuda.jit(device=True)(function)
    return function


@alone
def load(rows: Any, row: Any) -> Any:
    return rows[np.uint64(row)]


@alone
def store(rows: Any, row: Any, value: Any) -> None:
    rows[np.uint64(row)] = value


@alone
def stream(rows: Any, row: Any, value: Any) -> None:
    rows[np.uint64(row)] = value


@alone
def get(rows: Any, row: Any, lane: Any) -> Any:
    return rows[np.uint64(row)]


@alone
def put(rows: Any, row: Any, lane: Any, value: Any) -> None:
    rows[np.uint64(row)] = value


@alone
def put_nodes(rows: Any, row: Any, fields: Any, array: Any, cells: Any, s: Any) -> None:
    for k in range(array.shape[array.ndim - 1]):
        number = array[cells[0], k] if array.ndim == 2 else array[cells[0], s, k]
        rows[np.uint64(row + k * fields)] = number


@alone
def take_nodes(rows: Any, row: Any, fields: Any, array: Any, cells: Any, s: Any) -> None:
    for k in range(array.shape[array.ndim - 1]):
        number = rows[np.uint64(row + k * fields)]
        if array.ndim == 2:
            array[cells[0], k] = number
        else:
            array[cells[0], s, k] = number


@alone
def lanes_in(rows: Any) -> int:
    return 1


@alone
def splat(rows: Any, value: Any) -> float:
    return float(value)


@alone
def where(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


@alone
def largest(a: Any, b: Any) -> Any:
    return a if a > b else b


@alone
def smallest(a: Any, b: Any) -> Any:
    return a if a < b else b


@alone
def any_lane(condition: Any) -> Any:
    return condition


@alone
def opposite(condition: Any) -> Any:
    return not condition


@alone
def absolute(x: Any) -> float:
    return math.fabs(x)


@alone
def square_root(x: Any) -> float:
    return math.sqrt(x)


@alone
def logarithm(x: Any) -> float:
    return math.log(x)


@alone
def exponential(x: Any) -> float:
    return math.exp(x)


@alone
def scalar_product(a: Any, b: Any) -> float:
    product = 0.0
    for k in range(a.size):
        product += a[k] * b[k]
    return product


def on_gpu(function: Any) -> Any:
    """A kernel of the CPU, and all that it calls, as a function of a GPU's thread."""
    if function not in _made:
        source = function.py_func
        names = dict(source.__globals__)
        for name in source.__code__.co_names:
            called = names.get(name)
            if isinstance(called, Dispatcher) or (callable(called) and called in _made):
                names[name] = on_gpu(called)
        again = FunctionType(source.__code__, names, source.__name__, source.__defaults__)
        again.__module__, again.__qualname__ = source.__module__, source.__qualname__
        _made[function] = cuda.jit(device=True)(again)
    return _made[function]


def _kernel(function: Any) -> Any:
    """Compile what is launched at its first launch, and keep it on disk like the kernels of the CPU."""
    kernel = cuda.jit(cache=True)(function)
    if hasattr(kernel, "_cache"):  # numba's simulator has none
        kernel._cache._cache_file._source_stamp = lanes.DIGEST
    return kernel


_rest_in, _rest_adjoint_in, _march, _march_adjoint_in = map(
    on_gpu, (rest_in, rest_adjoint_in, march_on_cpu, march_adjoint_in)
)


@_kernel
def rest(
    work: Any,
    cells: Any,
    numbers: Any,
    closed: Any,
    held: Any,
    warm: Any,
    tolerance: Any,
    most: Any,
    potential: Any,
    concentrations: Any,
    report: Any,
) -> None:
    """See :func:`pnp.compiled.resting.rest`."""
    thread = cuda.grid(1)
    column, group = work[:, thread], cuda.local.array(1, np.int64)
    options = closed, held, warm, True, tolerance, most
    for place in range(thread, cells.size, work.shape[1]):
        own = cells[place : place + 1]
        _rest_in(column, group, own, numbers, options, potential, concentrations, report)


@_kernel
def rest_adjoint(
    work: Any,
    spare: Any,
    cells: Any,
    numbers: Any,
    closed: Any,
    held: Any,
    states: Any,
    found: Any,
) -> None:
    """See :func:`pnp.compiled.resting.rest_adjoint`; `spare` is `(4, node, thread)`."""
    thread = cuda.grid(1)
    column = work[:, thread]
    groups = cuda.local.array(1, np.int64), cuda.local.array(1, np.int64)
    groups[1][0] = 0
    mine = spare[:, :, thread]
    parts = mine[0:1], mine[1:2], mine[2], mine[3]
    for place in range(thread, cells.size, work.shape[1]):
        own = cells[place : place + 1]
        _rest_adjoint_in(column, groups, parts, own, numbers, closed, held, states, found)


def _marching(general: Any, recorded: bool) -> Any:
    """See :func:`pnp.compiled.stepping.march` about `general`; a `recorded` one takes a tape `(step, row, cell)`."""

    def march(
        work: Any,
        cells: Any,
        numbers: Any,
        diffusivities: Any,
        structure: Any,
        start: Any,
        control: Any,
        most: Any,
        results: Any,
        tape: Any,
    ) -> None:
        thread = cuda.grid(1)
        column, group = work[:, thread], cuda.local.array(1, np.int64)
        steps = Steps(
            cuda.local.array(1, np.float64),
            cuda.local.array(1, np.float64),
            cuda.local.array(1, np.float64),
            cuda.local.array(1, np.bool_),
            cuda.local.array(1, np.int64),
        )
        for place in range(thread, cells.size, work.shape[1]):
            _march(
                column,
                group,
                steps,
                tape[:, :, place] if recorded else None,
                None,
                cells[place : place + 1],
                numbers,
                diffusivities,
                general,
                structure,
                start,
                control,
                most,
                results,
            )

    return _kernel(march)


def _marching_back(general: Any) -> Any:
    """See :func:`pnp.compiled.stepping_adjoint.march_adjoint`; the tape is `(step, row, cell)`."""

    def march_adjoint(
        work: Any,
        back: Any,
        cells: Any,
        tape: Any,
        taken: Any,
        given: Any,
        held: Any,
        baths: Any,
        by: Any,
        whole: Any,
        found: Any,
    ) -> None:
        thread = cuda.grid(1)
        spare = (
            cuda.local.array(1, np.int64),
            cuda.local.array(1, np.int64),
            cuda.local.array(1, np.int64),
        )
        for place in range(thread, cells.size, work.shape[1]):
            _march_adjoint_in(
                work[:, thread],
                back[:, thread],
                spare,
                cells[place : place + 1],
                tape[:, :, place],
                taken,
                given,
                general,
                held,
                baths,
                by,
                whole,
                found,
            )

    return _kernel(march_adjoint)


march, march_salt = _marching(True, False), _marching(None, False)
march_recorded, march_salt_recorded = _marching(True, True), _marching(None, True)
march_adjoint, march_adjoint_salt = _marching_back(True), _marching_back(None)


def room(device: torch.device) -> int:
    """Bytes that a tape may take, half of those that are free."""
    return torch.cuda.mem_get_info(device)[0] // 2


def launch(name: str, shapes: tuple[tuple[int, ...], ...], cells: Tensor, *arguments: Any) -> None:
    """Run a kernel on `cells`, with workspaces of these shapes for every thread; does not wait for the results."""
    if not len(cells):
        return
    bytes_of_block = 8 * THREADS * sum(map(math.prod, shapes))
    # Whole blocks, so that rows begin where the memory is read in one piece.
    blocks = min(-(-len(cells) // THREADS), max(WORKSPACE // bytes_of_block, 1))
    new = partial(torch.empty, dtype=torch.float64, device=cells.device)
    work = [new(*shape, blocks * THREADS) for shape in shapes]
    with _stream(cells.device) as stream, warnings.catch_warnings():
        # Of few cells.
        warnings.filterwarnings("ignore", message="Grid size")
        globals()[name][blocks, THREADS, stream](*each_tensor(_memory, *work, cells, *arguments))


@contextmanager
def _stream(device: torch.device) -> Iterator[Any]:
    """The stream that torch uses on a device, as numba knows it."""
    with cuda.gpus[device.index]:
        yield cuda.external_stream(torch.cuda.current_stream(device).cuda_stream)


def _memory(tensor: Tensor) -> Any:
    """Where a tensor lies; what is no array in one piece is made one, on its device."""
    return cuda.as_cuda_array(tensor.detach().contiguous(), sync=False)
