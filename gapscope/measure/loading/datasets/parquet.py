"""Parquet files, unpacked no further than fits into memory: a few hundred bytes can promise any amount of it."""

import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from gapscope.measure.loading.datasets import arrays
from gapscope.measure.loading.datasets.thrift import Thrift

_ROWS = 2**16  # unpacked at a time
_TEXT, _FIXED = "BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY"
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "FLOAT": 4, _TEXT: 4}  # bytes of a value in memory, of a text its place
# the numbers of fields in their structs: the footer, a row group, a column, the head of a page
_ROW_GROUPS, _COLUMNS, _ABOUT, _COLUMN_VALUES, _PACKED, _FIRST_PAGE, _DICTIONARY = 4, 1, 3, 5, 7, 9, 11
_PAGE_UNPACKED, _PAGE_PACKED, _OF_VALUES, _VALUES = 2, 3, (5, 8), 1


class Pages(NamedTuple):
    """What the heads of a column's pages declare: the reader goes by them, and not by the footer."""

    values: int
    unpacked: int  # bytes
    largest: int  # of them in one page


def read_parquet(path: Path) -> Any:
    """Return the table of a parquet file, without what no data are made of: a column with texts in lists is nulls.

    Raises: LoadError if it does not fit into memory. A damaged file raises whatever pyarrow raises, `IndexError`,
    `KeyError`, `TypeError`, `ValueError`, `struct.error` or `RecursionError`.
    """
    import pyarrow
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        names = file.schema_arrow.names
        leaves = [file.schema.column(j) for j in range(len(file.schema))]
        columns = [_column(leaf.path, names) for leaf in leaves]
        # how many texts a row of them holds is only known when it is unpacked
        listed = {
            name
            for name, leaf in zip(columns, leaves, strict=True)
            if leaf.max_repetition_level and leaf.physical_type == _TEXT
        }
        numbers = texts = 0
        everything = column_pages(path) or [Pages(0, 0, 0)] * len(leaves)
        for name, leaf, pages in zip(columns, leaves, everything, strict=True):
            if name not in listed:
                width = leaf.length if leaf.physical_type == _FIXED else _WIDTHS.get(leaf.physical_type, 8)
                numbers += max(pages.unpacked, pages.values * width)
                texts += pages.largest * (leaf.physical_type == _TEXT)
        arrays.check_size(numbers, str(path))
        # a text that is repeated lies once in the file: rows are counted as they come, and few where texts may be long
        rows = max(1, min(_ROWS, arrays.MEMORY_BYTES // max(1, texts)))
        read = [name for name in names if name not in listed]
        schema = pyarrow.schema([field for field in file.schema_arrow if field.name not in listed])
        found = iter(_held(file.iter_batches(rows, columns=read), schema, str(path)).columns)
        missing = pyarrow.nulls(file.metadata.num_rows)
        return pyarrow.Table.from_arrays([missing if name in listed else next(found) for name in names], names=names)


def column_pages(path: Path) -> list[Pages]:
    """Return what the pages of each column declare, over all row groups; nothing where there are none."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        footer = Thrift(content, len(content) - 8 - int.from_bytes(content[-8:-4], "little")).struct()
        groups = [[_pages(content, one[_ABOUT]) for one in group[_COLUMNS]] for group in footer[_ROW_GROUPS]]
    return [
        Pages(sum(p.values for p in parts), sum(p.unpacked for p in parts), max(p.largest for p in parts))
        for parts in zip(*groups, strict=True)
    ]


def _pages(content: mmap.mmap, column: dict[int, Any]) -> Pages:
    start, dictionary = column[_FIRST_PAGE], column.get(_DICTIONARY, 0)
    start = dictionary if 0 < dictionary < start else start
    end = start + column[_PACKED] if column[_COLUMN_VALUES] else start  # without values no page is read
    values = unpacked = largest = 0
    while start < end:
        page = Thrift(content, start)
        head = page.struct()
        sizes = [head[kind][_VALUES] for kind in _OF_VALUES if kind in head]
        if min(*sizes, head[_PAGE_UNPACKED], head[_PAGE_PACKED], 0) < 0:  # it would hide what another page takes
            raise ValueError("a page of a negative size")
        values += sum(sizes)
        unpacked += head[_PAGE_UNPACKED]
        largest = max(largest, head[_PAGE_UNPACKED])
        start = page.place + head[_PAGE_PACKED]
    return Pages(values, unpacked, largest)


def _column(leaf: str, names: list[str]) -> str:
    """Return the column that a leaf, `column.list.element`, belongs to; names may have dots as well."""
    return max((name for name in names if f"{leaf}.".startswith(f"{name}.")), key=len)


def _held(batches: Iterable[Any], schema: Any, where: str) -> Any:
    """Return the table of batches that are unpacked one by one, and no further than fits into memory."""
    import pyarrow

    held, used = [], 0
    for batch in batches:
        used += batch.get_total_buffer_size()
        arrays.check_size(used, where)
        held.append(batch)
    return pyarrow.Table.from_batches(held, schema)
