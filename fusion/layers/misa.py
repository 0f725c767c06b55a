"""Shared and private projections, held apart and together by losses (after MISA)."""

from collections.abc import Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import weight
from .presence import Presence, mean_over_present, zero_absent
from .tokens import block_settings

MOMENTS = 5


class MISA(FusionLayer):
    r"""A shared and a private projection of each modality, and attention among all of them.

    With one shared encoder for all modalities and a private one for each:

    .. math::
        u_m &= \operatorname{LayerNorm}(\operatorname{ReLU}(W_m f_m + b_m)) \in \mathbb{R}^w \\
        s_m &= \operatorname{sigmoid}(V u_m + c), \qquad
        p_m = \operatorname{sigmoid}(V_m u_m + c_m) \\
        L_\mathrm{diff} &= \sum_m D(s_m, p_m) + \sum_{m<k} D(p_m, p_k) \\
        L_\mathrm{sim} &= \operatorname{mean}_{m<k} \operatorname{CMD}(s_m, s_k) \\
        L_\mathrm{rec} &= \operatorname{mean}_m \lVert u_m - R_m (s_m + p_m) \rVert^2 / w

    where :math:`D(a, b) = \operatorname{mean} (A^T B)^2` over all pairs of coordinates, with the rows of *A*
    and *B* the samples of *a* and *b*, centred and scaled to length one, and CMD is the
    :func:`central_moment_discrepancy`. `invariant` and `specific` are :math:`s_m` and :math:`p_m`; `fused` is
    what one transformer layer makes of the 2M of them, `{name: (*batch, 2w)}`. An absent modality enters
    neither the losses nor the attention, and gives zeros.

    Differences from the source: norms are differentiated through, absent modalities (it knows none).

    Arguments:
        dims: Modality name → :math:`l_m`.
        width, heads, dropout: Of the transformer; `width` is a multiple of `heads`.
        difference_weight, similarity_weight, reconstruction_weight: Of the three losses.

    Raises:
        ValueError: A number out of range.

    References:
        | D. Hazarika, R. Zimmermann, S. Poria, MISA: Modality-Invariant and -Specific Representations for
          Multimodal Sentiment Analysis, arXiv:2005.03545 (2020)

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.MISA({"audio": 32, "video": 64}, width=16)
        >>> out = layer({"audio": torch.randn(8, 32), "video": torch.randn(8, 64)})
        >>> list(out.losses), tuple(out.invariant["audio"].shape)
        (['difference', 'similarity', 'reconstruction'], (8, 16))
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        width: int = 128,
        heads: int = 4,
        dropout: float = 0.0,
        difference_weight: float = 0.3,
        similarity_weight: float = 1.0,
        reconstruction_weight: float = 1.0,
    ) -> None:
        super().__init__(dims)
        settings = block_settings(width, heads, dropout) | {"norm_first": False}
        self.width = width
        self.weights = {
            "difference": weight("difference_weight", difference_weight),
            "similarity": weight("similarity_weight", similarity_weight),
            "reconstruction": weight("reconstruction_weight", reconstruction_weight),
        }
        self.projection = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Linear(length, width), nn.ReLU(), nn.LayerNorm(width))
                for name, length in self.dims.items()
            }
        )
        self.shared = nn.Sequential(nn.Linear(width, width), nn.Sigmoid())
        self.private = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for name in self.dims}
        )
        self.reconstruction = nn.ModuleDict({name: nn.Linear(width, width) for name in self.dims})
        self.attention = nn.TransformerEncoderLayer(**settings)

    @property
    def fused_dims(self) -> dict[str, int]:
        """Twice `width` for each modality."""
        return dict.fromkeys(self.dims, 2 * self.width)

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Project, compare and attend; see :class:`FusionLayer` for the arguments."""
        projected = {name: self.projection[name](values) for name, values in features.items()}
        shared = {name: zero_absent(self.shared(u), present[name]) for name, u in projected.items()}
        private = {name: zero_absent(self.private[name](u), present[name]) for name, u in projected.items()}
        losses = {
            "difference": self._difference(shared, private, present),
            "similarity": self._similarity(shared, present),
            "reconstruction": self._reconstruction(projected, shared, private, present),
        }
        fused = self._attend(shared, private, present)
        return Fused(
            fused, shared, private, {name: self.weights[name] * loss for name, loss in losses.items()}
        )

    def _difference(self, shared: dict[str, Tensor], private: dict[str, Tensor], present: Presence) -> Tensor:
        rows_shared = {name: _unit_rows(values, present[name]) for name, values in shared.items()}
        rows_private = {name: _unit_rows(values, present[name]) for name, values in private.items()}
        pairs = [(rows_shared[name], rows_private[name]) for name in self.dims]
        pairs += [(rows_private[one], rows_private[other]) for one, other in combinations(self.dims, 2)]
        return torch.stack([(one.mT @ other).square().mean() for one, other in pairs]).sum()

    def _similarity(self, shared: dict[str, Tensor], present: Presence) -> Tensor:
        found = [
            central_moment_discrepancy(shared[one], shared[other], present[one], present[other])
            for one, other in combinations(self.dims, 2)
        ]
        return torch.stack(found).mean() if found else next(iter(shared.values())).new_zeros(())

    def _reconstruction(
        self,
        projected: dict[str, Tensor],
        shared: dict[str, Tensor],
        private: dict[str, Tensor],
        present: Presence,
    ) -> Tensor:
        errors = []
        for name, u in projected.items():
            rebuilt = self.reconstruction[name](shared[name] + private[name])
            errors.append(mean_over_present((u - rebuilt).square().mean(dim=-1), present[name]))
        return torch.stack(errors).mean()

    def _attend(
        self, shared: dict[str, Tensor], private: dict[str, Tensor], present: Presence
    ) -> dict[str, Tensor]:
        tokens = torch.stack([part[name] for name in self.dims for part in (shared, private)], dim=-2)
        padded = ~torch.stack([present[name] for name in self.dims for _ in range(2)], dim=-1)
        found = self.attention(
            tokens.reshape(-1, *tokens.shape[-2:]), src_key_padding_mask=padded.reshape(-1, padded.shape[-1])
        )
        parts = found.reshape(*tokens.shape[:-2], len(self.dims), 2 * self.width).unbind(dim=-2)
        return {name: zero_absent(part, present[name]) for name, part in zip(self.dims, parts, strict=True)}


def central_moment_discrepancy(one: Tensor, other: Tensor, present: Tensor, others_present: Tensor) -> Tensor:
    r"""How far two distributions on :math:`[0, 1]^w` are apart, by their first five moments.

    .. math::
        \operatorname{CMD} = \lVert \mathrm{E}\,a - \mathrm{E}\,b \rVert
            + \sum_{k=2}^{5} \lVert \mathrm{E}\,(a - \mathrm{E}\,a)^k - \mathrm{E}\,(b - \mathrm{E}\,b)^k \rVert

    Arguments:
        one, other: Samples `(*batch, w)`.
        present, others_present: `(*batch)`, the samples that count. Zero is returned if on one side none does.

    References:
        | W. Zellinger et al., Central Moment Discrepancy for Domain-Invariant Representation Learning,
          arXiv:1702.08811 (2017)
    """
    first, second = _moments(one, present), _moments(other, others_present)
    distance = torch.linalg.vector_norm(first - second, dim=-1).sum()
    return zero_absent(distance, present.any() & others_present.any())


def _moments(values: Tensor, present: Tensor) -> Tensor:
    """Mean and central moments 2 to 5, `(5, w)`, over the samples present."""
    rows, chosen = values.reshape(-1, values.shape[-1]), present.reshape(-1)
    count = chosen.sum().clamp(min=1)
    mean = zero_absent(rows, chosen).sum(dim=0) / count
    centred = zero_absent(rows - mean, chosen)
    return torch.stack([mean, *(centred.pow(k).sum(dim=0) / count for k in range(2, MOMENTS + 1))])


def _unit_rows(values: Tensor, present: Tensor) -> Tensor:
    """Samples present as rows of length one, centred first; the others as zeros."""
    rows, chosen = values.reshape(-1, values.shape[-1]), present.reshape(-1)
    mean = zero_absent(rows, chosen).sum(dim=0) / chosen.sum().clamp(min=1)
    return F.normalize(zero_absent(rows - mean, chosen), dim=-1, eps=1e-6)
