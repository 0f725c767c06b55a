"""Perceiver: a few latent vectors look at the tokens of all modalities."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import positive_integer
from .presence import Presence
from .tokens import SMALL, Tokens, block_settings


class Perceiver(FusionLayer):
    r"""Latent vectors that attend to each other and to all tokens, at a cost linear in the tokens.

    With latents *A* and the tokens *X* of all modalities, `depth` times with weights of its own:

    .. math::
        A \leftarrow A + \operatorname{attend}(A, A), \qquad
        A \leftarrow A + \operatorname{attend}(A, X), \qquad
        A \leftarrow A + \operatorname{MLP}(A)

    which is :class:`torch.nn.TransformerDecoderLayer`, normalised before each step. `fused` is
    `{"latents": (*batch, width)}`, their mean. The source looks at the tokens before the latents attend to
    each other, has several such attentions between two looks, and hundreds of latents for its 50,000 pixels.

    Arguments:
        dims: Modality name → :math:`l_m`.
        width, heads, depth, dropout: Of the transformers; `width` is a multiple of `heads`.
        latents: How many.

    Raises:
        ValueError: A number out of range.

    References:
        | A. Jaegle et al., Perceiver: General Perception with Iterative Attention, arXiv:2103.03206 (2021)

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.Perceiver({"audio": 32, "video": 64}, latents=4)
        >>> speech = {"audio": torch.randn(8, 50, 32), "video": torch.randn(8, 64)}
        >>> tuple(layer(speech, lengths={"audio": torch.full((8,), 20)}).fused["latents"].shape)
        (8, 128)
    """

    tokens = True

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        width: int = 128,
        heads: int = 4,
        depth: int = 2,
        dropout: float = 0.0,
        latents: int = 8,
    ) -> None:
        super().__init__(dims)
        settings = block_settings(width, heads, dropout)
        self.width, self.depth = width, positive_integer("depth", depth)
        self.tokenise = Tokens(self.dims, width, class_token=False)
        self.latents = nn.Parameter(SMALL * torch.randn(positive_integer("latents", latents), width))
        self.blocks = nn.ModuleList(nn.TransformerDecoderLayer(**settings) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @property
    def fused_dims(self) -> dict[str, int]:
        """One entry, `latents`."""
        return {"latents": self.width}

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Look `depth` times and average; see :class:`FusionLayer` for the arguments."""
        tokens, valid = self.tokenise(features, present)
        seen = torch.cat(list(tokens.values()), dim=1)
        padded = ~torch.cat(list(valid.values()), dim=1)
        latents = self.latents.to(seen.dtype).repeat(seen.shape[0], 1, 1)
        for block in self.blocks:
            latents = block(latents, seen, memory_key_padding_mask=padded)
        return Fused({"latents": self.norm(latents).mean(dim=1)})
