"""The Bernoulli function against 50 digits, in value and derivative, and under autograd."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pnp.finite_volume.bernoulli import (
    SERIES_BELOW,
    bernoulli,
    bernoulli_derivative,
    bernoulli_log_derivative,
)

POINTS = torch.cat(
    [
        torch.logspace(-300, 2.84, 400, dtype=torch.float64),
        torch.linspace(0.9 * SERIES_BELOW, 1.1 * SERIES_BELOW, 201, dtype=torch.float64),
        torch.tensor([1e-8, 1e-4, 0.1, 1.0, 2.0, 30.0, 37.0, 300.0, 690.0, 700.0], dtype=torch.float64),
    ]
)
ROUNDING = 2.0**-52


def exact(x: float) -> tuple[float, float]:
    """B and its derivative, computed with 400 digits so that nothing cancels at 1e-300."""
    with mpmath.workdps(400):
        if x == 0:
            return 1.0, -0.5
        x = mpmath.mpf(x)
        growth = mpmath.expm1(x)
        value = x / growth
        return float(value), float((1 - value * mpmath.exp(x)) / growth)


@pytest.mark.parametrize("sign", [1, -1])
def test_value_and_derivative_are_right_to_rounding(sign):
    x = sign * POINTS
    reference = torch.tensor([exact(one) for one in x.tolist()], dtype=torch.float64)
    value_error = (bernoulli(x) / reference[:, 0] - 1).abs()
    slope_error = (bernoulli_derivative(x) / reference[:, 1] - 1).abs()
    assert value_error.max() < 4 * ROUNDING
    # -1 - B' is right in absolute terms where B' of the reflected argument is next to zero.
    assert slope_error.max() < 8 * ROUNDING


def test_at_zero_and_beyond_the_range_of_exp():
    x = torch.tensor([0.0, 1e4, -1e4, 1e300, -1e300], dtype=torch.float64)
    value = torch.tensor([1.0, 0.0, 1e4, 0.0, 1e300], dtype=torch.float64)
    slope = torch.tensor([-0.5, 0.0, -1.0, 0.0, -1.0], dtype=torch.float64)
    assert torch.allclose(bernoulli(x), value, rtol=1e-15, atol=1e-300)
    assert torch.allclose(bernoulli_derivative(x), slope, rtol=1e-15, atol=1e-290)


def test_logarithmic_derivative():
    x = torch.cat([-POINTS, POINTS, torch.tensor([0.0], dtype=torch.float64)])
    wanted = torch.tensor([b / a for a, b in map(exact, x.tolist())], dtype=torch.float64)
    assert (bernoulli_log_derivative(x) - wanted).abs().max() < 4 * ROUNDING
    far = torch.tensor([-1e4, 1e4], dtype=torch.float64)
    assert torch.allclose(bernoulli_log_derivative(far), torch.tensor([-1e-4, -0.9999], dtype=torch.float64))
    x = torch.tensor([-800.0, -2.0, 0.0, 0.1, 3.0, 800.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bernoulli_log_derivative, (x,), atol=1e-8)


@given(st.floats(-600, 600))
def test_identities_between_x_and_minus_x(x):
    x = torch.tensor(x, dtype=torch.float64)
    scale = ROUNDING * (1 + x.abs())
    assert (bernoulli(-x) - bernoulli(x) - x).abs() <= 2 * scale
    assert (bernoulli_derivative(-x) + bernoulli_derivative(x) + 1).abs() <= 4 * ROUNDING
    ratio = torch.log(bernoulli(-x)) - torch.log(bernoulli(x))  # B(-x) = e^x B(x)
    assert (ratio - x).abs() <= 8 * scale


def test_autograd_gives_the_derivative_and_never_nan():
    x = torch.cat([POINTS, -POINTS, torch.tensor([0.0, 1e4, -1e4]).double()]).requires_grad_()
    (slope,) = torch.autograd.grad(bernoulli(x).sum(), x)
    assert torch.equal(slope, bernoulli_derivative(x.detach()))
    assert torch.isfinite(slope).all()


def test_gradcheck_across_the_branches():
    points = [-800.0, -3.0, -0.26, -0.25, -0.1, 0.0, 1e-7, 0.2, 0.25, 1.0, 30.0]
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bernoulli, (x,), eps=1e-6, atol=1e-8)


def test_second_derivative_through_autograd():
    x = torch.tensor([-3.0, -0.1, 1e-3, 0.2, 2.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bernoulli(x).sum(), x, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), x)
    with mpmath.workdps(60):
        wanted = [float(mpmath.diff(lambda t: t / mpmath.expm1(t), mpmath.mpf(one), 2)) for one in x.tolist()]
    assert torch.allclose(curvature, torch.tensor(wanted, dtype=torch.float64), rtol=1e-11)
