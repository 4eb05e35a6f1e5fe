"""Series and maps as lines of characters: block characters and colour where they can be had, ASCII otherwise.

Every drawing says its scale in words, so that nothing depends on telling shades apart.  Where there are more points
than characters, the drawing says what a character stands for.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from gapscope.report.canvas import (
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
from gapscope.report.document import Heat, Series
from gapscope.report.figures import count, number
from gapscope.report.maps import heat
from gapscope.results import Array

LEVELS = " ▁▂▃▄▅▆▇█"
ASCII_LEVELS = " __--==##"  # within a tall drawing; a single line has shades instead
TALL = {"bars": 8, "line": 4, "strip": 1}  # lines of characters for a single curve
TICKS = 5  # an axis no longer than this shows the whole numbers on it


def draw(item: Series | Heat, cleaned: Callable[[str], str], canvas: Canvas) -> Iterator[Drawn]:
    """Draw a series or a map whose strings were cleaned."""
    clean = relabelled(item, cleaned)
    return series(clean, canvas) if isinstance(clean, Series) else heat(clean, canvas)


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
    scales = _scales(drawing, values)
    tall = TALL[drawing.style] if len(values) == 1 else 1
    names = drawing.names or ("",) * len(values)
    marks = _ticks(scales[0], tall)
    left = max(len(name) for name in (*names, *marks)) + 1 if any((*names, *marks)) else 0
    ranges = [_range(curve, scale) for curve, scale in zip(values, scales, strict=True)]
    ranges = ranges if len(values) > 1 and drawing.style != "strip" else [""] * len(values)
    room = max(min(canvas.width - 2 - left - max(map(len, ranges)) - 1, WIDEST), 8)
    for name, curve, scale, between in zip(names, values, scales, ranges, strict=True):
        if drawing.style == "strip":
            yield from _strip(name.ljust(left), scale.heights(curve), room, canvas)
        else:
            heights = scale.heights(_fitted(curve, room))
            sides = [name] if tall == 1 else marks
            for line in _columns(sides, left, heights, tall, canvas):
                yield (*line, Span(f" {between}", "dim"))
    if drawing.style != "strip":
        yield Span("  " + " " * left, "dim"), Span(_axis(drawing, room), "dim")
    yield (Span("  " + " · ".join(_remarks(drawing, values, scales, room)), "dim"),)


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


def _scales(drawing: Series, values: Array) -> list[Scale]:
    """Return one scale per curve, whose row says its range; strips, whose shades are compared, share one."""
    apart = [values] * len(values) if drawing.style == "strip" else values
    return [scale_of(part[np.isfinite(part)], bars=drawing.style == "bars") for part in apart]


def _ticks(scale: Scale, tall: int) -> list[str]:
    """Return what stands left of each line of a tall drawing, from above; a low one is described below it."""
    if tall == 1:
        return [""]
    return [number(scale.high, 3), *[""] * (tall - 2), number(scale.low, 3)]


def _range(curve: Array, scale: Scale) -> str:
    finite = curve[np.isfinite(curve)]
    if not finite.size:
        return "not finite"
    low, high = (number(float(end), 3) for end in (finite.min(), finite.max()))
    return (f"{low} to {high}" if low != high else f"all {low}") + scale.log * ", log"


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
                cells.append(Span(level * wide, fore=colour(height) if canvas.colours else ""))
            else:
                cells.append(Span(shade(height) * wide))
        yield tuple(cells)


def _axis(drawing: Series, room: int) -> str:
    """Return the first and last label and the whole numbers between them, each under its point."""
    points, labels = len(drawing.labels), drawing.labels
    each = _stretch(points, room) if points <= room else room / points
    ticks = {0: label(labels[0]), points - 1: label(labels[-1])}
    if rising(labels):
        low, high = float(labels[0]), float(labels[-1])
        whole = range(math.ceil(low), math.floor(high) + 1) if high - low <= TICKS else range(0)
        inside = {place: str(tick) for tick in whole if (place := nearest(labels, tick)) is not None}
        ticks = {0: ticks[0], **inside, points - 1: ticks[points - 1]}
    last = ticks.pop(points - 1)
    end = max(round(points * each) - len(last), len(ticks[0]) + 1)
    axis = ticks.pop(0)
    for place, text in ticks.items():
        start = round((place + 0.5) * each)
        if len(axis) < start < end - len(text):
            axis = axis.ljust(start) + text
    return axis.ljust(end) + last


def _remarks(drawing: Series, values: Array, scales: Sequence[Scale], room: int) -> Iterator[str]:
    apart = len(values) > 1 and drawing.style != "strip"
    if apart:
        yield "each on its own scale"
    elif drawing.style == "line":
        yield f"first {number(float(values[0, 0]))}, last {number(float(values[0, -1]))}"
    for word, found in (("lowest", np.nanargmin), ("highest", np.nanargmax)):
        if word == "lowest" and drawing.style == "bars":
            continue
        curve, point = np.unravel_index(found(np.where(np.isfinite(values), values, np.nan)), values.shape)
        where = label(drawing.labels[int(point)])
        of = f" of {drawing.names[int(curve)]}" if drawing.names else ""
        at = f"in {where}" if drawing.style == "strip" else f"at {where}"
        yield f"{word} {number(float(values[curve, point]), 3 if apart else 4)}{of} {at}"
    under = sum(int((curve < scale.low).sum()) for curve, scale in zip(values, scales, strict=True) if scale.log)
    blank = f"{count(under)} values under {'the log scales' if apart else number(scales[0].low, 2)} are blank"
    if not apart and scales[0].log:
        yield scales[0].said + (f" ({blank})" if under else "")
    elif under:
        yield blank
    if drawing.style != "strip" and values.shape[1] > room:
        yield f"{count(values.shape[1])} points: each column is the highest of {math.ceil(values.shape[1] / room)}"
    if odd := int((~np.isfinite(values)).sum()):
        yield f"{count(odd)} not finite: {ODD}"
