"""Fusion layers by name, with their usual settings."""

from collections.abc import Callable, Mapping

from .cell_gmf import CellGMF
from .gmf import GMF
from .layer import FusionLayer
from .plain import Concatenation, LateFusion, Sum

Maker = Callable[[Mapping[str, int]], FusionLayer]
"""A function that builds a layer from `dims`."""

LAYERS: dict[str, Maker] = {
    "gmf": GMF,
    "cell": CellGMF,
    "concat": Concatenation,
    "sum": Sum,
    "late": LateFusion,
}
"""Every layer that has a name."""


def find_layer(name: str) -> Maker:
    """The function that builds the layer of that name: `find_layer("gmf")({"audio": 128, "video": 512})`.

    Raises:
        ValueError: No layer has that name.
    """
    if name not in LAYERS:
        raise ValueError(f"layer must be one of {', '.join(LAYERS)}, got {name!r}.")
    return LAYERS[name]
