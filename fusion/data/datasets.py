"""Small data sets to try fusion layers on: one that scikit-learn ships, one made to order."""

from collections.abc import Mapping

import numpy as np
import torch
from scipy.fft import dctn
from torch import Tensor

from ..extras import require
from ..randomness import seeded
from .features import Features


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


def shared_private(
    samples: int,
    dims: Mapping[str, int],
    *,
    shared: int,
    private: int,
    noise: float = 0.1,
    seed: int = 0,
    classes: int = 4,
    label_from: str | None = None,
) -> tuple[Features, dict[str, Tensor]]:
    r"""Linear modalities with known shared and private latents.

    .. math::
        f_m = A_m s + B_m p_m + \sigma e_m, \qquad y = \arg\max_k (C z)_k

    with :math:`s \in \mathbb{R}^{k_s}` common to all modalities, :math:`p_m \in \mathbb{R}^{k_p}` of one
    only, and all latents and noise standard normal. The entries of :math:`A_m` and :math:`B_m` are normal
    with variance :math:`1 / (k_s + k_p)`, so channels have unit variance beside the noise.

    Arguments:
        samples: N.
        dims: Modality name → :math:`l_m`.
        shared, private: :math:`k_s` and :math:`k_p`; either may be 0, not both.
        noise: :math:`\sigma \ge 0`.
        seed: Of everything drawn.
        classes: Number of labels.
        label_from: `shared` for :math:`z = s`; `both` for *z* = *s* beside every :math:`p_m`; None: `shared`
            if there are shared latents.

    Returns:
        The features without a split, and the latents: `shared` `(N, k_s)` and `private <name>` `(N, k_p)`.

    Raises:
        ValueError: A number out of range, or another `label_from`.
    """
    label_from = label_from or ("shared" if shared else "both")
    _check_shared_private(samples, shared, private, noise, classes, label_from)
    with seeded(seed):
        latents = {"shared": torch.randn(samples, shared)}
        modalities = {}
        for name, length in dims.items():
            own = latents[f"private {name}"] = torch.randn(samples, private)
            mixed = torch.cat([latents["shared"], own], dim=-1) @ torch.randn(shared + private, length)
            modalities[name] = mixed / (shared + private) ** 0.5 + noise * torch.randn(samples, length)
        told = latents["shared"] if label_from == "shared" else torch.cat(list(latents.values()), dim=-1)
        label = (told @ torch.randn(told.shape[-1], classes)).argmax(dim=-1)
    return Features(modalities, label=label), latents


def _check_shared_private(
    samples: int, shared: int, private: int, noise: float, classes: int, label_from: str
) -> None:
    if label_from not in ("shared", "both"):
        raise ValueError(f"label_from must be 'shared' or 'both', got {label_from!r}.")
    lowest = {"samples": 1, "shared": int(label_from == "shared"), "private": 0, "noise": 0, "classes": 2}
    given = {"samples": samples, "shared": shared, "private": private, "noise": noise, "classes": classes}
    for name, value in given.items():
        if not value >= lowest[name]:
            raise ValueError(f"{name} must be {lowest[name]} or more, got {value}.")
    if shared + private < 1:
        raise ValueError(f"shared + private must be 1 or more, got {shared + private}.")
