"""Derivatives of the residual, as coefficients of neighbouring nodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..elementary import exp
from ..system import CURRENT, Batched, End, State, System
from .fluxes import scharfetter_gummel_derivatives
from .kinetics import Production, log_activities, mass_action
from .residual import edge_coefficients, electrode_production, held_nodes


@dataclass(frozen=True, eq=False)
class Tridiagonal(Batched):
    """Coefficients of the left neighbour, the node itself and the right neighbour, `(..., N)` each.

    The first of `lower` and the last of `upper` are zero.
    """

    lower: Tensor
    diagonal: Tensor
    upper: Tensor

    def dense(self) -> Tensor:
        """The matrix, `(..., N, N)`."""
        return (
            torch.diag_embed(self.diagonal)
            + torch.diag_embed(self.lower[..., 1:], offset=-1)
            + torch.diag_embed(self.upper[..., :-1], offset=1)
        )

    def transposed(self) -> "Tridiagonal":
        """The transposed matrix."""
        pad = torch.nn.functional.pad
        lower, upper = pad(self.upper[..., :-1], (1, 0)), pad(self.lower[..., 1:], (0, 1))
        return Tridiagonal(lower, self.diagonal, upper)

    def __matmul__(self, x: Tensor) -> Tensor:
        """Product with vectors `(..., N)`."""
        pad = torch.nn.functional.pad
        return (
            self.lower * pad(x[..., :-1], (1, 0)) + self.diagonal * x + self.upper * pad(x[..., 1:], (0, 1))
        )

    def bands(self) -> tuple[Tensor, Tensor, Tensor]:
        """Lower, diagonal and upper coefficients."""
        return self.lower, self.diagonal, self.upper

    def set_row(self, node: int, value: float) -> None:
        """Replace a row by `value` on the diagonal."""
        self.lower[..., node] = 0.0
        self.upper[..., node] = 0.0
        self.diagonal[..., node] = value


@dataclass(frozen=True, eq=False)
class Jacobian(Batched):
    """The parts of the linearised equations, residuals first, unknowns second.

    `transport` couples the concentrations of a species with each other, `(B, S, N)`, and `migration` with the
    fields, `(B, S, P, N)`; `fields` couples the fields, `(B, P, P, N)`; `charge` is the derivative of the field
    equations with respect to the concentrations of the same node, `(B, P, S, N)`; `kinetics` that of
    the balances, `(B, S, S, N)`, None where nothing reacts. The end rows of a periodic cell are those before
    its ends are joined.
    """

    transport: Tridiagonal
    migration: Tridiagonal
    fields: Tridiagonal
    charge: Tensor
    kinetics: Tensor | None

    def __matmul__(self, change: State) -> tuple[Tensor, Tensor]:
        """Changes of the residuals of species `(B, S, N)` and fields `(B, P, N)` where nothing reacts."""
        c, fields = change.concentrations, change.fields
        species = self.transport @ c + (self.migration @ fields[:, None]).sum(2)
        return species, (self.charge * c[:, None]).sum(2) + (self.fields @ fields[:, None]).sum(2)


def jacobian(system: System, state: State, *, step: Tensor | None = None) -> Jacobian:
    """Derivatives of `species_residual` and `field_residual` at `state`."""
    c = state.concentrations
    mobility, drop = edge_coefficients(system, state)
    if step is not None:
        mobility = mobility * step[:, None, None]
    left, right, slope = scharfetter_gummel_derivatives(mobility, drop, c[..., :-1], c[..., 1:])
    transport = _divergence_of(left, right)
    if step is not None:
        transport.diagonal.add_(system.volumes[:, None, :])
    couplings = system.couplings
    slopes = slope[:, :, None, :] * couplings[..., None]
    migration = _divergence_of(-slopes, slopes)
    fields = _field_matrix(system, state)
    charge = -couplings.transpose(1, 2)[..., None] * system.volumes[:, None, None, :]
    kinetics = None
    if system.has_kinetics:
        kinetics = c.new_zeros(c.shape[0], c.shape[1], c.shape[1], c.shape[2])
    if system.reactions is not None:
        made = mass_action(system.reactions, log_activities(system, state))
        _add_reactions(system, state, made, slice(None), -system.volumes, step, migration, kinetics)
    _set_end_rows(system, state, step, Jacobian(transport, migration, fields, charge, kinetics))
    return Jacobian(transport, migration, fields, charge, kinetics)


def poisson_matrix(system: System) -> Tridiagonal:
    """Gauss's law in the potential `(B, N)`, with held potentials; it does not depend on the state."""
    poisson = _stiffness(system)
    for node, end in system.ends:
        if end.control != CURRENT and end.stern_capacitance is not None:
            poisson.diagonal[:, node] += end.stern_capacitance
    for node in held_nodes(system):
        poisson.set_row(node, 1.0)
    return poisson


def _stiffness(system: System) -> Tridiagonal:
    stiffness = system.permittivity / system.spacings
    return _divergence_of(stiffness, -stiffness)


def _field_matrix(system: System, state: State) -> Tridiagonal:
    """Coupling of the fields with each other, before electrodes have their say."""
    stiffness, fields = _stiffness(system), state.fields.shape[1]
    if fields == 1:
        return Tridiagonal(*(band[:, None, None] for band in stiffness.bands()))
    bands = []
    for band in stiffness.bands():
        wide = band.new_zeros(band.shape[0], fields, fields, band.shape[-1])
        wide[:, 0, 0] = band
        bands.append(wide)
    crowding = system.crowding
    if crowding is not None:
        bands[1][:, 1, 1] = system.volumes / crowding.solvent[:, None] * exp(-state.fields[:, 1])
    return Tridiagonal(*bands)


def _set_end_rows(system: System, state: State, step: Tensor | None, matrix: Jacobian) -> None:
    """What stands in the rows of the end nodes and of the ground, in place."""
    for node, end in system.ends:
        made = electrode_production(system, state, node, end)
        if made is not None:
            weight = -torch.ones_like(end.level).unsqueeze(-1)
            by_step = _add_reactions(
                system, state, made, [node], weight, step, matrix.migration, matrix.kinetics
            )
            _add_potential_step(system, node, end, by_step, matrix)
        if end.control == CURRENT:
            _set_current_row(system, state, node, end, made, step, matrix)
        elif end.stern_capacitance is not None:
            matrix.fields.diagonal[:, 0, 0, node] += end.stern_capacitance
        if end.bath is not None:
            matrix.transport.set_row(node, 1.0)
            matrix.migration.set_row(node, 0.0)
            if matrix.kinetics is not None:
                matrix.kinetics[..., node] = 0.0
    if system.is_periodic:
        return
    for node in held_nodes(system):
        for band in matrix.fields.bands():
            band[:, 0, :, node] = 0.0
        matrix.fields.diagonal[:, 0, 0, node] = 1.0
        matrix.charge[:, 0, :, node] = 0.0


def _add_reactions(
    system: System,
    state: State,
    made: Production,
    nodes: slice | list[int],
    weight: Tensor,
    step: Tensor | None,
    migration: Tridiagonal,
    kinetics: Tensor | None,
) -> Tensor:
    """Add `weight` `(B, K)` times a production at `nodes`; returns what multiplies the potential step, `(B, S, K)`."""
    if step is not None:
        weight = weight * step[:, None]
    c = state.concentrations[..., nodes].clamp(min=1e-300)
    by_log = made.by_log_activity * weight[:, None, None, :]
    if kinetics is not None:
        kinetics[..., nodes] += by_log / c[:, None]
    if system.crowding is not None:
        sizes = system.couplings[:, :, 1]
        migration.diagonal[:, :, 1, nodes] += torch.einsum("bstn,bt->bsn", by_log, sizes)
    return made.by_step * weight[:, None, :]


def _add_potential_step(system: System, node: int, end: End, by_step: Tensor, matrix: Jacobian) -> None:
    """Derivatives of the balances at an electrode through its potential step, `(B, S, 1)`, in place."""
    if end.stern_capacitance is None:
        return
    slope = by_step.squeeze(-1)
    if end.control != CURRENT:
        matrix.migration.diagonal[:, :, 0, node] -= slope
        return
    slope = slope / end.stern_capacitance[:, None]
    gauss = _stiffness(system)
    for band, part in zip(matrix.migration.bands(), gauss.bands(), strict=True):
        band[:, :, 0, node] += slope * part[:, node, None]
    charges = -system.valences * system.volumes[:, node, None]
    if matrix.kinetics is not None:
        matrix.kinetics[..., node] += slope[:, :, None] * charges[:, None, :]


def _set_current_row(
    system: System,
    state: State,
    node: int,
    end: End,
    made: Production | None,
    step: Tensor | None,
    matrix: Jacobian,
) -> None:
    """The row of a metal through which a current is driven, in place."""
    tau = torch.ones_like(end.level) if step is None else step
    own = torch.zeros_like(end.level) if step is None else torch.ones_like(end.level)
    if made is not None and end.stern_capacitance is not None:
        own = own - tau * made.charge_by_step.squeeze(-1) / end.stern_capacitance
    for band in matrix.fields.bands():
        band[:, 0, :, node] *= own[:, None]
    matrix.charge[:, 0, :, node] *= own[:, None]
    if made is None:
        return
    by_log = -tau[:, None] * made.charge_by_log_activity.squeeze(-1)
    matrix.charge[:, 0, :, node] += by_log / state.concentrations[..., node].clamp(min=1e-300)
    if system.crowding is not None:
        matrix.fields.diagonal[:, 0, 1, node] += (by_log * system.couplings[:, :, 1]).sum(-1)


def _divergence_of(left: Tensor, right: Tensor) -> Tridiagonal:
    """Derivative of the divergence of a flux whose edge derivatives are `left` and `right`."""
    pad = torch.nn.functional.pad
    return Tridiagonal(
        lower=-pad(left, (1, 0)),
        diagonal=pad(left, (0, 1)) - pad(right, (1, 0)),
        upper=pad(right, (0, 1)),
    )
