r"""Running statistics of features whose encoders change: means, covariances, and the same of unrelated samples.

A batch of *B* samples enters with the weight :math:`w = B/n`, where *n* counts the samples seen and stops at the
`memory`, so that the first batches weigh equally and old ones are forgotten:

.. math::
    \mu \leftarrow \mu + w\,\delta, \qquad
    C \leftarrow (1-w)\,C + w\,C_B + w(1-w)\,\delta\delta^T, \qquad \delta = \mu_B - \mu .

Without forgetting this is the covariance of all samples, to rounding. Where samples lack modalities, each pair of
modalities has weights and means of its own, those of the samples that have both. The *unrelated* covariance is that of
samples whose modalities are taken from different samples of the batch: what chance and the sample size make of
modalities that have nothing in common.

References:
    | T. F. Chan, G. H. Golub & R. J. LeVeque, The American Statistician 37, 242 (1983), for the update
    | Y. Chen, A. Wiesel, Y. C. Eldar & A. O. Hero, IEEE Trans. Signal Process. 58, 5016 (2010), for the shrinkage
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from .covariance import Coherence, Whitening, positive_definite, slices
from .spectral import Spectrum

CONSTANT = 1e-24
"""Variance, relative to the squared mean, below which a channel counts as constant."""


class Moments(nn.Module):
    """Means `(M, L)`, of the samples that have each modality, and covariances `(L, L)` of all channels, in float64.

    Arguments:
        dims: Modality name → number of channels.
        memory: How many samples are remembered; None: all.

    Raises:
        ValueError: A memory below two samples.
    """

    mean: Tensor
    covariance: Tensor
    unrelated: Tensor
    seen: Tensor
    spread: Tensor

    def __init__(self, dims: Mapping[str, int], memory: int | None = None) -> None:
        super().__init__()
        if memory is not None and memory < 2:
            raise ValueError(f"memory must be at least 2 samples, or None for all, got {memory}.")
        self.dims, self.memory = dict(dims), memory
        channels, modalities = sum(self.dims.values()), len(self.dims)
        self.register_buffer("mean", torch.zeros(modalities, channels, dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(channels, channels, dtype=torch.float64))
        self.register_buffer("unrelated", torch.zeros(channels, channels, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros(modalities, modalities, dtype=torch.float64))
        self.register_buffer("spread", torch.ones(modalities, modalities, dtype=torch.float64))

    @property
    def samples(self) -> float:
        r"""How many equally weighted samples are worth as much, :math:`1/\sum_i w_i^2`, of the pair with the fewest."""
        return float(1 / self.spread.max()) if bool((self.seen > 0).all()) else 0.0

    @torch.no_grad()
    def update(self, rows: Tensor, present: Tensor | None = None) -> bool:
        """Take in samples, `(B, L)`.

        Fewer than two, or fewer than there are modalities, of a pair of modalities are left out, because such a batch
        has no unrelated samples. Returns whether they were enough of any pair.

        Arguments:
            rows: Of every modality; what is absent may be any finite number.
            present: `(B, M)`, which modalities a sample has; None: all.
        """
        taken = False
        for pair, place, one, other in pairs(rows.to(self.mean), present, self.dims):
            if len(one) >= max(2, len(self.dims)):
                self._update(one, other, pair, place)
                taken = taken or pair[0] != pair[1]
        return taken

    def _update(self, one: Tensor, other: Tensor, pair: tuple[int, int], place: tuple[slice, slice]) -> None:
        """Take in two modalities of samples that have both, or one of them twice."""
        (first, second), (here, there), count = pair, place, len(one)
        means = one.mean(0), other.mean(0)
        one, other = one - means[0], other - means[1]
        # Each modality of another row, and none of the own one.
        mixed = other.roll(second - first, 0)
        seen = float(self.seen[pair]) + count
        seen = seen if self.memory is None else min(seen, max(self.memory, count))
        weight = count / seen
        shifts = means[0] - self.mean[second, here], means[1] - self.mean[first, there]
        outer = weight * (1 - weight) * shifts[0].unsqueeze(-1) * shifts[1]
        for kept, partner in ((self.covariance, other), (self.unrelated, mixed)):
            block = kept[here, there]
            block.mul_(1 - weight).add_(weight / count * (one.mT @ partner) + outer)
            if second > first:
                kept[there, here] = block.mT
        self.mean[second, here] += weight * shifts[0]
        if second > first:
            self.mean[first, there] += weight * shifts[1]
        spread = (1 - weight) ** 2 * float(self.spread[pair]) + weight**2 / count
        for pair_ in (pair, pair[::-1]):
            self.seen[pair_], self.spread[pair_] = seen, spread

    def coherence(self, covariance: Tensor | None = None) -> Coherence:
        """Whitening and coherence, as :func:`~fusion.grounded.measure.measure` gives them.

        The shrinkage is that of Chen et al., which needs no more than the covariance; for Gaussian samples it is
        nearer to the best than that of Ledoit and Wolf. Pairs that no sample has are unrelated.

        Arguments:
            covariance: `(L, L)`, perhaps with gradients, which then reach the result; None: the one remembered.

        Raises:
            RuntimeError: No samples were seen.
        """
        if not bool((self.seen > 0).any()):
            raise RuntimeError(
                "no batch had enough samples with several modalities to measure covariances on."
            )
        places = enumerate(slices(self.dims).values())
        return coherence_of(
            torch.cat([self.mean[number, here] for number, here in places]),
            self.covariance if covariance is None else covariance,
            (1 / self.spread.diagonal()).tolist(),
            self.dims,
        )

    def unrelated_coherence(self, coherence: Coherence) -> Coherence:
        """That of unrelated samples, from the coherence of the others: within modalities both are the same."""
        scale = torch.cat([one.scale for one in coherence.whitenings.values()])
        turn = torch.block_diag(*(one.matrix for one in coherence.whitenings.values()))
        matrix = turn @ (self.unrelated / (scale.unsqueeze(-1) * scale)) @ turn
        return Coherence(coherence.whitenings, positive_definite(matrix, self.dims), coherence.samples)


def pairs(
    rows: Tensor, present: Tensor | None, dims: Mapping[str, int]
) -> Iterator[tuple[tuple[int, int], tuple[slice, slice], Tensor, Tensor]]:
    """Every pair of modalities, by number, and each with itself.

    Gives the numbers, where the channels are, and the channels of the samples that have both, of rows `(B, L)` that
    have what is `present` `(B, M)`, or everything.
    """
    for (first, here), (second, there) in combinations_with_replacement(enumerate(slices(dims).values()), 2):
        both = rows if present is None else rows[present[:, first] & present[:, second]]
        yield (first, second), (here, there), both[:, here], both[:, there]


def coherence_of(
    mean: Tensor, covariance: Tensor, samples: Sequence[float], dims: Mapping[str, int]
) -> Coherence:
    """Whitenings and coherence from a joint covariance `(L, L)`, with its gradients; `samples` of each modality."""
    variance = covariance.diagonal()
    varies = variance > CONSTANT * mean.square()
    scale = torch.where(varies, variance, torch.ones_like(variance)).sqrt()
    correlation = covariance / (scale.unsqueeze(-1) * scale)
    correlation = torch.where(varies.unsqueeze(-1) & varies, correlation, torch.zeros_like(correlation))
    whitenings, roots = {}, []
    for (name, here), count in zip(slices(dims).items(), samples, strict=True):
        own = correlation[here, here]
        shrinkage = oracle_shrinkage(own.detach(), count)
        identity = torch.eye(len(own), dtype=own.dtype, device=own.device)
        shrunk = (1 - shrinkage) * own + shrinkage * own.diagonal().mean() * identity
        roots.append(Spectrum.of(shrunk).power(-0.5))
        whitenings[name] = Whitening(mean[here], scale[here], roots[-1], shrinkage)
    turn = torch.block_diag(*roots)
    return Coherence(
        whitenings, positive_definite(turn @ correlation @ turn, dims), max(2, round(min(samples)))
    )


def oracle_shrinkage(covariance: Tensor, samples: float) -> float:
    r"""How far a covariance `(l, l)` of that many samples is moved towards a multiple of the identity.

    .. math::
        \delta = \min\Big(1, \frac{\operatorname{tr} S^2 + \operatorname{tr}^2 S}
        {(N + 1)(\operatorname{tr} S^2 - \operatorname{tr}^2 S / l)}\Big)

    Written out here, instead of taken from scikit-learn, because there are no samples any more.

    References:
        Y. Chen et al., IEEE Trans. Signal Process. 58, 5016 (2010), equation 23 (OAS), without its terms in
        2/l, as scikit-learn has it.
    """
    channels = len(covariance)
    squares, trace = float(covariance.square().sum()), float(covariance.trace())
    numerator = squares + trace**2
    denominator = (samples + 1) * (squares - trace**2 / channels)
    if denominator <= numerator:
        return 1.0
    return max(numerator / denominator, 1e-9)
