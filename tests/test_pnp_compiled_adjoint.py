"""Gradients of compiled transients: those of torch on the same steps, of differences, of one cell and of many."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

import pnp
from pnp import StepControl, compiled
from pnp.scaling import scale
from pnp.solvers import integration
from pnp.solvers.integration import _first_step
from pnp.solvers.rosenbrock import RosenbrockStep
from pnp.solvers.start import poisson_potential, with_baths
from pnp.solvers.time_step import StepResult, trace_step
from pnp.system import State, System

pytest.importorskip("numba")

from pnp.compiled import dispatch, step_rows, stepping

from .problems import Canonical, electrolyte
from .sweep import random_cells
from .test_pnp_compiled import ENDS
from .test_pnp_gradients import GIVEN_TIMES, KINDS, Parametrised, gradient_error, measured

pytestmark = pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")

MARCHING = [
    name
    for name, kind in KINDS.items()
    if {kind.left, kind.right} <= {"electrode", "stern", "bath", "wall"} and set(kind.media) <= {"layers"}
]
TIMES = [0.0, 0.001, 0.01, 0.1]


def weights(like: Tensor) -> Tensor:
    return torch.cos(1.7 * torch.arange(like.numel(), dtype=torch.float64)).reshape(like.shape)


@pytest.mark.parametrize("kind", MARCHING)
def test_gradients_are_those_of_torch(kind):
    """Where both take the same steps, to a tolerance at which what Newton's method leaves of a step is less."""
    found, steps, control = [], [], StepControl(relative=3e-6, absolute=3e-8)
    for path in (compiled.torch_only, nullcontext):
        vector = Parametrised(kind).start.requires_grad_()
        with path():
            solution = pnp.solve_transient(*Parametrised(kind)(vector), times=TIMES, step_control=control)
        numbers = measured(solution)
        found.append(torch.autograd.grad((numbers * weights(numbers)).sum(), vector)[0])
        steps.append(int(solution.stats.steps))
    assert solution.stats.solver == "compiled"
    assert steps[0] == steps[1]
    assert float((found[1] - found[0]).abs().max()) < 1e-9 * float(found[0].abs().max())


@pytest.mark.parametrize("valences", [(2.0, -2.0), (2.0, -2.0, 1.0, -1.0)])
def test_gradients_of_opposite_ions_are_those_of_torch(valences):
    """Kernels take what the fluxes of one have for those of the other; two ions have kernels of their own."""
    found, steps, control = [], [], StepControl(relative=3e-6, absolute=3e-8)
    for path in (compiled.torch_only, nullcontext):
        vector = torch.tensor([0.5, 3.0, 0.005, 0.02, 1.3], dtype=torch.float64, requires_grad=True)
        diffusivities = torch.cat([torch.ones(len(valences) - 1, dtype=torch.float64), vector[4:]])
        cell = pnp.Cell(
            electrolyte(vector[2:4], valences, diffusivities),
            length=2.0,
            concentrations=1.0,
            left=pnp.Electrode(potential=vector[:2]),
            right=pnp.Electrode(potential=-vector[:2]),
        )
        with path():
            solution = pnp.solve_transient(cell, times=[0.01, 0.1], step_control=control)
        numbers = measured(solution)
        found.append(torch.autograd.grad((numbers * weights(numbers)).sum(), vector)[0])
        steps.append(solution.stats.steps)
    assert solution.stats.solver == "compiled"
    assert torch.equal(*steps)
    assert float((found[1] / found[0] - 1).abs().max()) < 1e-10


# ---- the same steps, taken again in torch


class Described:
    """A batch of random cells as leaves of a graph: what their equations are made of, and where they start."""

    def __init__(self, ends: str, medium: str, count: int) -> None:
        cell = random_cells(ends, medium, count)
        system, _ = scale(cell, pnp.Grid.refined(cell, 21))
        self.system: System = system.map(self._leaf)
        generator = torch.Generator().manual_seed(2)
        noise = torch.rand(*system.valences.shape, 21, dtype=torch.float64, generator=generator)
        self.concentrations = self._leaf(system.filling[:, :, None] * (1 + 0.2 * noise))
        potential = poisson_potential(system, with_baths(system, self.concentrations))
        self.potential = self._leaf(potential)
        last = 1e-2 if ends == "electrodes and ground" else 1e-3
        self.outputs = torch.tensor([0.0, 1e-5, last], dtype=torch.float64).expand(count, -1)
        self.control = StepControl(relative=1e-3, absolute=1e-5)

    @staticmethod
    def _leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(bool(tensor.numel()))

    @property
    def leaves(self) -> list[Tensor]:
        tensors = [*self.system.tensors(), self.concentrations, self.potential]
        return [one for one in tensors if one.requires_grad]

    @property
    def start(self) -> State:
        c = with_baths(self.system, self.concentrations)
        return State(c, self.potential.unsqueeze(1))

    def marched(self) -> tuple[Tensor, Tensor, Tensor, Any]:
        """Concentrations, potentials, report and the tapes."""
        with patch.object(dispatch._Marched, "apply", side_effect=dispatch._Marched.apply) as applied:
            found = dispatch.marched(
                self.system, self.start, self.outputs, _first_step(self.system).detach(), self.control
            )
        return *found, applied.call_args.args[2]

    def traced(self, tapes: Any, taken: Tensor) -> tuple[Tensor, Tensor]:
        """Concentrations and potentials of all outputs, by the readable steps through the states on the tapes."""
        system, start = self.system, self.start
        amounts = system.combined((start.concentrations * system.volumes[:, None]).sum(-1, keepdim=True))
        species, nodes = start.concentrations.shape[1:]
        concentrations, potentials = [], []
        for index in range(len(start.concentrations)):
            only = torch.tensor([index])
            one, state = system.select(only), start.select(only)
            outputs = [state]
            ((tape, lane),) = [(tape, list(cells).index(index)) for cells, tape in tapes if index in cells]
            for row, after in itertools.pairwise(tape[: int(taken[index]) + 1, :, lane]):
                recorded = after[step_rows.STATES :].reshape(nodes, species + 1).mT
                end = State(recorded[None, :species], recorded[None, species:])
                length = row[[step_rows.DURATION]] / stepping.SHARE
                step = RosenbrockStep(one, state, length, amounts[only][..., 0])
                nothing = torch.zeros(1)
                state = trace_step(step, StepResult(end, nothing, nothing, nothing))
                if row[step_rows.OUTPUT] >= 0:
                    outputs.append(state)
            concentrations.append(torch.stack([state.concentrations for state in outputs], dim=1))
            potentials.append(torch.stack([state.potential for state in outputs], dim=1))
        return torch.cat(concentrations), torch.cat(potentials)


@pytest.mark.parametrize("ends", [*ENDS, "two baths"])
def test_gradients_are_those_of_the_readable_steps(ends):
    """Through the very same states of hard cells, with respect to everything."""
    described = Described(ends, "layers", 3)
    concentrations, potential, report, tapes = described.marched()
    assert int(report[:, 0].max()) == 0
    gradients = []
    for c, phi in ((concentrations, potential), described.traced(tapes, report[:, 2])):
        assert torch.equal(c, concentrations)
        value = (c * weights(c)).sum() + (phi * weights(phi)).sum()
        leaves = described.leaves
        gradients.append(torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True))
    largest = max(float(wanted.abs().max()) for wanted in gradients[1])
    for found, wanted in zip(*gradients, strict=True):
        # Some cancel: the sensitivity of the whole counts too.
        scale = float(wanted.abs().max()) + 1e-6 * largest
        assert float((found - wanted).abs().max()) < 1e-8 * scale


@pytest.mark.parametrize("ends", ["two electrodes", "Stern layers"])
def test_nothing_changes_where_less_is_wanted(ends):
    """Derivatives by volumes, fixed charge and valences are not summed if nobody wants them."""
    gradients = []
    for constant in ((), ("volumes", "fixed_charge", "valences")):
        described = Described(ends, "layers", 3)
        for name in constant:
            getattr(described.system, name).requires_grad_(False)
        concentrations, potential, *_ = described.marched()
        value = (concentrations * weights(concentrations)).sum() + (potential * weights(potential)).sum()
        leaves = [getattr(described.system, name) for name in ("permittivity", "diffusivities", "spacings")]
        gradients.append(torch.autograd.grad(value, [*leaves, described.potential]))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0.0)


@contextmanager
def one_step_per_time() -> Iterator[dict[str, Any]]:
    """Settings with which there is one step from each time to the next, whatever the parameters."""
    with patch("pnp.solvers.integration.FIRST_STEP", 1e30):
        yield {
            "times": GIVEN_TIMES,
            "step_control": StepControl(relative=0.999, absolute=0.999, safety=0.999),
        }


@pytest.mark.parametrize("kind", MARCHING)
def test_gradients_are_exact_for_given_steps(kind):
    """Against differences of the compiled values, which are right to what Newton's method leaves."""

    def solve(cell: pnp.Cell, grid: pnp.Grid) -> pnp.Solution:
        solution = pnp.solve_transient(cell, grid, **settings)
        assert solution.stats.solver == "compiled"
        assert int(solution.stats.steps.max()) == len(GIVEN_TIMES)
        return solution

    with one_step_per_time() as settings:
        error, where = gradient_error(solve, kind, step=3e-5)
    assert error < 1e-6, where


def test_gradcheck():
    """With every node an output, and the start an input."""
    cell = Canonical(0.5, 0.4).cell()
    grid = pnp.Grid.uniform(cell, 7)
    start = 1 + 0.3 * torch.rand(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    voltage = torch.tensor(0.5, dtype=torch.float64)

    def outputs(start: Tensor, voltage: Tensor) -> tuple[Tensor, Tensor]:
        cell = Canonical(0.5, 0.4).cell(left=pnp.Electrode(potential=voltage))
        solution = pnp.solve_transient(cell, grid, initial=start, **settings)
        assert solution.stats.solver == "compiled"
        return solution.potential, solution.concentrations

    with one_step_per_time() as settings:
        inputs = start.requires_grad_(), voltage.requires_grad_()
        assert torch.autograd.gradcheck(outputs, inputs, eps=1e-5, atol=1e-6)


def test_gradients_are_those_of_torch_after_long_steps():
    """Amounts are not imposed by kernels; to ten thousand diffusion times that costs no digit of a gradient."""
    found = []
    for path in (compiled.torch_only, nullcontext):
        vector = torch.tensor([4.0, 0.02, 1.0, 0.7, 1.3], dtype=torch.float64, requires_grad=True)
        voltage, permittivity, length, salt, stern = vector
        cell = pnp.Cell(
            electrolyte(permittivity, (1.0, -2.0), (1.0, 0.4)),
            length=length,
            concentrations=torch.stack([2 * salt, salt]),
            left=pnp.Electrode(potential=voltage, stern_capacitance=stern),
            right=pnp.Electrode(potential=-1.0),
        )
        with path():
            solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 21), times=[1e4])
        value = pnp.surface_charge(solution).left.sum() + solution.concentrations[..., 5].sum()
        found.append(torch.autograd.grad(value, vector)[0])
        assert int(solution.stats.steps) < 100  # so that the last ones are thousands of diffusion times
    assert solution.stats.solver == "compiled"
    assert float((found[1] / found[0] - 1).abs().max()) < 1e-10


# ---- batches


def solved(only: list[int] | None, times: list[float], **changes: Any) -> tuple[pnp.Solution, Tensor]:
    """Some of a batch of cells, and what is added to the potentials of their left ends."""
    count = 2 * dispatch.CELLS_PER_THREAD + 5
    cell = random_cells("two electrodes", "point ions", count, only=only)
    shift = torch.zeros(len(only or range(count)), dtype=torch.float64, requires_grad=True)
    left = replace(cell.left, potential=cell.left.potential + shift)
    cell = replace(cell, left=left)
    return pnp.solve_transient(cell, pnp.Grid.refined(cell, 21), times=times, **changes), shift


def test_gradients_of_a_batch_are_those_of_its_cells():
    """To the last bit, whatever the threads; and so are the states with and without gradients."""
    found = []
    for threads in (1, 3):
        try:
            torch.set_num_threads(threads)
            batch, shift = solved(None, [1e-4, 1e-3])
            (gradient,) = torch.autograd.grad(batch.potential.square().sum(), shift)
        finally:
            torch.set_num_threads(1)
        found.append(gradient)
    assert torch.equal(*found)
    with torch.no_grad():
        plain, _ = solved(None, [1e-4, 1e-3])
    assert torch.equal(plain.potential, batch.potential)
    assert torch.equal(plain.concentrations, batch.concentrations)
    for index in (0, 77, len(shift) - 1):
        one, shift = solved([index], [1e-4, 1e-3])
        (alone,) = torch.autograd.grad(one.potential.square().sum(), shift)
        assert torch.equal(alone[0], gradient[index])


def test_what_a_kernel_leaves_has_the_gradients_of_torch(monkeypatch):
    march = dispatch.marched

    def stuck(*arguments: Any) -> tuple[Tensor, ...]:
        concentrations, potential, report = march(*arguments)
        spoiled = potential.index_fill(0, torch.tensor([1]), torch.nan)
        report[1, 0] = stepping.STUCK
        return concentrations, spoiled, report

    def gradient() -> Tensor:
        solution, shift = solved([3, 4, 5], [1e-5, 1e-4])
        return torch.autograd.grad(solution.concentrations.square().sum(), shift)[0]

    plain = gradient()
    monkeypatch.setattr(dispatch, "marched", stuck)
    found = gradient()
    assert torch.equal(found[::2], plain[::2])
    # Begun anew, by the other method.
    monkeypatch.setattr(integration, "suits", lambda system: False)
    assert torch.allclose(found[1], gradient()[1], rtol=1e-12)
    assert not torch.allclose(found[1], plain[1], rtol=1e-6)


def test_second_derivatives_are_refused():
    solution, shift = solved([0], [1e-4])
    (gradient,) = torch.autograd.grad(solution.potential.square().sum(), shift, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_tape_grows(monkeypatch):
    solution, shift = solved([0, 1], [1e-4, 1e-3])
    (wanted,) = torch.autograd.grad(solution.potential.square().sum(), shift)
    monkeypatch.setattr(dispatch, "EXPECTED_STEPS", 1)
    solution, shift = solved([0, 1], [1e-4, 1e-3])
    assert int(solution.stats.steps.max()) > 8
    assert torch.equal(torch.autograd.grad(solution.potential.square().sum(), shift)[0], wanted)
