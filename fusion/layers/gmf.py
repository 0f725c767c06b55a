"""Generalized Multimodal Fusion (GMF), first version: dissociation, gathering, reassembly, reconstruction."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .layer import Fused, FusionLayer
from .presence import Presence, mean_over_present


class GMF(FusionLayer):
    r"""Fuse modalities of unequal length by linear maps that treat channels as ions.

    For modality :math:`m = 1 \dots M` with features :math:`f_m \in \mathbb{R}^{l_m}`, expansion :math:`n`,
    boundary :math:`b` and :math:`l^* = \min_m l_m`:

    .. math::
        d_m &= P^\mathrm{dis}_m f_m \in \mathbb{R}^{n l_m}
            && \text{dissociation} \\
        c_m &= P^\mathrm{inv}_m\, d_m[\,{:}b_m] \in \mathbb{R}^{l^*}, \quad b_m = \lfloor b n l_m \rfloor
            && \text{invariant part, gathered} \\
        s_m &= P^\mathrm{spec}_m\, d_m[b_m{:}\,] \in \mathbb{R}^{l_m}
            && \text{specific part, gathered} \\
        Z_m &= [\,c_{(m+1) \bmod M} \; ; \; s_m\,] \in \mathbb{R}^{l^* + l_m}
            && \text{reassembly} \\
        L &= \sum_m \operatorname{mean} \lVert f_m - P^\mathrm{rec}_m Z_m \rVert^2
            && \text{reconstruction}

    Every map is a linear layer with bias, and there is no activation. Each coordinate of the output has a
    known origin. The paper sums the squared error over channels; here it is averaged over the samples that
    are present *and* over channels before it is summed over modalities, so that modalities of 128 and 4096
    channels weigh alike.

    A modality that is absent enters as zeros, as published: its invariant part, which its neighbour
    receives, is then what the biases make of zero.

    Arguments:
        dims: Modality name → :math:`l_m`, in the cyclic order of the reassembly.
        expansion: :math:`n > 0`; more than 2 is advised, 4 is used throughout the paper.
        boundary: :math:`0 < b < 1`.

    Raises:
        ValueError: An argument out of range, or a boundary that leaves one side without a coordinate.

    References:
        | arXiv:2410.15475 v1 (2024), sections on dissociation, concentration and reconstruction; 5,250,048
          parameters for two modalities of 512 channels.
    """

    def __init__(self, dims: Mapping[str, int], *, expansion: float = 4, boundary: float = 0.5) -> None:
        super().__init__(dims)
        self.expansion, self.boundary = expansion, boundary
        self.common_length = min(self.dims.values())
        names = list(self.dims)
        self.partner = dict(zip(names, names[1:] + names[:1], strict=True))
        lifted, inner = _lengths(self.dims, expansion, boundary)
        self.invariant_length = inner
        self.dissociation = nn.ModuleDict()
        self.gather_invariant = nn.ModuleDict()
        self.gather_specific = nn.ModuleDict()
        self.reconstruction = nn.ModuleDict()
        for name, length in self.dims.items():
            self.dissociation[name] = nn.Linear(length, lifted[name])
            self.gather_invariant[name] = nn.Linear(inner[name], self.common_length)
            self.gather_specific[name] = nn.Linear(lifted[name] - inner[name], length)
            self.reconstruction[name] = nn.Linear(self.common_length + length, length)

    @property
    def fused_dims(self) -> dict[str, int]:
        r""":math:`l^* + l_m` for each modality."""
        return {name: self.common_length + length for name, length in self.dims.items()}

    def dissociate(
        self, features: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        r"""The invariant parts `(*batch, b_m)` and specific parts `(*batch, n l_m − b_m)` before gathering.

        Arguments and errors are those of the layer itself.
        """
        return self._split(self.check(features, present)[0])

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """The four steps of the class; see :class:`FusionLayer` for the arguments."""
        inner, outer = self._split(features)
        invariant = {name: self.gather_invariant[name](inner[name]) for name in self.dims}
        specific = {name: self.gather_specific[name](outer[name]) for name in self.dims}
        fused = {
            name: torch.cat([invariant[self.partner[name]], specific[name]], dim=-1) for name in self.dims
        }
        errors = []
        for name, values in fused.items():
            difference = features[name] - self.reconstruction[name](values)
            errors.append(mean_over_present(difference.square().mean(dim=-1), present[name]))
        return Fused(fused, invariant, specific, {"reconstruction": torch.stack(errors).sum()})

    def extra_repr(self) -> str:
        """The lengths and the two settings, for `repr`."""
        return f"{super().extra_repr()}, expansion={self.expansion}, boundary={self.boundary}"

    def _split(self, features: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        lifted = {name: self.dissociation[name](values) for name, values in features.items()}
        inner = {name: values[..., : self.invariant_length[name]] for name, values in lifted.items()}
        outer = {name: values[..., self.invariant_length[name] :] for name, values in lifted.items()}
        return inner, outer


def _lengths(
    dims: dict[str, int], expansion: float, boundary: float
) -> tuple[dict[str, int], dict[str, int]]:
    """Lengths `n l_m` after dissociation, and `b_m` of the invariant part in it."""
    if not (0 < expansion < math.inf):
        raise ValueError(f"expansion must be a positive number, got {expansion!r}.")
    if not (0 < boundary < 1):
        raise ValueError(f"boundary must be between 0 and 1, both excluded, got {boundary!r}.")
    lifted, inner = {}, {}
    for name, length in dims.items():
        # The small term is there because 0.29 * 100 is 28.999999999999996.
        lifted[name] = math.floor(expansion * length + 1e-9)
        inner[name] = math.floor(boundary * lifted[name] + 1e-9)
        if not (0 < inner[name] < lifted[name]):
            raise ValueError(
                f"expansion {expansion:g} and boundary {boundary:g} split the {length} channels of {name!r} "
                f"into {inner[name]} and {lifted[name] - inner[name]}; both sides need at least one."
            )
    return lifted, inner
