"""Fluxes, and the Jacobian against autograd through the residual, for every kind of end."""

import math

import pytest
import torch

import pnp
from pnp.finite_volume.fluxes import scharfetter_gummel, scharfetter_gummel_derivatives
from pnp.finite_volume.jacobian import jacobian, poisson_matrix
from pnp.finite_volume.residual import divergence, field_residual, poisson_residual, species_residual
from pnp.scaling import scale
from pnp.solvers.linear import Bordered, Coupled, Pins
from pnp.solvers.many_species import ManySpecies
from pnp.system import State, System

SHUTTLE = pnp.ElectrodeReaction({"s0": 2}, {"s2": 1, "s0": 0.5}, rate_constant=0.4, standard_potential=0.3)
PLATING = pnp.ElectrodeReaction({"s0": 1}, {}, rate_constant=2.0, transfer_coefficient=0.3)
ELECTRODE = pnp.Electrode(potential=1.5)
STERN = pnp.Electrode(potential=-0.7, stern_capacitance=0.8)
BATH = pnp.Reservoir(concentrations=[1.2, 0.6, 0.8], potential=0.4)  # neutral: 1.2 - 2 * 0.6 + 0
REACTIVE = pnp.Electrode(potential=-0.7, stern_capacitance=0.8, reactions=[SHUTTLE, PLATING])
DRIVEN = pnp.Electrode(current=0.9, stern_capacitance=0.8, reactions=[SHUTTLE, PLATING])
WALL = pnp.ChargedWall(charge=0.0)
RING = pnp.Periodic(potential_drop=0.7)
ENDS = {
    "electrodes": (ELECTRODE, pnp.Electrode(potential=-1.5)),
    "stern": (STERN, STERN),
    "electrode-stern": (ELECTRODE, STERN),
    "baths": (BATH, pnp.Reservoir(concentrations=[0.4, 0.2, 0.1], potential=-1.0)),
    "electrode-bath": (ELECTRODE, BATH),
    "bath-stern": (BATH, STERN),
    "reactive": (REACTIVE, pnp.Electrode(potential=0.2, reactions=PLATING)),
    "driven": (DRIVEN, REACTIVE),
    "bath-driven": (BATH, DRIVEN),
    "charging": (pnp.Electrode(current=0.9), ELECTRODE),
    "wall-electrode": (pnp.ChargedWall(charge=0.4), ELECTRODE),
    "walls": (WALL, WALL),
    "periodic": (RING, RING),
}
WITHOUT_GROUND = ("walls", "periodic")
GROUNDS = [None, 0.8]
STEPS = [None, 0.03]
MEDIA = ["points", "finite ions", "reactions", "both"]


def system_of(
    kind: str, ground: float | None, batch: int = 2, nodes: int = 9, medium: str = "points"
) -> System:
    left, right = ENDS[kind]
    sizes = (0.5, 0.7, 0.0) if medium in ("finite ions", "both") else (0.0, 0.0, 0.0)
    pairs = zip((1.0, -2.0, 0.0), (1.0, 0.5, 2.0), sizes, strict=True)
    species = [
        pnp.Species(f"s{i}", valence=z, diffusivity=d, diameter=a) for i, (z, d, a) in enumerate(pairs)
    ]
    reactions = [
        pnp.Reaction({"s0": 2, "s1": 1}, {"s2": 3}, forward=torch.tensor([1.3, 0.2][:batch]), backward=0.4),
        pnp.Reaction({}, {"s2": 1}, forward=0.7, backward=0.1),
    ]
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(
            species,
            permittivity=torch.tensor([0.3, 0.02][:batch]),
            reactions=reactions if medium in ("reactions", "both") else (),
            solvent_diameter=0.6 if sizes[0] else None,
        ),
        length=2.0,
        concentrations=[1.0, 0.5, 0.7],
        left=left,
        right=right,
        ground=ground,
        permittivity_profile=lambda x: 1 + x,
        diffusivity_profile=lambda x: torch.stack([1 + x, 2 - x / 2, torch.ones_like(x)], dim=-2),
    )
    # On a fine grid a random state has charges on a driven metal that overflow its kinetics.
    grid = pnp.Grid.uniform if "driven" in kind else pnp.Grid.refined
    return scale(cell, grid(cell, nodes))[0]


def random_state(system: System) -> State:
    batch, species, fields = system.couplings.shape
    nodes = system.volumes.shape[-1]
    return State(
        torch.rand(batch, species, nodes, dtype=torch.float64) + 0.1,
        torch.randn(batch, fields, nodes, dtype=torch.float64),
    )


def flatten(state: State) -> torch.Tensor:
    """Species and fields by node, `(batch, (S + P) N)`."""
    return torch.cat([state.concentrations, state.fields], dim=1).flatten(1)


def flat_residual(system: System, vector: torch.Tensor, step: float | None) -> torch.Tensor:
    """Residual of one cell as a function of (species and field, node) in one vector."""
    species, nodes = system.valences.shape[1], system.volumes.shape[-1]
    parts = vector.reshape(1, -1, nodes)
    state = State(parts[:, :species], parts[:, species:])
    if step is None:
        return torch.cat([species_residual(system, state).flatten(), field_residual(system, state).flatten()])
    tau = torch.tensor([step], dtype=torch.float64)
    balances = species_residual(system, state, known=torch.full_like(state.concentrations, 0.9), step=tau)
    charges = torch.full((1, 2), 0.2, dtype=torch.float64)
    return torch.cat([balances.flatten(), field_residual(system, state, known=charges, step=tau).flatten()])


def dense(matrix, element: int) -> torch.Tensor:
    """The Jacobian of one element as a matrix over (species and field, node)."""
    fields, species, nodes = matrix.charge.shape[1:]
    size = species + fields
    full = torch.zeros(size, nodes, size, nodes, dtype=torch.float64)
    transport, migration = matrix.transport.dense()[element], matrix.migration.dense()[element]
    coupling = matrix.fields.dense()[element]
    for i in range(species):
        full[i, :, i, :] = transport[i]
        for p in range(fields):
            full[i, :, species + p, :] = migration[i, p]
            full[species + p, :, i, :] = torch.diag(matrix.charge[element, p, i])
        if matrix.kinetics is not None:
            for j in range(species):
                full[i, :, j, :] += torch.diag(matrix.kinetics[element, i, j])
    for p in range(fields):
        for q in range(fields):
            full[species + p, :, species + q, :] = coupling[p, q]
    return full.flatten(2).flatten(0, 1)


def joined(system: System, full: torch.Tensor) -> torch.Tensor:
    """The matrix of a periodic cell with its two end nodes joined, as the residual has them."""
    nodes, species = system.volumes.shape[-1], system.valences.shape[1]
    full = full.clone()
    for block in range(full.shape[0] // nodes):
        first, last = block * nodes, (block + 1) * nodes - 1
        full[first] += full[last]
        full[last] = 0.0
        full[last, [first, last]] = torch.tensor([-1.0, 1.0], dtype=torch.float64)
        if block == species:
            full[first] = 0.0
            full[first, first] = 1.0
    return full


def pinned(system: System, state: State, full: torch.Tensor, element: int) -> torch.Tensor:
    """The matrix with amounts in the place of balances."""
    pins, nodes = Pins.of(system, state), system.volumes.shape[-1]
    full = full.clone()
    for law in range(pins.nodes.shape[1]):
        row = int(pins.species[element, law] * nodes + pins.nodes[element, law])
        full[row] = 0.0
        species = system.valences.shape[1]
        weights = torch.eye(species) if system.conserved is None else system.conserved[element]
        full[row, : species * nodes] = (weights[law][:, None] * system.volumes[element]).flatten()
    return full


def autograd_jacobian(system: System, state: State, step: float | None) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda v: flat_residual(system, v, step), flatten(state)[0])


def as_step(step: float | None, system: System) -> torch.Tensor | None:
    return None if step is None else torch.full_like(system.left.level, step)


# ---- fluxes


def test_flux_vanishes_for_a_boltzmann_distribution():
    drop = torch.tensor([-40.0, -3.0, -1e-9, 0.0, 0.1, 5.0, 100.0], dtype=torch.float64)
    left = torch.full_like(drop, 2.0)
    right = left * torch.exp(-drop)
    flux = scharfetter_gummel(torch.tensor(3.0), drop, left, right)
    size = 3.0 * torch.maximum(left, right) * (1 + drop.abs())
    assert (flux.abs() / size).max() < 1e-15


@pytest.mark.parametrize("drop", [-20.0, -0.3, 1e-6, 2.0, 30.0])
def test_flux_is_exact_in_a_constant_field(drop):
    # J = -D (c' + E c) with constant J, on an edge of length h: solved by quadrature of c e^{drop x/h}
    d, h, left, right = 1.7, 0.3, 2.0, 0.4
    wanted = d / h * drop * (left - right * math.exp(drop)) / math.expm1(drop)
    flux = scharfetter_gummel(*torch.tensor([d / h, drop, left, right], dtype=torch.float64))
    assert float(flux) == pytest.approx(wanted, rel=1e-14)


def test_flux_is_diffusion_without_field_and_upwind_in_a_strong_one():
    left, right, mobility = (torch.tensor(x, dtype=torch.float64) for x in (2.0, 0.5, 3.0))

    def flux(drop):
        return float(scharfetter_gummel(mobility, torch.tensor(drop, dtype=torch.float64), left, right))

    assert flux(0.0) == 4.5
    assert flux(-500.0) == pytest.approx(3.0 * 500 * 2.0)
    assert flux(500.0) == pytest.approx(-3.0 * 500 * 0.5)


def test_flux_turns_with_the_edge():
    drop = torch.tensor([-2.0, 0.3, 7.0], dtype=torch.float64)
    one = scharfetter_gummel(torch.tensor(1.0), drop, torch.tensor(2.0), torch.tensor(0.3))
    two = scharfetter_gummel(torch.tensor(1.0), -drop, torch.tensor(0.3), torch.tensor(2.0))
    assert torch.allclose(one, -two, rtol=1e-15)


def test_flux_derivatives_agree_with_autograd():
    drop = torch.tensor([-700.0, -3.0, -0.2, 0.0, 1e-9, 0.26, 40.0], dtype=torch.float64, requires_grad=True)
    left = torch.rand(7, dtype=torch.float64, requires_grad=True)
    right = torch.rand(7, dtype=torch.float64, requires_grad=True)
    mobility = torch.rand(7, dtype=torch.float64)
    flux = scharfetter_gummel(mobility, drop, left, right)
    expected = torch.autograd.grad(flux.sum(), (left, right, drop))
    found = scharfetter_gummel_derivatives(mobility, drop.detach(), left.detach(), right.detach())
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one, two, rtol=1e-13, atol=1e-280)


def test_divergence_telescopes_to_nothing():
    assert divergence(torch.randn(3, 7, dtype=torch.float64)).sum(-1).abs().max() < 1e-14


# ---- the Jacobian


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("ground", GROUNDS)
@pytest.mark.parametrize("kind", ENDS)
def test_jacobian_is_the_derivative_of_the_residual(kind, ground, step, medium):
    if ground is not None and kind in WITHOUT_GROUND:
        pytest.skip("no ground in such a cell")
    system = system_of(kind, ground, batch=1, medium=medium)
    state = random_state(system)
    found = dense(jacobian(system, state, step=as_step(step, system)), 0)
    if system.is_periodic:
        found = joined(system, found)
    wanted = autograd_jacobian(system, state, step)
    assert torch.allclose(found, wanted, rtol=1e-11, atol=1e-12 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "kind", [kind for kind in ENDS if kind not in ("driven", "bath-driven", "charging", "periodic")]
)
def test_poisson_matrix_and_residual_agree(kind):
    system = system_of(kind, None)
    state = random_state(system)
    other = State(state.concentrations, torch.zeros_like(state.fields))
    change = poisson_residual(system, state) - poisson_residual(system, other)
    product = (poisson_matrix(system).dense() @ state.potential.unsqueeze(-1)).squeeze(-1)
    assert torch.allclose(product, change, rtol=1e-12, atol=1e-12)


# ---- elimination


def assert_solves(factorisation, system: System, matrices: list[torch.Tensor], rhs: State) -> None:
    found = flatten(factorisation.solve(rhs.concentrations, rhs.fields))
    for element, full in enumerate(matrices):
        wanted = torch.linalg.solve(full, flatten(rhs)[element])
        size = float(wanted.abs().max())
        assert torch.allclose(found[element], wanted, rtol=1e-8, atol=1e-9 * size)


@pytest.mark.parametrize("medium", ["points", "finite ions"])
@pytest.mark.parametrize("elimination", ["coupled", "many species"])
@pytest.mark.parametrize(
    "kind", ["electrodes", "electrode-stern", "baths", "electrode-bath", "wall-electrode"]
)
def test_eliminations_solve_a_time_step(kind, elimination, medium):
    system = system_of(kind, 0.8, medium=medium)
    state, rhs = random_state(system), random_state(system)
    matrix = jacobian(system, state, step=as_step(0.03, system))
    wanted = [dense(matrix, element) for element in range(2)]
    many = ManySpecies(matrix, system.couplings, state.concentrations, None)
    assert_solves(Coupled(matrix) if elimination == "coupled" else many, system, wanted, rhs)


@pytest.mark.parametrize("medium", MEDIA)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", ["electrodes", "electrode-stern", "walls", "periodic", "reactive", "driven"])
def test_bordered_elimination_keeps_amounts_and_joins_the_ends(kind, step, medium):
    system = system_of(kind, None, medium=medium)
    if kind in ("reactive", "driven") and not system.laws:
        pytest.skip("nothing is conserved")
    state, rhs = random_state(system), random_state(system)
    matrix = jacobian(system, state, step=as_step(step, system))
    wanted = []
    for element in range(2):
        full = dense(matrix, element)
        full = joined(system, full) if system.is_periodic else full
        wanted.append(pinned(system, state, full, element))
    assert_solves(Bordered(system, matrix, Pins.of(system, state)), system, wanted, rhs)


@pytest.mark.parametrize("medium", ["points", "finite ions"])
@pytest.mark.parametrize("step", STEPS)
def test_many_species_keep_their_amounts(step, medium):
    system = system_of("electrode-stern", 0.8, medium=medium)
    state, rhs = random_state(system), random_state(system)
    matrix = jacobian(system, state, step=as_step(step, system))
    wanted = [pinned(system, state, dense(matrix, element), element) for element in range(2)]
    nodes = Pins.of(system, state).nodes
    many = ManySpecies(matrix, system.couplings, state.concentrations, (nodes, system.volumes))
    assert_solves(many, system, wanted, rhs)


@pytest.mark.parametrize("medium", ["points", "finite ions"])
@pytest.mark.parametrize("held", [True, False])
def test_gradient_through_many_species_is_the_transposed_solve(held, medium):
    system = system_of("electrode-stern", 0.8, medium=medium)
    state, rhs, probe = (random_state(system) for _ in range(3))
    matrix = jacobian(system, state, step=as_step(0.03, system))
    pins = (Pins.of(system, state).nodes, system.volumes) if held else None
    many = ManySpecies(matrix, system.couplings, state.concentrations, pins)
    inputs = [part.requires_grad_() for part in (rhs.concentrations, rhs.fields)]
    found = many.solve(*inputs)
    value = (found.concentrations * probe.concentrations).sum() + (found.fields * probe.fields).sum()
    grads = flatten(State(*torch.autograd.grad(value, inputs)))
    for element in range(2):
        full = dense(matrix, element)
        full = pinned(system, state, full, element) if held else full
        wanted = torch.linalg.solve(full.T, flatten(probe)[element])
        assert torch.allclose(grads[element], wanted, rtol=1e-8, atol=1e-9 * float(wanted.abs().max()))
