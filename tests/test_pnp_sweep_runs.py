"""Studies over tables: every row as if solved alone, whatever happens to the others or to the process."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import xarray

import pnp
from pnp import Status, sweep
from pnp.command_line.description import read_description
from pnp.sweep.fingerprint import described
from pnp.sweep.store import Store

from .descriptions import STEADY
from .problems import electrolyte

NODES = 21
ROOT = Path(__file__).parents[1]
CHARGE = {"charge": pnp.diffuse_charge}


def cell(voltage, debye=0.1, filling=1.0):
    return pnp.Cell(
        electrolyte(2 * torch.as_tensor(debye) ** 2),
        length=2.0,
        concentrations=torch.as_tensor(filling).unsqueeze(-1).expand(*torch.as_tensor(filling).shape, 2),
        left=pnp.Electrode(potential=voltage),
        right=pnp.Electrode(potential=-voltage),
    )


def solve(cells):
    return pnp.solve_steady(cells, pnp.Grid.refined(cells, NODES), throw=False)


def transient(cells):
    loose = pnp.StepControl(relative=0.1, absolute=0.01)
    return pnp.solve_transient(
        cells, pnp.Grid.refined(cells, NODES), times=[0.0, 0.01, 0.1], throw=False, step_control=loose
    )


@pytest.fixture
def run(tmp_path):
    """Run a study quietly on coarse grids, and return its dataset, closed."""

    def run(function, table, observables=CHARGE, **options):
        options = {"out": tmp_path / "study.nc", "solve": solve, "progress": False} | options
        with sweep.run(function, table, observables, **options) as data:
            return data.load()

    return run


def voltages(count=10, **options):
    return sweep.grid({"voltage": np.linspace(0.5, 5, count)}, **options)


def test_a_grid_keeps_its_axes_and_gives_what_one_batch_gives(run, tmp_path):
    table = sweep.grid({"voltage": [0.5, 1, 2, 4], "debye": [0.05, 0.1, 0.2]}, units={"debye": "1"})
    observables = {
        "charge": pnp.diffuse_charge,
        "wall": pnp.surface_charge,
        "flux": pnp.ion_flux,
        "potential": sweep.Observable(lambda solution: solution.potential, ("node",), "V_T"),
        "middle": lambda solution: solution.concentrations[..., 10],
    }
    data = run(cell, table, observables, chunk=5)
    expected = solve(cell(*(column.reshape(4, 3) for column in table.columns.values())))
    assert dict(data.sizes) == {
        "voltage": 4,
        "debye": 3,
        "species": 2,
        "edge": NODES - 1,
        "node": NODES,
        "middle_axis0": 2,
    }
    np.testing.assert_array_equal(data.voltage, [0.5, 1, 2, 4])
    np.testing.assert_array_equal(data.debye, [0.05, 0.1, 0.2])
    assert data.species.values.tolist() == ["s0", "s1"]
    assert data.potential.dims == ("voltage", "debye", "node")
    assert data.flux.dims == ("voltage", "debye", "species", "edge")
    units = {
        name: data[name].attrs.get("units") for name in ("charge", "potential", "middle", "debye", "voltage")
    }
    assert units == {"charge": "1", "potential": "V_T", "middle": None, "debye": "1", "voltage": None}
    for name, values in {
        "charge": pnp.diffuse_charge(expected),
        "wall_left": pnp.surface_charge(expected).left,
        "wall_right": pnp.surface_charge(expected).right,
        "flux": pnp.ion_flux(expected),
        "potential": expected.potential,
        "middle": expected.concentrations[..., 10],
        "iterations": expected.stats.iterations,
        "wall_spacing": expected.check().wall_spacing,
    }.items():
        # The flux at rest is the rounding of terms of size D c/h.
        rounding = 1e-9 if name == "flux" else 1e-12
        np.testing.assert_allclose(data[name], values, rtol=1e-9, atol=rounding, err_msg=name)
    assert (data.status == Status.CONVERGED).all()
    assert "reason" not in data
    assert [path.name for path in tmp_path.iterdir()] == ["study.nc"]


def test_a_table_without_axes_has_the_dimension_cell(run):
    table = sweep.latin_hypercube({"voltage": (0.5, 5), "debye": sweep.log(0.05, 0.2)}, 11)
    data = run(cell, table, chunk=4)
    assert data.charge.dims == data.voltage.dims == ("cell",)
    assert {"voltage", "debye"} <= set(data.coords)
    np.testing.assert_array_equal(data.voltage, table.columns["voltage"])
    expected = pnp.diffuse_charge(solve(cell(**table.columns)))
    np.testing.assert_allclose(data.charge, expected, rtol=1e-9)


def test_rows_that_fail_are_not_a_number_and_say_why(run):
    def some_fail(cells):
        found = solve(cells)
        return replace(
            found, status=torch.where(cells.left.potential > 4, Status.MAX_ITERATIONS, found.status)
        )

    table = sweep.grid({"filling": [1.0, -1.0, 2.0, 0.0], "voltage": [1.0, 2.0, 5.0]})
    data = run(cell, table, solve=some_fail, chunk=7)
    good, refused, failed = Status.CONVERGED, sweep.REFUSED, Status.MAX_ITERATIONS
    assert data.status.values.tolist() == [[good, good, failed], [refused] * 3] * 2
    assert data.status.attrs["flag_meanings"].startswith("refused converged max_iterations")
    np.testing.assert_array_equal(np.isnan(data.charge), data.status != good)
    expected = pnp.diffuse_charge(solve(cell(torch.tensor([1.0, 2.0]), filling=torch.tensor([1.0, 1.0]))))
    np.testing.assert_allclose(data.charge[0, :2], expected, rtol=1e-9)
    assert data.failure.values.tolist() == [2, 3, 4, 5, 8, 9, 10, 11]
    assert data.reason.sel(failure=2).item() == Status.MAX_ITERATIONS.reason
    assert data.reason.sel(failure=4).item() == "Cell: concentrations must be above 0, got -1."
    assert float(data.iterations[0, 2]) > 0


def test_transients_have_times(run):
    observables = {
        "charge": pnp.diffuse_charge,
        "amounts": pnp.amounts,
        "own": lambda s: s.potential[..., :3],
    }
    data = run(cell, voltages(3), observables, solve=transient, chunk=2)
    assert data.charge.dims == ("voltage", "time")
    assert data.amounts.dims == ("voltage", "time", "species")
    assert data.own.dims == ("voltage", "time", "own_axis0")
    np.testing.assert_array_equal(data.time, [0.0, 0.01, 0.1])
    expected = transient(cell(torch.linspace(0.5, 5, 3)))
    np.testing.assert_allclose(data.charge, pnp.diffuse_charge(expected), rtol=1e-9)
    np.testing.assert_array_equal(data.steps, expected.stats.steps)
    np.testing.assert_array_equal(data.reached, 0.1)


def test_tuples_and_complex_numbers_are_stored_by_parts(run):
    class Both(NamedTuple):
        first: torch.Tensor
        second: torch.Tensor

    def both(solution):
        charge = pnp.diffuse_charge(solution)
        return Both(charge, (charge, torch.complex(charge, 2 * charge)))

    data = run(cell, voltages(), {"x": both, "charge": pnp.diffuse_charge})
    for name, factor in {
        "x_first": 1,
        "x_second_0": 1,
        "x_second_1_real": 1,
        "x_second_1_imaginary": 2,
    }.items():
        np.testing.assert_array_equal(data[name], factor * data.charge)


def test_chunks_fit_the_memory_and_are_halved_if_they_do_not(run, tmp_path):
    sizes = []

    def watched(cells):
        assert not torch.is_grad_enabled()
        sizes.append(cells.batch_shape[0])
        if sizes[-1] > 8:
            raise torch.OutOfMemoryError("too much")
        return solve(cells)

    table = voltages(40)
    data = run(cell, table, solve=watched, chunk=20, devices=["cpu"])
    assert sizes == [16, 8, 8, *[20, 10, 5, 5, 10, 5, 5] * 2]
    assert (data.status == 0).all()
    for memory, largest in ((None, 40), (2 * NODES * 8 * 300, 2)):
        sizes.clear()
        run(cell, table, solve=watched, memory=memory, out=tmp_path / f"{memory}.nc")
        assert max(sizes[3:]) == largest


def broken(solution):
    raise KeyError("a mistake in the program")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"observables": {"x": broken}}, KeyError, "a mistake in the program"),
        (
            {"cell": lambda voltage: cell(voltage, filling=-1.0)},
            ValueError,
            "none of the 10 .* above 0, got -1",
        ),
        ({"cell": lambda voltage: 3}, TypeError, r"cell must return a pnp\.Cell, got 3"),
        ({"cell": lambda voltage: cell(1.0)}, TypeError, r"batch of \(10,\) cells .* got \(\)"),
        ({"cell": lambda length: None}, TypeError, "unexpected keyword argument 'voltage'"),
        (
            {"observables": {"x": lambda s: 1.0}},
            TypeError,
            "x must be a tensor or a tuple of tensors, got 1.0",
        ),
        (
            {"observables": {"x": lambda s: s.grid.nodes[0]}},
            TypeError,
            r"x must begin with the batch .* \(21,\)",
        ),
        (
            {"observables": {"x": lambda s: s.potential[:, :0]}},
            TypeError,
            r"hold numbers, got shape \(10, 0\)",
        ),
        (
            {"observables": {"x": sweep.Observable(pnp.diffuse_charge, ("node",))}},
            TypeError,
            r"axes of the observable x must be as many .* \(\), got \('node',\)",
        ),
        ({"observables": {"voltage": pnp.diffuse_charge}}, ValueError, r"different names, got \['voltage'\]"),
        ({"observables": {"status": pnp.diffuse_charge}}, ValueError, r"different names, got \['status'\]"),
        (
            {"observables": {"x": sweep.Observable(lambda s: s.potential, ("edge",)), "y": pnp.ion_flux}},
            ValueError,
            "the axis edge must have one length, got 21 and 20",
        ),
        ({"chunk": 0}, ValueError, "chunk must be an integer of at least 1, got 0"),
        ({"memory": -1.0}, ValueError, "memory must be a positive number of bytes, got -1.0"),
        ({"devices": []}, ValueError, "devices must be at least one"),
    ],
)
def test_studies_that_are_refused(run, tmp_path, changes, error, message):
    given = {"cell": cell, "observables": CHARGE} | changes
    with pytest.raises(error, match=message):
        run(given.pop("cell"), voltages(), **given)
    assert not list(tmp_path.iterdir())


def test_observables_that_change_their_shape(run):
    def ragged(solution):
        return solution.potential[:, : 3 if float(solution.cell.left.potential.min()) < 4 else 4]

    with pytest.raises(ValueError, match="must have the same axes in all cells"):
        run(cell, voltages(), {"x": ragged}, chunk=3)


def test_a_finished_study_is_read_and_another_is_refused(run, tmp_path, monkeypatch):
    calls = []

    def counted(cells):
        calls.append(1)
        return solve(cells)

    first = run(cell, voltages(), solve=counted)
    calls.clear()
    xarray.testing.assert_identical(run(cell, voltages(), solve=counted), first)
    assert not calls
    more = {**CHARGE, "more": pnp.total_charge}
    for table, observables, solver, text in (
        (voltages(11), CHARGE, counted, r"table was \w+, now \w+"),
        (voltages(), more, counted, r"observables was \w+, now \w+"),
        (voltages(), CHARGE, solve, r"solve was \w+, now \w+"),
    ):
        with pytest.raises(
            ValueError, match=rf"study\.nc holds another study \({text}\)\. Pass overwrite=True"
        ):
            run(cell, table, observables, solve=solver)
    monkeypatch.setattr(sys.modules[__name__], "NODES", 31)
    with pytest.raises(ValueError, match=r"\(solve was \w+, now \w+\)"):
        run(cell, voltages(), solve=lambda cells: pnp.solve_steady(cells, pnp.Grid.refined(cells, NODES)))
    assert run(cell, voltages(11), overwrite=True).charge.shape == (11,)
    (tmp_path / "study.nc").write_bytes(b"something else")
    with pytest.raises(ValueError, match="table was not there"):
        run(cell, voltages())


def test_what_makes_two_functions_the_same():
    def at(nodes):
        return lambda cells: pnp.Grid.refined(cells, nodes)

    assert described(at(21)) == described(at(21)) != described(at(31))
    assert described(partial(solve, 1)) == described(partial(solve, 1)) != described(partial(solve, 2))
    assert described(pnp.diffuse_charge) == "pnp.observables.diffuse_charge"
    assert "NODES" in described(solve)[1]
    typed = {"__name__": "typed"}
    exec("def cell(voltage): ...", typed)
    assert described(typed["cell"]) == "typed.cell"
    assert "0x" not in str(described(partial(solve, object())))


def test_double_layers_that_the_grid_does_not_resolve(run):
    def uniform(cells):
        return pnp.solve_steady(cells, pnp.Grid.uniform(cells, NODES), throw=False)

    table = sweep.grid({"debye": [0.2, 0.02, 0.01], "voltage": [0.5]})
    with pytest.warns(pnp.UnderResolvedWarning, match="of 2 of 3 cells") as caught:
        run(cell, table, solve=uniform, chunk=1)
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_the_bar_counts_cells_and_failures(run, capfd):
    table = sweep.grid({"filling": [1.0, -1.0], "voltage": [1.0, 2.0]})
    run(cell, table, progress=True)
    assert "4/4" in (shown := capfd.readouterr().err)
    assert "failed=2" in shown


def hypercube():
    """Sixty cells, of which some are refused."""
    return sweep.latin_hypercube({"voltage": (0.5, 5.0), "filling": (-0.1, 1.0)}, 60, seed=1)


KILLED = textwrap.dedent("""
    import os, signal, sys
    import pnp
    from pnp.sweep.store import Store
    from tests.test_pnp_sweep_runs import CHARGE, cell, hypercube, solve

    def write(store, index, plan, chunk, original=Store.write):
        original(store, index, plan, chunk)
        if len(store.finished()) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    Store.write = write
    pnp.sweep.run(cell, hypercube(), CHARGE, out=sys.argv[1], solve=solve, chunk=10, progress=False)
""")


def python(script, *arguments):
    """Run a script in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_killed_study_is_taken_up_to_the_same_bits(run, tmp_path, monkeypatch):
    whole, killed, parts = (tmp_path / name for name in ("whole.nc", "killed.nc", "killed.nc.parts"))
    data = run(cell, hypercube(), chunk=10, out=whole)
    assert 0 < int((data.status == sweep.REFUSED).sum()) == data.sizes["failure"] < 20
    assert python(KILLED, killed).returncode == -signal.SIGKILL
    assert not killed.exists()
    assert len(list(parts.glob("*.npz"))) == 3
    (parts / ".000005.npz.1.tmp").write_bytes(b"half a file")
    written, write = [], Store.write
    with monkeypatch.context() as patch:  # stopped at the very end, when all is joined but not in its place
        patch.setattr(
            Store, "write", lambda self, index, *rest: (written.append(index), write(self, index, *rest))
        )
        patch.setattr("pnp.sweep.store.os.replace", stop_at(killed))
        with pytest.raises(KeyboardInterrupt):
            run(cell, hypercube(), out=killed)  # with the chunks that it began with
    assert len(written) == 3
    assert not killed.exists()
    with monkeypatch.context() as patch:  # stopped when it is in its place
        patch.setattr(Store, "clean", lambda self: None)
        patch.setattr(Store, "write", None)
        run(cell, hypercube(), chunk=10, out=killed)
    assert killed.read_bytes() == whole.read_bytes()
    assert parts.exists()
    run(cell, hypercube(), chunk=10, out=killed)
    assert {path.name for path in tmp_path.iterdir()} == {"whole.nc", "killed.nc"}


def stop_at(path, replace=os.replace):
    """`os.replace` that is interrupted before it puts something at the path."""

    def stopped(source, target):
        if target == path:
            raise KeyboardInterrupt
        replace(source, target)

    return stopped


def test_parts_of_another_study_are_refused_or_given_up(run, tmp_path):
    table, parts = voltages(), tmp_path / "study.nc.parts"

    def interrupted(cells):
        if float(cells.left.potential.max()) == 5 and cells.batch_shape[0] < 10:
            raise KeyboardInterrupt
        return solve(cells)

    with pytest.raises(KeyboardInterrupt):
        run(cell, table, solve=interrupted, chunk=2)
    assert list(parts.glob("*.npz"))
    with pytest.raises(ValueError, match=r"parts holds another study \(chunk was 2, now 3\)"):
        run(cell, table, solve=interrupted, chunk=3)
    with pytest.raises(ValueError, match=r"parts holds another study \(table was .*overwrite=True"):
        run(cell, voltages(20), solve=interrupted)
    (parts / "study.json").unlink()  # as if the parts were being removed when the process was killed
    (parts / "000001.npz").write_bytes(b"of another study")
    assert (run(cell, table, chunk=2).status == 0).all()
    assert not parts.exists()
    with pytest.raises(KeyboardInterrupt):
        run(cell, table, solve=interrupted, chunk=2, overwrite=True)
    assert list(parts.glob("*.npz"))
    assert (run(cell, table, overwrite=True).status == 0).all()  # what is finished is this study
    assert run(cell, voltages(20), overwrite=True).sizes["voltage"] == 20
    assert not parts.exists()


@pytest.mark.slow
def test_the_workers_of_a_cluster_give_the_same_bits(run, tmp_path):
    distributed = pytest.importorskip("distributed")
    table = sweep.latin_hypercube({"voltage": (0.5, 5), "filling": (-0.1, 1)}, 50)
    here = run(cell, table, chunk=10)
    cluster = distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=":0"
    )
    with cluster, distributed.Client(cluster) as client:
        there = run(cell, table, chunk=10, client=client, out=tmp_path / "there.nc")
        with pytest.raises(ValueError, match="none with a client"):
            run(cell, table, client=client, devices=["cpu"])
        with pytest.raises(KeyError, match="a mistake"):
            run(cell, table, {"x": lambda s: broken(s) if len(s.status) < 16 else pnp.total_charge(s)},
                chunk=10, client=client, out=tmp_path / "broken.nc")  # fmt: skip
    xarray.testing.assert_identical(there, here)


MEMORY = textwrap.dedent("""
    import resource, sys
    import pnp
    from tests.test_pnp_sweep_runs import cell
    import tests.test_pnp_sweep_runs as study

    study.NODES = 9
    for count in (500, 1500, 6000):
        table = pnp.sweep.latin_hypercube({"voltage": (0.1, 0.5)}, count)
        observables = {"much": lambda solution: solution.potential.repeat(1, 100)}
        pnp.sweep.run(cell, table, observables, out=f"{sys.argv[1]}/{count}.nc", solve=study.solve, chunk=250,
                      devices=["cpu"], progress=False).close()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
""")


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_memory_does_not_grow_with_the_table(tmp_path):
    done = python(MEMORY, tmp_path)
    assert done.returncode == 0, done.stderr
    _, few, many = (int(line) / 1e3 for line in done.stdout.split())
    assert many - few < 8  # megabytes for 4500 more cells, whose results are 32 MB


@pytest.mark.gpu
def test_a_gpu_gives_the_same_numbers(run, tmp_path):
    here = run(cell, voltages(40), devices=["cpu"], chunk=10)
    there = run(cell, voltages(40), devices=["cuda"], chunk=10, out=tmp_path / "there.nc")
    np.testing.assert_allclose(there.charge, here.charge, rtol=1e-9)
    assert (there.status == 0).all()


def test_a_cell_of_a_file_is_varied(run, tmp_path):
    """As the page of sweeps says."""
    path = tmp_path / "cell.toml"
    path.write_text(STEADY, encoding="utf-8")
    base = read_description(path).cell
    data = run(
        lambda potential: replace(base, left=replace(base.left, potential=potential)),
        sweep.grid({"potential": [0.01, 0.02]}, units={"potential": "V"}),
    )
    assert (data.status == 0).all()
    assert data.charge.attrs["units"] == "C m-2"
