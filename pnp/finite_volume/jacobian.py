"""Derivatives of the residual, as coefficients of neighbouring nodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..scaling import State, System
from .fluxes import scharfetter_gummel_derivatives
from .residual import edge_coefficients, held_nodes


@dataclass(frozen=True, eq=False)
class Tridiagonal:
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

    def set_row(self, node: int, value: float) -> None:
        """Replace a row by `value` on the diagonal."""
        self.lower[..., node] = 0.0
        self.upper[..., node] = 0.0
        self.diagonal[..., node] = value


@dataclass(frozen=True, eq=False)
class Jacobian:
    """The four parts of the linearised equations.

    `transport` couples the concentrations of a species with each other and `migration` with the potential,
    `(B, S, N)`; `poisson` couples potentials, `(B, N)`; `charge` is the derivative of Gauss's law with
    respect to the concentrations of the same node, `(B, S, N)`.
    """

    transport: Tridiagonal
    migration: Tridiagonal
    poisson: Tridiagonal
    charge: Tensor


def jacobian(system: System, state: State, *, step: Tensor | None = None) -> Jacobian:
    """Derivatives of `species_residual` and `poisson_residual` at `state`."""
    c = state.concentrations
    mobility, drop = edge_coefficients(system, state)
    if step is not None:
        mobility = mobility * step[:, None, None]
    left, right, slope = scharfetter_gummel_derivatives(mobility, drop, c[..., :-1], c[..., 1:])
    slope = slope * system.valences[:, :, None]
    transport = _divergence_of(left, right)
    if step is not None:
        transport.diagonal.add_(system.volumes[:, None, :])
    migration = _divergence_of(-slope, slope)
    poisson = poisson_matrix(system)
    charge = -system.valences[:, :, None] * system.volumes[:, None, :]
    for node, end in ((0, system.left), (-1, system.right)):
        if end.bath is not None:
            transport.set_row(node, 1.0)
            migration.set_row(node, 0.0)
    charge[..., held_nodes(system)] = 0.0
    return Jacobian(transport, migration, poisson, charge)


def poisson_matrix(system: System) -> Tridiagonal:
    """Derivative of `poisson_residual` with respect to the potential, which does not depend on the state."""
    stiffness = system.permittivity[:, None] / system.spacings
    poisson = _divergence_of(stiffness, -stiffness)
    for node, end in ((0, system.left), (-1, system.right)):
        if end.stern_capacitance is not None:
            poisson.diagonal[:, node] += end.stern_capacitance
    for node in held_nodes(system):
        poisson.set_row(node, 1.0)
    return poisson


def _divergence_of(left: Tensor, right: Tensor) -> Tridiagonal:
    """Derivative of the divergence of a flux whose edge derivatives are `left` and `right`."""
    pad = torch.nn.functional.pad
    return Tridiagonal(
        lower=-pad(left, (1, 0)),
        diagonal=pad(left, (0, 1)) - pad(right, (1, 0)),
        upper=pad(right, (0, 1)),
    )
