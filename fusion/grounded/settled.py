r"""The maps that split a modality, as matrix functions of its predictability.

With the predictability S of a modality in whitened coordinates, its eigenvalues as channels in a cell and their gates
*g*, the settled cell acts as the operator :math:`G = g(S)`, which needs no basis: where eigenvalues meet or
change places, nothing jumps. The invariant part of modality *m* is read in the whitened coordinates of the *anchor*,
the shortest modality,

.. math::
    A_m = h\big(R_m^T\,g(S_m)\,R_m\big)\,R_m^T\,g(S_m)^{1/2}, \qquad
    R_m = P_m\,f(P_m^T P_m), \quad f(x)^2 = \frac{1 - e^{-x/\epsilon^2}}{x}, \qquad
    P_m = (H + H^2)_{m,\mathrm{anchor}},

with :math:`H` the coherence between modalities seen through the roots of the gates. :math:`R_m` is the orthogonal
Procrustes rotation :math:`P_m (P_m^T P_m)^{-1/2}` for directions that the modality shares with the anchor, and falls to
zero, instead of turning at random, for those that it does not. With :math:`h(x)^2 = o(x)/x` and *o* the
:func:`~fusion.grounded.transport.opening` of a gate, :math:`A_m^T A_m` is :math:`G_m = o(g(S_m))` where the rotation
is one; where it is a little askew, what is nearly open or closed counts as such still. What the invariant part does not
hold is specific,

.. math:: B_m = (I - A_m^T A_m)^{1/2}, \qquad A_m^T A_m + B_m^T B_m = I,

so the power of the two parts adds up to that of the features, and both together give them back,
:math:`v_m = A_m^T (A_m v_m) + B_m (B_m v_m)`.

References:
    P. H. Schönemann, Psychometrika 31, 1 (1966), for the rotation
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import pnp

from .covariance import Coherence
from .ions import Noise, valence
from .spectral import Spectrum, root, slope_of
from .transport import CLOSED, channel_cell, equilibrate, gate_slopes, gates, opening, separation_energy

SOFTNESS = 0.03
"""Coherence, times the roots of the gates, below which a direction counts as not shared with the anchor."""


@dataclass(frozen=True, eq=False)
class Knobs:
    """Settings of the cell of a modality, numbers or scalars that may have gradients.

    Attributes:
        voltage: Factor of the voltage that the noise suggests.
        ground: Position of *b* in the cell, 0 to 1.
        debye_length: In lengths of the cell.
        ion_size: Share of the cell that the channels fill.
    """

    voltage: float | Tensor = 1.0
    ground: float | Tensor = 0.5
    debye_length: float | Tensor = 1.0
    ion_size: float = 0.0


@dataclass(frozen=True, eq=False)
class Settled:
    """A modality whose channels have come to rest in their cell.

    Attributes:
        gates: How far they are open, `(l,)`.
        root, rest: :math:`G^{1/2}` and :math:`(I-G)^{1/2}`, `(l, l)`.
        passing: :math:`g(S)^{1/2}`, of the gates themselves, `(l, l)`.
        energy: What their separation lowers, a scalar, see :func:`~fusion.grounded.transport.separation_energy`.
    """

    gates: Tensor
    root: Tensor
    rest: Tensor
    passing: Tensor
    energy: Tensor


def settle(predictability: Tensor, noise: Noise, knobs: Knobs, rotation: Tensor | None = None) -> Settled:
    """Let the channels of a modality come to rest; everything differentiable.

    Arguments:
        predictability: S, `(l, l)`.
        noise: What chance makes of the modality.
        knobs: Settings of its cell.
        rotation: Orthogonal matrix `(l, l)` with a channel in each row. None: the eigenvectors of S, to which
            every rotation turns that lowers the free energy.
    """
    if rotation is None:
        spectrum = Spectrum.of(predictability)
        shared = spectrum.values
    else:
        spectrum, shared = None, ((rotation @ predictability) * rotation).sum(-1)
    solution = _rest(shared, noise, knobs)
    passing = gates(solution)
    found = opening(passing)
    slopes = gate_slopes(solution).detach() / (1 - noise.level)
    opens = slopes * slope_of(opening, passing)
    parts = []
    for share, slope in ((found, opens), (1 - found, -opens), (passing, slopes)):
        roots = root(share)
        if spectrum is None:
            assert rotation is not None
            parts.append(rotation.mT @ (roots.unsqueeze(-1) * rotation))
        else:
            parts.append(spectrum.function(roots, slope * slope_of(root, share)))
    return Settled(found, parts[0], parts[1], parts[2], separation_energy(solution))


@torch.no_grad()
def settle_wide(prediction: Tensor, noise: Noise, knobs: Knobs) -> Settled:
    r"""The same, without gradients, for a modality with more channels than all others together.

    Directions that correlate with nothing have one gate :math:`g_0`, so with orthonormal *V* for the others

    .. math:: g(S) = g_0\,(I - V V^T) + V\,\mathrm{diag}(g)\,V^T .

    Arguments:
        prediction: H with :math:`S = H^T H`, `(r, l)`.
        noise, knobs: As of :func:`settle`.
    """
    turn, triangle = torch.linalg.qr(prediction.mT)
    spectrum = Spectrum.of(triangle @ triangle.mT)
    directions, rest = turn @ spectrum.vectors, prediction.shape[1] - prediction.shape[0]
    solution = _rest(torch.cat([spectrum.values, turn.new_zeros(rest)]), noise, knobs)
    found = opening(gates(solution))
    parts = []
    for share in (found, 1 - found, gates(solution)):
        own, other = root(share).split([len(spectrum.values), rest])
        half = (directions * (own - other[0])) @ directions.mT
        half.diagonal().add_(other[0])
        parts.append(half)
    return Settled(found, parts[0], parts[1], parts[2], separation_energy(solution))


def _rest(shared: Tensor, noise: Noise, knobs: Knobs) -> pnp.Solution:
    """The cell of channels with given R² `(l,)`, at rest."""
    return equilibrate(
        channel_cell(
            valence(shared, noise.level),
            voltage=noise.voltage * knobs.voltage,
            ground=knobs.ground,
            debye_length=knobs.debye_length,
            ion_size=knobs.ion_size,
        )
    )


def split_maps(
    coherence: Coherence, settled: Mapping[str, Settled], anchor: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """For each modality the maps of whitened channels to its two parts, A `(l*, l)` and B `(l, l)`."""
    where = coherence.slices()
    between = coherence.matrix - torch.block_diag(*(coherence.matrix[here, here] for here in where.values()))
    roots = torch.block_diag(*(one.root for one in settled.values()))
    # From right to left: only what the anchor sees is needed.
    once = roots @ (between @ roots[:, where[anchor]])
    seen = once + roots @ (between @ (roots @ once))
    found = {}
    for name, one in settled.items():
        if name == anchor:
            found[name] = one.root, one.rest
            continue
        shared = seen[where[name]]
        turned = Spectrum.of(shared.mT @ shared).apply(_softened) @ shared.mT @ one.passing
        invariant = Spectrum.of(turned @ turned.mT).apply(_opened) @ turned
        found[name] = invariant, _rest_of(invariant, wide=coherence.is_wide(name))
    return found


def _rest_of(invariant: Tensor, *, wide: bool) -> Tensor:
    """B with :math:`B^2 = I - A^TA` of A, `(l*, l)`."""
    identity = torch.eye(invariant.shape[1], dtype=invariant.dtype, device=invariant.device)
    if not wide or torch.is_grad_enabled():
        return Spectrum.of(identity - invariant.mT @ invariant).root()
    _, held, directions = torch.linalg.svd(invariant, full_matrices=False)
    return identity + directions.mT @ ((root(1 - held.square()) - 1).unsqueeze(-1) * directions)


def _softened(squares: Tensor) -> Tensor:
    r"""One over the root of a square, but :math:`1/\epsilon` where it is zero."""
    ratio = squares / SOFTNESS**2
    small = ratio < 1e-4
    safe = torch.where(small, torch.ones_like(ratio), ratio)
    share = torch.where(small, 1 - ratio / 2 + ratio**2 / 6, -torch.expm1(-safe) / safe)
    return share.sqrt() / SOFTNESS


def _opened(passing: Tensor) -> Tensor:
    """What makes the root of the opening of a gate from its own root."""
    return root(opening(passing)) / passing.clamp(min=CLOSED).sqrt()
