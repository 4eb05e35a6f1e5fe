import math
from dataclasses import replace

from example_reports import density, eigenvalues, gap, large, path, plane, report, together, with_quantity

from gapscope.report.comparison import compare
from gapscope.report.view import Note, Table, comparison_document, report_document
from gapscope.results import Quantity, Status

FOUR = (eigenvalues(), path(), density(), gap())


def items(document, kind):
    return [item for block in document.blocks for item in block if isinstance(item, kind)]


def lines(document):
    return [line for table in items(document, Table) for line in table.lines]


def texts(document):
    return [item.text for item in items(document, Note)]


def test_a_report_begins_with_its_subject():
    said = texts(report_document(report(test_samples=497)))
    assert said[0] == "small.pt"
    assert said[1] == (
        "digits, train split, 1,300 samples · mlp 64-32-10, 2,410 parameters · cross-entropy · eval mode · float32"
    )


def test_data_and_arguments_may_stand_in_the_identity_and_some_analyzers_may_be_left_out():
    identity = {"data": "blobs", "model": "mlp", "model_args": "hidden=[32]"}
    document = report_document(replace(report(), identity=identity, conditions={}), only=["gap"])
    assert texts(document)[:2] == ["blobs · mlp hidden=[32]", "gap"]


def test_a_subset_is_announced():
    assert "A subset of the data: subsets overstate lambda_max." in texts(report_document(report(limit=64)))


def test_each_number_stands_beside_its_two_errors():
    first, *_ = lines(report_document(report()))
    assert first.cells == ("top eigenvalue", "0.154", "0.011", "1.0e-6")


def test_status_cost_and_notes_follow_the_table():
    said = texts(report_document(report()))
    assert "converged to the requested tolerance · 17 matvecs · 1.5\u00a0s" in said
    assert "two notes" in said


def test_numbers_without_direction_are_dimmed_and_their_arrays_only_verbose():
    brief = {line.cells[0]: line.tone for line in lines(report_document(report(eigenvalues())))}
    assert brief == {"top eigenvalue": "plain", "bottom eigenvalue": "dim", "gradient norm": "dim"}
    full = report_document(report(eigenvalues()), verbose=True)
    assert [line.cells for line in lines(full)][2:4] == [
        ("largest eigenvalues, 1", "0.154", "–", "–"),
        ("largest eigenvalues, 2", "0.077", "–", "–"),
    ]
    said = texts(full)
    assert "top eigenvalue: largest eigenvalue of the Hessian" in said
    assert "settings: k 1, seed 0, tolerance 0.001" in said
    assert "training: batch_size 32, lr 0.1, nesterov False, optimizer sgd" in said


def test_a_value_that_did_not_converge_is_shown_as_a_bound():
    record = eigenvalues(status=Status.BUDGET_SPENT)
    upper = replace(record.quantities["top"], bound="upper")
    unknown = replace(upper, value=math.nan)
    document = report_document(report(with_quantity(record, top=record.quantities["top"], upper=upper, none=unknown)))
    assert [line.cells[1] for line in lines(document)] == ["≥ 0.154", "≤ 0.154", "–"]
    assert items(document, Table)[0]
    assert f"{Status.BUDGET_SPENT.value} · 17 matvecs · 1.5\u00a0s" in texts(document)


def test_an_unbiased_estimate_that_ran_out_of_budget_is_no_bound():
    record = eigenvalues(status=Status.BUDGET_SPENT)
    unbiased = replace(record.quantities["top"], bound="none")
    assert [line.cells[1] for line in lines(report_document(report(with_quantity(record, top=unbiased))))] == ["0.154"]


def test_large_arrays_are_shown_in_part():
    labels = {"draw": tuple(f"fc{i}" for i in range(40))}
    many = Quantity(value=range(40), doc="", dims=("draw",), labels=labels)
    record = with_quantity(eigenvalues(), many=many)
    brief = lines(report_document(report(record)))
    assert len(brief) == 9
    assert brief[-1].cells[0] == "many, 32 more of 40: all with --verbose or --json"
    assert len(lines(report_document(report(record), verbose=True))) == 40


def test_a_comparison_shows_values_contrast_interval_and_who_is_sharper():
    document = comparison_document(compare([report(), large()]))
    table = items(document, Table)[0]
    headers = [column.header for column in table.columns]
    assert headers == ["", "small batch 32", "large batch 650", "ratio", "95 % interval", ""]
    top, title, first, *_ = table.lines
    assert top.cells[:4] == ("top eigenvalue", "0.154 ± 0.011", "0.246 ± 0.017", "1.60")
    assert (top.cells[-1], top.tone) == ("large\u00a0sharper", "worse")
    assert title.cells == ("epsilon-sharpness %",)
    assert (first.cells[0], first.level) == ("full, keskar, 1e-3", 1)
    accuracy = next(line for line in table.lines if line.cells[0].startswith("test accuracy"))
    assert accuracy.cells[3:] == ("-1.2", "-3.0 to 0.4", "cannot tell")
    assert accuracy.tone == "unsure"


def test_rows_without_direction_are_verbose_only():
    comparison = compare([report(), large()])
    assert not [line for line in lines(comparison_document(comparison)) if line.cells[0] == "gradient norm"]
    assert [line for line in lines(comparison_document(comparison, verbose=True)) if line.cells[0] == "gradient norm"]


def test_the_smaller_value_and_a_wordless_quantity_have_verdicts_too():
    sides = [
        with_quantity(
            eigenvalues(),
            a=Quantity(value=value, sampling_error=0.01, doc="", better="higher"),
            d=Quantity(value=1 / value, sampling_error=0.01, doc="", better="higher", contrast="difference"),
        )
        for value in (2.0, 1.0)
    ]
    a, d = lines(comparison_document(compare([report(sides[0]), large(sides[1])])))
    assert (a.cells[-1], a.tone) == ("small\u00a0higher", "worse")
    assert (d.cells[3], d.cells[-1], d.tone) == ("+0.50", "large\u00a0higher", "better")


def test_what_differs_is_not_said_of_both_and_force_is_marked():
    said = texts(comparison_document(compare([report(), large(dtype="float64", split="test")], force=True)))
    assert said[0] == "digits, 1,300 samples · mlp 64-32-10, 2,410 parameters · cross-entropy · eval mode"
    assert said[1] == "Forced: these keys should agree and do not: dtype, split"


def test_what_was_measured_together_is_shown_between_the_rows_and_the_reading():
    said = texts(comparison_document(together()))
    legend = "ratio: large / small; with a sign: large - small; intervals over the data"
    order = [said.index(text) for text in (legend, "path", "plane", "Reading")]
    assert order == sorted(order)
    assert (
        "On the straight line between them the training loss exceeds the line between their losses by 0.400 ± 0.020"
        in said[-1]
    )


def test_a_comparison_without_rows_names_its_subjects_and_has_no_empty_table():
    document = comparison_document(together(plane(), rows=(), reading=()))
    assert texts(document)[0] == "small batch 32, large batch 650"
    assert "Reading" not in texts(document)
    assert not [table for table in items(document, Table) if not table.lines]


def test_of_many_analyzers_the_numbers_are_not_explained():
    few, many = (report_document(report(*records), verbose=True) for records in ((eigenvalues(), path()), FOUR))
    said = "What each number means: --json, or --verbose of a single analyzer."
    assert ("barrier: rise above both ends" in texts(few), said in texts(few)) == (True, False)
    assert ("barrier: rise above both ends" in texts(many), said in texts(many)) == (False, True)


def test_beside_rows_what_was_measured_together_is_not_explained_either():
    said = "What each number means: --json, or --verbose of a single analyzer."
    whole, alone = (
        texts(comparison_document(one, verbose=True)) for one in (together(), together(rows=(), reading=()))
    )
    assert ("barrier: rise above both ends" in whole, said in whole) == (False, True)
    assert ("barrier: rise above both ends" in alone, said in alone) == (True, False)
