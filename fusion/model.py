"""A whole model: encoders, standardisation, a fusion layer and a head that decides."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .distributed import moments
from .layers.layer import Fused, FusionLayer
from .layers.presence import Presence, zero_absent


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says.

    Attributes:
        logits: `(*batch, outputs)`.
        losses: The fusion layer's own terms, `{name: scalar}`.
    """

    logits: Tensor
    losses: dict[str, Tensor]


class Standardise(nn.Module):
    r"""Features less their mean, over their standard deviation: batch normalisation without affine maps.

    .. math:: \hat f = (f - \mu) / \sqrt{\sigma^2 + \epsilon}, \qquad |\hat f| \le 8

    In training :math:`\mu, \sigma^2` are those of the batch, in evaluation their running means. Absent
    samples enter neither the statistics nor the result (they stay zero). A training batch with a single
    present sample has no variance: it is scaled by the running statistics and leaves them alone. Where
    several processes train together, a batch is what all of them see in a step.

    Arguments:
        channels: *l*.
        momentum: Weight of a new batch in the running means; the first batches weigh equally.

    References:
        | S. Ioffe and C. Szegedy, Batch Normalization, arXiv:1502.03167 (2015)
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    # A batch of 64 reaches at most the root of 63. Without the limit a channel that was constant in training
    # (the corner of an image, say) would come out as hundreds the first time it is not.
    limit = 8.0

    def __init__(self, channels: int, *, momentum: float = 0.1) -> None:
        super().__init__()
        self.channels, self.momentum = channels, momentum
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """Standardise `(*batch, l)` where `present`, `(*batch)`, is true."""
        flat, chosen = features.reshape(-1, self.channels), present.reshape(-1)
        mean, variance = self.mean, self.variance
        rows = flat[chosen].to(torch.promote_types(flat.dtype, mean.dtype))  # bfloat16 of a trained encoder
        if self.training:
            # By hand: torch's batch_norm wakes every thread even for a few rows, which costs 20 ms a call
            # on a busy machine.
            samples, batch_mean, batch_variance = moments(rows)
            if samples > 1:
                mean, variance = batch_mean, batch_variance
                self._remember(mean.detach(), variance.detach(), samples)
        rows = (rows - mean) * (variance + 1e-8).rsqrt()
        rows = rows.clamp(-self.limit, self.limit)
        return torch.zeros_like(flat, dtype=rows.dtype).index_put((chosen,), rows).reshape(features.shape)

    def _remember(self, mean: Tensor, variance: Tensor, samples: int) -> None:
        self.batches += 1
        weight = (1 / self.batches).clamp(min=self.momentum)
        self.mean.lerp_(mean, weight)
        self.variance.lerp_(variance * (samples / (samples - 1)), weight)


class JointHead(nn.Module):
    """One decision on all that the layer gives."""

    def __init__(self, layer: FusionLayer, outputs: int, hidden: int | None, dropout: float) -> None:
        super().__init__()
        self.decision = perceptron(layer.out_features, outputs, hidden, dropout)

    def forward(self, fused: Fused, present: Presence) -> Tensor:
        """Logits `(*batch, outputs)`; who is present is for the layer to have dealt with."""
        logits: Tensor = self.decision(fused.concatenated())
        return logits


class AverageHead(nn.Module):
    """One decision for each modality, averaged over those present (late fusion)."""

    def __init__(self, layer: FusionLayer, outputs: int, hidden: int | None, dropout: float) -> None:
        super().__init__()
        self.decisions = nn.ModuleDict(
            {name: perceptron(length, outputs, hidden, dropout) for name, length in layer.fused_dims.items()}
        )

    def forward(self, fused: Fused, present: Presence) -> Tensor:
        """Logits `(*batch, outputs)`."""
        logits = [
            zero_absent(self.decisions[name](values), present[name]) for name, values in fused.fused.items()
        ]
        count = torch.stack([present[name] for name in fused.fused]).sum(dim=0)
        return torch.stack(logits).sum(dim=0) / count.unsqueeze(-1)


class FusionModel(nn.Module):
    r"""Encoders, standardisation, a fusion layer and a head, in this order.

    Arguments:
        layer: Any :class:`FusionLayer`. One whose `late` is true gets a head for each modality.
        outputs: Numbers per sample: classes, or 1 for a regression.
        standardise: Scale each modality by running statistics before the layer (unless the layer's
            `standardises` says that it does so itself).
        hidden: Width of the head's hidden layer (linear, ReLU, dropout, linear); None: a linear head.
        dropout: Probability in the head, 0 to below 1.
        encoders: Modality name → module that makes features `(N, l)` of raw input `(N, ...)`; a modality
            not named is taken as it is.

    Raises:
        ValueError: A number out of range, or an encoder for an unknown modality.
    """

    def __init__(
        self,
        layer: FusionLayer,
        outputs: int,
        *,
        standardise: bool = True,
        hidden: int | None = 128,
        dropout: float = 0.2,
        encoders: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        _check_model(layer, outputs, hidden, dropout, encoders or {})
        self.layer = layer
        self.encoders = nn.ModuleDict(dict(encoders or {}))
        scaled = layer.dims if standardise and not layer.standardises else {}
        self.standardise = nn.ModuleDict({name: Standardise(length) for name, length in scaled.items()})
        head = AverageHead if layer.late else JointHead
        self.head = head(layer, outputs, hidden, dropout)

    def forward(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        """Decide from `{name: (*batch, l)}` (or an encoder's raw input) and who is present.

        Absent samples influence nothing, whatever they hold. Raises what the layer raises.
        """
        return self.decide(self.encode(features, present), present)

    def encode(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The features that the encoders make, before standardisation."""
        encoded = dict(features)
        for name in self.encoders.keys() & encoded.keys():
            if present is not None and name in present:
                # Before the encoder too, or a NaN would reach the gradient of its weights.
                encoded[name] = zero_absent(encoded[name], present[name])
            encoded[name] = self.encoders[name](encoded[name])
        return encoded

    def decide(
        self, encoded: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> Prediction:
        """Logits from encoded features; with :meth:`encode`, the two halves of the model.

        Training encodes a batch once and decides under several patterns of presence.
        """
        fused, full = self._fuse(encoded, present)
        return Prediction(self.head(fused, full), fused.losses)

    def fuse(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None) -> Fused:
        """What the fusion layer makes of raw features inside this model, for looking inside."""
        return self._fuse(self.encode(features, present), present)[0]

    def _fuse(
        self, encoded: Mapping[str, Tensor], present: Mapping[str, Tensor] | None
    ) -> tuple[Fused, Presence]:
        features, full = self.layer.check(encoded, present)
        for name, scale in self.standardise.items():
            features[name] = scale(features[name], full[name])
        return self.layer(features, full), full


def perceptron(inputs: int, outputs: int, hidden: int | None, dropout: float) -> nn.Module:
    """Linear, ReLU, dropout, linear; a single linear map if `hidden` is None."""
    if hidden is None:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
    )


def _check_model(
    layer: FusionLayer, outputs: int, hidden: int | None, dropout: float, encoders: Mapping[str, nn.Module]
) -> None:
    if outputs < 1:
        raise ValueError(f"outputs must be 1 or more, got {outputs}.")
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden must be 1 or more, or None for a linear head, got {hidden}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout}.")
    if unknown := set(encoders) - set(layer.dims):
        raise ValueError(
            f"encoders name {', '.join(sorted(unknown))}, which is none of {', '.join(layer.dims)}."
        )
