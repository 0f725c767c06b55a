"""Make the figures of the theory pages: python docs/theory/figures.py."""

from pathlib import Path

import matplotlib
import numpy as np
import torch

import fusion
import pnp
from fusion.grounded.transport import channel_cell, equilibrate, gates
from fusion.plotting import plot_channels, plot_migration
from pnp.finite_volume.bernoulli import bernoulli
from pnp.plotting import ANION, CATION, GROUND, NEUTRAL, POTENTIAL

IMAGES = Path(__file__).parents[1] / "images"


def double_layer() -> None:
    """A salt at a charged electrode: Gouy and Chapman's curves, and the solver's nodes on them."""
    from matplotlib import pyplot

    voltage, lengths = 4.0, np.linspace(0, 5, 300)
    decay = 4 * np.arctanh(np.tanh(voltage / 4) * np.exp(-lengths))
    figure, (ions, field) = pyplot.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for sign, name, colour in ((+1, "cations", CATION), (-1, "anions", ANION)):
        ions.semilogy(lengths, np.exp(-sign * decay), color=colour, label=name)
    field.plot(lengths, decay, color=POTENTIAL, label="Gouy-Chapman")
    field.plot(lengths, voltage * np.exp(-lengths), color=POTENTIAL, ls=":", label="Debye-Hückel")
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(
            [pnp.Species(name, valence=z, diffusivity=1.0) for name, z in (("+", 1), ("-", -1))],
            permittivity=2.0,
        ),
        length=12.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Reservoir(concentrations=1.0, potential=0.0),
    )
    solved = pnp.solve_steady(cell, pnp.Grid.refined(cell, 61))
    shown = solved.positions <= 5
    for values, colour in zip(solved.concentrations, (CATION, ANION), strict=True):
        ions.plot(solved.positions[shown], values[shown], "o", ms=3.5, color=colour, mfc="none")
    field.plot(solved.positions[shown], solved.potential[shown], "o", ms=3.5, color=POTENTIAL, mfc="none")
    ions.set_ylabel("concentration / bath")
    field.set_ylabel("potential (thermal voltages)")
    for ax in (ions, field):
        ax.set_xlabel("distance from the electrode (Debye lengths)")
        ax.legend(frameon=False, title="circles: 61 nodes", alignment="left")
    figure.savefig(IMAGES / "double_layer.png", dpi=110)
    pyplot.close(figure)


def two_times() -> None:
    """Charge and salt in the middle of a cell that charges, with the two times of the theory."""
    from matplotlib import pyplot

    debye, times = 0.02, torch.logspace(-4, 1, 80, dtype=torch.float64)
    ions = [pnp.Species(name, valence=z, diffusivity=1.0) for name, z in (("+", 1), ("-", -1))]
    voltage = torch.tensor([0.5, 4.0, 8.0], dtype=torch.float64)
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(ions, permittivity=2 * debye**2),  # lengths in half widths
        length=2.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )
    charging = pnp.solve_transient(cell, times=times)
    charge, middle = pnp.diffuse_charge(charging), charging.concentrations[..., 0, 100]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.5, 3.6), layout="constrained")
    for row, style in enumerate((":", "--", "-")):
        label = f"±{voltage[row]:g} thermal voltages"
        left.semilogx(times, charge[row] / charge[row, -1], ls=style, color=POTENTIAL, label=label)
        right.semilogx(times, middle[row], ls=style, color=CATION, label=label)
    left.set_ylabel("charge / charge at rest")
    right.set_ylabel("concentration in the middle / mean")
    for ax in (left, right):
        for time, name in ((debye, r"$\lambda_D L/2D$"), (1.0, r"$(L/2)^2/D$")):
            ax.axvline(time, color=GROUND, lw=1)
            ax.annotate(
                name, (time, 1.0), (3, 3), xycoords=("data", "axes fraction"), textcoords="offset points"
            )
        ax.set_xlabel(r"time / $(L/2)^2/D$")
    left.legend(frameon=False, loc="upper left")
    figure.savefig(IMAGES / "two_times.png", dpi=110)
    pyplot.close(figure)


def flux() -> None:
    """What the two fluxes take of the nodes on either side, against the drop between them."""
    from matplotlib import pyplot

    drop = np.linspace(-6, 6, 241)
    exact = bernoulli(torch.from_numpy(drop)).numpy()
    figure, ax = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")
    ax.plot(drop, exact, color=POTENTIAL, label="Scharfetter-Gummel, $B(\\delta)$")
    ax.plot(drop, 1 - drop / 2, color=ANION, ls="--", label="central difference, $1 - \\delta/2$")
    ax.plot(drop, np.maximum(-drop, 0), color=GROUND, ls=":", label="upstream, $\\max(-\\delta, 0)$")
    ax.axhspan(-2, 0, color="#EEEEEE", zorder=0)
    ax.text(-5.8, -0.7, "negative: concentrations may fall below zero", va="center")
    ax.set_ylim(-2, 6)
    ax.set_xlabel(r"drop $\delta$ along the edge (thermal voltages)")
    ax.set_ylabel("weight of the left node")
    ax.legend(frameon=False)
    figure.savefig(IMAGES / "flux.png", dpi=110)
    pyplot.close(figure)


def gate_curves() -> None:
    """Gates against valences, from the logistic curve of a dilute cell to one whose channels screen each other."""
    from matplotlib import pyplot

    valences = torch.linspace(-0.3, 0.9, 61, dtype=torch.float64)
    figure, ax = pyplot.subplots(figsize=(6.0, 3.6), layout="constrained")
    for debye, style in ((1e3, "-"), (0.2, "--"), (0.05, ":")):
        beyond = gates(equilibrate(channel_cell(valences, voltage=10.0, debye_length=debye)))
        label = "dilute (logistic)" if debye > 1 else f"Debye length {debye:g} of the cell"
        ax.plot(valences, beyond, style, color=POTENTIAL, label=label)
    ax.axvline(0, color=NEUTRAL, lw=1, label="noise level")
    ax.set_xlabel("valence of the channel")
    ax.set_ylabel("gate: fraction beyond the ground")
    ax.legend(frameon=False)
    figure.savefig(IMAGES / "gates.png", dpi=110)
    pyplot.close(figure)


def migration() -> None:
    """Channels on their way, and where they rest."""
    from matplotlib import pyplot

    channels = fusion.dissociate(fusion.digits_two_views().modalities).channels["pixels"]
    way = fusion.migrate(channels.cell)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.9), layout="constrained")
    plot_migration(channels, way, ax=left)
    plot_channels(channels, way, ax=right)
    figure.savefig(IMAGES / "migration.png", dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    matplotlib.use("agg")
    for draw in (double_layer, two_times, flux, gate_curves, migration):
        draw()
