r"""Gradients of a solution by the implicit function theorem.

At a solution :math:`R(u, p) = 0`, one more Newton step with the Jacobian held constant,

.. math:: u(p) = u^* - J^{-1} R(u^*, p),

has the value :math:`u^*` and the exact derivative :math:`-J^{-1}\,\partial R/\partial p`; in reverse mode
that is one transposed solve. The iteration itself is not recorded, so memory does not grow with it. Second
derivatives are not exact, because J is a constant here.
"""

import torch

from ..system import State
from .newton import Problem


def attach_gradient(problem: Problem, state: State) -> State:
    """`state`, a solution of `problem`, as a differentiable function of what the problem depends on.

    The value stays that of `state`: the residual is rounding there, and is not to be added.
    """
    with torch.no_grad():
        factorisation = problem.detach().factorise(state.detach())
    step = factorisation.solve(*problem.residual(state.detach()))
    return State(
        state.concentrations.detach() - (step.concentrations - step.concentrations.detach()),
        state.fields.detach() - (step.fields - step.fields.detach()),
    )
