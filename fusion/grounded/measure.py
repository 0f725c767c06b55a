r"""Joint statistics measured on samples that need not fit into memory, in two passes.

The first pass finds means and standard deviations, block by block,

.. math::
    \mu \leftarrow \mu + \tfrac{n_B}{n}\,\delta, \qquad
    M \leftarrow M + M_B + \tfrac{n_B(n - n_B)}{n}\,\delta^2, \qquad \delta = \mu_B - \mu,

with *n* counting the block; nothing cancels, whatever the offsets. The second adds up products of standardised
channels: within modalities, between them, and between samples that were *shuffled*, which is what chance makes of
unrelated modalities. The shrinkage needs :math:`\overline{|x|^4}` of standardised samples, which is why one pass would
not do.

In memory every modality is shuffled as a whole. A stream is shuffled within blocks of
:data:`~fusion.grounded.samples.BLOCK` samples, with random signs if there are several, so that the means of blocks,
which shuffling leaves where they are, cannot pass for something shared.

References:
    T. F. Chan, G. H. Golub & R. J. LeVeque, The American Statistician 37, 242 (1983).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..randomness import seeded
from .covariance import Coherence, Whitening, ledoit_wolf, positive_definite, slices, whitening_matrix
from .samples import BLOCK, Block, Samples, Source

ROWS = 2048
"""Samples that are float64 at once."""
COLUMNS = 1024
"""Channels whose products are formed at once: of symmetric matrices only the lower blocks."""

Pair = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Measured:
    """What :func:`measure` finds.

    Attributes:
        coherence: Joint statistics.
        unrelated: Coherence matrices before they are made definite, as chance would have them: one cross-covariance
            for every pair of modalities and every shuffle.
    """

    coherence: Coherence
    unrelated: list[dict[Pair, Tensor]]


@torch.no_grad()
def measure(
    source: Source, *, present: Mapping[str, Tensor] | None = None, shuffles: int = 0, seed: int = 0
) -> Measured:
    """Measure the coherence of features in float64 on their device.

    Arguments:
        source: `{name: (samples, l)}`, or chunks of that, see :data:`~fusion.grounded.samples.Source`.
        present: `{name: (samples,)}` of features in memory.
        shuffles: How often to shuffle, and `seed` of it.

    Raises:
        ValueError: Fewer than two samples of a modality or of a pair of them, chunks that are not the same the second
            time, or anything :class:`~fusion.grounded.samples.Samples` finds wrong.
    """
    samples = Samples(source, present)
    spread = _Spread()
    for block in samples:
        spread.add(block)
    mean, scale = spread.finish()
    products = _Products(mean, scale, shuffles, seed, signs=not samples.in_memory and spread.samples > BLOCK)
    for block in samples.blocks():
        products.add(block)
    if products.counts != spread.counts:
        raise ValueError(
            f"features: the chunks must be the same both times, got {spread.counts} samples and then "
            f"{products.counts}."
        )
    return products.finish(spread.samples)


def assemble(across: Mapping[Pair, Tensor], dims: Mapping[str, int]) -> Tensor:
    """A positive definite coherence `(L, L)` from the cross-covariances of pairs of modalities."""
    where = slices(dims)
    first = next(iter(across.values()))
    matrix = torch.eye(sum(dims.values()), dtype=first.dtype, device=first.device)
    for (one, other), block in across.items():
        matrix[where[one], where[other]] = block
        matrix[where[other], where[one]] = block.mT
    return positive_definite(matrix, dims)


class _Spread:
    """The first pass: means, sums of squared deviations and largest sizes of all channels."""

    def __init__(self) -> None:
        self.samples = 0
        self.counts: dict[str, int] = {}
        self.mean: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self.largest: dict[str, Tensor] = {}

    def add(self, block: Block) -> None:
        self.samples += len(block)
        for name, values in block.features.items():
            if name not in self.counts:
                self.counts[name] = 0
                zero = torch.zeros(values.shape[1], dtype=torch.float64, device=values.device)
                self.mean[name], self.squares[name], self.largest[name] = zero, zero, zero
            for start in range(0, len(block), ROWS):
                rows, there = block.rows(name, slice(start, start + ROWS))
                if not bool(there.all()):
                    rows = rows[there]
                self._add(name, rows)

    def _add(self, name: str, rows: Tensor) -> None:
        if not len(rows):
            return
        before, count = self.counts[name], self.counts[name] + len(rows)
        mean = rows.mean(0)
        shift = mean - self.mean[name]
        deviations = (rows - mean).square_().sum(0)
        self.squares[name] = self.squares[name] + deviations + shift**2 * (before * len(rows) / count)
        self.mean[name] = self.mean[name] + shift * (len(rows) / count)
        self.largest[name] = torch.maximum(self.largest[name], rows.abs().amax(0))
        self.counts[name] = count

    def finish(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Means and standard deviations, infinity where a channel is constant."""
        if min(self.counts.values(), default=0) < 2:
            raise ValueError(f"features: at least two samples are needed, got {self.counts}.")
        scale = {}
        for name, squares in self.squares.items():
            found = (squares / self.counts[name]).sqrt()
            constant = found <= 1e-12 * self.largest[name].clamp(min=1e-300)
            scale[name] = found.masked_fill(constant, torch.inf)
        return self.mean, scale


class _Products:
    """The second pass: products of standardised channels, of samples as they are and shuffled."""

    def __init__(
        self, mean: dict[str, Tensor], scale: dict[str, Tensor], shuffles: int, seed: int, signs: bool
    ) -> None:
        self.mean, self.scale, self.signs = mean, scale, signs
        self.pairs = list(combinations(mean, 2))
        # Only the order relative to one modality matters: the widest stays where it is.
        self.fixed = max(mean, key=lambda name: len(mean[name]))
        with seeded(seed):
            self.generator = torch.Generator().set_state(torch.get_rng_state())
        self.counts = dict.fromkeys(mean, 0)
        self.within = {name: one.new_zeros(len(one), len(one)) for name, one in mean.items()}
        self.fourth = {name: one.new_zeros(()) for name, one in mean.items()}
        self.related = _Across(mean, self.pairs)
        self.unrelated = [_Across(mean, self.pairs) for _ in range(shuffles)]

    def add(self, block: Block) -> None:
        orders = [self._order(block) for _ in self.unrelated]
        for start in range(0, len(block), ROWS):
            rows = slice(start, start + ROWS)
            here = {name: self._standardised(block, name, rows) for name in self.mean}
            for name, (values, there) in here.items():
                self.counts[name] += int(there.sum())
                self.fourth[name] += values.square().sum(-1).square().sum()
                _add_lower(self.within[name], values)
            self.related.add(here)
            for order, unrelated in zip(orders, self.unrelated, strict=True):
                shuffled = {name: self._shuffled(block, name, *order[name], rows) for name in order}
                unrelated.add(shuffled | {self.fixed: here[self.fixed]})

    def finish(self, samples: int) -> Measured:
        whitenings = {}
        for name, products in self.within.items():
            lower = products.div_(self.counts[name]).tril_()
            sample = lower + lower.tril(-1).mT
            covariance, shrinkage = ledoit_wolf(
                sample, self.fourth[name] / self.counts[name], self.counts[name]
            )
            del lower, sample
            scale = self.scale[name].masked_fill(self.scale[name].isinf(), 1.0)
            whitenings[name] = Whitening(self.mean[name], scale, whitening_matrix(covariance), shrinkage)
        across = self.related.whitened(whitenings, self.related)
        unrelated = [one.whitened(whitenings, self.related) for one in self.unrelated]
        dims = {name: len(one) for name, one in self.mean.items()}
        return Measured(Coherence(whitenings, assemble(across, dims), samples), unrelated)

    def _standardised(self, block: Block, name: str, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        values, there = block.rows(name, rows)
        values = (values - self.mean[name]).div_(self.scale[name])
        return (values if name not in block.present else values * there[:, None]), there

    def _order(self, block: Block) -> dict[str, tuple[Tensor, Tensor | None]]:
        """Where each modality but the fixed one comes from, `(n,)`, and with which signs."""
        size = len(block)
        drawn = {name: torch.randperm(size, generator=self.generator) for name in self.mean}
        back = drawn[self.fixed].argsort()
        found: dict[str, tuple[Tensor, Tensor | None]] = {}
        for name, order in drawn.items():
            if name != self.fixed:
                signs = torch.randint(2, (size, 1), generator=self.generator) * 2 - 1 if self.signs else None
                found[name] = (order[back].to(self.mean[name].device), signs)
        return found

    def _shuffled(
        self, block: Block, name: str, order: Tensor, signs: Tensor | None, rows: slice
    ) -> tuple[Tensor, Tensor]:
        values, there = self._standardised(block, name, order[rows])
        return (values if signs is None else values * signs[rows].to(values)), there


class _Across:
    """Sums of products between modalities, and over how many samples."""

    def __init__(self, mean: Mapping[str, Tensor], pairs: list[Pair]) -> None:
        self.sums = {(a, b): mean[a].new_zeros(len(mean[a]), len(mean[b])) for a, b in pairs}
        self.counts = dict.fromkeys(pairs, 0)

    def add(self, rows: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        for (one, other), total in self.sums.items():
            (a, in_a), (b, in_b) = rows[one], rows[other]
            total.addmm_(a.mT, b)
            self.counts[one, other] += int((in_a & in_b).sum())

    def whitened(self, whitenings: Mapping[str, Whitening], related: "_Across") -> dict[Pair, Tensor]:
        """Cross-covariances of whitened channels, with the chance of as many samples as are `related`."""
        found = {}
        for (one, other), total in self.sums.items():
            pair = one, other
            if related.counts[pair] < 2:
                raise ValueError(
                    f"features: at least two samples must have both {one!r} and {other!r}, "
                    f"got {related.counts[pair]}."
                )
            count = max(self.counts[pair] * related.counts[pair], 1) ** 0.5
            found[pair] = whitenings[one].matrix.mT @ (total / count) @ whitenings[other].matrix
        return found


def _add_lower(total: Tensor, rows: Tensor) -> None:
    """Add the products of channels to the lower triangle of `(l, l)`; what is above it has no meaning."""
    for start in range(0, len(total), COLUMNS):
        end = start + COLUMNS
        total[start:, start:end].addmm_(rows[:, start:].mT, rows[:, start:end])
