"""Sums and moments over all processes of a training; over the one there is, if it is alone."""

import os
from typing import Any

import torch
from torch import Tensor, distributed


def processes() -> int:
    """How many processes train together; 1 unless torch.distributed runs."""
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and prints: rank 0, by what torchrun says."""
    return int(os.environ.get("RANK", "0")) == 0


def total(values: Tensor) -> Tensor:
    """Sum of a tensor over the processes; its gradient reaches all of them."""
    if processes() == 1:
        return values
    summed: Tensor = _Total.apply(values)
    return summed


def gathered(values: Tensor, dim: int = 0) -> Tensor:
    """Tensors of all processes side by side, by rank; only along `dim` may their shapes differ.

    The gradient of what every process computes from it reaches the process that a part came from.
    """
    if processes() == 1:
        return values
    rank, lengths = distributed.get_rank(), torch.zeros(processes(), dtype=torch.int64, device=values.device)
    lengths[rank] = values.shape[dim]
    before, _, after = total(lengths).tensor_split([rank, rank + 1])
    sides = [list(values.shape), list(values.shape)]
    for shape, part in zip(sides, (before, after), strict=True):
        shape[dim] = int(part.sum())
    # Zeros where the others have theirs, so that the sum is all of them.
    return total(torch.cat([values.new_zeros(sides[0]), values, values.new_zeros(sides[1])], dim=dim))


def moments(values: Tensor, counted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Number, mean and variance (not corrected) of the rows that count, over all processes.

    By sums over all rows instead of a choice among them, whose number a compiled graph could not know.

    Arguments:
        values: `(N, l)`; a row that does not count is finite.
        counted: `(N,)` of booleans.

    Returns:
        A scalar, `(l,)` and `(l,)`; mean and variance are zero if no row counts.
    """
    weight = counted.to(values).unsqueeze(-1)
    count = total(weight.sum())
    mean = total((weight * values).sum(dim=0)) / count.clamp(min=1)
    return count, mean, total((weight * (values - mean).square()).sum(dim=0)) / count.clamp(min=1)


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        summed = values.clone()
        distributed.all_reduce(summed)
        return summed

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        summed = gradients[0].clone()
        distributed.all_reduce(summed)
        return summed
