"""Random cells for the tests of what every solution must keep."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from hypothesis import strategies as st

import pnp

from .problems import electrolyte

NODES = 41  # odd, so that a grid with a ground has a mirror image


@dataclass(frozen=True)
class RandomCell:
    """The numbers of a dimensionless cell, so that its mirror image and its conjugate can be built too.

    Attributes:
        valences, diffusivities, filling: Per species.
        debye: Debye length of the filling over the length.
        potentials: Of the left and right electrode.
        stern: Stern capacitances over the capacitance of the double layer, None: no Stern layer.
        ground: Position of the ground over the length, None: there is none.
        fixed_charge: Its density.
    """

    valences: tuple[float, ...]
    diffusivities: tuple[float, ...]
    filling: tuple[float, ...]
    debye: float
    length: float
    potentials: tuple[float, float]
    stern: tuple[float | None, float | None]
    ground: float | None
    fixed_charge: float

    @property
    def permittivity(self) -> float:
        strength = np.array(self.valences) ** 2 @ np.array(self.filling)
        return float((self.debye * self.length) ** 2 * (strength or 1.0))

    def cell(self) -> pnp.Cell:
        layer = self.permittivity / (self.debye * self.length)
        electrodes = [
            pnp.Electrode(potential=potential, stern_capacitance=None if stern is None else stern * layer)
            for potential, stern in zip(self.potentials, self.stern, strict=True)
        ]
        return pnp.Cell(
            electrolyte(self.permittivity, self.valences, self.diffusivities),
            length=self.length,
            concentrations=self.filling,
            left=electrodes[0],
            right=electrodes[1],
            fixed_charge=self.fixed_charge,
            charged=True,
            ground=None if self.ground is None else self.ground * self.length,
        )

    def mirrored(self) -> "RandomCell":
        """Left and right exchanged."""
        ground = None if self.ground is None else 1 - self.ground
        return replace(self, potentials=self.potentials[::-1], stern=self.stern[::-1], ground=ground)

    def conjugated(self) -> "RandomCell":
        """Every sign of charge and potential turned over."""
        return replace(
            self,
            valences=tuple(-z for z in self.valences),
            potentials=tuple(-u for u in self.potentials),
            fixed_charge=-self.fixed_charge,
        )

    @property
    def relaxation(self) -> float:
        """Bulk diffusion time of the fastest species."""
        return self.length**2 / max(self.diffusivities)


def stacked(cells: list[RandomCell]) -> pnp.Cell:
    """One batch of cells that have the same species, layers and ground or none."""

    def stack(values):
        return None if values[0] is None else torch.tensor(values, dtype=torch.float64)

    layers = [one.permittivity / (one.debye * one.length) for one in cells]
    electrodes = []
    for side in (0, 1):
        stern = [
            None if one.stern[side] is None else one.stern[side] * layer
            for one, layer in zip(cells, layers, strict=True)
        ]
        potential = stack([one.potentials[side] for one in cells])
        electrodes.append(pnp.Electrode(potential=potential, stern_capacitance=stack(stern)))
    return pnp.Cell(
        electrolyte(
            stack([one.permittivity for one in cells]),
            stack([one.valences for one in cells]).unbind(-1),
            stack([one.diffusivities for one in cells]).unbind(-1),
        ),
        length=stack([one.length for one in cells]),
        concentrations=stack([one.filling for one in cells]),
        left=electrodes[0],
        right=electrodes[1],
        fixed_charge=stack([one.fixed_charge for one in cells]),
        charged=True,
        ground=stack([None if one.ground is None else one.ground * one.length for one in cells]),
    )


def _neutral(valences: list[float], filling: list[float], fixed: float) -> tuple[float, ...]:
    """The filling with one species topped up until the charges sum to nothing."""
    excess = float(np.dot(valences, filling)) + fixed
    filling = list(filling)
    for i, z in enumerate(valences):
        if z * excess < 0:
            filling[i] -= excess / z
            break
    return tuple(filling)


@dataclass(frozen=True)
class Kind:
    """What cells of one batch have in common, and the ranges of their numbers."""

    species: int = 3
    stern: tuple[bool, bool] = (False, False)
    grounded: bool = False
    charged: bool = False
    whole: bool = False
    neutral: bool = True
    voltage: float = 20.0
    debyes: tuple[float, float] = (0.003, 3.0)


def sample(generator: np.random.Generator, kind: Kind) -> RandomCell:
    """A cell of this kind."""

    def number(low: float, high: float) -> float:
        return float(generator.uniform(low, high))

    def choice(*options: float) -> float:
        return float(generator.choice(options))

    signs = [1.0, -1.0] + [choice(1, -1) for _ in range(kind.species - 2)]
    if not kind.neutral:
        signs = [choice(1, -1, 0) for _ in range(kind.species)]
    valences = [sign * (choice(1, 2, 3) if kind.whole else number(0.2, 3.0)) for sign in signs]
    filling = [10 ** number(-2, 1) for _ in signs]
    fixed = number(-2, 2) if kind.charged and kind.neutral else 0.0
    return RandomCell(
        valences=tuple(valences),
        diffusivities=tuple(10 ** number(-1, 1) for _ in signs),
        filling=_neutral(valences, filling, fixed) if kind.neutral else tuple(filling),
        debye=10 ** number(*np.log10(kind.debyes)),
        length=10 ** number(-1, 1),
        potentials=(number(-kind.voltage, kind.voltage), number(-kind.voltage, kind.voltage)),
        stern=tuple(10 ** number(-1, 1) if there else None for there in kind.stern),
        ground=number(0.2, 0.8) if kind.grounded else None,
        fixed_charge=fixed,
    )


@st.composite
def random_cells(draw, *, size: int | None = None, grounds: bool = True, neutral: bool = True, **ranges):
    """A cell, or a list of `size` cells that fit into one batch; `ranges` are those of :class:`Kind`.

    What kind of cell it is is drawn by hypothesis, its numbers by a generator: hypothesis prefers zeros and
    ones, cells in which nothing happens.
    """
    kind = Kind(
        species=draw(st.integers(2 if neutral else 1, 4)),
        stern=(draw(st.booleans()), draw(st.booleans())),
        grounded=draw(st.booleans()) if grounds else False,
        charged=draw(st.booleans()),
        whole=draw(st.booleans()),
        neutral=neutral,
        **ranges,
    )
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    cells = [sample(generator, kind) for _ in range(size or 1)]
    return cells[0] if size is None else cells
