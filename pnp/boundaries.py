"""What stands at the two ends of a cell."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

from .quantity import Quantity, as_quantity
from .reactions import ElectrodeReaction
from .waveforms import Signal, as_signal


@dataclass(frozen=True, eq=False)
class Electrode:
    r"""A metal whose potential, or the current through it, is given. No ion passes unless it reacts.

    Arguments:
        potential: Of the metal, :math:`U` [V], `(*batch)`, or a :class:`pnp.Waveform` of time.
        current: Instead of the potential: current density [A m⁻²] from left to right, as
            :func:`pnp.current_density` counts it, `(*batch)` or a waveform. The potential is then an outcome
            (:func:`pnp.electrode_potential`).
        stern_capacitance: :math:`C_S > 0` [F m⁻²] of a Stern layer between metal and electrolyte,
            :math:`\varepsilon\,\partial_n\phi = C_S\,(U - \phi)` with :math:`n` the outward normal;
            None: the electrolyte touches the metal, :math:`\phi = U`.
        reactions: :class:`pnp.ElectrodeReaction` of species at this electrode; none: it is blocking.

    Raises:
        TypeError: Both or neither of `potential` and `current`; a bare function in place of a waveform.
        ValueError: `stern_capacitance` not positive, anything not finite.

    Example:
        >>> import pnp
        >>> pnp.Electrode(potential=[0.05, 0.1], stern_capacitance=0.2).potential  # two cells
        tensor([0.0500, 0.1000], dtype=torch.float64)
    """

    _: KW_ONLY
    potential: Signal = None
    current: Signal = None
    stern_capacitance: Quantity = None
    reactions: Sequence[ElectrodeReaction] = ()

    def __post_init__(self) -> None:
        put = object.__setattr__
        if (self.potential is None) == (self.current is None):
            raise TypeError("Electrode: give its potential or the current through it, one of the two.")
        for name in ("potential", "current"):
            if getattr(self, name) is not None:
                put(self, name, as_signal(getattr(self, name), f"Electrode: {name}"))
        if self.stern_capacitance is not None:
            capacitance = as_quantity(self.stern_capacitance, "Electrode: stern_capacitance", above=0.0)
            put(self, "stern_capacitance", capacitance)
        reactions = (
            (self.reactions,) if isinstance(self.reactions, ElectrodeReaction) else tuple(self.reactions)
        )
        for reaction in reactions:
            if not isinstance(reaction, ElectrodeReaction):
                raise TypeError(f"Electrode: reactions must be pnp.ElectrodeReaction, got {reaction!r}.")
        put(self, "reactions", reactions)


@dataclass(frozen=True, eq=False)
class Reservoir:
    r"""A well-stirred bath that holds concentrations and potential at an end of the cell.

    Arguments:
        concentrations: :math:`c_i \ge 0` [mol m⁻³]: one number for all species, a sequence or tensor
            `(*batch, species)`, or a mapping from species name to number.
        potential: [V], `(*batch)`, or a :class:`pnp.Waveform` of time.

    Raises:
        ValueError: Negative or non-finite numbers; whether the bath is neutral is checked by the cell,
            which knows the valences.

    Example:
        >>> import pnp
        >>> bath = pnp.Reservoir(concentrations={"K+": 10.0, "Cl-": 10.0}, potential=0.0)
        >>> dilute = pnp.Reservoir(concentrations={"K+": 1.0, "Cl-": 1.0}, potential=0.0)
        >>> potassium = pnp.Species("K+", valence=1, diffusivity=1.96e-9)
        >>> chloride = pnp.Species("Cl-", valence=-1, diffusivity=2.03e-9)
        >>> salt = pnp.Electrolyte([potassium, chloride])
        >>> membrane = pnp.Cell(salt, length=1e-6, concentrations=5.0, left=bath, right=dilute)
        >>> flux = pnp.ion_flux(pnp.solve_steady(membrane))[:, 0]  # mol/(m² s)
        >>> [f"{value:.2e}" for value in flux.tolist()]
        ['1.76e-02', '1.83e-02']
    """

    _: KW_ONLY
    concentrations: Quantity
    potential: Signal

    def __post_init__(self) -> None:
        object.__setattr__(self, "potential", as_signal(self.potential, "Reservoir: potential"))
        if not isinstance(self.concentrations, Mapping):
            checked = as_quantity(self.concentrations, "Reservoir: concentrations", at_least=0.0)
            object.__setattr__(self, "concentrations", checked)


@dataclass(frozen=True, eq=False)
class ChargedWall:
    r"""An insulating wall that carries a fixed charge; no ion passes, and its potential is an outcome.

    Arguments:
        charge: Surface charge :math:`\sigma = \varepsilon\,\partial_n\phi` [C m⁻²], `(*batch)`; zero is a
            plain insulator.

    Raises ValueError for a charge that is not finite.

    Example:
        >>> import pnp
        >>> ions = [pnp.Species("+", valence=1, diffusivity=1.0), pnp.Species("-", valence=-1, diffusivity=1.0)]
        >>> salt = pnp.Electrolyte.dimensionless(ions, permittivity=0.002)
        >>> wall, bath = pnp.ChargedWall(charge=0.1), pnp.Reservoir(concentrations=1.0, potential=0.0)
        >>> rest = pnp.solve_steady(pnp.Cell(salt, length=1.0, concentrations=1.0, left=wall, right=bath))
        >>> f"potential of the wall {float(rest.potential[0]):.3f}"  # Grahame: 2 asinh(0.1 / sqrt(8 * 0.002))
        'potential of the wall 1.450'
    """

    _: KW_ONLY
    charge: Quantity = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "charge", as_quantity(self.charge, "ChargedWall: charge"))


@dataclass(frozen=True, eq=False)
class Periodic:
    r"""The two ends are one place: what leaves on the right enters on the left. Both ends must be periodic.

    Arguments:
        potential_drop: By how much the potential falls from left to right [V], `(*batch)`; the field of a
            long row of such cells. The potential is zero at the left end.

    Raises ValueError for a drop that is not finite.

    Example:
        >>> import pnp
        >>> ion = pnp.Species("+", valence=1, diffusivity=1.0)
        >>> salt = pnp.Electrolyte.dimensionless([ion], permittivity=0.01)
        >>> ring = pnp.Periodic(potential_drop=2.0)
        >>> wire = pnp.Cell(salt, length=1.0, concentrations=3.0, fixed_charge=-3.0, left=ring, right=ring)
        >>> f"{float(pnp.current_density(pnp.solve_steady(wire))[0]):.4f}"  # Ohm's law: D c z² times the field
        '6.0000'
    """

    _: KW_ONLY
    potential_drop: Quantity = 0.0

    def __post_init__(self) -> None:
        drop = as_quantity(self.potential_drop, "Periodic: potential_drop")
        object.__setattr__(self, "potential_drop", drop)


Boundary = Electrode | Reservoir | ChargedWall | Periodic
