"""The second version of GMF: the same steps with gated maps and a cosine distance."""

from collections.abc import Mapping
from typing import Unpack

import torch.nn.functional as F
from torch import Tensor, nn

from .dissociation import DissociationLayer, Options


class SwiGLU(nn.Module):
    r"""A gated map, :math:`x \mapsto W_3\,(\operatorname{SiLU}(W_1 x) \odot W_2 x)`, with biases.

    Arguments:
        inputs, outputs: Channels before and after.
        hidden: Channels in between.
        normalise: Put a layer normalisation before it.

    References:
        | N. Shazeer, GLU Variants Improve Transformer, arXiv:2002.05202 (2020)
    """

    def __init__(self, inputs: int, outputs: int, hidden: int, *, normalise: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(inputs) if normalise else nn.Identity()
        self.gate_and_value = nn.Linear(inputs, 2 * hidden)
        self.out = nn.Linear(hidden, outputs)

    def forward(self, values: Tensor) -> Tensor:
        """`(*batch, inputs)` to `(*batch, outputs)`."""
        gate, value = self.gate_and_value(self.norm(values)).chunk(2, dim=-1)
        mapped: Tensor = self.out(F.silu(gate) * value)
        return mapped


class SCFAE(DissociationLayer):
    r"""Fuse modalities of unequal length by gated maps, with a reconstruction that only minds directions.

    The steps are those of :class:`~fusion.layers.dissociation.DissociationLayer`, which also explains the
    options. Every map is a :class:`SwiGLU`, and

    .. math::
        \Delta(f, \hat f) = 1 - \frac{f \cdot \hat f}{\lVert f \rVert\, \lVert \hat f \rVert}, \qquad
        \Phi = L_\mathrm{task} + \lambda \sum_m \operatorname{mean} \Delta(f_m, \hat f_m),

    so that the task is the drift and the reconstruction the diffusion of one scalar potential. A zero vector
    has the distance 1 from every other.

    The paper leaves open, and here it is so: the width within a map is its number of outputs, linear maps
    have biases, :math:`\lambda = 1`, and a layer normalisation stands before each map, for features of any scale.

    Arguments:
        dims: Modality name → :math:`l_m`, in the cyclic order of the reassembly.
        expansion: :math:`n`, one number or one for each modality; the paper finds no gain above 2.
        boundary: :math:`b`, likewise.
        normalise: Put a layer normalisation before each map.
        options: `partner`, `specific_share`, `absent` and `reconstruction_weight` (:math:`\lambda`) of the base.

    Raises:
        ValueError: See the base.

    References:
        | Multimodal Fusion via Self-Consistent Task-Gradient Fields, arXiv:2410.15475 v2 (2026)

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.SCFAE({"audio": 32, "video": 64})
        >>> out = layer({"audio": torch.randn(8, 32), "video": torch.randn(8, 64)})
        >>> {name: tuple(part.shape) for name, part in out.fused.items()}
        {'audio': (8, 64), 'video': (8, 96)}
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        expansion: float | Mapping[str, float] = 2,
        boundary: float | Mapping[str, float] = 0.5,
        normalise: bool = True,
        **options: Unpack[Options],
    ) -> None:
        self.normalise = normalise
        super().__init__(dims, expansion=expansion, boundary=boundary, **options)

    def make_map(self, inputs: int, outputs: int) -> nn.Module:
        """A gated map as wide inside as its output."""
        return SwiGLU(inputs, outputs, outputs, normalise=self.normalise)

    def distance(self, features: Tensor, rebuilt: Tensor) -> Tensor:
        """Cosine distance."""
        return 1 - F.cosine_similarity(features, rebuilt, dim=-1)

    def extra_repr(self) -> str:
        """The lengths and the settings, for `repr`."""
        return f"{super().extra_repr()}, normalise={self.normalise}"
