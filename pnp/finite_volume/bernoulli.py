r"""The Bernoulli function :math:`B(x) = x/(e^x - 1)` and its derivative, to rounding for every float64.

Near zero the quotient cancels, so a series takes over; its derivative cancels twice as badly, so it has a
formula of its own. Both are evaluated at :math:`|x|` and reflected, :math:`B(-x) = B(x) + x`.
"""

from typing import Any

import torch
from torch import Tensor

from ..elementary import expm1

SERIES_BELOW = 0.25
LARGEST = 700.0  # exp overflows above 709; B(700) is 7e-302

# Taylor coefficients of B(x) - 1 + x/2 in powers x², x⁴, ...: Bernoulli numbers over factorials.
_SERIES = (1 / 12, -1 / 720, 1 / 30240, -1 / 1209600, 1 / 47900160, -691 / 1307674368000)


def bernoulli(x: Tensor) -> Tensor:
    r""":math:`B(x) = x/(e^x - 1)`, with :math:`B(0) = 1`; differentiable, also at zero."""
    return _Bernoulli.apply(x)


def bernoulli_derivative(x: Tensor) -> Tensor:
    r""":math:`B'(x) = \frac{1 - B(x)}{e^x - 1} - B(x)`, with :math:`B'(0) = -\tfrac12`."""
    a = torch.where(x < 0, -x, x)  # of which, unlike of |x|, autograd has a derivative at zero
    small = a < SERIES_BELOW
    large = torch.where(small, torch.ones_like(a), a).clamp(max=LARGEST)
    growth = expm1(large)
    value = large / growth
    derivative = torch.where(small, _series_derivative(a), (1 - value) / growth - value)
    return torch.where(x < 0, -1 - derivative, derivative)


def bernoulli_log_derivative(x: Tensor) -> Tensor:
    r""":math:`\beta(x) = B'(x)/B(x)`, between :math:`-1` and 0."""
    # B vanishes for large x, but not where it is reflected to: beta(x) = -1 - beta(-x).
    negative = torch.where(x > 0, -x, x)
    reflected = bernoulli_derivative(negative) / bernoulli(negative)
    return torch.where(x > 0, -1 - reflected, reflected)


def _value(x: Tensor) -> Tensor:
    a = x.abs()
    small = a < SERIES_BELOW
    large = torch.where(small, torch.ones_like(a), a).clamp(max=LARGEST)
    value = torch.where(small, _series(a), large / expm1(large))
    return torch.where(x < 0, value + a, value)


def _series(a: Tensor) -> Tensor:
    square = a * a
    total = torch.zeros_like(a)
    for coefficient in reversed(_SERIES):
        total = (total + coefficient) * square
    return 1 - a / 2 + total


def _series_derivative(a: Tensor) -> Tensor:
    square = a * a
    total = torch.zeros_like(a)
    for power, coefficient in reversed(list(enumerate(_SERIES, start=1))):
        total = total * square + 2 * power * coefficient
    return total * a - 0.5


class _Bernoulli(torch.autograd.Function):
    """Value with the accurate derivative; autograd through the quotient loses up to 12 digits near zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * bernoulli_derivative(x)
