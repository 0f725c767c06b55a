r"""With whom a modality shares what: parts common to some modalities, but not to all.

What modality *n* explains of the invariant channels P of modality *m* is :math:`A_n = P\,K_{mn}K_{nm}\,P^T`. Channels
that are predicted equally well, one from *b* and one from *c*, may come mixed, because any rotation of them is as good
a basis of the predictability. The rotation that brings all :math:`A_n` nearest to diagonals tells them apart: the sum
of the squares off the diagonals is made least by Jacobi's rotations.

References:
    J.-F. Cardoso & A. Souloumiac, SIAM J. Matrix Anal. Appl. 17, 161 (1996).
"""

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

SWEEPS = 50
SMALLEST_ANGLE = 1e-9
SHARE = 0.1
"""Of the R² of the modality that explains a direction best, what another must explain to be named."""


@dataclass(frozen=True, eq=False)
class Sharing:
    """The invariant directions of a modality, and the modalities they are shared with.

    Attributes:
        directions: Orthonormal, in whitened coordinates, `(k, l)`, one a row.
        r_squared: How much of each every other modality explains alone, `{name: (k,)}`.
        names: Of every direction, such as `a+b`: the modality itself and those that explain it above the noise.
    """

    directions: Tensor
    r_squared: dict[str, Tensor]
    names: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """Name → how many directions."""
        return dict(Counter(self.names))


def share_out(
    name: str, invariant: Tensor, across: dict[str, Tensor], noise_level: float, order: list[str]
) -> Sharing:
    """Turn invariant channels to where each is explained by as few modalities as can be, and name them.

    A modality is named that explains more than the noise level, and a tenth of what the best one does: directions of
    two parts are orthogonal only without noise, and a little of the one is always in the other.

    Arguments:
        name: The modality, of whose channels `invariant`, `(k, l)`, are rows in whitened coordinates.
        across: Cross-covariances with the others, `{other: (l, l_other)}`.
        noise_level: R² that counts as explained.
        order: All modalities, as names are put together.
    """
    halves = {other: invariant @ block for other, block in across.items()}
    turn = joint_diagonaliser(torch.stack([half @ half.mT for half in halves.values()]))
    explained = {other: (turn @ half).square().sum(-1) for other, half in halves.items()}
    best = torch.stack(list(explained.values())).amax(0)
    ranked = best.argsort(descending=True)
    names = []
    for index in ranked.tolist():
        least = max(noise_level, SHARE * float(best[index]))
        with_whom = {other for other, values in explained.items() if float(values[index]) > least} | {name}
        names.append("+".join(one for one in order if one in with_whom))
    return Sharing(
        (turn @ invariant)[ranked], {other: values[ranked] for other, values in explained.items()}, names
    )


def joint_diagonaliser(matrices: Tensor) -> Tensor:
    r"""Rotation Q, `(k, k)`, for which all :math:`Q A_n Q^T` of symmetric `(n, k, k)` are most nearly diagonal.

    Starts from the eigenvectors of their sum.
    """
    size = matrices.shape[-1]
    turn = torch.linalg.eigh(matrices.sum(0))[1].flip(-1).mT
    turned = turn @ matrices @ turn.mT
    for _ in range(SWEEPS):
        largest = 0.0
        for i in range(size):
            for j in range(i + 1, size):
                angle = _angle(turned[:, i, i] - turned[:, j, j], 2 * turned[:, i, j])
                if abs(angle) < SMALLEST_ANGLE:
                    continue
                largest = max(largest, abs(angle))
                c, s = math.cos(angle), math.sin(angle)
                rotation = torch.tensor([[c, s], [-s, c]], dtype=turn.dtype, device=turn.device)
                pair = [i, j]
                turned[:, pair] = rotation @ turned[:, pair]
                turned[..., pair] = turned[..., pair] @ rotation.mT
                turn[pair] = rotation @ turn[pair]
        if largest < SMALLEST_ANGLE:
            break
    return turn


def _angle(difference: Tensor, double: Tensor) -> float:
    """The rotation of a plane that is best for all matrices together."""
    on = float((difference**2).sum() - (double**2).sum())
    off = float(2 * (difference * double).sum())
    return 0.5 * math.atan2(off, on + math.hypot(on, off))
