r"""Cells of many species that come to rest: point ions, one cell at a time, nodes or ions side by side.

Newton's method with backtracking on the convex functional G of :mod:`pnp.solvers.equilibrium`, as in
:mod:`pnp.compiled.resting`. What many species do together, :math:`\sum_i N_i f(z_i)` of smooth f, Gauss's rule says
of a *few* ions that have the same moments :math:`\sum_i N_i z_i^m`, see :func:`few_ions`. They are an electrolyte of
their own: its equilibrium is where the iterations of the many start, and its second derivative of G,

.. math:: P = T - \sum_m v_m v_m^\top, \qquad v_m = z_m V c_m / \sqrt{N_m},

with a tridiagonal T, is what conjugate gradients for :math:`H\delta = G'` are preconditioned with. H itself is never
made: of every species a product takes one scalar product,

.. math:: Hx = Lx + \sum_i z_i^2 V c_i\,\Big(x - \frac{1}{N_i}\int c_i\,x\Big),

with Poisson's matrix L. The few decide how long it takes, not what comes out.
"""

from typing import Any

import numpy as np

from .inputs import Numbers
from .lanes import (
    LANES,
    exponential,
    kernel,
    largest,
    load,
    logarithm,
    part,
    scalar_product,
    smallest,
    splat,
    store,
    total,
    where,
)
from .resting import LEAST, MOST, SHORTEST, SUFFICIENT_DECREASE, by_numbers, total_by_potential

START, FEW, ALL = range(3)
"""Of what the equilibrium is sought."""
FREE, LEVEL, STIFFNESS, VOLUME, SPRING, FIXED, POTENTIAL, BEFORE, CHARGE, RESIDUAL, STEP = range(11)
"""Rows of the nodes of a cell: one where the potential is free, else zero, and what holds it there; permittivity over
the spacing to the right; control volume; what an end adds to Gauss's law; charge that is given; potential, also before
a step; charge of the ions; derivative of G; Newton step."""
LEFT, CORRECTED, DIRECTION, IMAGE, PIVOT, SCRATCH, ROWS = range(11, 18)
"""Rows of conjugate gradients: residual, the same preconditioned, direction, its image; and inverse pivots of T."""
VALENCE, ROOT, FACTOR, COLUMN = 0, 1, 2, 2 + LANES
"""Rows of the few ions: valences, roots of their amounts, Cholesky's factor of 1 - vᵀ T⁻¹ v, and from there on, for
every node, v with what is below it eliminated."""
INEXACT, EXACT = 1e-5, 1e-13
"""What conjugate gradients leave of a residual: of a Newton step, and of multipliers."""
MOST_PRODUCTS = 200


def few_ions(valences: Any, amounts: Any) -> tuple[Any, Any]:
    r"""Valences and amounts `(B, LANES)` with as many moments :math:`\sum_i N_i z_i^m` of many ions as they can have.

    Gauss's rule from Lanczos's recurrence. Where fewer valences differ, the rest of the few have no amount.

    References:
        Golub & Welsch, Math. Comp. 23, 221 (1969).
    """
    batch, species = valences.shape
    basis, matrix = np.zeros((batch, LANES + 1, species)), np.zeros((batch, LANES + 1, LANES + 1))
    whole = amounts.sum(-1, keepdims=True)
    basis[:, 0] = np.sqrt(amounts / whole)
    size = np.abs(valences).max(-1)
    for m in range(LANES):
        moved = valences * basis[:, m]
        matrix[:, m, m] = (moved * basis[:, m]).sum(-1)
        for _ in range(2):  # the second time takes away what rounding left
            known = basis @ moved[:, :, None]
            moved -= (known.swapaxes(1, 2) @ basis)[:, 0]
        length = np.linalg.norm(moved, axis=-1)
        length[length < 1e-10 * size] = 0.0
        matrix[:, m, m + 1] = matrix[:, m + 1, m] = length
        np.divide(moved, length[:, None], out=basis[:, m + 1], where=length[:, None] > 0)
    few, vectors = np.linalg.eigh(matrix[:, :-1, :-1])
    return few, whole * vectors[:, 0] ** 2


@kernel
def rest_many(
    cells: Any,
    few_valences: Any,
    few_amounts: Any,
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
    """Equilibria of the `cells` `(C,)` of a batch, see :func:`pnp.compiled.resting.rest`, with the few ions of each."""
    volumes, ends, fixed_charge = numbers.volumes, numbers.ends, numbers.fixed_charge
    count = volumes.shape[1]
    for index in range(cells.size):
        cell = cells[index]
        bath = ends[cell, 6]
        nodes = _nodes(cell, numbers, held)
        few = _few(few_valences[cell], few_amounts[cell], count)
        if warm:
            for k in range(count):
                nodes[POTENTIAL, k] = potential[cell, k]
        fixed = int(fixed_charge.shape[1] > 1)
        ions = (numbers.valences[cell], numbers.amounts[cell], concentrations[cell])
        report[cell, 1] = 0.0
        for stage in range(FEW if warm else START, ALL + 1):
            # Without screening these would make an absurd start.
            if stage == FEW:
                for k in range(count):
                    nodes[FIXED, k] += volumes[cell, k] * fixed_charge[cell, k * fixed]
                for side in range(2):
                    nodes[FIXED, side * (count - 1)] += ends[cell, 3 * side + 2]
            found = _relax(nodes, few, ions, closed, bath, stage, tolerance, most)
            report[cell, 0], report[cell, 2] = found[0], found[2]
            report[cell, 1] += found[1]
        for k in range(count):
            potential[cell, k] = nodes[POTENTIAL, k]


@part
def _nodes(cell: int, numbers: Numbers, held: Any) -> Any:
    """Nodes in whole rows of lanes, with no charge but that of springs, at the potential of the bath or at zero."""
    permittivity, spacings = numbers.permittivity[cell], numbers.spacings[cell]
    volumes, ends = numbers.volumes[cell], numbers.ends[cell]
    count = volumes.size
    nodes = np.zeros((ROWS, -(-count // LANES) * LANES))
    material = int(permittivity.size > 1)
    for k in range(count):
        nodes[FREE, k] = 0.0 if held[k] else 1.0
        nodes[VOLUME, k] = volumes[k]
        if k < count - 1:
            nodes[STIFFNESS, k] = permittivity[k * material] / spacings[k]
    for side in range(2):
        k = side * (count - 1)
        nodes[LEVEL, k], nodes[SPRING, k] = ends[3 * side], ends[3 * side + 1]
        nodes[FIXED, k] = ends[3 * side] * ends[3 * side + 1]
    for k in range(nodes.shape[1]):
        nodes[POTENTIAL, k] = ends[6]
    return nodes


@part
def _few(valences: Any, amounts: Any, count: int) -> Any:
    """Rows of the few ions."""
    few = np.zeros((COLUMN + count, LANES))
    for m in range(LANES):
        few[VALENCE, m], few[ROOT, m] = valences[m], np.sqrt(amounts[m])
    return few


@part
def _relax(
    nodes: Any, few: Any, ions: Any, closed: bool, bath: float, stage: int, tolerance: float, most: int
) -> Any:
    """From the potential of the nodes to that of the equilibrium of the `FEW` ions or of `ALL`.

    To `START` one Newton step from ions that are spread evenly gives the potential of Debye and Hückel. Returns
    whether it converged, the iterations and the last relative change.
    """
    potential, before, step = nodes[POTENTIAL], nodes[BEFORE], nodes[STEP]
    value, descent, rounding = 0.0, 0.0, 0.0
    fraction, longest, size, change, iteration = 1.0, 0.0, 1.0, np.inf, 0
    while True:
        found = _functional(nodes, few, ions, closed, bath, stage == ALL)
        if iteration > 0 and not found <= value - SUFFICIENT_DECREASE * fraction * descent + rounding:
            fraction *= 0.5
            if fraction < SHORTEST:
                for k in range(potential.size):
                    potential[k] = before[k]
                return False, iteration, change
        else:
            if iteration > 0:
                change = fraction * longest / size
            settled = fraction == 1.0 and change < tolerance
            if settled or iteration == most:
                return settled, iteration, change
            if stage == START:
                for k in range(potential.size):
                    potential[k] = potential[k] if nodes[FREE, k] else nodes[LEVEL, k]
            _gauss(nodes)
            _factorise(nodes, few, closed)
            _solve(nodes, few, ions, closed, INEXACT if stage == ALL else 1.0)
            descent = scalar_product(nodes[RESIDUAL], step)
            longest, size = 0.0, 1.0
            for k in range(potential.size):
                before[k] = potential[k]
                longest = max(longest, abs(step[k]))
                size = max(size, 1.0 + abs(potential[k]))
            value, fraction, iteration = found, 1.0, iteration + 1
            rounding = 1e-13 * (1.0 + abs(value) + total(load(few, ROOT) * load(few, ROOT)))
        for k in range(potential.size):
            potential[k] = before[k] - fraction * step[k]
        if stage == START:
            return False, 0, np.inf


@part
def _functional(nodes: Any, few: Any, ions: Any, closed: bool, bath: float, every: bool) -> float:
    """G of the few ions or of `every` one, whose charge and concentrations are left behind."""
    low, high = _range(nodes)
    value = _of_few(nodes, few, closed, bath, low, high)
    if every:
        value = _of_many(nodes, ions, closed, bath, low, high)
    potential = nodes[POTENTIAL]
    for k in range(potential.size):
        value += (0.5 * nodes[SPRING, k] * potential[k] - nodes[FIXED, k]) * potential[k]
        if k > 0:
            value += 0.5 * nodes[STIFFNESS, k - 1] * (potential[k] - potential[k - 1]) ** 2
    return value


@part
def _range(nodes: Any) -> Any:
    """The lowest and the highest potential; what fills up the last row of lanes is given one of them."""
    potential, scratch = nodes[POTENTIAL], nodes[SCRATCH]
    low = high = splat(nodes[VOLUME], potential[0])
    for row in range(potential.size // LANES):
        here = where(load(nodes[VOLUME], row) > 0.0, load(potential, row), potential[0])
        store(potential, row, here)
        low, high = smallest(low, here), largest(high, here)
    lowest = highest = potential[0]
    store(scratch, 0, low)
    for lane in range(LANES):
        lowest = min(lowest, scratch[lane])
    store(scratch, 0, high)
    for lane in range(LANES):
        highest = max(highest, scratch[lane])
    return lowest, highest


@part
def _of_few(nodes: Any, few: Any, closed: bool, bath: float, low: float, high: float) -> float:
    """Share of the few ions in G, their columns v and their charge."""
    potential, volume, charge = nodes[POTENTIAL], nodes[VOLUME], nodes[CHARGE]
    count = few.shape[0] - COLUMN
    z, root = load(few, VALENCE), load(few, ROOT)
    shift = largest(-z * low, -z * high) if closed else -z * bath
    amount, factor = splat(few, 0.0), root
    for k in range(count):
        weight = volume[k] * exponential(smallest(largest(-z * potential[k] - shift, LEAST), MOST))
        amount = amount + weight
        store(few, COLUMN + k, weight)
    value = root * root * amount
    if closed:
        factor = root / amount
        value = root * root * (logarithm(amount) + shift)
    for k in range(count):
        column = z * factor * load(few, COLUMN + k)
        store(few, COLUMN + k, column)
        charge[k] = total(root * column)
    return total(value)


@part
def _of_many(nodes: Any, ions: Any, closed: bool, bath: float, low: float, high: float) -> float:
    """Share of all ions in G, their concentrations and their charge."""
    valences, amounts, concentrations = ions
    potential, volume, charge, weight = nodes[POTENTIAL], nodes[VOLUME], nodes[CHARGE], nodes[SCRATCH]
    for k in range(charge.size):
        charge[k] = 0.0
    value = 0.0
    for s in range(valences.size):
        z = valences[s]
        shift = max(-z * low, -z * high) if closed else -z * bath
        amount = splat(volume, 0.0)
        for row in range(potential.size // LANES):
            here = exponential(smallest(largest(-z * load(potential, row) - shift, LEAST), MOST))
            amount = amount + load(volume, row) * here
            store(weight, row, here)
        whole = total(amount)
        factor = amounts[s] / whole if closed else amounts[s]
        value += amounts[s] * (np.log(whole) + shift) if closed else amounts[s] * whole
        own = concentrations[s]
        for k in range(own.size):
            own[k] = factor * weight[k]
            charge[k] += z * factor * weight[k]
    for k in range(charge.size):
        charge[k] *= volume[k]
    return value


@part
def _poisson(nodes: Any, potential: Any, image: Any) -> None:
    """Add Poisson's matrix and springs times a potential to its image, which is made zero at held nodes."""
    stiffness = nodes[STIFFNESS]
    left = 0.0
    for k in range(potential.size):
        flux = stiffness[k] * (potential[k] - potential[min(k + 1, potential.size - 1)])
        image[k] = nodes[FREE, k] * (image[k] + nodes[SPRING, k] * potential[k] + flux - left)
        left = flux


@part
def _gauss(nodes: Any) -> None:
    """The residual, which is the derivative of G."""
    residual = nodes[RESIDUAL]
    for k in range(residual.size):
        residual[k] = -nodes[FIXED, k] - nodes[CHARGE, k]
    _poisson(nodes, nodes[POTENTIAL], residual)


@part
def _factorise(nodes: Any, few: Any, closed: bool) -> None:
    """Pivots of T, eliminated columns, and the Cholesky factor that Woodbury's formula takes, for the few ions."""
    inverse = nodes[PIVOT]
    weight, before, stiffness = load(few, VALENCE) * load(few, ROOT), splat(few, 0.0), 0.0
    for m in range(few.shape[1]):
        store(few, FACTOR + m, splat(few, 0.0))
        few[FACTOR + m, m] = 1.0
    for k in range(few.shape[0] - COLUMN):
        share = stiffness * inverse[k - 1] if k > 0 else 0.0
        column = load(few, COLUMN + k)
        pivot = (
            stiffness - stiffness * share + nodes[STIFFNESS, k] + nodes[SPRING, k] + total(weight * column)
        )
        stiffness = nodes[STIFFNESS, k]
        inverse[k] = nodes[FREE, k] / pivot
        before = nodes[FREE, k] * (column + share * before)
        store(few, COLUMN + k, before)
        if closed:
            for m in range(few.shape[1]):
                scaled = inverse[k] * few[COLUMN + k, m]
                store(few, FACTOR + m, load(few, FACTOR + m) - scaled * before)
    for m in range(few.shape[1]):
        for n in range(m + 1):
            entry = few[FACTOR + m, n]
            for i in range(n):
                entry -= few[FACTOR + m, i] * few[FACTOR + n, i]
            # Where ions leave a part of the cell, rounding is all that is left of a pivot.
            pivot = np.sqrt(max(entry, 1e-14)) if n == m else few[FACTOR + n, n]
            few[FACTOR + m, n] = pivot if n == m else entry / pivot


@part
def _precondition(nodes: Any, few: Any, rhs: Any, solution: Any, closed: bool) -> None:
    """Solve with P, the second derivative of G of the few ions."""
    inverse, stiffness, small = nodes[PIVOT], nodes[STIFFNESS], nodes[SCRATCH]
    count = few.shape[0] - COLUMN
    coefficients, share = splat(few, 0.0), 0.0
    for k in range(count):
        solution[k] = nodes[FREE, k] * (rhs[k] + share)
        coefficients = coefficients + load(few, COLUMN + k) * (inverse[k] * solution[k])
        share = stiffness[k] * inverse[k] * solution[k]
    store(small, 0, coefficients)
    for m in range(few.shape[1]):
        for n in range(m):
            small[m] -= few[FACTOR + m, n] * small[n]
        small[m] /= few[FACTOR + m, m]
    for i in range(few.shape[1]):
        m = few.shape[1] - 1 - i
        for n in range(m + 1, few.shape[1]):
            small[m] -= few[FACTOR + n, m] * small[n]
        small[m] /= few[FACTOR + m, m]
    coefficients = load(small, 0)
    after = 0.0
    for i in range(count):
        k = count - 1 - i
        value = solution[k] + stiffness[k] * after
        if closed:
            value += total(coefficients * load(few, COLUMN + k))
        after = value * inverse[k]
        solution[k] = after


@part
def _solve(nodes: Any, few: Any, ions: Any, closed: bool, remaining: float) -> None:
    """The step whose image under H is the residual, but for `remaining` of it in the norm of the preconditioner.

    If all of it may remain, the step whose image under P is.
    """
    left, corrected, step = nodes[LEFT], nodes[CORRECTED], nodes[STEP]
    direction, image = nodes[DIRECTION], nodes[IMAGE]
    for k in range(left.size):
        left[k], direction[k] = nodes[RESIDUAL, k], 0.0
    before, least = np.inf, 0.0
    for product in range(MOST_PRODUCTS):
        _precondition(nodes, few, left, corrected, closed)
        here = scalar_product(left, corrected)
        if product == 0:
            least = max(remaining**2 * here, 1e-300)
            for k in range(left.size):
                step[k] = corrected[k] if remaining == 1.0 else 0.0
        if not here > least:
            return
        for k in range(left.size):
            direction[k] = corrected[k] + here / before * direction[k]
        _curvature(nodes, ions, closed)
        length = here / scalar_product(direction, image)
        for k in range(left.size):
            step[k] += length * direction[k]
            left[k] -= length * image[k]
        before = here


@part
def _curvature(nodes: Any, ions: Any, closed: bool) -> None:
    """The image of the direction under H."""
    valences, amounts, concentrations = ions
    direction, image, weighted, volume = nodes[DIRECTION], nodes[IMAGE], nodes[SCRATCH], nodes[VOLUME]
    for k in range(volume.size):
        weighted[k] = volume[k] * direction[k]
        image[k] = 0.0
    for s in range(valences.size):
        own = concentrations[s]
        mean = scalar_product(own, weighted) / amounts[s] if closed else 0.0
        square = valences[s] ** 2
        for k in range(own.size):
            image[k] += square * own[k] * (direction[k] - mean)
    for k in range(volume.size):
        image[k] *= volume[k]
    _poisson(nodes, direction, image)


@kernel
def rest_many_adjoint(
    cells: Any,
    few_valences: Any,
    few_amounts: Any,
    numbers: Numbers,
    closed: bool,
    held: Any,
    potential: Any,
    concentrations: Any,
    by_potential: Any,
    by_concentrations: Any,
    found: Numbers,
) -> None:
    """Derivatives of a number with respect to all inputs, see :func:`pnp.compiled.resting.rest_adjoint`."""
    count = numbers.volumes.shape[1]
    charge, moved = np.empty(count), np.empty(count)
    for index in range(cells.size):
        cell = cells[index]
        nodes = _nodes(cell, numbers, held)
        few = _few(few_valences[cell], few_amounts[cell], count)
        for k in range(count):
            nodes[POTENTIAL, k] = potential[cell, k]
        _of_few(nodes, few, closed, numbers.ends[cell, 6], *_range(nodes))
        _factorise(nodes, few, closed)
        residual = nodes[RESIDUAL, :count]
        c, by_phi, by_c = concentrations[cell], by_potential[cell], by_concentrations[cell]
        total_by_potential(residual, cell, numbers, closed, c, by_phi, by_c)
        for k in range(count):
            residual[k] *= nodes[FREE, k]
        _solve(nodes, few, (numbers.valences[cell], numbers.amounts[cell], c), closed, EXACT)
        state = potential[cell], c, by_phi, by_c
        by_numbers(cell, numbers, closed, held, nodes[STEP, :count], state, found, charge, moved)
