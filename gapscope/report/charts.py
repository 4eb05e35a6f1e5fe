"""The charts of a page as SVG: curves, dots with their intervals, and maps with contours.

Colour is never the only signal: curves differ in their dashes and dots in their shape, and every chart names its
marks.  The same numbers give the same bytes.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.report.canvas import RANGE, Scale, colour
from gapscope.report.figures import number
from gapscope.report.svg import (
    HUGE,
    LINE,
    WIDTH,
    Axis,
    across,
    axis,
    drawing,
    element,
    fitted,
    hover,
    line,
    text,
    upward,
    width,
)
from gapscope.results import Array

TALL = 220.0  # units of the area of curves
COLOURS = 6
HOVERS = 256  # places of a curve that answer to the pointer
DASHES = ("", "7 4", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
STEPS = 9  # contours
FEW = 12  # places that a curve marks


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves over the same places; `words` name the places, `log` makes the upward axis logarithmic."""

    said: str
    across: str
    upward: str
    places: tuple[float, ...]
    words: tuple[str, ...]
    names: tuple[str, ...]
    values: Array  # (curves, places)
    filled: bool = False
    log: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One number with its interval, a wider one behind it (quartiles, say), and both in words."""

    value: float
    words: str
    interval: tuple[float, float] = (math.nan, math.nan)
    box: tuple[float, float] = (math.nan, math.nan)
    series: int = 0


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Rows of dots on one axis; `line` is drawn through a number that means "no difference"."""

    said: str
    across: str
    rows: tuple[tuple[str, tuple[Dot, ...]], ...]
    series: tuple[str, ...] = ()
    line: float | None = None
    log: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Map:
    """Numbers over a plane, with contours; `marks` are names and places along columns and rows."""

    said: str
    across: str
    upward: str
    unit: str
    columns: Array  # (columns,), rising
    rows: Array  # (rows,), rising
    values: Array  # (rows, columns)
    marks: tuple[tuple[str, float, float], ...] = ()


Content = Curves | Dots | Map


def chart(content: Content) -> str:
    """Draw a chart of any kind."""
    if isinstance(content, Curves):
        return _curves(content)
    return _dots(content) if isinstance(content, Dots) else _map(content)


def dash(index: int, name: str) -> str:
    """Return the dashes of a curve: training data are solid and test data dashed, as in Keskar et al., figure 2."""
    return DASHES[{"train": 0, "test": 1}.get(name, index) % len(DASHES)]


def _curves(given: Curves) -> str:
    legend, top = _legend([(name, _sample(i, name)) for i, name in enumerate(given.names)])
    top += 1.8 * LINE
    up = axis(given.values, start=top + TALL, end=top, log=given.log, foot=0.0 if given.filled else None)
    left = 14 + max(width(number(tick, 6)) for tick in up.ticks())
    along = Axis(low=min(given.places), high=max(given.places), start=left, end=WIDTH - 12, log=growing(given.places))
    parts = [*legend, *upward(up, left=left, right=WIDTH - 12, title=given.upward)]
    parts += across(along, top=top, foot=top + TALL, title=given.across)
    for i, (name, values) in enumerate(zip(given.names, given.values.tolist(), strict=True)):
        points = [(along.at(x), up.at(y)) for x, y in zip(given.places, values, strict=True)]
        if given.filled and points:
            area = f"{line(points)}L{along.end:.1f} {up.start:.1f}L{along.start:.1f} {up.start:.1f}Z"
            parts.append(element("path", d=area, class_=f"area a{i % COLOURS}"))
        looks = {"stroke_dasharray": dash(i, name)} if dash(i, name) else {}
        parts.append(element("path", d=line(points), class_=f"curve c{i % COLOURS}", **looks))
        if len(points) <= FEW:
            parts += [_shape(x, y, i) for x, y in points if math.isfinite(y)]
    parts += _strips(given, along, top)
    return drawing(top + TALL + 2.6 * LINE, given.said, parts)


def growing(places: Sequence[float]) -> bool:
    """Say whether places grow by factors, as batch sizes do, rather than in even steps."""
    steps = [after - before for before, after in itertools.pairwise(places)]
    return places[0] > 0 and places[-1] > 8 * places[0] and max(steps) > 3 * min(steps)


def _sample(index: int, name: str) -> list[str]:
    looks = {"stroke_dasharray": dash(index, name)} if dash(index, name) else {}
    return [element("path", d="M0 -4H26", class_=f"curve c{index % COLOURS}", **looks)]


def _legend(entries: Sequence[tuple[str, list[str]]], lead: float = 32.0) -> tuple[list[str], float]:
    """Return names beside their samples, in as many lines as they need, and the height of them all; one needs none."""
    parts: list[str] = []
    x, y = 0.0, 0.0
    if len(entries) < 2:
        return parts, y
    y = LINE
    for name, sample in entries:
        lines = fitted(name, WIDTH - lead)
        wide = lead + max(map(width, lines)) + 14
        if x and x + wide > WIDTH:
            x, y = 0.0, y + LINE
        parts.append(element("g", *sample, transform=f"translate({x:.0f} {y:.0f})"))
        for each in lines:
            parts.append(text(x + lead, y, each, class_="label"))
            y += LINE
        y -= LINE
        x += wide
    return parts, y + 0.4 * LINE


def _strips(given: Curves, along: Axis, top: float) -> Iterator[str]:
    """Yield an invisible strip around each place, with the values of all curves there."""
    every = math.ceil(len(given.places) / HOVERS)
    places = list(range(0, len(given.places), every))
    middles = [along.at(given.places[i]) for i in places]
    edges = [along.start, *((a + b) / 2 for a, b in itertools.pairwise(middles)), along.end]
    for i, left, right in zip(places, edges, edges[1:], strict=False):
        values = [
            f"{name}: {number(value)}" if name else number(value)
            for name, value in zip(given.names, given.values[:, i].tolist(), strict=True)
        ]
        said = hover(f"{given.across} {given.words[i]}", *values)
        yield element("rect", said, x=left, y=top, width=right - left, height=TALL, class_="hit")


# Dots


def _dots(given: Dots) -> str:
    legend, y = _legend([(name, [_shape(13, -4, i)]) for i, name in enumerate(given.series)])
    dots = [dot for _, several in given.rows for dot in several]
    right = WIDTH - 12 - min(max((width(dot.words) for dot in dots), default=0.0), WIDTH / 2.2)
    scale = extent(given, dots, Axis(low=0, high=1, start=18, end=right - 18))
    top, marks, bands = y, [], []
    for label, several in given.rows:
        for each in fitted(label, WIDTH) if label else ():
            y += LINE
            marks.append(text(0, y, each, class_="halo"))
        bands.append(y + 5)
        for dot in several:
            lines = fitted(dot.words, WIDTH - right)
            said = " ".join(filter(None, (label, given.series[dot.series] if given.series else "", dot.words)))
            marks.append(element("g", hover(said), *_dot(dot, scale, y + 0.75 * LINE)))
            for each in lines:
                y += LINE
                marks.append(text(WIDTH, y, each, text_anchor="end", class_="value"))
        y += 0.5 * LINE
        bands.append(y)
    ticks = max(int((scale.end - scale.start) / 45), 2)
    parts = [*legend, *across(scale, top=top, foot=y, title=given.across, most=ticks)]
    if given.line is not None:
        x = scale.at(given.line)
        beside = "".join(f"M{x:.1f} {low:.1f}V{high:.1f}" for low, high in zip(bands[::2], bands[1::2], strict=True))
        parts.append(element("path", d=beside, class_="even"))  # beside the dots only: labels stay free of it
    return drawing(y + 2.6 * LINE, given.said, [*parts, *marks])


def extent(given: Dots, dots: Sequence[Dot], frame: Axis) -> Axis:
    """Return the axis for values and intervals; an interval much wider than all values runs out of the drawing."""
    values = np.array([dot.value for dot in dots] + ([] if given.line is None else [given.line]))
    ends = np.array([end for dot in dots for end in (*dot.interval, *dot.box)])
    plain = axis(values, start=frame.start, end=frame.end, log=given.log)
    far = 10 * min(np.abs(values[np.isfinite(values)]).max(initial=0.0), HUGE)
    reach = (plain.low / 30, plain.high * 30) if plain.log else (-far, far)
    inside = ends[(ends >= reach[0]) & (ends <= reach[1])]
    return axis(np.concatenate((values, inside)), start=frame.start, end=frame.end, log=plain.log)


def _dot(dot: Dot, scale: Axis, y: float) -> Iterator[str]:
    kind = dot.series % COLOURS
    if math.isfinite(dot.box[0]) and math.isfinite(dot.box[1]):
        left, right = scale.at(dot.box[0]), scale.at(dot.box[1])
        yield element("rect", x=left, y=y - 5, width=max(right - left, 1.0), height=10, class_=f"box a{kind}")
    low, high = dot.interval
    if math.isfinite(low) and math.isfinite(high):
        left, right = scale.at(low), scale.at(high)
        ends = [(x, end) for x, end, cut in ((left, low, low < scale.low), (right, high, high > scale.high)) if not cut]
        caps = "".join(f"M{x:.1f} {y - 4:.1f}v8" for x, _ in ends)
        caps += f"M{left + 5:.1f} {y - 4:.1f}l-5 4l5 4" * (low < scale.low)  # an arrow: it goes on
        caps += f"M{right - 5:.1f} {y - 4:.1f}l5 4l-5 4" * (high > scale.high)
        yield element("path", d=f"M{left:.1f} {y:.1f}H{right:.1f}{caps}", class_=f"curve c{kind}")
    if math.isfinite(dot.value) and (dot.value > 0 or not scale.log):
        yield _shape(scale.at(dot.value), y, kind)


def _shape(x: float, y: float, kind: int) -> str:
    """Return a circle, square, diamond or triangle, alternately."""
    paths = (
        "M-4.5 0A4.5 4.5 0 1 0 4.5 0A4.5 4.5 0 1 0 -4.5 0Z",
        "M-4 -4H4V4H-4Z",
        "M0 -5.5L5.5 0L0 5.5L-5.5 0Z",
        "M0 -5L5 4H-5Z",
    )
    where = f"translate({x:.1f} {y:.1f})"
    return element("path", d=paths[kind % len(paths)], transform=where, class_=f"mark f{kind % COLOURS}")


# Maps


def _map(given: Map) -> str:
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
    for name, x, y in given.marks:
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
