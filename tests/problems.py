"""Named cells that know their exact solutions.

Every class here holds the parameters of a cell, builds it (`cell()`) and states what it must give, in formulas
that share no code with the solvers. All are dimensionless: thermal voltage and Faraday constant are one, and
`permittivity` of a cell of unit concentrations z = ±1 is twice the square of its Debye length.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import brentq

import pnp
from pnp.analytic import CanonicalCell, canonical_cell


def electrolyte(
    permittivity: Any, valences: Sequence[Any] = (1.0, -1.0), diffusivities: Sequence[Any] = (1.0, 1.0)
) -> pnp.Electrolyte:
    """Dimensionless electrolyte of species `s0`, `s1`, ..."""
    pairs = zip(valences, diffusivities, strict=True)
    species = [pnp.Species(f"s{i}", valence=z, diffusivity=d) for i, (z, d) in enumerate(pairs)]
    return pnp.Electrolyte.dimensionless(species, permittivity=permittivity)


@dataclass(frozen=True)
class Canonical:
    """Symmetric salt between electrodes at +U0 and -U0, two half widths long; exact by elliptic integrals."""

    voltage: float
    debye: float

    def cell(self, **changes: Any) -> pnp.Cell:
        arguments = {
            "length": 2.0,
            "concentrations": 1.0,
            "left": pnp.Electrode(potential=self.voltage),
            "right": pnp.Electrode(potential=-self.voltage),
        }
        return pnp.Cell(electrolyte(2 * self.debye**2), **(arguments | changes))

    @property
    def exact(self) -> CanonicalCell:
        return canonical_cell(self.voltage, self.debye)

    @property
    def charge(self) -> float:
        """What `pnp.diffuse_charge` measures: half of the absolute charge in the cell."""
        return 2 * self.exact.charge

    def potential(self, positions: np.ndarray) -> np.ndarray:
        """At positions 0..2."""
        return self.exact.potential(np.asarray(positions) - 1.0)

    def concentrations(self, positions: np.ndarray) -> np.ndarray:
        """Of cations and anions at positions 0..2."""
        return self.exact.concentrations(np.asarray(positions) - 1.0)


@dataclass(frozen=True)
class GouyChapman:
    """Symmetric salt between an electrode and a bath that is 40 Debye lengths away.

    References:
        Bard & Faulkner, Electrochemical Methods (2001), ch. 13.
    """

    voltage: float
    permittivity: float = 2.0

    @property
    def debye(self) -> float:
        return math.sqrt(self.permittivity / 2)

    def cell(self, **changes: Any) -> pnp.Cell:
        arguments = {
            "length": 40 * self.debye,
            "concentrations": 1.0,
            "left": pnp.Electrode(potential=self.voltage),
            "right": pnp.Reservoir(concentrations=1.0, potential=0.0),
        }
        return pnp.Cell(electrolyte(self.permittivity), **(arguments | changes))

    def potential(self, positions: np.ndarray, wall: float | None = None) -> np.ndarray:
        start = math.tanh((self.voltage if wall is None else wall) / 4)
        return 4 * np.arctanh(start * np.exp(-np.asarray(positions) / self.debye))

    def surface_charge(self, wall: float | None = None) -> float:
        """Grahame's equation."""
        return math.sqrt(8 * self.permittivity) * math.sinh((self.voltage if wall is None else wall) / 2)

    @property
    def capacitance(self) -> float:
        """Derivative of the surface charge with respect to the voltage."""
        return self.permittivity / self.debye * math.cosh(self.voltage / 2)

    def behind_stern(self, capacitance: float) -> float:
        """Potential at the wall behind a Stern layer (Gouy, Chapman, Stern)."""

        def excess(wall: float) -> float:
            return capacitance * (self.voltage - wall) - self.surface_charge(wall)

        return float(brentq(excess, 0.0, self.voltage, xtol=1e-15, rtol=1e-14))


@dataclass(frozen=True)
class DebyeHueckel:
    """Linear response of a closed cell of unit length to ±`voltage`, with or without Stern layers."""

    debye: float
    voltage: float = 1e-4
    stern: float | None = None

    @property
    def permittivity(self) -> float:
        return 2 * self.debye**2

    def cell(self) -> pnp.Cell:
        return pnp.Cell(
            electrolyte(self.permittivity),
            length=1.0,
            concentrations=1.0,
            left=pnp.Electrode(potential=self.voltage, stern_capacitance=self.stern),
            right=pnp.Electrode(potential=-self.voltage, stern_capacitance=self.stern),
        )

    @property
    def surface_charge(self) -> float:
        diffuse = self.permittivity / self.debye / math.tanh(0.5 / self.debye)
        return self.voltage * diffuse / (1 if self.stern is None else 1 + diffuse / self.stern)

    def potential(self, positions: np.ndarray) -> np.ndarray:
        wall = self.voltage - (0 if self.stern is None else self.surface_charge / self.stern)
        return wall * np.sinh((0.5 - np.asarray(positions)) / self.debye) / math.sinh(0.5 / self.debye)


@dataclass(frozen=True)
class SaltDiffusion:
    """Neutral salt of equal diffusivities between grounded blocking walls: a cosine mode that decays."""

    diffusivity: float = 1.0
    length: float = 1.0
    amplitude: float = 0.5
    permittivity: float = 0.02

    def cell(self) -> pnp.Cell:
        return pnp.Cell(
            electrolyte(self.permittivity, diffusivities=(self.diffusivity, self.diffusivity)),
            length=self.length,
            concentrations=1.0,
            left=pnp.Electrode(potential=0.0),
            right=pnp.Electrode(potential=0.0),
        )

    @property
    def rate(self) -> float:
        return self.diffusivity * (math.pi / self.length) ** 2

    def rate_on(self, edges: int) -> float:
        """Exact rate on a uniform grid, where the cosine is an eigenvector too."""
        spacing = self.length / edges
        return 2 * self.diffusivity / spacing**2 * (1 - math.cos(math.pi * spacing / self.length))

    def profile(self, positions: np.ndarray, decay: float = 1.0) -> np.ndarray:
        """Concentration of either ion when the mode has shrunk to `decay`."""
        return 1 + self.amplitude * decay * np.cos(math.pi * np.asarray(positions) / self.length)


@dataclass(frozen=True)
class DilutePartition:
    """Ions too dilute to screen, electrodes at ±U0 and a ground in the middle: a linear potential."""

    valences: tuple[float, ...]
    voltage: float

    def cell(self) -> pnp.Cell:
        return pnp.Cell(
            electrolyte(1e9, self.valences, (1.0,) * len(self.valences)),
            length=1.0,
            concentrations=1.0 / len(self.valences),
            left=pnp.Electrode(potential=self.voltage),
            right=pnp.Electrode(potential=-self.voltage),
            ground=0.5,
        )

    @property
    def fraction_right(self) -> np.ndarray:
        """Fraction of each species on the right of the ground."""
        return 1 / (1 + np.exp(-np.array(self.valences) * self.voltage))

    def concentrations(self, positions: np.ndarray) -> np.ndarray:
        """Of every species, `(species, position)`."""
        drift = np.array(self.valences)[:, None] * self.voltage
        mean = np.sinh(drift) / drift
        return np.exp(drift * (2 * np.asarray(positions) - 1)) / mean / len(self.valences)


@dataclass(frozen=True)
class Junction:
    """Univalent ions between two baths, a unit length apart: fluxes in the thick and in the thin limit.

    `left` and `right` are the baths' concentrations; the potential is `voltage` in the right bath and zero in
    the left one. Without screening (`permittivity` to infinity) the field is constant (Goldman, Hodgkin and
    Katz). In a layer thick against its Debye length (`permittivity` to zero) the total concentration is linear
    and every flux follows by quadrature (Planck).

    References:
        | Planck, Ann. Phys. 276, 561 (1890)
        | Hodgkin & Katz, J. Physiol. 108, 37 (1949)
    """

    valences: tuple[float, ...]
    diffusivities: tuple[float, ...]
    left: tuple[float, ...]
    right: tuple[float, ...]

    def cell(self, voltage: Any, permittivity: float) -> pnp.Cell:
        return pnp.Cell(
            electrolyte(permittivity, self.valences, self.diffusivities),
            length=1.0,
            concentrations=[(a + b) / 2 for a, b in zip(self.left, self.right, strict=True)],
            left=pnp.Reservoir(concentrations=self.left, potential=0.0),
            right=pnp.Reservoir(concentrations=self.right, potential=voltage),
        )

    def fluxes_constant_field(self, voltage: float) -> np.ndarray:
        drop = np.array(self.valences) * voltage
        left, right = np.array(self.left), np.array(self.right)
        return np.array(self.diffusivities) * drop * (left - right * np.exp(drop)) / np.expm1(drop)

    def fluxes_neutral(self, voltage: float) -> np.ndarray:
        valences, left, right = (np.array(part) for part in (self.valences, self.left, self.right))
        if set(np.abs(valences)) != {1.0}:
            raise ValueError("the neutral limit is stated for univalent ions")
        total_left, total_right = left.sum(), right.sum()
        # The potential is logarithmic in the total concentration, which is linear in the position.
        exponent = valences * voltage / np.log(total_right / total_left) + 1
        rise = (total_right / total_left) ** exponent - 1
        integral = total_left / (total_right - total_left) * rise / exponent
        return np.array(self.diffusivities) * (left - right * np.exp(valences * voltage)) / integral

    def reversal_constant_field(self) -> float:
        """Potential without current, by the formula of Goldman, Hodgkin and Katz."""
        d, left, right = (np.array(part) for part in (self.diffusivities, self.left, self.right))
        cation = np.array(self.valences) > 0
        from_left = (d * np.where(cation, left, right)).sum()
        from_right = (d * np.where(cation, right, left)).sum()
        return float(np.log(from_left / from_right))

    def reversal_linear_mixing(self) -> float:
        """Henderson's approximation to :meth:`reversal_neutral`: the composition is taken to be linear."""
        z, d, left, right = (np.array(part) for part in vars(self).values())
        conductance = math.log((d * right).sum() / (d * left).sum())
        return float(-(z * d * (right - left)).sum() / (d * (right - left)).sum() * conductance)

    def reversal_neutral(self) -> float:
        """Potential without current in the neutral limit."""

        def current(voltage: float) -> float:
            return float((np.array(self.valences) * self.fluxes_neutral(voltage)).sum())

        return float(brentq(current, -6.0, 6.1, xtol=1e-15, rtol=1e-14))


BINARY_JUNCTION = Junction((1.0, -1.0), (1.96, 2.03), (3.0, 3.0), (1.0, 1.0))
LITHIUM_JUNCTION = Junction((1.0, -1.0), (1.03, 2.03), (3.0, 3.0), (1.0, 1.0))
MEMBRANE = Junction((1.0, 1.0, -1.0), (1.96, 1.33, 2.03), (1.4, 0.1, 1.5), (0.05, 5.05, 5.1))
"""Potassium, sodium and chloride."""
