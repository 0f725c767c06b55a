r"""Ionic species and the solvent they move in.

.. math::
    \partial_t c_i = -\nabla\!\cdot J_i, \qquad
    J_i = -D_i\Big(\nabla c_i + \frac{z_i c_i}{V_T}\nabla\phi\Big), \qquad
    -\nabla\!\cdot(\varepsilon\nabla\phi) = F\Big(\sum_i z_i c_i + \rho_\mathrm{fixed}\Big)

The constants of nature are fields of the electrolyte, so that the same code serves SI units and the
dimensionless form in which the thermal voltage, the Faraday constant and lengths are one.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from scipy import constants
from torch import Tensor

from .quantity import Quantity, as_quantity, broadcast_batch

FARADAY = constants.value("Faraday constant")


@dataclass(frozen=True, eq=False)
class Species:
    r"""One kind of ion.

    Arguments:
        name: What plots and messages call it, for instance ``"Na+"``.
        valence: Charge number :math:`z`, any real number (features carry fractional charge).
        diffusivity: :math:`D > 0` [m² s⁻¹].
        diameter: Ion diameter :math:`a \ge 0` [m]; zero is a point ion. The solvers of this version
            treat point ions only and refuse a species with a diameter.

    Numbers may be tensors of shape `(*batch)` and may require gradients.

    Raises:
        ValueError: `diffusivity` not positive, `diameter` negative, anything not finite.
    """

    name: str
    _: KW_ONLY
    valence: Quantity
    diffusivity: Quantity
    diameter: Quantity = 0.0

    def __post_init__(self) -> None:
        owner = f"Species({self.name!r})"
        object.__setattr__(self, "valence", as_quantity(self.valence, f"{owner}: valence"))
        object.__setattr__(
            self, "diffusivity", as_quantity(self.diffusivity, f"{owner}: diffusivity", above=0.0)
        )
        object.__setattr__(self, "diameter", as_quantity(self.diameter, f"{owner}: diameter", at_least=0.0))


@dataclass(frozen=True, eq=False)
class Electrolyte:
    r"""Species in a solvent of uniform permittivity and temperature.

    Arguments:
        species: The :class:`Species`, in the order of every species axis.
        relative_permittivity: :math:`\varepsilon_r > 0`, 78.5 for water at room temperature.
        temperature: :math:`T > 0` [K].
        faraday_constant, gas_constant, vacuum_permittivity: SI values; all one in the dimensionless form.

    Attributes:
        valences, diffusivities: Stacked over species, shape `(*batch, species)`.
        thermal_voltage: :math:`V_T = RT/F` [V], 25.7 mV at room temperature.
        permittivity: :math:`\varepsilon = \varepsilon_r\varepsilon_0` [F m⁻¹].

    Raises:
        ValueError: No species, two of one name, or a number out of range.
    """

    species: Sequence[Species]
    _: KW_ONLY
    relative_permittivity: Quantity = 78.5
    temperature: Quantity = 298.15
    faraday_constant: float = FARADAY
    gas_constant: float = constants.R
    vacuum_permittivity: float = constants.epsilon_0
    valences: Tensor = field(init=False, repr=False)
    diffusivities: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        species = tuple(self.species)
        names = [one.name for one in species]
        if not species:
            raise ValueError("Electrolyte: species must hold at least one Species, got none.")
        if len(set(names)) < len(names):
            raise ValueError(f"Electrolyte: species names must differ, got {names}.")
        put = object.__setattr__
        put(self, "species", species)
        for name in ("relative_permittivity", "temperature"):
            put(self, name, as_quantity(getattr(self, name), f"Electrolyte: {name}", above=0.0))
        put(self, "valences", _stack([one.valence for one in species], "valence"))
        put(self, "diffusivities", _stack([one.diffusivity for one in species], "diffusivity"))

    @classmethod
    def dimensionless(cls, species: Sequence[Species], *, permittivity: Quantity) -> "Electrolyte":
        r"""The same equations with :math:`V_T = F = 1`: :math:`-\epsilon\,\phi'' = \sum_i z_i c_i`.

        With unit length and :math:`\sum_i z_i^2 c_i = 1`, `permittivity` is the square of the Debye
        length. Raises ValueError when it is not positive.
        """
        return cls(
            species,
            relative_permittivity=as_quantity(permittivity, "Electrolyte: permittivity", above=0.0),
            temperature=1.0,
            faraday_constant=1.0,
            gas_constant=1.0,
            vacuum_permittivity=1.0,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the species, in order."""
        return tuple(one.name for one in self.species)

    @property
    def is_dimensionless(self) -> bool:
        """Whether the thermal voltage and the Faraday constant are the units."""
        return self.faraday_constant == 1.0

    @property
    def thermal_voltage(self) -> Tensor:
        r""":math:`V_T = RT/F` [V], shape `(*batch)`."""
        return as_quantity(self.temperature, "temperature") * (self.gas_constant / self.faraday_constant)

    @property
    def permittivity(self) -> Tensor:
        r""":math:`\varepsilon = \varepsilon_r \varepsilon_0` [F m⁻¹], shape `(*batch)`."""
        return as_quantity(self.relative_permittivity, "relative_permittivity") * self.vacuum_permittivity

    def debye_length(self, concentrations: Quantity) -> Tensor:
        r"""Thickness over which mobile ions screen a charge.

        .. math:: \lambda_D = \sqrt{\frac{\varepsilon V_T}{F \sum_i z_i^2 c_i}}

        About 3 nm in 10 mM salt; the grid must resolve it near every electrode.

        Arguments:
            concentrations: :math:`c_i` [mol m⁻³], shape `(*batch, species)`.

        Returns:
            :math:`\lambda_D` [m], shape `(*batch)`.

        References:
            Bard & Faulkner, Electrochemical Methods (2001), ch. 13.
        """
        concentrations = as_quantity(concentrations, "debye_length: concentrations", at_least=0.0)
        strength = (self.valences**2 * concentrations).sum(-1)
        return torch.sqrt(self.permittivity * self.thermal_voltage / (self.faraday_constant * strength))

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes of the numbers in the electrolyte."""
        return broadcast_batch(
            valences=self.valences.shape[:-1],
            diffusivities=self.diffusivities.shape[:-1],
            relative_permittivity=self.permittivity.shape,
            temperature=self.thermal_voltage.shape,
        )


def _stack(values: list, name: str) -> Tensor:
    broadcast_batch(**{f"{name} of species {i}": value.shape for i, value in enumerate(values)})
    devices = {value.device for value in values if value.dim()}
    if len(devices) > 1:
        raise ValueError(
            f"Electrolyte: {name} of the species lie on several devices: {sorted(map(str, devices))}."
        )
    device = devices.pop() if devices else values[0].device
    return torch.stack(torch.broadcast_tensors(*(value.to(device) for value in values)), dim=-1)
