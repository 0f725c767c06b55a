"""python -m fusion check: every defect of a file is named, with what mends it."""

import numpy as np
import pytest

from fusion.__main__ import main
from fusion.data.check import check_file

RNG = np.random.default_rng(0)
SOUND = {
    "a": RNG.normal(size=(60, 4)),
    "b": RNG.normal(size=(60, 5, 3)),
    "label": np.arange(60) % 3,
    "split": np.repeat([0, 1, 2], 20),
}


def change(array, *places_and_values):
    array = array.copy()
    for place, value in places_and_values:
        array[place] = value
    return array


@pytest.fixture
def check(tmp_path):
    def check(**changes):
        arrays = {name: array for name, array in (SOUND | changes).items() if array is not None}
        np.savez(tmp_path / "features.npz", **arrays)
        return check_file(tmp_path / "features.npz")

    return check


def test_a_sound_file_is_described(check, tmp_path, capsys):
    findings = check(b_present=np.arange(60) % 4 > 0, b_length=np.arange(60) % 4 + 2)
    assert {finding.kind for finding in findings} == {"found"}
    assert [finding.text for finding in findings] == [
        "'a': 60 × 4 (samples × channels), float64",
        "'b': 60 × 5 × 3 (samples × steps × channels), float64",
        "'b' is present in 45 of 60 samples",
        "'b' has 3 to 5 valid steps; its channels are looked at as means over them",
        "label: 3 classes of 20 to 20 samples",
        "split: 20 train, 20 validation, 20 test",
    ]
    assert main(["check", str(tmp_path / "features.npz")]) == 0
    assert capsys.readouterr().out.endswith("can be used.\n")


FAR = change(np.arange(2501.0)[:, None] % 2 * np.ones(4), (2500, 1e4))
WARNINGS = {
    "constant": ({"a": change(SOUND["a"], (np.s_[:, 2], 7.0))}, "1 of 4 channels never change (channel 2)"),
    "twice": ({"a": SOUND["a"][:, [0, 1, 1, 1]]}, "'a': 2 channels repeat another one"),
    "scales": ({"a": SOUND["a"] * [1, 1e5, 1, 1]}, "Leave standardise on"),
    "offset": ({"a": SOUND["a"] + 1e6}, "mean is over 10,000 of its deviations"),
    "outlier": (
        {"a": FAR, "b": np.ones((2501, 2)) * np.arange(2501)[:, None], "label": None, "split": None},
        "4 values lie over 20 deviations from the mean, the first in sample 2500",
    ),
    "wide": ({"a": RNG.normal(size=(60, 70))}, "70 channels but 60 samples"),
    "gap": ({"label": np.arange(60) % 3 * 2}, "no sample of classes 1, 3. np.unique"),
    "rare": ({"label": change(np.arange(60) % 2, (7, 2))}, "fewer than 5 samples of class 2"),
    "whole floats": ({"label": np.arange(60) % 3 * 1.0}, "label.astype(int)"),
    "no test": ({"split": np.arange(60) % 2}, "no test samples (value 2); there is nothing to score"),
    "unseen": (
        {"split": np.where(np.arange(60) % 3 == 1, 2, 0)},
        "no training sample of class 1. Stratify it.",
    ),
    "leak": (
        {"a": SOUND["a"][np.arange(60) % 40], "b": SOUND["b"][np.arange(60) % 40]},
        "20 test samples are also",
    ),
}


@pytest.mark.parametrize(("changes", "text"), WARNINGS.values(), ids=WARNINGS.keys())
def test_what_is_odd_is_a_warning(check, changes, text):
    findings = check(**changes)
    assert any(text in finding.text for finding in findings if finding.kind == "warning"), findings
    assert not any(finding.kind == "wrong" for finding in findings)


WRONG = {
    "NaN": (
        {"a": change(SOUND["a"], ((3, 1), np.nan))},
        "at (3, 1). Replace such values, or mark the samples",
    ),
    "axes": ({"a": np.ones(60)}, "but a modality is samples × channels"),
    "objects": ({"a": np.array([{}] * 60)}, "Write it with np.savez, as numbers."),
    "counts": ({"a": np.ones((50, 2))}, "Row n of every array belongs to sample n"),
    "classes": ({"label": np.arange(60) % 3 - 1}, "Number the classes from 0"),
    "split": ({"split": np.full(60, 5)}, "Use 0 for training"),
    "presence": ({"a_present": np.zeros(60, bool), "b_present": np.zeros(60, bool)}, "Drop these samples"),
    "one": ({"b": None}, "one modality: fusion needs two or more"),
}


@pytest.mark.parametrize(("changes", "text"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_used_is_wrong(check, tmp_path, capsys, changes, text):
    findings = [finding for finding in check(**changes) if finding.kind == "wrong"]
    assert len(findings) == 1
    assert text in findings[0].text
    assert main(["check", str(tmp_path / "features.npz")]) == 2
    printed = capsys.readouterr()
    assert str(findings[0]) in printed.out
    assert "what is wrong is above (1)" in printed.err


def test_several_defects_are_named_at_once(check):
    wrong = [str(f) for f in check(a=np.ones(60), b=np.array([{}] * 60)) if f.kind == "wrong"]
    assert len(wrong) == 2


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        check_file(tmp_path / "nothing.npz")
