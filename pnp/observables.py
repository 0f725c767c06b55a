"""Quantities one reads off a solution. Each takes a solution and returns tensors; all are differentiable.

Shapes are those of a steady state; a transient has its time axis after the batch axes.
"""

from collections.abc import Callable
from typing import NamedTuple, overload

import torch
from torch import Tensor

from .boundaries import Boundary, ChargedWall, Electrode, Periodic
from .cell import Cell
from .electrolyte import Electrolyte
from .finite_volume.fluxes import scharfetter_gummel
from .finite_volume.kinetics import butler_volmer
from .finite_volume.residual import divergence
from .quantity import Quantity
from .scaling import Flattener, electrode_kinetics, scale_units
from .solution import Solution
from .waveforms import Waveform


class SurfaceCharge(NamedTuple):
    """Charge per area [C m⁻²] on the left electrode, the right one and the ground, `(*batch)` each."""

    left: Tensor
    right: Tensor
    ground: Tensor


class Ends(NamedTuple):
    """One quantity at the left and at the right end."""

    left: Tensor
    right: Tensor


@overload
def debye_length(subject: Electrolyte, concentrations: Quantity) -> Tensor: ...
@overload
def debye_length(subject: Cell | Solution) -> Tensor: ...


def debye_length(subject: Electrolyte | Cell | Solution, concentrations: Quantity = None) -> Tensor:
    r"""Debye length :math:`\lambda_D = \sqrt{\varepsilon V_T / (F \sum_i z_i^2 c_i)}` [m].

    Of an electrolyte at given `concentrations` `(*batch, species)`, of a cell at its filling, both
    `(*batch)`; or of a solution at every node, `(*batch, node)`.

    Raises TypeError when an electrolyte comes without concentrations, or anything else with them.

    Example:
        >>> import pnp
        >>> sodium = pnp.Species("Na+", valence=+1, diffusivity=1.33e-9)
        >>> chloride = pnp.Species("Cl-", valence=-1, diffusivity=2.03e-9)
        >>> f"{pnp.debye_length(pnp.Electrolyte([sodium, chloride]), 100.0) * 1e9:.2f} nm"
        '0.96 nm'
    """
    if isinstance(subject, Electrolyte) != (concentrations is not None):
        raise TypeError("debye_length: give an Electrolyte with concentrations, or a Cell or Solution alone.")
    if isinstance(subject, Electrolyte):
        return subject.debye_length(concentrations)
    if isinstance(subject, Cell):
        return subject.electrolyte.debye_length(subject.concentrations)
    electrolyte = subject.cell.electrolyte
    valences = subject.over_time(electrolyte.valences, trailing=1).unsqueeze(-1)
    strength = electrolyte.faraday_constant * (valences**2 * subject.concentrations).sum(-2)
    scale = subject.over_time(electrolyte.permittivity * electrolyte.thermal_voltage)
    profile = subject.cell.permittivity_profile
    if profile is None:
        return torch.sqrt(scale.unsqueeze(-1) / strength)
    local = subject.over_time(profile(subject.grid.nodes), trailing=1)
    return torch.sqrt(scale.unsqueeze(-1) * local / strength)


def charge_density(solution: Solution) -> Tensor:
    r"""Charge density :math:`\rho = F(\sum_i z_i c_i + \rho_\mathrm{fixed})` [C m⁻³], `(*batch, node)`.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> rest = pnp.solve_steady(cell)
        >>> density = pnp.charge_density(rest)
        >>> f"{float(density[0]):.2f} at the positive electrode, {float(density[-1]):.2f} at the negative one"
        '-6.22 at the positive electrode, 6.22 at the negative one'
    """
    electrolyte = solution.cell.electrolyte
    charges = electrolyte.faraday_constant * solution.over_time(electrolyte.valences, trailing=1)
    mobile = (charges.unsqueeze(-2) @ solution.concentrations).squeeze(-2)
    return mobile + electrolyte.faraday_constant * _fixed_charge(solution)


def electric_field(solution: Solution) -> Tensor:
    r"""Electric field :math:`E = -\partial_x\phi` [V m⁻¹] on the edges, `(*batch, edge)`.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> field = pnp.electric_field(pnp.solve_steady(cell))
        >>> tuple(field.shape), f"{float(field[0]):.1f} at the wall, {float(field[100]):.2f} in the middle"
        ((200,), '30.5 at the wall, 0.07 in the middle')
    """
    return -solution.potential.diff(dim=-1) / solution.over_time(solution.grid.spacings, trailing=1)


def ion_flux(solution: Solution) -> Tensor:
    r"""Ion fluxes :math:`J_i` [mol m⁻² s⁻¹], positive to the right, `(*batch, species, edge)`.

    The Scharfetter-Gummel fluxes of the scheme itself, so that their divergence is what the ions do.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.01])
        >>> flux = pnp.ion_flux(charging)
        >>> tuple(flux.shape), [f"{value:+.3f}" for value in flux[0, :, 100].tolist()]  # cations go right
        ((1, 2, 200), ['+3.190', '-3.189'])
    """
    electrolyte = solution.cell.electrolyte
    spacings = solution.over_time(solution.grid.spacings, trailing=1).unsqueeze(-2)
    diffusivities = solution.over_time(electrolyte.diffusivities, trailing=1).unsqueeze(-1)
    valences = solution.over_time(electrolyte.valences, trailing=1).unsqueeze(-1)
    voltage = solution.over_time(electrolyte.thermal_voltage)[..., None, None]
    drop = valences * solution.potential.diff(dim=-1).unsqueeze(-2) / voltage
    if solution.pressure is not None:
        volumes = solution.over_time(electrolyte.molar_volumes, trailing=1).unsqueeze(-1)
        energy = voltage * electrolyte.faraday_constant
        drop = drop + volumes * solution.pressure.diff(dim=-1).unsqueeze(-2) / energy
    if solution.cell.diffusivity_profile is not None:
        diffusivities = diffusivities * _diffusivity_profile(solution)
    c = solution.concentrations
    return scharfetter_gummel(diffusivities / spacings, drop, c[..., :-1], c[..., 1:])


def current_density(solution: Solution) -> Tensor:
    r"""Total current density, ions and displacement [A m⁻²], positive to the right, `(*batch, edge)`.

    .. math:: I = F\sum_i z_i J_i + \partial_t(\varepsilon E)

    is the same everywhere between two electrodes. The displacement follows from the fluxes, without any
    difference in time: charge conservation gives its variation along the cell, and the potentials that are
    held, or their known rates, give its mean (the theorem of Ramo and Shockley). With a ground, the current
    differs on its two sides by what flows to the ground.

    References:
        Shockley, J. Appl. Phys. 9, 635 (1938); Ramo, Proc. IRE 27, 584 (1939).

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.001, 0.1, 1.0])
        >>> current = pnp.current_density(charging)
        >>> [f"{value:.4f}" for value in current[:, 0].tolist()]
        ['7.3943', '0.5334', '0.0000']
        >>> bool((current - current[:, :1]).abs().max() < 1e-9)  # the same on every edge
        True
    """
    cell = solution.cell
    valences = solution.over_time(cell.electrolyte.valences, trailing=1).unsqueeze(-1)
    ionic = cell.electrolyte.faraday_constant * (valences * ion_flux(solution)).sum(-2)
    spacings = solution.over_time(solution.grid.spacings, trailing=1)
    resistance = (spacings / _edge_permittivity(solution)).expand_as(ionic)
    node = solution.grid.ground_node
    pieces = [slice(None)] if node is None else [slice(None, node), slice(node, None)]
    parts = []
    for piece in pieces:
        total = (ionic * resistance)[..., piece].sum(-1)
        series = resistance[..., piece].sum(-1)
        given = None
        for end, here, sign in (
            (cell.left, piece is pieces[0], 1.0),
            (cell.right, piece is pieces[-1], -1.0),
        ):
            if not here:
                continue
            if isinstance(end, ChargedWall):
                given = torch.zeros_like(total)
            elif isinstance(end, Electrode) and end.current is not None:
                given = _signal(solution, end.current) + torch.zeros_like(total)
            else:
                total = total + sign * _potential_rate(solution, end)
                if isinstance(end, Electrode) and end.stern_capacitance is not None:
                    capacitance = solution.over_time(end.stern_capacitance)
                    total = total - sign * _faradaic(solution, end) / capacitance
                    series = series + 1 / capacitance
        current = total / series if given is None else given
        parts.append(current.unsqueeze(-1).expand_as(ionic[..., piece]))
    return torch.cat(parts, dim=-1)


def electrode_potential(solution: Solution) -> Ends:
    r"""Potential of the metal at either end [V], as `.left` and `.right`, `(*batch)` each.

    What was given or, where a current was given, :math:`\phi + \sigma/C_S`. Of a reservoir its own, of a
    charged wall that of its surface.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> from dataclasses import replace
        >>> driven = replace(cell, left=pnp.Electrode(current=1.0), right=pnp.Electrode(potential=0.0))
        >>> charging = pnp.solve_transient(driven, times=[0.01, 0.1, 0.2])
        >>> [f"{value:.2f}" for value in pnp.electrode_potential(charging).left.tolist()]
        ['0.49', '1.80', '3.15']
    """
    charge = surface_charge(solution)
    ends = []
    for end, node, sigma in ((solution.cell.left, 0, charge.left), (solution.cell.right, -1, charge.right)):
        potential = solution.potential[..., node]
        if isinstance(end, Electrode) and end.stern_capacitance is not None:
            potential = potential + sigma / solution.over_time(end.stern_capacitance)
        ends.append(potential)
    return Ends(*ends)


def reaction_rate(solution: Solution) -> Ends:
    r"""What electrode reactions make of every species [mol m⁻² s⁻¹], at the left and right end, `(*batch, species)`.

    Negative where a species is used up; zero at an end without reactions.

    Example:
        >>> import pnp
        >>> copper = pnp.Species("Cu2+", valence=2, diffusivity=0.7e-9)
        >>> sulphate = pnp.Species("SO4", valence=-2, diffusivity=1.1e-9)
        >>> reaction = pnp.ElectrodeReaction({"Cu2+": 1}, {}, rate_constant=1e-5)
        >>> metal = dict(stern_capacitance=0.2, reactions=[reaction])
        >>> ends = dict(left=pnp.Electrode(potential=-0.02, **metal), right=pnp.Electrode(potential=0.0, **metal))
        >>> plating = pnp.Cell(pnp.Electrolyte([copper, sulphate]), length=5e-6, concentrations=10.0, **ends)
        >>> rate = pnp.reaction_rate(pnp.solve_steady(plating))
        >>> [f"{float(one[0]):.1e}" for one in (rate.left, rate.right)]  # mol/(m² s): dissolved on the right
        ['-8.9e-04', '8.9e-04']
    """
    zero = torch.zeros_like(solution.concentrations[..., 0])
    rates = []
    for end, node in ((solution.cell.left, 0), (solution.cell.right, -1)):
        if isinstance(end, Electrode) and end.reactions:
            rates.append(_electrode_production(solution, end, node)[0])
        else:
            rates.append(zero)
    return Ends(*rates)


def surface_charge(solution: Solution) -> SurfaceCharge:
    r"""Charge per area on the electrodes and the ground [C m⁻²], as `.left`, `.right`, `.ground`.

    By Gauss's law on the half volume of a wall, :math:`\sigma = \varepsilon\,\partial_n\phi` with the charge
    between wall and first edge taken into account; with the ions' charge the three sum to zero to rounding.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charge = pnp.surface_charge(pnp.solve_steady(cell))
        >>> f"{float(charge.left):.4f} {float(charge.right):.4f}"
        '0.3079 -0.3079'
    """
    displacement = _edge_permittivity(solution) * electric_field(solution)
    volumes = solution.over_time(solution.grid.volumes, trailing=1)
    defect = divergence(displacement) - volumes * charge_density(solution)
    node = solution.grid.ground_node
    ground = torch.zeros_like(defect[..., 0]) if node is None else defect[..., node]
    return SurfaceCharge(defect[..., 0], defect[..., -1], ground)


def total_charge(solution: Solution) -> Tensor:
    r"""Charge of the ions and of fixed charge per area, :math:`\int\rho\,dx` [C m⁻²], `(*batch)`.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.01, 1.0])
        >>> bool(pnp.total_charge(charging).abs().max() < 1e-12)  # a closed, neutral cell stays neutral
        True
    """
    return (solution.over_time(solution.grid.volumes, trailing=1) * charge_density(solution)).sum(-1)


def diffuse_charge(solution: Solution) -> Tensor:
    r"""Magnitude of the separated charge per area, :math:`\tfrac12\int|\rho|\,dx` [C m⁻²], `(*batch)`.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.01, 0.1, 1.0])
        >>> [f"{value:.4f}" for value in pnp.diffuse_charge(charging).tolist()]
        ['0.0728', '0.2778', '0.3072']
    """
    volumes = solution.over_time(solution.grid.volumes, trailing=1)
    return (volumes * charge_density(solution).abs()).sum(-1) / 2


def amounts(solution: Solution) -> Tensor:
    r"""Amounts per area, :math:`\int c_i\,dx` [mol m⁻²], `(*batch, species)`.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.01, 1.0])
        >>> pnp.amounts(charging).round(decimals=12).tolist()  # at both times, of both ions
        [[1.0, 1.0], [1.0, 1.0]]
    """
    volumes = solution.over_time(solution.grid.volumes, trailing=1).unsqueeze(-2)
    return (volumes * solution.concentrations).sum(-1)


def free_energy(solution: Solution) -> Tensor:
    r"""Free energy per area at fixed electrode potentials [J m⁻²], `(*batch)`.

    .. math::
        \mathcal F = \int V_T F \Big(\sum_i c_i\,(\ln c_i - 1) + \frac{s\,(\ln s - 1)}{v_0}\Big) dx
        + \int\frac{\varepsilon}{2}|\phi'|^2\,dx
        + \sum_\mathrm{Stern}\frac{C_S}{2}(U-\phi)^2 - \sum_\mathrm{electrodes}\sigma\,U

    with the room :math:`s = 1 - \sum_i v_i c_i` that ions of finite size leave (the term is absent for point
    ions). Concentrations are in mol m⁻³ (or in the dimensionless unit) inside the logarithm. The last
    term is the work of the sources that hold the potentials; with it, :math:`\mathcal F` never increases in
    a cell with blocking ends at constant potentials, and the equilibrium is its minimum.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> charging = pnp.solve_transient(cell, times=[0.0, 0.01, 0.1, 1.0])
        >>> [f"{value:.3f}" for value in pnp.free_energy(charging).tolist()]  # it falls
        ['-2.080', '-2.304', '-2.587', '-2.592']
    """
    cell = solution.cell
    volumes = solution.over_time(solution.grid.volumes, trailing=1)
    spacings = solution.over_time(solution.grid.spacings, trailing=1)
    electrolyte = cell.electrolyte
    scale = solution.over_time(electrolyte.thermal_voltage) * electrolyte.faraday_constant
    c = solution.concentrations
    entropy = (volumes.unsqueeze(-2) * (torch.xlogy(c, c) - c)).sum((-2, -1)) * scale
    energy = entropy + _solvent_energy(solution)
    field = _edge_permittivity(solution) * spacings * electric_field(solution) ** 2 / 2
    energy = energy + field.sum(-1)
    charges, metals = surface_charge(solution), electrode_potential(solution)
    for end, charge, volts, node in (
        (cell.left, charges.left, metals.left, 0),
        (cell.right, charges.right, metals.right, -1),
    ):
        if isinstance(end, Electrode) and end.stern_capacitance is not None:
            capacitance = solution.over_time(end.stern_capacitance)
            energy = energy + capacitance / 2 * (volts - solution.potential[..., node]) ** 2
        if not isinstance(end, ChargedWall | Periodic):
            energy = energy - charge * volts
    return energy


def _solvent_energy(solution: Solution) -> Tensor:
    """Free energy per area of the solvent between ions of finite size; zero of point ions."""
    if solution.pressure is None:
        return torch.zeros_like(solution.potential[..., 0])
    electrolyte = solution.cell.electrolyte
    unit = solution.over_time(electrolyte.thermal_voltage) * electrolyte.faraday_constant
    solvent = solution.over_time(electrolyte.solvent_volume)
    safe = torch.where(solvent > 0, solvent, 1.0).unsqueeze(-1)
    pressure = solution.pressure * safe / unit.unsqueeze(-1)
    density = -torch.exp(-pressure) * (pressure + 1) / safe * unit.unsqueeze(-1)
    volumes = solution.over_time(solution.grid.volumes, trailing=1)
    return torch.where(solvent > 0, (volumes * density).sum(-1), 0.0)


def _edge_permittivity(solution: Solution) -> Tensor:
    """`(*batch, edge)`, or one edge that broadcasts."""
    permittivity = solution.over_time(solution.cell.electrolyte.permittivity).unsqueeze(-1)
    profile = solution.cell.permittivity_profile
    if profile is None:
        return permittivity
    return permittivity * solution.over_time(profile(_middles(solution)), trailing=1)


def _diffusivity_profile(solution: Solution) -> Tensor:
    """`(*batch, species or 1, edge)`."""
    middles = _middles(solution)
    values = solution.cell.diffusivity_profile(middles)  # type: ignore[misc]
    if values.dim() > middles.dim():
        return solution.over_time(values, trailing=2)
    return solution.over_time(values, trailing=1).unsqueeze(-2)


def _middles(solution: Solution) -> Tensor:
    """Middles of the edges, with all batch axes."""
    return solution.grid.middles.to(solution.potential.device).expand(*solution.status.shape, -1)


def _signal(solution: Solution, signal: Quantity | Waveform) -> Tensor:
    """A given potential or current at the times of the solution, `(*batch)` with its time axis."""
    if not isinstance(signal, Waveform):
        return solution.over_time(signal)
    return _over_times(solution, signal, signal.__call__)


def _over_times(solution: Solution, signal: Waveform, function: Callable[[Tensor], Tensor]) -> Tensor:
    shape = signal.batch_shape
    if solution.times is None:
        return function(torch.zeros(shape, dtype=torch.float64, device=signal.low.device))
    values = []
    for time in solution.times.to(signal.low.device) * (1 + 1e-12):
        values.append(function(time.expand(shape)))
    return torch.stack(values, dim=-1).to(solution.potential.device)


def _potential_rate(solution: Solution, end: Boundary) -> Tensor:
    """Rate of change of a potential that is given, `(*batch)` with its time axis; zero if it is constant."""
    signal = getattr(end, "potential", None)
    if not isinstance(signal, Waveform) or solution.times is None:
        return torch.zeros_like(solution.potential[..., 0])
    return _over_times(solution, signal, signal.rate)


def _faradaic(solution: Solution, end: Electrode) -> Tensor:
    """Charge that the reactions at an electrode bring to the metal [A m⁻²], `(*batch)` with its time axis."""
    if not end.reactions:
        return torch.zeros_like(solution.potential[..., 0])
    node = 0 if end is solution.cell.left else -1
    return _electrode_production(solution, end, node)[1]


def _electrode_production(solution: Solution, end: Electrode, node: int) -> tuple[Tensor, Tensor]:
    """Species made [mol m⁻² s⁻¹], `(*batch, species)`, and charge brought to the metal [A m⁻²], `(*batch)`."""
    cell, batch = solution.cell, solution.status.shape
    units = scale_units(cell, batch)
    kinetics = electrode_kinetics(cell, end.reactions, Flattener(cell, batch), units)
    metal = electrode_potential(solution)[0 if node == 0 else 1]
    moments = 1 if solution.times is None else len(solution.times)

    def rows(values: Tensor, trailing: int) -> Tensor:
        """One row for every element and time."""
        own = values.shape[values.dim() - trailing :]
        return values.expand((*solution.potential.shape[:-1], *own)).reshape(-1, *own)

    def per_time(unit: Tensor) -> Tensor:
        return unit.repeat_interleave(moments, dim=0)

    logs = torch.log(rows(solution.concentrations[..., node], 1).clamp(min=1e-300))
    logs = logs - torch.log(per_time(units.concentration)).unsqueeze(-1)
    if solution.pressure is not None:
        volumes = rows(solution.over_time(cell.electrolyte.molar_volumes, trailing=1), 1)
        energy = per_time(units.potential) * cell.electrolyte.faraday_constant
        logs = logs + volumes * (rows(solution.pressure[..., node], 0) / energy).unsqueeze(-1)
    step = rows(metal - solution.potential[..., node], 0) / per_time(units.potential)
    made = butler_volmer(kinetics.map(per_time), logs, step)
    flux = units.diffusivity * units.concentration / units.length
    species = made.species.squeeze(-1) * per_time(flux).unsqueeze(-1)
    charge = made.charge.squeeze(-1) * per_time(flux) * cell.electrolyte.faraday_constant
    shape = solution.potential.shape[:-1]
    return species.reshape(*shape, -1), charge.reshape(shape)


def _fixed_charge(solution: Solution) -> Tensor:
    fixed = solution.cell.fixed_charge
    if callable(fixed):
        return solution.over_time(fixed(solution.grid.nodes.to(solution.potential.device)), trailing=1)
    return solution.over_time(fixed).unsqueeze(-1)
