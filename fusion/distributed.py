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


def moments(rows: Tensor) -> tuple[int, Tensor, Tensor]:
    """Number, mean and variance (not corrected) of rows `(N, l)` over all processes.

    Mean and variance are zero if there is no row.
    """
    if processes() == 1:
        if len(rows) == 0:
            return 0, rows.new_zeros(rows.shape[1]), rows.new_zeros(rows.shape[1])
        variance, mean = torch.var_mean(rows, dim=0, correction=0)
        return len(rows), mean, variance
    count = int(total(torch.tensor(float(len(rows)), device=rows.device)))
    mean = total(rows.sum(dim=0)) / max(count, 1)
    return count, mean, total((rows - mean).square().sum(dim=0)) / max(count, 1)


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
