"""How likely a decision is right, whatever is missing, calibrated on samples that were not trained on."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data.features import Features
from ..extras import require
from ..training.run import Run
from .scores import cases, labelled, pattern

LARGEST = 30.0
"""Log-odds of a class, of either sign: beyond, a probability is rounded to one."""


@dataclass(frozen=True, eq=False)
class Confidence:
    r"""The probability that a run's decision on a sample is right.

    .. math:: P = \frac1{1 + e^{-(w\,x + w_0)}}, \qquad x = \ln\frac{p}{1 - p}

    with *p* the largest of the class probabilities that the model claims.

    Attributes:
        run: Whose decisions.
        slope, offset: :math:`w, w_0`; 1 and 0 where the model claims what is so.

    References:
        J. Platt, Probabilistic Outputs for Support Vector Machines, Advances in Large Margin Classifiers (1999)

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> data = data.with_split(0)
        >>> run = fusion.train("sum", data, recipe=fusion.Recipe(epochs=1), seed=0, progress=False)
        >>> confidence = fusion.Confidence(run, slope=1.0, offset=0.0)  # what the model claims, as it is
        >>> tuple(confidence(data.test).shape)
        (100,)
    """

    run: Run
    slope: float
    offset: float

    def __call__(self, features: Features, present: Mapping[str, Tensor] | None = None) -> Tensor:
        """The probability for every sample, `(N,)`; arguments and errors are those of :meth:`Run.logits`."""
        return torch.sigmoid(self.slope * claimed_odds(self.run.logits(features, present)) + self.offset)


def calibrate(run: Run, features: Features, *, part: str = "validation") -> Confidence:
    """Fit a :class:`Confidence` to a part that was not trained on, in all cases of something missing.

    Arguments:
        run: Of a classification or a detection of conflicts.
        features: As for :func:`~fusion.evaluation.scores.evaluate`.
        part: `validation`, or another.

    Raises:
        ValueError: Another task, decisions that are all right or all wrong, or anything
            :func:`~fusion.evaluation.scores.evaluate` finds wrong.
        ModuleNotFoundError: scikit-learn is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> data = data.with_split(0)
        >>> run = fusion.train("sum", data, recipe=fusion.Recipe(epochs=3), seed=0, progress=False)
        >>> confidence = fusion.calibrate(run, data)(data.test)
        >>> tuple(confidence.shape), bool((confidence > 0).all() and (confidence < 1).all())
        ((100,), True)
    """
    if not run.task.classifies:
        raise ValueError(f"calibrate: only a classification can be right or wrong, got a {run.task.kind}.")
    chosen = labelled(run, features, part)
    inputs, right = [], []
    for names in cases(list(run.dims)).values():
        present, some = pattern(chosen, names)
        if bool(some.any()):
            rows, here = chosen.rows(some), {name: values[some] for name, values in present.items()}
            logits = run.logits(rows, here)
            assert rows.label is not None
            inputs.append(claimed_odds(logits))
            right.append(run.task.decide(logits) == rows.label)
    found = torch.cat(right).cpu().numpy()
    if found.all() or not found.any():
        raise ValueError(
            f"calibrate: decisions on the {part} samples are all {'right' if found.all() else 'wrong'}, so nothing "
            "can be told about when they are."
        )
    values = torch.cat(inputs).unsqueeze(-1).cpu().numpy()
    model = require("sklearn.linear_model").LogisticRegression().fit(values, found)
    return Confidence(run, float(model.coef_[0, 0]), float(model.intercept_[0]))


def calibration_error(confidence: Tensor, right: Tensor, *, bins: int = 10) -> float:
    r"""Expected calibration error: how far confidence is from the share of right decisions, on average.

    .. math:: \sum_b \frac{n_b}{N}\,\big|\operatorname{mean}_b \mathrm{confidence}
              - \operatorname{mean}_b \mathrm{right}\big|

    over bins of equal numbers of samples, sorted by confidence.

    Arguments:
        confidence: `(N,)`, 0 to 1.
        right: `(N,)` of booleans.
        bins: At most N.

    Raises:
        ValueError: No samples, fewer than one bin or more than samples, or shapes that differ.

    Example:
        >>> import fusion
        >>> import torch
        >>> right = torch.arange(100) % 10 < 7  # seven of ten
        >>> f"{fusion.calibration_error(torch.full((100,), 0.9), right, bins=1):.1f}"  # who claims nine is off by two
        '0.2'
    """
    if confidence.shape != right.shape or confidence.ndim != 1 or not 1 <= bins <= len(confidence):
        raise ValueError(
            f"calibration_error needs two vectors of at least {max(bins, 1)} samples for {bins} bins, got shapes "
            f"{tuple(confidence.shape)} and {tuple(right.shape)}."
        )
    order = confidence.argsort(stable=True)
    gaps = [
        (one.double().mean() - other.double().mean()).abs() * len(one)
        for one, other in zip(
            confidence[order].tensor_split(bins), right[order].tensor_split(bins), strict=True
        )
    ]
    return float(torch.stack(gaps).sum() / len(confidence))


def claimed_odds(logits: Tensor) -> Tensor:
    """Log-odds of the class that logits `(N, classes)` decide for, `(N,)`, in float64 and at most :data:`LARGEST`."""
    top = logits.double().log_softmax(dim=-1).amax(dim=-1)
    return (top - torch.log(-torch.expm1(top.clamp(max=-1e-300)))).clamp(-LARGEST, LARGEST)
