"""Order of accuracy on solutions that sympy makes, and transients against collocation on Chebyshev points.

A manufactured steady state starts from a potential and concentrations that are written down. What the cell must be
to have them follows by differentiation: fixed charge from Poisson's equation, and diffusivities from constant fluxes.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
from numpy.polynomial import chebyshev
from scipy.integrate import quad, solve_ivp

import pnp

X = sp.Symbol("x", real=True)
NODES = (41, 81, 161)


def function(expression: sp.Expr) -> Callable[[torch.Tensor], torch.Tensor]:
    """An expression in x as a function of tensors."""
    compiled = sp.lambdify(X, sp.sympify(expression), modules="numpy")
    return lambda x: torch.from_numpy(compiled(x.numpy()) + np.zeros(x.shape))


def at(expression: sp.Expr, position: float) -> float:
    return float(sp.sympify(expression).subs(X, position))


def stacked(expressions: Sequence[sp.Expr]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Several expressions, along an axis before that of position."""
    functions = [function(one) for one in expressions]
    return lambda x: torch.stack([one(x) for one in functions], dim=-2)


@dataclass(frozen=True)
class Manufactured:
    """A steady state on 0 <= x <= 1; `fluxes` are expressions too, constant unless something reacts."""

    potential: sp.Expr
    concentrations: Sequence[sp.Expr]
    valences: Sequence[float]
    permittivity: sp.Expr
    fluxes: Sequence[sp.Expr]
    diameters: Sequence[float] = ()
    solvent: float | None = None
    displacement: sp.Expr | None = None
    """Of permittivity phi', where the permittivity jumps."""

    @property
    def fixed_charge(self) -> sp.Expr:
        mobile = sum(z * c for z, c in zip(self.valences, self.concentrations, strict=True))
        displacement = self.permittivity * sp.diff(self.potential, X)
        displacement = displacement if self.displacement is None else self.displacement
        return -sp.diff(displacement, X) - mobile

    @property
    def forces(self) -> list[sp.Expr]:
        """Of every ion, c' + z c phi' + w c p'."""
        sizes = [a**3 for a in self.diameters] or [0.0] * len(self.valences)
        pressure = -sp.log(1 - sum(v * c for v, c in zip(sizes, self.concentrations, strict=True)))
        rows = zip(self.valences, self.concentrations, sizes, strict=True)
        return [
            sp.diff(c, X)
            + z * c * sp.diff(self.potential, X)
            + (v / self.solvent**3 * c * sp.diff(pressure, X) if self.solvent else 0)
            for z, c, v in rows
        ]

    @property
    def diffusivities(self) -> list[sp.Expr]:
        """What has these fluxes; one where there is none."""
        pairs = zip(self.fluxes, self.forces, strict=True)
        return [sp.Integer(1) if flux == 0 else -flux / force for flux, force in pairs]

    def cell(
        self, left: Any, right: Any, filling: Any = 1.0, reactions: Sequence[pnp.Reaction] = ()
    ) -> pnp.Cell:
        sizes, unit = self.diameters or [0.0] * len(self.valences), at(self.permittivity, 0)
        species = [
            pnp.Species(f"s{i}", valence=z, diffusivity=1.0, diameter=a)
            for i, (z, a) in enumerate(zip(self.valences, sizes, strict=True))
        ]
        return pnp.Cell(
            pnp.Electrolyte.dimensionless(
                species, permittivity=unit, reactions=reactions, solvent_diameter=self.solvent
            ),
            length=1.0,
            concentrations=filling,
            left=left,
            right=right,
            fixed_charge=function(self.fixed_charge),
            permittivity_profile=function(self.permittivity / unit),
            diffusivity_profile=stacked(self.diffusivities),
        )

    def bath(self, position: float) -> pnp.Reservoir:
        return pnp.Reservoir(
            concentrations=[at(c, position) for c in self.concentrations],
            potential=at(self.potential, position),
        )

    def errors(self, solution: pnp.Solution) -> np.ndarray:
        """Largest errors of potential, concentrations and fluxes."""
        x, middles = solution.grid.nodes, solution.grid.middles
        return np.array(
            [
                float((found - wanted).abs().max())
                for found, wanted in (
                    (solution.potential, function(self.potential)(x)),
                    (solution.concentrations, stacked(self.concentrations)(x)),
                    (pnp.ion_flux(solution), stacked(self.fluxes)(middles)),
                )
            ]
        )

    def errors_on_grids(self, cell: pnp.Cell, grid: Callable[[pnp.Cell, int], pnp.Grid]) -> np.ndarray:
        """`(grid, quantity)`."""
        return np.array([self.errors(pnp.solve_steady(cell, grid(cell, nodes))) for nodes in NODES])


def assert_second_order(errors: np.ndarray, finest: float) -> None:
    orders = np.array([np.log2(a / b) for a, b in pairwise(errors)])
    assert np.abs(orders - 2).max() < 0.1, orders
    assert errors[-1].max() < finest
    assert errors[-1].min() > 1e-9  # else nothing was measured


# ---- equilibria


def boltzmann(potential: sp.Expr, valences: Sequence[float], levels: Sequence[float]) -> list[sp.Expr]:
    return [level * sp.exp(-z * potential) for z, level in zip(valences, levels, strict=True)]


def amounts(concentrations: Sequence[sp.Expr]) -> list[float]:
    total = []
    for one in concentrations:
        compiled = sp.lambdify(X, one, modules="math")
        total.append(quad(compiled, 0, 0.5, epsabs=1e-13)[0] + quad(compiled, 0.5, 1, epsabs=1e-13)[0])
    return total


GRIDS = {"uniform": pnp.Grid.uniform, "refined": pnp.Grid.refined}
VALENCES, LEVELS = (1.0, -2.0, 0.5), (0.7, 0.4, 0.9)


def resting(potential: sp.Expr, permittivity: sp.Expr, displacement: sp.Expr | None = None) -> Manufactured:
    ions = boltzmann(potential, VALENCES, LEVELS)
    return Manufactured(potential, ions, VALENCES, permittivity, (0, 0, 0), displacement=displacement)


BENT = resting(sp.cos(2 * X) + X / 2, sp.Rational(1, 50) * (1 + X + sp.sin(3 * X) / 2))


def left_end(kind: str) -> pnp.Electrode | pnp.ChargedWall:
    wall, charge = at(BENT.potential, 0), -at(BENT.permittivity * sp.diff(BENT.potential, X), 0)
    if kind == "wall":
        return pnp.ChargedWall(charge=charge)
    if kind == "stern":
        return pnp.Electrode(potential=wall + charge / 0.3, stern_capacitance=0.3)
    return pnp.Electrode(potential=wall)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("left", ["touching", "stern", "wall"])
def test_equilibria_in_a_varying_permittivity(left, grid):
    right = pnp.Electrode(potential=at(BENT.potential, 1))
    cell = BENT.cell(left_end(left), right, amounts(BENT.concentrations))
    assert_second_order(BENT.errors_on_grids(cell, GRIDS[grid])[:, :2], 5e-4)


def test_refined_grids_are_graded_here():
    cell = BENT.cell(left_end("touching"), left_end("touching"))
    spacings = pnp.Grid.refined(cell, NODES[0]).spacings
    assert float(spacings.max() / spacings.min()) > 3


@pytest.mark.parametrize("grid", GRIDS)
def test_equilibrium_across_a_jump_of_permittivity(grid):
    # phi' = G'/permittivity on both sides, so that the potential bends and its displacement does not.
    displaced = sp.sin(2 * X) / 100 - X**2 / 250
    middle, low, high = sp.Rational(1, 2), sp.Rational(1, 100), sp.Rational(1, 20)
    inside = sp.Min(X, middle)
    potential = displaced.subs(X, inside) / low + (displaced - displaced.subs(X, inside)) / high
    permittivity = low + (high - low) * sp.Heaviside(X - middle, middle)
    case = resting(potential, permittivity, sp.diff(displaced, X))
    ends = [pnp.Electrode(potential=at(case.potential, end)) for end in (0, 1)]
    cell = case.cell(*ends, amounts(case.concentrations))
    assert_second_order(case.errors_on_grids(cell, GRIDS[grid])[:, :2], 1e-3)


# ---- steady fluxes


FALLING = -X / 2 - sp.sin(3 * X) / 10
BETWEEN = (1 - X / 2 + sp.sin(4 * X) / 10, sp.Rational(2, 5) + X / 2 + X**2 / 5, 1 / (1 + X))
GRADED = sp.Rational(1, 20) * (1 + sp.sin(2 * X) / 2)
FLUXES = (1.2, -0.7, 0.3)
JUNCTIONS = {
    "points": Manufactured(FALLING, BETWEEN, (1.0, -2.0, 1.0), GRADED, FLUXES),
    "finite ions": Manufactured(
        FALLING, BETWEEN, (1.0, -2.0, 1.0), GRADED, FLUXES, diameters=(0.6, 0.7, 0.0), solvent=0.65
    ),
    "large ions": Manufactured(
        FALLING, BETWEEN, (1.0, -2.0, 1.0), GRADED, FLUXES, diameters=(0.6, 0.75, 0.7), solvent=0.75
    ),
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("kind", JUNCTIONS)
def test_fluxes_between_baths(kind, grid):
    case = JUNCTIONS[kind]
    diffusivities = stacked(case.diffusivities)(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert float(diffusivities.min()) > 0.1
    cell = case.cell(case.bath(0), case.bath(1))
    assert_second_order(case.errors_on_grids(cell, GRIDS[grid]), 5e-5)


def test_crowding_matters():
    """The finite ions above need other diffusivities than points, so that they test what they should."""
    x = torch.linspace(0, 1, 101, dtype=torch.float64)
    points, finite = (stacked(JUNCTIONS[kind].diffusivities)(x) for kind in ("points", "finite ions"))
    assert float((points / finite - 1).abs().amax(-1).max()) > 0.2


@pytest.mark.parametrize("kind", ["points", "finite ions"])
def test_fluxes_of_ions_that_react(kind):
    """s0 + s1 -> s2 at the rate r: the fluxes change by its integral, which is a polynomial for points."""
    forward, backward = 0.8, 0.5
    cation, anion, neutral = (1 - X / 2 + X**2 / 10, sp.Rational(3, 10) + X / 2, 1 - X / 3)
    sizes = {"diameters": (0.5, 0.6, 0.4), "solvent": 0.6} if kind == "finite ions" else {}
    case = Manufactured(FALLING, (cation, anion, neutral), (1.0, -1.0, 0.0), GRADED, (0, 0, 0), **sizes)
    activities = case.concentrations
    if sizes:
        room = 1 - sum(a**3 * c for a, c in zip(case.diameters, case.concentrations, strict=True))
        activities = [
            c * room ** (-((a / case.solvent) ** 3))
            for a, c in zip(case.diameters, case.concentrations, strict=True)
        ]
    rate = forward * activities[0] * activities[1] - backward * activities[2]
    made = _primitive(rate)
    fluxes = (sp.Rational(3, 2) - made, -1 - made, sp.Rational(1, 2) + made)
    case = Manufactured(FALLING, case.concentrations, case.valences, GRADED, fluxes, **sizes)
    diffusivities = stacked(case.diffusivities)(torch.linspace(0, 1, 101, dtype=torch.float64))
    assert float(diffusivities.min()) > 0.1
    reaction = pnp.Reaction({"s0": 1, "s1": 1}, {"s2": 1}, forward=forward, backward=backward)
    cell = case.cell(case.bath(0), case.bath(1), reactions=[reaction])
    assert_second_order(case.errors_on_grids(cell, pnp.Grid.uniform), 5e-5)


def _primitive(rate: sp.Expr) -> sp.Expr:
    """Integral from zero, of a polynomial of degree 24 through the Chebyshev points of `rate`."""
    series = chebyshev.Chebyshev.interpolate(sp.lambdify(X, rate, modules="numpy"), 24, domain=[0, 1])
    powers = series.integ(lbnd=0).convert(kind=np.polynomial.Polynomial, domain=[0, 1], window=[0, 1])
    return sum(float(power) * X**k for k, power in enumerate(powers.coef))


@pytest.mark.parametrize("alpha", [0.5, 0.2])
def test_flux_from_an_electrode_that_reacts(alpha):
    """Dissolution on the left, s0 - 2e- and a solid; its rate constant is what gives the flux."""
    flux, stern, standard = 0.6, 0.4, -0.3
    anion = sp.exp(FALLING) * sp.Rational(3, 5)
    case = Manufactured(FALLING, (BETWEEN[0], anion), (2.0, -1.0), GRADED, (flux, 0))
    step = -at(GRADED * sp.diff(FALLING, X), 0) / stern
    reduction = at(BETWEEN[0], 0) * math.exp(-2 * alpha * (step - standard))
    net = reduction - math.exp(2 * (1 - alpha) * (step - standard))
    dissolution = pnp.ElectrodeReaction(
        {"s0": 1}, {}, rate_constant=-flux / net, standard_potential=standard, transfer_coefficient=alpha
    )
    left = pnp.Electrode(potential=at(FALLING, 0) + step, stern_capacitance=stern, reactions=dissolution)
    cell = case.cell(left, case.bath(1))
    assert_second_order(case.errors_on_grids(cell, pnp.Grid.uniform), 5e-5)
    # The same with the current given, and the potential an outcome.
    driven = case.cell(
        pnp.Electrode(current=2 * flux, stern_capacitance=stern, reactions=dissolution), case.bath(1)
    )
    errors = case.errors_on_grids(driven, pnp.Grid.uniform)
    assert_second_order(errors[:, :2], 5e-5)
    assert errors[:, 2].max() < 1e-12
    metal = pnp.electrode_potential(pnp.solve_steady(driven, pnp.Grid.uniform(driven, NODES[-1]))).left
    assert float(metal) == pytest.approx(at(FALLING, 0) + step, abs=1e-5)


# ---- transients


@dataclass(frozen=True)
class Collocation:
    """A closed cell on 0 <= x <= 1 by Chebyshev collocation in space and Radau's method in time.

    `rates` makes the production in the electrolyte from the activities, `walls` what electrodes make of every ion
    from activities and potential step, at the left and right wall.
    """

    permittivity: float
    valences: np.ndarray
    diffusivities: Callable[[np.ndarray], np.ndarray]
    filling: np.ndarray
    potentials: tuple[float, float]
    stern: tuple[float | None, float | None] = (None, None)
    diameters: np.ndarray | None = None
    solvent: float = 1.0
    fixed_charge: float = 0.0
    rates: Callable[[np.ndarray], np.ndarray] | None = None
    walls: tuple[Callable | None, Callable | None] = (None, None)
    degree: int = 40

    @property
    def positions(self) -> np.ndarray:
        return (1 - np.cos(np.pi * np.arange(self.degree + 1) / self.degree)) / 2

    @property
    def slope(self) -> np.ndarray:
        x, count = self.positions, self.degree + 1
        weight = np.r_[2, np.ones(count - 2), 2] * (-1.0) ** np.arange(count)
        matrix = np.outer(weight, 1 / weight) / (x[:, None] - x[None, :] + np.eye(count))
        np.fill_diagonal(matrix, 0.0)
        np.fill_diagonal(matrix, -matrix.sum(1))
        return matrix

    def solve(self, times: Sequence[float]) -> np.ndarray:
        """Concentrations `(time, species, point)`."""
        slope, x, z = self.slope, self.positions, np.asarray(self.valences)[:, None]
        sizes = np.zeros((len(z), 1)) if self.diameters is None else np.asarray(self.diameters)[:, None] ** 3
        diffusivities = self.diffusivities(x)
        poisson, right = -self.permittivity * slope @ slope, np.zeros(len(x))
        for wall, out, stern, potential in zip((0, -1), (-1, 1), self.stern, self.potentials, strict=True):
            poisson[wall] = 0.0 if stern is None else out * self.permittivity * slope[wall]
            poisson[wall, wall] += 1.0 if stern is None else stern
            right[wall] = potential if stern is None else stern * potential
        inverse = np.linalg.inv(poisson)

        def change(_time: float, flat: np.ndarray) -> np.ndarray:
            c = flat.reshape(len(z), -1)
            charge = right.copy()
            charge[1:-1] = (z * c).sum(0)[1:-1] + self.fixed_charge
            potential = inverse @ charge
            pressure = -np.log(1 - (sizes * c).sum(0))
            weights = sizes / self.solvent**3
            flux = -diffusivities * (
                c @ slope.T + z * c * (slope @ potential) + weights * c * (slope @ pressure)
            )
            activities = c * np.exp(weights * pressure)
            for wall, out, made, metal in zip((0, -1), (-1, 1), self.walls, self.potentials, strict=True):
                step = metal - potential[wall]
                flux[:, wall] = 0.0 if made is None else -out * made(activities[:, wall], step)
            rate = -flux @ slope.T
            return (rate if self.rates is None else rate + self.rates(activities)).ravel()

        start = np.repeat(self.filling, len(x))
        found = solve_ivp(change, (0, times[-1]), start, method="Radau", t_eval=times, rtol=1e-7, atol=1e-9)
        assert found.success
        return found.y.T.reshape(len(times), len(z), -1)

    def on(self, positions: np.ndarray, times: Sequence[float]) -> np.ndarray:
        """Concentrations `(time, species, position)`."""
        states = self.solve(times)
        return np.array(
            [
                [
                    chebyshev.Chebyshev.fit(self.positions, c, self.degree, domain=[0, 1])(positions)
                    for c in state
                ]
                for state in states
            ]
        )


TIMES = (0.03, 0.1, 0.4)


def crowded() -> tuple[pnp.Cell, Collocation]:
    """Ions of two sizes in a smaller solvent, diffusivities that vary; filled to 0.3, at the walls to 0.5 and more."""

    def profile(x: Any) -> Any:
        stack = torch.stack if isinstance(x, torch.Tensor) else np.stack
        return stack([1 + x / 2, 2 - x], -2)

    species = [
        pnp.Species("s0", valence=1.0, diffusivity=1.0, diameter=0.6),
        pnp.Species("s1", valence=-1.0, diffusivity=0.5, diameter=0.5),
    ]
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=0.05, solvent_diameter=0.4),
        length=1.0,
        concentrations=[0.9, 0.9],
        left=pnp.Electrode(potential=1.5),
        right=pnp.Electrode(potential=-1.5),
        diffusivity_profile=profile,
    )
    other = Collocation(
        0.05,
        np.array([1.0, -1.0]),
        lambda x: profile(x) * np.array([[1.0], [0.5]]),
        np.array([0.9, 0.9]),
        (1.5, -1.5),
        diameters=np.array([0.6, 0.5]),
        solvent=0.4,
    )
    return cell, other


def reacting() -> tuple[pnp.Cell, Collocation]:
    """Dissociation of s2 in the electrolyte, and s0 + e- -> s3 at both electrodes, behind Stern layers."""
    forward, backward, constant, standard, alpha = 3.0, 2.0, 0.7, 0.2, 0.3
    valences = (1.0, -1.0, 0.0, 0.0)
    diffusivities = np.array([1.0, 0.4, 0.7, 1.5])
    species = [
        pnp.Species(f"s{i}", valence=z, diffusivity=d)
        for i, (z, d) in enumerate(zip(valences, diffusivities.tolist(), strict=True))
    ]
    dissociation = pnp.Reaction({"s2": 1}, {"s0": 1, "s1": 1}, forward=forward, backward=backward)
    transfer = pnp.ElectrodeReaction(
        {"s0": 1}, {"s3": 1}, rate_constant=constant, standard_potential=standard, transfer_coefficient=alpha
    )
    stern = (0.4, 0.8)
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=0.04, reactions=[dissociation]),
        length=1.0,
        concentrations=[0.8, 0.5, 1.0, 0.6],
        left=pnp.Electrode(potential=1.2, stern_capacitance=stern[0], reactions=transfer),
        right=pnp.Electrode(potential=-0.8, stern_capacitance=stern[1], reactions=transfer),
        fixed_charge=-0.3,
    )

    def rates(a: np.ndarray) -> np.ndarray:
        rate = forward * a[2] - backward * a[0] * a[1]
        return np.stack([rate, rate, -rate, 0 * rate])

    def wall(a: np.ndarray, step: float) -> np.ndarray:
        eta = step - standard
        rate = constant * (a[0] * math.exp(-alpha * eta) - a[3] * math.exp((1 - alpha) * eta))
        return np.array([-rate, 0.0, 0.0, rate])

    other = Collocation(
        0.04,
        np.array(valences),
        lambda x: diffusivities[:, None] + 0 * x,
        np.array([0.8, 0.5, 1.0, 0.6]),
        (1.2, -0.8),
        stern=stern,
        fixed_charge=-0.3,
        rates=rates,
        walls=(wall, wall),
    )
    return cell, other


@pytest.mark.parametrize("make", [crowded, reacting])
def test_transients_against_collocation(make):
    cell, other = make()
    grid = pnp.Grid.uniform(cell, 81)
    solution = pnp.solve_transient(
        cell, grid, times=TIMES, step_control=pnp.StepControl(relative=5e-6, absolute=5e-8)
    )
    wanted = torch.from_numpy(other.on(grid.nodes[::2].numpy(), TIMES))
    found = solution.richardson(lambda some: some.concentrations)
    assert float((found.value - wanted).abs().max()) < 1e-4
    # The error of the steps alone would be less, that of the grid is what went.
    assert 4e-4 < float((solution.concentrations[:, :, ::2] - wanted).abs().max()) < 2e-3
