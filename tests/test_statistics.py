"""Intervals and tests over seeds, against scipy, published examples and a simulation."""

import numpy as np
import pytest
from scipy import stats

from fusion.evaluation.statistics import TEST_SHARE, half_width, holm, paired_test


@pytest.fixture
def scores():
    generator = np.random.default_rng(0)
    return generator.normal(0.9, 0.02, 7), generator.normal(0.88, 0.02, 7)


def test_interval_is_students(scores):
    first, _ = scores
    low, high = stats.t.interval(0.95, 6, first.mean(), stats.sem(first))
    assert half_width(list(first)) == pytest.approx((high - low) / 2)
    low, high = stats.t.interval(0.8, 6, first.mean(), stats.sem(first))
    assert half_width(list(first), level=0.8) == pytest.approx((high - low) / 2)
    assert half_width([0.5]) is None


def test_paired_test_is_scipys_without_overlap(scores):
    assert paired_test(*scores) == pytest.approx(stats.ttest_rel(*scores).pvalue)


def test_overlap_divides_the_statistic(scores):
    plain = stats.ttest_rel(*scores).statistic
    corrected = plain / np.sqrt(1 + 7 * TEST_SHARE)
    expected = 2 * stats.t.sf(abs(corrected), 6)
    assert paired_test(*scores, overlap=TEST_SHARE) == pytest.approx(expected)
    ratio = half_width(list(scores[0]), overlap=TEST_SHARE) / half_width(list(scores[0]))
    assert ratio == pytest.approx(np.sqrt(1 + 7 / 3))


def test_overlapping_splits_raise_false_alarms_that_the_correction_removes():
    """Two means that differ by chance of the data alone, judged from random halves of the same samples."""
    generator = np.random.default_rng(1)
    alarms = {0.0: 0, 1 / 3: 0}
    trials = 300
    for _ in range(trials):
        difference = generator.normal(size=400)  # of two layers' scores, sample by sample, with mean zero
        chosen = [generator.permutation(400) for _ in range(10)]
        # what a training learns from its samples, and what its test samples then say
        found = [difference[order[:240]].mean() + difference[order[240:320]].mean() for order in chosen]
        for overlap in alarms:
            alarms[overlap] += paired_test(found, [0.0] * 10, overlap=overlap) < 0.05
    assert alarms[0.0] > 0.3 * trials
    assert alarms[1 / 3] < 0.5 * alarms[0.0]


def test_differences_that_do_not_vary():
    assert paired_test([0.5, 0.6], [0.5, 0.6]) == 1
    assert paired_test([0.75, 0.5], [0.5, 0.25]) is None
    assert paired_test([0.5], [0.4]) is None
    with pytest.raises(ValueError, match="the same seeds, got 2 and 1 scores"):
        paired_test([0.5, 0.6], [0.5])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, None, 0.6]) == pytest.approx([0.04, None, 0.6], abs=0)
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
