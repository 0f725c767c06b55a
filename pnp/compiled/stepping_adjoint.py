r"""Derivatives of transients: the steps that :func:`pnp.compiled.stepping.march` recorded, from the last to the first.

Every step is begun once more from its recorded start, for its increments and its matrix W; the last increment follows
from its recorded end. With
:math:`\lambda_i` from the transposed equations of its stages, from the last to the first,

.. math:: W^\top\lambda_i = \bar u_1 b_i + \sum_{j>i} (a_{ji}\,q_j + \gamma c_{ji} V\lambda_j), \qquad
          q_j = \Big(\frac{\partial r}{\partial u}\Big)^\top_{u_j} \lambda_j,

where r are the right-hand sides, the start of the step has the derivative
:math:`\bar u_1 + \sum_j q_j - \partial_{u_0} \sum_i \lambda_i^\top W(u_0)\,U_i`, and all numbers that of
:math:`\sum_i \lambda_i^\top (r_i - W U_i)`.
"""

from typing import Any, NamedTuple

import numpy as np

from ..solvers.rosenbrock import SHARE
from .bernoulli import bernoulli, bernoulli_curvature
from .lanes import (
    any_lane,
    get,
    inlined,
    kernel,
    lanes_in,
    load,
    opposite,
    part,
    put,
    put_nodes,
    splat,
    store,
    where,
)
from .salt import multiply_salt, pull_salt, through_start_salt
from .step_rows import (
    CONCENTRATIONS,
    DURATION,
    ENDS,
    FIXED,
    LEFT_SPRING,
    OF_FIXED,
    OF_MOBILITIES,
    OF_STIFFNESS,
    OF_VALENCES,
    OF_VOLUME,
    OUTPUT,
    POTENTIAL,
    RIGHT_SPRING,
    STAGE,
    STAGES,
    START,
    STATES,
    STIFFNESS,
    VALENCE,
    VOLUME,
    A,
    C,
    back_row_count,
    back_rows_of_node,
    increments_at,
    inverse_at,
    multipliers_at,
    pulled_at,
    rows_of_node,
)
from .stepping import factorise, reach, stage_down, stage_up


class Coefficients(NamedTuple):
    """What the transients of B cells are made of; derivatives with respect to it have the same form."""

    stiffness: Any  # (B, E), permittivity over spacing
    mobilities: Any  # (B, S, E), diffusivity over spacing
    volumes: Any  # (B, N)
    fixed: Any  # (B, N), fixed charge in the volumes
    valences: Any  # (B, S)
    ends: Any  # (B, 2, 2), spring, and charge at no potential
    start: Any  # (B, S, N), concentrations
    potential: Any  # (B, N), at the start


@kernel
def march_adjoint(
    work: Any,
    back: Any,
    cells: Any,
    tape: Any,
    taken: Any,
    given: Coefficients,
    general: Any,
    held: Any,
    baths: Any,
    by: Any,
    whole: bool,
    found: Coefficients,
) -> None:
    """Derivatives of a number with respect to all that is `given`, from those by its results `(B, T, ...)`.

    `cells` are at most as many as there are lanes, and the `tape` has their steps, as many as `taken` `(B,)` says;
    `work` is as for the steps, `back` has rows of its own. `general` is None for two species. `by` has those by
    potentials and by concentrations, empty where nobody looks at them. If not `whole`, derivatives by volumes, fixed
    charge and valences are left zero.
    """
    count = lanes_in(work)
    spare = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.int64)
    march_adjoint_in(work, back, spare, cells, tape, taken, given, general, held, baths, by, whole, found)


@part
def march_adjoint_in(
    work: Any,
    back: Any,
    spare: Any,
    cells: Any,
    tape: Any,
    taken: Any,
    given: Coefficients,
    general: Any,
    held: Any,
    baths: Any,
    by: Any,
    whole: bool,
    found: Coefficients,
) -> None:
    """The same in arrays that are given: three with a whole number a lane to `spare`."""
    by_potential, by_concentrations = by
    species, nodes = given.start.shape[1:]
    count = lanes_in(work)
    group, steps, arrived = spare
    for lane in range(count):
        group[lane] = cells[min(lane, cells.size - 1)]
        steps[lane] = int(taken[group[lane]]) if lane < cells.size else 0
    _pack(work, back, group, given)
    most = 0
    for lane in range(count):
        most = max(most, steps[lane])
    for i in range(most):
        step = most - 1 - i
        last = -1
        for lane in range(count):
            # A cell that has not come so far stays where it is, and nothing has a derivative by what it does.
            length = get(tape[step], DURATION, lane) if step < steps[lane] else 0.0
            put(work, nodes * rows_of_node(species) + STAGE, lane, length)
            arrived[lane] = int(get(tape[step], OUTPUT, lane)) if step < steps[lane] else -1
            last = max(last, arrived[lane])
        if last >= 0:
            _add_outputs(back, group, arrived, species, nodes, by_potential, by_concentrations)
        _put_step(work, nodes, species, general, tape[step], tape[step + 1])
        factorise(work, back, nodes, species, general, held, baths)
        stage_up(work, nodes, species, general, 0)
        for stage in range(1, STAGES - 1):
            stage_down(work, back, nodes, species, general, stage, held, baths)
            stage_up(work, nodes, species, general, stage)
        for j in range(STAGES - 1):
            multiply(work, back, nodes, species, general, STAGES - 1 - j, baths)
            pull(work, back, nodes, species, general, STAGES - 1 - j, held, baths, whole)
        multiply(work, back, nodes, species, general, 0, baths)
        through_start(work, back, nodes, species, general, held, baths, whole)
    for lane in range(cells.size):
        _unpack(back, lane, group[lane], found)


@part
def multiply(work: Any, back: Any, nodes: int, species: int, general: Any, stage: int, baths: Any) -> None:
    """Begin the multipliers of a stage: its transposed equations from the left, with the factors of the step."""
    if general is None:
        if stage < STAGES - 1:  # else they were begun with the factors
            multiply_salt(work, back, nodes, stage, baths)
    else:
        _multiply_many(work, back, nodes, species, stage, baths)


@part
def _multiply_many(work: Any, back: Any, nodes: int, species: int, stage: int, baths: Any) -> None:
    """For any number of species."""
    fields, rows, size = rows_of_node(species), back_rows_of_node(species), species + 1
    x = inverse_at(species) - size * size
    multipliers, pulled = multipliers_at(species), pulled_at(species)
    own = multipliers + stage * size
    for k in range(nodes):
        base, beside = k * fields, k * rows
        weight = SHARE * load(work, base + VOLUME)
        for s in range(size):
            value, remembered = splat(work, 0.0), splat(work, 0.0)
            if stage >= STAGES - 2:
                value = load(back, beside + pulled + (STAGES - 1) * size + s)
            for j in range(stage + 1, STAGES - 1):
                value = value + A[j, stage] * load(back, beside + pulled + j * size + s)
            if s < species:
                for j in range(stage + 1, STAGES):
                    remembered = remembered + C[j, stage] * load(back, beside + multipliers + j * size + s)
            if s < species and not baths[k]:
                value = value + weight * remembered
            if k > 0:
                for t in range(size):
                    known = load(back, beside - rows + own + t)
                    value = value - load(work, base - fields + x + t * size + s) * known
            store(back, beside + own + s, value)


@part
def pull(
    work: Any,
    back: Any,
    nodes: int,
    species: int,
    general: Any,
    stage: int,
    held: Any,
    baths: Any,
    whole: bool,
) -> None:
    """The multipliers from the right, and derivatives of the right-hand side by the state that the stage looked at.

    And by the numbers, if `whole` by all of them, else not by volumes, fixed charge and valences.
    """
    if general is None:
        pull_salt(work, back, nodes, stage, held, baths, whole)
    else:
        _pull_many(work, back, nodes, species, stage, held, baths, whole)


@part
def _pull_many(
    work: Any, back: Any, nodes: int, species: int, stage: int, held: Any, baths: Any, whole: bool
) -> None:
    """For any number of species."""
    fields, rows, size = rows_of_node(species), back_rows_of_node(species), species + 1
    valence, of_valences = nodes * fields + VALENCE, nodes * rows + OF_VALENCES
    spare = valence + 3 * species
    known, alphas = CONCENTRATIONS + 3 * species, CONCENTRATIONS + 4 * species
    inverse, increments = inverse_at(species), increments_at(species) + stage * size
    own, pulled = multipliers_at(species) + stage * size, pulled_at(species) + stage * size
    end_ = pulled_at(species) + (STAGES - 1) * size
    none, tau = splat(work, 0.0), load(work, nodes * fields + STAGE)
    for i in range(nodes):
        k = nodes - 1 - i
        base, beside = k * fields, k * rows
        next_, later = base + fields, beside + rows
        # Transposed substitution.
        potential = load(back, beside + own + species)
        if i > 0 and not held[k + 1]:
            potential = potential + load(work, base + STIFFNESS) * load(back, later + own + species)
        for s in range(species):
            value = load(back, beside + own + s)
            if i > 0:
                multiplier = load(back, later + own + s)
                potential = potential - load(work, next_ + alphas + species + s) * multiplier
                value = value + load(work, next_ + alphas + s) * multiplier
            store(work, spare + s, value)
        store(work, spare + species, potential)
        for s in range(size):
            product = none
            for t in range(size):
                product = product + load(work, base + inverse + t * size + s) * load(work, spare + t)
            store(back, beside + own + s, product)
        # Derivatives by the state.
        _look(work, base, species, stage, whole)
        volume, potential = load(work, base + VOLUME), load(work, base + POTENTIAL)
        at_end = potential + load(work, base + increments + species)
        gauss = none if held[k] else load(back, beside + own + species)
        by_potential = load(back, beside + end_ + species) if stage >= STAGES - 2 else none
        if k == 0 or k == nodes - 1:
            end = nodes * rows + ENDS + (0 if k == 0 else 2)
            spring = nodes * fields + (LEFT_SPRING if k == 0 else RIGHT_SPRING)
            store(back, end, load(back, end) - gauss * at_end)
            store(back, end + 1, load(back, end + 1) + gauss)
            by_potential = by_potential - load(work, spring) * gauss
        jump, by_next, before = none, none, none
        if i > 0:
            jump = load(work, next_ + POTENTIAL) - potential
            gain = load(work, next_ + POTENTIAL) + load(work, next_ + increments + species) - at_end
            strain = gauss - (none if held[k + 1] else load(back, later + own + species))
            store(back, beside + OF_STIFFNESS, load(back, beside + OF_STIFFNESS) + strain * gain)
            by_next = load(work, base + STIFFNESS) * strain
            by_potential = by_potential - by_next
        ahead, behind, slope = none, none, none
        for s in range(species):
            z, at = load(work, valence + s), base + CONCENTRATIONS + s
            here, increment = load(work, at), load(work, base + increments + s)
            multiplier = none if baths[k] else load(back, beside + own + s)
            if whole:
                of_volume = load(back, beside + OF_VOLUME) + gauss * z * (here + increment)
                of_volume = of_volume + multiplier * (SHARE * load(work, base + known + s) - increment)
                store(back, beside + OF_VOLUME, of_volume)
                of_valence = load(back, of_valences + s) + gauss * volume * (here + increment)
                store(back, of_valences + s, of_valence)
            by_here = gauss * z * volume
            if stage >= STAGES - 2:
                by_here = by_here + load(back, beside + end_ + s)
            if i > 0:
                there = load(work, at + fields)
                if s == 0 or any_lane(opposite(z == -before)):
                    ahead, behind, slope = bernoulli(z * jump)
                else:  # of the other sign, as in a salt
                    ahead, behind, slope = behind, ahead, -1.0 - slope
                before = z
                beyond = none if baths[k + 1] else load(back, later + own + s)
                through = tau * (multiplier - beyond)
                of_mobility = load(back, beside + OF_MOBILITIES + s)
                of_mobility = of_mobility - through * (ahead * here - behind * there)
                store(back, beside + OF_MOBILITIES + s, of_mobility)
                through = through * load(work, at + 2 * species)
                by_drop = through * (slope * here - (1.0 + slope) * there)
                if whole:
                    store(back, of_valences + s, load(back, of_valences + s) - by_drop * jump)
                by_here = by_here - through * ahead
                store(back, later + pulled + s, load(back, later + pulled + s) + through * behind)
                by_potential = by_potential + z * by_drop
                by_next = by_next - z * by_drop
            store(back, beside + pulled + s, by_here)
        store(back, beside + pulled + species, by_potential)
        if i > 0:
            store(back, later + pulled + species, load(back, later + pulled + species) + by_next)
        if whole:
            store(back, beside + OF_FIXED, load(back, beside + OF_FIXED) + gauss)


@inlined
def _look(work: Any, base: int, species: int, stage: int, remember: bool) -> None:
    """The state of a node that a stage looks at.

    Of the last one it follows what that adds, which ends the step. The one before looks at what lacks its own increment
    of that: their coefficients are the same otherwise.
    """
    if stage != STAGES - 2 or remember:
        reach(work, base, species, stage, remember)
    size = species + 1
    increments = base + increments_at(species)
    for s in range(size):
        at = base + POTENTIAL if s == species else base + CONCENTRATIONS + s
        if stage == STAGES - 1:
            last = increments + stage * size + s
            store(work, last, load(work, last) - load(work, at))
        elif stage == STAGES - 2 and not remember:
            store(work, at, load(work, at) - load(work, increments + stage * size + s))


@inlined
def _pulls(work: Any, back: Any, k: int, species: int, baths: Any, s: int) -> Any:
    """Sums over the stages of what multipliers do to the increments at the ends of an edge, and to their drop."""
    size = species + 1
    base, beside = (
        k * rows_of_node(species) + increments_at(species),
        k * back_rows_of_node(species) + multipliers_at(species),
    )
    next_, later = base + rows_of_node(species), beside + back_rows_of_node(species)
    left, right, strained = splat(work, 0.0), splat(work, 0.0), splat(work, 0.0)
    here = 0.0 if baths[k] else 1.0
    there = 0.0 if baths[k + 1] else 1.0
    for j in range(STAGES):
        own = j * size + s
        weight = here * load(back, beside + own) - there * load(back, later + own)
        left = left + weight * load(work, base + own)
        right = right + weight * load(work, next_ + own)
        potential = j * size + species
        strained = strained + weight * (load(work, next_ + potential) - load(work, base + potential))
    return left, right, strained


@part
def through_start(
    work: Any, back: Any, nodes: int, species: int, general: Any, held: Any, baths: Any, whole: bool
) -> None:
    """The same of the first stage, which looked at the start, and what the matrix adds, which did so, too.

    Then all derivatives by the start are there, which is the end of the step before.
    """
    if general is None:
        through_start_salt(work, back, nodes, held, baths, whole)
    else:
        _pull_many(work, back, nodes, species, 0, held, baths, whole)
        _through_matrix_many(work, back, nodes, species, baths, whole)


@part
def _through_matrix_many(work: Any, back: Any, nodes: int, species: int, baths: Any, whole: bool) -> None:
    """For any number of species."""
    fields, rows, size = rows_of_node(species), back_rows_of_node(species), species + 1
    valence, of_valences = nodes * fields + VALENCE, nodes * rows + OF_VALENCES
    starts, pulled = CONCENTRATIONS + species, pulled_at(species)
    last = pulled + (STAGES - 1) * size
    none, tau = splat(work, 0.0), load(work, nodes * fields + STAGE)
    for k in range(nodes):
        for s in range(size):
            total = none
            for j in range(STAGES - 1):
                total = total + load(back, k * rows + pulled + j * size + s)
            store(back, k * rows + last + s, total)
    for k in range(nodes - 1):
        base, beside = k * fields, k * rows
        next_, later = base + fields, beside + rows
        jump = load(work, next_ + START) - load(work, base + START)
        by_potential, before = none, none
        ahead, behind, slope, curvature = none, none, none, none
        for s in range(species):
            z, at = load(work, valence + s), base + starts + s
            here, there = load(work, at), load(work, at + fields)
            left, right, strained = _pulls(work, back, k, species, baths, s)
            left, right, strained = tau * left, tau * right, tau * strained
            if s == 0 or any_lane(opposite(z == -before)):
                ahead, behind, slope = bernoulli(z * jump)
                curvature = bernoulli_curvature(z * jump)
            else:
                ahead, behind, slope = behind, ahead, -1.0 - slope
            before = z
            by_drop = slope * here - (1.0 + slope) * there
            of_mobility = ahead * left - behind * right + z * by_drop * strained
            store(back, beside + OF_MOBILITIES + s, load(back, beside + OF_MOBILITIES + s) - of_mobility)
            mobility = load(work, at + species)
            curved = z * curvature * (here - there) * strained
            turned = mobility * (slope * left - (1.0 + slope) * right + curved)
            strained = mobility * strained
            if whole:
                of_valence = load(back, of_valences + s) - jump * turned - by_drop * strained
                store(back, of_valences + s, of_valence)
            strained = z * strained
            store(back, beside + last + s, load(back, beside + last + s) - slope * strained)
            store(back, later + last + s, load(back, later + last + s) + (1.0 + slope) * strained)
            by_potential = by_potential + z * turned
        row = last + species
        store(back, beside + row, load(back, beside + row) + by_potential)
        store(back, later + row, load(back, later + row) - by_potential)


@part
def _put_step(work: Any, nodes: int, species: int, general: Any, step: Any, later: Any) -> None:
    """Where a step starts, and in the place of its last increment its end."""
    if general is None:
        species = 2
    fields, size = rows_of_node(species), species + 1
    last = increments_at(species) + (STAGES - 1) * size
    active = load(work, nodes * fields + STAGE) > 0.0
    some = any_lane(opposite(active))
    for k in range(nodes):
        base, row = k * fields, STATES + size * k
        for s in range(size):
            start = base + START if s == species else base + CONCENTRATIONS + species + s
            value, end = load(step, row + s), load(later, row + s)
            if some:
                value = where(active, value, load(work, start))
                end = where(active, end, value)
            store(work, start, value)
            if general is not None:
                store(work, base + POTENTIAL if s == species else base + CONCENTRATIONS + s, value)
            store(work, base + last + s, end)


@part
def _add_outputs(
    back: Any,
    group: Any,
    arrived: Any,
    species: int,
    nodes: int,
    by_potential: Any,
    by_concentrations: Any,
) -> None:
    """What outputs add to the derivatives by the end of the step that arrived at them, or at -1 if at none."""
    rows, last = back_rows_of_node(species), pulled_at(species) + (STAGES - 1) * (species + 1)
    for lane in range(arrived.size):
        if arrived[lane] >= 0:
            cell, output = group[lane], arrived[lane]
            for s in range(species if by_concentrations.size > 0 else 0):
                for k in range(nodes):
                    at = k * rows + last + s
                    put(back, at, lane, get(back, at, lane) + by_concentrations[cell, output, s, k])
            if by_potential.size > 0:
                for k in range(nodes):
                    at = k * rows + last + species
                    put(back, at, lane, get(back, at, lane) + by_potential[cell, output, k])


@part
def _pack(work: Any, back: Any, group: Any, given: Coefficients) -> None:
    """Put the numbers of a group of cells side by side, and zeros where derivatives will be."""
    species, nodes = given.start.shape[1:]
    fields = rows_of_node(species)
    own = nodes * fields
    store(work, own + STAGE, splat(work, 0.0))
    for row in range(back_row_count(nodes, species)):
        store(back, row, splat(back, 0.0))
    put_nodes(work, VOLUME, fields, given.volumes, group, 0)
    put_nodes(work, FIXED, fields, given.fixed, group, 0)
    put_nodes(work, STIFFNESS, fields, given.stiffness, group, 0)
    for s in range(species):
        put_nodes(work, CONCENTRATIONS + 2 * species + s, fields, given.mobilities, group, s)
    for lane in range(lanes_in(work)):
        cell = group[lane]
        for side in range(2):
            end = own + (LEFT_SPRING if side == 0 else RIGHT_SPRING)
            put(work, end, lane, given.ends[cell, side, 0])
            put(work, end + 1, lane, given.ends[cell, side, 1])
        for s in range(species):
            put(work, own + VALENCE + s, lane, given.valences[cell, s])


@part
def _unpack(back: Any, lane: int, cell: int, found: Coefficients) -> None:
    """Read off the derivatives by the numbers and the start of one cell."""
    species, nodes = found.start.shape[1:]
    rows, last = back_rows_of_node(species), pulled_at(species) + (STAGES - 1) * (species + 1)
    own = nodes * rows
    for k in range(nodes):
        beside = k * rows
        for s in range(species):
            found.start[cell, s, k] = get(back, beside + last + s, lane)
        found.potential[cell, k] = get(back, beside + last + species, lane)
        found.volumes[cell, k] = get(back, beside + OF_VOLUME, lane)
        found.fixed[cell, k] = get(back, beside + OF_FIXED, lane)
        if k < nodes - 1:
            found.stiffness[cell, k] = get(back, beside + OF_STIFFNESS, lane)
            for s in range(species):
                found.mobilities[cell, s, k] = get(back, beside + OF_MOBILITIES + s, lane)
    for side in range(2):
        for what in range(2):
            found.ends[cell, side, what] = get(back, own + ENDS + 2 * side + what, lane)
    for s in range(species):
        found.valences[cell, s] = get(back, own + OF_VALENCES + s, lane)
