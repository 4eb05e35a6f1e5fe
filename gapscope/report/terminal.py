"""Draw a `Document` on a terminal or into a pipe: words carry the meaning, colour only repeats it.

Nothing is cut off unsaid: text columns wrap, number columns do not, and a table too wide for the window becomes one
small block per row, several tables, or loses its last columns by name, as it asks for.  Strings come from files that
anybody may have written, so no markup is interpreted and no control character reaches the terminal.
"""

import dataclasses
import io
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gapscope.report.canvas import Canvas
from gapscope.report.document import Column, Document, Heat, Item, Line, Note, Series, Table
from gapscope.report.drawing import draw

WIDTH = 80
WIDEST = 1000  # of a window that COLUMNS may promise
HEIGHT = 25  # matters to nothing, but without it Rich reads COLUMNS itself, and fails on the digits that int() refuses
GAP = 2
STYLES = {
    "plain": "",
    "dim": "dim",
    "better": "green",
    "worse": "yellow",
    "unsure": "dim",
    "heading": "bold",
    "warning": "yellow",
}
SAMPLE = 200  # lines of a table that decide how its columns share the window: the search takes time
NAME = 28  # characters of a layer's name that stay together before columns of numbers are given up
HYPHENS = re.compile(r"(?<=[^\W\d]-)(?=[^\W\d])|(?<=\w\.)(?=[^\W\d])")
OBEYED = re.compile(r"(##(?:vso)?)\[")  # by runners of GitHub's and Azure's workflows, anywhere in a line
UNBROKEN = re.compile(r"(?!)")  # sentences have room enough not to break inside words
ASCII = str.maketrans({"\u00a0": " ", "±": "+-", "–": "-", "≥": ">=", "≤": "<=", "·": "*"})


def open_console(stream: IO[str] | None = None) -> Console:
    """Return a console without markup or highlighting: 80 columns in a pipe, unless COLUMNS says otherwise."""
    stream = stream or sys.stdout
    asked = os.environ.get("COLUMNS", "")
    columns = min(int(asked[:9]), WIDEST) if asked.isdecimal() else 0
    if not columns and stream.isatty() and not asked.isdigit():
        return Console(file=stream, markup=False, highlight=False, emoji=False)  # as wide as the window is
    return Console(file=stream, width=columns or WIDTH, height=HEIGHT, markup=False, highlight=False, emoji=False)


def output(document: Document) -> None:
    """Draw a document on standard output."""
    render(document, open_console())


class _Lines(io.StringIO):
    encoding = "utf-8"


def text(document: Document, width: int = WIDTH, encoding: str = "utf-8") -> str:
    """Return a document as lines without colour, in letters that an encoding has."""
    stream = _Lines()
    stream.encoding = encoding
    console = Console(
        file=stream, width=width, height=HEIGHT, markup=False, highlight=False, emoji=False, no_color=True
    )
    render(document, console)
    return stream.getvalue().rstrip("\n")


def printable(text: str) -> str:
    """Return a text without control, formatting (bidirectional, zero-width) and undecodable characters."""
    spaced = text.translate(dict.fromkeys(map(ord, "\t\n\v\f\r"), " "))
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def harmless(text: str) -> str:
    """Return a text, printable, in which a runner of workflows finds no command: `::`, `##[`, and Azure's `##vso[`.

    The first counts before a word at the beginning of a line, where wrapping may put any; the others count anywhere.
    """
    return OBEYED.sub(r"\1 [", re.sub(r"(?<!\S)::(?=\w)", ": :", printable(text)))


def error_lines(message: str) -> list[str]:
    """Return the message of an error, which may quote a file, as lines that are safe to print.

    Its own lines after the first begin with two spaces: any other break belongs to a name.
    """
    return [shortened(harmless(line)) for line in re.sub(r"\n(?!  )", " ", message).split("\n")]


def shortened(line: str, most: int = 1500) -> str:
    """Leave out the middle of a line that quotes thousands of characters: its ends say what was seen and what to do."""
    if len(line) <= most:
        return line
    return f"{line[: 2 * most // 3]} [{len(line) - most:,} characters left out] {line[len(line) - most // 3 :]}"


def render(document: Document, console: Console) -> None:
    """Draw the blocks with an empty line between them."""
    for position, block in enumerate(part for part in document.blocks if part):
        if position:
            console.print()
        for item in block:
            for line in _lines(item, console):
                line.rstrip()
                console.print(line, soft_wrap=True)


def _lines(item: Item, console: Console) -> Iterator[Text]:
    if isinstance(item, Note):
        return _note(item, console)
    return _table(item, console) if isinstance(item, Table) else _drawing(item, console)


def _drawing(item: Series | Heat, console: Console) -> Iterator[Text]:
    canvas = Canvas(
        width=console.width,
        blocks=console.encoding.lower().startswith("utf"),
        colours=not console.no_color and console.color_system in ("256", "truecolor"),
    )
    for spans in draw(item, lambda text: _clean(text, console), canvas):
        if len(spans) == 1:  # words
            words = spans[0].text.strip()
            indent = " " * spans[0].text.index(words)
            for part in _wrap(_clean(words, console), console.width - len(indent), UNBROKEN):
                yield Text(indent + part, style=STYLES[spans[0].tone])
            continue
        line = Text()
        for span in spans:
            look = " on ".join(filter(None, (span.fore, span.back))) if span.fore else STYLES[span.tone]
            line.append(_clean(span.text, console), style=look)
        yield line


def _clean(text: str, console: Console) -> str:
    clean = harmless(text)
    if console.encoding.lower().startswith("utf"):
        return clean
    return clean.translate(ASCII).encode(console.encoding, "backslashreplace").decode(console.encoding)


def _words(text: str) -> list[str]:
    """Split at spaces (not at no-break ones) and after hyphens between letters, so not in 1e-3."""
    return [part for word in text.split(" ") if word for part in HYPHENS.split(word)]


def _wrap(text: str, width: int, hyphens: re.Pattern[str] = HYPHENS) -> list[str]:
    """Break a text into lines; a word longer than the width keeps a line of its own."""
    lines = [""]
    for word in text.split(" "):
        for position, part in enumerate(hyphens.split(word)):
            space = " " if lines[-1] and not position else ""
            if lines[-1] and cell_len(lines[-1] + space + part) > width:
                lines.append(part)
            else:
                lines[-1] += space + part
    return lines


def _align(text: str, width: int, *, right: bool) -> str:
    blank = " " * max(width - cell_len(text), 0)
    return blank + text if right else text + blank


def _note(note: Note, console: Console) -> Iterator[Text]:
    mark = _clean("· ", console) if note.bullet else ""
    for position, line in enumerate(_wrap(_clean(note.text, console), console.width - len(mark), UNBROKEN)):
        yield Text((mark if position == 0 else " " * len(mark)) + line, style=STYLES[note.tone])


def _table(table: Table, console: Console) -> Iterator[Text]:
    head = Line(cells=tuple(column.header for column in table.columns), tone="heading")
    lines = [
        dataclasses.replace(line, cells=tuple(_clean(cell, console) for cell in line.cells))
        for line in (head, *table.lines)
    ]
    if table.caption:
        yield from (Text(part) for part in _wrap(_clean(table.caption, console), console.width, UNBROKEN))
    groups = [range(len(table.columns))] if table.overflow == "stack" else _groups(table, lines, console.width)
    for position, group in enumerate(groups if table.overflow == "split" else groups[:1]):
        if position:
            yield Text()
        columns = [table.columns[i] for i in group]
        yield from _grid(columns, [_kept(line, group) for line in lines], console.width)
    if table.overflow == "drop" and len(groups) > 1:
        left = ", ".join(lines[0].cells[i] for group in groups[1:] for i in group[1:])
        said = f"no room for {left}: --verbose"
        yield from (Text(part, style=STYLES["dim"]) for part in _wrap(said, console.width, UNBROKEN))


def _kept(line: Line, positions: Sequence[int]) -> Line:
    return line if len(line.cells) == 1 else dataclasses.replace(line, cells=tuple(line.cells[i] for i in positions))


def _groups(table: Table, lines: Sequence[Line], available: int) -> list[Sequence[int]]:
    """Deal the columns to tables that fit, each beginning with the first one."""
    sizes = [
        max(_least(column, [line.cells[i] for line in lines if len(line.cells) > 1]), 1)
        for i, column in enumerate(table.columns)
    ]
    names = max((cell_len(line.cells[0]) for line in lines if len(line.cells) > 1), default=0)
    first = max(min(names, NAME), sizes[0])
    groups: list[list[int]] = [[0]]
    left = available - first
    for i, size in list(enumerate(sizes))[1:]:
        if left < size + GAP and len(groups[-1]) > 1:
            groups.append([0])
            left = available - first
        groups[-1].append(i)
        left -= size + GAP
    return list(groups)


def _least(column: Column, cells: Sequence[str]) -> int:
    """Return the least width of a column whose first cell is its header."""
    words = max((cell_len(word) for cell in cells for word in _words(cell)), default=0)
    return words if column.wraps else max(words, *(cell_len(cell) for cell in cells[1:]), 0)


def _grid(columns: Sequence[Column], lines: Sequence[Line], available: int) -> Iterator[Text]:
    widths, gap = _widths(columns, [line for line in lines if len(line.cells) > 1], available)
    if not widths:  # words that should stay together part before a row falls into pieces
        lines = [dataclasses.replace(line, cells=tuple(c.replace("\u00a0", " ") for c in line.cells)) for line in lines]
        widths, gap = _widths(columns, [line for line in lines if len(line.cells) > 1], available)
    headed = bool(widths) and any(lines[0].cells)
    for line in lines if headed else lines[1:]:
        if len(line.cells) == 1:
            yield from (Text(part, style=STYLES[line.tone]) for part in _wrap(line.cells[0], available))
        elif widths:
            yield from _row(columns, line, widths, gap)
        else:
            yield from _stacked(lines[0].cells, line, available)


def _widths(columns: Sequence[Column], lines: Sequence[Line], available: int) -> tuple[list[int], int]:
    """Give every column its least width, what is left to those that wrap, and the gap; no widths if it does not fit."""
    if not lines:  # titles and notes alone
        return [], GAP
    least, most = [], []
    for position, column in enumerate(columns):
        header, *cells = [" " * line.level * (position == 0) + line.cells[position] for line in lines]
        words = max((cell_len(word) for cell in (header, *cells) for word in _words(cell)), default=0)
        whole = max((cell_len(cell) for cell in cells), default=0)
        least.append(words + (position == 0) * max(line.level for line in lines) if column.wraps else max(whole, words))
        most.append(max(whole, cell_len(header)))
    gap = GAP if sum(most) + GAP * (len(columns) - 1) <= available else 1  # closer columns before broken lines
    left = available - sum(least) - gap * (len(columns) - 1)
    if left < 0:
        return [], gap
    wrapping = [position for position, column in enumerate(columns) if column.wraps]
    ways = [*_shared_out(least, most, wrapping, left)]
    titled = [size if position in wrapping else most[position] for position, size in enumerate(least)]
    if (spare := left - sum(titled) + sum(least)) >= 0:  # room for whole headers
        ways = [*_shared_out(titled, most, wrapping, spare), *ways]
    return min(ways, key=lambda widths: _height(lines[:SAMPLE], widths)), gap


def _shared_out(least: Sequence[int], most: Sequence[int], wrapping: Sequence[int], left: int) -> Iterator[list[int]]:
    """Yield the ways to give what is left to the first and the last column that wraps; the others stay least."""
    if not wrapping:
        yield list(least)
        return
    first, last = wrapping[0], wrapping[-1]
    left = min(left, sum(max(most[i] - least[i], 0) for i in {first, last}))  # more than they can take is another's
    for share in range(left + 1):
        widths = list(least)
        widths[last] = min(widths[last] + share, max(most[last], least[last]))
        if first != last:
            widths[first] = min(widths[first] + left - share, max(most[first], least[first]))
        yield widths


def _height(lines: Sequence[Line], widths: Sequence[int]) -> tuple[int, int]:
    """Return how many lines a table of these widths takes, and, to choose among equals, how many its cells take."""
    heights = [
        [
            len(_wrap(cell, width - line.level * (position == 0)))
            for position, (cell, width) in enumerate(zip(line.cells, widths, strict=True))
        ]
        for line in lines
    ]
    return sum(map(max, heights)), sum(map(sum, heights))


def _row(columns: Sequence[Column], line: Line, widths: Sequence[int], gap: int) -> Iterator[Text]:
    indent = " " * line.level
    wrapped = [_wrap(cell, width) for cell, width in zip(line.cells, widths, strict=True)]
    wrapped[0] = [indent + part for part in _wrap(line.cells[0], widths[0] - len(indent))]
    for level in range(max(len(parts) for parts in wrapped)):
        row = Text()
        for position, (column, parts, width) in enumerate(zip(columns, wrapped, widths, strict=True)):
            part = _align(parts[level] if level < len(parts) else "", width, right=column.numeric)
            whole = line.tone in ("dim", "heading") or position == len(columns) - 1
            row.append(" " * gap if position else "").append(part, style=STYLES[line.tone] if whole else "")
        yield row


def _stacked(header: Sequence[str], line: Line, width: int) -> Iterator[Text]:
    indent = " " * line.level
    yield from (Text(indent + part) for part in _wrap(line.cells[0], width - len(indent)))
    shown = [(name, value) for name, value in zip(header[1:], line.cells[1:], strict=True) if value]
    names = max((cell_len(name) for name, _ in shown), default=0)
    for name, value in shown:
        style = STYLES[line.tone] if value is line.cells[-1] else ""
        yield Text.assemble(f"{indent}  {_align(name, names, right=False)}  ", (value, style))
