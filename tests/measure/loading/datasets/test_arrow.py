"""What Arrow's batches take is known before they are unpacked, to the byte."""

import itertools
import struct

import numpy as np
import pytest

from gapscope.measure.loading.datasets.arrow import _number, _place, _table, unpacked_bytes

pa = pytest.importorskip("pyarrow")

N = 3000
COLUMNS = {
    "noise": np.random.default_rng(0).standard_normal(N),
    "zeros": np.zeros(N),
    "yes": [True, False] * (N // 2),
    "missing": [None if i % 3 else i for i in range(N)],
    "texts": [f"text {i}" for i in range(N)],
    "named": pa.array(["a", "bb", "c"] * (N // 3)).dictionary_encode(),
    "lists": [[i] * (i % 5) for i in range(N)],
    "nothing": pa.nulls(N),
    "records": [{"a": 1, "b": "x"}] * N,
}


def written(path, columns, packed, rows=N, **asked):
    table = pa.table(columns)
    opened = pa.ipc.new_file if path.suffix == ".feather" else pa.ipc.new_stream
    with opened(str(path), table.schema, options=pa.ipc.IpcWriteOptions(compression=packed)) as sink:
        for batch in table.to_batches(max_chunksize=rows):
            sink.write_batch(batch, **asked)
    return path


def both(path):
    """What was said beforehand, and what it was."""
    with pa.memory_map(str(path)) as source:
        said = unpacked_bytes(source, footer=path.suffix == ".feather")
        source.seek(0)
        opened = pa.ipc.open_file if path.suffix == ".feather" else pa.ipc.open_stream
        return said, opened(source).read_all().get_total_buffer_size()


@pytest.mark.parametrize(
    ("name", "packed", "rows"), [*itertools.product(["t.arrow", "t.feather"], [None, "lz4", "zstd"], [N, 700])]
)
def test_it_is_what_pyarrow_holds_afterwards(tmp_path, name, packed, rows):
    said, was = both(written(tmp_path / name, COLUMNS, packed, rows))
    assert said == was > 8 * N


@pytest.mark.parametrize("name", ["t.arrow", "t.feather"])
def test_files_of_before_arrow_0_15_are_counted_too(tmp_path, name):
    table = pa.table(COLUMNS).replace_schema_metadata({"of": "the table", "long": "word" * 100})
    opened = pa.ipc.new_file if name == "t.feather" else pa.ipc.new_stream
    with opened(str(tmp_path / name), table.schema, options=pa.ipc.IpcWriteOptions(use_legacy_format=True)) as sink:
        sink.write_table(table)
    said, was = both(tmp_path / name)
    assert said == was > 8 * N


def test_buffers_that_would_not_shrink_are_not_packed(tmp_path):
    few = {"a": np.random.default_rng(0).integers(0, 256, 40).astype(np.uint8)}
    said, was = both(written(tmp_path / "t.arrow", few, "zstd"))
    assert said == was


def test_a_buffer_of_a_negative_size_hides_no_other(tmp_path):
    path = written(tmp_path / "t.arrow", {"a": np.zeros(1001), "y": range(1001)}, None)
    length = struct.pack("<q", 8 * 1001)
    content = path.read_bytes()
    assert length in content
    path.write_bytes(content.replace(length, struct.pack("<q", -8 * 1001)))
    with pa.memory_map(str(path)) as source, pytest.raises(ValueError, match="a buffer of a negative size"):
        unpacked_bytes(source, footer=False)


def test_batches_packed_as_arrow_0_17_did_are_counted_too(tmp_path):
    path = written(
        tmp_path / "t.arrow", {"a": np.zeros(N)}, "lz4", custom_metadata={"ARROW:experimental_compression": "lz4"}
    )
    content = bytearray(path.read_bytes())
    start = 0
    for _ in range(2):  # the schema and the batch: of metadata version 4, and without the field that says so since
        length = struct.unpack_from("<I", content, start + 4)[0]
        head = memoryview(content)[start + 8 : start + 8 + length]
        message = _number(head, 0, "<I")
        struct.pack_into("<h", head, _place(head, message, 0), 3)
        start += 8 + length
    batch = _table(head, message, 2)
    assert _place(head, batch, 3)
    struct.pack_into("<H", head, batch - _number(head, batch, "<i") + 4 + 2 * 3, 0)
    assert not _place(head, batch, 3)
    path.write_bytes(content)
    said, was = both(path)
    assert said == was == 8 * N
