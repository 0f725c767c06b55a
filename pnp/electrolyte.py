r"""Ionic species and the solvent they move in.

.. math::
    \partial_t c_i = -\nabla\!\cdot J_i + R_i, \qquad
    J_i = -D_i\Big(\nabla c_i + \frac{z_i c_i}{V_T}\nabla\phi + w_i c_i\nabla p\Big), \qquad
    -\nabla\!\cdot(\varepsilon\nabla\phi) = F\Big(\sum_i z_i c_i + \rho_\mathrm{fixed}\Big)

Ions of finite size leave the fraction :math:`e^{-p} = 1 - \sum_j v_j c_j` of the room to the solvent, and
are pushed by its pressure :math:`p` (in units of RT over the solvent's molar volume) in proportion to
:math:`w_i = v_i/v_0`; with equal sizes that is the model of Bikerman and of Kilic, Bazant and Ajdari.

The constants of nature are fields of the electrolyte, so that the same code serves SI units and the
dimensionless form in which the thermal voltage, the Faraday constant and lengths are one.
"""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from .constants import AVOGADRO, FARADAY, GAS, VACUUM_PERMITTIVITY
from .quantity import Quantity, as_quantity, broadcast_batch
from .reactions import Reaction, numbers_of


@dataclass(frozen=True, eq=False)
class Species:
    r"""One kind of ion.

    Arguments:
        name: What plots and messages call it, for instance ``"Na+"``.
        valence: Charge number :math:`z`, any real number (features carry fractional charge).
        diffusivity: :math:`D > 0` [m² s⁻¹].
        diameter: Ion diameter :math:`a \ge 0` [m]; zero is a point ion. An ion takes the volume
            :math:`a^3` (:math:`v = N_A a^3` a mole).

    Numbers may be tensors of shape `(*batch)` and may require gradients.

    Raises:
        ValueError: `diffusivity` not positive, `diameter` negative, anything not finite.

    Example:
        >>> import pnp
        >>> pnp.Species("Na+", valence=+1, diffusivity=1.33e-9).valence
        tensor(1., dtype=torch.float64)
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
        reactions: :class:`pnp.Reaction` between the species.
        solvent_diameter: Of a solvent molecule, or of the lattice that ions of finite size live on [m];
            default: the largest diameter of an ion. Without meaning for point ions.
        faraday_constant, gas_constant, vacuum_permittivity, avogadro_constant: SI values; all one in the
            dimensionless form.

    Attributes:
        valences, diffusivities: Stacked over species, shape `(*batch, species)`.
        molar_volumes: :math:`v_i = N_A a_i^3` [m³ mol⁻¹], `(*batch, species)`.
        solvent_volume: :math:`v_0` [m³ mol⁻¹], `(*batch)`.
        thermal_voltage: :math:`V_T = RT/F` [V], 25.7 mV at room temperature.
        permittivity: :math:`\varepsilon = \varepsilon_r\varepsilon_0` [F m⁻¹].

    Raises:
        ValueError: No species, two of one name, a number out of range, or a reaction that does not conserve
            charge or names a species that is not there.

    References:
        | Bikerman, Phil. Mag. 33, 384 (1942)
        | Kilic, Bazant & Ajdari, Phys. Rev. E 75, 021503 (2007), steric effects in the PNP equations

    Example:
        >>> import pnp
        >>> potassium = pnp.Species("K+", valence=+1, diffusivity=1.96e-9)
        >>> chloride = pnp.Species("Cl-", valence=-1, diffusivity=2.03e-9)
        >>> salt = pnp.Electrolyte([potassium, chloride])
        >>> f"{salt.thermal_voltage * 1e3:.2f} mV, {salt.debye_length(10.0) * 1e9:.2f} nm"
        '25.69 mV, 3.04 nm'
    """

    species: Sequence[Species]
    _: KW_ONLY
    relative_permittivity: Quantity = 78.5
    temperature: Quantity = 298.15
    reactions: Sequence[Reaction] = ()
    solvent_diameter: Quantity = None
    faraday_constant: float = FARADAY
    gas_constant: float = GAS
    vacuum_permittivity: float = VACUUM_PERMITTIVITY
    avogadro_constant: float = AVOGADRO
    valences: Tensor = field(init=False, repr=False)
    diffusivities: Tensor = field(init=False, repr=False)
    diameters: Tensor = field(init=False, repr=False)

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
        for name in ("valence", "diffusivity", "diameter"):
            values = _stack([getattr(one, name) for one in species], name)
            put(self, {"diffusivity": "diffusivities"}.get(name, f"{name}s"), values)
        if self.solvent_diameter is not None:
            diameter = as_quantity(self.solvent_diameter, "Electrolyte: solvent_diameter", above=0.0)
            put(self, "solvent_diameter", diameter)
        put(self, "reactions", tuple(self.reactions))
        for reaction in self.reactions:
            self._check_reaction(reaction)

    def _check_reaction(self, reaction: Reaction) -> None:
        if not isinstance(reaction, Reaction):
            raise TypeError(f"Electrolyte: reactions must be pnp.Reaction, got {reaction!r}.")
        produced = numbers_of(reaction.products, self.names, "Reaction: products")
        produced = produced - numbers_of(reaction.reactants, self.names, "Reaction: reactants")
        charge = (self.valences.detach() * produced.to(self.valences.device)).sum(-1)
        if bool((charge.abs() > 1e-9).any()):
            raise ValueError(
                f"Reaction: {dict(reaction.reactants)} -> {dict(reaction.products)} must conserve charge, "
                f"but makes {charge.abs().max().item():g} elementary charges."
            )

    @classmethod
    def dimensionless(
        cls,
        species: Sequence[Species],
        *,
        permittivity: Quantity,
        reactions: Sequence[Reaction] = (),
        solvent_diameter: Quantity = None,
    ) -> "Electrolyte":
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
            avogadro_constant=1.0,
            reactions=reactions,
            solvent_diameter=solvent_diameter,
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

    @property
    def has_finite_ions(self) -> bool:
        """Whether any ion takes room."""
        return bool((self.diameters > 0).any())

    @property
    def molar_volumes(self) -> Tensor:
        r""":math:`v_i = N_A a_i^3` [m³ mol⁻¹], shape `(*batch, species)`."""
        return self.avogadro_constant * self.diameters**3

    @property
    def solvent_volume(self) -> Tensor:
        r""":math:`v_0` [m³ mol⁻¹] of the solvent (or of the largest ion), shape `(*batch)`."""
        if self.solvent_diameter is None:
            return self.molar_volumes.amax(-1)
        return self.avogadro_constant * as_quantity(self.solvent_diameter, "solvent_diameter") ** 3

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
            diameters=self.diameters.shape[:-1],
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
