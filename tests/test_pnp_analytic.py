"""The exact canonical cell against quadrature with 30 digits and against its own differential equation."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from scipy.integrate import quad, solve_bvp

from pnp.analytic import THIN, canonical_cell

CASES = [(U, debye) for U in (0.1, 1.0, 4.0, 10.0, 20.0) for debye in (1.0, 0.1, 0.05, 0.01, 0.001)]


@pytest.mark.parametrize(("voltage", "debye"), CASES)
def test_quadrature_with_thirty_digits(voltage, debye):
    """Distance and amount of ions between middle and wall, from the first integral of the equation."""
    exact = canonical_cell(voltage, debye)
    with mpmath.workdps(30):
        b, root = mpmath.exp(exact.log_slope), mpmath.sqrt(exact.midplane)
        top = mpmath.sinh(mpmath.mpf(voltage) / 2)
        # Substitution s = b sinh(v) takes the near-singularity at s = b out of the integrand.
        end = mpmath.asinh(top / b)
        pieces = mpmath.linspace(0, end, 12)
        i0 = mpmath.quad(lambda v: 1 / mpmath.sqrt(1 + (b * mpmath.sinh(v)) ** 2), pieces)
        i2 = mpmath.quad(
            lambda v: (b * mpmath.sinh(v)) ** 2 / mpmath.sqrt(1 + (b * mpmath.sinh(v)) ** 2), pieces
        )
        distance = debye / root * i0
        amount = root * debye * (i0 + 2 * i2)  # of both ions together, over half the cell: one of each
        charge = 2 * debye * root * (mpmath.sqrt(top**2 + b**2) - b)
    assert float(distance) == pytest.approx(1.0, rel=1e-12)
    assert float(amount) == pytest.approx(1.0, rel=1e-12)
    assert exact.charge == pytest.approx(float(charge), rel=1e-11)


@pytest.mark.parametrize(
    ("voltage", "debye"), [(1.0, 1.0), (4.0, 0.1), (10.0, 0.1), (10.0, 0.05), (2.0, 0.02)]
)
def test_profiles_keep_the_amounts_and_the_charge(voltage, debye):
    exact = canonical_cell(voltage, debye)

    def integral(function):
        layer = [-1 + debye * k for k in (1e-3, 1e-2, 0.1, 1.0, 5.0)]
        ends = [-1.0, *[x for x in layer if x < 0], 0.0]
        return sum(quad(function, a, b, epsabs=1e-11, epsrel=1e-11)[0] for a, b in pairwise(ends))

    both = integral(lambda x: float(exact.concentrations(np.array(x)).sum()))
    charge = integral(lambda x: float(abs(np.diff(exact.concentrations(np.array(x)), axis=0)[0]) / 2))
    assert both == pytest.approx(2.0, rel=1e-9)
    assert charge == pytest.approx(exact.charge, rel=1e-9)


@pytest.mark.parametrize(("voltage", "debye"), [(1.0, 0.3), (4.0, 0.1), (10.0, 0.3)])
def test_potential_agrees_with_a_boundary_value_solver(voltage, debye):
    exact = canonical_cell(voltage, debye)

    def equation(x, y):
        return np.stack([y[1], exact.midplane / debye**2 * np.sinh(y[0])])

    x = np.linspace(-1, 1, 401)
    start = np.stack([-voltage * x, np.full_like(x, -voltage)])
    solved = solve_bvp(
        equation,
        lambda a, b: np.array([a[0] - voltage, b[0] + voltage]),
        x,
        start,
        tol=1e-10,
        max_nodes=20000,
    )
    assert solved.success
    probe = np.linspace(-0.99, 0.99, 57)
    assert np.abs(solved.sol(probe)[0] - exact.potential(probe)).max() < 1e-7 * voltage


def test_left_electrode_is_the_positive_one():
    exact = canonical_cell(3.0, 0.1)
    assert np.allclose(exact.potential(np.array([-1.0, 0.0, 1.0])), [3.0, 0.0, -3.0], atol=1e-11)
    cations, anions = exact.concentrations(np.array([-1.0, 1.0]))
    assert cations[1] > 1 > cations[0]
    assert np.allclose(cations, anions[::-1])


@pytest.mark.parametrize("debye", [0.3, 0.03])
def test_small_voltages_give_the_linear_response(debye):
    voltage = 1e-4
    exact = canonical_cell(voltage, debye)
    x = np.linspace(-1, 1, 21)
    linear = -voltage * np.sinh(x / debye) / math.sinh(1 / debye)
    assert np.abs(exact.potential(x) - linear).max() < 1e-7 * voltage
    assert exact.charge == pytest.approx(
        debye * voltage * (1 / math.tanh(1 / debye) - 1 / math.sinh(1 / debye)), rel=1e-7
    )


def test_thin_form_continues_the_elliptic_one():
    # ln b is nearly -1/debye: straddle the switch between the two forms
    debyes = 1 / (-THIN + np.linspace(-4, 4, 81))
    found = [canonical_cell(2.0, float(debye)) for debye in debyes]
    assert min(one.log_slope for one in found) < THIN < max(one.log_slope for one in found)
    for value in ("charge", "midplane"):
        smooth = np.array([getattr(one, value) for one in found])
        bumps = np.abs(np.diff(np.log(smooth), n=4))
        assert bumps.max() < 1e-6 * abs(np.diff(np.log(smooth))).max() + 1e-11


@pytest.mark.parametrize(("voltage", "debye"), [(0.0, 0.1), (-1.0, 0.1), (1.0, 0.0)])
def test_refuses_what_is_not_positive(voltage, debye):
    with pytest.raises(ValueError, match="canonical_cell: voltage and debye must be positive, got"):
        canonical_cell(voltage, debye)
