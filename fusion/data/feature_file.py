"""Feature files: `.npz` without pickles, or `.safetensors`.

One array per modality, samples first: `(N, l)`, or `(N, T, l)` for sequences with an optional `<name>_length`
`(N,)` of valid steps; an optional `<name>_present` `(N,)` of booleans, false where a sample lacks the
modality; an optional `label` `(N,)` of integer classes or floats; an optional `split` `(N,)` of
0 (train), 1 (validation) and 2 (test). Every other array is a modality, but for texts and lists of texts,
which are taken for notes and left alone.
"""

import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pnp.atomic import replacing

from ..extras import require
from .features import Features, check_selection

Archive = tuple[list[str], Callable[[str], Tensor]]
"""The names of the arrays in a file, and the function that reads one of them."""


def load_features(path: Path | str, modalities: Sequence[str] | None = None) -> Features:
    """Read and check a feature file.

    Arguments:
        path: An `.npz` or `.safetensors` file. Pickled objects in it are never read.
        modalities: Which to read, in this order; None: all, in the order of the file.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not such an archive, a damaged array, an array of objects or of text, a modality that is
            missing, or anything :class:`Features` finds wrong; the text begins with the path.
        ModuleNotFoundError: A `.safetensors` file without the library installed.

    Example:
        >>> import fusion
        >>> import numpy as np
        >>> np.savez("mine.npz", audio=np.ones((30, 4)), video=np.ones((30, 6)), label=np.arange(30) % 2)
        >>> features = fusion.load_features("mine.npz")
        >>> features.dims, len(features)
        ({'audio': 4, 'video': 6}, 30)
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    try:
        with opened(path) as (names, read):
            return _assemble(names, read, modalities)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def save_features(path: Path | str, features: Features) -> None:
    """Write a feature file, `.npz` or `.safetensors` by its name; an existing file is replaced atomically.

    Raises:
        ValueError: Another suffix, or a modality whose name means something else in the file.
        ModuleNotFoundError: A `.safetensors` file without the library installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(100, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> fusion.save_features("mine.npz", data)
        >>> fusion.load_features("mine.npz").dims
        {'a': 8, 'b': 6}
    """
    path = Path(path)
    arrays = _named_arrays(features)
    _check_suffix(path)
    with replacing(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **{name: array.numpy() for name, array in arrays.items()})
        else:
            temporary.write_bytes(require("safetensors.torch").save(arrays))


@dataclass(frozen=True)
class Roles:
    """What the arrays of a file are, by their names: modalities, `<name>_length` and `<name>_present`."""

    modalities: list[str]
    lengths: set[str]
    present: set[str]


def roles(names: Sequence[str]) -> Roles:
    """Tell modalities from what is said about them."""
    lengths, present = (
        {name for name in names if name.endswith(end) and name.removesuffix(end) in names}
        for end in ("_length", "_present")
    )
    described = lengths | present | {"label", "split"}
    return Roles([name for name in names if name not in described], lengths, present)


def _assemble(names: list[str], read: Callable[[str], Tensor], wanted: Sequence[str] | None) -> Features:
    found = roles(names)
    available = found.modalities
    if wanted is not None:
        check_selection(wanted, available)
    chosen = available if wanted is None else list(wanted)
    return Features(
        {name: read(name) for name in chosen},
        {name: read(f"{name}_length") for name in chosen if f"{name}_length" in found.lengths},
        read("label") if "label" in names else None,
        read("split") if "split" in names else None,
        {name: read(f"{name}_present") for name in chosen if f"{name}_present" in found.present},
    )


def _named_arrays(features: Features) -> dict[str, Tensor]:
    arrays = dict(features.modalities)
    for name, extra in [
        ("label", features.label),
        ("split", features.split),
        *((f"{name}_length", length) for name, length in features.lengths.items()),
        *((f"{name}_present", present) for name, present in features.present.items()),
    ]:
        if name in features.modalities:
            raise ValueError(f"a modality cannot be named {name!r} in a feature file.")
        if extra is not None:
            arrays[name] = extra
    return {name: array.detach().cpu().contiguous() for name, array in arrays.items()}


@contextmanager
def opened(path: Path) -> Iterator[Archive]:
    """The arrays of an `.npz` or `.safetensors` file, read one by one.

    Raises:
        ValueError: Not such an archive.
        ModuleNotFoundError: A `.safetensors` file without the library installed.
    """
    _check_suffix(path)
    with _opened_npz(path) if path.suffix == ".npz" else _opened_safetensors(path) as archive:
        yield archive


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"a feature file must end in .npz or .safetensors, got {path.name!r}.")


@contextmanager
def _opened_npz(path: Path) -> Iterator[Archive]:
    try:
        with zipfile.ZipFile(path) as archive:
            stored = [member.removesuffix(".npy") for member in archive.namelist()]
            names = [name for name in stored if not _is_note(archive, name)]
            yield names, lambda name: _tensor(name, _read_array(archive, name))
    except zipfile.BadZipFile as error:
        raise ValueError("not an npz archive, or one that was cut short.") from error


def _is_note(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether an array is a text or a list of texts, which says something about the file."""
    if name in ("label", "split"):
        return False
    shape, dtype = _header(archive, name)
    return dtype.kind in "US" and len(shape) < 2


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and dtype of an array, without its numbers."""
    with _reading(name), archive.open(f"{name}.npy") as file:
        first_version = np.lib.format.read_magic(file) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first_version else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        return shape, dtype


def _read_array(archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
    if _header(archive, name)[1].hasobject:
        raise ValueError(
            f"array {name!r} must be numeric, got Python objects (a pickle, which is never read)."
        )
    with _reading(name), archive.open(f"{name}.npy") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"array {name!r} is damaged and cannot be read ({error}).") from error


def _tensor(name: str, array: NDArray[np.generic]) -> Tensor:
    """Numbers as float64, float32 or (integers and booleans) int64, whatever the byte order."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind not in "biuf":
        raise ValueError(f"array {name!r} must be numeric (integers or floats), got {array.dtype}.")
    if kind == "f":
        return torch.from_numpy(array.astype(np.float64 if size >= 8 else np.float32))
    return torch.from_numpy(array.astype(np.int64))


@contextmanager
def _opened_safetensors(path: Path) -> Iterator[Archive]:
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            yield list(file.keys()), file.get_tensor
    except safetensors.SafetensorError as error:
        raise ValueError(f"not a safetensors file, or a damaged one ({error}).") from error
