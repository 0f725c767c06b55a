"""What a model is given of some samples."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..data.features import Features
from ..layers.presence import Presence

CHUNK = 1024
"""Steps of the longest modality that go through a model at once where nothing is learnt."""


class Batch(NamedTuple):
    """The arguments of a :class:`FusionModel`, in their order.

    Attributes:
        features: `{name: (N, l)}`, `(N, T, l)` of a sequence.
        present: `{name: (N,)}`; modalities not named are there in every sample.
        lengths: `{name: (N,)}` of every sequence.
    """

    features: dict[str, Tensor]
    present: Presence
    lengths: dict[str, Tensor]


def batch_of(features: Features, rows: Tensor, like: Tensor) -> Batch:
    """The samples numbered `rows`, in the dtype and on the device of a tensor.

    Sequences end with the last valid step among them.
    """
    modalities = {name: values[rows] for name, values in features.modalities.items()}
    present = {name: values[rows].to(like.device) for name, values in features.present.items()}
    lengths = {name: steps[rows] for name, steps in features.steps.items()}
    for name, steps in lengths.items():
        modalities[name] = modalities[name][:, : int(steps.max())]
    return Batch(
        {name: values.to(like) for name, values in modalities.items()},
        present,
        {name: steps.to(like.device) for name, steps in lengths.items()},
    )


def chunks(features: Features, at_least: int) -> tuple[Tensor, ...]:
    """The numbers of all samples, as many at once as have CHUNK steps together, or `at_least`."""
    longest = max([1, *(int(steps.max()) for steps in features.steps.values())])
    return torch.arange(len(features), device=features.device).split(max(at_least, CHUNK // longest))
