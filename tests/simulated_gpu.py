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


def simulated() -> None:
    """From now on, solve as on a GPU."""
    dispatch._on_gpu = lambda tensor: True
    gpu._memory = lambda tensor: tensor.detach().contiguous().numpy()
    gpu._stream = lambda device: nullcontext(0)
    gpu.THREADS, gpu.WORKSPACE = THREADS, 0


def largest_difference(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(((one - two).abs() / (1 + two.abs())).max())


def compare(name: str, solve: Callable[[], Any], tolerance: float) -> None:
    """Solve in torch and as on a GPU; raises where they differ."""
    with compiled.torch_only():
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
