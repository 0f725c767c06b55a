"""The channels of one modality as ions at rest in their cell."""

from dataclasses import dataclass

from torch import Tensor

import pnp

from .ions import Noise, valence
from .settings import CellSettings
from .transport import channel_cell, equilibrate, gates, opening


@dataclass(frozen=True, eq=False)
class Ions:
    r"""What a cell makes of the channels of a modality.

    Attributes:
        predictability: R² of every channel from all other modalities, `(l,)`.
        noise_level: :math:`r_0`, the R² above which a channel counts as shared.
        valences: `(l,)`, positive for channels that others predict.
        voltage: :math:`U_0` of the cell, in thermal voltages.
        solution: Equilibrium of the cell.
        gates: How far every channel's gate is open, `(l,)`: how invariant it is. From its fraction beyond the ground,
            see :func:`~fusion.grounded.transport.opening`.
    """

    predictability: Tensor
    noise_level: float
    valences: Tensor
    voltage: float
    solution: pnp.Solution
    gates: Tensor

    @classmethod
    def at_rest(cls, predictability: Tensor, noise: Noise, settings: CellSettings) -> "Ions":
        """The ions that channels of given R² `(l,)` become, once they have settled."""
        valences = valence(predictability, noise.level)
        cell = channel_cell(
            valences,
            voltage=noise.voltage,
            ground=settings.ground,
            debye_length=settings.debye_length,
            ion_size=settings.ion_size,
        )
        solution = equilibrate(cell)
        return cls(predictability, noise.level, valences, noise.voltage, solution, opening(gates(solution)))

    @property
    def cell(self) -> pnp.Cell:
        """The cell the channels are in."""
        return self.solution.cell

    @property
    def charge(self) -> float:
        """Total charge of the channels, which neither migration nor a rotation of the basis changes."""
        return float(self.valences.sum())

    @property
    def invariant_dimension(self) -> float:
        """Effective number of invariant channels, the sum of the gates."""
        return float(self.gates.sum())
