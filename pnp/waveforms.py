r"""What an electrode is made to do in time: steps, ramps, cycles and sines.

A waveform is a function of time that knows its jumps and kinks, so that a transient can land on them, and
its extremes, so that a grid can resolve what it will do.
"""

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from .quantity import Quantity, as_quantity, broadcast_batch

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Waveform:
    r"""A potential [V] or current density [A m⁻²] that depends on time.

    Arguments:
        function: Takes a time [s] and a moment `within` the piece that is meant, both `(*batch)`, and returns
            the value `(*batch)`, smooth on every piece. At a jump `within` says on which side; a function
            without breaks ignores it.
        low, high: Smallest and largest value it takes; the default grid resolves them.
        breaks: Times of its jumps and kinks, `(*batch, break)`.

    Raises:
        ValueError: `low` above `high`, or numbers that are not finite.

    Example:
        >>> import pnp
        >>> import torch
        >>> decay = pnp.Waveform(lambda time, within: 0.1 * torch.exp(-time / 1e-3), low=0.0, high=0.1)
        >>> f"{float(decay(1e-3)):.4f} V, {float(decay.rate(torch.tensor(1e-3))):.1f} V/s"
        '0.0368 V, -36.8 V/s'
    """

    function: Function
    _: KW_ONLY
    low: Quantity
    high: Quantity
    breaks: Quantity = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        for name in ("low", "high"):
            put(self, name, as_quantity(getattr(self, name), f"Waveform: {name}"))
        breaks = as_quantity(self.breaks, "Waveform: breaks")
        put(self, "breaks", breaks if breaks.dim() else breaks.unsqueeze(0))
        if bool((self.low > self.high).any()):
            raise ValueError("Waveform: low must not exceed high.")

    def __call__(self, time: Quantity, within: Quantity | None = None) -> Tensor:
        """Value at `time` on the piece that holds the moment `within` (default: `time`), `(*batch)`."""
        time = as_quantity(time, "Waveform: time")
        within = time if within is None else as_quantity(within, "Waveform: within")
        return self.function(time, within)

    def rate(self, time: Tensor) -> Tensor:
        """Derivative in time, that of the piece which begins at a break, `(*batch)`; differentiable."""
        with torch.enable_grad():
            moment = time.detach().clone().requires_grad_()
            value = self.function(moment, moment.detach())
            if not value.requires_grad:
                return torch.zeros_like(value)
            traced = self.function(moment.detach(), moment.detach()).requires_grad
            total = torch.ones_like(value)
            (slope,) = torch.autograd.grad(value, moment, total, create_graph=True, allow_unused=True)
        if slope is None:
            return torch.zeros_like(value)
        return slope if traced and torch.is_grad_enabled() else slope.detach()

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes of the numbers inside."""
        return broadcast_batch(low=self.low.shape, high=self.high.shape, breaks=self.breaks.shape[:-1])


def step(before: Quantity, after: Quantity, *, at: Quantity) -> Waveform:
    """Jump from `before` to `after` at the time `at` [s], each `(*batch)`.

    Example:
        >>> import pnp
        >>> switched = pnp.step(0.0, 0.1, at=1e-3)
        >>> [float(switched(t)) for t in (0.0, 0.9e-3, 1e-3)]
        [0.0, 0.0, 0.1]
    """
    before, after = as_quantity(before, "step: before"), as_quantity(after, "step: after")
    at = as_quantity(at, "step: at", at_least=0.0)

    def function(time: Tensor, within: Tensor) -> Tensor:
        return torch.where(within >= at, after, before) + torch.zeros_like(time)

    return _between(function, torch.stack(torch.broadcast_tensors(before, after), -1), at.unsqueeze(-1))


def piecewise_linear(times: Quantity, values: Quantity) -> Waveform:
    """Straight lines through `values` `(*batch, point)` at increasing `times` [s] `(*batch, point)`.

    Constant before the first and after the last point. Raises ValueError for times that do not increase.

    Example:
        >>> import pnp
        >>> hold = pnp.piecewise_linear([0.0, 1.0, 2.0, 3.0], [0.0, 0.1, 0.1, 0.0])
        >>> [round(float(hold(t)), 3) for t in (0.5, 1.5, 2.5)]
        [0.05, 0.1, 0.05]
    """
    times, values = torch.broadcast_tensors(
        as_quantity(times, "piecewise_linear: times"), as_quantity(values, "piecewise_linear: values")
    )
    if times.dim() == 0 or times.shape[-1] < 2 or bool((times.diff(dim=-1) <= 0).any()):
        raise ValueError("piecewise_linear: times must be at least two, and increase along the last axis.")
    slopes = values.diff(dim=-1) / times.diff(dim=-1)

    def function(time: Tensor, within: Tensor) -> Tensor:
        time, within = time.unsqueeze(-1), within.unsqueeze(-1)
        start, end = times[..., :-1], times[..., 1:]
        inside = (within >= start) & (within < end)
        line = torch.where(inside, values[..., :-1] + slopes * (time - start), 0.0).sum(-1)
        first = torch.where(within < times[..., :1], values[..., :1], 0.0)
        last = torch.where(within >= times[..., -1:], values[..., -1:], 0.0)
        return line + (first + last).squeeze(-1)

    return _between(function, values, times)


def ramp(start: Quantity, end: Quantity, *, duration: Quantity) -> Waveform:
    """A straight line from `start` at time 0 to `end` after `duration` [s], constant from then on.

    Example:
        >>> import pnp
        >>> slow = pnp.ramp(0.0, 0.1, duration=2.0)
        >>> [float(slow(t)) for t in (0.0, 1.0, 3.0)]
        [0.0, 0.05, 0.1]
    """
    duration = as_quantity(duration, "ramp: duration", above=0.0)
    start, end, duration = torch.broadcast_tensors(
        as_quantity(start, "ramp: start"), as_quantity(end, "ramp: end"), duration
    )
    return piecewise_linear(
        torch.stack([torch.zeros_like(duration), duration], -1), torch.stack([start, end], -1)
    )


def triangle(start: Quantity, vertex: Quantity, *, rate: Quantity, cycles: int = 1) -> Waveform:
    """Cyclic voltammetry: from `start` to `vertex` and back at a scan rate > 0 [V s⁻¹], `cycles` times.

    Raises ValueError when `rate` is not positive, `start` equals `vertex` or `cycles` is below one.

    Example:
        >>> import pnp
        >>> cyclic = pnp.triangle(start=0.0, vertex=-0.2, rate=20.0)  # 10 ms down, 10 ms up
        >>> [round(float(cyclic(t)), 3) for t in (0.0, 0.005, 0.01, 0.015)]
        [0.0, -0.1, -0.2, -0.1]
    """
    rate = as_quantity(rate, "triangle: rate", above=0.0)
    start, vertex = as_quantity(start, "triangle: start"), as_quantity(vertex, "triangle: vertex")
    if not isinstance(cycles, int) or cycles < 1:
        raise ValueError(f"triangle: cycles must be an integer of at least 1, got {cycles!r}.")
    if bool((start == vertex).any()):
        raise ValueError("triangle: vertex must differ from start.")
    start, vertex, leg = torch.broadcast_tensors(start, vertex, (vertex - start).abs() / rate)
    points = torch.arange(2 * cycles + 1, dtype=torch.float64, device=leg.device)
    odd = points % 2
    values = start.unsqueeze(-1) * (1 - odd) + vertex.unsqueeze(-1) * odd
    return piecewise_linear(leg.unsqueeze(-1) * points, values)


def sine(
    amplitude: Quantity, frequency: Quantity, *, offset: Quantity = 0.0, phase: Quantity = 0.0
) -> Waveform:
    """`offset + amplitude sin(2π frequency t + phase)`, with the frequency in Hz, each `(*batch)`.

    Example:
        >>> import pnp
        >>> wave = pnp.sine(0.05, 100.0, offset=0.1)
        >>> [round(float(wave(t)), 3) for t in (0.0, 0.0025, 0.0075)]
        [0.1, 0.15, 0.05]
    """
    amplitude, offset = as_quantity(amplitude, "sine: amplitude"), as_quantity(offset, "sine: offset")
    frequency = as_quantity(frequency, "sine: frequency", above=0.0)
    phase = as_quantity(phase, "sine: phase")

    def function(time: Tensor, within: Tensor) -> Tensor:
        return offset + amplitude * torch.sin(2 * math.pi * frequency * time + phase)

    shape = broadcast_batch(frequency=frequency.shape, phase=phase.shape)
    reach = amplitude.abs().detach().expand(torch.broadcast_shapes(shape, amplitude.shape))
    return Waveform(function, low=(offset - reach).detach(), high=(offset + reach).detach())


def _between(function: Function, values: Tensor, breaks: Tensor) -> Waveform:
    """A waveform whose extremes are among its values at the breaks `(*batch, point)`."""
    extremes = values.detach()
    return Waveform(function, low=extremes.amin(-1), high=extremes.amax(-1), breaks=breaks.detach())


Signal = Quantity | Waveform
"""A number `(*batch)`, or a :class:`Waveform`."""


def as_signal(value: Signal, name: str) -> Signal:
    """A checked number, or the waveform itself; TypeError for a bare function."""
    if isinstance(value, Waveform):
        return value
    if callable(value):
        raise TypeError(
            f"{name} must be a number or a pnp.Waveform, got a function; say what it does: "
            "pnp.Waveform(lambda time, within: ..., low=..., high=..., breaks=[...])."
        )
    return as_quantity(value, name)


def at_start(signal: Signal) -> Tensor:
    """The number, or the value of a waveform at time zero."""
    if isinstance(signal, Waveform):
        return signal(torch.zeros(signal.batch_shape, dtype=torch.float64, device=signal.low.device))
    return signal


def extremes(signal: Signal) -> tuple[Tensor, Tensor]:
    """Smallest and largest value."""
    if isinstance(signal, Waveform):
        return signal.low, signal.high
    return signal.detach(), signal.detach()
