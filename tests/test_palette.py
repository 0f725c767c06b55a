"""Colours can be told apart, also without receptors for red or green, and are what every figure uses."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from pnp import palette

ROOT = Path(__file__).parent.parent

# Machado, Oliveira & Fernandes, IEEE Trans. Vis. Comput. Graph. 15, 1291 (2009), severity 1, linear RGB.
SIGHT = {
    "full": np.eye(3),
    "without red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "without green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(code: str, sight: str) -> np.ndarray:
    """CIE L*a*b* of an sRGB colour as it is seen."""
    srgb = np.array([int(code[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    xyz = TO_XYZ @ seen / TO_XYZ.sum(1)
    x, y, z = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


IONS = {name: getattr(palette, name) for name in ("CATION", "ANION", "NEUTRAL", "POTENTIAL", "GROUND")}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize(
    "colours",
    [
        IONS | {str(rank): one for rank, one in enumerate(palette.MODALITIES)},
        IONS | {"LIMIT": palette.LIMIT},
    ],
    ids=["with modalities", "with limits"],
)
def test_colours_are_told_apart(sight, colours):
    # A just noticeable difference is some 2.3; grey and green without red and green are the closest, at 12.
    for (one, first), (other, second) in combinations(colours.items(), 2):
        assert np.linalg.norm(lab(first, sight) - lab(second, sight)) > 11, (one, other)


def test_shades_go_from_dark_to_light_and_stay_visible():
    light = [
        lab("#" + "".join(f"{round(255 * part):02x}" for part in one[:3]), "full")[0]
        for one in palette.shades(5)
    ]
    assert light == sorted(light)
    assert light[-1] < 90
    assert palette.shades(1).shape == (1, 4)


@pytest.mark.parametrize("colour", [*palette.MODALITIES, palette.PALE, palette.CATION, palette.ANION])
def test_ink_is_read_on_every_colour(colour):
    inks = {"white": "#FFFFFF"}.get(palette.ink(colour), palette.ink(colour))
    assert abs(lab(colour, "full")[0] - lab(inks, "full")[0]) > 35


def test_nobody_has_hues_of_their_own():
    folders = ("pnp", "fusion", "docs", "benchmarks", "gallery")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    hue = re.compile(r"""["']#(?!([0-9A-Fa-f]{2})\1\1)[0-9A-Fa-f]{6}["']""")  # greys mean nothing
    assert [path.name for path in sources if hue.search(path.read_text(encoding="utf-8"))] == ["palette.py"]
