"""Checks of the numbers that layers are set up with."""

import math


def positive_integer(what: str, value: int) -> int:
    """`value`, if it is 1 or more.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, bool) or value != int(value) or value < 1:
        raise ValueError(f"{what} must be an integer of 1 or more, got {value!r}.")
    return value


def weight(what: str, value: float) -> float:
    """`value`, if it is a finite number of 0 or more.

    Raises:
        ValueError: It is not.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"{what} must be 0 or more, got {value!r}.")
    return value


def choice(what: str, value: str, accepted: tuple[str, ...]) -> str:
    """`value`, if it is one of those accepted.

    Raises:
        ValueError: It is not.
    """
    if value not in accepted:
        raise ValueError(f"{what} must be one of {', '.join(accepted)}, got {value!r}.")
    return value
