"""Training of a model on features: a loop one can read aloud."""

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from ..data.features import Features
from ..extras import require
from ..layers.layer import FusionLayer
from ..layers.registry import Maker, find_layer
from ..model import FusionModel
from ..randomness import seeded
from .checkpoint import Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from .objective import step_loss
from .recipe import DEFAULT, Recipe
from .run import CHUNK, Epoch, Run, build_model
from .task import Task

INITIALISE, TRAIN, VALIDATE = range(3)
"""Streams of random numbers; each epoch has its own within TRAIN."""


def train(
    layer: str | Maker | FusionLayer,
    features: Features,
    *,
    recipe: Recipe = DEFAULT,
    seed: int = 0,
    out: Path | str | None = None,
    progress: bool = True,
) -> Run:
    """Train a fusion layer and a head on the training samples of labelled features.

    Sequences are pooled; the model has torch's default dtype and the device of the features. A layer with a
    method `fit` is first given the training modalities, `{name: (N, l)}`, unscaled. The seed decides the
    initial weights, the batches, the subsets of modalities, dropout, and the split of features that have
    none; torch's global generators are left as they were.

    Arguments:
        layer: A name in the registry; a function that builds a layer from `dims`, so that the seed decides
            its initial weights too; or a layer, which is then trained in place.
        recipe: All settings.
        out: A folder for a checkpoint after each epoch and the finished run. If it holds a checkpoint of the
            same training, this continues from it, on the CPU to the same bits; a finished one is returned.
        progress: Show a bar.

    Raises:
        ValueError: No label, nothing to learn, a modality the layer does not expect, or an `out` that holds
            a training with other settings.
        FloatingPointError: The loss is not finite; the last checkpoint stays.
        ModuleNotFoundError: tqdm (for `progress`) or safetensors (for `out`) is not installed.
    """
    features = features.pooled().with_split(seed)
    trainer = _Trainer(layer, features, recipe, seed, None if out is None else Path(out))
    trainer.resume()
    for epoch in trainer.remaining_epochs(progress):
        with seeded(seed, TRAIN, epoch):
            train_loss = trainer.train_epoch(epoch)
        with seeded(seed, VALIDATE):
            validation_loss, accuracy = trainer.validate()
        trainer.conclude(Epoch(epoch, trainer.learning_rate, train_loss, validation_loss, accuracy))
    return trainer.finish()


class _Trainer:
    """The parts of a training and the steps of its loop."""

    def __init__(
        self,
        layer: str | Maker | FusionLayer,
        features: Features,
        recipe: Recipe,
        seed: int,
        out: Path | None,
    ) -> None:
        self.recipe, self.seed, self.out = recipe, seed, out
        self.task, self.data = Task.of(features), fingerprint(features)
        self.training = features.train
        self.validation = features.validation if features.has("validation") else None
        with seeded(seed, INITIALISE):
            self.model = self._build(layer)
        self.layer = layer if isinstance(layer, str) else type(self.model.layer).__name__
        self.optimiser = _optimiser(self.model, recipe)
        self.schedule = _schedule(self.optimiser, recipe)
        self.history: list[Epoch] = []
        self.best: dict[str, Any] | None = None
        self.kept = 0

    @property
    def learning_rate(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

    def resume(self) -> None:
        """Take up the checkpoint in the folder, if there is one."""
        device = self.training.device
        found = self.out and load_checkpoint(self.out, self._settings(), device)
        if found:
            self.model.load_state_dict(found.model)
            self.optimiser.load_state_dict(found.optimiser)
            self.schedule.load_state_dict(found.schedule)
            self.history = [Epoch(**epoch) for epoch in found.history]
            self.best, self.kept = found.best, found.kept

    def remaining_epochs(self, progress: bool) -> Iterator[int]:
        epochs = range(len(self.history) + 1, self.recipe.epochs + 1)
        if not progress:
            yield from epochs
            return
        total = self.recipe.epochs
        with require("tqdm").tqdm(total=total, initial=total - len(epochs), desc=self.layer) as bar:
            for epoch in epochs:
                yield epoch
                bar.set_postfix(loss=f"{self.history[-1].train_loss:.3g}", refresh=False)
                bar.update()

    def train_epoch(self, epoch: int) -> float:
        """One pass over the training samples; the mean loss."""
        self.model.train()
        total = 0.0
        order = torch.randperm(len(self.training)).to(self.training.device)
        batches = order.tensor_split(math.ceil(len(order) / self.recipe.batch_size))
        for step, rows in enumerate(batches, start=1):
            loss, _ = step_loss(self.model, *self._batch(self.training, rows), self.task, self.recipe)
            self._check_finite(loss.item(), epoch, step)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            total += loss.item() * len(rows)
        return total / len(order)

    @torch.no_grad()
    def validate(self) -> tuple[float | None, float | None]:
        """Loss and accuracy on the validation samples, if there are any."""
        if self.validation is None:
            return None, None
        self.model.eval()
        total, right = 0.0, 0.0
        for rows in torch.arange(len(self.validation), device=self.validation.device).split(CHUNK):
            features, label = self._batch(self.validation, rows)
            loss, logits = step_loss(self.model, features, label, self.task, self.recipe)
            total += float(loss) * len(rows)
            right += (self.task.accuracy(logits, label) or 0.0) * len(rows)
        samples = len(self.validation)
        return total / samples, right / samples if self.task.kind == "classification" else None

    def conclude(self, epoch: Epoch) -> None:
        """Record an epoch, judge its weights, set the next learning rate, write the checkpoint."""
        loss = epoch.train_loss if epoch.validation_loss is None else epoch.validation_loss
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(loss)
        else:
            self.schedule.step()
        if self._is_best(epoch):
            self.kept = epoch.epoch
            if self.recipe.keep == "best":
                self.best = copy.deepcopy(self.model.state_dict())
        self.history.append(epoch)
        if self.out:
            save_checkpoint(self.out, self._checkpoint())

    def finish(self) -> Run:
        """The run with the weights to keep; saved in the folder, if there is one."""
        if self.best is not None:
            self.model.load_state_dict(self.best)
        run = Run(
            self.model.eval(),
            self.layer,
            self.task,
            self.recipe,
            self.seed,
            self.data,
            self.history,
            self.kept,
        )
        if self.out:
            run.save(self.out)
        return run

    def _build(self, layer: str | Maker | FusionLayer) -> FusionModel:
        maker = find_layer(layer) if isinstance(layer, str) else layer
        layer = maker if isinstance(maker, FusionLayer) else maker(self.training.dims)
        example = {name: values[:1] for name, values in self.training.modalities.items()}
        layer.check(example)  # before anything is trained: are these the modalities it was made for?
        model = build_model(layer, self.task, self.recipe).to(self.training.device)
        fit = getattr(layer, "fit", None)
        if callable(fit):
            everything = torch.arange(len(self.training), device=self.training.device)
            fit(self._batch(self.training, everything)[0])
        return model

    def _batch(self, features: Features, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        assert features.label is not None  # Task.of has seen to it
        dtype = torch.get_default_dtype()
        modalities = {name: values[rows].to(dtype) for name, values in features.modalities.items()}
        return modalities, features.label[rows]

    def _check_finite(self, loss: float, epoch: int, step: int) -> None:
        if math.isfinite(loss):
            return
        kept = f" The checkpoint of epoch {epoch - 1} is in {self.out}." if self.out and epoch > 1 else ""
        raise FloatingPointError(
            f"the loss is {loss} in epoch {epoch}, step {step}. Try a learning_rate below "
            f"{self.learning_rate:g}, standardise=True, or look for outliers in the features.{kept}"
        )

    def _is_best(self, epoch: Epoch) -> bool:
        if self.recipe.keep == "last" or epoch.validation_loss is None:
            return True
        earlier = [e.validation_loss for e in self.history if e.validation_loss is not None]
        return epoch.validation_loss < min(earlier, default=math.inf)

    def _settings(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "modalities": str(self.model.layer.dims),
            "task": asdict(self.task),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "data": self.data,
        }

    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(
            self._settings(),
            [asdict(epoch) for epoch in self.history],
            self.model.state_dict(),
            self.optimiser.state_dict(),
            self.schedule.state_dict(),
            self.best,
            self.kept,
        )


def _optimiser(model: FusionModel, recipe: Recipe) -> torch.optim.Optimizer:
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[recipe.optimiser]
    optimiser: torch.optim.Optimizer = kind(
        model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    return optimiser


def _schedule(optimiser: torch.optim.Optimizer, recipe: Recipe) -> LRScheduler:
    if recipe.schedule == "plateau":
        return ReduceLROnPlateau(optimiser, factor=0.1, patience=3)
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimiser, recipe.epochs)
    return ConstantLR(optimiser, factor=1.0)
