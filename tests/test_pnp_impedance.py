"""Impedance against closed forms, collocation of the linear equations, its limits, and what it must keep.

That it is what a small sine measures is in `test_pnp_waveforms.py`.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import constants

import pnp

from . import sweep
from .problems import electrolyte

NODES = (101, 201, 401)


def tensor(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def relative(found: Any, wanted: Any) -> float:
    """Largest relative difference of complex numbers."""
    found, wanted = (
        np.asarray(part.detach() if hasattr(part, "detach") else part) for part in (found, wanted)
    )
    return float(np.abs(found / wanted - 1).max())


# ---- blocking electrodes


def debye_falkenhagen(
    omega: Any, debye: float, permittivity: float, diffusivity: float, length: float
) -> Any:
    """Of a symmetric salt of equal diffusivities between blocking electrodes, at rest and uncharged."""
    turn = 1j * omega * debye**2 / diffusivity
    kappa = np.sqrt(1 + turn) / debye
    ions = 2 * np.tanh(kappa * length / 2) / kappa + turn * length
    return ions / (1j * omega * permittivity * (1 + turn))


def blocking(debye: Any, **changes: Any) -> pnp.Cell:
    arguments = {
        "length": 1.0,
        "concentrations": 1.0,
        "left": pnp.Electrode(potential=0.0),
        "right": pnp.Electrode(potential=0.0),
    }
    return pnp.Cell(electrolyte(2 * debye**2), **(arguments | changes))


@pytest.mark.parametrize("grid", [pnp.Grid.uniform, pnp.Grid.refined])
def test_closed_form_is_approached_in_second_order(grid):
    debyes, omegas = tensor(0.3, 0.1, 0.04), np.array([0.03, 1.0, 30.0, 300.0])
    cell = blocking(debyes)
    wanted = np.array([debye_falkenhagen(omegas, d, 2 * d**2, 1.0, 1.0) for d in debyes.tolist()])
    errors = []
    for nodes in NODES:
        found = pnp.impedance(pnp.solve_steady(cell, grid(cell, nodes)), omegas / (2 * math.pi))
        errors.append(np.abs(found.numpy() / wanted - 1))
    orders = [np.log2(a / b) for a, b in pairwise(errors)]
    assert np.abs(np.array(orders) - 2).max() < 0.1
    assert errors[-1].min() > 1e-7
    assert errors[-1].max() < 6e-4


def test_closed_form_in_si_units():
    """1 mM KCl of equal diffusivities, a micrometre thick, from 1 Hz to 100 MHz."""
    species = [pnp.Species("K", valence=1, diffusivity=2e-9), pnp.Species("Cl", valence=-1, diffusivity=2e-9)]
    cell = pnp.Cell(
        pnp.Electrolyte(species),
        length=1e-6,
        concentrations=1.0,
        left=pnp.Electrode(potential=0.0),
        right=pnp.Electrode(potential=0.0),
    )
    frequencies = np.logspace(0, 8, 9)
    permittivity = 78.5 * constants.epsilon_0
    debye = math.sqrt(permittivity * constants.R * 298.15 / (2 * constants.value("Faraday constant") ** 2))
    wanted = debye_falkenhagen(2 * math.pi * frequencies, debye, permittivity, 2e-9, 1e-6)
    found = pnp.solve_steady(cell).richardson(lambda some: pnp.impedance(some, frequencies))
    assert relative(found.value, wanted) < 1e-6
    # From a capacitance over a resistance to a capacitance.
    assert [round(math.degrees(math.atan2(z.imag, z.real))) for z in wanted[[0, 6, 8]]] == [-90, -20, -88]


def test_resistance_shows_at_low_frequencies():
    """Of a film of 100 nm, whose impedance at 0.1 Hz is 2e7 times its resistance."""
    species = [pnp.Species("K", valence=1, diffusivity=2e-9), pnp.Species("Cl", valence=-1, diffusivity=2e-9)]
    cell = pnp.Cell(
        pnp.Electrolyte(species),
        length=1e-7,
        concentrations=10.0,
        left=pnp.Electrode(potential=0.0),
        right=pnp.Electrode(potential=0.0),
    )
    frequencies = np.array([0.1, 1.0, 10.0, 1e3])
    permittivity = 78.5 * constants.epsilon_0
    debye = math.sqrt(permittivity * constants.R * 298.15 / 20) / constants.value("Faraday constant")
    wanted = debye_falkenhagen(2 * math.pi * frequencies, debye, permittivity, 2e-9, 1e-7)
    found = pnp.impedance(pnp.solve_steady(cell), frequencies)
    assert np.abs(found.real.numpy() / wanted.real - 1).max() < 1e-4


def test_stern_layers_are_capacitors_in_series():
    """Exactly so, also on a coarse grid."""
    frequencies, salt = tensor(0.01, 1.0, 100.0), {"valences": (2.0, -1.0), "diffusivities": (0.5, 2.0)}
    ends = [{}, {"left": 0.3}, {"right": 0.05}, {"left": 0.3, "right": 0.05}]
    found = []
    for stern in ends:
        cell = pnp.Cell(
            electrolyte(0.05, **salt),
            length=1.0,
            concentrations=[0.5, 1.0],
            **{
                side: pnp.Electrode(potential=0.0, stern_capacitance=stern.get(side))
                for side in ("left", "right")
            },
        )
        found.append(pnp.impedance(pnp.solve_steady(cell, pnp.Grid.uniform(cell, 41)), frequencies))
    per_elastance = 1 / (2j * math.pi * frequencies)
    for impedance, stern in zip(found[1:], ends[1:], strict=True):
        elastance = sum(1 / c for c in stern.values())
        assert relative(impedance, found[0] + elastance * per_elastance) < 1e-9


def test_high_frequencies_see_resistance_and_geometric_capacitance():
    """In a slab whose materials vary, of Z = integral of dx/(sum z² D c + i omega permittivity)."""
    debye = 0.003
    cell = blocking(
        debye,
        permittivity_profile=lambda x: 1 + x,
        diffusivity_profile=lambda x: torch.stack([2 - x, 1 + x**2], -2),
    )
    omegas = np.array([0.1, 1.0, 10.0]) / debye**2
    found = pnp.impedance(pnp.solve_steady(cell, pnp.Grid.refined(cell, 401)), omegas / (2 * math.pi))
    x, weights = np.polynomial.legendre.leggauss(20)
    x = (x + 1) / 2
    admittivity = 3 - x + x**2 + 1j * omegas[:, None] * 2 * debye**2 * (1 + x)
    wanted = (weights / 2 / admittivity).sum(-1)
    # The layers at the walls add their thickness over the length and over the turn in the relaxation time.
    errors = np.abs(found.numpy() / wanted - 1)
    assert bool((errors < np.array([30.0, 3.0, 0.3]) * debye).all())


@pytest.mark.parametrize("ends", ["touching", "stern"])
def test_low_frequencies_see_the_differential_capacitance(ends):
    """At a bias: i omega Z tends to the inverse of the derivative of the steady charge."""
    potential = tensor(0.4, 5.0).requires_grad_()
    stern = 0.3 if ends == "stern" else None
    cell = pnp.Cell(
        electrolyte(0.05, (2.0, -1.0), (0.5, 2.0)),
        length=1.0,
        concentrations=[0.5, 1.0],
        left=pnp.Electrode(potential=potential, stern_capacitance=stern),
        right=pnp.Electrode(potential=0.4, stern_capacitance=5.0),
    )
    solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 61))
    (capacitance,) = torch.autograd.grad(
        pnp.surface_charge(solution).left.sum(), potential, retain_graph=True
    )
    omegas = tensor(1e-1, 1e-2)
    elastance = pnp.impedance(solution, omegas / (2 * math.pi)).detach() * 1j * omegas
    errors = elastance * capacitance[:, None] - 1
    # What is left is i omega R C, and its square.
    assert torch.allclose(errors.imag[:, 0], 10 * errors.imag[:, 1], rtol=1e-3)
    assert float(errors.imag.max()) < 0.01
    assert float(errors.real[:, 1].abs().max()) < 1e-6
    assert abs(float(capacitance[0] / capacitance[1]) - 1) > 0.01


# ---- baths and reactions


def test_equal_baths_make_a_resistance_beside_a_capacitance():
    """Uniform salt stays uniform: Z = L/(sum z² D c + i omega permittivity) at any frequency, on any grid."""
    bath = pnp.Reservoir(concentrations=[1.0, 2.0], potential=0.0)
    cell = pnp.Cell(
        electrolyte(0.05, (2.0, -1.0), (0.5, 2.0)),
        length=0.7,
        concentrations=[1.0, 2.0],
        left=bath,
        right=bath,
    )
    omegas = tensor(1e-3, 1.0, 100.0, 1e4)
    found = pnp.impedance(pnp.solve_steady(cell, pnp.Grid.refined(cell, 21)), omegas / (2 * math.pi))
    assert relative(found, 0.7 / (4 * 0.5 * 1.0 + 2.0 * 2.0 + 1j * omegas * 0.05)) < 1e-11


@dataclass(frozen=True)
class Uniform:
    """A uniform, uncharged cell of unit length at rest, with everything that may happen to its ions.

    `rates` is the matrix of what reactions in the electrolyte make of a small change. At the left electrode, behind
    a Stern layer, species of `oxidised` take up an electron each at the exchange rate `exchange`; the right end is a
    bath or a blocking electrode.
    """

    valences: Sequence[float]
    diffusivities: Sequence[float]
    filling: Sequence[float]
    permittivity: float = 0.05
    diameters: Sequence[float] | None = None
    solvent: float = 1.0
    rates: Sequence[Sequence[float]] | None = None
    stern: float = 0.3
    oxidised: Sequence[float] | None = None
    alpha: float = 0.5
    exchange: float = 0.0
    bath: bool = False

    def impedance(self, omega: float, degree: int = 64) -> complex:
        """By collocation of the linear equations on Chebyshev points."""
        points = degree + 1
        x = (1 - np.cos(np.pi * np.arange(points) / degree)) / 2
        weight = np.r_[2, np.ones(points - 2), 2] * (-1.0) ** np.arange(points)
        slope = np.outer(weight, 1 / weight) / (x[:, None] - x[None, :] + np.eye(points))
        np.fill_diagonal(slope, 0.0)
        np.fill_diagonal(slope, -slope.sum(1))
        count = len(self.valences)
        z, d, c = (np.array(part) for part in (self.valences, self.diffusivities, self.filling))
        v = np.zeros(count) if self.diameters is None else np.array(self.diameters) ** 3
        w, room = v / self.solvent**3, 1 - v @ c
        # What the flux of one ion, -D (...)', is the slope of; fields are the ions' and then the potential.
        driving = np.zeros((count, count + 1))
        driving[:, :count] = np.eye(count) + np.outer(w * c, v) / room
        driving[:, -1] = z * c
        fluxes = -np.einsum("i,ij,ab->iajb", d, driving, slope)
        matrix = np.zeros((count + 1, points, count + 1, points), dtype=complex)
        right = np.zeros((count + 1, points), dtype=complex)
        made = np.zeros((count, count)) if self.rates is None else np.array(self.rates)
        for i in range(count):
            matrix[i] = np.einsum("ab,bjc->ajc", slope, fluxes[i])
            matrix[i, :, i] += 1j * omega * np.eye(points)
            matrix[i, :, :count] -= np.einsum("ab,j->ajb", np.eye(points), made[i])
            matrix[-1, :, i] = -z[i] * np.eye(points)
            matrix[i, [0, -1]] = fluxes[i][[0, -1]]
        matrix[-1, :, -1] = -self.permittivity * slope @ slope
        matrix[-1, [0, -1]] = 0.0
        matrix[-1, 0, -1] = -self.permittivity * slope[0]
        matrix[-1, 0, -1, 0] += self.stern
        right[-1, 0] = self.stern
        matrix[-1, -1, -1, -1] = 1.0
        if self.bath:
            matrix[:count, -1] = 0.0
            for i in range(count):
                matrix[i, -1, i, -1] = 1.0
        if self.oxidised is not None:
            # rate = exchange (oxidised . d ln a - n (1 - phi)), and an ion is used up: J = -number rate
            numbers = np.array(self.oxidised)
            electrons = z @ numbers
            activity = np.diag(1 / c) + np.outer(w, v) / room
            for i in range(count):
                matrix[i, 0, :count, 0] += numbers[i] * self.exchange * (numbers @ activity)
                matrix[i, 0, -1, 0] += numbers[i] * self.exchange * electrons
                right[i, 0] += numbers[i] * self.exchange * electrons
        state = np.linalg.solve(matrix.reshape(right.size, right.size), right.ravel())
        ionic = np.einsum("i,ijb,jb->", z, fluxes[:, -1], state.reshape(count + 1, points))
        field = -slope[-1] @ state[-points:]
        return 1 / (ionic + 1j * omega * self.permittivity * field)

    def cell(self, reactions: Sequence[pnp.Reaction] = ()) -> pnp.Cell:
        sizes = self.diameters or [0.0] * len(self.valences)
        rows = zip(self.valences, self.diffusivities, sizes, strict=True)
        species = [
            pnp.Species(f"s{i}", valence=z, diffusivity=d, diameter=a) for i, (z, d, a) in enumerate(rows)
        ]
        transfer = []
        if self.oxidised is not None:
            numbers = {f"s{i}": n for i, n in enumerate(self.oxidised) if n}
            # At rest at zero: the logarithm of the activities is the standard potential's.
            room = 1 - sum(a**3 * c for a, c in zip(sizes, self.filling, strict=True))
            logs = [
                math.log(c) - (a / self.solvent) ** 3 * math.log(room)
                for a, c in zip(sizes, self.filling, strict=True)
            ]
            level = sum(n * log for n, log in zip(self.oxidised, logs, strict=True))
            electrons = sum(n * z for n, z in zip(self.oxidised, self.valences, strict=True))
            transfer.append(
                pnp.ElectrodeReaction(
                    numbers,
                    {},
                    rate_constant=self.exchange * math.exp(-(1 - self.alpha) * level),
                    standard_potential=-level / electrons,
                    transfer_coefficient=self.alpha,
                )
            )
        return pnp.Cell(
            pnp.Electrolyte.dimensionless(
                species,
                permittivity=self.permittivity,
                reactions=reactions,
                solvent_diameter=self.solvent if self.diameters else None,
            ),
            length=1.0,
            concentrations=self.filling,
            left=pnp.Electrode(potential=0.0, stern_capacitance=self.stern, reactions=transfer),
            right=pnp.Reservoir(concentrations=self.filling, potential=0.0)
            if self.bath
            else pnp.Electrode(potential=0.0),
        )


SALT = {"valences": (2.0, -1.0), "diffusivities": (0.5, 2.0), "filling": (0.5, 1.0)}
FORWARD, BACKWARD = 3.0, 2.0
UNIFORM = {
    "blocking": (Uniform(**SALT), ()),
    "bath": (Uniform(**SALT, bath=True), ()),
    "plating": (Uniform(**SALT, oxidised=(1, 0), exchange=0.7, alpha=0.3, bath=True), ()),
    "plating in a closed cell": (Uniform(**SALT, oxidised=(1, 0), exchange=0.7), ()),
    "finite ions": (Uniform(**SALT, diameters=(0.6, 0.7), solvent=0.65, bath=True), ()),
    "plating of finite ions": (
        Uniform(**SALT, diameters=(0.6, 0.7), solvent=0.65, oxidised=(1, 0), exchange=0.7, bath=True),
        (),
    ),
    "dissociation": (
        Uniform(
            (1.0, -1.0, 0.0),
            (1.0, 0.5, 0.8),
            (0.6, 0.6, 0.24),
            # of s2 -> s0 + s1, at rest: 3 * 0.24 = 2 * 0.36
            rates=np.outer((1, 1, -1), (-BACKWARD * 0.6, -BACKWARD * 0.6, FORWARD)),
            oxidised=(1, 0, 0),
            exchange=0.4,
            bath=True,
        ),
        (pnp.Reaction({"s2": 1}, {"s0": 1, "s1": 1}, forward=FORWARD, backward=BACKWARD),),
    ),
}


@pytest.mark.parametrize("kind", UNIFORM)
def test_linear_equations_by_collocation(kind):
    case, reactions = UNIFORM[kind]
    omegas = (0.01, 1.0, 10.0, 100.0, 1e3)
    cell = case.cell(reactions)
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 201))
    assert float((solution.concentrations - tensor(*case.filling)[:, None]).abs().max()) < 1e-10
    found = solution.richardson(lambda some: pnp.impedance(some, tensor(*omegas) / (2 * math.pi)))
    wanted = np.array([case.impedance(omega) for omega in omegas])
    assert relative(found.value, wanted) < 1e-7
    assert 1e-6 < float((found.error / found.value.abs()).max()) < 1e-3


def reactive(here: Any, there: Any, **changes: Any) -> pnp.Cell:
    """Two different electrodes that plate, ions of finite size, a dissociation, a bias: far from rest."""
    species = [
        pnp.Species("M", valence=1.0, diffusivity=1.0, diameter=0.4),
        pnp.Species("X", valence=-1.0, diffusivity=0.4, diameter=0.5),
        pnp.Species("MX", valence=0.0, diffusivity=0.6),
    ]
    plating = pnp.ElectrodeReaction(
        {"M": 1}, {}, rate_constant=0.7, standard_potential=0.2, transfer_coefficient=0.3
    )
    pairing = pnp.Reaction({"M": 1, "X": 1}, {"MX": 1}, forward=2.0, backward=3.0)
    arguments = {
        "length": 1.0,
        "concentrations": [0.8, 0.8, 0.5],
        "left": pnp.Electrode(potential=here, stern_capacitance=0.4, reactions=plating),
        "right": pnp.Electrode(
            potential=there, stern_capacitance=0.2, reactions=replace(plating, rate_constant=2.0)
        ),
        "permittivity_profile": lambda x: 1 + x,
        "diffusivity_profile": lambda x: 2 - x,
    }
    return pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=0.04, reactions=[pairing], solvent_diameter=0.45),
        **(arguments | changes),
    )


LEFT = pnp.Reservoir(concentrations=[0.5, 0.5, 0.1], potential=1.2)
RIGHT = pnp.Reservoir(concentrations=[0.8, 0.8, 0.5], potential=0.3)
ENDS = {"electrodes": {}, "bath": {"right": RIGHT}, "baths": {"left": LEFT, "right": RIGHT}}
"""What stands in the place of the electrodes of the cell above."""


@pytest.mark.parametrize("ends", ENDS)
def test_low_frequencies_see_the_slope_of_the_steady_current(ends):
    potential = tensor(1.2).squeeze().requires_grad_()
    cell = reactive(1.2, -0.5, **ENDS[ends])
    cell = replace(cell, left=replace(cell.left, potential=potential))
    solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 61))
    (conductance,) = torch.autograd.grad(pnp.current_density(solution).mean(-1), potential, retain_graph=True)
    omegas = tensor(1e-2, 1e-4)
    errors = (pnp.impedance(solution, omegas / (2 * math.pi)) * conductance - 1).detach()
    assert abs(float(errors.real[1])) < 1e-7
    # What is left turns by an angle that goes with the frequency.
    assert float(errors.imag[0]) == pytest.approx(100 * float(errors.imag[1]), rel=0.01)
    assert abs(float(errors.imag[0])) > 1e-5


@pytest.mark.parametrize("ends", ENDS)
def test_cell_turned_around_has_the_same_impedance(ends):
    """Although the other end is driven, by other equations."""
    cell = reactive(1.2, -0.5, **ENDS[ends])
    turned = replace(
        cell,
        left=cell.right,
        right=cell.left,
        permittivity_profile=lambda x: 2 - x,
        diffusivity_profile=lambda x: 1 + x,
    )
    frequencies = torch.logspace(-3, 3, 7, dtype=torch.float64)
    found = [
        pnp.impedance(pnp.solve_steady(one, pnp.Grid.uniform(one, 61)), frequencies) for one in (cell, turned)
    ]
    assert relative(*found) < 1e-8


def test_driven_cell_has_the_impedance_it_has_at_its_potential():
    frequencies = tensor(1e-3, 1.0, 1e3)
    held = reactive(1.2, -0.5)
    grid = pnp.Grid.uniform(held, 41)
    solution = pnp.solve_steady(held, grid)
    current = pnp.current_density(solution).mean(-1)
    wanted = pnp.impedance(solution, frequencies)
    for side in ("left", "right"):
        end = getattr(held, side)
        driven = pnp.Electrode(
            current=current, stern_capacitance=end.stern_capacitance, reactions=end.reactions
        )
        found = pnp.impedance(pnp.solve_steady(replace(held, **{side: driven}), grid), frequencies)
        assert relative(found, wanted) < 1e-7


def test_small_sine_about_a_steady_current_measures_the_impedance():
    amplitude, frequency = 0.01, 2.0
    cell = reactive(pnp.sine(amplitude, frequency, offset=1.2), -0.5)
    grid = pnp.Grid.uniform(cell, 31)
    steady = pnp.solve_steady(cell, grid)  # at time zero, of the offset
    turns = torch.arange(8, dtype=torch.float64) / 8
    solution = pnp.solve_transient(
        cell,
        grid,
        times=(1 + turns) / frequency,
        initial=steady,
        step_control=pnp.StepControl(relative=3e-7, absolute=3e-7),
    )
    change = pnp.current_density(solution)[:, 0] - pnp.current_density(steady)[0]
    phasor = 2j * (change * torch.exp(-2j * math.pi * turns)).mean() / amplitude
    impedance = pnp.impedance(steady, [frequency])[0]
    assert abs(complex(phasor * impedance) - 1) < 5e-3


# ---- full layers


class InFiftyDigits:
    """The discrete equations of point ions between an end that holds its potential and a bath, in concentrations."""

    def __init__(self, solution: pnp.Solution) -> None:
        cell = solution.cell
        self.valences, self.diffusivities = (
            [mpmath.mpf(float(one)) for one in part.flatten()]
            for part in (cell.electrolyte.valences, cell.electrolyte.diffusivities)
        )
        self.permittivity = mpmath.mpf(float(cell.electrolyte.permittivity))
        x = [mpmath.mpf(float(one)) for one in solution.grid.nodes.flatten()]
        self.phi = [mpmath.mpf(float(one)) for one in solution.potential.flatten()]
        self.spacings = [right - left for left, right in pairwise(x)]
        self.volumes = [
            (left + right) / 2 for left, right in zip([0, *self.spacings], [*self.spacings, 0], strict=True)
        ]
        assert isinstance(cell.right, pnp.Reservoir)
        bath = [mpmath.mpf(float(one)) for one in cell.right.concentrations.flatten()]
        # Ions at rest, to all digits.
        self.concentrations = [
            [c * mpmath.exp(-z * (phi - self.phi[-1])) for phi in self.phi]
            for z, c in zip(self.valences, bath, strict=True)
        ]

    def impedance(self, omega: float) -> complex:
        species, nodes = len(self.valences), len(self.phi)
        rate, matrix = mpmath.mpc(0, omega), mpmath.zeros((species + 1) * nodes)

        def edge(i: int, k: int) -> dict[int, mpmath.mpf]:
            """Derivatives of the flux of an ion, or of the displacement, by the unknowns."""
            if i == species:
                stiffness = self.permittivity / self.spacings[k]
                return {species * nodes + k: stiffness, species * nodes + k + 1: -stiffness}
            z, mobility = self.valences[i], self.diffusivities[i] / self.spacings[k]
            drop = z * (self.phi[k + 1] - self.phi[k])
            left, right = self.concentrations[i][k : k + 2]
            ahead, back = (x / mpmath.expm1(x) for x in (drop, -drop))
            slope = (1 - ahead) / mpmath.expm1(drop) - ahead
            by_drop = mobility * z * (slope * left - (1 + slope) * right)
            here = i * nodes + k
            by_fields = {species * nodes + k: -by_drop, species * nodes + k + 1: by_drop}
            return {here: mobility * ahead, here + 1: -mobility * back} | by_fields

        for i in range(species + 1):
            for k in range(nodes):
                row = i * nodes + k
                if k == nodes - 1 or (k == 0 and i == species):
                    matrix[row, row] = 1
                    continue
                for outside, sign in ((k, 1), (k - 1, -1)):
                    for column, value in edge(i, outside).items() if outside >= 0 else ():
                        matrix[row, column] += sign * value
                if i < species:
                    matrix[row, row] += rate * self.volumes[k]
                else:
                    for j, z in enumerate(self.valences):
                        matrix[row, j * nodes + k] -= z * self.volumes[k]
        drive = mpmath.zeros((species + 1) * nodes, 1)
        drive[species * nodes] = 1
        x = mpmath.lu_solve(matrix, drive)
        weights = [*self.valences, rate]
        current = sum(
            weight * value * x[column]
            for i, weight in enumerate(weights)
            for column, value in edge(i, nodes // 2).items()
        )
        return complex(1 / current)


@pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")
def test_equations_of_a_full_layer_in_fifty_digits():
    """Where the wall holds a million times the ions of the bath."""
    omegas = (1e-4, 0.1, 10.0, 1e3, 1e6)
    cell = sweep.random_cells("electrode and bath", "point ions", 3, only=[1])
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 15))
    with mpmath.workdps(50):
        discrete = InFiftyDigits(solution)
        assert max(ions[0] / ions[-1] for ions in discrete.concentrations) > 1e6
        wanted = [discrete.impedance(omega) for omega in omegas]
    found = pnp.impedance(solution, tensor(*omegas) / (2 * math.pi))
    assert relative(found[0], wanted) < 1e-11


# ---- what it must keep


def test_batch_is_its_elements_and_frequencies_are_their_own():
    left = tensor(0.5, -1.0, 1.2)[:, None]
    right = tensor(-0.5, 0.8)
    frequencies = torch.logspace(-2, 3, 5, dtype=torch.float64)
    wide = reactive(left, right)
    found = pnp.impedance(pnp.solve_steady(wide, pnp.Grid.uniform(wide, 31)), frequencies)
    assert found.shape == (3, 2, 5)
    for i in range(3):
        for j in range(2):
            one = reactive(float(left[i, 0]), float(right[j]))
            solution = pnp.solve_steady(one, pnp.Grid.uniform(one, 31))
            assert relative(pnp.impedance(solution, frequencies), found[i, j]) < 1e-9
            assert relative(pnp.impedance(solution, frequencies[2:3]), found[i, j, 2:3]) < 1e-9


def test_many_frequencies_are_solved_in_parts(monkeypatch):
    cell = reactive(tensor(0.5, -1.0), -0.5)
    solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 21))
    frequencies = torch.logspace(-2, 3, 7, dtype=torch.float64)
    wanted = pnp.impedance(solution, frequencies)
    monkeypatch.setattr(sys.modules["pnp.impedance"], "SIDE_BY_SIDE", 4)
    assert relative(pnp.impedance(solution, frequencies), wanted) < 1e-12


PARAMETERS = {
    "valence": 1.0,
    "diffusivity": 0.7,
    "diameter": 0.5,
    "solvent_diameter": 0.6,
    "permittivity": 0.05,
    "length": 1.2,
    "filling": 0.9,
    "left potential": 0.8,
    "right potential": -0.4,
    "stern": 0.4,
    "rate_constant": 0.6,
    "standard_potential": 0.3,
    "alpha": 0.4,
    "forward": 2.0,
    "backward": 3.0,
    "bath": 0.5,
}


def parametrised(numbers: torch.Tensor, end: str) -> pnp.Cell:
    p = dict(zip(PARAMETERS, numbers, strict=True))
    species = [
        pnp.Species("M", valence=p["valence"], diffusivity=p["diffusivity"], diameter=p["diameter"]),
        pnp.Species("X", valence=-p["valence"], diffusivity=0.4, diameter=0.3),
        pnp.Species("MX", valence=0.0, diffusivity=0.6),
    ]
    plating = pnp.ElectrodeReaction(
        {"M": 1},
        {},
        rate_constant=p["rate_constant"],
        standard_potential=p["standard_potential"],
        transfer_coefficient=p["alpha"],
    )
    pairing = pnp.Reaction({"M": 1, "X": 1}, {"MX": 1}, forward=p["forward"], backward=p["backward"])
    left = pnp.Electrode(potential=p["left potential"], stern_capacitance=p["stern"], reactions=plating)
    right: Any = pnp.Electrode(potential=p["right potential"])
    if end == "bath":
        salt = torch.stack([p["bath"], p["bath"], 0.3 * p["bath"]])
        right = pnp.Reservoir(concentrations=salt, potential=p["right potential"])
    return pnp.Cell(
        pnp.Electrolyte.dimensionless(
            species,
            permittivity=p["permittivity"],
            reactions=[pairing],
            solvent_diameter=p["solvent_diameter"],
        ),
        length=p["length"],
        concentrations=torch.stack([p["filling"], p["filling"], 0.5 * p["filling"]]),
        left=left
        if end != "bath first"
        else pnp.Reservoir(concentrations=[0.5, 0.5, 0.1], potential=p["left potential"]),
        right=right,
    )


UNUSED = {
    "electrode": {"bath"},
    "bath": {"filling"},
    "bath first": {"filling", "bath", "stern", "rate_constant", "standard_potential", "alpha"},
}


@pytest.mark.parametrize("end", UNUSED)
def test_gradients_by_every_number(end):
    """Real and imaginary part, at three frequencies, against differences."""
    start = tensor(*PARAMETERS.values())

    def parts(numbers: torch.Tensor) -> torch.Tensor:
        cell = parametrised(numbers, end)
        solution = pnp.solve_steady(cell, pnp.Grid.uniform(cell, 21))
        impedance = pnp.impedance(solution, tensor(0.05, 0.5, 5.0))
        return torch.cat([impedance.real, impedance.imag])

    found = torch.autograd.functional.jacobian(parts, start)
    step = 1e-5
    wanted = torch.stack(
        [
            (parts(start + step * unit) - parts(start - step * unit)) / (2 * step)
            for unit in torch.eye(len(start))
        ],
        dim=-1,
    )
    scale = wanted.abs().amax(0).clamp(min=0.3)
    assert float(((found - wanted).abs() / scale).max()) < 1e-6
    unused = {
        name for name, column in zip(PARAMETERS, found.T, strict=True) if float(column.abs().max()) < 1e-8
    }
    assert unused == UNUSED[end]


@pytest.mark.parametrize("debye", [0.1, 0.01])
def test_real_part_is_positive_at_rest(debye):
    """Nothing that is at rest gives power, at any bias and frequency."""
    cell = blocking(debye, left=pnp.Electrode(potential=tensor(0.0, 2.0, 8.0)))
    found = pnp.impedance(pnp.solve_steady(cell), torch.logspace(-2, 6, 17, dtype=torch.float64))
    assert bool((found.real > 0).all())
    assert bool((found.imag < 0).all())


def steady(**changes: Any) -> pnp.Solution:
    return pnp.solve_steady(
        blocking(0.1, **changes), pnp.Grid.uniform(blocking(0.1, **changes), 21), throw=False
    )


def transient() -> pnp.Solution:
    cell = blocking(0.1)
    return pnp.solve_transient(cell, pnp.Grid.uniform(cell, 21), times=[0.1])


def failed() -> pnp.Solution:
    cell = blocking(0.1, left=pnp.Electrode(potential=5.0))
    return pnp.solve_equilibrium(
        cell, pnp.Grid.uniform(cell, 21), throw=False, newton_settings=pnp.Newton(max_iterations=1)
    )


RING = pnp.Periodic()
REFUSED = {
    "a transient is no steady state": (transient, [1.0]),
    "1 of 1 steady states were not solved": (failed, [1.0]),
    "three terminals": (lambda: steady(ground=0.5), [1.0]),
    "must be electrodes or reservoirs, got ChargedWall": (lambda: steady(right=pnp.ChargedWall()), [1.0]),
    "must be electrodes or reservoirs, got Periodic": (lambda: steady(left=RING, right=RING), [1.0]),
    "frequencies must be above 0, got 0": (steady, [1.0, 0.0]),
    "frequencies must be above 0, got -2": (steady, [-2.0]),
    r"frequencies must be one axis of numbers, got shape \(\)": (steady, 1.0),
    r"frequencies must be one axis of numbers, got shape \(1, 2\)": (steady, [[1.0, 2.0]]),
    r"frequencies must be one axis of numbers, got shape \(0,\)": (steady, []),
}


@pytest.mark.parametrize("message", REFUSED)
@pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")
def test_refusals(message):
    make, frequencies = REFUSED[message]
    with pytest.raises(ValueError, match=f"impedance: .*{message}"):
        pnp.impedance(make(), frequencies)
