"""What is recorded of a training, kept through a kill, and drawn."""

from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import pyplot

import fusion
from fusion.__main__ import main
from fusion.training_pictures import animate_training, plot_course, plot_training

matplotlib.use("agg")

DIMS = {"a": 6, "b": 5}
RECIPE = fusion.Recipe(epochs=3, extractor=8, hidden=8)
# A low voltage, so that channels are cheap to move.
CELL = {"voltage": 5.0, "permutations": 1}


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def features():
    made, _ = fusion.shared_private(300, DIMS, shared=2, private=2, noise=0.2, nonlinear=True)
    return made.with_split(0)


def cell(dims):
    return fusion.CellGMF(dims, memory=200, **CELL)


def trained(features, recorder, layer=cell, recipe=RECIPE, out=None, more=()):
    return fusion.train(layer, features, recipe=recipe, progress=False, out=out, callbacks=[recorder, *more])


@pytest.fixture(scope="module")
def recorder(features):
    recorder = fusion.MigrationRecorder()
    trained(features, recorder)
    return recorder


def test_what_is_recorded_is_what_a_dissociation_of_the_encoded_features_finds(features):
    recorder = fusion.MigrationRecorder(samples=100)
    # Encoders begin as the features themselves: at the usual rate three epochs move little.
    run = trained(features, recorder, recipe=replace(RECIPE, learning_rate=0.05))
    assert recorder.record.epochs == (0, 1, 2, 3)
    rows = torch.linspace(0, len(features.train) - 1, 100).long()
    encoded = run.model.vectors(*run.batch(features.train.rows(rows)))
    found = fusion.dissociate({name: values.detach() for name, values in encoded.items()}, **CELL)
    for name, one in found.channels.items():
        ions = recorder.record.ions(name, 3)
        torch.testing.assert_close(ions.predictability, one.predictability)
        torch.testing.assert_close(ions.gates, one.gates)
        assert ions.noise_level == one.noise_level
        before = recorder.record.ions(name, 0)
        assert (before.predictability - one.predictability).abs().max() > 0.02
        assert float(recorder.record.course(name).charge[3]) == pytest.approx(one.charge)


class Interrupt:
    """Stops a training after its second epoch."""

    def on_epoch(self, epoch, model, features):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize("recorded", [True, False])
def test_a_training_that_is_taken_up_again_keeps_its_record(features, recorder, tmp_path, recorded):
    path = tmp_path / "run" / "migration.npz"
    kept, stop = fusion.MigrationRecorder(path), Interrupt()
    # Killed before or after the record of the second epoch was written.
    callbacks = [kept, stop] if recorded else [stop, kept]
    with pytest.raises(KeyboardInterrupt):
        fusion.train(cell, features, recipe=RECIPE, progress=False, out=tmp_path, callbacks=callbacks)
    assert fusion.load_migration(path).epochs == ((0, 1, 2) if recorded else (0, 1))
    trained(features, fusion.MigrationRecorder(path), out=tmp_path)
    record = fusion.load_migration(path)
    assert record.epochs == recorder.record.epochs
    for name in DIMS:
        for key, values in vars(recorder.record.course(name)).items():
            assert torch.equal(getattr(record.course(name), key), values), key
    assert [one.name for one in path.parent.iterdir()] == ["migration.npz"]
    # Another training with the same recorder begins anew.
    trained(features, kept, recipe=replace(RECIPE, epochs=1))
    assert fusion.load_migration(path).epochs == (0, 1)


def test_any_layer_and_every_other_epoch(features):
    recorder = fusion.MigrationRecorder(every=2, **CELL)
    trained(features, recorder, layer="gmf")
    assert recorder.record.epochs == (0, 2)


def test_a_trained_basis_and_cell_are_recorded_as_they_are():
    made, _ = fusion.shared_private(300, DIMS, shared=2, private=2, noise=0.2, seed=1)
    layer = fusion.CellGMF(DIMS, form="rotation", train=["ground", "voltage"], **CELL)
    layer.fit(made.modalities)
    recorder = fusion.MigrationRecorder()
    recorder.add(0, made.modalities, layer=layer)
    with torch.no_grad():
        for maps in layer.maps.values():
            maps.ground_shift.fill_(0.5)
            maps.voltage_shift.fill_(-0.5)
    recorder.add(1, made.modalities, layer=layer)
    found = fusion.dissociate(made.modalities, **CELL)
    for name, one in found.channels.items():
        course = recorder.record.course(name)
        # The basis is not that of the eigenvectors, and the total charge does not know.
        assert (course.predictability[0] - one.predictability).abs().max() > 0.1
        torch.testing.assert_close(course.charge[0], torch.tensor(one.charge, dtype=torch.float64))
        torch.testing.assert_close(course.ground[1], torch.sigmoid(torch.tensor(0.5).double()))
        assert float(course.voltage[1]) == pytest.approx(5.0 * np.exp(-0.5))
        torch.testing.assert_close(recorder.record.ions(name, 1).gates, course.gates[1])
        assert (course.gates[1] != course.gates[0]).all()


def test_a_file_of_something_else_is_refused(recorder, tmp_path):
    path = tmp_path / "migration.npz"
    fusion.save_migration(path, recorder.record)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a record of a migration"):
        fusion.load_migration(path)
    np.savez(path, epochs=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match="not a record of a migration"):
        fusion.load_migration(path)
    np.savez(path, epochs=np.array([0]), modalities=np.array(["a"]))
    with pytest.raises(ValueError, match=r"0\.predictability.* is missing"):
        fusion.load_migration(path)
    with pytest.raises(FileNotFoundError):
        fusion.load_migration(tmp_path / "none.npz")
    for wrong in (fusion.MigrationRecorder, fusion.load_migration):
        with pytest.raises(ValueError, match=r"must end in \.npz, got 'x\.pt'"):
            wrong("x.pt")
    with pytest.raises(ValueError, match="every must be 1 or more, got 0"):
        fusion.MigrationRecorder(every=0)


def test_before_during_and_after_are_drawn_on_one_scale(recorder):
    axes = plot_training(recorder.record, "a")
    course = recorder.record.course("a")
    assert len(axes) == 3
    assert [ax.get_title().split("\n")[0] for ax in axes[::2]] == ["before training", "after epoch 3"]
    for ax, index in ((axes[0], 0), (axes[2], 3)):
        assert f"total charge {float(course.charge[index]):+.2f}" in ax.get_title()
        assert len(ax.get_lines()) == DIMS["a"] + 1  # and the ground
    assert len({ax.get_xlim() for ax in axes}) == 1
    assert axes[0].figure.axes[-1].get_ylabel() == "R² from the other modalities"
    with pytest.raises(ValueError, match=r"epoch must be one of those recorded, \[0, 1, 2, 3\], got 9"):
        plot_training(recorder.record, "a", epochs=[9])
    with pytest.raises(ValueError, match="needs an ax for each of 2 epochs, got 1"):
        plot_training(recorder.record, "a", epochs=[0, 3], axes=axes[:1])
    with pytest.raises(ValueError, match=r"modality must be one of \['a', 'b'\], got 'c'"):
        plot_training(recorder.record, "c")


def test_the_course_of_valences_is_drawn_and_filmed(recorder, tmp_path):
    course = recorder.record.course("b")
    ax = plot_course(recorder.record, "b")
    ends = [piece[-1].tolist() for piece in ax.collections[0].get_segments()]
    for value in course.valences[-1].tolist():
        assert [3.0, value] in ends
    assert ax.get_xlabel() == "epoch"
    animate_training(recorder.record, "b", tmp_path / "film.gif")
    assert (tmp_path / "film.gif").read_bytes()[:6] == b"GIF89a"
    with pytest.raises(ValueError, match=r"must end in \.gif or \.html"):
        animate_training(recorder.record, "b", tmp_path / "film.mp4")


def test_the_command_line_draws_what_a_training_recorded(features, tmp_path, capsys):
    fusion.save_features(tmp_path / "two.npz", features)
    run, out = tmp_path / "run", tmp_path / "out"
    command = ["train", str(tmp_path / "two.npz"), "--out", str(run), "--layer", "sum", "--epochs", "1"]
    assert main(command) == 0
    assert main(["migrate", str(run), "--out", str(out)]) == 2
    assert "train with --record-migration" in capsys.readouterr().err
    recorder = fusion.MigrationRecorder(run / "migration.npz", **CELL)
    recorder.add(0, features.modalities)
    recorder.add(1, features.modalities)
    assert main(["migrate", str(run), "--out", str(out), "--modalities", "b", "--films", "gif"]) == 0
    written = {"training_b.png", "course_b.png", "training_b.gif"}
    assert {file.name for file in out.iterdir()} == written
    assert main(["migrate", str(run), "--out", str(out), "--modalities", "c"]) == 2
    assert "modality must be one of ['a', 'b'], got 'c'" in capsys.readouterr().err
    assert main([*command, "--record-migration"]) == 0
    assert fusion.load_migration(run / "migration.npz").epochs == (0, 1)
