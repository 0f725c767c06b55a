"""What is absent, filled in with its conditional mean given what is present."""

from collections.abc import Mapping
from itertools import product

import torch
from torch import Tensor

from ..grounded.covariance import slices
from .presence import Presence, values_may_decide


class Imputation:
    r"""Linear maps from the modalities present to all, in whitened coordinates.

    .. math:: v_m = K_{mP} K_{PP}^{-1} v_P

    There is one for each pattern of presence; it is kept until :meth:`forget`.

    Arguments:
        dims: Modality name → number of channels.
    """

    def __init__(self, dims: Mapping[str, int]) -> None:
        self.dims = dims
        self._kept: dict[tuple[str, ...], Tensor] = {}

    def forget(self) -> None:
        """The joint statistics are others from now on."""
        self._kept.clear()

    def fill(self, whitened: Mapping[str, Tensor], present: Presence, coherence: Tensor) -> dict[str, Tensor]:
        """Whitened modalities `{name: (*batch, l)}`, zero where absent, with their conditional means there.

        Arguments:
            coherence: K, `(L, L)`.
        """
        mask = torch.stack(list(present.values()), dim=-1)
        joint = torch.cat(list(whitened.values()), dim=-1)
        if values_may_decide():
            # Row by row in one go: with six modalities there are 62 patterns, and a copy of all rows for each is slow.
            flat, rows, pieces = joint.reshape(-1, joint.shape[-1]), [], []
            for here, there in self.patterns(mask):
                rows.append(here.reshape(-1).nonzero().squeeze(-1))
                some = flat[rows[-1]]
                whole = len(there) == len(self.dims)
                pieces.append(some if whole else some @ self.mapping(there, coherence).to(joint))
            filled = torch.cat(pieces)[torch.cat(rows).argsort()].reshape(joint.shape)
        else:
            filled = joint
            for here, there in self.patterns(mask):
                if len(there) < len(self.dims):
                    mapping = self.mapping(there, coherence).to(joint)
                    filled = torch.where(here.unsqueeze(-1), joint @ mapping, filled)
        return {name: filled[..., where] for name, where in slices(self.dims).items()}

    def patterns(self, mask: Tensor) -> list[tuple[Tensor, tuple[str, ...]]]:
        """Where each pattern of presence `(*batch, M)` is, `(*batch)`, and the modalities it has."""
        modalities = len(self.dims)
        if values_may_decide():
            patterns = torch.unique(mask.reshape(-1, modalities), dim=0).tolist()
        else:
            patterns = list(product((False, True), repeat=modalities))[1:]
        found = []
        for pattern in patterns:
            here = torch.stack([mask[..., m] == there for m, there in enumerate(pattern)]).all(dim=0)
            found.append((here, tuple(n for n, there in zip(self.dims, pattern, strict=True) if there)))
        return found

    def mapping(self, present: tuple[str, ...], coherence: Tensor) -> Tensor:
        """The map `(L, L)` from the channels present to the conditional mean of all."""
        if not values_may_decide():
            return self._conditional_mean(present, coherence)  # what is found inside a graph cannot be kept
        if present not in self._kept or self._kept[present].device != coherence.device:
            self._kept[present] = self._conditional_mean(present, coherence)
        return self._kept[present]

    def _conditional_mean(self, present: tuple[str, ...], coherence: Tensor) -> Tensor:
        where = slices(self.dims)
        rows = torch.cat([torch.arange(where[name].start, where[name].stop) for name in present])
        rows = rows.to(coherence.device)
        mapping = torch.zeros_like(coherence)
        return mapping.index_copy(0, rows, torch.linalg.solve(coherence[rows][:, rows], coherence[rows]))
