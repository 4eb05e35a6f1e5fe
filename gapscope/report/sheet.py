"""What a page shows, whatever it is of: each kind of content makes one `Sheet`, and `page` knows no kind.

The helpers are what kinds share: tables without what only a terminal needs, definitions by analyzer, and the origin.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gapscope.report import citations
from gapscope.report.document import Document, Heat, Item, Note, Series, Table
from gapscope.report.illustrations import Figure
from gapscope.report.records import Facts, Record
from gapscope.report.titles import title

HINT = re.compile(r"(with )?--verbose( or --json)?")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """A number that is read first, and how its measurement ended."""

    title: str
    shown: str
    status: str


@dataclass(frozen=True, kw_only=True)
class Definition:
    """What a name means, and what is told apart under it: (path, title, words) each, to which figures lead by path."""

    name: str
    words: str = ""
    entries: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A page in its order; what is empty is left out.

    `lead` is the answer in one sentence, `said` what else must be known of it, `about` who was measured.  `brief`
    stands open on the page, `whole` waits behind a fold.
    """

    name: str
    lead: str
    about: tuple[Note, ...] = ()
    said: tuple[Note, ...] = ()
    headlines: tuple[Headline, ...] = ()
    brief: Document = field(default_factory=Document)
    whole: Document = field(default_factory=Document)
    figures: tuple[Figure, ...] = ()
    definitions: tuple[Definition, ...] = ()
    origin: str = "Written by gapscope"


def about(document: Document) -> tuple[Note, ...]:
    """Return the lines on who was measured, without the name, which is the page's title."""
    return tuple(item for item in document.blocks[0] if isinstance(item, Note) and item.tone != "heading")


def tables(document: Document) -> Document:
    """Return a document without its drawings, which figures replace, and without its reading, which stands above."""
    kept = (tuple(item for item in block if not isinstance(item, Series | Heat)) for block in document.blocks)
    return Document(blocks=tuple(block for block in kept if block[:1] != (Note(text="Reading", tone="heading"),)))


def brief(document: Document) -> Document:
    """Return the tables without the lines on who was measured, and without hints for a terminal."""
    blocks = tables(document).blocks[1:]
    return Document(blocks=tuple(tuple(_here(item) for item in block if not _is_hint(item)) for block in blocks))


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


def docs_of(results: Mapping[str, Record]) -> dict[str, str]:
    """Return what each quantity of records is, by its path and in its own words."""
    return {f"{name}/{key}": quantity.doc for name, one in results.items() for key, quantity in one.quantities.items()}


def defined(analyzers: Iterable[str], docs: Mapping[str, str], figures: Sequence[Figure]) -> tuple[Definition, ...]:
    """Return what each analyzer measures, and each quantity that has words of its own or a figure."""
    known = {one.path: "" for one in figures if one.path} | dict(docs)
    return tuple(
        Definition(
            name=name,
            words=citations.DEFINITIONS.get(name, ("", ()))[0],
            entries=tuple(
                (path, title(name, path.removeprefix(f"{name}/")), doc)
                for path, doc in known.items()
                if path.startswith(f"{name}/")
            ),
        )
        for name in analyzers
    )


def origin(environment: Facts) -> str:
    """Return which program wrote the numbers and when."""
    known = [f"{name} {environment[name]}" for name in ("gapscope", "torch") if name in environment]
    created = str(environment.get("created", ""))[:10]
    return " · ".join(filter(None, ("Measured by " + ", ".join(known) if known else Sheet.origin, created)))
