"""Solving again and again leaves nothing behind, and what a gradient keeps is a few states a step."""

import gc
import itertools
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

import pnp
from pnp import Newton, StepControl, compiled
from pnp.solvers.time_step import StepResult, Traceable
from pnp.system import State

from .problems import Canonical
from .test_pnp_gradients import Parametrised
from .test_pnp_many_species import Salt, Split

STATM = Path("/proc/self/statm")


@pytest.fixture(autouse=True)
def nothing_older():
    """Objects from before a test are not looked at, of which there may be millions."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def charge(kind: str) -> torch.Tensor:
    """A solve that requires a gradient; its graph holds a few megabytes."""
    potential = torch.linspace(0.5, 1.0, 8, dtype=torch.float64).requires_grad_()
    cell = Canonical(1.0, 0.1).cell(left=pnp.Electrode(potential=potential))
    grid = pnp.Grid.uniform(cell, 301 if kind == "steady" else 101)
    if kind == "transient":
        solution = pnp.solve_transient(cell, grid, times=[1e-4])
    else:
        solution = {"steady": pnp.solve_steady, "equilibrium": pnp.solve_equilibrium}[kind](cell, grid)
    return pnp.surface_charge(solution).left.sum()


def tensors_alive() -> int:
    gc.collect()
    return sum(issubclass(type(one), torch.Tensor) for one in gc.get_objects())


def megabytes() -> float:
    """Memory of the process, where the system tells; tensors are counted everywhere."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if STATM.exists() else 0.0


def test_blocks_are_lent_again_once_nobody_has_them():
    memory = pytest.importorskip("pnp.compiled.memory")
    blocks = memory.Blocks(most=250)
    held = torch.from_numpy(blocks.lend(100)[10:20].reshape(2, 5))
    taken, others = held.data_ptr() - 10, [blocks.lend(100) for _ in range(3)]
    addresses = {one.ctypes.data for one in others}
    assert len(addresses) == 3
    assert taken not in addresses
    del others
    assert len(blocks.free) == 2  # no more bytes than are to be kept
    again = blocks.lend(100)
    assert again.ctypes.data in addresses
    del held
    assert blocks.lend(100).ctypes.data == taken
    blocks.lend(60)
    del again
    assert [one.size for one in blocks.free] == [60]


@pytest.mark.parametrize(("kind", "repeats"), [("steady", 30), ("equilibrium", 30), ("transient", 8)])
def test_solves_leave_no_memory(kind, repeats):
    """With their backward pass and, every other time, without."""

    def run(times: int) -> None:
        for index in range(times):
            value = charge(kind)
            if index % 2:
                value.backward()

    run(4)
    tensors, before = tensors_alive(), megabytes()
    run(repeats)
    assert tensors_alive() == tensors
    assert megabytes() - before < 8


def test_the_measure_sees_a_leak():
    kept = [charge("steady") for _ in range(3)]
    tensors = tensors_alive()
    kept += [charge("steady") for _ in range(30)]
    assert tensors_alive() >= tensors + 30


# ---- what a gradient keeps

Described = tuple[pnp.Cell, pnp.Grid]
FEW_STATES = 2.8
"""Two of a step, which starts at the end of another, and a little for the rest. The Jacobian of S
species and P fields has three blocks at every node, which are 3(S + P) states: nine of them in a plain salt."""


def storages() -> dict[int, int]:
    """Bytes of everything that a tensor refers to, by address."""
    gc.collect()
    # Of plain tensors: those of graphs that other tests have traced have no memory.
    alive = (one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter))
    parts = (one.untyped_storage() for one in alive)
    return {one.data_ptr(): one.nbytes() for one in parts}


def kept_by(value: Callable[[], torch.Tensor]) -> int:
    """Bytes that the graph of a value keeps alive, every storage once, whoever in the graph refers to it."""
    before = storages()
    # What is saved becomes an object that the garbage collector knows.
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.detach, lambda saved: saved):
        result = value()
    after = storages()
    assert result.requires_grad
    return sum(size for place, size in after.items() if place not in before)


def canonical(nodes: int, voltages: float | list[float] = 1.0) -> Described:
    potential = torch.tensor(voltages, dtype=torch.float64).requires_grad_()
    cell = Canonical(1.0, 0.1).cell(left=pnp.Electrode(potential=potential))
    return cell, pnp.Grid.uniform(cell, nodes)


def parametrised(kind: str) -> Described:
    build = Parametrised(kind)
    return build(build.start.requires_grad_())


def copies() -> Described:
    salt = Salt("Stern layers", finite=True)
    return salt.cell(Split.evenly(14), salt.numbers.requires_grad_()), salt.grid(21)


def states_a_step(describe: Callable[[], Described], tolerances: tuple[float, float] = (5e-3, 2e-4)) -> float:
    """How many states of one element every further step adds to what a transient keeps."""
    kept, steps, state = [], [], 0
    for tolerance in tolerances:

        def charge(tolerance: float = tolerance) -> torch.Tensor:
            nonlocal state
            cell, grid = describe()
            control = StepControl(relative=tolerance, absolute=tolerance / 10)
            solution = pnp.solve_transient(cell, grid, times=[0.05], step_control=control)
            steps.append(int(solution.stats.steps.sum()))
            fields = 1 if solution.pressure is None else 2
            *_, species, nodes = solution.concentrations.shape
            state = (species + fields) * nodes * 8
            return pnp.surface_charge(solution).left.sum()

        kept.append(kept_by(charge))
    assert steps[1] >= steps[0] + 3
    return (kept[1] - kept[0]) / (steps[1] - steps[0]) / state


STEPPED = {
    "salt": lambda: canonical(101),
    "batch": lambda: canonical(101, [0.01, 1.0, 5.0]),
    "copies": copies,
    "driven electrode, all media": lambda: parametrised("driven electrode, all media"),
    "periodic, all media": lambda: parametrised("periodic, all media"),
    "stepped potential and current": lambda: parametrised("stepped potential and current"),
}


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_keeps_a_few_states(name):
    with compiled.torch_only():
        assert 1 < states_a_step(STEPPED[name]) < FEW_STATES


@pytest.mark.parametrize("name", ["salt", "batch"])
def test_a_compiled_step_keeps_as_few(name):
    assert 1 < states_a_step(STEPPED[name]) < FEW_STATES


def test_what_a_step_keeps_is_proportional_to_the_nodes():
    few, many = (states_a_step(lambda nodes=nodes: canonical(nodes), (5e-3, 1e-5)) for nodes in (51, 201))
    assert many == pytest.approx(few, rel=0.02)


def test_rejected_steps_keep_nothing():
    """One for two accepted ones, since every third error is declared too large."""
    answers = itertools.cycle([2.0, 0.1, 0.1])
    norms = patch.object(
        StepControl, "error_norm", lambda _, e, c: torch.full_like(c[:, 0, 0], next(answers))
    )
    first = patch("pnp.solvers.integration.FIRST_STEP", 0.1)
    kept, steps = [], []
    for time in (0.01, 0.1):

        def charge(time: float = time) -> torch.Tensor:
            solution = pnp.solve_transient(*canonical(101), times=[time])
            steps.append(int(solution.stats.steps))
            assert int(solution.stats.rejected) >= steps[-1] / 2
            return pnp.surface_charge(solution).left.sum()

        with norms, first, compiled.torch_only():  # kernels have step control of their own
            kept.append(kept_by(charge))
    assert steps[1] >= steps[0] + 3
    assert (kept[1] - kept[0]) / (steps[1] - steps[0]) < FEW_STATES * 3 * 101 * 8


@pytest.mark.parametrize("solve", [pnp.solve_steady, pnp.solve_equilibrium])
def test_what_a_steady_state_keeps_does_not_depend_on_its_iterations(solve):
    kept, iterations = [], []
    for voltage in (0.01, 20.0):

        def charge(voltage: float = voltage) -> torch.Tensor:
            solution = solve(*canonical(201, voltage))
            iterations.append(int(solution.stats.iterations))
            return pnp.surface_charge(solution).left

        kept.append(kept_by(charge))
    assert iterations[1] > iterations[0]
    assert kept[0] == kept[1]


def test_what_many_species_between_baths_keep_does_not_depend_on_the_iterations():
    salt, kept, iterations = Salt("baths", finite=True), [], []
    for tolerance in (1e-2, 1e-11):

        def flux(tolerance: float = tolerance) -> torch.Tensor:
            cell = salt.cell(Split.evenly(14), salt.numbers.requires_grad_())
            settings = Newton(tolerance=tolerance)
            solution = pnp.solve_steady(cell, salt.grid(21), newton_settings=settings)
            iterations.append(int(solution.stats.iterations))
            return pnp.ion_flux(solution).square().sum()

        kept.append(kept_by(flux))
    assert iterations[1] > iterations[0]
    assert kept[0] == kept[1]


def test_the_measure_sees_what_is_kept():
    """Once, however often it is referred to, and also what a function keeps by itself."""
    size = 1000 * 8

    class Hoarder(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.hoard = torch.ones(1000, dtype=torch.float64)
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    def start() -> torch.Tensor:
        return torch.ones(1000, dtype=torch.float64).requires_grad_()

    def chain(length: int) -> torch.Tensor:
        x = start()
        for _ in range(length):
            x = x.sin()
        return x.sum()

    assert kept_by(lambda: chain(12)) - kept_by(lambda: chain(2)) == 10 * size
    assert (
        kept_by(lambda: start().expand(5, -1).exp().sum()) == kept_by(lambda: start().exp().sum()) + 4 * size
    )
    assert kept_by(lambda: Hoarder.apply(start()).sum()) == kept_by(lambda: start().sum()) + size


def test_the_bound_sees_jacobians():
    """Of steps whose graph is built at once, with the factorisations."""

    def traced(step: Traceable, taken: StepResult) -> State:
        return step.traced(taken.middle, taken.end)

    with patch("pnp.solvers.integration.trace_step", traced), compiled.torch_only():
        assert states_a_step(lambda: canonical(101)) > 5 * FEW_STATES


FAULTS = """
import resource, torch, pnp

ions = [pnp.Species(str(z), valence=z, diffusivity=1.0) for z in (1, -1)]
salt = pnp.Electrolyte.dimensionless(ions, permittivity=0.02)
voltage = torch.linspace(0.1, 5.0, 1000, dtype=torch.float64)
ends = pnp.Electrode(potential=voltage), pnp.Electrode(potential=-voltage)
cell = pnp.Cell(salt, length=1.0, concentrations=1.0, left=ends[0], right=ends[1])
counts = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    assert pnp.solve_steady(cell).stats.solver == "compiled"
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(counts[1:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they like")
def test_what_a_solve_frees_is_there_for_the_next():
    """No page that a batch of a thousand cells needs is asked of the system again, unless the user wants that."""
    pytest.importorskip("numba")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = {}
    for way, more in (("with", {}), ("without", {"MALLOC_TRIM_THRESHOLD_": "131072"})):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS], env=clean | more, check=True, capture_output=True
        )
        faults[way] = int(done.stdout)
    assert faults["with"] < 100 < 1000 < faults["without"]
