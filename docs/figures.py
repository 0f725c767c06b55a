"""Make the figures of the pages: python docs/figures.py [NAME ...]."""

import sys
from pathlib import Path

import matplotlib
import torch

import fusion
import pnp
from fusion.demo import canonical_cell
from fusion.plotting import plot_migration, plot_parts, plot_sharing
from fusion.training_pictures import plot_course, plot_training
from pnp.palette import STYLE
from pnp.plotting import plot_profiles

IMAGES = Path(__file__).parent / "images"


def overview() -> None:
    """The picture of the README: ions in a cell, and feature channels in a cell."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.9), layout="constrained")
    times = torch.tensor([0.0, 3e-7, 1.5e-6, 1e-4])
    charging = pnp.solve_transient(canonical_cell(), times=times)
    plot_profiles(charging, moments=range(len(times)), log=True, ax=left)
    left.set_title("ions in an electrolytic cell: 1 mM salt at ±100 mV")
    features = fusion.digits_two_views()
    channels = fusion.dissociate(features.modalities).channels["pixels"]
    plot_migration(channels, ax=right)
    right.set_title("channels of a modality as ions in a cell")
    figure.get_layout_engine().set(wspace=0.06)  # labels of two axes meet between them
    figure.savefig(IMAGES / "overview.png", dpi=110)
    pyplot.close(figure)


def sharing() -> None:
    """Three modalities that share latents in pairs and all together."""
    from matplotlib import pyplot

    features, _ = fusion.shared_private(
        3000, {"audio": 30, "video": 24, "text": 20}, shared=3, private=4, pairwise=2, noise=0.5
    )
    found = fusion.dissociate(features.modalities)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 3.9), layout="constrained")
    plot_sharing(found.shared_by()["audio"], title="audio", ax=left)
    plot_parts(found, ax=right)
    figure.savefig(IMAGES / "sharing.png", dpi=110)
    pyplot.close(figure)


def training() -> None:
    """How training the grounded layer moves the channels of encoders, before, during and after."""
    from matplotlib import pyplot

    features, _ = fusion.shared_private(
        3000, {"audio": 32, "video": 24}, shared=5, private=5, noise=0.2, nonlinear=True
    )
    recorder = fusion.MigrationRecorder()
    recipe = fusion.Recipe(extractor=64)
    fusion.train("cell", features.with_split(0), recipe=recipe, callbacks=[recorder], progress=False)
    for name, axes in (
        ("training", plot_training(recorder.record, "audio")),
        ("course", [plot_course(recorder.record, "audio")]),
    ):
        axes[0].figure.savefig(IMAGES / f"{name}.png", dpi=110)
        pyplot.close(axes[0].figure)


if __name__ == "__main__":
    matplotlib.use("agg")
    matplotlib.rcParams.update(STYLE)
    torch.set_num_threads(1)
    made = {one.__name__: one for one in (overview, sharing, training)}
    for name in sys.argv[1:] or made:
        made[name]()
