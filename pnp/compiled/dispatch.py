"""From the scaled equations of a batch to kernels on all cores or on a GPU, and back."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
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
from .inputs import Numbers, each_tensor
from .lanes import new_rows, rows_of
from .many import few_ions, rest_many, rest_many_adjoint
from .memory import Blocks, keep_freed_memory
from .resting import rest, rest_adjoint
from .resting import row_count as rest_rows
from .step_rows import back_row_count, tape_width
from .step_rows import row_count as step_rows
from .stepping import Steps, march
from .stepping_adjoint import Coefficients, march_adjoint

RESTING_TOGETHER, MARCHING_TOGETHER = 8, 8
"""Lanes of cells that come to rest, and of transients."""
EXPECTED_STEPS = 128
"""Of a cell: room on a tape before it has to grow."""
TAPES = Blocks()
"""Memory for tapes."""
CELLS_PER_THREAD = 64
"""With fewer there is nothing to gain from another thread, but for many species."""


def can_rest(system: System) -> bool:
    """Whether :func:`resting_state` solves this system."""
    return (
        _has_kernels(system)
        and system.crowding is None
        and not system.has_kinetics
        and all(end.control in (POTENTIAL, CHARGE) for _, end in system.ends)
    )


def _has_kernels(system: System) -> bool:
    """Whether there are kernels for so many species where the tensors are."""
    device = system.volumes.device.type
    on_gpu = device == "cuda" and torch.version.cuda is not None and find_spec("numba_cuda") is not None
    return device == "cpu" or (on_gpu and system.valences.shape[1] <= FEW_SPECIES)


def can_march(system: System) -> bool:
    """Whether :func:`marched` solves this system."""
    return system.valences.shape[1] <= FEW_SPECIES and can_rest(system)


def resting_state(system: System, start: Tensor | None, settings: Newton) -> NewtonResult:
    """The equilibrium of cells that come to rest, from a potential `(B, N)` or from a cold start."""
    keep_freed_memory()
    batch, nodes = system.volumes.shape
    species = system.valences.shape[1]
    new = system.volumes.new_empty
    potential = new(batch, nodes) if start is None else start.detach().clone().contiguous()
    results = potential, new(batch, species, nodes), new(batch, 3)
    options = start is not None, settings.tolerance, settings.max_iterations
    order, structure = _by_difficulty(system), _structure(system)
    if _on_gpu(potential):
        _launch(
            "rest", ((rest_rows(nodes, species),),), order, _numbers(system), *structure, *options, *results
        )
    else:
        _side_by_side(
            *_suited((rest, rest_many), nodes, species),
            order,
            *_with_few_ions(_numbers(system)),
            *structure,
            *options,
            *results,
        )
    potential, concentrations, report = results
    converged, iterations, change = report.unbind(-1)
    state = State(concentrations, potential.unsqueeze(1))
    return NewtonResult(state, converged > 0, iterations.long(), change)


def marched(
    system: System, start: State, outputs: Tensor, first_steps: Tensor, control: StepControl
) -> tuple[Tensor, Tensor, Tensor]:
    """States at the scaled times `outputs` `(B, T)` of cells whose ends impose what they impose for good.

    Returns concentrations `(B, T, S, N)`, potentials `(B, T, N)` and a report `(B, 4)`: 0 for success, time reached,
    accepted and rejected steps. Where gradients are wanted, steps are kept; on a GPU, whose memory would not hold those
    of as many cells as it solves, they are taken once more instead.
    """
    keep_freed_memory()
    wanted = torch.is_grad_enabled() and (system.requires_grad() or start.requires_grad())
    batch, species, nodes = start.concentrations.shape
    closed, held = _structure(system)
    baths = torch.zeros_like(held)
    for node, end in system.ends:
        baths[node] = end.bath is not None
    amounts = (start.concentrations * system.volumes[:, None, :]).sum(-1)
    order = _by_difficulty(system)
    begin = start.potential, start.concentrations, outputs, first_steps
    limits = control.relative, control.absolute, control.safety, control.shrink, control.grow
    new, times = system.volumes.new_empty, outputs.shape[1]
    results = new(batch, times, nodes), new(batch, times, species, nodes), new(batch, 4)
    rows, structure = step_rows(nodes, species), (closed, held, baths)
    numbers, speeds = _numbers(system)._replace(amounts=amounts), system.diffusivities
    general = None if species == 2 else True
    potential, concentrations, report = results

    def with_gradients(function: Any, *kept: Any) -> tuple[Tensor, Tensor, Tensor]:
        taken, at_once = report[:, 2] * (report[:, 0] == 0), outputs[:, 0] == 0
        fixed = (general, held, baths), taken, at_once
        found = function.apply(concentrations, potential, *kept, *fixed, *_coefficients(system, start))
        return *found, report

    if _on_gpu(outputs):

        def on_gpu(cells: Tensor, report: Tensor, tape: Tensor) -> None:
            name = ("march_salt" if general is None else "march") + ("_recorded" if wanted else "")
            arguments = numbers, speeds, structure, begin, tuple(map(float, limits)), control.max_steps
            _launch(name, ((rows,),), cells, *arguments, (potential, concentrations, report), tape)

        on_gpu(order, report, new(0, 0, batch))
        if wanted:
            return with_gradients(_MarchedOnGpu, on_gpu, order, report.clone())
        return concentrations, potential, report
    tapes: list[tuple[Any, Tensor]] = []

    def solve(cells: Any, *arguments: Any) -> None:
        count = MARCHING_TOGETHER
        time, next_, taken = np.empty((3, count))
        steps = Steps(time, next_, taken, np.empty(count, bool), np.empty(count, int))
        own = new_rows(rows, lanes=count), np.empty(count, int), steps
        if not wanted:
            march(*own, new_rows(0, 0, lanes=count), True, cells, *arguments)
            return
        for first in range(0, len(cells), count):
            together = cells[first : first + count]
            room = new_rows(EXPECTED_STEPS, tape_width(nodes, species), lanes=count, lend=TAPES.lend)
            tape = march(*own, room, True, together, *arguments)["lanes"]
            counted = arguments[-1][2]  # the report in numpy, which looks up a few numbers sooner than torch
            longest = 1 + int(counted[together, 2].max())
            tapes.append((together, torch.from_numpy(tape[:longest, :, : len(together)])))

    arguments = numbers, speeds, general, structure, begin, np.array(limits), control.max_steps, results
    _side_by_side(solve, CELLS_PER_THREAD, order, *arguments)
    return with_gradients(_Marched, tapes) if wanted else (concentrations, potential, report)


class _Marched(torch.autograd.Function):
    """Transients as functions of their coefficients."""

    @staticmethod
    def forward(
        ctx: Any,
        concentrations: Tensor,
        potential: Tensor,
        tapes: list[tuple[Any, Tensor]],
        fixed: Any,
        taken: Tensor,
        at_once: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`tapes` are cells and what was recorded of them, a lane each, `taken` `(B,)` how many steps."""
        ctx.set_materialize_grads(False)
        ctx.fixed, ctx.groups = fixed, [cells for cells, _ in tapes]
        # Lanes without a cell are not kept.
        kept = (tape.clone() if tape.shape[-1] < MARCHING_TOGETHER else tape for _, tape in tapes)
        ctx.save_for_backward(taken, at_once, *kept, *given)
        return concentrations.view_as(concentrations), potential.view_as(potential)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_concentrations: Tensor | None, by_potential: Tensor | None) -> tuple[Any, ...]:
        taken, at_once, *saved = ctx.saved_tensors
        count = len(ctx.groups)
        tapes, given = saved[:count], saved[count:]
        species, nodes = given[-2].shape[1:]

        def solve(groups: Any, *arguments: Any) -> None:
            both = step_rows(nodes, species), back_row_count(nodes, species)
            work = [new_rows(rows, lanes=MARCHING_TOGETHER) for rows in both]
            for index in groups:
                march_adjoint(*work, ctx.groups[index], _tape_from(tapes[index]), *arguments)

        def solve_all(*arguments: Any) -> None:
            size = CELLS_PER_THREAD // MARCHING_TOGETHER
            _side_by_side(solve, size, np.arange(count), taken, Coefficients(*given), *ctx.fixed, *arguments)

        by = by_concentrations, by_potential
        found = _by_coefficients(given, Coefficients(*ctx.needs_input_grad[6:]), *by, at_once, solve_all)
        return None, None, None, None, None, None, *found


class _MarchedOnGpu(torch.autograd.Function):
    """The same for cells whose steps are taken `again` to be recorded, as many at a time as there is memory for."""

    @staticmethod
    def forward(
        ctx: Any,
        concentrations: Tensor,
        potential: Tensor,
        again: Callable[[Tensor, Tensor, Tensor], None],
        order: Tensor,
        report: Tensor,
        fixed: Any,
        taken: Tensor,
        at_once: Tensor,
        *given: Tensor,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.again, ctx.fixed = again, fixed
        ctx.save_for_backward(order, report, taken, at_once, *given)
        return concentrations.view_as(concentrations), potential.view_as(potential)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_concentrations: Tensor | None, by_potential: Tensor | None) -> tuple[Any, ...]:
        order, report, taken, at_once, *given = ctx.saved_tensors
        general, *structure = ctx.fixed
        species, nodes = given[-2].shape[1:]
        name = "march_adjoint_salt" if general is None else "march_adjoint"
        shapes = (step_rows(nodes, species),), (back_row_count(nodes, species),)
        steps, width = 1 + int(taken.max()), tape_width(nodes, species)
        together = max(1, _room(order) // (8 * steps * width))

        def solve(*arguments: Any) -> None:
            for cells in order.split(together):
                tape, once_more = taken.new_empty(steps, width, len(cells)), torch.empty_like(report)
                ctx.again(cells, once_more, tape)
                if not bool((once_more[cells] == report[cells]).all()):
                    raise RuntimeError(
                        "solve_transient: cells took other steps when these were taken again for the gradients; "
                        "solve in pnp.compiled.torch_only()."
                    )
                _launch(name, shapes, cells, tape, taken, Coefficients(*given), *structure, *arguments)

        by = by_concentrations, by_potential
        found = _by_coefficients(given, Coefficients(*ctx.needs_input_grad[8:]), *by, at_once, solve)
        return None, None, None, None, None, None, None, None, *found


def _by_coefficients(
    given: Sequence[Tensor],
    wanted: Coefficients,
    by_concentrations: Tensor | None,
    by_potential: Tensor | None,
    at_once: Tensor,
    solve: Callable[..., None],
) -> list[Tensor]:
    """Derivatives by all that is `given`, which `solve` fills in from those by the results."""
    found = [torch.zeros_like(one, memory_format=torch.contiguous_format) for one in given]
    by = (
        given[0].new_empty(0, 0, 0) if by_potential is None else by_potential,
        given[0].new_empty(0, 0, 0, 0) if by_concentrations is None else by_concentrations,
    )
    solve(by, wanted.volumes or wanted.fixed or wanted.valences, Coefficients(*found))
    # What is asked for at time zero is the start itself.
    if by_concentrations is not None:
        found[-2] += by_concentrations[:, 0] * at_once[:, None, None]
    if by_potential is not None:
        found[-1] += by_potential[:, 0] * at_once[:, None]
    return found


def resting_gradient(system: System, result: NewtonResult) -> State:
    """The state of `result` with implicit gradients where it converged."""
    cells = torch.nonzero(result.converged).squeeze(-1)
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
        ctx.set_materialize_grads(False)
        ctx.structure, ctx.cells = structure, cells
        ctx.save_for_backward(potential, concentrations, *numbers)
        return potential.view_as(potential), concentrations.view_as(concentrations)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_potential: Tensor | None, by_concentrations: Tensor | None) -> tuple[Any, ...]:
        potential, concentrations, *saved = ctx.saved_tensors
        if by_potential is None:
            by_potential = potential.new_empty(0, 0)
        if by_concentrations is None:
            by_concentrations = torch.zeros_like(concentrations)
        numbers = Numbers(*saved)
        wanted = ctx.needs_input_grad[4:]
        found = Numbers(*map(_to_fill, numbers, wanted))
        nodes, species = potential.shape[-1], concentrations.shape[1]
        states = potential, concentrations, by_potential, by_concentrations
        if _on_gpu(potential):
            shapes = (rest_rows(nodes, species),), (4, nodes)
            _launch("rest_adjoint", shapes, ctx.cells, numbers, *ctx.structure, states, found)
        else:
            _side_by_side(
                *_suited((rest_adjoint, rest_many_adjoint), nodes, species),
                ctx.cells,
                *_with_few_ions(numbers),
                *ctx.structure,
                *states,
                found,
            )
        derivatives = (one if need else None for one, need in zip(found, wanted, strict=True))
        return None, None, None, None, *derivatives


def _to_fill(like: Tensor, wanted: bool) -> Tensor:
    """Room for derivatives, with no columns for those that nobody wants."""
    if not wanted:
        return like.new_empty(len(like), 0)
    return torch.zeros_like(like, memory_format=torch.contiguous_format)


def _structure(system: System) -> tuple[bool, Tensor]:
    """Whether the cells are closed, and at which nodes the potential is held."""
    held = torch.zeros(system.volumes.shape[1], dtype=torch.bool, device=system.volumes.device)
    for node in held_nodes(system):
        held[node] = True
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


def _coefficients(system: System, start: State) -> Coefficients:
    """What transients from `start` are made of, differentiably."""
    level, spring, charge = _ends(system)[:, :6].unflatten(1, (2, 3)).unbind(-1)
    return Coefficients(
        system.permittivity / system.spacings,
        system.diffusivities / system.spacings[:, None, :],
        system.volumes,
        system.volumes * system.fixed_charge,
        system.valences,
        torch.stack([spring, spring * level + charge], dim=-1),
        start.concentrations,
        start.potential,
    )


def _by_difficulty(system: System) -> Tensor:
    """An order in which neighbours take about as many iterations."""
    return (system.left.level - system.right.level).detach().abs().argsort(descending=True)


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def _tape_from(tensor: Tensor) -> Any:
    """The rows whose first lanes are the last axis; what the others hold is of no account."""
    lanes, count = tensor.numpy(), MARCHING_TOGETHER
    if lanes.shape[-1] == count:
        return lanes.view(rows_of(count))[..., 0]
    steps, rows = max(lanes.shape[0], EXPECTED_STEPS), lanes.shape[1]  # as long as one that is recorded
    tape = new_rows(steps, rows, lanes=count, lend=TAPES.lend)
    tape["lanes"][: lanes.shape[0], :, : lanes.shape[-1]] = lanes
    return tape


def _suited(kernels: tuple[Any, Any], nodes: int, species: int) -> tuple[Any, int]:
    """The kernel for few or for many species, and how many cells are worth a thread."""
    if species > FEW_SPECIES:
        return kernels[1], 1
    return _in_rows(kernels[0], rest_rows(nodes, species), RESTING_TOGETHER), CELLS_PER_THREAD


def _in_rows(kernel: Any, rows: int, lanes: int) -> Any:
    """`kernel` with rows of its own at every call."""
    return lambda *arguments: kernel(new_rows(rows, lanes=lanes), *arguments)


def _with_few_ions(numbers: Numbers) -> list[Any]:
    """As arrays; of many species the few that stand for them go first."""
    (arrays,) = each_tensor(_array, numbers)
    many = arrays.valences.shape[1] > FEW_SPECIES
    return [*few_ions(arrays.valences, arrays.amounts), arrays] if many else [arrays]


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _launch(*arguments: Any) -> None:
    """See :func:`pnp.compiled.gpu.launch`."""
    from . import gpu  # needs numba-cuda

    gpu.launch(*arguments)


def _room(tensor: Tensor) -> int:
    """See :func:`pnp.compiled.gpu.room`."""
    from . import gpu

    return gpu.room(tensor.device)


def _side_by_side(kernel: Any, size: int, *tensors: Any) -> None:
    """Run `kernel` on blocks of `size` cells, which come first, as many threads as torch may use."""
    cells, *arguments = each_tensor(_array, *tensors)
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
