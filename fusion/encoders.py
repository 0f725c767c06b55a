"""Ready encoders of raw vectors and sequences, for the modalities whose features are to be learned too."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .layers.numbers import positive_integer
from .layers.presence import mean_of_valid, valid_steps, values_may_decide, zero_absent
from .layers.tokens import block_settings


class VectorEncoder(nn.Sequential):
    """A perceptron, `(*batch, inputs)` to `(*batch, outputs)`: `depth` times linear, ReLU, dropout, then linear.

    Arguments:
        inputs, outputs: Channels before and after.
        width: Of the hidden layers.
        depth: How many of them.
        dropout: Probability, 0 to below 1.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> import fusion
        >>> import torch
        >>> tuple(fusion.VectorEncoder(300, 16)(torch.randn(8, 300)).shape)
        (8, 16)
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int = 128, depth: int = 1, dropout: float = 0.0
    ) -> None:
        _check(inputs, outputs, width, depth, dropout)
        layers: list[nn.Module] = []
        for step in range(depth):
            layers += [nn.Linear(width if step else inputs, width), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(width, outputs))


class ResidualEncoder(nn.Module):
    r"""The features and a correction, :math:`x + f(x)` with a perceptron *f*, `(*batch, channels)` to the same.

    What is linear in the features stays so while *f* is small: of what no loss asks for, least is lost.

    Arguments:
        channels: Before and after.
        width, depth, dropout: Of the perceptron, see :class:`VectorEncoder`.

    Raises:
        ValueError: A number out of range.

    References:
        K. He et al., Deep Residual Learning for Image Recognition, CVPR 2016, arXiv:1512.03385

    Example:
        >>> import fusion
        >>> import torch
        >>> tuple(fusion.ResidualEncoder(16)(torch.randn(8, 16)).shape)
        (8, 16)
    """

    def __init__(self, channels: int, *, width: int = 128, depth: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.perceptron = VectorEncoder(channels, channels, width=width, depth=depth, dropout=dropout)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        correction: Tensor = self.perceptron(features)
        return features + correction


class SequenceEncoder(nn.Module, ABC):
    """Base of the encoders of sequences, `(*batch, T, inputs)` to features of the steps or of the whole.

    A leaf implements :meth:`encode`. What is beyond the length of a sequence influences nothing; a sequence
    of length 0 gives zeros.

    Arguments:
        inputs, outputs: Channels before and after.
        tokens: Return the steps, `(*batch, T, outputs)` and zero where padded, instead of their mean,
            `(*batch, outputs)`.

    Example:
        >>> import fusion
        >>> import torch
        >>> class Means(fusion.SequenceEncoder):
        ...     def encode(self, values, lengths):
        ...         return values[..., : self.outputs]
        ...
        >>> tuple(Means(40, 16, tokens=False)(torch.randn(8, 50, 40), torch.full((8,), 20)).shape)
        (8, 16)
    """

    def __init__(self, inputs: int, outputs: int, *, tokens: bool) -> None:
        super().__init__()
        self.inputs, self.outputs, self.tokens = inputs, outputs, tokens

    @abstractmethod
    def encode(self, values: Tensor, lengths: Tensor) -> Tensor:
        """`(N, T, inputs)`, zero where padded, and lengths `(N,)` of 1 or more, to `(N, T, outputs)`."""

    def forward(self, values: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode sequences with `lengths`, `(*batch)` in 0 ... T, their valid steps; None: all of them.

        Raises:
            ValueError: Not `inputs` channels on the last axis, no axis of steps, or lengths of another shape
                or out of range.
        """
        if values.ndim < 2 or values.shape[-1] != self.inputs:
            raise ValueError(
                f"values must be sequences of {self.inputs} channels, (*batch, T, {self.inputs}), "
                f"got the shape {tuple(values.shape)}."
            )
        *batch, steps, _ = values.shape
        if lengths is None:
            lengths = torch.full(batch, steps, device=values.device)
        if list(lengths.shape) != batch:
            raise ValueError(
                f"lengths must have the shape {tuple(batch)} of the batch, got {tuple(lengths.shape)}."
            )
        if values_may_decide() and bool(((lengths < 0) | (lengths > steps)).any()):
            raise ValueError(
                f"lengths must be from 0 to the {steps} steps of the sequences, "
                f"got {int(lengths.min())} to {int(lengths.max())}."
            )
        flat, valid = lengths.reshape(-1), valid_steps(lengths.reshape(-1), steps)
        rows = zero_absent(values.reshape(-1, steps, self.inputs), valid)
        found = self.encode(rows, flat.clamp(min=1))
        if self.tokens:
            return zero_absent(found, valid).reshape(*batch, steps, self.outputs)
        return mean_of_valid(found, valid).reshape(*batch, self.outputs)


class RecurrentEncoder(SequenceEncoder):
    """A bidirectional GRU and a linear map.

    Arguments:
        inputs, outputs, tokens: See :class:`SequenceEncoder`.
        width: Of each direction.
        depth: Layers of the GRU.
        dropout: Probability between them, 0 to below 1.

    Raises:
        ValueError: A number out of range.

    Example:
        >>> import fusion
        >>> import torch
        >>> encoder = fusion.RecurrentEncoder(40, 32, tokens=True)
        >>> tuple(encoder(torch.randn(8, 50, 40), torch.full((8,), 20)).shape)  # steps beyond the length are zero
        (8, 50, 32)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        tokens: bool = False,
        width: int = 64,
        depth: int = 1,
        dropout: float = 0.0,
    ) -> None:
        _check(inputs, outputs, width, depth, dropout)
        super().__init__(inputs, outputs, tokens=tokens)
        between = dropout if depth > 1 else 0.0  # torch warns of a dropout that has no place
        self.gru = nn.GRU(inputs, width, depth, dropout=between, bidirectional=True, batch_first=True)
        self.out = nn.Linear(2 * width, outputs)

    def encode(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Run both ways over the valid steps; see :class:`SequenceEncoder` for the arguments."""
        packed = nn.utils.rnn.pack_padded_sequence(
            values, lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        found, _ = nn.utils.rnn.pad_packed_sequence(
            self.gru(packed)[0], batch_first=True, total_length=values.shape[1]
        )
        mapped: Tensor = self.out(found)
        return mapped


class AttentionEncoder(SequenceEncoder):
    r"""A small transformer over steps that know their place.

    To step *t* is added, for channel pairs :math:`j`,
    :math:`(\sin, \cos)(t / 10000^{2j/w})`.

    Arguments:
        inputs, outputs, tokens: See :class:`SequenceEncoder`.
        width, heads, depth, dropout: Of the transformer; `width` is even and a multiple of `heads`.

    Raises:
        ValueError: A number out of range.

    References:
        | A. Vaswani et al., Attention Is All You Need, arXiv:1706.03762 (2017)

    Example:
        >>> import fusion
        >>> import torch
        >>> encoder = fusion.AttentionEncoder(40, 32)
        >>> tuple(encoder(torch.randn(8, 50, 40), torch.full((8,), 20)).shape)
        (8, 32)
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        tokens: bool = False,
        width: int = 64,
        heads: int = 4,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        _check(inputs, outputs, width, depth, dropout)
        settings = block_settings(width, heads, dropout)
        if width % 2:
            raise ValueError(f"width must be even, got {width}.")
        super().__init__(inputs, outputs, tokens=tokens)
        self.width = width
        self.project = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(**settings) for _ in range(depth))
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, outputs))

    def encode(self, values: Tensor, lengths: Tensor) -> Tensor:
        """Attend among the valid steps; see :class:`SequenceEncoder` for the arguments."""
        steps = values.shape[1]
        found, padded = self.project(values), ~valid_steps(lengths, steps)
        found = found + positions(steps, self.width).to(found)
        for block in self.blocks:
            found = block(found, src_key_padding_mask=padded)
        mapped: Tensor = self.out(found)
        return mapped


def positions(steps: int, width: int) -> Tensor:
    """The sines and cosines, `(steps, width)`, that tell a transformer where a step stands."""
    rates = torch.exp(-math.log(10_000) / width * torch.arange(0, width, 2))
    angles = torch.arange(steps).unsqueeze(-1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)


def _check(inputs: int, outputs: int, width: int, depth: int, dropout: float) -> None:
    for what, value in (("inputs", inputs), ("outputs", outputs), ("width", width), ("depth", depth)):
        positive_integer(what, value)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout!r}.")
