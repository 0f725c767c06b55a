"""Impedance arcs

Nyquist's plot of a copper cell for three rate constants of the electrode reaction: an arc of the bulk, an arc of
charge transfer that shrinks as the reaction gets faster, and one of diffusion through the cell. A blocking cell
(dashed) ends in a vertical line instead.
"""

import torch
from matplotlib.figure import Figure

import pnp
from pnp.palette import NEUTRAL, shades

RATES = torch.tensor([1e-5, 3e-5, 3e-4], dtype=torch.float64)  # m/s
FREQUENCIES = torch.logspace(-1, 9, 140, dtype=torch.float64)  # Hz


def draw() -> Figure:
    """Minus the imaginary over the real part of the impedance."""
    ions = [
        pnp.Species("Cu2+", valence=2, diffusivity=0.71e-9),
        pnp.Species("SO4 2-", valence=-2, diffusivity=1.07e-9),
    ]

    def impedance(reactions: tuple[pnp.ElectrodeReaction, ...]) -> torch.Tensor:
        end = pnp.Electrode(potential=0.0, stern_capacitance=0.2, reactions=reactions)
        cell = pnp.Cell(pnp.Electrolyte(ions), length=20e-6, concentrations=10.0, left=end, right=end)
        return 1e4 * pnp.impedance(pnp.solve_steady(cell, pnp.Grid.refined(cell, 100)), FREQUENCIES)  # Ω cm²

    found = impedance((pnp.ElectrodeReaction({"Cu2+": 1}, {}, rate_constant=RATES),))
    blocking = impedance(())
    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    ax = figure.subplots()
    for rate, z, color in zip(RATES, found, shades(len(RATES)), strict=True):
        ax.plot(z.real, -z.imag, color=color, label=f"$k_0$ = {float(rate) * 1e6:.0f} µm/s")
    ax.plot(blocking.real, -blocking.imag, "--", color=NEUTRAL, label="blocking")
    widest = float(found.real.max())
    ax.set(xlim=(0, 1.05 * widest), ylim=(0, 0.5 * widest), aspect="equal")
    ax.set(xlabel="Re Z (Ω cm²)", ylabel="−Im Z (Ω cm²)")
    ax.legend()
    return figure
