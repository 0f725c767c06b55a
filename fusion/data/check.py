"""What is in a feature file, what is wrong with it, and how to mend it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .feature_file import load_features, opened, roles
from .features import PARTS, Features

FEW = 5
"""Samples of a class below which little can be learnt of it or said about it."""

MENDING = {
    "must be finite": "Replace such values, or mark the samples in <name>_present, where False means missing.",
    "same number of samples": "Row n of every array belongs to sample n; cut or align them.",
    "label must be": "Number the classes from 0: np.unique(label, return_inverse=True)[1].",
    "split must": "Use 0 for training, 1 for validation, 2 for test samples, or leave it out.",
    "one entry for each": "Its length must be that of the modalities' first axis.",
    "at least one modality": "Drop these samples.",
    "must not be empty": "Leave the array out.",
    "_length": "Lengths count valid steps from the first, 1 to T, as integers.",
}
"""What to do about what :class:`Features` finds wrong, by words of its message."""


@dataclass(frozen=True)
class Finding:
    """One thing found in a feature file.

    Attributes:
        kind: `found` (what is there), `warning` (it can be used, but look) or `wrong` (it cannot be used).
        text: What it is and, unless it is just there, how to mend it.
    """

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind:8} {self.text}"


def check_file(path: Path | str) -> list[Finding]:
    """Look at every array of a feature file, and go on where :func:`load_features` would stop.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not an archive at all.
        ModuleNotFoundError: A `.safetensors` file without the library installed.

    Example:
        >>> import fusion
        >>> import numpy as np
        >>> np.savez("mine.npz", audio=np.arange(120.0).reshape(30, 4), label=np.arange(30) % 2)
        >>> for finding in fusion.check_file("mine.npz"):
        ...     print(finding)
        found    'audio': 30 × 4 (samples × channels), float64
        wrong    one modality: fusion needs two or more. Add another array of as many samples.
        found    label: 2 classes of 15 to 15 samples
        found    no split: 60/20/20 per cent will be drawn by each seed
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file.")
    findings: list[Finding] = []
    with opened(path) as (names, read):
        for name in roles(names).modalities:
            try:
                findings += _of_array(name, read(name))
            except ValueError as error:
                findings.append(Finding("wrong", f"{error} Write it with np.savez, as numbers."))
    try:
        features = load_features(path)
    except ValueError as error:
        stopped = str(error).removeprefix(f"{path}: ")
        if not any(finding.kind == "wrong" for finding in findings):
            mend = next((hint for begin, hint in MENDING.items() if begin in stopped), "")
            findings.append(Finding("wrong", f"{stopped} {mend}".strip()))
        return findings
    return [*findings, *_of_features(features)]


def _of_array(name: str, values: Tensor) -> Iterator[Finding]:
    shape = " × ".join(str(size) for size in values.shape)
    kind = {2: "samples × channels", 3: "samples × steps × channels"}.get(values.ndim)
    if kind is None:
        yield Finding(
            "wrong",
            f"{name!r}: {shape}, but a modality is samples × channels or samples × steps × channels. "
            "Reshape it, or rename it if it is a label, split, length or presence.",
        )
        return
    yield Finding("found", f"{name!r}: {shape} ({kind}), {str(values.dtype).removeprefix('torch.')}")


def _of_features(features: Features) -> Iterator[Finding]:
    everywhere = torch.ones(len(features), dtype=torch.bool)
    for name, values in features.pooled().modalities.items():
        have = features.present.get(name, everywhere)
        if name in features.present:
            yield Finding("found", f"{name!r} is present in {int(have.sum())} of {len(features)} samples")
        if name in features.steps:
            steps = features.steps[name][have]
            text = f"{int(steps.min())} to {int(steps.max())} valid steps" if len(steps) else "no valid step"
            yield Finding("found", f"{name!r} has {text}; its channels are looked at as means over them")
        if int(have.sum()) < 2:
            yield Finding("warning", f"{name!r} is present in fewer than two samples. Leave it out.")
            continue
        yield from _of_channels(name, values[have].double())
    if len(features.modalities) < 2:
        yield Finding(
            "wrong", "one modality: fusion needs two or more. Add another array of as many samples."
        )
    yield from _of_label(features)
    yield from _of_split(features)


def _of_channels(name: str, rows: Tensor) -> Iterator[Finding]:
    spread, middle = rows.std(dim=0, correction=0), rows.mean(dim=0)
    constant = spread <= 1e-12 * rows.abs().amax(dim=0).clamp(min=1e-300)
    if bool(constant.any()):
        yield Finding(
            "warning",
            f"{name!r}: {int(constant.sum())} of {rows.shape[1]} channels never change "
            f"({_first(constant)}). They carry nothing; drop them with x[:, x.std(0) > 0].",
        )
    duplicates = rows.shape[1] - len(torch.unique(rows.T[~constant], dim=0)) - int(constant.sum())
    if duplicates:
        yield Finding(
            "warning",
            f"{name!r}: {duplicates} channels repeat another one. np.unique(x, axis=1) keeps one of each.",
        )
    alive = spread[~constant]
    if len(alive) and float(alive.max() / alive.min()) > 1e3:
        yield Finding(
            "warning",
            f"{name!r}: standard deviations from {float(alive.min()):.2g} to {float(alive.max()):.2g}. "
            "Leave standardise on, as it is by default, or scale the channels.",
        )
    if len(alive) and float((middle.abs()[~constant] / alive).max()) > 1e4:
        yield Finding(
            "warning",
            f"{name!r}: a channel's mean is over 10,000 of its deviations. Subtract it, in float64.",
        )
    far = ((rows - middle).abs() > 20 * spread.clamp(min=1e-300)) & ~constant
    if bool(far.any()):
        yield Finding(
            "warning",
            f"{name!r}: {int(far.sum())} values lie over 20 deviations from the mean, the first in sample "
            f"{int(far.any(dim=1).nonzero()[0])}. Look whether they are real.",
        )
    if len(rows) <= rows.shape[1]:
        yield Finding(
            "warning",
            f"{name!r}: {rows.shape[1]} channels but {len(rows)} samples. Reduce them first, by PCA for instance.",
        )


def _of_label(features: Features) -> Iterator[Finding]:
    label = features.label
    if label is None:
        yield Finding(
            "found", "no label: good for migrate and retrieval; training else needs one, shape (N,)"
        )
        return
    if features.classes is None:
        yield Finding("found", f"label: regression, {float(label.min()):.4g} to {float(label.max()):.4g}")
        if bool((label == label.round()).all()) and len(label.unique()) < len(label) / 10:
            yield Finding("warning", "label holds whole numbers as floats. For classes: label.astype(int).")
        return
    counts = torch.bincount(label)
    yield Finding(
        "found", f"label: {len(counts)} classes of {int(counts.min())} to {int(counts.max())} samples"
    )
    if bool((counts == 0).any()):
        yield Finding(
            "warning",
            f"label: no sample of {_first(counts == 0, 'class')}. "
            "np.unique(label, return_inverse=True)[1] numbers them anew.",
        )
    few = (counts > 0) & (counts < FEW)
    if bool(few.any()):
        yield Finding("warning", f"label: fewer than {FEW} samples of {_first(few, 'class')}. Merge or drop.")
    if len(counts) > len(label) / 2:
        yield Finding("warning", "label: more classes than half the samples. For a regression use floats.")


def _of_split(features: Features) -> Iterator[Finding]:
    if features.split is None:
        yield Finding("found", "no split: 60/20/20 per cent will be drawn by each seed")
        return
    counts = [int((features.split == number).sum()) for number in range(3)]
    yield Finding(
        "found", "split: " + ", ".join(f"{n} {part}" for n, part in zip(counts, PARTS, strict=True))
    )
    for number, what in (
        (1, "keep='best', patience and plateau need them"),
        (2, "there is nothing to score"),
    ):
        if counts[number] == 0:
            yield Finding("warning", f"split: no {PARTS[number]} samples (value {number}); {what}.")
    if features.classes is not None and features.label is not None:
        seen = torch.zeros(features.classes, dtype=torch.bool)
        seen[features.label[features.split == 0]] = True
        unseen = ~seen & (torch.bincount(features.label) > 0)
        if bool(unseen.any()):
            yield Finding("warning", f"split: no training sample of {_first(unseen, 'class')}. Stratify it.")
    joint = torch.cat([values.flatten(1).double() for values in features.modalities.values()], dim=1)
    _, group = torch.unique(joint, dim=0, return_inverse=True)
    shared = torch.isin(group[features.split == 2], group[features.split == 0])
    if bool(shared.any()):
        yield Finding(
            "warning",
            f"split: {int(shared.sum())} test samples are also training samples. Drop them from one.",
        )


def _first(mask: Tensor, what: str = "channel") -> str:
    """`channels 3, 5, 8, ...` where the mask is true."""
    numbers = mask.nonzero().squeeze(-1).tolist()
    plural = ("es" if what.endswith("s") else "s") if len(numbers) > 1 else ""
    return f"{what}{plural} {', '.join(map(str, numbers[:5]))}{', ...' if len(numbers) > 5 else ''}"
