"""Three statements of the GMF paper's theory as experiments: what can be measured of each, and on what terms."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..extras import require
from ..layers.gmf import GMF
from ..randomness import seeded


def accuracy_by_dimension(
    features: Tensor,
    label: Tensor,
    dimensions: Sequence[int],
    *,
    training: int,
    repeats: int = 10,
    regularisation: float = 1e-3,
) -> Tensor:
    """Test accuracy `(repeats, dimensions)` of a linear classifier on the first principal components (3.2).

    Each repeat draws its own training samples; components and classifier (logistic regression, hardly
    regularised) come from them, all other samples are test samples.

    Arguments:
        features: `(N, l)`; label `(N,)`.
        dimensions: How many components, each 1 ... l and below `training`.
        training: Samples to learn from, stratified.
        repeats: How often.
        regularisation: Strength of the L2 penalty.

    Raises:
        ValueError: A dimension or `training` out of range.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    length = min(features.shape[1], training - 1)
    if wrong := [d for d in dimensions if not 1 <= d <= length]:
        raise ValueError(f"dimensions must be between 1 and {length}, got {wrong[0]}.")
    selection, linear = require("sklearn.model_selection"), require("sklearn.linear_model")
    x, y = features.double().numpy(), label.numpy()
    split = selection.StratifiedShuffleSplit(repeats, train_size=training, random_state=0)
    found = torch.zeros(repeats, len(dimensions), dtype=torch.float64)
    for repeat, (known, unseen) in enumerate(split.split(x, y)):
        analysis = require("sklearn.decomposition").PCA(whiten=True, random_state=0).fit(x[known])
        inputs, others = analysis.transform(x[known]), analysis.transform(x[unseen])
        for place, d in enumerate(dimensions):
            model = linear.LogisticRegression(C=1 / regularisation, max_iter=5000, tol=1e-3)
            model.fit(inputs[:, :d], y[known])
            found[repeat, place] = model.score(others[:, :d], y[unseen])
    return found


@dataclass(frozen=True)
class Lifted:
    r"""What a random linear lift to :math:`n l` coordinates and its return do to features (3.3).

    Attributes:
        expansion: *n*.
        distance: :math:`\lVert A - 1 \rVert_2` of lift and return, :math:`A = W^T W`.
        predicted: Its limit for many channels, :math:`(1 + 1/\sqrt{n})^2 - 1` (Marchenko and Pastur).
        rank: Of *A*: :math:`\min(n, 1) l`.
        accuracy: Of the nearest class mean on what returned, on samples the means have not seen.
        residual: What the best linear read-out of the label from the lifted coordinates leaves unexplained
            of its training samples, over what it leaves from the features themselves; never below 1.
    """

    expansion: float
    distance: float
    predicted: float
    rank: int
    accuracy: float
    residual: float


def lift_and_return(
    features: Tensor, label: Tensor, expansions: Sequence[float], *, training: int, seed: int = 0
) -> list[Lifted]:
    r"""Lift features by a random matrix, return by its transpose, and see what is left of them (3.3).

    :math:`W \in \mathbb{R}^{\lfloor n l \rfloor \times l}` has normal entries of variance :math:`1/(n l)`, so
    that :math:`W^T W \to 1` as *n* grows. The first `training` samples of a random order are known.

    Arguments:
        features: `(N, l)`; label `(N,)` of classes.
        expansions: *n*, above 0.

    Raises:
        ValueError: An expansion that leaves no coordinate.
    """
    length = features.shape[1]
    if wrong := [n for n in expansions if not 1 <= n * length < math.inf]:
        raise ValueError(f"expansions must leave a coordinate of {length}, got {wrong[0]}.")
    found = []
    with seeded(seed):
        order = torch.randperm(len(features))
        known, unseen = order[:training], order[training:]
        x = features.double() - features[known].double().mean(dim=0)
        target = torch.nn.functional.one_hot(label).double()
        plain = _unexplained(x[known], target[known])
        for n in expansions:
            coordinates = math.floor(n * length + 1e-9)
            lift = torch.randn(coordinates, length, dtype=torch.float64) / coordinates**0.5
            returned = x @ lift.T @ lift
            both = lift.T @ lift
            found.append(
                Lifted(
                    n,
                    float(torch.linalg.matrix_norm(both - torch.eye(length, dtype=torch.float64), ord=2)),
                    (1 + 1 / math.sqrt(n)) ** 2 - 1,
                    int(torch.linalg.matrix_rank(both)),
                    nearest_mean(returned[known], label[known], returned[unseen], label[unseen]),
                    _unexplained(x[known] @ lift.T, target[known]) / plain,
                )
            )
    return found


def nearest_mean(inputs: Tensor, label: Tensor, unseen: Tensor, truth: Tensor) -> float:
    """Accuracy of giving each sample `(N, l)` the class with the nearest mean, which no rotation changes."""
    means = torch.stack([inputs[label == number].mean(dim=0) for number in range(int(label.max()) + 1)])
    return float((torch.cdist(unseen, means).argmin(dim=1) == truth).double().mean())


def reconstruction_from(layer: GMF, features: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    r"""How much of each modality's variance the best linear map leaves unexplained, by what it may see (3.4).

    The relative error :math:`\sum \lVert f_m - \hat f_m \rVert^2 / \sum \lVert f_m - \bar f_m \rVert^2` of least
    squares with intercept, from `all` of :math:`Z_m`, from the `specific` part alone, and from the
    `invariant` part of the partner alone. It bounds from below what any training of the layer's own
    reconstruction maps can reach with these dissociations and gatherings.

    Arguments:
        features: `{name: (N, l_m)}`; N well above :math:`l^* + l_m`, or anything is reconstructed.

    Returns:
        Modality → what is seen → relative error.
    """
    with torch.no_grad():
        out = layer.double()({name: values.double() for name, values in features.items()})
    found = {}
    for name, values in features.items():
        seen = {
            "all": out.fused[name],
            "specific": out.specific[name],
            "invariant": out.fused[name][..., : layer.common_length],
        }
        target = values.double()
        spread = float((target - target.mean(dim=0)).square().sum())
        found[name] = {part: _unexplained(inputs, target) / spread for part, inputs in seen.items()}
    return found


def _unexplained(inputs: Tensor, target: Tensor) -> float:
    """Sum of squares that least squares with intercept leaves of the targets."""
    x, y = inputs - inputs.mean(dim=0), target - target.mean(dim=0)
    fitted = x @ torch.linalg.lstsq(x, y, driver="gelsd").solution
    return float((y - fitted).square().sum())
