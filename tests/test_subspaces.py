"""Dissociation on features whose shared and private latents are known."""

import pytest
import torch

from fusion.data.datasets import digits_two_views, shared_private
from fusion.grounded.subspaces import dissociate

DIMS = {"a": 32, "b": 24}


def r_squared(inputs, targets):
    """R² of a linear regression, fitted on the first half and scored on the second."""
    half = len(inputs) // 2
    inputs, targets = (x.double() - x[:half].double().mean(0) for x in (inputs, targets))
    # The parts have fewer directions than coordinates.
    weights = torch.linalg.lstsq(inputs[:half], targets[:half], driver="gelsd").solution
    rest = targets[half:] - inputs[half:] @ weights
    return float(1 - rest.square().sum() / targets[half:].square().sum())


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("samples", [500, 4000])
@pytest.mark.parametrize("shared", [0, 2, 5, 10])
def test_the_gates_count_the_shared_directions(samples, shared):
    # At this noise the weakest of ten shared directions has a true R² above 0.4; the noise level at 500
    # samples is 0.23, and a direction that weak could not be told from chance by anybody.
    for seed in range(5):
        features, _ = shared_private(
            samples, DIMS, shared=shared, private=8, noise=0.3, seed=seed, label_from="both"
        )
        for one in dissociate(features.modalities, seed=seed).channels.values():
            assert one.invariant_dimension == pytest.approx(shared, abs=0.1)


@pytest.mark.parametrize("dims", [DIMS, {"a": 32, "b": 28, "c": 24}])
def test_shared_latents_are_in_the_invariant_part_and_private_ones_in_the_specific(dims):
    scores = {key: [] for key in ("shared", "leak", "private", "left", "oracle shared", "oracle private")}
    for seed in range(4):
        features, latents = shared_private(4000, dims, shared=5, private=6, noise=0.5, seed=seed)
        subspaces = dissociate(features.modalities)
        invariant, specific = subspaces.split(features.modalities)
        common = subspaces.common(features.modalities)
        everything = torch.cat(list(features.modalities.values()), dim=-1)
        own = latents["private a"]
        scores["shared"].append(r_squared(torch.cat(list(common.values()), dim=-1), latents["shared"]))
        scores["leak"].append(r_squared(_gated(invariant["a"], subspaces, "a"), own))
        scores["private"].append(r_squared(_open(specific["a"], subspaces, "a"), own))
        scores["left"].append(r_squared(_open(specific["a"], subspaces, "a"), latents["shared"]))
        scores["oracle shared"].append(r_squared(everything, latents["shared"]))
        scores["oracle private"].append(r_squared(everything, own))
    assert mean(scores["shared"]) > 0.97 * mean(scores["oracle shared"])
    assert mean(scores["private"]) > 0.9 * mean(scores["oracle private"])
    assert mean(scores["leak"]) < 0.05
    assert mean(scores["left"]) < 0.1


def _gated(part, subspaces, name):
    """Channels that passed the gate; a regression would undo the scaling of the others."""
    return part[:, subspaces.channels[name].gates > 0.5]


def _open(part, subspaces, name):
    return part[:, subspaces.channels[name].gates < 0.5]


def test_split_conserves_and_reconstructs_every_feature():
    features = digits_two_views()
    subspaces = dissociate(features.modalities)
    invariant, specific = subspaces.split(features.modalities)
    whitened = subspaces.whiten(features.modalities)
    for name, back in subspaces.reconstruct(invariant, specific).items():
        torch.testing.assert_close(back, features.modalities[name].double(), rtol=0, atol=1e-10)
        total = invariant[name] ** 2 + specific[name] ** 2
        torch.testing.assert_close(total, whitened[name] ** 2, rtol=0, atol=1e-12 * float(total.max()))


def test_common_coordinates_of_the_modalities_agree():
    features, _ = shared_private(5000, {"a": 20, "b": 12, "c": 9}, shared=3, private=4, noise=0.2, seed=1)
    common = dissociate(features.modalities).common(features.modalities)
    leading = {name: values[:, :3] for name, values in common.items()}
    for one, other in (("a", "b"), ("b", "c"), ("a", "c")):
        agreement = (leading[one] * leading[other]).sum() / (leading[one].norm() * leading[other].norm())
        assert agreement > 0.85
    assert {values.shape[-1] for values in common.values()} == {9}


def test_charge_is_conserved_by_the_choice_of_basis():
    features = digits_two_views()
    subspaces = dissociate(features.modalities)
    for name, one in subspaces.channels.items():
        trace = float(subspaces.coherence.predictability(name).trace())
        total = (trace - one.noise_level * len(one.gates)) / (1 - one.noise_level)
        assert float(one.valences.sum()) == pytest.approx(total, abs=1e-9)


def test_units_and_offsets_do_not_matter():
    features, _ = shared_private(1000, DIMS, shared=4, private=6, noise=0.4, seed=2)
    scaled = {name: 1e5 * values.double() - 7 for name, values in features.modalities.items()}
    first, second = dissociate(features.modalities), dissociate(scaled)
    for name in DIMS:
        torch.testing.assert_close(first.channels[name].gates, second.channels[name].gates, rtol=0, atol=1e-4)


def test_it_is_deterministic_and_leaves_the_random_state_alone():
    features = digits_two_views().modalities
    before = torch.random.get_rng_state()
    first, second = dissociate(features), dissociate(features)
    assert torch.equal(before, torch.random.get_rng_state())
    for name in features:
        assert torch.equal(first.channels[name].gates, second.channels[name].gates)


@pytest.mark.parametrize("samples", [3, 10, 40])
def test_with_few_samples_nothing_is_called_shared_without_reason(samples):
    torch.manual_seed(samples)
    features = {"a": torch.randn(samples, 30), "b": torch.randn(samples, 20)}
    found = dissociate(features)
    for one in found.channels.values():
        assert bool(torch.isfinite(one.gates).all())
        assert one.invariant_dimension < 1.5


def test_a_ground_nearer_to_the_left_lets_more_channels_be_invariant():
    features = digits_two_views().modalities
    dimensions = [
        dissociate(features, ground=b, voltage=20.0).channels["pixels"].invariant_dimension
        for b in (0.2, 0.5, 0.8)
    ]
    assert dimensions[0] > dimensions[1] > dimensions[2]


def test_it_says_what_it_found():
    text = str(dissociate(digits_two_views().modalities))
    assert "2 modalities, 1797 samples" in text
    assert "pixels: 32 channels" in text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"safety": 1.0}, "safety must be above 1 and finite, got 1"),
        ({"permutations": 0}, "permutations must be an integer of 1 or more, got 0"),
        ({"ground": 1.5}, "ground must lie between 0 and 1, got 1.5"),
    ],
)
def test_errors_say_what_is_wrong(settings, message):
    with pytest.raises(ValueError, match=message):
        dissociate({"a": torch.randn(50, 3), "b": torch.randn(50, 2)}, **settings)
