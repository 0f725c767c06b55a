"""The cells that every code solves, and what they must give.

A 1:1 salt of equal diffusivities between blocking electrodes at ±U0, lengths in half widths, potentials in thermal
voltages, mean concentrations one, so that `debye` is the Debye length over the half width. Q is the diffuse charge of
one half, the integral of |c+ - c-|/2 over it: half of what `pnp.diffuse_charge` measures.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import pnp
from pnp.analytic import canonical_cell
from tests.spectral import SpectralCell, two_sided

from .measure import load, save

NODES = 201


def sample(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Voltages, uniform over 0.1..10, and Debye lengths, log-uniform over 0.005..0.1; more begin with the same."""
    voltages, logs = np.random.default_rng(seed).uniform(size=(count, 2)).T
    return 0.1 + 9.9 * voltages, 0.005 * 20.0**logs


def exact_charges(voltages: Sequence[float], debye: Sequence[float]) -> np.ndarray:
    """Of the steady states."""
    return np.array([canonical_cell(u, e).charge for u, e in zip(voltages, debye, strict=True)])


def as_parameters(voltages: np.ndarray, debye: np.ndarray, gradients: bool = False) -> dict[str, Tensor]:
    """Parameters of a batch, as tensors that may require gradients; the unit of time is the charging time."""
    parameters = {
        "voltage": torch.as_tensor(voltages, dtype=torch.float64),
        "permittivity": 2 * torch.as_tensor(debye, dtype=torch.float64) ** 2,
        "diffusivity": torch.as_tensor(debye, dtype=torch.float64),
    }
    return {name: one.clone().requires_grad_(gradients) for name, one in parameters.items()}


def cell_of(voltage: Any, permittivity: Any, diffusivity: Any = 1.0) -> pnp.Cell:
    """A batch of cells for `pnp`."""
    salt = [pnp.Species(name, valence=z, diffusivity=diffusivity) for name, z in (("+", 1), ("-", -1))]
    return pnp.Cell(
        pnp.Electrolyte.dimensionless(salt, permittivity=permittivity),
        length=2.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )


def many_species(count: int, debye: float = 0.05, voltage: float = 4.0) -> pnp.Cell:
    """Ions of many valences from -2 to 2, as much screening as the salt has."""
    valences = np.linspace(-2, 2, count) if count > 2 else np.array([1.0, -1.0])
    species = [pnp.Species(f"s{i}", valence=z, diffusivity=1.0) for i, z in enumerate(valences)]
    return pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=2 * debye**2),
        length=2.0,
        concentrations=2 / float((valences**2).sum()),
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )


MOMENTS = np.geomspace(0.1, 10.0, 20)
"""In charging times, the Debye length times the half width over the diffusivity."""


def charging_references(voltages: Sequence[float], debye: Sequence[float]) -> np.ndarray:
    """Q at the moments of each cell, `(cell, time)`, by spectral elements and Radau's method; kept in a file."""
    known = load("references") or {}
    rows = []
    for voltage, length in zip(voltages, debye, strict=True):
        key = f"{voltage!r} {length!r} {len(MOMENTS)}"
        if key not in known:
            inner = length * max(1 / math.cosh(voltage / 2), length)
            reference = SpectralCell(
                two_sided(2.0, 1.5 * inner, 16), 2 * length**2, (float(voltage), -float(voltage))
            )
            known[key] = (reference.diffuse_charge(reference.solve(length * MOMENTS, 1e-9)) / 2).tolist()
            save("references", known)
        rows.append(known[key])
    return np.array(rows)
