"""Reversal potential, from Goldman, Hodgkin and Katz to Planck

The potential at which no current flows between two baths of potassium, sodium and chloride, against the Debye length
over the thickness of the layer between them. Textbooks have the two ends: a constant field where the Debye length is
long, a neutral layer where it is short.
"""

import torch
from matplotlib.figure import Figure
from scipy.optimize import brentq

import pnp
from pnp.palette import LIMIT, POTENTIAL

D, Z = (1.96, 1.33, 2.03), (1, 1, -1)
LEFT, RIGHT = (1.4, 0.1, 1.5), (0.05, 5.05, 5.1)  # in units of one concentration


def constant_field() -> float:
    """Goldman, Hodgkin and Katz, in thermal voltages."""
    sides = [
        sum(d * (near if z > 0 else far) for d, z, near, far in zip(D, Z, a, b, strict=True))
        for a, b in ((LEFT, RIGHT), (RIGHT, LEFT))
    ]
    return float(torch.tensor(sides[0] / sides[1]).log())


def neutral() -> float:
    """Planck: the total concentration is linear, the potential logarithmic in it."""
    d, z, left, right = (torch.tensor(one, dtype=torch.float64) for one in (D, Z, LEFT, RIGHT))
    ratio = right.sum() / left.sum()

    def current(voltage: float) -> float:
        exponent = z * voltage / ratio.log() + 1
        resistance = (ratio**exponent - 1) / exponent
        return float((z * d * (left - right * (z * voltage).exp()) / resistance).sum())

    return float(brentq(current, -5.0, 5.1))


def draw() -> Figure:
    """Forty layers side by side, by Newton's method with the gradient of the current."""
    debye = torch.logspace(-2.3, 1.5, 40, dtype=torch.float64)
    ions = [pnp.Species(n, valence=z, diffusivity=d) for n, z, d in zip(("K", "Na", "Cl"), Z, D, strict=True)]
    strength = (sum(LEFT) + sum(RIGHT)) / 2
    electrolyte = pnp.Electrolyte.dimensionless(ions, permittivity=debye**2 * strength)
    mean = [(a + b) / 2 for a, b in zip(LEFT, RIGHT, strict=True)]
    voltage = torch.full_like(debye, constant_field())
    for _ in range(6):
        voltage = voltage.detach().requires_grad_()
        right = pnp.Reservoir(concentrations=RIGHT, potential=voltage)
        left = pnp.Reservoir(concentrations=LEFT, potential=0.0)
        cell = pnp.Cell(electrolyte, length=1.0, concentrations=mean, left=left, right=right)
        current = pnp.current_density(pnp.solve_steady(cell, pnp.Grid.uniform(cell, 401))).mean(-1)
        (slope,) = torch.autograd.grad(current.sum(), voltage)
        voltage = voltage - current / slope

    figure = Figure(figsize=(6.5, 3.8), layout="constrained")
    ax = figure.subplots()
    ax.semilogx(debye, voltage.detach(), "o-", color=POTENTIAL, ms=3.5, label="cell")
    ax.axhline(constant_field(), color=LIMIT, ls="--", label="Goldman, Hodgkin, Katz")
    ax.axhline(neutral(), color=LIMIT, ls=":", label="Planck")
    ax.set(xlabel="Debye length / thickness", ylabel="reversal potential (thermal voltages)")
    ax.legend()
    return figure
