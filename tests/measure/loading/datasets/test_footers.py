"""A parquet file's footer says what pyarrow says of it."""

import itertools

import numpy as np
import pytest

from gapscope.measure.loading.datasets.footers import column_chunks

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
def test_it_is_what_pyarrow_reads(tmp_path, version, dictionary, packed):
    path = tmp_path / "t.parquet"
    table = pa.table(COLUMNS).replace_schema_metadata({"key": "value" * 100})
    pq.write_table(
        table,
        path,
        data_page_version=version,
        use_dictionary=dictionary,
        compression=packed,
        row_group_size=300,
        write_page_index=True,
        sorting_columns=[pq.SortingColumn(4, descending=True)],
    )
    about = pq.read_metadata(path)
    groups = [about.row_group(i) for i in range(about.num_row_groups)]
    columns = [[group.column(j) for j in range(about.num_columns)] for group in groups]
    assert column_chunks(path) == [
        [(one.num_values, one.total_uncompressed_size) for one in group] for group in columns
    ]
    assert len(groups) == 4 < about.num_columns


@pytest.mark.parametrize(
    "footer",
    [b"", b"\x15", b"\x15\x02\x19", b"\x1d\x00", b"\x1c" * 5000, b"\x15" + b"\xff" * 20, b"\x00", b"\x49\x10\x00"],
)
def test_a_footer_that_is_none_is_refused(tmp_path, footer):
    path = tmp_path / "t.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises((IndexError, KeyError, TypeError, ValueError, RecursionError)):
        column_chunks(path)
