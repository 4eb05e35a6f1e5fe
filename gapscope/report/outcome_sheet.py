"""The page of a study: the claims with their verdicts first, then each part's tables and figures."""

from collections.abc import Iterator, Sequence

from gapscope.report.document import Document, Item, Note
from gapscope.report.illustrations import Figure, barred, illustrated, worth
from gapscope.report.outcome import LIMITS, Outcome, Part, claims_table, part_blocks
from gapscope.report.sheet import Sheet, defined, origin
from gapscope.results import Quantity


def outcome_sheet(outcome: Outcome) -> Sheet:
    """Return the page of a study; the same outcome gives the same page."""
    drawn = tuple(_figures(outcome))
    docs = {
        f"{part.record.analyzer}/{name}": quantity.doc
        for part in outcome.parts
        for name, quantity in part.record.quantities.items()
        if quantity.doc
    }
    named = defined((*(part.record.analyzer for part in outcome.parts), *outcome.analyzers), docs, drawn)
    return Sheet(
        name=outcome.title,
        lead=outcome.lead,
        about=tuple(Note(text=text) for text in outcome.about),
        said=(Note(text=LIMITS),),
        brief=Document(blocks=((Note(text="Claims", tone="heading"), claims_table(outcome)), *_blocks(outcome.parts))),
        figures=drawn,
        definitions=tuple(one for one in named if one.words or one.entries),
        origin=origin(outcome.environment),
    )


def _blocks(parts: Sequence[Part]) -> Iterator[tuple[Item, ...]]:
    """Yield the tables of the parts and what they cannot tell; what only figures show says so below them."""
    for part in parts:
        if part.tables or not any(worth(quantity) for quantity in part.record.quantities.values()):
            yield from part_blocks(part)


def _figures(outcome: Outcome) -> Iterator[Figure]:
    for part in outcome.parts:
        for name, quantity in part.record.quantities.items():
            if worth(quantity):
                own = part.record.analyzer.startswith(outcome.study)  # not an analyzer's, which has a title
                called = f"{part.title}: {name.replace('_', ' ')}" if own else ""
                path = f"{part.record.analyzer}/{name}"
                yield illustrated(path, quantity, _caption(part, quantity), name=called)


def _caption(part: Part, quantity: Quantity) -> str:
    """Return what it is, over what its errors are if the study says so, and what it cannot tell."""
    doc = (quantity.doc or part.title).removesuffix(".")
    bars = ("A thin bar reaches one error to each side.",) * barred(quantity)
    notes = () if part.tables else (*part.notes, *part.record.notes)  # else they stand below the tables
    return " ".join((f"{doc[:1].upper()}{doc[1:]}.", *bars, *notes))
