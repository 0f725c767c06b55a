"""The free energy of channels on the sides that the maps of a layer have put them on."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .cell_gmf import CellGMF

LEAST = 3e-3
"""Variance, where that of a whitened channel is one, with which a direction half counts."""


class DividedEnergy(nn.Module):
    r"""What the division of a linear layer costs, by the charges that a cell has measured.

    With whitened features *v*, their predictability *S* and noise level :math:`r_0`, the part :math:`C v` holds
    directions that all together have the charge

    .. math::
        Q(C) = \sum_j z_j = \operatorname{tr} \frac{S - r_0}{1 - r_0}\,C^T (C C^T + \epsilon)^{-1} C ,

    whatever the scales and the basis of the part: only directions much smaller than :math:`\epsilon` are not counted.
    Ions of the invariant part are held at the electrode of :math:`-U_0`, those of the specific part at :math:`+U_0`,
    and the energy per amount and :math:`U_0` of a modality of *l* channels is

    .. math::
        F = \big(Q(C_\mathrm{specific}) - Q(C_\mathrm{invariant})\big) / l \;\ge\; -\operatorname{mean}_j |z_j| .

    It is lowest where every direction is on the side to which the cell would send it, which is the strong-field limit
    of :func:`~fusion.grounded.transport.separation_energy`.

    Arguments:
        cell: That has measured the features which the layer gets.
        standardised: Whether the layer gets them standardised.

    Raises:
        RuntimeError: The cell has measured nothing.
    """

    def __init__(self, cell: CellGMF, *, standardised: bool) -> None:
        super().__init__()
        self.dims = cell.dims
        for index, (unwhiten, charge) in enumerate(cell.charges(standardised=standardised).values()):
            self.register_buffer(f"unwhiten_{index}", unwhiten)
            self.register_buffer(f"charge_{index}", charge)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.buffers()).device

    def forward(self, maps: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
        """The mean energy of all modalities.

        Arguments:
            maps: For each modality the maps of features to the invariant and to the specific part, `(..., l)` each.
        """
        energies = []
        for index, (name, (invariant, specific)) in enumerate(maps.items()):
            unwhiten = getattr(self, f"unwhiten_{index}").to(invariant)
            charge = getattr(self, f"charge_{index}").to(invariant)
            held = _held(specific @ unwhiten, charge) - _held(invariant @ unwhiten, charge)
            energies.append(held / self.dims[name])
        return torch.stack(energies).mean()


def _held(part: Tensor, charge: Tensor) -> Tensor:
    """Q of a part of whitened features, `(l', l)`."""
    identity = torch.eye(len(part), dtype=part.dtype, device=part.device)
    factor = torch.linalg.cholesky(part @ part.mT + LEAST * identity)
    directions = torch.linalg.solve_triangular(factor, part, upper=False)
    return ((directions @ charge) * directions).sum()
