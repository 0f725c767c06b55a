"""What is predicted: one of several classes, or a number."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..data.features import Features


@dataclass(frozen=True)
class Task:
    r"""A classification or regression task, with what is needed to go between labels and a model's outputs.

    Attributes:
        kind: `classification` or `regression`.
        outputs: Numbers a model gives for each sample: K classes, or 1.
        mean, scale: The training labels' mean and standard deviation; a regression is fitted to
            :math:`(y - \mathrm{mean}) / \mathrm{scale}` and reported in the units of the label.
    """

    kind: str
    outputs: int
    mean: float = 0.0
    scale: float = 1.0

    @classmethod
    def of(cls, features: Features) -> "Task":
        """The task that the labels pose; mean and scale come from the training samples only.

        Raises:
            ValueError: No label, a single class, or training labels that are all equal.
        """
        if features.label is None:
            raise ValueError("features have no label, so there is nothing to learn.")
        if features.classes is not None:
            if features.classes < 2:
                raise ValueError("label must hold two classes or more, got class 0 alone.")
            return cls("classification", features.classes)
        label = features.train.label
        assert label is not None  # the subset of labelled features
        scale = float(label.std(correction=0))
        if scale == 0:
            raise ValueError(
                f"label must vary between training samples, got {float(label[0])} in all of them."
            )
        return cls("regression", 1, float(label.mean()), scale)

    def loss(self, logits: Tensor, label: Tensor) -> Tensor:
        r"""Mean loss over samples: cross entropy, or squared error on the standardised label.

        Arguments:
            logits: `(N, outputs)`.
            label: `(N,)`.
        """
        if self.kind == "classification":
            return functional.cross_entropy(logits, label)
        return functional.mse_loss(logits.squeeze(-1), ((label - self.mean) / self.scale).to(logits))

    def decide(self, logits: Tensor) -> Tensor:
        """Predicted classes `(*batch)`, or numbers in the units of the label, from `(*batch, outputs)`."""
        if self.kind == "classification":
            return logits.argmax(dim=-1)
        return logits.squeeze(-1) * self.scale + self.mean

    def accuracy(self, logits: Tensor, label: Tensor) -> float | None:
        """Fraction of samples whose class is right; None for a regression."""
        if self.kind == "regression":
            return None
        return float((self.decide(logits) == label).to(torch.float64).mean())
