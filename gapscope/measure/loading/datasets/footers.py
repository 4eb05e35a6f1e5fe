"""What the footer of a parquet file declares of its columns, read without pyarrow.

pyarrow ends the whole process where the numbers of a column chunk in a damaged footer contradict each other
(`RowGroupMetaData.column`, up to its version 26 at least).  The footer is a struct of Thrift's compact protocol; here
any such struct becomes a dict of its fields by their numbers in parquet.thrift.
"""

import struct
from pathlib import Path
from typing import Any

_ROW_GROUPS, _COLUMNS, _COLUMN, _VALUES, _UNPACKED = 4, 1, 3, 5, 6  # the numbers of fields in their structs
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits: all are written alike


def column_chunks(path: Path) -> list[list[tuple[int, int]]]:
    """Return (values, unpacked bytes) of the columns of each row group, as the footer of a parquet file declares them.

    A damaged footer raises `IndexError`, `KeyError`, `TypeError`, `ValueError` or `RecursionError`.
    """
    with path.open("rb") as file:
        file.seek(-8, 2)
        length = int.from_bytes(file.read(4), "little")
        file.seek(-8 - length, 2)
        footer = _Thrift(file.read(length)).struct()
    chunks = [[column[_COLUMN] for column in group[_COLUMNS]] for group in footer[_ROW_GROUPS]]
    return [[(column[_VALUES], column[_UNPACKED]) for column in group] for group in chunks]


class _Thrift:
    def __init__(self, data: bytes) -> None:
        self.data, self.place = data, 0

    def struct(self) -> dict[int, Any]:
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = divmod(head, 16)
            number = number + step if step else self._integer()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        return fields

    def _value(self, kind: int) -> Any:
        if kind in _INTEGERS:
            return self._integer()
        if kind == _BINARY:
            return self._bytes(self._varint())
        if kind == _STRUCT:
            return self.struct()
        if kind in (_LIST, _SET):
            size, inner = divmod(self._byte(), 16)
            return [self._value(inner) for _ in range(self._varint() if size == 15 else size)]
        if kind == _MAP:
            size = self._varint()
            keys, values = divmod(self._byte() if size else 0, 16)
            return [(self._value(keys), self._value(values)) for _ in range(size)]
        if kind in (_TRUE, _FALSE, _BYTE):  # inside of a list a truth takes a byte
            return self._byte()
        if kind == _DOUBLE:
            return struct.unpack("<d", self._bytes(8))[0]
        raise ValueError(f"a value of kind {kind}")

    def _byte(self) -> int:
        self.place += 1
        return self.data[self.place - 1]

    def _bytes(self, length: int) -> bytes:
        self.place += length
        return self.data[self.place - length : self.place]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) > 127:
            value |= (byte & 127) << shift
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")
        return value | byte << shift

    def _integer(self) -> int:
        value = self._varint()
        return value >> 1 ^ -(value & 1)
