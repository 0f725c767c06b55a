r"""Reactions: between species in the electrolyte, and of species at an electrode.

Species enter as activities :math:`a_i = c_i e^{w_i p}`, which are concentrations unless ions have a size, so
that reactions come to rest exactly where the free energy is least.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass

import torch

from .quantity import Quantity, as_quantity


@dataclass(frozen=True, eq=False)
class Reaction:
    r"""Reaction between species everywhere in the electrolyte, by the law of mass action.

    .. math:: r = k_f \prod_i a_i^{\nu_i} - k_b \prod_j a_j^{\nu_j} \qquad [\mathrm{mol\,m^{-3}\,s^{-1}}]

    Arguments:
        reactants, products: Stoichiometric numbers :math:`\nu > 0` by species name. An empty mapping stands
            for something that does not run out (a solvent, a solid).
        forward, backward: Rate constants :math:`k_f, k_b \ge 0`, `(*batch)`, in units of
            (mol m⁻³)^(1 − Σν) s⁻¹. For water, `Reaction({}, {"H+": 1, "OH-": 1}, forward=kw * k, backward=k)`.

    Raises:
        ValueError: Both sides empty, a number not positive, a negative rate constant.

    Example:
        >>> import pnp
        >>> pairing = pnp.Reaction({"M+": 1, "A-": 1}, {"MA": 1}, forward=1e7, backward=1e8)
        >>> float(pairing.forward / pairing.backward)  # the constant of the equilibrium [m³ mol⁻¹]
        0.1
    """

    reactants: Mapping[str, float]
    products: Mapping[str, float]
    _: KW_ONLY
    forward: Quantity
    backward: Quantity

    def __post_init__(self) -> None:
        put = object.__setattr__
        for side in ("reactants", "products"):
            put(self, side, _stoichiometry(getattr(self, side), f"Reaction: {side}"))
        if not self.reactants and not self.products:
            raise ValueError("Reaction: reactants and products must not both be empty.")
        for name in ("forward", "backward"):
            put(self, name, as_quantity(getattr(self, name), f"Reaction: {name}", at_least=0.0))


@dataclass(frozen=True, eq=False)
class ElectrodeReaction:
    r"""Transfer of electrons between an electrode and species next to it (Frumkin-Butler-Volmer).

    Reduction, :math:`\mathrm{Ox} + n e^- \rightarrow \mathrm{Red}`, runs at the rate

    .. math:: r = k_0 c^\circ \Big[\prod_\mathrm{ox}\Big(\frac{a_i}{c^\circ}\Big)^{\nu_i}
                   e^{-\alpha n\eta} - \prod_\mathrm{red}\Big(\frac{a_j}{c^\circ}\Big)^{\nu_j}
                   e^{(1-\alpha) n\eta}\Big], \qquad
              \eta = \frac{U - \phi - E^\circ}{V_T},

    where :math:`\phi` and the activities are those at the plane of reaction, next to the metal or to its
    Stern layer, and :math:`n` follows from the valences. Without a Stern layer :math:`U - \phi` is zero.

    Arguments:
        oxidised, reduced: Stoichiometric numbers by species name; an empty mapping is a solid (or a solvent)
            of unit activity, as in the deposition of a metal.
        rate_constant: :math:`k_0 > 0` [m s⁻¹], `(*batch)`.
        standard_potential: :math:`E^\circ` [V] between metal and plane of reaction, `(*batch)`.
        transfer_coefficient: :math:`0 < \alpha < 1`.
        standard_concentration: :math:`c^\circ` [mol m⁻³]; default 1000, and 1 in the dimensionless form.

    Raises:
        ValueError: A number out of its range, or both sides empty. That electrons are taken up, n > 0, is
            checked by the cell, which knows the valences.

    References:
        | Bazant, Chu & Bayly, SIAM J. Appl. Math. 65, 1463 (2005)
        | van Soestbergen, Russ. J. Electrochem. 48, 570 (2012)

    Example:
        >>> import pnp
        >>> deposition = pnp.ElectrodeReaction({"Cu2+": 1}, {}, rate_constant=1e-5)  # Cu²⁺ + 2 e⁻ → Cu
        >>> pnp.Electrode(potential=-0.1, stern_capacitance=0.2, reactions=[deposition]).reactions[0].oxidised
        {'Cu2+': 1.0}
    """

    oxidised: Mapping[str, float]
    reduced: Mapping[str, float]
    _: KW_ONLY
    rate_constant: Quantity
    standard_potential: Quantity = 0.0
    transfer_coefficient: Quantity = 0.5
    standard_concentration: Quantity = None

    def __post_init__(self) -> None:
        put, owner = object.__setattr__, "ElectrodeReaction"
        for side in ("oxidised", "reduced"):
            put(self, side, _stoichiometry(getattr(self, side), f"{owner}: {side}"))
        if not self.oxidised and not self.reduced:
            raise ValueError(f"{owner}: oxidised and reduced must not both be empty.")
        put(self, "rate_constant", as_quantity(self.rate_constant, f"{owner}: rate_constant", above=0.0))
        put(self, "standard_potential", as_quantity(self.standard_potential, f"{owner}: standard_potential"))
        alpha = as_quantity(self.transfer_coefficient, f"{owner}: transfer_coefficient", above=0.0)
        if bool((alpha >= 1).any()):
            raise ValueError(f"{owner}: transfer_coefficient must be below 1, got {alpha.max().item():g}.")
        put(self, "transfer_coefficient", alpha)
        if self.standard_concentration is not None:
            standard = as_quantity(self.standard_concentration, f"{owner}: standard_concentration", above=0.0)
            put(self, "standard_concentration", standard)


def numbers_of(side: Mapping[str, float], names: tuple[str, ...], owner: str) -> torch.Tensor:
    """Stoichiometric numbers of all species, `(species,)`; ValueError for a name that is not among them."""
    unknown = set(side) - set(names)
    if unknown:
        raise ValueError(f"{owner}: expected species of {list(names)}, got {sorted(unknown)}.")
    return torch.tensor([side.get(name, 0.0) for name in names], dtype=torch.float64)


def _stoichiometry(side: Mapping[str, float], name: str) -> dict[str, float]:
    if not isinstance(side, Mapping):
        raise TypeError(f"{name} must map species names to stoichiometric numbers, got {side!r}.")
    return {
        species: float(as_quantity(number, f"{name}[{species!r}]", above=0.0))
        for species, number in side.items()
    }
