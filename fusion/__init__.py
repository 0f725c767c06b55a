"""Multimodal fusion layers that treat features as ions, and plain layers to measure them against.

    features -> ions -> cell -> subspaces -> layer -> train -> evaluate -> plot

:func:`dissociate` finds what modalities share and what is their own; :class:`GMF`, :class:`CellGMF` and the
baselines are layers of one interface; :func:`train`, :func:`evaluate` and :func:`compare` use them.
"""

from .baselines import Concatenation, LateFusion, Sum
from .cell_gmf import CellGMF
from .comparison import Comparison, compare
from .datasets import digits_two_views, shared_private
from .evaluation import evaluate
from .feature_file import load_features, save_features
from .features import Features
from .gmf import GMF
from .layer import Fused, FusionLayer
from .model import FusionModel, Prediction
from .recipe import Recipe
from .registry import LAYERS, find_layer
from .run import Run, load_run
from .subspaces import Channels, Subspaces, dissociate
from .training import train
from .transport import channel_cell, migrate

__all__ = [
    "GMF",
    "LAYERS",
    "CellGMF",
    "Channels",
    "Comparison",
    "Concatenation",
    "Features",
    "Fused",
    "FusionLayer",
    "FusionModel",
    "LateFusion",
    "Prediction",
    "Recipe",
    "Run",
    "Subspaces",
    "Sum",
    "channel_cell",
    "compare",
    "digits_two_views",
    "dissociate",
    "evaluate",
    "find_layer",
    "load_features",
    "load_run",
    "migrate",
    "save_features",
    "shared_private",
    "train",
]
