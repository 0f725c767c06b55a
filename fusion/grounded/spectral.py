r"""Functions of symmetric matrices whose gradients are right at repeated eigenvalues too.

For :math:`S = V\,\mathrm{diag}(\lambda)\,V^T` a function acts on the eigenvalues,
:math:`f(S) = V\,\mathrm{diag}(f)\,V^T`. Eigenvectors of equal eigenvalues are anyone's choice and have no
gradient; the function has one all the same,

.. math::
    \mathrm{d}f(S) = V\big(\Gamma \circ (V^T\,\mathrm{d}S\,V)\big)V^T, \qquad
    \Gamma_{ij} = \frac{f_i - f_j}{\lambda_i - \lambda_j}, \quad
    \Gamma_{ij} = \tfrac12(f'_i + f'_j) \text{ where } \lambda_i \approx \lambda_j .

References:
    | Yu. L. Daleckii & S. G. Krein, AMS Translations 47, 1 (1965)
    | N. J. Higham, Functions of Matrices, SIAM (2008), theorem 3.11
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

COINCIDENT = 1e-6
"""Eigenvalues nearer than this share of the largest: differences would lose more digits than slopes do."""
LEAST = 1e-13
"""What a root takes for a rounded zero."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Eigenvalues and eigenvectors of symmetric matrices.

    Attributes:
        matrix: `(*batch, l, l)`, symmetric.
        values: `(*batch, l)`, ascending; differentiable.
        vectors: `(*batch, l, l)`, in columns; constants.
    """

    matrix: Tensor
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> "Spectrum":
        """The spectrum of a matrix; what of it is not symmetric is left out."""
        matrix = (matrix + matrix.mT) / 2
        values, vectors = _Eigenvalues.apply(matrix)
        return cls(matrix, values, vectors)

    def function(self, values: Tensor, slopes: Tensor) -> Tensor:
        """The matrix with the same eigenvectors and other eigenvalues, `(*batch, l, l)`.

        Arguments:
            values: :math:`f`, `(*batch, l)`, computed from `self.values` and perhaps from other things that have
                gradients; eigenvalues may know of each other.
            slopes: How :math:`f` changes with its own eigenvalue while everything else stays, `(*batch, l)`.
        """
        differences = _divided_differences(self.values.detach(), values.detach(), slopes.detach())
        found: Tensor = _Function.apply(self.matrix, values, self.vectors, differences)
        return found

    def apply(self, function: Callable[[Tensor], Tensor]) -> Tensor:
        """The function of a matrix that acts on each eigenvalue alone; `function` is elementwise."""
        return self.function(function(self.values), slope_of(function, self.values))

    def power(self, exponent: float) -> Tensor:
        """A power of a positive definite matrix, `(*batch, l, l)`."""
        return self.apply(lambda x: x**exponent)

    def root(self) -> Tensor:
        """The square root of a positive semidefinite matrix; eigenvalues that rounding made of zero are zero."""
        return self.apply(root)


def slope_of(function: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """The derivative of an elementwise function, a constant."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        return torch.autograd.grad(function(points).sum(), points)[0]


def root(values: Tensor) -> Tensor:
    """Elementwise root, zero with a slope of zero up to :data:`LEAST`: no training survives an infinite gradient."""
    return torch.where(values > LEAST, values.clamp(min=LEAST).sqrt(), torch.zeros_like(values))


class _Eigenvalues(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, matrix: Tensor) -> tuple[Tensor, Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        context.save_for_backward(vectors)
        context.mark_non_differentiable(vectors)
        return values, vectors

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        (vectors,) = context.saved_tensors
        return (vectors * gradients[0].unsqueeze(-2)) @ vectors.mT


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, matrix: Tensor, values: Tensor, vectors: Tensor, differences: Tensor) -> Tensor:
        context.save_for_backward(vectors, differences)
        return (vectors * values.unsqueeze(-2)) @ vectors.mT

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        vectors, differences = context.saved_tensors
        inner = vectors.mT @ ((gradients[0] + gradients[0].mT) / 2) @ vectors
        of_matrix = vectors @ (differences * inner) @ vectors.mT
        return of_matrix, inner.diagonal(dim1=-2, dim2=-1), None, None


def _divided_differences(points: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
    """Off the diagonal, where a change of the matrix turns its eigenvectors; zero on it."""
    apart = points.unsqueeze(-1) - points.unsqueeze(-2)
    near = apart.abs() <= COINCIDENT * points.abs().amax(-1)[..., None, None]
    rise = values.unsqueeze(-1) - values.unsqueeze(-2)
    mean_slope = (slopes.unsqueeze(-1) + slopes.unsqueeze(-2)) / 2
    found = torch.where(near, mean_slope, rise / torch.where(near, torch.ones_like(apart), apart))
    return found - torch.diag_embed(found.diagonal(dim1=-2, dim2=-1))
