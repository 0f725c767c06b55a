"""The cell that channels enter as ions, at equilibrium and on their way there."""

import math
from typing import cast

import torch
from torch import Tensor

import pnp

NODES = 129
PATIENCE = pnp.Newton(max_iterations=3000)
CLOSED = 0.01
"""A smaller gate is closed."""


def channel_cell(
    valences: Tensor,
    *,
    voltage: float | Tensor,
    ground: float | Tensor = 0.5,
    debye_length: float | Tensor = 1.0,
    ion_size: float = 0.0,
) -> pnp.Cell:
    r"""A dimensionless cell of unit length in which every channel is an ion species of amount 1/l.

    Electrodes at :math:`+U_0` and :math:`-U_0`, zero potential at the ground *b*: cations end up beyond *b*,
    anions before it.

    Arguments:
        valences: `(*batch, l)`.
        voltage: :math:`U_0` in thermal voltages.
        ground: Position of *b*, between 0 and 1.
        debye_length: Of the mixed channels, in lengths of the cell. Long (the default): every channel feels
            the bare field, and its gate is nearly the logistic function of :math:`z_j U_0`. Short: channels
            screen the field from each other and compete for space near the electrodes.
        ion_size: Share of the cell that all channels together fill, 0 (points) to below 1. Nowhere can there be more
            of them than fit, so at most :math:`l\,(1-b)/\mathrm{ion\_size}` get beyond the ground.

    Raises:
        ValueError: A number out of its range.

    Example:
        >>> import fusion
        >>> import pnp
        >>> import torch
        >>> cell = fusion.channel_cell(torch.tensor([-0.1, 0.1, 0.8]), voltage=10.0)
        >>> cell, pnp.solve_equilibrium(cell).solved.item()
        (Cell(Electrode | Electrode; 3 species; batch ()), True)
    """
    if not 0 <= ion_size < 1:
        raise ValueError(f"channel_cell: ion_size must be at least 0 and below 1, got {ion_size:g}.")
    count, diameter = valences.shape[-1], ion_size ** (1 / 3)
    strength = valences.square().mean(-1).clamp(min=1e-12)
    species = [
        pnp.Species(f"channel {index}", valence=one, diffusivity=1.0, diameter=diameter)
        for index, one in enumerate(valences.double().unbind(-1))
    ]
    voltage = torch.as_tensor(voltage, dtype=torch.float64, device=valences.device)
    debye_length = torch.as_tensor(debye_length, dtype=torch.float64, device=valences.device)
    return pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=debye_length**2 * strength),
        length=1.0,
        concentrations=1.0 / count,
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
        ground=ground,
    )


def equilibrate(cell: pnp.Cell, nodes: int = NODES) -> pnp.Solution:
    """Where the channels end up: the equilibrium of the cell, differentiable."""
    # Ions that fill their half in strong fields take a step for each thermal voltage and more.
    steps = PATIENCE if cell.electrolyte.has_finite_ions else pnp.Newton(max_iterations=200)
    return pnp.solve_equilibrium(cell, pnp.Grid.refined(cell, nodes), newton_settings=steps)


def gates(solution: pnp.Solution) -> Tensor:
    r"""Fraction of each channel beyond the ground, `(*batch, [time,] l)`.

    .. math:: g_j = \int_b^L c_j\,dx \Big/ \int_0^L c_j\,dx

    In a dilute cell with *b* in the middle it is the logistic function :math:`1/(1 + e^{-z_j U_0})`.
    """
    held, beyond = _divided(solution, solution.concentrations)
    return beyond / held


def opening(gate: Tensor) -> Tensor:
    r"""How far a gate counts as open: not at all within a hundredth of closed, fully within one of open.

    .. math:: t^2\,(3 - 2t), \qquad t = \min\Big(1, \max\Big(0, \frac{g - 0.01}{0.98}\Big)\Big)

    What passes a gate at a thousandth of its size is nothing to an eye and everything to a regression, which undoes
    scales. The curve is the simplest whose root, and that of its complement, have finite slopes.
    """
    t = ((gate - CLOSED) / (1 - 2 * CLOSED)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def gate_slopes(solution: pnp.Solution) -> Tensor:
    r"""How a gate changes with the channel's own valence in the potential as it is, `(*batch, [time,] l)`.

    .. math::
        \frac{\partial g_j}{\partial z_j}\Big|_\phi = g_j\,\big(\langle\phi\rangle_j
        - \langle\phi\rangle_{j,\,x>b}\big)

    with means over the ions of the channel, all of them and those beyond the ground, at equilibrium.
    """
    held, beyond = _divided(solution, solution.concentrations)
    energy, energy_beyond = _divided(solution, solution.concentrations * solution.potential.unsqueeze(-2))
    # Not a mean over what is beyond, which may be nothing.
    return (beyond / held * energy - energy_beyond) / held


def _divided(solution: pnp.Solution, density: Tensor) -> tuple[Tensor, Tensor]:
    """Integrals of densities `(*batch, [time,] l, node)` over the cell and over what is beyond the ground."""
    node = solution.grid.ground_node
    if node is None:
        raise ValueError("gates: the cell has no ground, so nothing divides it.")
    spacings = solution.over_time(solution.grid.spacings, trailing=1).unsqueeze(-2)
    # Trapezoids on either side of the ground, which its node belongs to half and half.
    pieces = spacings * (density[..., 1:] + density[..., :-1]) / 2
    return pieces.sum(-1), pieces[..., node:].sum(-1)


def separation_energy(solution: pnp.Solution) -> Tensor:
    r"""Free energy that the channels bring into the empty cell, per amount and :math:`U_0`, `(*batch)`.

    .. math::
        \frac{\mathcal F - \mathcal F_0}{V_T F\,U_0}, \qquad
        \mathcal F_0 = -\frac{\epsilon\,U_0^2}{2}\Big(\frac1b + \frac1{L-b}\Big)

    With strong fields it is minus the mean :math:`|z_j|`, with weak ones it falls with the mean
    :math:`z_j^2`: the lowest where charges are as unequal as their sum lets them be.
    """
    cell = solution.cell
    voltage, ground = cast(Tensor, cast(pnp.Electrode, cell.left).potential), cell.ground
    empty = -cell.electrolyte.permittivity * voltage**2 / 2 * (1 / ground + 1 / (cell.length - ground))
    return (pnp.free_energy(solution) - empty) / voltage


def migrate(
    cell: pnp.Cell,
    *,
    times: Tensor | None = None,
    nodes: int = 61,
    relative: float = 1e-3,
) -> pnp.Solution:
    """The channels on their way: a transient from the mixed state, times in diffusion times of the cell.

    Default times: 40, logarithmically from before the fastest channel moves until all have settled.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import fusion
        >>> data, _ = fusion.shared_private(2000, {"a": 6, "b": 5}, shared=2, private=2, seed=0)
        >>> channels = fusion.dissociate(data.modalities).channels["a"]
        >>> way = fusion.migrate(channels.cell, times=[0.001, 0.1, 10.0], nodes=31)
        >>> tuple(way.concentrations.shape)  # moments, channels, nodes
        (3, 6, 31)
    """
    if times is None:
        potentials = (getattr(end, "potential", None) for end in (cell.left, cell.right))
        voltage = max(float(one.detach().abs().amax()) for one in potentials if isinstance(one, Tensor))
        fastest = float(cell.electrolyte.valences.detach().abs().amax()) * voltage
        first = math.log10(1e-3 / max(fastest, 1.0))
        times = torch.cat([torch.zeros(1), torch.logspace(first, 0.5, 39)]).double()
    control = pnp.StepControl(relative=relative, absolute=1e-2 * relative)
    return pnp.solve_transient(cell, pnp.Grid.refined(cell, nodes), times=times, step_control=control)


def centres(solution: pnp.Solution) -> Tensor:
    """Centre of mass of every channel, `(*batch, [time,] l)`, in lengths of the cell."""
    volumes = solution.over_time(solution.grid.volumes, trailing=1).unsqueeze(-2)
    nodes = solution.over_time(solution.grid.nodes, trailing=1).unsqueeze(-2)
    mass = volumes * solution.concentrations
    return (mass * nodes).sum(-1) / mass.sum(-1)
