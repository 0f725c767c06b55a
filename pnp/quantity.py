"""Turns a number of the user's into a checked float64 tensor."""

from typing import Annotated, Any

import torch
from torch import Tensor

Quantity = Annotated[Any, "Quantity"]
"""A number, a sequence of numbers or a tensor with leading batch axes, before it is checked; a float64
tensor after. (Typed loosely because a dataclass field has one type for what it takes and what it holds.)"""


def as_quantity(
    value: Any,
    name: str,
    *,
    above: float | None = None,
    at_least: float | None = None,
) -> Tensor:
    """Return `value` as a finite float64 tensor that keeps its device and its gradient.

    Raises:
        TypeError: `value` is not numeric (or is complex).
        ValueError: `value` is not finite, or not above / at least the bound; the text names the
            argument, the offending value and the accepted range.
    """
    try:
        tensor = value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a number or a tensor of numbers, got {value!r}.") from error
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise TypeError(f"{name} must be real numbers, got a tensor of {tensor.dtype}.")
    tensor = tensor.to(torch.float64)
    _check(tensor, torch.isfinite(tensor), name, "a finite number")
    if above is not None:
        _check(tensor, tensor > above, name, f"above {above:g}")
    if at_least is not None:
        _check(tensor, tensor >= at_least, name, f"at least {at_least:g}")
    return tensor


def _check(tensor: Tensor, accepted: Tensor, name: str, wanted: str) -> None:
    if not bool(accepted.all()):
        offending = tensor.detach()[~accepted].reshape(-1)[0].item()
        raise ValueError(f"{name} must be {wanted}, got {offending:g}.")


def broadcast_batch(**shapes: torch.Size | tuple[int, ...]) -> torch.Size:
    """Broadcast named batch shapes, or say which of them do not fit together."""
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError as error:
        listed = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items() if len(shape))
        raise ValueError(f"batch axes do not broadcast: {listed}.") from error
