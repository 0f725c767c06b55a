"""Joint statistics of modalities: shrinkage, whitening, predictability."""

import numpy as np
import pytest
import torch

from fusion.data.datasets import shared_private
from fusion.grounded.covariance import ledoit_wolf
from fusion.grounded.measure import measure

DIMS = {"a": 9, "b": 6, "c": 4}


def draw(samples=4000, seed=0):
    return shared_private(samples, DIMS, shared=3, private=2, noise=0.6, seed=seed)[0].modalities


@pytest.mark.parametrize(("samples", "channels"), [(500, 20), (40, 60), (10_000, 5)])
def test_shrinkage_is_ledoit_and_wolf_s(samples, channels):
    from sklearn import covariance as reference

    rng = np.random.default_rng(1)
    x = rng.standard_t(5, (samples, channels)) @ rng.standard_normal((channels, channels))
    x -= x.mean(0)
    expected, shrinkage = reference.ledoit_wolf(x, assume_centered=True)
    x = torch.tensor(x)
    fourth = x.square().sum(-1).square().mean()
    covariance, found = ledoit_wolf(x.mT @ x / samples, fourth, samples)
    assert found == pytest.approx(shrinkage, rel=1e-10)
    np.testing.assert_allclose(covariance.numpy(), expected, rtol=1e-9, atol=1e-9 * np.abs(expected).max())


def test_predictability_is_the_r_squared_of_a_regression():
    features = {name: values.double() for name, values in draw(50_000).items()}
    coherence = measure(features).coherence
    whitened = coherence.whiten(features)
    rest = torch.cat([whitened["b"], whitened["c"]], dim=-1).numpy()
    target = whitened["a"].numpy()
    fitted = rest @ np.linalg.lstsq(rest, target, rcond=None)[0]
    r_squared = 1 - ((target - fitted) ** 2).sum(0) / (target**2).sum(0)
    measured = coherence.predictability("a").diagonal().numpy()
    # Equal but for the shrinkage, which is below 1e-3 at this sample size.
    assert max(w.shrinkage for w in coherence.whitenings.values()) < 1e-3
    np.testing.assert_allclose(measured, r_squared, atol=1e-3)


def test_predictability_of_two_views_has_the_squared_canonical_correlations():
    features = {name: values.double() for name, values in draw(20_000).items() if name != "c"}
    a, b = ((v - v.mean(0)).numpy() for v in features.values())
    qa, qb = np.linalg.qr(a)[0], np.linalg.qr(b)[0]
    correlations = np.linalg.svd(qa.T @ qb, compute_uv=False)
    eigenvalues = torch.linalg.eigvalsh(measure(features).coherence.predictability("b")).flip(0).numpy()
    np.testing.assert_allclose(eigenvalues, correlations**2, atol=3e-3)


def test_whitened_channels_are_white_and_their_blocks_identities():
    features = draw(20_000)
    coherence = measure(features).coherence
    for name, values in coherence.whiten(features).items():
        covariance = values.mT @ values / len(values)
        assert (covariance - torch.eye(values.shape[-1])).abs().max() < 5e-3
        here = coherence.slices()[name]
        assert torch.equal(coherence.matrix[here, here], torch.eye(DIMS[name], dtype=torch.float64))


@pytest.mark.parametrize("samples", [2, 5, 12, 300])
def test_any_number_of_samples_and_degenerate_channels_stay_finite(samples):
    features = draw(samples)
    features["a"][:, 0] = 3.0  # constant
    features["a"][:, 1] = features["a"][:, 2]  # duplicated
    features["b"][:, 0] *= 1e12  # huge
    features["b"][:, 1] *= 1e-12
    coherence = measure(features).coherence
    assert bool(torch.isfinite(coherence.matrix).all())
    for name in DIMS:
        eigenvalues = torch.linalg.eigvalsh(coherence.predictability(name))
        assert eigenvalues.min() > -1e-9
        assert eigenvalues.max() < 1 + 1e-9


def test_units_of_the_channels_do_not_matter():
    features = draw(800)
    scaled = {
        name: values.double() * 10.0 ** torch.arange(-4, values.shape[-1] - 4) + 5
        for name, values in features.items()
    }
    first, second = (measure(one).coherence for one in (features, scaled))
    torch.testing.assert_close(first.matrix, second.matrix, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"a": torch.randn(5, 2)}, "at least two modalities"),
        ({"a": torch.randn(5, 2), "b": torch.randn(4, 2)}, r"same samples, got \{'a': 5, 'b': 4\}"),
        ({"a": torch.randn(1, 2), "b": torch.randn(1, 2)}, "at least two samples"),
        ({"a": torch.randn(5, 2, 2), "b": torch.randn(5, 2)}, r"'a'\] must be \(samples, channels\)"),
        ({"a": torch.full((5, 2), torch.nan), "b": torch.randn(5, 2)}, r"'a'\] must be finite"),
    ],
)
def test_errors_say_what_is_wrong(features, message):
    with pytest.raises(ValueError, match=message):
        measure(features)
