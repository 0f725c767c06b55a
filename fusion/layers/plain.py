"""The plain ways to fuse, under the same interface: what every other layer must be measured against."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import positive_integer
from .presence import Presence, zero_absent


class Concatenation(FusionLayer):
    r"""The features side by side, :math:`Z = [f_1; \dots; f_M]`, zeros for those absent.

    No parameters; no invariant or specific parts; `fused` is `{name: (*batch, l_m)}`.

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.Concatenation({"audio": 2, "video": 1})
        >>> features = {"audio": torch.ones(1, 2), "video": torch.ones(1, 1)}
        >>> layer(features, {"audio": torch.tensor([False])}).concatenated().tolist()
        [[0.0, 0.0, 1.0]]
    """

    @property
    def fused_dims(self) -> dict[str, int]:
        r""":math:`l_m` for each modality."""
        return dict(self.dims)

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Return the features as they are; see :class:`FusionLayer` for the arguments."""
        return Fused(features)


class LateFusion(FusionLayer):
    r"""A decision from each modality alone, averaged over those present.

    .. math:: y = \frac{\sum_m p_m h_m(f_m)}{\sum_m p_m}, \qquad p_m \in \{0, 1\}

    The layer itself passes the features on; the heads :math:`h_m` and their average belong to
    :class:`FusionModel`, which the class attribute `late` tells to build them.

    Example:
        >>> import fusion
        >>> model = fusion.FusionModel(fusion.LateFusion({"audio": 32, "video": 64}), outputs=3)
        >>> type(model.head).__name__, list(model.head.decisions)
        ('AverageHead', ['audio', 'video'])
    """

    late = True

    @property
    def fused_dims(self) -> dict[str, int]:
        r""":math:`l_m` for each modality."""
        return dict(self.dims)

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Return the features as they are; see :class:`FusionLayer` for the arguments."""
        return Fused(features)


class Sum(FusionLayer):
    r"""Projections to a common width, summed over the modalities present.

    .. math:: Z = \sum_m p_m (W_m f_m + b_m) \in \mathbb{R}^w, \qquad p_m \in \{0, 1\}

    `fused` is `{"sum": (*batch, w)}`. Under modality dropout this plain layer is hard to beat.

    Arguments:
        dims: Modality name → :math:`l_m`.
        width: :math:`w`, an integer of 1 or more.

    Raises:
        ValueError: `width` below 1.

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.Sum({"audio": 32, "video": 64}, width=16)
        >>> tuple(layer({"audio": torch.randn(8, 32), "video": torch.randn(8, 64)}).concatenated().shape)
        (8, 16)
    """

    def __init__(self, dims: Mapping[str, int], *, width: int = 128) -> None:
        super().__init__(dims)
        self.width = positive_integer("width", width)
        self.projection = nn.ModuleDict(
            {name: nn.Linear(length, width) for name, length in self.dims.items()}
        )

    @property
    def fused_dims(self) -> dict[str, int]:
        """One entry, `sum`."""
        return {"sum": self.width}

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Project and sum; see :class:`FusionLayer` for the arguments."""
        # The bias would speak for an absent modality, hence zero after the projection as well.
        projected = [zero_absent(self.projection[name](features[name]), present[name]) for name in self.dims]
        return Fused({"sum": torch.stack(projected).sum(dim=0)})
