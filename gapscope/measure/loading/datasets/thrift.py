"""Thrift's compact protocol, in which the heads of parquet files are written.

pyarrow ends the whole process where the numbers of a column in a damaged footer contradict each other
(`RowGroupMetaData.column`, up to its version 26 at least), and says nothing of the pages.  Here any struct becomes a
dict of its fields by their numbers in parquet.thrift.
"""

import struct
from typing import Any

_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_INTEGERS = (4, 5, 6)  # of 16, 32 and 64 bits: all are written alike


class Thrift:
    """A reader of structs in bytes, or in a mapped file.

    What is no struct raises `IndexError`, `ValueError`, `struct.error` or `RecursionError`.
    """

    def __init__(self, data: Any, place: int = 0) -> None:
        self.data, self.place = data, place

    def struct(self) -> dict[int, Any]:
        """Return the fields of the struct at this place, and move behind it."""
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
        return int(self.data[self.place - 1])

    def _bytes(self, length: int) -> bytes:
        self.place += length
        return bytes(self.data[self.place - length : self.place])

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
