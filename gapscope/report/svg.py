"""Elements of hand-written SVG, scales with round ticks, and text that fits: what the charts of a page are made of.

Strings come from files that anybody may have written: every one passes `clean`.  Colours and type are classes, whose
looks `page_style` holds, so that one drawing serves the light and the dark scheme.
"""

import html
import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from gapscope.report.figures import number
from gapscope.report.terminal import printable
from gapscope.results import Array

WIDTH = 420.0  # units: one of them is 0.85 pixels on a telephone and 1.25 on a desk
LETTER = 6.9  # width of a letter of the labels, generously: the reader's sans-serif is not known here
LINE = 16.0
DECADES = 6  # a log axis shows no less: what lies lower is drawn on its foot
HUGE = 1e300  # beyond, the length of an axis would be infinite
RANGE = 100.0  # beyond, an axis is logarithmic


def clean(text: str) -> str:
    """Return a text for HTML, without control characters."""
    return html.escape(printable(text))


def element(tag: str, *children: str, **attributes: str | float) -> str:
    """Return an element; children are markup already, attributes are not.

    Trailing underscores are dropped and others become hyphens: `class_`, `text_anchor`.
    """
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{tag}{given}>{''.join(children)}</{tag}>" if children else f"<{tag}{given}/>"


def _value(value: str | float) -> str:
    if isinstance(value, str):
        return clean(value)
    rounded = f"{value:.1f}".removesuffix(".0")
    return "0" if rounded == "-0" else rounded


def text(x: float, y: float, content: str, **attributes: str | float) -> str:
    """Return a label."""
    return element("text", clean(content), x=x, y=y, **attributes)


def hover(*lines: str) -> str:
    """Return what is shown where the pointer rests."""
    return element("title", "\n".join(map(clean, lines)))


def drawing(height: float, said: str, parts: Iterable[str]) -> str:
    """Return a drawing that a screen reader reads as `said`."""
    box = f"0 0 {WIDTH:.0f} {math.ceil(height)}"
    return element("svg", *parts, viewBox=box, role="img", aria_label=said)


def line(points: Sequence[tuple[float, float]]) -> str:
    """Return the data of a path through points; a point that is not finite interrupts it."""
    parts, pen = [], "M"
    for x, y in points:
        if not (math.isfinite(x) and math.isfinite(y)):
            pen = "M"
            continue
        parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L"
    return "".join(parts)


def fitted(content: str, room: float) -> list[str]:
    """Return a text as lines no wider than so many units; a long name breaks rather than loses its end."""
    letters = max(int(room / LETTER), 1)
    return textwrap.wrap(printable(content), letters, break_on_hyphens=False) or [""]


def width(content: str) -> float:
    """Return the units that a label takes at most."""
    return LETTER * len(printable(content))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Numbers from low to high onto units from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return where a number lies, on the axis' ends if it lies beyond; NaN if it is NaN."""
        if math.isnan(value):
            return math.nan
        low, high, inside = (self._scaled(one) for one in (self.low, self.high, min(max(value, self.low), self.high)))
        return self.start + (self.end - self.start) * (inside - low) / (high - low)

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, most: int = 6) -> list[float]:
        """Return round numbers on the axis, at most so many: 1, 2 or 5 times a power of ten, or whole decades."""
        return _decades(self.low, self.high, most) if self.log else _steps(self.low, self.high, most)


def axis(values: Array, *, start: float, end: float, log: bool | None = None, foot: float | None = None) -> Axis:
    """Return the axis for numbers, wider than they are by a twentieth; `foot` is a number that it must hold.

    It is logarithmic where positive numbers span more than two decades, unless `log` decides.
    """
    finite = np.clip(values[np.isfinite(values)], -HUGE, HUGE)
    positive = finite[finite > 0]
    if log is None:
        log = bool(finite.size and finite.min() > 0 and finite.max() > RANGE * finite.min())
    if log and positive.size:
        high = float(positive.max())
        low = max(float(positive.min()), high * 10.0**-DECADES)
        margin = (high / low) ** 0.05 if high > low else 2.0
        return Axis(low=low / margin, high=high * margin, start=start, end=end, log=True)
    held = [*finite.tolist(), *([] if foot is None else [foot])] or [0.0, 1.0]
    low, high = min(held), max(held)
    margin = (high / 20 - low / 20) or abs(high) / 20 or 1.0
    low, high = low - margin * (low != foot), high + margin * (high != foot)
    return Axis(low=low, high=high, start=start, end=end)


def _steps(low: float, high: float, most: int) -> list[float]:
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _decades(low: float, high: float, most: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for factors in ((1, 2, 5), (1, 3), (1,)):
        ticks = [f * 10.0**p for p in range(first, last + 1) for f in factors if low <= f * 10.0**p <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 2:  # less than a factor of two: the steps of a linear axis are rounder than none
        return _steps(low, high, most)
    return ticks[:: math.ceil(len(ticks) / most)]


def across(scale: Axis, *, top: float, foot: float, title: str, most: int = 6) -> list[str]:
    """Return a horizontal axis under a drawing: grid, ticks and title."""
    parts = []
    for tick in scale.ticks(most):
        x = scale.at(tick)
        parts.append(element("path", d=f"M{x:.1f} {top:.1f}V{foot:.1f}", class_="grid"))
        parts.append(text(x, foot + LINE, number(tick, 6), text_anchor="middle", class_="tick"))
    said = title + (" (log scale)" if scale.log else "")
    middle = (scale.start + scale.end) / 2
    return [*parts, text(middle, foot + 2.2 * LINE, said, text_anchor="middle", class_="axis")]


def upward(scale: Axis, *, left: float, right: float, title: str) -> list[str]:
    """Return a vertical axis: grid and ticks beside the drawing, the title above it."""
    parts = []
    for tick in scale.ticks():
        y = scale.at(tick)
        parts.append(element("path", d=f"M{left:.1f} {y:.1f}H{right:.1f}", class_="grid"))
        parts.append(text(left - 6, y + 4, number(tick, 6), text_anchor="end", class_="tick"))
    said = title + (" (log scale)" if scale.log else "")
    return [*parts, text(0, scale.end - 0.8 * LINE, said, class_="axis")]
