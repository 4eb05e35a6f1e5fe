"""The charts of a picture: each drawn by matplotlib into an area of its own, in parts of it, 0 to 1.

Scales and ticks are those of the page, and text is never read as mathematics.  Rooms are inches, type is in points.
"""

import functools
import math
import re
import textwrap
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gapscope.report.canvas import COLOURS
from gapscope.report.charts import FEW, Curves, Dot, Dots, dash, extent, growing, marked
from gapscope.report.figures import number
from gapscope.report.map_chart import Map, edges, levels, shades
from gapscope.report.page_style import LIGHT
from gapscope.report.svg import Axis
from gapscope.report.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 72  # in an inch
TYPE, TITLE = 7.0, 8.0  # points
STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": TYPE,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.labelpad": 2.0,
    "grid.color": "#e4e7eb",
    "grid.linewidth": 0.5,
    **{f"{side}tick.major.{what}": much for side in "xy" for what, much in (("size", 2), ("width", 0.6), ("pad", 2))},
    "legend.frameon": False,
    "legend.labelspacing": 0.2,
    "legend.borderpad": 0.2,
    "legend.borderaxespad": 0.1,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "lines.scale_dashes": False,
    "patch.linewidth": 0.0,
    "hatch.linewidth": 0.4,
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "gapscope",
    "pdf.fonttype": 42,  # journals refuse type 3
}
PALETTE: list[str] = re.findall(r"--c\d: (#\w+)", LIGHT)
MARKERS = "osD^"
GREY = "#57606a"
LABELS, WORDS = 2.4, 1.9  # beside dots, at most
SPARE = 0.15  # by which the title of an axis may pass its ends


@functools.cache
def _width(text: str, *, bold: bool = False) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=TITLE if bold else TYPE, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / POINTS


def wrapped(text: str, room: float, *, bold: bool = False) -> list[str]:
    """Return a text as lines no wider than the room: by the mean width of its own letters."""
    said = printable(text)
    wide = _width(said, bold=bold)
    if wide <= room:
        return [said]
    return textwrap.wrap(said, max(int(len(said) * 0.93 * room / wide), 1), break_on_hyphens=False)


def _scaled(area: "Axes", side: Literal["x", "y"], scale: Axis, title: str, most: int = 6) -> None:
    """Draw the ticks of a side and its title, with what must be said of the scale."""
    line, room = (area.xaxis, area.bbox.width) if side == "x" else (area.yaxis, area.bbox.height)
    ticks = scale.ticks(most)
    line.set_ticks([scale.at(tick) for tick in ticks], [number(tick, 6) for tick in ticks])
    said = title + (" (log scale)" if scale.log else "")
    line.set_label_text("\n".join(wrapped(said, room / area.figure.dpi + SPARE)))


def _colour(index: int) -> str:
    return PALETTE[index % len(PALETTE)]


def _look(index: int, given: Curves) -> dict[str, Any]:
    """Return how a curve looks."""
    dashes = [float(part) / 2 for part in dash(index, given.names[index]).split()]
    return {**_mark(index), "linestyle": (0, dashes) if dashes else "-"}


def _mark(index: int) -> dict[str, Any]:
    return {"color": _colour(index), "marker": MARKERS[index % len(MARKERS)], "linestyle": ""}


def samples(given: Curves | Dots) -> list[Any]:
    """Return a sample of every mark, for a legend; of long curves only the line."""
    from matplotlib.lines import Line2D

    if isinstance(given, Dots):
        return [Line2D([], [], **_mark(i)) for i in range(len(given.series))]
    bare = {"marker": ""} if len(given.places) > FEW else {}
    return [Line2D([], [], **(_look(i, given) | bare)) for i in range(len(given.names))]


def draw(area: "Axes", given: Curves | Dots) -> None:
    """Draw curves or dots."""
    if isinstance(given, Curves):
        _curves(area, given)
    else:
        _dots(area, given)


def _curves(area: "Axes", given: Curves) -> None:
    up = extent(given, Axis(low=0, high=1, start=0, end=1))
    along = Axis(low=min(given.places), high=max(given.places), start=0.02, end=0.98, log=growing(given.places))
    x = [along.at(place) for place in given.places]
    for i, values in reversed(list(enumerate(given.values.tolist()))):  # the first curve lies on top
        y = [up.at(value) for value in values]
        if given.filled:
            area.fill_between(x, up.start, y, color=PALETTE[0], alpha=0.25)
        area.plot(x, y, markevery=marked(values), **_look(i, given))
        bars = [(at, *map(up.at, ends)) for at, ends in zip(x, given.ends[:, i].T.tolist(), strict=True)]
        for at, low, high in bars:
            if not math.isnan(low):
                area.vlines(at, low, high, color=_colour(i), linewidth=0.7, alpha=0.75)
    area.grid()
    area.spines[["top", "right"]].set_visible(False)
    _scaled(area, "x", along, given.across)
    _scaled(area, "y", up, given.upward)


def rooms(given: Dots) -> tuple[float, float]:
    """Return the room for the labels to the left of the dots and for the words to their right."""
    labels = max((_width(printable(label)) for label, _ in given.rows), default=0)
    words = max((_width(printable(dot.words)) for _, dots in given.rows for dot in dots), default=0)
    return min(labels + 0.1, LABELS), min(words + 0.1, WORDS)


def height(row: tuple[str, tuple[Dot, ...]]) -> float:
    """Return how many lines a row of dots takes."""
    label, dots = row
    return max(len(wrapped(label, LABELS - 0.1)), sum(len(wrapped(dot.words, WORDS - 0.1)) for dot in dots)) + 0.3


def _dots(area: "Axes", given: Dots) -> None:
    scale = extent(given, Axis(low=0, high=1, start=0.03, end=0.97))
    tall = sum(map(height, given.rows)) + 0.6
    area.set_ylim(tall, 0)
    area.set_yticks([])
    area.spines[["left", "top", "right"]].set_visible(False)
    if given.line is not None:
        area.axvline(scale.at(given.line), color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
    beyond = 0.06 * area.figure.dpi / area.bbox.width
    foot = 0.3
    for label, several in given.rows:
        middle = foot + height((label, several)) / 2
        area.text(-beyond, middle, "\n".join(wrapped(label, LABELS - 0.1)), ha="right", va="center")
        words = [wrapped(dot.words, WORDS - 0.1) for dot in several]
        y = middle - sum(map(len, words)) / 2
        for dot, said in zip(several, words, strict=True):
            _dot(area, dot, scale, y + len(said) / 2)
            area.text(1 + beyond, y + len(said) / 2, "\n".join(said), va="center")
            y += len(said)
        foot += height((label, several))
    area.grid(axis="x")
    _scaled(area, "x", scale, given.across)


def _dot(area: "Axes", dot: Dot, scale: Axis, y: float) -> None:
    look: dict[str, Any] = {"color": _colour(dot.series), "clip_on": False}
    if np.isfinite(dot.box).all():
        low, high = map(scale.at, dot.box)
        area.fill_betweenx([y - 0.35, y + 0.35], low, high, alpha=0.3, **look)
    if not np.isnan(dot.interval).any():
        low, high = map(scale.at, dot.interval)
        area.plot([low, high], [y, y], **look)
        area.plot(low, y, marker="<" if dot.interval[0] < scale.low else "|", **look)  # an arrow: it goes on
        area.plot(high, y, marker=">" if dot.interval[1] > scale.high else "|", **look)
    if np.isfinite(dot.value) and (dot.value > 0 or not scale.log):
        area.plot(scale.at(dot.value), y, **_mark(dot.series), clip_on=False)


def draw_map(area: "Axes", given: Map, beside: "Axes") -> None:
    """Draw a map, and beside it the scale of its colours."""
    from matplotlib.colors import LinearSegmentedColormap

    scale, columns, rows = shades(given.values), edges(given.columns), edges(given.rows)
    along = Axis(low=columns[0], high=columns[-1], start=0, end=1)
    up = Axis(low=rows[0], high=rows[-1], start=0, end=1)
    look: dict[str, Any] = {"cmap": LinearSegmentedColormap.from_list("gapscope", COLOURS), "vmin": 0, "vmax": 1}
    heights = np.ma.masked_invalid(scale.heights(given.values))
    area.patch.set(facecolor="white", hatch="/////", edgecolor=GREY)  # shows where a value is missing
    area.pcolormesh([along.at(x) for x in columns], [up.at(y) for y in rows], heights, **look)
    lines = sorted(set(scale.heights(np.array(levels(scale))).tolist()))
    middles = [along.at(place) for place in given.columns], [up.at(place) for place in given.rows]
    area.contour(*middles, heights, lines, colors="white", linewidths=0.6)
    _scaled(area, "x", along, given.across, 5)
    _scaled(area, "y", up, given.upward)
    for name, y, x in given.marks:
        _named(area, name, along.at(x), up.at(y))
    steps = np.linspace(0, 1, 65)
    beside.pcolormesh([0, 1], steps, (steps[:-1, None] + steps[1:, None]) / 2, **look)
    beside.hlines(lines, 0, 1, color="white", linewidth=0.6)
    beside.yaxis.tick_right()
    beside.yaxis.set_label_position("right")
    beside.set_xticks([])
    if scale.low < scale.high:
        _scaled(beside, "y", Axis(low=scale.low, high=scale.high, start=0, end=1, log=scale.log), given.unit)


def _named(area: "Axes", name: str, x: float, y: float) -> None:
    """Draw a cross and a name above it, on a ground of its own, towards the middle."""
    area.plot(x, y, marker="X", color="white", markeredgecolor="black", markersize=6)
    ground = {"facecolor": "white", "alpha": 0.8, "pad": 1}
    side = "left" if x < 0.33 else "right" if x > 0.67 else "center"
    area.annotate(printable(name), (x, y), (0, 6 if y < 0.8 else -12), textcoords="offset points", ha=side, bbox=ground)
