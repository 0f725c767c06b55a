"""Kernels that numba compiles: the same equations as in :mod:`pnp.finite_volume`, many cells at a time.

The solvers choose them by themselves where they apply: float64, point ions, nothing reacts. They are for the CPU, and
of a few species also for CUDA tensors where numba-cuda (the extra `cuda`) is installed. Everything here is checked
against the readable equations, which stay what defines the scheme. Without numba (the extra `fast`) the solvers do the
same in torch, only slower; `solution.stats.solver` says which of the two it was. Equilibria and transients have first
derivatives through adjoint kernels.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Result = TypeVar("Result")


class CompiledPathWarning(UserWarning):
    """A compiled kernel could not be made or run; the solver went on in torch, with the same result."""


_enabled = True


@contextmanager
def torch_only() -> Iterator[None]:
    """Solve without compiled kernels for a while, to compare or to look for a mistake."""
    global _enabled
    before, _enabled = _enabled, False
    try:
        yield
    finally:
        _enabled = before


def attempt(compiled: Callable[[], Result]) -> Result | None:
    """What a compiled path gives; None where there is none, with a warning where it broke."""
    if not _enabled:
        return None
    try:
        import numba  # noqa: F401
    except ImportError:
        return None
    try:
        return compiled()
    except Exception as error:
        warnings.warn(
            f"A compiled kernel failed ({type(error).__name__}: {error}); solving in torch instead, which is "
            "slower. Silence this with pnp.compiled.torch_only().",
            CompiledPathWarning,
            stacklevel=3,
        )
        return None
