"""Batches of random cells: every kind of end in every kind of medium, seeded."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch

import pnp

ENDS = {
    "two electrodes": 40.0,
    "Stern layers": 40.0,
    "electrodes and ground": 40.0,
    "electrode and bath": 5.0,
    "two baths": 5.0,
    "charged wall and electrode": 20.0,
    "charged walls": 0.0,
    "reacting electrodes": 20.0,
    "reacting electrode and bath": 5.0,
    "driven electrodes": 5.0,
    "periodic": 20.0,
}
"""Kinds of ends, and the largest potential in thermal voltages."""
MEDIA = ("point ions", "finite ions", "association", "layers")


class Draw:
    """Random numbers for a batch of cells, or for those elements of it that are in `only`."""

    def __init__(self, count: int, seed: int, only: Sequence[int] | None = None) -> None:
        self.count = count
        self._only = list(range(count) if only is None else only)
        self._generator = torch.Generator().manual_seed(seed)

    def uniform(self, low: float, high: float, *shape: int) -> torch.Tensor:
        sample = torch.rand(self.count, *shape, generator=self._generator, dtype=torch.float64)
        return low + (high - low) * sample[self._only]

    def decades(self, low: float, high: float, *shape: int) -> torch.Tensor:
        """Log-uniform between powers of ten."""
        return 10 ** self.uniform(low, high, *shape)


def kinds() -> Iterator[tuple[str, str]]:
    """All pairs of ends and medium."""
    return itertools.product(ENDS, MEDIA)


def random_cells(
    ends: str, medium: str, count: int, seed: int = 0, only: Sequence[int] | None = None
) -> pnp.Cell:
    """A batch of random cells of one kind, neutral on the whole; `only` some elements of the batch."""
    draw = Draw(count, seed, only)
    electrolyte, filling, permittivity = _electrolyte(draw, medium)
    left, right = _ends(draw, ends, electrolyte, filling, permittivity)
    jump, slope = draw.decades(-1, 1), draw.uniform(-0.8, 0.8)
    layered = medium == "layers"
    fixed = draw.uniform(-1, 1).unsqueeze(-1) * (electrolyte.valences.abs() * filling).sum(-1, keepdim=True)
    return pnp.Cell(
        electrolyte,
        length=1.0,
        concentrations=filling,
        left=left,
        right=right,
        ground=draw.uniform(0.1, 0.9) if "ground" in ends else None,
        # The nodes of a uniform grid sum a cosine to zero, so that the cell stays neutral.
        fixed_charge=(lambda x: fixed * torch.cos(2 * torch.pi * x)) if ends == "periodic" else 0.0,
        permittivity_profile=(lambda x: torch.where(x < 0.5, 1.0, jump.unsqueeze(-1))) if layered else None,
        diffusivity_profile=(lambda x: 1 + slope.unsqueeze(-1) * x) if layered else None,
    )


def _electrolyte(draw: Draw, medium: str) -> tuple[pnp.Electrolyte, torch.Tensor, torch.Tensor]:
    up, down = draw.uniform(0.5, 3), -draw.uniform(0.5, 3)
    cations = draw.decades(-1, 1)
    valences, filling, reactions = [up, down], [cations, -cations * up / down], []
    if medium == "association":
        share = 0.2 * (-up / down).clamp(max=1.0) * cations
        valences.append(up + down)
        filling = [cations, -(up * cations + (up + down) * share) / down, share]
        forward = draw.decades(-2, 2)
        reactions = [
            pnp.Reaction({"+": 1, "-": 1}, {"pair": 1}, forward=forward, backward=draw.decades(-2, 2))
        ]
    names = ["+", "-", "pair"][: len(valences)]
    amounts, charges = torch.stack(filling, -1), torch.stack(valences, -1)
    sizes = torch.zeros_like(amounts)
    if medium == "finite ions":
        # Of different sizes, and filling between a thousandth and a half of the room.
        parts = draw.decades(-3, -0.3).unsqueeze(-1) * draw.uniform(0.2, 1, 2)
        sizes = (parts / 2 / amounts) ** (1 / 3)
    species = [
        pnp.Species(name, valence=charges[:, i], diffusivity=draw.decades(-1, 1), diameter=sizes[:, i])
        for i, name in enumerate(names)
    ]
    permittivity = draw.decades(-6, 0) * (charges**2 * amounts).sum(-1)
    return (
        pnp.Electrolyte.dimensionless(species, permittivity=permittivity, reactions=reactions),
        amounts,
        permittivity,
    )


def _ends(
    draw: Draw, ends: str, electrolyte: pnp.Electrolyte, filling: torch.Tensor, permittivity: torch.Tensor
) -> tuple[pnp.boundaries.Boundary, pnp.boundaries.Boundary]:
    bound = ENDS[ends]
    volts = draw.uniform(-bound, bound), draw.uniform(-bound, bound)
    stern = draw.decades(-2, 2), draw.decades(-2, 2)
    # A bath of finite ions must leave room, which the filling does.
    most = 0 if electrolyte.has_finite_ions else 1
    baths = [
        pnp.Reservoir(concentrations=filling * draw.decades(-1, most, 1), potential=one) for one in volts
    ]
    plain = [pnp.Electrode(potential=one) for one in volts]
    reacting = [
        pnp.Electrode(potential=one, stern_capacitance=layer * permittivity.sqrt(), reactions=_plating(draw))
        for one, layer in zip(volts, stern, strict=True)
    ]
    current = draw.uniform(-1, 1) * (electrolyte.valences * electrolyte.diffusivities * filling)[:, 0]
    driven = pnp.Electrode(
        current=current, stern_capacitance=reacting[0].stern_capacitance, reactions=reacting[0].reactions
    )
    charge = draw.uniform(-1, 1) * (electrolyte.valences * filling)[:, 0]
    ring = pnp.Periodic(potential_drop=volts[0])
    layers = [
        pnp.Electrode(potential=one, stern_capacitance=layer) for one, layer in zip(volts, stern, strict=True)
    ]
    return {
        "two electrodes": (plain[0], plain[1]),
        "Stern layers": (layers[0], layers[1]),
        "electrodes and ground": (plain[0], plain[1]),
        "electrode and bath": (plain[0], baths[1]),
        "two baths": (baths[0], baths[1]),
        "charged wall and electrode": (pnp.ChargedWall(charge=charge), plain[1]),
        "charged walls": (pnp.ChargedWall(charge=charge), pnp.ChargedWall(charge=-charge)),
        "reacting electrodes": (reacting[0], reacting[1]),
        "reacting electrode and bath": (reacting[0], baths[1]),
        "driven electrodes": (driven, reacting[1]),
        "periodic": (ring, ring),
    }[ends]


def _plating(draw: Draw) -> pnp.ElectrodeReaction:
    return pnp.ElectrodeReaction(
        {"+": 1},
        {},
        rate_constant=draw.decades(-2, 2),
        standard_potential=draw.uniform(-2, 2),
        transfer_coefficient=draw.uniform(0.2, 0.8),
    )


def conjugated(cell: pnp.Cell) -> pnp.Cell:
    """Every sign of charge turned over: potentials change sign, what takes up electrons gives them off."""

    def reversed_(reaction: pnp.ElectrodeReaction) -> pnp.ElectrodeReaction:
        return replace(
            reaction,
            oxidised=reaction.reduced,
            reduced=reaction.oxidised,
            standard_potential=-reaction.standard_potential,
            transfer_coefficient=1 - reaction.transfer_coefficient,
        )

    electrolyte = cell.electrolyte
    return _changed(
        cell,
        lambda end: _signed(end, reversed_),
        electrolyte=replace(
            electrolyte, species=[replace(one, valence=-one.valence) for one in electrolyte.species]
        ),
        fixed_charge=_after(cell.fixed_charge, lambda x: x, -1.0),
    )


def mirrored(cell: pnp.Cell) -> pnp.Cell:
    """Left and right exchanged."""

    def turned(x: torch.Tensor) -> torch.Tensor:
        return cell.length.unsqueeze(-1) - x

    def end(one: pnp.boundaries.Boundary) -> pnp.boundaries.Boundary:
        if isinstance(one, pnp.Electrode) and one.current is not None:
            return replace(one, current=-one.current)
        return pnp.Periodic(potential_drop=-one.potential_drop) if isinstance(one, pnp.Periodic) else one

    return _changed(
        replace(cell, left=cell.right, right=cell.left),
        end,
        ground=None if cell.ground is None else cell.length - cell.ground,
        fixed_charge=_after(cell.fixed_charge, turned),
        permittivity_profile=_after(cell.permittivity_profile, turned),
        diffusivity_profile=_after(cell.diffusivity_profile, turned),
    )


def _changed(cell: pnp.Cell, change: Callable, **others: object) -> pnp.Cell:
    """With both ends changed, which of a periodic cell are one."""
    left = change(cell.left)
    return replace(cell, left=left, right=left if cell.is_periodic else change(cell.right), **others)


def _signed(end: pnp.boundaries.Boundary, reaction: Callable) -> pnp.boundaries.Boundary:
    """An end with every number that has the sign of a charge turned over."""
    names = ("potential", "current", "charge", "potential_drop")
    changes = {name: -value for name, value in vars(end).items() if name in names and value is not None}
    if isinstance(end, pnp.Electrode):
        changes["reactions"] = [reaction(one) for one in end.reactions]
    return replace(end, **changes)


def _after(value: object, place: Callable, factor: float = 1.0) -> object:
    """A number or a function of position, elsewhere and times a factor."""
    if callable(value):
        return lambda x: factor * value(place(x))
    return value if value is None or factor == 1.0 else factor * value
