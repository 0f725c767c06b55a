"""Optional libraries, imported where they are needed."""

from importlib import import_module
from types import ModuleType


def require(module: str, extra: str = "train") -> ModuleType:
    """Import an optional library, or say how to install it.

    Raises:
        ModuleNotFoundError: The library is not installed; the text names the extra that brings it.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        library = module.partition(".")[0]
        raise ModuleNotFoundError(
            f'{library} is needed here and is not installed: pip install "pnp-fusion[{extra}]"'
        ) from error
