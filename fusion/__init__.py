"""Multimodal fusion layers that treat features as ions, and plain layers to measure them against.

    features -> ions -> cell -> subspaces -> layer -> train -> evaluate -> plot

:func:`dissociate` finds what modalities share and what is their own; :class:`GMF`, :class:`CellGMF` and the
baselines are layers of one interface; :func:`train`, :func:`evaluate` and :func:`compare` use them.
"""

from .data.check import check_file
from .data.conflict import with_conflicts
from .data.datasets import digits_two_views, digits_views, shared_private
from .data.feature_file import load_features, save_features
from .data.features import Features
from .encoders import AttentionEncoder, RecurrentEncoder, ResidualEncoder, SequenceEncoder, VectorEncoder
from .evaluation.comparison import Comparison, compare
from .evaluation.confidence import Confidence, calibrate, calibration_error
from .evaluation.dependence import explained_variance, mutual_information
from .evaluation.diagnostics import diagnose
from .evaluation.scores import evaluate
from .grounded.migration_record import MigrationRecord, load_migration, save_migration
from .grounded.subspaces import Channels, Subspaces, dissociate
from .grounded.subspaces_file import load_subspaces, save_subspaces
from .grounded.transport import channel_cell, migrate
from .layers.cell_gmf import CellGMF
from .layers.cross_attention import CrossAttention
from .layers.gated import GatedFusion
from .layers.gmf import GMF
from .layers.layer import Fused, FusionLayer
from .layers.low_rank import LowRankTensorFusion
from .layers.mbt import MBT
from .layers.misa import MISA
from .layers.perceiver import Perceiver
from .layers.plain import Concatenation, LateFusion, Sum
from .layers.registry import LAYERS, find_layer
from .layers.scfae import SCFAE
from .layers.stacked import Stacked
from .model import FusionModel, Prediction
from .training.callback import Callback
from .training.loop import train
from .training.migration_recorder import MigrationRecorder
from .training.recipe import Recipe
from .training.run import Run, load_run

__all__ = [
    "GMF",
    "LAYERS",
    "MBT",
    "MISA",
    "SCFAE",
    "AttentionEncoder",
    "Callback",
    "CellGMF",
    "Channels",
    "Comparison",
    "Concatenation",
    "Confidence",
    "CrossAttention",
    "Features",
    "Fused",
    "FusionLayer",
    "FusionModel",
    "GatedFusion",
    "LateFusion",
    "LowRankTensorFusion",
    "MigrationRecord",
    "MigrationRecorder",
    "Perceiver",
    "Prediction",
    "Recipe",
    "RecurrentEncoder",
    "ResidualEncoder",
    "Run",
    "SequenceEncoder",
    "Stacked",
    "Subspaces",
    "Sum",
    "VectorEncoder",
    "calibrate",
    "calibration_error",
    "channel_cell",
    "check_file",
    "compare",
    "diagnose",
    "digits_two_views",
    "digits_views",
    "dissociate",
    "evaluate",
    "explained_variance",
    "find_layer",
    "load_features",
    "load_migration",
    "load_run",
    "load_subspaces",
    "migrate",
    "mutual_information",
    "save_features",
    "save_migration",
    "save_subspaces",
    "shared_private",
    "train",
    "with_conflicts",
]
