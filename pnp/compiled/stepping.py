r"""Transients: adaptive TR-BDF2 of point ions, a few species, every cell with its own steps.

The scheme of :mod:`pnp.solvers.time_step`, with Newton's method on blocks of S concentrations and the potential,
eliminated from node to node,

.. math:: x_k = y_k - X_k x_{k+1}, \qquad (B_k - A_k X_{k-1})\,[X_k, y_k] = [C_k, r_k - A_k y_{k-1}],

without pivoting between nodes. Species meet only in the potential, which the products with A and C make use of.
Rates at the ends of stages follow from the stages themselves. Amounts are not imposed but kept by the balances, to
rounding in steps of a diffusion time; a cell that loses more is left to the solver that imposes them.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from ..solvers.newton import KEEP_AT_LEAST, NEGLIGIBLE
from ..solvers.step_size import PER_OCTAVE, SMALLEST_STEP
from ..solvers.time_step import ERROR, GAMMA, SPAN
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
    put,
    smallest,
    splat,
    square_root,
    store,
    where,
)

STIFFNESS, VOLUME, FIXED, POTENTIAL, BEFORE, MIDDLE, TREND, CURVE, CONCENTRATIONS = range(9)
"""Rows of a node: permittivity over the spacing to its right, control volume, fixed charge in it, potential, the
same at the start and in the middle of the step, its rate of change and half of that rate's at the end of the last
step; from there on, for every species: concentration, at the start of the step, known part of the stage, rate at the
start and in the middle, mobility over the spacing to the right, concentration in the middle; then S + 1 rows of y and
a square matrix X."""
(
    LEFT_SPRING,
    LEFT_CHARGE,
    RIGHT_SPRING,
    RIGHT_CHARGE,
    STAGE,
    LENGTH,
    EXPLICIT,
    WEIGHT,
    ACTIVE,
    BY_EULER,
    NORM,
    ITERATIONS,
    CONVERGED,
    LAST,
    VALENCE,
) = range(15)
"""Rows of a cell, after its nodes: the ends as :func:`pnp.compiled.inputs.pack_cells` puts them; implicit and whole
length of the step, explicit length of its first stage, weight of the middle in the second, whether there is a step to
take and by which method; norm of its error, iterations and whether they converged; length of the last step, or zero
where that was not taken; then valences, amounts, largest concentrations, and the equations of one node."""
SETTLED, SHARE, ROUNDING = 1e-7, 1e-2, 1e-13
"""The largest relative change that may be left after a stage: as little as gradients at given steps need, no more than
this share of the tolerance of a step, but not below rounding."""
MOST_ITERATIONS = 15
"""Of a stage."""
LOST = 1e-10
"""Relative error of an amount at which a step is refused."""
STUCK, SPENT = 1, 2
"""Why a cell was left: its steps became too small, or too many."""


CELL, OUTPUT, DURATION, EULER, STATES = range(5)
"""Columns of a recorded step: its cell, the output that it ends at or -1, its length, whether it is by backward Euler;
then concentrations `(S, N)` and potential `(N,)` at its end and in its middle."""


def tape_width(nodes: int, species: int) -> int:
    """Columns of a tape."""
    return STATES + 2 * (species + 1) * nodes


class Steps(NamedTuple):
    """Where the cells of a group stand, one number a lane each."""

    time: Any
    next: Any  # length of the next step
    taken: Any  # length of the one that is tried
    euler: Any  # whether it is by backward Euler
    running: Any  # whether there is further to go
    reached: Any  # how many outputs lie behind


@inlined
def _rows_of_node(species: int) -> int:
    return CONCENTRATIONS + 7 * species + (species + 1) * (species + 2)


@kernel
def row_count(nodes: int, species: int) -> int:
    return (
        nodes * _rows_of_node(species)
        + VALENCE
        + 3 * species
        + (species + 1) * (2 * species + 3)
        + 8 * species
    )


@inlined
def _edge(work: Any, base: int, species: int, fields: int, valence: int, slot: int) -> None:
    """Fluxes to the right of a node and their derivatives, four rows a species at `slot`."""
    jump = load(work, base + fields + POTENTIAL) - load(work, base + POTENTIAL)
    ahead, back, slope, last = splat(work, 0.0), splat(work, 0.0), splat(work, 0.0), splat(work, 0.0)
    for s in range(species):
        z = load(work, valence + s)
        mobility = load(work, base + CONCENTRATIONS + 5 * species + s)
        here = load(work, base + CONCENTRATIONS + s)
        there = load(work, base + fields + CONCENTRATIONS + s)
        drop = z * jump
        if s == 0 or any_lane(opposite(z == -last)):
            ahead, back, slope = bernoulli(drop)
        else:  # of the other sign, as in a salt
            ahead, back, slope = back, ahead, -1.0 - slope
        last = z
        store(work, slot + 4 * s, mobility * (ahead * here - back * there))
        store(work, slot + 4 * s + 1, mobility * ahead)
        store(work, slot + 4 * s + 2, mobility * back)
        store(work, slot + 4 * s + 3, mobility * z * (slope * here - (1.0 + slope) * there))


@kernel
def _sweep_down(
    work: Any, nodes: int, species: int, general: Any, held: Any, baths: Any, given: bool
) -> None:
    """Eliminate from the left; the right-hand side is the residual, or what is `given` in the rows of y.

    `general` is None for two species, because numba then leaves out the branch of the others. Were `given` a literal,
    it would compile everything twice.
    """
    if general is None:
        _sweep_down_salt(work, nodes, held, baths, given)
    else:
        _sweep_down_many(work, nodes, species, held, baths, given)


@kernel
def _sweep_down_many(work: Any, nodes: int, species: int, held: Any, baths: Any, given: bool) -> None:
    """For any number of species."""
    fields, size = _rows_of_node(species), species + 1
    own = nodes * fields
    valence = own + VALENCE
    block = valence + 3 * species
    width = 2 * size + 1
    edges = block + size * width
    known, y = CONCENTRATIONS + 2 * species, CONCENTRATIONS + 7 * species
    x = y + size
    tau = load(work, own + STAGE)
    for k in range(nodes):
        base = k * fields
        left, right = edges + 4 * species * (k % 2), edges + 4 * species * ((k + 1) % 2)
        volume = load(work, base + VOLUME)
        bottom = block + species * width
        if k < nodes - 1:
            _edge(work, base, species, fields, valence, right)
        for entry in range(block, block + size * width):
            store(work, entry, splat(work, 0.0))
        bath = baths[k]
        gauss = -load(work, base + FIXED)
        for s in range(species):
            row = block + s * width
            c = load(work, base + CONCENTRATIONS + s)
            z = load(work, valence + s)
            gauss = gauss - z * volume * c
            if not held[k]:
                store(work, bottom + s, -z * volume)
            if bath:
                store(work, row + s, splat(work, 1.0))
                if given:
                    store(work, row + 2 * size, load(work, base + y + s))
                continue
            diagonal, by_potential = volume, splat(work, 0.0)
            outflow = splat(work, 0.0)
            if k < nodes - 1:
                outflow = outflow + load(work, right + 4 * s)
                diagonal = diagonal + tau * load(work, right + 4 * s + 1)
                by_potential = by_potential - tau * load(work, right + 4 * s + 3)
                store(work, row + size + s, -tau * load(work, right + 4 * s + 2))
                store(work, row + size + species, tau * load(work, right + 4 * s + 3))
            rhs = splat(work, 0.0)
            if k > 0:
                before = base - fields
                outflow = outflow - load(work, left + 4 * s)
                diagonal = diagonal + tau * load(work, left + 4 * s + 2)
                slope = tau * load(work, left + 4 * s + 3)
                by_potential = by_potential - slope
                alpha = -tau * load(work, left + 4 * s + 1)
                for t in range(size):
                    passed = alpha * load(work, before + x + s * size + t)
                    passed = passed + slope * load(work, before + x + species * size + t)
                    store(work, row + t, -passed)
                rhs = -alpha * load(work, before + y + s) - slope * load(work, before + y + species)
            if given:
                rhs = rhs + load(work, base + y + s)
            else:
                rhs = rhs + volume * (c - load(work, base + known + s)) + tau * outflow
            store(work, row + s, load(work, row + s) + diagonal)
            store(work, row + species, load(work, row + species) + by_potential)
            store(work, row + 2 * size, rhs)
        if held[k]:
            store(work, bottom + species, splat(work, 1.0))
        else:
            potential = load(work, base + POTENTIAL)
            diagonal = splat(work, 0.0)
            if k < nodes - 1:
                stiffness = load(work, base + STIFFNESS)
                diagonal = diagonal + stiffness
                gauss = gauss + stiffness * (potential - load(work, base + fields + POTENTIAL))
                store(work, bottom + size + species, -stiffness)
            if k == 0 or k == nodes - 1:
                end = own + LEFT_SPRING if k == 0 else own + RIGHT_SPRING
                diagonal = diagonal + load(work, end)
                gauss = gauss + load(work, end) * potential - load(work, end + 1)
            if k > 0:
                before = base - fields
                stiffness = load(work, before + STIFFNESS)
                diagonal = diagonal + stiffness
                gauss = gauss + stiffness * (potential - load(work, before + POTENTIAL))
                for t in range(size):
                    passed = stiffness * load(work, before + x + species * size + t)
                    store(work, bottom + t, load(work, bottom + t) + passed)
            rhs = splat(work, 0.0) if given else gauss
            if k > 0:
                rhs = rhs + load(work, base - fields + STIFFNESS) * load(work, base - fields + y + species)
            store(work, bottom + species, load(work, bottom + species) + diagonal)
            store(work, bottom + 2 * size, rhs)
        solve_block(work, block, size)
        for s in range(size):
            row = block + s * width + size
            for t in range(size):
                store(work, base + x + s * size + t, load(work, row + t))
            store(work, base + y + s, load(work, row + size))


@kernel
def _sweep_down_salt(work: Any, nodes: int, held: Any, baths: Any, given: bool) -> None:
    """The same for two species, written out, so that the equations of a node stay in registers."""
    fields = _rows_of_node(2)
    own = nodes * fields
    tau, z0, z1 = load(work, own + STAGE), load(work, own + VALENCE), load(work, own + VALENCE + 1)
    mirrored = not any_lane(opposite(z1 == -z0))
    y, x, mobility = CONCENTRATIONS + 14, CONCENTRATIONS + 17, CONCENTRATIONS + 10
    none, one = splat(work, 0.0), splat(work, 1.0)
    # Of the edge to the left: fluxes, their derivatives times the step, permittivity over spacing.
    flux0, flux1, out0, out1, in0, in1 = none, none, none, none, none, none
    slope0, slope1, stiff, y0, y1, y2 = none, none, none, none, none, none
    x00, x01, x02, x10, x11, x12, x20, x21, x22 = none, none, none, none, none, none, none, none, none
    here0, here1, phi = load(work, CONCENTRATIONS), load(work, CONCENTRATIONS + 1), load(work, POTENTIAL)
    for k in range(nodes):
        base = k * fields
        volume = load(work, base + VOLUME)
        # The row of the potential: Gauss's law.
        d20, d21, d22 = -z0 * volume, -z1 * volume, stiff
        gauss = stiff * (phi - load(work, base - fields + POTENTIAL)) if k > 0 else none
        gauss = gauss - load(work, base + FIXED) - volume * (z0 * here0 + z1 * here1)
        if k == 0 or k == nodes - 1:
            end = own + LEFT_SPRING if k == 0 else own + RIGHT_SPRING
            d22 = d22 + load(work, end)
            gauss = gauss + load(work, end) * phi - load(work, end + 1)
        d20, d21, d22, r2 = d20 + stiff * x20, d21 + stiff * x21, d22 + stiff * x22, stiff * y2
        # Rows of the species, with what the node before leaves.
        d00, d02 = volume + in0 + out0 * x00 - slope0 * x20, out0 * x02 - slope0 * (one + x22)
        d11, d12 = volume + in1 + out1 * x11 - slope1 * x21, out1 * x12 - slope1 * (one + x22)
        d01, d10 = out0 * x01 - slope0 * x21, out1 * x10 - slope1 * x20
        r0, r1 = out0 * y0 - slope0 * y2, out1 * y1 - slope1 * y2
        c00, c11, c02, c12, c22 = none, none, none, none, none
        balance0, balance1 = -flux0, -flux1
        if k < nodes - 1:
            next_ = base + fields
            there0, there1 = load(work, next_ + CONCENTRATIONS), load(work, next_ + CONCENTRATIONS + 1)
            phi_next = load(work, next_ + POTENTIAL)
            stiff = load(work, base + STIFFNESS)
            d22, gauss, c22 = d22 + stiff, gauss + stiff * (phi - phi_next), -stiff
            jump = phi_next - phi
            ahead, back, slope = bernoulli(z0 * jump)
            speed = load(work, base + mobility)
            flux0 = speed * (ahead * here0 - back * there0)
            speed = tau * speed
            out0, in0 = speed * ahead, speed * back
            slope0 = speed * z0 * (slope * here0 - (one + slope) * there0)
            if mirrored:
                ahead, back, slope = back, ahead, -one - slope
            else:
                ahead, back, slope = bernoulli(z1 * jump)
            speed = load(work, base + mobility + 1)
            flux1 = speed * (ahead * here1 - back * there1)
            speed = tau * speed
            out1, in1 = speed * ahead, speed * back
            slope1 = speed * z1 * (slope * here1 - (one + slope) * there1)
            balance0, balance1 = balance0 + flux0, balance1 + flux1
            d00, d11, d02, d12 = d00 + out0, d11 + out1, d02 - slope0, d12 - slope1
            c00, c11, c02, c12 = -in0, -in1, slope0, slope1
        if given:
            r0, r1 = r0 + load(work, base + y), r1 + load(work, base + y + 1)
        else:
            known = base + CONCENTRATIONS + 4
            r0 = r0 + volume * (here0 - load(work, known)) + tau * balance0
            r1 = r1 + volume * (here1 - load(work, known + 1)) + tau * balance1
            r2 = r2 + gauss
        if baths[k]:
            d00, d01, d02, c00, c02 = one, none, none, none, none
            d10, d11, d12, c11, c12 = none, one, none, none, none
            r0, r1 = none, none
        if held[k]:
            d20, d21, d22, c22, r2 = none, none, one, none, none
        # Elimination, and the solutions for [C, r].
        i0 = one / d00
        l1, l2 = d10 * i0, d20 * i0
        d11, d12, r1 = d11 - l1 * d01, d12 - l1 * d02, r1 - l1 * r0
        d21, d22, r2 = d21 - l2 * d01, d22 - l2 * d02, r2 - l2 * r0
        c10, c12, c20, c22 = -l1 * c00, c12 - l1 * c02, -l2 * c00, c22 - l2 * c02
        i1 = one / d11
        l2 = d21 * i1
        d22, r2 = d22 - l2 * d12, r2 - l2 * r1
        c20, c21, c22 = c20 - l2 * c10, -l2 * c11, c22 - l2 * c12
        i2 = one / d22
        x20, x21, x22, y2 = i2 * c20, i2 * c21, i2 * c22, i2 * r2
        x10, x11 = i1 * (c10 - d12 * x20), i1 * (c11 - d12 * x21)
        x12, y1 = i1 * (c12 - d12 * x22), i1 * (r1 - d12 * y2)
        x00, x01 = i0 * (c00 - d01 * x10 - d02 * x20), i0 * (-d01 * x11 - d02 * x21)
        x02, y0 = i0 * (c02 - d01 * x12 - d02 * x22), i0 * (r0 - d01 * y1 - d02 * y2)
        store(work, base + y, y0)
        store(work, base + y + 1, y1)
        store(work, base + y + 2, y2)
        store(work, base + x, x00)
        store(work, base + x + 1, x01)
        store(work, base + x + 2, x02)
        store(work, base + x + 3, x10)
        store(work, base + x + 4, x11)
        store(work, base + x + 5, x12)
        store(work, base + x + 6, x20)
        store(work, base + x + 7, x21)
        store(work, base + x + 8, x22)
        if k < nodes - 1:
            here0, here1, phi = there0, there1, phi_next


@inlined
def solve_block(work: Any, block: int, size: int) -> None:
    """Replace the right-hand sides of the equations of one node by their solutions."""
    width = 2 * size + 1
    for p in range(size):
        pivot_row = block + p * width
        inverse = 1.0 / load(work, pivot_row + p)
        for t in range(p + 1, width):
            store(work, pivot_row + t, inverse * load(work, pivot_row + t))
        for s in range(size):
            if s != p:
                row = block + s * width
                factor = load(work, row + p)
                for t in range(p + 1, width):
                    store(work, row + t, load(work, row + t) - factor * load(work, pivot_row + t))


@kernel
def _sweep_up(work: Any, nodes: int, species: int, active: Any) -> Any:
    """Substitute back and take a limited step in `active` cells; the largest change, and whether a limit mattered."""
    fields, size = _rows_of_node(species), species + 1
    peak = nodes * fields + VALENCE + 2 * species
    y = CONCENTRATIONS + 7 * species
    x = y + size
    moved, limited = splat(work, 0.0), splat(work, 1.0) < 0.0
    for i in range(nodes):
        k = nodes - 1 - i
        base = k * fields
        if k < nodes - 1:
            for s in range(size):
                update = load(work, base + y + s)
                for t in range(size):
                    update = update - load(work, base + x + s * size + t) * load(work, base + fields + y + t)
                store(work, base + y + s, update)
        update = load(work, base + y + species)
        potential = load(work, base + POTENTIAL)
        moved = largest(moved, absolute(update) / (1.0 + absolute(potential)))
        store(work, base + POTENTIAL, where(active, potential - update, potential))
        for s in range(species):
            c = load(work, base + CONCENTRATIONS + s)
            floor = NEGLIGIBLE * load(work, peak + s)
            proposed = c - load(work, base + y + s)
            kept = largest(proposed, KEEP_AT_LEAST * c)
            limited = limited | ((proposed < KEEP_AT_LEAST * c) & (c > floor))
            moved = largest(moved, absolute(kept - c) / largest(kept, floor))
            store(work, base + CONCENTRATIONS + s, where(active, kept, c))
    return moved, limited


@kernel
def _stage(
    work: Any,
    nodes: int,
    species: int,
    general: Any,
    held: Any,
    baths: Any,
    active: Any,
    tolerance: float,
) -> Any:
    """Newton's method for one stage; which cells converged, and the iterations of each."""
    fields = _rows_of_node(species)
    peak = nodes * fields + VALENCE + 2 * species
    for s in range(species):
        highest = splat(work, 0.0)
        for k in range(nodes):
            highest = largest(highest, load(work, k * fields + CONCENTRATIONS + s))
        store(work, peak + s, highest)
    converged, iterations, before = splat(work, 1.0) < 0.0, splat(work, 0.0), splat(work, 1.0)
    for _ in range(MOST_ITERATIONS):
        if not any_lane(active):
            break
        _sweep_down(work, nodes, species, general, held, baths, np.bool_(False))
        moved, limited = _sweep_up(work, nodes, species, active)
        iterations = where(active, iterations + 1.0, iterations)
        # What the next iteration would change is less by at least the factor that this one changed less.
        done = active & opposite(limited) & (moved * smallest(moved / before, 1.0) < tolerance)
        before = moved
        converged = converged | done
        # A comparison with NaN does not hold.
        active = active & opposite(done) & (moved < 1e200)
    return converged, iterations


@kernel
def _first_rates(work: Any, nodes: int, species: int, baths: Any) -> None:
    """Rates of change of the concentrations at the start."""
    fields = _rows_of_node(species)
    own = nodes * fields
    valence = own + VALENCE
    edges = valence + 3 * species + (species + 1) * (2 * species + 3)
    rate = CONCENTRATIONS + 3 * species
    for k in range(nodes):
        base = k * fields
        left, right = edges + 4 * species * (k % 2), edges + 4 * species * ((k + 1) % 2)
        if k < nodes - 1:
            _edge(work, base, species, fields, valence, right)
        for s in range(species):
            inflow = splat(work, 0.0)
            if k > 0:
                inflow = inflow + load(work, left + 4 * s)
            if k < nodes - 1:
                inflow = inflow - load(work, right + 4 * s)
            store(work, base + rate + s, splat(work, 0.0) if baths[k] else inflow / load(work, base + VOLUME))


@kernel
def _begin_first(work: Any, nodes: int, species: int, held: Any) -> None:
    """Known part of the first stage, and a parabola through the last step as its first guess."""
    fields = _rows_of_node(species)
    own = nodes * fields
    explicit, last = load(work, own + EXPLICIT), load(work, own + LAST)
    ahead = 2.0 * explicit
    bend = where(last > 0.0, ahead * ahead * 0.5 / ((1 - GAMMA) * where(last > 0.0, last, 1.0)), 0.0)
    for k in range(nodes):
        base = k * fields
        if not held[k]:
            trend = load(work, base + TREND) + ahead * load(work, base + CURVE)
            store(work, base + POTENTIAL, load(work, base + BEFORE) + ahead * trend)
        for s in range(species):
            at = base + CONCENTRATIONS + s
            start, change = load(work, at + species), explicit * load(work, at + 3 * species)
            store(work, at + 2 * species, start + change)
            curve = bend * (load(work, at + 3 * species) - load(work, at + 4 * species))
            store(work, at, largest(start + 2.0 * change + curve, KEEP_AT_LEAST * start))


@kernel
def _begin_second(work: Any, nodes: int, species: int, held: Any, baths: Any) -> None:
    """Rates in the middle, known part of the second stage, and a parabola through the first as its first guess."""
    fields = _rows_of_node(species)
    own = nodes * fields
    inverse, weight = 1.0 / load(work, own + STAGE), load(work, own + WEIGHT)
    length, last = load(work, own + LENGTH), load(work, own + LAST)
    for k in range(nodes):
        base = k * fields
        for s in range(species):
            at = base + CONCENTRATIONS + s
            middle, start = load(work, at), load(work, at + species)
            store(work, at + 6 * species, middle)
            rate = inverse * (middle - load(work, at + 2 * species))
            store(work, at + 4 * species, splat(work, 0.0) if baths[k] else rate)
            store(work, at + 2 * species, weight * middle + (1.0 - weight) * start)
            if not baths[k]:
                slope, trend = (middle - start) / GAMMA, length * load(work, at + 3 * species)
                guess = start + trend + (slope - trend) / GAMMA
                store(work, at, largest(guess, KEEP_AT_LEAST * middle))
        middle = load(work, base + POTENTIAL)
        store(work, base + MIDDLE, middle)
        if not held[k]:
            start = load(work, base + BEFORE)
            slope = (middle - start) / GAMMA
            trend = where(last > 0.0, length * load(work, base + TREND), slope)
            store(work, base + POTENTIAL, start + trend + (slope - trend) / GAMMA)


@kernel
def _end(work: Any, nodes: int, species: int, baths: Any, euler: Any) -> None:
    """Rates at the end, in the place of known parts, and the local error as right-hand side."""
    fields = _rows_of_node(species)
    own = nodes * fields
    inverse, length = 1.0 / load(work, own + STAGE), load(work, own + LENGTH)
    y = CONCENTRATIONS + 7 * species
    for k in range(nodes):
        base = k * fields
        volume = load(work, base + VOLUME)
        for s in range(species):
            at = base + CONCENTRATIONS + s
            start, middle = load(work, at + 3 * species), load(work, at + 4 * species)
            end = inverse * (load(work, at) - load(work, at + 2 * species))
            if baths[k]:
                end = splat(work, 0.0)
            store(work, at + 2 * species, end)
            third = ERROR * (start / GAMMA - middle / (GAMMA * (1 - GAMMA)) + end / (1 - GAMMA))
            second = 0.5 * (GAMMA * (middle - start) + (1 - GAMMA) * (end - middle))
            store(work, base + y + s, volume * length * where(euler, second, third))
        store(work, base + y + species, splat(work, 0.0))


@kernel
def _restore_amounts(work: Any, nodes: int, species: int) -> Any:
    """Put exact amounts; returns by how much they were off."""
    fields = _rows_of_node(species)
    amount = nodes * fields + VALENCE + species
    worst = splat(work, 0.0)
    for s in range(species):
        total = splat(work, 0.0)
        for k in range(nodes):
            base = k * fields
            total = total + load(work, base + VOLUME) * load(work, base + CONCENTRATIONS + s)
        factor = load(work, amount + s) / total
        worst = largest(worst, absolute(factor - 1.0))
        for k in range(nodes):
            at = k * fields + CONCENTRATIONS + s
            store(work, at, factor * load(work, at))
    return worst


@kernel
def _error_norm(work: Any, nodes: int, species: int, relative: float, absolute_: float) -> Any:
    """Substitute the filtered error back; its weighted root mean square."""
    fields, size = _rows_of_node(species), species + 1
    y = CONCENTRATIONS + 7 * species
    x = y + size
    total = splat(work, 0.0)
    for i in range(nodes):
        base = (nodes - 1 - i) * fields
        if i > 0:
            for s in range(size):
                error = load(work, base + y + s)
                for t in range(size):
                    error = error - load(work, base + x + s * size + t) * load(work, base + fields + y + t)
                store(work, base + y + s, error)
        for s in range(species):
            weight = absolute_ + relative * load(work, base + CONCENTRATIONS + s)
            scaled = load(work, base + y + s) / weight
            total = total + scaled * scaled
    return square_root(total / (1.0 * nodes * species))


@kernel
def _accept(work: Any, nodes: int, species: int, accepted: Any) -> None:
    """Go on from the end of the step where it was accepted, from its start elsewhere."""
    fields = _rows_of_node(species)
    own = nodes * fields
    inverse = 1.0 / load(work, own + LENGTH)
    store(work, own + LAST, where(accepted, load(work, own + LENGTH), 0.0))
    for k in range(nodes):
        base = k * fields
        before, middle = load(work, base + BEFORE), load(work, base + MIDDLE)
        end = load(work, base + POTENTIAL)
        slope, later = inverse * (middle - before) / GAMMA, inverse * (end - middle) / (1 - GAMMA)
        curve = inverse * (later - slope)
        trend = later + (1 - GAMMA) * (later - slope)
        store(work, base + TREND, where(accepted, trend, load(work, base + TREND)))
        store(work, base + CURVE, where(accepted, curve, 0.0))
        potential = where(accepted, end, before)
        store(work, base + POTENTIAL, potential)
        store(work, base + BEFORE, potential)
        for s in range(species):
            at = base + CONCENTRATIONS + s
            c = where(accepted, load(work, at), load(work, at + species))
            store(work, at, c)
            store(work, at + species, c)
            rate = where(accepted, load(work, at + 2 * species), load(work, at + 3 * species))
            store(work, at + 3 * species, rate)


@kernel
def march(
    work: Any,
    cells: Any,
    tape: Any,
    numbers: Numbers,
    diffusivities: Any,
    general: Any,
    closed: bool,
    held: Any,
    baths: Any,
    start_potential: Any,
    start_concentrations: Any,
    outputs: Any,
    first_steps: Any,
    control: Any,
    most: int,
    potential: Any,
    concentrations: Any,
    report: Any,
) -> Any:
    """Transients of the `cells` `(C,)` of a batch, with results `(B, ...)`.

    `general` is None for two species, else true. `outputs` `(B, T)` are the times to stop at; `control` is relative
    and absolute tolerance, safety, shrink and grow. `report` `(B, 5)`: status, time, iterations, accepted and
    rejected steps. Every accepted step is recorded on the `tape` `(1, W)`, :data:`STATES` says how, unless it has no
    columns. Returns the tape with a row for every step.
    """
    count = lanes_in(work)
    group = np.empty(count, np.int64)
    steps = Steps(
        np.empty(count),
        np.empty(count),
        np.empty(count),
        np.empty(count, np.bool_),
        np.empty(count, np.bool_),
        np.empty(count, np.int64),
    )
    structure, start = (closed, held, baths), (start_potential, start_concentrations, outputs, first_steps)
    results = potential, concentrations, report
    return march_in(
        work,
        group,
        steps,
        tape,
        cells,
        numbers,
        diffusivities,
        general,
        structure,
        start,
        control,
        most,
        results,
    )


@kernel
def march_in(
    work: Any,
    group: Any,
    steps: Steps,
    tape: Any,
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
    """The same in arrays that are given, `group` and `steps` with a number for each lane; the tape may be None."""
    closed, held, baths = structure
    start_potential, start_concentrations, outputs, first_steps = start
    potential, concentrations, report = results
    nodes, species = numbers.volumes.shape[1], numbers.valences.shape[1]
    count = lanes_in(work)
    recorded, longer = 0, tape
    for first in range(0, cells.size, count):
        present = min(count, cells.size - first)
        for lane in range(count):
            group[lane] = cells[first + min(lane, present - 1)]
            steps.time[lane], steps.next[lane], steps.reached[lane] = 0.0, first_steps[group[lane]], 0
            steps.euler[lane], steps.running[lane] = True, lane < present
        _pack(work, group, numbers, diffusivities)
        _put_start(work, group, start_potential, start_concentrations)
        for lane in range(present):
            cell = group[lane]
            report[cell, :] = 0.0
            if outputs[cell, 0] == 0.0:
                _record(work, lane, potential[cell, 0], concentrations[cell, 0])
                steps.reached[lane] = 1
                steps.running[lane] = outputs.shape[1] > 1
        _first_rates(work, nodes, species, baths)
        while _any(steps.running):
            _choose(work, nodes, species, group, outputs, steps)
            _try(work, nodes, species, general, closed, held, baths, control)
            for lane in range(present):
                if steps.running[lane]:
                    cell = group[lane]
                    accepted, length, euler = report[cell, 3], steps.taken[lane], steps.euler[lane]
                    arrived = _judge(work, nodes, species, lane, outputs[cell], control, steps, report[cell])
                    index = steps.reached[lane] - 1 if arrived else -1
                    if arrived:
                        _record(work, lane, potential[cell, index], concentrations[cell, index])
                    if tape is not None:  # noqa: SIM102 (numba leaves this out where it is None)
                        if longer.shape[1] > 0 and report[cell, 3] > accepted:
                            if recorded == longer.shape[0]:
                                longer = _longer(longer)
                            step = longer[recorded]
                            step[CELL], step[OUTPUT], step[DURATION], step[EULER] = cell, index, length, euler
                            _record_step(work, nodes, species, lane, step)
                            recorded += 1
                    _stop(lane, outputs.shape[1], most, steps, report[cell])
    if tape is None:
        return None
    return longer[:recorded]


@inlined
def _any(flags: Any) -> bool:
    """Whether one is set."""
    for flag in flags:  # noqa: SIM110 (numba)
        if flag:
            return True
    return False


@kernel
def _choose(work: Any, nodes: int, species: int, group: Any, outputs: Any, steps: Steps) -> None:
    """How long the step is that every cell tries."""
    own = nodes * _rows_of_node(species)
    for lane in range(lanes_in(work)):
        running, euler, length = steps.running[lane], steps.euler[lane], steps.next[lane]
        if running:
            remaining = outputs[group[lane], steps.reached[lane]] - steps.time[lane]
            # Either all of what remains, or half of it, rather than a sliver at the end.
            if length >= remaining * (1 - 1e-12):
                length = remaining
            elif length >= 0.5 * remaining:
                length = 0.5 * remaining
        steps.taken[lane] = length
        put(work, own + LENGTH, lane, length)
        put(work, own + STAGE, lane, length * (GAMMA if euler else GAMMA / 2))
        put(work, own + EXPLICIT, lane, 0.0 if euler else length * GAMMA / 2)
        put(work, own + WEIGHT, lane, 1.0 if euler else 1 / SPAN)
        put(work, own + ACTIVE, lane, 1.0 if running else 0.0)
        put(work, own + BY_EULER, lane, 1.0 if euler else 0.0)


@kernel
def _try(
    work: Any, nodes: int, species: int, general: Any, closed: bool, held: Any, baths: Any, control: Any
) -> None:
    """Take a step with every cell that is active, and go on from its end where its error is small enough."""
    own = nodes * _rows_of_node(species)
    active, euler = load(work, own + ACTIVE) > 0.0, load(work, own + BY_EULER) > 0.0
    tolerance = max(min(SETTLED, SHARE * control[0]), ROUNDING)
    _begin_first(work, nodes, species, held)
    converged, iterations = _stage(work, nodes, species, general, held, baths, active, tolerance)
    _begin_second(work, nodes, species, held, baths)
    shorter = load(work, own + LENGTH) * (1 - GAMMA)
    store(work, own + STAGE, where(euler, shorter, load(work, own + STAGE)))
    converged, more = _stage(work, nodes, species, general, held, baths, converged, tolerance)
    _end(work, nodes, species, baths, euler)
    if closed:
        converged = converged & (_restore_amounts(work, nodes, species) < LOST)
    _sweep_down(work, nodes, species, general, held, baths, np.bool_(True))
    norm = _error_norm(work, nodes, species, control[0], control[1])
    _accept(work, nodes, species, converged & (norm <= 1.0))
    store(work, own + NORM, norm)
    store(work, own + ITERATIONS, iterations + more)
    store(work, own + CONVERGED, where(converged, 1.0, 0.0))


@kernel
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
    own = nodes * _rows_of_node(species)
    norm = get(work, own + NORM, lane)
    failed = get(work, own + CONVERGED, lane) == 0.0 or not math.isfinite(norm)
    length, euler = steps.taken[lane], steps.euler[lane]
    report[2] += get(work, own + ITERATIONS, lane)
    if failed:
        report[4] += 1
        # Without a positive solution: the same step by backward Euler, then a shorter one.
        steps.next[lane] = length * control[3] if euler else length
        steps.euler[lane] = True
        return False
    factor = control[2] * max(norm, 1e-12) ** (-1.0 / (2.0 if euler else 3.0))
    factor = 2.0 ** (math.floor(math.log2(factor) * PER_OCTAVE) / PER_OCTAVE)
    factor = min(max(factor, control[3]), control[4])
    if not norm <= 1.0:
        report[4] += 1
        steps.next[lane] = length * factor
        return False
    report[3] += 1
    # A step cut short to land on an output time does not hold back the next one.
    steps.next[lane] = max(length * factor, steps.next[lane]) if factor >= 1.0 else length * factor
    steps.euler[lane] = False
    target = outputs[steps.reached[lane]]
    arrived = length == target - steps.time[lane]
    steps.time[lane] = target if arrived else steps.time[lane] + length
    steps.reached[lane] += arrived
    return arrived


@kernel
def _stop(lane: int, count: int, most: int, steps: Steps, report: Any) -> None:
    """Leave a cell that has arrived at the last output, or cannot."""
    report[1] = steps.time[lane]
    if steps.reached[lane] == count:
        steps.running[lane] = False
    elif steps.next[lane] < SMALLEST_STEP * max(steps.time[lane], 1e-6):
        report[0], steps.running[lane] = STUCK, False
    elif report[3] + report[4] >= most:
        report[0], steps.running[lane] = SPENT, False


@kernel
def _record(work: Any, lane: int, potential: Any, concentrations: Any) -> None:
    """Copy the state of one cell."""
    species = concentrations.shape[0]
    fields = _rows_of_node(species)
    for k in range(potential.size):
        potential[k] = get(work, k * fields + POTENTIAL, lane)
        for s in range(species):
            concentrations[s, k] = get(work, k * fields + CONCENTRATIONS + s, lane)


@kernel
def _record_step(work: Any, nodes: int, species: int, lane: int, step: Any) -> None:
    """Copy the end and the middle of a step of one cell."""
    fields = _rows_of_node(species)
    for k in range(nodes):
        base = k * fields
        end, middle = STATES + k, STATES + (species + 1) * nodes + k
        for s in range(species):
            at = base + CONCENTRATIONS + s
            step[end + s * nodes] = get(work, at, lane)
            step[middle + s * nodes] = get(work, at + 6 * species, lane)
        step[end + species * nodes] = get(work, base + POTENTIAL, lane)
        step[middle + species * nodes] = get(work, base + MIDDLE, lane)


@kernel
def _longer(tape: Any) -> Any:
    """Room for twice as many steps."""
    longer = np.empty((2 * tape.shape[0], tape.shape[1]))
    for step in range(tape.shape[0]):
        for column in range(tape.shape[1]):
            longer[step, column] = tape[step, column]
    return longer


@kernel
def _put_start(work: Any, group: Any, potential: Any, concentrations: Any) -> None:
    """The states at the start, which change in no known way."""
    store(work, concentrations.shape[2] * _rows_of_node(concentrations.shape[1]) + LAST, 0.0)
    species, nodes = concentrations.shape[1:]
    fields = _rows_of_node(species)
    for k in range(nodes):
        base = k * fields
        for lane in range(lanes_in(work)):
            cell = group[lane]
            put(work, base + TREND, lane, 0.0)
            put(work, base + CURVE, lane, 0.0)
            put(work, base + MIDDLE, lane, potential[cell, k])
            put(work, base + POTENTIAL, lane, potential[cell, k])
            put(work, base + BEFORE, lane, potential[cell, k])
            for s in range(species):
                c = concentrations[cell, s, k]
                put(work, base + CONCENTRATIONS + s, lane, c)
                put(work, base + CONCENTRATIONS + species + s, lane, c)


@kernel
def _pack(work: Any, group: Any, numbers: Numbers, diffusivities: Any) -> None:
    """Put the numbers of a group of cells side by side."""
    nodes, species = numbers.volumes.shape[1], numbers.valences.shape[1]
    fields = _rows_of_node(species)
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
                    put(work, base + CONCENTRATIONS + 5 * species + s, lane, mobility)
    pack_cells(work, nodes * fields, VALENCE, group, numbers, True)
