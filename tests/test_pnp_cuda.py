"""Kernels on CUDA tensors: what can be tested without a GPU, and with the mark `gpu` what cannot.

Without one: that the functions compile for one, that they compute what torch does where numba's simulator runs them
as a GPU would, and that no array goes to or fro in all that is around them.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pnp
from benchmarks.cells import as_parameters, cell_of, sample
from pnp import compiled

pytest.importorskip("numba")

from numba import types

from pnp.compiled import dispatch
from pnp.compiled.inputs import Numbers
from pnp.compiled.step_rows import tape_width
from pnp.compiled.stepping_adjoint import Coefficients

from .test_pnp_compiled import AT_REST_COMPILED, assert_same
from .test_pnp_gradients import Parametrised

SMALL = 16
"""As many numbers may be given on the CPU, such as the valences of all species; arrays may not."""
BATCH, NODES = 100, 21


class NoTransfers(TorchDispatchMode):
    """Raises where an array goes to a device or leaves it."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, function: Any, _: Any, given: Any = (), options: Any = None) -> Any:
        found = function(*given, **(options or {}))
        before, after = (
            [one for one in tree_leaves(tree) if isinstance(one, torch.Tensor)]
            for tree in ((given, options), found)
        )
        inside = {one.device.type == self.device for one in before}
        for one in after:
            if inside and (one.device.type == self.device) not in inside:
                assert one.numel() <= SMALL, f"{function} moves {tuple(one.shape)}"
        # What is written into is where it was; what is written may have come from elsewhere.
        if len(inside) == 2:
            small = [one.numel() for one in before if one.device.type != self.device]
            assert max(small) <= SMALL, f"{function} mixes devices"
        return found


class Imagined(NoTransfers):
    """The same on a device without memory, where every check passes and every cell converges."""

    def __init__(self) -> None:
        super().__init__("meta")

    def __torch_dispatch__(self, function: Any, types_: Any, given: Any = (), options: Any = None) -> Any:
        name = function._schema.name
        if name == "aten::_local_scalar_dense":
            return given[0].answer
        if name == "aten::nonzero":
            # Of what failed, in one way or the other, there is nothing.
            some = given[0].dtype == torch.bool and getattr(given[0], "answer", True)
            return torch.empty(len(given[0]) if some else 0, 1, dtype=torch.int64, device="meta")
        if name == "aten::index" and given[1][0].dtype == torch.bool:
            return given[0]
        found = super().__torch_dispatch__(function, types_, given, options)
        if name in ("aten::any", "aten::all"):
            found.answer = name == "aten::all"
        elif name == "aten::sum" and given[0].dtype == torch.bool:
            found.answer = given[0].numel()
        elif name == "aten::bitwise_not":
            found.answer = False
        elif name == "aten::max":
            found.answer = STEPS
        return found


STEPS = 7
"""Of every cell on the device without memory."""


def half_of_the_cells(_: torch.Tensor) -> int:
    """Bytes of their tapes."""
    return BATCH // 2 * 8 * (STEPS + 1) * tape_width(NODES, 2)


def numbers_on(device: str) -> dict[str, torch.Tensor]:
    """Of different cells."""
    return {name: one.to(device).requires_grad_() for name, one in as_parameters(*sample(BATCH)).items()}


def batch_of(numbers: dict[str, torch.Tensor]) -> tuple[pnp.Cell, pnp.Grid]:
    """Cells and their grids."""
    cell = cell_of(**numbers)
    return cell, pnp.Grid.refined(cell, NODES)


@pytest.fixture
def imagined(monkeypatch) -> list[str]:
    """Cells on the device without memory are solved by kernels that do nothing but to be listed."""
    launched: list[str] = []
    monkeypatch.setattr(dispatch, "_has_kernels", lambda system: True)
    monkeypatch.setattr(dispatch, "_on_gpu", lambda tensor: True)
    monkeypatch.setattr(dispatch, "_launch", lambda name, *_: launched.append(name))
    monkeypatch.setattr(dispatch, "_room", half_of_the_cells)
    return launched


def test_no_array_goes_to_or_fro_around_kernels(imagined):
    numbers = numbers_on("meta")
    with Imagined():
        cell, grid = batch_of(numbers)
        solution = pnp.solve_steady(cell, grid)
        assert solution.stats.solver == "compiled"
        value = pnp.diffuse_charge(solution).sum()
        torch.autograd.grad(value, list(numbers.values()), allow_unused=True)
        assert imagined == ["rest", "rest_adjoint"]
        with torch.no_grad():
            pnp.solve_equilibrium(cell, grid, initial=solution)
            pnp.solve_transient(cell, grid, times=[0.01, 0.1])
        assert imagined[2:] == ["rest", "march_salt"]
        value = pnp.diffuse_charge(pnp.solve_transient(cell, grid, times=[0.01, 0.1])).sum()
        assert imagined[4:] == ["march_salt_recorded"]
        torch.autograd.grad(value, list(numbers.values()))
    assert imagined[5:] == 2 * ["march_salt_recorded", "march_adjoint_salt"]


def test_a_transfer_is_noticed():
    with Imagined(), pytest.raises(AssertionError, match="moves"):
        torch.empty(BATCH).to("meta")


def test_simulated_gpu_computes_what_torch_does():
    """In a process of its own, because numba is told so when it is imported."""
    pytest.importorskip("numba.cuda")
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, "-m", "tests.simulated_gpu"],
        cwd=Path(__file__).parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert len(run.stdout.splitlines()) == 10


def _array(axes: int, of: Any = types.float64) -> Any:
    return types.Array(of, axes, "C")


_FLAG, _NUMBERS = _array(1, types.boolean), types.NamedUniTuple(_array(2), 7, Numbers)
_CELLS = _array(1, types.int64)
_COEFFICIENTS = types.NamedTuple([_array(axes) for axes in (2, 3, 2, 2, 2, 3, 3, 2)], Coefficients)
_RESULTS = [_array(2), _array(3), _array(2)]
SIGNATURES = {
    "rest": [
        *(_array(2), _CELLS, _NUMBERS, types.boolean, _FLAG, types.boolean, types.float64, types.int64),
        *_RESULTS,
    ],
    "rest_adjoint": [
        *(_array(2), _array(3), _CELLS, _NUMBERS, types.boolean, _FLAG),
        *(types.Tuple([_array(2), _array(3), _array(2), _array(3)]), _NUMBERS),
    ],
    "march": [
        *(_array(2), _CELLS, _NUMBERS, _array(3), types.Tuple([types.boolean, _FLAG, _FLAG])),
        *(types.Tuple([_array(2), _array(3), _array(2), _array(1)]), types.UniTuple(types.float64, 5)),
        *(types.int64, types.Tuple([_array(3), _array(4), _array(2)]), _array(3)),
    ],
    "march_adjoint": [
        *(_array(2), _array(2), _CELLS, _array(3), _array(1), _COEFFICIENTS, _FLAG, _FLAG),
        *(types.Tuple([_array(3), _array(4)]), types.boolean, _COEFFICIENTS),
    ],
}
for like in ("march_salt", "march_recorded", "march_salt_recorded"):
    SIGNATURES[like] = SIGNATURES["march"]
SIGNATURES["march_adjoint_salt"] = SIGNATURES["march_adjoint"]


@pytest.mark.parametrize("name", SIGNATURES)
def test_compiles_for_a_gpu(name, monkeypatch):
    """To the assembler of compute capability 9.0, which takes no GPU; nothing is allocated, nothing is float32."""
    pytest.importorskip("numba_cuda")
    from numba import cuda
    from numba.cuda import dispatcher
    from numba.cuda.cudadrv import nvvm

    from pnp.compiled import gpu

    try:
        nvvm.NVVM()
    except Exception as error:
        pytest.skip(f"needs NVVM: {error}")
    capability = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr(dispatcher, "get_current_device", lambda: capability)
    assembler, _ = cuda.compile_ptx(getattr(gpu, name).py_func, tuple(SIGNATURES[name]), cc=(9, 0))
    assert ".target sm_90" in assembler
    assert "malloc" not in assembler
    assert ".f64" in assembler
    assert "ld.global.f32" not in assembler
    assert "st.global.f32" not in assembler


def test_without_numba_cuda_there_are_no_kernels_for_a_gpu(monkeypatch):
    def system(species: int, device: str = "cuda") -> Any:
        volumes = SimpleNamespace(device=SimpleNamespace(type=device))
        return SimpleNamespace(volumes=volumes, valences=torch.ones(1, species))

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    assert dispatch._has_kernels(system(2))
    assert not dispatch._has_kernels(system(100))
    assert not dispatch._has_kernels(system(2, "mps"))
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert not dispatch._has_kernels(system(2))
    assert dispatch._has_kernels(system(100, "cpu"))


@pytest.fixture
def gpu() -> Iterator[Any]:
    """The module, where numba-cuda is installed."""
    pytest.importorskip("numba_cuda")
    from pnp.compiled import gpu

    yield gpu
    torch.cuda.synchronize()


def on_cpu(solution: pnp.Solution) -> Any:
    """What :func:`assert_same` looks at."""
    return SimpleNamespace(
        status=solution.status.cpu(),
        solved=solution.solved.cpu(),
        potential=solution.potential.detach().cpu(),
        concentrations=solution.concentrations.detach().cpu(),
    )


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("kind", AT_REST_COMPILED)
def test_equilibria_and_gradients_are_those_of_the_cpu(kind):
    found = []
    for device in ("cpu", "cuda"):
        vector = Parametrised(kind).start.to(device).requires_grad_()
        solution = pnp.solve_equilibrium(*Parametrised(kind)(vector))
        assert solution.stats.solver == "compiled"
        warm = pnp.solve_equilibrium(*Parametrised(kind)(vector.detach()), initial=solution)
        assert warm.stats.solver == "compiled"
        value = pnp.free_energy(solution).sum() + (solution.potential**2).sum()
        (gradient,) = torch.autograd.grad(value, vector)
        found.append((on_cpu(solution), on_cpu(warm), gradient.cpu()))
    (one, one_warm, one_gradient), (two, two_warm, two_gradient) = found
    assert_same(two, one, 1e-10)
    assert_same(two_warm, one_warm, 1e-10)
    assert float((two_gradient - one_gradient).abs().max()) < 1e-9 * float(one_gradient.abs().max())


@pytest.mark.gpu
@pytest.mark.parametrize("threads", ["as many as cells", "fewer"])
def test_batches_are_those_of_the_cpu(gpu, threads, monkeypatch):
    if threads == "fewer":
        monkeypatch.setattr(gpu, "WORKSPACE", 0)
    with torch.no_grad():
        for solve in (pnp.solve_steady, lambda *it: pnp.solve_transient(*it, times=[0.0, 0.01, 0.1])):
            one, two = (solve(*batch_of(numbers_on(device))) for device in ("cpu", "cuda"))
            assert one.stats.solver == two.stats.solver == "compiled"
            assert two.potential.is_cuda
            assert_same(on_cpu(two), one, 1e-6 if one.times is not None else 1e-10, negligible=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("together", ["all", "one by one"])
def test_gradients_of_transients_are_those_of_the_cpu(gpu, together, monkeypatch):
    if together == "one by one":
        monkeypatch.setattr(gpu, "room", lambda device: 0)
    found = []
    for device in ("cpu", "cuda"):
        numbers = numbers_on(device)
        solution = pnp.solve_transient(*batch_of(numbers), times=[0.0, 0.01, 0.1])
        assert solution.stats.solver == "compiled"
        value = pnp.diffuse_charge(solution).sum() + solution.potential.square().sum()
        found.append([one.cpu() for one in torch.autograd.grad(value, list(numbers.values()))])
    for one, two in zip(*found, strict=True):
        # Steps are chosen by rounded numbers, which are others there.
        assert float((two - one).abs().max()) < 1e-5 * float(one.abs().max())


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_nothing_leaves_the_gpu():
    numbers = numbers_on("cuda")
    with NoTransfers("cuda"):
        cell, grid = batch_of(numbers)
        solution = pnp.solve_steady(cell, grid)
        assert solution.stats.solver == "compiled"
        value = pnp.diffuse_charge(solution).sum()
        torch.autograd.grad(value, list(numbers.values()), allow_unused=True)
        with torch.no_grad():
            assert pnp.solve_transient(cell, grid, times=[0.01]).stats.solver == "compiled"
        charging = pnp.solve_transient(cell, grid, times=[0.01])
        torch.autograd.grad(pnp.diffuse_charge(charging).sum(), list(numbers.values()))


@pytest.mark.gpu
@pytest.mark.usefixtures("gpu")
def test_runs_on_the_stream_of_torch():
    """What is queued before it on that stream is done before it."""
    with torch.no_grad():
        numbers = numbers_on("cuda")
        wanted = pnp.solve_steady(*batch_of(numbers))
        with torch.cuda.stream(torch.cuda.Stream()):
            torch.cuda._sleep(10**8)
            numbers = {name: one + 0.0 for name, one in numbers.items()}
            found = pnp.solve_steady(*batch_of(numbers))
        torch.cuda.synchronize()
    assert torch.equal(found.potential, wanted.potential)


@pytest.mark.gpu
def test_a_kernel_that_breaks_is_replaced(gpu, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("no such instruction")

    cell, grid = batch_of(numbers_on("cuda"))
    wanted = pnp.solve_steady(cell, grid)
    monkeypatch.setattr(gpu, "launch", broken)
    with pytest.warns(compiled.CompiledPathWarning, match="no such instruction"):
        solution = pnp.solve_steady(cell, grid)
    assert solution.stats.solver == "torch"
    assert_same(on_cpu(solution), on_cpu(wanted), 1e-8)
