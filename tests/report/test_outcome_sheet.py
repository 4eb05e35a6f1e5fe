from dataclasses import replace

import lxml.html
import numpy as np
from example_outcomes import EVIL, claim, outcome, part

from gapscope.report.document import Note
from gapscope.report.outcome import LIMITS
from gapscope.report.outcome_sheet import outcome_sheet
from gapscope.report.page import page
from gapscope.report.records import Record
from gapscope.results import Status

ALL = (claim("shows", text="a"), claim("does not show", text="b"), claim("cannot tell", text="c"))


def test_the_claims_come_first_each_with_its_verdict_in_words():
    shown = outcome(claims=ALL)
    tree = lxml.html.fromstring(page(outcome_sheet(shown)))
    header = tree.find(".//header")
    assert header.findtext("h1") == shown.title
    assert shown.lead in header.text_content()
    assert shown.about[0] in header.text_content()
    assert [one.text_content() for one in header.iter("li")] == [LIMITS]
    first = next(tree.iter("table"))
    rows = [[cell.text_content() for cell in row] for row in first.find("tbody")]
    assert rows == [
        ["a (Table 3)", "ratio 2", "shows"],
        ["b (Table 3)", "ratio 2", "does not show"],
        ["c (Table 3)", "ratio 2", "cannot tell"],
    ]


def test_claims_of_the_study_have_a_title_of_their_own():
    shown = outcome(claims=(claim("shows", text="a", own=True), claim("shows", text="b")))
    first = next(lxml.html.fromstring(page(outcome_sheet(shown))).iter("table"))
    paper, title, own = ([cell.text_content() for cell in row] for row in first.find("tbody"))
    assert (paper[0], title, own[0]) == ("b (Table 3)", ["beside the paper's claims"], "a (Table 3)")


def test_tables_stand_with_their_title_and_all_notes():
    claims, (heading, table, *notes) = outcome_sheet(outcome()).brief.blocks
    assert claims[0] == Note(text="Claims", tone="heading")
    assert heading == Note(text="the sweep", tone="heading")
    assert table == part().tables[0]
    assert [note.text for note in notes] == ["it says nothing of speed", "said by the record"]


def test_several_tables_of_a_part_stand_apart():
    one = part()
    _, first, second = outcome_sheet(outcome(parts=(replace(one, tables=one.tables * 2),))).brief.blocks
    assert [type(item).__name__ for item in first] == ["Note", "Table"]
    assert [type(item).__name__ for item in second] == ["Table", "Note", "Note"]


def test_a_part_without_tables_is_its_figures_or_its_notes():
    drawn = outcome_sheet(outcome(parts=(replace(part(), tables=()),)))
    assert len(drawn.brief.blocks) == 1  # the claims
    (figure,) = drawn.figures
    assert figure.caption.endswith("side. it says nothing of speed said by the record")
    skipped = Record(analyzer="x", version="1", status=Status.SKIPPED, notes=("no loss is shared",))
    told = outcome_sheet(outcome(parts=(replace(part(), tables=(), record=skipped),)))
    assert [note.text for note in told.brief.blocks[1]] == [
        "the sweep",
        "it says nothing of speed",
        "no loss is shared",
    ]


def test_a_figure_says_what_it_shows():
    (figure,) = outcome_sheet(outcome()).figures
    assert (figure.path, figure.title) == ("toy-sweep/sharpness", "the sweep: sharpness")
    assert figure.caption == "Sharpness at the end, errors over seeds. A thin bar reaches one error to each side."
    (plain,) = outcome_sheet(outcome(parts=(part(doc=""),))).figures
    assert plain.caption.startswith("The sweep. A thin bar")


def test_no_definition_is_empty_and_every_figure_leads_to_one():
    bare = Record(analyzer="bare", version="1", status=Status.EXACT)
    parts = (part(), replace(part(), record=bare, tables=()))
    sheet = outcome_sheet(outcome(parts=parts, analyzers=("gap", "unknown")))
    assert [one.name for one in sheet.definitions] == ["toy-sweep", "gap"]
    tree = lxml.html.fromstring(page(sheet))
    for link in tree.iter("a"):
        assert tree.get_element_by_id(link.get("href").removeprefix("#")) is not None
    for term in tree.find(".//dl[@class='definitions']").iter("dt", "dd"):
        assert term.text_content().strip()


def test_numbers_that_are_missing_and_marks_in_names_stay_words():
    evil = outcome(
        title=EVIL,
        about=(EVIL,),
        source=EVIL,
        claims=(claim("shows", text=EVIL),),
        parts=(part(label=EVIL, doc=EVIL, unit=EVIL),),
        conditions={"data": EVIL},
    )
    tree = lxml.html.fromstring(page(outcome_sheet(evil)))
    assert not [*tree.iter("script", "img")]
    assert EVIL in tree.text_content()
    assert not [one for one in tree.iter() for name in one.keys() if name.startswith("on")]  # noqa: SIM118


def test_the_same_outcome_gives_the_same_page():
    assert page(outcome_sheet(outcome(claims=ALL))) == page(outcome_sheet(outcome(claims=ALL)))
    assert np.isnan(part().record.quantities["sharpness"].value).any()  # a gap in the curve is drawn as one
