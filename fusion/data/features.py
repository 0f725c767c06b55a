"""Features of several modalities with their labels, checked once and then relied upon."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..layers.presence import mean_of_valid, valid_steps, zero_absent
from ..randomness import seeded

PARTS = ("train", "validation", "test")
"""The parts of a split, in the order of their numbers 0, 1 and 2."""


@dataclass(frozen=True, eq=False)
class Features:
    """The features of N samples in one or more modalities.

    Attributes:
        modalities: Name → `(N, l)` or `(N, T, l)`; float32 or float64 (integers and half precision become
            float32).
        lengths: Name → `(N,)` int64 in 1 ... T, the valid steps of a sequence; a sequence that is not named
            is valid throughout. What padded steps hold is replaced by zeros.
        label: `(N,)`; int64 classes 0 ... K − 1 (from any integer type), floats for regression, or None.
        split: `(N,)` int64 of 0 (train), 1 (validation) and 2 (test), or None.
        present: Name → `(N,)` booleans (or integers 0 and 1), whether a sample has the modality; one that is
            not named is there in every sample. What absent samples hold is replaced by zeros.

    Raises:
        ValueError: No modality, no sample, a wrong shape or dtype, unequal numbers of samples, a value that
            is not finite where it is present and within the valid steps, a length out of range, a negative
            class, a split with other values or without training samples, or a sample without any modality.

    Example:
        >>> import fusion
        >>> import torch
        >>> views = {"audio": torch.randn(100, 32), "text": torch.randn(100, 16)}
        >>> features = fusion.Features(views, label=torch.randint(3, (100,)))
        >>> features.dims, features.task
        ({'audio': 32, 'text': 16}, 'classification')
    """

    modalities: dict[str, Tensor]
    lengths: dict[str, Tensor] = field(default_factory=dict)
    label: Tensor | None = None
    split: Tensor | None = None
    present: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "modalities", {name: _modality(name, values) for name, values in self.modalities.items()})
        _check_sample_counts(self.modalities)
        put(self, "present", {name: self._presence(name, values) for name, values in self.present.items()})
        _check_not_empty(self.present, len(self.modalities))
        for name, present in self.present.items():
            self.modalities[name] = zero_absent(self.modalities[name], present)
        put(self, "lengths", {name: self._length(name, values) for name, values in self.lengths.items()})
        for name, length in self.lengths.items():
            values = self.modalities[name]
            self.modalities[name] = zero_absent(values, valid_steps(length, values.shape[1]))
        for name, values in self.modalities.items():
            _check_finite(name, values)
        put(self, "label", _label(self.label, len(self)))
        put(self, "split", _split(self.split, len(self)))

    def __len__(self) -> int:
        """Number of samples, N."""
        return len(next(iter(self.modalities.values())))

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return next(iter(self.modalities.values())).device

    @property
    def dims(self) -> dict[str, int]:
        """Modality name → number of channels l."""
        return {name: values.shape[-1] for name, values in self.modalities.items()}

    @property
    def steps(self) -> dict[str, Tensor]:
        """Name of every sequence → its valid steps `(N,)`, whether `lengths` says so or all are; for layers."""
        return {
            name: self.lengths.get(name, torch.full((len(self),), values.shape[1], device=self.device))
            for name, values in self.modalities.items()
            if values.ndim == 3
        }

    @property
    def task(self) -> str | None:
        """`classification` for integer labels, `regression` for floats, None without labels."""
        if self.label is None:
            return None
        return "regression" if self.label.is_floating_point() else "classification"

    @property
    def classes(self) -> int | None:
        """Number of classes, the highest label plus one; None unless the labels are classes."""
        return int(self.label.max()) + 1 if self.label is not None and self.task == "classification" else None

    @property
    def train(self) -> "Features":
        """The training samples."""
        return self.subset("train")

    @property
    def validation(self) -> "Features":
        """The validation samples."""
        return self.subset("validation")

    @property
    def test(self) -> "Features":
        """The test samples."""
        return self.subset("test")

    def has(self, part: str) -> bool:
        """Whether the split has samples in `part`: `train`, `validation` or `test`."""
        return bool(self._in_part(part).any())

    def subset(self, part: str) -> "Features":
        """The samples of one part of the split, as features without a split.

        Raises:
            ValueError: No split, an unknown part, or a part without samples.
        """
        chosen = self._in_part(part)
        if not bool(chosen.any()):
            raise ValueError(f"split has no {part} samples (value {PARTS.index(part)}).")
        return self.rows(chosen)

    def rows(self, chosen: Tensor) -> "Features":
        """The samples chosen by a mask `(N,)` or by number, as features without a split."""
        return Features(
            {name: values[chosen] for name, values in self.modalities.items()},
            {name: values[chosen] for name, values in self.lengths.items()},
            None if self.label is None else self.label[chosen],
            present={name: values[chosen] for name, values in self.present.items()},
        )

    def select(self, names: Sequence[str]) -> "Features":
        """The modalities named, in that order.

        Raises:
            ValueError: No name, a name twice, or one that is no modality.
        """
        check_selection(names, list(self.modalities))
        return replace(
            self,
            modalities={name: self.modalities[name] for name in names},
            lengths={name: self.lengths[name] for name in names if name in self.lengths},
            present={name: self.present[name] for name in names if name in self.present},
        )

    def with_split(self, seed: int = 0) -> "Features":
        """These features with a split: their own if they have one, else a random one of 60/20/20 per cent.

        The random split depends on the seed and the labels alone. It is stratified: every class is divided
        in these proportions (to rounding, and a class of one sample goes to training).
        """
        if self.split is not None:
            return self
        groups = torch.zeros(len(self), dtype=torch.int64)
        if self.label is not None and self.task == "classification":
            groups = self.label.cpu()
        split = torch.empty_like(groups)
        with seeded(seed):
            for group in groups.unique():
                members = (groups == group).nonzero().squeeze(-1)
                rank = (torch.randperm(len(members)) + 0.5) / len(members)
                split[members] = (rank > 0.6).long() + (rank > 0.8).long()
        return replace(self, split=split.to(self.device))

    def pooled(self) -> "Features":
        r"""The same features with every sequence replaced by the mean of its valid steps.

        .. math:: \bar f = \frac{1}{T_n} \sum_{t < T_n} f_t, \qquad (N, T, l) \to (N, l)

        For what needs vectors: training and layers take sequences as they are.
        """
        pooled = {
            name: mean_of_valid(self.modalities[name], valid_steps(steps, self.modalities[name].shape[1]))
            for name, steps in self.steps.items()
        }
        return replace(self, modalities=self.modalities | pooled, lengths={})

    def to(self, device: torch.device | str) -> "Features":
        """The same features on a device."""
        return Features(
            {name: values.to(device) for name, values in self.modalities.items()},
            {name: values.to(device) for name, values in self.lengths.items()},
            None if self.label is None else self.label.to(device),
            None if self.split is None else self.split.to(device),
            {name: values.to(device) for name, values in self.present.items()},
        )

    def _in_part(self, part: str) -> Tensor:
        if part not in PARTS:
            raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}.")
        if self.split is None:
            raise ValueError("features have no split; give them one by with_split(seed).")
        return self.split == PARTS.index(part)

    def _presence(self, name: str, present: Tensor) -> Tensor:
        if name not in self.modalities:
            raise ValueError(f"{name}_present needs a modality {name!r}.")
        if present.dtype != torch.bool:
            present = _integers(f"{name}_present", present, len(self))
            _check_range(f"{name}_present", present, 0, 1)
        _check_one_per_sample(f"{name}_present", present, len(self))
        return present.bool()

    def _length(self, name: str, length: Tensor) -> Tensor:
        if name not in self.modalities or self.modalities[name].ndim != 3:
            raise ValueError(f"{name}_length needs a modality {name!r} that is a sequence (N, T, l).")
        samples, steps = self.modalities[name].shape[:2]
        length = _integers(f"{name}_length", length, samples)
        # A sequence that is absent has no steps; one of its zeros is as good as any.
        length = (
            torch.where(self.present[name], length, torch.ones_like(length))
            if name in self.present
            else length
        )
        _check_range(f"{name}_length", length, 1, steps)
        return length


def check_selection(names: Sequence[str], available: Sequence[str]) -> None:
    """Raise a ValueError unless `names` are distinct, at least one, and all available."""
    missing = [name for name in names if name not in available]
    if missing or not names or len(set(names)) < len(names):
        raise ValueError(
            f"modalities must be distinct names out of {', '.join(available) or 'none'}, "
            f"got {', '.join(names) or 'none'}."
        )


def _modality(name: str, values: Tensor) -> Tensor:
    if values.ndim not in (2, 3):
        raise ValueError(
            f"modality {name!r} must have the shape (N, l) or (N, T, l), got {tuple(values.shape)}."
        )
    if 0 in values.shape:
        raise ValueError(f"modality {name!r} must not be empty, got the shape {tuple(values.shape)}.")
    if values.is_complex():
        raise ValueError(f"modality {name!r} must hold real numbers, got {values.dtype}.")
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _check_sample_counts(modalities: Mapping[str, Tensor]) -> None:
    if not modalities:
        raise ValueError("no modality: at least one array (N, l) or (N, T, l) is needed.")
    counts = {name: len(values) for name, values in modalities.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise ValueError(f"every modality must have the same number of samples, got {listed}.")


def _check_not_empty(present: Mapping[str, Tensor], modalities: int) -> None:
    if len(present) < modalities:  # one that is not named is there everywhere
        return
    empty = ~torch.stack(list(present.values())).any(dim=0)
    if bool(empty.any()):
        raise ValueError(
            f"every sample must have at least one modality, got {int(empty.sum())} without any, "
            f"the first sample {int(empty.nonzero()[0])}."
        )


def _check_finite(name: str, values: Tensor) -> None:
    bad = ~torch.isfinite(values)
    if bool(bad.any()):
        first = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"modality {name!r} must be finite, got {int(bad.sum())} values that are NaN or infinite, "
            f"the first ({values[first].item()}) at {first}."
        )


def _label(label: Tensor | None, samples: int) -> Tensor | None:
    if label is None:
        return None
    _check_one_per_sample("label", label, samples)
    if not label.is_floating_point():
        label = _integers("label", label, samples)
        _check_range("label", label, 0, None)
        return label
    if not bool(torch.isfinite(label).all()):
        first = int((~torch.isfinite(label)).nonzero()[0])
        raise ValueError(f"label must be finite, got {label[first].item()} at sample {first}.")
    return label if label.dtype in (torch.float32, torch.float64) else label.float()


def _split(split: Tensor | None, samples: int) -> Tensor | None:
    if split is None:
        return None
    split = _integers("split", split, samples)
    _check_range("split", split, 0, 2)
    if not bool((split == 0).any()):
        raise ValueError("split must have training samples (value 0), got none.")
    return split


def _check_one_per_sample(name: str, values: Tensor, samples: int) -> None:
    if values.ndim != 1 or len(values) != samples:
        raise ValueError(
            f"{name} must have the shape (N,) with one entry for each of the {samples} samples, "
            f"got {tuple(values.shape)}."
        )


def _integers(name: str, values: Tensor, samples: int) -> Tensor:
    _check_one_per_sample(name, values, samples)
    if values.is_floating_point() or values.is_complex():
        raise ValueError(f"{name} must hold integers, got {values.dtype}.")
    return values.long()


def _check_range(name: str, values: Tensor, low: int, high: int | None) -> None:
    bad = (values < low) | (values > (values.max() if high is None else high))
    if bool(bad.any()):
        first = int(bad.nonzero()[0])
        wanted = f"{low} or more" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be {wanted}, got {int(values[first])} at sample {first}.")
