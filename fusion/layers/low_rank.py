"""Low-rank tensor fusion: products of the coordinates of all modalities, without the tensor."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import positive_integer
from .presence import Presence


class LowRankTensorFusion(FusionLayer):
    r"""All products of coordinates of different modalities, weighted by a tensor of low rank.

    .. math::
        Z = \sum_{r=1}^{R} a_r \prod_{m=1}^{M} W_m^{(r)} [f_m; 1] + b \in \mathbb{R}^w

    which is the outer product of all :math:`[f_m; 1]` contracted with a weight tensor of rank *R*.

    `fused` is `{"product": (*batch, w)}`. An absent modality is zeros beside the constant 1, so that exactly
    the products without it remain. The matrices start as those of :class:`torch.nn.Linear`, and
    :math:`a_r = R^{-1/2}`; the source draws both from normal distributions.

    Arguments:
        dims: Modality name → :math:`l_m`.
        width: :math:`w`.
        rank: *R*; the source finds 4 and above alike.

    Raises:
        ValueError: `width` or `rank` below 1.

    References:
        | Z. Liu et al., Efficient Low-rank Multimodal Fusion with Modality-Specific Factors,
          arXiv:1806.00064 (2018)

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.LowRankTensorFusion({"audio": 32, "video": 64})
        >>> tuple(layer({"audio": torch.randn(8, 32), "video": torch.randn(8, 64)}).concatenated().shape)
        (8, 128)
    """

    def __init__(self, dims: Mapping[str, int], *, width: int = 128, rank: int = 4) -> None:
        super().__init__(dims)
        self.width, self.rank = positive_integer("width", width), positive_integer("rank", rank)
        # The constant 1 is the bias.
        self.factors = nn.ModuleDict(
            {name: nn.Linear(length, rank * width) for name, length in self.dims.items()}
        )
        self.weights = nn.Parameter(torch.full((rank,), rank**-0.5))
        self.bias = nn.Parameter(torch.zeros(width))

    @property
    def fused_dims(self) -> dict[str, int]:
        """One entry, `product`."""
        return {"product": self.width}

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Multiply the factors and contract; see :class:`FusionLayer` for the arguments."""
        factors = torch.stack([self.factors[name](values) for name, values in features.items()])
        product = factors.prod(dim=0).unflatten(-1, (self.rank, self.width))
        return Fused({"product": torch.einsum("...rw,r->...w", product, self.weights) + self.bias})
