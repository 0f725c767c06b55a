"""Training that can be killed: its whole state after each epoch, and the settings it belongs to."""

import hashlib
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pnp.atomic import replacing

from ..data.features import Features

NAME = "checkpoint.pt"


@dataclass
class Checkpoint:
    """The state of a training after its last finished epoch; plain tensors, numbers and dictionaries.

    Attributes:
        settings: All that decides the result: layer, dims, task, recipe, seed, fingerprint of the data.
        history: One dictionary an epoch.
        model, optimiser, schedule: Their state dictionaries.
        best: State of the model to keep, if that is not the last.
        kept: The epoch it comes from.
    """

    settings: dict[str, Any]
    history: list[dict[str, Any]]
    model: dict[str, Any]
    optimiser: dict[str, Any]
    schedule: dict[str, Any]
    best: dict[str, Any] | None
    kept: int


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in `folder` atomically."""
    with replacing(folder / NAME) as temporary:
        torch.save(vars(checkpoint), temporary)


def load_checkpoint(folder: Path, settings: dict[str, Any], device: torch.device) -> Checkpoint | None:
    """The checkpoint in `folder`, or None if there is none.

    Raises:
        ValueError: It belongs to other settings (the text lists them), or is no checkpoint.
    """
    path = folder / NAME
    if not path.is_file():
        return None
    try:
        found = Checkpoint(**torch.load(path, map_location=device, weights_only=True))
    except (pickle.UnpicklingError, RuntimeError, EOFError, TypeError) as error:
        raise ValueError(f"{path} is not a checkpoint of this version: {error}") from error
    differences = _differences(found.settings, settings)
    if differences:
        raise ValueError(
            f"{path} belongs to a training with other settings ({'; '.join(differences)}): "
            "resume with the same ones, or train into another folder."
        )
    return found


def fingerprint(features: Features) -> str:
    """A hash of all numbers and names in the features: two files with the same one train alike."""
    digest = hashlib.sha256()
    arrays = features.modalities | {f"{name}_length": values for name, values in features.lengths.items()}
    arrays |= {f"{name}_present": values for name, values in features.present.items()}
    arrays |= {f"_{name}": getattr(features, name) for name in ("label", "split")}
    for name, values in arrays.items():
        if values is not None:
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
            digest.update(values.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    differences = []
    for name in new:
        before, now = old.get(name), new[name]
        if isinstance(before, dict) and isinstance(now, dict):
            differences += _differences(before, now, f"{prefix}{name}.")
        elif before != now:
            differences.append(f"{prefix}{name} was {before}, now {now}")
    return differences
