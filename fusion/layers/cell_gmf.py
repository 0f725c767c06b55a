"""The fusion layer whose maps are not trained but measured, by a cell."""

from collections.abc import Mapping
from itertools import product
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..grounded.covariance import slices
from ..grounded.subspaces import Subspaces, dissociate
from .layer import Fused, FusionLayer
from .presence import Presence, values_may_decide, zero_absent


class CellGMF(FusionLayer):
    r"""GMF grounded in the simulator: invariant and specific parts split by the gates of a cell.

    The layer keeps the interface and the output of :class:`~fusion.layers.gmf.GMF`, and none of its parameters: its
    maps are the subspaces that :func:`~fusion.grounded.subspaces.dissociate` measures on training features. For each
    modality *m* with channels :math:`u_m`, gates :math:`g_m` and frame :math:`R_m`,

    .. math::
        \mathrm{invariant}_m = R_m^T g_m^{1/2} u_m, \qquad
        \mathrm{specific}_m = (1-g_m)^{1/2} u_m, \qquad
        \mathrm{fused}_m = [\mathrm{invariant}_{(m+1) \bmod M};\ \mathrm{specific}_m].

    A modality that is absent is replaced by its conditional mean given those present,
    :math:`v_m = K_{mP} K_{PP}^{-1} v_P` in whitened coordinates, and its specific part is zero.

    Arguments:
        dims: Modality name → number of channels.
        settings: Keyword arguments of :func:`~fusion.grounded.subspaces.dissociate`.

    Raises:
        RuntimeError: The layer is used before :meth:`fit` (or before fitted weights were loaded).
    """

    standardises = True
    fewest: ClassVar[int] = 2
    fitted: Tensor
    coherence: Tensor

    def __init__(self, dims: Mapping[str, int], **settings: Any) -> None:
        super().__init__(dims)
        self.settings = settings
        self.common_dim = min(self.dims.values())
        total = sum(self.dims.values())
        self.register_buffer("fitted", torch.tensor(False))
        self.register_buffer("coherence", torch.eye(total, dtype=torch.float64))
        self.maps = nn.ModuleDict(
            {name: _Maps(length, self.common_dim) for name, length in self.dims.items()}
        )
        self._imputations: dict[tuple[str, ...], Tensor] = {}
        self.register_load_state_dict_post_hook(lambda module, _: module._imputations.clear())

    @property
    def fused_dims(self) -> dict[str, int]:
        """Channels of every entry of `fused`: l* invariant and l_m specific ones."""
        return {name: self.common_dim + length for name, length in self.dims.items()}

    @torch.no_grad()
    def fit(self, features: Mapping[str, Tensor]) -> Subspaces:
        """Measure the valences on features `{name: (samples, l)}` and settle the cells.

        Returns the subspaces, for looking inside. Raises what :func:`~fusion.grounded.subspaces.dissociate` raises.
        """
        found = dissociate({name: features[name] for name in self.dims}, **self.settings)
        for name, one in found.channels.items():
            whitening, maps = found.coherence.whitenings[name], self._of(name)
            maps.mean.copy_(whitening.mean)
            maps.whitening.copy_(whitening.matrix / whitening.scale[:, None])
            maps.basis.copy_(one.basis)
            maps.gates.copy_(one.gates)
            maps.frame.copy_(one.frame)
        self.coherence.copy_(found.coherence.matrix)
        self.fitted.fill_(True)
        self._imputations.clear()
        return found

    def fuse(self, features: dict[str, Tensor], present: Presence) -> Fused:
        """See :class:`~fusion.layers.layer.FusionLayer`."""
        if values_may_decide() and not self.fitted:
            raise RuntimeError("CellGMF: call fit(features) on training features before the layer is used.")
        dtype = next(iter(features.values())).dtype
        whitened = {
            name: zero_absent((values.to(self.coherence) - maps.mean) @ maps.whitening, present[name])
            for name, values, maps in ((name, one, self._of(name)) for name, one in features.items())
        }
        whitened = self._impute(whitened, present)
        invariant, specific = {}, {}
        for name, values in whitened.items():
            maps = self._of(name)
            channels = values @ maps.basis.mT
            invariant[name] = ((channels * maps.gates.sqrt()) @ maps.frame).to(dtype)
            rest = channels * (1 - maps.gates).clamp(min=0).sqrt()
            specific[name] = zero_absent(rest, present[name]).to(dtype)
        names = list(self.dims)
        partner = dict(zip(names, names[1:] + names[:1], strict=True))
        fused = {name: torch.cat([invariant[partner[name]], specific[name]], dim=-1) for name in names}
        return Fused(fused, invariant, specific)

    def _of(self, name: str) -> "_Maps":
        return cast(_Maps, self.maps[name])

    def _impute(self, whitened: dict[str, Tensor], present: Presence) -> dict[str, Tensor]:
        """Fill absent modalities with their conditional means, one linear map per pattern of presence."""
        mask = torch.stack(list(present.values()), dim=-1)
        joint = torch.cat(list(whitened.values()), dim=-1)
        filled = joint
        for pattern in _incomplete_patterns(mask):
            here = torch.stack(
                [present[name] == is_there for name, is_there in zip(self.dims, pattern, strict=True)]
            )
            there = tuple(name for name, is_there in zip(self.dims, pattern, strict=True) if is_there)
            filled = torch.where(here.all(dim=0).unsqueeze(-1), joint @ self._imputation(there), filled)
        return {name: filled[..., where] for name, where in slices(self.dims).items()}

    def _imputation(self, present: tuple[str, ...]) -> Tensor:
        """The map `(L, L)` from the channels present to the conditional mean of all, kept for later."""
        if not values_may_decide():
            return self._conditional_mean(present)  # what is found inside a graph cannot be kept
        if present not in self._imputations or self._imputations[present].device != self.coherence.device:
            self._imputations[present] = self._conditional_mean(present)
        return self._imputations[present]

    def _conditional_mean(self, present: tuple[str, ...]) -> Tensor:
        matrix, where = self.coherence, slices(self.dims)
        rows = torch.cat([torch.arange(where[name].start, where[name].stop) for name in present])
        rows = rows.to(matrix.device)
        mapping = torch.zeros_like(matrix)
        return mapping.index_copy(0, rows, torch.linalg.solve(matrix[rows][:, rows], matrix[rows]))


def _incomplete_patterns(mask: Tensor) -> list[tuple[bool, ...]]:
    """The patterns of presence with something absent: those in `(*batch, M)`, or in a graph all there are."""
    modalities = mask.shape[-1]
    if values_may_decide():
        found = torch.unique(mask.reshape(-1, modalities), dim=0).tolist()
    else:
        found = list(product((False, True), repeat=modalities))[1:]
    return [tuple(pattern) for pattern in found if not all(pattern)]


class _Maps(nn.Module):
    """What is measured of one modality, kept as buffers in float64."""

    mean: Tensor
    whitening: Tensor
    basis: Tensor
    gates: Tensor
    frame: Tensor

    def __init__(self, length: int, common: int) -> None:
        super().__init__()
        for name, shape in (
            ("mean", (length,)),
            ("whitening", (length, length)),
            ("basis", (length, length)),
            ("gates", (length,)),
            ("frame", (length, common)),
        ):
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
