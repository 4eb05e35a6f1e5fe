"""The pages of a report and of a comparison: what stands on them, and what is said first."""

import itertools
from collections.abc import Iterator

from gapscope.report import citations
from gapscope.report.comparison_figures import compared, quantity_of
from gapscope.report.document import Note
from gapscope.report.illustrations import figures
from gapscope.report.reading import whole_reading
from gapscope.report.record_view import PROVEN, cell
from gapscope.report.records import Comparison, Record, Report
from gapscope.report.sheet import Headline, Sheet, about, brief, defined, docs_of, origin, tables
from gapscope.report.titles import place, title
from gapscope.report.view import comparison_document, report_document
from gapscope.results import Quantity

HEADLINES = 6
First = tuple[Record, str, Quantity]


def sheet(content: Report | Comparison) -> Sheet:
    """Return the page of a report or a comparison; the same content gives the same page."""
    return comparison_sheet(content) if isinstance(content, Comparison) else report_sheet(content)


def comparison_sheet(comparison: Comparison) -> Sheet:
    """Return the page of a comparison: its reading first, and its ratios before its other figures."""
    drawn = compared(comparison)
    first, *others = whole_reading(comparison) or ("Nothing was compared.",)
    document = comparison_document(comparison)
    rows = {quantity_of(row): row.doc for row in comparison.rows if row.doc}
    return Sheet(
        name=" against ".join(subject.label for subject in comparison.subjects),
        lead=first,
        about=about(document),
        said=tuple(Note(text=said) for said in others),
        brief=brief(document),
        whole=tables(comparison_document(comparison, verbose=True)),
        figures=tuple(drawn),
        definitions=defined(citations.analyzers(comparison), rows | docs_of(comparison.results), drawn),
        origin=origin(comparison.environment),
    )


def report_sheet(report: Report) -> Sheet:
    """Return the page of a report: the first number of each analyzer first, and how sure it is."""
    drawn = figures(report.results, report.conditions, ("checkpoint",))
    records = [report.results[name] for name in sorted(report.results, key=place)]
    firsts = [first for record in records for first in _first(record)][:HEADLINES]
    unsure = [f"{record.analyzer}: {record.message}" for record in records if record.status not in PROVEN]
    document = report_document(report)
    return Sheet(
        name=str(report.identity.get("checkpoint", "Report")),
        lead=_lead(records, firsts, sure=not unsure),
        about=about(document),
        said=tuple(Note(text=said, tone="warning") for said in unsure),
        headlines=tuple(_headline(*first) for first in firsts),
        brief=brief(document),
        whole=tables(report_document(report, verbose=True)),
        figures=tuple(drawn),
        definitions=defined(citations.analyzers(report), docs_of(report.results), drawn),
        origin=origin(report.environment),
    )


def _lead(records: list[Record], firsts: list[First], *, sure: bool) -> str:
    """Say the first two numbers of the whole network."""
    whole = [(record, name, quantity) for record, name, quantity in firsts if not quantity.dims][:2]
    said = ", ".join(f"{_titled(record, name)} {_shown(quantity, record)}" for record, name, quantity in whole)
    rest = "Every measurement reached what was asked of it." if sure else "Mind what follows."
    rest = rest if records else "Nothing was measured."
    return f"{said[:1].upper()}{said[1:]}. {rest}" if said else rest


def _first(record: Record) -> Iterator[First]:
    """Yield the headline: of an array its first number, unless that speaks for one layer or one place only."""
    for name, quantity in itertools.islice(record.quantities.items(), 1):
        if quantity.value.size and quantity.drawn == "numbers" and "layer" not in quantity.dims:
            yield record, name, quantity


def _headline(record: Record, name: str, quantity: Quantity) -> Headline:
    status = record.status.name.lower().replace("_", " ")
    return Headline(title=_titled(record, name), shown=_shown(quantity, record), status=status)


def _titled(record: Record, name: str) -> str:
    quantity = record.quantities[name]
    entries = [quantity.labels[dim][0] for dim in quantity.dims]
    return ", ".join((title(record.analyzer, name), *entries))


def _shown(quantity: Quantity, record: Record) -> str:
    return f"{cell(quantity, (0,) * quantity.value.ndim, record.status)} {quantity.unit}".strip()
