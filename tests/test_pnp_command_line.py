"""python -m pnp: a file gives what the same cell gives by hand, and every mistake in it names its line."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray
from matplotlib.figure import Figure

import pnp
from pnp import units
from pnp.__main__ import _progress_bar, main
from pnp.dataset import to_dataset
from pnp.description import Transient, read_description
from pnp.toml_lines import DescriptionError, read_toml

ROOT = Path(__file__).parent.parent
SALT = """\
[[species]]
name = "K+"
valence = 1
diffusivity = "1.96e-9 m^2/s"
concentration = "10 mM"

[[species]]
name = "Cl-"
valence = -1
diffusivity = "2.03e-9 m^2/s"
concentration = "10 mM"

[cell]
length = "100 nm"
nodes = 40
"""
ENDS = """
[left]
type = "electrode"
potential = "50 mV"
stern_capacitance = "20 uF/cm^2"

[right]
type = "electrode"
potential = 0
"""
STEADY = SALT + ENDS + '\n[run]\nkind = "steady"\n'
TRANSIENT = SALT + ENDS + '\n[run]\nkind = "transient"\ntimes = ["0 s", "10 ns", "1 us"]\n'
COPPER = '\n[[left.reaction]]\noxidised = {"K+" = 1}\nrate_constant = "1e-5 m/s"\n'


def salt_cell(potential=0.05, **changes):
    """What STEADY describes, by hand."""
    species = [
        pnp.Species("K+", valence=1, diffusivity=1.96e-9),
        pnp.Species("Cl-", valence=-1, diffusivity=2.03e-9),
    ]
    arguments = {
        "length": 100e-9,
        "concentrations": 10.0,
        "left": pnp.Electrode(potential=potential, stern_capacitance=0.2),
        "right": pnp.Electrode(potential=0.0),
    }
    return pnp.Cell(pnp.Electrolyte(species), **(arguments | changes))


@pytest.fixture
def write(tmp_path):
    """Write a description, and return its path."""

    def write(text, name="cell.toml"):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def run(write, tmp_path):
    """Run a description quietly, and return its dataset."""

    def run(text):
        assert main([str(write(text)), "--out", str(tmp_path / "out"), "--quiet"]) == 0
        with xarray.open_dataset(tmp_path / "out" / "result.nc") as data:
            return data.load()

    return run


def assert_is(data, solution, **observed):
    """A dataset holds the numbers of a solution."""
    expected = {
        "x": solution.grid.nodes,
        "potential": solution.potential,
        "concentrations": solution.concentrations,
        "charge_density": pnp.charge_density(solution),
        "ion_flux": pnp.ion_flux(solution),
        "current_density": pnp.current_density(solution),
        "surface_charge_left": pnp.surface_charge(solution).left,
        "surface_charge_right": pnp.surface_charge(solution).right,
        **observed,
    }
    for name, values in expected.items():
        scale = values.abs().max().item() or 1.0
        assert data[name].shape == tuple(values.shape), name
        np.testing.assert_allclose(
            data[name], values.detach().numpy(), rtol=1e-9, atol=1e-9 * scale, err_msg=name
        )


# ---------------------------------------------------------------------------------------------- runs


def test_a_steady_state(write, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(write('title = "Salt µ"\n' + STEADY))]) == 0
    printed = capsys.readouterr().out
    assert {path.name for path in Path("cell").iterdir()} == {"result.nc", "summary.txt", "profiles.png"}
    summary = Path("cell/summary.txt").read_text(encoding="utf-8")
    assert summary in printed
    assert "Salt µ\nsteady state; 2 species on 40 nodes\nsolved: 1 of 1\n" in summary
    assert re.search(r"passed +1 of 1", summary)
    cell = salt_cell()
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 40))
    charge = pnp.surface_charge(solution).left.item()
    assert f"{charge:.4g}" in summary
    with xarray.open_dataset("cell/result.nc") as data:
        assert_is(data, solution)
        assert data.concentrations.dims == ("species", "node")
        assert data.species.values.tolist() == ["K+", "Cl-"]
        assert data.potential.attrs == {"units": "V", "long_name": "electric potential"}
        assert data.x.attrs["units"] == "m"
        assert data.attrs["title"] == "Salt µ"
        assert data.attrs["description"].endswith(STEADY)
        assert data.status.item() == pnp.Status.CONVERGED
        assert "pressure" not in data


def test_a_transient_of_swept_cells(run, tmp_path):
    text = TRANSIENT.replace('potential = "50 mV"\n', "")
    data = run(text + '\n[sweep]\nleft.potential = ["10 mV", "0.05 V", 0]\n')
    cell = salt_cell(torch.tensor([0.01, 0.05, 0.0], dtype=torch.float64))
    solution = pnp.solve_transient(cell, pnp.Grid.refined(cell, 40), times=[0.0, 1e-8, 1e-6])
    assert_is(data, solution)
    assert data.concentrations.dims == ("left_potential", "time", "species", "node")
    np.testing.assert_allclose(data.left_potential, [0.01, 0.05, 0.0])
    assert data.left_potential.attrs == {"units": "V", "long_name": "left.potential"}
    np.testing.assert_allclose(data.time, [0.0, 1e-8, 1e-6])
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == {"profiles", "current", "space_time"}
    assert "left.potential = 10 mV" in (tmp_path / "out" / "summary.txt").read_text(encoding="utf-8")


def test_impedance(run, tmp_path):
    frequencies = '{from = "10 Hz", to = "10 MHz", count = 7}'
    data = run(SALT + ENDS + f'\n[run]\nkind = "impedance"\nfrequencies = {frequencies}\n')
    cell = salt_cell()
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 40))
    expected = pnp.impedance(solution, torch.logspace(1, 7, 7, dtype=torch.float64)).numpy()
    np.testing.assert_allclose(data.frequency, np.logspace(1, 7, 7))
    np.testing.assert_allclose(data.impedance_real + 1j * data.impedance_imaginary, expected, rtol=1e-9)
    assert data.impedance_real.attrs["units"] == "ohm m2"
    assert (tmp_path / "out" / "impedance.png").exists()


def test_parameters_vary_in_step_or_in_all_combinations(run, tmp_path):
    in_step = """
[sweep]
species."K+".concentration = ["10 mM", "20 mM"]
species."Cl-".concentration = ["10 mM", "20 mM"]
"""
    data = run(STEADY + in_step)
    filling = torch.tensor([[10.0, 10.0], [20.0, 20.0]], dtype=torch.float64)
    cell = salt_cell(concentrations=filling)
    assert_is(data, pnp.solve_steady(cell, pnp.Grid.refined(cell, 40)))
    assert data["species_Cl-_concentration"].dims == ("species_K+_concentration",)
    combined = '\n[[sweep]]\n"left.potential" = ["10 mV", "20 mV"]\n[[sweep]]\ncell.length = ["50 nm", "100 nm", "1 um"]\n'
    data = run(STEADY + combined)
    potential = torch.tensor([0.01, 0.02], dtype=torch.float64).unsqueeze(-1)
    cell = salt_cell(potential, length=torch.tensor([50e-9, 100e-9, 1e-6], dtype=torch.float64))
    assert_is(data, pnp.solve_steady(cell, pnp.Grid.refined(cell, 40)), x=pnp.Grid.refined(cell, 40).nodes)
    assert data.potential.dims == ("left_potential", "cell_length", "node")


def test_a_sweep_is_drawn(run, tmp_path):
    run(STEADY + '\n[sweep]\nleft.potential = ["10 mV", "20 mV"]\n')
    assert (tmp_path / "out" / "sweep.png").exists()


def test_a_dimensionless_cell(run):
    text = re.sub(r'"([\d.e-]+) (m\^2/s|mM)"', r"1.0", SALT).replace('"100 nm"', "2.0")
    text = "dimensionless = true\npermittivity = 0.02\n" + text
    text += '[left]\ntype = "electrode"\npotential = 1\n[right]\ntype = "electrode"\npotential = -1.0\n'
    data = run(
        text + '[run]\nkind = "transient"\ntimes = {from = 0, to = 1, count = 3, spacing = "linear"}\n'
    )
    ions = [pnp.Species(name, valence=z, diffusivity=1.0) for name, z in (("K+", 1), ("Cl-", -1))]
    cell = pnp.Cell(
        pnp.Electrolyte.dimensionless(ions, permittivity=0.02),
        length=2.0,
        concentrations=1.0,
        left=pnp.Electrode(potential=1.0),
        right=pnp.Electrode(potential=-1.0),
    )
    assert_is(data, pnp.solve_transient(cell, pnp.Grid.refined(cell, 40), times=[0.0, 0.5, 1.0]))
    assert data.potential.attrs["units"] == data.time.attrs["units"] == "1"


def test_a_membrane_between_baths(run):
    text = SALT.replace("nodes = 40", 'nodes = 61\ngrid = "uniform"')
    text += """
[[layer]]
from = "30 nm"
to = "70 nm"
fixed_charge = "-50 mM"
permittivity_factor = 0.5
diffusivity_factor = 0.2
[left]
type = "reservoir"
potential = "20 mV"
[right]
type = "reservoir"
potential = "0 V"
concentrations = {"K+" = "1 mM", "Cl-" = "1 mM"}
[run]
kind = "steady"
"""
    data = run(text)

    def inside(x):
        return ((x > 30e-9) & (x < 70e-9)).double()

    def membrane(x):
        border = torch.isclose(x, torch.tensor([[30e-9], [70e-9]], dtype=x.dtype), rtol=1e-12, atol=0.0)
        assert not border.any()  # 60 edges do not meet the borders
        return -50.0 * inside(x)

    cell = salt_cell(
        left=pnp.Reservoir(concentrations=10.0, potential=0.02),
        right=pnp.Reservoir(concentrations=1.0, potential=0.0),
        fixed_charge=membrane,
        permittivity_profile=lambda x: 1 - 0.5 * inside(x),
        diffusivity_profile=lambda x: 1 - 0.8 * inside(x),
    )
    assert_is(data, pnp.solve_steady(cell, pnp.Grid.uniform(cell, 61)))


def test_ions_with_a_size_between_a_charged_wall_and_a_bath(run):
    text = SALT.replace('concentration = "10 mM"', 'concentration = "10 mM"\ndiameter = "0.6 nm"')
    text = 'temperature = "5 degC"\nrelative_permittivity = 80\nsolvent_diameter = "3 Å"\n' + text
    text += '[left]\ntype = "charged wall"\ncharge = "-0.1 C/m^2"\n'
    data = run(text + '[right]\ntype = "reservoir"\npotential = 0\n[run]\nkind = "steady"\n')
    ions = [
        pnp.Species("K+", valence=1, diffusivity=1.96e-9, diameter=0.6e-9),
        pnp.Species("Cl-", valence=-1, diffusivity=2.03e-9, diameter=0.6e-9),
    ]
    water = pnp.Electrolyte(ions, temperature=278.15, relative_permittivity=80.0, solvent_diameter=3e-10)
    cell = pnp.Cell(
        water,
        length=100e-9,
        concentrations=10.0,
        left=pnp.ChargedWall(charge=-0.1),
        right=pnp.Reservoir(concentrations=10.0, potential=0.0),
    )
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 40))
    assert_is(data, solution, pressure=solution.pressure)


def test_a_periodic_cell_with_a_ground_excluded(write):
    ends = '[left]\ntype = "periodic"\npotential_drop = "10 mV"\n[right]\ntype = "periodic"\n'
    cell = read_description(write(SALT + ends + '[run]\nkind = "steady"\n')).cell
    assert cell.left is cell.right
    assert cell.left.potential_drop.item() == 0.01


def test_reactions(write):
    text = SALT.replace("[cell]", '[[reaction]]\nproducts = {"K+" = 1, "Cl-" = 1}\nforward = "2e-3 M/s"\n'
                        'backward = "1e8 1/M/s"\n\n[cell]\nground = "40 nm"')  # fmt: skip
    transfer = (
        COPPER + 'standard_potential = "-0.1 V"\nstandard_concentration = "1 M"\ntransfer_coefficient = 0.4\n'
    )
    cell = read_description(write(text + ENDS + transfer + '[run]\nkind = "steady"\n')).cell
    (reaction,) = cell.electrolyte.reactions
    assert (dict(reaction.reactants), dict(reaction.products)) == ({}, {"K+": 1.0, "Cl-": 1.0})
    assert (reaction.forward.item(), reaction.backward.item()) == (2.0, 1e5)
    assert cell.ground.item() == 40e-9
    (transfer,) = cell.left.reactions + cell.right.reactions
    assert (dict(transfer.oxidised), dict(transfer.reduced)) == ({"K+": 1.0}, {})
    numbers = (transfer.rate_constant, transfer.standard_potential, transfer.transfer_coefficient)
    assert [number.item() for number in numbers] == [1e-5, -0.1, 0.4]
    assert transfer.standard_concentration.item() == 1000.0


WAVEFORMS = {
    '{kind = "step", before = 0, after = "10 mV", at = "2 ms"}': pnp.step(0.0, 0.01, at=2e-3),
    '{kind = "ramp", start = "-1 mV", end = "10 mV", duration = "3 ms"}': pnp.ramp(
        -1e-3, 0.01, duration=3e-3
    ),
    '{kind = "triangle", start = 0, vertex = "20 mV", rate = "10 V/s", cycles = 2}': pnp.triangle(
        0.0, 0.02, rate=10.0, cycles=2
    ),
    '{kind = "sine", amplitude = "5 mV", frequency = "0.3 kHz", offset = "1 mV", phase = "90 deg"}': pnp.sine(
        5e-3, 300.0, offset=1e-3, phase=torch.pi / 2
    ),
    '{kind = "piecewise_linear", times = ["1 ms", "2 ms"], values = ["1 mV", "2 mV"]}': pnp.piecewise_linear(
        [1e-3, 2e-3], [1e-3, 2e-3]
    ),
}


@pytest.mark.parametrize("text", WAVEFORMS)
def test_waveforms(text, write):
    given = read_description(write(STEADY.replace('"50 mV"', text))).cell.left.potential
    expected = WAVEFORMS[text]
    for time in (0.0, 0.5e-3, 1.5e-3, 2.5e-3, 5e-3):
        torch.testing.assert_close(given(time), expected(time), rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(given.breaks, expected.breaks)


def test_a_current_that_varies_and_a_potential_that_is_swept_inside_a_waveform(write):
    current = 'current = {kind = "ramp", start = 0, end = "1 mA/cm^2", duration = "1 s"}'
    text = TRANSIENT.replace('potential = "50 mV"', current)
    assert read_description(write(text)).cell.left.current(1.0).item() == 10.0
    triangle = '{kind = "triangle", start = 0, vertex = "20 mV", rate = "10 V/s"}'
    text = TRANSIENT.replace('"50 mV"', triangle) + '[sweep]\nleft.potential.rate = ["1 V/s", "2 V/s"]\n'
    description = read_description(write(text))
    assert description.cell.left.potential(torch.full((2,), 1e-3)).tolist() == pytest.approx([1e-3, 2e-3])
    assert description.axes[0].name == "left_potential_rate"


def test_a_voltammogram_is_drawn(run, tmp_path):
    triangle = '{kind = "triangle", start = 0, vertex = "20 mV", rate = "20 V/s"}'
    text = SALT + ENDS.replace('"50 mV"', triangle).replace("\n[right]", COPPER + "\n[right]")
    text += COPPER.replace("left", "right") + '[run]\nkind = "transient"\nrelative_tolerance = 1e-3\n'
    data = run(text + 'times = {from = 0, to = "2 ms", count = 14, spacing = "linear"}\n')
    assert data.sizes["time"] == 14
    assert (tmp_path / "out" / "voltammogram.png").exists()


@pytest.mark.parametrize("name", ["charging", "impedance", "membrane", "voltammetry"])
def test_examples_run(name, run):
    text = (ROOT / "docs" / "examples" / f"{name}.toml").read_text(encoding="utf-8")
    text = re.sub(r"nodes = \d+", f"nodes = {201 if name == 'membrane' else 40}", text)
    data = run(re.sub(r"count = \d+", "count = 12", text))
    assert (data.status == 0).all()
    assert len(text.splitlines()) > 20


def test_times_may_be_a_list_or_spread(write):
    spread = TRANSIENT.replace('["0 s", "10 ns", "1 us"]', '{from = "1 ns", to = "1 us", count = 4}')
    run = read_description(write(spread)).run
    assert isinstance(run, Transient)
    assert run.logarithmic
    torch.testing.assert_close(run.times, torch.tensor([1e-9, 1e-8, 1e-7, 1e-6], dtype=torch.float64))
    assert run.times[-1].item() == 1e-6
    run = read_description(write(TRANSIENT + "relative_tolerance = 1e-3\nabsolute_tolerance = 1e-7\n")).run
    assert (run.step_control.relative, run.step_control.absolute) == (1e-3, 1e-7)


def test_the_progress_bar_fills_once(write, monkeypatch):
    shown = []

    class Bar:
        def __init__(self, **options):
            self.n = 0.0

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731

        def update(self, more):
            self.n += more
            shown.append(self.n)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    run = read_description(write(TRANSIENT)).run
    with _progress_bar(run, quiet=False) as progress:
        for fraction in (0.0, 1e-4, 1e-2, 0.1, 1.0):
            progress(fraction)
    assert shown == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0], abs=1e-12)


# ---------------------------------------------------------------------------------------------- mistakes

#    what is replaced, by what, and what the message says
MISTAKES = {
    "wrong dimension": (
        '"100 nm"',
        '"50 mV"',
        'cell.length must be a length, such as "100 nm"; "50 mV" is a potential.',
    ),
    "no unit": (
        '"100 nm"',
        "1e-7",
        'cell.length must be a length with its unit, such as "100 nm"; got 1e-07.',
    ),
    "no unit in text": ('"100 nm"', '"100"', '"100" lacks its unit'),
    "unknown unit": ('"100 nm"', '"100 nn"', '"nn" is not a unit'),
    "no number": ('"100 nm"', '"wide"', '"wide" does not begin with a number'),
    "a truth for a number": ("valence = 1", "valence = true", "species.K+.valence must be a plain number"),
    "text for a number": ("valence = 1", 'valence = "1"', 'must be a plain number; got "1".'),
    "unknown key": ("nodes = 40", "nodse = 40", "[cell] has no key 'nodse'. Did you mean 'nodes'?"),
    "misspelt required key": ("length =", "lenght =", "[cell] has no key 'lenght'; did you mean 'length'?"),
    "key of another type": (
        "stern_capacitance",
        "charge",
        "[left] has no key 'charge'. Accepted: type, potential",
    ),
    "key of the top": ("nodes = 40", 'temperature = "300 K"', "It belongs at the top of the file"),
    "misspelt table": ("[cell]", "[cel]", "the file has no key 'cel'; did you mean 'cell'?"),
    "unknown top-level key": ("[[species]]", "titel = 3\n[[species]]", "Did you mean 'title'?"),
    "single brackets": ("[[species]]", "[species]", "write [[species]]"),
    "unknown type": ('"electrode"', '"electrod"', 'Did you mean "electrode"?'),
    "one periodic end": ('"electrode"', '"periodic"', "periodic at both ends"),
    "nodes": ("nodes = 40", "nodes = 2", "cell.nodes must be a whole number of at least 3, got 2."),
    "flag": ("nodes = 40", "charged = 1", "cell.charged must be true or false, got 1."),
    "name": ('name = "K+"', "name = 3", "must be a text in quotes, got 3."),
    "name twice": ('name = "Cl-"', 'name = "K+"', 'there are two species of the name "K+".'),
    "refused by Species": ('"1.96e-9 m^2/s"', '"-1.96e-9 m^2/s"', "diffusivity must be above 0"),
    "refused by Electrode": ('"20 uF/cm^2"', '"-20 uF/cm^2"', "stern_capacitance must be above 0"),
    "refused by Cell": ("nodes = 40", 'ground = "200 nm"', "ground must lie inside the cell"),
    "refused filling": ('concentration = "10 mM"', 'concentration = "-10 mM"', "must be above 0"),
    "potential and current": ("stern_capacitance", "current", "one of the two"),
    "current both": ('potential = "50 mV"', 'potential = ["50 mV"]', "must be a potential"),
    "unknown waveform": ('"50 mV"', '{kind = "sinus"}', 'Did you mean "sine"?'),
    "waveform's key": (
        '"50 mV"',
        '{kind = "step", before = 0, after = "1 V", att = "1 s"}',
        "did you mean 'at'?",
    ),
    "refused by a waveform": (
        '"50 mV"',
        '{kind = "triangle", start = 0, vertex = "1 V", rate = "-1 V/s"}',
        "rate must be above 0",
    ),
    "angle for a frequency": (
        '"50 mV"',
        '{kind = "sine", amplitude = "1 mV", frequency = "1 rad/s"}',
        '"1 rad/s" counts angles',
    ),
    "unknown kind of run": ('"steady"', '"stead"', 'Did you mean "steady"?'),
    "no times": ('"steady"', '"transient"', "[run] needs the key 'times'."),
    "times": ('"steady"', '"transient"\ntimes = ["1 s", "1 ms"]', "run.times must increase from zero on."),
    "tolerance": ('"steady"', '"transient"\ntimes = ["1 s"]\nrelative_tolerance = 2', "between 0 and 1"),
    "times backwards": (
        '"steady"',
        '"transient"\ntimes = {from = "1 s", to = "1 ms", count = 3}',
        "run.times.to must be above run.times.from.",
    ),
    "logarithm of zero": (
        '"steady"',
        '"transient"\ntimes = {from = 0, to = "1 ms", count = 3}',
        'unless spacing = "linear"',
    ),
    "swept what is not": (
        "[run]",
        '[sweep]\nleft.potental = ["1 V"]\n[run]',
        "Did you mean 'left.potential'?",
    ),
    "swept one value": ("[run]", '[sweep]\nleft.potential = "1 V"\n[run]', "must be a list of values"),
    "swept unit": ("[run]", '[sweep]\nleft.potential = [\n"1 V",\n"2 nm"]\n[run]', '"2 nm" is a length'),
    "swept in step": (
        "[run]",
        '[sweep]\nleft.potential = ["1 V"]\ncell.length = ["1 nm", "2 nm"]\n[run]',
        "vary in step, but left.potential has 1 values and cell.length 2",
    ),
    "swept nothing": ("[run]", "[sweep]\n[run]", "sweep is empty"),
    "swept twice": (
        "[run]",
        '[[sweep]]\ncell.length = ["1 nm"]\n[[sweep]]\n"cell.length" = ["1 nm"]\n[run]',
        "twice",
    ),
    "layer": (
        "[run]",
        '[[layer]]\nfrom = "2 nm"\nto = "1 nm"\n[run]',
        "layer.1.to must lie beyond layer.1.from.",
    ),
    "not dimensionless": ("[[species]]", "dimensionless = 1\n[[species]]", "must be true or false"),
    "syntax": (
        '"100 nm"',
        "100 nm",
        "not TOML: Expected newline or end of document after a statement. Quantities",
    ),
    "unquoted name": ("[run]", "[left.x]\nK+ = 1\n[run]", "not TOML"),
    "unknown species": (
        "[run]",
        COPPER.replace("K+", "k+") + "[run]",
        "has no species 'k+'. Did you mean 'K+'?",
    ),
    "no electrons": ("[run]", COPPER.replace("K+", "Cl-") + "[run]", "must take up electrons"),
    "rate constant": (
        "[run]",
        COPPER.replace("m/s", "1/s") + "[run]",
        'must be a rate constant, such as "1e-5 m/s"',
    ),
    "order of a reaction": (
        "[cell]",
        '[[reaction]]\nreactants = {"K+" = 1, "Cl-" = 1}\nforward = "1 1/s"\nbackward = 0\n[cell]',
        "must be a rate constant of order 2",
    ),
    "charge of a reaction": (
        "[cell]",
        '[[reaction]]\nreactants = {"K+" = 1}\nforward = "1 1/s"\nbackward = 0\n[cell]',
        "must conserve charge",
    ),
}
LINES = {  # where the mistake is not on the first line that was put in
    "unknown top-level key": "titel",
    "no electrons": "[[left.reaction]]",
    "unknown species": "oxidised",
    "rate constant": "rate_constant",
    "times": "times",
    "tolerance": "relative_tolerance",
    "times backwards": "times",
    "logarithm of zero": "times",
    "no times": "[run]",
    "potential and current": "potential =",
    "swept what is not": "left.potental",
    "swept one value": "left.potential",
    "swept unit": '"2 nm"]',
    "swept in step": "cell.length",
    "swept twice": '"cell.length"',
    "layer": 'to = "1',
    "unquoted name": "K+ = 1",
    "order of a reaction": "forward",
    "name twice": 'name = "K+"\nvalence = -1',
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_its_line(name, write, tmp_path, capsys):
    old, new, message = MISTAKES[name]
    text = STEADY.replace(old, new, 1)
    assert text != STEADY
    path = write(text)
    assert main([str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    start = text.index(LINES.get(name, new))
    line = text[:start].count("\n") + 1
    written = text.splitlines()[line - 1].strip()
    assert said.startswith(f"{path}, line {line}: {written}\n"), said
    assert message in said
    assert said.count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_mistakes_of_whole_files(write, tmp_path, capsys):
    for text, message in {
        "": "the file needs at least one table [[species]].",
        SALT: "the file needs a table [left].",
        SALT + ENDS: "the file needs a table [run].",
        STEADY.replace('"10 mM"', '"10 mM'): "line 5",
    }.items():
        assert main([str(write(text))]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "latin.toml").write_bytes("title = 'é'".encode("latin-1"))
    assert main([str(tmp_path / "latin.toml")]) == 2
    assert "must be UTF-8 text" in capsys.readouterr().err
    assert main([str(tmp_path / "missing.toml")]) == 2
    assert "missing.toml" in capsys.readouterr().err
    out = write("", "file")
    assert main([str(write(STEADY)), "--out", str(out)]) == 2
    assert "results go into a folder" in capsys.readouterr().err


def test_what_solvers_refuse_names_its_line_too(write, capsys):
    blocking = STEADY.replace('potential = "50 mV"', 'current = "1 A/m^2"')
    assert main([str(write(blocking))]) == 2
    said = capsys.readouterr().err
    assert 'line 19: current = "1 A/m^2"' in said
    assert "a current through a blocking electrode" in said


def test_a_bath_that_is_not_neutral_points_at_its_end(write):
    text = STEADY.replace("potential = 0", 'potential = 0\nconcentrations = {"K+" = "1 mM", "Cl-" = "2 mM"}')
    text = text.replace('[right]\ntype = "electrode"', '[right]\ntype = "reservoir"')
    with pytest.raises(DescriptionError, match="right reservoir must be neutral") as caught:
        read_description(write(text))
    assert text.splitlines()[caught.value.line - 1].startswith(("[right]", "concentrations"))
    negative = text.replace('"2 mM"', '"-2 mM"')
    with pytest.raises(DescriptionError, match=r"concentrations = .*\n.*at least 0, got -2"):
        read_description(write(negative))


def test_units_without_pint(write, capsys, monkeypatch):
    units._registry.cache_clear()
    monkeypatch.setitem(sys.modules, "pint", None)
    assert main([str(write(STEADY))]) == 2
    assert "pip install 'pnp-fusion[simulate]'" in capsys.readouterr().err
    units._registry.cache_clear()


# ---------------------------------------------------------------------------------------------- results


def test_a_failed_solve_leaves_the_old_result(write, run, tmp_path, capsys):
    run(TRANSIENT)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    failing = write(TRANSIENT + "max_steps = 1\n")
    assert main([str(failing), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert "1 of 1 cells were not solved" in said
    assert "used up the time steps allowed" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_failed_write_leaves_the_old_result(write, run, tmp_path, capsys, monkeypatch):
    run(STEADY)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def full(self, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    changed = write(STEADY.replace("50 mV", "60 mV"))
    assert main([str(changed), "--out", str(tmp_path / "out")]) == 2
    assert "no space left" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_warnings_are_part_of_the_summary(write, tmp_path, capsys):
    coarse = STEADY.replace("nodes = 40", 'nodes = 8\ngrid = "uniform"')
    assert main([str(write(coarse)), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "warning: " in printed.out
    assert re.search(r"passed +0 of 1", printed.out)


def test_the_command_itself(write, tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "pnp", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
        )

    shown = command("--help")
    assert shown.returncode == 0
    assert "python -m pnp" in shown.stdout
    assert "--quiet" in shown.stdout
    path = write(STEADY.replace("nodes", "nodse"))
    shown = command(str(path))
    assert (shown.returncode, shown.stdout) == (2, "")
    assert "Traceback" not in shown.stderr


def test_importing_pnp_brings_no_extras():
    code = "import sys, pnp; print(sorted({'pint', 'xarray', 'pandas', 'tqdm', 'matplotlib'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found.stdout.strip() == "[]"


def test_a_dataset_of_a_batch_without_names(tmp_path):
    cell = salt_cell(
        torch.tensor([[0.01], [0.02]], requires_grad=True, dtype=torch.float64), length=torch.tensor([1e-7])
    )
    solution = pnp.solve_steady(cell, pnp.Grid.refined(cell, 30))
    data = to_dataset(solution)
    assert data.potential.dims == ("batch0", "batch1", "node")
    data.to_netcdf(tmp_path / "batch.nc", engine="scipy")
    with xarray.open_dataset(tmp_path / "batch.nc") as read:
        assert_is(read, solution)
    named = to_dataset(solution, axes={"voltage": [0.01, 0.02], "size": [1e-7]}, title="t")
    assert named.potential.dims == ("voltage", "size", "node")
    assert named.voltage.dtype == np.float64
    with pytest.raises(ValueError, match=r"axes must match the batch shape \(2, 1\)"):
        to_dataset(solution, axes={"voltage": [0.01, 0.02, 0.03], "size": [1e-7]})


# ---------------------------------------------------------------------------------------------- TOML and units

TRICKY = r'''# comment = 3
title = """many
lines, a "quoted" [word] = 3"""  # and a comment
a.b . "c.d" = 1
"K\u207A" = 'it''s'
[left]
potential = {kind = "triangle", times = [1, 2], day = 1979-05-27 07:32:00}
[[left.reaction]]
x = 1
[[left.reaction]]
x = [
  "1 nm", # one ]
  {a = 1, b = [
     2,
     3 ]},
  [],
]
[left.reaction.sub]
y = -1.5e-9
[ "s p" . q ]
z = """"edge""""
[[species]]
[[species]]
name = "x"
'''.replace("it''s", "it ] = s")


def test_every_value_of_a_toml_file_has_its_line(write):
    document = read_toml(write(TRICKY))

    def places(value, place=()):
        yield place
        if isinstance(value, dict):
            for key, part in value.items():
                yield from places(part, (*place, key))
        elif isinstance(value, list):
            for index, part in enumerate(value):
                yield from places(part, (*place, index))

    assert {*places(document.content)} - {()} == set(document.lines)
    for place, line in {
        ("title",): 2,
        ("a", "b", "c.d"): 4,
        ("K⁺",): 5,
        ("left", "potential", "day"): 7,
        ("left", "reaction", 0, "x"): 9,
        ("left", "reaction", 1, "x", 0): 12,
        ("left", "reaction", 1, "x", 1, "a"): 13,
        ("left", "reaction", 1, "x", 1, "b", 1): 15,
        ("left", "reaction", 1, "sub", "y"): 19,
        ("s p", "q", "z"): 21,
        ("species", 1, "name"): 24,
    }.items():
        assert document.lines[place] == line, place


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("10 mM", units.CONCENTRATION, 10.0),
        ("1e-2 mol/L", units.CONCENTRATION, 10.0),
        ("-5 °C", units.TEMPERATURE, 268.15),
        ("−5 degC", units.TEMPERATURE, 268.15),
        ("300 K", units.TEMPERATURE, 300.0),
        ("3Å", units.LENGTH, 3e-10),
        ("1.33e-9 m²/s", units.DIFFUSIVITY, 1.33e-9),
        ("1.33e-5 cm^2/s", units.DIFFUSIVITY, 1.33e-9),
        ("-1 e/nm^2", units.CHARGE, -0.1602176634),
        ("1 mA cm⁻²", units.CURRENT, 10.0),
        ("20 µF/cm^2", units.CAPACITANCE, 0.2),
        ("50 mV/s", units.SCAN_RATE, 0.05),
        ("1.4e11 1/M/s", units.rate_constant(2), 1.4e8),
        ("3 1/min", units.rate_constant(1), 0.05),
        (0, units.LENGTH, 0.0),
        (3, units.NUMBER, 3.0),
    ],
)
def test_units(text, kind, value):
    assert units.to_si(text, kind) == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize(
    "text", ["1 m**", "1 m)(", "1 'm", "1 m + s", "1 m^m", "1 mV(", "1 m**9999999999**99", "1 2 m"]
)
def test_text_that_is_no_unit(text):
    with pytest.raises(ValueError, match=r"must be a length, such as \"100 nm\""):
        units.to_si(text, units.LENGTH)
