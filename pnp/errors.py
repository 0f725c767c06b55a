"""What a solve says when it fails."""

from enum import IntEnum

import torch
from torch import Tensor


class Status(IntEnum):
    """How the solve of one batch element ended.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> few = pnp.StepControl(max_steps=3)
        >>> found = pnp.solve_transient(cell, times=[1.0], step_control=few, throw=False)
        >>> pnp.Status(int(found.status)), pnp.Status(int(found.status)).reason
        (<Status.MAX_STEPS: 4>, 'used up the time steps allowed')
    """

    CONVERGED = 0
    MAX_ITERATIONS = 1
    NOT_FINITE = 2
    STEP_TOO_SMALL = 3
    MAX_STEPS = 4

    @property
    def reason(self) -> str:
        """One clause for people."""
        return _REASONS[self]


_REASONS = {
    Status.CONVERGED: "converged",
    Status.MAX_ITERATIONS: "did not converge within the iterations allowed",
    Status.NOT_FINITE: "a Newton step was not finite (singular matrix or overflow)",
    Status.STEP_TOO_SMALL: "the time step fell below the smallest one allowed",
    Status.MAX_STEPS: "used up the time steps allowed",
}


class SolveError(RuntimeError):
    """Some elements of a batch were not solved.

    Attributes:
        status: :class:`Status` codes, shape `(*batch)`.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> try:
        ...     pnp.solve_transient(cell, times=[1.0], step_control=pnp.StepControl(max_steps=3))
        ... except pnp.SolveError as error:
        ...     print(str(error).splitlines()[0], error.status.tolist())
        1 of 1 cells were not solved. 4
    """

    def __init__(self, message: str, status: Tensor) -> None:
        super().__init__(message)
        self.status = status


class UnderResolvedWarning(UserWarning):
    """The grid is too coarse for a double layer; the solution may look smooth and be wrong.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import warnings
        >>> import pnp
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     rest = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 11))
        ...
        >>> print(str(caught[0].message).partition(":")[0])
        The first spacing at a wall is 2.4 local Debye lengths in 1 of 1 cells
    """


def describe_failure(status: Tensor, progress: list[str], advice: str) -> str:
    """Text of a :class:`SolveError`: how many failed, which (the first five), how far they got, advice.

    `progress` holds a clause for every element of the flattened batch.
    """
    flat = status.reshape(-1)
    failed = torch.nonzero(flat != Status.CONVERGED).squeeze(-1).tolist()
    lines = [f"{len(failed)} of {flat.numel()} cells were not solved."]
    for index in failed[:5]:
        where = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), status.shape))
        label = f"batch {where}" if where else "the cell"
        lines.append(f"  {label}: {Status(int(flat[index])).reason}; {progress[index]}")
    if len(failed) > 5:
        lines.append(f"  ... and {len(failed) - 5} more (throw=False returns the status of each)")
    return "\n".join([*lines, f"Try: {advice}"])
