r"""Gradients of a solution by the implicit function theorem.

At a solution :math:`R(u, p) = 0`, one more Newton step with the Jacobian held constant,

.. math:: u(p) = u^* - J^{-1} R(u^*, p),

has the value :math:`u^*` and the exact derivative :math:`-J^{-1}\,\partial R/\partial p`; in reverse mode
that is one transposed solve. The iteration itself is not recorded, so memory does not grow with it. Second
derivatives are not exact, because J is a constant here.
"""

from torch import Tensor

from ..scaling import State
from .linear import Factorisation


def attach_gradient(state: State, factorisation: Factorisation, residual: tuple[Tensor, Tensor]) -> State:
    """`state` as a differentiable function of what `residual` (evaluated at `state`) depends on.

    The value stays that of `state`: the residual is rounding there, and is not to be added.
    """
    step = factorisation.solve(*residual)
    return State(
        state.concentrations - (step.concentrations - step.concentrations.detach()),
        state.potential - (step.potential - step.potential.detach()),
    )
