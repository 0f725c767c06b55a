r"""Rates of reactions in the electrolyte and at electrodes, and their derivatives.

Both kinds have a forward and a backward rate of the form
:math:`\exp(\ln k + \sum_j \nu_j \ln a_j + \beta\,\Delta)` with :math:`\ln a_j = \ln c_j + w_j p`, so that
their derivatives with respect to :math:`\ln a_j` and to the potential step :math:`\Delta` between metal and
plane of reaction are multiples of themselves.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..elementary import exp, log
from ..system import Kinetics, MassAction, State, System

LARGEST_EXPONENT = 600.0


@dataclass(frozen=True, eq=False)
class Production:
    """What reactions make of every species, at the nodes `(..., K)` where they run.

    Attributes:
        species: `(B, S, K)`.
        by_log_activity: Derivative, `(B, S, S, K)`, of what is made of the first with respect to the second.
        by_step: Derivative with respect to the potential step, `(B, S, K)`.
        charge: What the metal receives, in elementary charges, `(B, K)`.
        charge_by_log_activity, charge_by_step: Its derivatives, `(B, S, K)` and `(B, K)`.
    """

    species: Tensor
    by_log_activity: Tensor
    by_step: Tensor
    charge: Tensor
    charge_by_log_activity: Tensor
    charge_by_step: Tensor


def log_activities(system: System, state: State) -> Tensor:
    """Logarithms of the activities, `(B, S, N)`."""
    logs = log(state.concentrations.clamp(min=1e-300))
    if system.crowding is None:
        return logs
    return logs + system.couplings[:, :, 1:] * state.fields[:, 1:2]


def mass_action(reactions: MassAction, logs: Tensor) -> Production:
    """Production per volume in the electrolyte, from log activities `(B, S, N)`."""
    zero = torch.zeros_like(reactions.forward)
    rates = mass_action_rates(reactions, logs)
    return _production(*rates, reactions.reactants, reactions.products, zero, zero, zero)


def mass_action_rates(reactions: MassAction, logs: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward rates in the electrolyte, `(B, R, N)` each, from log activities `(B, S, N)`."""
    forward = reactions.forward[..., None] * _product(reactions.reactants, logs)
    return forward, reactions.backward[..., None] * _product(reactions.products, logs)


def butler_volmer(kinetics: Kinetics, logs: Tensor, step: Tensor) -> Production:
    """Production per area at an electrode, from log activities `(B, S)` and the potential step `(B,)`."""
    forward, backward = butler_volmer_rates(kinetics, logs, step)
    return _production(
        forward.unsqueeze(-1),
        backward.unsqueeze(-1),
        kinetics.oxidised,
        kinetics.reduced,
        *butler_volmer_slopes(kinetics),
        kinetics.electrons,
    )


def butler_volmer_slopes(kinetics: Kinetics) -> tuple[Tensor, Tensor]:
    """Derivatives of the logarithms of both rates by the potential step, `(B, R)` each."""
    return -kinetics.transfer * kinetics.electrons, (1 - kinetics.transfer) * kinetics.electrons


def butler_volmer_rates(kinetics: Kinetics, logs: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """Forward and backward rates at an electrode, `(B, R)`, from log activities `(B, S)` and the step `(B,)`."""
    overpotential = step[:, None] - kinetics.standard_potential
    down, up = butler_volmer_slopes(kinetics)
    forward, backward = (
        exp(
            (
                kinetics.log_constant
                + torch.einsum("brs,bs->br", numbers, logs)
                - numbers.sum(-1) * kinetics.log_standard
                + slope * overpotential
            ).clamp(max=LARGEST_EXPONENT)
        )
        for numbers, slope in ((kinetics.oxidised, down), (kinetics.reduced, up))
    )
    return forward, backward


def _product(numbers: Tensor, logs: Tensor) -> Tensor:
    return exp(torch.einsum("brs,bsn->brn", numbers, logs).clamp(max=LARGEST_EXPONENT))


def _production(
    forward: Tensor, backward: Tensor, used: Tensor, made: Tensor, down: Tensor, up: Tensor, electrons: Tensor
) -> Production:
    """Sums over reactions: rates `(B, R, K)`, stoichiometric numbers `(B, R, S)`, slopes `(B, R)`."""
    net = made - used
    rate = forward - backward
    by_log = torch.einsum("brn,brs->brsn", forward, used) - torch.einsum("brn,brs->brsn", backward, made)
    by_step = down[..., None] * forward - up[..., None] * backward
    return Production(
        species=torch.einsum("brs,brn->bsn", net, rate),
        by_log_activity=torch.einsum("brs,brtn->bstn", net, by_log),
        by_step=torch.einsum("brs,brn->bsn", net, by_step),
        charge=torch.einsum("br,brn->bn", electrons, rate),
        charge_by_log_activity=torch.einsum("br,brsn->bsn", electrons, by_log),
        charge_by_step=torch.einsum("br,brn->bn", electrons, by_step),
    )
