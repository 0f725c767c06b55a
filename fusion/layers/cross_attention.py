"""Cross-attention: each modality asks the others."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import positive_integer
from .presence import Presence, zero_absent
from .tokens import Tokens, block_settings


class CrossAttention(FusionLayer):
    r"""The tokens of each modality attend to themselves, then to those of all others.

    For each modality *m* with tokens :math:`X_m` (a learned class token first) and those of the others,
    :math:`Y_m`, repeated `depth` times with weights of its own:

    .. math::
        X_m &\leftarrow X_m + \operatorname{attend}(X_m, X_m) \\
        X_m &\leftarrow X_m + \operatorname{attend}(X_m, Y_m) \\
        X_m &\leftarrow X_m + \operatorname{MLP}(X_m)

    which is :class:`torch.nn.TransformerDecoderLayer`, normalised before each step. `fused` is the class
    token of each modality, `{name: (*batch, width)}`, zeros for one that is absent. A single modality has
    itself for the others. The source puts self-attention after the crossing and pairs modalities one by one.

    Arguments:
        dims: Modality name → :math:`l_m`.
        width, heads, depth, dropout: Of the transformers; `width` is a multiple of `heads`.

    Raises:
        ValueError: A number out of range.

    References:
        | Y.-H. H. Tsai et al., Multimodal Transformer for Unaligned Multimodal Language Sequences,
          arXiv:1906.00295 (2019)

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.CrossAttention({"audio": 32, "video": 64})
        >>> speech = {"audio": torch.randn(8, 50, 32), "video": torch.randn(8, 64)}
        >>> out = layer(speech, lengths={"audio": torch.full((8,), 20)})
        >>> {name: tuple(part.shape) for name, part in out.fused.items()}
        {'audio': (8, 128), 'video': (8, 128)}
    """

    tokens = True

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        width: int = 128,
        heads: int = 4,
        depth: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dims)
        settings = block_settings(width, heads, dropout)
        self.width, self.depth = width, positive_integer("depth", depth)
        self.tokenise = Tokens(self.dims, width, class_token=True)
        self.blocks = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.TransformerDecoderLayer(**settings) for _ in range(depth))
                for name in self.dims
            }
        )
        self.norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in self.dims})

    @property
    def fused_dims(self) -> dict[str, int]:
        """`width` for each modality."""
        return dict.fromkeys(self.dims, self.width)

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Attend and take the class tokens; see :class:`FusionLayer` for the arguments."""
        tokens, valid = self.tokenise(features, present)
        fused = {}
        for name, blocks in self.blocks.items():
            others = [other for other in tokens if other != name] or [name]
            asked = torch.cat([tokens[other] for other in others], dim=1)
            padded = ~torch.cat([valid[other] for other in others], dim=1)
            found = tokens[name]
            for block in cast(nn.ModuleList, blocks):
                found = block(found, asked, tgt_key_padding_mask=~valid[name], memory_key_padding_mask=padded)
            fused[name] = zero_absent(self.norm[name](found[:, 0]), present[name].any(dim=1))
        return Fused(fused)
