"""What makes two studies the same, so that one may take up where the other stopped."""

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ..dataset import package_version
from .chunks import Study
from .tables import Table

_PLAIN = (bool, int, float, complex, str, tuple, list, dict, Tensor, np.ndarray)


def fingerprint(study: Study, table: Table) -> dict[str, str]:
    """A hash of each thing that the results depend on, by the name under which messages speak of it."""
    digest = hashlib.sha256(repr((list(table.columns), dict(table.units), dict(table.axes))).encode())
    for column in table.columns.values():
        digest.update(column.numpy().tobytes())
    observables = {
        name: [described(one.function), one.axes, one.units] for name, one in study.observables.items()
    }
    return {
        "the version of pnp": package_version(),
        "table": digest.hexdigest()[:16],
        "cell": _hash(described(study.cell)),
        "observables": _hash(observables),
        "solve": _hash(described(study.solve)),
    }


def described(function: Any) -> Any:
    """Source of a function and the plain values that it takes from around it, as far as they can be had.

    Not seen is what it calls in turn, except in `pnp`, for which its version stands.
    """
    if isinstance(function, functools.partial):
        return [described(function.func), _repr([function.args, function.keywords])]
    name = (
        f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
    )
    if name.startswith("pnp."):
        return name
    try:
        return [inspect.getsource(function), _surroundings(function)]
    except (OSError, TypeError):  # typed into an interpreter, or no function
        return name


def _surroundings(function: Callable[..., Any]) -> dict[str, str]:
    """Constants that a function takes from its module or from the function around it, such as a number of nodes."""
    found = inspect.getclosurevars(function)
    return {
        name: _repr(value)
        for name, value in sorted({**found.globals, **found.nonlocals}.items())
        if isinstance(value, _PLAIN)
    }


def _repr(value: Any) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
