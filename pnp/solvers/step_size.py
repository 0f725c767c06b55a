"""Error control of the time steps."""

from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_STEP = 1e-16
"""Over the time that was reached; shorter steps would not change it."""
PER_OCTAVE = 16
"""Steps change by whole sixteenths of an octave, so that rounding, which differs between solvers and processors, does
not change them."""


@dataclass(frozen=True, kw_only=True)
class StepControl:
    """Settings of the adaptive time steps.

    Arguments:
        relative, absolute: Tolerances of the local error of the concentrations; the absolute one in units
            of the largest filling. The error is the root mean square over species and nodes.
        max_steps: Most steps, accepted and rejected, of one element.
        safety, shrink, grow: The next step is `safety` times the one that would just meet the tolerance,
            between `shrink` and `grow` times the last one.

    Raises:
        ValueError: A number out of its range.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> for relative in (1e-3, 1e-5):
        ...     control = pnp.StepControl(relative=relative, absolute=relative / 100)
        ...     int(pnp.solve_transient(cell, times=[1.0], step_control=control).stats.steps)
        20
        53
    """

    relative: float = 1e-4
    absolute: float = 1e-6
    max_steps: int = 20_000
    safety: float = 0.9
    shrink: float = 0.2
    grow: float = 5.0

    def __post_init__(self) -> None:
        for name in ("relative", "absolute", "safety", "shrink"):
            value = getattr(self, name)
            if not 0 < value < 1:
                raise ValueError(f"StepControl: {name} must be between 0 and 1, got {value:g}.")
        if self.max_steps < 1 or self.grow <= 1:
            raise ValueError(
                f"StepControl: max_steps must be at least 1 and grow above 1, "
                f"got {self.max_steps} and {self.grow:g}."
            )

    def error_norm(self, error: Tensor, concentrations: Tensor) -> Tensor:
        """Weighted root mean square of an error `(B, S, N)`; one is just acceptable."""
        weight = self.absolute + self.relative * concentrations
        return torch.sqrt(((error / weight) ** 2).mean((-2, -1)))

    def factor(self, norm: Tensor, order: Tensor) -> Tensor:
        """By how much to change the step after an error of `norm` with a method of this order, `(B,)`."""
        best = self.safety * norm.clamp(min=1e-12) ** (-1 / (order + 1))
        best = torch.exp2(torch.floor(torch.log2(best) * PER_OCTAVE) / PER_OCTAVE)
        return best.clamp(self.shrink, self.grow)
