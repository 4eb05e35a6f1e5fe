"""Any content as one HTML page: the answer first, then the table, figures and definitions.

The page is a single file without scripts, and a policy in its head forbids any request: it can be mailed, archived and
opened from anywhere.  Strings come from files that anybody may have written: every one is escaped.
"""

import os
import re
from collections.abc import Iterator

from gapscope.report.charts import chart
from gapscope.report.document import Document
from gapscope.report.export import save
from gapscope.report.html import fragment, table
from gapscope.report.illustrations import Figure
from gapscope.report.page_style import STYLE
from gapscope.report.sheet import Definition, Sheet
from gapscope.report.svg import clean, element

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


def write(sheet: Sheet, path: str | os.PathLike[str]) -> None:
    """Write the page in one step.

    Raises: ReportError if something other than a page of gapscope is there, or if the place cannot be written.
    """
    save(path, page(sheet), mark=MARK, option="--html")


def page(sheet: Sheet) -> str:
    """Return the page as text; the same sheet gives the same text."""
    return "\n".join(
        (
            f"{START}<title>{clean(sheet.name)} · gapscope</title>",
            f"<style>\n{STYLE}</style>\n</head>\n<body>",
            *_header(sheet),
            "<main>",
            '<section id="numbers"><h2>Numbers</h2>',
            element("div", fragment(sheet.brief), class_="brief"),
            *_whole(sheet.whole),
            "</section>",
            *_figures(sheet.figures),
            *_definitions(sheet.definitions),
            "</main>",
            f"<footer>{clean(sheet.origin)}</footer>",
            "</body>\n</html>\n",
        )
    )


def _header(sheet: Sheet) -> Iterator[str]:
    yield f"<header>\n<h1>{clean(sheet.name)}</h1>"
    for note in sheet.about:
        yield element("p", clean(note.text), class_="warning" if note.tone == "warning" else "about")
    yield element("p", clean(sheet.lead), class_="lead")
    if sheet.said:
        yield element("ul", *(element("li", clean(each.text), class_=each.tone) for each in sheet.said), class_="said")
    tiles = (
        element(
            "div", element("dt", clean(one.title)), *(element("dd", clean(each)) for each in (one.shown, one.status))
        )
        for one in sheet.headlines
    )
    if sheet.headlines:
        yield element("dl", *tiles, class_="heads")
    links = (("#numbers", "Numbers"), ("#figures", "Figures"), ("#definitions", "Definitions"))
    yield element("nav", *(element("a", text, href=where) for where, text in links), aria_label="On this page")
    yield "</header>"


def _whole(document: Document) -> Iterator[str]:
    if document.blocks:
        yield _details("Every number", fragment(document))


def _details(summary: str, content: str) -> str:
    scrolled = element("div", content, class_="scroll", tabindex="0", role="group", aria_label=summary)
    return element("details", element("summary", clean(summary)), scrolled)


def _figures(drawn: tuple[Figure, ...]) -> Iterator[str]:
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


def _definitions(definitions: tuple[Definition, ...]) -> Iterator[str]:
    yield '<section id="definitions"><h2>Definitions</h2>\n<dl class="definitions">'
    for one in definitions:
        yield element("dt", clean(one.name), id=_anchor(one.name))
        if one.words:
            yield element("dd", clean(one.words))
        for path, title, words in one.entries:
            term = f"{clean(title)} <code>{clean(path)}</code>"
            yield element("dd", f"<b>{term}</b> {clean(words)}", id=_anchor(path))
    yield "</dl></section>"
