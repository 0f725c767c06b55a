"""What a GPU does, by numba's simulator: python -m tests.simulated_gpu, with NUMBA_ENABLE_CUDASIM=1.

The simulator runs kernels and the functions they call as Python, thread by thread. Tensors stand in for those of a
GPU, from the public call to the kernel: only their addresses are numpy arrays, and there is no stream.
"""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from unittest.mock import patch

import torch

import pnp
from pnp import compiled
from pnp.compiled import dispatch, gpu
from pnp.solvers import equilibrium, integration

from .sweep import random_cells
from .test_pnp_gradients import Parametrised

COUNT, NODES = 3, 9
THREADS = 2
"""Fewer than cells, as where the workspace is full."""
UNTOUCHED = 7e77


def simulated() -> None:
    """From now on, solve as on a GPU."""
    dispatch._on_gpu = lambda tensor: True
    gpu._memory = lambda tensor: tensor.detach().contiguous().numpy()
    gpu._stream = lambda device: nullcontext(0)
    gpu.room = lambda device: 0  # one tape at a time
    gpu.THREADS, gpu.WORKSPACE = THREADS, 0


def largest_difference(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(((one - two).abs() / (1 + two.abs())).max())


def on_cpu() -> Any:
    """As long as this is open, kernels of the CPU solve."""
    return patch.object(dispatch, "_on_gpu", lambda tensor: False)


def compare(
    name: str, solve: Callable[[], Any], tolerance: float, otherwise: Callable[[], Any] = compiled.torch_only
) -> None:
    """Solve in torch, or otherwise, and as on a GPU; raises where they differ."""
    with otherwise():
        wanted = solve()
    with patch.object(equilibrium, "minimise", None), patch.object(integration, "integrate", None):
        found = solve()  # with nothing that would take over what a kernel leaves
    worst = max(map(largest_difference, found, wanted))
    print(f"{name:40s} {worst:.1e}")
    assert worst < tolerance, name


def steady(ends: str, medium: str) -> tuple[torch.Tensor, ...]:
    """States from a cold and from a warm start."""
    cell = random_cells(ends, medium, COUNT)
    grid = pnp.Grid.refined(cell, NODES)
    cold = pnp.solve_steady(cell, grid)
    warm = pnp.solve_equilibrium(cell, grid, initial=cold)
    for one in (cold, warm):
        assert one.stats.solver == ("compiled" if compiled._enabled else "torch")
    return cold.potential, cold.concentrations, warm.potential, warm.concentrations


def gradient(kind: str) -> tuple[torch.Tensor, ...]:
    """Of a number by all numbers of the cells and by positions of nodes."""
    start = Parametrised(kind).start
    vector = (start * torch.linspace(0.99, 1.01, COUNT, dtype=torch.float64)[:, None]).requires_grad_()
    solution = pnp.solve_steady(*Parametrised(kind)(vector))
    weights = torch.cos(torch.arange(solution.potential.shape[-1], dtype=torch.float64))
    value = (solution.potential * weights).sum() + (solution.concentrations * weights).sum()
    return torch.autograd.grad(value, vector)


def transient(ends: str) -> tuple[torch.Tensor, ...]:
    cell = random_cells(ends, "layers", COUNT)
    grid = pnp.Grid.refined(cell, NODES)
    solution = pnp.solve_transient(cell, grid, times=[0.0, 1e-4])
    assert solution.stats.solver == ("compiled" if compiled._enabled else "torch")
    return solution.potential, solution.concentrations


def transient_gradient(ions: int) -> tuple[torch.Tensor, ...]:
    """Of a number by all that cells with a bath are made of, and by where they start."""
    valences, count = [1.0, -1.0, 2.0][:ions], COUNT
    rows = torch.linspace(0.9, 1.1, count, dtype=torch.float64)
    leaves = [
        *(5 * rows, 0.02 * rows, 0.3 * rows),
        torch.linspace(0.5, 1.5, count * ions, dtype=torch.float64).reshape(count, ions),
        torch.linspace(0.8, 1.2, count * ions * NODES, dtype=torch.float64).reshape(count, ions, NODES),
        torch.tensor(valences, dtype=torch.float64),
        torch.linspace(0, 1, NODES, dtype=torch.float64) ** 1.2,
    ]
    voltage, permittivity, fixed, diffusivities, start, valence, nodes = (
        one.requires_grad_() for one in leaves
    )
    species = [pnp.Species(str(i), valence=valence[i], diffusivity=diffusivities[:, i]) for i in range(ions)]
    bath = pnp.Reservoir(concentrations=[1.0, 1.0, 0.0][:ions], potential=0.0)
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=permittivity),
        length=1.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage, stern_capacitance=0.4),
        right=bath,
        fixed_charge=fixed,
        charged=True,
    )
    control = pnp.StepControl(relative=1e-2, absolute=1e-3)
    solution = pnp.solve_transient(
        cell, pnp.Grid(nodes), times=[0.0, 1e-3, 1e-2], initial=start, step_control=control
    )
    assert solution.stats.solver == "compiled"
    weights = torch.cos(torch.arange(solution.potential.numel(), dtype=torch.float64)).reshape(
        solution.potential.shape
    )
    value = (solution.potential * weights).sum() + (
        solution.concentrations.square() * weights[:, :, None]
    ).sum()
    return torch.autograd.grad(value, leaves)


def with_too_short_tapes(launch: Callable[..., None]) -> Callable[..., None]:
    """Before it records, launch what does on the first two steps of a longer tape, of which the others stay."""

    def launch_twice(name: str, shapes: Any, cells: torch.Tensor, *arguments: Any) -> None:
        *others, tape = arguments
        if name.endswith("recorded") and torch.is_tensor(tape) and tape.numel():
            longer = torch.full_like(tape, UNTOUCHED)
            launch(name, shapes, cells, *others, longer[:2])
            assert bool((longer[:2] != UNTOUCHED).any())
            assert len(longer) > 2
            assert bool((longer[2:] == UNTOUCHED).all())
        launch(name, shapes, cells, *arguments)

    return launch_twice


if __name__ == "__main__":
    simulated()
    # What is not initialised is not a number.
    torch.use_deterministic_algorithms(True)
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", pnp.UnderResolvedWarning)
    for ends in ("two electrodes", "Stern layers", "electrode and bath", "charged walls"):
        compare(f"equilibria, {ends}", lambda ends=ends: steady(ends, "layers"), 1e-9)
    for kind in ("electrodes and ground", "bath and Stern layer with ground"):
        compare(f"gradients, {kind}", lambda kind=kind: gradient(kind), 1e-8)
    for ends in ("two electrodes", "two baths"):
        compare(f"transients, {ends}", lambda ends=ends: transient(ends), 1e-6)
    for ions in (2, 3):
        with patch.object(dispatch, "_launch", with_too_short_tapes(dispatch._launch)):
            name = f"gradients of transients, {ions} ions"
            compare(name, lambda ions=ions: transient_gradient(ions), 1e-9, on_cpu)
