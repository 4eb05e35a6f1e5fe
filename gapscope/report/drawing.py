"""Series and maps as lines of characters: block characters and colour where they can be had, ASCII otherwise.

Every drawing says its scale in words, so that nothing depends on telling shades apart.  Where there are more points
than characters, the drawing says what a character stands for.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gapscope.report.document import Heat, Series, Tone
from gapscope.report.figures import count, number
from gapscope.results import Array

LEVELS = " ▁▂▃▄▅▆▇█"
ASCII_LEVELS = " __--==##"  # within a tall drawing; a single line has shades instead
SHADES = ".:-=+*#%@"
COLOURS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")  # viridis
WIDEST = 72  # beyond, a drawing is no easier to read
MAP_WIDTH, MAP_HEIGHT = 48, 24
TALL = {"bars": 8, "line": 4, "strip": 1}  # lines of characters for a single curve
DECADES = 6  # an eigenvalue among a million still shows
RANGE = 100.0  # a scale over more than this is logarithmic
TICKS = 5  # an axis no longer than this shows the whole numbers on it
ODD = "?"  # a value that is not finite


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


def relabelled(item: Series | Heat, cleaned: Callable[[str], str]) -> Series | Heat:
    """Return a drawing with every string changed, before any is measured."""

    def each(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(map(cleaned, texts))

    if isinstance(item, Series):
        labels, names = each(item.labels), each(item.names)
        return replace(item, title=cleaned(item.title), axis=cleaned(item.axis), labels=labels, names=names)
    axes = (cleaned(item.axes[0]), cleaned(item.axes[1]))
    return replace(item, title=cleaned(item.title), axes=axes, rows=each(item.rows), columns=each(item.columns))


def series(drawing: Series, canvas: Canvas) -> Iterator[Drawn]:
    """Draw curves: title, curves, axis, and the numbers that a reader looks for."""
    values = np.array(drawing.curves, dtype=np.float64)
    finite = values[np.isfinite(values)]
    yield (Span(f"{drawing.title} {'by' if drawing.style == 'strip' else 'along'} {drawing.axis}"),)
    if not finite.size or values.shape[1] < 2 or finite.min() == finite.max():
        yield from _undrawn(drawing, values)
        return
    scale = _scale(finite, bars=drawing.style == "bars")
    tall = TALL[drawing.style] if len(values) == 1 else 1
    names = drawing.names or ("",) * len(values)
    marks = _ticks(scale, tall)
    left = max(len(name) for name in (*names, *marks)) + 1 if any((*names, *marks)) else 0
    ranges = [_range(curve) if len(values) > 1 and drawing.style != "strip" else "" for curve in values]
    room = max(min(canvas.width - 2 - left - max(map(len, ranges)) - 1, WIDEST), 8)
    for name, curve, between in zip(names, values, ranges, strict=True):
        if drawing.style == "strip":
            yield from _strip(name.ljust(left), scale.heights(curve), room, canvas)
        else:
            heights = scale.heights(_fitted(curve, room))
            sides = [name] if tall == 1 else marks
            for line in _columns(sides, left, heights, tall, canvas):
                yield (*line, Span(f" {between}", "dim"))
    if drawing.style != "strip":
        yield Span("  " + " " * left, "dim"), Span(_axis(drawing, room), "dim")
    yield (Span("  " + " · ".join(_remarks(drawing, values, scale, room)), "dim"),)


def _undrawn(drawing: Series, values: Array) -> Iterator[Drawn]:
    """Say in words what needs no drawing: nothing finite, one entry, or one value everywhere."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        yield (Span(f"  none of the {count(values.size)} values is finite"),)
    elif finite.min() == finite.max():
        odd = values.size - finite.size
        rest = f", {count(odd)} not finite" if odd else ""
        where = drawing.labels[0] if values.size == 1 else f"all {count(finite.size)} values"
        yield (Span(f"  {where}: {number(float(finite[0]))}{rest}"),)
    else:
        for name, (value,) in zip(drawing.names, values, strict=True):
            yield (Span(f"  {name}: {number(float(value))}"),)


def _scale(finite: Array, *, bars: bool) -> Scale:
    low, high = float(finite.min()), float(finite.max())
    positive = finite[finite > 0]
    if bars and low >= 0 and high > RANGE * float(np.median(finite)):
        return Scale(low=max(float(positive.min()), high * 10.0**-DECADES), high=high, log=True)
    if not bars and low > 0 and high > RANGE * low:
        return Scale(low=low, high=high, log=True)
    return Scale(low=min(low, 0.0) if bars else low, high=high)


def _ticks(scale: Scale, tall: int) -> list[str]:
    """Return what stands left of each line of a tall drawing, from above; a low one is described below it."""
    if tall == 1:
        return [""]
    return [number(scale.high, 3), *[""] * (tall - 2), number(scale.low, 3)]


def _range(curve: Array) -> str:
    finite = curve[np.isfinite(curve)]
    return f"{number(float(finite.min()), 3)} to {number(float(finite.max()), 3)}" if finite.size else "not finite"


def _stretch(points: int, room: int) -> int:
    """Return how many characters a point gets."""
    return max(min(room // points, 8), 1)


def _fitted(curve: Array, room: int) -> Array:
    """Widen a curve of few points, or keep the largest of those that share a character."""
    if curve.size <= room:
        return np.repeat(curve, _stretch(curve.size, room))
    parts = [part[np.isfinite(part)] for part in np.array_split(curve, room)]
    return np.array([part.max() if part.size else math.nan for part in parts])


def _columns(sides: Sequence[str], left: int, heights: Array, tall: int, canvas: Canvas) -> Iterator[Drawn]:
    levels = LEVELS if canvas.blocks else ASCII_LEVELS if tall > 1 else f" {SHADES[:8]}"
    # the lowest value of a linear scale shows as the lowest level, and only what is under a log scale as nothing
    eighths = [None if math.isnan(h) else 0 if h < 0 else max(round(h * 8 * tall), 1) for h in heights]
    for position in range(tall):
        under = 8 * (tall - 1 - position)
        cells = [
            (ODD if not under else " ") if level is None else levels[min(max(level - under, 0), 8)] for level in eighths
        ]
        yield (Span("  " + sides[position].rjust(left - 1) + " " * (left > 0), "dim"), Span("".join(cells)))


def _strip(name: str, heights: Array, room: int, canvas: Canvas) -> Iterator[Drawn]:
    wide = 2 if 2 * heights.size <= room else 1
    for start in range(0, heights.size, room // wide):
        cells = [Span("  " + (name if not start else " " * len(name)), "dim")]
        for height in heights[start : start + room // wide]:
            if math.isnan(height):
                cells.append(Span(ODD * wide))
            elif canvas.blocks:
                level = LEVELS[1 + min(int(max(height, 0.0) * 8), 7)]
                cells.append(Span(level * wide, fore=_colour(height) if canvas.colours else ""))
            else:
                cells.append(Span(_shade(height) * wide))
        yield tuple(cells)


def _axis(drawing: Series, room: int) -> str:
    """Return the first and last label and the whole numbers between them, each under its point."""
    points, labels = len(drawing.labels), drawing.labels
    each = _stretch(points, room) if points <= room else room / points
    ticks = {0: _label(labels[0]), points - 1: _label(labels[-1])}
    if _rising(labels):
        low, high = float(labels[0]), float(labels[-1])
        whole = range(math.ceil(low), math.floor(high) + 1) if high - low <= TICKS else range(0)
        inside = {place: str(tick) for tick in whole if (place := _nearest(labels, tick)) is not None}
        ticks = {0: ticks[0], **inside, points - 1: ticks[points - 1]}
    last = ticks.pop(points - 1)
    end = max(round(points * each) - len(last), len(ticks[0]) + 1)
    axis = ticks.pop(0)
    for place, text in ticks.items():
        start = round((place + 0.5) * each)
        if len(axis) < start < end - len(text):
            axis = axis.ljust(start) + text
    return axis.ljust(end) + last


def _remarks(drawing: Series, values: Array, scale: Scale, room: int) -> Iterator[str]:
    if drawing.style == "line" and len(values) == 1:
        yield f"first {number(float(values[0, 0]))}, last {number(float(values[0, -1]))}"
    for word, found in (("lowest", np.nanargmin), ("highest", np.nanargmax)):
        if word == "lowest" and drawing.style == "bars":
            continue
        curve, point = np.unravel_index(found(np.where(np.isfinite(values), values, np.nan)), values.shape)
        where = _label(drawing.labels[int(point)])
        of = f" of {drawing.names[int(curve)]}" if drawing.names else ""
        at = f"in {where}" if drawing.style == "strip" else f"at {where}"
        yield f"{word} {number(float(values[curve, point]))}{of} {at}"
    if scale.log:
        under = int((values < scale.low).sum())
        yield scale.said + (f" ({count(under)} values under {number(scale.low, 2)} are blank)" if under else "")
    if drawing.style != "strip" and values.shape[1] > room:
        yield f"{count(values.shape[1])} points: each column is the highest of {math.ceil(values.shape[1] / room)}"
    if odd := int((~np.isfinite(values)).sum()):
        yield f"{count(odd)} not finite: {ODD}"


def heat(drawing: Heat, canvas: Canvas) -> Iterator[Drawn]:
    """Draw a map: two rows per line in colour, one shade per cell without."""
    values = np.array(drawing.values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    yield (Span(drawing.title),)
    if not finite.size:
        yield (Span(f"  none of the {count(values.size)} values is finite"),)
        return
    scale = _scale(finite, bars=False)
    rows, upwards = list(drawing.rows), _rising(drawing.rows)
    marks = _marks(drawing)
    if upwards:
        values, rows = values[::-1], rows[::-1]
        marks = {(len(rows) - 1 - i, j): mark for (i, j), mark in marks.items()}
    rows = [_label(row) for row in rows]
    left = max(len(rows[0]), len(rows[-1]), len(drawing.axes[0])) + 1
    half = canvas.colours and canvas.blocks
    factor, stretch = _fit(values.shape, max(canvas.width - 2 - left, 8) // (1 if half else 2), half=half)
    shown = np.repeat(np.repeat(_averaged(scale.heights(values), factor), stretch, 0), stretch, 1)
    places = {tuple(c // factor * stretch + stretch // 2 for c in place): mark for place, mark in marks.items()}
    lines = list(_half_blocks(shown, places) if half else _shaded(shown, places))
    for position, line in enumerate(lines):
        side = {0: rows[0], len(lines) // 2: drawing.axes[0]}.get(position, "")
        side = rows[-1] if position == len(lines) - 1 and len(lines) > 1 else side
        yield (Span("  " + side.rjust(left - 1) + " ", "dim"), *line)
    width = shown.shape[1] * (1 if half else 2)
    yield Span("  " + " " * left, "dim"), Span(_columns_axis(drawing, width), "dim")
    yield from _legend(drawing, scale, half=half, factor=factor)


def _rising(labels: Sequence[str]) -> bool:
    if not all(map(_is_number, labels)) or len(labels) < 2:
        return False
    return all(float(a) < float(b) for a, b in itertools.pairwise(labels))


def _marks(drawing: Heat) -> dict[tuple[int, int], str]:
    """Return one character per marked cell; without marks the cell at 0, 0, or the middle one, is an X."""
    marks = drawing.marks or (("X", 0.0, 0.0),)
    found = {(_nearest(drawing.rows, y), _nearest(drawing.columns, x)): mark[:1] for mark, y, x in marks}
    return {(i, j): mark for (i, j), mark in found.items() if i is not None and j is not None}


def _nearest(labels: Sequence[str], place: float) -> int | None:
    """Return the entry nearest to a place on an axis of numbers; names have a middle only."""
    if not all(map(_is_number, labels)):
        return len(labels) // 2 if len(labels) % 2 else None
    at = np.array([float(label) for label in labels])
    return int(np.abs(at - place).argmin()) if at.min() <= place <= at.max() else None


def _fit(shape: tuple[int, ...], room: int, *, half: bool) -> tuple[int, int]:
    """Return how many cells share a character, and how often a cell of a small map is repeated."""
    rows, columns = shape
    room = min(room, WIDEST)
    factor = max(math.ceil(columns / room), math.ceil(rows / (4 * MAP_HEIGHT if half else 2 * MAP_HEIGHT)))
    if factor > 1:
        return factor, 1
    cells, lines = (MAP_WIDTH, 2 * MAP_HEIGHT) if half else (MAP_WIDTH // 2, MAP_HEIGHT)
    return 1, max(min(cells // columns, lines // rows, room // columns), 1)


def _averaged(heights: Array, factor: int) -> Array:
    if factor == 1:
        return heights
    rows, columns = (math.ceil(size / factor) for size in heights.shape)
    padded = np.full((rows * factor, columns * factor), np.nan)
    padded[: heights.shape[0], : heights.shape[1]] = heights
    cells = padded.reshape(rows, factor, columns, factor)
    known = np.isfinite(cells).sum((1, 3))
    return np.where(known, np.nansum(cells, (1, 3)) / np.maximum(known, 1), np.nan)


def _shaded(heights: Array, marks: Mapping[tuple[int, ...], str]) -> Iterator[Drawn]:
    for i, row in enumerate(heights):
        cells = [f"{marks[i, j]} " if (i, j) in marks else 2 * _shade(height) for j, height in enumerate(row)]
        yield (Span("".join(cells)),)


def _half_blocks(heights: Array, marks: Mapping[tuple[int, ...], str]) -> Iterator[Drawn]:
    for i in range(0, len(heights), 2):
        spans = []
        for j, upper in enumerate(heights[i]):
            lower = heights[i + 1][j] if i + 1 < len(heights) else math.nan
            if mark := marks.get((i, j)) or marks.get((i + 1, j)):
                spans.append(Span(mark, fore="#ffffff", back="#000000"))
            elif math.isnan(upper) and math.isnan(lower):
                spans.append(Span(" "))
            elif math.isnan(upper):
                spans.append(Span("▄", fore=_colour(lower)))
            else:
                spans.append(Span("▀", fore=_colour(upper), back="" if math.isnan(lower) else _colour(lower)))
        yield tuple(_joined(spans))


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """Write neighbours of one look together."""
    for look, group in itertools.groupby(spans, key=lambda span: span[1:]):
        yield Span("".join(span.text for span in group), *look)


def _columns_axis(drawing: Heat, width: int) -> str:
    first, last = (_label(drawing.columns[i]) for i in (0, -1))
    middle = drawing.axes[1].center(max(width - len(first) - len(last), len(drawing.axes[1]) + 2))
    return f"{first}{middle}{last}"


def _legend(drawing: Heat, scale: Scale, *, half: bool, factor: int) -> Iterator[Drawn]:
    ends = number(scale.low, 3), number(scale.high, 3)
    ramp = [Span("█", fore=colour) for colour in COLOURS] if half else [Span(SHADES)]
    values = np.array(drawing.values, dtype=np.float64)
    place = np.unravel_index(np.nanargmin(np.where(np.isfinite(values), values, np.nan)), values.shape)
    where = [_label(labels[int(i)]) for labels, i in zip((drawing.rows, drawing.columns), place, strict=True)]
    parts = [
        scale.said,
        f"lowest at {drawing.axes[1]} {where[1]}, {drawing.axes[0]} {where[0]}",
        _marked(drawing),
        f"a cell is the mean of {factor} x {factor}" if factor > 1 else "",
    ]
    if odd := int((~np.isfinite(values)).sum()):
        parts.append(f"{count(odd)} not finite: {'blank' if half else ODD}")
    yield (Span(f"  {ends[0]} ", "dim"), *ramp, Span(f" {ends[1]}", "dim"))
    yield (Span("  " + " · ".join(part for part in parts if part), "dim"),)


def _marked(drawing: Heat) -> str:
    if not _marks(drawing):
        return ""
    if drawing.marks:
        return f"{', '.join(mark for mark, *_ in drawing.marks)}: the subjects"
    return "X: the centre"


def _shade(height: float) -> str:
    return ODD if math.isnan(height) else SHADES[min(int(max(height, 0.0) * len(SHADES)), len(SHADES) - 1)]


def _colour(height: float) -> str:
    place = min(max(height, 0.0), 1.0) * (len(COLOURS) - 1)
    first, last = COLOURS[int(place)], COLOURS[math.ceil(place)]
    share = place - int(place)
    mixed = [round((1 - share) * int(first[i : i + 2], 16) + share * int(last[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _label(label: str) -> str:
    """Return the label of a place on an axis with no more digits than a reader needs."""
    return number(float(label)) if _is_number(label) else label


def _is_number(label: str) -> bool:
    try:
        return math.isfinite(float(label))
    except ValueError:
        return False
