"""Maps as SVG: one cell per number, with contours, the scale of the colours beside them, and named places."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.report.canvas import RANGE, Scale, colour
from gapscope.report.figures import number
from gapscope.report.svg import HUGE, LINE, WIDTH, Axis, drawing, element, hover, line, text, width
from gapscope.results import Array

STEPS = 9  # contours


@dataclass(frozen=True, kw_only=True)
class Map:
    """Numbers over a plane, with contours; `marks` are names and places along rows and columns."""

    said: str
    across: str
    upward: str
    unit: str
    columns: Array  # (columns,), rising
    rows: Array  # (rows,), rising
    values: Array  # (rows, columns)
    marks: tuple[tuple[str, float, float], ...] = ()


def drawn(given: Map) -> str:
    """Draw a map."""
    scale = shades(given.values)
    top, left = 1.8 * LINE, 60.0
    columns, rows = edges(given.columns), edges(given.rows)
    along = Axis(low=columns[0], high=columns[-1], start=left, end=WIDTH - 80)
    up = Axis(low=rows[0], high=rows[-1], start=top + along.end - along.start, end=top)
    parts = [element("g", *_cells(given, scale, columns, rows, along, up), class_="cells")]
    lines = levels(scale)
    for level in lines:
        parts.append(element("path", d=_contour(given, level, along, up), class_="contour"))
    parts += _frame(along, up, given)
    parts += _bar(
        scale, lines, given.unit, Axis(low=scale.low, high=scale.high, start=up.start, end=up.end, log=scale.log)
    )
    for name, y, x in given.marks:
        parts += _mark(name, along.at(x), up.at(y), along)
    return drawing(up.start + 2.6 * LINE, given.said, parts)


def shades(values: Array) -> Scale:
    """Return the scale of the colours of a map: logarithmic where positive numbers span more than two decades."""
    finite = np.clip(values[np.isfinite(values)], -HUGE, HUGE)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return Scale(low=low, high=high, log=low > 0 and high > RANGE * low)


def edges(middles: Array) -> list[float]:
    """Return the edges of cells around their middles."""
    between = (middles[1:] + middles[:-1]) / 2
    first, last = middles[0] - (between[0] - middles[0]), middles[-1] + (middles[-1] - between[-1])
    return [float(first), *map(float, between), float(last)]


def _cells(
    given: Map, scale: Scale, columns: Sequence[float], rows: Sequence[float], along: Axis, up: Axis
) -> Iterator[str]:
    heights = scale.heights(given.values)
    for i, j in np.ndindex(given.values.shape):
        value, height = float(given.values[i, j]), float(heights[i, j])
        x, y = along.at(columns[j]), up.at(rows[i + 1])
        beside, above = number(float(given.columns[j])), number(float(given.rows[i]))
        where = f"{given.across} {beside}, {given.upward} {above}: {number(value)}"
        size = {"width": along.at(columns[j + 1]) - x + 0.3, "height": up.at(rows[i]) - y + 0.3}  # no seams
        look = {"fill": colour(height)} if math.isfinite(height) else {"class_": "odd"}
        yield element("rect", hover(where), x=x, y=y, **size, **look)


def levels(scale: Scale) -> list[float]:
    """Return the numbers that have contours."""
    low, high = scale.low, scale.high
    if not low < high:
        return []
    if scale.log:
        return [float(level) for level in np.geomspace(low, high, STEPS + 2)[1:-1]]
    return [level for level in Axis(low=low, high=high, start=0, end=1).ticks(STEPS) if low < level < high]


def _contour(given: Map, level: float, along: Axis, up: Axis) -> str:
    """Return where the values cross a level: straight pieces within each cell of the grid (marching squares).

    At a saddle, where all four sides are crossed, neighbours are joined in the order of the sides.
    """
    pieces = []
    x, y, z = given.columns.tolist(), given.rows.tolist(), given.values
    for i, j in np.ndindex(z.shape[0] - 1, z.shape[1] - 1):
        corners = [(j, i), (j + 1, i), (j + 1, i + 1), (j, i + 1)]
        if not all(math.isfinite(z[b, a]) for a, b in corners):
            continue
        crossed = []
        for (a, b), (c, d) in zip(corners, [*corners[1:], corners[0]], strict=True):
            first, last = float(z[b, a]), float(z[d, c])
            if (first < level) != (last < level):
                t = (level - first) / (last - first)
                crossed.append((along.at(x[a] + t * (x[c] - x[a])), up.at(y[b] + t * (y[d] - y[b]))))
        pieces += [line(crossed[k : k + 2]) for k in range(0, len(crossed), 2)]
    return "".join(pieces)


def _frame(along: Axis, up: Axis, given: Map) -> list[str]:
    parts = []
    for tick in along.ticks():
        parts.append(text(along.at(tick), up.start + LINE, number(tick, 6), text_anchor="middle", class_="tick"))
    for tick in up.ticks():
        parts.append(text(along.start - 6, up.at(tick) + 4, number(tick, 6), text_anchor="end", class_="tick"))
    middle = (along.start + along.end) / 2
    parts.append(text(middle, up.start + 2.2 * LINE, given.across, text_anchor="middle", class_="axis"))
    return [*parts, text(0, up.end - 0.8 * LINE, given.upward, class_="axis")]


def _bar(scale: Scale, lines: Sequence[float], unit: str, up: Axis) -> Iterator[str]:
    """Yield the colours with the numbers that they stand for; the lines on it are the contours."""
    if not up.low < up.high:
        return
    left, steps = WIDTH - 66, 48
    tall = (up.start - up.end) / steps
    for step in range(steps):
        y = up.start - (step + 1) * tall
        yield element("rect", x=left, y=y, width=14, height=tall + 0.3, fill=colour((step + 0.5) / steps))
    for level in lines:
        yield element("path", d=f"M{left:.1f} {up.at(level):.1f}h14", class_="contour")
    said = f"{unit}{' (log)' if scale.log else ''}"
    yield text(WIDTH, up.end - 0.8 * LINE, said, text_anchor="end", class_="axis")
    for tick in up.ticks():
        yield text(left + 19, up.at(tick) + 4, number(tick, 3), class_="tick")


def _mark(name: str, x: float, y: float, along: Axis) -> Iterator[str]:
    """Yield a cross and a name beside it, or above it where neither side has room."""
    yield element("path", d=f"M{x - 6:.1f} {y - 6:.1f}l12 12m0 -12l-12 12", class_="cross")
    wide = width(name) + 10
    if x + wide <= along.end:
        yield text(x + 10, y + 4, name, class_="halo")
    elif x - wide >= along.start:
        yield text(x - 10, y + 4, name, text_anchor="end", class_="halo")
    else:
        yield text((along.start + along.end) / 2, y - 12, name, text_anchor="middle", class_="halo")
