"""Reactions in the electrolyte and at electrodes, against thermodynamics, rate equations and the laws of electrode
kinetics."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import constants
from scipy.integrate import quad, solve_bvp, solve_ivp

import pnp

from .problems import GouyChapman
from .reference import build, entries

FARADAY, THERMAL = (
    constants.value("Faraday constant"),
    298.15 * constants.R / constants.value("Faraday constant"),
)


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def dimensionless(
    species: dict[str, tuple], permittivity: Any, reactions: Any = (), **changes: Any
) -> pnp.Electrolyte:
    """Species as name: (valence, diffusivity[, diameter])."""
    rows = []
    for name, (z, d, *size) in species.items():
        rows.append(pnp.Species(name, valence=z, diffusivity=d, diameter=size[0] if size else 0.0))
    return pnp.Electrolyte.dimensionless(rows, permittivity=permittivity, reactions=reactions, **changes)


# ---- rest


K = 0.4
ACID = pnp.Reaction({"HA": 1}, {"H": 1, "A": 1}, forward=3.0 * K, backward=3.0)
STRIPPING = pnp.Reaction({"A": 1, "B": 2}, {"C": 1}, forward=0.3, backward=1.7)


def acid(voltage: Any, filling: Any = (0.2, 0.2, 1.0), **changes: Any) -> pnp.Cell:
    species = {"H": (1.0, 5.0), "A": (-1.0, 1.0), "HA": (0.0, 0.7)}
    return pnp.Cell(
        dimensionless(species, 0.02, [ACID]),
        length=1.0,
        concentrations=torch.tensor(filling, dtype=torch.float64),
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
        **changes,
    )


def acid_at_rest(voltage: float, cation: float, anion: float) -> float:
    """Charge of the left electrode of the acid, of which so many H and A are in the cell, bound or not.

    c_H = g exp(-phi), c_A = h exp(phi) and c_HA = g h/K everywhere; the two amounts fix ln g and ln h.
    """

    def ode(_x, y, p):
        g, h = np.exp(p)
        bound = g * h / K + 0 * y[0]
        h_ion, a_ion = g * np.exp(-y[0]), h * np.exp(y[0])
        return np.stack([y[1], -(h_ion - a_ion) / 0.02, h_ion + bound, a_ion + bound])

    def ends(a, b, _p):
        return np.array([a[0] - voltage, b[0] + voltage, a[2], a[3], b[2] - cation, b[3] - anion])

    x = (1 - np.cos(np.pi * np.linspace(0, 1, 101))) / 2
    first = np.stack([voltage * (1 - 2 * x), -2 * voltage + 0 * x, cation * x, anion * x])
    found = solve_bvp(ode, ends, x, first, np.log([0.5, 0.5]), tol=1e-9, max_nodes=20_000)
    assert found.success
    return float(-0.02 * found.y[1, 0])


def test_acid_comes_to_the_rest_that_collocation_finds():
    voltages = (0.5, 2.0, 4.0)
    solution = pnp.solve_steady(acid(tensor(*voltages)))
    wanted = np.array([acid_at_rest(voltage, 1.2, 1.2) for voltage in voltages])
    found = solution.richardson(lambda some: pnp.surface_charge(some).left)
    assert np.abs(found.value.numpy() / wanted - 1).max() < 1e-6
    assert 1e-5 < float((found.error / found.value).max()) < 1e-3


@pytest.mark.parametrize("end", ["electrodes", "stern and wall", "bath"])
def test_mass_action_holds_at_every_node_at_rest(end):
    left, right = {
        "electrodes": (pnp.Electrode(potential=3.0), pnp.Electrode(potential=-3.0)),
        "stern and wall": (pnp.Electrode(potential=1.0, stern_capacitance=0.1), pnp.ChargedWall(charge=-0.2)),
        # in its equilibrium, 0.4 * 0.4 = K * 0.4
        "bath": (pnp.Electrode(potential=3.0), pnp.Reservoir(concentrations=0.4, potential=0.0)),
    }[end]
    cell = replace(acid(0.0), left=left, right=right)
    solution = pnp.solve_steady(cell)
    h, a, ha = solution.concentrations
    assert torch.allclose(h * a / ha, tensor(K), rtol=1e-9)
    # Free of fluxes, too: every ion obeys Boltzmann.
    level = torch.log(solution.concentrations) + cell.electrolyte.valences[:, None] * solution.potential
    assert float((level.amax(-1) - level.amin(-1)).max()) < 1e-9
    assert float(ha.max() / ha.min() - 1) < 1e-9
    if cell.is_closed:
        kept = cell.conserved @ pnp.amounts(solution)
        assert torch.allclose(kept, cell.conserved @ tensor(0.2, 0.2, 1.0), rtol=1e-12)


def test_ions_of_finite_size_react_by_their_activities():
    species = {"H": (1.0, 5.0, 0.3), "A": (-1.0, 1.0, 0.6), "HA": (0.0, 0.7, 0.65)}
    cell = pnp.Cell(
        dimensionless(species, 0.02, [ACID], solvent_diameter=0.5),
        length=1.0,
        concentrations=[0.5, 0.5, 0.8],
        left=pnp.Electrode(potential=6.0),
        right=pnp.Electrode(potential=-6.0),
    )
    solution = pnp.solve_steady(cell)
    c, volumes = solution.concentrations, tensor(0.3, 0.6, 0.65)[:, None] ** 3
    pressure = -torch.log(1 - (volumes * c).sum(0))
    activities = c * torch.exp(volumes / 0.5**3 * pressure)
    assert torch.allclose(activities[0] * activities[1] / activities[2], tensor(K), rtol=1e-9)
    ratio = c[0] * c[1] / c[2]
    assert float(ratio.max() / ratio.min()) > 1.2  # the concentrations alone do not
    # and those are the ones with the least free energy: no flux anywhere
    level = torch.log(activities) + cell.electrolyte.valences[:, None] * solution.potential
    assert float((level.amax(-1) - level.amin(-1)).max()) < 1e-9
    kept = cell.conserved @ pnp.amounts(solution)
    assert torch.allclose(kept, cell.conserved @ tensor(0.5, 0.5, 0.8), rtol=1e-12)


def test_free_energy_falls_while_ions_react():
    times = torch.logspace(-4, 0.5, 12, dtype=torch.float64)
    energy = pnp.free_energy(pnp.solve_transient(acid(2.0), pnp.Grid.uniform(acid(2.0), 31), times=times))
    assert bool((energy.diff() < 0).all())


@pytest.mark.parametrize(
    ("reactions", "laws"),
    [
        ([], [[1, 0, 0], [0, 1, 0], [0, 0, 1]]),
        ([STRIPPING], [[1, 0, 1], [0, 1, 2]]),
        ([STRIPPING, pnp.Reaction({"B": 1}, {"A": 1}, forward=1.0, backward=1.0)], [[1, 1, 3]]),
        ([STRIPPING, STRIPPING], [[1, 0, 1], [0, 1, 2]]),
        ([pnp.Reaction({}, {name: 1}, forward=1.0, backward=1.0) for name in "ABC"], []),
    ],
)
def test_conserved_combinations(reactions, laws):
    cell = pnp.Cell(
        dimensionless(dict.fromkeys("ABC", (0.0, 1.0)), 1.0, reactions),
        length=1.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=0.0),
        right=pnp.Electrode(potential=0.0),
    )
    found, wanted = cell.conserved, torch.tensor(laws, dtype=torch.float64).reshape(-1, 3)
    assert found.shape == wanted.shape
    # The same space, whatever its basis, and every law has a species of its own.
    assert torch.linalg.matrix_rank(torch.cat([found, wanted])) == len(laws)
    for index, law in enumerate(found):
        others = found[torch.arange(len(found)) != index]
        assert any(law[s] == 1 and not bool(others[:, s].any()) for s in range(3))


# ---- kinetics in a uniform cell


def uniform(reactions: list, filling: list, valences: Any = (0.0, 0.0, 0.0)) -> pnp.Cell:
    species = {f"s{i}": (z, 1.0 + i) for i, z in enumerate(valences)}
    return pnp.Cell(
        dimensionless(species, 10.0, reactions),
        length=1.0,
        concentrations=filling,
        left=pnp.Electrode(potential=0.0),
        right=pnp.Electrode(potential=0.0),
    )


def rate_equations(changes: list, rates: Any, start: list, times: list) -> np.ndarray:
    """Concentrations `(time, species)`: changes is `(reaction, species)`."""
    matrix = np.array(changes, dtype=float).T
    found = solve_ivp(
        lambda _t, c: matrix @ rates(c), (0, times[-1]), start, "LSODA", times, rtol=1e-11, atol=1e-13
    )
    assert found.success
    return found.y.T


KINETICS = {
    "dissociation of ions": (
        [pnp.Reaction({"s2": 1}, {"s0": 1, "s1": 1}, forward=0.8, backward=3.0)],
        (1.0, -1.0, 0.0),
        [[1, 1, -1]],
        lambda c: [0.8 * c[2] - 3.0 * c[0] * c[1]],
    ),
    "dimers": (
        [pnp.Reaction({"s0": 2}, {"s1": 1}, forward=1.5, backward=0.2)],
        (0.5, 1.0, -1.0),
        [[-2, 1, 0]],
        lambda c: [1.5 * c[0] ** 2 - 0.2 * c[1]],
    ),
    "three after another": (
        [
            pnp.Reaction({"s0": 1}, {"s1": 1}, forward=2.0, backward=0.0),
            pnp.Reaction({"s1": 2, "s0": 0.5}, {"s2": 1.5}, forward=1.0, backward=0.6),
            pnp.Reaction({}, {"s2": 1}, forward=0.7, backward=0.3),
        ],
        (0.0, 0.0, 0.0),
        [[-1, 1, 0], [-0.5, -2, 1.5], [0, 0, 1]],
        lambda c: [2 * c[0], c[1] ** 2 * c[0] ** 0.5 - 0.6 * c[2] ** 1.5, 0.7 - 0.3 * c[2]],
    ),
}


@pytest.mark.parametrize("kind", KINETICS)
def test_uniform_cell_follows_its_rate_equations(kind):
    reactions, valences, changes, rates = KINETICS[kind]
    filling, times = [0.6, 0.6, 1.2], [0.05, 0.3, 1.0, 3.0]
    filling = [0.6, 0.9, 1.2] if kind == "dimers" else filling
    cell = uniform(reactions, filling, valences)
    wanted = rate_equations(changes, rates, filling, times)[:, :, None]
    errors = []
    for tolerance in (1e-3, 1e-5):
        solution = pnp.solve_transient(
            cell,
            pnp.Grid.uniform(cell, 5),
            times=times,
            step_control=pnp.StepControl(relative=tolerance, absolute=tolerance / 100),
        )
        assert float(solution.potential.abs().max()) < 1e-12
        errors.append(np.abs(solution.concentrations.numpy() - wanted).max())
    # Of second order in steps that go with the third root of the tolerance.
    assert errors[1] < 1e-4
    assert 6 < errors[0] / errors[1] < 80


def si(species: dict[str, tuple], reactions: Any = (), **changes: Any) -> pnp.Electrolyte:
    rows = [pnp.Species(name, valence=z, diffusivity=d) for name, (z, d) in species.items()]
    return pnp.Electrolyte(rows, reactions=reactions, **changes)


KW, RECOMBINATION = 1e-8, 1.4e8
"""Of water: (mol/m³)² and m³/(mol s)."""
WATER = pnp.Reaction({}, {"H+": 1, "OH-": 1}, forward=KW * RECOMBINATION, backward=RECOMBINATION)


def water(filling: Any, **ends: Any) -> pnp.Cell:
    grounded = pnp.Electrode(potential=0.0)
    return pnp.Cell(
        si({"H+": (1.0, 9.3e-9), "OH-": (-1.0, 5.3e-9), "K+": (1.0, 1.96e-9)}, [WATER]),
        length=1e-7,
        concentrations=filling,
        **({"left": grounded, "right": grounded} | ends),
    )


def test_water_relaxes_by_its_closed_form():
    # dc/dt = k (Kw - c²) from c0 = 3 sqrt(Kw): c = sqrt(Kw) coth(k sqrt(Kw) t + arcoth(3))
    pure = math.sqrt(KW)
    cell = water([3 * pure, 3 * pure, 1e-30])
    times = np.array([0.1, 0.5, 2.0, 5.0]) / (RECOMBINATION * pure)
    solution = pnp.solve_transient(
        cell,
        pnp.Grid.uniform(cell, 5),
        times=times,
        step_control=pnp.StepControl(relative=1e-6, absolute=1e-8),
    )
    wanted = pure / np.tanh(RECOMBINATION * pure * times + math.atanh(1 / 3))
    assert np.abs(solution.concentrations[:, :2].numpy() / wanted[:, None, None] - 1).max() < 5e-5


def test_water_between_electrodes_keeps_its_ion_product():
    cell = water(
        [1e-4, 1.1e-3, 1e-3], left=pnp.Electrode(potential=0.1), right=pnp.Electrode(potential=-0.05)
    )
    solution = pnp.solve_steady(cell)
    h, oh, _ = solution.concentrations
    assert torch.allclose(h * oh, tensor(KW), rtol=1e-9)
    # What water does not change: potassium, and hydrogen ions less hydroxide.
    kept = cell.conserved @ pnp.amounts(solution)
    assert torch.allclose(kept, 1e-7 * (cell.conserved @ tensor(1e-4, 1.1e-3, 1e-3)), rtol=1e-11)
    assert float(solution.check().amount_error) < 1e-11


def test_conserved_combinations_stay_in_a_transient():
    cell = acid(2.0, (0.5, 0.5, 0.1))
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 41), times=[1e-3, 0.05, 1.0])
    kept = pnp.amounts(solution) @ cell.conserved.T
    assert torch.allclose(kept, cell.conserved @ tensor(0.5, 0.5, 0.1), rtol=1e-12)
    # One for all times would do for the laws, not for the amounts themselves.
    assert float(pnp.amounts(solution)[:, 2].diff().abs().min()) > 1e-3


# ---- electrodes


def nernst(standard: float, electrons: float, quotient: Any) -> Any:
    """Equilibrium potential [V] of a quotient of activities, oxidised over reduced."""
    return standard + THERMAL / electrons * np.log(quotient)


def copper_chloride(concentrations: torch.Tensor, left: pnp.Electrode) -> pnp.Cell:
    salt = torch.stack([concentrations, 2 * concentrations], -1)
    return pnp.Cell(
        si({"Cu2+": (2.0, 0.7e-9), "Cl-": (-1.0, 2e-9)}),
        length=5e-8,
        concentrations=salt,
        left=left,
        right=pnp.Reservoir(concentrations=salt, potential=0.01),
    )


COPPER = pnp.ElectrodeReaction(
    {"Cu2+": 1}, {}, rate_constant=1e-5, standard_potential=0.05, transfer_coefficient=0.4
)


def test_metal_in_a_bath_has_its_nernst_potential():
    concentrations = tensor(1.0, 30.0, 400.0)
    cell = copper_chloride(
        concentrations, pnp.Electrode(current=0.0, stern_capacitance=0.2, reactions=COPPER)
    )
    found = pnp.electrode_potential(pnp.solve_steady(cell)).left
    wanted = 0.01 + nernst(0.05, 2, concentrations.numpy() / 1000)
    assert np.abs(found.numpy() - wanted).max() < 1e-11
    # At that potential no current passes, and at others one does, with its sign.
    shifts = tensor(-1e-3, 0.0, 1e-3)[:, None]
    left = pnp.Electrode(potential=shifts + torch.from_numpy(wanted), stern_capacitance=0.2, reactions=COPPER)
    held = copper_chloride(concentrations, left)
    current = pnp.current_density(pnp.solve_steady(held)).mean(-1)
    assert bool((current[1].abs() < 1e-9 * current[[0, 2]].abs().amin(0)).all())
    assert bool((current[0] < 0).all() & (current[2] > 0).all())


def test_without_a_stern_layer_only_concentration_drives():
    """Metal and plane of reaction are one place, so that the potential step is zero whatever is applied."""
    cell = copper_chloride(tensor(30.0), pnp.Electrode(potential=tensor(-0.03, 0.06), reactions=COPPER))
    solution = pnp.solve_steady(cell)
    wall, drop = solution.concentrations[:, 0, 0], 2 * 0.05 / THERMAL
    rate = 1e-5 * (wall * math.exp(0.4 * drop) - 1000 * math.exp(-0.6 * drop))
    assert torch.allclose(pnp.reaction_rate(solution).left[:, 0], -rate, rtol=1e-9)
    assert torch.allclose(pnp.current_density(solution).mean(-1), -2 * FARADAY * rate, rtol=1e-9)
    assert float(wall[0] / wall[1]) > 2


def test_soluble_couple_with_protons_has_its_nernst_potential():
    """Quinone + 2 H+ + 2 e- -> hydroquinone: both sides dissolved, and 59 mV per unit of pH."""
    protons = tensor(0.1, 10.0)
    salt = torch.stack([protons, protons, tensor(5.0, 5.0), tensor(2.0, 2.0)], -1)
    couple = pnp.ElectrodeReaction(
        {"Q": 1, "H+": 2},
        {"QH2": 1},
        rate_constant=1e-6,
        standard_potential=0.3,
        standard_concentration=1000.0,
    )
    cell = pnp.Cell(
        si({"H+": (1.0, 9e-9), "Cl-": (-1.0, 2e-9), "Q": (0.0, 1e-9), "QH2": (0.0, 1e-9)}),
        length=1e-7,
        concentrations=salt,
        left=pnp.Electrode(current=0.0, stern_capacitance=0.2, reactions=[couple]),
        right=pnp.Reservoir(concentrations=salt, potential=0.0),
    )
    found = pnp.electrode_potential(pnp.solve_steady(cell)).left.numpy()
    wanted = nernst(0.3, 2, 5.0 / 2.0 * (protons.numpy() / 1000) ** 2)
    assert np.abs(found - wanted).max() < 1e-11
    assert found[1] - found[0] == pytest.approx(THERMAL * math.log(100))


@dataclass(frozen=True)
class Plating:
    """Dimensionless deposition of the cation of a z:z salt at the left electrode, 40 Debye lengths from a bath."""

    constant: float
    stern: float
    standard: float = 0.0
    alpha: float = 0.5
    diffusivity: float = 1.0

    def cell(self, potential: Any) -> pnp.Cell:
        reaction = pnp.ElectrodeReaction(
            {"M": 1},
            {},
            rate_constant=self.constant,
            standard_potential=self.standard,
            transfer_coefficient=self.alpha,
        )
        return pnp.Cell(
            dimensionless({"M": (1.0, self.diffusivity), "X": (-1.0, 1.0)}, 2.0),
            length=40.0,
            concentrations=1.0,
            left=pnp.Electrode(potential=potential, stern_capacitance=self.stern, reactions=reaction),
            right=pnp.Reservoir(concentrations=1.0, potential=0.0),
        )

    def wall(self, potential: float) -> float:
        """Potential at the plane of reaction while next to nothing flows (Gouy, Chapman and Stern)."""
        layer = GouyChapman(abs(potential))
        return math.copysign(layer.behind_stern(self.stern), potential) if potential else 0.0

    def rates(self, potential: float) -> tuple[float, float]:
        """Of reduction and oxidation, from the cations that the layer gathers (Frumkin)."""
        wall = self.wall(potential)
        eta = potential - wall - self.standard
        return (
            self.constant * math.exp(-wall - self.alpha * eta),
            self.constant * math.exp((1 - self.alpha) * eta),
        )


@pytest.mark.parametrize("stern", [1e-3, 0.3, 3.0])
@pytest.mark.parametrize("potential", [-5.0, -1.0, 2.0])
def test_slow_reaction_behind_a_double_layer(potential, stern):
    """Frumkin's correction: an equilibrium layer gives the kinetics its concentration and its driving force."""
    case = Plating(1e-9, stern, standard=0.3, alpha=0.3)
    solution = pnp.solve_steady(case.cell(potential))
    found = solution.richardson(lambda some: pnp.current_density(some).mean(-1))
    reduction, oxidation = case.rates(potential)
    # The current is counted from left to right, and a reduction at the left draws cations from the right.
    assert float(found.value) == pytest.approx(oxidation - reduction, rel=2e-6)
    assert float(pnp.reaction_rate(solution).left[0]) == pytest.approx(oxidation - reduction, rel=1e-3)


def slope(case: Plating, potential: float) -> float:
    """Of the logarithm of the current in the potential."""
    given = torch.tensor(potential, dtype=torch.float64, requires_grad=True)
    current = pnp.current_density(pnp.solve_steady(case.cell(given))).mean(-1)
    torch.log(current.abs()).backward()
    return float(given.grad)


@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_tafel_slopes(alpha):
    # A thin compact layer takes all of the drop: Butler and Volmer.
    compact = Plating(1e-9, 1e-5, alpha=alpha)
    assert slope(compact, -12.0) == pytest.approx(-alpha, rel=2e-4)
    assert slope(compact, 12.0) == pytest.approx(1 - alpha, rel=2e-4)
    # Without it the diffuse layer takes it, and the rate follows the cations at the wall, less the constant rate
    # of oxidation. Slow enough for the layer to rest, and fast enough to stand above the rounding of its fluxes.
    wanted = -1 / -math.expm1(-5.0)
    assert slope(Plating(1e-8, 1e6, alpha=alpha), -5.0) == pytest.approx(wanted, rel=2e-4)


@pytest.mark.parametrize(("standard", "stern"), [(0.0, 0.5), (2.5, 0.5), (-3.0, 1.0)])
@pytest.mark.parametrize("diffusivity", [1.0, 1e6])
def test_resistance_at_equilibrium_is_of_charge_transfer_and_transport(standard, stern, diffusivity):
    """dU/dI = RT/(n F i0) + the integral of RT/(F² D c) along the resting cell, where anions do not move."""
    case = Plating(0.2, stern, standard=standard, alpha=0.4, diffusivity=diffusivity)
    # At its Nernst potential; the exchange current is what flows either way.
    reduction, oxidation = case.rates(standard)
    assert reduction == pytest.approx(oxidation, rel=1e-12)
    wall = case.wall(standard)
    start = math.tanh(wall / 4)

    def scarcity(x: float) -> float:
        return math.exp(4 * math.atanh(start * math.exp(-x)))

    transport = quad(scarcity, 0, 40, epsabs=0, epsrel=1e-12, limit=200)[0] / diffusivity

    def resistance(solution: pnp.Solution) -> torch.Tensor:
        current = pnp.current_density(solution).mean(-1)
        (conductance,) = torch.autograd.grad(current, given)
        return 1 / conductance

    given = torch.tensor(standard, dtype=torch.float64, requires_grad=True)
    solution = pnp.solve_steady(case.cell(given))
    found = solution.richardson(resistance)
    assert float(found.value) == pytest.approx(1 / reduction + transport, rel=2e-6)
    if diffusivity > 1 and not standard:
        assert float(found.value) == pytest.approx(1 / 0.2, rel=1e-3)


def copper(voltage: Any, length: float) -> pnp.Cell:
    """A z:z salt of 10 mM between a bath and an electrode that plates its cation fast."""
    plating = pnp.ElectrodeReaction({"Cu2+": 1}, {}, rate_constant=1.0, standard_potential=0.0)
    salt = {"Cu2+": 10.0, "SO4": 10.0}
    return pnp.Cell(
        si({"Cu2+": (2.0, 0.7e-9), "SO4": (-2.0, 1.1e-9)}),
        length=length,
        concentrations=10.0,
        left=pnp.Electrode(
            potential=nernst(0.0, 2, 0.01) + voltage, stern_capacitance=0.5, reactions=plating
        ),
        right=pnp.Reservoir(concentrations=salt, potential=0.0),
    )


def test_current_rises_to_its_limit():
    """I = 2 z F D c/L (1 - exp(z V/2 V_T)) in a neutral layer: at -infinity the salt runs out."""
    voltages = tensor(-0.01, -0.03, -0.06, -0.1)
    wanted = 1 - np.exp(voltages.numpy() / THERMAL)
    errors = []
    for length in (1e-5, 4e-5):
        cell = copper(voltages, length)
        solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 401))
        current = solution.richardson(lambda some: pnp.current_density(some).mean(-1)).value
        limit = 2 * 2 * FARADAY * 0.7e-9 * 10.0 / length
        errors.append(-current.numpy() / limit - wanted)
    # What is left is that of the double layer and of the reaction, over that of the whole length.
    assert np.abs(errors[1]).max() < 6e-4
    assert np.allclose(errors[0], 4 * errors[1], rtol=0.02)


# ---- what both ends and a transient must keep


def thin_film() -> pnp.Cell:
    return build(next(entry for entry in entries("reactive") if entry["id"].startswith("reactive4")))


def test_rates_are_the_fluxes_at_the_walls():
    solution = pnp.solve_steady(thin_film())
    rates, flux = pnp.reaction_rate(solution), pnp.ion_flux(solution)
    assert torch.allclose(rates.left, flux[:, 0], rtol=1e-9, atol=1e-9)
    assert torch.allclose(rates.right, -flux[:, -1], rtol=1e-9, atol=1e-9)
    assert float(rates.left[0].abs()) > 0.1
    assert float(flux[1].abs().max()) < 1e-10


@pytest.mark.parametrize("name", [f"reactive{number}" for number in range(1, 7)])
def test_tabulated_current_driven_through_gives_the_potential(name):
    current, charge = (
        next(entry for entry in entries("reactive", quantity) if entry["id"].startswith(name))
        for quantity in ("current_density", "surface_charge")
    )
    cell = build(current)
    driven = pnp.Electrode(
        current=current["value"], stern_capacitance=cell.left.stern_capacitance, reactions=cell.left.reactions
    )
    cell = replace(cell, left=driven)
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 401))
    potential = solution.richardson(lambda some: pnp.electrode_potential(some).left)
    assert float(potential.value) == pytest.approx(current["cell"]["left"]["potential"], abs=2e-5)
    held = solution.richardson(lambda some: pnp.surface_charge(some).left)
    assert float(held.value) == pytest.approx(charge["value"], rel=1e-5)


def test_charge_of_the_metal_is_what_current_and_reactions_bring():
    cell = thin_film()
    nodes, weights = np.polynomial.legendre.leggauss(24)
    start, end = 0.02, 0.5
    times = start + (end - start) * (nodes + 1) / 2
    solution = pnp.solve_transient(
        cell,
        pnp.Grid.refined(cell, 41),
        times=[start, *times, end],
        step_control=pnp.StepControl(relative=1e-5, absolute=1e-7),
    )
    current, charge = pnp.current_density(solution)[:, 0], pnp.surface_charge(solution)
    rates, weights = pnp.reaction_rate(solution), torch.from_numpy(weights) * (end - start) / 2
    # Reduction brings the metal the charge of the cations that it takes out of the electrolyte.
    for metal, taken, sign in ((charge.left, -rates.left[:, 0], 1), (charge.right, -rates.right[:, 0], -1)):
        brought = (weights * (sign * current + taken)[1:-1]).sum()
        assert float(metal[-1] - metal[0]) == pytest.approx(float(brought), abs=1e-4)
        assert abs(float(metal[-1] - metal[0])) > 1e-2


def test_gradient_of_the_current_by_every_constant_of_the_kinetics():
    names = ("rate_constant", "standard_potential", "transfer_coefficient", "standard_concentration")
    numbers = (0.7, 0.2, 0.4, 1.3)

    def current(values: torch.Tensor) -> torch.Tensor:
        reaction = pnp.ElectrodeReaction({"M": 1}, {}, **dict(zip(names, values, strict=True)))
        cell = Plating(0.2, 0.5).cell(-1.5)
        cell = replace(cell, left=pnp.Electrode(potential=-1.5, stern_capacitance=0.5, reactions=reaction))
        return pnp.current_density(pnp.solve_steady(cell, pnp.Grid.uniform(cell, 61))).mean(-1)

    given = torch.tensor(numbers, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(current(given), given)
    steps = 1e-5 * torch.eye(4, dtype=torch.float64)
    wanted = torch.stack([(current(given.detach() + s) - current(given.detach() - s)) / 2e-5 for s in steps])
    assert torch.allclose(found, wanted, rtol=1e-6)
    assert float(wanted.abs().min()) > 1e-4
