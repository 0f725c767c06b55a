"""Attention bottlenecks: modalities talk through a few shared tokens only."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import positive_integer
from .presence import Presence, mean_of_valid
from .tokens import SMALL, Tokens, block_settings


class MBT(FusionLayer):
    r"""Multimodal bottleneck transformer: each modality attends to itself and to a few shared tokens.

    With tokens :math:`X_m` (a learned class token first) and bottleneck tokens *B*, `depth` times:

    .. math::
        [X_m; B_m] = \operatorname{Transformer}_m([X_m; B]), \qquad
        B \leftarrow \operatorname{mean}_{m\ \mathrm{present}} B_m

    `fused` is `{"class": (*batch, width)}`, the mean of the class tokens of the modalities present. The source
    averages the logits that one linear head makes of each, which with a linear head is the same. Its
    first layers, in which modalities do not meet, are the encoders' here.

    Arguments:
        dims: Modality name → :math:`l_m`.
        width, heads, depth, dropout: Of the transformers; `width` is a multiple of `heads`.
        bottlenecks: How many shared tokens; 4 in the source.

    Raises:
        ValueError: A number out of range.

    References:
        | A. Nagrani et al., Attention Bottlenecks for Multimodal Fusion, arXiv:2107.00135 (2021)

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.MBT({"audio": 32, "video": 64}, bottlenecks=2)
        >>> speech = {"audio": torch.randn(8, 50, 32), "video": torch.randn(8, 64)}
        >>> tuple(layer(speech, lengths={"audio": torch.full((8,), 20)}).fused["class"].shape)
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
        bottlenecks: int = 4,
    ) -> None:
        super().__init__(dims)
        settings = block_settings(width, heads, dropout)
        self.width, self.depth = width, positive_integer("depth", depth)
        self.tokenise = Tokens(self.dims, width, class_token=True)
        self.bottleneck = nn.Parameter(
            SMALL * torch.randn(positive_integer("bottlenecks", bottlenecks), width)
        )
        self.blocks = nn.ModuleDict(
            {
                name: nn.ModuleList(nn.TransformerEncoderLayer(**settings) for _ in range(depth))
                for name in self.dims
            }
        )
        self.norm = nn.LayerNorm(width)

    @property
    def fused_dims(self) -> dict[str, int]:
        """One entry, `class`."""
        return {"class": self.width}

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """Pass the layers and average the class tokens; see :class:`FusionLayer` for the arguments."""
        tokens, valid = self.tokenise(features, present)
        samples = next(iter(tokens.values())).shape[0]
        there = torch.stack([values.any(dim=1) for values in present.values()], dim=1)
        shared = self.bottleneck.to(next(iter(tokens.values())).dtype).expand(samples, -1, -1)
        padded = {
            name: torch.cat([~ok, torch.zeros_like(ok[:, :1]).expand(-1, shared.shape[1])], 1)
            for name, ok in valid.items()
        }
        for step in range(self.depth):
            answers = []
            for name, blocks in self.blocks.items():
                steps = tokens[name].shape[1]
                joint = torch.cat([tokens[name], shared], dim=1)
                joint = cast(nn.ModuleList, blocks)[step](joint, src_key_padding_mask=padded[name])
                tokens[name], answer = joint[:, :steps], joint[:, steps:]
                answers.append(answer.flatten(1))
            shared = mean_of_valid(torch.stack(answers, dim=1), there).unflatten(1, shared.shape[1:])
        classes = torch.stack([self.norm(values[:, 0]) for values in tokens.values()], dim=1)
        return Fused({"class": mean_of_valid(classes, there)})
