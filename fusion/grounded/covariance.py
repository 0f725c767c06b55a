r"""Second-order statistics of several modalities together, safe for any number of samples.

Each modality is whitened with a shrunk covariance of its channels, scaled to unit variance first,

.. math::
    v_m = W_m^T\,(f_m - \mu_m)/s_m, \qquad W_m W_m^T = \Sigma_m^{-1}, \qquad
    \Sigma_m = (1 - \delta_m)\,S_m + \delta_m\,\bar\lambda_m I,

where the shrinkage :math:`\delta_m` of Ledoit and Wolf minimises the expected error of :math:`\Sigma_m` and
falls to zero as samples come in. Up to :data:`WIDE` channels W is the symmetric root :math:`\Sigma_m^{-1/2}`, beyond
the inverse of a Cholesky factor, fifty times cheaper: whitenings differ by a rotation, and canonical directions
do not depend on it.

What is between modalities is their *coherence* K: identity blocks on the diagonal, cross-covariances of the whitened
channels off it, not shrunk, because the noise level of the ions deals with chance there, direction by direction. Few
samples can make such a matrix indefinite; it is then mixed with just as much identity as makes it positive definite.

A modality with more channels than all others together has directions that correlate with nothing. They are left out
of what costs the cube of the channels: :func:`condense` is exact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_EIGENVALUE = 1e-3
WIDE = 1024
"""Channels beyond which a modality is whitened by Cholesky's factor and condensed."""


@dataclass(frozen=True, eq=False)
class Whitening:
    r"""Mean, scale and whitening of one modality, :math:`v = W^T (f - \mu)/s`.

    Attributes:
        mean, scale: `(l,)`; the scale of a constant channel is one.
        matrix: W, `(l, l)`, symmetric, or upper triangular of more than :data:`WIDE` channels.
        shrinkage: :math:`\delta_m`.
    """

    mean: Tensor
    scale: Tensor
    matrix: Tensor
    shrinkage: float = 0.0

    def apply(self, values: Tensor) -> Tensor:
        """Whitened coordinates of features `(*batch, l)`."""
        return ((values.to(self.mean) - self.mean) / self.scale) @ self.matrix

    def undo(self, whitened: Tensor) -> Tensor:
        """The features `(*batch, l)` that :meth:`apply` was given."""
        flat = whitened.reshape(-1, whitened.shape[-1])
        values = torch.linalg.solve(self.matrix.to(flat), flat, left=False).reshape(whitened.shape)
        return values * self.scale.to(values) + self.mean.to(values)


@dataclass(frozen=True, eq=False)
class Coherence:
    r"""Joint statistics of all modalities in whitened coordinates.

    Attributes:
        whitenings: One per modality, in order.
        matrix: K, `(L, L)` with L all channels; identity blocks on the diagonal, positive definite.
        samples: How many it was measured on.
    """

    whitenings: dict[str, Whitening]
    matrix: Tensor
    samples: int

    @property
    def dims(self) -> dict[str, int]:
        """Channels of every modality."""
        return {name: whitening.mean.shape[0] for name, whitening in self.whitenings.items()}

    def slices(self) -> dict[str, slice]:
        """Where each modality lies in K."""
        return slices(self.dims)

    def predictability(self, name: str) -> Tensor:
        r"""How much of a modality all others predict linearly, `(l, l)`.

        .. math:: S_m = K_{m,\mathrm{rest}}\,K_{\mathrm{rest},\mathrm{rest}}^{-1}\,K_{\mathrm{rest},m}

        Positive semidefinite with eigenvalues in [0, 1], the squared canonical correlations with the rest;
        the diagonal, in any orthonormal basis, holds the R² of the channels.
        """
        return predictability(self.matrix, self.slices()[name])

    def is_wide(self, name: str) -> bool:
        """Whether a modality has more channels than all others together, and than :data:`WIDE`."""
        return self.dims[name] > max(WIDE, len(self.matrix) - self.dims[name])

    def whiten(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whitened coordinates of features `{name: (*batch, l)}`."""
        return {name: whitening.apply(features[name]) for name, whitening in self.whitenings.items()}


@dataclass(frozen=True, eq=False)
class Condensed:
    """A coherence without the directions of a wide modality that correlate with nothing.

    Attributes:
        matrix: `(r, r)`.
        dims: Directions that are left of every modality.
        turns: Of a modality that lost some, the orthonormal columns `(l, r)` that are left.
    """

    matrix: Tensor
    dims: dict[str, int]
    turns: dict[str, Tensor]


def condense(matrix: Tensor, dims: Mapping[str, int]) -> Condensed:
    r"""Leave out what can correlate with nothing, exactly.

    The cross-covariance with the rest, :math:`K_{m,\mathrm{rest}} = QT`, has at most as many directions Q as the
    rest has channels. Only one modality can have more than all others together; smaller ones than :data:`WIDE` are
    left as they are.

    Arguments:
        matrix: K, `(L, L)`.
        dims: Modality name → channels.
    """
    total = sum(dims.values())
    wide = next((name for name, length in dims.items() if length > max(WIDE, total - length)), None)
    if wide is None:
        return Condensed(matrix, dict(dims), {})
    keep = _others(matrix, slices(dims)[wide])
    turn, across = torch.linalg.qr(matrix[slices(dims)[wide]][:, keep])
    left = {name: len(across) if name == wide else length for name, length in dims.items()}
    here = slices(left)[wide]
    small = torch.eye(sum(left.values()), dtype=matrix.dtype, device=matrix.device)
    rest = _others(small, here)
    small[rest[:, None] & rest] = matrix[keep][:, keep].flatten()
    small[here, rest] = across
    small[rest, here] = across.mT
    return Condensed(small, left, {wide: turn})


def slices(dims: Mapping[str, int]) -> dict[str, slice]:
    """Where each modality lies among all channels."""
    found, start = {}, 0
    for name, length in dims.items():
        found[name] = slice(start, start + length)
        start += length
    return found


def predictability(matrix: Tensor, here: slice) -> Tensor:
    """S of the modality at `here` in K, see :meth:`Coherence.predictability`."""
    half = prediction(matrix, here)
    return half.mT @ half


def prediction(matrix: Tensor, here: slice) -> Tensor:
    """H with :math:`S = H^T H`, a row for every channel of the other modalities."""
    keep = _others(matrix, here)
    rest = matrix[keep][:, keep]
    return torch.linalg.solve_triangular(torch.linalg.cholesky(rest), matrix[keep][:, here], upper=False)


def positive_definite(matrix: Tensor, dims: Mapping[str, int]) -> Tensor:
    """A coherence `(L, L)` with identity blocks for what is within modalities, mixed with enough identity."""
    within = torch.block_diag(
        *(torch.ones(length, length, dtype=torch.bool, device=matrix.device) for length in dims.values())
    )
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(within, identity, matrix)
    if not bool(torch.linalg.cholesky_ex(matrix.detach() - SMALLEST_EIGENVALUE * identity).info):
        return matrix  # much the cheaper question
    least = torch.linalg.eigvalsh(condense(matrix.detach(), dims).matrix)[0]
    share = ((SMALLEST_EIGENVALUE - least) / (1 - least)).clamp(0, 1)
    return (1 - share) * matrix + share * identity


def ledoit_wolf(sample: Tensor, fourth: Tensor, samples: int) -> tuple[Tensor, float]:
    r"""Covariance shrunk towards a multiple of the identity, and by how much.

    .. math::
        \delta = \min\Big(1, \frac{\overline{\|x x^T - S\|^2}}{N \|S - \mu I\|^2}\Big), \quad
        \Sigma = (1-\delta) S + \delta\mu I, \quad \mu = \operatorname{tr} S / l

    with :math:`\overline{\|x x^T - S\|^2} = \overline{|x|^4} - \|S\|^2`. At least 1e-9, and what rounding needs, is
    shrunk, so that Σ has an inverse. Written out here, instead of taken from scikit-learn, because it has to stay
    on the features' device and the samples need not be in memory.

    Arguments:
        sample: S of centred channels, `(l, l)`.
        fourth: :math:`\overline{|x|^4}`, the mean fourth power of the samples' lengths, `()`.
        samples: N.

    References:
        Ledoit & Wolf, J. Multivariate Anal. 88, 365 (2004).
    """
    channels = len(sample)
    mean = sample.diagonal().mean()
    if not mean > 0:  # nothing varies
        return torch.eye(channels, dtype=sample.dtype, device=sample.device), 1.0
    squared = sample.square().sum()
    spread = squared - channels * mean**2
    least = max(1e-9, 10 * channels**2 * torch.finfo(sample.dtype).eps)
    shrinkage = float(((fourth - squared) / samples / spread.clamp(min=1e-300)).clamp(least, 1.0))
    covariance = (1 - shrinkage) * sample
    covariance.diagonal().add_(shrinkage * mean)
    return covariance, shrinkage


def whitening_matrix(covariance: Tensor) -> Tensor:
    r"""W with :math:`W W^T = \Sigma^{-1}`: symmetric, or upper triangular beyond :data:`WIDE` channels."""
    if len(covariance) <= WIDE:
        values, vectors = torch.linalg.eigh(covariance)
        return (vectors * values.clamp(min=values[-1] * 1e-12) ** -0.5) @ vectors.mT
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor.mT, identity, upper=True)


def _others(matrix: Tensor, here: slice) -> Tensor:
    """All rows but those, as a mask."""
    keep = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    keep[here] = False
    return keep
