"""Generalized Multimodal Fusion (GMF), first version: dissociation, gathering, reassembly, reconstruction."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn

from .cell_gmf import CellGMF
from .dissociation import DissociationLayer, Options
from .divided_energy import DividedEnergy
from .layer import Fused
from .numbers import weight
from .presence import Presence


class GMF(DissociationLayer):
    r"""Fuse modalities of unequal length by linear maps that treat channels as ions.

    The steps are those of :class:`~fusion.layers.dissociation.DissociationLayer`, which also explains the
    options. Every map is a linear layer with bias, there is no activation, and

    .. math:: \Delta(f, \hat f) = \lVert f - \hat f \rVert^2 / l_m .

    As published: the next modality as partner, a specific part as long as the features, zeros for an absent
    modality. The paper sums the squared error over channels; here it is averaged over them before it is
    summed over modalities, so that modalities of 128 and 4096 channels weigh alike. The paper gives no
    weight of the loss; it is one.

    Arguments:
        dims: Modality name → :math:`l_m`, in the cyclic order of the reassembly.
        expansion: :math:`n`, one number or one for each modality; more than 2 is advised, 4 is used
            throughout the paper.
        boundary: :math:`b`, likewise.
        options: `partner`, `specific_share`, `absent` and `reconstruction_weight` of the base.

    Raises:
        ValueError: See the base.

    References:
        | arXiv:2410.15475 v1 (2024), sections on dissociation, concentration and reconstruction; 5,250,048
          parameters and 0.01 GFLOP for two modalities of 512 channels.

    Example:
        >>> import fusion
        >>> layer = fusion.GMF({"audio": 512, "video": 512})
        >>> f"{sum(weights.numel() for weights in layer.parameters()):,}"
        '5,250,048'
    """

    def __init__(
        self,
        dims: Mapping[str, int],
        *,
        expansion: float | Mapping[str, float] = 4,
        boundary: float | Mapping[str, float] = 0.5,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(dims, expansion=expansion, boundary=boundary, **options)
        self.energy: DividedEnergy | None = None
        self.free_energy_weight = 0.0

    @classmethod
    def from_cell(
        cls, cell: CellGMF, *, standardised: bool = True, free_energy_weight: float = 0.0, **settings: Any
    ) -> "GMF":
        r"""A GMF whose maps start where the grounded layer ends, and are trained from there.

        The first rows of the dissociation are the cell's maps of features to parts, and gathering passes them
        on; the other lifted channels start at random, and unheard. The reconstruction starts as the cell's,

        .. math:: f_m \approx \mu_m + \sigma_m \Sigma_m^{1/2} (A_m^T\,\bar c_m + B_m s_m),

        with the invariant part of the partner in the place of its own.

        Arguments:
            cell: A :class:`~fusion.layers.cell_gmf.CellGMF` that has measured its maps.
            standardised: Whether the layer will get standardised features, as in a
                :class:`~fusion.model.FusionModel`; otherwise it gets what the cell was fitted to.
            free_energy_weight: Of a loss `free_energy` that keeps the parts apart as they are trained: the energy of
                the channels on the sides where the maps put them, see
                :class:`~fusion.layers.divided_energy.DividedEnergy`.
            settings: Keyword arguments of :class:`GMF`, but for `specific_share`.

        Raises:
            RuntimeError: A cell that has measured nothing.
            ValueError: A cell that is not anchored at its shortest modality, or settings that leave a side fewer
                channels than its part has.
        """
        layer = cls(cell.dims, **settings)
        if layer.fused_dims != cell.fused_dims:
            raise ValueError(
                f"from_cell needs the parts of the cell, {cell.fused_dims}, got settings for {layer.fused_dims}."
            )
        with torch.no_grad():
            for name, maps in cell.linear_maps(standardised=standardised).items():
                inner, outer = layer.invariant_lengths[name], layer.specific_lengths[name]
                lifted = cast(nn.Linear, layer.dissociation[name])
                if inner < len(maps.invariant) or lifted.out_features - inner < outer:
                    raise ValueError(
                        f"expansion and boundary leave {name!r} {inner} and {lifted.out_features - inner} channels; "
                        f"its parts have {len(maps.invariant)} and {outer}."
                    )
                for start, gather, part in (
                    (0, cast(nn.Linear, layer.gather_invariant[name]), maps.invariant),
                    (inner, cast(nn.Linear, layer.gather_specific[name]), maps.specific),
                ):
                    rows = slice(start, start + len(part))
                    lifted.weight[rows] = part.to(lifted.weight)
                    lifted.bias[rows] = -(part @ maps.mean).to(lifted.bias)
                    gather.weight.copy_(torch.eye(*gather.weight.shape))
                    gather.bias.zero_()
                joining = cast(nn.Linear, layer.reconstruction[name])
                joining.weight.copy_(maps.join)
                joining.bias.copy_(maps.mean)
        layer.free_energy_weight = weight("free_energy_weight", free_energy_weight)
        if free_energy_weight:
            layer.energy = DividedEnergy(cell, standardised=standardised)
        return layer

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """See :class:`~fusion.layers.dissociation.DissociationLayer`; with the free energy, if it has a weight."""
        return self._with_energy(super().fuse(features, present))

    def fuse_steps(self, features: dict[str, Tensor], present: Presence) -> tuple[Fused, Presence]:
        """See :class:`~fusion.layers.dissociation.DissociationLayer`; with the free energy, if it has a weight."""
        found, valid = super().fuse_steps(features, present)
        return self._with_energy(found), valid

    def make_map(self, inputs: int, outputs: int) -> nn.Module:
        """A linear layer with bias."""
        return nn.Linear(inputs, outputs)

    def distance(self, features: Tensor, rebuilt: Tensor) -> Tensor:
        """Squared error, averaged over channels."""
        error = features - rebuilt
        return (error * error).mean(dim=-1)  # on a CPU six times as fast as the power

    def _with_energy(self, found: Fused) -> Fused:
        """With the energy of the two maps in one of each modality among the losses, if it has a weight."""
        if self.energy is None:
            return found
        maps = {}
        # Factors of matrices are not for bfloat16.
        with torch.autocast(self.energy.device.type, enabled=False):
            for name in self.dims:
                lift = cast(nn.Linear, self.dissociation[name]).weight
                border = self.invariant_lengths[name]
                inner, outer = lift.split([border, len(lift) - border])
                gather, gather_rest = (
                    cast(nn.Linear, one[name]).weight for one in (self.gather_invariant, self.gather_specific)
                )
                maps[name] = gather @ inner, gather_rest @ outer
            energy = self.energy(maps)
        return replace(found, losses=found.losses | {"free_energy": self.free_energy_weight * energy})
