"""A callback that records how the channels of modalities migrate while a model is trained."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..data.features import Features
from ..grounded.channels import Ions
from ..grounded.ions import Noise
from ..grounded.migration_record import EMPTY, Course, MigrationRecord, load_migration, save_migration
from ..grounded.settings import CellSettings
from ..grounded.subspaces import dissociate
from ..layers.cell_gmf import CellGMF
from ..layers.channel_maps import ChannelMaps
from ..layers.layer import FusionLayer
from ..model import FusionModel
from .batch import batch_of, chunks


class MigrationRecorder:
    """Records the channels of every modality as ions, before training and after every epoch.

    The encoded features of some training samples are dissociated, whatever the layer is: what encoders do to them moves
    the channels. A :class:`~fusion.layers.cell_gmf.CellGMF` gives its own cell: its settings, those that it trains,
    and its basis if that is trained. :mod:`fusion.training_pictures` draws it. ::

        recorder = fusion.MigrationRecorder("run/migration.npz")
        fusion.train("cell", features, recipe=fusion.Recipe(extractor=64), out="run", callbacks=[recorder])
        plot_training(recorder.record, "audio")

    Arguments:
        path: An `.npz` file that is replaced after every epoch, for :func:`~fusion.load_migration`; a training that was
            killed and is taken up again goes on with it. None: the record is kept in memory only.
        every: Epochs between two that are recorded.
        samples: How many training samples are looked at, at most, evenly spread.
        settings: `voltage`, `ground`, ... of :func:`~fusion.dissociate`, for a layer that is no CellGMF.

    Raises:
        ValueError: A number out of its range, or another suffix of the file.
        TypeError: A setting that does not exist.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> recorder = fusion.MigrationRecorder()
        >>> recipe = fusion.Recipe(epochs=2, extractor=6)
        >>> _ = fusion.train("sum", data, recipe=recipe, callbacks=[recorder], progress=False)
        >>> list(recorder.record.epochs)
        [0, 1, 2]
    """

    def __init__(
        self,
        path: Path | str | None = None,
        *,
        every: int = 1,
        samples: int = 2000,
        **settings: float | int | None,
    ) -> None:
        for name, value, least in (("every", every, 1), ("samples", samples, 2)):
            if value < least:
                raise ValueError(f"{name} must be {least} or more, got {value}.")
        self.path = None if path is None else Path(path)
        if self.path is not None and self.path.suffix != ".npz":
            raise ValueError(f"path must end in .npz, got {self.path.name!r}.")
        self.every, self.samples = every, samples
        self.settings = CellSettings(**settings)  # type: ignore[arg-type]
        self.record: MigrationRecord = EMPTY

    def on_epoch(self, epoch: int, model: FusionModel, features: Features) -> None:
        """See :class:`~fusion.training.callback.Callback`."""
        if epoch % self.every:
            return
        if not self.record.epochs and epoch and self.path is not None and self.path.is_file():
            self.record = load_migration(self.path)
        count = min(self.samples, len(features))
        rows = torch.linspace(0, len(features) - 1, count, device=features.device).long()
        looked_at = features.rows(rows)
        encoded = _encoded(model, looked_at)
        self.add(epoch, encoded, layer=model.layer, present=looked_at.present)

    @torch.no_grad()
    def add(
        self,
        epoch: int,
        features: Mapping[str, Tensor],
        *,
        layer: FusionLayer | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Record encoded features `{name: (N, l)}`, for a loop of one's own.

        Arguments:
            epoch: What is there of it and of later ones is replaced.
            layer: What fuses them; the cell of a CellGMF is taken as it is.
            present: `{name: (N,)}`, as for :func:`~fusion.dissociate`.
        """
        settings = layer.settings if isinstance(layer, CellGMF) else self.settings
        found = dissociate(features, present=present, **vars(settings))
        courses = {}
        for name, one in found.channels.items():
            ions: Ions = one
            if isinstance(layer, CellGMF):
                maps = layer.maps[name]
                assert isinstance(maps, ChannelMaps)
                ions, settings = _in_its_cell(one, found.coherence.predictability(name), maps)
            courses[name] = Course.of(ions, settings)
        self.record = self.record.then(epoch, courses)
        if self.path is not None:
            save_migration(self.path, self.record)


def _in_its_cell(found: Ions, predictability: Tensor, maps: ChannelMaps) -> tuple[Ions, CellSettings]:
    """The channels in the basis and the cell that a layer has trained."""
    knobs, turn = maps.fixed_knobs, maps.turn()
    settings = replace(maps.settings, ground=float(knobs.ground), debye_length=float(knobs.debye_length))
    noise = Noise(found.noise_level, found.voltage * float(knobs.voltage))
    shared = found.predictability
    if turn is not None:
        turn = turn.to(predictability)
        shared = ((turn @ predictability) * turn).sum(-1).clamp(0, 1).sort(descending=True).values
    elif settings == maps.settings and noise.voltage == found.voltage:
        return found, settings
    return Ions.at_rest(shared, noise, settings), settings


@torch.no_grad()
def _encoded(model: FusionModel, features: Features) -> dict[str, Tensor]:
    """Encoded training samples, some at a time."""
    like = next(model.parameters())
    found = [model.vectors(*batch_of(features, rows, like)) for rows in chunks(features, 64)]
    return {name: torch.cat([one[name] for one in found]) for name in model.layer.dims}
