r"""The Bernoulli function :math:`B(x) = x/(e^x - 1)` and its derivative; see :mod:`pnp.finite_volume.bernoulli`."""

from typing import Any

from ..finite_volume.bernoulli import LARGEST, SERIES_BELOW
from .lanes import absolute, exponential, inlined, largest, smallest, where


@inlined
def bernoulli(x: Any) -> Any:
    """B(x), B(-x) and B'(x)."""
    a = absolute(x)
    square = a * a
    # Taylor's coefficients of B(x) - 1 + x/2: Bernoulli numbers over factorials.
    series = square * (-691 / 1307674368000) + 1 / 47900160
    series = square * series - 1 / 1209600
    series = square * series + 1 / 30240
    series = square * series - 1 / 720
    series = square * series + 1 / 12
    series = square * series + (1.0 - 0.5 * a)
    large = smallest(largest(a, SERIES_BELOW), LARGEST)
    inverse = 1.0 / (exponential(large) - 1.0)
    value = where(a < SERIES_BELOW, series, large * inverse)
    series = square * (-12 * 691 / 1307674368000) + 10 / 47900160
    series = square * series - 8 / 1209600
    series = square * series + 6 / 30240
    series = square * series - 4 / 720
    series = square * series + 2 / 12
    series = series * a - 0.5
    slope = where(a < SERIES_BELOW, series, (1.0 - value) * inverse - value)
    mirrored = value + a
    ahead, back = where(x < 0.0, mirrored, value), where(x < 0.0, value, mirrored)
    return ahead, back, where(x < 0.0, -1.0 - slope, slope)
