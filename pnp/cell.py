"""The electrolytic cell: an electrolyte between two boundaries."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from .boundaries import Boundary, Electrode, Reservoir
from .electrolyte import Electrolyte
from .quantity import Quantity, as_quantity, broadcast_batch


@dataclass(frozen=True, eq=False, repr=False)
class Cell:
    r"""An electrolyte on :math:`0 \le x \le L` between two boundaries.

    Arguments:
        electrolyte: Species and solvent.
        length: :math:`L > 0` [m].
        concentrations: The filling, :math:`c_i > 0` [mol m⁻³]: one number for all species, a sequence or
            tensor `(*batch, species)`, or a mapping from species name to number. It is the state at
            the start of a transient, and it fixes the amounts of a cell that is closed at both ends.
        left, right: :class:`Electrode` or :class:`Reservoir` at :math:`x = 0` and :math:`x = L`.
        fixed_charge: Immobile charge :math:`\rho_\mathrm{fixed}` [mol m⁻³ of elementary charges]: a
            number `(*batch)`, or a function of position that takes the node positions `(*batch, node)`.
        ground: Position :math:`0 < b < L` [m] of a grid that ions pass and that is held at zero
            potential, the boundary *b* between the electrodes; None: there is none.

    Numbers broadcast over batch axes and may require gradients. The canonical cell of the project has
    electrodes at :math:`+U_0` (left) and :math:`-U_0` (right), so that cations migrate to the right.

    Raises:
        TypeError: A boundary that is neither electrode nor reservoir.
        ValueError: A number out of range, wrong number of species, unknown species name, batch axes
            that do not broadcast, tensors on several devices, or a reservoir that is not neutral.
    """

    electrolyte: Electrolyte
    _: KW_ONLY
    length: Quantity
    concentrations: Quantity
    left: Boundary
    right: Boundary
    fixed_charge: Quantity = 0.0
    ground: Quantity = None

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "length", as_quantity(self.length, "Cell: length", above=0.0))
        put(self, "concentrations", self._per_species(self.concentrations, "Cell: concentrations", above=0.0))
        for side in ("left", "right"):
            put(self, side, self._boundary(side))
        if not callable(self.fixed_charge):
            put(self, "fixed_charge", as_quantity(self.fixed_charge, "Cell: fixed_charge"))
        if self.ground is not None:
            put(self, "ground", self._ground())
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
        """Whether no ion can enter or leave, so that the filling fixes the amounts."""
        return isinstance(self.left, Electrode) and isinstance(self.right, Electrode)

    @property
    def comes_to_rest(self) -> bool:
        """Whether the steady state has no flux at all: at most one end is a reservoir."""
        return isinstance(self.left, Electrode) or isinstance(self.right, Electrode)

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
        if isinstance(boundary, Electrode):
            return boundary
        if not isinstance(boundary, Reservoir):
            raise TypeError(f"Cell: {side} must be an Electrode or a Reservoir, got {boundary!r}.")
        name = f"Cell: concentrations of the {side} reservoir"
        concentrations = self._per_species(boundary.concentrations, name, at_least=0.0)
        valences = self.electrolyte.valences
        broadcast_batch(**{name: concentrations.shape[:-1], "valences": valences.shape[:-1]})
        charge = (valences * concentrations).sum(-1)
        scale = (valences.abs() * concentrations).sum(-1)
        if not callable(self.fixed_charge):
            charge = charge + as_quantity(self.fixed_charge, "Cell: fixed_charge")
        if bool((charge.abs() > 1e-8 * scale).any()) and not callable(self.fixed_charge):
            raise ValueError(
                f"Cell: the {side} reservoir must be neutral (sum of valence times concentration, and "
                f"fixed charge, zero), got {charge.detach().abs().max().item():g} mol/m³ of charge."
            )
        return Reservoir(concentrations=concentrations, potential=boundary.potential)

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
        for side in ("left", "right"):
            boundary = getattr(self, side)
            parts[f"{side} potential"] = boundary.potential
            if isinstance(boundary, Reservoir):
                parts[f"{side} concentrations"] = boundary.concentrations[..., 0]
            else:
                parts[f"{side} stern_capacitance"] = boundary.stern_capacitance
        return {name: part for name, part in parts.items() if isinstance(part, Tensor)}

    def _broadcast(self) -> torch.Size:
        return broadcast_batch(**{name: part.shape for name, part in self._parts().items()})

    def _common_device(self) -> torch.device:
        on_accelerator = {part.device for part in self._parts().values() if part.device.type != "cpu"}
        if len(on_accelerator) > 1:
            raise ValueError(f"Cell: tensors on several devices: {sorted(map(str, on_accelerator))}.")
        return on_accelerator.pop() if on_accelerator else torch.device("cpu")
