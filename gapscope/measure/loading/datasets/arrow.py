"""How many bytes the batches of an Arrow file take once they are unpacked, known before they are.

pyarrow unpacks a whole batch at once and takes no limit. A packed buffer begins with its size, and where it lies is in
the head of its message: a flatbuffer, of which only these few fields are read here (Arrow's File.fbs and Message.fbs).
"""

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

_FOOTER_DICTIONARIES, _FOOTER_BATCHES = 2, 3  # the numbers of fields in their tables
_MESSAGE_KIND, _MESSAGE_HEADER, _DICTIONARY_BATCH, _BUFFERS, _COMPRESSION = 1, 2, 1, 2, 3
_OF_A_DICTIONARY, _OF_ROWS = 2, 3  # kinds of messages
_EARLIER = b"ARROW:experimental_compression"  # how Arrow 0.17 said what later has a field
_BLOCK = np.dtype([("place", "<i8"), ("head", "<i4"), ("", "<i4"), ("body", "<i8")])
_CONTINUED = b"\xff\xff\xff\xff"  # before the length of a head, since Arrow 0.15


def unpacked_bytes(source: Any, *, footer: bool) -> int:
    """Return the bytes that the buffers of a mapped Arrow stream, or file with a footer, take once they are unpacked.

    A damaged file raises `struct.error`, `ValueError` or what pyarrow raises.
    """
    import pyarrow.ipc

    if footer:
        return sum(_batch_bytes(head, body) for head, body in _blocks(memoryview(source.read_buffer()).cast("B")))
    messages = pyarrow.ipc.MessageReader.open_stream(source)
    return sum(_batch_bytes(memoryview(one.metadata), memoryview(one.body or b"")) for one in messages)


def _blocks(content: memoryview) -> Iterator[tuple[memoryview, memoryview]]:
    """Yield head and body of the batches that the footer of a file leads to."""
    footer = content[-10 - _number(content, len(content) - 10, "<I") : -10]
    root = _number(footer, 0, "<I")
    for field in (_FOOTER_DICTIONARIES, _FOOTER_BATCHES):
        for place, length, _, _ in _structs(footer, root, field, _BLOCK).tolist():
            skipped = 8 if content[place : place + 4] == _CONTINUED else 4
            yield content[place + skipped : place + length], content[place + length :]


def _batch_bytes(head: memoryview, body: memoryview) -> int:
    message = _number(head, 0, "<I")
    kind = head[_place(head, message, _MESSAGE_KIND)]
    if kind not in (_OF_A_DICTIONARY, _OF_ROWS):
        return 0
    batch = _table(head, message, _MESSAGE_HEADER)
    if kind == _OF_A_DICTIONARY:
        batch = _table(head, batch, _DICTIONARY_BATCH)
    packed = _place(head, batch, _COMPRESSION) or _EARLIER in bytes(head)
    buffers = _structs(head, batch, _BUFFERS, np.dtype([("place", "<i8"), ("length", "<i8")])).tolist()
    if any(length < 0 for _, length in buffers):  # it would hide what another buffer takes
        raise ValueError("a buffer of a negative size")
    sizes = [_number(body, place, "<q") if packed and length else -1 for place, length in buffers]
    # -1: not packed after all
    return sum(size if size >= 0 else length for size, (_, length) in zip(sizes, buffers, strict=True))


def _number(data: memoryview, place: int, kind: str) -> int:
    return int(struct.unpack_from(kind, data, place)[0])


def _place(data: memoryview, table: int, field: int) -> int:
    """Return where a field of a flatbuffers table lies, 0 where it is left out."""
    fields = table - _number(data, table, "<i")
    at = 4 + 2 * field
    offset = _number(data, fields + at, "<H") if at < _number(data, fields, "<H") else 0
    return table + offset if offset else 0


def _table(data: memoryview, table: int, field: int) -> int:
    """Return where the table or vector lies to which a field leads."""
    place = _place(data, table, field)
    return place + _number(data, place, "<I")


def _structs(data: memoryview, table: int, field: int, kind: np.dtype[Any]) -> Any:
    """Return a vector of structs, empty where it is left out."""
    if not _place(data, table, field):
        return np.empty(0, kind)
    vector = _table(data, table, field)
    return np.frombuffer(data, kind, _number(data, vector, "<I"), vector + 4)
