"""Fusion layers by name, with their usual settings."""

from collections.abc import Callable, Mapping

from .cell_gmf import CellGMF
from .cross_attention import CrossAttention
from .gated import GatedFusion
from .gmf import GMF
from .layer import FusionLayer
from .low_rank import LowRankTensorFusion
from .mbt import MBT
from .misa import MISA
from .perceiver import Perceiver
from .plain import Concatenation, LateFusion, Sum
from .scfae import SCFAE
from .stacked import Stacked

Maker = Callable[[Mapping[str, int]], FusionLayer]
"""A function that builds a layer from `dims`."""


def behind_gmf(back: Maker) -> Maker:
    """A function that builds GMF with that back-end."""
    return lambda dims: Stacked(GMF(dims), back)


LAYERS: dict[str, Maker] = {
    "gmf": GMF,
    "scfae": SCFAE,
    "cell": CellGMF,
    "g-mbt": behind_gmf(MBT),
    "g-perceiver": behind_gmf(Perceiver),
    "g-attention": behind_gmf(CrossAttention),
    "concat": Concatenation,
    "sum": Sum,
    "late": LateFusion,
    "gated": GatedFusion,
    "low-rank": LowRankTensorFusion,
    "cross-attention": CrossAttention,
    "mbt": MBT,
    "perceiver": Perceiver,
    "misa": MISA,
}
"""Every layer that has a name."""


def find_layer(name: str) -> Maker:
    """The function that builds the layer of that name: `find_layer("gmf")({"audio": 128, "video": 512})`.

    Raises:
        ValueError: No layer has that name.

    Example:
        >>> import fusion
        >>> type(fusion.find_layer("mbt")({"audio": 32, "video": 64})).__name__
        'MBT'
    """
    if name not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}, got {name!r}.")
    return LAYERS[name]
