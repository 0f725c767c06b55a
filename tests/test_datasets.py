"""The data sets that come with the package."""

import numpy as np
import pytest
import torch
from scipy.fft import idctn
from sklearn.datasets import load_digits

from fusion.data.datasets import _oriented_gradients, digits_two_views, digits_views, shared_private


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
        ({"conflict": 1.5}, r"conflict must be between 0 and 1, got 1\.5"),
        ({"missing": 1.0}, r"missing must be from 0 to below 1, got 1\.0"),
        ({"steps": 0}, "steps must be 1 or more, got 0"),
        ({"classes": 1}, "classes must be 2 or more, got 1"),
        ({"label_from": "private"}, "label_from must be 'shared' or 'both', got 'private'"),
        ({"shared": 0, "private": 0, "label_from": "both"}, r"shared \+ private must be 1 or more, got 0"),
    ],
)
def test_arguments_out_of_range(changes, message):
    arguments = {"samples": 10, "dims": {"a": 2, "b": 2}, "shared": 1, "private": 1}
    with pytest.raises(ValueError, match=message):
        shared_private(**(arguments | changes))


def test_quadrants_share_no_pixel_and_leave_none_out():
    features, images = digits_views(), load_digits().images
    assert features.dims == dict.fromkeys(["upper_left", "upper_right", "lower_left", "lower_right"], 16)
    quadrants = [values.reshape(-1, 4, 4) for values in features.modalities.values()]
    upper, lower = torch.cat(quadrants[:2], dim=2), torch.cat(quadrants[2:], dim=2)
    assert torch.equal(torch.cat([upper, lower], dim=1), torch.tensor(images).float())


def test_other_views_of_the_digits():
    features, images = digits_views(["edges", "projections", "frequencies"]), load_digits().images
    assert features.dims == {"edges": 32, "projections": 16, "frequencies": 15}
    edges = features.modalities["edges"].double()
    down, right = np.gradient(images, axis=(1, 2))
    total = np.hypot(down, right).sum(axis=(1, 2))
    np.testing.assert_allclose(edges.sum(dim=1), total, rtol=1e-5)
    # A quarter turn moves quadrants and turns directions by two of eight sectors.
    ramp = torch.arange(8.0).expand(8, 8).numpy()
    sectors = _oriented_gradients(np.stack([ramp, ramp.T, -ramp]))[:, :8]
    assert sectors.argmax(axis=1).tolist() == [0, 2, 4]
    projections = features.modalities["projections"].double()
    np.testing.assert_allclose(projections[:, :8], images.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(projections[:, 8:], images.sum(axis=2), rtol=1e-6)
    with pytest.raises(ValueError, match="modalities must be distinct names out of upper_left"):
        digits_views(["edges", "edges"])


def test_extensions_leave_the_plain_set_as_it_was():
    plain, _ = shared_private(30, {"a": 4, "b": 5}, shared=2, private=1, seed=4)
    more, latents = shared_private(
        30, {"a": 4, "b": 5}, shared=2, private=1, seed=4, conflict=0.3, missing=0.2
    )
    assert torch.equal(plain.label, more.label)
    for place, name in enumerate("ab"):
        same = more.present[name] & ~latents["conflict"][:, place]
        assert torch.equal(plain.modalities[name][same], more.modalities[name][same])


def test_conflicts_and_gaps_are_told():
    features, latents = shared_private(
        1000, {"a": 6, "b": 9, "c": 5}, shared=2, private=2, noise=0.0, conflict=0.25, missing=0.3
    )
    mask = latents["conflict"]
    assert mask.sum(dim=0).min() > 50
    assert mask.sum() == mask.any(dim=1).sum() == 250
    for place, name in enumerate("abc"):
        told = torch.cat([latents["shared"], latents[f"private {name}"]], dim=1)
        here = features.present[name]
        assert (features.modalities[name][~here] == 0).all()
        true = here & ~mask[:, place]
        mixing = torch.linalg.lstsq(told[true], features.modalities[name][true]).solution
        error = (told @ mixing - features.modalities[name]).norm(dim=1)
        assert error[true].max() < 1e-4
        assert error[here & mask[:, place]].min() > 1e-2
    presence = torch.stack(list(features.present.values()))
    assert presence.any(dim=0).all()
    assert (~presence).double().mean() == pytest.approx(0.3 - 0.3**3 / 3, abs=0.02)


def test_nonlinear_modalities_are_of_unit_variance_and_not_linear():
    features, latents = shared_private(
        4000, {"a": 20, "b": 5}, shared=2, private=1, noise=0.0, nonlinear=True
    )
    values = features.modalities["a"]
    assert values.std() == pytest.approx(1, rel=1e-3)
    told = torch.cat([latents["shared"], latents["private a"], torch.ones(4000, 1)], dim=1)
    rest = values - told @ torch.linalg.lstsq(told, values).solution
    assert rest.var() / values.var() > 0.1


def test_sequences_average_their_noise_away():
    features, _ = shared_private(300, {"a": 4, "b": 3}, shared=2, private=1, noise=0.5, steps=9, seed=1)
    quiet, _ = shared_private(300, {"a": 4, "b": 3}, shared=2, private=1, noise=0.0, seed=1)
    assert features.modalities["a"].shape == (300, 9, 4)
    lengths = features.lengths["a"]
    assert (int(lengths.min()), int(lengths.max())) == (5, 9)
    error = features.pooled().modalities["a"] - quiet.modalities["a"]
    assert error.var() == pytest.approx(0.25 * float((1 / lengths).mean()), rel=0.15)
