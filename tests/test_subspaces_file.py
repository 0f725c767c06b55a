"""What was found is kept in a file and comes back, or the file is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import fusion
from fusion.grounded.transport import gates, opening


@pytest.fixture(scope="module")
def known():
    features = fusion.shared_private(600, {"a": 12, "b": 9, "c": 5}, shared=2, private=2)[0].modalities
    return features, fusion.dissociate(features, ground=0.45, debye_length=0.5)


def test_what_is_read_is_what_was_written(known, tmp_path):
    features, found = known
    path = tmp_path / "new" / "found.safetensors"
    fusion.save_subspaces(path, found)
    again = fusion.load_subspaces(path)
    assert str(again) == str(found)
    for mine, theirs in zip(found.split(features), again.split(features), strict=True):
        for name in features:
            assert torch.equal(mine[name], theirs[name])
    for name, one in found.channels.items():
        other = again.channels[name]
        assert torch.equal(other.frame, one.frame)
        # Differences of the last digit of the permittivity.
        torch.testing.assert_close(other.solution.potential, one.solution.potential, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(opening(gates(other.solution)), one.gates, rtol=0, atol=1e-9)
    assert torch.equal(again.conflict(features), found.conflict(features))
    assert {file.name for file in path.parent.iterdir()} == {"found.safetensors"}


def test_an_old_file_stays_if_writing_fails(known, tmp_path, monkeypatch):
    path = tmp_path / "found.safetensors"
    path.write_text("old")
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        fusion.save_subspaces(path, known[1])
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["found.safetensors"]


def changed(path, about=None, **tensors):
    """Rewrite a file with other entries."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        kept = json.loads(file.metadata()["about"]) | (about or {})
    arrays = {name: values for name, values in (load_file(path) | tensors).items() if values is not None}
    save_file(arrays, path, metadata={"about": json.dumps(kept)})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: changed(path, {"version": 1}), "version 1, and this release reads version 2"),
        (lambda path: changed(path, {"kind": "a cake"}), "it holds something else"),
        (lambda path: changed(path, {"modalities": []}), "at least two modalities"),
        (
            lambda path: changed(path, **{"1.basis": torch.eye(3).double()}),
            r"1.basis must be .* got torch.float64",
        ),
        (
            lambda path: changed(path, **{"0.gates": torch.full((12,), torch.nan).double()}),
            "0.gates must be finite",
        ),
        (lambda path: changed(path, **{"coherence": None}), "not a file of subspaces"),
        (lambda path: path.write_bytes(path.read_bytes()[:500]), "not a file of subspaces"),
        (lambda path: torch.save({"a": torch.ones(2)}, path), "not a file of subspaces"),
        (lambda path: save_file({"a": torch.ones(2)}, path), "it holds something else"),
    ],
)
def test_other_files_are_refused(known, tmp_path, spoil, message):
    path = tmp_path / "found.safetensors"
    fusion.save_subspaces(path, known[1])
    spoil(path)
    with pytest.raises(ValueError, match=message) as error:
        fusion.load_subspaces(path)
    assert str(path) in str(error.value)


def test_paths_are_checked(known, tmp_path):
    with pytest.raises(ValueError, match=r"must end in .safetensors, got 'found.npz'"):
        fusion.save_subspaces(tmp_path / "found.npz", known[1])
    with pytest.raises(FileNotFoundError, match="no such file"):
        fusion.load_subspaces(tmp_path / "none.safetensors")
