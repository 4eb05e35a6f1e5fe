"""Plain values in and out of HDF5: strings, facts, arrays with dimension scales.  Nothing here knows what a report is.

Reading distrusts the file: only hard links are followed, only storage inside the file is read, sizes are bounded, and
whatever is wrong raises ValueError, LookupError or what h5py raises.
"""

import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from gapscope.report.records import Facts, Scalar

LARGEST = 2**27  # elements: 1 GiB of float64; a damaged or hostile shape must not exhaust the memory
MOST_TEXT = 2**28  # characters of strings that are read of one file, and bytes of those that are read at once
LONGEST_NAME = 1000  # bytes of a fact's name; HDF5 has room for 64 KiB
_STRINGS = h5py.string_dtype()


def storable(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts as a report can hold them, which is what reading it gives back.

    An integer beyond 64 bits is a text; a fact without a name, or whose name takes over `LONGEST_NAME` bytes, is left
    out.
    """
    kept = {}
    for key, value in facts.items():
        name = text(key)
        if isinstance(value, str):
            value = text(value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**64:
            value = str(value) if value.bit_length() < 2**13 else hex(value)  # str refuses more than 4,300 digits
        if 0 < len(name.encode()) <= LONGEST_NAME:
            kept[name] = value
    return kept


def put_facts(group: h5py.Group, facts: Mapping[str, Any]) -> None:
    """Store single strings, numbers and booleans as attributes, in alphabetical order."""
    for key, value in sorted(storable(facts).items()):
        if not isinstance(value, str | int | float | np.generic):
            raise ValueError(f"{group.name}: `{key}` is {value!r}; expected one string, number or boolean")
        group.attrs[key] = value


def text(given: str) -> str:
    """Escape what HDF5 cannot hold: NUL ends its strings, and UTF-8 has no lone surrogates (file names may)."""
    return given.replace("\0", "\\0").encode(errors="backslashreplace").decode()


def texts(given: Sequence[str]) -> Any:
    """Return an array of HDF5 strings."""
    return np.array([text(one) for one in given], dtype=_STRINGS)


def put_texts(group: h5py.Group, name: str, given: Sequence[str]) -> None:
    """Store strings as one attribute."""
    group.attrs[name] = texts(given)


def put_array(group: h5py.Group, name: str, values: Any, scales: Sequence[Any], **storage: Any) -> Any:
    """Store an array whose axes carry these dimension scales."""
    data = group.create_dataset(name, data=values, track_times=False, **storage)
    for axis, scale in enumerate(scales):
        data.dims[axis].label = scale.name.rsplit("/", 1)[1]
        data.dims[axis].attach_scale(scale)
    return data


def put_scale(group: h5py.Group, name: str, labels: Any) -> Any:
    """Store the labels of a dimension."""
    data = put_array(group, name, texts(labels) if isinstance(labels, tuple) else labels, [])
    data.make_scale(name)
    return data


def put_bare_scale(group: h5py.Group, name: str, size: int) -> Any:
    """Store a dimension without labels, by netCDF's convention: an axis for xarray that takes no space on disk."""
    data = group.create_dataset(name, (size,), dtype=">f4", track_times=False)
    data.make_scale(f"This is a netCDF dimension but not a netCDF variable.{size:10d}")
    return data


def check_heaps(content: bytes) -> int:
    """Return the bytes of the longest string of a file; refuse one whose heaps of strings do not add up.

    HDF5 1.14 and 2.0 walk some of those for ever.

    A heap is GCOL, version 1, its size, and objects of (index, references, size, content up to a multiple of 8 bytes);
    of index 0, what is left, the size includes this head.  Sizes take 8 bytes, as the superblock must say.
    """
    place = 13 if content[8:9] in (b"\0", b"\1") else 9  # of the bytes of an offset and of a length
    if content[place : place + 2] != b"\x08\x08":
        raise ValueError("its superblock has offsets or lengths that are not of 8 bytes")
    longest = 0
    for found in _HEAP.finditer(content):
        at = found.start() + 16
        end = found.start() + int.from_bytes(content[at - 8 : at], "little")
        while at + 16 <= end:
            held = int.from_bytes(content[at + 8 : at + 16], "little")
            free = content[at : at + 2] == b"\0\0"
            step = held if free else 16 + (held + 7) // 8 * 8
            if step == 0 or at + step > min(end, len(content)):
                raise ValueError(f"its heap at byte {found.start()} does not add up")
            at, longest = at + step, max(longest, 0 if free else held)
    return longest


_HEAP = re.compile(rb"GCOL\x01")


@dataclass
class _Texts:
    """The strings of the file being read: the bytes of the longest, and how many characters may still be read.

    Any number of places may refer to the same string, so the size of the file does not bound what reading it takes.
    """

    longest: int
    left: float

    def refuse(self, name: str, count: int) -> None:
        if count * self.longest > MOST_TEXT:
            raise ValueError(f"`{name}` holds {count:,} strings, of up to {self.longest:,} bytes")

    def taken(self, found: Any) -> Any:
        self.left -= sum(map(len, found.flat if isinstance(found, np.ndarray) else [found]))
        if self.left < 0:
            raise ValueError(f"its strings take more than {MOST_TEXT:,} characters")
        return found


_texts: ContextVar[_Texts] = ContextVar("texts")


def _counted() -> _Texts:
    return _texts.get(_Texts(0, math.inf))


@contextlib.contextmanager
def bounded(longest: int) -> Iterator[None]:
    """Read strings of a file, none of more than `longest` bytes, up to `MOST_TEXT` characters in all."""
    token = _texts.set(_Texts(longest, MOST_TEXT))
    try:
        yield
    finally:
        _texts.reset(token)


def attribute(owner: Any, name: str) -> Any:
    """Return an attribute; its strings are counted."""
    found = owner.attrs.get_id(name)
    if not found.dtype.hasobject:
        return owner.attrs[name]
    if h5py.check_string_dtype(found.dtype) is None:
        raise ValueError(f"`{name}` holds neither strings nor numbers")
    texts = _counted()
    texts.refuse(name, math.prod(found.shape))
    return texts.taken(owner.attrs[name])


def has(group: h5py.Group, name: str) -> bool:
    """Say whether a group has a member of this name, without following it (as `in` would)."""
    if not name or "/" in name or name == ".":
        raise ValueError(f"`{name}` is not the name of a member")
    return bool(group.id.links.exists(name.encode()))


def member(group: h5py.Group, name: str, kind: Any) -> Any:
    """Open a member that a hard link leads to: other links could make a report read any file of its reader."""
    if not has(group, name):
        raise ValueError(f"`{name}` is missing")
    kinds = {h5py.h5l.TYPE_SOFT: "a soft link", h5py.h5l.TYPE_EXTERNAL: "an external link"}
    link = group.id.links.get_info(name.encode()).type
    if link != h5py.h5l.TYPE_HARD:
        raise ValueError(f"`{name}` is {kinds.get(link, 'a foreign link')}, which is never followed")
    found = group[name]
    if not isinstance(found, kind):
        raise ValueError(f"`{name}` is a {type(found).__name__}, not a {kind.__name__}")
    return found


def get_facts(group: h5py.Group) -> Facts:
    """Return all attributes as plain Python values."""
    return {key: _scalar(key, attribute(group, key)) for key in group.attrs}


def _scalar(key: str, value: Any) -> Scalar:
    if not isinstance(key, str):
        raise ValueError(f"the name {key!r} is not UTF-8")
    if isinstance(value, np.generic):
        value = value.item()
    if not isinstance(value, str | int | float | bool):
        raise ValueError(f"`{key}` is a {type(value).__name__}, not one string, number or boolean")
    return value


def get_text(owner: Any, name: str, choices: Sequence[str] = ()) -> Any:
    """Return an attribute that must be one string, and one of the choices if there are any."""
    value = attribute(owner, name)
    if not isinstance(value, str):
        raise ValueError(f"`{name}` is a {type(value).__name__}, not a string")
    if choices and value not in choices:
        raise ValueError(f"`{name}` is {value!r}, not one of {', '.join(choices)}")
    return value


def get_texts(owner: Any, name: str) -> tuple[str, ...]:
    """Return an attribute that holds strings."""
    return tuple(str(one) for one in np.atleast_1d(attribute(owner, name)))


def get_array(group: h5py.Group, *names: str) -> Any:
    """Return the numbers of a dataset at a path of member names."""
    return np.asarray(_dataset(group, names, "fiu")[()])


def get_optional(group: h5py.Group, *names: str) -> Any:
    """Return the numbers of a dataset, or None if it or a group on the way to it is absent."""
    here = group
    for name in names[:-1]:
        if not has(here, name):
            return None
        here = member(here, name, h5py.Group)
    return get_array(group, *names) if has(here, names[-1]) else None


def get_strings(group: h5py.Group, name: str) -> tuple[str, ...]:
    """Return the strings of a dataset."""
    data, texts = _dataset(group, (name,), "O"), _counted()
    step = MOST_TEXT // max(texts.longest, 1) + 1  # one piece, but where somebody means harm
    return tuple(one for at in range(0, len(data), step) for one in texts.taken(data.asstr()[at : at + step]))


def _dataset(group: h5py.Group, names: Sequence[str], kinds: str) -> Any:
    for name in names[:-1]:
        group = member(group, name, h5py.Group)
    data = member(group, names[-1], h5py.Dataset)
    if data.is_virtual or data.external:
        raise ValueError(f"`{data.name}` keeps its values in other files, which are never followed")
    # values that nobody wrote take no room in a file, and gigabytes in memory; zlib packs 1,032 to 1 at best
    stored = data.size is not None and data.size <= LARGEST and data.nbytes <= 1100 * data.id.get_storage_size()
    if not stored or data.dtype.kind not in kinds:
        raise ValueError(f"`{data.name}` holds {data.size} elements of {data.dtype}, which is not what a report holds")
    return data
