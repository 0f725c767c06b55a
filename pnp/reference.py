"""What known cells must give: a table for anyone's solver, made without this one."""

import json
from importlib import resources
from typing import Any


def reference_values() -> dict[str, Any]:
    """The table of reference values with stated errors, as it stands in `pnp/reference_values.json`.

    Keys `description`, `conventions` and `quantities` say what is meant; `entries` is a list of cells in the
    dimensionless form (Gouy-Chapman and canonical cells, steric layers, transients, reversal potentials,
    currents with reactions, impedances), each with `value` and `error`. The script `docs/reference_values.py`
    makes it, from closed forms in many digits, spectral elements and scipy, and shares no code with `pnp`.

    Example:
        >>> import pnp
        >>> table = pnp.reference_values()
        >>> entry = table["entries"][0]
        >>> entry["quantity"], f"{entry['value']:.6f} ± {entry['error']:.0e}"
        ('diffuse_charge', '0.092365 ± 2e-17')
    """
    return json.loads(resources.files(__package__).joinpath("reference_values.json").read_text("utf-8"))
