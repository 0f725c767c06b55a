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
    r"""The scores of :func:`ranking_scores` for ranking a gallery by cosine similarity.

    Arguments:
        queries: `(Q, d)`; their labels `wanted`, `(Q,)`.
        gallery: `(G, d)`; their labels `offered`, `(G,)`.
        k: K, at least 1; places beyond the gallery are empty.

    Raises:
        ValueError: K below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}.")
    units = functional.normalize(gallery.double(), dim=-1)
    found = [
        (functional.normalize(rows, dim=-1) @ units.T).topk(min(k, len(units)), dim=-1).indices
        for rows in queries.double().split(CHUNK)
    ]
    return ranking_scores(torch.cat(found), wanted, offered, k=k)


def ranking_scores(order: Tensor, wanted: Tensor, offered: Tensor, *, k: int = K) -> dict[str, float]:
    r"""Mean average precision and recall at K of rankings, such as those of :meth:`fusion.Subspaces.retrieve`.

    .. math::
        \mathrm{AP@}K = \frac{1}{\min(R, K)} \sum_{i=1}^{K} \mathrm{rel}_i \,
            \frac1i \sum_{j \le i} \mathrm{rel}_j, \qquad
        \mathrm{recall@}K = \left[ \sum_{i \le K} \mathrm{rel}_i > 0 \right]

    averaged over queries with something to find, *R* entries of their label. Recall is the field's for one
    right answer: how often one is among the first K.

    Arguments:
        order: Rows of the gallery, best first, `(Q, K or more)`, or fewer in a smaller gallery.
        wanted: Labels of the queries, `(Q,)`.
        offered: Labels of the gallery, `(G,)`.
        k: K, at least 1.

    Returns:
        `map@K`, `recall@1` and `recall@K`; all 0 if no query has anything to find.

    Raises:
        ValueError: K below 1.
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}.")
    total = torch.zeros(3, dtype=torch.float64, device=order.device)
    asked = 0
    for best, labels in zip(order[:, :k].split(CHUNK), wanted.split(CHUNK), strict=True):
        relevant = (offered == labels[:, None]).sum(dim=-1)
        findable = relevant > 0
        right, relevant = (offered[best] == labels[:, None]).double()[findable], relevant[findable]
        ranks = torch.arange(1, right.shape[1] + 1, device=right.device)
        average = (right * right.cumsum(dim=-1) / ranks).sum(dim=-1) / relevant.clamp(max=k)
        total += torch.stack([average.sum(), right[:, 0].sum(), right.amax(dim=-1).sum()])
        asked += len(right)
    names = (f"map@{k}", "recall@1", f"recall@{k}")
    return dict(zip(names, (total / max(asked, 1)).tolist(), strict=True))
