"""What may watch a training."""

from typing import Protocol

from ..data.features import Features
from ..model import FusionModel


class Callback(Protocol):
    """Anything with a method `on_epoch`, given to :func:`~fusion.training.loop.train` as one of its `callbacks`.

    It is called in the main process: before the first step, after every epoch once its checkpoint is written, and, when
    a training that was interrupted is taken up again, with the epoch that the checkpoint is of. A callback that keeps
    something on disk therefore misses no epoch if it replaces what it has of that epoch and of later ones.

    Example:
        >>> import fusion
        >>> class Watch:
        ...     def on_epoch(self, epoch, model, features):
        ...         print(epoch, len(features))
        ...
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> _ = fusion.train("sum", data, recipe=fusion.Recipe(epochs=1), callbacks=[Watch()], progress=False)
        0 300
        1 300
    """

    def on_epoch(self, epoch: int, model: FusionModel, features: Features) -> None:
        """Look at a model in evaluation mode.

        Arguments:
            epoch: How many are finished; 0 before the first.
            model: What is trained; whoever changes it changes the training.
            features: The training samples.
        """
