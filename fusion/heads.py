"""What decides on the output of a fusion layer."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from .distributed import total
from .layers.layer import Fused, FusionLayer
from .layers.presence import Presence, zero_absent

WIDTH = 128
"""Of what a gated head makes of each modality, as in :class:`~fusion.layers.gated.GatedFusion`."""


def make_head(layer: FusionLayer, outputs: int | nn.Module, hidden: int | None, dropout: float) -> nn.Module:
    """The head that a layer wants, see :class:`~fusion.model.FusionModel` for the arguments.

    A linear one, where that is asked for, and one of your own take the place of gated and pooled ones.
    """
    if layer.late:
        return AverageHead(layer, outputs, hidden, dropout)
    if layer.readout == "joint" or hidden is None or isinstance(outputs, nn.Module):
        return JointHead(layer, outputs, hidden, dropout)
    gated = GatedHead(layer, outputs, hidden, dropout)
    if layer.readout == "gated":
        return gated
    experts = CompletedHead(layer, outputs, hidden, dropout)
    return PooledHead([JointHead(layer, outputs, None, dropout), experts, gated])


class JointHead(nn.Module):
    """One decision on all that the layer gives."""

    def __init__(
        self, layer: FusionLayer, outputs: int | nn.Module, hidden: int | None, dropout: float
    ) -> None:
        super().__init__()
        if not isinstance(outputs, nn.Module):
            outputs = perceptron(layer.out_features, outputs, hidden, dropout)
        self.decision = outputs

    def forward(self, fused: Fused, present: Presence) -> Tensor:
        """Logits `(*batch, outputs)`; who is present is for the layer to have dealt with."""
        logits: Tensor = self.decision(fused.concatenated())
        return logits


class AverageHead(nn.Module):
    """One decision for each entry of `fused`, averaged over those present (late fusion)."""

    def __init__(
        self, layer: FusionLayer, outputs: int | nn.Module, hidden: int | None, dropout: float
    ) -> None:
        super().__init__()
        if isinstance(outputs, nn.Module):
            raise ValueError(
                f"outputs must be a number for {type(layer).__name__}, which has a head for each modality, "
                f"got {type(outputs).__name__}."
            )
        self.decisions = perceptrons(layer.fused_dims, outputs, hidden, dropout)

    def forward(self, fused: Fused, present: Presence) -> Tensor:
        """Logits `(*batch, outputs)` from who is present, `{entry: (*batch)}`."""
        return average(self.decisions, fused.fused, present)


class Counted(nn.Module):
    r"""Which completed modalities a decision counts.

    One that is absent counts as it is filled in, unless the head has been trained without it: then it has learnt to
    decide from the others, which on real features does better.

    Arguments:
        names: The modalities.
    """

    absent_in_training: Tensor

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        self.register_buffer("absent_in_training", torch.zeros(len(self.names), dtype=torch.bool))

    def forward(self, present: Presence) -> Presence:
        """Whom to count, from who is present, `{name: (*batch)}` both."""
        if self.training:
            absent = torch.stack([(~present[name]).any() for name in self.names])
            self.absent_in_training.logical_or_(total(absent.float()) > 0)
        return {
            name: present[name] | ~left_out
            for name, left_out in zip(self.names, self.absent_in_training, strict=True)
        }


class CompletedHead(nn.Module):
    r"""One decision for each modality, averaged.

    .. math:: y = \frac{\sum_m p_m\, h_m(\hat f_m)}{\sum_m p_m}

    with :math:`\hat f_m` the modality in `completed` and :math:`p_m` 1 where it is :class:`counted <Counted>`, else 0.

    Arguments:
        layer: One that fills in what is absent.
        outputs, hidden, dropout: Of the decisions :math:`h_m`, perceptrons.
    """

    def __init__(self, layer: FusionLayer, outputs: int, hidden: int | None, dropout: float) -> None:
        super().__init__()
        self.decisions = perceptrons(layer.dims, outputs, hidden, dropout)
        self.counted = Counted(layer.dims)

    def forward(self, fused: Fused, present: Presence) -> Tensor:
        """Logits `(*batch, outputs)` from who is present, `{name: (*batch)}`."""
        return average(self.decisions, fused.completed, self.counted(present))


class GatedHead(nn.Module):
    r"""A nonlinear map of each modality, weighed by gates that see what the layer has divided, before one decision.

    .. math::
        y = h\Big(\sum_m p_m\, \operatorname{sigmoid}(V_m Z + c_m) \odot \tanh(W_m \hat f_m + b_m)\Big)

    with Z all of `fused`, side by side, :math:`\hat f_m` the modality in `completed` and :math:`p_m` 1 where it is
    :class:`counted <Counted>`, else 0.

    Arguments:
        layer: One that fills in what is absent.
        outputs, hidden: Of the decision *h*, a perceptron.
        dropout: In *h*, and half of it on every :math:`\hat f_m` and on the sum.
    """

    def __init__(self, layer: FusionLayer, outputs: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.maps = nn.ModuleDict({name: nn.Linear(length, WIDTH) for name, length in layer.dims.items()})
        self.gates = nn.ModuleDict({name: nn.Linear(layer.out_features, WIDTH) for name in layer.dims})
        self.dropout = nn.Dropout(dropout / 2)
        self.decision = perceptron(WIDTH, outputs, hidden, dropout)
        self.counted = Counted(layer.dims)

    def forward(self, fused: Fused, present: Presence) -> Tensor:
        """Logits `(*batch, outputs)` from who is present, `{name: (*batch)}`."""
        divided, counted = fused.concatenated(), self.counted(present)
        terms = []
        for name, linear in self.maps.items():
            weight = torch.sigmoid(self.gates[name](divided))
            term = weight * torch.tanh(linear(self.dropout(fused.completed[name])))
            terms.append(zero_absent(term, counted[name]))
        logits: Tensor = self.decision(self.dropout(torch.stack(terms).sum(dim=0)))
        return logits


class PooledHead(nn.Module):
    r"""Several decisions, each trained as if it were alone, and their weighted sum.

    .. math::
        y = \sum_k w_k\, y_k, \qquad w_k = \operatorname{softplus}(\theta_k + [\text{something is absent}]\,\delta_k)

    Of logits that is a logarithmic pool, in which every member's confidence is scaled as well. Weights start equal; a
    trainer fits them to samples that the members have not learnt from
    (:func:`~fusion.training.pooling.fit_weights`), so what a member has only memorised counts for little.

    Arguments:
        members: Heads with the same outputs.
    """

    exponents: Tensor

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        start = math.log(math.expm1(1 / len(self.members)))
        self.register_buffer("exponents", torch.tensor([[start], [0.0]]).repeat(1, len(self.members)))

    def votes(self, fused: Fused, present: Presence) -> Tensor:
        """What every member says, `(K, *batch, outputs)`."""
        return torch.stack([member(fused, present) for member in self.members])

    def pool(self, votes: Tensor, present: Presence) -> Tensor:
        """The weighted sum `(*batch, outputs)` of votes, from who is present, `{name: (*batch)}`."""
        absent = ~torch.stack(list(present.values())).all(dim=0)
        weights = functional.softplus(self.exponents[0] + absent.unsqueeze(-1) * self.exponents[1])
        return (weights.movedim(-1, 0).unsqueeze(-1).to(votes) * votes).sum(dim=0)

    def forward(self, fused: Fused, present: Presence) -> Tensor:
        """Logits `(*batch, outputs)` from who is present, `{name: (*batch)}`."""
        return self.pool(self.votes(fused, present), present)


def perceptrons(
    lengths: Mapping[str, int], outputs: int, hidden: int | None, dropout: float
) -> nn.ModuleDict:
    """A decision for each name, on so many channels."""
    return nn.ModuleDict(
        {name: perceptron(length, outputs, hidden, dropout) for name, length in lengths.items()}
    )


def average(decisions: nn.ModuleDict, values: Mapping[str, Tensor], counted: Presence) -> Tensor:
    """The mean over those that count of what is decided on each, `(*batch, outputs)`."""
    logits = [zero_absent(decision(values[name]), counted[name]) for name, decision in decisions.items()]
    count = torch.stack([counted[name] for name in decisions]).sum(dim=0)
    return torch.stack(logits).sum(dim=0) / count.unsqueeze(-1)


def perceptron(inputs: int, outputs: int, hidden: int | None, dropout: float) -> nn.Module:
    """Linear, ReLU, dropout, linear; a single linear map if `hidden` is None."""
    if hidden is None:
        return nn.Linear(inputs, outputs)
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, outputs)
    )
