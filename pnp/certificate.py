"""How far a solution can be trusted, measured from the solution itself."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from . import observables
from .boundaries import ChargedWall, Electrode
from .observables import SurfaceCharge
from .solution import Solution


@dataclass(frozen=True, eq=False)
class Certificate:
    """What every solution must keep, measured; `(*batch)` each, the worst over species and times.

    Attributes:
        smallest_concentration: [mol m⁻³]; must be positive.
        amount_error: Relative error of the amounts in a closed cell (with reactions: of the combinations
            that they conserve); zero in an open one.
        gauss_error: Sum of the charges on the metal and in the cell over the sum of their magnitudes.
        flux_divergence: Largest difference of a steady ion flux along the cell, over the largest D c/h of
            which that flux is a difference; zero for transients.
        wall_spacing: First spacing at an electrode over the local Debye length; above one, the double
            layer is not resolved.
    """

    smallest_concentration: Tensor
    amount_error: Tensor
    gauss_error: Tensor
    flux_divergence: Tensor
    wall_spacing: Tensor

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
            worst = value.min() if part.name == "smallest_concentration" else value.max()
            lines.append(f"{part.name.replace('_', ' '):24s} {worst.item():.2e}")
        return "\n".join([*lines, f"{'passed':24s} {int(self.passed.sum())} of {self.passed.numel()}"])


def certify(solution: Solution) -> Certificate:
    """Measure the invariants of a solution."""

    def worst(values: Tensor, axes: int) -> Tensor:
        """Largest over trailing axes and, for a transient, over time."""
        values = values.abs()
        return values.flatten(values.dim() - axes).amax(-1) if axes else values

    time = int(solution.times is not None)
    concentrations = solution.concentrations
    smallest = concentrations.flatten(concentrations.dim() - 2 - time).amin(-1)
    amounts = observables.amounts(solution)
    laws = solution.cell.conserved.to(amounts.device)
    if laws.shape[0]:
        expected = solution.over_time(solution.expected_amounts, trailing=1)
        kept = (amounts - expected).unsqueeze(-2) * laws
        size = (expected.unsqueeze(-2) * laws).abs().sum(-1)
        amount_error = worst(kept.sum(-1) / size, 1 + time)
    else:
        amount_error = torch.zeros_like(smallest)
    surface = observables.surface_charge(solution)
    inside = observables.total_charge(solution)
    gauss = (surface.left + surface.right + surface.ground + inside) / _charge_scale(solution, surface)
    flux = torch.zeros_like(smallest) if time else worst(_flux_spread(solution), 1)
    return Certificate(
        smallest, amount_error, worst(gauss, time), flux, worst(_wall_spacing(solution), 1 + time)
    )


def _charge_scale(solution: Solution, surface: SurfaceCharge) -> Tensor:
    """Magnitudes of the charges on the metal and of all ions together."""
    electrolyte = solution.cell.electrolyte
    valences = solution.over_time(electrolyte.valences, trailing=1).abs()
    ions = (valences * observables.amounts(solution)).sum(-1) * electrolyte.faraday_constant
    return surface.left.abs() + surface.right.abs() + surface.ground.abs() + ions


def _flux_spread(solution: Solution) -> Tensor:
    flux = observables.ion_flux(solution)
    diffusivities = solution.cell.electrolyte.diffusivities.to(flux.device).unsqueeze(-1)
    c = solution.concentrations
    terms = diffusivities * torch.maximum(c[..., :-1], c[..., 1:]) / solution.grid.spacings.unsqueeze(-2)
    return (flux.amax(-1) - flux.amin(-1)) / terms.amax(-1)


def _wall_spacing(solution: Solution) -> Tensor:
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
