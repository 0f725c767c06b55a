r"""Running statistics of features whose encoders change: means, covariances, and the same of unrelated samples.

A batch of *B* samples enters with the weight :math:`w = B/n`, where *n* counts the samples seen and stops at the
`memory`, so that the first batches weigh equally and old ones are forgotten:

.. math::
    \mu \leftarrow \mu + w\,\delta, \qquad
    C \leftarrow (1-w)\,C + w\,C_B + w(1-w)\,\delta\delta^T, \qquad \delta = \mu_B - \mu .

Without forgetting this is the covariance of all samples, to rounding. The *unrelated* covariance is that of samples
whose modalities are taken from different samples of the batch: what chance and the sample size make of modalities
that have nothing in common.

References:
    | T. F. Chan, G. H. Golub & R. J. LeVeque, The American Statistician 37, 242 (1983), for the update
    | Y. Chen, A. Wiesel, Y. C. Eldar & A. O. Hero, IEEE Trans. Signal Process. 58, 5016 (2010), for the shrinkage
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .covariance import Coherence, Whitening, positive_definite, slices
from .spectral import Spectrum

CONSTANT = 1e-24
"""Variance, relative to the squared mean, below which a channel counts as constant."""


class Moments(nn.Module):
    """Means and covariances `(L,)`, `(L, L)` of all channels of several modalities, in float64.

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
        channels = sum(self.dims.values())
        self.register_buffer("mean", torch.zeros(channels, dtype=torch.float64))
        self.register_buffer("covariance", torch.zeros(channels, channels, dtype=torch.float64))
        self.register_buffer("unrelated", torch.zeros(channels, channels, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.float64))
        self.register_buffer("spread", torch.ones((), dtype=torch.float64))

    @property
    def samples(self) -> float:
        r"""How many equally weighted samples are worth as much, :math:`1/\sum_i w_i^2`."""
        return float(1 / self.spread) if self.seen > 0 else 0.0

    @torch.no_grad()
    def update(self, rows: Tensor) -> bool:
        """Take in samples that have every modality, `(B, L)`.

        Fewer than two, or fewer than there are modalities, are left out, because such a batch has no unrelated
        samples. Returns whether they were enough.
        """
        count = len(rows)
        if count < max(2, len(self.dims)):
            return False
        rows = rows.to(self.mean)
        mean = rows.mean(0)
        centred = rows - mean
        mixed = self._mixed(centred)
        covariance, unrelated = (one.mT @ one / count for one in (centred, mixed))
        self.seen.add_(count)
        if self.memory is not None:
            self.seen.clamp_(max=max(self.memory, count))
        weight = count / float(self.seen)
        shift = mean - self.mean
        outer = weight * (1 - weight) * shift.unsqueeze(-1) * shift
        for kept, new in ((self.covariance, covariance), (self.unrelated, unrelated)):
            kept.mul_(1 - weight).add_(weight * new + outer)
        self.mean.add_(weight * shift)
        self.spread.copy_((1 - weight) ** 2 * self.spread + weight**2 / count)
        return True

    def coherence(self, covariance: Tensor | None = None) -> Coherence:
        """Whitening and coherence, as :func:`~fusion.grounded.measure.measure` gives them.

        The shrinkage is that of Chen et al., which needs no more than the covariance; for Gaussian samples it is
        nearer to the best than that of Ledoit and Wolf.

        Arguments:
            covariance: `(L, L)`, perhaps with gradients, which then reach the result; None: the one remembered.

        Raises:
            RuntimeError: No samples were seen.
        """
        if self.seen == 0:
            raise RuntimeError("no batch had enough samples with every modality to measure covariances on.")
        return coherence_of(
            self.mean,
            self.covariance if covariance is None else covariance,
            self.samples,
            self.dims,
        )

    def unrelated_coherence(self, coherence: Coherence) -> Coherence:
        """That of unrelated samples, from the coherence of the others: within modalities both are the same."""
        scale = torch.cat([one.scale for one in coherence.whitenings.values()])
        turn = torch.block_diag(*(one.matrix for one in coherence.whitenings.values()))
        matrix = turn @ (self.unrelated / (scale.unsqueeze(-1) * scale)) @ turn
        return Coherence(coherence.whitenings, positive_definite(matrix, self.dims), coherence.samples)

    def _mixed(self, centred: Tensor) -> Tensor:
        """Samples put together from different ones: each modality from another row."""
        where = slices(self.dims).values()
        return torch.cat([centred[:, here].roll(shift, 0) for shift, here in enumerate(where)], dim=-1)


def coherence_of(mean: Tensor, covariance: Tensor, samples: float, dims: Mapping[str, int]) -> Coherence:
    """Whitenings and coherence from a joint covariance `(L, L)`, with its gradients."""
    variance = covariance.diagonal()
    varies = variance > CONSTANT * mean.square()
    scale = torch.where(varies, variance, torch.ones_like(variance)).sqrt()
    correlation = covariance / (scale.unsqueeze(-1) * scale)
    correlation = torch.where(varies.unsqueeze(-1) & varies, correlation, torch.zeros_like(correlation))
    whitenings, roots = {}, []
    for name, here in slices(dims).items():
        own = correlation[here, here]
        shrinkage = oracle_shrinkage(own.detach(), samples)
        identity = torch.eye(len(own), dtype=own.dtype, device=own.device)
        shrunk = (1 - shrinkage) * own + shrinkage * own.diagonal().mean() * identity
        roots.append(Spectrum.of(shrunk).power(-0.5))
        whitenings[name] = Whitening(mean[here], scale[here], roots[-1], shrinkage)
    turn = torch.block_diag(*roots)
    return Coherence(whitenings, positive_definite(turn @ correlation @ turn, dims), max(2, round(samples)))


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
