"""python -m pnp: a file gives what the same cell gives by hand, whole or not at all."""

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
from pnp.__main__ import _progress_bar, main
from pnp.command_line import units
from pnp.command_line.description import read_description
from pnp.dataset import to_dataset

from .descriptions import ENDS, SALT, STEADY, TRANSIENT

ROOT = Path(__file__).parent.parent


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
    combined = '[[sweep]]\n"left.potential" = ["10 mV", "20 mV"]\n'
    combined += '[[sweep]]\ncell.length = ["50 nm", "100 nm", "1 um"]\n'
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


def test_a_membrane_between_baths(run, write):
    text = SALT.replace("nodes = 40", 'nodes = 62\ngrid = "uniform"')
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

    cell = salt_cell(
        left=pnp.Reservoir(concentrations=10.0, potential=0.02),
        right=pnp.Reservoir(concentrations=1.0, potential=0.0),
        fixed_charge=lambda x: -50.0 * inside(x),
        permittivity_profile=lambda x: 1 - 0.5 * inside(x),
        diffusivity_profile=lambda x: 1 - 0.8 * inside(x),
    )
    assert_is(data, pnp.solve_steady(cell, pnp.Grid.uniform(cell, 62)))
    on_borders = read_description(write(text.replace("62", "101")))
    grid, fixed_charge = on_borders.grid, on_borders.cell.fixed_charge
    assert (grid.volumes * fixed_charge(grid.nodes)).sum().item() == pytest.approx(-50.0 * 40e-9, rel=1e-12)


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


# what every example writes, and how to make it a coarse one
EXAMPLES = {
    "charging": (
        {"profiles", "current", "space_time"},
        {"nodes = 200": "nodes = 40", "count = 80": "count = 8"},
    ),
    "impedance": ({"profiles", "impedance"}, {"nodes = 150": "nodes = 40"}),
    "membrane": ({"profiles", "sweep"}, {"nodes = 601": "nodes = 151"}),
    "voltammetry": (
        {"profiles", "current", "space_time", "voltammogram"},
        {
            "nodes = 100": "nodes = 30",
            "cycles = 2": "cycles = 1",
            '"40 ms", count = 101': '"20 ms", count = 23',
        },
    ),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_run(name, run, tmp_path):
    figures, coarser = EXAMPLES[name]
    text = (ROOT / "docs" / "examples" / f"{name}.toml").read_text(encoding="utf-8")
    for fine, coarse in coarser.items():
        assert fine in text
        text = text.replace(fine, coarse)
    data = run(text)
    assert (data.status == 0).all()
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == figures


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
    decades = TRANSIENT.replace('["0 s", "10 ns", "1 us"]', '{from = "10 ns", to = "1 us", count = 3}')
    run = read_description(write(decades)).run
    with _progress_bar(run, quiet=False) as progress:
        for fraction in (0.0, 1e-4, 1e-2, 0.1, 1.0):
            progress(fraction)
    assert shown == pytest.approx([0.0, 0.0, 0.0, 0.5, 1.0], abs=1e-12)


def test_a_library_that_is_missing(write, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pint", None)
    units._registry.cache_clear()
    with pytest.raises(ImportError, match="pint"):
        read_description(write(STEADY))
    monkeypatch.setitem(sys.modules, "xarray", None)
    assert main([str(write(STEADY))]) == 2
    assert "needs pint: pip install 'pnp-fusion[simulate]'" in capsys.readouterr().err
    with pytest.raises(ImportError, match="needs xarray"):
        to_dataset(pnp.solve_steady(salt_cell(), pnp.Grid.refined(salt_cell(), 20)))


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
    code = "import sys, pnp; print(sorted({'pint', 'xarray', 'pandas', 'matplotlib'} & set(sys.modules)))"
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
