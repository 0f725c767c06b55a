"""Which channel becomes which ion: valences measured from how well other modalities predict a channel."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .covariance import condense, predictability, slices
from .measure import Measured, assemble

ODDS = 100.0
"""Odds with which the default voltage decides a channel at the edge of the noise."""
SMALLEST_EDGE = 1e-6
"""Least edge of the noise; where nothing varies there is none, and no voltage would be high enough."""


@dataclass(frozen=True)
class Noise:
    r"""What chance makes of a modality.

    Attributes:
        level: :math:`r_0`, the R² above which a channel counts as shared.
        voltage: :math:`U_0`, at which a channel at the edge of the noise is specific with odds of a hundred to one.
    """

    level: float
    voltage: float

    @classmethod
    def above(cls, edge: float, safety: float, voltage: float | None = None) -> "Noise":
        """The level that factor above the largest R² of unrelated samples, and a voltage that suits it."""
        edge = min(max(edge, SMALLEST_EDGE), 1 - SMALLEST_EDGE)
        # Half of the way to one at most: with few samples chance reaches almost everywhere.
        level = min(safety * edge, (1 + edge) / 2)
        suggested = math.log(ODDS) * (1 - level) / (level - edge)
        return cls(level, suggested if voltage is None else float(voltage))


def valence(predictability: Tensor, noise_level: float) -> Tensor:
    r"""Valence of channels with given R², `(*, l)`.

    .. math:: z_j = \frac{R^2_j - r_0}{1 - r_0}

    Channels that the other modalities predict better than chance, :math:`R^2_j > r_0`, are cations and become
    modality-invariant; the others are anions and stay modality-specific.

    Raises ValueError when `noise_level` is not in [0, 1).
    """
    if not 0 <= noise_level < 1:
        raise ValueError(f"valence: noise_level must be at least 0 and below 1, got {noise_level:g}.")
    return (predictability - noise_level) / (1 - noise_level)


def noise_edge(measured: Measured) -> dict[str, float]:
    r"""Largest R² that channels of unrelated modalities show at this sample size, `{name: edge}`.

    Every modality's samples were shuffled on their own, which keeps all covariances within a modality and destroys
    those between them; the largest eigenvalue of the predictability is found again, and its mean over the shuffles
    is returned. For Gaussian channels it approaches the edge of the random-matrix spectrum (:func:`jacobi_edge`);
    unlike that formula it also holds for other distributions, with shrinkage, and with fewer samples than channels.
    """
    dims = measured.coherence.dims
    total = dict.fromkeys(dims, 0.0)
    for across in measured.unrelated:
        unrelated = condense(assemble(across, dims), dims)
        for name, here in slices(unrelated.dims).items():
            total[name] += float(torch.linalg.eigvalsh(predictability(unrelated.matrix, here))[-1])
    return {name: value / len(measured.unrelated) for name, value in total.items()}


def jacobi_edge(channels: int, others: int, samples: int) -> float:
    r"""Upper edge of the squared canonical correlations of independent Gaussian channels.

    .. math:: r = \Big(\sqrt{\tfrac{p}{N}(1 - \tfrac{q}{N})} + \sqrt{\tfrac{q}{N}(1 - \tfrac{p}{N})}\Big)^2

    for *p* channels against *q* others in *N* samples; one when :math:`p + q \ge N`.

    References:
        Wachter, Ann. Statist. 8, 937 (1980); Johnstone, Ann. Statist. 36, 2638 (2008).
    """
    p, q = channels / samples, others / samples
    if p + q >= 1:
        return 1.0
    return ((p * (1 - q)) ** 0.5 + (q * (1 - p)) ** 0.5) ** 2
