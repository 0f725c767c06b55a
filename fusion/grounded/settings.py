"""What may be chosen about the noise and the cells of channels."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CellSettings:
    """The numbers that :func:`~fusion.grounded.subspaces.dissociate` takes, where they are explained.

    Raises:
        ValueError: One of them out of its range.
        TypeError: A name that is not among them.
    """

    voltage: float | None = None
    ground: float = 0.5
    debye_length: float = 1.0
    ion_size: float = 0.0
    safety: float = 1.3
    permutations: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if self.voltage is not None and not 0 < self.voltage < math.inf:
            raise ValueError(f"voltage must be above 0 and finite, got {self.voltage:g}.")
        if not 0 < self.ground < 1:
            raise ValueError(f"ground must lie between 0 and 1, got {self.ground:g}.")
        if not 0 < self.debye_length < math.inf:
            raise ValueError(f"debye_length must be above 0 and finite, got {self.debye_length:g}.")
        if not 0 <= self.ion_size < 1:
            raise ValueError(f"ion_size must be at least 0 and below 1, got {self.ion_size:g}.")
        if not 1 < self.safety < math.inf:
            raise ValueError(f"safety must be above 1 and finite, got {self.safety:g}.")
        if self.permutations != int(self.permutations) or self.permutations < 1:
            raise ValueError(f"permutations must be an integer of 1 or more, got {self.permutations}.")
