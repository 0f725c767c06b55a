"""How good a trained model is with all modalities, and with each subset of them missing."""

from itertools import combinations, permutations
from statistics import fmean

import torch
from torch import Tensor

from ..data.features import PARTS, Features
from ..extras import require
from ..layers.presence import Presence
from ..training.checkpoint import fingerprint
from ..training.run import Run
from ..training.task import Task, posed
from .retrieval import retrieval_scores

Scores = dict[str, dict[str, float]]
"""Case → metric → value."""

INCOMPLETE = "incomplete"
"""The case that is the mean of all with something missing."""

EVERY_SUBSET = 6
"""Most modalities of which every subset is a case; of more there would be hundreds."""


def evaluate(run: Run, features: Features, *, part: str = "test") -> Scores:
    """Score a run with all modalities, and with every subset of them missing.

    Cases are those of :func:`cases`; a case that leaves a sample nothing, because the sample itself lacks
    what the case keeps, is scored on the others, and left out if there are none. For retrieval the cases are
    the ordered pairs `a → b`: queries of modality *a* alone, a gallery of *b* alone, and `all`, their mean.

    A classification has the metrics `accuracy`, `macro_f1` and `auc` (each class against the rest, mean over
    the classes that occur; 0.5 where only one does); the detection of conflicts the same, `auc` first; a
    regression `mae` (in the units of the label) and `correlation` (Pearson's; 0 where the predictions do not
    vary); retrieval those of :func:`~fusion.evaluation.retrieval.retrieval_scores`, and the same of the
    layer's own invariant parts, `invariant_map@10` and so on, where it has them.

    Arguments:
        run: What :func:`train` returned.
        features: With the modalities of the run. If they have no split, they must be those of the training,
            because the run's seed then splits them again in the same way.
        part: `test`, `validation` or `train`, or `all` samples whatever the split.

    Raises:
        ValueError: No label or of another kind, an unknown or empty part, a missing modality, or other
            features than those of the training without a split of their own.
        ModuleNotFoundError: scikit-learn is not installed.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(500, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> run = fusion.train("sum", data, recipe=fusion.Recipe(epochs=1), progress=False)
        >>> list(fusion.evaluate(run, data))
        ['all', 'without a', 'without b']
    """
    chosen = labelled(run, features, part)
    if run.task.kind == "retrieval":
        return _retrieval(run, chosen)
    assert chosen.label is not None
    found = {}
    for case, names in cases(list(run.dims)).items():
        present, some = pattern(chosen, names)
        if bool(some.any()):
            rows = chosen.rows(some)
            here = {name: values[some] for name, values in present.items()}
            found[case] = scores(run.task, run.logits(rows, here), chosen.label[some])
    return found


def cases(names: list[str]) -> dict[str, tuple[str, ...]]:
    """Case → the modalities that are present, for every case that :func:`evaluate` looks at.

    `all`; `without <name>` for each if there are several; of up to six modalities every smaller subset of two
    or more, `a + b`; and of more than two `only <name>` (of two, one without the other is the other alone).
    """
    found = {"all": tuple(names)}
    if len(names) == 1:
        return found
    found |= {f"without {out}": tuple(name for name in names if name != out) for out in names}
    if len(names) <= EVERY_SUBSET:
        for size in range(len(names) - 2, 1, -1):
            found |= {" + ".join(subset): subset for subset in combinations(names, size)}
    if len(names) > 2:
        found |= {f"only {name}": (name,) for name in names}
    return found


def pattern(features: Features, names: tuple[str, ...]) -> tuple[Presence, Tensor]:
    """Which of the named modalities samples have, `{modality: (N,)}`, and which samples have any, `(N,)`."""
    present = {}
    for name in features.modalities:
        have = torch.full((len(features),), name in names, device=features.device)
        present[name] = have & features.present[name] if name in features.present else have
    return present, torch.stack(list(present.values())).any(dim=0)


def scores(task: Task, logits: Tensor, label: Tensor) -> dict[str, float]:
    """Metric → value for logits `(N, outputs)` of labels `(N,)`; of any task but retrieval."""
    metrics = require("sklearn.metrics")
    predicted = task.decide(logits)
    truth, guess = label.cpu().numpy(), predicted.cpu().numpy()
    if task.classifies:
        auc = _auc(logits.softmax(dim=-1), label)
        found = {
            "accuracy": float(metrics.accuracy_score(truth, guess)),
            "macro_f1": float(metrics.f1_score(truth, guess, average="macro", zero_division=0)),
        }
        return {"auc": auc} | found if task.kind == "conflict" else found | {"auc": auc}
    varies = bool(truth.std() > 0 and guess.std() > 0)
    correlation = torch.corrcoef(torch.stack([label, predicted.to(label)]))[0, 1] if varies else 0.0
    return {"mae": float(metrics.mean_absolute_error(truth, guess)), "correlation": float(correlation)}


def with_mean_of_incomplete(scores: Scores) -> Scores:
    """Scores with the case `incomplete`, the mean of all others but `all`, after it; as they are for retrieval."""
    rest = {case: metrics for case, metrics in scores.items() if case != "all"}
    if not rest or any("→" in case for case in rest):
        return scores
    means = {metric: fmean(metrics[metric] for metrics in rest.values()) for metric in scores["all"]}
    return {"all": scores["all"], INCOMPLETE: means} | rest


def is_better_higher(metric: str) -> bool:
    """Whether more of a metric is better: of all but `mae`."""
    return metric != "mae"


def _auc(probabilities: Tensor, label: Tensor) -> float:
    roc_auc_score = require("sklearn.metrics").roc_auc_score
    found = []
    for number in label.unique().tolist():
        here = (label == number).cpu().numpy()
        if 0 < here.sum() < len(here):
            found.append(float(roc_auc_score(here, probabilities[:, number].cpu().numpy())))
    return sum(found) / len(found) if found else 0.5


def _retrieval(run: Run, features: Features) -> Scores:
    assert features.label is not None
    names = list(run.dims)
    alone = {name: pattern(features, (name,)) for name in names}
    rows = {name: features.rows(some) for name, (_, some) in alone.items()}
    label = {name: features.label[some] for name, (_, some) in alone.items()}
    here = {
        name: {m: values[some] for m, values in present.items()} for name, (present, some) in alone.items()
    }
    embedded = {name: run.predict(rows[name], here[name]) for name in names}
    invariant = {name: run.parts(rows[name], here[name])[0].get(name) for name in names}
    found: Scores = {"all": {}}
    for one, other in permutations(names, 2):
        case = found[f"{one} → {other}"] = retrieval_scores(
            embedded[one], label[one], embedded[other], label[other]
        )
        parts = invariant[one], invariant[other]
        if parts[0] is not None and parts[1] is not None:
            own = retrieval_scores(parts[0], label[one], parts[1], label[other])
            case |= {f"invariant_{metric}": value for metric, value in own.items()}
    pairs = [case for name, case in found.items() if name != "all"]
    found["all"] = {metric: fmean(case[metric] for case in pairs) for metric in pairs[0]}
    return found


def labelled(run: Run, features: Features, part: str) -> Features:
    """A part of the features with labels that suit the run; arguments and errors are those of :func:`evaluate`."""
    chosen = _samples(run, features, part)
    _check_label(run.task, chosen)
    return chosen


def _samples(run: Run, features: Features, part: str) -> Features:
    if part not in (*PARTS, "all"):
        raise ValueError(f"part must be one of {', '.join(PARTS)}, all, got {part!r}.")
    chosen = features.select(list(run.dims))
    split = posed(chosen, run.task.kind, run.seed)
    if part == "all":
        return split
    if features.split is None and fingerprint(split) != run.data:
        raise ValueError(
            "features have no split and are not those of the training, so which samples are test samples is "
            "not known: give them a split, or score part 'all'."
        )
    return split.subset(part)


def _check_label(task: Task, features: Features) -> None:
    suits = {"classification": "classification", "conflict": "classification", "regression": "regression"}
    if features.task != suits.get(task.kind, features.task):
        raise ValueError(f"label must suit the {task.kind} of the run, got {features.task or 'no label'}.")
    if task.classifies and features.classes is not None and features.classes > task.outputs:
        raise ValueError(
            f"label must be one of the {task.outputs} classes of the run, got class {features.classes - 1}."
        )
