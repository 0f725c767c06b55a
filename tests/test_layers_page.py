"""The page on layers: every layer is on it, and its examples run."""

import re
from pathlib import Path

from fusion import LAYERS

PAGE = (Path(__file__).parents[1] / "docs" / "layers.md").read_text(encoding="utf-8")


def test_every_layer_is_named():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall("`([a-z-]+)`", row.split("|")[1])}
    assert set(LAYERS) <= named


def test_examples_run():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "layers.md", "exec"), names)
    assert names["out"].concatenated().shape == (8, names["layer"].out_features)
