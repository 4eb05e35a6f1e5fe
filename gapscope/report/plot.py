"""The figures of a report or a comparison as one picture for a paper: PNG, SVG or PDF, by matplotlib.

The figures, their scales and their ticks are those of the page; only the pen is another: every chart is laid out in
parts of its area, 0 to 1, and text is never read as mathematics.  The same content and the same matplotlib give the
same bytes, whatever a matplotlibrc says.  All sizes are inches.  The font is DejaVu Sans, which comes with matplotlib:
PNG and PDF show a character that it lacks as a box, SVG keeps the character.
"""

import functools
import io
import os
import re
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gapscope.errors import ReportError, UsageError
from gapscope.report.atomic import replace
from gapscope.report.canvas import COLOURS
from gapscope.report.charts import FEW, Content, Curves, Dot, Dots, Map, dash, edges, extent, growing, levels, shades
from gapscope.report.comparison_figures import chosen
from gapscope.report.figures import number
from gapscope.report.illustrations import Figure as Illustration
from gapscope.report.page_style import LIGHT
from gapscope.report.records import Comparison, Report
from gapscope.report.svg import Axis, axis
from gapscope.report.terminal import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAGIC = {  # how a file of each kind begins
    ".png": rb"\x89PNG\r\n",
    ".svg": rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)*(<!DOCTYPE svg[^>]*>\s*)?<svg",
    ".pdf": rb"%PDF-",
}
METADATA = {  # neither the date nor the version of matplotlib
    ".png": {"Software": "gapscope"},
    ".svg": {"Creator": "gapscope", "Date": None},
    ".pdf": {"Creator": "gapscope", "Producer": None, "CreationDate": None},
}
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
PALETTE = re.findall(r"--c\d: (#\w+)", LIGHT)
MARKERS = "osD^"
GREY = "#57606a"

DPI, PIXELS = 300, 60_000  # resolution of a PNG, and the height that none may pass
WIDE = 7.0  # both columns of a page
HALF = 3.4  # one of them
LINE = 0.14  # of text
TALL, SIDE = 1.7, 2.1  # height of curves, height and width of maps
LEFT, RIGHT = 0.62, 0.12  # beside curves and maps, for ticks and the upward title
LABELS, WORDS = 2.4, 1.9  # beside dots, at most
LEAST = 1.4  # of the dots themselves
UNDER, GAP = 0.4, 0.15  # for ticks and the title of the axis; between panels


def check(path: str | os.PathLike[str]) -> str:
    """Return the suffix of a picture that can be written there.

    Raises: UsageError if the suffix names no kind of picture or matplotlib is missing; ReportError if something other
    than such a picture is there.
    """
    place = Path(path)
    suffix = place.suffix.lower()
    if suffix not in MAGIC:
        raise UsageError(
            f"`--plot {place}` names no kind of picture. Expected a name that ends in {', '.join(MAGIC)}. Mend it."
        )
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"`--plot` cannot draw: {error}. Expected matplotlib. Install it: `pip install 'gapscope[plot]'`."
        ) from error
    if place.is_file() and place.stat().st_size:
        with place.open("rb") as stream:
            if not re.match(MAGIC[suffix], stream.read(1000), re.DOTALL):
                raise ReportError(
                    f"{place} exists and is no {suffix[1:].upper()}. Expected a new name or a picture of the same "
                    "kind. Name another place with `--plot`."
                )
    return suffix


def write(content: Report | Comparison, path: str | os.PathLike[str]) -> None:
    """Write the picture in one step.

    Raises: as `check`; ReportError if there is no figure, or if the place cannot be written.
    """
    suffix = check(path)
    replace(path, picture(content, suffix), option="--plot")


def picture(content: Report | Comparison, suffix: str) -> bytes:
    """Return the picture; the same content gives the same bytes.

    Raises: ReportError if nothing here has a figure.
    """
    import matplotlib

    figures = chosen(content)
    if not figures:
        raise ReportError(
            "Nothing here is better seen than read: there is no figure for `--plot`. Expected an array or a ratio with "
            "its interval. Measure more, or take the numbers with `--csv`."
        )
    out = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        drawn = _sheet(_rows(figures))
        dpi = min(DPI, PIXELS / drawn.get_figheight())
        drawn.savefig(out, format=suffix[1:], dpi=dpi, metadata=METADATA[suffix])
    return out.getvalue()


# The sheet


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One chart under its title."""

    title: str
    content: Content

    @property
    def legend(self) -> tuple[str, ...]:
        """What its marks are called; one kind of mark needs no name."""
        names = self.content.names if isinstance(self.content, Curves) else ()
        names = self.content.series if isinstance(self.content, Dots) else names
        return names if len(names) > 1 else ()

    @property
    def wide(self) -> float:
        """Width: dots whose labels leave too little room beside another chart take the whole sheet."""
        beside = sum(_beside(self.content)) if isinstance(self.content, Dots) else 0
        return HALF if beside + LEAST <= HALF else WIDE

    @property
    def lines(self) -> list[str]:
        """The title as it fits."""
        return _lines(self.title, self.wide, bold=True)

    @property
    def head(self) -> float:
        """Height of the title and the legend."""
        return LINE * (len(self.lines) + 0.5 + sum(len(_lines(name, HALF - LEFT)) for name in self.legend))

    @property
    def body(self) -> float:
        """Height of the chart."""
        if isinstance(self.content, Dots):
            return LINE * (sum(map(_lines_of, self.content.rows)) + 0.6)
        return SIDE if isinstance(self.content, Map) else TALL


def _rows(drawn: Sequence[Illustration]) -> list[list[Panel]]:
    """Return who stands beside whom: a narrow panel and the next narrow one; figures of several begin a row."""
    rows: list[list[Panel]] = []
    waiting: list[Panel] = []
    for one in drawn:
        waiting = [] if len(one.panels) > 1 else waiting
        for heading, chart in one.panels:
            name = one.title[:1].upper() + one.title[1:]
            panel = Panel(title=": ".join(filter(None, (name, heading))), content=chart)
            if panel.wide > HALF:
                rows.append([panel])
            elif waiting:
                waiting.append(panel)
                waiting = []
            else:
                waiting = [panel]
                rows.append(waiting)
    return rows


def _sheet(rows: Sequence[Sequence[Panel]]) -> "Figure":
    from matplotlib.figure import Figure

    heads, bodies = ([max(getattr(panel, part) for panel in row) for row in rows] for part in ("head", "body"))
    tall = GAP + sum(heads) + sum(bodies) + len(rows) * (UNDER + GAP)
    sheet = Figure(figsize=(WIDE + 2 * RIGHT, tall))
    top = tall - GAP
    for row, head, body in zip(rows, heads, bodies, strict=True):
        for position, panel in enumerate(row):
            _draw(sheet, panel, RIGHT + position * (WIDE - HALF), top, head)
        top -= head + body + UNDER + GAP
    return sheet


def _draw(sheet: "Figure", panel: Panel, left: float, top: float, head: float) -> None:
    """Draw a title, and a chart so far below it that the panels of a row stand level."""
    given = panel.content
    inset, right = _beside(given) if isinstance(given, Dots) else (LEFT, RIGHT)
    wide = SIDE if isinstance(given, Map) else panel.wide - inset - right
    area = _area(sheet, left + inset, top - head, wide, panel.body)
    place = left / sheet.get_figwidth(), top / sheet.get_figheight()
    sheet.text(*place, "\n".join(panel.lines), size=TITLE, weight="bold", va="top")
    if isinstance(given, Curves):
        _curves(area, given)
    elif isinstance(given, Dots):
        _dots(area, given)
    else:
        _map(area, given, _area(sheet, left + inset + wide + 0.1, top - head, 0.1, panel.body))
    if panel.legend:
        names = ["\n".join(_lines(name, HALF - LEFT)) for name in panel.legend]
        long = 3 if isinstance(given, Curves) else 1
        area.legend(_samples(given), names, loc="lower left", bbox_to_anchor=(0, 1), handlelength=long)


def _area(sheet: "Figure", left: float, top: float, wide: float, tall: float) -> "Axes":
    across, up = sheet.get_figwidth(), sheet.get_figheight()
    area = sheet.add_axes((left / across, (top - tall) / up, wide / across, tall / up))
    area.set(xlim=(0, 1), ylim=(0, 1))
    return area


@functools.cache
def _width(text: str, *, bold: bool = False) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=TITLE if bold else TYPE, weight="bold" if bold else "normal")
    return float(text_to_path.get_text_width_height_descent(text, font, False)[0]) / POINTS


def _lines(text: str, room: float, *, bold: bool = False) -> list[str]:
    """Return a text as lines no wider than the room: by the mean width of its own letters."""
    said = printable(text)
    wide = _width(said, bold=bold)
    if wide <= room:
        return [said]
    return textwrap.wrap(said, max(int(len(said) * 0.93 * room / wide), 1), break_on_hyphens=False)


# The charts


def _scaled(area: "Axes", side: Literal["x", "y"], scale: Axis, title: str, most: int = 6) -> None:
    """Draw the ticks of a side and its title, with what must be said of the scale."""
    line, room = (area.xaxis, area.bbox.width) if side == "x" else (area.yaxis, area.bbox.height)
    ticks = scale.ticks(most)
    line.set_ticks([scale.at(tick) for tick in ticks], [number(tick, 6) for tick in ticks])
    said = title + (" (log scale)" if scale.log else "")
    line.set_label_text("\n".join(_lines(said, room / area.figure.dpi + GAP)))


def _look(index: int, given: Curves) -> dict[str, Any]:
    """Return how a curve looks; a short one marks its places."""
    dashes = [float(part) / 2 for part in dash(index, given.names[index]).split()]
    marker = MARKERS[index % len(MARKERS)] if len(given.places) <= FEW else ""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": (0, dashes) if dashes else "-", "marker": marker}


def _mark(index: int) -> dict[str, Any]:
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)], "linestyle": ""}


def _samples(given: Content) -> list[Any]:
    from matplotlib.lines import Line2D

    if isinstance(given, Curves):
        return [Line2D([], [], **_look(i, given)) for i in range(len(given.names))]
    return [Line2D([], [], **_mark(i)) for i in range(len(given.series))] if isinstance(given, Dots) else []


def _curves(area: "Axes", given: Curves) -> None:
    up = axis(given.values, start=0, end=1, log=given.log, foot=0.0 if given.filled else None)
    along = Axis(low=min(given.places), high=max(given.places), start=0.02, end=0.98, log=growing(given.places))
    x = [along.at(place) for place in given.places]
    for i, values in enumerate(given.values.tolist()):
        y = [up.at(value) for value in values]
        if given.filled:
            area.fill_between(x, up.start, y, color=PALETTE[0], alpha=0.25)
        area.plot(x, y, **_look(i, given))
    area.grid()
    area.spines[["top", "right"]].set_visible(False)
    _scaled(area, "x", along, given.across)
    _scaled(area, "y", up, given.upward)


def _beside(given: Dots) -> tuple[float, float]:
    """Return the room for the labels to the left of the dots and for the words to their right."""
    labels = max((_width(printable(label)) for label, _ in given.rows), default=0)
    words = max((_width(printable(dot.words)) for _, dots in given.rows for dot in dots), default=0)
    return min(labels + 0.1, LABELS), min(words + 0.1, WORDS)


def _lines_of(row: tuple[str, tuple[Dot, ...]]) -> float:
    """Return how many lines a row of dots takes."""
    label, dots = row
    return max(len(_lines(label, LABELS - 0.1)), sum(len(_lines(dot.words, WORDS - 0.1)) for dot in dots)) + 0.3


def _dots(area: "Axes", given: Dots) -> None:
    dots = [dot for _, several in given.rows for dot in several]
    scale = extent(given, dots, Axis(low=0, high=1, start=0.03, end=0.97))
    tall = sum(map(_lines_of, given.rows)) + 0.6
    area.set_ylim(tall, 0)
    area.set_yticks([])
    area.spines[["left", "top", "right"]].set_visible(False)
    if given.line is not None:
        area.axvline(scale.at(given.line), color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
    beyond = 0.06 * area.figure.dpi / area.bbox.width
    foot = 0.3
    for label, several in given.rows:
        middle = foot + _lines_of((label, several)) / 2
        area.text(-beyond, middle, "\n".join(_lines(label, LABELS - 0.1)), ha="right", va="center")
        words = [_lines(dot.words, WORDS - 0.1) for dot in several]
        y = middle - sum(map(len, words)) / 2
        for dot, said in zip(several, words, strict=True):
            _dot(area, dot, scale, y + len(said) / 2)
            area.text(1 + beyond, y + len(said) / 2, "\n".join(said), va="center")
            y += len(said)
        foot += _lines_of((label, several))
    area.grid(axis="x")
    _scaled(area, "x", scale, given.across)


def _dot(area: "Axes", dot: Dot, scale: Axis, y: float) -> None:
    look = {"color": PALETTE[dot.series % len(PALETTE)], "clip_on": False}
    if np.isfinite(dot.box).all():
        low, high = map(scale.at, dot.box)
        area.fill_betweenx([y - 0.35, y + 0.35], low, high, alpha=0.3, **look)
    if np.isfinite(dot.interval).all():
        low, high = map(scale.at, dot.interval)
        area.plot([low, high], [y, y], **look)
        area.plot(low, y, marker="<" if dot.interval[0] < scale.low else "|", **look)  # an arrow: it goes on
        area.plot(high, y, marker=">" if dot.interval[1] > scale.high else "|", **look)
    if np.isfinite(dot.value) and (dot.value > 0 or not scale.log):
        area.plot(scale.at(dot.value), y, **_mark(dot.series), clip_on=False)


def _map(area: "Axes", given: Map, beside: "Axes") -> None:
    from matplotlib.colors import LinearSegmentedColormap

    scale, columns, rows = shades(given.values), edges(given.columns), edges(given.rows)
    along = Axis(low=columns[0], high=columns[-1], start=0, end=1)
    up = Axis(low=rows[0], high=rows[-1], start=0, end=1)
    look: dict[str, Any] = {"cmap": LinearSegmentedColormap.from_list("gapscope", COLOURS), "vmin": 0, "vmax": 1}
    heights = np.ma.masked_invalid(scale.heights(given.values))
    area.patch.set(facecolor="white", hatch="/////", edgecolor=GREY)  # shows where a value is missing
    area.pcolormesh([along.at(x) for x in columns], [up.at(y) for y in rows], heights, **look)
    lines = sorted(set(scale.heights(np.array(levels(scale))).tolist()))
    x, y = [along.at(place) for place in given.columns], [up.at(place) for place in given.rows]
    area.contour(x, y, heights, lines, colors="white", linewidths=0.6)
    _scaled(area, "x", along, given.across, 5)
    _scaled(area, "y", up, given.upward)
    for name, *where in given.marks:
        _named(area, name, along.at(where[0]), up.at(where[1]))
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
