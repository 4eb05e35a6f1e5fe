"""Draw a `Document` as plain HTML, for notebooks and pages: headings, tables, lists, and drawings as text.

Strings come from files that anybody may have written: every one is escaped.  The only attribute that any becomes is
`data-label`, which repeats a column's header for windows too narrow for columns.
"""

import html
import re
from collections.abc import Iterator, Sequence

from gapscope.report.canvas import Canvas, Span
from gapscope.report.document import Column, Document, Heat, Item, Line, Note, Series, Table
from gapscope.report.drawing import draw
from gapscope.report.terminal import printable

CANVAS = Canvas(width=100, colours=True)
POWER = re.compile(r"[^\s<>&;]{0,40}\de-\d+")  # without a bound a name of 10,000 letters takes seconds
WIDE = 4  # columns that fit beside another table
LONG = 60  # letters of a table that fill half a page
RIGHT = ' style="text-align:right"'
INDENT = ' style="padding-left:1.5em"'


def fragment(document: Document) -> str:
    """Return one `div` without styles of its own; tones are classes of the cells and paragraphs."""
    blocks = ("\n".join((_opened(block), *_block(block), "</section>")) for block in document.blocks if block)
    return "\n".join(('<div class="gapscope">', *blocks, "</div>"))


def _opened(block: Sequence[Item]) -> str:
    tables = [item for item in block if isinstance(item, Table)]
    wide = any(len(one.columns) > WIDE or _letters(one) > LONG or _sentences(one.columns) for one in tables)
    return '<section class="wide">' if wide else "<section>"


def _letters(content: Table) -> int:
    """Return how many letters the longest cells of a table's columns have together."""
    rows = [line.cells for line in content.lines if len(line.cells) > 1]
    return sum(max(map(len, column)) for column in zip(*rows, strict=True))


def _sentences(columns: Sequence[Column]) -> list[Column]:
    """Return the columns of whole sentences: those between the names and the last that may be broken over lines."""
    return [column for column in columns[1:-1] if column.wraps]


def table(content: Table) -> str:
    """Return one table."""
    return "\n".join(_table(content))


def _block(block: Sequence[Item]) -> Iterator[str]:
    """Yield the elements of a block; neighbouring bullets share a list."""
    listed = False
    for item in block:
        bullet = isinstance(item, Note) and item.bullet
        if bullet != listed:
            yield "<ul>" if bullet else "</ul>"
        listed = bullet
        yield (
            _note(item) if isinstance(item, Note) else table(item) if isinstance(item, Table) else "\n".join(_pre(item))
        )
    if listed:
        yield "</ul>"


def _text(text: str) -> str:
    return html.escape(printable(text))


def _head(text: str) -> str:
    """Return a header whose numbers do not break after their minus."""
    return POWER.sub(r'<span style="white-space:nowrap">\g<0></span>', _text(text))


def _note(note: Note) -> str:
    name = "li" if note.bullet else "h4" if note.tone == "heading" else "p"
    return f'<{name} class="{note.tone}">{_text(note.text)}</{name}>'


def _table(content: Table) -> Iterator[str]:
    yield "<table>"
    if content.caption:
        yield f"<caption>{_text(content.caption)}</caption>"
    if any(column.header for column in content.columns):
        heads = "".join(f'<th scope="col"{_side(column)}>{_head(column.header)}</th>' for column in content.columns)
        yield f"<thead><tr>{heads}</tr></thead>"
    yield "<tbody>"
    yield from (f"<tr>{_cells(content.columns, line)}</tr>" for line in content.lines)
    yield "</tbody>"
    yield "</table>"


def _side(column: Column) -> str:
    return RIGHT if column.numeric else ""


def _cells(columns: Sequence[Column], line: Line) -> str:
    first, *others = line.cells
    if not others:
        return f'<th scope="rowgroup" colspan="{len(columns)}" class="{line.tone}">{_text(first)}</th>'
    named = f' data-label="{_text(columns[0].header)}"' if columns[0].header else ""
    cells = [f'<th scope="row"{INDENT if line.level else ""}{named}>{_text(first)}</th>']
    for position, (column, cell) in enumerate(zip(columns[1:], others, strict=True), start=2):
        tone = f' class="{line.tone}"' if position == len(columns) or line.tone == "dim" else ""
        tone = ' class="words"' if column in _sentences(columns) else tone
        label = f' data-label="{_text(column.header)}"' if column.header else ""
        cells.append(f"<td{tone}{_side(column)}{label}>{_text(cell)}</td>")
    return "".join(cells)


def _pre(item: Series | Heat) -> Iterator[str]:
    yield '<pre style="line-height:1">'
    yield from ("".join(map(_span, spans)) for spans in draw(item, printable, CANVAS))
    yield "</pre>"


def _span(span: Span) -> str:
    looks = [f"{key}:{value}" for key, value in (("color", span.fore), ("background", span.back)) if value]
    text = _text(span.text)
    return f'<span style="{";".join(looks)}">{text}</span>' if looks else text
