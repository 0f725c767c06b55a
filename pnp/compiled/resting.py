r"""Cells that come to rest: point ions, a few species, many cells at a time.

Newton's method with backtracking on the convex functional G of :mod:`pnp.solvers.equilibrium`. Its second
derivative is tridiagonal but for the amounts that a closed cell keeps,

.. math:: H = T - \sum_i \frac{u_i u_i^\top}{N_i}, \qquad u_i = z_i V c_i,

so that :math:`H^{-1}` takes one elimination with a right-hand side more for every species (Woodbury's formula).
All sums it needs are known after the sweep down, and the sweep back has one right-hand side only.

Rows of the work array: :func:`row_count`. Functions here act on numbers of one cell or of several at once,
see :mod:`pnp.compiled.lanes`.
"""

import math
from typing import Any

import numpy as np

from .inputs import Numbers, pack_cells
from .lanes import (
    absolute,
    any_lane,
    exponential,
    get,
    kernel,
    lanes_in,
    largest,
    load,
    logarithm,
    opposite,
    part,
    put,
    put_nodes,
    scalar_product,
    smallest,
    splat,
    store,
    take_nodes,
    where,
)

POTENTIAL, STIFFNESS, VOLUME, FIXED, PIVOT, RHS, STEP, SPECIES = range(8)
"""Rows of a node: potential, permittivity over the spacing to its right, control volume, fixed charge in it,
inverse pivot, right-hand side, Newton update, and from there on one row a species: its amount in the volume."""
LEFT_SPRING, LEFT_CHARGE, RIGHT_SPRING, RIGHT_CHARGE, BATH, CONVERGED, ITERATIONS, CHANGE, VALENCE = range(9)
"""Rows of a cell, after its nodes: what an end adds to Gauss's law, spring times potential less charge; the
potential of the bath; whether it converged, in how many iterations, and the last relative change of its potentials;
and from there on, for every species, valence, amount (or concentration in the bath),
shift of the exponent, concentration where the exponent is zero, coefficient, and a square matrix."""
LEAST, MOST = -644.0, 690.0
"""Exponents are kept in between, so that no concentration vanishes and none is infinite."""
SUFFICIENT_DECREASE, SHORTEST = 1e-4, 1e-12


@kernel
def row_count(nodes: int, species: int) -> int:
    """How many rows the work of one group takes."""
    return nodes * (SPECIES + species) + VALENCE + species * (5 + species)


@part
def relax(work: Any, nodes: int, species: int, closed: bool, held: Any, tolerance: float, most: int) -> None:
    """From the potential in the rows to that of the equilibrium; amounts in volumes become concentrations."""
    fields = SPECIES + species
    own = nodes * fields
    low, high = splat(work, 1e300), splat(work, -1e300)
    for k in range(nodes):
        potential = load(work, k * fields)
        low, high = smallest(low, potential), largest(high, potential)
    active = low <= high
    converged = low > high
    poor = low > high
    iterations, change, fraction = splat(work, 0.0), splat(work, 1e300), splat(work, 1.0)
    value, descent = splat(work, 0.0), splat(work, 0.0)
    for attempt in range(2 * most):
        found = _boltzmann(work, nodes, species, closed, low, high)
        rounding = 1e-13 * (1.0 + absolute(found))
        enough = found <= value - SUFFICIENT_DECREASE * fraction * descent + rounding
        if attempt > 0:
            poor = active & opposite(enough)
            settled = active & opposite(poor) & (fraction == 1.0) & (change < tolerance)
            converged = converged | settled
            lost = (poor & (fraction < SHORTEST)) | (active & (iterations >= most))
            active = active & opposite(settled) & opposite(lost)
            poor = poor & active
        if not any_lane(active):
            break
        value = where(poor, value, found)
        decrease = _eliminate(work, nodes, species, closed, held, False)
        descent = where(poor, descent, decrease)
        iterations = where(active & opposite(poor), iterations + 1.0, iterations)
        # What was too long a step goes back by half of it.
        fraction = where(poor, 0.5 * fraction, 1.0)
        step = where(active, where(poor, -fraction, 1.0), 0.0)
        size = 1.0 + largest(absolute(low), absolute(high))
        longest, low, high = _advance(work, nodes, species, closed, held, poor, step)
        change = where(active & opposite(poor), longest / size, change)
    if any_lane(active):
        _boltzmann(work, nodes, species, closed, low, high)
    _concentrations(work, nodes, species)
    store(work, own + CONVERGED, where(converged, 1.0, 0.0))
    store(work, own + ITERATIONS, iterations)
    store(work, own + CHANGE, change)


@part
def _boltzmann(work: Any, nodes: int, species: int, closed: bool, low: Any, high: Any) -> Any:
    """Amounts in the volumes up to a factor, the factors, and the value of G."""
    fields = SPECIES + species
    own = nodes * fields
    valence = own + VALENCE
    amount, shift, factor = valence + species, valence + 2 * species, valence + 3 * species
    for s in range(species):
        z = load(work, valence + s)
        store(work, shift + s, largest(-z * low, -z * high) if closed else -z * load(work, own + BATH))
        store(work, factor + s, splat(work, 0.0))
    value = splat(work, 0.0)
    before = load(work, 0)
    for k in range(nodes):
        base = k * fields
        potential, volume = load(work, base), load(work, base + VOLUME)
        if k > 0:
            drop = potential - before
            value = value + 0.5 * load(work, base - fields + STIFFNESS) * drop * drop
            before = potential
        value = value - load(work, base + FIXED) * potential
        for s in range(species):
            exponent = -load(work, valence + s) * potential - load(work, shift + s)
            weight = volume * exponential(smallest(largest(exponent, LEAST), MOST))
            store(work, base + SPECIES + s, weight)
            store(work, factor + s, load(work, factor + s) + weight)
    for s in range(species):
        total, there = load(work, factor + s), load(work, amount + s)
        if closed:
            value = value + there * (logarithm(total) + load(work, shift + s))
            store(work, factor + s, there / total)
        else:
            value = value + there * total
            store(work, factor + s, there)
    for end in range(2):
        potential = load(work, end * (nodes - 1) * fields)
        spring, charge = load(work, own + 2 * end), load(work, own + 2 * end + 1)
        value = value + (0.5 * spring * potential - charge) * potential
    return value


@part
def _eliminate(work: Any, nodes: int, species: int, closed: bool, held: Any, given: bool) -> Any:
    r"""The sweep down: pivots, eliminated right-hand sides, and coefficients of Woodbury's formula.

    The right-hand side is the derivative of G, or the one `given` in the rows. Amounts in volumes are replaced by
    the eliminated columns :math:`u_i`. Returns the product of right-hand side and solution.
    """
    fields = SPECIES + species
    own = nodes * fields
    valence = own + VALENCE
    factor, coefficient = valence + 3 * species, valence + 4 * species
    matrix = coefficient + species
    for s in range(species):
        store(work, coefficient + s, splat(work, 0.0))
        for t in range(species):
            store(work, matrix + s * species + t, splat(work, 0.0))
        store(work, matrix + s * species + s, load(work, valence + species + s))
    product = splat(work, 0.0)
    for k in range(nodes):
        base = k * fields
        if held[k]:
            store(work, base + PIVOT, splat(work, 0.0))
            store(work, base + RHS, splat(work, 0.0))
            for s in range(species):
                store(work, base + SPECIES + s, splat(work, 0.0))
            continue
        potential = load(work, base)
        pivot, gauss = splat(work, 0.0), -load(work, base + FIXED)
        if k > 0:
            stiffness = load(work, base - fields + STIFFNESS)
            pivot = stiffness
            gauss = gauss + stiffness * (potential - load(work, base - fields))
        if k < nodes - 1:
            stiffness = load(work, base + STIFFNESS)
            pivot = pivot + stiffness
            gauss = gauss + stiffness * (potential - load(work, base + fields))
        if k == 0 or k == nodes - 1:
            end = own + LEFT_SPRING if k == 0 else own + RIGHT_SPRING
            pivot = pivot + load(work, end)
            gauss = gauss + load(work, end) * potential - load(work, end + 1)
        # What the node before leaves, nothing if its potential is held.
        share = splat(work, 0.0)
        if k > 0:
            stiffness = load(work, base - fields + STIFFNESS)
            share = stiffness * load(work, base - fields + PIVOT)
            pivot = pivot - stiffness * share
        for s in range(species):
            z = load(work, valence + s)
            column = z * load(work, factor + s) * load(work, base + SPECIES + s)
            gauss = gauss - column
            pivot = pivot + z * column
            if k > 0:
                column = column + share * load(work, base - fields + SPECIES + s)
            store(work, base + SPECIES + s, column)
        rhs = load(work, base + RHS) if given else gauss
        if k > 0:
            rhs = rhs + share * load(work, base - fields + RHS)
        inverse = 1.0 / pivot
        store(work, base + PIVOT, inverse)
        store(work, base + RHS, rhs)
        product = product + rhs * rhs * inverse
        if closed:
            for s in range(species):
                scaled = load(work, base + SPECIES + s) * inverse
                store(work, coefficient + s, load(work, coefficient + s) + scaled * rhs)
                for t in range(s + 1):
                    place = matrix + s * species + t
                    store(work, place, load(work, place) - scaled * load(work, base + SPECIES + t))
    return product + _solve_small(work, coefficient, matrix, species) if closed else product


@part
def _solve_small(work: Any, coefficient: int, matrix: int, species: int) -> Any:
    """Solve with the symmetric matrix in the rows; returns right-hand side times solution."""
    product = splat(work, 0.0)
    for s in range(species):
        for t in range(s):
            entry = load(work, matrix + s * species + t)
            for r in range(t):
                ahead = load(work, matrix + s * species + r) * load(work, matrix + t * species + r)
                entry = entry - ahead * load(work, matrix + r * species + r)
            store(work, matrix + s * species + t, entry / load(work, matrix + t * species + t))
        diagonal, rhs = load(work, matrix + s * species + s), load(work, coefficient + s)
        for r in range(s):
            entry = load(work, matrix + s * species + r)
            diagonal = diagonal - entry * entry * load(work, matrix + r * species + r)
            rhs = rhs - entry * load(work, coefficient + r)
        store(work, matrix + s * species + s, diagonal)
        store(work, coefficient + s, rhs)
        product = product + rhs * rhs / diagonal
    for i in range(species):
        s = species - 1 - i
        x = load(work, coefficient + s) / load(work, matrix + s * species + s)
        for r in range(s + 1, species):
            x = x - load(work, matrix + r * species + s) * load(work, coefficient + r)
        store(work, coefficient + s, x)
    return product


@part
def _advance(work: Any, nodes: int, species: int, closed: bool, held: Any, keep: Any, step: Any) -> Any:
    """The sweep back: Newton updates (where not to `keep` the last one) and `step` times them off the potential.

    Returns the largest update and the range of the potential.
    """
    fields = SPECIES + species
    coefficient = nodes * fields + VALENCE + 4 * species
    longest, low, high, after = splat(work, 0.0), splat(work, 1e300), splat(work, -1e300), splat(work, 0.0)
    for i in range(nodes):
        k = nodes - 1 - i
        base = k * fields
        rhs = load(work, base + RHS)
        if closed:
            for s in range(species):
                rhs = rhs + load(work, coefficient + s) * load(work, base + SPECIES + s)
        if k < nodes - 1:
            rhs = rhs + load(work, base + STIFFNESS) * after
        after = rhs * load(work, base + PIVOT)
        update = where(keep, load(work, base + STEP), after)
        store(work, base + STEP, update)
        potential = load(work, base) - step * update
        store(work, base, potential)
        longest = largest(longest, absolute(update))
        low, high = smallest(low, potential), largest(high, potential)
    return longest, low, high


@part
def _concentrations(work: Any, nodes: int, species: int) -> None:
    """Put concentrations in the place of amounts in volumes."""
    fields = SPECIES + species
    factor = nodes * fields + VALENCE + 3 * species
    for k in range(nodes):
        base = k * fields
        share = 1.0 / load(work, base + VOLUME)
        for s in range(species):
            amount = load(work, factor + s) * load(work, base + SPECIES + s)
            store(work, base + SPECIES + s, amount * share)


@kernel
def rest(
    work: Any,
    cells: Any,
    numbers: Numbers,
    closed: bool,
    held: Any,
    warm: bool,
    tolerance: float,
    most: int,
    potential: Any,
    concentrations: Any,
    report: Any,
) -> None:
    """Equilibria of the `cells` `(C,)` of a batch, with results `(B, ...)`.

    If `warm`, iterations start at `potential`. `report` `(B, 3)`: whether a cell converged, iterations, last change.
    """
    on_walls = np.any(numbers.ends[:, 2] != 0.0) or np.any(numbers.ends[:, 5] != 0.0)
    charged = on_walls or np.any(numbers.fixed_charge != 0.0)
    group = np.empty(lanes_in(work), np.int64)
    options = closed, held, warm, charged, tolerance, most
    rest_in(work, group, cells, numbers, options, potential, concentrations, report)


@part
def rest_in(
    work: Any,
    group: Any,
    cells: Any,
    numbers: Numbers,
    options: Any,
    potential: Any,
    concentrations: Any,
    report: Any,
) -> None:
    """The same in arrays that are given, `group` with a number for each lane."""
    closed, held, warm, charged, tolerance, most = options
    nodes, species = numbers.volumes.shape[1], numbers.valences.shape[1]
    fields, count = SPECIES + species, lanes_in(work)
    for first in range(0, cells.size, count):
        for lane in range(count):
            group[lane] = cells[min(first + lane, cells.size - 1)]
        _pack(work, group, numbers, held)
        if warm:
            put_nodes(work, POTENTIAL, fields, potential, group, 0)
        else:
            _start(work, nodes, species, closed, held)
        if charged:
            _charge(work, group, numbers)
        relax(work, nodes, species, closed, held, tolerance, most)
        take_nodes(work, POTENTIAL, fields, potential, group, 0)
        for s in range(species):
            take_nodes(work, SPECIES + s, fields, concentrations, group, s)
        for lane in range(count):
            for what in range(3):
                report[group[lane], what] = get(work, nodes * fields + CONVERGED + what, lane)


@part
def _pack(work: Any, group: Any, numbers: Numbers, held: Any) -> None:
    """Put the numbers of a group of cells side by side, without any charge but that of springs."""
    nodes, species = numbers.volumes.shape[1], numbers.valences.shape[1]
    fields = SPECIES + species
    own = nodes * fields
    varies = numbers.permittivity.shape[1] > 1
    put_nodes(work, VOLUME, fields, numbers.volumes, group, 0)
    put_nodes(work, STIFFNESS, fields, numbers.spacings, group, 0)
    put_nodes(work, PIVOT, fields, numbers.permittivity, group, 0)
    for k in range(nodes):
        base = k * fields
        store(work, base + POTENTIAL, splat(work, 0.0))
        store(work, base + FIXED, splat(work, 0.0))
        if k < nodes - 1:
            permittivity = load(work, k * varies * fields + PIVOT)
            store(work, base + STIFFNESS, permittivity / load(work, base + STIFFNESS))
    pack_cells(work, own, VALENCE, group, numbers, False)
    for lane in range(lanes_in(work)):
        put(work, own + BATH, lane, numbers.ends[group[lane], 6])
        for side in range(2):
            if held[side * (nodes - 1)]:
                row = side * (nodes - 1) * fields + POTENTIAL
                put(work, row, lane, numbers.ends[group[lane], 3 * side])


@part
def _charge(work: Any, group: Any, numbers: Numbers) -> None:
    """Put the charges that are given, in the electrolyte and on walls."""
    nodes = numbers.volumes.shape[1]
    fields = SPECIES + numbers.valences.shape[1]
    varies = numbers.fixed_charge.shape[1] > 1
    put_nodes(work, FIXED, fields, numbers.fixed_charge, group, 0)
    for i in range(nodes):
        k = nodes - 1 - i  # the first, which may be that of all, comes last
        fixed = load(work, k * varies * fields + FIXED)
        store(work, k * fields + FIXED, load(work, k * fields + VOLUME) * fixed)
    pack_cells(work, nodes * fields, VALENCE, group, numbers, True)


@part
def _start(work: Any, nodes: int, species: int, closed: bool, held: Any) -> None:
    """The potential of Debye and Hückel: one Newton step from ions that are spread evenly.

    Fixed charges and those of walls are left out, which would make an absurd potential without nonlinear screening.
    """
    fields = SPECIES + species
    own = nodes * fields
    amount, factor = own + VALENCE + species, own + VALENCE + 3 * species
    length = splat(work, 0.0)
    for k in range(nodes):
        length = length + load(work, k * fields + VOLUME)
    for s in range(species):
        even = load(work, amount + s) / length if closed else load(work, amount + s)
        store(work, factor + s, even)
    for k in range(nodes):
        base = k * fields
        if not held[k]:
            store(work, base, load(work, own + BATH))
        for s in range(species):
            store(work, base + SPECIES + s, load(work, base + VOLUME))
    _eliminate(work, nodes, species, closed, held, False)
    none = splat(work, 1.0) < 0.0
    _advance(work, nodes, species, closed, held, none, splat(work, 1.0))


@kernel
def rest_adjoint(
    work: Any,
    cells: Any,
    numbers: Numbers,
    closed: bool,
    held: Any,
    potential: Any,
    concentrations: Any,
    by_potential: Any,
    by_concentrations: Any,
    found: Numbers,
) -> None:
    r"""Derivatives of a number with respect to all inputs of :func:`rest`, from those `by` its results.

    With :math:`H\lambda = \bar\phi`, the total derivative by the potential, one solve serves all of them. Those by
    the potential itself may be empty: then there are none.
    """
    nodes, count = numbers.volumes.shape[1], lanes_in(work)
    groups = np.empty(count, np.int64), np.arange(count)
    spare = np.empty((count, nodes)), np.empty((count, nodes)), np.empty(nodes), np.empty(nodes)
    state = potential, concentrations, by_potential, by_concentrations
    rest_adjoint_in(work, groups, spare, cells, numbers, closed, held, state, found)


@part
def rest_adjoint_in(
    work: Any,
    groups: Any,
    spare: Any,
    cells: Any,
    numbers: Numbers,
    closed: bool,
    held: Any,
    states: Any,
    found: Numbers,
) -> None:
    """The same in arrays that are given: of `groups` the second has the numbers of the lanes.

    Two `(lane, node)` and two `(node,)` are to `spare`.
    """
    group, every = groups
    potential, concentrations, by_potential, by_concentrations = states
    nodes, species = numbers.volumes.shape[1], numbers.valences.shape[1]
    fields, count = SPECIES + species, lanes_in(work)
    own = nodes * fields
    # The same numbers cell by cell, because rows of lanes are far apart.
    totals, multipliers, charge, moved = spare
    for first in range(0, cells.size, count):
        for lane in range(count):
            cell = cells[min(first + lane, cells.size - 1)]
            group[lane] = cell
            c, by_c = concentrations[cell], by_concentrations[cell]
            total_by_potential(totals[lane], cell, numbers, closed, c, by_potential[cell], by_c)
        _pack(work, group, numbers, held)
        put_nodes(work, RHS, fields, totals, every, 0)
        for s in range(species):
            put_nodes(work, SPECIES + s, fields, concentrations, group, s)
            for k in range(nodes):
                row = k * fields + SPECIES + s
                store(work, row, load(work, k * fields + VOLUME) * load(work, row))
            store(work, own + VALENCE + 3 * species + s, splat(work, 1.0))
        _eliminate(work, nodes, species, closed, held, True)
        _advance(work, nodes, species, closed, held, splat(work, 1.0) < 0.0, splat(work, 0.0))
        take_nodes(work, STEP, fields, multipliers, every, 0)
        for lane in range(min(count, cells.size - first)):
            cell = group[lane]
            c, by_c = concentrations[cell], by_concentrations[cell]
            state = potential[cell], c, by_potential[cell], by_c
            by_numbers(cell, numbers, closed, held, multipliers[lane], state, found, charge, moved)


@part
def total_by_potential(
    total: Any, cell: int, numbers: Numbers, closed: bool, c: Any, by_phi: Any, by_c: Any
) -> None:
    """Total derivative by the potential of one cell: its own and through Boltzmann's factors."""
    valences, volumes = numbers.valences[cell], numbers.volumes[cell]
    if by_phi.size > 0:
        for k in range(total.size):
            total[k] = by_phi[k]
    else:
        for k in range(total.size):
            total[k] = 0.0
    for s in range(valences.size):
        share = scalar_product(c[s], by_c[s]) / numbers.amounts[cell, s] if closed else 0.0
        for k in range(total.size):
            total[k] += valences[s] * c[s, k] * (share * volumes[k] - by_c[s, k])


@part
def by_numbers(
    cell: int,
    numbers: Numbers,
    closed: bool,
    held: Any,
    multiplier: Any,
    state: Any,
    found: Numbers,
    charge: Any,
    moved: Any,
) -> None:
    """Derivatives by the numbers of one cell, from its multipliers and its state with what is `by` that.

    Only those of `found` that have columns, see :class:`~pnp.compiled.inputs.Numbers`.
    `charge` and `moved` `(N,)` are to write in.
    """
    phi, c, by_phi, by_c = state
    spacings, volumes, ends = numbers.spacings[cell], numbers.volumes[cell], numbers.ends[cell]
    permittivity, fixed_charge = numbers.permittivity[cell], numbers.fixed_charge[cell]
    valences, amounts = numbers.valences[cell], numbers.amounts[cell]
    of_permittivity, of_spacings, of_volumes = (
        found.permittivity[cell],
        found.spacings[cell],
        found.volumes[cell],
    )
    of_fixed_charge, of_valences = found.fixed_charge[cell], found.valences[cell]
    of_amounts, of_ends = found.amounts[cell], found.ends[cell]
    nodes = phi.size
    ends_wanted, geometry, valences_wanted = of_ends.size > 0, of_volumes.size > 0, of_valences.size > 0
    fixed_wanted, medium = of_fixed_charge.size > 0, of_permittivity.size > 0
    material, fixed = int(permittivity.size > 1), int(fixed_charge.size > 1)
    # Of the ends, first the total derivatives by their potentials.
    if ends_wanted and by_phi.size > 0:
        of_ends[0], of_ends[3] = by_phi[0], by_phi[nodes - 1]
    for k in range(nodes):
        charge[k] = multiplier[k] * volumes[k]
    if geometry:
        for k in range(nodes):
            of_volumes[k] = multiplier[k] * fixed_charge[k * fixed]
    if fixed_wanted:
        for k in range(nodes):
            of_fixed_charge[k * fixed] += charge[k]
    for s in range(valences.size):
        z, own, by = valences[s], c[s], by_c[s]
        felt = scalar_product(own, charge)
        share = scalar_product(own, by) + z * felt
        each = share / amounts[s] if closed else 0.0
        if valences_wanted:
            for k in range(nodes):
                moved[k] = own[k] * phi[k]
            work = felt - scalar_product(moved, by) - z * scalar_product(moved, charge)
            of_valences[s] = work + (each * scalar_product(moved, volumes) if closed else share * ends[6])
        if of_amounts.size > 0:
            of_amounts[s] = share / amounts[s]
            if not closed and amounts[s] == 0.0:
                of_amounts[s] = 0.0
                for k in range(nodes):
                    of_amounts[s] += (by[k] + z * charge[k]) * math.exp(-z * (phi[k] - ends[6]))
        if ends_wanted and not closed:
            of_ends[6] += z * share
        if geometry:
            for k in range(nodes):
                of_volumes[k] += (multiplier[k] * z - each) * own[k]
        for side in range(2 if ends_wanted else 0):
            k = side * (nodes - 1)
            of_ends[3 * side] += z * own[k] * (each * volumes[k] - by[k] - z * charge[k])
    strain = charge  # which is spent
    for k in range(nodes - 1):
        strain[k] = -(multiplier[k] - multiplier[k + 1]) * (phi[k] - phi[k + 1]) / spacings[k]
    if medium and material > 0:
        for k in range(nodes - 1):
            of_permittivity[k] = strain[k]
    elif medium:
        strained = 0.0
        for k in range(nodes - 1):
            strained += strain[k]
        of_permittivity[0] = strained
    if of_spacings.size > 0:
        for k in range(nodes - 1):
            of_spacings[k] = -strain[k] * permittivity[k * material] / spacings[k]
    for side in range(2 if ends_wanted else 0):
        node, next_ = side * (nodes - 1), 1 + side * (nodes - 3)
        if held[node]:
            edge = side * (nodes - 2)
            stiffness = permittivity[edge * material] / spacings[edge]
            of_ends[3 * side] += stiffness * multiplier[next_]
        else:
            of_ends[3 * side] = multiplier[node] * ends[3 * side + 1]
            of_ends[3 * side + 1] = multiplier[node] * (ends[3 * side] - phi[node])
            of_ends[3 * side + 2] = multiplier[node]
