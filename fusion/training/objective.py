"""The loss of a training step: all modalities, a random subset of them, and each one alone."""

import torch
from torch import Tensor

from ..layers.presence import Presence, only, random_subsets
from ..model import FusionModel
from .recipe import Recipe
from .task import Task


def step_loss(
    model: FusionModel, features: dict[str, Tensor], label: Tensor, task: Task, recipe: Recipe
) -> tuple[Tensor, Tensor]:
    """The loss that :class:`Recipe` defines on a batch, and the logits with all modalities present.

    Arguments:
        features: `{name: (N, l)}`, or what the model's encoders take.
        label: `(N,)`.

    Returns:
        A scalar and `(N, outputs)`.
    """
    encoded = model.encode(features)
    whole = model.decide(encoded)
    loss = task.loss(whole.logits, label)
    names = list(model.layer.dims)
    subsets = [random_subsets(names, len(label), label.device)] if recipe.random_subsets else []
    alone = [only(name, names, label.shape, label.device) for name in names] if recipe.each_alone else []
    incomplete = _losses_under(subsets + alone, model, encoded, label, task)
    if subsets:
        loss = (loss + incomplete[0]) / 2
    if alone:
        loss = loss + torch.stack(incomplete[-len(alone) :]).mean()
    if whole.losses:
        loss = loss + recipe.reconstruction_weight * torch.stack(list(whole.losses.values())).sum()
    return loss, whole.logits


def _losses_under(
    patterns: list[Presence], model: FusionModel, encoded: dict[str, Tensor], label: Tensor, task: Task
) -> list[Tensor]:
    """The task's loss under each pattern of presence, in one pass with the patterns as a leading axis."""
    if not patterns:
        return []
    present = {name: torch.stack([pattern[name] for pattern in patterns]) for name in encoded}
    repeated = {name: values.expand(len(patterns), *values.shape) for name, values in encoded.items()}
    return [task.loss(logits, label) for logits in model.decide(repeated, present).logits]
