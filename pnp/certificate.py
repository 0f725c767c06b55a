"""How far a solution can be trusted, measured from the solution itself."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import observables
from .boundaries import ChargedWall, Electrode
from .finite_volume.residual import imbalance, species_residual
from .observables import SurfaceCharge
from .scaling import scale
from .solution import Solution
from .solvers.start import scaled_state


@dataclass(frozen=True, eq=False)
class Certificate:
    r"""What every solution must keep, measured; `(*batch)` each, the worst over species and times.

    Attributes:
        smallest_concentration: [mol m⁻³]; must be positive.
        amount_error: Relative error of the amounts in a closed cell (with reactions: of the combinations
            that they conserve); zero in an open one.
        gauss_error: Sum of the charges on the metal and in the cell over the sum of the magnitudes of these
            charges and of the largest displacement, of which they are differences.
        residual: Largest imbalance of a species in a control volume of a steady state, over the largest
            :math:`D c/h` of which its fluxes are differences; zero for transients.
        current_variation: Largest difference of a steady current along the cell (on either side of a ground),
            over the largest :math:`|z| D c/h`; zero for transients, whose current is uniform by construction.
        wall_spacing: First spacing at an electrode over the local Debye length; above one, the double
            layer is not resolved.
        grid_error: Estimated error of the potential from the grid, in thermal voltages, by comparison with a
            solution on every other node; None unless asked for.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> checked = pnp.solve_steady(cell).check(grid=True)
        >>> checked.passed.item(), f"error of the grid {float(checked.grid_error):.0e}"
        (True, 'error of the grid 9e-05')
    """

    smallest_concentration: Tensor
    amount_error: Tensor
    gauss_error: Tensor
    residual: Tensor
    current_variation: Tensor
    wall_spacing: Tensor
    grid_error: Tensor | None = None

    @property
    def passed(self) -> Tensor:
        """Positive, conserving to 1e-10, and resolved; `(*batch)`."""
        return (
            (self.smallest_concentration > 0)
            & (self.amount_error < 1e-10)
            & (self.gauss_error < 1e-10)
            & (self.wall_spacing < 1)
        )

    def __str__(self) -> str:
        lines = []
        for part in fields(self):
            value = getattr(self, part.name)
            if value is None:
                continue
            worst = value.min() if part.name == "smallest_concentration" else value.max()
            lines.append(f"{part.name.replace('_', ' '):24s} {worst.item():.2e}")
        return "\n".join([*lines, f"{'passed':24s} {int(self.passed.sum())} of {self.passed.numel()}"])


def certify(solution: Solution, *, grid: bool = False) -> Certificate:
    """Measure the invariants of a solution and, if `grid`, estimate the error of its grid."""

    def worst(values: Tensor, axes: int) -> Tensor:
        """Largest over trailing axes and, for a transient, over time."""
        values = values.abs()
        return values.flatten(values.dim() - axes).amax(-1) if axes else values

    time = int(solution.times is not None)
    concentrations = solution.concentrations
    smallest = concentrations.flatten(concentrations.dim() - 2 - time).amin(-1)
    amounts = observables.amounts(solution)
    expected = solution.over_time(solution.expected_amounts, trailing=1)
    laws = None if solution.cell.keeps_amounts else solution.cell.conserved.to(amounts.device)
    if laws is None:
        amount_error = worst((amounts - expected) / expected, 1 + time)
    elif laws.shape[0]:
        amount_error = worst((amounts - expected) @ laws.T / (expected @ laws.abs().T), 1 + time)
    else:
        amount_error = torch.zeros_like(smallest)
    surface = observables.surface_charge(solution)
    inside = observables.total_charge(solution)
    gauss = (surface.left + surface.right + surface.ground + inside) / _charge_scale(solution, surface)
    still = torch.zeros_like(smallest)
    grid_error = None
    if grid:
        error = solution.richardson(_thermal_potential).error
        grid_error = worst(error, 1 + time)
    return Certificate(
        smallest,
        amount_error,
        worst(gauss, time),
        still if time else _residual(solution),
        still if time else worst(_current_spread(solution), 1),
        worst(wall_spacing(solution), 1 + time),
        grid_error,
    )


def _thermal_potential(solution: Solution) -> Tensor:
    voltage = solution.over_time(solution.cell.electrolyte.thermal_voltage)
    return solution.potential / voltage.unsqueeze(-1)


def _residual(solution: Solution) -> Tensor:
    """Worst imbalance of a steady state, `(*batch)`."""
    system, scales = scale(solution.cell, solution.grid)
    state = scaled_state(system, scales, solution)
    return imbalance(system, state, species_residual(system, state)).reshape(solution.status.shape)


def _charge_scale(solution: Solution, surface: SurfaceCharge) -> Tensor:
    """Magnitudes of the charges on the metal and of all ions, and of the terms that they are differences of."""
    electrolyte = solution.cell.electrolyte
    valences = solution.over_time(electrolyte.valences, trailing=1).abs()
    ions = (valences * observables.amounts(solution)).sum(-1) * electrolyte.faraday_constant
    field = observables.electric_field(solution).abs().amax(-1)
    largest = solution.potential.abs().amax(-1) / solution.over_time(solution.grid.spacings.amin(-1))
    terms = solution.over_time(electrolyte.permittivity) * torch.maximum(field, largest)
    return surface.left.abs() + surface.right.abs() + surface.ground.abs() + ions + terms


def _largest_terms(solution: Solution) -> Tensor:
    """Largest D c/h of every species, of which its fluxes are differences, `(*batch, species)`."""
    diffusivities = solution.cell.electrolyte.diffusivities.to(solution.potential.device).unsqueeze(-1)
    c = solution.concentrations
    terms = diffusivities * torch.maximum(c[..., :-1], c[..., 1:]) / solution.grid.spacings.unsqueeze(-2)
    return terms.amax(-1)


def _current_spread(solution: Solution) -> Tensor:
    """How much the ionic current of a steady state varies along each part of the cell, `(*batch, part)`."""
    electrolyte = solution.cell.electrolyte
    valences = electrolyte.valences.to(solution.potential.device)
    current = (valences.unsqueeze(-1) * observables.ion_flux(solution)).sum(-2)
    node = solution.grid.ground_node
    pieces = [current] if node is None else [current[..., :node], current[..., node:]]
    spread = torch.stack([piece.amax(-1) - piece.amin(-1) for piece in pieces], dim=-1)
    size = (valences.abs() * _largest_terms(solution)).amax(-1, keepdim=True)
    return spread / torch.where(size > 0, size, torch.ones_like(size))


def wall_spacing(solution: Solution) -> Tensor:
    """First spacing over the local Debye length at every electrode, `(*batch, [time,] end)`."""
    cell, grid = solution.cell, solution.grid
    ratios = []
    for node, edge, end in ((0, 0, cell.left), (-1, -1, cell.right)):
        if isinstance(end, Electrode | ChargedWall):
            local = solution.concentrations[..., node]
            valences = solution.over_time(cell.electrolyte.valences, trailing=1)
            strength = (valences**2 * local).sum(-1) * cell.electrolyte.faraday_constant
            permittivity = solution.over_time(cell.electrolyte.permittivity)
            if cell.permittivity_profile is not None:
                permittivity = permittivity * solution.over_time(
                    cell.permittivity_profile(grid.middles)[..., edge]
                )
            voltage = solution.over_time(cell.electrolyte.thermal_voltage)
            length = torch.sqrt(permittivity * voltage / strength)
            ratios.append(solution.over_time(grid.spacings[..., edge]) / length)
    if not ratios:
        return torch.zeros_like(solution.potential[..., :1])
    return torch.stack(ratios, dim=-1)
