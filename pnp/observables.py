"""Quantities one reads off a solution. Each takes a solution and returns tensors; all are differentiable.

Shapes are those of a steady state; a transient has its time axis after the batch axes.
"""

from typing import NamedTuple, overload

import torch
from torch import Tensor

from .boundaries import Electrode
from .cell import Cell
from .electrolyte import Electrolyte
from .finite_volume.fluxes import scharfetter_gummel
from .finite_volume.residual import divergence
from .quantity import Quantity
from .solution import Solution


class SurfaceCharge(NamedTuple):
    """Charge per area [C m⁻²] on the left electrode, the right one and the ground, `(*batch)` each."""

    left: Tensor
    right: Tensor
    ground: Tensor


@overload
def debye_length(subject: Electrolyte, concentrations: Quantity) -> Tensor: ...
@overload
def debye_length(subject: Cell | Solution) -> Tensor: ...


def debye_length(subject: Electrolyte | Cell | Solution, concentrations: Quantity = None) -> Tensor:
    r"""Debye length :math:`\lambda_D = \sqrt{\varepsilon V_T / (F \sum_i z_i^2 c_i)}` [m].

    Of an electrolyte at given `concentrations` `(*batch, species)`, of a cell at its filling, both
    `(*batch)`; or of a solution at every node, `(*batch, node)`.

    Raises TypeError when an electrolyte comes without concentrations, or anything else with them.
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
    return torch.sqrt(scale.unsqueeze(-1) / strength)


def charge_density(solution: Solution) -> Tensor:
    r"""Charge density :math:`\rho = F(\sum_i z_i c_i + \rho_\mathrm{fixed})` [C m⁻³], `(*batch, node)`."""
    cell = solution.cell
    valences = solution.over_time(cell.electrolyte.valences, trailing=1).unsqueeze(-1)
    mobile = (valences * solution.concentrations).sum(-2)
    return cell.electrolyte.faraday_constant * (mobile + _fixed_charge(solution))


def electric_field(solution: Solution) -> Tensor:
    r"""Electric field :math:`E = -\partial_x\phi` [V m⁻¹] on the edges, `(*batch, edge)`."""
    return -solution.potential.diff(dim=-1) / solution.over_time(solution.grid.spacings, trailing=1)


def ion_flux(solution: Solution) -> Tensor:
    r"""Ion fluxes :math:`J_i` [mol m⁻² s⁻¹], positive to the right, `(*batch, species, edge)`.

    The Scharfetter-Gummel fluxes of the scheme itself, so that their divergence is what the ions do.
    """
    electrolyte = solution.cell.electrolyte
    spacings = solution.over_time(solution.grid.spacings, trailing=1).unsqueeze(-2)
    diffusivities = solution.over_time(electrolyte.diffusivities, trailing=1).unsqueeze(-1)
    valences = solution.over_time(electrolyte.valences, trailing=1).unsqueeze(-1)
    voltage = solution.over_time(electrolyte.thermal_voltage)[..., None, None]
    drop = valences * solution.potential.diff(dim=-1).unsqueeze(-2) / voltage
    c = solution.concentrations
    return scharfetter_gummel(diffusivities / spacings, drop, c[..., :-1], c[..., 1:])


def current_density(solution: Solution) -> Tensor:
    r"""Total current density, ions and displacement [A m⁻²], positive to the right, `(*batch, edge)`.

    .. math:: I = F\sum_i z_i J_i + \partial_t(\varepsilon E)

    is the same everywhere between two electrodes. The displacement follows from the fluxes, without any
    difference in time: charge conservation gives its variation along the cell, and the potentials that are
    held give its mean (the theorem of Ramo and Shockley). With a ground, the current differs on its two sides
    by what flows to the ground.

    References:
        Shockley, J. Appl. Phys. 9, 635 (1938); Ramo, Proc. IRE 27, 584 (1939).
    """
    cell = solution.cell
    valences = solution.over_time(cell.electrolyte.valences, trailing=1).unsqueeze(-1)
    ionic = cell.electrolyte.faraday_constant * (valences * ion_flux(solution)).sum(-2)
    spacings = solution.over_time(solution.grid.spacings, trailing=1)
    permittivity = solution.over_time(cell.electrolyte.permittivity).unsqueeze(-1)
    resistance = (spacings / permittivity).expand_as(ionic)
    node = solution.grid.ground_node
    pieces = [slice(None)] if node is None else [slice(None, node), slice(node, None)]
    parts = []
    for piece in pieces:
        mean = (ionic * resistance)[..., piece].sum(-1, keepdim=True)
        series = resistance[..., piece].sum(-1, keepdim=True)
        for end, here in ((cell.left, piece is pieces[0]), (cell.right, piece is pieces[-1])):
            if here and isinstance(end, Electrode) and end.stern_capacitance is not None:
                series = series + 1 / solution.over_time(end.stern_capacitance).unsqueeze(-1)
        parts.append((mean / series).expand_as(ionic[..., piece]))
    return torch.cat(parts, dim=-1)


def surface_charge(solution: Solution) -> SurfaceCharge:
    r"""Charge per area on the electrodes and the ground [C m⁻²], as `.left`, `.right`, `.ground`.

    By Gauss's law on the half volume of a wall, :math:`\sigma = \varepsilon\,\partial_n\phi` with the charge
    between wall and first edge taken into account; with the ions' charge the three sum to zero to rounding.
    """
    permittivity = solution.over_time(solution.cell.electrolyte.permittivity).unsqueeze(-1)
    displacement = permittivity * electric_field(solution)
    volumes = solution.over_time(solution.grid.volumes, trailing=1)
    defect = divergence(displacement) - volumes * charge_density(solution)
    node = solution.grid.ground_node
    ground = torch.zeros_like(defect[..., 0]) if node is None else defect[..., node]
    return SurfaceCharge(defect[..., 0], defect[..., -1], ground)


def total_charge(solution: Solution) -> Tensor:
    r"""Charge of the ions and of fixed charge per area, :math:`\int\rho\,dx` [C m⁻²], `(*batch)`."""
    return (solution.over_time(solution.grid.volumes, trailing=1) * charge_density(solution)).sum(-1)


def diffuse_charge(solution: Solution) -> Tensor:
    r"""Magnitude of the separated charge per area, :math:`\tfrac12\int|\rho|\,dx` [C m⁻²], `(*batch)`."""
    volumes = solution.over_time(solution.grid.volumes, trailing=1)
    return (volumes * charge_density(solution).abs()).sum(-1) / 2


def amounts(solution: Solution) -> Tensor:
    r"""Amounts per area, :math:`\int c_i\,dx` [mol m⁻²], `(*batch, species)`."""
    volumes = solution.over_time(solution.grid.volumes, trailing=1).unsqueeze(-2)
    return (volumes * solution.concentrations).sum(-1)


def free_energy(solution: Solution) -> Tensor:
    r"""Free energy per area at fixed electrode potentials [J m⁻²], `(*batch)`.

    .. math::
        \mathcal F = \int V_T F \sum_i c_i\,(\ln c_i - 1)\,dx + \int\frac{\varepsilon}{2}|\phi'|^2\,dx
        + \sum_\mathrm{Stern}\frac{C_S}{2}(U-\phi)^2 - \sum_\mathrm{electrodes}\sigma\,U

    Concentrations are in mol m⁻³ (or in the dimensionless unit) inside the logarithm. The last term is the
    work of the sources that hold the potentials; with it, :math:`\mathcal F` never increases in a cell with
    blocking ends, and the equilibrium is its minimum.
    """
    cell = solution.cell
    volumes = solution.over_time(solution.grid.volumes, trailing=1)
    spacings = solution.over_time(solution.grid.spacings, trailing=1)
    electrolyte = cell.electrolyte
    scale = solution.over_time(electrolyte.thermal_voltage) * electrolyte.faraday_constant
    c = solution.concentrations
    entropy = (volumes.unsqueeze(-2) * (torch.xlogy(c, c) - c)).sum((-2, -1)) * scale
    permittivity = solution.over_time(electrolyte.permittivity)
    field = permittivity / 2 * (spacings * electric_field(solution) ** 2).sum(-1)
    energy = entropy + field
    charges = surface_charge(solution)
    for end, charge, node in ((cell.left, charges.left, 0), (cell.right, charges.right, -1)):
        volts = solution.over_time(end.potential)
        energy = energy - charge * volts
        if isinstance(end, Electrode) and end.stern_capacitance is not None:
            capacitance = solution.over_time(end.stern_capacitance)
            energy = energy + capacitance / 2 * (volts - solution.potential[..., node]) ** 2
    return energy


def _fixed_charge(solution: Solution) -> Tensor:
    fixed = solution.cell.fixed_charge
    if callable(fixed):
        return solution.over_time(fixed(solution.grid.nodes.to(solution.potential.device)), trailing=1)
    return solution.over_time(fixed).unsqueeze(-1)
