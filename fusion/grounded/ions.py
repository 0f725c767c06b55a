"""Which channel becomes which ion: valences measured from how well other modalities predict a channel."""

from dataclasses import replace

import torch
from torch import Tensor

from ..randomness import seeded
from .covariance import Coherence, coherence_matrix


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


def noise_edge(
    coherence: Coherence, whitened: dict[str, Tensor], *, permutations: int, seed: int
) -> dict[str, float]:
    r"""Largest R² that channels of unrelated modalities show at this sample size, `{name: edge}`.

    Every modality's samples are shuffled on their own, which keeps all covariances within a modality and
    destroys those between them, and the largest eigenvalue of the predictability is measured again; the mean
    over the permutations is returned. For Gaussian channels it approaches the edge of the random-matrix
    spectrum (:func:`jacobi_edge`); unlike that formula it also holds for other distributions, with shrinkage,
    and with fewer samples than channels.

    Arguments:
        coherence, whitened: Statistics, and the features they were measured on in whitened coordinates.
        permutations: How often to shuffle.
        seed: Of the shuffles.
    """
    total = dict.fromkeys(whitened, 0.0)
    with seeded(seed):
        for _ in range(permutations):
            shuffled = {
                name: values[torch.randperm(coherence.samples).to(values.device)]
                for name, values in whitened.items()
            }
            unrelated = replace(coherence, matrix=coherence_matrix(shuffled))
            for name in total:
                total[name] += float(torch.linalg.eigvalsh(unrelated.predictability(name))[-1])
    return {name: value / permutations for name, value in total.items()}


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
