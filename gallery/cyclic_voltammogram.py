"""Cyclic voltammogram

A dissolved couple (1 mM, one electron, fast) in 100 mM of salt, driven past its standard potential and back at three
scan rates. The current of oxidation peaks when the couple next to the electrode is used up; the peak follows the
formula of Randles and Ševčík (dotted), but for what charges the double layer.
"""

import torch
from matplotlib.figure import Figure

import pnp
from pnp.palette import LIMIT, shades

RATES, MOMENTS = (2.0, 8.0, 32.0), 101  # V/s
COUPLE, SALT, DIFFUSIVITY = 1.0, 100.0, 1e-9
RESPONSE = 5e-5  # s, some times resistance times capacitance


def cell(rate: float) -> pnp.Cell:
    """A working electrode on the left, a large bath on the right."""
    ions = [
        pnp.Species("reduced", valence=0, diffusivity=DIFFUSIVITY),
        pnp.Species("oxidised", valence=1, diffusivity=DIFFUSIVITY),
        pnp.Species("K+", valence=1, diffusivity=1.96e-9),
        pnp.Species("Cl-", valence=-1, diffusivity=2.03e-9),
    ]
    couple = pnp.ElectrodeReaction(
        {"oxidised": 1}, {"reduced": 1}, rate_constant=1e-2, standard_potential=0.0
    )
    bath = {"reduced": COUPLE, "oxidised": 1e-6, "K+": SALT, "Cl-": SALT + 1e-6}
    working = pnp.triangle(-0.25, 0.25, rate=rate)
    return pnp.Cell(
        pnp.Electrolyte(ions),
        length=120e-6,
        concentrations=bath,
        left=pnp.Electrode(potential=working, stern_capacitance=0.2, reactions=couple),
        right=pnp.Reservoir(concentrations=bath, potential=0.0),
    )


def draw() -> Figure:
    """Current over potential at three scan rates."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    ax = figure.subplots()
    for rate, color in zip(RATES, shades(len(RATES)), strict=True):
        described = cell(rate)
        times = torch.linspace(0.0, 1.0 / rate, MOMENTS, dtype=torch.float64)
        turned = times[MOMENTS // 2] + RESPONSE  # from then on the double layer is charged the other way
        times = torch.cat([times, turned[None]]).sort().values
        control = pnp.StepControl(relative=1e-2, absolute=1e-4)
        grid = pnp.Grid.refined(described, 80)
        cycle = pnp.solve_transient(described, grid, times=times, step_control=control)
        volts = torch.stack([described.left.potential(time) for time in times])
        current = pnp.current_density(cycle)[..., 0]
        ax.plot(volts[1:] * 1e3, current[1:], color=color, label=f"{rate:g} V/s")
        electrolyte = described.electrolyte
        drift = rate * DIFFUSIVITY / float(electrolyte.thermal_voltage)
        ax.axhline(0.4463 * electrolyte.faraday_constant * COUPLE * drift**0.5, color=LIMIT, ls=":", lw=1)
    ax.set(xlabel="potential against the standard potential (mV)", ylabel="current density (A m⁻²)")
    ax.legend(title="scan rate", loc="lower right")
    return figure
