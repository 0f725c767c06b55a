"""How the channels of modalities moved while a model was trained: numbers of every epoch, kept in an `.npz` file."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pnp.atomic import replacing

from .channels import Ions
from .ions import Noise
from .settings import CellSettings

OF_CHANNELS = ("predictability", "gates")
OF_CELLS = ("noise_level", "voltage", "ground", "debye_length", "ion_size")


@dataclass(frozen=True, eq=False)
class Course:
    """The channels of one modality, epoch by epoch.

    Attributes:
        predictability: R² of every channel from the other modalities, `(epochs, l)`, best predicted first.
        gates: `(epochs, l)`.
        noise_level, voltage, ground, debye_length, ion_size: Of the cell in every epoch, `(epochs,)`.
    """

    predictability: Tensor
    gates: Tensor
    noise_level: Tensor
    voltage: Tensor
    ground: Tensor
    debye_length: Tensor
    ion_size: Tensor

    @classmethod
    def of(cls, ions: Ions, settings: CellSettings) -> "Course":
        """A course of one epoch."""
        about = (ions.noise_level, ions.voltage, settings.ground, settings.debye_length, settings.ion_size)
        cell = torch.tensor([about], dtype=torch.float64)
        numbers = (ions.predictability, ions.gates)
        return cls(*(one.detach().double().cpu().unsqueeze(0) for one in numbers), *cell.unbind(-1))

    def __len__(self) -> int:
        return len(self.predictability)

    @property
    def valences(self) -> Tensor:
        """Of every channel, `(epochs, l)`."""
        level = self.noise_level.unsqueeze(-1)
        return (self.predictability - level) / (1 - level)

    @property
    def charge(self) -> Tensor:
        """Total charge of the channels, `(epochs,)`."""
        return self.valences.sum(-1)

    def at(self, index: int) -> Ions:
        """The ions of the epoch at an index, settled anew."""
        noise = Noise(float(self.noise_level[index]), float(self.voltage[index]))
        settings = CellSettings(
            ground=float(self.ground[index]),
            debye_length=float(self.debye_length[index]),
            ion_size=float(self.ion_size[index]),
        )
        return Ions.at_rest(self.predictability[index], noise, settings)

    def then(self, later: "Course", kept: int) -> "Course":
        """The first `kept` epochs of this course, and then a later one."""
        return Course(
            **{key: torch.cat([values[:kept], vars(later)[key]]) for key, values in vars(self).items()}
        )


@dataclass(frozen=True, eq=False)
class MigrationRecord:
    """What :class:`~fusion.training.migration_recorder.MigrationRecorder` has recorded.

    Attributes:
        epochs: Their numbers, ascending; 0 is before training.
        courses: `{modality: Course}`, an entry for every epoch.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(200, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> recorder = fusion.MigrationRecorder()
        >>> recorder.add(0, data.modalities)
        >>> tuple(recorder.record.courses["a"].valences.shape)  # epochs, channels
        (1, 8)
    """

    epochs: tuple[int, ...]
    courses: dict[str, Course]

    def __len__(self) -> int:
        return len(self.epochs)

    def __iter__(self) -> Iterator[int]:
        return iter(self.epochs)

    def course(self, modality: str) -> Course:
        """The course of a modality. Raises ValueError for one that is not there."""
        if modality not in self.courses:
            raise ValueError(f"modality must be one of {list(self.courses)}, got {modality!r}.")
        return self.courses[modality]

    def ions(self, modality: str, epoch: int) -> Ions:
        """The channels of a modality as they were after an epoch, in a cell that has settled.

        Raises ValueError for a modality or an epoch that was not recorded.
        """
        if epoch not in self.epochs:
            raise ValueError(f"epoch must be one of those recorded, {list(self.epochs)}, got {epoch}.")
        return self.course(modality).at(self.epochs.index(epoch))

    def then(self, epoch: int, found: Mapping[str, Course]) -> "MigrationRecord":
        """This record up to before an epoch, and then that epoch; one of other channels is given up."""
        kept = sum(one < epoch for one in self.epochs)
        lengths = {name: one.predictability.shape[1] for name, one in self.courses.items()}
        if not kept or lengths != {name: one.predictability.shape[1] for name, one in found.items()}:
            return MigrationRecord((epoch,), dict(found))
        courses = {name: self.courses[name].then(one, kept) for name, one in found.items()}
        return MigrationRecord((*self.epochs[:kept], epoch), courses)


EMPTY = MigrationRecord((), {})
"""Nothing recorded yet."""


def save_migration(path: Path | str, record: MigrationRecord) -> None:
    """Write a record to an `.npz` file; an existing file is replaced atomically. Raises ValueError: another suffix.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(200, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> recorder = fusion.MigrationRecorder()
        >>> recorder.add(0, data.modalities)
        >>> fusion.save_migration("way.npz", recorder.record)
        >>> list(fusion.load_migration("way.npz").courses)
        ['a', 'b']
    """
    arrays = {"epochs": np.array(record.epochs, dtype=np.int64), "modalities": np.array(list(record.courses))}
    for index, course in enumerate(record.courses.values()):
        arrays |= {f"{index}.{key}": values.numpy() for key, values in vars(course).items()}
    with replacing(_checked(path)) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def load_migration(path: Path | str) -> MigrationRecord:
    """Read a file of :func:`save_migration`; nothing in it is unpickled.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another suffix, a damaged file, or one of something else.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(200, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> recorder = fusion.MigrationRecorder("way.npz")
        >>> recorder.add(0, data.modalities)
        >>> list(fusion.load_migration("way.npz").epochs)
        [0]
    """
    path = _checked(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        # Not the path, which numpy leaves open where a file is damaged.
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            return _restored({name: file[name] for name in file.files})
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not a record of a migration that can be read ({reason}).") from error


def _restored(arrays: Mapping[str, np.ndarray]) -> MigrationRecord:
    epochs = tuple(int(one) for one in arrays["epochs"])
    if list(epochs) != sorted(set(epochs)):
        raise ValueError(f"epochs must ascend, got {list(epochs)}")
    courses = {}
    for index, name in enumerate(arrays["modalities"]):
        length = arrays[f"{index}.predictability"].shape[-1]
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(OF_CHANNELS, (len(epochs), length))
        shapes |= dict.fromkeys(OF_CELLS, (len(epochs),))
        for key, shape in shapes.items():
            values = arrays[f"{index}.{key}"]
            if values.shape != shape or values.dtype != np.float64 or not np.isfinite(values).all():
                raise ValueError(
                    f"{index}.{key} must be finite float64 of shape {shape}, got {values.dtype} {values.shape}"
                )
        courses[str(name)] = Course(**{key: torch.from_numpy(arrays[f"{index}.{key}"]) for key in shapes})
    return MigrationRecord(epochs, courses)


def _checked(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"path: a record of a migration must end in .npz, got {path.name!r}.")
    return path
