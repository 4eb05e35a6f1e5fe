"""The figures of a page as one picture for a paper: PNG, SVG or PDF, by matplotlib.

The figures, their scales and their ticks are those of the page; only the pen is another (`plot_charts`).  The same
figures and the same matplotlib give the same bytes, whatever a matplotlibrc says.  All sizes are inches.  The font is
DejaVu Sans, which comes with matplotlib: PNG and PDF show a character that it lacks as a box, SVG keeps the character.
"""

import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gapscope.errors import ReportError, UsageError
from gapscope.report.atomic import replace
from gapscope.report.charts import Content, Curves, Dots
from gapscope.report.illustrations import Figure as Illustration
from gapscope.report.map_chart import Map
from gapscope.report.plot_charts import STYLE, TITLE, draw, draw_map, height, rooms, samples, wrapped

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
DPI, PIXELS = 300, 60_000  # resolution of a PNG, and the height that none may pass
WIDE = 7.0  # both columns of a page
HALF = 3.4  # one of them
LINE = 0.14  # of text
TALL, SIDE = 1.7, 2.1  # height of curves, height and width of maps
LEFT, RIGHT = 0.62, 0.12  # beside curves and maps, for ticks and the upward title
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


def write(figures: Sequence[Illustration], path: str | os.PathLike[str]) -> None:
    """Write the picture in one step.

    Raises: as `check`; ReportError if there is no figure, or if the place cannot be written.
    """
    suffix = check(path)
    replace(path, picture(figures, suffix), option="--plot")


def picture(figures: Sequence[Illustration], suffix: str) -> bytes:
    """Return the picture; the same figures give the same bytes.

    Raises: ReportError if there is no figure.
    """
    import matplotlib

    if not figures:
        raise ReportError(
            "Nothing here is better seen than read: there is no figure for `--plot`. Expected an array, a ratio "
            "with its interval, or two checkpoints of a run. Measure more, or take the numbers with `--json`."
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
        taken = sum(rooms(self.content)) + LEAST if isinstance(self.content, Dots) else 0
        return HALF if taken <= HALF else WIDE

    @property
    def lines(self) -> list[str]:
        """The title as it fits."""
        return wrapped(self.title, self.wide, bold=True)

    @property
    def head(self) -> float:
        """Height of the title and the legend."""
        return LINE * (len(self.lines) + 0.5 + sum(len(wrapped(name, HALF - LEFT)) for name in self.legend))

    @property
    def body(self) -> float:
        """Height of the chart."""
        if isinstance(self.content, Dots):
            return LINE * (sum(map(height, self.content.rows)) + 0.6)
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
    inset, right = rooms(given) if isinstance(given, Dots) else (LEFT, RIGHT)
    wide = SIDE if isinstance(given, Map) else panel.wide - inset - right
    area = _area(sheet, left + inset, top - head, wide, panel.body)
    place = left / sheet.get_figwidth(), top / sheet.get_figheight()
    sheet.text(*place, "\n".join(panel.lines), size=TITLE, weight="bold", va="top")
    if isinstance(given, Map):
        draw_map(area, given, _area(sheet, left + inset + wide + 0.1, top - head, 0.1, panel.body))
        return
    draw(area, given)
    if panel.legend:
        names = ["\n".join(wrapped(name, HALF - LEFT)) for name in panel.legend]
        long = 3 if isinstance(given, Curves) else 1
        area.legend(samples(given), names, loc="lower left", bbox_to_anchor=(0, 1), handlelength=long)


def _area(sheet: "Figure", left: float, top: float, wide: float, tall: float) -> "Axes":
    across, up = sheet.get_figwidth(), sheet.get_figheight()
    area = sheet.add_axes((left / across, (top - tall) / up, wide / across, tall / up))
    area.set(xlim=(0, 1), ylim=(0, 1))
    return area
