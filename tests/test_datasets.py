"""The data sets that come with the package."""

import pytest
import torch
from scipy.fft import idctn
from sklearn.datasets import load_digits

from fusion.data.datasets import digits_two_views, shared_private


def test_digits_are_cut_in_halves():
    features, digits = digits_two_views(), load_digits()
    assert features.dims == {"pixels": 32, "frequencies": 20}
    assert (len(features), features.classes, features.split) == (1797, 10, None)
    assert features.label.tolist() == digits.target.tolist()
    pixels = features.modalities["pixels"].reshape(-1, 4, 8)
    assert torch.equal(pixels, torch.tensor(digits.images[:, :4]).float())


def test_all_frequencies_give_the_lower_half_back():
    every = digits_two_views(coefficients=32).modalities["frequencies"]
    # Places of the coefficients in order of frequency, found again by sorting (u/8)² + (v/16)² exactly.
    places = sorted(range(32), key=lambda k: (4 * (k // 8) ** 2 + (k % 8) ** 2, k // 8))
    ordered = torch.empty_like(every)
    ordered[:, places] = every
    lower = idctn(ordered.reshape(-1, 4, 8).numpy(), axes=(1, 2), norm="ortho")
    expected = torch.tensor(load_digits().images[:, 4:]).float()
    torch.testing.assert_close(torch.tensor(lower), expected, atol=1e-4, rtol=0)


def test_twenty_frequencies_are_the_lowest():
    few = digits_two_views().modalities["frequencies"]
    assert torch.equal(few, digits_two_views(coefficients=32).modalities["frequencies"][:, :20])
    # The first is the mean times the root of the number of pixels.
    mean = torch.tensor(load_digits().images[:, 4:]).mean(dim=(1, 2))
    torch.testing.assert_close(few[:, 0].double(), mean * 32**0.5, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("coefficients", [0, 33])
def test_coefficients_out_of_range(coefficients):
    with pytest.raises(ValueError, match=f"coefficients must be between 1 and 32, got {coefficients}"):
        digits_two_views(coefficients)


def test_latents_generate_the_features():
    dims = {"a": 6, "b": 9}
    features, latents = shared_private(50, dims, shared=2, private=3, noise=0.0, seed=1)
    assert features.dims == dims
    assert {name: latent.shape for name, latent in latents.items()} == {
        "shared": (50, 2),
        "private a": (50, 3),
        "private b": (50, 3),
    }
    for name in dims:
        told = torch.cat([latents["shared"], latents[f"private {name}"]], dim=1)
        mixing = torch.linalg.lstsq(told, features.modalities[name]).solution
        torch.testing.assert_close(told @ mixing, features.modalities[name], atol=1e-5, rtol=1e-4)


def test_label_comes_from_the_latents_that_were_asked_for():
    def explained(label, latent):
        """Accuracy of the best linear classifier by least squares."""
        target = torch.nn.functional.one_hot(label).float()
        inputs = torch.cat([latent, torch.ones(len(latent), 1)], dim=1)
        return ((inputs @ torch.linalg.lstsq(inputs, target).solution).argmax(1) == label).float().mean()

    common = {"shared": 3, "private": 3, "classes": 2, "seed": 0}
    features, latents = shared_private(4000, {"a": 4, "b": 4}, **common)
    assert explained(features.label, latents["shared"]) > 0.98
    assert explained(features.label, latents["private a"]) < 0.55
    features, latents = shared_private(4000, {"a": 4, "b": 4}, **common, label_from="both")
    assert explained(features.label, torch.cat(list(latents.values()), dim=1)) > 0.98
    assert explained(features.label, latents["shared"]) < 0.9


def test_channels_have_unit_variance_beside_the_noise():
    # Averaged over mixings: each channel's variance is a chi-squared mean of 8 terms.
    features, _ = shared_private(2000, {"a": 4000, "b": 2}, shared=4, private=4, noise=0.5, seed=0)
    assert features.modalities["a"].var(dim=0).mean() == pytest.approx(1 + 0.25, rel=0.05)


def test_seed_decides_and_disturbs_nothing():
    torch.manual_seed(5)
    undisturbed = torch.rand(2)
    torch.manual_seed(5)
    first, _ = shared_private(10, {"a": 2, "b": 2}, shared=1, private=1, seed=3)
    assert torch.equal(torch.rand(2), undisturbed)
    second, _ = shared_private(10, {"a": 2, "b": 2}, shared=1, private=1, seed=3)
    assert torch.equal(first.modalities["a"], second.modalities["a"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": 0}, "samples must be 1 or more, got 0"),
        ({"shared": 0, "label_from": "shared"}, "shared must be 1 or more, got 0"),
        ({"private": -1}, "private must be 0 or more, got -1"),
        ({"noise": -0.5}, r"noise must be 0 or more, got -0\.5"),
        ({"classes": 1}, "classes must be 2 or more, got 1"),
        ({"label_from": "private"}, "label_from must be 'shared' or 'both', got 'private'"),
        ({"shared": 0, "private": 0, "label_from": "both"}, r"shared \+ private must be 1 or more, got 0"),
    ],
)
def test_arguments_out_of_range(changes, message):
    arguments = {"samples": 10, "dims": {"a": 2, "b": 2}, "shared": 1, "private": 1}
    with pytest.raises(ValueError, match=message):
        shared_private(**(arguments | changes))
