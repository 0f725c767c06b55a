"""Many species: a salt whose ions are split into many copies is the same salt, whichever path solves it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pnp
from pnp import compiled
from pnp.solvers import many_species as eliminations

from .test_pnp_gradients import one_step_per_time
from .test_pnp_steady import many_species

# These must hold on any grid, so coarse ones serve.
pytestmark = pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")

VALENCES = torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
SIZES = torch.tensor([1.0, 0.8, 0.6], dtype=torch.float64)
TIMES = [1e-3, 0.01, 0.1]
ENDS = ("electrodes", "Stern layers", "electrode and bath", "baths")
SHARES_DO_NOT_MATTER = pnp.StepControl(relative=5e-3, absolute=1e-15)
"""Errors relative to each concentration: the mean over equally many copies is that over the ions."""
LOOSE = pnp.StepControl(relative=0.03, absolute=3e-3)


class Split(NamedTuple):
    """Of which ion every copy is, and which share of it."""

    ions: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def into(cls, *counts: int) -> "Split":
        """Three ions into so many copies each, of shares between a part and twenty parts."""
        parts = [torch.linspace(1, 20, count, dtype=torch.float64) for count in counts]
        shares = torch.cat([part[torch.randperm(len(part))] / part.sum() for part in parts])
        return cls(torch.arange(3).repeat_interleave(torch.tensor(counts)), shares)

    @classmethod
    def evenly(cls, count: int) -> "Split":
        """Three ions into `count` equal copies each."""
        shares = torch.full((3 * count,), 1 / count, dtype=torch.float64)
        return cls(torch.arange(3).repeat_interleave(count), shares)

    def concentrations(self, whole: torch.Tensor) -> torch.Tensor:
        """Of the copies, from those of the ions `(..., ion, node)`."""
        return self.shares[:, None] * whole[..., self.ions, :]


WHOLE = Split.evenly(1)


@dataclass(frozen=True)
class Salt:
    """A salt of three ions, of which any may be split, between ends of one kind."""

    ends: str
    finite: bool

    @property
    def numbers(self) -> torch.Tensor:
        """Filling of the two cations, diffusivities, permittivity, size, what the ends impose, Stern layers."""
        return torch.tensor([1.3, 0.4, 1.0, 0.6, 1.7, 0.05, 0.45, 2.0, -1.5, 0.8, 1.9], dtype=torch.float64)

    def cell(self, split: Split = WHOLE, numbers: torch.Tensor | None = None) -> pnp.Cell:
        """With these `numbers` `(..., number)`, the salt's own if not given."""
        numbers = self.numbers if numbers is None else numbers
        permittivity, size, left, right, *stern = numbers[..., 5:].unbind(-1)
        first, second = numbers[..., 0], numbers[..., 1]
        whole = torch.stack([first, first + 2 * second, second], dim=-1)
        filling = split.shares * whole[..., split.ions]
        species = [
            pnp.Species(
                f"copy {copy} of {ion}",
                valence=VALENCES[ion],
                diffusivity=numbers[..., 2 + ion],
                diameter=size * SIZES[ion] if self.finite else 0.0,
            )
            for copy, ion in enumerate(split.ions.tolist())
        ]
        plain = [pnp.Electrode(potential=one) for one in (left, right)]
        layers = [
            pnp.Electrode(potential=one, stern_capacitance=layer)
            for one, layer in zip((left, right), stern, strict=True)
        ]
        dilute = pnp.Reservoir(concentrations=stern[0][..., None] * filling, potential=left)
        bath = pnp.Reservoir(concentrations=filling, potential=right)
        ends = dict(zip(ENDS, (plain, layers, (layers[0], bath), (dilute, bath)), strict=True))[self.ends]
        return pnp.Cell(
            pnp.Electrolyte.dimensionless(species, permittivity=permittivity),
            length=1.0,
            concentrations=filling,
            left=ends[0],
            right=ends[1],
        )

    def grid(self, nodes: int) -> pnp.Grid:
        """The same for the salt as a whole and for its copies."""
        return pnp.Grid.refined(self.cell(), nodes)


SALTS = [Salt(ends, finite) for ends in ENDS for finite in (False, True)]


def of_each(salts: list[Salt]) -> pytest.MarkDecorator:
    """One test for each salt."""
    return pytest.mark.parametrize("salt", salts, ids=lambda one: one.ends + ", finite ions" * one.finite)


@contextmanager
def products_counted() -> Iterator[list[int]]:
    """How many products with the matrix every run of GMRES takes."""
    counts: list[int] = []
    plain = eliminations.gmres

    def counting(apply: Any, precondition: Any, rhs: torch.Tensor) -> torch.Tensor:
        counts.append(0)

        def counted(x: torch.Tensor) -> torch.Tensor:
            counts[-1] += 1
            return apply(x)

        return plain(counted, precondition, rhs)

    with patch.object(eliminations, "gmres", counting):
        yield counts


class Work(TorchDispatchMode):
    """How many numbers all operations together read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        self.numbers += sum(one.numel() for one in leaves if isinstance(one, torch.Tensor))
        return result


def assert_split(many: pnp.Solution, whole: pnp.Solution, split: Split, tolerance: float) -> None:
    """Equal potentials, and of every copy its share, at every node and time."""
    assert float((many.potential - whole.potential).abs().max()) < tolerance
    ratios = many.concentrations / split.concentrations(whole.concentrations)
    assert float((ratios - 1).abs().max()) < tolerance
    assert float(many.check().amount_error.max()) < 1e-12
    assert float(many.check().gauss_error.max()) < 1e-12


# ---- equilibria


@of_each([salt for salt in SALTS if salt.ends != "baths"])
def test_equilibrium_of_4096_copies(salt):
    """Against the coupled solver of the three ions, and against Boltzmann and Gauss in numpy."""
    split, grid = Split.into(1000, 2000, 1096), salt.grid(61)
    many = pnp.solve_equilibrium(salt.cell(split), grid)
    with products_counted() as counts:
        whole = pnp.solve_steady(salt.cell(), grid)
    assert not counts
    assert_split(many, whole, split, 1e-12)
    c, phi = many.concentrations.numpy(), many.potential.numpy()
    z, h, v = VALENCES[split.ions].numpy(), grid.spacings.numpy(), grid.volumes.numpy()
    energies = np.log(c) + z[:, None] * phi
    if salt.finite:
        sizes = SIZES[split.ions].numpy() ** 3
        energies -= sizes[:, None] * np.log1p(-(0.45**3) * sizes @ c)
    assert np.ptp(energies, axis=1).max() < 1e-11
    gauss = np.diff(-0.05 * np.diff(phi) / h) - v[1:-1] * (z @ c)[1:-1]
    assert np.abs(gauss).max() < 1e-12


# ---- transients


@of_each(SALTS)
def test_transient_of_copies_with_given_steps(salt):
    """Of any number and any shares."""
    split, grid = Split.into(10, 20, 13), salt.grid(21)
    with one_step_per_time():
        whole = pnp.solve_transient(salt.cell(), grid, times=TIMES)
        with products_counted() as counts:
            many = pnp.solve_transient(salt.cell(split), grid, times=TIMES)
    assert counts
    assert_split(many, whole, split, 1e-11)


@pytest.mark.parametrize("ends", ["Stern layers", "baths"])
def test_adaptive_transient_of_copies(ends):
    """Whose steps are the same, though chosen by the errors of all copies."""
    salt, split = Salt(ends, finite=True), Split.into(14, 14, 14)
    grid = salt.grid(21)
    whole, many = (
        pnp.solve_transient(cell, grid, times=TIMES, step_control=SHARES_DO_NOT_MATTER)
        for cell in (salt.cell(), salt.cell(split))
    )
    assert int(many.stats.steps) == int(whole.stats.steps) > 10
    assert int(many.stats.iterations) == int(whole.stats.iterations)
    assert_split(many, whole, split, 1e-10)


def test_default_steps_of_equal_copies():
    """The unit of the absolute tolerance is the largest filling, so that equal copies weigh as the ions do."""
    salt, split = Salt("Stern layers", finite=False), Split.evenly(14)
    grid = salt.grid(15)
    with compiled.torch_only():  # as transients of so many are solved
        whole, many = (
            pnp.solve_transient(cell, grid, times=[0.003]) for cell in (salt.cell(), salt.cell(split))
        )
    assert int(many.stats.steps) == int(whole.stats.steps)
    assert_split(many, whole, split, 1e-10)


def test_transient_of_copies_ends_in_their_equilibrium():
    salt, split = Salt("Stern layers", finite=True), Split.into(14, 16, 12)
    cell, grid = salt.cell(split), salt.grid(15)
    late = pnp.solve_transient(cell, grid, times=[100.0], step_control=LOOSE).at(0)
    rest = pnp.solve_equilibrium(cell, grid)
    assert float((late.potential - rest.potential).abs().max()) < 1e-9
    assert torch.allclose(late.concentrations, rest.concentrations, rtol=1e-8, atol=0)


def test_batch_of_transients_of_copies_equals_single_ones():
    """GMRES goes on until the last element has converged, which must not show in the others."""
    salt, split = Salt("electrode and bath", finite=True), Split.evenly(4)
    factors = torch.tensor([1.0, 0.02, 1.5], dtype=torch.float64)
    numbers = salt.numbers.repeat(3, 1)
    numbers[:, [5, 7]] *= factors[:, None]
    grid = salt.grid(15)

    def solve(numbers: torch.Tensor) -> pnp.Solution:
        return pnp.solve_transient(salt.cell(split, numbers), grid, times=TIMES[:2], step_control=LOOSE)

    batch = solve(numbers)
    assert len(set(batch.stats.steps.tolist())) > 1
    for index in range(3):
        single = solve(numbers[index])
        assert int(single.stats.steps) == int(batch.stats.steps[index])
        assert torch.allclose(batch.potential[index], single.potential, rtol=1e-12, atol=1e-12)
        assert torch.allclose(batch.concentrations[index], single.concentrations, rtol=1e-12, atol=0)


# ---- gradients


def outputs(solution: pnp.Solution) -> torch.Tensor:
    """Numbers of a transient that copies do not change, `(output,)`."""
    surface = pnp.surface_charge(solution)
    parts = (surface.left, surface.right, pnp.current_density(solution)[..., 3], solution.potential[..., 5])
    return torch.cat(parts)


@of_each([Salt("Stern layers", True), Salt("electrode and bath", False), Salt("baths", True)])
def test_gradients_of_copies(salt):
    """By every number of the salt; by diffusivity and filling of each copy, in proportion to what it is of."""
    split, grid = Split.into(14, 14, 14), salt.grid(15)

    def gradients(one: Split) -> list[torch.Tensor]:
        numbers = salt.numbers.requires_grad_()
        cell = salt.cell(one, numbers)
        solution = pnp.solve_transient(cell, grid, times=TIMES[:2], step_control=SHARES_DO_NOT_MATTER)
        values = outputs(solution)
        wanted = torch.cos(torch.arange(len(values), dtype=torch.float64)) @ values
        return torch.autograd.grad(wanted, (numbers, cell.electrolyte.diffusivities, cell.concentrations))

    whole, many = gradients(WHOLE), gradients(split)
    expected = (whole[0], split.shares * whole[1][split.ions], whole[2][split.ions])
    for found, wanted in zip(many, expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-10 * float(wanted.abs().max()))


# ---- cost


def charged(count: int) -> torch.Tensor:
    """A charge after a short and a long step of a cell of `count` species, with a gradient."""
    left = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    cell = many_species(count, left=pnp.Electrode(potential=left), right=pnp.Electrode(potential=-1.0))
    solution = pnp.solve_transient(cell, pnp.Grid.uniform(cell, 21), times=[1e-3, 1.0])
    return pnp.surface_charge(solution).right.sum()


def test_gmres_takes_as_few_products_for_many_species():
    """Of random valences, for steps shorter and longer than the layers take to charge, forwards and backwards."""
    most = {}
    for count in (8, 64, 512):
        with one_step_per_time(), products_counted() as counts:
            value = charged(count)
            forwards = len(counts)
            value.backward()
        assert len(counts) > forwards > 0
        most[count] = max(counts)
    assert max(most.values()) <= 12
    assert most[512] <= most[64] + 1 <= most[8] + 2


def test_work_of_a_step_is_proportional_to_the_species():
    """Counted in the numbers that operations read and write; GMRES takes as many products for all."""
    salt, work, products = Salt("Stern layers", finite=True), {}, {}
    for copies in (4, 16, 64):
        cell = salt.cell(Split.evenly(copies))
        with one_step_per_time(), products_counted() as counts, Work() as done:
            pnp.solve_transient(cell, salt.grid(11), times=[0.01])
        work[copies], products[copies] = done.numbers, max(counts)
    few, many = (work[16] - work[4]) / 12, (work[64] - work[16]) / 48
    assert many == pytest.approx(few, rel=0.05)
    assert max(products.values()) <= min(products.values()) + 1


def test_the_counts_see_a_worse_preconditioner_and_pairs_of_species():
    identity = patch.object(eliminations.ManySpecies, "_precondition", lambda _, x: x)
    with one_step_per_time(), products_counted() as counts, identity:
        charged(8)
    assert max(counts) > 15
    species = torch.ones(512, 1)
    with Work() as done:
        _ = species @ species.T
    assert done.numbers > 512**2
