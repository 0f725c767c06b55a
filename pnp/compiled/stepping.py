r"""Transients: Rosenbrock's method for point ions, a few species, every cell with its own steps.

The scheme of :mod:`pnp.solvers.rosenbrock`. Its matrix W has blocks of S concentrations and the potential, which are
eliminated from node to node without pivoting between them,

.. math:: D_k = B_k - A_k X_{k-1}, \qquad X_k = D_k^{-1} C_k, \qquad
          y_k = D_k^{-1}(r_k - A_k y_{k-1}), \qquad U_k = y_k - X_k U_{k+1}.

The inverses and X are kept for all stages of a step. Species meet only in the potential, which the products with A and
C make use of. Amounts are not imposed but kept by the balances, to rounding in steps of a diffusion time; what longer
ones lose is put back, and a cell that loses too much is left to the solver that imposes them.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..solvers.newton import KEEP_AT_LEAST, NEGLIGIBLE
from ..solvers.rosenbrock import ORDER, SHARE
from ..solvers.step_size import PER_OCTAVE, SMALLEST_STEP
from .bernoulli import bernoulli
from .inputs import Numbers, pack_cells
from .lanes import (
    absolute,
    any_lane,
    get,
    inlined,
    kernel,
    lanes_in,
    largest,
    load,
    opposite,
    part,
    put,
    put_nodes,
    splat,
    square_root,
    store,
    stream,
    where,
)
from .salt import factorise_salt, stage_down_salt
from .step_rows import (
    ACCEPTED,
    ARRIVED,
    CONCENTRATIONS,
    DURATION,
    FIXED,
    LEFT_SPRING,
    NORM,
    OUTPUT,
    POSITIVE,
    POTENTIAL,
    RIGHT_SPRING,
    STAGE,
    STAGES,
    START,
    STATES,
    STIFFNESS,
    TAKEN,
    VALENCE,
    VOLUME,
    A,
    C,
    increments_at,
    inverse_at,
    rows_of_node,
)

LOST, KEPT = 1e-10, 1e-14
"""Relative errors of an amount: above one a step is refused, above the other the ions are restored."""
STUCK, SPENT = 1, 2
"""Why a cell was left: its steps became too small, or too many."""


class Steps(NamedTuple):
    """Where the cells of a group stand, one number a lane each."""

    time: Any
    next: Any  # length of the next step
    taken: Any  # length of the one that is tried
    running: Any  # whether there is further to go
    reached: Any  # how many outputs lie behind


@inlined
def edge(work: Any, base: int, species: int, fields: int, valence: int, slot: int, tau: Any) -> None:
    """Flux to the right of a node and its derivatives, times `tau`, four rows a species at `slot`."""
    jump = load(work, base + fields + POTENTIAL) - load(work, base + POTENTIAL)
    ahead, back, slope, last = splat(work, 0.0), splat(work, 0.0), splat(work, 0.0), splat(work, 0.0)
    for s in range(species):
        z = load(work, valence + s)
        mobility = tau * load(work, base + CONCENTRATIONS + 2 * species + s)
        here = load(work, base + CONCENTRATIONS + s)
        there = load(work, base + fields + CONCENTRATIONS + s)
        if s == 0 or any_lane(opposite(z == -last)):
            ahead, back, slope = bernoulli(z * jump)
        else:  # of the other sign, as in a salt
            ahead, back, slope = back, ahead, -1.0 - slope
        last = z
        store(work, slot + 4 * s, mobility * (ahead * here - back * there))
        store(work, slot + 4 * s + 1, mobility * ahead)
        store(work, slot + 4 * s + 2, mobility * back)
        store(work, slot + 4 * s + 3, mobility * z * (slope * here - (1.0 + slope) * there))


@inlined
def _gauss(work: Any, nodes: int, species: int, k: int) -> Any:
    """Defect of Gauss's law at a node."""
    fields = rows_of_node(species)
    base, own = k * fields, nodes * fields
    potential = load(work, base + POTENTIAL)
    charge = splat(work, 0.0)
    for s in range(species):
        charge = charge + load(work, own + VALENCE + s) * load(work, base + CONCENTRATIONS + s)
    gauss = -load(work, base + FIXED) - load(work, base + VOLUME) * charge
    if k > 0:
        before = base - fields
        gauss = gauss + load(work, before + STIFFNESS) * (potential - load(work, before + POTENTIAL))
    if k < nodes - 1:
        gauss = gauss + load(work, base + STIFFNESS) * (potential - load(work, base + fields + POTENTIAL))
    if k == 0 or k == nodes - 1:
        end = own + LEFT_SPRING if k == 0 else own + RIGHT_SPRING
        gauss = gauss + load(work, end) * potential - load(work, end + 1)
    return gauss


@part
def factorise(work: Any, back: Any, nodes: int, species: int, general: Any, held: Any, baths: Any) -> None:
    """Eliminate from the left, and begin the first stage.

    `general` is None for two species, because numba then leaves out the branch of the others, and `back` where there is
    no way back.
    """
    if general is None:
        factorise_salt(work, back, nodes, held, baths)
    else:
        _factorise_many(work, nodes, species, held, baths)


@part
def _factorise_many(work: Any, nodes: int, species: int, held: Any, baths: Any) -> None:
    """For any number of species."""
    fields, size = rows_of_node(species), species + 1
    own = nodes * fields
    valence = own + VALENCE
    block, width = valence + 3 * species, 2 * size
    bottom, edges = block + species * width, block + size * width
    alphas, y = CONCENTRATIONS + 4 * species, increments_at(species)
    inverse = inverse_at(species)
    x = inverse - size * size
    tau = load(work, own + STAGE)
    for k in range(nodes):
        base = k * fields
        before = base - fields
        left, right = edges + 4 * species * (k % 2), edges + 4 * species * ((k + 1) % 2)
        volume = load(work, base + VOLUME)
        if k < nodes - 1:
            edge(work, base, species, fields, valence, right, tau)
        for row in range(size):
            for t in range(width):
                store(work, block + row * width + t, splat(work, 1.0 if t == size + row else 0.0))
        for s in range(species):
            row = block + s * width
            if not held[k]:
                store(work, bottom + s, -load(work, valence + s) * volume)
            alpha, slope = splat(work, 0.0), splat(work, 0.0)
            rhs, diagonal, by_potential = splat(work, 0.0), splat(work, 1.0), splat(work, 0.0)
            if not baths[k]:
                diagonal = volume
                if k < nodes - 1:
                    rhs = rhs - load(work, right + 4 * s)
                    diagonal = diagonal + load(work, right + 4 * s + 1)
                    by_potential = by_potential - load(work, right + 4 * s + 3)
                if k > 0:
                    rhs = rhs + load(work, left + 4 * s)
                    diagonal = diagonal + load(work, left + 4 * s + 2)
                    alpha, slope = load(work, left + 4 * s + 1), load(work, left + 4 * s + 3)
                    by_potential = by_potential - slope
                    for t in range(size):
                        passed = alpha * load(work, before + x + s * size + t)
                        passed = passed - slope * load(work, before + x + species * size + t)
                        store(work, row + t, passed)
                    rhs = rhs + alpha * load(work, before + y + s) - slope * load(work, before + y + species)
            store(work, base + alphas + s, alpha)
            store(work, base + alphas + species + s, slope)
            store(work, row + s, load(work, row + s) + diagonal)
            store(work, row + species, load(work, row + species) + by_potential)
            store(work, base + y + s, rhs)
        diagonal, rhs = splat(work, 1.0), splat(work, 0.0)
        if not held[k]:
            diagonal, rhs = splat(work, 0.0), -_gauss(work, nodes, species, k)
            if k < nodes - 1:
                diagonal = diagonal + load(work, base + STIFFNESS)
            if k == 0 or k == nodes - 1:
                diagonal = diagonal + load(work, own + LEFT_SPRING if k == 0 else own + RIGHT_SPRING)
            if k > 0:
                stiffness = load(work, before + STIFFNESS)
                diagonal = diagonal + stiffness
                rhs = rhs + stiffness * load(work, before + y + species)
                for t in range(size):
                    passed = stiffness * load(work, before + x + species * size + t)
                    store(work, bottom + t, load(work, bottom + t) + passed)
        store(work, bottom + species, load(work, bottom + species) + diagonal)
        store(work, base + y + species, rhs)
        _invert(work, block, size)
        for s in range(size):
            passed = splat(work, 0.0)
            if k < nodes - 1 and not held[k]:
                passed = -load(work, base + STIFFNESS) * load(work, block + s * width + size + species)
            for t in range(species):
                entry = load(work, block + s * width + size + t)
                back = splat(work, 0.0)
                if k < nodes - 1 and not baths[k]:
                    back = -load(work, right + 4 * t + 2) * entry
                    passed = passed + load(work, right + 4 * t + 3) * entry
                store(work, base + x + s * size + t, back)
                store(work, base + inverse + s * size + t, entry)
            store(work, base + x + s * size + species, passed)
            store(work, base + inverse + s * size + species, load(work, block + s * width + size + species))
        _times_inverse(work, base, species, y, block)


@inlined
def _invert(work: Any, block: int, size: int) -> None:
    """Replace the identity beside a matrix by the inverse."""
    width = 2 * size
    for p in range(size):
        pivot_row = block + p * width
        inverse = 1.0 / load(work, pivot_row + p)
        for t in range(p + 1, size + p + 1):
            store(work, pivot_row + t, inverse * load(work, pivot_row + t))
        for s in range(size):
            if s != p:
                row = block + s * width
                factor = load(work, row + p)
                for t in range(p + 1, size + p + 1):
                    store(work, row + t, load(work, row + t) - factor * load(work, pivot_row + t))


@inlined
def _times_inverse(work: Any, base: int, species: int, y: int, spare: int) -> None:
    """Multiply the rows `y` of a node by its inverse."""
    size, inverse = species + 1, inverse_at(species)
    for s in range(size):
        product = splat(work, 0.0)
        for t in range(size):
            product = product + load(work, base + inverse + s * size + t) * load(work, base + y + t)
        store(work, spare + s, product)
    for s in range(size):
        store(work, base + y + s, load(work, spare + s))


@part
def stage_down(
    work: Any, back: Any, nodes: int, species: int, general: Any, stage: int, held: Any, baths: Any
) -> None:
    """Begin one of the later stages: the state it looks at, and its equations eliminated from the left."""
    if general is None:
        stage_down_salt(work, back, nodes, stage, held, baths)
    else:
        _stage_down_many(work, nodes, species, stage, held, baths)


@part
def _stage_down_many(work: Any, nodes: int, species: int, stage: int, held: Any, baths: Any) -> None:
    """For any number of species."""
    fields, size = rows_of_node(species), species + 1
    own = nodes * fields
    valence = own + VALENCE
    spare = valence + 3 * species
    edges = spare + 2 * size * size
    known, alphas = CONCENTRATIONS + 3 * species, CONCENTRATIONS + 4 * species
    y = increments_at(species) + stage * size
    tau = load(work, own + STAGE)
    reach(work, 0, species, stage, True)
    for k in range(nodes):
        base = k * fields
        before = base - fields
        left, right = edges + 4 * species * (k % 2), edges + 4 * species * ((k + 1) % 2)
        if k < nodes - 1:
            reach(work, base + fields, species, stage, True)
            edge(work, base, species, fields, valence, right, tau)
        for s in range(species):
            rhs = splat(work, 0.0)
            if not baths[k]:
                rhs = SHARE * load(work, base + VOLUME) * load(work, base + known + s)
                if k < nodes - 1:
                    rhs = rhs - load(work, right + 4 * s)
                if k > 0:
                    rhs = rhs + load(work, left + 4 * s)
                    rhs = rhs + load(work, base + alphas + s) * load(work, before + y + s)
                    rhs = rhs - load(work, base + alphas + species + s) * load(work, before + y + species)
            store(work, base + y + s, rhs)
        rhs = splat(work, 0.0)
        if not held[k]:
            rhs = -_gauss(work, nodes, species, k)
            if k > 0:
                rhs = rhs + load(work, before + STIFFNESS) * load(work, before + y + species)
        store(work, base + y + species, rhs)
        _times_inverse(work, base, species, y, spare)


@inlined
def reach(work: Any, base: int, species: int, stage: int, remember: bool) -> None:
    """The state of a node that a stage looks at, and what it remembers of the increments of those before."""
    size, known = species + 1, base + CONCENTRATIONS + 3 * species
    increments = base + increments_at(species)
    for s in range(size):
        at = base + POTENTIAL if s == species else base + CONCENTRATIONS + s
        start = base + START if s == species else base + CONCENTRATIONS + species + s
        value, remembered = load(work, start), splat(work, 0.0)
        for j in range(stage):
            increment = load(work, increments + j * size + s)
            value = value + A[stage, j] * increment
            if remember:
                remembered = remembered + C[stage, j] * increment
        store(work, at, value)
        if remember and s < species:
            store(work, known + s, remembered)


@part
def stage_up(work: Any, nodes: int, species: int, general: Any, stage: int) -> None:
    """Substitute back."""
    if general is None:
        species = 2  # as a constant
    fields, size = rows_of_node(species), species + 1
    y = increments_at(species) + stage * size
    x = inverse_at(species) - size * size
    for i in range(1, nodes):
        base = (nodes - 1 - i) * fields
        for s in range(size):
            value = load(work, base + y + s)
            for t in range(size):
                value = value - load(work, base + x + s * size + t) * load(work, base + fields + y + t)
            store(work, base + y + s, value)


@part
def _finish(work: Any, nodes: int, species: int, closed: bool, relative: float, absolute_: float) -> bool:
    """The state at the end of the step, the norm of its error, and whether it is positive and has all ions.

    Returns whether so many ions are missing anywhere that they are to be restored; how many is in the place of the
    increments of the first stage, which are spent.
    """
    fields, size = rows_of_node(species), species + 1
    own = nodes * fields
    amount, peak = own + VALENCE + species, own + VALENCE + 2 * species
    first = increments_at(species)
    last = first + (STAGES - 1) * size
    fine, sum_ = splat(work, 1.0) > 0.0, splat(work, 0.0)
    missing = opposite(fine)
    for s in range(species):
        floor = -NEGLIGIBLE * load(work, peak + s)
        total = splat(work, 0.0)
        for k in range(nodes):
            at = k * fields + CONCENTRATIONS + s
            error = load(work, k * fields + last + s)
            c = load(work, at) + error
            fine = fine & (c > floor)
            # Rounding of what is next to nothing has no sign.
            c = where(c > 0.0, c, KEEP_AT_LEAST * load(work, at + species))
            store(work, at, c)
            total = total + load(work, k * fields + VOLUME) * c
            scaled = error / (absolute_ + relative * c)
            sum_ = sum_ + scaled * scaled
        if closed:
            share = load(work, amount + s) / total - 1.0
            fine = fine & (absolute(share) < LOST)
            lost = absolute(share) > KEPT
            missing = missing | lost
            share = where(lost, share, 0.0)
            for k in range(nodes):
                base = k * fields
                ions = load(work, base + VOLUME) * load(work, base + CONCENTRATIONS + s)
                store(work, base + first + s, share * ions)
    for k in range(nodes):
        at = k * fields + POTENTIAL
        store(work, at, load(work, at) + load(work, k * fields + last + species))
    store(work, own + NORM, square_root(sum_ / (1.0 * nodes * species)))
    store(work, own + POSITIVE, where(fine, 1.0, 0.0))
    return any_lane(missing)


@part
def _restore(work: Any, nodes: int, species: int, general: Any, held: Any) -> None:
    """Put missing ions in and let them move for as long as the step, so that Gauss's law goes on to hold."""
    if general is None:
        species = 2  # as a constant
    fields, size = rows_of_node(species), species + 1
    y, alphas = increments_at(species), CONCENTRATIONS + 4 * species
    spare = nodes * fields + VALENCE + 3 * species
    for k in range(nodes):
        base = k * fields
        before = base - fields
        rhs = splat(work, 0.0)
        if k > 0:
            for s in range(species):
                ions = load(work, base + y + s) + load(work, base + alphas + s) * load(work, before + y + s)
                slope = load(work, base + alphas + species + s)
                store(work, base + y + s, ions - slope * load(work, before + y + species))
            if not held[k]:
                rhs = load(work, before + STIFFNESS) * load(work, before + y + species)
        store(work, base + y + species, rhs)
        _times_inverse(work, base, species, y, spare)
    stage_up(work, nodes, species, general, 0)
    for k in range(nodes):
        base = k * fields
        for s in range(size):
            at = base + POTENTIAL if s == species else base + CONCENTRATIONS + s
            value = load(work, at)
            restored = value + load(work, base + y + s)
            # Rounding may not take the last ions of a node.
            store(work, at, restored if s == species else where(restored > 0.0, restored, value))


@part
def _accept(work: Any, nodes: int, species: int) -> None:
    """Go on from the end of the step where it was accepted, from its start elsewhere."""
    fields = rows_of_node(species)
    own = nodes * fields
    accepted = (load(work, own + POSITIVE) > 0.0) & (load(work, own + NORM) <= 1.0)
    for s in range(species):
        highest = splat(work, 0.0)
        for k in range(nodes):
            at = k * fields + CONCENTRATIONS + s
            c = where(accepted, load(work, at), load(work, at + species))
            store(work, at, c)
            store(work, at + species, c)
            highest = largest(highest, c)
        store(work, own + VALENCE + 2 * species + s, highest)
    for k in range(nodes):
        at = k * fields
        potential = where(accepted, load(work, at + POTENTIAL), load(work, at + START))
        store(work, at + POTENTIAL, potential)
        store(work, at + START, potential)


@kernel
def march(
    work: Any,
    group: Any,
    steps: Steps,
    tape: Any,
    grows: Any,
    cells: Any,
    numbers: Numbers,
    diffusivities: Any,
    general: Any,
    structure: Any,
    start: Any,
    control: Any,
    most: int,
    results: Any,
) -> Any:
    """Transients of the `cells` `(C,)` of a batch, with results `(B, ...)`.

    `group` and `steps` have a number for each lane. `general` is None for two species, else true. `start` are potential
    and concentrations, the times `(B, T)` to stop at and the first steps; `control` is relative and absolute tolerance,
    safety, shrink and grow. The `report` `(B, 4)` of the results: status, time, accepted and rejected steps. Every
    accepted step of as many `cells` as there are lanes is recorded on the `tape` `(T, W)`, :data:`STATES` says how,
    unless it is None or has no columns; after the last step of a cell is its end. If it `grows`, which is true or None,
    returns the tape, longer if it has to be; otherwise what it has no room for is not recorded.
    """
    closed, held, baths = structure
    start_potential, start_concentrations, outputs, first_steps = start
    potential, concentrations, report = results
    nodes, species = numbers.volumes.shape[1], numbers.valences.shape[1]
    count, own = lanes_in(work), nodes * rows_of_node(species)
    longer, furthest = tape, 0
    for first in range(0, cells.size, count):
        present = min(count, cells.size - first)
        for lane in range(count):
            group[lane] = cells[first + min(lane, present - 1)]
            steps.time[lane], steps.next[lane], steps.reached[lane] = 0.0, first_steps[group[lane]], 0
            steps.running[lane] = lane < present
        _pack(work, group, numbers, diffusivities)
        _put_start(work, group, start_potential, start_concentrations)
        if tape is not None:  # noqa: SIM102 (numba leaves this out where it is None)
            if longer.shape[1] > 0:
                _record_start(work, nodes, species, longer[0])
        for lane in range(present):
            cell = group[lane]
            report[cell, :] = 0.0
            if outputs[cell, 0] == 0.0:
                _record(work, lane, potential[cell, 0], concentrations[cell, 0])
                steps.reached[lane] = 1
                steps.running[lane] = outputs.shape[1] > 1
        while _any(steps.running):
            _choose(work, nodes, species, group, outputs, steps)
            factorise(work, None, nodes, species, general, held, baths)
            stage_up(work, nodes, species, general, 0)
            for stage in range(1, STAGES):
                stage_down(work, None, nodes, species, general, stage, held, baths)
                stage_up(work, nodes, species, general, stage)
            if _finish(work, nodes, species, closed, control[0], control[1]):
                _restore(work, nodes, species, general, held)
            _accept(work, nodes, species)
            store(work, own + ACCEPTED, splat(work, -1.0))
            for lane in range(present):
                if steps.running[lane]:
                    cell = group[lane]
                    accepted = report[cell, 2]
                    arrived = _judge(work, nodes, species, lane, outputs[cell], control, steps, report[cell])
                    index = steps.reached[lane] - 1 if arrived else -1
                    if arrived:
                        _record(work, lane, potential[cell, index], concentrations[cell, index])
                    if report[cell, 2] > accepted:
                        put(work, own + ACCEPTED, lane, accepted)
                        put(work, own + ARRIVED, lane, 1.0 * index)
                        furthest = max(furthest, int(accepted))
                    _stop(lane, outputs.shape[1], most, steps, report[cell])
            if tape is not None:  # noqa: SIM102
                if longer.shape[1] > 0:
                    if grows is not None:  # noqa: SIM102
                        if furthest + 2 > longer.shape[0]:
                            longer = _longer(longer)
                    _record_steps(work, nodes, species, longer)
    if grows is None:
        return None
    return longer


@inlined
def _any(flags: Any) -> bool:
    """Whether one is set."""
    for flag in flags:  # noqa: SIM110 (numba)
        if flag:
            return True
    return False


@part
def _choose(work: Any, nodes: int, species: int, group: Any, outputs: Any, steps: Steps) -> None:
    """How long the step is that every cell tries."""
    own = nodes * rows_of_node(species)
    for lane in range(lanes_in(work)):
        length = steps.next[lane]
        if steps.running[lane]:
            remaining = outputs[group[lane], steps.reached[lane]] - steps.time[lane]
            # Either all of what remains, or half of it, rather than a sliver at the end.
            if length >= remaining * (1 - 1e-12):
                length = remaining
            elif length >= 0.5 * remaining:
                length = 0.5 * remaining
        steps.taken[lane] = length
        put(work, own + STAGE, lane, SHARE * length)


@part
def _judge(
    work: Any,
    nodes: int,
    species: int,
    lane: int,
    outputs: Any,
    control: Any,
    steps: Steps,
    report: Any,
) -> bool:
    """What comes of the step of one cell, as in :mod:`pnp.solvers.integration`; whether it arrived at an output."""
    own = nodes * rows_of_node(species)
    norm = get(work, own + NORM, lane)
    length = steps.taken[lane]
    if get(work, own + POSITIVE, lane) == 0.0 or not math.isfinite(norm):
        report[3] += 1
        steps.next[lane] = length * control[3]
        return False
    factor = control[2] * max(norm, 1e-12) ** (-1.0 / (ORDER + 1.0))
    factor = 2.0 ** (math.floor(math.log2(factor) * PER_OCTAVE) / PER_OCTAVE)
    factor = min(max(factor, control[3]), control[4])
    if not norm <= 1.0:
        report[3] += 1
        steps.next[lane] = length * factor
        return False
    report[2] += 1
    # A step cut short to land on an output time does not hold back the next one.
    steps.next[lane] = max(length * factor, steps.next[lane]) if factor >= 1.0 else length * factor
    target = outputs[steps.reached[lane]]
    arrived = length == target - steps.time[lane]
    steps.time[lane] = target if arrived else steps.time[lane] + length
    steps.reached[lane] += arrived
    return arrived


@part
def _stop(lane: int, count: int, most: int, steps: Steps, report: Any) -> None:
    """Leave a cell that has arrived at the last output, or cannot."""
    report[1] = steps.time[lane]
    if steps.reached[lane] == count:
        steps.running[lane] = False
    elif steps.next[lane] < SMALLEST_STEP * max(steps.time[lane], 1e-6):
        report[0], steps.running[lane] = STUCK, False
    elif report[2] + report[3] >= most:
        report[0], steps.running[lane] = SPENT, False


@part
def _record(work: Any, lane: int, potential: Any, concentrations: Any) -> None:
    """Copy the state of one cell."""
    species = concentrations.shape[0]
    fields = rows_of_node(species)
    for k in range(potential.size):
        potential[k] = get(work, k * fields + POTENTIAL, lane)
        for s in range(species):
            concentrations[s, k] = get(work, k * fields + CONCENTRATIONS + s, lane)


@part
def _record_start(work: Any, nodes: int, species: int, step: Any) -> None:
    """Copy where the first steps start."""
    fields, size = rows_of_node(species), species + 1
    store(work, nodes * fields + TAKEN, splat(work, 0.0))
    for k in range(nodes):
        base, row = k * fields, STATES + size * k
        for s in range(species):
            store(step, row + s, load(work, base + CONCENTRATIONS + s))
        store(step, row + species, load(work, base + POTENTIAL))


@part
def _record_steps(work: Any, nodes: int, species: int, tape: Any) -> None:
    """Copy the steps that were accepted, each to where its cell has come; cells that have come as far together."""
    own = nodes * rows_of_node(species)
    before = load(work, own + ACCEPTED)
    taken = where(before >= 0.0, before + 1.0, load(work, own + TAKEN))
    store(work, own + TAKEN, taken)
    for lane in range(lanes_in(work)):
        accepted = get(work, own + ACCEPTED, lane)
        first = accepted >= 0.0
        for other in range(lane):
            first = first and get(work, own + ACCEPTED, other) != accepted
        if first:
            step = int(accepted)
            if step + 2 <= tape.shape[0]:
                theirs = before == accepted
                # Whether others have already been where these arrive.
                others = any_lane(opposite(theirs) & (taken > accepted))
                _record_step(work, nodes, species, theirs, others, tape[step], tape[step + 1])


@part
def _record_step(
    work: Any, nodes: int, species: int, theirs: Any, others: bool, step: Any, later: Any
) -> None:
    """Copy the step of the cells that have come so far, and its end."""
    fields, size = rows_of_node(species), species + 1
    own = nodes * fields
    store(step, DURATION, where(theirs, load(work, own + STAGE), load(step, DURATION)))
    store(step, OUTPUT, where(theirs, load(work, own + ARRIVED), load(step, OUTPUT)))
    for k in range(nodes):
        base, row = k * fields, STATES + size * k
        for s in range(size):
            end = load(work, base + POTENTIAL if s == species else base + CONCENTRATIONS + s)
            if others:
                store(later, row + s, where(theirs, end, load(later, row + s)))
            else:
                stream(later, row + s, end)


@part
def _longer(tape: Any) -> Any:
    """Room for twice as many steps."""
    longer = np.empty((2 * tape.shape[0], tape.shape[1]), tape.dtype)
    for step in range(tape.shape[0]):
        for row in range(tape.shape[1]):
            store(longer[step], row, load(tape[step], row))
    return longer


@part
def _put_start(work: Any, group: Any, potential: Any, concentrations: Any) -> None:
    """The states at the start."""
    species, nodes = concentrations.shape[1:]
    fields = rows_of_node(species)
    put_nodes(work, POTENTIAL, fields, potential, group, 0)
    put_nodes(work, START, fields, potential, group, 0)
    for s in range(species):
        put_nodes(work, CONCENTRATIONS + s, fields, concentrations, group, s)
        put_nodes(work, CONCENTRATIONS + species + s, fields, concentrations, group, s)
        highest = splat(work, 0.0)
        for k in range(nodes):
            highest = largest(highest, load(work, k * fields + CONCENTRATIONS + s))
        store(work, nodes * fields + VALENCE + 2 * species + s, highest)


@part
def _pack(work: Any, group: Any, numbers: Numbers, diffusivities: Any) -> None:
    """Put the numbers of a group of cells side by side."""
    nodes, species = numbers.volumes.shape[1], numbers.valences.shape[1]
    fields = rows_of_node(species)
    material, charged = int(numbers.permittivity.shape[1] > 1), int(numbers.fixed_charge.shape[1] > 1)
    each, place = int(diffusivities.shape[1] > 1), int(diffusivities.shape[2] > 1)
    for k in range(nodes):
        base = k * fields
        for lane in range(lanes_in(work)):
            cell = group[lane]
            volume = numbers.volumes[cell, k]
            put(work, base + VOLUME, lane, volume)
            put(work, base + FIXED, lane, volume * numbers.fixed_charge[cell, k * charged])
            if k < nodes - 1:
                inverse = 1.0 / numbers.spacings[cell, k]
                put(work, base + STIFFNESS, lane, numbers.permittivity[cell, k * material] * inverse)
                for s in range(species):
                    mobility = diffusivities[cell, s * each, k * place] * inverse
                    put(work, base + CONCENTRATIONS + 2 * species + s, lane, mobility)
    pack_cells(work, nodes * fields, VALENCE, group, numbers, True)
