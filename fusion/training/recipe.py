"""How a model is trained: every setting, with the defaults that this project's results use."""

import math
from dataclasses import dataclass
from numbers import Integral
from typing import Any

OPTIMISERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "plateau")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    r"""Settings of :func:`train`.

    Three of them decide more than the choice of the fusion layer does: `standardise`, `random_subsets`
    (modality dropout) and `each_alone`. The loss of a step is, with all parts on,

    .. math::
        L = \tfrac12 L_\mathrm{all} + \tfrac12 L_\mathrm{subset} + \frac1M \sum_m L_{\mathrm{only}\;m}
            + w \sum_k R_k

    where :math:`L_\mathrm{all}` is the task's loss with all modalities, :math:`L_\mathrm{subset}` with a
    random subset for each sample (of a size uniform in 1 ... M − 1), :math:`L_{\mathrm{only}\;m}` with
    modality *m* alone, and :math:`R_k` are the layer's own losses with all modalities present. Retrieval has
    a contrastive loss between the modalities, each alone, in the place of the first three.

    Where there are samples without labels, a step adds :math:`u` times the same loss on some of them, with what the
    model says of each with all it has, dropout off, in the place of a label; a class counts from a probability of
    `confidence` on. That is FixMatch with missing modalities for its strong augmentation.

    Attributes:
        epochs: Passes over the training samples, at most.
        batch_size: Upper bound in each process; an epoch is cut into batches of nearly equal size, so that
            none is tiny.
        optimiser: `adamw` or `sgd` (without momentum).
        learning_rate: At the start.
        weight_decay: Of the optimiser.
        schedule: `cosine` (falls to zero over the epochs), `constant`, or `plateau` (a tenth whenever the
            validation loss has not improved for 3 epochs).
        warm_up: Epochs over which the learning rate of the schedule is multiplied by a factor that rises
            linearly, step by step, to 1; 0: none.
        patience: Stop when the validation loss has not improved for so many epochs; None: never.
        clip: Largest norm of the gradient of all parameters; a longer one is scaled down. None: no limit.
        mixed_precision: Forward passes of training in bfloat16 where torch's autocast thinks it safe.
        standardise: Scale each modality by running statistics before the layer.
        all_present: Include :math:`L_\mathrm{all}`; without it :math:`L_\mathrm{subset}` counts fully.
        random_subsets: Include :math:`L_\mathrm{subset}`; without it :math:`L_\mathrm{all}` counts fully.
        each_alone: Include the mean of :math:`L_{\mathrm{only}\;m}`.
        reconstruction_weight: *w*.
        temperature: Of the contrastive loss.
        unlabelled_weight: *u*; 0: samples without labels are not learnt from.
        confidence: Least probability, 0 to 1, of a class that stands for a label.
        extractor: Width of the hidden layer of an extractor for each modality, trained through the fusion layer,
            with as many outputs as inputs: a :class:`~fusion.encoders.ResidualEncoder`, for a sequence a
            :class:`~fusion.encoders.RecurrentEncoder`, which gives its steps to layers of tokens and their mean to
            others; None: features are taken as they are.
        hidden: Width of the head's hidden layer; None: a linear head.
        dropout: In the head.
        keep: `last` keeps the weights of the last epoch, `best` those of the epoch with the lowest
            validation loss (the last if there are no validation samples).

    Raises:
        ValueError: A setting out of range.

    References:
        | K. Sohn et al., FixMatch: Simplifying Semi-Supervised Learning with Consistency and Confidence,
          arXiv:2001.07685 (2020)

    Example:
        >>> import fusion
        >>> quick = fusion.Recipe(epochs=3, extractor=64)
        >>> quick.epochs, fusion.Recipe.paper().optimiser, fusion.Recipe.modern().patience
        (3, 'sgd', 10)
    """

    epochs: int = 25
    batch_size: int = 64
    optimiser: str = "adamw"
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warm_up: int = 0
    patience: int | None = None
    clip: float | None = None
    mixed_precision: bool = False
    standardise: bool = True
    all_present: bool = True
    random_subsets: bool = True
    each_alone: bool = True
    reconstruction_weight: float = 1.0
    temperature: float = 0.1
    unlabelled_weight: float = 1.0
    confidence: float = 0.9
    extractor: int | None = None
    hidden: int | None = 128
    dropout: float = 0.2
    keep: str = "last"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "patience", "extractor", "hidden"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, Integral):
                raise ValueError(f"{name} must be a whole number, got {value!r}.")
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        for name in ("learning_rate", "clip", "temperature"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, got {value}.")
        for name in ("weight_decay", "reconstruction_weight", "warm_up", "unlabelled_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        if not 0 <= self.confidence <= 1:
            raise ValueError(f"confidence must be from 0 to 1, got {self.confidence}.")
        choices = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "keep": ("last", "best")}
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}.")
        if not (self.all_present or self.random_subsets or self.each_alone):
            raise ValueError(
                "one of all_present, random_subsets and each_alone must be on, or nothing is learnt."
            )

    @classmethod
    def paper(cls, **changes: Any) -> "Recipe":
        """The training of the GMF paper: all modalities always present, a linear head, plain SGD.

        Learning rate 0.01, batches of 64, 20 epochs, reduced on a plateau; `changes` override settings.

        References:
            | arXiv:2410.15475 v1 (2024), experiments
        """
        published: dict[str, Any] = {
            "epochs": 20,
            "batch_size": 64,
            "optimiser": "sgd",
            "learning_rate": 1e-2,
            "weight_decay": 0.0,
            "schedule": "plateau",
            "standardise": False,
            "random_subsets": False,
            "each_alone": False,
            "hidden": None,
            "dropout": 0.0,
        }
        return cls(**(published | changes))

    @classmethod
    def modern(cls, **changes: Any) -> "Recipe":
        """AdamW with warm-up, cosine, clipped gradients and early stopping, and every part of the loss.

        At most 60 epochs, of which 3 warm up; stops after 10 without improvement and keeps the best weights;
        `changes` override settings.

        References:
            | I. Loshchilov and F. Hutter, Decoupled Weight Decay Regularization, arXiv:1711.05101 (2017)
            | P. Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677 (2017), for the warm-up
        """
        settings: dict[str, Any] = {"epochs": 60, "warm_up": 3, "patience": 10, "clip": 1.0, "keep": "best"}
        return cls(**(settings | changes))


DEFAULT = Recipe()
"""The recipe used where none is given."""
