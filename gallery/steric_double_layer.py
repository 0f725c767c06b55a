"""Double layer of ions that have a size

Left: point ions (dashed) would crowd at a charged wall without limit; ions of 0.7 nm fill the space next to it and the
layer grows outwards. Right: the capacitance therefore falls at high voltage; lines are the closed form of Kilic, Bazant
and Ajdari (2007), points the derivative of the charge.
"""

import torch
from matplotlib.figure import Figure

import pnp
from pnp.palette import LIMIT, MARKERS, NEUTRAL, shades

SALT, AVOGADRO = 100.0, 6.02214076e23
WALLS = torch.tensor([-0.05, -0.15, -0.4], dtype=torch.float64)  # V


def layer(wall: torch.Tensor, diameter: float) -> pnp.Cell:
    """A wall at a potential, and a bath of 100 mM at zero."""
    ions = [
        pnp.Species("cation", valence=1, diffusivity=2e-9, diameter=diameter),
        pnp.Species("anion", valence=-1, diffusivity=2e-9, diameter=diameter),
    ]
    bath = pnp.Reservoir(concentrations=SALT, potential=0.0)
    electrode = pnp.Electrode(potential=wall)
    return pnp.Cell(pnp.Electrolyte(ions), length=15e-9, concentrations=SALT, left=electrode, right=bath)


def draw() -> Figure:
    """Concentration of cations at three wall potentials, and capacitance over the potential for three sizes."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    profile, capacitance = figure.subplots(1, 2)
    for diameter, style in ((0.7e-9, "-"), (0.0, "--")):
        steady = pnp.solve_steady(layer(WALLS, diameter))
        for one, x, wall, color in zip(
            steady.concentrations[:, 0], steady.positions, WALLS, shades(3), strict=True
        ):
            label = f"−{-float(wall) * 1e3:.0f} mV" if diameter else None
            profile.semilogy(x * 1e9, one / 1e3, style, color=color, label=label)
    profile.plot([], [], "--", color=NEUTRAL, label="point ions")
    profile.axhline(1e-3 / (AVOGADRO * 0.7e-9**3), color=LIMIT, ls=":", label="one ion in each (0.7 nm)³")
    profile.set(xlim=(0, 6), ylim=(0.08, 300), xlabel="distance from the wall (nm)", ylabel="cations (M)")
    profile.legend(title="wall at")

    for diameter, color, marker in zip((0.3e-9, 0.7e-9, 1.2e-9), shades(3), MARKERS, strict=False):
        wall = torch.linspace(-0.4, 0.4, 41, dtype=torch.float64).requires_grad_()
        cell = layer(wall, diameter)
        charge = pnp.surface_charge(pnp.solve_steady(cell)).left
        (slope,) = torch.autograd.grad(charge.sum(), wall)
        capacitance.plot(wall.detach() * 1e3, slope * 1e2, marker, color=color, mfc="none", ms=4)
        electrolyte = cell.electrolyte
        u = torch.linspace(-0.4, 0.4, 401, dtype=torch.float64) / electrolyte.thermal_voltage
        bulk = 2 * AVOGADRO * diameter**3 * SALT
        crowd = 1 + 2 * bulk * torch.sinh(u / 2) ** 2
        plain = electrolyte.permittivity / pnp.debye_length(cell)
        exact = plain * u.sinh().abs() / (crowd * (2 / bulk * crowd.log()).sqrt())
        label = f"{diameter * 1e9:g} nm"
        capacitance.plot(u * electrolyte.thermal_voltage * 1e3, exact * 1e2, color=color, label=label)
    capacitance.set(xlabel="wall potential (mV)", ylabel="capacitance (µF cm⁻²)")
    capacitance.legend(title="diameter")
    return figure
