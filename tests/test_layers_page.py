"""The page on layers names every layer; `test_pages.py` runs its examples."""

import re

from fusion import LAYERS

from .test_pages import TEXTS


def test_every_layer_is_named():
    rows = [line for line in TEXTS["docs/layers.md"].splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall("`([a-z-]+)`", row.split("|")[1])}
    assert set(LAYERS) <= named
