"""Gradients of solutions against differences, for every number of a cell and every kind of end."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch

import pnp
from pnp import Newton, StepControl, compiled

from .problems import Canonical, GouyChapman, electrolyte
from .test_pnp_steady import many_species

NODES = 13
GROUND_NODE = 5
COMMON = {
    "valence of the cation": 1.7,
    "valence of the anion": -1.1,
    "diffusivity of the cation": 0.6,
    "diffusivity of the anion": 1.3,
    "filling of the cation": 0.8,
    "filling of the anion": 1.1,
    "permittivity": 0.5,
    "temperature": 1.2,
    "left potential": 1.4,
    "right potential": -0.9,
    "left stern capacitance": 0.7,
    "right stern capacitance": 1.9,
    "left bath": 1.2,
    "right bath": 0.5,
    "fixed charge": 0.15,
    "slope of the fixed charge": 0.3,
    "length": 1.0,
}
"""Numbers of every kind of cell, whether it depends on them or not."""
AT_ENDS = {
    "reacting": {
        "rate constant": 0.8,
        "standard potential": 0.3,
        "transfer coefficient": 0.4,
        "standard concentration": 1.3,
    },
    "driven": {
        "current": 0.35,
        "rate constant": 1.4,
        "standard potential": -0.2,
        "transfer coefficient": 0.6,
        "standard concentration": 0.9,
    },
    "charging": {"current": 0.6},
    "alternating": {"amplitude": 0.9, "frequency": 6.0, "offset": 0.4, "phase": 0.5},
    "stepped": {"before": 0.7, "after": -1.6},
    "stepped current": {"before": -0.5, "after": 0.9},
    "ramp": {"start": 1.1, "end": -0.8, "duration": 0.4},
    "alternating current": {"amplitude": 0.9, "frequency": 9.0, "offset": 0.2, "phase": 0.5},
    "wall": {"charge": 0.45},
    "ring": {"potential drop": 1.1},
}
IN_MEDIA = {
    "finite ions": {
        "diameter of the cation": 0.55,
        "diameter of the anion": 0.45,
        "diameter of the solvent": 0.5,
    },
    "association": {
        "diffusivity of the pair": 0.9,
        "filling of the pair": 0.3,
        "forward rate": 2.1,
        "backward rate": 1.3,
    },
    "layers": {"permittivity of the layer": 2.3, "slope of the diffusivity": 0.6},
}
JUMP = 0.02
"""When a stepped potential jumps; a break of the steps, and as such a constant of the gradients."""
INNER = torch.linspace(0, 1, NODES, dtype=torch.float64)[1:-1] + 0.01 * torch.tensor([1.0, -1.0] * 5 + [1.0])


@dataclass(frozen=True)
class Kind:
    """The two ends and what is between them."""

    left: str
    right: str
    media: tuple[str, ...] = ()
    grounded: bool = False

    @property
    def rests(self) -> bool:
        """Whether there is no flux in the steady state."""
        still = {"electrode", "stern", "bath", "wall"}
        ends = {self.left, self.right}
        return ends <= still and ends != {"bath"} and "association" not in self.media

    @property
    def numbers(self) -> dict[str, float]:
        """Everything that a cell of this kind is made of, by name."""
        found = dict(COMMON)
        for side, end in (("left", self.left), ("right", self.right)):
            found |= {f"{side} {name}": value for name, value in AT_ENDS.get(end, {}).items()}
        for medium in self.media:
            found |= IN_MEDIA[medium]
        if (self.left, self.right) == ("wall", "wall"):
            del found["right charge"]  # which keeps the cell neutral
        found.pop("right potential drop", None)  # the two ends of a ring are one
        return found

    @property
    def breaks(self) -> int:
        """How many moments there are at which something jumps."""
        return int(self.right == "stepped")


KINDS = {
    "electrodes": Kind("electrode", "electrode"),
    "electrode and Stern layer": Kind("electrode", "stern"),
    "Stern layers": Kind("stern", "stern"),
    "electrodes and ground": Kind("electrode", "stern", grounded=True),
    "baths": Kind("bath", "bath"),
    "electrode and bath": Kind("electrode", "bath"),
    "bath and Stern layer with ground": Kind("bath", "stern", grounded=True),
    "finite ions": Kind("electrode", "stern", ("finite ions",)),
    "finite ions and bath": Kind("bath", "electrode", ("finite ions",)),
    "layers": Kind("stern", "electrode", ("layers",)),
    "association": Kind("electrode", "stern", ("association",)),
    "association between baths": Kind("bath", "bath", ("association",)),
    "charged wall and electrode": Kind("wall", "electrode"),
    "charged walls": Kind("wall", "wall"),
    "reacting electrodes": Kind("reacting", "reacting"),
    "reacting electrode and bath": Kind("bath", "reacting"),
    "driven electrode": Kind("driven", "reacting"),
    "driven electrode and ground": Kind("driven", "reacting", grounded=True),
    "periodic": Kind("ring", "ring"),
    "periodic, all media": Kind("ring", "ring", ("finite ions", "association", "layers")),
    "driven electrode, all media": Kind("driven", "reacting", ("finite ions", "association", "layers")),
}
MOVING = {
    "charging by a current": Kind("charging", "stern"),
    "alternating potential": Kind("alternating", "electrode"),
    "stepped potential and current": Kind("stepped current", "stepped", ("finite ions",)),
    "ramp and alternating current": Kind("ramp", "alternating current"),
}
"""Kinds that differ in transients only, or have no steady state."""
AT_REST = [name for name, kind in KINDS.items() if kind.rests]


@dataclass(frozen=True)
class Parametrised:
    """A cell and its grid as functions of a vector `(..., parameter)`."""

    name: str

    @property
    def kind(self) -> Kind:
        """What the cell is made of."""
        return (KINDS | MOVING)[self.name]

    @property
    def start(self) -> torch.Tensor:
        """The numbers, then the inner nodes."""
        return torch.cat([torch.tensor(list(self.kind.numbers.values()), dtype=torch.float64), INNER])

    @property
    def names(self) -> list[str]:
        """What the entries of the vector are."""
        return [*self.kind.numbers, *(f"node {k}" for k in range(1, NODES - 1))]

    def __call__(self, vector: torch.Tensor) -> tuple[pnp.Cell, pnp.Grid]:
        kind, count = self.kind, len(self.kind.numbers)
        p = dict(zip(kind.numbers, vector.unbind(-1), strict=False))
        zero, length = torch.zeros_like(p["length"]), p["length"]
        positions = torch.cat([zero[..., None], vector[..., count:], length[..., None]], dim=-1)
        solution = medium(kind, p)
        filling = [p["filling of the cation"], p["filling of the anion"]]
        if "association" in kind.media:
            filling.append(p["filling of the pair"])
        filling = torch.stack(filling, -1)
        ions = (solution.valences * filling).sum(-1)
        left = end(kind, "left", p, ions)
        cell = pnp.Cell(
            solution,
            length=length,
            concentrations=filling,
            left=left,
            right=left if kind.right == "ring" else end(kind, "right", p, ions),
            fixed_charge=fixed_charge(kind, p, ions),
            ground=positions[..., GROUND_NODE] if kind.grounded else None,
            **profiles(kind, p),
        )
        return cell, pnp.Grid(positions, ground_node=GROUND_NODE if kind.grounded else None)


def medium(kind: Kind, p: dict[str, torch.Tensor]) -> pnp.Electrolyte:
    """The electrolyte of a kind of cell with the numbers `p`."""
    finite = "finite ions" in kind.media
    species = [
        pnp.Species(
            name,
            valence=p[f"valence of the {ion}"],
            diffusivity=p[f"diffusivity of the {ion}"],
            diameter=p[f"diameter of the {ion}"] if finite else 0.0,
        )
        for name, ion in (("+", "cation"), ("-", "anion"))
    ]
    reactions = []
    if "association" in kind.media:
        charge = p["valence of the cation"] + p["valence of the anion"]
        species.append(pnp.Species("pair", valence=charge, diffusivity=p["diffusivity of the pair"]))
        reactions = [
            pnp.Reaction(
                {"+": 1, "-": 1}, {"pair": 1}, forward=p["forward rate"], backward=p["backward rate"]
            )
        ]
    return pnp.Electrolyte(
        species,
        relative_permittivity=p["permittivity"],
        temperature=p["temperature"],
        reactions=reactions,
        solvent_diameter=p["diameter of the solvent"] if finite else None,
        faraday_constant=1.0,
        gas_constant=1.0,
        vacuum_permittivity=1.0,
        avogadro_constant=1.0,
    )


def end(kind: Kind, side: str, p: dict[str, torch.Tensor], ions: torch.Tensor) -> pnp.boundaries.Boundary:
    """One end of a kind of cell with the numbers `p` and the charge of its `ions`."""
    what = getattr(kind, side)
    own = {name.removeprefix(f"{side} "): value for name, value in p.items() if name.startswith(side)}
    if what == "bath":
        ratio = -p["valence of the cation"] / p["valence of the anion"]
        salt = [own["bath"], own["bath"] * ratio]
        if "association" in kind.media:  # whose pair is made of the same numbers of either ion
            charge = p["valence of the cation"] + p["valence of the anion"]
            salt = [salt[0], salt[1] - own["bath"] / 4 * charge / p["valence of the anion"], own["bath"] / 4]
        return pnp.Reservoir(concentrations=torch.stack(salt, -1), potential=own["potential"])
    if what == "wall":
        # The trapezoidal rule is exact for the linear fixed charge.
        inside = p["length"] * (ions + p["fixed charge"] + p["slope of the fixed charge"] * p["length"] / 2)
        walls = (kind.left, kind.right) == ("wall", "wall")
        return pnp.ChargedWall(
            charge=-p["left charge"] - inside if walls and side == "right" else own["charge"]
        )
    if what == "ring":
        return pnp.Periodic(potential_drop=p["left potential drop"])
    electrode = {"stern_capacitance": own["stern capacitance"] if what != "electrode" else None}
    if what in ("reacting", "driven"):
        electrode["reactions"] = pnp.ElectrodeReaction(
            {"+": 1},
            {},
            rate_constant=own["rate constant"],
            standard_potential=own["standard potential"],
            transfer_coefficient=own["transfer coefficient"],
            standard_concentration=own["standard concentration"],
        )
    signal = own["potential"]
    if what.startswith("alternating"):
        signal = pnp.sine(own["amplitude"], own["frequency"], offset=own["offset"], phase=own["phase"])
    elif what.startswith("stepped"):
        signal = pnp.step(own["before"], own["after"], at=JUMP)
    elif what == "ramp":
        signal = pnp.ramp(own["start"], own["end"], duration=own["duration"])
    elif what in ("driven", "charging"):
        signal = own["current"]
    driven = what in ("driven", "charging") or what.endswith(" current")
    imposed = "current" if driven else "potential"
    return pnp.Electrode(**{imposed: signal}, **electrode)


def fixed_charge(kind: Kind, p: dict[str, torch.Tensor], ions: torch.Tensor):
    """Fixed charge of a kind of cell with the numbers `p` and the charge of its `ions`."""
    if "bath" in (kind.left, kind.right):
        return 0.0
    slope = p["slope of the fixed charge"][..., None]

    def linear(x: torch.Tensor) -> torch.Tensor:
        return p["fixed charge"][..., None] + slope * x

    def neutral(x: torch.Tensor) -> torch.Tensor:
        wave = torch.sin(2 * torch.pi * x / p["length"][..., None] + p["fixed charge"][..., None])
        # On any nodes, and where the two ends are one node.
        volumes = pnp.Grid(x.detach()).volumes if not x.requires_grad else pnp.Grid(x).volumes
        inside = volumes[..., 1:-1] * wave[..., 1:-1]
        whole = inside.sum(-1) + (volumes[..., 0] + volumes[..., -1]) * wave[..., 0]
        return slope * (wave - (whole / p["length"])[..., None]) - ions[..., None]

    return neutral if kind.left == "ring" else linear


def profiles(kind: Kind, p: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Profiles of a kind of cell with the numbers `p`."""
    if "layers" not in kind.media:
        return {}
    return {
        "permittivity_profile": lambda x: torch.where(
            x < 0.5, 1.0, p["permittivity of the layer"][..., None]
        ),
        "diffusivity_profile": lambda x: 1 + p["slope of the diffusivity"][..., None] * x,
    }


def measured(solution: pnp.Solution) -> torch.Tensor:
    """A few numbers that depend on all of a solution, `(..., number)`."""
    generator = torch.Generator().manual_seed(1)
    species, nodes = solution.concentrations.shape[-2:]
    weights = torch.randn(2 + species, nodes, dtype=torch.float64, generator=generator)
    surface = pnp.surface_charge(solution)
    parts = [
        (solution.potential * weights[0]).sum(-1),
        (solution.concentrations * weights[1:-1]).sum((-2, -1)),
        surface.left,
        surface.right,
        pnp.free_energy(solution),
        pnp.ion_flux(solution)[..., 0, 3],
        pnp.current_density(solution)[..., 2],
    ]
    if solution.pressure is not None:
        parts.append((solution.pressure * weights[-1]).sum(-1))
    if solution.cell.electrode_reactions:
        parts.append(sum(rate[..., 0] for rate in pnp.reaction_rate(solution)))
        parts.append(sum(pnp.electrode_potential(solution)))
    return torch.stack(parts, -1).flatten(-1 if solution.times is None else -2)


def gradient_error(solve, kind: str, step: float = 1e-5) -> tuple[float, str]:
    """Backward passes against central differences, which are one batch of perturbed cells.

    The largest error, relative to one and the derivative, over all parameters and outputs, and where it is.
    """
    build = Parametrised(kind)
    start, names = build.start, build.names
    vector = start.clone().requires_grad_()
    values = measured(solve(*build(vector)))
    found = torch.stack([torch.autograd.grad(value, vector, retain_graph=True)[0] for value in values])
    shifts = step * torch.eye(len(start), dtype=torch.float64)
    shifted = measured(solve(*build(torch.stack([start + shifts, start - shifts]))))
    wanted = ((shifted[0] - shifted[1]) / (2 * step)).T
    error = (found - wanted).abs() / (1 + wanted.abs())
    output, parameter = divmod(int(error.argmax()), len(start))
    where = f"output {output} by {names[parameter]}"
    return float(error.max()), f"{where}: {found[output, parameter]:g}, not {wanted[output, parameter]:g}"


def assert_gradients(solve, kind: str, step: float = 1e-5, tolerance: float = 1e-6) -> None:
    error, where = gradient_error(solve, kind, step)
    assert error < tolerance, where


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_steady_states(kind):
    assert_gradients(pnp.solve_steady, kind)


@pytest.mark.parametrize("kind", AT_REST)
def test_gradients_of_equilibria(kind):
    assert_gradients(pnp.solve_equilibrium, kind)


@contextmanager
def one_step_per_time() -> Iterator[None]:
    """One step from each time to the next, so that nothing depends on the parameters but the solution."""
    with (
        compiled.torch_only(),  # kernels have step control of their own
        patch("pnp.solvers.integration.FIRST_STEP", 1e30),
        patch("pnp.solvers.time_step.STEP_NEWTON", Newton(tolerance=1e-9)),
        patch.object(StepControl, "error_norm", lambda self, error, c: torch.full_like(c[:, 0, 0], 0.5)),
    ):
        yield


@pytest.fixture
def fixed_steps():
    with one_step_per_time():
        yield


GIVEN_TIMES = [0.001, 0.01, 0.03, 0.1]


@pytest.mark.parametrize("kind", KINDS | MOVING)
def test_gradients_of_transients_are_exact_for_given_steps(kind, fixed_steps):
    breaks = Parametrised(kind).kind.breaks

    def solve(cell, grid):
        solution = pnp.solve_transient(cell, grid, times=GIVEN_TIMES)
        assert int(solution.stats.steps.max()) == len(GIVEN_TIMES) + breaks
        return solution

    assert_gradients(solve, kind)


@pytest.mark.parametrize("kind", KINDS | MOVING)
def test_every_number_of_its_own_counts(kind, fixed_steps):
    """Or the comparison with differences would be one of zeros."""
    build = Parametrised(kind)
    vector = build.start.requires_grad_()
    solution = pnp.solve_transient(*build(vector), times=GIVEN_TIMES)
    (gradient,) = torch.autograd.grad(measured(solution).square().sum(), vector)
    own = [name for name in build.kind.numbers if name not in COMMON]
    assert [name for name, one in zip(build.names, gradient, strict=True) if name in own and not one] == []


@pytest.mark.parametrize(
    "kind", ["driven electrode, all media", "periodic, all media", "stepped potential and current"]
)
def test_gradients_of_a_batch_are_those_of_its_elements(kind):
    """Whose steps are accepted and rejected one without the other."""
    build = Parametrised(kind)
    factors = torch.tensor([1.0, 0.5, 1.2], dtype=torch.float64)[:, None]
    changed = torch.arange(len(build.start)) < len(COMMON) - 1  # all but the length and the nodes
    vectors = (build.start * factors**changed).requires_grad_()
    control = StepControl(relative=0.03, absolute=1e-3)

    def solved(vector: torch.Tensor) -> pnp.Solution:
        return pnp.solve_transient(*build(vector), times=[0.01, 0.05], step_control=control)

    batch = solved(vectors)
    assert len(set(batch.stats.steps.tolist())) > 1
    (found,) = torch.autograd.grad(measured(batch).square().sum(), vectors)
    for one, gradient in zip(vectors.detach(), found, strict=True):
        vector = one.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(measured(solved(vector)).square().sum(), vector)
        assert torch.allclose(gradient, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max()))


@pytest.mark.parametrize("kind", ["electrode and bath"])
def test_gradients_of_adaptive_transients(kind):
    """Steps that adapt are constants of the gradient: right to the error of the steps."""

    def solve(cell, grid):
        return pnp.solve_transient(
            cell, grid, times=[0.05], step_control=StepControl(relative=1e-6, absolute=1e-8)
        )

    assert_gradients(solve, kind, step=1e-2, tolerance=2e-3)


def test_gradcheck_of_the_plain_solvers():
    """The same once more by torch's own check, with every node an output."""
    build = Parametrised("electrode and Stern layer")
    vector = build.start.clone().requires_grad_()
    for solve in (pnp.solve_steady, pnp.solve_equilibrium):

        def profiles(vector, solve=solve):
            solution = solve(*build(vector))
            return solution.potential, solution.concentrations

        assert torch.autograd.gradcheck(profiles, (vector,), eps=1e-6, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("kind", [pnp.Grid.refined, pnp.Grid.uniform])
def test_gradients_through_the_positions_of_a_made_grid(kind, monkeypatch, fixed_steps):
    """The grading of a refined grid is a constant of the gradient, so it is one of the differences too."""
    monkeypatch.setattr("pnp.grid._grading", lambda ratio: torch.full_like(ratio, 1.5))
    length = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    ground = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def outputs(length, ground):
        cell = Canonical(1.0, 0.4).cell(length=length, ground=ground)
        steady = pnp.solve_steady(cell, kind(cell, 21))
        moving = pnp.solve_transient(cell, kind(cell, 21), times=[0.02, 0.05])
        still = pnp.surface_charge(steady).ground, pnp.free_energy(steady), steady.concentrations[0, 3]
        return (*still, pnp.surface_charge(moving).left, moving.concentrations[:, 1, 4])

    assert torch.autograd.gradcheck(outputs, (length, ground), eps=1e-5, atol=1e-7)


@pytest.mark.parametrize("voltage", [0.5, 3.0, 6.0])
def test_capacitance_of_gouy_and_chapman(voltage):
    problem = GouyChapman(voltage)
    errors = []
    for nodes in (101, 201, 401):
        potential = torch.tensor(voltage, dtype=torch.float64, requires_grad=True)
        cell = problem.cell(left=pnp.Electrode(potential=potential))
        solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, nodes))
        (capacitance,) = torch.autograd.grad(pnp.surface_charge(solution).left, potential)
        errors.append(float(capacitance) / problem.capacitance - 1)
    order = torch.log2(torch.tensor(errors[:-1]).abs() / torch.tensor(errors[1:]).abs())
    assert (order - 2).abs().max() < 0.1
    assert abs(errors[-1]) < 3e-4


@pytest.mark.parametrize("count", [2, 40])
def test_derivatives_of_the_free_energy(count):
    """At equilibrium they need no adjoint: charge on the metal, chemical potential, mean square field."""
    valences = torch.linspace(-1.4, 1.5, count, dtype=torch.float64).requires_grad_()
    filling = torch.linspace(0.5, 1.5, count, dtype=torch.float64).div(count).requires_grad_()
    left, right, permittivity = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (2.0, -1.0, 0.1)
    )
    species = [pnp.Species(f"s{i}", valence=z, diffusivity=1.0) for i, z in enumerate(valences)]
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=permittivity),
        length=1.0,
        concentrations=filling,
        left=pnp.Electrode(potential=left, stern_capacitance=0.8),
        right=pnp.Electrode(potential=right),
    )
    grid = pnp.Grid(pnp.Grid.refined(cell, 41).nodes.detach())
    solution = pnp.solve_equilibrium(cell, grid)
    found = torch.autograd.grad(pnp.free_energy(solution), (left, right, permittivity, filling, valences))
    surface = pnp.surface_charge(solution)
    # With the potentials held, Gauss's law makes the field's energy count with the other sign.
    wanted = (
        -surface.left,
        -surface.right,
        -(grid.spacings * pnp.electric_field(solution) ** 2).sum() / 2,
        torch.log(solution.concentrations[:, 7]) + valences * solution.potential[7],
        (grid.volumes * solution.concentrations * solution.potential).sum(-1),
    )
    for one, two in zip(found, wanted, strict=True):
        assert torch.allclose(one, two, rtol=1e-9)


def test_gradients_of_many_species(fixed_steps):
    """The eliminations by species in steps, the functional in equilibria."""
    valences = many_species(9).electrolyte.valences

    def charge(valences, solve):
        base = many_species(9)
        species = [pnp.Species(f"s{i}", valence=z, diffusivity=1.0) for i, z in enumerate(valences)]
        cell = pnp.Cell(
            pnp.Electrolyte.dimensionless(species, permittivity=0.2),
            length=1.0,
            concentrations=base.concentrations,
            left=base.left,
            right=pnp.Electrode(potential=-1.0, stern_capacitance=0.5),
        )
        return pnp.surface_charge(solve(cell, pnp.Grid.uniform(cell, 21))).left

    def moving(cell, grid):
        return pnp.solve_transient(cell, grid, times=[0.01, 0.05])

    for solve in (pnp.solve_steady, moving):
        point = valences.clone().requires_grad_()
        assert torch.autograd.gradcheck(
            lambda z, solve=solve: charge(z, solve), (point,), eps=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("end", ["electrode", "bath"])
def test_gradients_of_the_start_of_a_transient(end, fixed_steps):
    """Given as concentrations, whose amounts a closed cell keeps, or as a steady state with a gradient."""
    right = {
        "electrode": pnp.Electrode(potential=-0.5),
        "bath": pnp.Reservoir(concentrations=1.0, potential=0.0),
    }
    problem = Canonical(0.5, 0.4)
    cell = problem.cell(right=right[end])
    grid = pnp.Grid.uniform(cell, 11)
    start = (1 + 0.3 * torch.rand(2, 11, dtype=torch.float64)).requires_grad_()
    voltage = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)

    def outputs(start, voltage):
        one = pnp.solve_transient(cell, grid, times=GIVEN_TIMES, initial=start)
        steady = pnp.solve_steady(problem.cell(left=pnp.Electrode(potential=voltage), right=right[end]), grid)
        two = pnp.solve_transient(cell, grid, times=GIVEN_TIMES, initial=steady)
        return one.concentrations[-1], pnp.surface_charge(one).left, two.potential[-1]

    assert torch.autograd.gradcheck(outputs, (start, voltage), eps=1e-6, atol=1e-7, fast_mode=True)


TORN = {  # potentials, Debye length: a salt of which both ions are depleted at a ground in the middle, and more so
    "a little": ((10.0, 10.0), 0.1),
    "nearly": ((20.0, 20.0), 0.1),
    "in two": ((30.0, 30.0), 0.03),
}


@pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")
@pytest.mark.parametrize("start", ["cold", "warm"])
@pytest.mark.parametrize("name", TORN)
def test_gradients_of_torn_cells(name, start):
    """The coupled solver against the convex one, which does not know the difficulty."""
    potentials, debye = TORN[name]
    left = torch.tensor(potentials[0], dtype=torch.float64, requires_grad=True)
    cell = pnp.Cell(
        electrolyte(2 * debye**2),
        length=1.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=left),
        right=pnp.Electrode(potential=potentials[1]),
        ground=0.5,
    )
    grid = pnp.Grid.refined(cell, 41)
    rest = pnp.solve_equilibrium(cell, grid)
    steady = pnp.solve_steady(cell, grid, initial=None if start == "cold" else rest)
    found, wanted = (
        torch.autograd.grad(pnp.surface_charge(solution).left, left)[0] for solution in (steady, rest)
    )
    assert torch.allclose(found, wanted, rtol=1e-8)


# ---- failed elements


def voltages(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def charging(potential: torch.Tensor) -> pnp.Cell:
    return Canonical(1.0, 0.1).cell(
        left=pnp.Electrode(potential=potential), right=pnp.Electrode(potential=-potential.detach())
    )


def junction(potential: torch.Tensor) -> pnp.Cell:
    return pnp.Cell(
        electrolyte(0.02, diffusivities=(1.0, 0.5)),
        length=1.0,
        concentrations=1.0,
        left=pnp.Reservoir(concentrations=100.0, potential=potential),
        right=pnp.Reservoir(concentrations=1.0, potential=0.0),
    )


def water(potential: torch.Tensor) -> pnp.Cell:
    """Ions that form for ever where the potential is high, and recombine elsewhere."""
    species = [
        pnp.Species("+", valence=1.0, diffusivity=1.0),
        pnp.Species("-", valence=-1.0, diffusivity=0.5),
    ]
    backward = (potential.detach() < 10).double()
    reaction = pnp.Reaction({}, {"+": 1, "-": 1}, forward=2.0, backward=backward)
    return pnp.Cell(
        pnp.Electrolyte.dimensionless(species, permittivity=0.02, reactions=[reaction]),
        length=1.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=potential),
        right=pnp.Electrode(potential=0.0),
    )


FAILURES = {
    "steady, without a steady state": (
        water,
        lambda cell, grid: pnp.solve_steady(cell, grid, throw=False),
        20.0,
    ),
    "equilibrium, out of iterations": (
        charging,
        lambda cell, grid: pnp.solve_equilibrium(
            cell, grid, throw=False, newton_settings=Newton(max_iterations=3)
        ),
        20.0,
    ),
    "steady, not finite": (junction, lambda cell, grid: pnp.solve_steady(cell, grid, throw=False), 1e308),
    "equilibrium, overflow": (
        charging,
        lambda cell, grid: pnp.solve_equilibrium(cell, grid, throw=False),
        1e308,
    ),
    "transient, out of steps": (
        charging,
        lambda cell, grid: pnp.solve_transient(
            cell, grid, times=[0.01, 0.3], throw=False, step_control=StepControl(max_steps=40)
        ),
        20.0,
    ),
    "transient, not finite": (
        charging,
        lambda cell, grid: pnp.solve_transient(cell, grid, times=[0.3], throw=False),
        1e300,
    ),
}


@pytest.mark.filterwarnings("ignore::pnp.UnderResolvedWarning")
@pytest.mark.parametrize("name", FAILURES)
def test_failed_elements_leave_no_trace(name):
    build, solve, impossible = FAILURES[name]
    grid = pnp.Grid.refined(build(torch.tensor(1.0)), 31)
    potential = voltages(0.5, impossible, 1.0)
    solution = solve(build(potential), grid)
    assert solution.solved.tolist() == [True, False, True]
    assert torch.isfinite(solution.potential[solution.solved]).all()
    assert torch.isfinite(solution.concentrations).all()
    solved = pnp.surface_charge(solution).left[solution.solved]
    (gradient,) = torch.autograd.grad(solved.sum(), potential, retain_graph=True)
    assert torch.isfinite(gradient).all()
    assert float(gradient[1]) == 0.0
    # A loss over the whole batch may touch the failed element, but must not become NaN by it.
    (everywhere,) = torch.autograd.grad(
        solution.concentrations.sum() + solution.potential[..., 3].sum(), potential
    )
    assert torch.isfinite(everywhere).all()
    alone = voltages(0.5, 1.0)
    single = solve(build(alone), grid)
    (undisturbed,) = torch.autograd.grad(pnp.surface_charge(single).left.sum(), alone)
    assert torch.allclose(gradient[::2], undisturbed, rtol=1e-10)
    assert torch.allclose(solution.potential[::2], single.potential, rtol=1e-12, atol=1e-12)
