"""Sweeps of transients for two species, written out so that the equations of a node stay in registers.

What they do is said in :mod:`pnp.compiled.stepping` and :mod:`pnp.compiled.stepping_adjoint`, which have the same for
any number of species.
"""

from typing import Any

from ..solvers.rosenbrock import SHARE
from .bernoulli import bernoulli, bernoulli_curvature
from .lanes import any_lane, inlined, load, opposite, part, splat, store
from .step_rows import (
    CONCENTRATIONS,
    ENDS,
    FIXED,
    LEFT_SPRING,
    OF_FIXED,
    OF_MOBILITIES,
    OF_STIFFNESS,
    OF_VALENCES,
    OF_VOLUME,
    POTENTIAL,
    RIGHT_SPRING,
    STAGE,
    STAGES,
    START,
    STIFFNESS,
    VALENCE,
    VOLUME,
    A,
    C,
    back_rows_of_node,
    increments_at,
    inverse_at,
    multipliers_at,
    pulled_at,
    rows_of_node,
)


@part
def factorise_salt(work: Any, back: Any, nodes: int, held: Any, baths: Any) -> None:
    """See :func:`pnp.compiled.stepping.factorise`; if there is a way `back`, the multipliers of the last stage, too."""
    fields = rows_of_node(2)
    own = nodes * fields
    tau, z0, z1 = load(work, own + STAGE), load(work, own + VALENCE), load(work, own + VALENCE + 1)
    mirrored = not any_lane(opposite(z1 == -z0))
    mobility, alphas, y, inverse = CONCENTRATIONS + 4, CONCENTRATIONS + 8, increments_at(2), inverse_at(2)
    x = inverse - 9
    none, one = splat(work, 0.0), splat(work, 1.0)
    # Of the edge to the left, times the step: fluxes and their derivatives; permittivity over spacing.
    flux0, flux1, out0, out1, in0, in1 = none, none, none, none, none, none
    slope0, slope1, stiff, y0, y1, y2 = none, none, none, none, none, none
    x00, x01, x02, x10, x11, x12, x20, x21, x22 = none, none, none, none, none, none, none, none, none
    m0, m1, m2 = none, none, none
    last = 3 * (STAGES - 1)
    starts = CONCENTRATIONS + 2
    here0, here1, phi = load(work, starts), load(work, starts + 1), load(work, START)
    before = phi
    for k in range(nodes):
        base = k * fields
        volume = load(work, base + VOLUME)
        if back is not None:
            row = k * back_rows_of_node(2) + last
            end = row + pulled_at(2)
            m0, m1, m2 = (
                load(back, end) - x00 * m0 - x10 * m1 - x20 * m2,
                load(back, end + 1) - x01 * m0 - x11 * m1 - x21 * m2,
                load(back, end + 2) - x02 * m0 - x12 * m1 - x22 * m2,
            )
            row = row + multipliers_at(2)
            store(back, row, m0)
            store(back, row + 1, m1)
            store(back, row + 2, m2)
        # The row of the potential: Gauss's law.
        d20, d21, d22 = -z0 * volume, -z1 * volume, stiff
        gauss = stiff * (phi - before) - load(work, base + FIXED) - volume * (z0 * here0 + z1 * here1)
        if k == 0 or k == nodes - 1:
            end = own + LEFT_SPRING if k == 0 else own + RIGHT_SPRING
            d22 = d22 + load(work, end)
            gauss = gauss + load(work, end) * phi - load(work, end + 1)
        d20, d21, d22, r2 = d20 + stiff * x20, d21 + stiff * x21, d22 + stiff * x22, stiff * y2
        if baths[k]:
            out0, out1, slope0, slope1 = none, none, none, none
        store(work, base + alphas, out0)
        store(work, base + alphas + 1, out1)
        store(work, base + alphas + 2, slope0)
        store(work, base + alphas + 3, slope1)
        # Rows of the species, with what the node before leaves.
        d00, d02 = volume + in0 + out0 * x00 - slope0 * x20, out0 * x02 - slope0 * (one + x22)
        d11, d12 = volume + in1 + out1 * x11 - slope1 * x21, out1 * x12 - slope1 * (one + x22)
        d01, d10 = out0 * x01 - slope0 * x21, out1 * x10 - slope1 * x20
        r0, r1 = flux0 + out0 * y0 - slope0 * y2, flux1 + out1 * y1 - slope1 * y2
        c00, c11, c02, c12, c22 = none, none, none, none, none
        before = phi
        if k < nodes - 1:
            next_ = base + fields
            there0, there1 = load(work, next_ + starts), load(work, next_ + starts + 1)
            phi = load(work, next_ + START)
            stiff = load(work, base + STIFFNESS)
            d22, gauss, c22 = d22 + stiff, gauss + stiff * (before - phi), -stiff
            jump = phi - before
            ahead, behind, slope = bernoulli(z0 * jump)
            speed = tau * load(work, base + mobility)
            out0, in0 = speed * ahead, speed * behind
            slope0 = speed * z0 * (slope * here0 - (one + slope) * there0)
            if mirrored:
                ahead, behind, slope = behind, ahead, -one - slope
            else:
                ahead, behind, slope = bernoulli(z1 * jump)
            speed = tau * load(work, base + mobility + 1)
            out1, in1 = speed * ahead, speed * behind
            slope1 = speed * z1 * (slope * here1 - (one + slope) * there1)
            flux0, flux1 = out0 * here0 - in0 * there0, out1 * here1 - in1 * there1
            r0, r1 = r0 - flux0, r1 - flux1
            d00, d11, d02, d12 = d00 + out0, d11 + out1, d02 - slope0, d12 - slope1
            c00, c11, c02, c12 = -in0, -in1, slope0, slope1
            here0, here1 = there0, there1
        r2 = r2 - gauss
        if baths[k]:
            d00, d01, d02, c00, c02 = one, none, none, none, none
            d10, d11, d12, c11, c12 = none, one, none, none, none
            r0, r1 = none, none
        if held[k]:
            d20, d21, d22, c22, r2 = none, none, one, none, none
        # The inverse: of the species first, then of what they leave of the potential.
        i = one / (d00 * d11 - d01 * d10)
        e00, e01, e10, e11 = i * d11, -i * d01, -i * d10, i * d00
        f0, f1 = e00 * d02 + e01 * d12, e10 * d02 + e11 * d12
        g0, g1 = d20 * e00 + d21 * e10, d20 * e01 + d21 * e11
        v22 = one / (d22 - d20 * f0 - d21 * f1)
        v20, v21, v02, v12 = -v22 * g0, -v22 * g1, -v22 * f0, -v22 * f1
        v00, v01, v10, v11 = e00 - f0 * v20, e01 - f0 * v21, e10 - f1 * v20, e11 - f1 * v21
        y0, y1, y2 = (
            v00 * r0 + v01 * r1 + v02 * r2,
            v10 * r0 + v11 * r1 + v12 * r2,
            v20 * r0 + v21 * r1 + v22 * r2,
        )
        x00, x10, x20 = v00 * c00, v10 * c00, v20 * c00
        x01, x11, x21 = v01 * c11, v11 * c11, v21 * c11
        x02, x12 = v00 * c02 + v01 * c12 + v02 * c22, v10 * c02 + v11 * c12 + v12 * c22
        x22 = v20 * c02 + v21 * c12 + v22 * c22
        for row, value in enumerate((y0, y1, y2)):
            store(work, base + y + row, value)
        for row, value in enumerate((x00, x01, x02, x10, x11, x12, x20, x21, x22)):
            store(work, base + x + row, value)
        for row, value in enumerate((v00, v01, v02, v10, v11, v12, v20, v21, v22)):
            store(work, base + inverse + row, value)


@inlined
def _reached(work: Any, base: int, stage: int) -> Any:
    """The concentrations and the potential that a stage looks at, and what it remembers of increments before it."""
    starts, increments = base + CONCENTRATIONS + 2, base + increments_at(2)
    c0, c1, phi = load(work, starts), load(work, starts + 1), load(work, base + START)
    known0, known1 = splat(work, 0.0), splat(work, 0.0)
    for j in range(stage):
        a, c, row = A[stage, j], C[stage, j], increments + 3 * j
        increment0, increment1 = load(work, row), load(work, row + 1)
        c0, c1, phi = c0 + a * increment0, c1 + a * increment1, phi + a * load(work, row + 2)
        known0, known1 = known0 + c * increment0, known1 + c * increment1
    return c0, c1, phi, known0, known1


@inlined
def _remembered(work: Any, base: int, stage: int) -> Any:
    """What a stage remembers of increments before it."""
    known0, known1 = splat(work, 0.0), splat(work, 0.0)
    for j in range(stage):
        row = base + increments_at(2) + 3 * j
        known0, known1 = known0 + C[stage, j] * load(work, row), known1 + C[stage, j] * load(work, row + 1)
    return known0, known1


@part
def stage_down_salt(work: Any, back: Any, nodes: int, stage: int, held: Any, baths: Any) -> None:
    """See :func:`pnp.compiled.stepping.stage_down`; the state is kept of the last stage only, or in `back` of all."""
    fields = rows_of_node(2)
    own = nodes * fields
    tau, z0, z1 = load(work, own + STAGE), load(work, own + VALENCE), load(work, own + VALENCE + 1)
    mirrored = not any_lane(opposite(z1 == -z0))
    mobility, alphas = CONCENTRATIONS + 4, CONCENTRATIONS + 8
    y, inverse = increments_at(2) + 3 * stage, inverse_at(2)
    none = splat(work, 0.0)
    # Of the edge to the left: fluxes times the step, permittivity over spacing; then increments of the node there.
    flux0, flux1, stiff, y0, y1, y2 = none, none, none, none, none, none
    here0, here1, phi, known0, known1 = _reached(work, 0, stage)
    before = phi
    for k in range(nodes):
        base = k * fields
        if back is not None:
            row = k * back_rows_of_node(2) + pulled_at(2) + 3 * stage
            store(back, row, here0)
            store(back, row + 1, here1)
            store(back, row + 2, phi)
        elif stage == STAGES - 1:
            store(work, base + CONCENTRATIONS, here0)
            store(work, base + CONCENTRATIONS + 1, here1)
            store(work, base + POTENTIAL, phi)
        volume = load(work, base + VOLUME)
        remembered = SHARE * volume
        slope0, slope1 = load(work, base + alphas + 2), load(work, base + alphas + 3)
        r0 = flux0 + remembered * known0 + load(work, base + alphas) * y0 - slope0 * y2
        r1 = flux1 + remembered * known1 + load(work, base + alphas + 1) * y1 - slope1 * y2
        gauss = stiff * (phi - before) - load(work, base + FIXED) - volume * (z0 * here0 + z1 * here1)
        if k == 0 or k == nodes - 1:
            end = own + LEFT_SPRING if k == 0 else own + RIGHT_SPRING
            gauss = gauss + load(work, end) * phi - load(work, end + 1)
        r2, before = stiff * y2, phi
        if k < nodes - 1:
            there0, there1, phi, known0, known1 = _reached(work, base + fields, stage)
            stiff = load(work, base + STIFFNESS)
            jump = phi - before
            gauss = gauss - stiff * jump
            ahead, behind, _ = bernoulli(z0 * jump)
            flux0 = tau * load(work, base + mobility) * (ahead * here0 - behind * there0)
            if mirrored:
                ahead, behind = behind, ahead
            else:
                ahead, behind, _ = bernoulli(z1 * jump)
            flux1 = tau * load(work, base + mobility + 1) * (ahead * here1 - behind * there1)
            r0, r1 = r0 - flux0, r1 - flux1
            here0, here1 = there0, there1
        r2 = r2 - gauss
        if baths[k]:
            r0, r1 = none, none
        if held[k]:
            r2 = none
        row = base + inverse
        y0 = load(work, row) * r0 + load(work, row + 1) * r1 + load(work, row + 2) * r2
        y1 = load(work, row + 3) * r0 + load(work, row + 4) * r1 + load(work, row + 5) * r2
        y2 = load(work, row + 6) * r0 + load(work, row + 7) * r1 + load(work, row + 8) * r2
        store(work, base + y, y0)
        store(work, base + y + 1, y1)
        store(work, base + y + 2, y2)


@part
def multiply_salt(work: Any, back: Any, nodes: int, stage: int, baths: Any) -> None:
    """See :func:`pnp.compiled.stepping_adjoint.multiply`; not of the last stage."""
    fields, rows = rows_of_node(2), back_rows_of_node(2)
    multipliers, pulled, x = multipliers_at(2), pulled_at(2), inverse_at(2) - 9
    end, last = pulled + 3 * (STAGES - 1), multipliers + 3 * (STAGES - 1)
    none = splat(work, 0.0)
    m0, m1, m2 = none, none, none
    for k in range(nodes):
        base, beside = k * fields, k * rows
        c = C[STAGES - 1, stage]
        known0, known1 = c * load(back, beside + last), c * load(back, beside + last + 1)
        value0, value1, value2 = none, none, none
        if stage == STAGES - 2:
            value0, value1 = load(back, beside + end), load(back, beside + end + 1)
            value2 = load(back, beside + end + 2)
        for j in range(stage + 1, STAGES - 1):
            a, c, row = A[j, stage], C[j, stage], beside + 3 * j
            value0 = value0 + a * load(back, row + pulled)
            value1 = value1 + a * load(back, row + pulled + 1)
            value2 = value2 + a * load(back, row + pulled + 2)
            known0 = known0 + c * load(back, row + multipliers)
            known1 = known1 + c * load(back, row + multipliers + 1)
        if not baths[k]:
            remembered = SHARE * load(work, base + VOLUME)
            value0, value1 = value0 + remembered * known0, value1 + remembered * known1
        if k > 0:
            row = base - fields + x
            value0 = value0 - load(work, row) * m0 - load(work, row + 3) * m1 - load(work, row + 6) * m2
            value1 = value1 - load(work, row + 1) * m0 - load(work, row + 4) * m1 - load(work, row + 7) * m2
            value2 = value2 - load(work, row + 2) * m0 - load(work, row + 5) * m1 - load(work, row + 8) * m2
        m0, m1, m2 = value0, value1, value2
        own = beside + multipliers + 3 * stage
        store(back, own, m0)
        store(back, own + 1, m1)
        store(back, own + 2, m2)


@inlined
def _substituted(
    work: Any, back: Any, base: int, own: int, inner: bool, beyond0: Any, beyond1: Any, strain: Any
) -> Any:
    """Multipliers of a node by transposed substitution, from those of the node to its right unless it is the last."""
    v0, v1, v2 = load(back, own), load(back, own + 1), load(back, own + 2)
    if inner:
        row = base + rows_of_node(2) + CONCENTRATIONS + 8
        v0, v1 = v0 + load(work, row) * beyond0, v1 + load(work, row + 1) * beyond1
        v2 = v2 + load(work, base + STIFFNESS) * strain
        v2 = v2 - load(work, row + 2) * beyond0 - load(work, row + 3) * beyond1
    row = base + inverse_at(2)
    m0 = load(work, row) * v0 + load(work, row + 3) * v1 + load(work, row + 6) * v2
    m1 = load(work, row + 1) * v0 + load(work, row + 4) * v1 + load(work, row + 7) * v2
    m2 = load(work, row + 2) * v0 + load(work, row + 5) * v1 + load(work, row + 8) * v2
    return m0, m1, m2


@inlined
def _of_end(work: Any, back: Any, nodes: int, k: int, m2: Any, at_end: Any) -> Any:
    """Add derivatives by what an end adds to Gauss's law; returns the one by the potential of its node."""
    side, spring = (ENDS, LEFT_SPRING) if k == 0 else (ENDS + 2, RIGHT_SPRING)
    side, spring = nodes * back_rows_of_node(2) + side, nodes * rows_of_node(2) + spring
    store(back, side, load(back, side) - m2 * at_end)
    store(back, side + 1, load(back, side + 1) + m2)
    return -m2 * load(work, spring)


@inlined
def _of_numbers(
    work: Any, back: Any, nodes: int, k: int, stage: int, m0: Any, m1: Any, m2: Any, here: Any
) -> Any:
    """Add derivatives by the volume of a node and by its fixed charge; returns what Gauss's law has by valences."""
    base, beside = k * rows_of_node(2), k * back_rows_of_node(2)
    valence, row = nodes * rows_of_node(2) + VALENCE, base + increments_at(2) + 3 * stage
    here0, here1 = here
    increment0, increment1 = load(work, row), load(work, row + 1)
    known0, known1 = _remembered(work, base, stage)
    total0, total1 = here0 + increment0, here1 + increment1
    of_volume = m2 * (load(work, valence) * total0 + load(work, valence + 1) * total1)
    of_volume = of_volume + m0 * (SHARE * known0 - increment0) + m1 * (SHARE * known1 - increment1)
    store(back, beside + OF_VOLUME, load(back, beside + OF_VOLUME) + of_volume)
    store(back, beside + OF_FIXED, load(back, beside + OF_FIXED) + m2)
    charge = m2 * load(work, base + VOLUME)
    return charge * total0, charge * total1


@inlined
def _add_of_valences(back: Any, nodes: int, of_valence0: Any, of_valence1: Any) -> None:
    """What the valences of a cell gain."""
    row = nodes * back_rows_of_node(2) + OF_VALENCES
    store(back, row, load(back, row) + of_valence0)
    store(back, row + 1, load(back, row + 1) + of_valence1)


@inlined
def _through_flux(
    work: Any, back: Any, mobility: int, row: int, weight: Any, factors: Any, here: Any, there: Any
) -> Any:
    """Add the derivative by a mobility; returns those by the concentrations on either side and by the drop."""
    ahead, behind, slope = factors
    store(back, row, load(back, row) - weight * (ahead * here - behind * there))
    through = weight * load(work, mobility)
    return -through * ahead, through * behind, through * (slope * (here - there) - there)


@part
def pull_salt(work: Any, back: Any, nodes: int, stage: int, held: Any, baths: Any, whole: bool) -> None:
    """See :func:`pnp.compiled.stepping_adjoint.pull`; not of the first stage."""
    fields, rows = rows_of_node(2), back_rows_of_node(2)
    cell = nodes * fields
    tau, z0, z1 = load(work, cell + STAGE), load(work, cell + VALENCE), load(work, cell + VALENCE + 1)
    mirrored = not any_lane(opposite(z1 == -z0))
    mobility = CONCENTRATIONS + 4
    increments = increments_at(2) + 3 * stage
    own, pulled = multipliers_at(2) + 3 * stage, pulled_at(2) + 3 * stage
    end = pulled_at(2) + 3 * (STAGES - 1)
    none, one = splat(work, 0.0), splat(work, 1.0)
    # Of the node to the right: its state, multipliers of equations that it has, and derivatives without the edge.
    there0, there1, after, end_after, beyond0, beyond1, strain = none, none, none, none, none, none, none
    q0, q1, q2 = none, none, none
    of_valence0, of_valence1 = none, none
    for i in range(nodes):
        k = nodes - 1 - i
        base, beside = k * fields, k * rows
        m0, m1, m2 = _substituted(work, back, base, beside + own, i > 0, beyond0, beyond1, strain)
        store(back, beside + own, m0)
        store(back, beside + own + 1, m1)
        store(back, beside + own + 2, m2)
        # Derivatives by the state, which lies where they will be.
        of0, of1, of2 = none, none, none
        if stage >= STAGES - 2:
            of0, of1, of2 = (
                load(back, beside + end),
                load(back, beside + end + 1),
                load(back, beside + end + 2),
            )
        row, before = base + increments, beside + pulled
        if stage == STAGES - 1:
            # It looks at what the one before did and at its increment, and ends the step.
            here0, here1 = (
                load(back, before - 3) + load(work, row - 3),
                load(back, before - 2) + load(work, row - 2),
            )
            phi = load(back, before - 1) + load(work, row - 1)
            store(work, row, load(work, row) - here0)
            store(work, row + 1, load(work, row + 1) - here1)
            store(work, row + 2, load(work, row + 2) - phi)
        else:
            here0, here1, phi = load(back, before), load(back, before + 1), load(back, before + 2)
        volume, at_end = load(work, base + VOLUME), phi + load(work, row + 2)
        if baths[k]:
            m0, m1 = none, none
        if held[k]:
            m2 = none
        charge = m2 * volume
        of0, of1 = of0 + charge * z0, of1 + charge * z1
        if k == 0 or k == nodes - 1:
            of2 = of2 + _of_end(work, back, nodes, k, m2, at_end)
        if whole:
            more0, more1 = _of_numbers(work, back, nodes, k, stage, m0, m1, m2, (here0, here1))
            of_valence0, of_valence1 = of_valence0 + more0, of_valence1 + more1
        if i > 0:
            jump, strain = after - phi, m2 - strain
            of_stiffness = load(back, beside + OF_STIFFNESS) + strain * (end_after - at_end)
            store(back, beside + OF_STIFFNESS, of_stiffness)
            by_jump = load(work, base + STIFFNESS) * strain
            ahead, behind, slope = bernoulli(z0 * jump)
            weight, row = tau * (m0 - beyond0), beside + OF_MOBILITIES
            by_here, by_there, by_drop = _through_flux(
                work, back, base + mobility, row, weight, (ahead, behind, slope), here0, there0
            )
            of0, q0, by_jump = of0 + by_here, q0 + by_there, by_jump - z0 * by_drop
            if whole:
                of_valence0 = of_valence0 - by_drop * jump
            if mirrored:
                ahead, behind, slope = behind, ahead, -one - slope
            else:
                ahead, behind, slope = bernoulli(z1 * jump)
            weight = tau * (m1 - beyond1)
            by_here, by_there, by_drop = _through_flux(
                work, back, base + mobility + 1, row + 1, weight, (ahead, behind, slope), here1, there1
            )
            of1, q1, by_jump = of1 + by_here, q1 + by_there, by_jump - z1 * by_drop
            if whole:
                of_valence1 = of_valence1 - by_drop * jump
            row = beside + rows + pulled
            store(back, row, q0)
            store(back, row + 1, q1)
            store(back, row + 2, q2 + by_jump)
            of2 = of2 - by_jump
        q0, q1, q2, beyond0, beyond1, strain = of0, of1, of2, m0, m1, m2
        there0, there1, after, end_after = here0, here1, phi, at_end
    store(back, pulled, q0)
    store(back, pulled + 1, q1)
    store(back, pulled + 2, q2)
    if whole:
        _add_of_valences(back, nodes, of_valence0, of_valence1)


@inlined
def _pulls(work: Any, back: Any, base: int, beside: int, here: float, there: float) -> Any:
    """See :func:`pnp.compiled.stepping_adjoint._pulls`; of both species, without the first stage."""
    next_, later = rows_of_node(2), back_rows_of_node(2)
    none = splat(work, 0.0)
    left0, left1, right0, right1, strained0, strained1 = none, none, none, none, none, none
    for j in range(1, STAGES):
        row, own = base + increments_at(2) + 3 * j, beside + multipliers_at(2) + 3 * j
        weight0 = here * load(back, own) - there * load(back, own + later)
        weight1 = here * load(back, own + 1) - there * load(back, own + later + 1)
        drop = load(work, row + next_ + 2) - load(work, row + 2)
        left0, left1 = left0 + weight0 * load(work, row), left1 + weight1 * load(work, row + 1)
        right0 = right0 + weight0 * load(work, row + next_)
        right1 = right1 + weight1 * load(work, row + next_ + 1)
        strained0, strained1 = strained0 + weight0 * drop, strained1 + weight1 * drop
    return left0, left1, right0, right1, strained0, strained1


@inlined
def _through_linear_flux(
    work: Any,
    back: Any,
    mobility: int,
    row: int,
    z: Any,
    weight: Any,
    along: Any,
    factors: Any,
    here: Any,
    there: Any,
) -> Any:
    """The same as :func:`_through_flux` of a flux and its derivatives, which are taken `along` increments and a drop.

    Returns last what there is by the valence beside what goes through the drop.
    """
    left, right, strained = along
    ahead, behind, slope, curvature = factors
    by_drop = slope * here - (1.0 + slope) * there
    of_mobility = ahead * left - behind * right + z * by_drop * strained
    store(back, row, load(back, row) - of_mobility)
    speed = load(work, mobility)
    turned = speed * (slope * left - (1.0 + slope) * right + z * curvature * (here - there) * strained)
    weight, strained = speed * weight, speed * strained
    by_here, by_there = -weight * ahead - slope * z * strained, weight * behind + (1.0 + slope) * z * strained
    return by_here, by_there, turned, by_drop * strained


@part
def through_start_salt(work: Any, back: Any, nodes: int, held: Any, baths: Any, whole: bool) -> None:
    """What :func:`pull_salt` does, for the first stage, and what the matrix adds: both look at the start.

    See :func:`pnp.compiled.stepping_adjoint.through_start`.
    """
    fields, rows = rows_of_node(2), back_rows_of_node(2)
    cell = nodes * fields
    tau, z0, z1 = load(work, cell + STAGE), load(work, cell + VALENCE), load(work, cell + VALENCE + 1)
    mirrored = not any_lane(opposite(z1 == -z0))
    starts, mobilities = CONCENTRATIONS + 2, CONCENTRATIONS + 4
    increments, own, pulled = increments_at(2), multipliers_at(2), pulled_at(2)
    end = pulled + 3 * (STAGES - 1)
    none, one = splat(work, 0.0), splat(work, 1.0)
    there0, there1, after, end_after, beyond0, beyond1, strain = none, none, none, none, none, none, none
    rise0, rise1 = none, none  # increments of the first stage
    q0, q1, q2 = none, none, none
    of_valence0, of_valence1 = none, none
    for i in range(nodes):
        k = nodes - 1 - i
        base, beside = k * fields, k * rows
        m0, m1, m2 = _substituted(work, back, base, beside + own, i > 0, beyond0, beyond1, strain)
        here0, here1 = load(work, base + starts), load(work, base + starts + 1)
        phi, row = load(work, base + START), base + increments
        increment0, increment1, increment2 = load(work, row), load(work, row + 1), load(work, row + 2)
        volume, at_end = load(work, base + VOLUME), phi + increment2
        if baths[k]:
            m0, m1 = none, none
        if held[k]:
            m2 = none
        charge = m2 * volume
        of0, of1, of2 = charge * z0, charge * z1, none
        for j in range(1, STAGES - 1):
            row = beside + pulled + 3 * j
            of0, of1, of2 = of0 + load(back, row), of1 + load(back, row + 1), of2 + load(back, row + 2)
        if k == 0 or k == nodes - 1:
            of2 = of2 + _of_end(work, back, nodes, k, m2, at_end)
        if whole:
            more0, more1 = _of_numbers(work, back, nodes, k, 0, m0, m1, m2, (here0, here1))
            of_valence0, of_valence1 = of_valence0 + more0, of_valence1 + more1
        if i > 0:
            jump, strain = after - phi, m2 - strain
            drop = end_after - at_end
            of_stiffness = load(back, beside + OF_STIFFNESS) + strain * drop
            store(back, beside + OF_STIFFNESS, of_stiffness)
            by_jump, drop = load(work, base + STIFFNESS) * strain, drop - jump
            here = 0.0 if baths[k] else 1.0
            there = 0.0 if baths[k + 1] else 1.0
            left0, left1, right0, right1, strained0, strained1 = _pulls(work, back, base, beside, here, there)
            ahead, behind, slope = bernoulli(z0 * jump)
            curvature = bernoulli_curvature(z0 * jump)
            # The flux itself and its derivatives in the direction of all increments.
            weight = tau * (m0 - beyond0)
            left, right = (
                tau * left0 + weight * (here0 + increment0),
                tau * right0 + weight * (there0 + rise0),
            )
            along, factors = (left, right, tau * strained0 + weight * drop), (ahead, behind, slope, curvature)
            row, mobility = beside + OF_MOBILITIES, base + mobilities
            by_here, by_there, turned, of_valence = _through_linear_flux(
                work, back, mobility, row, z0, weight, along, factors, here0, there0
            )
            of0, q0, by_jump = of0 + by_here, q0 + by_there, by_jump - z0 * turned
            of_valence0 = of_valence0 - jump * turned - of_valence
            if mirrored:  # the curvature is even
                ahead, behind, slope = behind, ahead, -one - slope
            else:
                ahead, behind, slope = bernoulli(z1 * jump)
                curvature = bernoulli_curvature(z1 * jump)
            weight = tau * (m1 - beyond1)
            left, right = (
                tau * left1 + weight * (here1 + increment1),
                tau * right1 + weight * (there1 + rise1),
            )
            along, factors = (left, right, tau * strained1 + weight * drop), (ahead, behind, slope, curvature)
            by_here, by_there, turned, of_valence = _through_linear_flux(
                work, back, mobility + 1, row + 1, z1, weight, along, factors, here1, there1
            )
            of1, q1, by_jump = of1 + by_here, q1 + by_there, by_jump - z1 * turned
            of_valence1 = of_valence1 - jump * turned - of_valence
            row = beside + rows + end
            store(back, row, q0)
            store(back, row + 1, q1)
            store(back, row + 2, q2 + by_jump)
            of2 = of2 - by_jump
        q0, q1, q2, beyond0, beyond1, strain = of0, of1, of2, m0, m1, m2
        there0, there1, after, end_after = here0, here1, phi, at_end
        rise0, rise1 = increment0, increment1
    store(back, end, q0)
    store(back, end + 1, q1)
    store(back, end + 2, q2)
    if whole:
        _add_of_valences(back, nodes, of_valence0, of_valence1)
