r"""The Bernoulli function :math:`B(x) = x/(e^x - 1)` and its derivative; see :mod:`pnp.finite_volume.bernoulli`."""

from typing import Any

from ..finite_volume.bernoulli import LARGEST, SERIES_BELOW
from .lanes import absolute, any_lane, exponential, inlined, largest, opposite, smallest, where


@inlined
def bernoulli(x: Any) -> Any:
    """B(x), B(-x) and B'(x)."""
    a = absolute(x)
    square = a * a
    # Taylor's coefficients of B(x) - 1 + x/2: Bernoulli numbers over factorials.
    value = square * (-691 / 1307674368000) + 1 / 47900160
    value = square * value - 1 / 1209600
    value = square * value + 1 / 30240
    value = square * value - 1 / 720
    value = square * value + 1 / 12
    value = square * value + (1.0 - 0.5 * a)
    slope = square * (-12 * 691 / 1307674368000) + 10 / 47900160
    slope = square * slope - 8 / 1209600
    slope = square * slope + 6 / 30240
    slope = square * slope - 4 / 720
    slope = square * slope + 2 / 12
    slope = slope * a - 0.5
    small = a < SERIES_BELOW
    if any_lane(opposite(small)):  # on most edges of most grids there is none
        large = smallest(largest(a, SERIES_BELOW), LARGEST)
        inverse = 1.0 / (exponential(large) - 1.0)
        value = where(small, value, large * inverse)
        slope = where(small, slope, (1.0 - value) * inverse - value)
    mirrored = value + a
    ahead, back = where(x < 0.0, mirrored, value), where(x < 0.0, value, mirrored)
    return ahead, back, where(x < 0.0, -1.0 - slope, slope)


@inlined
def bernoulli_curvature(x: Any) -> Any:
    """B''(x), which is even."""
    a = absolute(x)
    square = a * a
    value = square * (-132 * 691 / 1307674368000) + 90 / 47900160
    value = square * value - 56 / 1209600
    value = square * value + 30 / 30240
    value = square * value - 12 / 720
    value = square * value + 2 / 12
    small = a < SERIES_BELOW
    if any_lane(opposite(small)):
        large = smallest(largest(a, SERIES_BELOW), LARGEST)
        inverse = 1.0 / (exponential(large) - 1.0)
        slope = (1.0 - large * inverse) * inverse
        value = where(small, value, (1.0 + inverse) * (large * inverse - 2.0 * slope))
    return value
