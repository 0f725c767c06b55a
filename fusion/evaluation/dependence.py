"""How much two sets of variables have in common: explained variance and mutual information."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import require

LIMIT = 1 - 1e-6
"""Largest squared canonical correlation; one direction that is known exactly counts 6.9 nats, not infinity."""


def explained_variance(inputs: Tensor, targets: Tensor, *, folds: int = 5) -> float:
    r"""R² of the targets `(N, q)` from the inputs `(N, p)` by ridge regression, cross-validated.

    .. math:: 1 - \sum_j \sum_n (y_{nj} - \hat y_{nj})^2 \Big/ \sum_j \sum_n (y_{nj} - \bar y_j)^2

    on samples that the regression has not seen, so that a target weighs by its variance; the strength of the
    ridge is chosen within the other folds. Cut off at 0; 0 if no target varies.

    Raises:
        ValueError: Fewer samples than folds, or other numbers of samples.
        ModuleNotFoundError: scikit-learn is not installed.

    Example:
        >>> import fusion
        >>> data, latents = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> f"{fusion.explained_variance(data.modalities['a'], latents['shared']):.2f}"  # what is shared, from a
        '0.95'
        >>> f"{fusion.explained_variance(data.modalities['a'], latents['private b']):.2f}"  # what is b's own, from a
        '0.00'
    """
    x, y = _arrays(inputs, targets, folds)
    spread = ((y - y.mean(axis=0)) ** 2).sum()
    if spread <= 1e-18 * (y**2).sum():
        return 0.0
    model = require("sklearn.pipeline").make_pipeline(
        require("sklearn.preprocessing").StandardScaler(),
        require("sklearn.linear_model").RidgeCV(alphas=np.logspace(-3, 3, 7)),
    )
    predicted = require("sklearn.model_selection").cross_val_predict(model, x, y, cv=_shuffled(folds))
    return max(0.0, 1 - float(((y - predicted.reshape(y.shape)) ** 2).sum() / spread))


def mutual_information(first: Tensor, second: Tensor, *, folds: int = 5) -> float:
    r"""Mutual information in nats of two sets of variables `(N, p)` and `(N, q)`, as far as it is Gaussian.

    .. math:: I = -\tfrac12 \sum_i \ln(1 - \rho_i^2)

    from canonical correlations, which is exact for jointly Gaussian variables and for others counts what is
    linear. The directions come from one part of the samples and their correlations from the rest, fold by
    fold: correlations of the same samples would be far from zero between sets that have nothing in common.
    A direction whose correlation is not above its standard error, :math:`1/\sqrt N`, counts nothing, nor does
    one of negative sign. Relations without noise are cut at 6.9 nats a direction, for the information in them is
    infinite.

    Raises:
        ValueError: Fewer samples than folds, or other numbers of samples.
        ModuleNotFoundError: scikit-learn is not installed.

    Example:
        >>> import fusion
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> x, noise = torch.randn(2, 4000, 1, generator=generator)
        >>> f"{fusion.mutual_information(x, x + noise):.2f} nats"  # exact: ln(2) / 2 = 0.35
        '0.33 nats'
    """
    x, y = _arrays(first, second, folds)
    found = np.zeros(min(x.shape[1], y.shape[1]))
    weight = 0
    for training, rest in _shuffled(folds).split(x):
        u, v = _canonical(x, y, training, rest)
        spread = np.sqrt((u**2).sum(axis=0) * (v**2).sum(axis=0))
        correlation = np.divide((u * v).sum(axis=0), spread, out=np.zeros_like(spread), where=spread > 0)
        found[: len(correlation)] += len(rest) * correlation
        weight += len(rest)
    correlations = found / weight
    squares = np.where(correlations > 1 / math.sqrt(weight), correlations, 0.0) ** 2
    return float(-0.5 * np.log1p(-np.minimum(squares, LIMIT)).sum())


def _canonical(
    x: np.ndarray, y: np.ndarray, training: np.ndarray, rest: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Canonical variates of the samples `rest`, in directions that `training` decides."""
    bases, scores = [], []
    for values in (x, y):
        centre = values[training].mean(axis=0)
        scale = values[training].std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        left, size, right = np.linalg.svd((values[training] - centre) / scale, full_matrices=False)
        kept = size > 1e-7 * size.max(initial=1e-300)
        bases.append(left[:, kept])
        scores.append(((values[rest] - centre) / scale) @ (right[kept].T / size[kept]))
    left, _, right = np.linalg.svd(bases[0].T @ bases[1], full_matrices=False)
    return scores[0] @ left, scores[1] @ right.T


def _arrays(first: Tensor, second: Tensor, folds: int) -> tuple[np.ndarray, np.ndarray]:
    if len(first) != len(second) or len(first) < max(folds, 2):
        raise ValueError(
            f"both sets must have the same samples, {max(folds, 2)} or more, got {len(first)} and {len(second)}."
        )
    x, y = (values.detach().to("cpu", torch.float64).numpy() for values in (first, second))
    return x, y


def _shuffled(folds: int) -> Any:
    return require("sklearn.model_selection").KFold(folds, shuffle=True, random_state=0)
