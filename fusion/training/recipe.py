"""How a model is trained: every setting, with the defaults that this project's results use."""

import math
from dataclasses import dataclass
from typing import Any

OPTIMISERS = ("adamw", "sgd")
SCHEDULES = ("constant", "cosine", "plateau")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    r"""Settings of :func:`train`.

    Three of them decide more than the choice of the fusion layer does: `standardise`, `random_subsets` and
    `each_alone`. The loss of a step is, with all three parts on,

    .. math::
        L = \tfrac12 L_\mathrm{all} + \tfrac12 L_\mathrm{subset} + \frac1M \sum_m L_{\mathrm{only}\;m}
            + w \sum_k R_k

    where :math:`L_\mathrm{all}` is the task's loss with all modalities, :math:`L_\mathrm{subset}` with a
    random subset for each sample (of a size uniform in 1 ... M − 1), :math:`L_{\mathrm{only}\;m}` with
    modality *m* alone, and :math:`R_k` are the layer's own losses with all modalities present.

    Attributes:
        epochs: Passes over the training samples.
        batch_size: Upper bound; an epoch is cut into batches of nearly equal size, so that none is tiny.
        optimiser: `adamw` or `sgd` (without momentum).
        learning_rate: At the start.
        weight_decay: Of the optimiser.
        schedule: `cosine` (falls to zero over the epochs), `constant`, or `plateau` (a tenth whenever the
            validation loss has not improved for 3 epochs).
        standardise: Scale each modality by running statistics before the layer.
        random_subsets: Include :math:`L_\mathrm{subset}`; without it :math:`L_\mathrm{all}` counts fully.
        each_alone: Include the mean of :math:`L_{\mathrm{only}\;m}`.
        reconstruction_weight: *w*.
        hidden: Width of the head's hidden layer; None: a linear head.
        dropout: In the head.
        keep: `last` keeps the weights of the last epoch, `best` those of the epoch with the lowest
            validation loss (the last if there are no validation samples).

    Raises:
        ValueError: A setting out of range.
    """

    epochs: int = 25
    batch_size: int = 64
    optimiser: str = "adamw"
    learning_rate: float = 5e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    standardise: bool = True
    random_subsets: bool = True
    each_alone: bool = True
    reconstruction_weight: float = 1.0
    hidden: int | None = 128
    dropout: float = 0.2
    keep: str = "last"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}.")
        for name in ("weight_decay", "reconstruction_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}.")
        choices = {"optimiser": OPTIMISERS, "schedule": SCHEDULES, "keep": ("last", "best")}
        for name, accepted in choices.items():
            if getattr(self, name) not in accepted:
                raise ValueError(f"{name} must be one of {', '.join(accepted)}, got {getattr(self, name)!r}.")

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


DEFAULT = Recipe()
"""The recipe used where none is given."""
