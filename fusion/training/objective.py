"""The loss of a training step: all modalities, a random subset of them, and each one alone."""

import torch
from torch import Tensor, nn

from ..distributed import gathered, processes, total
from ..layers.presence import Presence, everywhere, only, random_subsets, zero_absent
from ..model import FusionModel, Prediction
from .batch import Batch
from .contrast import contrastive_loss
from .recipe import Recipe
from .task import Task

IGNORED = -100
"""The class of samples that torch's cross entropy leaves out."""


class Step(nn.Module):
    """The loss of a step as one forward pass, which is what processes can share."""

    def __init__(self, model: FusionModel, task: Task, recipe: Recipe) -> None:
        super().__init__()
        self.model, self.task, self.recipe = model, task, recipe

    def forward(
        self,
        batch: Batch,
        label: Tensor,
        subsets: Presence | None,
        unlabelled: Batch | None = None,
        their_subsets: Presence | None = None,
    ) -> Tensor:
        """The arguments are those of :func:`step_loss`; samples for the loss without labels, and their subsets."""
        with torch.autocast(label.device.type, torch.bfloat16, enabled=self.recipe.mixed_precision):
            loss = step_loss(self.model, batch, label, self.task, self.recipe, subsets)[0]
            if unlabelled is not None:
                guessed = guesses(self.model, unlabelled, self.task, self.recipe.confidence)
                taught = step_loss(self.model, unlabelled, guessed, self.task, self.recipe, their_subsets)[0]
                loss = loss + self.recipe.unlabelled_weight * taught
            return loss


@torch.no_grad()
def guesses(model: FusionModel, batch: Batch, task: Task, confidence: float) -> Tensor:
    """What a model says with all that samples have, as labels `(N,)`; classes of low probability are IGNORED."""
    model.eval()
    logits = model(*batch).logits
    model.train()
    guessed = task.decide(logits)
    if task.classifies:
        unsure = logits.softmax(dim=-1).amax(dim=-1) < confidence
        guessed = guessed.masked_fill(unsure, IGNORED)
    return guessed


def step_loss(
    model: FusionModel,
    batch: Batch,
    label: Tensor,
    task: Task,
    recipe: Recipe,
    subsets: Presence | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss that :class:`Recipe` defines on a batch, and the logits with all that is present.

    A sample that lacks a modality never counts as having it: a subset that would leave it nothing is replaced
    by all it has, and it has no part in the loss of that modality alone. Where several processes train, each
    gives its samples the weight that makes the mean over processes the mean over all samples.

    Arguments:
        batch: What the model takes, which modalities the samples have, and how long sequences are.
        label: `(N,)`.
        subsets: `{name: (N,)}`, the random subsets; None: drawn here, where the recipe wants them.

    Returns:
        A scalar and `(N, outputs)`.
    """
    names = list(model.layer.dims)
    have = everywhere(names, label.shape, label.device) | batch.present
    encoded = batch._replace(features=model.encode(*batch))
    whole = model.decide(*encoded)
    if task.kind == "retrieval":
        embeddings = _under(_each_alone(have), model, encoded).logits
        loss = _contrast(model, embeddings, label, have, recipe)
    else:
        loss = _task_loss(model, encoded, whole, label, task, recipe, have, subsets)
    if whole.losses:
        # A mean over this process's samples; the factor is 1 where there is one process.
        samples = total(torch.tensor(float(len(label)), device=label.device)) / processes()
        own = torch.stack(list(whole.losses.values())).sum() * (len(label) / samples)
        loss = loss + recipe.reconstruction_weight * own
    return loss, whole.logits


def _contrast(
    model: FusionModel, embeddings: Tensor, label: Tensor, have: Presence, recipe: Recipe
) -> Tensor:
    present = torch.stack(list(have.values()))
    if model.training:  # with the samples of all processes; in validation each process has them all
        embeddings, label = gathered(embeddings, dim=1), gathered(label)
        present = gathered(present.long(), dim=1).bool()
    return contrastive_loss(embeddings, label, present, recipe.temperature)


def _task_loss(
    model: FusionModel,
    encoded: Batch,
    whole: Prediction,
    label: Tensor,
    task: Task,
    recipe: Recipe,
    have: Presence,
    subsets: Presence | None,
) -> Tensor:
    everyone = torch.ones_like(label, dtype=torch.bool)
    errors = [_errors(model, whole, label, task)] if recipe.all_present else []
    weights, counted, patterns = [1.0] * len(errors), [everyone] * len(errors), []
    if recipe.random_subsets:
        drawn = random_subsets(list(have), len(label), label.device) if subsets is None else subsets
        patterns.append(_within(drawn, have))
        counted.append(everyone)
        weights = [0.5, 0.5] if weights else [1.0]
    if recipe.each_alone:
        patterns += _each_alone(have)
        counted += have.values()
        weights += [1 / len(have)] * len(have)
    if patterns:
        errors += _errors(model, _under(patterns, model, encoded), label, task).unbind()
    means = [_mean(error, rows) for error, rows in zip(errors, counted, strict=True)]
    return torch.stack([weight * mean for weight, mean in zip(weights, means, strict=True)]).sum()


def _errors(model: FusionModel, said: Prediction, label: Tensor, task: Task) -> Tensor:
    """Of each sample `(*batch, N)`: of what is decided, and in training the mean of those of all votes."""
    votes = said.votes if model.training else said.logits.unsqueeze(0)
    labels = label.expand(votes.shape[:-1])
    return task.errors(votes.flatten(end_dim=-2), labels.flatten()).reshape(labels.shape).mean(dim=0)


def _under(patterns: list[Presence], model: FusionModel, encoded: Batch) -> Prediction:
    """Logits `(P, N, outputs)` under P patterns of presence, in one pass with the patterns as leading axis."""
    present = {name: torch.stack([pattern[name] for pattern in patterns]) for name in encoded.features}
    features, lengths = (
        {name: values.expand(len(patterns), *values.shape) for name, values in part.items()}
        for part in (encoded.features, encoded.lengths)
    )
    return model.decide(features, present, lengths)


def _within(pattern: Presence, have: Presence) -> Presence:
    """What of a pattern the samples have; all they have where that would be nothing."""
    both = {name: pattern[name] & have[name] for name in have}
    some = torch.stack(list(both.values())).any(dim=0)
    return {name: torch.where(some, both[name], have[name]) for name in have}


def _each_alone(have: Presence) -> list[Presence]:
    """One pattern a modality; samples that lack it keep what they have, so that none is empty."""
    first = next(iter(have.values()))
    return [_within(only(name, list(have), first.shape, first.device), have) for name in have]


def _mean(errors: Tensor, counted: Tensor) -> Tensor:
    """Mean over the samples that count; over processes, their mean of it is the mean over all samples."""
    count = total(counted.sum().to(errors)) / processes()
    return zero_absent(errors, counted).sum() / count.clamp(min=1 / processes())
