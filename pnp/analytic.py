"""The exact steady state of the canonical cell; shares no code with the solvers."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import elliprd, elliprf

THIN = -40.0
"""Below this ln b the integrals are elementary to rounding (and b itself soon underflows)."""


@dataclass(frozen=True)
class CanonicalCell:
    r"""Exact steady state of a symmetric binary cell between blocking electrodes at :math:`\pm U_0`.

    On :math:`-1 < x < 1` (lengths in half widths, potentials in thermal voltages, mean concentrations one,
    :math:`\epsilon = \lambda_D/(L/2)`),

    .. math:: \epsilon^2\phi'' = A\sinh\phi, \qquad \phi(\pm1) = \mp U_0, \qquad c_\pm = A\,e^{\mp\phi},

    whose quadrature is an elliptic integral: with :math:`s = \sinh(|\phi|/2)`,

    .. math:: |x| = \frac{\epsilon}{\sqrt A}\int_0^s \frac{dt}{\sqrt{(1+t^2)(b^2+t^2)}} .

    The amounts fix *b* by one scalar equation. Made by :func:`canonical_cell`.

    Attributes:
        voltage, debye: :math:`U_0` and :math:`\epsilon`.
        midplane: Concentration A in the middle of the cell.
        log_slope: :math:`\ln b`; *b* is half the potential gradient in the middle over
            :math:`\sqrt A/\epsilon`, and falls as :math:`e^{-1/\epsilon}`.
        charge: Diffuse charge :math:`Q = \int_0^1\tfrac12|c_+ - c_-|\,dx` of one half, between 0 and 1.

    References:
        Carlson, Numer. Algorithms 10, 13 (1995), for the symmetric elliptic integrals.

    Example:
        >>> from pnp.analytic import canonical_cell
        >>> import numpy as np
        >>> exact = canonical_cell(voltage=4.0, debye=0.1)
        >>> exact.potential(np.array([-1.0, -0.9, 1.0])).round(6).tolist()
        [4.0, 1.487976, -4.0]
    """

    voltage: float
    debye: float
    midplane: float
    log_slope: float
    charge: float

    def potential(self, position: np.ndarray) -> np.ndarray:
        """Potential at positions -1..1, in thermal voltages; positive at the left electrode."""
        position = np.asarray(position, dtype=float)
        reach = np.abs(position) * np.sqrt(self.midplane) / self.debye
        magnitude = np.array([self._magnitude(target) for target in reach.ravel()])
        return -np.sign(position) * magnitude.reshape(position.shape)

    def concentrations(self, position: np.ndarray) -> np.ndarray:
        """Concentrations of cations and anions at positions -1..1, shape `(2, *position.shape)`."""
        potential = self.potential(position)
        return self.midplane * np.exp(np.stack([-potential, potential]))

    def _magnitude(self, reach: float) -> float:
        """|phi| where the integral has the value `reach`."""
        if reach == 0.0:
            return 0.0
        if self.log_slope < THIN:
            # tanh(phi/4) = (b/2) sinh(reach), up to b²
            log_sinh = reach + np.log(-np.expm1(-2 * reach) / 2)
            return float(4 * np.arctanh(np.exp(min(self.log_slope + log_sinh - np.log(2), -1e-300))))
        top = np.log(np.sinh(self.voltage / 2))
        low = np.log(reach) + self.log_slope - 1.0  # the integrand is at most 1/b
        found = brentq(lambda u: _i0(u, self.log_slope) - reach, low, top + 1e-9, xtol=1e-15, rtol=1e-14)
        return float(2 * np.arcsinh(np.exp(found)))


def canonical_cell(voltage: float, debye: float) -> CanonicalCell:
    """Solve the scalar equation of :class:`CanonicalCell`; accurate to about 1e-13.

    Raises ValueError unless `voltage` and `debye` are positive.

    Example:
        >>> from pnp.analytic import canonical_cell
        >>> f"{canonical_cell(voltage=4.0, debye=0.1).charge:.9f}"
        '0.551944668'
    """
    if voltage <= 0 or debye <= 0:
        raise ValueError(
            f"canonical_cell: voltage and debye must be positive, got {voltage:g} and {debye:g}."
        )
    top = np.sinh(voltage / 2)

    def excess(log_slope: float) -> float:
        i0 = _i0(np.log(top), log_slope)
        return float(np.log(debye**2 * i0 * (i0 + 2 * _i2(top, log_slope))))

    log_slope = brentq(excess, -10 / debye - 100, 100.0, xtol=1e-14, rtol=1e-15)
    root = debye * _i0(np.log(top), log_slope)
    b = np.exp(log_slope)
    charge = 2 * debye * root * top**2 / (np.sqrt(top**2 + b**2) + b)
    return CanonicalCell(voltage, debye, float(root**2), float(log_slope), float(charge))


def _i0(log_s: float, log_b: float) -> float:
    r""":math:`\int_0^s dt\,[(1+t^2)(b^2+t^2)]^{-1/2}`."""
    s = np.exp(log_s)
    if log_b < THIN:
        return float(np.log(4) + log_s - log_b - np.log1p(np.hypot(1, s)))
    b = np.exp(log_b)
    return float(s * elliprf(b**2, b**2 * (1 + s**2), s**2 + b**2))


def _i2(s: float, log_b: float) -> float:
    r""":math:`\int_0^s t^2\,dt\,[(1+t^2)(b^2+t^2)]^{-1/2}`."""
    if log_b < THIN:
        return float(s**2 / (np.hypot(1, s) + 1))
    b = np.exp(log_b)
    return float(b**2 * s**3 / 3 * elliprd(b**2 * (1 + s**2), s**2 + b**2, b**2))
