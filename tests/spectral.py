"""An independent transient: Gauss-Lobatto spectral elements in space, Radau IIA in time.

Shares nothing with `pnp`: concentrations are polynomials on graded elements, the equations are in weak form
(so that blocking walls are natural), the potential is eliminated by a dense inverse, and scipy's implicit
Runge-Kutta method with an exact dense Jacobian steps in time to 1e-9 and better.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.polynomial import legendre
from scipy.integrate import solve_ivp


def gauss_lobatto(degree: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nodes, weights and differentiation matrix on [-1, 1]."""
    top = np.zeros(degree + 1)
    top[-1] = 1.0
    inner = legendre.legroots(legendre.legder(top))
    nodes = np.concatenate([[-1.0], inner, [1.0]])
    value = legendre.legval(nodes, top)
    weights = 2 / (degree * (degree + 1) * value**2)
    gap = nodes[:, None] - nodes[None, :]
    np.fill_diagonal(gap, 1.0)
    matrix = value[:, None] / value[None, :] / gap
    np.fill_diagonal(matrix, 0.0)
    matrix[0, 0] = -degree * (degree + 1) / 4
    matrix[-1, -1] = degree * (degree + 1) / 4
    return nodes, weights, matrix


def two_sided(length: float, first: float, elements: int) -> np.ndarray:
    """Element ends on [0, length], an even number, growing geometrically from `first` at both walls."""
    half = elements // 2
    low, high = 1.0, 1e6
    for _ in range(200):
        ratio = np.sqrt(low * high)
        low, high = (ratio, high) if first * (ratio ** np.arange(half)).sum() < length / 2 else (low, ratio)
    reach = np.concatenate([[0.0], np.cumsum(first * ratio ** np.arange(half))])
    reach *= length / 2 / reach[-1]
    return np.concatenate([reach, length - reach[-2::-1]])


@dataclass(frozen=True)
class SpectralCell:
    """Dimensionless closed cell: -permittivity phi'' = sum z c + fixed_charge, electrodes at both ends.

    Attributes:
        ends: Ends of the elements, from 0 to the cell's length.
        valences, diffusivities, filling: One number per species.
        potentials: Of the left and right electrode.
        stern: Their Stern capacitances, None where the electrolyte touches the metal.
        ground: Index of the element end that is held at zero potential, None: there is none.
    """

    ends: np.ndarray
    permittivity: float
    potentials: tuple[float, float]
    valences: Sequence[float] = (1.0, -1.0)
    diffusivities: Sequence[float] = (1.0, 1.0)
    filling: Sequence[float] = (1.0, 1.0)
    fixed_charge: float = 0.0
    stern: tuple[float | None, float | None] = (None, None)
    ground: int | None = None
    degree: int = 10

    @cached_property
    def _basis(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Derivative at the element points, weights there, and point-to-node map."""
        _, weights, matrix = gauss_lobatto(self.degree)
        elements, points = len(self.ends) - 1, self.degree + 1
        total = elements * self.degree + 1
        derivative, weight = np.zeros((elements * points, total)), np.zeros(elements * points)
        node_of = np.zeros(elements * points, dtype=int)
        for element, half in enumerate(np.diff(self.ends) / 2):
            rows = slice(element * points, (element + 1) * points)
            columns = np.arange(points) + element * self.degree
            derivative[rows, columns] = matrix / half
            weight[rows], node_of[rows] = weights * half, columns
        return derivative, weight, node_of

    @cached_property
    def mass(self) -> np.ndarray:
        _, weight, node_of = self._basis
        return np.bincount(node_of, weight)

    @cached_property
    def positions(self) -> np.ndarray:
        nodes, _, _ = gauss_lobatto(self.degree)
        inside = self.ends[:-1, None] + np.diff(self.ends)[:, None] * (nodes[None, :-1] + 1) / 2
        return np.append(inside.ravel(), self.ends[-1])

    @cached_property
    def stiffness(self) -> np.ndarray:
        derivative, weight, _ = self._basis
        return self.permittivity * derivative.T @ (weight[:, None] * derivative)

    @cached_property
    def _poisson(self) -> tuple[np.ndarray, np.ndarray]:
        """Potential as a linear function of the charge density: matrix and constant."""
        matrix, constant = self.stiffness.copy(), np.zeros(len(self.mass))
        held = {}
        for node, potential, stern in zip((0, -1), self.potentials, self.stern, strict=True):
            if stern is None:
                held[node] = potential
            else:
                matrix[node, node] += stern
                constant[node] = stern * potential
        if self.ground is not None:
            held[self.ground * self.degree] = 0.0
        source = np.diag(self.mass)
        for node, potential in held.items():
            matrix[node], source[node], constant[node] = 0.0, 0.0, potential
            matrix[node, node] = 1.0
        return np.linalg.solve(matrix, source), np.linalg.solve(matrix, constant)

    def _split(self, state: np.ndarray) -> np.ndarray:
        return state.reshape(len(self.valences), -1, *state.shape[1:])

    def charge_density(self, state: np.ndarray) -> np.ndarray:
        return np.tensordot(self.valences, self._split(state), 1) + self.fixed_charge

    def potential(self, state: np.ndarray) -> np.ndarray:
        matrix, constant = self._poisson
        density = self.charge_density(state)
        return matrix @ density + (constant if density.ndim == 1 else constant[:, None])

    def surface_charge(self, state: np.ndarray) -> np.ndarray:
        """On the left electrode."""
        defect = self.stiffness @ self.potential(state)
        return defect[0] - self.mass[0] * self.charge_density(state)[0]

    def diffuse_charge(self, state: np.ndarray) -> np.ndarray:
        return self.mass @ np.abs(self.charge_density(state)) / 2

    def _rate(self, _time: float, state: np.ndarray) -> np.ndarray:
        derivative, weight, node_of = self._basis
        field = derivative @ self.potential(state)
        rates = []
        for z, d, c in zip(self.valences, self.diffusivities, self._split(state), strict=True):
            flux = -d * (derivative @ c + z * c[node_of] * field)
            rates.append(derivative.T @ (weight * flux) / self.mass)
        return np.concatenate(rates)

    def _jacobian(self, _time: float, state: np.ndarray) -> np.ndarray:
        derivative, weight, node_of = self._basis
        nodes, matrix = len(self.mass), self._poisson[0]
        field = derivative @ self.potential(state)
        response = derivative @ matrix
        at_points = np.eye(nodes)[node_of]
        blocks = []
        for i, (z, d, c) in enumerate(
            zip(self.valences, self.diffusivities, self._split(state), strict=True)
        ):
            row = []
            for j, other in enumerate(self.valences):
                flux = z * other * c[node_of][:, None] * response
                if i == j:
                    flux = flux + derivative + z * field[:, None] * at_points
                row.append(-d * derivative.T @ (weight[:, None] * flux) / self.mass[:, None])
            blocks.append(row)
        return np.block(blocks)

    def solve(self, times: Sequence[float], tolerance: float = 1e-9) -> np.ndarray:
        """Concentrations `(species * node, time)`."""
        start = np.repeat(np.asarray(self.filling, dtype=float), len(self.mass))
        found = solve_ivp(
            self._rate,
            (0.0, times[-1]),
            start,
            method="Radau",
            t_eval=times,
            rtol=tolerance,
            atol=tolerance * 1e-2,
            jac=self._jacobian,
            first_step=1e-9 * times[-1],
        )
        if not found.success:
            raise RuntimeError(found.message)
        return found.y
