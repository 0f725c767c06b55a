"""Tables of parameters: their rows, and what they refuse."""

import numpy as np
import pytest
import scipy.stats
import torch

from pnp import sweep


def columns(table):
    return {name: column.tolist() for name, column in table.columns.items()}


def test_a_grid_is_all_combinations_the_last_fastest():
    table = sweep.grid({"a": [1, 2], "b": torch.tensor([3.0, 4.0, 5.0])}, units={"b": "V"})
    assert columns(table) == {"a": [1, 1, 1, 2, 2, 2], "b": [3, 4, 5, 3, 4, 5]}
    assert table.shape == (2, 3)
    assert len(table) == 6
    assert repr(table) == "Table(a, b; a: 2, b: 3)"
    found = {name: (dims, values.tolist()) for name, (dims, values) in table.coordinates().items()}
    assert found == {"a": (("a",), [1, 2]), "b": (("b",), [3, 4, 5])}


def test_a_hypercube_has_one_value_in_every_share():
    count = 50
    ranges = {"a": (-1, 3), "b": sweep.log(0.01, 100), "c": scipy.stats.norm(5, 2)}
    table = sweep.latin_hypercube(ranges, count, seed=3)
    assert dict(table.axes) == {"cell": count}
    a, b, c = (column.numpy() for column in table.columns.values())
    for shares in ((a + 1) / 4, (np.log10(b) + 2) / 4, scipy.stats.norm(5, 2).cdf(c)):
        assert sorted(np.floor(shares * count).astype(int)) == list(range(count))
    assert columns(table) == columns(sweep.latin_hypercube(ranges, count, seed=3))
    assert columns(table) != columns(sweep.latin_hypercube(ranges, count, seed=4))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sweep.grid({}), ValueError, "at least one, of one length"),
        (lambda: sweep.grid({"a": []}), ValueError, "at least 1, got"),
        (lambda: sweep.grid({"a b": [1]}), ValueError, "as keywords, got 'a b'"),
        (lambda: sweep.grid({"lambda": [1]}), ValueError, "as keywords, got 'lambda'"),
        (lambda: sweep.grid({"a": [[1]]}), ValueError, r"a must have one axis, .* got shape \(1, 1\)"),
        (lambda: sweep.grid({"a": [1]}, units={"b": "V"}), ValueError, r"out of \['a'\], got \['b'\]"),
        (lambda: sweep.Table({"a": [1, 2], "b": [1]}), ValueError, r"got \{'a': 2, 'b': 1\}"),
        (lambda: sweep.Table({"a": [1, float("nan")]}), ValueError, "a must be a finite number, got nan"),
        (lambda: sweep.Table({"a": ["x"]}), TypeError, "a must be a number"),
        (lambda: sweep.Table({"a": [1, 2]}, axes={"b": 3}), ValueError, r"rows, 2, got \{'b': 3\}"),
        (lambda: sweep.Table({"a": [1, 2]}, axes={"b": 2, "a": 1}), ValueError, "along its own axis only"),
        (
            lambda: sweep.latin_hypercube({"a": (1, 1)}, 3),
            ValueError,
            "a: low must be below high, got 1 and 1",
        ),
        (lambda: sweep.latin_hypercube({"a": 5}, 3), TypeError, r"a must be two finite numbers .* got 5"),
        (lambda: sweep.latin_hypercube({"a": (0, 1)}, 0), ValueError, "count must be .* at least 1, got 0"),
        (lambda: sweep.log(0, 1), ValueError, "log: low must be above 0, got 0"),
    ],
)
def test_tables_that_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.fixture
def csv(tmp_path):
    def write(text):
        path = tmp_path / "cells.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_csv_file(csv):
    path = csv('\ufeffvoltage, debye,note\n0.1,1e-2,"a, b"\n\n-2,3,\n')
    table = sweep.read_csv(path, columns=["debye", "voltage"], units={"voltage": "V"})
    assert columns(table) == {"debye": [0.01, 3.0], "voltage": [0.1, -2.0]}
    assert dict(table.axes) == {"cell": 2}
    assert table.units == {"voltage": "V"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,\n", r"csv, line 3, column 'b': must be a finite number, got ''"),
        ("a,b\n1,2\n\nx,1\n", r"line 4, column 'a': must be a finite number, got 'x'"),
        ("a\nnan\n", r"line 2, column 'a': must be a finite number, got 'nan'"),
        ("a\n1e999\n", r"line 2, column 'a': must be a finite number, got '1e999'"),
        ("a,a\n1,2\n", r"line 1: the file has the column 'a' twice"),
        ("a,b\n1\n", r"line 2: must have 2 cells, one for each of \['a', 'b'\], got 1"),
        ("a;b\n1;2\n", r"line 2, column 'a;b'"),
        ("a,b\n", "at least one line of numbers"),
        ("", "a line of names"),
        ("voltage [V]\n1\n", r"as keywords, got 'voltage \[V\]'"),
    ],
)
def test_csv_files_that_are_refused(csv, text, message):
    with pytest.raises(ValueError, match=message):
        sweep.read_csv(csv(text))


def test_a_column_that_is_not_there(csv):
    with pytest.raises(ValueError, match=r"has no column 'c'; its columns are \['a', 'b'\]"):
        sweep.read_csv(csv("a,b\n1,2\n"), columns=["c"])
    with pytest.raises(FileNotFoundError):
        sweep.read_csv("nowhere.csv")
