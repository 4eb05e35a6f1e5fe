"""Maps as lines of characters: two rows per line in colour, one shade per cell without."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from gapscope.report.canvas import (
    COLOURS,
    ODD,
    SHADES,
    WIDEST,
    Canvas,
    Drawn,
    Scale,
    Span,
    colour,
    label,
    nearest,
    rising,
    scale_of,
    shade,
)
from gapscope.report.document import Heat
from gapscope.report.figures import count, number
from gapscope.results import Array

MAP_WIDTH, MAP_HEIGHT = 48, 24


def heat(drawing: Heat, canvas: Canvas) -> Iterator[Drawn]:
    """Draw a map: two rows per line in colour, one shade per cell without."""
    values = np.array(drawing.values, dtype=np.float64)
    finite = values[np.isfinite(values)]
    yield (Span(drawing.title),)
    if not finite.size:
        yield (Span(f"  none of the {count(values.size)} values is finite"),)
        return
    scale = scale_of(finite, bars=False)
    rows, upwards = list(drawing.rows), rising(drawing.rows)
    marks = _marks(drawing)
    if upwards:
        values, rows = values[::-1], rows[::-1]
        marks = {(len(rows) - 1 - i, j): mark for (i, j), mark in marks.items()}
    rows = [label(row) for row in rows]
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


def _marks(drawing: Heat) -> dict[tuple[int, int], str]:
    """Return one character per marked cell; without marks the cell at 0, 0, or the middle one, is an X."""
    marks = drawing.marks or (("X", 0.0, 0.0),)
    found = {(nearest(drawing.rows, y), nearest(drawing.columns, x)): mark[:1] for mark, y, x in marks}
    return {(i, j): mark for (i, j), mark in found.items() if i is not None and j is not None}


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
        cells = [f"{marks[i, j]} " if (i, j) in marks else 2 * shade(height) for j, height in enumerate(row)]
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
                spans.append(Span("▄", fore=colour(lower)))
            else:
                spans.append(Span("▀", fore=colour(upper), back="" if math.isnan(lower) else colour(lower)))
        yield tuple(_joined(spans))


def _joined(spans: Sequence[Span]) -> Iterator[Span]:
    """Write neighbours of one look together."""
    for look, group in itertools.groupby(spans, key=lambda span: span[1:]):
        yield Span("".join(span.text for span in group), *look)


def _columns_axis(drawing: Heat, width: int) -> str:
    first, last = (label(drawing.columns[i]) for i in (0, -1))
    middle = drawing.axes[1].center(max(width - len(first) - len(last), len(drawing.axes[1]) + 2))
    return f"{first}{middle}{last}"


def _legend(drawing: Heat, scale: Scale, *, half: bool, factor: int) -> Iterator[Drawn]:
    ends = number(scale.low, 3), number(scale.high, 3)
    ramp = [Span("█", fore=colour) for colour in COLOURS] if half else [Span(SHADES)]
    values = np.array(drawing.values, dtype=np.float64)
    place = np.unravel_index(np.nanargmin(np.where(np.isfinite(values), values, np.nan)), values.shape)
    where = [label(labels[int(i)]) for labels, i in zip((drawing.rows, drawing.columns), place, strict=True)]
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
