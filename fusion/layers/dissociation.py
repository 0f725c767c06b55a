"""What GMF and its successor have in common: parts that are lifted, divided, gathered, exchanged and returned."""

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import TypedDict

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .numbers import choice, weight
from .presence import Presence, mean_of_valid, mean_over_present, valid_steps, zero_absent

PARTNERS = ("next", "mean")
ABSENT = ("zeros", "learned")


class Options(TypedDict, total=False):
    """What :class:`DissociationLayer`, which explains them, leaves as published unless told."""

    partner: str
    specific_share: float | Mapping[str, float]
    absent: str
    reconstruction_weight: float


class DissociationLayer(FusionLayer):
    r"""Base of the layers that divide each modality into an invariant and a specific part.

    For modality :math:`m = 1 \dots M` with features :math:`f_m \in \mathbb{R}^{l_m}`, expansion :math:`n_m`,
    boundary :math:`b_m` and :math:`l^* = \min_m l_m`:

    .. math::
        d_m &= P^\mathrm{dis}_m f_m \in \mathbb{R}^{\lfloor n_m l_m \rfloor}
            && \text{dissociation} \\
        c_m &= P^\mathrm{inv}_m\, d_m[\,{:}\beta_m] \in \mathbb{R}^{l^*}, \quad
            \beta_m = \lfloor b_m \lfloor n_m l_m \rfloor \rfloor
            && \text{invariant part, gathered} \\
        s_m &= P^\mathrm{spec}_m\, d_m[\beta_m{:}\,] \in \mathbb{R}^{\sigma_m}, \quad
            \sigma_m = \max(1, \lfloor \sigma l_m \rfloor)
            && \text{specific part, gathered} \\
        Z_m &= [\,\bar c_m \; ; \; s_m\,] \in \mathbb{R}^{l^* + \sigma_m}
            && \text{reassembly} \\
        L &= \lambda \sum_m \operatorname{mean} \Delta(f_m,\, P^\mathrm{rec}_m Z_m)
            && \text{reconstruction}

    where :math:`\bar c_m` is the invariant part of the next modality, :math:`c_{(m+1) \bmod M}`, or the mean
    of those of the other modalities present (its own, if there is no other). Each coordinate of the output
    has a known origin. The distance :math:`\Delta` is averaged over the samples that are present, and each
    modality weighs alike, whatever its length. A leaf says what the maps P and the distance are.

    Arguments:
        dims: Modality name → :math:`l_m`, in the cyclic order of the reassembly. A single modality is its
            own partner.
        expansion: :math:`n_m > 0`, one number or one for each modality by name.
        boundary: :math:`0 < b_m < 1`, likewise.
        partner: Whose invariant part joins the specific one: `next` or `mean`.
        specific_share: :math:`0 < \sigma \le 1`, likewise one number or several. With 1, as published, the
            specific part alone can give the features back, and the reconstruction loss separates nothing;
            below 1 it cannot be met without the invariant parts.
        absent: What stands for an absent modality: `zeros`, or a `learned` vector, zero at the start. Its
            invariant part is what the maps make of that.
        reconstruction_weight: :math:`\lambda \ge 0`.

    Raises:
        ValueError: An argument out of range, a mapping that does not name the modalities of `dims`, or an
            expansion and a boundary that leave one side without a coordinate.
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        expansion: float | Mapping[str, float],
        boundary: float | Mapping[str, float],
        partner: str = "next",
        specific_share: float | Mapping[str, float] = 1.0,
        absent: str = "zeros",
        reconstruction_weight: float = 1.0,
    ) -> None:
        super().__init__(dims)
        self.expansion, self.boundary, self.specific_share = expansion, boundary, specific_share
        self.partner = choice("partner", partner, PARTNERS)
        self.absent = choice("absent", absent, ABSENT)
        self.reconstruction_weight = weight("reconstruction_weight", reconstruction_weight)
        self.common_length = min(self.dims.values())
        lifted, self.invariant_lengths = _divided(self.dims, expansion, boundary)
        self.specific_lengths = _specific_lengths(self.dims, specific_share)
        names = list(self.dims)
        following = dict(zip(names, names[1:] + names[:1], strict=True))
        self.partners = {
            name: [following[name]] if partner == "next" else [other for other in names if other != name]
            for name in names
        }
        self.dissociation = nn.ModuleDict()
        self.gather_invariant = nn.ModuleDict()
        self.gather_specific = nn.ModuleDict()
        self.reconstruction = nn.ModuleDict()
        for name, length in self.dims.items():
            inner, outer = self.invariant_lengths[name], lifted[name] - self.invariant_lengths[name]
            self.dissociation[name] = self.make_map(length, lifted[name])
            self.gather_invariant[name] = self.make_map(inner, self.common_length)
            self.gather_specific[name] = self.make_map(outer, self.specific_lengths[name])
            self.reconstruction[name] = self.make_map(self.fused_dims[name], length)
        self.placeholders = nn.ParameterDict()
        if absent == "learned":
            self.placeholders.update(
                {name: nn.Parameter(torch.zeros(length)) for name, length in self.dims.items()}
            )

    @abstractmethod
    def make_map(self, inputs: int, outputs: int) -> nn.Module:
        """One of the maps P."""

    @abstractmethod
    def distance(self, features: Tensor, rebuilt: Tensor) -> Tensor:
        r""":math:`\Delta` between features and their reconstruction, `(*batch, l)` to `(*batch)`."""

    @property
    def fused_dims(self) -> dict[str, int]:
        r""":math:`l^* + \sigma_m` for each modality."""
        return {name: self.common_length + length for name, length in self.specific_lengths.items()}

    def fused_present(self, present: Presence) -> Presence:
        """An entry holds something if its modality is present or one whose invariant part it has."""
        return {
            name: torch.stack([present[name], *(present[other] for other in others)]).any(dim=0)
            for name, others in self.partners.items()
        }

    def dissociate(
        self,
        features: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        r"""The invariant parts `(*batch, beta_m)` and specific parts, the other lifted channels, before gathering.

        Arguments and errors are those of the layer itself.
        """
        return self._divide(*self.check(features, present))

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """The steps of the class; see :class:`FusionLayer` for the arguments."""
        invariant, specific = self._gather(features, present)
        joined = {name: self._partner_part(name, invariant, present) for name in self.dims}
        fused = _reassemble(joined, specific)
        return Fused(fused, invariant, specific, self._losses(features, fused, present))

    def fuse_steps(self, features: dict[str, Tensor], present: Presence) -> tuple[Fused, Presence]:
        r"""The same for every step of sequences, whose partners join with what is invariant in them on average.

        .. math:: Z_{m,t} = [\, \bar c_m \; ; \; s_{m,t} \,], \qquad c_k = \operatorname{mean}_t c_{k,t}

        Sequences need not be synchronous. With linear maps the mean over steps of :math:`Z_{m,t}` is what
        :meth:`fuse` makes of the means of the sequences.

        Arguments:
            features: `{name: (N, T_m, l_m)}`, zero where nothing is present.
            present: `{name: (N, T_m)}`, the valid steps.

        Returns:
            `fused` of every step, `{name: (N, T_m, d)}`, `invariant` and `specific` as means over steps,
            `{name: (N, ...)}`; and which steps of `fused` hold something: the valid ones, and one of a modality
            that has none but whose partner is there.
        """
        invariant, specific = self._gather(features, present)
        there = {name: valid.any(dim=-1) for name, valid in present.items()}
        # The steps of one that is absent are all what the maps make of its placeholder.
        counted = {name: valid | ~there[name].unsqueeze(-1) for name, valid in present.items()}
        means = {name: mean_of_valid(values, counted[name]) for name, values in invariant.items()}
        joined = {
            name: self._partner_part(name, means, there).unsqueeze(-2).expand(*values.shape[:-1], -1)
            for name, values in specific.items()
        }
        fused = _reassemble(joined, specific)
        holding = self.fused_present(there)
        valid = {
            name: steps | valid_steps((holding[name] & ~there[name]).long(), steps.shape[-1])
            for name, steps in present.items()
        }
        own = {name: mean_of_valid(values, counted[name]) for name, values in specific.items()}
        return Fused(fused, means, own, self._losses(features, fused, present)), valid

    def extra_repr(self) -> str:
        """The lengths and the settings, for `repr`."""
        return (
            f"{super().extra_repr()}, expansion={self.expansion}, boundary={self.boundary}, "
            f"partner={self.partner}, specific_share={self.specific_share}, absent={self.absent}, "
            f"reconstruction_weight={self.reconstruction_weight}"
        )

    def _gather(
        self, features: dict[str, Tensor], present: Presence
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inner, outer = self._divide(features, present)
        invariant = {name: self.gather_invariant[name](inner[name]) for name in self.dims}
        specific = {name: self.gather_specific[name](outer[name]) for name in self.dims}
        return invariant, specific

    def _losses(
        self, features: dict[str, Tensor], fused: dict[str, Tensor], present: Presence
    ) -> dict[str, Tensor]:
        errors = [
            mean_over_present(self.distance(features[name], self.reconstruction[name](values)), present[name])
            for name, values in fused.items()
        ]
        return {"reconstruction": self.reconstruction_weight * torch.stack(errors).sum()}

    def _divide(
        self, features: dict[str, Tensor], present: Presence
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        inner, outer = {}, {}
        for name, values in features.items():
            if name in self.placeholders:
                values = torch.where(present[name].unsqueeze(-1), values, self.placeholders[name])
            lifted = self.dissociation[name](values)
            border = self.invariant_lengths[name]
            # One split instead of two slices, whose gradients would each fill a whole tensor of zeros.
            inner[name], outer[name] = lifted.split([border, lifted.shape[-1] - border], dim=-1)
        return inner, outer

    def _partner_part(self, name: str, invariant: dict[str, Tensor], present: Presence) -> Tensor:
        others = self.partners[name]
        if self.partner == "next":
            return invariant[others[0]]
        if not others:
            return invariant[name]
        total = torch.stack([zero_absent(invariant[other], present[other]) for other in others]).sum(dim=0)
        count = torch.stack([present[other] for other in others]).sum(dim=0).unsqueeze(-1)
        return torch.where(count > 0, total / count.clamp(min=1), invariant[name])


def _reassemble(joined: dict[str, Tensor], specific: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.cat([joined[name], specific[name]], dim=-1) for name in joined}


def per_modality(what: str, value: float | Mapping[str, float], dims: Mapping[str, int]) -> dict[str, float]:
    """One number for each modality, from one for all or from one for each by name.

    Raises:
        ValueError: A mapping that does not name exactly the modalities of `dims`.
    """
    if not isinstance(value, Mapping):
        return dict.fromkeys(dims, value)
    if set(value) != set(dims):
        raise ValueError(
            f"{what} must name the modalities {', '.join(dims)}, got {', '.join(value) or 'none'}."
        )
    return {name: value[name] for name in dims}


def _divided(
    dims: dict[str, int], expansion: float | Mapping[str, float], boundary: float | Mapping[str, float]
) -> tuple[dict[str, int], dict[str, int]]:
    """Lengths after dissociation, and of the invariant part in them."""
    expansions, boundaries = (
        per_modality("expansion", expansion, dims),
        per_modality("boundary", boundary, dims),
    )
    lifted, inner = {}, {}
    for name, length in dims.items():
        times, share = expansions[name], boundaries[name]
        if not (0 < times < math.inf):
            raise ValueError(f"expansion must be a positive number, got {times!r}.")
        if not (0 < share < 1):
            raise ValueError(f"boundary must be between 0 and 1, both excluded, got {share!r}.")
        lifted[name] = _floor(times * length)
        inner[name] = _floor(share * lifted[name])
        if not (0 < inner[name] < lifted[name]):
            raise ValueError(
                f"expansion {times:g} and boundary {share:g} split the {length} channels of {name!r} "
                f"into {inner[name]} and {lifted[name] - inner[name]}; both sides need at least one."
            )
    return lifted, inner


def _specific_lengths(dims: dict[str, int], share: float | Mapping[str, float]) -> dict[str, int]:
    shares = per_modality("specific_share", share, dims)
    for value in shares.values():
        if not 0 < value <= 1:
            raise ValueError(f"specific_share must be above 0 and at most 1, got {value!r}.")
    return {name: max(1, _floor(shares[name] * length)) for name, length in dims.items()}


def _floor(value: float) -> int:
    # The small term is there because 0.29 * 100 is 28.999999999999996.
    return math.floor(value + 1e-9)
