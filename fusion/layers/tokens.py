"""Tokens of all modalities at one width, for the layers that attend."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .numbers import positive_integer
from .presence import Presence

SMALL = 0.02
"""Standard deviation of learned tokens at the start, as usual for transformers."""


class Tokens(nn.Module):
    r"""Every step of every modality as a token of one width, :math:`W_m f_{m,t} + b_m`.

    The bias tells the modalities apart. Where a step stands in its sequence is for the encoder to say:
    nothing is added for it here.

    Arguments:
        dims: Modality name → :math:`l_m`.
        width: Of the tokens.
        class_token: Put a learned token before those of each modality. It is always valid, so that no
            attention is left without anything to attend to.
    """

    def __init__(self, dims: Mapping[str, int], width: int, *, class_token: bool) -> None:
        super().__init__()
        self.projection = nn.ModuleDict({name: nn.Linear(length, width) for name, length in dims.items()})
        self.classes = nn.ParameterDict(
            {name: nn.Parameter(SMALL * torch.randn(width)) for name in dims} if class_token else {}
        )

    def forward(
        self, features: Mapping[str, Tensor], present: Presence
    ) -> tuple[dict[str, Tensor], Presence]:
        """`(N, T_m, l_m)` to `(N, T_m, width)`, or one token more, and which of them are valid."""
        tokens, valid = {}, {}
        for name, values in features.items():
            tokens[name], valid[name] = self.projection[name](values), present[name]
            if name in self.classes:
                first = self.classes[name].to(tokens[name].dtype).expand(values.shape[0], 1, -1)
                tokens[name] = torch.cat([first, tokens[name]], dim=1)
                valid[name] = torch.cat([torch.ones_like(present[name][:, :1]), present[name]], dim=1)
        return tokens, valid


def block_settings(width: int, heads: int, dropout: float) -> dict[str, Any]:
    """Arguments of torch's transformer layers: normalised before each step, four times as wide inside.

    Raises:
        ValueError: A width that is no multiple of the heads, or a number out of range.
    """
    positive_integer("width", width)
    positive_integer("heads", heads)
    if width % heads:
        raise ValueError(f"width must be a multiple of the {heads} heads, got {width}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout!r}.")
    return {
        "d_model": width,
        "nhead": heads,
        "dim_feedforward": 4 * width,
        "dropout": dropout,
        "activation": "gelu",
        "batch_first": True,
        "norm_first": True,
    }
