"""What :func:`~fusion.dissociate` found, as a `.safetensors` file: tensors and numbers, no pickles.

The cells are kept as their valences, voltage, ground, permittivity and ion size and settle again when a file is read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pnp
from pnp.atomic import replacing

from ..extras import require
from .covariance import Coherence, Whitening
from .subspaces import Channels, Subspaces
from .transport import channel_cell, equilibrate

KIND, VERSION = "fusion.Subspaces", 2
OF_WHITENING = ("mean", "scale", "matrix")
OF_CHANNELS = ("basis", "predictability", "valences", "gates", "frame")


def save_subspaces(path: Path | str, subspaces: Subspaces) -> None:
    """Write subspaces to a `.safetensors` file; an existing file is replaced atomically.

    Raises:
        ValueError: Another suffix.
        ModuleNotFoundError: safetensors is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(2000, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> fusion.save_subspaces("found.safetensors", fusion.dissociate(data.modalities))
        >>> print(fusion.load_subspaces("found.safetensors"))
        2 modalities, 2000 samples
          a: 8 channels, 2.0 of them invariant (noise level 0.011, total charge +1.87)
          b: 6 channels, 2.0 of them invariant (noise level 0.011, total charge +1.90)
    """
    path = _checked(path)
    tensors = {"coherence": subspaces.coherence.matrix}
    about: dict[str, Any] = {"kind": KIND, "version": VERSION, "samples": subspaces.coherence.samples}
    about["modalities"] = []
    for index, (name, one) in enumerate(subspaces.channels.items()):
        whitening = subspaces.coherence.whitenings[name]
        tensors |= {f"{index}.{key}": getattr(whitening, key) for key in OF_WHITENING}
        tensors |= {f"{index}.{key}": getattr(one, key) for key in OF_CHANNELS}
        about["modalities"].append(
            {
                "name": name,
                "shrinkage": whitening.shrinkage,
                "noise_level": one.noise_level,
                "voltage": one.voltage,
                "ground": float(one.cell.ground),
                "permittivity": float(one.cell.electrolyte.permittivity),
                "ion_size": float(one.cell.electrolyte.molar_volumes[..., 0]),
            }
        )
    kept = {key: values.detach().cpu().contiguous() for key, values in tensors.items()}
    content = require("safetensors.torch").save(kept, metadata={"about": json.dumps(about)})
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def load_subspaces(path: Path | str, *, device: torch.device | str = "cpu") -> Subspaces:
    """Read subspaces from a file of :func:`save_subspaces`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Another suffix, a damaged file, one of something else or of a later version, or tensors that do
            not fit each other.
        ModuleNotFoundError: safetensors is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(2000, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> found = fusion.dissociate(data.modalities)
        >>> fusion.save_subspaces("found.safetensors", found)
        >>> again = fusion.load_subspaces("found.safetensors")
        >>> bool((again.channels["a"].gates == found.channels["a"].gates).all())
        True
    """
    path = _checked(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt", device=str(device)) as file:
            about = json.loads((file.metadata() or {}).get("about", "{}"))
            _check_kind(about)
            return _restored(_Archive(file), about)
    except (safetensors.SafetensorError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: not a file of subspaces that can be read ({reason}).") from error


@dataclass(frozen=True)
class _Archive:
    """Tensors of a file, of the shapes that are expected."""

    file: Any

    def read(self, key: str, *shape: int) -> Tensor:
        values = self.file.get_tensor(key)
        if values.shape != shape or values.dtype != torch.float64 or not bool(values.isfinite().all()):
            raise ValueError(
                f"{key} must be finite float64 of shape {shape}, got {values.dtype} {tuple(values.shape)}"
            )
        return values


def _checked(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"path: a file of subspaces must end in .safetensors, got {path.name!r}.")
    return path


def _check_kind(about: Any) -> None:
    if not isinstance(about, dict) or about.get("kind") != KIND:
        raise ValueError("it holds something else")
    if about.get("version") != VERSION:
        raise ValueError(f"version {about.get('version')}, and this release reads version {VERSION}")


def _restored(archive: _Archive, about: dict[str, Any]) -> Subspaces:
    modalities = about["modalities"]
    dims = {
        one["name"]: archive.file.get_slice(f"{i}.mean").get_shape()[0] for i, one in enumerate(modalities)
    }
    if len(dims) < 2 or len(dims) < len(modalities):
        raise ValueError(f"at least two modalities of different names are needed, got {list(dims)}")
    total, width = sum(dims.values()), min(dims.values())
    whitenings, channels = {}, {}
    for index, one in enumerate(modalities):
        name, length = one["name"], dims[one["name"]]
        mean, scale = (archive.read(f"{index}.{key}", length) for key in ("mean", "scale"))
        matrix = archive.read(f"{index}.matrix", length, length)
        whitenings[name] = Whitening(mean, scale, matrix, float(one["shrinkage"]))
        predictability, valences, gates = (
            archive.read(f"{index}.{key}", length) for key in ("predictability", "valences", "gates")
        )
        channels[name] = Channels(
            basis=archive.read(f"{index}.basis", length, length),
            predictability=predictability,
            noise_level=float(one["noise_level"]),
            valences=valences,
            voltage=float(one["voltage"]),
            solution=_settled(valences, one),
            gates=gates,
            frame=archive.read(f"{index}.frame", length, width),
        )
    matrix = archive.read("coherence", total, total)
    return Subspaces(Coherence(whitenings, matrix, int(about["samples"])), channels)


def _settled(valences: Tensor, one: dict[str, Any]) -> pnp.Solution:
    strength = float(valences.square().mean().clamp(min=1e-12))
    return equilibrate(
        channel_cell(
            valences,
            voltage=float(one["voltage"]),
            ground=float(one["ground"]),
            debye_length=(float(one["permittivity"]) / strength) ** 0.5,
            ion_size=float(one["ion_size"]),
        )
    )
