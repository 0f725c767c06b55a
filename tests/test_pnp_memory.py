"""Solving again and again leaves nothing behind."""

import gc
import os
from pathlib import Path

import pytest
import torch

import pnp

from .problems import Canonical

STATM = Path("/proc/self/statm")


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
