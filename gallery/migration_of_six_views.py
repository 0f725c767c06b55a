"""Migration of six views

Handwritten digits seen by six extractors, from a quadrant of the image to its frequencies. Every line is a channel:
what the other five views predict becomes a cation and migrates beyond the ground *b*, what is the view's own stays.
"""

import torch
from matplotlib.figure import Figure

import fusion
from fusion.plotting import draw_colours, draw_paths, predictability_norm

MOMENTS, NODES = 22, 41
VIEWS = ("upper_left", "upper_right", "lower_left", "lower_right", "projections", "frequencies")


def draw() -> Figure:
    """Centre of mass of every channel over time, one panel a view."""
    channels = fusion.dissociate(fusion.digits_views(VIEWS).modalities).channels
    level = max(one.noise_level for one in channels.values())
    norm = predictability_norm(torch.cat([one.predictability for one in channels.values()]), level)
    figure = Figure(figsize=(10, 5.6), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    times = torch.cat([torch.zeros(1), torch.logspace(-5, 0.3, MOMENTS)]).double()
    for ax, (name, one) in zip(axes.flat, channels.items(), strict=False):
        draw_paths(ax, one, fusion.migrate(one.cell, times=times, nodes=NODES, relative=1e-2), norm)
        ax.set_title(f"{name.replace('_', ' ')}: {one.invariant_dimension:.1f} of {len(one.gates)} invariant")
        ax.label_outer()
    for ax in axes[:, 0]:
        ax.set_ylabel("centre of mass (L)")
    draw_colours(norm, list(axes.flat))
    return figure
