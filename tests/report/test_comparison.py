import math
from dataclasses import replace

import pytest
from example_reports import curvature, eigenvalues, epsilon_sharpness, gap, large, report, together, with_quantity

from gapscope.errors import ComparisonError, UsageError
from gapscope.report.comparison import compare
from gapscope.results import Quantity, Status, scalar


def row(comparison, path):
    return next(row for row in comparison.rows if row.path == path)


def refusal(*reports, **options):
    with pytest.raises(ComparisonError) as caught:
        compare(reports, **options)
    return str(caught.value)


# What may be compared


def test_conditions_must_agree():
    said = refusal(report(), large(dtype="float64", limit=64))
    assert "do not measure the same thing: dtype: float32 / float64; limit: none / 64. Expected equal" in said
    assert "`--force`" in said


def test_settings_of_shared_analyzers_must_agree_but_for_the_seed():
    assert "eigenvalues.k: 1 / 3" in refusal(report(eigenvalues()), large(eigenvalues(0.2, k=3)))
    assert "eigenvalues.version: 1 / 2" in refusal(report(eigenvalues()), large(replace(eigenvalues(), version="2")))
    compare([report(eigenvalues()), large(eigenvalues(0.2, seed=7))])
    compare([report(eigenvalues(), gap()), large(eigenvalues(0.2))])


def test_force_overrides_and_marks():
    comparison = compare([report(), large(dtype="float64")], force=True)
    assert comparison.forced == ("dtype",)
    assert comparison.reading[0] == "Forced: dtype should agree and do not, so the contrasts may measure that."


def test_chunks_of_other_data_are_not_paired():
    paired = row(compare([report(), large()]), "eigenvalues/top")
    forced = row(compare([report(), large(data_fingerprint="other")], force=True), "eigenvalues/top")
    assert forced.estimate == paired.estimate
    assert forced.interval[0] < paired.interval[0] < paired.interval[1] < forced.interval[1]


def test_a_comparison_needs_two_reports_that_share_an_analyzer():
    with pytest.raises(UsageError, match=r"1 report to compare; expected at least two"):
        compare([report()])
    said = refusal(report(eigenvalues()), large(gap()), force=True)
    assert "share no analyzer (small batch 32: eigenvalues; large batch 650: gap). Expected at least one" in said


# Order and labels


def test_distinct_batch_sizes_order_and_name_the_subjects():
    two = compare([large(), report()])
    assert [(s.label, s.short) for s in two.subjects] == [("small batch 32", "small"), ("large batch 650", "large")]
    three = compare([large(), report(), report(batch_size=128)])
    assert [s.label for s in three.subjects] == ["batch 32", "batch 128", "batch 650"]
    assert row(three, "eigenvalues/top").values == (0.154, 0.154, 0.246)
    assert row(three, "eigenvalues/top").estimate == row(two, "eigenvalues/top").estimate


def test_otherwise_subjects_keep_their_order_and_have_the_names_of_their_files():
    same = compare([large(batch_size=32, checkpoint="runs/b/best.pt"), report(checkpoint="runs/a/best.pt")])
    assert [s.label for s in same.subjects] == ["best (1)", "best (2)"]
    assert [s.label for s in compare([large(batch_size=None), report()]).subjects] == ["large", "small"]


def test_given_labels_keep_the_order_of_the_reports():
    assert [s.label for s in compare([large(), report()], labels=["b", "a"]).subjects] == ["b", "a"]
    for labels in (["a"], ["a", "a"]):
        with pytest.raises(UsageError, match=r"labels \(.*\) for 2 reports; expected one for each, all different"):
            compare([large(), report()], labels=labels)


# Rows


def test_every_shared_element_is_a_row():
    paths = [row.path for row in compare([report(), large()]).rows]
    assert "eigenvalues/top" in paths
    assert "epsilon-sharpness/full[keskar,1e-3]" in paths
    assert "eigenvalues/values[2]" in paths
    titles = [row.title for row in compare([report(), large()]).rows]
    assert {"top eigenvalue", "epsilon-sharpness full, keskar, 1e-3", "train loss"} <= set(titles)


def test_quantities_with_other_labels_are_no_rows():
    one = Quantity(value=[1], doc="", dims=("d",), labels={"d": ("a",)})
    other = replace(one, labels={"d": ("b",)})
    sides = [with_quantity(gap(), q=quantity, r=one) for quantity in (one, other)]
    assert [row.path for row in compare([report(sides[0]), large(sides[1])]).rows] == ["gap/r[a]"]


def test_errors_combine_both_sources_and_stay_unknown_without_any():
    comparison = compare([report(), large()])
    assert row(comparison, "eigenvalues/top").errors[0] == pytest.approx(math.hypot(0.07 * 0.154, 1e-6))
    assert math.isnan(row(comparison, "eigenvalues/bottom").errors[0])


def test_verdicts_follow_the_interval():
    comparison = compare([report(), large()])
    top = row(comparison, "eigenvalues/top")
    assert (top.verdict, top.contrast, top.higher_is) == ("higher", "ratio", "sharper")
    assert 1 < top.interval[0] < top.estimate < top.interval[1]
    assert top.estimate == pytest.approx(0.246 / 0.154)
    accuracy = row(comparison, "gap/test_accuracy")
    assert (accuracy.verdict, accuracy.contrast) == ("cannot tell", "difference")
    assert accuracy.estimate == pytest.approx(-600 / 497)
    assert accuracy.interval == pytest.approx((-3.04, 0.42), abs=0.01)
    assert row(comparison, "eigenvalues/gradient_norm").verdict == ""
    worse = compare([report(), large(gap(wrong=range(100)))])
    assert row(worse, "gap/test_accuracy").verdict == "lower"


def test_values_without_a_ratio_cannot_tell():
    top = row(compare([report(eigenvalues()), large(eigenvalues(-0.1))]), "eigenvalues/top")
    assert top.verdict == "cannot tell"
    assert math.isnan(top.estimate)


def test_a_ratio_without_errors_has_no_verdict():
    sides = [with_quantity(gap(), q=Quantity(value=value, doc="", better="lower")) for value in (1, 2)]
    assert compare([report(sides[0]), large(sides[1])]).rows[0].verdict == ""


def test_an_unfinished_bound_without_a_numerical_error_cannot_tell():
    sides = []
    for top in (0.1, 0.3):
        record = eigenvalues(top, status=Status.BUDGET_SPENT)
        sides.append(with_quantity(record, top=replace(record.quantities["top"], numerical_error=None)))
    comparison = compare([report(sides[0]), large(sides[1])])
    assert row(comparison, "eigenvalues/top").verdict == "cannot tell"
    assert row(compare([report(eigenvalues()), large(eigenvalues(0.3))]), "eigenvalues/top").verdict == "higher"


def test_a_noise_dominated_bound_cannot_tell_whatever_its_error():
    for bound, verdict in (("upper", "cannot tell"), ("none", "higher")):
        sides = []
        for top in (0.1, 0.3):
            record = eigenvalues(top, status=Status.NOISE_DOMINATED)
            sides.append(with_quantity(record, top=replace(record.quantities["top"], bound=bound)))
        assert row(compare([report(sides[0]), large(sides[1])]), "eigenvalues/top").verdict == verdict


def test_an_unbiased_estimate_that_ran_out_of_budget_is_judged_by_its_errors():
    sides = []
    for top in (0.1, 0.3):
        record = eigenvalues(top, status=Status.BUDGET_SPENT)
        sides.append(with_quantity(record, top=replace(record.quantities["top"], bound="none", numerical_error=None)))
    assert row(compare([report(sides[0]), large(sides[1])]), "eigenvalues/top").verdict == "higher"


def test_rows_say_which_element_of_which_array_they_are():
    found = row(compare([report(), large()]), "epsilon-sharpness/full[keskar,1e-3]")
    assert (found.dims, found.entries, found.drawn) == (("solver", "epsilon"), ("keskar", "1e-3"), "numbers")
    assert row(compare([report(), large()]), "eigenvalues/top").dims == ()


def test_what_was_measured_on_the_subjects_together_is_carried():
    both = together()
    comparison = compare([report(), large()], together=both)
    assert (comparison.results, comparison.environment) == (both.results, both.environment)


# The same-loss rule and the reading


def reading(*reports, **options):
    return " ".join(compare(reports, **options).reading)


@pytest.mark.parametrize(
    ("loss", "said"), [(0.146, "differ 12-fold (0.0121 and 0.146)"), (0, "have no ratio (0.0121 and 0)")]
)
def test_at_unequal_loss_sharpness_cannot_tell(loss, said):
    comparison = compare([report(), large(eigenvalues(3.09), epsilon_sharpness(9), gap(loss))])
    judged = [row for row in comparison.rows if row.higher_is == "sharper"]
    assert len(judged) == 9
    assert {row.verdict for row in judged} == {"cannot tell"}
    assert row(comparison, "eigenvalues/top").estimate > 20  # the numbers stay
    assert f"The training losses {said}: the runs are not at the same loss" in comparison.reading[0]


def test_the_reading_says_how_much_sharper_and_whether_epsilon_sharpness_agrees():
    said = reading(report(), large(eigenvalues(0.246), epsilon_sharpness(1.6), gap(0.0124)))
    assert "At training losses within 3 % of each other, large batch 650 sits in a minimum 1.60 times sharper" in said
    assert "than small batch 32's by the top eigenvalue (95 % interval 1.5" in said
    assert "epsilon-sharpness agrees." in said
    assert "epsilon-sharpness says the opposite" in reading(
        report(), large(eigenvalues(0.246), epsilon_sharpness(0.3), gap())
    )
    said = reading(report(), large(eigenvalues(0.077), epsilon_sharpness(1.0), gap()))
    assert "small batch 32 sits in a minimum 2.00 times sharper than large batch 650's" in said
    assert "epsilon-sharpness cannot tell" in said
    assert "cannot be told apart by the top eigenvalue (ratio 1" in reading(report(), large(eigenvalues(), gap()))


def test_the_reading_is_honest_without_loss_eigenvalues_or_interval():
    assert "The training losses were not measured" in reading(report(eigenvalues()), large(eigenvalues(0.3)))
    said = reading(report(epsilon_sharpness()), large(epsilon_sharpness(2)))
    assert "large batch 650 is 2.00 times sharper than small batch 32 by epsilon-sharpness full, keskar, 1e-3" in said
    sides = [eigenvalues(top, chunks=False) for top in (1.0, 2.0)]
    sides = [with_quantity(s, top=replace(s.quantities["top"], sampling_error=None)) for s in sides]
    assert "is 2 by the top eigenvalue, without an interval" in reading(report(sides[0]), large(sides[1]))


def test_a_minimum_is_only_claimed_where_gradient_and_curvature_allow():
    sloping = reading(report(), large(eigenvalues(0.246, gradient_norm=0.1), gap()))
    saddle = reading(report(), large(eigenvalues(0.246, bottom=-0.1), gap()))
    unmeasured = reading(report(eigenvalues()), large(eigenvalues(0.246)))
    assert "minimum" not in sloping + saddle + unmeasured
    assert "large batch 650 is still on a slope: a gradient step promises 170 % of its loss." in sloping
    said = "large batch 650 is near a saddle: its smallest eigenvalue is at most -0.1, 41 % of the largest."
    assert said in saddle
    assert "slope" not in unmeasured


def test_neither_a_minimum_nor_a_saddle_is_claimed_where_the_bottom_is_too_uncertain():
    record = eigenvalues(0.246)
    bottom = replace(record.quantities["bottom"], numerical_error=scalar(0.1))
    vague = replace(record, quantities={**record.quantities, "bottom": bottom})
    said = reading(report(), large(vague, gap()))
    assert "minimum" not in said
    assert "saddle" not in said


def test_the_reading_says_whether_accuracies_differ():
    assert "The test accuracies cannot be told apart on 497 test samples (-1.2 points, 95 % interval -3.0 to 0.4)." in (
        reading(report(), large())
    )
    said = reading(report(), large(gap(wrong=range(100))))
    assert (
        "small batch 32 has the higher test accuracy on 497 test samples, by 13.1 points (95 % interval 10.4 to 16"
        in said
    )
    blind = with_quantity(gap(), train_loss=gap().quantities["train_loss"])
    assert "No test data were measured" in reading(report(blind), large(blind))
    untested = replace(gap().quantities["test_loss"], value=scalar(math.nan))
    blind = with_quantity(gap(), train_loss=gap().quantities["train_loss"], test_loss=untested)
    assert "No test data were measured" in reading(report(blind), large(blind))


def test_numbers_to_predict_have_test_data_though_no_accuracy():
    losses = {name: gap().quantities[name] for name in ("train_loss", "test_loss")}
    gapped = replace(losses["test_loss"], doc="test loss - training loss", contrast="difference")
    both = with_quantity(gap(), **losses, loss_gap=gapped)
    assert "No test data" not in reading(report(both), large(both))


def test_the_reading_says_what_the_numbers_cannot():
    said = reading(report(limit=64), large(eigenvalues(0.2, status=Status.BUDGET_SPENT), gap(), limit=64))
    assert "Mind eigenvalues of large batch 650 (stopped at the budget before it reached the tolerance: only " in said
    assert "); that this is a subset of the data, and subsets overstate lambda_max." in said
    assert "Raw sharpness changes under rescaling of layers; no scale-aware measure is in these reports." in said
    assert "One seed per batch size proves nothing about the recipe" in said
    assert "One checkpoint of each kind proves nothing" in reading(report(batch_size=None), large(batch_size=None))
    several = reading(report(), report(checkpoint="b.pt"), large(), large(checkpoint="d.pt"))
    assert "proves nothing" not in several


def test_the_reading_has_three_to_six_sentences():
    for other in (large(), large(gap()), large(eigenvalues(3), gap(9)), large(epsilon_sharpness())):
        assert 2 <= len(compare([report(), other]).reading) <= 6


def test_what_was_skipped_in_one_is_not_compared():
    skipped = replace(gap(), status=Status.SKIPPED, quantities={}, settings={"seed": 0, "other": 1})
    comparison = compare([report(eigenvalues(), gap()), large(eigenvalues(0.2), skipped)])
    assert all(row.path.startswith("eigenvalues/") for row in comparison.rows)


def test_an_array_too_long_to_read_is_left_to_the_reports():
    def spectrum(size):
        names = {"index": tuple(map(str, range(size)))}
        return with_quantity(
            eigenvalues(), spectrum=Quantity(value=[1.0] * size, dims=("index",), labels=names, doc="s")
        )

    for size, rows in ((2_000, 2_000), (2_001, 0)):
        assert len(compare([report(spectrum(size)), large(spectrum(size))]).rows) == rows


def test_rows_stand_in_one_order_whatever_the_order_of_measurement():
    records = [curvature(layers=2), gap(), epsilon_sharpness(), eigenvalues()]
    shown = [row.path.partition("/")[0] for row in compare([report(*records), large(*records)]).rows]
    assert list(dict.fromkeys(shown)) == ["eigenvalues", "epsilon-sharpness", "gap", "curvature"]


def test_a_study_is_no_side_of_a_comparison():
    study = replace(report(), identity={"checkpoint": "Keskar et al. 2017", "study": "keskar"})
    with pytest.raises(ComparisonError, match=r"`Keskar et al. 2017` is a study of many runs. Expected reports of"):
        compare([report(), study])
