"""What pickles get instead of NumPy's own classes: arrays, numbers and texts of plain types come of it, nothing else.

NumPy believes a pickle.  `dtype.__setstate__` takes fields, sizes and flags as they come, so that bytes of the file
count as addresses of objects; so does `ndarray(shape, "O", bytes)`; `ndarray.__setstate__` reads beyond a list that is
too short, and frees what a tensor may share.
"""

import math
import operator
import re
from typing import Any

import numpy as np

from gapscope.errors import LoadError

_PLAIN = re.compile(r"[<>=|]([biufcSUVO]\d{1,9}|[mM]8(\[\d{1,9}[A-Za-z]{1,2}\])?)")
_NATIVE: Any = (3, "=", None, None, None, -1, -1, 0)
_SCALAR: Any = np.float64(0).__reduce__()[0]
_FROMBUFFER: Any = np.zeros(0).__reduce_ex__(5)[0]


class Dtype:
    """Stands in for `numpy.dtype`; what a pickle made of it is checked where it is used, for it may change any time."""

    def __init__(self, code: object, *_flags: object) -> None:
        self.code = code
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Array(np.ndarray):
    """Stands in for `numpy.ndarray`: starts empty and is filled once, with as much content as its shape takes."""

    __module__, __qualname__ = "numpy", "ndarray"  # what messages call it

    def __new__(cls) -> "Array":
        return super().__new__(cls, (0,), np.uint8)

    def __setstate__(self, state: Any) -> None:
        if self.size:
            raise ValueError("an array that is filled twice")
        _, shape, kind, fortran, content = state
        shape, real = tuple(map(operator.index, shape)), _real(kind)
        # texts of no length, too, count: their file would not grow with them
        size = 1 if real.hasobject else max(1, real.itemsize)
        if real.hasobject is not (type(content) is list) or len(content) != math.prod(shape) * size:
            raise ValueError(f"an array of the shape {shape} with {len(content)} bytes or objects")
        super().__setstate__((1, shape, real, fortran, content))


def reconstruct(_kind: object, shape: object, _code: object) -> Array:
    """Return the empty array that most pickles start from."""
    if shape != (0,):
        raise ValueError(f"an array that starts with the shape {shape}")
    return Array()


def frombuffer(buffer: Any, kind: object, *shape_and_order: Any) -> np.ndarray:
    """Return the array that protocol 5 writes in one piece."""
    return np.asarray(_FROMBUFFER(buffer, _numbers(kind), *shape_and_order))


def scalar(kind: object, content: object) -> object:
    """Return a number, text or time of NumPy."""
    return _SCALAR(_numbers(kind), content)


def _numbers(kind: object) -> np.dtype[Any]:
    real = _real(kind)
    if real.hasobject:
        raise ValueError("bytes that are to be objects")
    return real


def _real(kind: object) -> np.dtype[Any]:
    if not isinstance(kind, Dtype):
        raise ValueError("an array of a type that is none")
    code, unit = _text(kind.code), ""
    _, order, *inner, itemsize, _, _ = (kind.state or _NATIVE)[:8]
    if kind.state and code[:1] in ("m", "M"):
        name, count = kind.state[8][1][:2]
        unit = "" if _text(name) == "generic" else f"[{count}{_text(name)}]"
    text = f"{_text(order)}{code}{unit}"
    if any(part is not None for part in inner) or not _PLAIN.fullmatch(text):
        raise LoadError(
            f"holds values of NumPy's type {code[:20]!r} with named fields or parts. Expected plain numbers, texts or "
            "times. Save every field as an array of its own."
        )
    real: np.dtype[Any] = np.dtype(text)
    if itemsize not in (-1, real.itemsize):
        raise ValueError(f"values of the type {real} that take {itemsize} bytes each")
    return real


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)
