"""Training of a model on features: a loop one can read aloud."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, LRScheduler, ReduceLROnPlateau

from ..data.features import Features
from ..distributed import total
from ..extras import require
from ..heads import PooledHead
from ..layers.layer import FusionLayer
from ..layers.presence import Presence, everywhere, random_subsets
from ..layers.registry import Maker, find_layer
from ..model import FusionModel
from ..randomness import seeded
from .batch import Batch, batch_of, chunks
from .callback import Callback
from .checkpoint import Checkpoint, fingerprint, load_checkpoint, save_checkpoint
from .engine import Engine, engine_for
from .log import Log
from .objective import Step, step_loss
from .pooling import fit_weights
from .recipe import DEFAULT, Recipe
from .run import Epoch, Run, build_model
from .task import Task, posed

TAUGHT = ("classification", "regression")
"""Tasks in which samples without labels are learnt from."""

RATIO = 4
"""Batches of unlabelled samples to one of labelled ones in a step."""

INITIALISE, TRAIN, VALIDATE, ORDER = range(4)
"""Streams of random numbers. Each epoch has its own within ORDER (batches and subsets, the same in every process)
and within TRAIN (dropout, another one in each process)."""


def train(
    layer: str | Maker | FusionLayer,
    features: Features,
    *,
    recipe: Recipe = DEFAULT,
    seed: int = 0,
    task: str | None = None,
    unlabelled: Features | None = None,
    out: Path | str | None = None,
    progress: bool = True,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Train a fusion layer and a head on the training samples of features.

    Sequences are taken whole: layers of tokens get their steps, others their mean. The model has torch's default
    dtype and the device of the features. A layer that is `measured` is first given the training samples that
    have every modality (if these are no more than there are channels, all samples and what is present in them) as
    vectors, `{name: (N, l)}`, sequences as their means, unscaled. The seed decides the initial weights, the batches,
    the subsets of modalities, dropout, the conflicts of that task, and the split of features that have none; torch's
    global generators are left as they were.

    Started by torchrun, every process trains on its share of batches that together are as many times larger;
    only the main process shows a bar and writes files.

    Arguments:
        layer: A name in the registry; a function that builds a layer from `dims`, so that the seed decides
            its initial weights too; or a layer, which is then trained in place.
        recipe: All settings.
        task: One of `classification`, `regression`, `retrieval` and `conflict`, see :class:`Task`; None: the
            one of the first two that the labels pose.
        unlabelled: More samples of the same modalities, whose labels and split, if any, are not looked at. In
            `classification` and `regression` every layer learns from them, as :class:`Recipe` says, and a layer that
            is `measured` is fitted to them and to the training samples together.
        out: A folder for a checkpoint after each epoch, `log.csv` and the finished run. If it holds a
            checkpoint of the same training, this continues from it, on the CPU to the same bits; a finished
            one is returned.
        progress: Show a bar.
        tensorboard: Log for TensorBoard too, in the folder `tensorboard` of `out`.
        callbacks: Called with the model after every epoch, see :class:`~fusion.training.callback.Callback`.

    Raises:
        ValueError: No label, nothing to learn, a modality the layer does not expect, an `out` that holds a
            training with other settings, patience without validation samples, a TensorBoard log without
            `out`, unlabelled samples that nothing can be made of, or a training that several processes cannot
            share.
        FloatingPointError: The loss is not finite; the last checkpoint stays.
        ModuleNotFoundError: tqdm (for `progress`), safetensors (for `out`), tensorboard, or lightning-fabric
            (for several processes) is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> run = fusion.train("sum", data, recipe=fusion.Recipe(epochs=1), progress=False)
        >>> run.layer, len(run.history)
        ('sum', 1)
    """
    engine = engine_for(features.device)
    features = posed(features.to(engine.device(features.device)), task, seed)
    if unlabelled is not None:
        unlabelled = unlabelled.select(list(features.modalities)).to(features.device)
    trainer = _Trainer(layer, features, unlabelled, recipe, seed, Task.of(features, task), engine)
    trainer.keep_in(None if out is None else Path(out), tensorboard)
    trainer.show(callbacks)
    for epoch in trainer.remaining_epochs(progress):
        with seeded(seed, ORDER, epoch):
            order, subsets = trainer.draw()
            others = trainer.draw_unlabelled()
        with seeded(seed, TRAIN, epoch, engine.rank):
            train_loss = trainer.train_epoch(epoch, order, subsets, others)
        with seeded(seed, VALIDATE):
            validation_loss, accuracy = trainer.validate()
        trainer.conclude(Epoch(epoch, trainer.rate_at_end_of(epoch), train_loss, validation_loss, accuracy))
        trainer.show(callbacks)
    return trainer.finish()


class _Trainer:
    """The parts of a training and the steps of its loop."""

    def __init__(
        self,
        layer: str | Maker | FusionLayer,
        features: Features,
        unlabelled: Features | None,
        recipe: Recipe,
        seed: int,
        task: Task,
        engine: Engine,
    ) -> None:
        self.recipe, self.seed, self.engine = recipe, seed, engine
        self.task, self.data = task, fingerprint(features)
        self.unlabelled = unlabelled
        self.sequences = tuple(features.steps)
        self.training = features.train
        self.validation = features.validation if features.has("validation") else None
        _check(task, recipe, engine, len(self.training), self.validation)
        with seeded(seed, INITIALISE):
            self.model = self._build(layer)
        self.layer = layer if isinstance(layer, str) else type(self.model.layer).__name__
        self.step = engine.setup(Step(self.model, task, recipe))
        self.optimiser = _optimiser(self.model, recipe)
        self.schedule = _schedule(self.optimiser, recipe)
        self.history: list[Epoch] = []
        self.best: dict[str, Any] | None = None
        self.kept = 0
        self.out: Path | None = None
        self.log: Log | None = None

    @property
    def _is_taught(self) -> bool:
        """Whether samples without labels are learnt from, if there are any."""
        return self.recipe.unlabelled_weight > 0 and self.task.kind in TAUGHT

    @property
    def learning_rate(self) -> float:
        """What the schedule says, before any warm-up."""
        return float(self.optimiser.param_groups[0]["lr"])

    def keep_in(self, out: Path | None, tensorboard: bool) -> None:
        """Take up the checkpoint in the folder, if there is one, and log into it from now on."""
        if tensorboard and out is None:
            raise ValueError("tensorboard needs a folder: give `out`.")
        self.out = out
        if out is None:
            return
        main = self.engine.rank == 0
        found = self.engine.from_main(
            load_checkpoint(out, self._settings(), self.training.device) if main else None
        )
        if found:
            self.model.load_state_dict(found.model)
            self.optimiser.load_state_dict(found.optimiser)
            self.schedule.load_state_dict(found.schedule)
            self.history = [Epoch(**epoch) for epoch in found.history]
            self.best, self.kept = found.best, found.kept
        if main:
            self.log = Log(out, tensorboard, epochs=len(self.history))

    def remaining_epochs(self, progress: bool) -> Iterator[int]:
        epochs, bar = self.recipe.epochs, None
        if progress and self.engine.rank == 0:
            bar = require("tqdm").tqdm(total=epochs, initial=len(self.history), desc=self.layer)
        try:
            while len(self.history) < epochs and not self._is_patience_over():
                yield len(self.history) + 1
                if bar is not None:
                    bar.set_postfix(loss=f"{self.history[-1].train_loss:.3g}", refresh=False)
                    bar.update()
        finally:
            if bar is not None:
                bar.close()

    def draw(self) -> tuple[Tensor, Presence | None]:
        """The order of the training samples in an epoch, and for each a random subset of its modalities."""
        order = torch.randperm(len(self.training)).to(self.training.device)
        return order, self._draw_subsets(len(order))

    def _draw_subsets(self, samples: int) -> Presence | None:
        """Which modalities so many samples keep, where the recipe wants random subsets."""
        if not self.recipe.random_subsets or self.task.kind == "retrieval":
            return None
        return random_subsets(list(self.model.layer.dims), samples, self.training.device)

    def draw_unlabelled(self) -> list[tuple[Tensor, Presence | None]]:
        """For every step of an epoch unlabelled samples to learn from, if there are any: their numbers and subsets."""
        if self.unlabelled is None or not self._is_taught:
            return []
        steps, samples, processes = self._steps(), len(self.unlabelled), self.engine.processes
        each = max(processes, min(samples, RATIO * self.recipe.batch_size * processes))
        passes = [torch.randperm(samples) for _ in range(math.ceil(steps * each / samples))]
        drawn = torch.cat(passes).to(self.training.device).split(each)[:steps]
        return [(rows, self._draw_subsets(len(rows))) for rows in drawn]

    def train_epoch(
        self,
        epoch: int,
        order: Tensor,
        subsets: Presence | None,
        others: Sequence[tuple[Tensor, Presence | None]] = (),
    ) -> float:
        """One pass over the training samples; the mean loss."""
        self.step.train()
        rate, mean = self.learning_rate, 0.0
        batches = order.tensor_split(self._steps())
        for step, rows in enumerate(batches, start=1):
            share = self._share(rows)
            more: tuple[Batch, Presence | None] | tuple[()] = ()
            if others and self.unlabelled is not None:
                drawn, theirs = others[step - 1]
                parts = self._share(torch.arange(len(drawn), device=drawn.device))
                batch = batch_of(self.unlabelled, drawn[parts], torch.empty((), device=drawn.device))
                more = batch, _of_rows(theirs, parts)
            loss = self.step(*self._batch(self.training, share), _of_rows(subsets, share), *more)
            value = float(total(loss.detach()) / self.engine.processes)
            self._check_finite(value, epoch, step)
            self.optimiser.zero_grad()
            self.engine.backward(loss)
            if self.recipe.clip is not None:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self._set_rate(rate * self._warmth((epoch - 1) * len(batches) + step, len(batches)))
            self.optimiser.step()
            mean += value * len(rows) / len(order)
        self._set_rate(rate)
        return mean

    @torch.no_grad()
    def validate(self) -> tuple[float | None, float | None]:
        """Loss and accuracy on the validation samples, if there are any."""
        if self.validation is None:
            return None, None
        self.model.eval()
        summed, right = 0.0, 0.0
        for rows in chunks(self.validation, self.recipe.batch_size):
            batch, label = self._batch(self.validation, rows)
            loss, logits = step_loss(self.model, batch, label, self.task, self.recipe)
            summed += float(loss) * len(rows)
            right += (self.task.accuracy(logits, label) or 0.0) * len(rows)
        samples = len(self.validation)
        return summed / samples, right / samples if self.task.classifies else None

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
        if self.log and self.out:
            save_checkpoint(self.out, self._checkpoint())
            self.log.write(self.history)

    def show(self, callbacks: Sequence[Callback]) -> None:
        """Let callbacks see the model as it is after the epochs so far."""
        if self.engine.rank == 0:
            for one in callbacks:
                one.on_epoch(len(self.history), self.model.eval(), self.training)

    def finish(self) -> Run:
        """The run with the weights to keep; saved in the folder, if there is one."""
        if self.best is not None:
            self.model.load_state_dict(self.best)
        self.model.eval()
        if isinstance(self.model.head, PooledHead) and self.validation and self.task.kind != "retrieval":
            fit_weights(self.model, self.validation, self.task, self.recipe, (self.seed, VALIDATE))
        run = Run(
            self.model,
            self.layer,
            self.task,
            self.recipe,
            self.seed,
            self.data,
            self.sequences,
            self.history,
            self.kept,
        )
        if self.log and self.out:
            self.log.close()
            run.save(self.out)
        self.engine.wait()
        return run

    def _build(self, layer: str | Maker | FusionLayer) -> FusionModel:
        maker = find_layer(layer) if isinstance(layer, str) else layer
        layer = maker if isinstance(maker, FusionLayer) else maker(self.training.dims)
        first = self._batch(self.training, torch.arange(1))[0]
        layer.check(*first)  # before anything is trained: are these the modalities it was made for?
        model = build_model(layer, self.task, self.recipe, self.sequences).to(self.training.device)
        if self._has_gaps([self.training]) and not layer.measured:
            layer.follow(gaps=True)
        if layer.measured:
            with torch.no_grad():
                vectors, present = self._measured(model)
                if present is None:
                    layer.fit(vectors)
                else:
                    layer.fit(vectors, present=present)
        elif self.unlabelled is not None and not self._is_taught:
            raise ValueError(
                f"unlabelled samples are no use to {type(layer).__name__}, which is not measured, in "
                f"{self.task.kind} with unlabelled_weight {self.recipe.unlabelled_weight:g}."
            )
        return model

    def _has_gaps(self, sources: Sequence[Features]) -> bool:
        """Whether no more samples have every modality than there are channels."""
        whole, channels = sum(len(_complete(one)) for one in sources), sum(self.training.dims.values())
        return any(one.present for one in sources) and whole <= channels

    def _measured(self, model: FusionModel) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
        """What a layer measures, as vectors, and what is present in it.

        The samples with every modality; if there are no more of these than channels, all samples.
        """
        names, like = model.layer.dims, torch.empty((), device=self.training.device)
        sources = [one for one in (self.training, self.unlabelled) if one is not None]
        complete, gaps = [_complete(one) for one in sources], self._has_gaps(sources)
        parts, masks = [], []
        for one, rows in zip(sources, complete, strict=True):
            chosen = torch.arange(len(one), device=one.device) if gaps else rows
            if len(chosen):
                batch = batch_of(one, chosen, like)
                parts.append(model.vectors(*batch))
                masks.append(everywhere([*names], (len(chosen),), like.device) | batch.present)
        present = {name: torch.cat([mask[name] for mask in masks]) for name in names} if gaps else None
        return {name: torch.cat([part[name] for part in parts]) for name in names}, present

    def _batch(self, features: Features, rows: Tensor) -> tuple[Batch, Tensor]:
        assert features.label is not None  # Task.of has seen to it
        return batch_of(features, rows, torch.empty((), device=features.device)), features.label[rows]

    def _share(self, rows: Tensor) -> Tensor:
        """What of a batch is this process's."""
        return rows.tensor_split(self.engine.processes)[self.engine.rank]

    def _steps(self) -> int:
        """Batches of an epoch, each with a sample for every process."""
        samples, processes = len(self.training), self.engine.processes
        return min(math.ceil(samples / (self.recipe.batch_size * processes)), samples // processes)

    def _warmth(self, step: int, steps: int) -> float:
        """What the learning rate of the step, counted from 1 through all epochs, is multiplied by."""
        return min(1.0, step / (self.recipe.warm_up * steps)) if self.recipe.warm_up else 1.0

    def rate_at_end_of(self, epoch: int) -> float:
        """The learning rate of the last step of an epoch that the schedule has not left yet."""
        return self.learning_rate * self._warmth(epoch, 1)

    def _set_rate(self, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _is_patience_over(self) -> bool:
        if self.recipe.patience is None or not self.history:
            return False
        losses = [epoch.validation_loss for epoch in self.history if epoch.validation_loss is not None]
        return len(losses) - 1 - losses.index(min(losses)) >= self.recipe.patience

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
            "unlabelled": None if self.unlabelled is None else fingerprint(self.unlabelled),
            "processes": self.engine.processes,
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


def _of_rows(subsets: Presence | None, rows: Tensor) -> Presence | None:
    return None if subsets is None else {name: values[rows] for name, values in subsets.items()}


def _complete(features: Features) -> Tensor:
    """The samples that have every modality, by number."""
    have = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for values in features.present.values():
        have = have & values
    return have.nonzero().squeeze(-1)


def _check(task: Task, recipe: Recipe, engine: Engine, samples: int, validation: Features | None) -> None:
    if recipe.patience is not None and validation is None:
        raise ValueError(f"patience {recipe.patience} needs validation samples (value 1 of split), got none.")
    if samples < engine.processes:
        raise ValueError(f"{engine.processes} processes need a training sample each, got {samples}.")


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
