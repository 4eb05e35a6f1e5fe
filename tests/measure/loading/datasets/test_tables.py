"""Parquet, Arrow and Hugging Face folders give what their libraries hold, without those libraries."""

import base64
import importlib.util
import io
import json
import re
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import Keys
from gapscope.measure.loading.datasets.data import load_data
from gapscope.measure.loading.datasets.tables import is_table_folder, read_table, read_table_folder
from gapscope.measure.loading.trust import Trust

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
    empty = pa.array([[], []], pa.list_(pa.list_(pa.float32())))
    assert read_table(write(tmp_path / "t.parquet", {"x": empty, "y": [0, 1]}), NONE).inputs.shape == (2, 0, 0)
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
    columns = {"a": [1.0, 2.0], "b": [3.0, 4.0], "species": ["u", "v"]}
    pair = read_table(write(tmp_path / "t.parquet", columns), NONE)
    assert (pair.inputs.tolist(), pair.targets.tolist(), pair.classes) == ([[1, 3], [2, 4]], [0, 1], ("u", "v"))
    pair = read_table(tmp_path / "t.parquet", Keys(("a",)))
    assert (pair.targets.tolist(), pair.classes) == ([0, 1], ("u", "v"))


def test_a_table_without_rows_has_no_samples(tmp_path):
    none = pa.array([], pa.float32())
    assert read_table(write(tmp_path / "t.parquet", {"a": none, "y": none}), NONE).inputs.shape == (0, 1)
    pictures = pa.array([], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    for column in (none.cast(pa.string()), none.cast(pa.string()).dictionary_encode(), pictures):
        for columns in ({"a": none, "y": column}, {"a": column, "y": none}):
            assert len(read_table(write(tmp_path / "t.parquet", columns), NONE).targets) == 0


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
        ({"a": [{"path": "u", "size": 1}], "y": [0]}, "`a` holds no numbers"),
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


def test_a_footer_that_would_end_pyarrow_s_process_is_damage(tmp_path):
    damaged = (
        "c-oawy=ucS5I!kFHQ6$pkU)cnMmXSvrr^@SP}-qWhtRo;34#Rj<JfLXUZrD)K1Uy^kI;)+<3PJaobHa3?)&a%cKbL*K#Mj-PL4!rbp+vj-E^LU<e"
        "%tZK!zVKYeR&QVDc9Xpz}Jg<7fx=qkHWG3iFhKmi2t$*98i|{yEpIfQ<B>nB+rF-!h@aYFRhPDPzd>nP2&}-!!1Ou_kq3v2TVF45cCk)f*#mQGQat"
        "#!_QI9QjBZ7b-m<i-3I1_MwE9I?#MD68FyXlSXmG<2ac6-`S{7uDFZHKoXZlwR`r>cwUy{qN=v9@r$qO<#rQaUQI40Q<GW%61b!F%xKf!z8*Te"
    )
    (tmp_path / "t.parquet").write_bytes(zlib.decompress(base64.b85decode(damaged)))
    with pytest.raises(LoadError, match=r"t.parquet is damaged \("):
        read_table(tmp_path / "t.parquet", NONE)


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
    with pytest.raises(LoadError, match=r"takes 0.0018\d GiB. Expected at most"):  # twice 99, which fit
        read_table(path, NONE)


@pytest.mark.parametrize("name", ["t.arrow", "t.feather"])
def test_packed_batches_that_memory_cannot_hold_are_not_unpacked(tmp_path, monkeypatch, pool, name):
    path, table = tmp_path / name, pa.table({"a": np.zeros(10_000_000, np.int8), "y": np.zeros(10_000_000, np.int8)})
    opened = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
    with opened(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as sink:
        sink.write_table(table)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 19_999_999)
    used = pool.max_memory()
    with pytest.raises(LoadError, match=rf"^{re.escape(str(path))} takes 0.0186 GiB. Expected at most"):
        read_table(path, NONE)
    assert pool.max_memory() < used + 1_000_000


def test_a_long_text_that_every_row_names_is_held_once(tmp_path, pool):
    texts = pa.array(["x" * 1_000_000, "y"])
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 2999 + [1], pa.int8()), texts)
    path = write(tmp_path / "t.feather", {"a": np.zeros(3000), "b": names, "y": names})
    used = pool.max_memory()
    pair = read_table(path, NONE)
    assert pair.targets.tolist() == [0] * 2999 + [1]
    assert pair.notes[0].endswith("left out, not numbers: `b`")
    assert pool.max_memory() <= used + 1_000_000  # 3 GB if each row held its own


def test_texts_of_all_widths_are_classes(tmp_path):
    names = ["v", "u", "v"]
    kinds = [pa.string(), pa.large_string(), pa.string_view()]
    views = pa.DictionaryArray.from_arrays(pa.array([1, 0, 1]), pa.array(["u", "v"], pa.string_view()))
    for i, column in enumerate(
        [*(pa.array(names, kind) for kind in kinds), pa.array(names).dictionary_encode(), views]
    ):
        pair = read_table(write(tmp_path / f"{i}.feather", {"a": [1, 2, 3], "y": column}), NONE)
        assert (pair.targets.tolist(), pair.classes) == ([1, 0, 1], ("u", "v"))
    missing = pa.DictionaryArray.from_arrays(pa.array([0, 1, None]), pa.array(["u", None]))
    with pytest.raises(LoadError, match=r"`y` has 2 missing values. Expected none: fill or remove them."):
        read_table(write(tmp_path / "missing.arrow", {"a": [1, 2, 3], "y": missing}), NONE)


@pytest.mark.parametrize("name", ["t.parquet", "t.arrow"])
@pytest.mark.parametrize("kind", [pa.string(), pa.dictionary(pa.int8(), pa.string()), pa.int64()], ids=str)
def test_no_rows_are_no_samples_whatever_the_target_is(tmp_path, name, kind):
    path = write(tmp_path / name, {"a": pa.array([], pa.float64()), "y": pa.array([], kind)})
    with pytest.raises(LoadError, match=rf"{name} has no samples. Expected at least one."):
        load_data(str(path), "train", recorded=False, trust=Trust())


def test_a_table_without_a_group_of_rows_has_no_samples(tmp_path):
    path = tmp_path / "t.parquet"
    pq.ParquetWriter(path, pa.schema({"a": pa.float64(), "y": pa.string()})).close()
    with pytest.raises(LoadError, match=r"t.parquet has no samples. Expected at least one."):
        load_data(str(path), "train", recorded=False, trust=Trust())


def test_numbers_under_the_keys_of_a_dictionary_are_numbers(tmp_path):
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([5, 7]))
    pair = read_table(write(tmp_path / "t.arrow", {"a": column, "y": column}), NONE)
    assert (pair.inputs.tolist(), pair.targets.tolist()) == ([[5], [7], [5]], [5, 7, 5])


@pytest.mark.parametrize(
    "column",
    [
        pa.array([1, None, 3], pa.date32()),
        pa.array([b"a", b"b", None]),
        pa.array([["u"], ["v"], ["u"]]),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 0]), pa.array([[5, 6], [7, 8]])),
        pa.RunEndEncodedArray.from_arrays([1, 3], [4, 5]),
        pa.nulls(3),
    ],
    ids=lambda column: str(column.type)[:12],
)
def test_what_is_neither_numbers_nor_text_is_no_class_and_left_out_as_an_input(tmp_path, column):
    path = write(tmp_path / "t.arrow", {"a": [1, 2, 3], "b": column, "y": [0, 1, 0]})
    pair = read_table(path, NONE)
    assert pair.inputs.tolist() == [[1], [2], [3]]
    assert pair.notes[0].endswith("left out, not numbers: `b`")
    with pytest.raises(LoadError, match=rf"`b` holds {re.escape(str(column.type))}, which is neither numbers nor text"):
        read_table(path, Keys(("a",), "b"))


# written by polars 2.1: columns a, b and y, packed by LZ4, and with texts as categories by Zstandard
POLARS = {
    "lz4": (
        "c-qxdJud`77=HF6ck4{pyIWjj3$7AT98u7)r&9>INN7(&`~eb;NJQ-_g+iqkD!RS+32G5PKp~<K5$l=R*>k&z>&@i-dfu;{d1vd5"
        "#_Gm2U;}uIqR4~P4e|o|;gH+-ATEeF+|p~2?~-bW^IG)#l&*>aj0)8HB5vzy2c$dN6WwuU9QRH<kha46nBgdWi}XUD>@!A^WerQ_"
        "ml)%ssHzB6<CAeFa@=vhW?UMCBgcrpQ`Ty0+|wr!D64vc))W1f_Ft0bNK?9RyawPiPB6nGY9PIm^XBmPn$<GM;E6q><x$3;*z;YO"
        "r3o3Vmz|u&uC7$pgR3E`MIL1Qbuo|Y&SyBm%}F7Y+Qnw`v`2oKYSmzYl9@-V(`|d{@J!0(bAK}3zn0D)rMe^UaZlc+i{br2jBwa%"
        "D(K-jyp{6tej)6dC-6JZK+nn3nBXj3^@4<&&$G^R^|0ER`}m)4`<uM3{@fq?%Y8Z"
    ),
    "zstd": (
        "c-rk$Jxc>Y5Pf@hhEq?8F~ung*F@}$u@O>uA*cvKLJ+hw5eo|o8wERSNw0svPQga7^p}W*h=oNE5fLT6{W!ThF!}>rn46uiH#0kX"
        "TWK_E>$89Z;JMrF<{|fj-vJE5<=4S3_0n#W?n&p+{twijlDA1aq$bHH2|tH%diWS4f`=^f3Q@+qFeV`PNYdu;>vCT#7t8x|r82kl"
        "2R7@go7KwN;&QFAQmw3(VAdPsb*!rpUkx6Rp~k_7s#SMzNV=vxZ7^kour!XWBb2hz_p3VOev9-(Tai47`mtqvjy_q8C=^d&ywlHO"
        "-i*oDB2m@tm|i8$jj3CotIfz!g(W+Gq}?|5w#k=O=svCb+++^H41LsO@bj87JWS~$xnTHF${xv+F`aD)DP1qwH+=eP<}>gwfIXnI"
        "5T$oR3(X~5{#<`D{*0GN!1~U@=sVFAJ^J_J@m@;{y#i88&h0ujw=gj`D>1k99lTZdK(B4mysRVE6EKX4?}_?}vf}f#dem2l?S(p#"
        "<O<^b2m1VgedT)~&+lX?FMjDCvHmwqA9<tm*n3v}C7!~p8?ZMMf0L@uwUhejJpbR4zrH2MWEJ%~e*r6Iy`B"
    ),
}


@pytest.mark.skipif(not hasattr(pa, "string_view"), reason="pyarrow before 16 does not read polars' texts")
@pytest.mark.parametrize("packed", POLARS)
def test_files_of_polars_are_read(tmp_path, monkeypatch, packed):
    path = tmp_path / "t.arrow"
    path.write_bytes(zlib.decompress(base64.b85decode(POLARS[packed])))
    pair = read_table(path, NONE)
    assert (pair.inputs.tolist(), pair.targets.tolist()) == ([[1, 1], [2, 2], [3, 3]], [0, 1, 0])
    assert pair.classes == ("u", "v")
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 80)
    with pytest.raises(LoadError, match=rf"^{re.escape(str(path))} takes \S+ GiB. Expected at most"):
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
        if i >= 3:
            more = ("", " and 1 more", " and 2 more")[i - 3]
            note = read_table_folder(tmp_path, "train", NONE, whole=False).notes[0]
            assert note == f"data: {tmp_path}: read from {named}{more}"


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


def test_a_folder_saved_without_splits_is_training_data_or_all_test(tmp_path):
    write(tmp_path / "x.arrow", TABLE)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    for split, whole in (("train", False), ("test", True)):
        assert read_table_folder(tmp_path, split, NONE, whole=whole).targets.tolist() == [0, 1, 0]
    assert read_table_folder(tmp_path, "test", NONE, whole=False) is None


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
