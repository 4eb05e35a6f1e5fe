"""Parquet, Arrow and Hugging Face folders give what their libraries hold, without those libraries."""

import importlib.util
import io
import json
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import Keys
from gapscope.measure.loading.datasets.tables import is_table_folder, read_table, read_table_folder

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NONE = Keys()
TABLE = {"a": [1, 2, 3], "b": [0.5, 1.5, 2.5], "label": [0, 1, 0]}


def write(path, columns):
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        opened = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
        with opened(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow", "t.feather"])
def test_numbers_are_features_side_by_side(tmp_path, name):
    pair = read_table(write(tmp_path / name, TABLE), NONE)
    assert pair.inputs.tolist() == [[1, 0.5], [2, 1.5], [3, 2.5]]
    assert pair.targets.tolist() == [0, 1, 0]
    chosen = read_table(tmp_path / name, Keys(("b",), "a"))
    assert (chosen.inputs.tolist(), chosen.targets.tolist()) == ([[0.5], [1.5], [2.5]], [1, 2, 3])
    assert not pair.pixels


def test_columns_that_are_not_asked_for_are_not_read(tmp_path):
    path = write(tmp_path / "t.parquet", {"a": [1.0, 2.0], "odd": [1, None], "y": [0, 1]})
    assert read_table(path, Keys(("a",))).inputs.tolist() == [[1], [2]]


def test_lists_are_vectors_and_of_differing_length_padded_tokens(tmp_path):
    long = pa.array([[1, 2], [3, 4], [5, 6]], pa.large_list(pa.float32()))
    assert read_table(write(tmp_path / "t.parquet", {"x": long, "y": [0, 1, 0]}), NONE).inputs.tolist()[2] == [5, 6]
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(range(12), pa.float32()), 4)
    square = pa.array([[[1, 2], [3, 4]]] * 3)
    pair = read_table(write(tmp_path / "t.parquet", {"x": fixed, "z": square, "y": [0, 1, 0]}), NONE)
    assert pair.inputs["x"].tolist()[2] == [8, 9, 10, 11]
    assert pair.inputs["z"].shape == (3, 2, 2)
    ragged = {"input_ids": [[1, 2], [3], [4]], "attention_mask": [[1, 1], [1], [1]], "label": [0, 1, 2]}
    pair = read_table(write(tmp_path / "t.arrow", ragged), NONE)
    assert pair.inputs["input_ids"].tolist() == [[1, 2], [3, 0], [4, 0]]
    assert pair.inputs["attention_mask"].tolist() == [[1, 1], [1, 0], [1, 0]]


def test_kinds_of_columns(tmp_path):
    columns = {
        "flag": [True, False],
        "small": pa.array([1, 2], pa.uint16()),
        "price": pa.array([1, 2], pa.decimal128(5, 2)),
        "remark": ["a", None],
        "day": pa.array([0, 1], pa.date32()),
        "class": pa.array(["dog", "cat"]).dictionary_encode(),
    }
    pair = read_table(write(tmp_path / "t.parquet", columns), NONE)
    assert pair.inputs.tolist() == [[1, 1, 1], [0, 2, 2]]
    assert (pair.targets.tolist(), pair.classes) == ([1, 0], ("cat", "dog"))
    assert "left out, not numbers: `remark`, `day`" in pair.notes[0]


def test_the_last_column_is_the_target_where_none_is_named_as_one(tmp_path):
    pair = read_table(write(tmp_path / "t.parquet", {"a": [1.0, 2.0], "species": ["u", "v"]}), NONE)
    assert (pair.inputs.tolist(), pair.targets.tolist(), pair.classes) == ([[1], [2]], [0, 1], ("u", "v"))
    pair = read_table(tmp_path / "t.parquet", Keys(("a",)))
    assert (pair.targets.tolist(), pair.classes) == ([0, 1], ("u", "v"))


def test_a_table_without_rows_has_no_samples(tmp_path):
    none = pa.array([], pa.float32())
    assert read_table(write(tmp_path / "t.parquet", {"a": none, "y": none}), NONE).inputs.shape == (0, 1)


def test_a_batch_without_rows_adds_none(tmp_path):
    table = pa.table({"x": [[1, 2], [3, 4]], "y": [0, 1]})
    with pa.ipc.new_stream(str(tmp_path / "t.arrow"), table.schema) as sink:
        sink.write_batch(pa.RecordBatch.from_pylist([], table.schema))
        sink.write_table(table)
    assert read_table(tmp_path / "t.arrow", NONE).inputs.tolist() == [[1, 2], [3, 4]]


def test_encoded_images_are_pixels(tmp_path):
    image = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    image.fromarray(np.full((2, 3, 3), 7, np.uint8)).save(file, "PNG")
    for row in ({"bytes": file.getvalue(), "path": None}, {"path": "a.png", "bytes": file.getvalue()}):
        pair = read_table(write(tmp_path / "t.parquet", {"image": [row] * 2, "label": [0, 1]}), NONE)
        assert pair.inputs.shape == (2, 3, 2, 3)
        assert pair.inputs.dtype == torch.uint8
        assert pair.pixels
    elsewhere = write(tmp_path / "u.parquet", {"image": [{"bytes": None, "path": "a.png"}], "label": [0]})
    with pytest.raises(LoadError, match=r"`image`, row 0 names an image elsewhere. Expected its bytes: save"):
        read_table(elsewhere, NONE)


def test_pictures_are_measured_by_their_pixels_before_all_are_unpacked(tmp_path, monkeypatch):
    file = io.BytesIO()
    pytest.importorskip("PIL.Image").new("RGB", (100, 100)).save(file, "PNG")
    rows = [{"bytes": file.getvalue(), "path": None}] * 2
    path = write(tmp_path / "t.parquet", {"image": rows, "label": [0, 1]})
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 200_000)
    with pytest.raises(LoadError, match=r"`image` takes 0.000224 GiB. Expected at most"):  # as floats
        read_table(path, NONE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1, None], "y": [0, 1]}, "`a` has 1 missing values. Expected none: fill or remove them."),
        ({"a": [1, 2], "y": ["u", None]}, "`y` has 1 missing values"),
        ({"a": [[1, None], [1, 2]], "y": [0, 1]}, "`a` has missing values inside its lists"),
        ({"a": [[[1], [1, 2]]], "y": [0]}, "`a` has lists of differing lengths inside lists. Expected one shape"),
        ({"a": [[1], [1, 2]], "y": [0, 1]}, "`a`: samples differ in shape ((1,), (2,))"),
        ({"a": ["u"], "y": [0]}, "`a` holds no numbers"),
        ({}, "has no columns, and none is called `y`"),
        ({"a": [{"bytes": b"u", "size": 1}], "y": [0]}, "`a` holds no numbers"),
    ],
)
def test_what_gives_no_samples_says_why(tmp_path, columns, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        read_table(write(tmp_path / "t.parquet", columns), NONE)


def test_columns_of_one_name_are_refused(tmp_path):
    table = pa.table([[1], [2]], names=["a", "a"])
    with pytest.raises(LoadError, match=r"has two columns of one name: a, a. Expected different names."):
        read_table(write(tmp_path / "t.arrow", table), NONE)


def test_damaged_files_say_so(tmp_path):
    for name in ("t.parquet", "t.arrow", "t.feather"):
        path = write(tmp_path / name, {"a": list(range(1000)), "y": list(range(1000))})
        path.write_bytes(path.read_bytes()[:-600])
        with pytest.raises(LoadError, match=r"is damaged \(Arrow.*Copy or write it again"):
            read_table(path, NONE)


def test_a_pointer_to_a_file_is_not_the_file(tmp_path):
    (tmp_path / "t.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    with pytest.raises(LoadError, match=r"is a Git LFS pointer, not the data themselves. Fetch them: `git lfs pull`."):
        read_table(tmp_path / "t.parquet", NONE)


def test_offsets_that_lead_out_of_the_file_are_refused(tmp_path):
    path = write(tmp_path / "t.arrow", {"a": [1], "y": ["u" * 77]})
    content, offsets = path.read_bytes(), struct.pack("<2i", 0, 77)
    at = content.rindex(offsets, 0, content.index(b"u" * 77))  # the header holds such numbers as well
    path.write_bytes(content[:at] + struct.pack("<2i", 0, 2**30) + content[at + 8 :])
    with pytest.raises(LoadError, match=r"is damaged \(ArrowInvalid"):
        read_table(path, NONE)


@pytest.mark.parametrize(
    ("value", "kind", "taken"),
    [
        (0, pa.int64(), "0.00149"),  # two columns of 8 bytes
        (0, pa.int32(), "0.000745"),
        (0, pa.float32(), "0.000745"),
        (False, pa.bool_(), "0.000186"),
        ("x", pa.string(), "0.000745"),
        (b"x" * 100, pa.binary(100), "0.0186"),
    ],
)
def test_a_run_that_memory_cannot_hold_is_refused_before_it_is_read(tmp_path, monkeypatch, value, kind, taken):
    column = pa.array([value] * 100_000, kind)
    path = write(tmp_path / "t.parquet", {"a": column, "y": column})
    assert path.stat().st_size < 5000
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 100_000)
    with pytest.raises(LoadError, match=rf"takes {taken} GiB. Expected at most"):
        read_table(path, NONE)


def test_runs_inside_of_lists_are_counted_too(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet", {"a": [[0] * 1000] * 100, "y": [0] * 100})
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 100_000)
    with pytest.raises(LoadError, match=rf"^{re.escape(str(path))} takes 0.000746 GiB. Expected at most"):
        read_table(path, NONE)


def test_texts_that_are_repeated_are_counted_as_they_are_unpacked(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet", {"a": ["x" * 10_000] * 5000, "y": [0] * 5000})
    assert path.stat().st_size < 20_000
    assert len(read_table(path, Keys(("y",), "y")).targets) == 5000
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 1_000_000)
    with pytest.raises(LoadError, match=r"takes 0.0095\d GiB. Expected at most"):  # the first 1,024
        read_table(path, NONE)


@pytest.mark.parametrize("name", ["t.arrow", "t.feather"])
def test_packed_batches_are_unpacked_no_further_than_memory_holds_them(tmp_path, monkeypatch, name):
    path, table = tmp_path / name, pa.table({"a": [0] * 10_000, "y": [0] * 10_000})
    opened = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
    with opened(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as sink:
        sink.write_table(table, max_chunksize=1000)
    assert read_table(path, NONE).inputs.shape == (10_000, 1)
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 20_000)
    # the second of ten batches of twice 8,000 bytes is the last that was unpacked
    with pytest.raises(LoadError, match=rf"^{re.escape(str(path))} takes 2.98e-05 GiB. Expected at most"):
        read_table(path, NONE)


def test_a_column_is_measured_before_its_numbers_are_copied(tmp_path, monkeypatch):
    for i in range(4):
        write(tmp_path / f"train-{i}.parquet", {"a": np.arange(2000.0), "y": [0] * 2000})
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 60_000)
    monkeypatch.setattr("gapscope.measure.loading.datasets.tables.to_tensor", lambda *_: pytest.fail("was copied"))
    with pytest.raises(LoadError, match=r"`a` takes \S+ GiB. Expected at most"):
        read_table_folder(tmp_path, "train", NONE, whole=False)


def test_parquet_files_in_a_folder_are_named_after_their_split(tmp_path):
    (tmp_path / "data").mkdir()
    assert not is_table_folder(tmp_path)
    for name in ("train-0", "train-1", "test-0"):
        write(tmp_path / "data" / f"{name}.parquet", TABLE)
    assert is_table_folder(tmp_path)
    assert len(read_table_folder(tmp_path, "train", NONE, whole=False).targets) == 6
    assert len(read_table_folder(tmp_path, "test", NONE, whole=False).targets) == 3
    for name in ("train-0", "train-1"):
        (tmp_path / "data" / f"{name}.parquet").unlink()
    with pytest.raises(LoadError, match=r"has no train files, but test-0.parquet. Expected names like `train-0.parq"):
        read_table_folder(tmp_path, "train", NONE, whole=False)
    (tmp_path / "data" / "test-0.parquet").rename(tmp_path / "data" / "all.parquet")
    assert len(read_table_folder(tmp_path, "train", NONE, whole=False).targets) == 3
    assert read_table_folder(tmp_path, "test", NONE, whole=False) is None
    assert len(read_table_folder(tmp_path, "test", NONE, whole=True).targets) == 3
    write(tmp_path / "data" / "more.parquet", {"other": [1]})
    with pytest.raises(LoadError, match=r"its files do not fit together \(Arrow"):
        read_table_folder(tmp_path, "train", NONE, whole=False)


def test_the_test_split_of_a_folder_is_one_part_and_the_files_that_were_read_are_named(tmp_path):
    for name, label in (("test-0", 0), ("valid-0", 1), ("validation-0", 2), ("validation-1", 3)):
        write(tmp_path / f"{name}.parquet", {"a": [1.0], "label": [label]})
    pair = read_table_folder(tmp_path, "test", NONE, whole=False)
    assert pair.targets.tolist() == [0]
    assert pair.notes[0] == f"data: {tmp_path}: read from test-0.parquet"
    (tmp_path / "test-0.parquet").unlink()
    pair = read_table_folder(tmp_path, "test", NONE, whole=False)
    assert pair.targets.tolist() == [2, 3]
    assert pair.notes[0] == f"data: {tmp_path}: read from validation-0.parquet, validation-1.parquet"
    named = ", ".join(f"train-{i}.parquet" for i in range(4))
    for i in range(6):
        write(tmp_path / f"train-{i}.parquet", {"a": [1.0], "label": [i]})
        if i == 3:
            assert read_table_folder(tmp_path, "train", NONE, whole=False).notes[0].endswith(f": read from {named}")
    assert read_table_folder(tmp_path, "train", NONE, whole=False).notes[0].endswith(f": read from {named} and 2 more")


# in a process of its own, as datasets teaches pyarrow its types when it is imported
SAVE = """
import numpy as np
from PIL import Image
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, Image as Picture
rows = {"input_ids": [[1, 2], [3], [4]], "attention_mask": [[1, 1], [1], [1]], "text": ["a", "b", "c"]}
rows |= {"idx": [0, 1, 2], "label": [0, 1, 1]}
Dataset.from_dict(rows).shuffle(seed=1).select([0, 2]).save_to_disk("tokens")
shown = Dataset.from_dict({"a": [1.0, 2.0], "b": [3.0, 4.0], "y": [0, 1]}).with_format("torch", columns=["a", "y"])
shown.save_to_disk("shown")
kinds = Features({"image": Picture(), "extra": Array2D((2, 2), "float32"), "label": ClassLabel(names=["u", "v"])})
images = {"image": [Image.fromarray(np.full((2, 3, 3), i, np.uint8)) for i in (1, 2)], "label": [0, 1]}
images |= {"extra": [np.ones((2, 2))] * 2}
both = Dataset.from_dict(images, features=kinds)
DatasetDict({"train": both, "validation": both.select([1])}).save_to_disk("images")
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    if not all(map(importlib.util.find_spec, ("datasets", "PIL"))):
        pytest.skip("takes the library that writes such folders")
    folder = tmp_path_factory.mktemp("saved")
    done = subprocess.run([sys.executable, "-c", SAVE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_a_folder_of_datasets_reads_as_it_was_saved(saved):
    pair = read_table_folder(saved / "tokens", "train", NONE, whole=False)
    assert list(pair.inputs) == ["input_ids", "attention_mask"]
    assert pair.inputs["input_ids"].shape == (2, int(pair.inputs["attention_mask"].sum(1).max()))
    assert len(pair.targets) == 2
    assert "left out, not numbers: `text`" in pair.notes[0]
    assert read_table_folder(saved / "tokens", "test", NONE, whole=False) is None
    assert read_table_folder(saved / "shown", "train", NONE, whole=False).inputs.tolist() == [[1], [2]]


def test_a_folder_of_splits_has_a_test_split(saved):
    keys = Keys(("image",))
    train, test = (read_table_folder(saved / "images", split, keys, whole=False) for split in ("train", "test"))
    assert train.inputs[:, :, 0, 0].tolist() == [[1, 1, 1], [2, 2, 2]]
    assert (test.inputs[0, 0, 0, 0], test.targets.tolist()) == (2, [1])
    assert read_table_folder(saved / "images", "train", Keys(("extra",)), whole=False).inputs.shape == (2, 2, 2)


@pytest.mark.filterwarnings("ignore")
def test_types_that_datasets_teaches_pyarrow_are_read_too(saved):
    pytest.importorskip("datasets")
    pair = read_table_folder(saved / "images", "train", Keys(("extra",)), whole=False)
    assert pair.inputs.tolist() == [[[1, 1], [1, 1]]] * 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dataset_dict.json", {"splits": ["dev"]}, "has the splits dev. Expected train: name the folder of one, `"),
        ("dataset_dict.json", {"splits": 3}, "dataset_dict.json has no `splits`. Expected a folder that `datasets`"),
        ("dataset_dict.json", {"splits": ["train"]}, "train/state.json has no `_data_files`"),
        ("state.json", [], "state.json has no `_data_files`"),
        ("state.json", {"_data_files": []}, "names no data files. Expected at least one"),
        ("state.json", {"_data_files": [{"filename": "../x.arrow"}]}, "names the file '../x.arrow'. Expected files of"),
        ("state.json", {"_data_files": [{"filename": "x.arrow"}]}, "x.arrow is damaged (FileNotFoundError"),
        ("state.json", {"_data_files": ["x"]}, "names the file None"),
    ],
)
def test_a_damaged_folder_says_why(tmp_path, name, content, message):
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(LoadError, match=re.escape(message)):
        read_table_folder(tmp_path, "train", NONE, whole=False)


def test_splits_without_a_test_split_have_none(tmp_path):
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    assert read_table_folder(tmp_path, "test", NONE, whole=False) is None
    with pytest.raises(LoadError, match=r"has the splits train. Expected test or .*: name the folder of one, `"):
        read_table_folder(tmp_path, "test", NONE, whole=True)


def test_without_pyarrow_the_command_that_installs_it_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "t.parquet", TABLE)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LoadError, match=r"takes pyarrow, which is not installed. `pip install pyarrow`."):
        read_table(path, NONE)
