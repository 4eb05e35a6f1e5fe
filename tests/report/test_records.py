from dataclasses import replace

import numpy as np
import pytest
from example_reports import eigenvalues, epsilon_sharpness, gap, large, path, plane, report, together

from gapscope.errors import ReportError
from gapscope.report.comparison import compare
from gapscope.report.records import combined, merge, merge_comparison
from gapscope.results import Quantity


def test_merging_keeps_the_other_results():
    merged, said = merge(report(eigenvalues(), gap()), report(epsilon_sharpness(), gap()))
    assert list(merged.results) == ["eigenvalues", "gap", "epsilon-sharpness"]
    assert said == ()


def test_a_replaced_result_says_which_settings_changed():
    merged, said = merge(report(eigenvalues()), report(eigenvalues(k=3, delta=0.1)))
    assert merged.results["eigenvalues"].settings["k"] == 3
    assert said == ("replaced eigenvalues: settings changed: delta none -> 0.1, k 1 -> 3",)
    _, said = merge(report(eigenvalues()), report(replace(eigenvalues(), version="2")))
    assert said == ("replaced eigenvalues: settings changed: version 1 -> 2",)


def test_reports_of_other_subjects_or_conditions_do_not_merge():
    with pytest.raises(ReportError, match=r"measures something else: checkpoint \(small.pt there, large.pt now\)"):
        merge(report(), large())
    with pytest.raises(ReportError, match=r"dtype \(float32 there, float64 now\), limit \(none there, 64 now\)\. Exp"):
        merge(report(), report(dtype="float64", limit=64))


def test_merging_comparisons_keeps_the_other_results_and_the_rows():
    first, second = together(path()), together(plane(), rows=(), reading=(), forced=("dtype",))
    merged, said = merge_comparison(first, second)
    assert list(merged.results) == ["path", "plane"]
    assert (merged.rows, merged.reading, merged.forced, said) == (first.rows, first.reading, ("dtype",), ())
    merged, _ = merge_comparison(replace(second, forced=()), first)
    assert (merged.rows, merged.reading) == (first.rows, first.reading)
    again = replace(first, rows=first.rows[:1], reading=("new",))
    merged, _ = merge_comparison(replace(first, forced=("eigenvalues.k",)), again)
    assert (merged.rows, merged.reading, merged.forced) == (first.rows[:1], ("new",), ())


def test_a_replaced_joint_result_says_which_settings_changed():
    merged, said = merge_comparison(together(), together(path(points=5)))
    assert merged.results["path"].settings == {"points": 5}
    assert said == ("replaced path: settings changed: points 11 -> 5",)


def test_comparisons_of_other_subjects_do_not_merge():
    turned = replace(together(), subjects=together().subjects[::-1])
    with pytest.raises(ReportError, match=r"of something else: subject 1: checkpoint \(small.pt there, large.pt now\)"):
        merge_comparison(together(), turned)
    conditions = [replace(subject, conditions={**subject.conditions, "limit": 64}) for subject in together().subjects]
    with pytest.raises(ReportError, match=r"subject 1: limit \(none there, 64 now\), subject 2: limit .*`--output`"):
        merge_comparison(together(), replace(together(), subjects=tuple(conditions)))
    with pytest.raises(ReportError, match="2 subjects there, 3 now"):
        merge_comparison(together(), replace(together(), subjects=(*together().subjects, together().subjects[0])))


def test_reports_and_comparisons_are_one_line_and_print_as_tables():
    one = report(eigenvalues(), gap())
    assert repr(one) == "Report(small.pt: eigenvalues, gap)"
    assert "top eigenvalue" in str(one)
    both = compare([one, large(eigenvalues(0.2), gap())])
    assert repr(both) == f"Comparison(small batch 32 and large batch 650: {len(both.rows)} rows)"
    assert "Reading" in str(both)
    assert repr(both) in repr([both])
    assert "\x1b" not in str(one) + str(both)


def test_a_quantity_is_one_line():
    quantity = Quantity(value=0.5, sampling_error=0.01, numerical_error=1e-5, unit="%", doc="")
    assert repr(quantity) == "Quantity(0.5 %, sampling error 0.01, numerical error 1e-05)"
    array = Quantity(value=np.zeros((2, 3)), dims=("a", "b"), labels={"a": ("x", "y"), "b": ("1", "2", "3")}, doc="")
    assert repr(array) == "Quantity(2 a x 3 b)"


def test_a_report_gives_its_single_numbers_by_path():
    assert report().number("eigenvalues/top") == 0.154
    for absent in ("eigenvalues/values", "eigenvalues/nothing", "nothing/top"):
        assert report().number(absent) is None


def test_errors_are_combined_as_squares_and_unknown_only_where_both_are():
    nan = np.nan
    both = Quantity(value=np.ones(3), doc="", dims=("x",), labels={"x": ("a", "b", "c")})
    both = replace(both, sampling_error=np.array([3.0, nan, nan]), numerical_error=np.array([4.0, 2.0, nan]))
    assert combined(both).tolist() == pytest.approx([5.0, 2.0, nan], nan_ok=True)
    assert np.isnan(combined(replace(both, sampling_error=None, numerical_error=None))).all()
    assert combined(Quantity(value=1.0, doc="", sampling_error=0.5)).tolist() == 0.5
