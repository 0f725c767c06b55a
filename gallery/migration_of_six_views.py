"""Migration of six views

Handwritten digits seen by six extractors, from a quadrant of the image to its frequencies. Every line is a channel: what
the other five views predict becomes a cation and migrates beyond the ground *b*, what is the view's own stays.
"""

from matplotlib.figure import Figure

import fusion
from fusion.plotting import plot_migration

VIEWS = ("upper_left", "upper_right", "lower_left", "lower_right", "projections", "frequencies")


def draw() -> Figure:
    """Centre of mass of every channel over time, one panel a view."""
    found = fusion.dissociate(fusion.digits_views(VIEWS).modalities)
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    for ax, (name, channels) in zip(figure.subplots(2, 3).flat, found.channels.items(), strict=True):
        plot_migration(channels, title=name.replace("_", " "), ax=ax)
    return figure
