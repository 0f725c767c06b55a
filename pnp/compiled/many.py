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

from typing import Any, NamedTuple

import numpy as np

from .lanes import LANES, exponential, kernel, largest, load, logarithm, smallest, splat, store, total
from .resting import LEAST, MOST, SHORTEST, SUFFICIENT_DECREASE, by_inputs, by_potential

INEXACT, EXACT = 1e-5, 1e-13
"""What conjugate gradients leave of a residual: of a Newton step, and of multipliers."""
MOST_PRODUCTS = 200


class Work(NamedTuple):
    """One cell and what is known of it; of nodes `(N,)` in whole rows of lanes, of the few ions one row."""

    potential: Any
    stiffness: Any  # permittivity over the spacing to the right
    volume: Any
    fixed: Any  # charge in the control volume
    springs: Any  # what an end adds to Gauss's law, (2,)
    charges: Any  # spring times potential of the metal, or charge of the wall, (2,)
    held: Any
    charge: Any  # of all ions in the control volume
    pivot: Any  # inverse
    residual: Any
    step: Any
    direction: Any
    image: Any  # of the direction
    scratch: Any
    valences: Any
    roots: Any  # of the amounts of the few
    columns: Any  # eliminated v_m, (N * LANES,)
    matrix: Any  # Cholesky factor of 1 - v T⁻¹ v, (LANES * LANES,)


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
            known = np.einsum("bms,bs->bm", basis[:, : m + 1], moved)
            moved -= np.einsum("bms,bm->bs", basis[:, : m + 1], known)
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
    permittivity: Any,
    spacings: Any,
    volumes: Any,
    fixed_charge: Any,
    valences: Any,
    amounts: Any,
    ends: Any,
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
    nodes = volumes.shape[1]
    for index in range(cells.size):
        cell = cells[index]
        bath = ends[cell, 6]
        work = _work(
            few_valences[cell], few_amounts[cell], permittivity[cell], spacings[cell], volumes[cell], ends[cell], held
        )
        if warm:
            work.potential[:nodes] = potential[cell]
        else:
            _start(work, ends[cell], closed)
        fixed = int(fixed_charge.shape[1] > 1)
        for k in range(nodes):
            work.fixed[k] = volumes[cell, k] * fixed_charge[cell, k * fixed]
        for side in range(2):
            work.charges[side] += ends[cell, 3 * side + 2]
        ions = (valences[cell], amounts[cell], concentrations[cell])
        _relax(work, ions, closed, bath, False, tolerance, most)
        converged, iterations, change = _relax(work, ions, closed, bath, True, tolerance, most)
        potential[cell] = work.potential[:nodes]
        report[cell, 0], report[cell, 1], report[cell, 2] = converged, iterations, change


@kernel
def _work(
    few_valences: Any, few_amounts: Any, permittivity: Any, spacings: Any, volumes: Any, ends: Any, held: Any
) -> Any:
    """A cell without any charge but that of springs, at zero potential."""
    nodes = volumes.size
    whole = -(-nodes // LANES) * LANES
    of_nodes = np.zeros((10, whole))
    stiffness, volume = of_nodes[0], of_nodes[1]
    material = int(permittivity.size > 1)
    for k in range(nodes - 1):
        stiffness[k] = permittivity[k * material] / spacings[k]
    volume[:nodes] = volumes
    springs, charges = np.array([ends[1], ends[4]]), np.array([ends[0] * ends[1], ends[3] * ends[4]])
    return Work(
        potential=of_nodes[2],
        stiffness=stiffness,
        volume=volume,
        fixed=of_nodes[3],
        springs=springs,
        charges=charges,
        held=held,
        charge=of_nodes[4],
        pivot=of_nodes[5],
        residual=of_nodes[6],
        step=of_nodes[7],
        direction=of_nodes[8],
        image=of_nodes[9],
        scratch=np.zeros(whole),
        valences=few_valences,
        roots=np.sqrt(few_amounts),
        columns=np.zeros(nodes * LANES),
        matrix=np.zeros(LANES * LANES),
    )


@kernel
def _start(work: Any, ends: Any, closed: bool) -> None:
    """The potential of Debye and Hückel: one Newton step from ions that are spread evenly.

    Fixed charges and those of walls are left out, which would make an absurd potential without nonlinear screening.
    """
    nodes = work.held.size
    work.potential[:] = ends[6]
    _of_few(work, closed, ends[6])
    for side in range(2):
        if work.held[side * (nodes - 1)]:
            work.potential[side * (nodes - 1)] = ends[3 * side]
    for k in range(1, nodes - 1):
        if work.held[k]:
            work.potential[k] = 0.0
    _gauss(work)
    _factorise(work, closed)
    _precondition(work, work.residual, work.step, closed)
    for k in range(nodes):
        work.potential[k] -= work.step[k]


@kernel
def _relax(
    work: Any, ions: Any, closed: bool, bath: float, exact: bool, tolerance: float, most: int
) -> Any:
    """From the potential in `work` to that of the equilibrium of the few ions or, if `exact`, of all.

    Returns whether it converged, the iterations and the last relative change.
    """
    nodes = work.held.size
    before = work.potential.copy()
    value = _functional(work, ions, closed, bath, exact)
    rounding = 1e-13 * (1.0 + abs(value) + (work.roots**2).sum())
    change = np.inf
    for iteration in range(1, most + 1):
        _gauss(work)
        _factorise(work, closed)
        if exact:
            _conjugate_gradients(work, ions, closed, INEXACT)
        else:
            _precondition(work, work.residual, work.step, closed)
        longest, size, descent = 0.0, 1.0, 0.0
        for k in range(nodes):
            before[k] = work.potential[k]
            longest = max(longest, abs(work.step[k]))
            size = max(size, 1.0 + abs(before[k]))
            descent += work.residual[k] * work.step[k]
        fraction = 1.0
        while True:
            for k in range(nodes):
                work.potential[k] = before[k] - fraction * work.step[k]
            found = _functional(work, ions, closed, bath, exact)
            if found <= value - SUFFICIENT_DECREASE * fraction * descent + rounding:
                break
            fraction *= 0.5
            if fraction < SHORTEST:
                work.potential[:] = before
                return False, iteration, change
        value, change = found, fraction * longest / size
        if fraction == 1.0 and change < tolerance:
            return True, iteration, change
    return False, most, change


@kernel
def _functional(work: Any, ions: Any, closed: bool, bath: float, exact: bool) -> float:
    """G of the few ions or, if `exact`, of all, whose charge and concentrations are left behind."""
    value = _of_few(work, closed, bath)
    if exact:
        value = _of_many(work, ions, closed, bath)
    nodes = work.held.size
    for k in range(nodes):
        if k > 0:
            value += 0.5 * work.stiffness[k - 1] * (work.potential[k] - work.potential[k - 1]) ** 2
        value -= work.fixed[k] * work.potential[k]
    for side in range(2):
        potential = work.potential[side * (nodes - 1)]
        value += (0.5 * work.springs[side] * potential - work.charges[side]) * potential
    return value


@kernel
def _range(work: Any) -> Any:
    """The lowest and the highest potential; what fills up the last row of lanes is made one of them."""
    nodes = work.held.size
    work.potential[nodes:] = work.potential[0]
    low = high = load(work.potential, 0)
    for row in range(1, work.potential.size // LANES):
        potential = load(work.potential, row)
        low, high = smallest(low, potential), largest(high, potential)
    store(work.scratch, 0, low)
    lowest = work.scratch[:LANES].min()
    store(work.scratch, 0, high)
    return lowest, work.scratch[:LANES].max()


@kernel
def _of_few(work: Any, closed: bool, bath: float) -> float:
    """Share of the few ions in G, their columns v and their charge."""
    low, high = _range(work)
    z, root = load(work.valences, 0), load(work.roots, 0)
    shift = largest(-z * low, -z * high) if closed else -z * bath
    amount, factor = splat(0.0), root
    for k in range(work.held.size):
        exponent = smallest(largest(-z * work.potential[k] - shift, LEAST), MOST)
        weight = work.volume[k] * exponential(exponent)
        amount = amount + weight
        store(work.columns, k, weight)
    value = root * root * amount
    if closed:
        factor = root / amount
        value = root * root * (logarithm(amount) + shift)
    for k in range(work.held.size):
        column = z * factor * load(work.columns, k)
        store(work.columns, k, column)
        work.charge[k] = total(root * column)
    return total(value)


@kernel
def _of_many(work: Any, ions: Any, closed: bool, bath: float) -> float:
    """Share of all ions in G, their concentrations and their charge."""
    valences, amounts, concentrations = ions
    nodes, rows = work.held.size, work.potential.size // LANES
    weight, charge = work.scratch, work.charge
    low, high = _range(work)
    charge[:] = 0.0
    value = 0.0
    for s in range(valences.size):
        z = valences[s]
        shift = max(-z * low, -z * high) if closed else -z * bath
        amount = splat(0.0)
        for row in range(rows):
            exponent = smallest(largest(-z * load(work.potential, row) - shift, LEAST), MOST)
            here = exponential(exponent)
            amount = amount + load(work.volume, row) * here
            store(weight, row, here)
        whole = total(amount)
        factor = amounts[s] / whole if closed else amounts[s]
        value += amounts[s] * (np.log(whole) + shift) if closed else amounts[s] * whole
        own = concentrations[s]
        for k in range(nodes):
            own[k] = factor * weight[k]
            charge[k] += z * factor * weight[k]
    for k in range(nodes):
        charge[k] *= work.volume[k]
    return value


@kernel
def _poisson(work: Any, potential: Any, image: Any) -> None:
    """Add Poisson's matrix and springs times a potential, zero at held nodes, to its image."""
    nodes = work.held.size
    for k in range(nodes):
        value = image[k]
        if k > 0:
            value += work.stiffness[k - 1] * (potential[k] - potential[k - 1])
        if k < nodes - 1:
            value += work.stiffness[k] * (potential[k] - potential[k + 1])
        if k == 0:
            value += work.springs[0] * potential[k]
        if k == nodes - 1:
            value += work.springs[1] * potential[k]
        image[k] = 0.0 if work.held[k] else value


@kernel
def _gauss(work: Any) -> None:
    """The residual, which is the derivative of G."""
    nodes = work.held.size
    for k in range(nodes):
        work.residual[k] = -work.fixed[k] - work.charge[k]
    for side in range(2):
        work.residual[side * (nodes - 1)] -= work.charges[side]
    _poisson(work, work.potential, work.residual)


@kernel
def _factorise(work: Any, closed: bool) -> None:
    """Pivots of T, eliminated columns, and the Cholesky factor that Woodbury's formula takes, for the few ions."""
    nodes, matrix, columns = work.held.size, work.matrix, work.columns
    z, root, before, stiffness, share = load(work.valences, 0), load(work.roots, 0), splat(0.0), 0.0, 0.0
    matrix[:] = 0.0
    for m in range(LANES):
        matrix[m * LANES + m] = 1.0
    for k in range(nodes):
        share = stiffness * work.pivot[k - 1] if k > 0 else 0.0
        column = load(columns, k)
        pivot = stiffness - stiffness * share + total(z * root * column)
        stiffness = work.stiffness[k]
        pivot += stiffness
        if k == 0:
            pivot += work.springs[0]
        if k == nodes - 1:
            pivot += work.springs[1]
        column = column + share * before
        inverse = 1.0 / pivot
        if work.held[k]:
            column, inverse = splat(0.0), 0.0
        before = column
        work.pivot[k] = inverse
        store(columns, k, column)
        if closed:
            for m in range(LANES):
                store(matrix, m, load(matrix, m) - column * (inverse * columns[k * LANES + m]))
    for m in range(LANES):
        for n in range(m + 1):
            entry = matrix[m * LANES + n]
            for i in range(n):
                entry -= matrix[m * LANES + i] * matrix[n * LANES + i]
            matrix[m * LANES + n] = entry / matrix[n * LANES + n] if n < m else np.sqrt(max(entry, 1e-14))


@kernel
def _precondition(work: Any, rhs: Any, solution: Any, closed: bool) -> None:
    """Solve with the second derivative of G of the few ions."""
    nodes, matrix, small = work.held.size, work.matrix, work.scratch
    coefficients = splat(0.0)
    for k in range(nodes):
        share = work.stiffness[k - 1] * work.pivot[k - 1] * solution[k - 1] if k > 0 else 0.0
        solution[k] = 0.0 if work.held[k] else rhs[k] + share
        coefficients = coefficients + load(work.columns, k) * (work.pivot[k] * solution[k])
    store(small, 0, coefficients)
    for m in range(LANES):
        for n in range(m):
            small[m] -= matrix[m * LANES + n] * small[n]
        small[m] /= matrix[m * LANES + m]
    for i in range(LANES):
        m = LANES - 1 - i
        for n in range(m + 1, LANES):
            small[m] -= matrix[n * LANES + m] * small[n]
        small[m] /= matrix[m * LANES + m]
    coefficients = load(small, 0)
    after = 0.0
    for i in range(nodes):
        k = nodes - 1 - i
        value = solution[k] + work.stiffness[k] * after
        if closed:
            value += total(coefficients * load(work.columns, k))
        after = value * work.pivot[k]
        solution[k] = after


@kernel
def _conjugate_gradients(work: Any, ions: Any, closed: bool, remaining: float) -> None:
    """The step whose image under H is the residual, but for `remaining` of it in the norm of the preconditioner."""
    nodes, step, direction, image = work.held.size, work.step, work.direction, work.image
    left = work.residual.copy()
    corrected = np.zeros(left.size)
    step[:] = 0.0
    direction[:] = 0.0
    before = first = 1.0
    for iteration in range(MOST_PRODUCTS):
        _precondition(work, left, corrected, closed)
        here = _dot(left, corrected)
        if iteration == 0:
            first = here
        if not here > remaining**2 * first or here < 1e-300:
            return
        turn = here / before if iteration > 0 else 0.0
        for k in range(nodes):
            direction[k] = corrected[k] + turn * direction[k]
        _curvature(work, ions, closed)
        length = here / _dot(direction, image)
        for k in range(nodes):
            step[k] += length * direction[k]
            left[k] -= length * image[k]
        before = here


@kernel
def _curvature(work: Any, ions: Any, closed: bool) -> None:
    """The image of the direction under H."""
    valences, amounts, concentrations = ions
    nodes, direction, image, weighted = work.held.size, work.direction, work.image, work.scratch
    for k in range(nodes):
        weighted[k] = work.volume[k] * direction[k]
    image[:] = 0.0
    for s in range(valences.size):
        own = concentrations[s]
        mean = _dot(own, weighted) / amounts[s] if closed else 0.0
        square = valences[s] ** 2
        for k in range(nodes):
            image[k] += square * own[k] * (direction[k] - mean)
    for k in range(nodes):
        image[k] *= work.volume[k]
    _poisson(work, direction, image)


@kernel
def _dot(a: Any, b: Any) -> float:
    """Scalar product over the nodes of `a`."""
    product = splat(0.0)
    rows = a.size // LANES
    for row in range(rows):
        product = product + load(a, row) * load(b, row)
    result = total(product)
    for k in range(rows * LANES, a.size):
        result += a[k] * b[k]
    return result


@kernel
def rest_many_adjoint(
    cells: Any,
    few_valences: Any,
    few_amounts: Any,
    permittivity: Any,
    spacings: Any,
    volumes: Any,
    fixed_charge: Any,
    valences: Any,
    amounts: Any,
    ends: Any,
    closed: bool,
    held: Any,
    potential: Any,
    concentrations: Any,
    by_phi: Any,
    by_c: Any,
    of_permittivity: Any,
    of_spacings: Any,
    of_volumes: Any,
    of_fixed_charge: Any,
    of_valences: Any,
    of_amounts: Any,
    of_ends: Any,
) -> None:
    """Derivatives of a number with respect to all inputs, see :func:`pnp.compiled.resting.rest_adjoint`."""
    nodes = volumes.shape[1]
    for index in range(cells.size):
        cell = cells[index]
        work = _work(
            few_valences[cell], few_amounts[cell], permittivity[cell], spacings[cell], volumes[cell], ends[cell], held
        )
        ions = (valences[cell], amounts[cell], concentrations[cell])
        work.potential[:nodes] = potential[cell]
        _of_few(work, closed, ends[cell, 6])
        _factorise(work, closed)
        by_potential(work.residual[:nodes], closed, volumes[cell], *ions, by_phi[cell], by_c[cell])
        for k in range(nodes):
            if held[k]:
                work.residual[k] = 0.0
        _conjugate_gradients(work, ions, closed, EXACT)
        by_inputs(
            work.step[:nodes],
            work.scratch[:nodes],
            closed,
            held,
            permittivity[cell],
            spacings[cell],
            volumes[cell],
            fixed_charge[cell],
            valences[cell],
            amounts[cell],
            ends[cell],
            potential[cell],
            concentrations[cell],
            by_phi[cell],
            by_c[cell],
            of_permittivity[cell],
            of_spacings[cell],
            of_volumes[cell],
            of_fixed_charge[cell],
            of_valences[cell],
            of_amounts[cell],
            of_ends[cell],
        )
