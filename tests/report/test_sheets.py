from dataclasses import replace

from example_reports import eigenvalues, epsilon_sharpness, gap, report, together, with_quantity

from gapscope.report.reading import whole_reading
from gapscope.report.records import Comparison
from gapscope.report.sheets import sheet
from gapscope.results import Status


def test_a_comparison_leads_with_its_reading():
    shown = sheet(together())
    assert shown.name == "small batch 32 against large batch 650"
    assert (shown.lead, *(note.text for note in shown.said)) == whole_reading(together())
    assert shown.figures[0].title == "ratios, large over small"
    assert shown.headlines == ()


def test_a_comparison_of_nothing_says_so():
    assert sheet(Comparison(subjects=together().subjects, rows=(), reading=())).lead == "Nothing was compared."


def test_the_definitions_of_a_comparison_are_the_words_of_its_rows():
    pair = together()
    worded = replace(pair, rows=tuple(replace(row, doc=f"words on {row.path.partition('[')[0]}") for row in pair.rows))
    entries = [entry for one in sheet(worded).definitions for entry in one.entries]
    assert ("eigenvalues/top", "top eigenvalue", "words on eigenvalues/top") in entries
    assert sum(path == "epsilon-sharpness/full" for path, *_ in entries) == 1  # of an array's elements, one
    mute = replace(pair, rows=tuple(replace(row, doc="") for row in pair.rows))
    silent = [entry for one in sheet(mute).definitions for entry in one.entries if entry[0].startswith("eigenvalues/")]
    assert silent == []


def test_a_report_leads_with_two_numbers_and_has_a_tile_for_each_analyzer():
    shown = sheet(report(eigenvalues(), epsilon_sharpness(), gap()))
    assert shown.lead.startswith("Top eigenvalue 0.154 ± 0.011, ")
    assert [one.title for one in shown.headlines][:2] == ["top eigenvalue", "epsilon-sharpness full, keskar, 1e-3"]
    assert shown.headlines[0].status == "converged"
    assert (shown.name, shown.said) == ("small.pt", ())


def test_what_did_not_finish_is_a_warning():
    shown = sheet(report(eigenvalues(status=Status.BUDGET_SPENT)))
    assert shown.lead.endswith("Mind what follows.")
    ((note,), said) = shown.said, f"eigenvalues: {Status.BUDGET_SPENT.value}"
    assert (note.text, note.tone) == (said, "warning")


def test_a_bound_is_said_to_be_one_as_in_the_table():
    top = replace(eigenvalues().quantities["top"], value=1.72, sampling_error=0.2)
    shown = sheet(report(with_quantity(eigenvalues(status=Status.BUDGET_SPENT), top=top)))
    assert shown.lead.startswith("Top eigenvalue ≥ 1.72 ± 0.20. ")
    assert shown.headlines[0].shown == "≥ 1.72 ± 0.20"
    vague = replace(top, sampling_error=None, numerical_error=4.0)
    shown = sheet(report(with_quantity(eigenvalues(status=Status.BUDGET_SPENT), top=vague)))
    assert shown.headlines[0].shown == "1.7 to 5.7"
