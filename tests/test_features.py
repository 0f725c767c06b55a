"""Features in memory and in files: what is accepted, and what every malformation is told."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from fusion.data.feature_file import load_features, save_features
from fusion.data.features import Features


def valid(**changes):
    """Arrays of a sound feature file of eight samples, some of them replaced; None leaves one out."""
    generator = np.random.default_rng(0)
    arrays = {
        "audio": generator.normal(size=(8, 3)),
        "video": generator.normal(size=(8, 5, 4)).astype(np.float32),
        "video_length": np.array([1, 2, 3, 4, 5, 5, 5, 5]),
        "label": np.array([0, 1, 2, 0, 1, 2, 0, 1]),
        "split": np.array([0, 0, 0, 0, 1, 1, 2, 2]),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.fixture
def load(tmp_path):
    """Write arrays to a file and read it again."""

    def load(arrays, **options):
        np.savez(tmp_path / "features.npz", **arrays)
        return load_features(tmp_path / "features.npz", **options)

    return load


def with_nan(shape, *positions):
    values = np.zeros(shape)
    for position in positions:
        values[position] = np.nan
    return values


def test_a_sound_file_arrives_as_it_was_written(load):
    arrays = valid()
    features = load(arrays)
    assert features.dims == {"audio": 3, "video": 4}
    assert len(features) == 8
    assert features.task == "classification"
    assert features.classes == 3
    assert features.modalities["audio"].dtype == torch.float64
    assert features.modalities["video"].dtype == torch.float32
    valid_steps = np.arange(5) < arrays["video_length"][:, None]
    padded_with_zeros = np.where(valid_steps[..., None], arrays["video"], 0)
    np.testing.assert_array_equal(features.modalities["video"], padded_with_zeros)
    np.testing.assert_array_equal(features.lengths["video"], arrays["video_length"])
    np.testing.assert_array_equal(features.label, arrays["label"])
    np.testing.assert_array_equal(features.split, arrays["split"])


@pytest.mark.parametrize("dtype", ["uint8", "int32", "bool", "float16", ">f4", "uint16"])
def test_other_numeric_types_become_float32(load, dtype):
    audio = np.arange(24).reshape(8, 3).astype(dtype)
    read = load(valid(audio=audio)).modalities["audio"]
    assert read.dtype == torch.float32
    np.testing.assert_array_equal(read, audio.astype(np.float32))


def test_modalities_are_selected_and_ordered(load):
    arrays = valid(text=np.ones((8, 2)))
    assert list(load(arrays, modalities=["text", "audio"]).dims) == ["text", "audio"]
    # One that is not asked for may be anything.
    broken = valid(text=with_nan((8, 2), (0, 0)), objects=np.array([{}] * 8))
    assert list(load(broken, modalities=["video", "audio"]).dims) == ["video", "audio"]


def test_texts_are_notes(load):
    arrays = valid(names=np.array(["audio", "video"]), licence=np.array("CC BY 4.0"))
    assert list(load(arrays).dims) == ["audio", "video"]


def test_label_may_be_floats_or_absent(load):
    floats = load(valid(label=np.linspace(0, 1, 8)))
    assert (floats.task, floats.classes) == ("regression", None)
    nothing = load(valid(label=None))
    assert (nothing.task, nothing.classes, nothing.label) == (None, None, None)


MALFORMED = {
    "no modality": (
        {"audio": None, "video": None, "video_length": None},
        "no modality: at least one array",
    ),
    "unequal counts": (
        {"audio": np.ones((7, 3))},
        "must have the same number of samples, got 'audio' 7, 'video' 8",
    ),
    "one NaN": (
        {"audio": with_nan((8, 3), (2, 1), (5, 0))},
        r"'audio' must be finite, got 2 values that are NaN or infinite, the first \(nan\) at \(2, 1\)",
    ),
    "infinity": ({"audio": np.full((8, 3), np.inf)}, r"got 24 values .* the first \(inf\) at \(0, 0\)"),
    "NaN in a valid step": (
        {"video": with_nan((8, 5, 4), (2, 2, 3), (0, 4, 0))},
        r"'video' must be finite, got 1 values .* at \(2, 2, 3\)",
    ),
    "objects": ({"audio": np.array([[{}]] * 8)}, "'audio' must be numeric, got Python objects .a pickle"),
    "one axis": ({"audio": np.ones(8)}, r"'audio' must have the shape \(N, l\) or \(N, T, l\), got \(8,\)"),
    "four axes": ({"audio": np.ones((8, 2, 2, 2))}, r"got \(8, 2, 2, 2\)"),
    "no channel": ({"audio": np.ones((8, 0))}, r"'audio' must not be empty, got the shape \(8, 0\)"),
    "texts": ({"audio": np.full((8, 3), "x")}, r"'audio' must be numeric \(integers or floats\), got <U1"),
    "complex": ({"audio": np.full((8, 3), 1j)}, "'audio' must be numeric .* got complex128"),
    "short label": ({"label": np.zeros(7, int)}, r"label must have .* each of the 8 samples, got \(7,\)"),
    "two-dimensional label": ({"label": np.zeros((8, 2), int)}, r"label must have .* got \(8, 2\)"),
    "text label": ({"label": np.array(list("abcdefgh"))}, "'label' must be numeric .* got <U1"),
    "negative class": (
        {"label": np.array([0, 1, -1, 0, 0, 0, 0, 0])},
        "label must be 0 or more, got -1 at sample 2",
    ),
    "NaN label": ({"label": with_nan(8, 3)}, "label must be finite, got nan at sample 3"),
    "unknown split": (
        {"split": np.array([0, 0, 0, 0, 1, 1, 3, 2])},
        "split must be between 0 and 2, got 3 at sample 6",
    ),
    "no training": ({"split": np.full(8, 2)}, r"split must have training samples \(value 0\), got none"),
    "float split": ({"split": np.zeros(8)}, "split must hold integers, got torch.float64"),
    "short split": ({"split": np.zeros(9, int)}, r"split must have the shape \(N,\) .* got \(9,\)"),
    "long length": (
        {"video_length": np.array([1, 2, 3, 6, 5, 5, 5, 5])},
        "video_length must be between 1 and 5, got 6 at sample 3",
    ),
    "zero length": ({"video_length": np.zeros(8, int)}, "video_length must be between 1 and 5, got 0"),
    "short length": ({"video_length": np.ones(3, int)}, r"video_length must have .* got \(3,\)"),
    "length of no sequence": (
        {"audio_length": np.ones(8, int)},
        r"audio_length needs a modality 'audio' that is a sequence",
    ),
}


@pytest.mark.parametrize(("changes", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_malformation_is_named(load, changes, message):
    with pytest.raises(ValueError, match=f"features.npz: .*{message}"):
        load(valid(**changes))


@pytest.mark.parametrize("wanted", [["audio", "smell"], [], ["audio", "audio"]])
def test_modalities_asked_for_must_be_there(load, wanted):
    with pytest.raises(ValueError, match="modalities must be distinct names out of audio, video, got"):
        load(valid(), modalities=wanted)


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz: no such file"):
        load_features(tmp_path / "nothing.npz")


def test_another_suffix(tmp_path):
    (tmp_path / "features.csv").write_text("1,2")
    with pytest.raises(ValueError, match=r"must end in \.npz or \.safetensors, got 'features\.csv'"):
        load_features(tmp_path / "features.csv")


@pytest.mark.parametrize("content", [b"", b"hello world, this is no archive", "truncated"])
def test_not_an_archive(tmp_path, content):
    path = tmp_path / "features.npz"
    np.savez(path, **valid())
    path.write_bytes(path.read_bytes()[:400] if content == "truncated" else content)
    with pytest.raises(ValueError, match=r"features\.npz: not an npz archive"):
        load_features(path)


def test_single_array_is_no_archive(tmp_path):
    with (tmp_path / "features.npz").open("wb") as file:
        np.save(file, np.ones((8, 3)))
    with pytest.raises(ValueError, match="not an npz archive"):
        load_features(tmp_path / "features.npz")


def test_damaged_array_is_named(tmp_path):
    path = tmp_path / "features.npz"
    np.savez(path, audio=np.ones((8, 3)), video=np.zeros((8, 4)))
    content = bytearray(path.read_bytes())
    content[content.find(b"\x93NUMPY") + 140] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="array 'audio' is damaged and cannot be read"):
        load_features(path)


def test_pickles_are_never_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    np.savez(tmp_path / "features.npz", audio=np.array([Payload()] * 8), label=np.zeros(8, int))
    with pytest.raises(ValueError, match="never read"):
        load_features(tmp_path / "features.npz")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_writing_and_reading_is_the_identity(tmp_path, load, suffix):
    features = load(valid())
    path = tmp_path / f"copy{suffix}"
    save_features(path, features)
    copy = load_features(path, modalities=["audio", "video"])
    for name in features.modalities:
        assert torch.equal(copy.modalities[name], features.modalities[name])
        assert copy.modalities[name].dtype == features.modalities[name].dtype
    assert torch.equal(copy.lengths["video"], features.lengths["video"])
    assert torch.equal(copy.label, features.label)
    assert torch.equal(copy.split, features.split)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, load, monkeypatch):
    features, path = load(valid()), tmp_path / "features.npz"
    before = path.read_bytes()

    def half_written(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", half_written)
    with pytest.raises(OSError, match="disk full"):
        save_features(path, features)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["features.npz"]


def test_a_modality_named_like_something_else_cannot_be_written(tmp_path):
    features = Features({"label": torch.ones(4, 2), "audio": torch.ones(4, 2)})
    with pytest.raises(ValueError, match="a modality cannot be named 'label'"):
        save_features(tmp_path / "features.npz", features)


def test_damaged_safetensors(tmp_path):
    path = tmp_path / "features.safetensors"
    path.write_bytes(b"not at all")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_features(path)


def test_safetensors_may_hold_half_precision(tmp_path):
    path = tmp_path / "features.safetensors"
    save_file({"audio": torch.ones(4, 3, dtype=torch.bfloat16), "label": torch.ones(4).byte()}, path)
    features = load_features(path)
    assert features.modalities["audio"].dtype == torch.float32
    assert features.label.dtype == torch.int64


def test_parts_of_the_split(load):
    features = load(valid())
    assert [len(features.subset(part)) for part in ("train", "validation", "test")] == [4, 2, 2]
    assert torch.equal(features.test.modalities["audio"], features.modalities["audio"][6:])
    assert torch.equal(features.test.lengths["video"], features.lengths["video"][6:])
    assert torch.equal(features.validation.label, features.label[4:6])
    with pytest.raises(ValueError, match="part must be one of train, validation, test, got 'training'"):
        features.subset("training")


def test_missing_split_and_missing_part(load):
    with pytest.raises(ValueError, match="features have no split"):
        load(valid(split=None)).train  # noqa: B018
    only_training = load(valid(split=np.zeros(8, int)))
    assert not only_training.has("test")
    with pytest.raises(ValueError, match=r"split has no test samples \(value 2\)"):
        only_training.test  # noqa: B018


def test_random_split_is_stratified_and_seeded():
    label = torch.arange(10).repeat(50)[:430]  # 43 samples a class
    features = Features({"a": torch.randn(430, 2)}, label=label)
    split = features.with_split(3).split
    for digit in range(10):
        counts = split[label == digit].bincount(minlength=3).tolist()
        assert counts == [26, 8, 9]
    assert torch.equal(split, features.with_split(3).split)
    assert not torch.equal(split, features.with_split(4).split)


def test_random_split_leaves_no_class_without_training_samples():
    features = Features({"a": torch.randn(6, 2)}, label=torch.tensor([0, 1, 1, 2, 2, 2]))
    split = features.with_split(0).split
    assert all(bool((split[features.label == label] == 0).any()) for label in range(3))


def test_random_split_without_classes_is_sixty_twenty_twenty():
    features = Features({"a": torch.randn(200, 2)}, label=torch.rand(200))
    assert features.with_split(0).split.bincount().tolist() == [120, 40, 40]


def test_own_split_stays(load):
    features = load(valid())
    assert features.with_split(5) is features


def test_pooling_is_the_mean_of_valid_steps():
    values = torch.randn(3, 4, 2)
    values[0, 2:] = torch.nan  # padding may hold anything
    features = Features({"s": values, "a": torch.ones(3, 5)}, {"s": torch.tensor([2, 4, 1])}).pooled()
    expected = torch.stack([values[0, :2].mean(0), values[1].mean(0), values[2, 0]])
    torch.testing.assert_close(features.modalities["s"], expected)
    assert features.dims == {"s": 2, "a": 5}
    assert features.lengths == {}
    assert features.steps == {}


def test_pooling_without_lengths_is_the_mean_of_all_steps():
    values = torch.randn(3, 4, 2)
    features = Features({"s": values})
    assert features.steps["s"].tolist() == [4, 4, 4]
    torch.testing.assert_close(features.pooled().modalities["s"], values.mean(1))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_who_has_what_is_kept_in_files(tmp_path, load, suffix):
    gaps = np.array([1, 1, 0, 1, 0, 1, 1, 1])
    arrays = valid(audio=with_nan((8, 3), 2, 4), audio_present=gaps.astype(bool), video_present=gaps[::-1])
    features = load(arrays)
    assert list(features.modalities) == ["audio", "video"]
    assert features.present["audio"].tolist() == gaps.astype(bool).tolist()
    assert (features.modalities["audio"][[2, 4]] == 0).all()
    save_features(tmp_path / f"again.{suffix}", features)
    again = load_features(tmp_path / f"again.{suffix}")
    for name in ("audio", "video"):
        assert torch.equal(again.present[name], features.present[name])
        assert torch.equal(again.modalities[name], features.modalities[name])


def test_who_has_what_follows_the_samples(load):
    gaps = np.array([1, 1, 0, 1, 0, 1, 1, 1], dtype=bool)
    features = load(valid(audio_present=gaps))
    assert features.train.present["audio"].tolist() == [True, True, False, True]
    assert features.rows(torch.tensor([4, 0])).present["audio"].tolist() == [False, True]
    assert features.pooled().to("cpu").with_split(1).present["audio"].tolist() == gaps.tolist()
    assert features.select(["video"]).present == {}
    with pytest.raises(ValueError, match=r"at least one modality, got 2 without any, the first sample 2"):
        features.select(["audio"])


def test_the_length_of_a_sequence_that_is_absent_does_not_matter(load):
    gaps = np.array([1, 1, 0, 1, 1, 1, 1, 1], dtype=bool)
    lengths = np.array([1, 2, 0, 4, 5, 5, 5, 5])
    assert load(valid(video_present=gaps, video_length=lengths)).lengths["video"].tolist() == [
        1,
        2,
        1,
        4,
        5,
        5,
        5,
        5,
    ]
    with pytest.raises(ValueError, match="video_length must be between 1 and 5, got 0 at sample 2"):
        load(valid(video_length=lengths))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio_present": np.ones(7, bool)}, r"audio_present must have the shape \(N,\)"),
        ({"audio_present": np.full(8, 2)}, "audio_present must be between 0 and 1, got 2 at sample 0"),
        ({"audio_present": np.ones(8)}, "audio_present must hold integers, got torch.float64"),
    ],
)
def test_presence_that_cannot_be(load, changes, message):
    with pytest.raises(ValueError, match=message):
        load(valid(**changes))
