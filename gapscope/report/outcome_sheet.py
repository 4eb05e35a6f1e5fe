"""The page of a study: the claims with their verdicts first, then each part's tables and figures."""

from collections.abc import Iterator

from gapscope.report.document import Document, Item, Note
from gapscope.report.illustrations import Figure, barred, illustrated, worth
from gapscope.report.outcome import LIMITS, Outcome, Part, claim_notes
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
        said=(*claim_notes(outcome), Note(text=LIMITS)),
        brief=Document(blocks=tuple(block for part in outcome.parts if (block := _block(part)))),
        figures=drawn,
        definitions=tuple(one for one in named if one.words or one.entries),
        origin=origin(outcome.environment),
    )


def _block(part: Part) -> tuple[Item, ...]:
    """Return the tables of a part and what they cannot tell; what only figures show says so below them."""
    if not part.tables and any(worth(quantity) for quantity in part.record.quantities.values()):
        return ()
    notes = (Note(text=said, tone="dim") for said in (*part.notes, *part.record.notes))
    return (Note(text=part.title, tone="heading"), *part.tables, *notes)


def _figures(outcome: Outcome) -> Iterator[Figure]:
    for part in outcome.parts:
        for name, quantity in part.record.quantities.items():
            if worth(quantity):
                yield illustrated(f"{part.record.analyzer}/{name}", quantity, _caption(part, quantity))


def _caption(part: Part, quantity: Quantity) -> str:
    """Return what it is, over what its errors are if the study says so, and what it cannot tell."""
    doc = (quantity.doc or part.title).removesuffix(".")
    bars = ("A thin bar reaches one error to each side.",) * barred(quantity)
    return " ".join((f"{doc[:1].upper()}{doc[1:]}.", *bars, *part.notes, *part.record.notes))
