r"""Linearised equations of a small oscillation about a steady state, in electrochemical potentials.

The unknowns are :math:`\eta_i = \delta\ln c_i + z_i\,\delta\phi + w_i\,\delta p` and the changes of the fields.
Changes of concentrations span as many decades as the concentrations, and where a layer is full and nearly in
equilibrium their fluxes cancel. The :math:`\eta` are of order one. The flux :math:`J = a_l - a_r` with
:math:`a_l = \frac{D}{h} B(\Delta)\,c_l` and :math:`a_r = \frac{D}{h} B(-\Delta)\,c_r` changes by

.. math:: \delta J = a_r\,(\eta_l - \eta_r) + J\,(\delta\ln c_l + \beta\,\delta\Delta),
          \qquad \beta = \frac{B'(\Delta)}{B(\Delta)},

and the rate :math:`r = f - b` of a reaction, which uses :math:`\nu^-` and makes :math:`\nu^+`, by

.. math:: \delta r = \tfrac{f + b}{2}\,[(\nu^- - \nu^+)\cdot\eta - n\,\delta U]
          + \tfrac{r}{2}\,(\delta\ln f + \delta\ln b) .

Nothing large is subtracted from anything large, nor where nodes are eliminated: what is the same at neighbours cancels
exactly, so that only the sums of the coefficients of a row are needed, and their small parts are kept.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..elementary import exp
from ..system import End, State, System
from .bernoulli import bernoulli, bernoulli_log_derivative
from .kinetics import butler_volmer_rates, butler_volmer_slopes, log_activities, mass_action_rates
from .residual import divergence, edge_coefficients, potential_step

SMALLEST = 1e-250
"""In the place of no concentration at all, so that every species has a chemical potential."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Equations `sums x[k] + lower (x[k-1] - x[k]) + upper (x[k+1] - x[k]) = drive` for x = (eta, fields).

    Blocks are `(B, N, S + P, S + P)`; the drive, `(B, N, S + P)`, is a potential of one at the left end.
    """

    lower: Tensor
    sums: Tensor
    upper: Tensor
    drive: Tensor

    def defect(self, x: Tensor) -> Tensor:
        """What `x` `(B, N, S + P)` leaves of the equations."""
        steps = pad(x.diff(dim=1), (0, 0, 1, 1)).unsqueeze(-1)
        coupled = self.sums @ x.unsqueeze(-1) + self.upper @ steps[:, 1:] - self.lower @ steps[:, :-1]
        return coupled.squeeze(-1) - self.drive


@dataclass(frozen=True, eq=False)
class _Rates:
    """Derivatives of the rates of R reactions at K nodes, all of them or one.

    Attributes:
        net: What each makes of every species, `(B, R, S)`.
        difference: Forward less backward rate, `(B, R, K)`.
        exchange: Their mean, `(B, R, K)`.
        by_eta: `(B, K, R, S)`.
        by_potential: `(B, K, R)`.
        by_level: With respect to the potential of the metal, `(B, K, R)`.
    """

    net: Tensor
    difference: Tensor
    exchange: Tensor
    by_eta: Tensor
    by_potential: Tensor
    by_level: Tensor


class Oscillation:
    """A small oscillation about a steady `state` at angular frequencies `omega` `(B,)`.

    Arguments:
        at_rest: Whether the steady state is an equilibrium, so that every flux is zero and not rounding.
    """

    def __init__(self, system: System, state: State, omega: Tensor, *, at_rest: bool) -> None:
        self._system, self._state, self._rate = system, state, 1j * omega
        self._c = state.concentrations.clamp(min=SMALLEST)
        mobility, drop = edge_coefficients(system, state)
        self._ahead = mobility * bernoulli(drop) * self._c[..., :-1]
        self._back = mobility * bernoulli(-drop) * self._c[..., 1:]
        self._slope, self._opposite = bernoulli_log_derivative(drop), -bernoulli_log_derivative(-drop)
        self._stiffness = (system.permittivity / system.spacings).expand_as(system.spacings)
        self._reactions = self._in_the_electrolyte()
        self._transfers = [self._at(node, end) for node, end in system.ends]
        self._flux = torch.zeros_like(self._ahead) if at_rest else self._steady_flux()

    def rows(self) -> Rows:
        """The equations."""
        system, (batch, species, nodes) = self._system, self._c.shape
        couplings, volumes = system.couplings, system.volumes[:, None, :]
        size = species + couplings.shape[2]
        drive = self._rate.new_zeros(batch, nodes, size)
        lower, sums, upper = (self._rate.new_zeros(batch, nodes, size, size) for _ in range(3))

        before, after = (1, 0), (0, 1)
        for block, by_eta, by_drop, side in (
            (lower, self._ahead, self._flux * self._opposite, before),
            (upper, self._back, self._flux * self._slope, after),
        ):
            block[..., :species, :species] = torch.diag_embed(-pad(by_eta, side).transpose(1, 2))
            block[..., :species, species:] = torch.einsum("bsn,bsp->bnsp", pad(by_drop, side), couplings)
            block[..., species, species] = -pad(self._stiffness, side)

        # What is the same at the neighbours moves with the flux of the steady state.
        stored = self._rate[:, None, None] * volumes * self._c + divergence(self._flux)
        charge = torch.einsum("bsp,bsn->bnps", -couplings, volumes * self._c).to(stored.dtype)
        by_log = torch.cat([torch.diag_embed(stored.transpose(1, 2)), charge], dim=2)
        sums[..., :species] = by_log
        sums[..., species:] = -by_log @ couplings[:, None].to(by_log.dtype)
        if system.crowding is not None:
            room = system.volumes / system.crowding.solvent[:, None] * exp(-self._state.fields[:, 1])
            sums[..., species + 1, species + 1] += room
        one = torch.ones_like(system.volumes[:, :1])
        places: list[tuple[slice | list[int], Tensor, _Rates | None]] = [
            (slice(None), system.volumes, self._reactions),
            ([0], one, self._transfers[0]),
            ([-1], one, self._transfers[1]),
        ]
        for place, space, rates in places:
            if rates is None:
                continue
            net = torch.einsum("bn,brs->bnsr", space, rates.net)
            sums[:, place, :species, :species] -= net @ rates.by_eta
            sums[:, place, :species, species] -= (net @ rates.by_potential.unsqueeze(-1)).squeeze(-1)
            if place == [0]:
                drive[:, place, :species] += (net @ rates.by_level.unsqueeze(-1)).squeeze(-1)

        for node, end in system.ends:
            if end.bath is not None:
                lower[:, node, :species], upper[:, node, :species] = 0.0, 0.0
                sums[:, node, :species, :species] = torch.eye(species, dtype=sums.dtype, device=sums.device)
                sums[:, node, :species, species:] = -couplings.to(sums.dtype)
            if end.stern_capacitance is None:
                for block in (lower, sums, upper):
                    block[:, node, species] = 0.0
            level = torch.ones_like(end.level) if end.stern_capacitance is None else end.stern_capacitance
            sums[:, node, species, species] += level
            if node == 0:
                drive[:, node, species] = level.to(drive.dtype)
        return Rows(lower, sums, upper, drive)

    def current(self, x: Tensor) -> Tensor:
        """Change of the whole current, `(B,)`, read where rounding spoils it least: at an edge or on a metal."""
        system, species = self._system, self._c.shape[1]
        eta, fields = x.transpose(1, 2).split([species, x.shape[-1] - species], dim=1)
        shifts = system.couplings.to(x.dtype) @ fields
        logs, z = eta - shifts, system.valences[..., None]
        conductance = (self._ahead + self._back) / 2
        flux = -conductance * eta.diff(dim=-1) + self._flux * (
            (logs[..., 1:] + logs[..., :-1]) / 2 + (self._slope + self._opposite) / 2 * shifts.diff(dim=-1)
        )
        rate = self._rate[:, None]
        displacement = -self._stiffness * fields[:, 0].diff(dim=-1)
        readings = [(z * flux).sum(1) + rate * displacement]
        spoilt = [(z.abs() * conductance).sum(1) + rate.abs() * self._stiffness]
        for (node, end), rates, sign in zip(system.ends, self._transfers, (1, -1), strict=True):
            if end.bath is not None:
                continue
            ions = system.volumes[:, node, None] * system.valences * self._c[..., node]
            charge = displacement[:, [node]] - sign * (ions * logs[..., node]).sum(-1, keepdim=True)
            readings.append(rate * charge)
            size = self._stiffness[:, node] + (system.valences * ions).sum(-1)
            spoilt.append(rate.abs() * size.unsqueeze(-1))
            if rates is not None:
                electrons = (rates.net * -system.valences[:, None]).sum(-1)
                change = (rates.by_eta[:, 0].to(x.dtype) @ eta[..., node, None]).squeeze(-1)
                change = change + rates.by_potential[:, 0] * fields[:, 0, [node]]
                if node == 0:
                    change = change + rates.by_level[:, 0]
                readings[-1] = readings[-1] - sign * (electrons * change).sum(-1, keepdim=True)
                spoilt[-1] = spoilt[-1] + (electrons.abs() * rates.exchange[..., 0]).sum(-1, keepdim=True)
        quietest = torch.cat(spoilt, -1).argmin(-1, keepdim=True)
        return torch.cat(readings, -1).gather(-1, quietest).squeeze(-1)

    def _in_the_electrolyte(self) -> _Rates | None:
        reactions = self._system.reactions
        if reactions is None:
            return None
        forward, backward = mass_action_rates(reactions, log_activities(self._system, self._state))
        return self._rates(forward, backward, reactions.reactants, reactions.products)

    def _at(self, node: int, end: End) -> _Rates | None:
        """The reactions at one end."""
        kinetics = end.kinetics
        if kinetics is None:
            return None
        logs = log_activities(self._system, State(self._c[..., [node]], self._state.fields[..., [node]]))
        step = potential_step(self._system, self._state, node, end)
        forward, backward = butler_volmer_rates(kinetics, logs.squeeze(-1), step)
        rates = self._rates(forward[..., None], backward[..., None], kinetics.oxidised, kinetics.reduced)
        by_level = -rates.exchange.transpose(1, 2) * kinetics.electrons[:, None]
        if end.stern_capacitance is None:  # the potential step is zero, whatever the potential
            return replace(rates, by_level=by_level)
        down, up = butler_volmer_slopes(kinetics)
        by_step = rates.difference.transpose(1, 2) / 2 * (down + up)[:, None]
        return replace(rates, by_potential=rates.by_potential - by_step, by_level=by_level + by_step)

    def _rates(self, forward: Tensor, backward: Tensor, used: Tensor, made: Tensor) -> _Rates:
        """Of forward and backward rates `(B, R, K)` and stoichiometric numbers `(B, R, S)`."""
        exchange, difference, net = (forward + backward) / 2, forward - backward, made - used
        by_activity = torch.einsum("brk,brs->bkrs", difference / 2, made + used)
        by_eta = by_activity - torch.einsum("brk,brs->bkrs", exchange, net)
        by_potential = -torch.einsum("bkrs,bs->bkr", by_activity, self._system.valences)
        return _Rates(net, difference, exchange, by_eta, by_potential, torch.zeros_like(by_potential))

    def _steady_flux(self) -> Tensor:
        """Fluxes of the steady state, `(B, S, E)`.

        In a full layer the difference of the two parts is rounding of them. But from edge to edge fluxes differ only
        by what reactions make in between, so every edge tells them all: a mean by the inverse squares of the parts.
        """
        gained = torch.zeros_like(self._ahead)
        if self._reactions is not None:
            made = torch.einsum("brs,brn->bsn", self._reactions.net, self._reactions.difference)
            gained = pad((self._system.volumes[:, None, :] * made)[..., 1:-1], (1, 0)).cumsum(-1)
        parts = (self._ahead + self._back).detach()
        weights = (parts.amin(-1, keepdim=True) / parts) ** 2
        weights = weights / weights.sum(-1, keepdim=True)
        return gained + (weights * (self._ahead - self._back - gained)).sum(-1, keepdim=True)
