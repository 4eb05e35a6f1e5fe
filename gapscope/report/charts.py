"""The charts of a page as SVG: curves and dots with their errors, and maps (`map_chart`).

Colour is never the only signal: curves differ in their dashes and dots in their shape, and every chart names its
marks.  The same numbers give the same bytes.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.report.figures import figure, number
from gapscope.report.map_chart import Map, drawn
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
FEW = 12  # places that a curve marks


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves over the same places; `words` name the places, `log` makes the upward axis logarithmic.

    `errors` reach to each side of a value; NaN and 0 have no bar.
    """

    said: str
    across: str
    upward: str
    places: tuple[float, ...]
    words: tuple[str, ...]
    names: tuple[str, ...]
    values: Array  # (curves, places)
    errors: Array | None = None  # (curves, places)
    filled: bool = False
    log: bool | None = None

    @property
    def ends(self) -> Array:
        """Return where the bars end, below and above; NaN where there is none."""  # (2, curves, places)
        errors = np.full(self.values.shape, math.nan) if self.errors is None else self.errors
        with np.errstate(over="ignore", invalid="ignore"):  # beyond the largest float there is no bar
            ends = np.stack((self.values - errors, self.values + errors))
        return np.where((errors > 0) & np.isfinite(ends).all(axis=0), ends, math.nan)


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


Content = Curves | Dots | Map


def chart(content: Content) -> str:
    """Draw a chart of any kind."""
    if isinstance(content, Curves):
        return _curves(content)
    return _dots(content) if isinstance(content, Dots) else drawn(content)


def dash(index: int, name: str) -> str:
    """Return the dashes of a curve: training data are solid and test data dashed, as in Keskar et al., figure 3."""
    return DASHES[{"train": 0, "test": 1}.get(name, index) % len(DASHES)]


def _curves(given: Curves) -> str:
    legend, top = _legend([(name, _sample(i, name)) for i, name in enumerate(given.names)])
    top += 1.8 * LINE
    up = extent(given, Axis(low=0, high=1, start=top + TALL, end=top))
    left = 14 + max(width(number(tick, 6)) for tick in up.ticks())
    inset = 0 if given.errors is None else 8  # the first bar stays off the ticks
    low, high = min(given.places), max(given.places)
    along = Axis(low=low, high=high, start=left + inset, end=WIDTH - 12 - inset, log=growing(given.places))
    parts = [*legend, *upward(up, left=left, right=WIDTH - 12, title=given.upward)]
    parts += across(along, top=top, foot=top + TALL, title=given.across)
    for i, name in reversed(list(enumerate(given.names))):  # the first curve lies on top
        values = given.values[i].tolist()
        points = [(along.at(x), up.at(y)) for x, y in zip(given.places, values, strict=True)]
        if given.filled and points:
            area = f"{line(points)}L{along.end:.1f} {up.start:.1f}L{along.start:.1f} {up.start:.1f}Z"
            parts.append(element("path", d=area, class_=f"area a{i % COLOURS}"))
        looks = {"stroke_dasharray": dash(i, name)} if dash(i, name) else {}
        parts.append(element("path", d=line(points), class_=f"curve c{i % COLOURS}", **looks))
        parts += _bars(given, i, along, up)
        parts += [_shape(*points[place], i) for place in marked(values)]
    parts += _strips(given, along, top)
    return drawing(top + TALL + 2.6 * LINE, given.said, parts)


def marked(values: Sequence[float]) -> list[int]:
    """Return which places of a curve get a mark: all of few, else those that no line reaches."""
    shown = [False, *map(math.isfinite, values), False]
    few = len(values) <= FEW
    return [i for i in range(len(values)) if shown[i + 1] and (few or not (shown[i] or shown[i + 2]))]


def _bars(given: Curves, curve: int, along: Axis, up: Axis) -> Iterator[str]:
    """Yield the bars of a curve as one path; an end beyond the axis has no cap."""
    cap = 3 if len(given.places) <= FEW else 0
    parts = []
    for place, low, high in zip(given.places, *given.ends[:, curve].tolist(), strict=True):
        if not math.isnan(low):
            x, ends = along.at(place), [end for end in (low, high) if up.low <= end <= up.high]
            parts.append(f"M{x:.1f} {up.at(low):.1f}V{up.at(high):.1f}")
            parts += [f"M{x - cap:.1f} {up.at(end):.1f}h{2 * cap}" for end in ends if cap]
    if parts:
        yield element("path", d="".join(parts), class_=f"error c{curve % COLOURS}")


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
        errors = [math.nan] * len(given.names) if given.errors is None else given.errors[:, i].tolist()
        values = [
            ": ".join(filter(None, (name, figure(value, error))))
            for name, value, error in zip(given.names, given.values[:, i].tolist(), errors, strict=True)
        ]
        said = hover(f"{given.across} {given.words[i]}", *values)
        yield element("rect", said, x=left, y=top, width=right - left, height=TALL, class_="hit")


# Dots


def _dots(given: Dots) -> str:
    legend, y = _legend([(name, [_shape(13, -4, i)]) for i, name in enumerate(given.series)])
    words = [dot.words for _, several in given.rows for dot in several]
    right = WIDTH - 12 - min(max(map(width, words), default=0.0), WIDTH / 2.2)
    scale = extent(given, Axis(low=0, high=1, start=18, end=right - 18))
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


def extent(given: Curves | Dots, frame: Axis) -> Axis:
    """Return the axis for values and intervals; an interval much wider than all values runs out of the drawing."""
    foot = None
    if isinstance(given, Curves):
        values, ends, foot = given.values.ravel(), given.ends.ravel(), 0.0 if given.filled else None
    else:
        dots = [dot for _, several in given.rows for dot in several]
        values = np.array([dot.value for dot in dots] + ([] if given.line is None else [given.line]))
        ends = np.array([end for dot in dots for end in (*dot.interval, *dot.box)])
    plain = axis(values, start=frame.start, end=frame.end, log=given.log, foot=foot)
    far = 10 * min(np.abs(values[np.isfinite(values)]).max(initial=0.0), HUGE)
    reach = (plain.low / 30, plain.high * 30) if plain.log else (-far, far)
    inside = ends[(ends >= reach[0]) & (ends <= reach[1])]
    held = np.concatenate((values, inside))
    return axis(held, start=frame.start, end=frame.end, log=plain.log, foot=foot)


def _dot(dot: Dot, scale: Axis, y: float) -> Iterator[str]:
    kind = dot.series % COLOURS
    if math.isfinite(dot.box[0]) and math.isfinite(dot.box[1]):
        left, right = scale.at(dot.box[0]), scale.at(dot.box[1])
        yield element("rect", x=left, y=y - 5, width=max(right - left, 1.0), height=10, class_=f"box a{kind}")
    low, high = dot.interval
    if not math.isnan(low + high):
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
