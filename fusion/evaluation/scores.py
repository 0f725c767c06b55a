"""How good a trained model is with all modalities, without each one, and with each one alone."""

import torch
from torch import Tensor

from ..data.features import PARTS, Features
from ..extras import require
from ..layers.presence import Presence, everywhere, only, without
from ..training.checkpoint import fingerprint
from ..training.run import Run
from ..training.task import Task

Scores = dict[str, dict[str, float]]
"""Case → metric → value."""


def evaluate(run: Run, features: Features, *, part: str = "test") -> Scores:
    """Score a run on labelled features, with all modalities and with some missing.

    Cases are `all`, `without <name>` for each modality, and with more than two modalities `only <name>`.
    A classification has the metric `accuracy`; a regression `mae` (in the units of the label) and
    `correlation` (Pearson's; 0 where the predictions do not vary).

    Arguments:
        run: What :func:`train` returned.
        features: With the modalities of the run. If they have no split, they must be those of the training,
            because the run's seed then splits them again in the same way.
        part: `test`, `validation` or `train`, or `all` samples whatever the split.

    Raises:
        ValueError: No label or of another kind, an unknown or empty part, a missing modality, or other
            features than those of the training without a split of their own.
        ModuleNotFoundError: scikit-learn is not installed.
    """
    chosen = _samples(run, features, part)
    _check_label(run.task, chosen)
    assert chosen.label is not None
    label, batch = chosen.label, [len(chosen)]
    return {
        case: scores(run.task, run.predict(chosen, present), label)
        for case, present in cases(list(run.dims), batch, chosen.device).items()
    }


def cases(names: list[str], batch: list[int], device: torch.device) -> dict[str, Presence]:
    """Case → pattern of presence, for every case that :func:`evaluate` looks at."""
    patterns = {"all": everywhere(names, batch, device)}
    patterns |= {f"without {name}": without(name, names, batch, device) for name in names}
    if len(names) > 2:  # of two, one without the other is the other alone
        patterns |= {f"only {name}": only(name, names, batch, device) for name in names}
    return patterns


def scores(task: Task, predicted: Tensor, label: Tensor) -> dict[str, float]:
    """Metric → value for predictions `(N,)` of labels `(N,)`."""
    metrics = require("sklearn.metrics")
    truth, guess = label.cpu().numpy(), predicted.cpu().numpy()
    if task.kind == "classification":
        return {"accuracy": float(metrics.accuracy_score(truth, guess))}
    varies = bool(truth.std() > 0 and guess.std() > 0)
    correlation = torch.corrcoef(torch.stack([label, predicted.to(label)]))[0, 1] if varies else 0.0
    return {"mae": float(metrics.mean_absolute_error(truth, guess)), "correlation": float(correlation)}


def _samples(run: Run, features: Features, part: str) -> Features:
    if part not in (*PARTS, "all"):
        raise ValueError(f"part must be one of {', '.join(PARTS)}, all, got {part!r}.")
    pooled = features.select(list(run.dims)).pooled()
    if part == "all":
        return pooled
    split = pooled.with_split(run.seed)
    if features.split is None and fingerprint(split) != run.data:
        raise ValueError(
            "features have no split and are not those of the training, so which samples are test samples is "
            "not known: give them a split, or score part 'all'."
        )
    return split.subset(part)


def _check_label(task: Task, features: Features) -> None:
    if features.task != task.kind:
        raise ValueError(f"label must suit the {task.kind} of the run, got {features.task or 'no label'}.")
    if features.classes is not None and features.classes > task.outputs:
        raise ValueError(
            f"label must be one of the {task.outputs} classes of the run, got class {features.classes - 1}."
        )
