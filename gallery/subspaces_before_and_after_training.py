"""Subspaces before and after training

Two modalities with three shared and three private latents behind random perceptrons; encoders are trained through
`CellGMF` by the task and the free energy of the cells. Left: an invariant coordinate of one modality against that of
the other, test samples only, coloured by their label. Right: how well the other modality predicts each channel; what
is above the noise level is a cation. Training finds functions of the shared latents, which are shared as well.
"""

import torch
from matplotlib.figure import Figure

import fusion
from pnp.palette import ANION, CATION, MARKERS, MODALITIES, NEUTRAL

EPOCHS, SIZES = 12, {"first": 24, "second": 20}


class Encoded:
    """A callback that keeps what the encoders make of training and test samples."""

    def __init__(self, features: fusion.Features) -> None:
        self.parts, self.seen = (features.train, features.test), []

    @torch.no_grad()
    def on_epoch(self, epoch: int, model: fusion.FusionModel, features: fusion.Features) -> None:
        """Called before the first epoch and after each."""
        self.seen.append([model.vectors(part.modalities) for part in self.parts])


def draw() -> Figure:
    """Two rows, before and after; test samples on the left, channels of the first modality on the right."""
    features, _ = fusion.shared_private(
        2000, SIZES, shared=3, private=3, noise=0.2, nonlinear=True, classes=3
    )
    features = features.with_split(0)
    watch = Encoded(features)
    recipe = fusion.Recipe(epochs=EPOCHS, extractor=32)
    fusion.train("cell", features, recipe=recipe, seed=0, progress=False, callbacks=[watch])
    figure = Figure(figsize=(9, 6.2), layout="constrained")
    rows = figure.subplots(2, 2, sharex="col", sharey="col", width_ratios=(1, 1.4))
    for (left, right), when, (train, test) in zip(
        rows, ("before training", "after training"), (watch.seen[0], watch.seen[-1]), strict=True
    ):
        found = fusion.dissociate(train)
        a, b = (values[:, 0] for values in found.common(test).values())
        correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
        for label in range(3):
            here = features.test.label == label
            left.plot(a[here], b[here], MARKERS[label], ms=3, color=MODALITIES[label], label=f"label {label}")
        left.set(ylabel="second modality", title=f"{when}: correlation {correlation:.2f}", aspect="equal")
        one = found.channels["first"]
        color = [CATION if z > 0 else ANION for z in one.valences]
        right.bar(range(1, len(color) + 1), one.predictability.tolist(), color=color)
        right.axhline(one.noise_level, color=NEUTRAL, ls=":", label="noise level")
        right.set(
            ylabel="R² from the other modality", title=f"{one.invariant_dimension:.1f} channels invariant"
        )
    rows[1, 0].set_xlabel("first modality, first invariant coordinate")
    rows[1, 1].set_xlabel("channel of the first modality")
    rows[0, 0].legend(loc="upper left", handletextpad=0.1)
    rows[0, 1].legend()
    return figure
