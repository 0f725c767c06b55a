"""Colours and sizes that mean the same in every figure of `pnp` and `fusion`.

Hues stay apart for readers who do not see red or green (`tests/test_palette.py` measures by how much), most of them are
those of Okabe and Ito; lines differ in style and points in shape as well. Nothing here imports matplotlib.

References:
    | M. Okabe & K. Ito, Color Universal Design (2008)
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

CATION, ANION, NEUTRAL, PALE = "#D55E00", "#0072B2", "#999999", "#DDDDDD"
"""Ions by the sign of their charge; also what is invariant, what is specific, what one compares with, and the rest."""

POTENTIAL, GROUND, LIMIT = "#222222", "#009E73", "#882255"
"""The potential and whatever else is measured or solved; the ground *b*; closed forms and limiting laws."""

MODALITIES = ("#E69F00", "#56B4E9", "#AA3377", "#332288", "#7B3F00", "#DDCC77")
"""Modalities in their order; also layers, codes and settings that have no order. None is the colour of an ion."""

MARKERS = ("o", "s", "D", "^", "v", "P", "X")
"""Shapes that go with :data:`MODALITIES`."""

PREDICTABILITY = (ANION, "#B8B8B8", CATION)
"""R² of a channel from low over the noise level to high."""

SEQUENTIAL = "cividis"
"""Map of what has an order: concentrations, correlations, and settings by :func:`shades`."""

STYLE = {
    "figure.dpi": 100,
    "savefig.dpi": 110,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.labelsize": 10,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
}
"""Settings for figures that stand beside text: `with matplotlib.rc_context(STYLE)`, or `rcParams.update(STYLE)`."""


def shades(count: int) -> "ndarray":
    """Colours `(count, 4)` of an ordered setting, from dark to light, the lightest still visible on white."""
    import numpy as np
    from matplotlib import colormaps

    return np.asarray(colormaps[SEQUENTIAL](np.linspace(0, 0.9, count)))


def ink(colour: str) -> str:
    """White or :data:`POTENTIAL`'s black, whichever is read better on a colour `#rrggbb`."""
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return POTENTIAL if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
