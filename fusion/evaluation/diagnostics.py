"""What training does to extractors, and what the parts of a fusion layer know."""

from collections.abc import Mapping
from dataclasses import replace
from statistics import fmean

import torch
from torch import Tensor

from ..data.features import Features
from ..extras import require
from ..randomness import seeded
from ..training.loop import VALIDATE, train
from ..training.objective import step_loss
from ..training.recipe import Recipe
from ..training.run import Run
from ..training.task import posed
from .dependence import explained_variance, mutual_information


def diagnose(run: Run, features: Features, alone: Mapping[str, float] | None = None) -> dict[str, float]:
    """Figures of one run, each the mean over the modalities, on its test samples that lack nothing.

    `encoder damage`: see :func:`encoder_damage`, if `alone` is given. `gradient alignment`: see
    :func:`gradient_alignment`, for layers with losses of their own. For layers that tell invariant from
    specific parts `origin of invariant` and `origin of specific`: see :func:`origin`; `mutual information`
    (nats, :func:`~fusion.evaluation.dependence.mutual_information`) and `R²` of a modality's specific part
    given its invariant part (:func:`~fusion.evaluation.dependence.explained_variance`).

    Arguments:
        run: What :func:`train` returned.
        features: Those of the training, or with a split of their own.
        alone: What :func:`probes_alone` returned.

    Raises:
        ValueError: A modality of the run that is missing, or no sample that has all.
        ModuleNotFoundError: scikit-learn is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> data = data.with_split(0)
        >>> run = fusion.train("gmf", data, recipe=fusion.Recipe(epochs=1), seed=0, progress=False)
        >>> sorted(fusion.diagnose(run, data))
        ['R²', 'gradient alignment', 'mutual information', 'origin of invariant', 'origin of specific']
    """
    found = {}
    if alone is not None:
        found["encoder damage"] = fmean(encoder_damage(run, features, alone).values())
    if alignment := gradient_alignment(run, features):
        found["gradient alignment"] = fmean(alignment.values())
    test = _part(run, features, "test")
    invariant, specific = run.parts(test)
    if invariant:
        first, last = run.parts(_part(run, features, "train"))
        found["origin of invariant"] = origin(first, invariant)
        found["origin of specific"] = origin(last, specific)
        pairs = [(invariant[name], specific[name]) for name in run.dims]
        found["mutual information"] = fmean(mutual_information(*pair) for pair in pairs)
        found["R²"] = fmean(explained_variance(*pair) for pair in pairs)
    return found


def probes_alone(
    features: Features, recipe: Recipe, seed: int = 0, task: str | None = None
) -> dict[str, float]:
    """Linear probe of each modality's extractor that was trained with its own head and nothing else.

    The extractors and the recipe are those of a joint training, but for the loss: that of each modality alone
    under late fusion, where no extractor sees another's gradient.

    Raises:
        ValueError: A recipe without extractors, or what :func:`train` finds wrong.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    if recipe.extractor is None:
        raise ValueError(
            "extractor must be set in the recipe: without extractors there is nothing to damage."
        )
    single = replace(recipe, all_present=False, random_subsets=False, each_alone=True)
    return probes(train("late", features, recipe=single, seed=seed, task=task, progress=False), features)


def encoder_damage(run: Run, features: Features, alone: Mapping[str, float]) -> dict[str, float]:
    """How much joint training has cost (below 0) or gained (above 0) each extractor, `{modality: difference}`.

    Score of a linear probe of the extractor's output after joint training, less that of the extractor trained
    alone from the same initial weights, as :func:`probes_alone` gives it.
    """
    together = probes(run, features)
    return {name: together[name] - alone[name] for name in run.dims}


def probes(run: Run, features: Features) -> dict[str, float]:
    """Test score of a linear probe on each modality's encoded features: accuracy, or R² of a regression.

    The probe is fitted to the run's training samples: logistic or ridge regression, on standardised inputs. It
    takes vectors: where an extractor gives the steps of a sequence, or there is none, their mean.
    """
    train_part, test_part = _part(run, features, "train"), _part(run, features, "test")
    with torch.no_grad():
        inputs, unseen = (run.model.vectors(*run.batch(part)) for part in (train_part, test_part))
    assert train_part.label is not None
    assert test_part.label is not None
    return {name: _probe(inputs[name], train_part.label, unseen[name], test_part.label) for name in run.dims}


def gradient_alignment(run: Run, features: Features) -> dict[str, float]:
    r"""Cosine between the gradients of the task's loss and of the layer's own losses, for each extractor.

    .. math:: \cos(\nabla_{\theta_m} L_\mathrm{task}, \nabla_{\theta_m} \sum_k R_k)

    with the recipe's loss on the test samples and :math:`\theta_m` the extractor's parameters, or the features
    themselves where there is no extractor. Below 0 the two fight; 0 if either gradient is zero. Empty if
    the layer has no losses.
    """
    test = _part(run, features, "test")
    model = run.model.eval()
    batch = run.batch(test)
    values = {name: one.requires_grad_() for name, one in batch.features.items()}
    own = model(*batch).losses
    if not own:
        return {}
    task_only = replace(run.recipe, reconstruction_weight=0.0)
    assert test.label is not None
    with seeded(run.seed, VALIDATE):
        task_loss, _ = step_loss(model, batch, test.label, run.task, task_only)
    found = {}
    for name in run.dims:
        extractor = list(model.encoders[name].parameters()) if name in model.encoders else []
        wanted: list[Tensor] = [*extractor] or [values[name]]
        first, second = (
            _flat(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True), wanted)
            for loss in (task_loss, torch.stack(list(own.values())).sum())
        )
        found[name] = float(torch.cosine_similarity(first, second, dim=0, eps=1e-30))
    return found


def origin(training: Mapping[str, Tensor], test: Mapping[str, Tensor]) -> float:
    """Accuracy of a linear probe that tells from which of the M modalities a part comes; chance is 1/M.

    Parts `{name: (N, l)}` of unequal length are projected to the shortest one by fixed random orthonormal
    directions, because zeros at the end would tell.
    """
    shortest = min(values.shape[-1] for values in training.values())
    projected: list[list[Tensor]] = [[], []]
    for number, name in enumerate(training):
        length = training[name].shape[-1]
        directions = torch.eye(length, dtype=torch.float64)
        if length > shortest:
            with seeded(0, number):
                directions = torch.linalg.qr(torch.randn(length, shortest, dtype=torch.float64)).Q
        for place, parts in zip(projected, (training, test), strict=True):
            place.append(parts[name].detach().to("cpu", torch.float64) @ directions)
    labels = [
        torch.arange(len(parts)).repeat_interleave(torch.tensor([len(one) for one in parts]))
        for parts in projected
    ]
    return _probe(torch.cat(projected[0]), labels[0], torch.cat(projected[1]), labels[1])


def _probe(inputs: Tensor, label: Tensor, unseen: Tensor, truth: Tensor) -> float:
    linear = require("sklearn.linear_model")
    model = linear.RidgeCV() if label.is_floating_point() else linear.LogisticRegression(max_iter=1000)
    scaled = require("sklearn.pipeline").make_pipeline(
        require("sklearn.preprocessing").StandardScaler(), model
    )
    x, y, new, right = (values.detach().cpu().numpy() for values in (inputs, label, unseen, truth))
    return float(scaled.fit(x, y).score(new, right))


def _part(run: Run, features: Features, part: str) -> Features:
    """The samples of a part that have every modality."""
    chosen = posed(features.select(list(run.dims)), run.task.kind, run.seed).subset(part)
    have = torch.ones(len(chosen), dtype=torch.bool, device=chosen.device)
    for values in chosen.present.values():
        have = have & values
    if not bool(have.any()):
        raise ValueError(f"no {part} sample has every modality, so the layer cannot be looked into.")
    return chosen.rows(have)


def _flat(gradients: tuple[Tensor | None, ...], like: list[Tensor]) -> Tensor:
    return torch.cat(
        [
            torch.zeros_like(one).flatten() if g is None else g.flatten()
            for g, one in zip(gradients, like, strict=True)
        ]
    )
