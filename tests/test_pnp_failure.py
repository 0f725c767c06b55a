"""Every error by its text, every status on purpose, and the warning of a grid that is too coarse."""

import math
import re

import pytest
import torch

import pnp
from pnp import Newton, Status, StepControl

from .problems import Canonical, electrolyte


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


SALT = electrolyte(0.02)
ANODE, CATHODE = pnp.Electrode(potential=1.0), pnp.Electrode(potential=-1.0)


def cell(**changes):
    arguments = {"length": 1.0, "concentrations": 1.0, "left": ANODE, "right": CATHODE}
    return pnp.Cell(changes.pop("electrolyte", SALT), **(arguments | changes))


def species(**changes):
    return pnp.Species("Na+", **({"valence": 1.0, "diffusivity": 1.0} | changes))


def bath(*concentrations):
    return pnp.Reservoir(concentrations=concentrations, potential=0.0)


def transfer(oxidised, reduced):
    return pnp.ElectrodeReaction(oxidised, reduced, rate_constant=1.0)


ANION = pnp.Species("Cl-", valence=-1, diffusivity=1)
CATIONS = [species(), pnp.Species("K+", valence=1, diffusivity=1)]
NACL = pnp.Electrolyte([species(), ANION])
RING = pnp.Periodic()
GRID = pnp.Grid.uniform(cell(), 21)
GRID_EVEN = pnp.Grid.uniform(cell(), 20)
STEADY = pnp.solve_steady(cell(), GRID)
TRANSIENT = pnp.solve_transient(cell(), GRID, times=[0.01, 0.02])
NAN, INF = math.nan, math.inf

VALUE_ERRORS = {
    # descriptions
    "Species('Na+'): diffusivity must be above 0, got 0.": lambda: species(diffusivity=0.0),
    "Species('Na+'): diffusivity must be above 0, got -2.": lambda: species(diffusivity=f64(1.0, -2.0)),
    "Species('Na+'): diameter must be at least 0, got -1.": lambda: species(diameter=-1.0),
    "Species('Na+'): valence must be a finite number, got nan.": lambda: species(valence=NAN),
    "Electrolyte: species must hold at least one Species, got none.": lambda: pnp.Electrolyte([]),
    "Electrolyte: species names must differ, got ['Na+', 'Na+'].": lambda: pnp.Electrolyte(
        [species(), species()]
    ),
    "Electrolyte: temperature must be above 0, got -3.": lambda: pnp.Electrolyte(
        [species()], temperature=-3.0
    ),
    "Electrolyte: relative_permittivity must be above 0, got 0.": lambda: pnp.Electrolyte(
        [species()], relative_permittivity=0
    ),
    "Electrolyte: permittivity must be above 0, got -1.": lambda: pnp.Electrolyte.dimensionless(
        [species()], permittivity=-1.0
    ),
    "Electrode: potential must be a finite number, got inf.": lambda: pnp.Electrode(potential=INF),
    "Electrode: stern_capacitance must be above 0, got 0.": lambda: pnp.Electrode(
        potential=0.0, stern_capacitance=0.0
    ),
    "Reservoir: concentrations must be at least 0, got -1.": lambda: bath(-1.0, 1.0),
    "Reservoir: potential must be a finite number, got nan.": lambda: pnp.Reservoir(
        concentrations=1.0, potential=NAN
    ),
    "Cell: length must be above 0, got 0.": lambda: cell(length=0.0),
    "Cell: concentrations must be above 0, got 0.": lambda: cell(concentrations=[1.0, 0.0]),
    "Cell: concentrations['s1'] must be above 0, got -1.": lambda: cell(
        concentrations={"s0": 1.0, "s1": -1.0}
    ),
    "Cell: fixed_charge must be a finite number, got nan.": lambda: cell(fixed_charge=NAN),
    "Cell: concentrations: the last axis must be the 2 species ['s0', 's1'], got shape (3,).": lambda: cell(
        concentrations=[1.0, 2.0, 3.0]
    ),
    "Cell: concentrations: expected the species ['s0', 's1'], got ['s0', 'K+'].": lambda: cell(
        concentrations={"s0": 1.0, "K+": 1.0}
    ),
    "Cell: concentrations of the left reservoir: the last axis must be the 2 species": lambda: cell(
        left=bath(1.0, 1.0, 1.0)
    ),
    "Cell: the right reservoir must be neutral (sum of valence times concentration, and fixed charge, zero), "
    "got 0.5 mol/m³ of charge (charged=True accepts it).": lambda: cell(right=bath(1.5, 1.0)),
    "Cell: ground must be above 0, got -0.1.": lambda: cell(ground=-0.1),
    "Cell: ground must lie inside the cell, between 0 and length = 1, got 1.": lambda: cell(ground=1.0),
    "batch axes do not broadcast: length (2,), left potential (3,).": lambda: cell(
        length=f64(1.0, 2.0), left=pnp.Electrode(potential=f64(1.0, 2.0, 3.0))
    ),
    "batch axes do not broadcast: valence of species 0 (2,), valence of species 1 (3,).": lambda: electrolyte(
        1.0, (f64(1.0, 1.0), -f64(1.0, 1.0, 1.0))
    ),
    # grids
    "Grid: nodes must hold at least 3 positions, got shape (2,).": lambda: pnp.Grid(f64(0.0, 1.0)),
    "Grid: nodes must start at 0 and increase strictly.": lambda: pnp.Grid(f64(0.0, 0.5, 0.5, 1.0)),
    "Grid: nodes must be an integer of at least 3, got 2.": lambda: pnp.Grid.uniform(cell(), 2),
    "Grid: nodes must be an integer of at least 5, got 4.": lambda: pnp.Grid.refined(cell(ground=0.5), 4),
    "Grid: nodes must be an integer of at least 3, got 10.5.": lambda: pnp.Grid.refined(cell(), 10.5),
    "grid: must end at the cell's length, 2, but ends at 1.": lambda: pnp.solve_steady(
        cell(length=2.0), GRID
    ),
    "grid: the cell has a ground and the grid has no node for it, or the reverse.": lambda: pnp.solve_steady(
        cell(ground=0.5), GRID
    ),
    "batch axes do not broadcast: cell (2,), grid (3,).": lambda: pnp.solve_steady(
        cell(fixed_charge=f64(0.0, 0.0)), pnp.Grid(GRID.nodes.repeat(3, 1))
    ),
    "grid: node 10 must lie at the ground of the cell, 0.5, but lies at 0.2.": lambda: pnp.solve_steady(
        cell(ground=0.5), pnp.Grid(torch.linspace(0, 1, 51), ground_node=10)
    ),
    # settings
    "Newton: max_iterations must be at least 1, got 0.": lambda: Newton(max_iterations=0),
    "Newton: tolerance must be between 0 and 1, got 2.": lambda: Newton(tolerance=2.0),
    "StepControl: relative must be between 0 and 1, got 0.": lambda: StepControl(relative=0.0),
    "StepControl: absolute must be between 0 and 1, got -1.": lambda: StepControl(absolute=-1.0),
    "StepControl: shrink must be between 0 and 1, got 1.": lambda: StepControl(shrink=1.0),
    "StepControl: max_steps must be at least 1 and grow above 1, got 0 and 5.": lambda: StepControl(
        max_steps=0
    ),
    # what ends, reactions and waveforms refuse
    "Cell: currents must not be given at both ends, unless a ground is between.": lambda: cell(
        left=pnp.Electrode(current=1.0), right=pnp.Electrode(current=1.0)
    ),
    "Cell: no current passes an insulating ChargedWall; give a potential instead.": lambda: cell(
        left=pnp.Electrode(current=1.0), right=pnp.ChargedWall()
    ),
    "Cell: both ends must be the same Periodic, left=p, right=p.": lambda: cell(left=pnp.Periodic()),
    "Cell: a periodic cell must have no ground; its left end is at zero.": lambda: cell(
        left=RING, right=RING, ground=0.5
    ),
    "solve_steady: a current through a blocking electrode charges it for ever": lambda: pnp.solve_steady(
        cell(left=pnp.Electrode(current=1.0))
    ),
    "Cell: without electrode, bath or ground nothing can hold a charge": lambda: pnp.solve_steady(
        cell(left=pnp.ChargedWall(charge=1e-3), right=pnp.ChargedWall())
    ),
    "Cell: a closed cell needs counter-ions, but all of its charges have one sign: valences [1.0, 1.0], fixed "
    "charge 0 (charged=True accepts it).": lambda: cell(electrolyte=pnp.Electrolyte(CATIONS)),
    "Cell: concentrations must leave room for the solvent, but ions of these diameters fill": lambda: cell(
        electrolyte=pnp.Electrolyte([species(diameter=2e-8), ANION])
    ),
    "ElectrodeReaction: {'Na+': 1.0} + n e- -> {'Cl-': 1.0, 'Na+': 3.0} must take up electrons": lambda: cell(
        electrolyte=NACL,
        left=pnp.Electrode(potential=1.0, reactions=transfer({"Na+": 1}, {"Cl-": 1, "Na+": 3})),
    ),
    "ElectrodeReaction: oxidised: expected species of ['Na+', 'Cl-'], got ['K+'].": lambda: cell(
        electrolyte=NACL, left=pnp.Electrode(potential=1.0, reactions=transfer({"K+": 1}, {}))
    ),
    "ElectrodeReaction: oxidised and reduced must not both be empty.": lambda: transfer({}, {}),
    "ElectrodeReaction: rate_constant must be above 0, got 0.": lambda: pnp.ElectrodeReaction(
        {"Na+": 1}, {}, rate_constant=0.0
    ),
    "ElectrodeReaction: transfer_coefficient must be below 1, got 1.": lambda: pnp.ElectrodeReaction(
        {"Na+": 1}, {}, rate_constant=1.0, transfer_coefficient=1.0
    ),
    "ElectrodeReaction: oxidised['Na+'] must be above 0, got -1.": lambda: transfer({"Na+": -1}, {}),
    "Reaction: reactants and products must not both be empty.": lambda: pnp.Reaction(
        {}, {}, forward=1.0, backward=1.0
    ),
    "Reaction: forward must be at least 0, got -1.": lambda: pnp.Reaction(
        {"Na+": 1}, {}, forward=-1.0, backward=1.0
    ),
    "Reaction: {'Na+': 1.0} -> {} must conserve charge, but makes 1 elementary charges.": lambda: (
        pnp.Electrolyte(
            [species(), ANION], reactions=[pnp.Reaction({"Na+": 1}, {}, forward=1.0, backward=1.0)]
        )
    ),
    "Waveform: low must not exceed high.": lambda: pnp.Waveform(lambda t, within: t, low=1.0, high=0.0),
    "piecewise_linear: times must be at least two, and increase along the last axis.": lambda: (
        pnp.piecewise_linear([0.0, 0.0], [1.0, 2.0])
    ),
    "triangle: cycles must be an integer of at least 1, got 0.": lambda: pnp.triangle(
        0.0, 1.0, rate=1.0, cycles=0
    ),
    "triangle: vertex must differ from start.": lambda: pnp.triangle(1.0, 1.0, rate=1.0),
    "sine: frequency must be above 0, got 0.": lambda: pnp.sine(1.0, 0.0),
    "Cell: permittivity_profile must be above 0, got -1.": lambda: pnp.solve_steady(
        cell(permittivity_profile=lambda x: -torch.ones_like(x))
    ),
    "Grid: to be coarsened a grid must have an odd number of nodes": lambda: GRID_EVEN.coarsened(),
    # solves
    "solve_equilibrium: a cell with two reservoirs, reactions, a given current or periodic ends is not known": lambda: (
        pnp.solve_equilibrium(cell(left=bath(2.0, 2.0), right=bath(1.0, 1.0)))
    ),
    "initial: a transient has many states; take one with solution.at(index).": lambda: pnp.solve_steady(
        cell(), GRID, initial=TRANSIENT
    ),
    "initial: must have (species, node) = (2, 31) like the cell and its grid, got (2, 21).": lambda: (
        pnp.solve_equilibrium(cell(), pnp.Grid.uniform(cell(), 31), initial=STEADY)
    ),
    "solve_transient: times must be one axis of increasing times, got shape ().": lambda: pnp.solve_transient(
        cell(), times=1.0
    ),
    "got shape (2,) that does not increase.": lambda: pnp.solve_transient(cell(), times=[1.0, 1.0]),
    "got shape (0,).": lambda: pnp.solve_transient(cell(), times=[]),
    "solve_transient: times must be at least 0, got -1.": lambda: pnp.solve_transient(cell(), times=[-1.0]),
    "solve_transient: initial must have (species, node) = (2, 21), got (2, 20).": lambda: pnp.solve_transient(
        cell(), GRID, times=[1.0], initial=torch.ones(2, 20)
    ),
    "solve_transient: initial must be above 0, got 0.": lambda: pnp.solve_transient(
        cell(), GRID, times=[1.0], initial=torch.zeros(2, 21)
    ),
    "at: this solution is a steady state and has no times.": lambda: STEADY.at(0),
}


@pytest.mark.parametrize("text", VALUE_ERRORS)
def test_value_errors(text):
    with pytest.raises(ValueError, match=re.escape(text)):
        VALUE_ERRORS[text]()


TYPE_ERRORS = {
    "Species('Na+'): valence must be a number or a tensor of numbers, got 'one'.": lambda: species(
        valence="one"
    ),
    "Electrode: potential must be real numbers, got a tensor of torch.complex64.": lambda: pnp.Electrode(
        potential=torch.tensor(1j)
    ),
    "Electrode: potential must be real numbers, got a tensor of torch.bool.": lambda: pnp.Electrode(
        potential=torch.tensor(True)
    ),
    "Cell: left must be an Electrode, a Reservoir, a ChargedWall or Periodic, got 'wall'.": lambda: cell(
        left="wall"
    ),
    "Electrode: give its potential or the current through it, one of the two.": lambda: pnp.Electrode(),
    "Electrode: potential must be a number or a pnp.Waveform, got a function": lambda: pnp.Electrode(
        potential=lambda time: time
    ),
    "Electrode: reactions must be pnp.ElectrodeReaction, got 'plating'.": lambda: pnp.Electrode(
        potential=1.0, reactions=["plating"]
    ),
    "ElectrodeReaction: oxidised must map species names to stoichiometric numbers, got 'Na+'.": lambda: (
        transfer("Na+", {})
    ),
    "Electrolyte: reactions must be pnp.Reaction, got 'salt'.": lambda: pnp.Electrolyte(
        [species(), ANION], reactions=["salt"]
    ),
    "Cell: diffusivity_profile must be a function of position, got 2.": lambda: cell(diffusivity_profile=2),
    "debye_length: give an Electrolyte with concentrations, or a Cell or Solution alone.": lambda: (
        pnp.debye_length(SALT)
    ),
}


@pytest.mark.parametrize("text", TYPE_ERRORS)
def test_type_errors(text):
    with pytest.raises(TypeError, match=re.escape(text)):
        TYPE_ERRORS[text]()


def test_debye_length_of_a_cell_takes_no_concentrations():
    with pytest.raises(TypeError, match="debye_length: give an Electrolyte with concentrations"):
        pnp.debye_length(cell(), 1.0)


# ---- statuses


def hard_batch():
    """Three canonical cells of which the second is too hard for few iterations or steps."""
    voltage = f64(0.1, 30.0, 0.2)
    base = Canonical(1.0, 0.1)
    return base.cell(left=pnp.Electrode(potential=voltage), right=pnp.Electrode(potential=-voltage))


@pytest.fixture
def fine():
    return pnp.Grid.refined(hard_batch(), 41)


@pytest.fixture
def impatient(monkeypatch):
    """Without the last resort of steady states, which is to follow them in time."""
    monkeypatch.setattr("pnp.solvers.pseudo_time.MOST_STEPS", 0)


@pytest.mark.parametrize("solve", [pnp.solve_steady, pnp.solve_equilibrium])
def test_max_iterations(solve, fine, impatient):
    solution = solve(hard_batch(), fine, throw=False, newton_settings=Newton(max_iterations=1))
    assert solution.status.tolist() == [Status.MAX_ITERATIONS] * 3
    assert solution.stats.reached.tolist() == [0.0] * 3
    with pytest.raises(pnp.SolveError, match="did not converge within the iterations allowed") as caught:
        solve(hard_batch(), fine, newton_settings=Newton(max_iterations=1))
    assert caught.value.status.tolist() == [Status.MAX_ITERATIONS] * 3


def junctions():
    """Three cells between baths of which the second takes more than eight iterations."""
    return pnp.Cell(
        electrolyte(0.02, diffusivities=(1.0, 0.5)),
        length=1.0,
        concentrations=1.0,
        left=pnp.Reservoir(concentrations=100.0, potential=f64(0.1, 20.0, 0.2)),
        right=pnp.Reservoir(concentrations=1.0, potential=0.0),
    )


def test_error_says_which_how_far_and_what_to_try(impatient):
    grid = pnp.Grid.uniform(junctions(), 101)
    with pytest.raises(pnp.SolveError) as caught:
        pnp.solve_steady(junctions(), grid, newton_settings=Newton(max_iterations=8))
    text = str(caught.value)
    assert text.startswith("1 of 3 cells were not solved.\n  batch (1,): did not converge")
    assert "Newton iterations, wall drop 20 thermal voltages" in text
    assert "last relative change" in text
    assert (
        "Try: Newton(max_iterations=200); a finer grid, Grid.refined(cell, nodes); start from a solution"
        in text
    )
    assert pnp.solve_steady(junctions(), grid).stats.iterations.tolist()[1] > 8


def test_error_counts_when_many_fail(impatient):
    voltage = torch.linspace(0.1, 1.0, 8, dtype=torch.float64).reshape(2, 4)
    many = cell(left=pnp.Electrode(potential=voltage))
    with pytest.raises(pnp.SolveError) as caught:
        pnp.solve_steady(many, GRID, newton_settings=Newton(max_iterations=1))
    text = str(caught.value)
    assert text.startswith("8 of 8 cells were not solved.")
    assert text.count("batch (") == 5
    assert "batch (1, 0): " in text
    assert "... and 3 more (throw=False returns the status of each)" in text


def test_error_of_a_single_cell(impatient):
    with pytest.raises(pnp.SolveError, match=r"1 of 1 cells were not solved\.\n  the cell: did not converge"):
        pnp.solve_steady(cell(), GRID, newton_settings=Newton(max_iterations=1))


def test_not_finite():
    wild = cell(
        left=pnp.Electrode(potential=f64(1.0, 1.0)),
        fixed_charge=lambda x: torch.stack([torch.zeros_like(x), x / 0]),
    )
    for solve in (pnp.solve_steady, pnp.solve_equilibrium):
        solution = solve(wild, GRID, throw=False)
        assert solution.status.tolist() == [Status.CONVERGED, Status.NOT_FINITE]
        assert torch.isfinite(solution.concentrations).all()
        text = "batch (1,): a Newton step was not finite (singular matrix or overflow)"
        with pytest.raises(pnp.SolveError, match=re.escape(text)):
            solve(wild, GRID)


def test_max_steps(fine):
    control = StepControl(max_steps=30)
    times = [1e-9, 0.5]
    solution = pnp.solve_transient(hard_batch(), fine, times=times, throw=False, step_control=control)
    assert solution.status.tolist() == [Status.CONVERGED, Status.MAX_STEPS, Status.CONVERGED]
    steps, reached = solution.stats.steps + solution.stats.rejected, solution.stats.reached
    assert int(steps[1]) == 30
    assert times[0] < float(reached[1]) < times[1]
    assert reached[::2].tolist() == [0.5, 0.5]
    # The moments after the failure repeat the last state that was reached, later than the first moment.
    assert not torch.equal(solution.potential[1, 0], solution.potential[1, 1])
    assert torch.isfinite(solution.potential).all()
    text = (
        r"used up the time steps allowed; reached t = .* in \d+ steps \(\d+ rejected\), \d+ Newton iterations"
    )
    with pytest.raises(pnp.SolveError, match=text):
        pnp.solve_transient(hard_batch(), fine, times=times, step_control=control)


def test_three_steps_are_not_enough():
    with pytest.raises(pnp.SolveError, match=re.escape("StepControl(max_steps=...)")):
        pnp.solve_transient(cell(), GRID, times=[1.0], step_control=StepControl(max_steps=3))


def test_step_too_small():
    impossible = StepControl(relative=1e-300, absolute=1e-300)
    solution = pnp.solve_transient(cell(), GRID, times=[1.0], throw=False, step_control=impossible)
    assert int(solution.status) == Status.STEP_TOO_SMALL
    assert torch.equal(solution.concentrations[0], torch.ones(2, 21, dtype=torch.float64))
    with pytest.raises(pnp.SolveError, match="the time step fell below the smallest one allowed"):
        pnp.solve_transient(cell(), GRID, times=[1.0], step_control=impossible)


def test_every_status_has_its_reason():
    assert len({one.reason for one in Status}) == len(Status)
    assert {Status(int(code)) for code in range(5)} == set(Status)


# ---- resolution


@pytest.mark.parametrize(
    "solve",
    [
        pnp.solve_steady,
        pnp.solve_equilibrium,
        lambda cell, grid: pnp.solve_transient(cell, grid, times=[0.1]),
    ],
)
def test_coarse_grids_are_reported(solve):
    thin = Canonical(4.0, 0.01)
    text = r"The first spacing at a wall is [\d.]+ local Debye lengths in 1 of 1 cells: .* more nodes than 51"
    with pytest.warns(pnp.UnderResolvedWarning, match=text) as caught:
        coarse = solve(thin.cell(), pnp.Grid.uniform(thin.cell(), 51))
    assert not bool(coarse.check().passed.all())
    assert float(pnp.diffuse_charge(coarse).reshape(-1)[0]) > 1.5 * thin.charge  # wrong, and it says so
    assert caught[0].filename == __file__
    resolved = solve(thin.cell(), pnp.Grid.refined(thin.cell(), 51))
    assert bool(resolved.check().passed.all())


def test_wall_spacing_is_measured_in_local_debye_lengths():
    problem = Canonical(4.0, 0.1)
    solution = pnp.solve_steady(problem.cell(), pnp.Grid.uniform(problem.cell(), 101))
    local = (2 * 0.1**2 / float(solution.concentrations[:, 0].sum())) ** 0.5
    assert float(solution.check().wall_spacing) == pytest.approx(0.02 / local, rel=1e-9)


def test_certificate_notices_what_is_wrong():
    from dataclasses import replace

    good = pnp.solve_steady(cell(), GRID)
    assert bool(good.check().passed)
    lost = replace(good, concentrations=good.concentrations * (1 - 1e-9))
    assert float(lost.check().amount_error) == pytest.approx(1e-9, rel=1e-3)
    assert not bool(lost.check().passed)
    shifted = replace(good, potential=good.potential * (1 + 1e-9))
    assert bool(good.check().residual < 1e-13)
    assert float(shifted.check().residual) > 1e-11
    negative = good.concentrations.clone()
    negative[0, 3] = -1e-3
    assert not bool(replace(good, concentrations=negative).check().passed)
    lines = str(good.check()).splitlines()
    assert lines[-1].split() == ["passed", "1", "of", "1"]
    assert len(lines) == 7
    assert good.check().grid_error is None
    fine = pnp.solve_steady(cell(), pnp.Grid.uniform(cell(), 41))
    assert "grid error" in str(fine.check(grid=True))
