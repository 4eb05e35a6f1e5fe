from example_reports import curvature, density, gap, report

from gapscope.report.document import Column, Document, Line, Note, Series, Table
from gapscope.report.illustrations import figures
from gapscope.report.sheet import Sheet, about, brief, defined, docs_of, origin, tables
from gapscope.report.view import report_document


def document():
    columns = (Column(header="layer", numeric=False), Column(header="value"))
    rest = Line(cells=("25 more layers: --verbose",))
    table = Table(columns=columns, lines=(Line(cells=("fc1", "1")), rest))
    series = Series(title="loss", style="line", axis="t", labels=("0", "1"), curves=((1.0, 2.0),))
    said = Note(text="loss: drawn with --verbose"), Note(text="converged")
    head = Note(text="small.pt", tone="heading"), Note(text="digits"), Note(text="A subset.", tone="warning")
    return Document(blocks=(head, (table, series, *said), (Note(text="Reading", tone="heading"), Note(text="So."))))


def test_who_was_measured_is_told_without_the_name():
    assert about(document()) == (Note(text="digits"), Note(text="A subset.", tone="warning"))


def test_tables_have_neither_drawings_nor_the_reading():
    head, (table, *notes) = tables(document()).blocks
    assert len(head) == 3
    assert isinstance(table, Table)
    assert [note.text for note in notes] == ["loss: drawn with --verbose", "converged"]


def test_hints_for_a_terminal_lead_to_the_page_instead():
    ((table, note),) = brief(document()).blocks
    assert table.lines[1].cells == ("25 more layers: below",)
    assert note.text == "converged"


def test_quantities_are_defined_under_their_analyzer_with_figures_even_without_words():
    shown = report(curvature(), density())
    drawn = figures(shown.results, {}, ())
    curved, dense, other = defined(["curvature", "density", "moons"], docs_of({"density": density()}), drawn)
    assert curved.words.startswith("The median over each layer")
    assert ("curvature/median", "curvature median", "") in curved.entries
    assert [words for path, _, words in dense.entries if path == "density/density"] == [
        density().quantities["density"].doc
    ]
    assert (other.words, other.entries) == ("", ())


def test_the_origin_names_versions_and_the_day_as_far_as_they_are_known():
    assert origin(report(gap()).environment) == "Measured by gapscope 0.1.0 · 2026-01-01"
    assert origin({}) == Sheet(name="", lead="").origin == "Written by gapscope"


def test_a_document_of_a_report_keeps_its_blocks():
    shown = report_document(report(gap()))
    assert len(brief(shown).blocks) == len(shown.blocks) - 1
