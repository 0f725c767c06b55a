"""A whole model: encoders, standardisation, a fusion layer and a head that decides."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .distributed import moments
from .heads import PooledHead, make_head
from .layers.layer import Fused, FusionLayer, pooled
from .layers.presence import Presence, valid_steps, zero_absent


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says.

    Attributes:
        logits: `(*batch, outputs)`.
        losses: The fusion layer's own terms, `{name: scalar}`.
        votes: What the logits were pooled from, `(K, *batch, outputs)`, for a loss of each; of a single decision
            these are the logits.

    Example:
        >>> import fusion
        >>> import torch
        >>> model = fusion.FusionModel(fusion.GMF({"a": 4, "b": 6}), outputs=3)
        >>> found = model({"a": torch.randn(8, 4), "b": torch.randn(8, 6)})
        >>> tuple(found.logits.shape), list(found.losses)
        ((8, 3), ['reconstruction'])
    """

    logits: Tensor
    losses: dict[str, Tensor]
    votes: Tensor


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
        # An encoder under autocast gives bfloat16, too coarse for statistics.
        values = zero_absent(features, present).to(self.mean.dtype)
        mean, variance = self.mean, self.variance
        if self.training:
            # By hand: torch's batch_norm wakes every thread even for a few rows, which costs 20 ms a call
            # on a busy machine.
            samples, *found = moments(values.reshape(-1, self.channels), present.reshape(-1))
            mean, variance = (
                torch.where(samples > 1, of_batch, running)
                for of_batch, running in zip(found, (mean, variance), strict=True)
            )
            self._remember(mean.detach(), variance.detach(), samples)
        scaled = (values - mean) * (variance + 1e-8).rsqrt()
        return zero_absent(scaled.clamp(-self.limit, self.limit), present)

    def _remember(self, mean: Tensor, variance: Tensor, samples: Tensor) -> None:
        enough = (samples > 1).to(self.batches)
        self.batches += enough
        weight = enough / self.batches.clamp(min=1, max=1 / self.momentum)
        self.mean.lerp_(mean, weight)
        self.variance.lerp_(variance * (samples / (samples - 1).clamp(min=1)), weight)


class FusionModel(nn.Module):
    r"""Encoders, standardisation, a fusion layer and a head, in this order.

    Arguments:
        layer: Any :class:`FusionLayer`. One whose `late` is true gets a head for each modality, others the one that
            their `readout` names, a linear one if `hidden` is None.
        outputs: Numbers per sample: classes, or 1 for a regression. Or a head of your own, a module from
            `(*batch, layer.out_features)` to `(*batch, outputs)`.
        standardise: Scale each modality by running statistics before the layer (unless the layer's
            `standardises` says that it does so itself): every valid step of a sequence alike for a layer of
            tokens, the mean of the valid steps for any other, so that what a layer gets has unit variance.
        hidden: Width of the head's hidden layer (linear, ReLU, dropout, linear); None: a linear head.
        dropout: Probability in the head, 0 to below 1.
        encoders: Modality name → module that makes features `(N, l)` of raw input `(N, ...)`; a modality
            not named is taken as it is. For a modality that `lengths` names it is called with them,
            `encoder(values, lengths)`, and returns either a vector or as many steps as it was given.
        frozen: Names of encoders that are not trained: no gradients, and always in evaluation mode.

    Raises:
        ValueError: A number out of range, an encoder for an unknown modality, `frozen` that names no
            encoder, or a head of your own for a layer that needs several.

    Example:
        >>> import fusion
        >>> import torch
        >>> layer = fusion.MBT({"speech": 32, "text": 16})
        >>> encoders = {"speech": fusion.RecurrentEncoder(40, 32, tokens=True)}
        >>> model = fusion.FusionModel(layer, outputs=7, encoders=encoders)
        >>> inputs = {"speech": torch.randn(8, 50, 40), "text": torch.randn(8, 16)}
        >>> tuple(model(inputs, lengths={"speech": torch.full((8,), 50)}).logits.shape)
        (8, 7)
    """

    def __init__(
        self,
        layer: FusionLayer,
        outputs: int | nn.Module,
        *,
        standardise: bool = True,
        hidden: int | None = 128,
        dropout: float = 0.2,
        encoders: Mapping[str, nn.Module] | None = None,
        frozen: Iterable[str] = (),
    ) -> None:
        super().__init__()
        self.frozen = tuple(frozen)
        _check_model(layer, outputs, hidden, dropout, encoders or {}, self.frozen)
        self.layer = layer
        self.encoders = nn.ModuleDict(dict(encoders or {}))
        for name in self.frozen:
            self.encoders[name].eval().requires_grad_(False)
        scaled = layer.dims if standardise and not layer.standardises else {}
        self.standardise = nn.ModuleDict({name: Standardise(length) for name, length in scaled.items()})
        self.head = make_head(layer, outputs, hidden, dropout)

    def train(self, mode: bool = True) -> "FusionModel":
        """Set training or evaluation mode of all but the frozen encoders, which stay in evaluation."""
        super().train(mode)
        for name in self.frozen:
            self.encoders[name].eval()
        return self

    def forward(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """Decide from `{name: (*batch, l)}` (or an encoder's raw input), who is present, and valid steps.

        Absent samples and padded steps influence nothing, whatever they hold. Arguments and errors are the
        layer's.
        """
        return self.decide(self.encode(features, present, lengths), present, lengths)

    def encode(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The features that the encoders make, before standardisation."""
        encoded = dict(features)
        for name in self.encoders.keys() & encoded.keys():
            values, more = encoded[name], []
            if lengths is not None and name in lengths:
                values = zero_absent(values, valid_steps(lengths[name], values.shape[lengths[name].ndim]))
                more = [lengths[name]]
            if present is not None and name in present:
                # Before the encoder too, or a NaN would reach the gradient of its weights.
                values = zero_absent(values, present[name])
            encoded[name] = self.encoders[name](values, *more)
        return encoded

    def decide(
        self,
        encoded: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> Prediction:
        """Logits from encoded features; with :meth:`encode`, the two halves of the model.

        Training encodes a batch once and decides under several patterns of presence. `lengths` are those
        given to :meth:`encode`.
        """
        fused, here = self._fuse(encoded, present, lengths)
        present = self.layer.fused_present(here)
        if isinstance(self.head, PooledHead):
            votes = self.head.votes(fused, present)
            return Prediction(self.head.pool(votes, present), fused.losses, votes)
        logits = self.head(fused, present)
        return Prediction(logits, fused.losses, logits.unsqueeze(0))

    def fuse(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> Fused:
        """What the fusion layer makes of raw features inside this model, for looking inside."""
        return self._fuse(self.encode(features, present, lengths), present, lengths)[0]

    def vectors(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        lengths: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Encoded features with every sequence pooled, `{name: (*batch, l)}`, for statistics and probes."""
        encoded = self.encode(features, present, lengths)
        present, lengths = self._after_encoders(encoded, present, lengths)
        return pooled(*self.layer.check(encoded, present, lengths), lengths)[0]

    def _fuse(
        self,
        encoded: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        lengths: Mapping[str, Tensor] | None,
    ) -> tuple[Fused, Presence]:
        present, lengths = self._after_encoders(encoded, present, lengths)
        features, here = self.layer.check(encoded, present, lengths)
        if lengths and not self.layer.tokens:
            features, here = pooled(features, here, lengths)
            present, lengths = here, {}
        for name, scale in self.standardise.items():
            features[name] = scale(features[name], here[name])
        fused = self.layer(features, present, lengths)
        return fused, here | {name: here[name].any(dim=-1) for name in lengths}

    def _after_encoders(
        self,
        encoded: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        lengths: Mapping[str, Tensor] | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Presence and lengths as they are once encoders have made vectors of some of the sequences."""
        there, steps = dict(present or {}), dict(lengths or {})
        for name in self.encoders.keys() & steps.keys():
            if encoded[name].ndim == steps[name].ndim + 1:
                some = steps.pop(name) > 0
                there[name] = there[name] & some if name in there else some
        return there, steps


def _check_model(
    layer: FusionLayer,
    outputs: int | nn.Module,
    hidden: int | None,
    dropout: float,
    encoders: Mapping[str, nn.Module],
    frozen: tuple[str, ...],
) -> None:
    if not isinstance(outputs, nn.Module) and outputs < 1:
        raise ValueError(f"outputs must be 1 or more, got {outputs}.")
    if hidden is not None and hidden < 1:
        raise ValueError(f"hidden must be 1 or more, or None for a linear head, got {hidden}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to below 1, got {dropout}.")
    if unknown := set(encoders) - set(layer.dims):
        raise ValueError(
            f"encoders name {', '.join(sorted(unknown))}, which is none of {', '.join(layer.dims)}."
        )
    if unknown := set(frozen) - set(encoders):
        raise ValueError(
            f"frozen names {', '.join(sorted(unknown))}, which is none of the encoders "
            f"({', '.join(encoders) or 'there are none'})."
        )
