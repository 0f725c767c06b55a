"""Small data sets to try fusion layers on: digits that scikit-learn ships, and sets made to order."""

from collections.abc import Mapping, Sequence
from itertools import combinations, product

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn
from torch import Tensor

from ..extras import require
from ..randomness import seeded
from .features import Features, check_selection


def digits_two_views(coefficients: int = 20) -> Features:
    r"""Handwritten digits seen by two sensors of unequal length: 1797 samples, 10 classes, no split.

    `pixels` `(1797, 32)` are the 32 raw pixels of the upper half of an 8 × 8 image. `frequencies`
    `(1797, 20)` are the coefficients of lowest frequency of the orthonormal cosine transform (DCT-II) of the
    lower half, in cycles per pixel

    .. math:: k_{uv} = \sqrt{(u / 8)^2 + (v / 16)^2}, \qquad u = 0 \dots 3, \; v = 0 \dots 7

    ordered by :math:`k_{uv}`, then by row *u*. No pixel enters both, so the views are not two codes of one
    measurement: they are two sensors that look at different parts of the same object in different bases.
    What they share is the digit and the style of its writer, each also has details of its own, and either
    alone is a guess, which is the case that fusion and missing modalities are about.

    Arguments:
        coefficients: How many frequencies to keep, 1 to 32.

    Raises:
        ValueError: `coefficients` out of range.
        ModuleNotFoundError: scikit-learn is not installed.

    References:
        | E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), CC BY 4.0

    Example:
        >>> import fusion
        >>> digits = fusion.digits_two_views()
        >>> digits.dims, len(digits)
        ({'pixels': 32, 'frequencies': 20}, 1797)
    """
    if not 1 <= coefficients <= 32:
        raise ValueError(f"coefficients must be between 1 and 32, got {coefficients}.")
    digits = require("sklearn.datasets").load_digits()
    upper, lower = digits.images[:, :4], digits.images[:, 4:]
    u, v = np.divmod(np.arange(32), 8)
    order = np.lexsort((u, np.hypot(u / 8, v / 16)))[:coefficients]
    frequencies = dctn(lower, axes=(1, 2), norm="ortho").reshape(len(lower), 32)[:, order]
    return Features(
        {
            "pixels": torch.tensor(upper.reshape(len(upper), 32), dtype=torch.float32),
            "frequencies": torch.tensor(frequencies, dtype=torch.float32),
        },
        label=torch.tensor(digits.target),
    )


VIEWS = ("upper_left", "upper_right", "lower_left", "lower_right", "projections", "frequencies", "edges")
"""The views of :func:`digits_views`, in their order."""


def digits_views(views: Sequence[str] = VIEWS[:4]) -> Features:
    r"""Handwritten digits through two to seven extractors of unequal length: 1797 samples, 10 classes, no split.

    `upper_left`, `upper_right`, `lower_left` and `lower_right`, 16 pixels each, are the quadrants of an 8 × 8
    image, which share no pixel. `projections` (16) are the sums of its columns and of its rows,
    `frequencies` (15) the coefficients :math:`u + v < 5` of the cosine transform of the whole, and `edges`
    (32) are histograms of oriented gradients: in each quadrant the gradients' magnitudes gathered by their
    direction in eight sectors. The last three see the same pixels as the quadrants.

    Arguments:
        views: Which, in this order.

    Raises:
        ValueError: No view, one twice, or an unknown one.
        ModuleNotFoundError: scikit-learn is not installed.

    References:
        | E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI (1998), CC BY 4.0
        | N. Dalal and B. Triggs, Histograms of Oriented Gradients, CVPR (2005)

    Example:
        >>> import fusion
        >>> fusion.digits_views().dims
        {'upper_left': 16, 'upper_right': 16, 'lower_left': 16, 'lower_right': 16}
    """
    check_selection(views, VIEWS)
    digits = require("sklearn.datasets").load_digits()
    images = digits.images
    u, v = np.divmod(np.arange(64), 8)
    halves = slice(0, 4), slice(4, 8)
    made = {
        name: images[:, rows, columns].reshape(-1, 16)
        for name, (rows, columns) in zip(VIEWS, product(halves, halves), strict=False)
    }
    made["projections"] = np.concatenate([images.sum(axis=1), images.sum(axis=2)], axis=1)
    made["frequencies"] = dctn(images, axes=(1, 2), norm="ortho").reshape(-1, 64)[:, u + v < 5]
    made["edges"] = _oriented_gradients(images)
    return Features(
        {name: torch.tensor(made[name], dtype=torch.float32) for name in views},
        label=torch.tensor(digits.target),
    )


def _oriented_gradients(images: NDArray[np.float64]) -> NDArray[np.float64]:
    """Magnitudes of the gradient summed by quadrant (4) and sector of its direction (8), `(N, 32)`."""
    down, right = np.gradient(images, axis=(1, 2))
    sector = np.floor((np.arctan2(down, right) / (2 * np.pi) % 1) * 8).astype(int) % 8
    size = np.hypot(down, right)
    pieces = []
    for rows, columns in product((slice(0, 4), slice(4, 8)), repeat=2):
        for number in range(8):
            chosen = size[:, rows, columns] * (sector[:, rows, columns] == number)
            pieces.append(chosen.sum(axis=(1, 2)))
    return np.stack(pieces, axis=1)


def shared_private(
    samples: int,
    dims: Mapping[str, int],
    *,
    shared: int,
    private: int,
    pairwise: int = 0,
    noise: float = 0.1,
    seed: int = 0,
    classes: int = 4,
    label_from: str | None = None,
    nonlinear: bool = False,
    conflict: float = 0.0,
    missing: float = 0.0,
    steps: int | None = None,
) -> tuple[Features, dict[str, Tensor]]:
    r"""Modalities with known shared and private latents.

    .. math::
        f_m = A_m s + \sum_{n \ne m} D_{mn} q_{mn} + B_m p_m + \sigma e_m, \qquad y = \operatorname{argmax}_k (C z)_k

    with :math:`s \in \mathbb{R}^{k_s}` common to all modalities, :math:`q_{mn} = q_{nm} \in \mathbb{R}^{k_q}` to
    two of them, :math:`p_m \in \mathbb{R}^{k_p}` of one only, and all latents and noise standard normal. The
    entries of the matrices are normal, of a variance that gives channels unit variance beside the noise.

    Arguments:
        samples: N.
        dims: Modality name → :math:`l_m`.
        shared, private: :math:`k_s` and :math:`k_p`; either may be 0, not both.
        pairwise: :math:`k_q` for every pair of modalities.
        noise: :math:`\sigma \ge 0`.
        seed: Of everything drawn.
        classes: Number of labels.
        label_from: `shared` for :math:`z = s`; `both` for *z* = all latents; None: `shared`
            if there are shared latents.
        nonlinear: The mixing is a random perceptron for each modality in the place of the matrices: 64 units
            :math:`\tanh(2 \cdot)` of mixed latents, mixed again and scaled to unit variance.
        conflict: Fraction of the samples in which one modality, drawn at random, is that of another sample.
        missing: Probability that a sample lacks a modality; where all would be missing one stays.
        steps: T: the features become sequences `(N, T, l)` with noise of their own in every step and lengths
            of T/2 to T; None: vectors.

    Returns:
        The features without a split, and the latents: `shared` `(N, k_s)`, `private <name>` `(N, k_p)` and, if
        there are any, `<name>+<name>` `(N, k_q)`; with `conflict` also `conflict` `(N, M)`, true where a modality
        does not belong to the sample, whose latents then are those of another.

    Raises:
        ValueError: A number out of range, or another `label_from`.

    Example:
        >>> import fusion
        >>> features, latents = fusion.shared_private(100, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> features.dims, {name: tuple(values.shape) for name, values in latents.items()}
        ({'a': 8, 'b': 6}, {'shared': (100, 2), 'private a': (100, 2), 'private b': (100, 2)})
    """
    label_from = label_from or ("shared" if shared else "both")
    _check_shared_private(
        samples, shared, private, pairwise, noise, classes, label_from, conflict, missing, steps
    )
    with seeded(seed):
        latents = {"shared": torch.randn(samples, shared)}
        pairs = list(combinations(dims, 2)) if pairwise else []
        latents |= {"+".join(pair): torch.randn(samples, pairwise) for pair in pairs}
        modalities = {}
        for name, length in dims.items():
            own = latents[f"private {name}"] = torch.randn(samples, private)
            some = [latents["+".join(pair)] for pair in pairs if name in pair]
            mixed = _mixed(torch.cat([latents["shared"], *some, own], dim=-1), length, nonlinear)
            # Noise of steps comes below, after all that vectors draw.
            modalities[name] = mixed + (noise if steps is None else 0.0) * torch.randn(samples, length)
        told = latents["shared"] if label_from == "shared" else torch.cat(list(latents.values()), dim=-1)
        label = (told @ torch.randn(told.shape[-1], classes)).argmax(dim=-1)
        if conflict:
            latents["conflict"] = _swap(modalities, conflict)
        present = _some_missing(samples, list(dims), missing) if missing else {}
        lengths = _as_sequences(modalities, steps, noise) if steps is not None else {}
    return Features(modalities, lengths, label, present=present), latents


def _mixed(latents: Tensor, length: int, nonlinear: bool) -> Tensor:
    count = latents.shape[-1]
    if not nonlinear:
        return latents @ torch.randn(count, length) / count**0.5
    units = torch.tanh(2 * latents @ torch.randn(count, 64) / count**0.5)
    mixed = units @ torch.randn(64, length)
    return mixed / mixed.std().clamp(min=1e-12)


def _swap(modalities: dict[str, Tensor], fraction: float) -> Tensor:
    """Give a fraction of the samples one modality of another sample, in place; the mask `(N, M)`."""
    samples = len(next(iter(modalities.values())))
    chosen = torch.randperm(samples)[: round(fraction * samples)]
    mask = torch.zeros(samples, len(modalities), dtype=torch.bool)
    mask[chosen, torch.randint(len(modalities), (len(chosen),))] = True
    others = (torch.arange(samples) + torch.randint(1, samples, (samples,))) % samples
    for (name, values), here in zip(modalities.items(), mask.unbind(dim=-1), strict=True):
        modalities[name] = torch.where(here[:, None], values[others], values)
    return mask


def _some_missing(samples: int, names: list[str], probability: float) -> dict[str, Tensor]:
    present = torch.rand(samples, len(names)) >= probability
    kept = torch.randint(len(names), (samples,))
    present[torch.arange(samples), kept] |= ~present.any(dim=-1)
    return dict(zip(names, present.unbind(dim=-1), strict=True))


def _as_sequences(modalities: dict[str, Tensor], steps: int, noise: float) -> dict[str, Tensor]:
    """Repeat vectors over steps, with noise in each, in place; the valid steps `{name: (N,)}`."""
    lengths = {}
    for name, values in modalities.items():
        spread = noise * torch.randn(len(values), steps, values.shape[-1])
        modalities[name] = values[:, None] + spread
        lengths[name] = torch.randint((steps + 1) // 2, steps + 1, (len(values),))
    return lengths


def _check_shared_private(
    samples: int,
    shared: int,
    private: int,
    pairwise: int,
    noise: float,
    classes: int,
    label_from: str,
    conflict: float,
    missing: float,
    steps: int | None,
) -> None:
    if label_from not in ("shared", "both"):
        raise ValueError(f"label_from must be 'shared' or 'both', got {label_from!r}.")
    lowest = {
        "samples": 2 if conflict else 1,
        "shared": int(label_from == "shared"),
        "private": 0,
        "pairwise": 0,
        "noise": 0,
    }
    lowest |= {"classes": 2, "steps": 1}
    given = {"samples": samples, "shared": shared, "private": private, "pairwise": pairwise, "noise": noise}
    given |= {"classes": classes}
    given |= {} if steps is None else {"steps": steps}
    for name, value in given.items():
        if not value >= lowest[name]:
            raise ValueError(f"{name} must be {lowest[name]} or more, got {value}.")
    if shared + private < 1:
        raise ValueError(f"shared + private must be 1 or more, got {shared + private}.")
    if not 0 <= conflict <= 1:
        raise ValueError(f"conflict must be between 0 and 1, got {conflict}.")
    if not 0 <= missing < 1:
        raise ValueError(f"missing must be from 0 to below 1, got {missing}.")
