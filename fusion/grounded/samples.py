"""Features as samples that one can go over more than once, whether they fit into memory or not."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layers.presence import zero_absent

BLOCK = 8192
"""Samples of a stream that are in memory together."""
LARGEST = 1e150
"""Numbers beyond have squares that overflow."""

Chunk = Mapping[str, Tensor] | tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
"""Features `{name: (n, l)}`, or a pair of those and of which are there, `{name: (n,)}`."""
Source = Mapping[str, Tensor] | Iterable[Chunk] | Callable[[], Iterable[Chunk]]
"""All features in memory; or their chunks, again and again: an iterable, or a function that returns one."""


@dataclass(frozen=True, eq=False)
class Block:
    """Samples in memory: `{name: (n, l)}`, and `{name: (n,)}` for modalities that some of them lack."""

    features: dict[str, Tensor]
    present: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.features.values())))

    def rows(self, name: str, chosen: Tensor | slice) -> tuple[Tensor, Tensor]:
        """A modality of some samples in float64, zero where it is absent, and where it is there, `(n,)`."""
        values = self.features[name][chosen]
        if name not in self.present:
            return values.double(), torch.ones(len(values), dtype=torch.bool, device=values.device)
        there = self.present[name][chosen]
        return zero_absent(values.double(), there), there


class Samples:
    """Samples of several modalities from anything that :data:`Source` allows.

    Arguments:
        source: In memory, or in chunks.
        present: `{name: (samples,)}` of features in memory; modalities that are not named are there everywhere.

    Raises:
        ValueError: An iterable that can be gone over only once; when the samples are gone over: fewer than two
            modalities, other modalities or lengths than in the first chunk, unequal counts, or numbers that are
            not finite (or beyond 1e150) where they are present.
    """

    def __init__(self, source: Source, present: Mapping[str, Tensor] | None = None) -> None:
        self.in_memory = isinstance(source, Mapping)
        if present is not None and not self.in_memory:
            raise ValueError("present: chunks bring their own, as pairs (features, present).")
        if not (isinstance(source, Mapping) or callable(source)) and iter(source) is source:
            raise ValueError(
                "features: chunks are needed twice, and this iterator ends after once: give a function that "
                "returns a new one, or a list or a loader of chunks."
            )
        self._source, self._present = source, present
        self.dims: dict[str, int] = {}

    def __iter__(self) -> Iterator[Block]:
        """Go over the samples, in the chunks that are given."""
        for number, chunk in enumerate(self._chunks()):
            where = "" if self.in_memory else f"chunk {number}: "
            features, present = chunk if isinstance(chunk, tuple) else (chunk, {})
            yield self._checked(features, present, where)

    def blocks(self) -> Iterator[Block]:
        """Go over the samples in blocks: all at once if they are in memory, else BLOCK at a time."""
        if self.in_memory:
            yield from self
            return
        held: list[Block] = []
        for block in self:
            held.append(block)
            while sum(map(len, held)) >= BLOCK:
                whole = _joined(held)
                yield _cut(whole, slice(0, BLOCK))
                held = [_cut(whole, slice(BLOCK, None))]
        if sum(map(len, held)):
            yield _joined(held)

    def _chunks(self) -> Iterable[Chunk]:
        if isinstance(self._source, Mapping):
            return [(self._source, self._present or {})]
        return self._source() if callable(self._source) else self._source

    def _checked(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor], where: str) -> Block:
        if not isinstance(features, Mapping) or len(features) < 2:
            found = list(features) if isinstance(features, Mapping) else type(features).__name__
            raise ValueError(f"{where}features: at least two modalities are needed, got {found}.")
        for name, values in features.items():
            _check_modality(f"{where}features[{name!r}]", values)
        counts = {name: len(values) for name, values in features.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"{where}features: every modality must have the same samples, got {counts}.")
        dims = {name: values.shape[-1] for name, values in features.items()}
        self.dims = self.dims or dims
        if dims != self.dims:
            raise ValueError(f"{where}features: channels must be {self.dims} as before, got {dims}.")
        for name, there in present.items():
            if name not in features or there.dtype != torch.bool or there.shape != features[name].shape[:1]:
                raise ValueError(
                    f"{where}present[{name!r}] must be booleans (samples,) of a modality, "
                    f"got {there.dtype} {tuple(there.shape)}."
                )
        block = Block(dict(features), dict(present))
        for name, values in features.items():
            seen = values if name not in present else zero_absent(values, present[name])
            # Both ends are NaN if anything is, and need no mask as large as the features.
            low, high = torch.aminmax(seen) if len(seen) else (0.0, 0.0)
            if not (float(low) >= -LARGEST and float(high) <= LARGEST):
                raise ValueError(
                    f"{where}features[{name!r}] must be finite and at most {LARGEST:g} in size, got values "
                    f"from {float(low):g} to {float(high):g}."
                )
        return block


def _check_modality(what: str, values: Tensor) -> None:
    if not isinstance(values, Tensor) or values.dim() != 2 or values.shape[1] == 0:
        found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"{what} must be (samples, channels), got {found}.")


def _joined(blocks: list[Block]) -> Block:
    if len(blocks) == 1:
        return blocks[0]
    features = {name: torch.cat([one.features[name] for one in blocks]) for name in blocks[0].features}
    lacking = dict.fromkeys(name for one in blocks for name in one.present)
    everywhere = [torch.ones(len(one), dtype=torch.bool) for one in blocks]
    present = {
        name: torch.cat(
            [
                one.present.get(name, full.to(one.features[name].device))
                for one, full in zip(blocks, everywhere, strict=True)
            ]
        )
        for name in lacking
    }
    return Block(features, present)


def _cut(block: Block, rows: slice) -> Block:
    return Block(
        {name: values[rows] for name, values in block.features.items()},
        {name: values[rows] for name, values in block.present.items()},
    )
