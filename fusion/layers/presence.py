"""Which modality is present in which sample, and what follows from it.

A pattern of presence is a dictionary of boolean tensors, one a modality, with the batch axes of the features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Presence = dict[str, Tensor]
"""Modality name → boolean tensor `(*batch)`, true where the modality is present."""


def everywhere(names: Sequence[str], batch: Sequence[int], device: torch.device) -> Presence:
    """Every modality in every sample."""
    return {name: torch.ones(tuple(batch), dtype=torch.bool, device=device) for name in names}


def only(alone: str, names: Sequence[str], batch: Sequence[int], device: torch.device) -> Presence:
    """One modality, in every sample."""
    return {name: torch.full(tuple(batch), name == alone, dtype=torch.bool, device=device) for name in names}


def random_subsets(names: Sequence[str], samples: int, device: torch.device) -> Presence:
    """A random proper subset of the modalities for each sample, from torch's global generator.

    The size is uniform in 1 ... M − 1, and given its size every subset is equally likely. A single modality
    has no proper subset and is always there.
    """
    size = torch.randint(1, max(len(names), 2), (samples, 1))
    rank = torch.rand(samples, len(names)).argsort(-1).argsort(-1)
    present = (rank < size).to(device)
    return dict(zip(names, present.unbind(-1), strict=True))


def zero_absent(values: Tensor, present: Tensor) -> Tensor:
    """`values` with shape `(*batch, ...)`, zero where `present`, with shape `(*batch)`, is false.

    Not a product: an absent sample may hold NaN, and neither the result nor a gradient may see it.
    """
    trailing = (1,) * (values.ndim - present.ndim)
    return torch.where(present.reshape(present.shape + trailing), values, torch.zeros_like(values))


def mean_over_present(values: Tensor, present: Tensor) -> Tensor:
    """Mean of `values`, with shape `(*batch)`, over the samples that are present; zero if none is."""
    return zero_absent(values, present).sum() / present.sum().clamp(min=1)


def valid_steps(length: Tensor, steps: int) -> Tensor:
    """`(*batch, steps)`, true for the first `length`, `(*batch)`, of the steps."""
    return torch.arange(steps, device=length.device) < length.unsqueeze(-1)


def mean_of_valid(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over steps of `values`, `(*batch, T, l)`, where `valid`, `(*batch, T)`; zero if no step is."""
    count = valid.sum(dim=-1, keepdim=True).clamp(min=1)
    return zero_absent(values, valid).sum(dim=-2) / count


def values_may_decide() -> bool:
    """Whether the numbers in a tensor may decide what is done next: not where that would break a graph."""
    return not torch.compiler.is_compiling()
