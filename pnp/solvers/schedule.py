"""When a transient has to stop, and what the ends of the cell impose at any moment."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ..boundaries import Electrode
from ..cell import Cell
from ..scaling import Flattener, Scales, end_level
from ..system import Batched, System
from ..waveforms import Waveform

SAME_TIME = 1e-12
"""Relative difference of two times that are the same moment."""


@dataclass(frozen=True, eq=False)
class Stops(Batched):
    """The times `(B, M)` a batch steps onto, in order; infinite where an element has fewer.

    `output` is the index of the requested time that a stop is, or -1; `broken` whether a waveform jumps or
    bends there.
    """

    times: Tensor
    output: Tensor
    broken: Tensor


@dataclass(frozen=True, eq=False)
class Schedule:
    """Imposed potentials and currents of a cell as functions of scaled time."""

    cell: Cell
    scales: Scales
    constant: Tensor  # (B, 2), scaled levels at time zero

    @classmethod
    def of(cls, cell: Cell, system: System, scales: Scales) -> "Schedule":
        """The schedule of a cell."""
        return cls(cell, scales, system.levels)

    def select(self, elements: Tensor) -> "Schedule":
        """The schedule of some elements of a cell in which nothing depends on time."""
        return Schedule(self.cell, self.scales.select(elements), self.constant[elements])

    @property
    def varies(self) -> bool:
        """Whether anything imposed depends on time."""
        return any(isinstance(_signal(end), Waveform) for end in (self.cell.left, self.cell.right))

    def levels(self, elements: Tensor, time: Tensor, within: Tensor) -> Tensor:
        """Scaled levels `(b, 2)` of some elements at their times `(b,)`, on the pieces that hold `within`."""
        columns = []
        for side, end in enumerate((self.cell.left, self.cell.right)):
            signal = _signal(end)
            if not isinstance(signal, Waveform):
                columns.append(self.constant[elements, side])
                continue
            moments = [self._user(elements, moment) for moment in (time, within)]
            flat = Flattener(self.cell, self.scales.batch_shape)
            value = end_level(end, self.scales, flat, signal(*moments).to(self.cell.device))
            columns.append(value[elements])
        return torch.stack(columns, dim=-1)

    def _user(self, elements: Tensor, time: Tensor) -> Tensor:
        """Times of some elements in the user's units and batch shape; the others stand at zero."""
        unit = self.scales.time.detach()
        full = torch.zeros_like(unit).index_copy(0, elements, time)
        return (full * unit).reshape(self.scales.batch_shape)

    def stops(self, outputs: Tensor) -> Stops:
        """The requested times `(B, T)` and, before the last of them, the breaks of the waveforms."""
        batch, count = outputs.shape
        last = outputs[:, -1:]
        breaks = self._breaks()
        index = torch.arange(count, device=outputs.device).expand(batch, count)
        same = (breaks[:, :, None] - outputs[:, None, :]).abs() <= SAME_TIME * last[:, :, None]
        broken_output = same.any(1) & (outputs > 0)
        drop = same.any(2) | (breaks <= 0) | (breaks >= last)
        extra = torch.where(drop, torch.inf, breaks)
        times = torch.cat([outputs, extra], dim=1)
        output = torch.cat([index, torch.full_like(breaks, -1, dtype=torch.int64)], dim=1)
        broken = torch.cat([broken_output, torch.ones_like(drop)], dim=1)
        times, order = times.sort(dim=1, stable=True)
        return Stops(times, output.gather(1, order), broken.gather(1, order))

    def _breaks(self) -> Tensor:
        """Scaled breaks of both ends, `(B, K)`."""
        unit = self.scales.time.detach()
        found = [unit.new_empty(unit.shape[0], 0)]
        for end in (self.cell.left, self.cell.right):
            signal = _signal(end)
            if isinstance(signal, Waveform) and signal.breaks.shape[-1]:
                breaks = Flattener(self.cell, self.scales.batch_shape)(signal.breaks.detach(), 1)
                found.append(breaks / unit[:, None])
        merged = torch.cat(found, dim=1).sort(dim=1).values
        twice = merged.diff(dim=1) <= SAME_TIME * merged[:, 1:].abs()
        return torch.where(torch.nn.functional.pad(twice, (1, 0)), torch.inf, merged)


def _signal(end: object) -> object:
    if isinstance(end, Electrode) and end.current is not None:
        return end.current
    return getattr(end, "potential", None)
