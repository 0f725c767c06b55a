"""Functions of matrices against other ways to compute them, and their gradients where eigenvalues meet."""

import pytest
import torch
from torch.autograd import gradcheck

from fusion.grounded.spectral import Spectrum


def symmetric(values, seed=0):
    """A matrix with given eigenvalues."""
    generator = torch.Generator().manual_seed(seed)
    turned = torch.linalg.qr(torch.randn(len(values), len(values), generator=generator, dtype=torch.float64))[
        0
    ]
    return (turned * torch.tensor(values, dtype=torch.float64)) @ turned.mT


SPECTRA = {
    "distinct": [0.2, 0.5, 1.0, 3.0],
    "two equal": [0.2, 0.7, 0.7, 3.0],
    "all equal": [0.7, 0.7, 0.7, 0.7],
    "nearly equal": [0.2, 0.7, 0.7 + 1e-8, 3.0],
}


@pytest.fixture(params=list(SPECTRA))
def matrix(request):
    return symmetric(SPECTRA[request.param])


def test_powers_are_those_of_the_products(matrix):
    inverse_root = Spectrum.of(matrix).power(-0.5)
    torch.testing.assert_close(inverse_root @ matrix @ inverse_root, torch.eye(4, dtype=torch.float64))
    root = Spectrum.of(matrix).root()
    torch.testing.assert_close(root @ root, matrix)


@pytest.mark.parametrize("name", ["power", "root", "exponential"])
def test_gradients_are_right_where_eigenvalues_meet(matrix, name):
    def function(m):
        spectrum = Spectrum.of(m)
        if name == "power":
            return spectrum.power(-0.5)
        if name == "root":
            return spectrum.root()
        return spectrum.apply(torch.exp)

    assert gradcheck(function, matrix.clone().requires_grad_())


def test_the_exponential_and_its_gradient_are_torch_s(matrix):
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours, theirs = (matrix.clone().requires_grad_() for _ in range(2))
    spectrum = Spectrum.of(ours)
    found = spectrum.apply(torch.exp)
    expected = torch.linalg.matrix_exp(theirs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    ((weight + weight.mT) * found).sum().backward()
    ((weight + weight.mT) * expected).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)


def test_eigenvalues_may_know_of_each_other(matrix):
    """As valences in one cell do: here the common part is the mean of the eigenvalues."""

    def function(m):
        spectrum = Spectrum.of(m)
        values = torch.sigmoid(spectrum.values * spectrum.values.mean())
        slopes = values * (1 - values) * spectrum.values.mean()
        return spectrum.function(values, slopes)

    assert gradcheck(function, matrix.clone().requires_grad_())


def test_a_batch_is_as_many_single_matrices():
    batch = torch.stack([symmetric(values) for values in SPECTRA.values()]).requires_grad_()
    found = Spectrum.of(batch).power(-0.5)
    (gradient,) = torch.autograd.grad(found.square().sum(), batch)
    for index in range(len(batch)):
        alone = batch[index].detach().requires_grad_()
        one = Spectrum.of(alone).power(-0.5)
        torch.testing.assert_close(found[index], one)
        torch.testing.assert_close(gradient[index], torch.autograd.grad(one.square().sum(), alone)[0])


def test_a_root_at_zero_has_a_finite_gradient():
    matrix = symmetric([0.0, 0.0, 1.0]).requires_grad_()
    root = Spectrum.of(matrix).root()
    root.sum().backward()
    assert bool(torch.isfinite(matrix.grad).all())
    torch.testing.assert_close(root @ root, matrix, atol=1e-12, rtol=0)
