"""What a solve returns."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .cell import Cell
from .errors import Status
from .grid import Grid

if TYPE_CHECKING:
    from .certificate import Certificate


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a solve cost, per batch element `(*batch)`.

    Attributes:
        iterations: Newton iterations, over all steps.
        change: Last relative change of a steady Newton iteration (zero for transients).
        steps, rejected: Accepted and rejected time steps (zero for steady states).
        reached: Time that was reached (infinite for a steady state that converged).
        solver: What did the work, "compiled" kernels (see :mod:`pnp.compiled`) or "torch".
        method: Of time steps, "Rosenbrock" or "TR-BDF2" (see :func:`pnp.solve_transient`); empty of steady states.
    """

    iterations: Tensor
    change: Tensor
    steps: Tensor
    rejected: Tensor
    reached: Tensor
    solver: str = "torch"
    method: str = ""


class Extrapolated(NamedTuple):
    """A quantity in the limit of a fine grid, and the error that is estimated for the grid it came from."""

    value: Tensor
    error: Tensor


@dataclass(frozen=True, eq=False, repr=False)
class Solution:
    r"""Potential and concentrations of a batch of cells, at a steady state or at a row of times.

    Attributes:
        cell, grid: What was solved, and on which nodes.
        potential: [V], `(*batch, node)`, or `(*batch, time, node)` of a transient.
        concentrations: [mol m⁻³], `(*batch, species, node)`, or `(*batch, time, species, node)`.
        pressure: Pressure of crowding, :math:`-(RT/v_0)\ln(1 - \sum_i v_i c_i)` [Pa], shaped like the
            potential; None of point ions.
        status: :class:`pnp.Status` codes, `(*batch)`; elements that failed hold their last finite state.
        stats: :class:`Statistics`.
        expected_amounts: Amounts at the start [mol m⁻²], `(*batch, species)`; a closed cell keeps those
            combinations of them that `cell.conserved` lists.
        times: [s], `(time,)`, None of a steady state.
        again: Solves the same once more on another grid.

    Example:
        With the `cell` of :class:`~pnp.cell.Cell`:

        >>> import pnp
        >>> rest = pnp.solve_steady(cell)
        >>> tuple(rest.potential.shape), tuple(rest.concentrations.shape), rest.check().passed.item()
        ((201,), (2, 201), True)
        >>> value, error = rest.richardson(pnp.diffuse_charge)
        >>> f"{float(value):.6f}, was off by {float(error):.0e}"
        '0.307155, was off by 3e-05'
    """

    _: KW_ONLY
    cell: Cell
    grid: Grid
    potential: Tensor
    concentrations: Tensor
    status: Tensor
    stats: Statistics
    expected_amounts: Tensor
    times: Tensor | None = None
    pressure: Tensor | None = None
    again: Callable[[Grid], "Solution"] | None = None

    def __repr__(self) -> str:
        kind = "steady state" if self.times is None else f"transient at {len(self.times)} times"
        names = ", ".join(self.cell.electrolyte.names[:4]) + (
            ", ..." if self.cell.electrolyte.names[4:] else ""
        )
        return (
            f"Solution({kind} of {self.status.numel()} cells with {names} on {self.potential.shape[-1]} nodes; "
            f"{int(self.solved.sum())} solved, {self.stats.solver})"
        )

    @property
    def solved(self) -> Tensor:
        """Which elements were solved, `(*batch)`."""
        return self.status == Status.CONVERGED

    @property
    def positions(self) -> Tensor:
        """Node positions [m], `(*batch, node)`."""
        return self.grid.nodes

    def over_time(self, parameter: Tensor, trailing: int = 0) -> Tensor:
        """A parameter `(*batch, ...)` with `trailing` own axes, ready to meet the states of this solution.

        Inserts the time axis of a transient after the batch axes.
        """
        parameter = parameter.to(self.potential.device)
        if self.times is None or parameter.dim() == trailing:
            return parameter
        return parameter.unsqueeze(parameter.dim() - trailing)

    def at(self, index: int) -> "Solution":
        """One moment of a transient, as a solution without a time axis."""
        if self.times is None:
            raise ValueError("at: this solution is a steady state and has no times.")
        return Solution(
            cell=self.cell,
            grid=self.grid,
            potential=self.potential[..., index, :],
            concentrations=self.concentrations[..., index, :, :],
            pressure=None if self.pressure is None else self.pressure[..., index, :],
            status=self.status,
            stats=self.stats,
            expected_amounts=self.expected_amounts,
        )

    @torch.no_grad()
    def check(self, *, grid: bool = False) -> "Certificate":
        """Measure how well the solution keeps what every solution must keep.

        With `grid` also estimate the error that its grid makes, by solving again on every other node; raises
        ValueError where the grid cannot be halved (see :meth:`Grid.coarsened`).
        """
        from .certificate import certify  # which reads observables off a Solution

        return certify(self, grid=grid)

    def richardson(self, quantity: Callable[["Solution"], Tensor]) -> Extrapolated:
        r"""A quantity to fourth order in the spacing, and an estimate of the error it has in this solution.

        The scheme is of second order with an error in even powers of the spacing, so that from the solution
        on every other node, :math:`q_{2h}`, the limit is :math:`(4 q_h - q_{2h})/3`. Errors of time steps
        stay. Differentiable.

        Arguments:
            quantity: An observable, such as `pnp.diffuse_charge`; of one with a node axis the even nodes count.

        Raises:
            ValueError: The grid cannot be halved, or the solution was taken out of a transient.
        """
        if self.again is None:
            raise ValueError("richardson: this solution is a part of another; ask the whole one.")
        fine, coarse = quantity(self), quantity(self.again(self.grid.coarsened()))
        if fine.shape != coarse.shape:
            fine = fine[..., ::2]
        value = (4 * fine - coarse) / 3
        return Extrapolated(value, (value - fine).abs().detach())
