r"""Do samples of different modalities belong together? Likelihood ratios of the canonical model.

Channels :math:`u_m` of the modalities, gated so that what is not above the noise correlates with nothing, have the
covariance

.. math:: \tilde K_{mn} = G_m^{1/2}\,B_m K_{mn} B_n^T\,G_n^{1/2} \quad (m \ne n), \qquad \tilde K_{mm} = I .

For Gaussian channels the logarithm of the odds that a sample's modalities belong together rather than come from
different samples is, in canonical variates *x*, *y* with correlations :math:`\rho`,

.. math::
    \Lambda = \sum_k \frac{\rho_k x_k y_k - \tfrac12\rho_k^2(x_k^2 + y_k^2)}{1 - \rho_k^2}
              - \tfrac12\ln(1 - \rho_k^2),

which by the lemma of Neyman and Pearson no other score beats. Strong correlations weigh as :math:`\rho/(1-\rho^2)`.

References:
    | H. Hotelling, Biometrika 28, 321 (1936)
    | F. R. Bach & M. I. Jordan, A probabilistic interpretation of canonical correlation analysis (2005)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 1024
"""Queries compared at once."""


@dataclass(frozen=True, eq=False)
class Ranking:
    """What is most similar to each query, best first.

    Attributes:
        indices: Rows of the gallery, `(Q, k)`.
        similarities: Theirs, `(Q, k)`.
    """

    indices: Tensor
    similarities: Tensor


@dataclass(frozen=True, eq=False)
class Canonical:
    """Canonical variates of two sets of channels.

    Attributes:
        left, right: Their maps, `(r, k)` and `(s, k)`.
        correlations: `(k,)`, below one.
    """

    left: Tensor
    right: Tensor
    correlations: Tensor

    @classmethod
    def of(cls, covariance: Tensor, first: int) -> "Canonical":
        """The variates between the `first` channels of a covariance `(L, L)` and the others."""
        left, right = (
            torch.linalg.cholesky(one) for one in (covariance[:first, :first], covariance[first:, first:])
        )
        across = torch.linalg.solve_triangular(left, covariance[:first, first:], upper=False)
        across = torch.linalg.solve_triangular(right.mT, across, upper=True, left=False)
        u, correlations, v = torch.linalg.svd(across, full_matrices=False)
        return cls(
            torch.linalg.solve_triangular(left.mT, u, upper=True),
            torch.linalg.solve_triangular(right.mT, v.mT, upper=True),
            correlations,
        )

    def similarities(self, queries: Tensor, gallery: Tensor, kind: str) -> Iterator[Tensor]:
        r"""Similarities of channels `(Q, r)` and `(G, s)`, some rows of `(Q, G)` at a time.

        `likelihood` is Λ; `cosine` that of :math:`\sqrt\rho\,x` and :math:`\sqrt\rho\,y`, whose product is that of *y*
        and its prediction from *x*.
        """
        rho = self.correlations
        y = gallery @ self.right
        if kind == "cosine":
            target = torch.nn.functional.normalize(y * rho.sqrt(), dim=-1)
        else:
            odds = rho / (1 - rho**2)
            target = y * odds
            constant = -0.5 * torch.log1p(-(rho**2)).sum()
            of_gallery = constant - 0.5 * (y**2 * (rho * odds)).sum(-1)
        for rows in queries.split(ROWS):
            x = rows @ self.left
            if kind == "cosine":
                yield torch.nn.functional.normalize(x * rho.sqrt(), dim=-1) @ target.mT
            else:
                yield x @ target.mT - 0.5 * (x**2 * (rho * odds)).sum(-1, keepdim=True) + of_gallery


def rank(canonical: Canonical, queries: Tensor, gallery: Tensor, k: int, kind: str) -> Ranking:
    """The `k` most similar rows of the gallery, or all if there are fewer."""
    best = [
        block.topk(min(k, len(gallery)), dim=-1) for block in canonical.similarities(queries, gallery, kind)
    ]
    return Ranking(torch.cat([one.indices for one in best]), torch.cat([one.values for one in best]))


def surprise(covariance: Tensor, channels: Tensor) -> Tensor:
    r"""How much less likely channels `(*batch, r)` are together than each modality's by themselves, `(*batch)`.

    .. math:: -\Lambda = \tfrac12\big(u^T\tilde K^{-1}u - u^Tu + \ln\det\tilde K\big)
    """
    factor = torch.linalg.cholesky(covariance)
    flat = channels.reshape(-1, channels.shape[-1])
    settled = torch.linalg.solve_triangular(factor, flat.mT, upper=False).mT
    difference = settled.square().sum(-1) - flat.square().sum(-1)
    found = 0.5 * difference + factor.diagonal().log().sum()
    return found.reshape(channels.shape[:-1])
