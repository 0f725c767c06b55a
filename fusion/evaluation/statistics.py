"""What a handful of seeds can tell: intervals of means, paired tests, and many tests at once."""

import math
from collections.abc import Sequence
from statistics import fmean, variance

TEST_SHARE = 0.2 / 0.6
"""Test samples over training samples of a random split; the validation samples train nothing."""


def half_width(values: Sequence[float], *, overlap: float = 0.0, level: float = 0.95) -> float | None:
    r"""Half the confidence interval of a mean over *k* seeds by Student's distribution; None for one seed.

    .. math:: t_{k-1} \sqrt{\left( \tfrac1k + \rho \right) s^2}

    Arguments:
        values: One a seed.
        overlap: :math:`\rho`, test over training samples where seeds draw their own splits of the same
            samples (:data:`TEST_SHARE`), 0 where they share one split. Splits that overlap are not
            independent, and dividing by :math:`\sqrt k` alone would promise an interval that more seeds shrink
            to nothing.
        level: Of confidence.

    References:
        | C. Nadeau and Y. Bengio, Inference for the Generalization Error, Machine Learning 52, 239 (2003)
    """
    if len(values) < 2:
        return None
    from scipy import stats  # takes a second to import

    quantile = float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    return quantile * _standard_error(values, overlap)


def paired_test(first: Sequence[float], second: Sequence[float], *, overlap: float = 0.0) -> float | None:
    r"""Two-sided p-value that two layers score alike, from their scores on the same seeds.

    Student's test of the *k* differences with the standard error of :func:`half_width`; with `overlap` that
    is the corrected resampled t-test of Nadeau and Bengio, without it the usual paired test. (A rank test
    cannot fall below :math:`2^{1-k}`, 0.06 for five seeds, and knows no correction for overlap.)

    1 if every difference is zero; None for one seed, or where all differences are equal but not zero: then
    the test has no spread to judge by.

    Raises:
        ValueError: Unequal numbers of scores.
    """
    if len(first) != len(second):
        raise ValueError(f"both layers must have the same seeds, got {len(first)} and {len(second)} scores.")
    differences = [a - b for a, b in zip(first, second, strict=True)]
    if not any(differences) and len(differences) > 1:
        return 1.0
    if len(differences) < 2 or max(differences) - min(differences) < 1e-12:
        return None
    from scipy import stats

    ratio = abs(fmean(differences)) / _standard_error(differences, overlap)
    return float(2 * stats.t.sf(ratio, len(differences) - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of several tests, adjusted so that a single false alarm among them stays as rare as said.

    Tests that could not be made (None) are left out.

    References:
        | S. Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scand. J. Statist. 6, 65 (1979)
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted


def _standard_error(values: Sequence[float], overlap: float) -> float:
    return math.sqrt((1 / len(values) + overlap) * variance(values))
