"""How much each decision of a pooled head counts, by samples that it was not trained on."""

import torch

from ..data.features import Features
from ..heads import PooledHead
from ..model import FusionModel
from ..randomness import seeded
from .batch import batch_of, chunks
from .objective import step_loss
from .recipe import Recipe
from .task import Task

PASSES = 20
"""Steps of the fit, each with a pass over the samples or two."""


def fit_weights(
    model: FusionModel, held_out: Features, task: Task, recipe: Recipe, seed: tuple[int, ...]
) -> None:
    r"""Give a :class:`~fusion.heads.PooledHead` the weights with which the recipe's loss on samples is lowest.

    .. math::
        \min_{\theta, \delta} \; N L(\theta, \delta) + \tfrac12 |\theta - \theta_0|^2 + \tfrac12 |\delta|^2

    The start :math:`\theta_0`, equal weights, is what few samples hold on to; :math:`\delta` stays zero where the
    recipe has no missing modality.

    Arguments:
        model: With such a head, in evaluation mode.
        held_out: N samples that the model was not trained on.
        seed: Of the random subsets.
    """
    assert isinstance(model.head, PooledHead)
    exponents = model.head.exponents
    start = exponents.clone()
    optimiser = torch.optim.LBFGS(
        [exponents.requires_grad_()], max_iter=PASSES, line_search_fn="strong_wolfe"
    )

    def objective() -> float:
        summed = (exponents - start).square().sum() / 2
        exponents.grad = torch.autograd.grad(summed, exponents)[0]
        with seeded(*seed):
            for rows in chunks(held_out, recipe.batch_size):
                assert held_out.label is not None
                batch, label = batch_of(held_out, rows, exponents), held_out.label[rows]
                loss = step_loss(model, batch, label, task, recipe)[0] * len(rows)
                exponents.grad += torch.autograd.grad(loss, exponents)[0]
                summed = summed.detach() + loss.detach()
        return float(summed)

    optimiser.step(objective)
    exponents.requires_grad_(False)
