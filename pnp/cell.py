"""The electrolytic cell: an electrolyte between two boundaries."""

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from .boundaries import Boundary, ChargedWall, Electrode, Periodic, Reservoir
from .electrolyte import Electrolyte
from .quantity import Quantity, as_quantity, broadcast_batch
from .reactions import ElectrodeReaction, numbers_of
from .waveforms import Waveform, at_start

Profile = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Cell:
    r"""An electrolyte on :math:`0 \le x \le L` between two boundaries.

    Arguments:
        electrolyte: Species and solvent.
        length: :math:`L > 0` [m].
        concentrations: The filling, :math:`c_i > 0` [mol m⁻³]: one number for all species, a sequence or
            tensor `(*batch, species)`, or a mapping from species name to number. It is the state at
            the start of a transient, and it fixes the amounts that the ends and the reactions conserve.
        left, right: :class:`Electrode`, :class:`Reservoir`, :class:`ChargedWall` or (both)
            :class:`Periodic` at :math:`x = 0` and :math:`x = L`.
        fixed_charge: Immobile charge :math:`\rho_\mathrm{fixed}` [mol m⁻³ of elementary charges]: a
            number `(*batch)`, or a function of position that takes the node positions `(*batch, node)`.
        ground: Position :math:`0 < b < L` [m] of a grid that ions pass and that is held at zero
            potential, the boundary *b* between the electrodes; None: there is none.
        permittivity_profile: Function of position by which the electrolyte's permittivity is multiplied; takes
            the middles of the edges `(*batch, edge)` and returns positive numbers of that shape. Put a
            node where the material changes.
        diffusivity_profile: The same for the diffusivities; may return `(*batch, species, edge)`. Both are
            given all batch axes of the cell.
        charged: Accept what is most often a mistake: a bath that is not neutral, or a closed cell of ions
            that have no counter-ions.

    Numbers broadcast over batch axes and may require gradients. The canonical cell of the project has
    electrodes at :math:`+U_0` (left) and :math:`-U_0` (right), so that cations migrate to the right.

    Raises:
        TypeError: A boundary that is none of the four.
        ValueError: A number out of range, wrong number of species, unknown species name, batch axes
            that do not broadcast, tensors on several devices, ions that fill more than the room there is, a
            bath that is not neutral, ions without counter-ions in a closed cell, an electrode reaction that
            takes up no electrons, one periodic end, or currents given at both ends.

    Example:
        >>> import pnp
        >>> ions = [pnp.Species("+", valence=1, diffusivity=1.0), pnp.Species("-", valence=-1, diffusivity=1.0)]
        >>> salt = pnp.Electrolyte.dimensionless(ions, permittivity=0.01)
        >>> ends = dict(left=pnp.Electrode(potential=2.0), right=pnp.Electrode(potential=-2.0))
        >>> cell = pnp.Cell(salt, length=1.0, concentrations=1.0, **ends)
        >>> cell
        Cell(Electrode | Electrode; 2 species; batch ())
    """

    electrolyte: Electrolyte
    _: KW_ONLY
    length: Quantity
    concentrations: Quantity
    left: Boundary
    right: Boundary
    fixed_charge: Quantity = 0.0
    ground: Quantity = None
    permittivity_profile: Profile | None = None
    diffusivity_profile: Profile | None = None
    charged: bool = False

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "length", as_quantity(self.length, "Cell: length", above=0.0))
        put(self, "concentrations", self._per_species(self.concentrations, "Cell: concentrations", above=0.0))
        self._check_room(self.concentrations, "concentrations")
        if not callable(self.fixed_charge):
            put(self, "fixed_charge", as_quantity(self.fixed_charge, "Cell: fixed_charge"))
        for side in ("left", "right"):
            put(self, side, self._boundary(side))
        for name in ("permittivity_profile", "diffusivity_profile"):
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise TypeError(f"Cell: {name} must be a function of position, got {getattr(self, name)!r}.")
        if self.ground is not None:
            put(self, "ground", self._ground())
        self._check_ends()
        put(self, "_batch_shape", self._broadcast())
        put(self, "_device", self._common_device())

    def __repr__(self) -> str:
        ends = " | ".join(type(end).__name__ for end in (self.left, self.right))
        return f"Cell({ends}; {len(self.electrolyte.names)} species; batch {tuple(self.batch_shape)})"

    @property
    def batch_shape(self) -> torch.Size:
        """Batch axes shared by everything in the cell."""
        return self._batch_shape  # type: ignore[attr-defined]

    @property
    def device(self) -> torch.device:
        """Device of the cell's tensors; plain numbers follow them."""
        return self._device  # type: ignore[attr-defined]

    @property
    def is_closed(self) -> bool:
        """Whether no ion can enter or leave except by reacting, so that the filling matters for good."""
        return not isinstance(self.left, Reservoir) and not isinstance(self.right, Reservoir)

    @property
    def is_periodic(self) -> bool:
        """Whether the two ends are one place."""
        return isinstance(self.left, Periodic)

    @property
    def floats(self) -> bool:
        """Whether nothing fixes the potential, which is then zero at the right end, and the cell neutral."""
        free = all(isinstance(end, ChargedWall | Periodic) for end in (self.left, self.right))
        return free and self.ground is None

    @property
    def electrode_reactions(self) -> tuple[ElectrodeReaction, ...]:
        """The reactions at the left and at the right electrode."""
        ends = (end for end in (self.left, self.right) if isinstance(end, Electrode))
        return tuple(reaction for end in ends for reaction in end.reactions)

    @property
    def comes_to_rest(self) -> bool:
        """Whether the steady state has no flux at all, so that every species has its amount or its bath.

        At most one end is a reservoir, and nothing reacts, no current is driven and no field goes around.
        """
        ends = (self.left, self.right)
        driven = any(isinstance(end, Electrode) and end.current is not None for end in ends)
        reacts = bool(self.electrolyte.reactions or self.electrode_reactions)
        open_through = all(isinstance(end, Reservoir) for end in ends)
        return not (driven or reacts or open_through or self.is_periodic)

    @property
    def keeps_amounts(self) -> bool:
        """Whether every species keeps its amount, because the cell is closed and nothing reacts."""
        return self.is_closed and not (self.electrolyte.reactions or self.electrode_reactions)

    @property
    def conserved(self) -> Tensor:
        r"""Combinations of amounts that nothing in the cell changes, `(law, species)`.

        One row :math:`m` for each: :math:`\sum_i m_i N_i` is constant. Without reactions these are the
        amounts themselves; through a reservoir nothing is conserved. Each row has a species of its own, with
        the coefficient one.
        """
        species = len(self.electrolyte.names)
        if not self.is_closed:
            return torch.zeros(0, species, dtype=torch.float64)
        names, changes = self.electrolyte.names, []
        for reaction in self.electrolyte.reactions:
            produced = numbers_of(reaction.products, names, "Reaction: products")
            changes.append(produced - numbers_of(reaction.reactants, names, "Reaction: reactants"))
        for transfer in self.electrode_reactions:
            reduced = numbers_of(transfer.reduced, names, "ElectrodeReaction: reduced")
            changes.append(reduced - numbers_of(transfer.oxidised, names, "ElectrodeReaction: oxidised"))
        if self.keeps_amounts:
            return torch.eye(species, dtype=torch.float64)
        return _null_space(torch.stack(changes))

    def _per_species(self, value: Any, name: str, **bounds: float) -> Tensor:
        names = self.electrolyte.names
        if isinstance(value, Mapping):
            unknown, absent = set(value) - set(names), set(names) - set(value)
            if unknown or absent:
                raise ValueError(f"{name}: expected the species {list(names)}, got {list(value)}.")
            parts = [as_quantity(value[one], f"{name}[{one!r}]", **bounds) for one in names]
            broadcast_batch(
                **{f"{name} of {one}": part.shape for one, part in zip(names, parts, strict=True)}
            )
            return torch.stack(torch.broadcast_tensors(*parts), dim=-1)
        tensor = as_quantity(value, name, **bounds)
        if tensor.dim() == 0:
            return tensor.expand(len(names))
        if tensor.shape[-1] != len(names):
            raise ValueError(
                f"{name}: the last axis must be the {len(names)} species {list(names)}, "
                f"got shape {tuple(tensor.shape)}."
            )
        return tensor

    def _boundary(self, side: str) -> Boundary:
        boundary = getattr(self, side)
        if not isinstance(boundary, Boundary):
            raise TypeError(
                f"Cell: {side} must be an Electrode, a Reservoir, a ChargedWall or Periodic, got {boundary!r}."
            )
        if isinstance(boundary, Electrode):
            for reaction in boundary.reactions:
                electrons(reaction, self.electrolyte)
            return boundary
        if not isinstance(boundary, Reservoir):
            return boundary
        name = f"Cell: concentrations of the {side} reservoir"
        concentrations = self._per_species(boundary.concentrations, name, at_least=0.0)
        self._check_room(concentrations, f"concentrations of the {side} reservoir")
        valences = self.electrolyte.valences
        broadcast_batch(**{name: concentrations.shape[:-1], "valences": valences.shape[:-1]})
        charge = (valences * concentrations).sum(-1)
        scale = (valences.abs() * concentrations).sum(-1)
        if not callable(self.fixed_charge):
            charge = charge + self.fixed_charge
        known = not self.charged and not callable(self.fixed_charge)
        if known and bool((charge.abs() > 1e-8 * scale).any()):
            raise ValueError(
                f"Cell: the {side} reservoir must be neutral (sum of valence times concentration, and "
                f"fixed charge, zero), got {charge.detach().abs().max().item():g} mol/m³ of charge "
                "(charged=True accepts it)."
            )
        return Reservoir(concentrations=concentrations, potential=boundary.potential)

    def _check_room(self, concentrations: Tensor, name: str) -> None:
        if not self.electrolyte.has_finite_ions:
            return
        filled = (self.electrolyte.molar_volumes * concentrations).sum(-1)
        if bool((filled >= 1).any()):
            raise ValueError(
                f"Cell: {name} must leave room for the solvent, but ions of these diameters fill "
                f"{filled.max().item():.3g} of the volume."
            )

    def _check_ends(self) -> None:
        ends = (self.left, self.right)
        if any(isinstance(end, Periodic) for end in ends):
            if self.left is not self.right:
                raise ValueError("Cell: both ends must be the same Periodic, left=p, right=p.")
            if self.ground is not None:
                raise ValueError("Cell: a periodic cell must have no ground; its left end is at zero.")
        driven = [isinstance(end, Electrode) and end.current is not None for end in ends]
        if any(driven) and self.ground is None:
            if all(driven):
                raise ValueError("Cell: currents must not be given at both ends, unless a ground is between.")
            if any(isinstance(end, ChargedWall) for end in ends):
                raise ValueError(
                    "Cell: no current passes an insulating ChargedWall; give a potential instead."
                )
        self._check_counter_ions()

    def _check_counter_ions(self) -> None:
        held = self.charged or self.ground is not None or callable(self.fixed_charge) or not self.is_closed
        if held or any(isinstance(end, ChargedWall) for end in (self.left, self.right)):
            return
        charges = self.electrolyte.valences.detach()
        fixed = self.fixed_charge.detach().to(charges.device)
        positive = (charges > 0).any(-1) | (fixed > 0)
        negative = (charges < 0).any(-1) | (fixed < 0)
        if bool((positive != negative).any()):
            raise ValueError(
                "Cell: a closed cell needs counter-ions, but all of its charges have one sign: valences "
                f"{charges.reshape(-1, charges.shape[-1])[0].tolist()}, fixed charge "
                f"{fixed.reshape(-1)[0].item():g} (charged=True accepts it)."
            )

    def _ground(self) -> Tensor:
        position = as_quantity(self.ground, "Cell: ground", above=0.0)
        broadcast_batch(ground=position.shape, length=self.length.shape)
        if bool((position >= self.length).any()):
            raise ValueError(
                f"Cell: ground must lie inside the cell, between 0 and length = "
                f"{self.length.max().item():g}, got {position.max().item():g}."
            )
        return position

    def _parts(self) -> dict[str, Tensor]:
        parts = {
            "electrolyte valences": self.electrolyte.valences[..., 0],
            "electrolyte diffusivities": self.electrolyte.diffusivities[..., 0],
            "relative_permittivity": self.electrolyte.permittivity,
            "temperature": self.electrolyte.thermal_voltage,
            "length": self.length,
            "concentrations": self.concentrations[..., 0],
            "fixed_charge": None if callable(self.fixed_charge) else self.fixed_charge,
            "ground": self.ground,
        }
        parts["diameter"] = self.electrolyte.diameters[..., 0]
        parts["solvent_diameter"] = self.electrolyte.solvent_diameter
        for reaction in self.electrolyte.reactions:
            parts |= {"forward rate constant": reaction.forward, "backward rate constant": reaction.backward}
        for side in ("left", "right"):
            for name, value in vars(getattr(self, side)).items():
                if name == "reactions":
                    for transfer in value:
                        parts |= {f"{side} {key}": number for key, number in vars(transfer).items()}
                elif isinstance(value, Waveform):
                    parts[f"{side} {name}"] = at_start(value)
                elif name == "concentrations":
                    parts[f"{side} {name}"] = value[..., 0]
                else:
                    parts[f"{side} {name}"] = value
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    def _broadcast(self) -> torch.Size:
        return broadcast_batch(**{name: part.shape for name, part in self._parts().items()})

    def _common_device(self) -> torch.device:
        on_accelerator = {part.device for part in self._parts().values() if part.device.type != "cpu"}
        if len(on_accelerator) > 1:
            raise ValueError(f"Cell: tensors on several devices: {sorted(map(str, on_accelerator))}.")
        return on_accelerator.pop() if on_accelerator else torch.device("cpu")


def electrons(reaction: ElectrodeReaction, electrolyte: Electrolyte) -> Tensor:
    """Electrons that a reduction takes up, n > 0, `(*batch)`; ValueError where it takes up none."""
    names, valences = electrolyte.names, electrolyte.valences
    oxidised = numbers_of(reaction.oxidised, names, "ElectrodeReaction: oxidised").to(valences.device)
    reduced = numbers_of(reaction.reduced, names, "ElectrodeReaction: reduced").to(valences.device)
    count = (valences * (oxidised - reduced)).sum(-1)
    if bool((count <= 0).any()):
        raise ValueError(
            f"ElectrodeReaction: {dict(reaction.oxidised)} + n e- -> {dict(reaction.reduced)} must take up "
            f"electrons, but the valences give n = {count.detach().min().item():g}."
        )
    return count


def _null_space(changes: Tensor) -> Tensor:
    """Rows that are orthogonal to all of `changes` `(reaction, species)`, in reduced echelon form."""
    _, sizes, rows = torch.linalg.svd(changes)
    kernel = rows[int((sizes > 1e-12 * sizes.max()).sum()) :].clone()
    for row in range(kernel.shape[0]):
        taken = kernel[row:].abs()
        pivot = int(taken.amax(0).argmax())
        best = row + int(taken[:, pivot].argmax())
        kernel[[row, best]] = kernel[[best, row]]
        kernel[row] = kernel[row] / kernel[row, pivot].clone()
        others = torch.arange(kernel.shape[0]) != row
        kernel[others] = kernel[others] - kernel[others, pivot : pivot + 1] * kernel[row]
    return torch.where(kernel.abs() < 1e-12, 0.0, kernel)
