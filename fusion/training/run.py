"""A trained model with all that is needed to use it, judge it and build it again."""

import json
from collections.abc import Container, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pnp.atomic import replacing

from ..data.features import Features
from ..encoders import RecurrentEncoder, ResidualEncoder
from ..extras import require
from ..layers.layer import FusionLayer
from ..layers.registry import LAYERS, find_layer
from ..model import FusionModel
from .batch import Batch, batch_of, chunks
from .recipe import Recipe
from .task import Task

WEIGHTS, DESCRIPTION = "model.safetensors", "run.json"


@dataclass(frozen=True)
class Epoch:
    """What an epoch of training came to.

    Attributes:
        epoch: 1 for the first.
        learning_rate: Of the last step.
        train_loss: Mean of the steps' losses.
        validation_loss: The same loss on the validation samples, without dropout and with the same random
            subsets in every epoch; None without validation samples.
        validation_accuracy: With all modalities present; None without validation samples or classes.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: float | None
    validation_accuracy: float | None


@dataclass(frozen=True, eq=False)
class Run:
    """The result of :func:`train`.

    Attributes:
        model: In evaluation mode.
        layer: Name of the fusion layer in the registry, or its class if it was given as an object.
        task: What is predicted.
        recipe, seed: How it was trained. The seed also made the split of features that have none.
        data: Fingerprint of the features it was trained on.
        sequences: The modalities that are sequences.
        history: One entry an epoch.
        kept: The epoch whose weights these are.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> run = fusion.train("sum", data, recipe=fusion.Recipe(epochs=2), progress=False)
        >>> tuple(run.logits(data).shape), [epoch.epoch for epoch in run.history]
        ((500, 4), [1, 2])
    """

    model: FusionModel
    layer: str
    task: Task
    recipe: Recipe
    seed: int
    data: str
    sequences: tuple[str, ...]
    history: list[Epoch]
    kept: int

    @property
    def dims(self) -> dict[str, int]:
        """Modality name → length, in the order of the layer."""
        return self.model.layer.dims

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, the head included."""
        return sum(parameter.numel() for parameter in self.model.parameters() if parameter.requires_grad)

    @torch.no_grad()
    def predict(self, features: Features, present: Mapping[str, Tensor] | None = None) -> Tensor:
        """Predicted classes, or numbers in the units of the label, `(N,)`; embeddings `(N, d)` for retrieval.

        Arguments and errors are those of :meth:`logits`.
        """
        return self.task.decide(self.logits(features, present))

    @torch.no_grad()
    def logits(self, features: Features, present: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the model gives for each sample before anything is decided, `(N, outputs)`.

        Arguments:
            features: With the modalities of the run, sequences where it was trained on such; others are
                ignored. What the features themselves say is absent stays absent.
            present: `{name: (N,)}` of booleans; None: all.

        Raises:
            ValueError: A modality of the run that is missing, has another length, or is a sequence where it
                was none or none where it was one; or a sample of which nothing is present.
        """
        parts = [self.model(*chunk).logits for chunk in self._chunks(features, present)]
        return torch.cat(parts).to(features.device)

    @torch.no_grad()
    def parts(
        self, features: Features, present: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The fusion layer's invariant parts `{name: (N, l*)}` and specific parts `{name: (N, l_m)}`.

        Both are empty if the layer makes no such distinction. Arguments and errors are those of :meth:`logits`.
        """
        fused = [self.model.fuse(*chunk) for chunk in self._chunks(features, present)]
        invariant, specific = [one.invariant for one in fused], [one.specific for one in fused]
        return _joined(invariant), _joined(specific)

    def batch(self, features: Features) -> Batch:
        """The arguments of the model for all samples at once; errors are those of :meth:`logits`."""
        chosen = self._chosen(features)
        return batch_of(chosen, torch.arange(len(chosen)), next(self.model.parameters()))

    def _chunks(self, features: Features, present: Mapping[str, Tensor] | None) -> Iterator[Batch]:
        """The arguments of the model, some samples at a time."""
        features, like = self._chosen(features), next(self.model.parameters())
        for rows in chunks(features, self.recipe.batch_size):
            batch = batch_of(features, rows, like)
            for name, values in (present or {}).items():
                here = values[rows].to(like.device)
                batch.present[name] = batch.present[name] & here if name in batch.present else here
            yield batch

    def _chosen(self, features: Features) -> Features:
        chosen = features.select(list(self.dims))
        if set(chosen.steps) != set(self.sequences):
            raise ValueError(
                f"features must have the sequences of the training ({', '.join(self.sequences) or 'none'}), "
                f"got {', '.join(chosen.steps) or 'none'}; `pooled()` makes vectors of all."
            )
        return chosen

    def save(self, folder: Path | str) -> None:
        """Write the weights (`model.safetensors`) and the description (`run.json`), each atomically.

        Raises:
            ModuleNotFoundError: safetensors is not installed.
        """
        state = {name: values.detach().cpu().contiguous() for name, values in self.model.state_dict().items()}
        with replacing(Path(folder) / WEIGHTS) as temporary:
            # Not save_file, which makes files that only their owner can read.
            temporary.write_bytes(require("safetensors.torch").save(state))
        description = {
            "layer": self.layer,
            "dims": self.dims,
            "task": asdict(self.task),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "data": self.data,
            "sequences": self.sequences,
            "kept": self.kept,
            "history": [asdict(epoch) for epoch in self.history],
        }
        with replacing(Path(folder) / DESCRIPTION) as temporary:
            temporary.write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")


def load_run(folder: Path | str, layer: FusionLayer | None = None) -> Run:
    """Read what :meth:`Run.save` wrote, onto the CPU.

    Arguments:
        folder: Where the run was saved.
        layer: A layer of the same shape, for a run whose layer was given as an object.

    Raises:
        FileNotFoundError: No finished run in `folder`.
        ValueError: A damaged description or weights, or a layer that must be given and was not.
        ModuleNotFoundError: safetensors is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> run = fusion.train("sum", data, recipe=fusion.Recipe(epochs=1), out="run", progress=False)
        >>> bool((fusion.load_run("run").logits(data) == run.logits(data)).all())
        True
    """
    folder = Path(folder)
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no finished run: {name} is missing.")
    try:
        saved = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        recipe, task = Recipe(**saved["recipe"]), Task(**saved["task"])
        history, sequences = [Epoch(**epoch) for epoch in saved["history"]], tuple(saved["sequences"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / DESCRIPTION} is not a run of this version: {error}") from error
    if layer is None and saved["layer"] not in LAYERS:
        raise ValueError(f"{folder} holds a layer that was given as an object; pass {saved['layer']} again.")
    model = build_model(layer or find_layer(saved["layer"])(saved["dims"]), task, recipe, sequences)
    _load_weights(model, folder / WEIGHTS)
    return Run(
        model.eval(),
        saved["layer"],
        task,
        recipe,
        saved["seed"],
        saved["data"],
        sequences,
        history,
        saved["kept"],
    )


def build_model(
    layer: FusionLayer, task: Task, recipe: Recipe, sequences: Container[str] = ()
) -> FusionModel:
    """A model around a layer, as the task, the recipe and the modalities that are sequences want it."""
    encoders: dict[str, nn.Module] = {}
    if recipe.extractor is not None:
        layer.follow()
        for name, length in layer.dims.items():
            encoders[name] = (
                RecurrentEncoder(length, length, tokens=layer.tokens, width=recipe.extractor)
                if name in sequences
                else ResidualEncoder(length, width=recipe.extractor)
            )
    return FusionModel(
        layer,
        task.outputs,
        standardise=recipe.standardise,
        hidden=recipe.hidden,
        dropout=recipe.dropout,
        encoders=encoders,
    )


def _joined(chunks: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _load_weights(model: FusionModel, path: Path) -> None:
    safetensors = require("safetensors.torch")
    try:
        model.load_state_dict(safetensors.load_file(path))
    except Exception as error:  # the library's own error type, or torch's for weights that do not fit
        reason: Any = str(error).splitlines()[0]
        raise ValueError(f"{path} does not hold the weights of this run: {reason}") from error
