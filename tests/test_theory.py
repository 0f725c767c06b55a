"""The experiments on the paper's theory, where their outcome is known."""

import pytest
import torch

from fusion.data.datasets import digits_two_views, digits_views
from fusion.evaluation.theory import accuracy_by_dimension, lift_and_return, nearest_mean, reconstruction_from
from fusion.layers.gmf import GMF


@pytest.fixture(scope="module")
def digits():
    made = digits_views()
    return torch.cat(list(made.modalities.values()), dim=1), made.label


def test_the_optimal_dimension_moves_up_with_the_samples(digits):
    dimensions = [2, 12, 56]
    few = accuracy_by_dimension(*digits, dimensions, training=60, repeats=3).mean(dim=0)
    many = accuracy_by_dimension(*digits, dimensions, training=1000, repeats=3).mean(dim=0)
    assert few[1] > few[0] + 0.1
    assert few[1] > few[2] + 0.1
    assert many[2] > many[1] > many[0]
    with pytest.raises(ValueError, match="dimensions must be between 1 and 59, got 60"):
        accuracy_by_dimension(*digits, [60], training=60)


def test_lift_and_return_approach_the_features_and_never_beat_them(digits):
    found = lift_and_return(*digits, [0.25, 1, 2, 8, 64], training=1000)
    assert [one.rank for one in found] == [16, 64, 64, 64, 64]
    assert found[0].residual > 1.2
    for one in found[1:]:
        assert one.residual == pytest.approx(1, abs=1e-9)
    for one in found:
        assert one.distance == pytest.approx(one.predicted, rel=0.25)
    assert found[-1].distance < 0.3 < found[1].distance
    x, y = digits
    assert found[-1].accuracy == pytest.approx(nearest_mean(x[:1000], y[:1000], x[1000:], y[1000:]), abs=0.03)
    with pytest.raises(ValueError, match=r"expansions must leave a coordinate of 64, got 0\.01"):
        lift_and_return(*digits, [0.01], training=1000)


def test_reconstruction_needs_no_invariant_part():
    features = digits_two_views().modalities
    dims = {name: values.shape[1] for name, values in features.items()}
    found = reconstruction_from(GMF(dims), features)
    for by_part in found.values():
        assert by_part["all"] < 1e-20
        assert by_part["specific"] < 1e-20
        assert 0.3 < by_part["invariant"] < 1
    # Half of a lift below 2 has too few coordinates to hold a modality.
    narrow = reconstruction_from(GMF(dims, expansion=1), features)
    assert min(by_part["specific"] for by_part in narrow.values()) > 0.01
