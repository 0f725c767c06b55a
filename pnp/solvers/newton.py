"""Newton's method for a batch whose elements converge each on their own."""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from ..system import Batched, State, System
from .linear import Factorisation

KEEP_AT_LEAST = 0.1
"""No step takes a concentration below this fraction of itself: the method's only safeguard."""

NEGLIGIBLE = 1e-14
"""Concentrations below this fraction of a species' largest are rounding, not a reason to go on. Where species
turn into each other it is the largest of all, because nothing else says how much of one there should be."""


NEGATIVE = 1e-9
"""A concentration below minus this fraction of the largest is more than rounding."""

BALANCED = 1e-8
"""Largest relative imbalance of a species at a solution. Where none exists (above a limiting current) the
concentration of a depleted wall falls for ever without that anything else would change."""


@dataclass(frozen=True, kw_only=True)
class Newton:
    """Settings of Newton's method.

    Arguments:
        max_iterations: Most iterations of one solve.
        tolerance: Largest change of the potential (in thermal voltages) and relative change of the
            concentrations in a step that counts as converged. Convergence is quadratic, so what remains
            after that step is about the square of it.

    Raises:
        ValueError: `max_iterations` below one or `tolerance` outside (0, 1).

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> rest = pnp.solve_steady(cell, newton_settings=pnp.Newton(max_iterations=200))
        >>> rest.solved.item()
        True
    """

    max_iterations: int = 60
    tolerance: float = 1e-8

    def __post_init__(self) -> None:
        if self.max_iterations < 1:
            raise ValueError(f"Newton: max_iterations must be at least 1, got {self.max_iterations}.")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"Newton: tolerance must be between 0 and 1, got {self.tolerance:g}.")


class Problem(Protocol):
    """Equations for a flat batch of states."""

    @property
    def system(self) -> System:
        """Whose equations they are."""
        ...

    def residual(self, state: State) -> tuple[Tensor, Tensor]:
        """Residual of the species `(B, S, N)` and of the fields `(B, P, N)`."""
        ...

    def factorise(self, state: State) -> Factorisation:
        """The factorised Jacobian at `state`."""
        ...

    def imbalance(self, state: State) -> Tensor:
        """How far the balances are from holding, relative to their terms, `(B,)`."""
        ...

    def select(self, elements: Tensor) -> Self:
        """The same equations for some elements of the batch."""
        ...

    def detach(self) -> Self:
        """The same equations without gradients."""
        ...


@dataclass(frozen=True, eq=False)
class NewtonResult(Batched):
    """Where the iteration ended: state, whether it converged, iterations and last change, `(B,)` each."""

    state: State
    converged: Tensor
    iterations: Tensor
    change: Tensor


@torch.no_grad()
def newton(problem: Problem, start: State, settings: Newton) -> NewtonResult:
    """Solve `problem` from `start`; an element that turns non-finite stays at its last finite state."""
    concentrations, fields = start.concentrations.clone(), start.fields.clone()
    batch, device = fields.shape[0], fields.device
    converged = torch.zeros(batch, dtype=torch.bool, device=device)
    iterations = torch.zeros(batch, dtype=torch.int64, device=device)
    change = torch.full((batch,), torch.inf, dtype=torch.float64, device=device)
    active = torch.arange(batch, device=device)
    current, state = problem, State(concentrations, fields)
    for _ in range(settings.max_iterations):
        state, moved, limited, hopeless = _step(current, state, settings.tolerance)
        finite = torch.isfinite(moved)
        done = finite & ~limited & (moved < settings.tolerance)
        if bool(done.any()):
            done = done & (current.imbalance(state) < BALANCED)
        iterations[active] += 1
        concentrations[active[finite]] = state.concentrations[finite]
        fields[active[finite]] = state.fields[finite]
        change[active] = moved
        converged[active] = done
        proceed = torch.nonzero(finite & ~done & ~hopeless).squeeze(-1)
        if proceed.numel() == 0:
            break
        if proceed.numel() < active.numel():
            active, state, current = active[proceed], state.select(proceed), current.select(proceed)
    return NewtonResult(State(concentrations, fields), converged, iterations, change)


def _step(problem: Problem, state: State, tolerance: float) -> tuple[State, Tensor, Tensor, Tensor]:
    """One limited step: the new state and, per element, the largest change, whether the limiter mattered, and
    whether the solution is plainly negative, once the fields no longer change."""
    update = problem.factorise(state).solve(*problem.residual(state))
    c = state.concentrations
    proposed = c - update.concentrations
    kept = torch.maximum(proposed, KEEP_AT_LEAST * c)
    largest = kept.amax(-1, keepdim=True)
    if problem.system.has_kinetics:
        largest = largest.amax(-2, keepdim=True)
    floor = NEGLIGIBLE * largest
    relative = ((kept - c).abs() / torch.maximum(kept, floor)).amax((-2, -1))
    volts = (update.fields.abs() / (1 + state.fields.abs())).amax((-2, -1))
    limited = ((proposed < KEEP_AT_LEAST * c) & (c > floor)).any(-1).any(-1)
    # A NaN or an infinity anywhere reaches the sum, also where maximum() would drop it.
    check = update.concentrations.sum((-2, -1)) + update.fields.sum((-2, -1))
    moved = torch.where(torch.isfinite(check), torch.maximum(relative, volts), torch.nan)
    negative = (proposed < -NEGATIVE * largest).any(-1).any(-1)
    return State(kept, state.fields - update.fields), moved, limited, negative & (volts < tolerance)
