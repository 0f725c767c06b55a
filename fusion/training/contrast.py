"""The loss that brings together what belongs together in different modalities."""

from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional


def contrastive_loss(embeddings: Tensor, label: Tensor, present: Tensor, temperature: float) -> Tensor:
    r"""InfoNCE between all ordered pairs of modalities, with every sample of the same label as a positive.

    .. math::
        L = \operatorname*{mean}_{a \ne b,\; n} \; -\sum_k t_{nk} \log
            \frac{e^{\cos(z_{an}, z_{bk}) / \tau}}{\sum_{k'} e^{\cos(z_{an}, z_{bk'}) / \tau}}, \qquad
        t_{nk} = \frac{[y_k = y_n]}{\#\{k : y_k = y_n\}}

    Where no two samples have the same label that is InfoNCE as usual. Sums run over samples that have the
    modality, the mean over queries with something to find; zero if there are none.

    Arguments:
        embeddings: :math:`z`, `(M, N, d)`.
        label: `(N,)`.
        present: `(M, N)`.
        temperature: :math:`\tau`.

    References:
        | A. van den Oord et al., Contrastive Predictive Coding, arXiv:1807.03748 (2018)
        | P. Khosla et al., Supervised Contrastive Learning, arXiv:2004.11362 (2020)
    """
    units = functional.normalize(embeddings, dim=-1)
    same = label[:, None] == label
    found, queries = units.sum() * 0, units.new_zeros(())
    for one, other in permutations(range(len(units)), 2):
        likeness = (units[one] @ units[other].T / temperature).masked_fill(~present[other], -torch.inf)
        wanted = same & present[other]
        asked = present[one] & wanted.any(dim=-1)
        # An absent candidate has no logarithm and no weight: 0 times -inf must not become NaN.
        logs = likeness[asked].log_softmax(dim=-1).masked_fill(~wanted[asked], 0.0)
        found = found - (logs.sum(dim=-1) / wanted[asked].sum(dim=-1)).sum()
        queries = queries + asked.sum()
    return found / queries.clamp(min=1)
