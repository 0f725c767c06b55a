"""How the pages become a site: `make docs`, or python -m sphinx -c docs . out/docs.

The source is the whole repository, so that notebooks and pages keep the relative links they have on a code host;
of it only pages, notebooks and the changelog are read. Notebooks are shown with the outputs they were committed
with; `tests/test_notebooks.py` runs them.
"""

import gc
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).resolve().parents[1]
# The packages beside these pages, wherever others are installed, and `mathml`.
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]

from pnp import palette  # noqa: E402

gc.disable()  # a build keeps nearly all it makes, and looking through it takes a tenth of the time

project = "pnp-fusion"
author = "The pnp-fusion maintainers"
copyright = "the pnp-fusion maintainers, MIT licence"
version = release = version_of("pnp-fusion")

extensions = [
    "mathml",
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "gallery/**", "notebooks/**", "CHANGELOG.md"]
exclude_patterns = [".*", "**/.*", "out", "build", "pnp", "fusion", "tests", "benchmarks", "docs/site"]
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"Axes|Colormap|Figure|TwoSlopeNorm|ndarray"),  # imported for types alone
    ("py:class", r"fusion\..*\.(Batch|CellSettings|Finding|Ions|LinearMaps|Measured|Options)"),  # of no page
    ("py:.*", r"(torch|numpy|np|xarray|matplotlib|collections|pathlib|typing|nn|dask|concurrent)\..*"),
]

# Pages
myst_enable_extensions = ["amsmath", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_links_external_new_tab = False
nb_execution_mode = "off"
nb_merge_streams = True
suppress_warnings = ["toc.empty_glob"]

# Reference
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
QUANTITY = "~typing.Annotated[~typing.Any, 'Quantity']"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_param = napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # which keeps `valences, diffusivities:` together
default_role = "code"
autodoc_preserve_defaults = True
maximum_signature_line_length = 90
python_display_short_literal_types = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Look
BRAND = "color-brand-primary", "color-brand-content"
html_math_renderer = "mathml"
html_theme = "furo"
html_title = "pnp-fusion"
html_static_path = ["site/static"]
templates_path = ["site/templates"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
html_copy_source = html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": dict.fromkeys(BRAND, palette.ANION),
    "dark_css_variables": dict.fromkeys(BRAND, palette.MODALITIES[1]),
}
pygments_style, pygments_dark_style = "friendly", "github-dark"


def public_name(app, env, node, contnode):
    """Link a name that docstrings give by the module it is defined in to where the reference lists it."""
    if node.get("refdomain") != "py":
        return None
    domain, last = env.get_domain("py"), node["reftarget"].rpartition(".")[2]
    public = [(f"{package}.{last}", domain.objects.get(f"{package}.{last}")) for package in ("pnp", "fusion")]
    found = [one for one in public if one[1]] or domain.find_obj(env, "", "", last, None, 1)
    if len(found) != 1:
        return None
    name, entry = found[0]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, name)


def by_name(app, what, name, obj, options, signature, returns):
    """Say `Quantity` where a number, a sequence or a tensor may be given, and nothing of what makes a default."""
    for what, instead in ((QUANTITY, "~pnp.quantity.Quantity"), ("<factory>", "...")):
        signature, returns = (part and part.replace(what, instead) for part in (signature, returns))
    return signature, returns


def nameless(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples that have no description of their own."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def whole_sentence(app, what, name, obj, options, lines):
    """Put back what napoleon takes for a type: the words before a colon in the first line of a description."""
    types = [line for line in lines if line.startswith(":type: ")]
    if what in ("attribute", "data", "property") and types:
        lines.remove(types[0])
        lines[0] = f"{types[0].removeprefix(':type: ')}: {lines[0]}"


def setup(app):
    app.connect("autodoc-process-signature", by_name)
    app.connect("autodoc-skip-member", nameless)
    app.connect("autodoc-process-docstring", whole_sentence, priority=600)  # after napoleon
    app.connect("missing-reference", public_name)
