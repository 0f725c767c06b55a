r"""One linearly implicit step in time: Rosenbrock's method, where nothing that acts on a cell varies in time.

With one matrix at the start of the step, :math:`W = V + \gamma\Delta t\,\partial(\nabla\!\cdot J)/\partial u` and the
derivatives of Gauss's law, which is linear,

.. math:: W U_i &= \gamma V \sum_{j<i} c_{ij} U_j - \gamma\Delta t\,\nabla\!\cdot J(u_i)
                   \quad\text{and}\quad -\text{(defect of Gauss's law at } u_i), \\
          u_i &= u_0 + \sum_{j<i} a_{ij} U_j, \qquad u_1 = u_6 + U_6 .

Nothing is iterated. The method is L-stable, stiffly accurate, of order four, and its last increment is the error of an
embedded one of order three; it keeps that order for parabolic equations. Amounts stay because all :math:`U_i` have
none. It does not promise positivity: a step that leaves a negative concentration is refused and made shorter.

References:
    Steinebach, Improvement of Rosenbrock-Wanner method RODASP, in: Progress in Differential-Algebraic Equations II,
    165-184, Springer (2020);
    Hairer & Wanner, Solving Ordinary Differential Equations II, section IV.7, Springer (1996).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..finite_volume.jacobian import jacobian
from ..finite_volume.residual import field_residual, held_nodes, species_residual
from ..system import CHARGE, POTENTIAL, Batched, State, System
from .linear import Pins, factorise
from .newton import KEEP_AT_LEAST, NEGLIGIBLE
from .time_step import StepResult, with_amounts

SHARE = 0.25
r""":math:`\gamma`."""
ORDER = 3.0
"""Of the embedded method, whose error is controlled."""
REACHED = (
    (),
    (3.0,),
    (0.906377755268814, -0.189707390391685),
    (3.758617027739064, 1.161741776019525, -0.849258085312803),
    (7.089566927282776, 4.573591406461604, -8.423496976860259, -0.959280113459775),
    (7.089566927282776, 4.573591406461604, -8.423496976860259, -0.959280113459775, 1.0),
)
r""":math:`a_{ij}`."""
REMEMBERED = (
    (),
    (-12.0,),
    (-6.354581592719008, 0.338972550544623),
    (-8.575016317114033, -7.606483992117508, 12.22499765012482),
    (-5.888975457523102, -8.157396617841821, 24.805546872612922, 12.790401512796979),
    (-4.408651676063871, -6.692003137674639, 24.625568527593117, 16.627521966636085, -5.714285714285718),
)
r""":math:`c_{ij}`."""


def suits(system: System) -> bool:
    """Whether the method is made for this system, as long as nothing imposed on it varies."""
    controls = {end.control for _, end in system.ends}
    return system.crowding is None and not system.has_kinetics and controls <= {POTENTIAL, CHARGE}


@dataclass(frozen=True, eq=False)
class RosenbrockStep(Batched):
    """A step to try: where it starts and its length `(B,)`; `amounts` `(B, L)` are to be kept."""

    system: System
    state: State
    length: Tensor
    amounts: Tensor

    @torch.no_grad()
    def take(self) -> StepResult:
        """Try the step, without gradients; it converges where it leaves no negative concentration."""
        end, last = self._end(differentiable=False)
        c, start = end.concentrations, self.state.concentrations
        floor = NEGLIGIBLE * start.amax(-1, keepdim=True)
        positive = (c > -floor).flatten(1).all(-1)
        # Rounding of what is next to nothing has no sign.
        end = State(torch.where(c > 0, c, KEEP_AT_LEAST * start), end.fields)
        end = with_amounts(self.system, self.amounts, end)
        iterations = torch.ones_like(positive, dtype=torch.int64)
        return StepResult(end, last.concentrations, positive, iterations)

    def traced(self, _: State | None, __: State) -> State:
        """The end of the step that was taken, differentiable; all stages are taken again."""
        return self._end(differentiable=True)[0]

    def _end(self, differentiable: bool) -> tuple[State, State]:
        """The end of the step and its last increment."""
        system, state, tau = self.system, self.state, SHARE * self.length
        matrix = jacobian(system, state, step=tau)
        factors = factorise(system.detach(), state.detach(), matrix.detach(), pinned=True)
        pins = Pins.of(system, state) if system.laws else None
        held, baths = held_nodes(system), [node for node, end in system.ends if end.bath is not None]
        nothing, increments = state.map(torch.zeros_like), list[State]()
        for reached, remembered in zip(REACHED, REMEMBERED, strict=True):
            at = _sum(state, reached, increments)
            known = at.concentrations + SHARE * _sum(nothing, remembered, increments).concentrations
            species = -species_residual(system, at, known=known, step=tau)
            fields = -field_residual(system, at)
            # What is held stays what it is at the start.
            species[..., baths], fields[:, 0, held] = 0.0, 0.0
            if pins is not None:
                species = pins.put(species, torch.zeros_like(self.amounts))
            with torch.no_grad():
                increment = factors.solve(species, fields)
            if differentiable:
                # The matrix depends on the start, too.
                used, rest = matrix @ increment
                if pins is not None:
                    used = pins.put(used, pins.amounts(increment.concentrations.unsqueeze(-1)).squeeze(-1))
                more = factors.solve(species - used, fields - rest)
                increment = _sum(increment, (1.0, -1.0), [more, more.detach()])
            increments.append(increment)
        return _sum(at, (1.0,), increments[-1:]), increments[-1]


def _sum(state: State, weights: tuple[float, ...], increments: list[State]) -> State:
    concentrations, fields = state.concentrations, state.fields
    for weight, increment in zip(weights, increments, strict=True):
        concentrations = concentrations + weight * increment.concentrations
        fields = fields + weight * increment.fields
    return State(concentrations, fields)
