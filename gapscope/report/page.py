"""A report or a comparison as one HTML page: the answer first, then the table, figures and definitions.

The page is a single file without scripts, and a policy in its head forbids any request: it can be mailed, archived and
opened from anywhere.  Strings come from files that anybody may have written: every one is escaped.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator, Mapping

from gapscope.report import citations
from gapscope.report.charts import chart
from gapscope.report.comparison_figures import chosen
from gapscope.report.document import Document, Heat, Item, Note, Series, Table
from gapscope.report.export import save
from gapscope.report.figures import figure
from gapscope.report.html import fragment, table
from gapscope.report.illustrations import Figure
from gapscope.report.page_style import STYLE
from gapscope.report.reading import whole_reading
from gapscope.report.record_view import PROVEN
from gapscope.report.records import Comparison, Record, Report
from gapscope.report.svg import clean, element
from gapscope.report.titles import place, title
from gapscope.report.view import comparison_document, report_document
from gapscope.results import Quantity

MARK = '<meta name="generator" content="gapscope page">'
START = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{MARK}
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<link rel="icon" href="data:,">
"""
HEADLINES = 6
HINT = re.compile(r"(with )?--verbose( or --json)?")


def write(content: Report | Comparison, path: str | os.PathLike[str]) -> None:
    """Write the page in one step.

    Raises: ReportError if something other than a page of gapscope is there, or if the place cannot be written.
    """
    save(path, page(content), mark=MARK, option="--html")


def page(content: Report | Comparison) -> str:
    """Return the page as text; the same content gives the same text."""
    drawn = chosen(content)
    name = _name(content)
    return "\n".join(
        (
            f"{START}<title>{clean(name)} · gapscope</title>",
            f"<style>\n{STYLE}</style>\n</head>\n<body>",
            *_header(content, name),
            "<main>",
            '<section id="numbers"><h2>Numbers</h2>',
            element("div", fragment(_brief(content)), class_="brief"),
            _details("Every number", fragment(_whole(content))),
            "</section>",
            *_figures(drawn),
            *_definitions(content, drawn),
            "</main>",
            f"<footer>{clean(_origin(content))}</footer>",
            "</body>\n</html>\n",
        )
    )


def _name(content: Report | Comparison) -> str:
    if isinstance(content, Report):
        return str(content.identity.get("checkpoint", "Report"))
    return " against ".join(subject.label for subject in content.subjects)


# The answer


def _header(content: Report | Comparison, name: str) -> Iterator[str]:
    yield f"<header>\n<h1>{clean(name)}</h1>"
    for note in _head(content):
        yield element("p", clean(note.text), class_="warning" if note.tone == "warning" else "about")
    if isinstance(content, Report):
        yield from _headlines(content)
    else:
        first, *others = whole_reading(content) or ("Nothing was compared.",)
        yield element("p", clean(first), class_="lead")
        if others:
            yield element("ul", *(element("li", clean(said)) for said in others), class_="said")
    links = (("#numbers", "Numbers"), ("#figures", "Figures"), ("#definitions", "Definitions"))
    yield element("nav", *(element("a", text, href=where) for where, text in links), aria_label="On this page")
    yield "</header>"


def _head(content: Report | Comparison) -> list[Note]:
    """Return the lines on who was measured, without the name, which is the page's title."""
    block = _document(content, verbose=False).blocks[0]
    return [item for item in block if isinstance(item, Note) and item.tone != "heading"]


def _headlines(report: Report) -> Iterator[str]:
    """Yield the first number of each analyzer with how sure it is, those of the whole network only."""
    records = [report.results[name] for name in sorted(report.results, key=place)]
    found = [(record, name, quantity) for record in records for name, quantity in _first(record)][:HEADLINES]
    unsure = [f"{record.analyzer}: {record.message}" for record in records if record.status not in PROVEN]
    whole = [(record, name, quantity) for record, name, quantity in found if not quantity.dims][:2]
    said = ", ".join(f"{_titled(record, name)} {_shown(quantity)}" for record, name, quantity in whole)
    rest = "Mind what follows." if unsure else "Every measurement reached what was asked of it."
    rest = rest if records else "Nothing was measured."
    yield element("p", clean(f"{said[:1].upper()}{said[1:]}. {rest}" if said else rest), class_="lead")
    if unsure:
        yield element("ul", *(element("li", clean(each), class_="warning") for each in unsure), class_="said")
    tiles = (
        element(
            "div",
            element("dt", clean(_titled(record, name))),
            element("dd", clean(_shown(quantity))),
            element("dd", clean(record.status.name.lower().replace("_", " "))),
        )
        for record, name, quantity in found
    )
    if found:
        yield element("dl", *tiles, class_="heads")


def _first(record: Record) -> Iterator[tuple[str, Quantity]]:
    """Yield the headline: of an array its first number, unless that speaks for one layer or one place only."""
    for name, quantity in itertools.islice(record.quantities.items(), 1):
        if quantity.value.size and quantity.drawn == "numbers" and "layer" not in quantity.dims:
            yield name, quantity


def _titled(record: Record, name: str) -> str:
    quantity = record.quantities[name]
    entries = [quantity.labels[dim][0] for dim in quantity.dims]
    return ", ".join((title(record.analyzer, name), *entries))


def _shown(quantity: Quantity) -> str:
    errors = (quantity.numerical_error, quantity.sampling_error)
    known = [float(error.flat[0]) ** 2 for error in errors if error is not None]
    return f"{figure(float(quantity.value.flat[0]), sum(known) ** 0.5)} {quantity.unit}".strip()


# The tables


def _document(content: Report | Comparison, *, verbose: bool) -> Document:
    if isinstance(content, Report):
        return report_document(content, verbose)
    return comparison_document(content, verbose)


def _brief(content: Report | Comparison) -> Document:
    """Return the tables without what the page shows above them, the drawings that its figures replace, and hints."""
    blocks = (
        tuple(_here(item) for item in block if not _is_hint(item)) for block in _tables(content, verbose=False)[1:]
    )
    return Document(blocks=tuple(blocks))


def _is_hint(item: Item) -> bool:
    return isinstance(item, Note) and item.text.endswith(("--verbose", "--verbose."))


def _here(item: Item) -> Item:
    """Lead the reader to the tables of the page rather than to an option."""
    if not isinstance(item, Table):
        return item
    lines = [
        dataclasses.replace(line, cells=tuple(HINT.sub("below", cell) for cell in line.cells)) for line in item.lines
    ]
    return dataclasses.replace(item, lines=tuple(lines))


def _whole(content: Report | Comparison) -> Document:
    """Return the tables of every number."""
    return Document(blocks=_tables(content, verbose=True))


def _tables(content: Report | Comparison, *, verbose: bool) -> tuple[tuple[Item, ...], ...]:
    """Return the blocks without drawings and without the reading."""
    blocks = _document(content, verbose=verbose).blocks
    kept = (tuple(item for item in block if not isinstance(item, Series | Heat)) for block in blocks)
    return tuple(block for block in kept if block[:1] != (Note(text="Reading", tone="heading"),))


def _details(summary: str, content: str) -> str:
    scrolled = element("div", content, class_="scroll", tabindex="0", role="group", aria_label=summary)
    return element("details", element("summary", clean(summary)), scrolled)


# Figures and definitions


def _figures(drawn: list[Figure]) -> Iterator[str]:
    yield '<section id="figures"><h2>Figures</h2>'
    if not drawn:
        yield "<p>Nothing here is better seen than read.</p>"
    yield '<div class="figures">'
    for one in drawn:
        wide = ' class="wide"' if len(one.panels) > 1 else ""
        link = f' <a href="#{_anchor(one.path)}">Definition</a>' if one.path else ""
        yield f'<figure{wide}>\n<h3>{clean(one.title[:1].upper() + one.title[1:])}</h3>\n<div class="panels">'
        for heading, content in one.panels:
            yield f"<div>{element('h4', clean(heading)) if heading else ''}{chart(content)}</div>"
        yield f"</div>\n<figcaption>{clean(one.caption)}{link}</figcaption>"
        yield _details(f"Numbers: {one.title}", table(one.numbers))
        yield "</figure>"
    yield "</div></section>"


def _anchor(path: str) -> str:
    return "definition-" + re.sub(r"[^A-Za-z0-9_-]", "-", path)


def _definitions(content: Report | Comparison, drawn: list[Figure]) -> Iterator[str]:
    """Yield what each analyzer measures, and each of its quantities by its own words where the file has them."""
    yield '<section id="definitions"><h2>Definitions</h2>\n<dl class="definitions">'
    for name in citations.analyzers(content):
        said, _ = citations.DEFINITIONS.get(name, ("", ()))
        yield element("dt", clean(name), id=_anchor(name))
        if said:
            yield element("dd", clean(said))
        record = content.results.get(name)
        docs = {key: quantity.doc for key, quantity in record.quantities.items()} if record else {}
        docs = {one.path.removeprefix(f"{name}/"): "" for one in drawn if one.path.startswith(f"{name}/")} | docs
        yield from _entries(name, docs)
    yield "</dl></section>"


def _entries(analyzer: str, docs: Mapping[str, str]) -> Iterator[str]:
    for key, doc in docs.items():
        path = f"{analyzer}/{key}"
        term = f"{clean(title(analyzer, key))} <code>{clean(path)}</code>"
        yield element("dd", f"<b>{term}</b> {clean(doc)}", id=_anchor(path))


def _origin(content: Report | Comparison) -> str:
    """Return which program wrote the numbers and when."""
    known = [f"{name} {content.environment[name]}" for name in ("gapscope", "torch") if name in content.environment]
    created = str(content.environment.get("created", ""))[:10]
    return " · ".join(filter(None, ("Measured by " + ", ".join(known) if known else "Written by gapscope", created)))
