"""Samples whose modalities contradict each other, made of labelled samples that do not."""

from dataclasses import replace

import torch

from ..randomness import seeded
from .features import PARTS, Features


def with_conflicts(
    features: Features, *, fraction: float = 0.5, modality: str | None = None, seed: int = 0
) -> Features:
    """Pose the task of telling whether the modalities of a sample belong together, as in deep-fake detection.

    In a random `fraction` of the samples one modality is replaced by that of a sample of another class from
    the same part of the split, so that no part sees another's features. The new label is 1 there and 0
    elsewhere. Each modality alone looks the same with and without conflict (up to the proportions of the
    classes), so only what lies between modalities can tell.

    Arguments:
        features: Labelled with classes; modalities that are absent (`present`) travel with their samples.
        fraction: 0 to 1, of the samples of each part.
        modality: The one that is replaced; None: drawn for each sample.
        seed: Of everything drawn.

    Raises:
        ValueError: Labels that are no classes, a part of the split with a single class, a fraction out of
            range or an unknown modality.

    Example:
        >>> import fusion
        >>> data, _ = fusion.shared_private(100, {"a": 8, "b": 6}, shared=2, private=2, seed=0)
        >>> mixed = fusion.with_conflicts(data, seed=0)
        >>> mixed.label.bincount().tolist()  # half of the samples got one modality of another class
        [50, 50]
    """
    if features.task != "classification" or features.label is None:
        raise ValueError(f"label must hold classes to make conflicts of, got {features.task or 'no label'}.")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, got {fraction}.")
    names = list(features.modalities)
    if modality is not None and modality not in names:
        raise ValueError(f"modality must be one of {', '.join(names)}, got {modality!r}.")
    old = features.label.cpu()
    part = torch.zeros_like(old) if features.split is None else features.split.cpu()
    donor = torch.arange(len(features))
    which = torch.full((len(features),), -1)
    with seeded(seed):
        for number in part.unique().tolist():
            rows = (part == number).nonzero().squeeze(-1)
            chosen = rows[torch.randperm(len(rows))[: round(fraction * len(rows))]]
            if len(chosen) and len(old[rows].unique()) < 2:
                where = "the samples" if features.split is None else f"the {PARTS[number]} samples"
                raise ValueError(f"label must hold two classes or more in {where} to make conflicts of.")
            for row in chosen.tolist():
                others = rows[old[rows] != old[row]]
                donor[row] = others[torch.randint(len(others), ())]
            drawn = torch.randint(len(names), (len(chosen),))
            which[chosen] = drawn if modality is None else names.index(modality)
    sources = {
        name: torch.where(which == place, donor, torch.arange(len(features))).to(features.device)
        for place, name in enumerate(names)
    }
    return replace(
        features,
        modalities={name: values[sources[name]] for name, values in features.modalities.items()},
        lengths={name: values[sources[name]] for name, values in features.lengths.items()},
        present={name: values[sources[name]] for name, values in features.present.items()},
        label=(which >= 0).long().to(features.device),
    )
