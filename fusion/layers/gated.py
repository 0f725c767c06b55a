"""Gated fusion: every modality says how much each coordinate of every other counts."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import positive_integer
from .presence import Presence, zero_absent


class GatedFusion(FusionLayer):
    r"""A gate for each modality and coordinate, from all modalities together.

    .. math::
        h_m = \tanh(W_m f_m + b_m), \qquad
        g_m = \operatorname{sigmoid}(V_m [f_1; \dots; f_M] + c_m), \qquad
        Z = \sum_m p_m\, g_m \odot h_m \in \mathbb{R}^w, \qquad p_m \in \{0, 1\}

    `fused` is `{"gated": (*batch, w)}`. Each modality has a gate of its own, which is the source's form for
    any number of modalities; for two it also ties them, as :math:`g` and :math:`1 - g`. The source knows no
    absent modality; here one is left out of the sum, and zeros in the gates of the others.

    Arguments:
        dims: Modality name → :math:`l_m`.
        width: :math:`w`.

    Raises:
        ValueError: `width` below 1.

    References:
        | J. Arevalo et al., Gated Multimodal Units for Information Fusion, arXiv:1702.01992 (2017)

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.GatedFusion({"audio": 32, "video": 64}, width=16)
        >>> features = {"audio": torch.randn(8, 32), "video": torch.randn(8, 64)}
        >>> bool(layer(features).fused["gated"].abs().max() < 2)  # a sum of two gated tanh
        True
    """

    def __init__(self, dims: Mapping[str, int], *, width: int = 128) -> None:
        super().__init__(dims)
        self.width = positive_integer("width", width)
        total = sum(self.dims.values())
        self.projection = nn.ModuleDict(
            {name: nn.Linear(length, width) for name, length in self.dims.items()}
        )
        self.gate = nn.ModuleDict({name: nn.Linear(total, width) for name in self.dims})

    @property
    def fused_dims(self) -> dict[str, int]:
        """One entry, `gated`."""
        return {"gated": self.width}

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Project, weigh and add; see :class:`FusionLayer` for the arguments."""
        everything = torch.cat(list(features.values()), dim=-1)
        weighted = [
            torch.sigmoid(self.gate[name](everything)) * torch.tanh(self.projection[name](values))
            for name, values in features.items()
        ]
        parts = [zero_absent(part, present[name]) for name, part in zip(features, weighted, strict=True)]
        return Fused({"gated": torch.stack(parts).sum(dim=0)})
