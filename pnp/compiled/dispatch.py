"""From the scaled equations of a batch to kernels on all cores, and back."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..finite_volume.residual import held_nodes
from ..solvers.linear import FEW_SPECIES
from ..solvers.newton import Newton, NewtonResult
from ..solvers.step_size import StepControl
from ..system import CHARGE, POTENTIAL, State, System
from .inputs import Numbers
from .lanes import rows_of
from .many import few_ions, rest_many, rest_many_adjoint
from .resting import rest, rest_adjoint
from .resting import row_count as rest_rows
from .stepping import CELL, march, tape_width
from .stepping import row_count as step_rows
from .stepping_adjoint import Coefficients, march_adjoint
from .stepping_adjoint import row_count as adjoint_rows

RESTING_TOGETHER, MARCHING_TOGETHER = 8, 4
"""Lanes of cells that come to rest, and of transients, whose equations of one node shall stay in registers."""
EXPECTED_STEPS = 256
"""Room on a tape before it has to grow."""
CELLS_PER_THREAD = 64
"""With fewer there is nothing to gain from another thread, but for many species."""


def can_rest(system: System) -> bool:
    """Whether :func:`resting_state` solves this system."""
    return (
        system.volumes.device.type == "cpu"
        and system.crowding is None
        and not system.has_kinetics
        and all(end.control in (POTENTIAL, CHARGE) for _, end in system.ends)
    )


def can_march(system: System) -> bool:
    """Whether :func:`marched` solves this system."""
    return can_rest(system) and system.valences.shape[1] <= FEW_SPECIES


def resting_state(system: System, start: Tensor | None, settings: Newton) -> NewtonResult:
    """The equilibrium of cells that come to rest, from a potential `(B, N)` or from a cold start."""
    batch, nodes = system.volumes.shape
    species = system.valences.shape[1]
    potential = np.empty((batch, nodes)) if start is None else _array(start).copy()
    concentrations, report = np.empty((batch, species, nodes)), np.zeros((batch, 3))
    _side_by_side(
        *_suited((rest, rest_many), nodes, species),
        _by_difficulty(system),
        *_with_few_ions(_numbers(system)),
        *_structure(system),
        start is not None,
        settings.tolerance,
        settings.max_iterations,
        potential,
        concentrations,
        report,
    )
    converged, iterations, change = torch.from_numpy(report).unbind(-1)
    state = State(torch.from_numpy(concentrations), torch.from_numpy(potential).unsqueeze(1))
    return NewtonResult(state, converged > 0, iterations.long(), change)


def marched(
    system: System, start: State, outputs: Tensor, first_steps: Tensor, control: StepControl
) -> tuple[Tensor, Tensor, Tensor]:
    """States at the scaled times `outputs` `(B, T)` of cells whose ends impose what they impose for good.

    Returns concentrations `(B, T, S, N)`, potentials `(B, T, N)` and a report `(B, 5)`: 0 for success, time reached,
    iterations, accepted and rejected steps. Where gradients are wanted, the steps of cells that succeeded are kept.
    """
    wanted = torch.is_grad_enabled() and (system.requires_grad() or start.requires_grad())
    batch, species, nodes = start.concentrations.shape
    baths = np.zeros(nodes, np.bool_)
    for node, end in system.ends:
        baths[node] = end.bath is not None
    closed, held = _structure(system)
    amounts = (start.concentrations * system.volumes[:, None, :]).sum(-1)
    concentrations = np.empty((batch, outputs.shape[1], species, nodes))
    potential, report = np.empty((batch, outputs.shape[1], nodes)), np.empty((batch, 5))
    tapes: list[Tensor] = []

    def solve(cells: Any, *arguments: Any) -> None:
        work, width = (
            np.zeros(step_rows(nodes, species), rows_of(MARCHING_TOGETHER)),
            tape_width(nodes, species),
        )
        if not wanted:
            march(work, cells, np.empty((0, 0)), *arguments)
            return
        for first in range(0, len(cells), MARCHING_TOGETHER):
            group = cells[first : first + MARCHING_TOGETHER]
            tape = march(work, group, np.empty((EXPECTED_STEPS, width)), *arguments)
            tapes.append(torch.from_numpy(tape[report[tape[:, CELL].astype(int), 0] == 0]))

    _side_by_side(
        solve,
        CELLS_PER_THREAD,
        _by_difficulty(system),
        _arrays(_numbers(system)._replace(amounts=amounts)),
        _array(system.diffusivities),
        None if species == 2 else True,
        closed,
        held,
        baths,
        *map(_array, (start.potential, start.concentrations, outputs, first_steps)),
        np.array([control.relative, control.absolute, control.safety, control.shrink, control.grow]),
        control.max_steps,
        potential,
        concentrations,
        report,
    )
    found = torch.from_numpy(concentrations), torch.from_numpy(potential)
    if wanted:
        given = _coefficients(system, start.concentrations)
        found = _Marched.apply(*found, tapes, (held, baths), outputs[:, 0] == 0, *given, start.potential)
    return *found, torch.from_numpy(report)


class _Marched(torch.autograd.Function):
    """Transients as functions of their coefficients and of the potential at the start."""

    @staticmethod
    def forward(
        ctx: Any,
        concentrations: Tensor,
        potential: Tensor,
        tapes: list[Tensor],
        fixed: Any,
        at_once: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.fixed, ctx.count = fixed, len(tapes)
        ctx.save_for_backward(at_once, *tapes, *given)
        return concentrations.view_as(concentrations), potential.view_as(potential)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_concentrations: Tensor, by_potential: Tensor) -> tuple[Any, ...]:
        at_once, *saved = ctx.saved_tensors
        tapes, given = [_array(tape) for tape in saved[: ctx.count]], saved[ctx.count : -1]
        found = [torch.zeros_like(one, memory_format=torch.contiguous_format) for one in given]
        species, nodes = by_concentrations.shape[2:]

        def solve(groups: Any, *arguments: Any) -> None:
            work = np.zeros(adjoint_rows(nodes, species), rows_of(MARCHING_TOGETHER))
            for index in groups:
                cells = np.unique(tapes[index][:, CELL]).astype(int)
                march_adjoint(work, cells, tapes[index], *arguments)

        _side_by_side(
            solve,
            CELLS_PER_THREAD // MARCHING_TOGETHER,
            np.arange(ctx.count),
            Coefficients(*map(_array, given)),
            *ctx.fixed,
            *map(_array, (by_potential, by_concentrations)),
            Coefficients(*map(_array, found)),
        )
        # What is asked for at time zero is the start itself.
        found[-1] += by_concentrations[:, 0] * at_once[:, None, None]
        return None, None, None, None, None, *found, by_potential[:, 0] * at_once[:, None]


def resting_gradient(system: System, result: NewtonResult) -> State:
    """The state of `result` with implicit gradients where it converged."""
    cells = _array(torch.nonzero(result.converged).squeeze(-1))
    state = result.state
    potential, concentrations = _Resting.apply(
        state.potential, state.concentrations, _structure(system), cells, *_numbers(system)
    )
    return State(concentrations, potential.unsqueeze(1))


class _Resting(torch.autograd.Function):
    """Equilibria as functions of the numbers of their cells."""

    @staticmethod
    def forward(
        ctx: Any, potential: Tensor, concentrations: Tensor, structure: Any, cells: Any, *numbers: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.structure, ctx.cells = structure, cells
        ctx.save_for_backward(potential, concentrations, *numbers)
        return potential.view_as(potential), concentrations.view_as(concentrations)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_potential: Tensor, by_concentrations: Tensor) -> tuple[Any, ...]:
        potential, concentrations, *saved = ctx.saved_tensors
        numbers = Numbers(*saved)
        zeros = (torch.zeros_like(one, memory_format=torch.contiguous_format) for one in numbers)
        found = Numbers(*zeros)
        _side_by_side(
            *_suited((rest_adjoint, rest_many_adjoint), potential.shape[-1], concentrations.shape[1]),
            ctx.cells,
            *_with_few_ions(numbers),
            *ctx.structure,
            *map(_array, (potential, concentrations, by_potential, by_concentrations)),
            _arrays(found),
        )
        return None, None, None, None, *found


def _structure(system: System) -> tuple[bool, Any]:
    """Whether the cells are closed, and at which nodes the potential is held."""
    held = np.zeros(system.volumes.shape[1], np.bool_)
    held[held_nodes(system)] = True
    return all(end.bath is None for _, end in system.ends), held


def _numbers(system: System) -> Numbers:
    """Everything that an equilibrium depends on."""
    bath = [end.bath for _, end in system.ends if end.bath is not None]
    return Numbers(
        system.permittivity,
        system.spacings,
        system.volumes,
        system.fixed_charge,
        system.valences,
        bath[0] if bath else system.amounts,
        _ends(system),
    )


def _ends(system: System) -> Tensor:
    """Potential, spring and charge of either end, and the potential of the bath, `(B, 7)`."""
    zero = torch.zeros_like(system.left.level)
    columns, level = [], zero
    for _, end in system.ends:
        stern = end.stern_capacitance if end.stern_capacitance is not None else zero
        columns += [zero, zero, end.level] if end.control == CHARGE else [end.level, stern, zero]
        level = end.level if end.bath is not None else level
    return torch.stack([*columns, level], dim=-1)


def _coefficients(system: System, start: Tensor) -> Coefficients:
    """What transients from the concentrations `start` are made of, differentiably."""
    level, spring, charge = _ends(system)[:, :6].unflatten(1, (2, 3)).unbind(-1)
    return Coefficients(
        system.permittivity / system.spacings,
        system.diffusivities / system.spacings[:, None, :],
        system.volumes,
        system.volumes * system.fixed_charge,
        system.valences,
        torch.stack([spring, spring * level + charge, level], dim=-1),
        start,
    )


def _by_difficulty(system: System) -> Any:
    """An order in which neighbours take about as many iterations."""
    return _array((system.left.level - system.right.level).abs().argsort(descending=True))


def _arrays(numbers: Numbers) -> Numbers:
    return Numbers(*map(_array, numbers))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _suited(kernels: tuple[Any, Any], nodes: int, species: int) -> tuple[Any, int]:
    """The kernel for few or for many species, and how many cells are worth a thread."""
    if species > FEW_SPECIES:
        return kernels[1], 1
    return _in_rows(kernels[0], rest_rows(nodes, species), RESTING_TOGETHER), CELLS_PER_THREAD


def _in_rows(kernel: Any, rows: int, lanes: int) -> Any:
    """`kernel` with rows of its own at every call."""
    return lambda *arguments: kernel(np.zeros(rows, rows_of(lanes)), *arguments)


def _with_few_ions(numbers: Numbers) -> list[Any]:
    """As arrays; of many species the few that stand for them go first."""
    arrays = _arrays(numbers)
    many = arrays.valences.shape[1] > FEW_SPECIES
    return [*few_ions(arrays.valences, arrays.amounts), arrays] if many else [arrays]


def _side_by_side(kernel: Any, size: int, cells: Any, *arguments: Any) -> None:
    """Run `kernel` on blocks of `size` cells, as many threads as torch may use."""
    threads = max(1, min(torch.get_num_threads(), len(cells) // size))
    if threads == 1:
        kernel(cells, *arguments)
        return
    # In turn, so that every thread gets easy and hard cells.
    blocks = [cells[first : first + size] for first in range(0, len(cells), size)]
    parts = [np.concatenate(blocks[thread::threads]) for thread in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(kernel, part, *arguments) for part in parts]:
            done.result()
