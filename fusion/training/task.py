"""What is predicted: one of several classes, a number, whether modalities agree, or which samples belong together."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..data.conflict import with_conflicts
from ..data.features import Features

TASKS = ("classification", "regression", "retrieval", "conflict")
EMBEDDING = 64
"""Length of the representations that retrieval compares."""


@dataclass(frozen=True)
class Task:
    r"""What a model is trained for, with what is needed to go between labels and its outputs.

    Attributes:
        kind: `classification`, `regression`, `retrieval` (find with one modality what belongs to it in
            another) or `conflict` (tell whether the modalities of a sample belong together).
        outputs: Numbers a model gives for each sample: K classes, 1, the length of an embedding, or 2.
        mean, scale: The training labels' mean and standard deviation; a regression is fitted to
            :math:`(y - \mathrm{mean}) / \mathrm{scale}` and reported in the units of the label.
    """

    kind: str
    outputs: int
    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, features: Features, kind: str | None = None) -> "Task":
        """The task that the labels pose, or `kind` on features that :func:`posed` has made ready for it.

        Mean and scale come from the training samples only.

        Raises:
            ValueError: No label, a single class, training labels that are all equal, or labels of another
                kind than the task's.
        """
        kind = kind or features.task
        if kind is None or features.label is None:
            raise ValueError("features have no label, so there is nothing to learn.")
        _check_kind(kind)
        if kind == "retrieval":
            return cls(kind, EMBEDDING)
        if kind == "regression":
            return cls._regression(features)
        if features.classes is None:
            raise ValueError(f"label must hold classes for {kind}, got floats.")
        if features.classes < 2:
            raise ValueError("label must hold two classes or more, got class 0 alone.")
        return cls(kind, features.classes)

    @classmethod
    def _regression(cls, features: Features) -> "Task":
        label = features.train.label
        assert label is not None  # the subset of labelled features
        scale = float(label.std(correction=0))
        if scale == 0:
            raise ValueError(
                f"label must vary between training samples, got {float(label[0])} in all of them."
            )
        return cls("regression", 1, float(label.mean()), scale)

    @property
    def classifies(self) -> bool:
        """Whether the outputs are logits of classes."""
        return self.kind in ("classification", "conflict")

    def errors(self, logits: Tensor, label: Tensor) -> Tensor:
        r"""Loss of each sample: cross entropy, or squared error on the standardised label; `(N,)`.

        Retrieval has no loss of single samples, see :func:`~fusion.training.contrast.contrastive_loss`.

        Arguments:
            logits: `(N, outputs)`.
            label: `(N,)`.
        """
        if self.classifies:
            return functional.cross_entropy(logits, label, reduction="none")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # bfloat16 has three digits
        return (logits.squeeze(-1) - ((label - self.mean) / self.scale).to(logits)).square()

    def decide(self, logits: Tensor) -> Tensor:
        """Predicted classes `(*batch)`, or numbers in the units of the label, from `(*batch, outputs)`.

        Retrieval decides nothing; its embeddings `(*batch, outputs)` come back with unit length.
        """
        if self.classifies:
            return logits.argmax(dim=-1)
        if self.kind == "retrieval":
            return functional.normalize(logits, dim=-1)
        return logits.squeeze(-1) * self.scale + self.mean

    def accuracy(self, logits: Tensor, label: Tensor) -> float | None:
        """Fraction of samples whose class is right; None unless there are classes."""
        if not self.classifies:
            return None
        return float((self.decide(logits) == label).to(torch.float64).mean())


def posed(features: Features, kind: str | None, seed: int) -> Features:
    """Features as a task takes them: with a split, and with labels that pose it.

    `conflict` replaces modalities and labels (see
    :func:`~fusion.data.conflict.with_conflicts`); `retrieval` takes samples of the same class as belonging
    together, or without labels each sample to itself alone; `regression` takes integers as numbers.

    Raises:
        ValueError: An unknown task, or labels that cannot pose it.
    """
    ready = features.with_split(seed)
    if kind is None:
        return ready
    _check_kind(kind)
    if kind == "conflict":
        return with_conflicts(ready, seed=seed)
    if kind == "regression" and ready.label is not None:
        return replace(ready, label=ready.label if ready.task == kind else ready.label.double())
    if kind == "retrieval":
        if ready.task == "regression":
            raise ValueError("label must hold classes for retrieval, or be left out; got floats.")
        each = torch.arange(len(ready), device=ready.device)
        return ready if ready.label is not None else replace(ready, label=each)
    return ready


def _check_kind(kind: str) -> None:
    if kind not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {kind!r}.")
