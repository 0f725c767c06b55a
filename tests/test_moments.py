"""Running statistics against those of all samples at once, and against scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.covariance import OAS
from torch.autograd import gradcheck

from fusion.data.datasets import shared_private
from fusion.grounded.moments import Moments, coherence_of, oracle_shrinkage

DIMS = {"a": 5, "b": 4, "c": 3}


def rows(samples=600, seed=0):
    features = shared_private(samples, DIMS, shared=2, private=2, noise=0.3, seed=seed)[0].modalities
    return torch.cat(list(features.values()), dim=-1).double() * 3 + 1


def fed(batches, memory=None):
    moments = Moments(DIMS, memory)
    for batch in batches:
        moments.update(batch)
    return moments


def test_batches_of_any_size_give_the_covariance_of_all():
    joint = rows()
    moments = fed(joint.split([7, 400, 100, 93]))
    assert moments.samples == pytest.approx(600)
    expected = np.cov(joint.numpy(), rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance.numpy(), expected, atol=1e-12)
    for mean in moments.mean:
        np.testing.assert_allclose(mean.numpy(), joint.mean(0).numpy(), atol=1e-12)


def test_pairs_of_modalities_are_those_of_the_samples_that_have_both():
    joint = rows()
    present = torch.rand(600, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    moments = Moments(DIMS)
    for batch, there in zip(joint.split([100, 400, 100]), present.split([100, 400, 100]), strict=True):
        moments.update(batch, there)
    places = {"a": slice(0, 5), "b": slice(5, 9), "c": slice(9, 12)}
    for first, one in enumerate(places.values()):
        for second, other in enumerate(places.values()):
            both = joint[present[:, first] & present[:, second]]
            expected = np.cov(both.numpy(), rowvar=False, bias=True)
            np.testing.assert_allclose(
                moments.covariance[one, other].numpy(), expected[one, other], atol=1e-12
            )
            np.testing.assert_allclose(
                moments.mean[second, one].numpy(), both.mean(0)[one].numpy(), atol=1e-12
            )
    fewest = min(int((present[:, i] & present[:, j]).sum()) for i in range(3) for j in range(3))
    assert moments.samples == pytest.approx(fewest)
    # One modality at a time says nothing of what is shared.
    assert not Moments(DIMS).update(joint, torch.eye(3, dtype=torch.bool).repeat(200, 1))


def test_old_samples_are_forgotten():
    joint = rows(2000)
    other = joint.flip(-1) * 2
    moments = fed([*joint.split(50), *other.split(50)], memory=200)
    # Forty batches later the first distribution has the weight (1 - 50/200)^40 = 1e-5.
    late = fed(other.split(50), memory=200)
    torch.testing.assert_close(moments.covariance, late.covariance, rtol=0, atol=1e-3)
    # Weights w (1-w)^k of batches of B samples: 1 / sum w_i^2 = B (2 - w) / w.
    assert moments.samples == pytest.approx(50 * (2 - 0.25) / 0.25, rel=1e-6)


def test_unrelated_samples_have_the_same_channels_and_nothing_in_common():
    joint = rows(6000)
    moments = fed(joint.split(64))
    covariance, unrelated = moments.covariance, moments.unrelated
    torch.testing.assert_close(unrelated[:5, :5], covariance[:5, :5])
    torch.testing.assert_close(unrelated[9:, 9:], covariance[9:, 9:])
    deviations = covariance.diagonal().sqrt()
    correlations = unrelated / (deviations.unsqueeze(-1) * deviations)
    # Chance: one over the root of the sample size, seventy-seven at the start.
    assert float(correlations[:5, 5:].abs().max()) < 4 / 6000**0.5
    assert float((covariance / (deviations.unsqueeze(-1) * deviations))[:5, 5:].abs().max()) > 0.2


def test_batches_too_small_to_mix_are_left_out():
    joint = rows(10)
    moments = fed([joint[:1], joint[1:3], joint[3:]])
    assert moments.samples == pytest.approx(7)
    with pytest.raises(RuntimeError, match="no batch had enough samples"):
        Moments(DIMS).coherence()
    with pytest.raises(ValueError, match="memory must be at least 2 samples, or None for all, got 1"):
        Moments(DIMS, memory=1)


def test_the_shrinkage_is_scikit_learn_s():
    for samples in (8, 30, 600):
        joint = rows(samples)[:, :5]
        theirs = OAS().fit(joint.numpy())
        ours = oracle_shrinkage(torch.cov(joint.mT, correction=0), samples)
        assert ours == pytest.approx(theirs.shrinkage_, rel=1e-10)


def test_whitened_channels_are_uncorrelated_and_the_coherence_is_the_others_correlations():
    joint = rows()
    moments = fed([joint])
    coherence = moments.coherence()
    start = 0
    for name, length in DIMS.items():
        whitening = coherence.whitenings[name]
        own = torch.corrcoef(joint[:, start : start + length].mT)
        shrunk = (1 - whitening.shrinkage) * own + whitening.shrinkage * torch.eye(length).double()
        torch.testing.assert_close(
            whitening.matrix @ shrunk @ whitening.matrix, torch.eye(length).double(), atol=1e-10, rtol=0
        )
        start += length
    whitened = coherence.whiten(dict(zip(DIMS, joint.split(list(DIMS.values()), dim=-1), strict=True)))
    cross = whitened["a"].mT @ whitened["b"] / len(joint)
    torch.testing.assert_close(coherence.matrix[:5, 5:9], cross)


def test_a_constant_channel_says_nothing():
    joint = rows()
    joint[:, 2] = 7.0
    coherence = fed([joint]).coherence()
    assert bool(torch.isfinite(coherence.matrix).all())
    assert float(coherence.matrix[2, 5:].abs().max()) < 1e-15


def test_gradients_reach_the_covariance(monkeypatch):
    joint = rows(40)
    mean, covariance = joint.mean(0), torch.cov(joint.mT, correction=0)

    def predictabilities(upper):
        coherence = coherence_of(mean, (upper + upper.mT) / 2, [40] * 3, DIMS)
        return coherence.predictability("a"), coherence.whitenings["b"].matrix

    # The shrinkage is a constant to the gradient.
    monkeypatch.setattr("fusion.grounded.moments.oracle_shrinkage", lambda *_: 0.1)
    assert gradcheck(predictabilities, covariance.requires_grad_())
