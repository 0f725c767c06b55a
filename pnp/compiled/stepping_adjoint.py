r"""Derivatives of transients: the steps that :func:`pnp.compiled.stepping.march` recorded, from the last to the first.

Both stages of a step are equations :math:`F(u, u_0, p) = V(c - \ldots) + \tau\,\nabla\!\cdot J(u) + \ldots = 0` with
Gauss's law. With :math:`\lambda` from the transposed equations :math:`(\partial F/\partial u)^\top\lambda = \bar u`,
derivatives by everything else are :math:`-\lambda^\top\,\partial F/\partial p`. What the rate at the start adds to the
first stage needs the fluxes of the state at which the step before ended, so it waits until that one has its turn.
"""

from typing import Any, NamedTuple

import numpy as np

from ..solvers.time_step import GAMMA, SPAN
from .bernoulli import bernoulli
from .lanes import get, inlined, kernel, lanes_in, load, put, splat, store
from .stepping import CELL, DURATION, OUTPUT, STATES
solve_block=None
EULER=0

(
    STIFFNESS,
    VOLUME,
    POTENTIAL,
    MIDDLE,
    OF_STIFFNESS,
    OF_VOLUME,
    OF_FIXED,
    SPECIES,
) = range(8)
"""Rows of a node: permittivity over the spacing to its right, control volume, potential, the same in the middle of the
step, derivatives by the first two and by the fixed charge in the volume; from there on, eleven for every species:"""
(
    CONCENTRATION,
    IN_MIDDLE,
    AT_START,
    MOBILITY,
    OF_MOBILITY,
    OF_START,
    EXPLICIT,
    FLUX,
    AHEAD,
    BACK,
    SLOPE,
) = range(11)
"""Concentration, the same in the middle and at the start of the step; mobility over the spacing to the right and the
derivative by it; derivative by the start of the step, and its part by the rate there; of the edge to the right flux
over mobility and derivatives of the flux by the concentrations on either side and by the drop of the exponent.
Then S + 1 rows of what is to be solved for, S + 1 of y and a square matrix X."""
PER_SPECIES = 11
STAGE, BY_MIDDLE, BY_START, NEXT, ENDS, VALENCE = 0, 1, 2, 3, 4, 12
"""Rows of a cell, after its nodes: implicit length of a stage, weights of middle and start in its known part, explicit
length of a first stage; spring, derivatives by spring, charge and level of either end; then valences, derivatives by
them, and the equations of one node."""


@inlined
def _rows_of_node(species: int) -> int:
    return SPECIES + PER_SPECIES * species + (species + 1) * (species + 3)


@kernel
def row_count(nodes: int, species: int) -> int:
    """How many rows the work of one group takes."""
    return nodes * _rows_of_node(species) + VALENCE + 2 * species + (species + 1) * (2 * species + 3)


class Coefficients(NamedTuple):
    """What the transients of B cells are made of; derivatives with respect to it have the same form."""

    stiffness: Any  # (B, E), permittivity over spacing
    mobilities: Any  # (B, S, E), diffusivity over spacing
    volumes: Any  # (B, N)
    fixed: Any  # (B, N), fixed charge in the volumes
    valences: Any  # (B, S)
    ends: Any  # (B, 2, 3), spring, charge at no potential, and potential where it is held
    start: Any  # (B, S, N), concentrations


@kernel
def march_adjoint(
    work: Any,
    cells: Any,
    tape: Any,
    given: Coefficients,
    held: Any,
    baths: Any,
    by_potential: Any,
    by_concentrations: Any,
    found: Coefficients,
) -> None:
    """Derivatives of a number with respect to all that is `given`, from those `by` results `(B, T, ...)`.

    `cells` are at most as many as there are lanes, and the `tape` has their steps. The potential at the start does not
    matter, because the first step is by backward Euler.
    """
    species, nodes = given.start.shape[1:]
    count = lanes_in(work)
    group, steps = np.empty(count, np.int64), np.empty(count, np.int64)
    for lane in range(count):
        group[lane] = cells[min(lane, cells.size - 1)]
        steps[lane] = _step_before(tape, tape.shape[0], group[lane]) if lane < cells.size else -1
    _pack(work, group, given)
    while np.any(steps >= 0):
        for lane in range(count):
            if steps[lane] >= 0:
                step, cell = tape[steps[lane]], group[lane]
                _put_states(work, nodes, species, lane, step)
                before = _step_before(tape, steps[lane], cell)
                if before >= 0:
                    _put_start(work, nodes, species, lane, tape[before, STATES:])
                else:
                    _put_start(work, nodes, species, lane, given.start[cell].ravel())
                if step[OUTPUT] >= 0:
                    output = int(step[OUTPUT])
                    _add_output(work, lane, by_potential[cell, output], by_concentrations[cell, output])
        for stage in range(2, 0, -1):
            for lane in range(count):
                if steps[lane] >= 0:
                    _put_stage(work, nodes, species, lane, tape[steps[lane]], stage)
            _eliminate(work, nodes, species, held, baths)
            _gather(work, nodes, species, held, baths)
        _go_on(work, nodes, species)
        for lane in range(count):
            if steps[lane] >= 0:
                steps[lane] = _step_before(tape, steps[lane], group[lane])
                if steps[lane] < 0:
                    _take_start(work, lane, found.start[group[lane]])
    for lane in range(cells.size):
        _unpack(work, lane, group[lane], found)


@kernel
def _step_before(tape: Any, step: int, cell: int) -> int:
    """The last step of a cell before another one, or -1."""
    step -= 1
    while step >= 0 and tape[step, CELL] != cell:
        step -= 1
    return step


@inlined
def _edge(work: Any, base: int, next_: int, valence: int, species: int) -> None:
    """Flux to the right of a node and its derivatives."""
    jump = load(work, next_ + POTENTIAL) - load(work, base + POTENTIAL)
    for s in range(species):
        at = SPECIES + PER_SPECIES * s
        mobility = load(work, base + at + MOBILITY)
        here, there = load(work, base + at + CONCENTRATION), load(work, next_ + at + CONCENTRATION)
        ahead, back, slope = bernoulli(load(work, valence + s) * jump)
        store(work, base + at + FLUX, ahead * here - back * there)
        store(work, base + at + AHEAD, mobility * ahead)
        store(work, base + at + BACK, mobility * back)
        store(work, base + at + SLOPE, mobility * (slope * here - (1.0 + slope) * there))


@kernel
def _eliminate(work: Any, nodes: int, species: int, held: Any, baths: Any) -> None:
    """Eliminate the transposed equations of a stage from the left.

    A balance that a bath replaces, and Gauss's law where the potential is held, pass nothing to other nodes.
    """
    fields, size = _rows_of_node(species), species + 1
    own = nodes * fields
    valence = own + VALENCE
    block, width = valence + 2 * species, 2 * size + 1
    bottom = block + species * width
    by_state = SPECIES + PER_SPECIES * species
    y = by_state + size
    x = y + size
    tau = load(work, own + STAGE)
    for k in range(nodes):
        base = k * fields
        before, next_ = base - fields, base + fields
        # Implicit length of the stage in the balances of this node and of its neighbours.
        here = splat(work, 0.0) if baths[k] else tau
        left = tau if k > 0 and not baths[k - 1] else splat(work, 0.0)
        right = tau if k < nodes - 1 and not baths[k + 1] else splat(work, 0.0)
        volume = load(work, base + VOLUME)
        for entry in range(block, block + size * width):
            store(work, entry, splat(work, 0.0))
        gauss = load(work, base + by_state + species)
        if k < nodes - 1:
            _edge(work, base, next_, valence, species)
        for s in range(species):
            at, row, z = SPECIES + PER_SPECIES * s, block + s * width, load(work, valence + s)
            rhs, explicit = load(work, base + by_state + s), load(work, base + at + EXPLICIT)
            diagonal, by_potential = splat(work, 1.0) if baths[k] else volume, splat(work, 0.0)
            if k < nodes - 1:
                ahead, slope = load(work, base + at + AHEAD), z * load(work, base + at + SLOPE)
                diagonal, by_potential = diagonal + here * ahead, by_potential - here * slope
                store(work, row + size + s, -right * ahead)
                store(work, bottom + size + s, right * slope)
                share = explicit - load(work, next_ + at + EXPLICIT)
                rhs, gauss = rhs - ahead * share, gauss + slope * share
            if k > 0:
                back, slope = load(work, before + at + BACK), z * load(work, before + at + SLOPE)
                diagonal, by_potential = diagonal + here * back, by_potential - here * slope
                share, known = load(work, before + at + EXPLICIT) - explicit, load(work, before + y + s)
                back, slope = left * back, left * slope
                rhs = rhs + load(work, before + at + BACK) * share + back * known
                gauss = gauss - z * load(work, before + at + SLOPE) * share - slope * known
                for t in range(size):
                    passed = load(work, before + x + s * size + t)
                    store(work, row + t, back * passed)
                    store(work, bottom + t, load(work, bottom + t) - slope * passed)
            if not held[k]:
                store(work, row + species, load(work, row + species) - z * volume)
            store(work, row + s, load(work, row + s) + diagonal)
            store(work, row + 2 * size, rhs)
            store(work, bottom + s, load(work, bottom + s) + by_potential)
        diagonal = splat(work, 1.0) if held[k] else splat(work, 0.0)
        if k < nodes - 1:
            stiffness = load(work, base + STIFFNESS)
            if not held[k]:
                diagonal = diagonal + stiffness
            if not held[k + 1]:
                store(work, bottom + size + species, -stiffness)
        if k > 0:
            stiffness = load(work, before + STIFFNESS)
            if not held[k]:
                diagonal = diagonal + stiffness
            if not held[k - 1]:
                gauss = gauss + stiffness * load(work, before + y + species)
                for t in range(size):
                    passed = stiffness * load(work, before + x + species * size + t)
                    store(work, bottom + t, load(work, bottom + t) + passed)
        if (k == 0 or k == nodes - 1) and not held[k]:
            diagonal = diagonal + load(work, own + ENDS + (0 if k == 0 else 4))
        store(work, bottom + species, load(work, bottom + species) + diagonal)
        store(work, bottom + 2 * size, gauss)
        solve_block(work, block, size)
        for s in range(size):
            row = block + s * width + size
            for t in range(size):
                store(work, base + x + s * size + t, load(work, row + t))
            store(work, base + y + s, load(work, row + size))


@kernel
def _gather(work: Any, nodes: int, species: int, held: Any, baths: Any) -> None:
    """Substitute back, and from the multipliers the derivatives by all numbers and by the states before.

    The state in the middle of the step is the next one.
    """
    fields, size = _rows_of_node(species), species + 1
    own = nodes * fields
    valence = own + VALENCE
    by_state = SPECIES + PER_SPECIES * species
    y = by_state + size
    x = y + size
    for i in range(1, nodes):
        base = (nodes - 1 - i) * fields
        for s in range(size):
            multiplier = load(work, base + y + s)
            for t in range(size):
                passed = load(work, base + x + s * size + t)
                multiplier = multiplier - passed * load(work, base + fields + y + t)
            store(work, base + y + s, multiplier)
    none = splat(work, 0.0)
    tau, next_explicit = load(work, own + STAGE), load(work, own + NEXT)
    by_middle, by_start = load(work, own + BY_MIDDLE), load(work, own + BY_START)
    for k in range(nodes):
        base = k * fields
        next_ = base + fields
        volume, potential = load(work, base + VOLUME), load(work, base + POTENTIAL)
        multiplier = load(work, base + y + species)
        if k == 0 or k == nodes - 1:
            end = own + ENDS + (0 if k == 0 else 4)
            if held[k]:
                store(work, end + 3, load(work, end + 3) + multiplier)
            else:
                store(work, end + 1, load(work, end + 1) - multiplier * potential)
                store(work, end + 2, load(work, end + 2) + multiplier)
        gauss = none if held[k] else multiplier
        jump = none
        if k < nodes - 1:
            jump = load(work, next_ + POTENTIAL) - potential
            strain = gauss - (none if held[k + 1] else load(work, next_ + y + species))
            store(work, base + OF_STIFFNESS, load(work, base + OF_STIFFNESS) + strain * jump)
        of_volume = load(work, base + OF_VOLUME)
        for s in range(species):
            at, z = base + SPECIES + PER_SPECIES * s, load(work, valence + s)
            c, middle, start = (
                load(work, at + CONCENTRATION),
                load(work, at + IN_MIDDLE),
                load(work, at + AT_START),
            )
            multiplier = load(work, base + y + s)
            balance = none if baths[k] else multiplier
            of_volume = of_volume + gauss * z * c - balance * (c - by_middle * middle - by_start * start)
            of_valence = load(work, valence + species + s) + gauss * volume * c
            if k < nodes - 1:
                beyond = none if baths[k + 1] else load(work, next_ + y + s)
                after = next_ + SPECIES + PER_SPECIES * s
                through = tau * (balance - beyond) + load(work, at + EXPLICIT) - load(work, after + EXPLICIT)
                of_valence = of_valence - through * jump * load(work, at + SLOPE)
                of_mobility = load(work, at + OF_MOBILITY) - through * load(work, at + FLUX)
                store(work, at + OF_MOBILITY, of_mobility)
            store(work, valence + species + s, of_valence)
            store(work, at + EXPLICIT, next_explicit * balance)
            store(work, base + by_state + s, by_middle * volume * balance)
            # A bath is the start for good.
            of_start = multiplier if baths[k] else by_start * volume * balance
            store(work, at + OF_START, load(work, at + OF_START) + of_start)
            store(work, at + CONCENTRATION, middle)
        store(work, base + OF_VOLUME, of_volume)
        store(work, base + OF_FIXED, load(work, base + OF_FIXED) + gauss)
        store(work, base + by_state + species, none)
        store(work, base + POTENTIAL, load(work, base + MIDDLE))


@kernel
def _go_on(work: Any, nodes: int, species: int) -> None:
    """What was found for the start of a step is known of the end of the one before."""
    fields = _rows_of_node(species)
    for k in range(nodes):
        for s in range(species):
            at = k * fields + SPECIES + PER_SPECIES * s + OF_START
            store(work, k * fields + SPECIES + PER_SPECIES * species + s, load(work, at))
            store(work, at, splat(work, 0.0))


@kernel
def _put_stage(work: Any, nodes: int, species: int, lane: int, step: Any, stage: int) -> None:
    """Lengths and weights of a stage, as in :class:`pnp.solvers.time_step.Step`."""
    own = nodes * _rows_of_node(species)
    length, euler, second = step[DURATION], step[EULER] > 0.0, stage == 2
    weight = 1.0 if euler else 1 / SPAN
    share = GAMMA / 2
    if euler:
        share = 1 - GAMMA if second else GAMMA
    put(work, own + STAGE, lane, length * share)
    put(work, own + BY_MIDDLE, lane, weight if second else 0.0)
    put(work, own + BY_START, lane, 1.0 - weight if second else 1.0)
    put(work, own + NEXT, lane, 0.0 if second or euler else length * share)


@kernel
def _put_states(work: Any, nodes: int, species: int, lane: int, step: Any) -> None:
    """End and middle of a recorded step."""
    fields = _rows_of_node(species)
    for k in range(nodes):
        base = k * fields
        end, middle = STATES + k, STATES + (species + 1) * nodes + k
        for s in range(species):
            at = base + SPECIES + PER_SPECIES * s
            put(work, at + CONCENTRATION, lane, step[end + s * nodes])
            put(work, at + IN_MIDDLE, lane, step[middle + s * nodes])
        put(work, base + POTENTIAL, lane, step[end + species * nodes])
        put(work, base + MIDDLE, lane, step[middle + species * nodes])


@kernel
def _put_start(work: Any, nodes: int, species: int, lane: int, concentrations: Any) -> None:
    """Concentrations at the start of a step, from a row of numbers."""
    fields = _rows_of_node(species)
    for k in range(nodes):
        for s in range(species):
            at = k * fields + SPECIES + PER_SPECIES * s
            put(work, at + AT_START, lane, concentrations[s * nodes + k])


@kernel
def _add_output(work: Any, lane: int, by_potential: Any, by_concentrations: Any) -> None:
    """What an output adds to the derivatives by the end of the step that arrived at it."""
    species, nodes = by_concentrations.shape
    fields = _rows_of_node(species)
    for k in range(nodes):
        at = k * fields + SPECIES + PER_SPECIES * species
        for s in range(species):
            put(work, at + s, lane, get(work, at + s, lane) + by_concentrations[s, k])
        put(work, at + species, lane, get(work, at + species, lane) + by_potential[k])


@kernel
def _take_start(work: Any, lane: int, of_start: Any) -> None:
    """Read off the derivatives by the start of a transient, and leave nothing to go on with."""
    species, nodes = of_start.shape
    fields = _rows_of_node(species)
    for k in range(nodes):
        for s in range(species):
            at = k * fields + SPECIES + PER_SPECIES * species + s
            of_start[s, k] = get(work, at, lane)
            put(work, at, lane, 0.0)
            put(work, k * fields + SPECIES + PER_SPECIES * s + EXPLICIT, lane, 0.0)


@kernel
def _pack(work: Any, group: Any, given: Coefficients) -> None:
    """Put the numbers of a group of cells side by side, and zeros everywhere else."""
    species, nodes = given.start.shape[1:]
    fields = _rows_of_node(species)
    own = nodes * fields
    for row in range(own + VALENCE + 2 * species):
        store(work, row, splat(work, 0.0))
    for lane in range(lanes_in(work)):
        cell = group[lane]
        for k in range(nodes):
            base = k * fields
            put(work, base + VOLUME, lane, given.volumes[cell, k])
            if k < nodes - 1:
                put(work, base + STIFFNESS, lane, given.stiffness[cell, k])
                for s in range(species):
                    at = base + SPECIES + PER_SPECIES * s
                    put(work, at + MOBILITY, lane, given.mobilities[cell, s, k])
        for side in range(2):
            put(work, own + ENDS + 4 * side, lane, given.ends[cell, side, 0])
        for s in range(species):
            put(work, own + VALENCE + s, lane, given.valences[cell, s])


@kernel
def _unpack(work: Any, lane: int, cell: int, found: Coefficients) -> None:
    """Read off the derivatives by the numbers of one cell."""
    species, nodes = found.start.shape[1:]
    fields = _rows_of_node(species)
    own = nodes * fields
    for k in range(nodes):
        base = k * fields
        found.volumes[cell, k] = get(work, base + OF_VOLUME, lane)
        found.fixed[cell, k] = get(work, base + OF_FIXED, lane)
        if k < nodes - 1:
            found.stiffness[cell, k] = get(work, base + OF_STIFFNESS, lane)
            for s in range(species):
                at = base + SPECIES + PER_SPECIES * s
                found.mobilities[cell, s, k] = get(work, at + OF_MOBILITY, lane)
    for side in range(2):
        for what in range(3):
            found.ends[cell, side, what] = get(work, own + ENDS + 4 * side + 1 + what, lane)
    for s in range(species):
        found.valences[cell, s] = get(work, own + VALENCE + species + s, lane)
