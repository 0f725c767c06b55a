"""Cyclic voltammogram

Copper is deposited on the left electrode of a thin cell and dissolved again, at three scan rates in one batch. Divided by
the root of the rate, the peaks of deposition lie on top of each other as long as the ions come by diffusion from a bulk
that is not yet used up.
"""

import torch
from matplotlib.figure import Figure

import pnp
from pnp.palette import MARKERS, shades

RATES = torch.tensor([20.0, 80.0, 320.0], dtype=torch.float64)  # V/s
VERTEX = -0.25  # V


def draw() -> Figure:
    """Current over potential, as it is and divided by the root of the scan rate."""
    ions = [
        pnp.Species("Cu2+", valence=2, diffusivity=0.71e-9),
        pnp.Species("SO4 2-", valence=-2, diffusivity=1.07e-9),
    ]
    copper = pnp.ElectrodeReaction({"Cu2+": 1}, {}, rate_constant=1e-5)
    cell = pnp.Cell(
        pnp.Electrolyte(ions),
        length=5e-6,
        concentrations=10.0,
        left=pnp.Electrode(
            potential=pnp.triangle(0.0, VERTEX, rate=RATES), stern_capacitance=0.2, reactions=copper
        ),
        right=pnp.Electrode(potential=0.0, stern_capacitance=0.2, reactions=copper),
    )
    # One list of times for all rates: each is read where its own cycle is.
    times = torch.cat([torch.zeros(1), torch.logspace(-4.5, -1.6, 140)]).double()
    control = pnp.StepControl(relative=1e-2, absolute=1e-4)
    cycle = pnp.solve_transient(cell, pnp.Grid.refined(cell, 80), times=times, step_control=control)
    current = pnp.current_density(cycle)[..., 0]

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    plain, scaled = figure.subplots(1, 2)
    for rate, one, color, marker in zip(RATES, current, shades(len(RATES)), MARKERS, strict=False):
        inside = times <= 2 * abs(VERTEX) / rate
        volts = torch.as_tensor([float(cell.left.potential(time)[list(RATES).index(rate)]) for time in times])
        label = f"{float(rate):g} V/s"
        plain.plot(volts[inside] * 1e3, one[inside] / 1e3, color=color, label=label)
        scaled.plot(volts[inside] * 1e3, one[inside] / 1e3 / rate.sqrt(), color=color, marker=marker, ms=3)
    plain.set(xlabel="potential (mV)", ylabel="current density (kA m⁻²)")
    scaled.set(xlabel="potential (mV)", ylabel="current density / √rate (kA m⁻² / √(V s⁻¹))")
    plain.legend()
    return figure
