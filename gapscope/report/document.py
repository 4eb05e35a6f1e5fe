"""What is shown, before anybody decides how: a `Document` of tables, drawings and notes, with every number formatted.

A drawing keeps its numbers: how many characters or pixels it has is the renderer's business (`drawing`).
"""

from dataclasses import dataclass, field
from typing import Literal

Tone = Literal["plain", "dim", "better", "worse", "unsure", "heading", "warning"]
Overflow = Literal["stack", "drop", "split"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: numbers stand to the right, and what may be broken over lines `wraps`."""

    header: str
    numeric: bool = True
    wraps: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table; the tone colours its last cell, "dim" all of it.

    A single cell spans the table and is the title of the lines of level 1 below it.
    """

    cells: tuple[str, ...]
    tone: Tone = "plain"
    level: int = 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns.

    `overflow` says what happens where the window is too narrow: each row becomes a small block, the last columns are
    dropped and named, or the columns are dealt to several tables that repeat the first one.
    """

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]
    overflow: Overflow = "stack"
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One or more curves over the same labels; `names` is empty for one curve without a name.

    A strip has one cell per label and no axis; lines and bars are drawn along the axis.  `errors`, where given, reach
    to each side of a value, NaN where unknown; `bars` says what they are.  Characters have no room for them.
    """

    title: str
    style: Literal["line", "bars", "strip"]
    axis: str
    labels: tuple[str, ...]  # (points,)
    curves: tuple[tuple[float, ...], ...]  # (curves, points)
    names: tuple[str, ...] = ()  # (curves,)
    errors: tuple[tuple[float, ...], ...] = ()  # (curves, points)
    bars: str = ""


@dataclass(frozen=True, kw_only=True)
class Heat:
    """A map: `values[row][column]`; rows with rising numbers as labels are drawn upwards.

    `marks` are names with their places along the rows' and the columns' labels.
    """

    title: str
    axes: tuple[str, str]  # of the rows, of the columns
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[float, ...], ...]  # (rows, columns)
    marks: tuple[tuple[str, float, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph; with a bullet it is one of a list."""

    text: str
    tone: Tone = "plain"
    bullet: bool = False


Item = Table | Series | Heat | Note


@dataclass(frozen=True, kw_only=True)
class Document:
    """What is shown, in order; an empty line stands between the blocks."""

    blocks: tuple[tuple[Item, ...], ...] = field(default=())
