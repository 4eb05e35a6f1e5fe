"""Draw a `Document` on a terminal or into a pipe: words carry the meaning, colour only repeats it.

Nothing is cut off: text columns wrap, number columns do not, and a table too wide for the window is drawn as one
small block per row.  Strings come from files that anybody may have written, so no markup is interpreted and no
control character reaches the terminal.
"""

import dataclasses
import os
import re
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import IO

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from gapscope.report.view import Column, Document, Line, Note, Table

WIDTH = 80
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
HYPHENS = re.compile(r"(?<=[^\W\d]-)(?=[^\W\d])")
UNBROKEN = re.compile(r"(?!)")  # sentences have room enough not to break inside words
ASCII = str.maketrans({"\u00a0": " ", "±": "+-", "–": "-", "≥": ">=", "≤": "<=", "·": "*"})


def open_console(stream: IO[str] | None = None) -> Console:
    """Return a console without markup or highlighting: 80 columns in a pipe, unless COLUMNS says otherwise."""
    stream = stream or sys.stdout
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdigit() and int(asked) else None if stream.isatty() else WIDTH
    return Console(file=stream, width=width, markup=False, highlight=False, emoji=False)


def output(document: Document) -> None:
    """Draw a document on standard output."""
    render(document, open_console())


def printable(text: str) -> str:
    """Return a text without control, formatting (bidirectional, zero-width) and undecodable characters."""
    spaced = text.translate(dict.fromkeys(map(ord, "\t\n\v\f\r"), " "))
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


def render(document: Document, console: Console) -> None:
    """Draw the blocks with an empty line between them."""
    for position, block in enumerate(part for part in document.blocks if part):
        if position:
            console.print()
        for item in block:
            for line in _note(item, console) if isinstance(item, Note) else _table(item, console):
                line.rstrip()
                console.print(line, soft_wrap=True)


def _clean(text: str, console: Console) -> str:
    clean = printable(text)
    if console.encoding.lower().startswith("utf"):
        return clean
    return clean.translate(ASCII).encode(console.encoding, "replace").decode(console.encoding)


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
    widths, gap = _widths(table.columns, [line for line in lines if len(line.cells) > 1], console.width)
    for line in lines if widths else lines[1:]:
        if len(line.cells) == 1:
            yield from (Text(part) for part in _wrap(line.cells[0], console.width))
        elif widths:
            yield from _row(table.columns, line, widths, gap)
        else:
            yield from _stacked(lines[0].cells, line, console.width)


def _widths(columns: Sequence[Column], lines: Sequence[Line], available: int) -> tuple[list[int], int]:
    """Give every column its least width, what is left to those that wrap, and the gap; no widths if it does not fit."""
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
    return min(ways, key=lambda widths: _height(lines, widths)), gap


def _shared_out(least: Sequence[int], most: Sequence[int], wrapping: Sequence[int], left: int) -> Iterator[list[int]]:
    """Yield the ways to give what is left to the first and the last column that wraps; the others stay least."""
    if not wrapping:
        yield list(least)
        return
    first, last = wrapping[0], wrapping[-1]
    for share in range(left + 1):
        widths = list(least)
        widths[last] = min(widths[last] + share, max(most[last], least[last]))
        if first != last:
            widths[first] = min(widths[first] + left - share, max(most[first], least[first]))
        yield widths


def _height(lines: Sequence[Line], widths: Sequence[int]) -> int:
    """Return how many lines a table of these widths takes."""
    return sum(
        max(
            len(_wrap(cell, width - line.level * (position == 0)))
            for position, (cell, width) in enumerate(zip(line.cells, widths, strict=True))
        )
        for line in lines
    )


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
