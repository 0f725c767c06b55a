"""What stands at the two ends of a cell."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

from .quantity import Quantity, as_quantity


@dataclass(frozen=True, eq=False)
class Electrode:
    r"""Blocking electrode: holds a potential, lets no ion through.

    Arguments:
        potential: Of the metal, :math:`U` [V], shape `(*batch)`.
        stern_capacitance: :math:`C_S > 0` [F m⁻²] of a Stern layer between metal and electrolyte,
            :math:`\varepsilon\,\partial_n\phi = C_S\,(U - \phi)` with :math:`n` the outward normal;
            None: the electrolyte touches the metal, :math:`\phi = U`.

    Raises:
        ValueError: `stern_capacitance` not positive, anything not finite.
    """

    _: KW_ONLY
    potential: Quantity
    stern_capacitance: Quantity = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "potential", as_quantity(self.potential, "Electrode: potential"))
        if self.stern_capacitance is not None:
            capacitance = as_quantity(self.stern_capacitance, "Electrode: stern_capacitance", above=0.0)
            object.__setattr__(self, "stern_capacitance", capacitance)


@dataclass(frozen=True, eq=False)
class Reservoir:
    r"""A well-stirred bath that holds concentrations and potential at an end of the cell.

    Arguments:
        concentrations: :math:`c_i \ge 0` [mol m⁻³]: one number for all species, a sequence or tensor
            `(*batch, species)`, or a mapping from species name to number.
        potential: [V], shape `(*batch)`.

    Raises:
        ValueError: Negative or non-finite numbers; whether the bath is neutral is checked by the cell,
            which knows the valences.
    """

    _: KW_ONLY
    concentrations: Quantity
    potential: Quantity

    def __post_init__(self) -> None:
        object.__setattr__(self, "potential", as_quantity(self.potential, "Reservoir: potential"))
        if not isinstance(self.concentrations, Mapping):
            checked = as_quantity(self.concentrations, "Reservoir: concentrations", at_least=0.0)
            object.__setattr__(self, "concentrations", checked)


Boundary = Electrode | Reservoir
