"""Ion fluxes across the edges of the grid."""

from torch import Tensor

from .bernoulli import bernoulli, bernoulli_derivative


def scharfetter_gummel(mobility: Tensor, drop: Tensor, left: Tensor, right: Tensor) -> Tensor:
    r"""Flux from the left to the right node of every edge.

    .. math:: J = \frac{D}{h}\,[B(\delta)\,c_\mathrm{left} - B(-\delta)\,c_\mathrm{right}],
              \qquad \delta = z\,(\phi_\mathrm{right} - \phi_\mathrm{left})

    Exact where field and flux are constant along the edge, so it keeps every Boltzmann state
    :math:`c \propto e^{-z\phi}` at rest; second order otherwise.

    Arguments:
        mobility: :math:`D/h`, broadcastable to the edges.
        drop: :math:`\delta` in thermal voltages.
        left, right: Concentrations at the two nodes of each edge.

    References:
        Scharfetter & Gummel, IEEE Trans. Electron Devices 16, 64 (1969).
    """
    return mobility * (bernoulli(drop) * left - bernoulli(-drop) * right)


def scharfetter_gummel_derivatives(
    mobility: Tensor, drop: Tensor, left: Tensor, right: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Derivatives of :func:`scharfetter_gummel` with respect to `left`, `right` and `drop`."""
    ahead, back = bernoulli(drop), bernoulli(-drop)
    slope = bernoulli_derivative(drop)
    # B'(-x) = -1 - B'(x)
    return mobility * ahead, -mobility * back, mobility * (slope * left - (1 + slope) * right)
