"""Every kind of cell: what is solved keeps its guarantees, and what is not says so."""

from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch

import pnp
from pnp import SolveError, Status, StepControl

from .sweep import ENDS, MEDIA, kinds, random_cells

# These must hold on any grid, so coarse ones serve.
pytestmark = pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")

STEADY_CELLS, STEADY_NODES = 12, 41
MOVING_CELLS, MOVING_NODES = 4, 21
TIMES = [1e-3, 0.1]
LOOSE = StepControl(relative=0.05, absolute=0.005, max_steps=100)


@cache
def steady(ends: str, medium: str) -> pnp.Solution:
    cell = random_cells(ends, medium, STEADY_CELLS)
    return pnp.solve_steady(cell, pnp.Grid.refined(cell, STEADY_NODES), throw=False)


@cache
def moving(ends: str, medium: str) -> pnp.Solution:
    cell = random_cells(ends, medium, MOVING_CELLS)
    grid = pnp.Grid.refined(cell, MOVING_NODES)
    return pnp.solve_transient(cell, grid, times=TIMES, throw=False, step_control=LOOSE)


def observed(solution: pnp.Solution) -> Iterator[tuple[str, torch.Tensor]]:
    """Everything that a user can read off a solution."""
    for function in (
        pnp.amounts,
        pnp.charge_density,
        pnp.current_density,
        pnp.debye_length,
        pnp.diffuse_charge,
        pnp.electric_field,
        pnp.electrode_potential,
        pnp.free_energy,
        pnp.ion_flux,
        pnp.reaction_rate,
        pnp.surface_charge,
        pnp.total_charge,
    ):
        values = function(solution)
        parts = values if isinstance(values, tuple) else (values,)
        for part in parts:
            yield function.__name__, part
    for name, value in vars(solution.check()).items():
        if value is not None:
            yield f"check, {name}", value


def assert_numbers(solution: pnp.Solution) -> None:
    """Finite states, of failed elements too, and finite observables of those that are solved."""
    assert torch.isfinite(solution.potential).all()
    assert torch.isfinite(solution.concentrations).all()
    assert solution.pressure is None or torch.isfinite(solution.pressure).all()
    assert float(solution.concentrations.min()) > 0
    batch = solution.status.shape
    for name, value in observed(solution):
        assert value.shape[: len(batch)] == batch, name
        assert torch.isfinite(value[solution.solved]).all(), name


def assert_guarantees(solution: pnp.Solution) -> None:
    check, solved = solution.check(), solution.solved
    assert float(check.smallest_concentration[solved].min()) > 0
    assert float(check.amount_error[solved].max()) < 1e-10
    assert float(check.gauss_error[solved].max()) < 1e-10
    assert float(check.residual[solved].max()) < 1e-7
    assert float(check.current_variation[solved].max()) < 1e-7


def assert_says_why(solution: pnp.Solution, again: Callable[[], pnp.Solution]) -> None:
    """What failed, element by element, in the error that the same solve raises when it may."""
    failed = torch.nonzero(~solution.solved).squeeze(-1).tolist()
    if not failed:
        return
    with pytest.raises(SolveError) as caught:
        again()
    assert caught.value.status.tolist() == solution.status.tolist()
    text = str(caught.value)
    assert text.startswith(f"{len(failed)} of {solution.status.numel()} cells were not solved.")
    for index in failed[:5]:
        assert f"batch ({index},): {Status(int(solution.status[index])).reason}" in text
    assert "Try: " in text


@pytest.mark.parametrize(("ends", "medium"), list(kinds()))
def test_steady_states(ends, medium):
    solution = steady(ends, medium)
    assert_numbers(solution)
    assert_guarantees(solution)
    assert_says_why(solution, lambda: pnp.solve_steady(solution.cell, solution.grid))


@pytest.mark.parametrize(("ends", "medium"), list(kinds()))
def test_transients(ends, medium):
    solution = moving(ends, medium)
    assert_numbers(solution)
    assert_guarantees(solution)
    assert bool((solution.stats.reached[solution.solved] == TIMES[-1]).all())


def test_nearly_all_are_solved():
    for solve in (steady, moving):
        solved = torch.cat([solve(*kind).solved for kind in kinds()])
        assert float(solved.double().mean()) > 0.95


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("ends", ENDS)
def test_transients_that_run_out_of_steps_say_so(ends, medium):
    cell = random_cells(ends, medium, 3)
    grid = pnp.Grid.refined(cell, MOVING_NODES)

    def solve(throw: bool) -> pnp.Solution:
        few = StepControl(max_steps=4)
        return pnp.solve_transient(cell, grid, times=[1e-9, 0.1], throw=throw, step_control=few)

    solution = solve(throw=False)
    assert solution.status.tolist() == [Status.MAX_STEPS] * 3
    assert bool((solution.stats.reached < 0.1).all())
    assert_numbers(solution)
    assert_says_why(solution, lambda: solve(throw=True))


def test_cells_without_a_steady_state_say_so():
    """Water that does not recombine, between water that does."""
    species = [pnp.Species("H+", valence=1, diffusivity=9.3), pnp.Species("OH-", valence=-1, diffusivity=5.3)]
    water = pnp.Reaction({}, {"H+": 1, "OH-": 1}, forward=1.0, backward=[1.0, 0.0, 2.0, 0.0])
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=0.02, reactions=[water]),
        length=1.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=1.0),
        right=pnp.Electrode(potential=-1.0),
    )
    grid = pnp.Grid.refined(cell, STEADY_NODES)
    solution = pnp.solve_steady(cell, grid, throw=False)
    assert solution.solved.tolist() == [True, False, True, False]
    assert_numbers(solution)
    assert_guarantees(solution)
    assert_says_why(solution, lambda: pnp.solve_steady(cell, grid))
