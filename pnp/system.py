"""The scaled equations of a flat batch of cells, as tensors: what the solvers see."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Batched:
    """A dataclass of tensors that share their first axis."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Any:
        """Apply `function` to every tensor inside."""
        changed = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                changed[part.name] = function(value)
            elif isinstance(value, Batched):
                changed[part.name] = value.map(function)
        return replace(self, **changed)

    def tensors(self) -> list[Tensor]:
        """Every tensor inside, in a fixed order."""
        found: list[Tensor] = []
        self.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def with_tensors(self, tensors: Iterable[Tensor]) -> Any:
        """The same with other tensors, in the order of :meth:`tensors`."""
        following = iter(tensors)
        return self.map(lambda _: next(following))

    def select(self, elements: Tensor) -> Any:
        """The batch elements with these indices."""
        return self.map(lambda tensor: tensor.index_select(0, elements))

    def replaced(self, elements: Tensor, other: Any) -> Any:
        """With the batch elements of these indices taken from `other`, which holds them alone."""
        changed = {}
        for part in fields(self):
            value, new = getattr(self, part.name), getattr(other, part.name)
            if isinstance(value, Tensor):
                changed[part.name] = value.index_copy(0, elements, new)
            elif isinstance(value, Batched):
                changed[part.name] = value.replaced(elements, new)
        return replace(self, **changed)

    def detach(self) -> Any:
        """The same numbers without gradients."""
        return self.map(Tensor.detach)

    def requires_grad(self) -> bool:
        """Whether any tensor inside requires a gradient."""
        values = (getattr(self, part.name) for part in fields(self))
        return any(
            value.requires_grad if isinstance(value, Tensor) else value.requires_grad()
            for value in values
            if isinstance(value, Tensor | Batched)
        )


@dataclass(frozen=True, eq=False)
class Kinetics(Batched):
    """Reactions at one electrode, scaled: R of them. Their rates are in :mod:`pnp.finite_volume.kinetics`."""

    log_constant: Tensor  # (B, R), of the rate at unit activities (scaled) and eta = 0
    log_standard: Tensor  # (B, R), of the standard concentration
    standard_potential: Tensor  # (B, R)
    transfer: Tensor  # (B, R)
    electrons: Tensor  # (B, R)
    oxidised: Tensor  # (B, R, S)
    reduced: Tensor  # (B, R, S)


@dataclass(frozen=True, eq=False)
class MassAction(Batched):
    """Reactions in the electrolyte, scaled: R of them."""

    forward: Tensor  # (B, R)
    backward: Tensor  # (B, R)
    reactants: Tensor  # (B, R, S)
    products: Tensor  # (B, R, S)


POTENTIAL, CHARGE, CURRENT, PERIODIC = "potential", "charge", "current", "periodic"


@dataclass(frozen=True, eq=False)
class End(Batched):
    """One boundary, scaled.

    `level` `(B,)` is what is imposed: the potential, the surface charge, the current or (left end of a
    periodic cell) the potential drop, as `control` says. Stern capacitance `(B,)`, bath `(B, S)` and
    electrode kinetics are None where there are none.
    """

    level: Tensor
    control: str
    stern_capacitance: Tensor | None
    bath: Tensor | None
    kinetics: Kinetics | None

    @property
    def holds_potential(self) -> bool:
        """Whether the potential of the end node is given (no Stern layer in between)."""
        return self.control == POTENTIAL and self.stern_capacitance is None


@dataclass(frozen=True, eq=False)
class Crowding(Batched):
    """Finite ion size, scaled: volumes of the ions over the inverse unit of concentration, and of the solvent."""

    volumes: Tensor  # (B, S)
    solvent: Tensor  # (B,)


@dataclass(frozen=True, eq=False)
class System(Batched):
    """All numbers of the scaled equations on a grid, for a flat batch of B cells.

    What is uniform along the cell has one edge, which broadcasts.
    """

    valences: Tensor  # (B, S)
    diffusivities: Tensor  # (B, S, E or 1)
    permittivity: Tensor  # (B, E or 1)
    fixed_charge: Tensor  # (B, N or 1)
    filling: Tensor  # (B, S)
    spacings: Tensor  # (B, N - 1)
    volumes: Tensor  # (B, N)
    conserved: Tensor | None  # (B, L, S); None: the amount of every species
    left: End
    right: End
    ground_node: int | None
    floats: bool
    crowding: Crowding | None
    reactions: MassAction | None

    @property
    def ends(self) -> tuple[tuple[int, End], tuple[int, End]]:
        """The node and the boundary of either end."""
        return (0, self.left), (-1, self.right)

    @property
    def is_periodic(self) -> bool:
        """Whether the two ends are one place."""
        return self.left.control == PERIODIC

    @property
    def own_nodes(self) -> slice:
        """The nodes that are no copy of another: of a periodic cell all but the last."""
        return slice(-1 if self.is_periodic else None)

    @property
    def couplings(self) -> Tensor:
        """What ties the species to the fields: valences to the potential, sizes to the pressure, `(B, S, P)`."""
        if self.crowding is None:
            return self.valences.unsqueeze(-1)
        return torch.stack([self.valences, self.crowding.volumes / self.crowding.solvent[:, None]], dim=-1)

    @property
    def laws(self) -> int:
        """How many combinations of amounts are conserved."""
        return self.valences.shape[1] if self.conserved is None else self.conserved.shape[1]

    def combined(self, amounts: Tensor) -> Tensor:
        """The conserved combinations `(B, L, ...)` of amounts `(B, S, ...)`."""
        if self.conserved is None:
            return amounts
        return (self.conserved @ amounts.flatten(2)).reshape(*self.conserved.shape[:2], *amounts.shape[2:])

    @property
    def has_kinetics(self) -> bool:
        """Whether species turn into each other anywhere."""
        return self.reactions is not None or any(end.kinetics is not None for _, end in self.ends)

    @property
    def amounts(self) -> Tensor:
        """Amounts of the filling, shape `(B, S)`."""
        return self.filling * self.volumes.sum(-1, keepdim=True)

    @property
    def kept(self) -> Tensor:
        """The conserved combinations of the filling's amounts, `(B, L)`."""
        return self.combined(self.amounts.unsqueeze(-1)).squeeze(-1)

    @property
    def levels(self) -> Tensor:
        """What the two ends impose, `(B, 2)`."""
        return torch.stack([self.left.level, self.right.level], dim=-1)

    def with_levels(self, levels: Tensor) -> "System":
        """The same system with other imposed potentials, charges or currents, `(B, 2)`."""
        left, right = replace(self.left, level=levels[:, 0]), replace(self.right, level=levels[:, 1])
        return replace(self, left=left, right=right)


@dataclass(frozen=True, eq=False)
class State(Batched):
    """Scaled concentrations `(B, S, N)` and fields `(B, P, N)`: the potential and, of finite ions, the pressure."""

    concentrations: Tensor
    fields: Tensor

    @property
    def potential(self) -> Tensor:
        """`(B, N)`."""
        return self.fields[:, 0]
