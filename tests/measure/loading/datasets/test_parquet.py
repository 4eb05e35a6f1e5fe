"""What a parquet file takes is known before it is unpacked, whatever its footer says."""

import itertools

import numpy as np
import pytest

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.parquet import column_pages, read_parquet
from gapscope.measure.loading.datasets.thrift import Thrift

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

N = 1000
COLUMNS = {
    "noise": np.random.default_rng(0).standard_normal(N),
    "yes": [True, False] * (N // 2),
    "missing": [None if i % 3 else i for i in range(N)],
    "texts": [f"text {i}" for i in range(N)],
    "negative": [-(2**62) - i for i in range(N)],
    "lists": [[i] * (i % 5) for i in range(N)],
    "records": [{"a": 1, "b": "x"}] * N,
}


@pytest.mark.parametrize(
    ("version", "dictionary", "packed"), [*itertools.product(["1.0", "2.0"], [True, False], ["none", "zstd"])]
)
def test_pages_are_those_that_pyarrow_reads(tmp_path, version, dictionary, packed):
    path = tmp_path / "t.parquet"
    table = pa.table(COLUMNS).replace_schema_metadata({"key": "value" * 100})
    pq.write_table(
        table,
        path,
        data_page_version=version,
        use_dictionary=dictionary,
        compression=packed,
        row_group_size=300,
        data_page_size=1000,
        write_page_index=True,
        sorting_columns=[pq.SortingColumn(4, descending=True)],
    )
    about = pq.read_metadata(path)
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    assert len(groups) == 4
    for j, pages in enumerate(column_pages(path)):
        chunks = [group.column(j) for group in groups]
        assert pages.values == sum(chunk.num_values for chunk in chunks)
        heads = sum(chunk.total_uncompressed_size for chunk in chunks) - pages.unpacked
        assert 4 * 10 < heads < 4 * 300  # bytes: those of the pages are counted there as well
        assert pages.largest < pages.unpacked / 3
    assert read_parquet(path).num_rows == N


def test_texts_in_lists_are_not_read_and_the_others_keep_their_places(tmp_path):
    path = tmp_path / "t.parquet"
    texts, table = [["u", "v"]] * 3, {"a": [1, 2, 3], "words": [["u", "v"]] * 3, "a.b": [4, 5, 6]}
    pq.write_table(pa.table({**table, "of": [{"words": one} for one in texts], "y": ["u", "v", "u"]}), path)
    read = read_parquet(path)
    assert read.column_names == ["a", "words", "a.b", "of", "y"]
    assert [str(field.type) for field in read.schema] == ["int64", "null", "int64", "null", "string"]
    assert read["a.b"].to_pylist() == [4, 5, 6]
    pq.write_table(pa.table({"words": texts}), path)
    assert read_parquet(path)["words"].null_count == 3


def test_what_is_not_read_is_not_counted(tmp_path, monkeypatch):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": range(100), "words": [[f"{i} {j}" for j in range(100)] for i in range(100)]}), path)
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 2000)
    assert read_parquet(path)["a"].to_pylist() == list(range(100))


def test_a_footer_that_declares_less_than_the_pages_hold_is_not_believed(tmp_path, monkeypatch, pool):
    path, count = tmp_path / "t.parquet", 2**22
    lists = pa.ListArray.from_arrays(pa.array([0, count], pa.int32()), pa.array(np.zeros(count)))
    pq.write_table(pa.table({"x": lists, "y": [0]}), path, data_page_size=2**30, compression="zstd")
    content = path.read_bytes()
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    said, other = b"\x80\x80\x80\x04", b"\x82\x80\x80\x00"  # 2**22 and 1, as zigzag numbers of four bytes
    footer = content[start:].replace(said, other)
    assert footer != content[start:]
    path.write_bytes(content[:start] + footer)
    assert Thrift(footer).struct()[4][0][1][0][3][5] == 1
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 8 * count - 1)
    del lists
    used = pool.bytes_allocated()
    with pytest.raises(LoadError, match=r"t.parquet takes 0.031\d GiB. Expected at most"):
        read_parquet(path)
    assert pool.max_memory() < used + 2**25


@pytest.mark.parametrize("place", [7, 9])  # of the bytes of a page, unpacked and packed
def test_a_page_of_a_negative_size_hides_no_other(tmp_path, place):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"x": [0.5]}), path, use_dictionary=False, compression="none")
    content = path.read_bytes()
    page = Thrift(content, 4)
    head = page.struct()
    assert head[2] == head[3] < 63
    start = b"\x15\x00\x15" + bytes([2 * head[2]]) + b"\x15"  # kind, unpacked, packed: small zigzag numbers
    assert content[4:9] == start
    changed = bytearray(content)
    changed[place] = 2 * head[2] - 1  # minus as much
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="a page of a negative size"):
        column_pages(path)


def test_long_texts_are_unpacked_a_few_at_a_time(tmp_path, monkeypatch, pool):
    path = tmp_path / "t.parquet"
    texts = pa.DictionaryArray.from_arrays(np.zeros(2000, int), pa.array(["x" * 100_000]))
    pq.write_table(pa.table({"x": texts, "y": texts}), path, store_schema=False)
    assert path.stat().st_size < 30_000
    monkeypatch.setattr("gapscope.measure.loading.datasets.arrays.MEMORY_BYTES", 10_000_000)
    used = pool.bytes_allocated()
    with pytest.raises(LoadError, match=r"t.parquet takes \S+ GiB. Expected at most"):
        read_parquet(path)
    assert pool.max_memory() < used + 40_000_000  # of 400


@pytest.mark.parametrize(
    "footer",
    [b"", b"\x15", b"\x15\x02\x19", b"\x1d\x00", b"\x1c" * 5000, b"\x15" + b"\xff" * 20, b"\x49\x10\x00"],
)
def test_bytes_that_are_no_struct_are_refused(footer):
    with pytest.raises((IndexError, ValueError, RecursionError)):
        Thrift(footer).struct()


def test_a_number_that_does_not_end_is_refused():
    with pytest.raises(ValueError, match="a number of more than 64 bits"):
        Thrift(b"\x16" + 10**6 * b"\xff" + b"\x01").struct()


def test_every_kind_of_value_is_read():
    fields = {
        1: (b"\x11", True),
        2: (b"\x12", False),
        3: (b"\x13\x7f", 127),
        4: (b"\x16\x01", -1),
        5: (b"\x15\xfe\x03", 255),
        6: (b"\x17\0\0\0\0\0\0\xf0\x3f", 1.0),
        7: (b"\x18\x02uv", b"uv"),
        8: (b"\x19\x25\x01\x02", [-1, 1]),
        9: (b"\x1a\x12\x01", [1]),
        10: (b"\x1b\x01\x58\x02\x01u", [(1, b"u")]),
        11: (b"\x1b\x00", []),
        12: (b"\x1c\x15\x04\x00", {1: 2}),
        13: (b"\x14\x7f", -64),
        15: (b"\x25\x04", 2),  # a step of two
        16: (b"\x19\xf5\x0f" + 15 * b"\x02", [1] * 15),
        17: (b"\x16" + 9 * b"\xff" + b"\x01", -(2**63)),
        40: (b"\x05\x50\x06", 3),  # a number in full
    }
    data = b"".join(written for written, _ in fields.values()) + b"\0"
    reader = Thrift(b"behind" + data + b"before", 6)
    assert reader.struct() == {number: value for number, (_, value) in fields.items()}
    assert reader.place == 6 + len(data)
