"""Explained variance and mutual information of Gaussians for which both are known."""

import math

import pytest
import torch

from fusion.evaluation.dependence import explained_variance, mutual_information


def correlated(samples, correlations, extra=3, seed=0):
    """Two sets of Gaussians with these canonical correlations, each mixed by a random matrix."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    rho = torch.tensor(correlations, dtype=torch.float64)
    first = normal(samples, len(rho) + extra)
    second = normal(samples, len(rho) + 2 * extra)
    second[:, : len(rho)] = rho * first[:, : len(rho)] + (1 - rho**2).sqrt() * second[:, : len(rho)]
    return first @ normal(first.shape[1], first.shape[1]), second @ normal(
        second.shape[1], second.shape[1]
    ) + 7


@pytest.mark.parametrize("correlations", [[0.9], [0.9, 0.6, 0.3], [0.99, 0.5]])
def test_information_of_gaussians_is_known(correlations):
    known = -0.5 * sum(math.log(1 - rho**2) for rho in correlations)
    assert mutual_information(*correlated(20_000, correlations)) == pytest.approx(known, rel=0.03)


def test_independent_sets_have_almost_no_information_even_in_few_samples():
    found = [mutual_information(*correlated(200, [0.0] * 10, seed=seed)) for seed in range(10)]
    assert sum(found) / 10 < 0.15  # in-sample canonical correlations would say 1 and more
    assert all(value >= 0 for value in found)


def test_what_is_the_same_has_finite_information():
    first, _ = correlated(300, [0.5])
    found = mutual_information(first, first[:, :2])
    assert found == pytest.approx(2 * 6.9, rel=0.01)
    assert mutual_information(first, torch.ones(300, 2)) == 0


def test_explained_variance_is_weighted_and_known():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, generator=generator)
    noise = torch.randn(20_000, 2, generator=generator)
    targets = torch.stack([3 * x[:, 0] + noise[:, 0], noise[:, 1]], dim=-1)
    assert explained_variance(x, targets) == pytest.approx(9 / (9 + 1 + 1), abs=0.01)
    assert explained_variance(x, noise) < 0.001
    assert explained_variance(x[:200].repeat(1, 20), noise[:200]) == 0  # seen samples would be explained
    assert explained_variance(x, torch.ones(20_000, 2)) == 0


def test_sets_must_have_the_same_samples():
    with pytest.raises(ValueError, match="the same samples, 5 or more, got 8 and 9"):
        mutual_information(torch.randn(8, 2), torch.randn(9, 2))
    with pytest.raises(ValueError, match="the same samples, 5 or more, got 3 and 3"):
        explained_variance(torch.randn(3, 2), torch.randn(3, 2))
