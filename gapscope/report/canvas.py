"""What drawings are made of: spans of characters, what an output can show, scales, shades and labels."""

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gapscope.report.document import Tone
from gapscope.report.figures import number
from gapscope.results import Array

SHADES = ".:-=+*#%@"
COLOURS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")  # viridis
WIDEST = 72  # beyond, a drawing is no easier to read
DECADES = 6  # an eigenvalue among a million still shows
RANGE = 100.0  # a scale over more than this is logarithmic
ODD = "?"  # a value that is not finite
WHOLE = re.compile(r"[+-]?\d+")


class Span(NamedTuple):
    """Some characters of one look."""

    text: str
    tone: Tone = "plain"
    fore: str = ""
    back: str = ""


Drawn = tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """What the output can show."""

    width: int
    blocks: bool = True  # the encoding has block characters
    colours: bool = False


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Numbers to heights between 0 and 1, NaN for what is not finite."""

    low: float
    high: float
    log: bool = False

    def heights(self, values: Array) -> Array:
        """Return where the values lie between low and high; on a log scale, what is under it lies at -1."""
        finite = np.where(np.isfinite(values), values, np.nan)
        half = self.high / 2 - self.low / 2  # halves: the range of finite numbers may be infinite
        if not half:
            return np.where(np.isnan(finite), np.nan, 0.5)
        if not self.log:
            return np.asarray((finite / 2 - self.low / 2) / half, dtype=np.float64)
        under = finite < self.low
        logs = np.log(np.where(under | np.isnan(finite), self.low, finite)) - math.log(self.low)
        logs /= math.log(self.high) - math.log(self.low)
        return np.where(np.isnan(finite), np.nan, np.where(under, -1.0, np.minimum(logs, 1.0)))

    @property
    def said(self) -> str:
        """What must be said of it."""
        return "log scale" if self.log else ""


def scale_of(finite: Array, *, bars: bool) -> Scale:
    """Return the scale for finite numbers: linear unless they span more than two decades; bars stand on zero."""
    if not finite.size:
        return Scale(low=math.nan, high=math.nan)
    low, high = float(finite.min()), float(finite.max())
    # the median, without np.median, which imports numpy.ma: a fifth of the time of `gapscope show`
    middle = np.sort(finite)[[(finite.size - 1) // 2, finite.size // 2]].mean()
    if bars and low >= 0 and high > RANGE * float(middle):
        floor = max(float(finite[finite > 0].min()), high * 10.0**-DECADES)
        if floor < high:  # one bar among zeros needs no log scale
            return Scale(low=floor, high=high, log=True)
    if not bars and low > 0 and high > RANGE * low:
        return Scale(low=low, high=high, log=True)
    return Scale(low=min(low, 0.0) if bars else low, high=high)


def rising(labels: Sequence[str]) -> bool:
    """Say whether labels are numbers, each larger than the one before."""
    if not all(map(is_number, labels)) or len(labels) < 2:
        return False
    return all(float(a) < float(b) for a, b in itertools.pairwise(labels))


def nearest(labels: Sequence[str], place: float) -> int | None:
    """Return the entry nearest to a place on an axis of numbers; names have a middle only."""
    if not all(map(is_number, labels)):
        return len(labels) // 2 if len(labels) % 2 else None
    at = np.array([float(label) for label in labels])
    return int(np.abs(at - place).argmin()) if at.min() <= place <= at.max() else None


def shade(height: float) -> str:
    """Return the character for a height between 0 and 1."""
    return ODD if math.isnan(height) else SHADES[min(int(max(height, 0.0) * len(SHADES)), len(SHADES) - 1)]


def colour(height: float) -> str:
    """Return the colour of a height between 0 and 1, mixed of its neighbours on the scale."""
    place = min(max(height, 0.0), 1.0) * (len(COLOURS) - 1)
    first, last = COLOURS[int(place)], COLOURS[math.ceil(place)]
    share = place - int(place)
    mixed = [round((1 - share) * int(first[i : i + 2], 16) + share * int(last[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def label(name: str) -> str:
    """Return the label of a place on an axis with no more digits than a reader needs; whole numbers are names."""
    return number(float(name)) if is_number(name) and not WHOLE.fullmatch(name) else name


def is_number(name: str) -> bool:
    """Say whether a label is a finite number."""
    try:
        return math.isfinite(float(name))
    except ValueError:
        return False
