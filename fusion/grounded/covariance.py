r"""Second-order statistics of several modalities together, safe for any number of samples.

Each modality is whitened with a shrunk covariance of its channels, scaled to unit variance first,

.. math::
    v_m = \Sigma_m^{-1/2}\,(f_m - \mu_m)/s_m, \qquad
    \Sigma_m = (1 - \delta_m)\,S_m + \delta_m\,\bar\lambda_m I,

where the shrinkage :math:`\delta_m` of Ledoit and Wolf minimises the expected error of :math:`\Sigma_m` and
falls to zero as samples come in. What is between modalities is their *coherence* K: identity blocks on the
diagonal, cross-covariances of the whitened channels off it, not shrunk, because the noise level of the
ions deals with chance there, direction by direction. Few samples can make such a matrix indefinite; it is
then mixed with just as much identity as makes it positive definite.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

SMALLEST_EIGENVALUE = 1e-3


@dataclass(frozen=True, eq=False)
class Whitening:
    r"""Mean, scale and symmetric whitening of one modality, :math:`v = W (f - \mu)/s`.

    Attributes:
        mean, scale: `(l,)`; the scale of a constant channel is one.
        matrix: :math:`W = \Sigma_m^{-1/2}`, `(l, l)`.
        shrinkage: :math:`\delta_m`.
    """

    mean: Tensor
    scale: Tensor
    matrix: Tensor
    shrinkage: float


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
        here = self.slices()[name]
        keep = torch.ones(self.matrix.shape[0], dtype=torch.bool, device=self.matrix.device)
        keep[here] = False
        rest = self.matrix[keep][:, keep]
        cross = self.matrix[keep][:, here]
        half = torch.linalg.solve_triangular(torch.linalg.cholesky(rest), cross, upper=False)
        return half.mT @ half

    def whiten(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whitened coordinates of features `{name: (*batch, l)}`."""
        return {
            name: ((features[name].to(w.mean) - w.mean) / w.scale) @ w.matrix
            for name, w in self.whitenings.items()
        }


def slices(dims: Mapping[str, int]) -> dict[str, slice]:
    """Where each modality lies among all channels."""
    found, start = {}, 0
    for name, length in dims.items():
        found[name] = slice(start, start + length)
        start += length
    return found


def measure_coherence(features: Mapping[str, Tensor]) -> Coherence:
    """Measure the coherence of features `{name: (samples, l)}`, in float64 on their device.

    Raises:
        ValueError: Fewer than two modalities or samples, unequal sample counts, or values not finite.
    """
    _check(features)
    whitenings, whitened = {}, {}
    for name, values in features.items():
        standardised, mean, scale = _standardise(values.detach().to(torch.float64))
        covariance, shrinkage = shrunk_covariance(standardised)
        whitenings[name] = Whitening(mean, scale, _inverse_root(covariance), shrinkage)
        whitened[name] = standardised @ whitenings[name].matrix
    samples = next(iter(whitened.values())).shape[0]
    return Coherence(whitenings, coherence_matrix(whitened), samples)


def coherence_matrix(whitened: Mapping[str, Tensor]) -> Tensor:
    """The matrix K of whitened channels `{name: (samples, l)}`, made positive definite where it is not."""
    joint = torch.cat(list(whitened.values()), dim=-1)
    dims = {name: one.shape[-1] for name, one in whitened.items()}
    return positive_definite(joint.mT @ joint / joint.shape[0], dims)


def positive_definite(matrix: Tensor, dims: Mapping[str, int]) -> Tensor:
    """A coherence `(L, L)` with identity blocks for what is within modalities, mixed with enough identity."""
    within = torch.block_diag(
        *(torch.ones(length, length, dtype=torch.bool, device=matrix.device) for length in dims.values())
    )
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    matrix = torch.where(within, identity, matrix)
    if not bool(torch.linalg.cholesky_ex(matrix.detach() - SMALLEST_EIGENVALUE * identity).info):
        return matrix  # much the cheaper question
    least = torch.linalg.eigvalsh(matrix.detach())[0]
    share = ((SMALLEST_EIGENVALUE - least) / (1 - least)).clamp(0, 1)
    return (1 - share) * matrix + share * identity


def shrunk_covariance(standardised: Tensor) -> tuple[Tensor, float]:
    r"""Covariance of centred channels `(samples, L)`, shrunk towards a multiple of the identity.

    .. math::
        \delta = \min\Big(1, \frac{\overline{\|x x^T - S\|^2}}{N \|S - \mu I\|^2}\Big), \quad
        \Sigma = (1-\delta) S + \delta\mu I, \quad \mu = \operatorname{tr} S / L

    Written out here, instead of taken from scikit-learn, because it has to stay on the features' device.

    References:
        Ledoit & Wolf, J. Multivariate Anal. 88, 365 (2004).
    """
    samples, channels = standardised.shape
    sample = standardised.mT @ standardised / samples
    mean = sample.diagonal().mean()
    identity = torch.eye(channels, dtype=sample.dtype, device=sample.device)
    spread = ((sample - mean * identity) ** 2).sum()
    # sum over samples of |x xᵀ - S|² = sum |x|⁴ - N |S|²
    noise = ((standardised**2).sum(-1) ** 2).sum() / samples - (sample**2).sum()
    shrinkage = float((noise / samples / spread.clamp(min=1e-300)).clamp(1e-9, 1.0))
    return (1 - shrinkage) * sample + shrinkage * mean * identity, shrinkage


def _check(features: Mapping[str, Tensor]) -> None:
    if len(features) < 2:
        raise ValueError(f"features: at least two modalities are needed, got {list(features)}.")
    for name, values in features.items():
        if values.dim() != 2:
            raise ValueError(f"features[{name!r}] must be (samples, channels), got {tuple(values.shape)}.")
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"features[{name!r}] must be finite, got NaN or infinity.")
    counts = {name: values.shape[0] for name, values in features.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"features: every modality must have the same samples, got {counts}.")
    if min(counts.values()) < 2:
        raise ValueError(f"features: at least two samples are needed, got {counts}.")


def _standardise(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Centred channels of unit variance (zero where a channel is constant), their means and scales."""
    mean = values.mean(0)
    centred = values - mean
    scale = centred.square().mean(0).sqrt()
    constant = scale <= 1e-12 * values.abs().amax(0).clamp(min=1e-300)
    scale = torch.where(constant, torch.ones_like(scale), scale)
    return torch.where(constant, torch.zeros_like(centred), centred / scale), mean, scale


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1] * 1e-12
    return (vectors * values.clamp(min=floor) ** -0.5) @ vectors.mT
