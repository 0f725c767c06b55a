"""How well queries find, in a gallery of another modality, what belongs to them."""

import torch
from torch import Tensor
from torch.nn import functional

K = 10
"""Places looked at."""
CHUNK = 1024
"""Queries ranked at once."""


def retrieval_scores(
    queries: Tensor, wanted: Tensor, gallery: Tensor, offered: Tensor, *, k: int = K
) -> dict[str, float]:
    r"""Mean average precision and recall at K of ranking a gallery by cosine similarity.

    .. math::
        \mathrm{AP@}K = \frac{1}{\min(R, K)} \sum_{i=1}^{K} \mathrm{rel}_i \,
            \frac1i \sum_{j \le i} \mathrm{rel}_j, \qquad
        \mathrm{recall@}K = \left[ \sum_{i \le K} \mathrm{rel}_i > 0 \right]

    averaged over queries with something to find, *R* entries of their label. Recall is the field's for one
    right answer: how often one is among the first K.

    Arguments:
        queries: `(Q, d)`; their labels `wanted`, `(Q,)`.
        gallery: `(G, d)`; their labels `offered`, `(G,)`.
        k: K, at least 1; places beyond the gallery are empty.

    Returns:
        `map@K`, `recall@1` and `recall@K`; all 0 if no query has anything to find.

    Raises:
        ValueError: K below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}.")
    units = functional.normalize(gallery.double(), dim=-1)
    precision, first, hit, asked = 0.0, 0.0, 0.0, 0
    for rows, labels in zip(queries.double().split(CHUNK), wanted.split(CHUNK), strict=True):
        likeness = functional.normalize(rows, dim=-1) @ units.T
        order = likeness.topk(min(k, len(units)), dim=-1).indices
        right = (offered[order] == labels[:, None]).double()
        relevant = (offered == labels[:, None]).sum(dim=-1)
        findable = relevant > 0
        right, relevant = right[findable], relevant[findable]
        ranks = torch.arange(1, right.shape[1] + 1, device=right.device)
        average = (right * right.cumsum(dim=-1) / ranks).sum(dim=-1) / relevant.clamp(max=k)
        precision += float(average.sum())
        first += float(right[:, 0].sum())
        hit += float(right.amax(dim=-1).sum())
        asked += len(right)
    found = {f"map@{k}": precision, "recall@1": first, f"recall@{k}": hit}
    return {metric: value / max(asked, 1) for metric, value in found.items()}
