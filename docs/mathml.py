"""Formulas as MathML, which browsers draw by themselves: a Sphinx extension, so that the site needs no script and no
network. `latex2mathml` translates them.
"""

import re

from docutils import nodes
from latex2mathml.converter import convert

NAME = r"<mi>[a-zA-Z]{2,}</mi>"
"""Of a function: `ln`, `sinh`."""
BESIDE = "m(?:i|n|frac|sub|sup|subsup|row|sqrt)"
MENDED = (
    (
        r"<mo[^>]*>(?!mod<)([a-zA-Z]{2,})</mo>",
        r"<mi>\1</mi>",
    ),  # operators have more space around them than names
    (rf"(</{BESIDE}>)({NAME})", r'\1<mspace width="0.17em" />\2'),
    (rf"({NAME})(<{BESIDE}>)", r'\1<mspace width="0.17em" />\2'),
    ("<mo>&#x0002F;</mo>", '<mo lspace="0" rspace="0">/</mo>'),
    (
        r"<msup>(<mi>[^<]*</mi>)<mi>(&#x0203[23];)</mi></msup>",
        r'\1<mo lspace="0" rspace="0">\2</mo>',
    ),  # raised already
)


def mended(formula, display="inline"):
    """A formula translated, spaced as TeX does it."""
    found = convert(re.sub(r"\\(math\w+) (\w)", r"\\\1{\2}", formula), display=display)
    for what, instead in MENDED:
        found = re.sub(what, instead, found)
    return found


def inline(self, node):
    """A formula in a line."""
    self.body.append(mended(node.astext()))
    raise nodes.SkipNode


def block(self, node):
    """A formula of its own; one of several lines is aligned."""
    formula = node.astext().strip()
    if r"\\" in formula and r"\begin" not in formula:
        formula = rf"\begin{{aligned}}{formula}\end{{aligned}}"
    self.body.append(self.starttag(node, "div", CLASS="math"))
    self.body.append(mended(formula, "block") + "</div>\n")
    raise nodes.SkipNode


def setup(app):
    """Offer it as `html_math_renderer`."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True}
