import math
from dataclasses import replace

import numpy as np
import pytest
from example_reports import adaptive_sharpness, eigenvalues, epsilon_sharpness, gap, report, with_quantity

from gapscope.report.contrasts import paired_rates
from gapscope.report.thresholds import elements, threshold
from gapscope.report.verdicts import EVERYWHERE, Check, exit_code, interval_of, judge
from gapscope.results import Quantity, Status

KNOWN = {"eigenvalues": ("top", "bottom"), "trace": ("trace",)}


def checks(content, selector="eigenvalues/top", baseline=None, allow_differences=False, **limits):
    found = judge(
        {"now.h5": content},
        [threshold(selector, limits, "test")],
        baseline=baseline,
        known=KNOWN,
        allow_differences=allow_differences,
    )
    assert found
    return found


def verdict(content, **given):
    (check,) = checks(content, **given)
    return check.verdict


def number(value, *, status=Status.CONVERGED, settings=None, **given):
    """A report of one number, under the name of the top eigenvalue."""
    record = with_quantity(eigenvalues(status=status), top=Quantity(value=value, doc="", **given))
    return report(replace(record, settings=settings or {}))


def test_the_three_verdicts_of_a_maximum_and_of_a_minimum():
    content = number(1.0, numerical_error=0.1)  # 0.7 to 1.3
    assert [verdict(content, max=limit) for limit in (1.31, 1.0, 0.69)] == ["pass", "unsure", "fail"]
    assert [verdict(content, min=limit) for limit in (0.69, 1.0, 1.31)] == ["pass", "unsure", "fail"]


def test_a_value_exactly_at_the_limit_passes():
    content = number(1.0, status=Status.EXACT)
    assert verdict(content, max=1.0) == verdict(content, min=1.0) == "pass"
    assert verdict(content, max=math.nextafter(1, 0)) == verdict(content, min=math.nextafter(1, 2)) == "fail"


def test_an_interval_that_ends_at_the_limit_is_unsure_above_and_passes_below():
    content = number(1.0, numerical_error=0.125)  # 0.625 to 1.375, exact in binary
    assert [verdict(content, max=limit) for limit in (0.625, 1.375)] == ["unsure", "pass"]
    assert [verdict(content, min=limit) for limit in (0.625, 1.375)] == ["pass", "unsure"]


def interval(value, *, population=False, **given):
    (element,) = elements(number(value, **given))
    return interval_of(element, population=population)


def test_a_bound_is_one_up_to_the_rounding_of_float32():
    """A lower bound of 1000 may be 1000 (1 - 1e-5), and 3 numerical errors above; a small error is kept as it is."""
    assert interval(1000.0, bound="lower", numerical_error=0.5) == (1000 - 1e-5 * 1000, 1001.5)
    assert interval(1000.0, bound="upper", numerical_error=0.5) == (998.5, 1000 + 1e-5 * 1000)
    assert interval(-1000.0, bound="lower", numerical_error=0.5) == (-1000 - 1e-5 * 1000, -998.5)
    assert interval(1000.0, numerical_error=0.5) == (998.5, 1001.5)
    assert interval(1000.0, bound="lower", numerical_error=0.001) == (1000 - 0.003, 1000 + 0.003)


def test_for_the_population_a_rate_has_its_score_interval():
    """Of 20 of 20 a population's share may be 84 %: Wilson's interval, where a standard error would be 0."""
    content = report(gap(wrong=(), samples=20))
    limits = {"min": 95.0, "claim": "population"}
    (check,) = checks(content, "gap/test_accuracy", **limits)
    assert check.verdict == "unsure"
    assert check.interval == pytest.approx((83.887, 100), abs=1e-3)
    assert check.settle == 'more data, or `claim = "data"`'
    assert verdict(content, selector="gap/test_accuracy", min=95.0) == "pass"  # of these data
    some = report(gap(wrong=range(30), samples=100))
    (check,) = checks(some, "gap/test_accuracy", **limits)
    assert check.interval == pytest.approx((60.415, 78.105), abs=1e-3)


def test_for_the_population_an_unknown_error_over_the_data_proves_nothing():
    assert interval(1.0, numerical_error=0.1, population=True) == EVERYWHERE
    assert interval(1.0, numerical_error=0.1) == pytest.approx((0.7, 1.3))


def test_a_check_says_what_it_looked_at():
    (found,) = checks(number(1.0, numerical_error=0.125, unit="%"), max=2)
    assert math.isnan(found.baseline)
    assert replace(found, baseline=0.0) == Check(
        report="now.h5",
        path="eigenvalues/top",
        title="top eigenvalue",
        unit="%",
        rule="max",
        limit=2.0,
        verdict="pass",
        level="error",
        value=1.0,
        baseline=0.0,
        observed=1.0,
        interval=(0.625, 1.375),
    )


def test_an_unconverged_bound_proves_one_side_only():
    lower = number(1.0, status=Status.BUDGET_SPENT, bound="lower", numerical_error=0.01)
    assert [verdict(lower, max=limit) for limit in (5, 0.9)] == ["unsure", "fail"]
    assert [verdict(lower, min=limit) for limit in (5, 0.9)] == ["unsure", "pass"]
    upper = number(1.0, status=Status.BUDGET_SPENT, bound="upper", numerical_error=0.01)
    assert [verdict(upper, max=limit) for limit in (5, 0.9)] == ["pass", "unsure"]
    assert [verdict(upper, min=limit) for limit in (5, 0.9)] == ["fail", "unsure"]
    assert verdict(number(1.0, bound="lower", numerical_error=0.01), max=5) == "pass"
    assert verdict(number(1.0, bound="upper", numerical_error=0.01), min=0.9) == "pass"


def test_an_iteration_without_a_stated_error_is_unsure_either_way():
    for limit in (5, 0.1):
        (check,) = checks(number(1.0), max=limit)
        assert check.verdict == "unsure"
        assert "no numerical error is stated" in check.settle


def test_the_error_over_the_data_counts_under_a_limit_or_for_the_population_only():
    given = {"numerical_error": 1e-6, "sampling_error": 0.1}
    whole, part = number(1.0, **given), replace(number(1.0, **given), conditions={"limit": 100})
    assert verdict(whole, max=1.1) == "pass"
    assert verdict(whole, max=1.1, claim="population") == "unsure"
    assert verdict(part, max=1.1) == "unsure"
    (element,) = (one for one in elements(whole) if one.path == "eigenvalues/top")
    assert interval_of(element, population=True) == pytest.approx((1 - 0.196, 1 + 0.196), abs=1e-4)


@pytest.mark.parametrize(
    ("content", "limits", "said"),
    [
        (number(1.0, numerical_error=1.0, settings={"tolerance": 1e-3}), {}, "a smaller `--tolerance`"),
        (
            number(1.0, numerical_error=1.0, settings={"probes": 8, "steps": 30}),
            {},
            "more `--probes` or `--steps` of `gapscope eigenvalues CHECKPOINT`",
        ),
        (
            number(1.0, bound="lower", status=Status.BUDGET_SPENT, settings={"tolerance": 1, "max_matvecs": 9}),
            {},
            "more `--max-matvecs`",
        ),
        (number(1.0, numerical_error=1.0, settings={"draws": 3}), {}, "more work: more `--draws` of `gapscope eigenv"),
        (number(1.0, numerical_error=1.0), {}, "double precision: `--dtype float64`"),
        (number(1.0, numerical_error=0.0, sampling_error=1.0), {"claim": "population"}, 'or `claim = "data"`'),
        (
            replace(number(1.0, numerical_error=0.0, sampling_error=1.0), conditions={"limit": 9}),
            {},
            "a larger `--limit`, or none",
        ),
        (
            replace(number(1.0, numerical_error=0.0), conditions={"limit": 9}),
            {},
            "no `--limit`: their error is not known",
        ),
        # 1.96 * 0.5 is less than the numerical 3 * 0.4, and 1.96 * 1 more than that
        (number(1.0, numerical_error=0.4, sampling_error=0.5), {"claim": "population"}, "`--dtype float64`"),
        (number(1.0, numerical_error=0.4, sampling_error=1.0), {"claim": "population"}, "more data, or `claim"),
    ],
)
def test_it_says_what_would_settle_an_unsure_check(content, limits, said):
    (check,) = checks(content, max=1.5, **limits)
    assert check.verdict == "unsure"
    assert said in check.settle


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (number(math.nan, status=Status.EXACT), "not a finite number"),
        (number(math.inf, status=Status.EXACT), "not a finite number"),
        (number(1.0, status=Status.NONFINITE, numerical_error=0.0), "became NaN or infinite"),
        (number(1.0, status=Status.NOISE_DOMINATED, numerical_error=0.0), "the probes' noise is larger"),
        (number(1.0, status=Status.SKIPPED, numerical_error=0.0), "not measured, for the reason noted; two notes"),
        (number(1.0, status=Status.EXACT, settings={"hvp": "differences"}), "`--allow-differences`"),
        (report(gap()), "it is not in the report"),
    ],
)
def test_what_proves_nothing_cannot_be_judged_and_never_passes(content, said):
    for limits in ({"max": 1e9}, {"min": -1e9}):
        (check,) = checks(content, **limits)
        assert check.verdict == "cannot be judged"
        assert said in check.reason
        assert "with ± signs" not in check.reason  # of the notes the first
        assert exit_code([check]) == 2


def test_what_is_absent_is_explained():
    (plain,) = checks(report(gap()), max=1)
    assert (plain.reason, plain.unit) == ("it is not in the report", "")
    assert plain.settle == "measure it: `gapscope eigenvalues CHECKPOINT`"
    silent = report(with_quantity(eigenvalues(status=Status.NO_TEST_DATA)))
    (check,) = checks(silent, max=1)
    assert check.reason.startswith("it is not in the report: no test data were given")
    assert check.settle == ""  # measuring it again would not help
    both = judge({"a.h5": report(), "b.h5": report(gap())}, [threshold("eigen*/top", {"max": 1}, "")])
    assert [(c.verdict, c.settle) for c in both][1] == ("cannot be judged", "measure it: as in the other reports")


def unmeasured(name="eigenvalues"):
    return replace(eigenvalues(status=Status.SKIPPED), analyzer=name, quantities={}, notes=("no time was left",))


def test_a_pattern_does_not_pass_for_what_was_skipped():
    other = replace(eigenvalues(1.0), analyzer="other")
    known = {"eigenvalues": ("top",), "other": ("top",), "trace": ("trace",)}
    content = report(unmeasured(), other, unmeasured("trace"))
    judged = judge({"a.h5": content}, [threshold("*/top", {"max": 9, "max_increase": 1}, "")], known=known)
    assert [(one.path, one.rule, one.verdict) for one in judged] == [
        ("eigenvalues/top", "max", "cannot be judged"),
        ("eigenvalues/top", "max_increase", "cannot be judged"),
        ("other/top", "max", "pass"),
        ("other/top", "max_increase", "skipped"),
    ]
    assert judged[0].reason == "not measured, for the reason noted; no time was left"
    assert exit_code(judged) == 2
    plain = judge({"a.h5": report(other)}, [threshold("*/top", {"max": 9}, "")], known=known)
    assert [one.verdict for one in plain] == ["pass"]  # what nobody asked for is not missing


def test_a_pattern_does_not_pass_for_what_the_baseline_has_alone():
    old, new = report(eigenvalues(1.0), gap()), eigenvalues(1.0)
    new = report(replace(new, quantities={key: one for key, one in new.quantities.items() if key != "bottom"}))
    judged = checks(new, "eigenvalues/*", baseline=old, max_increase="25%", min=-1e9)
    lacking = [one for one in judged if one.path == "eigenvalues/bottom"]
    assert [(one.rule, one.verdict) for one in lacking] == [("max_increase", "cannot be judged")]
    assert lacking[0].reason == "the baseline has it, and the report does not"
    assert not [one for one in checks(old, "eigenvalues/*", baseline=new, min=-1e9) if "baseline" in one.reason]


def test_training_numbers_without_test_data_are_exact():
    content = report(replace(gap(), status=Status.NO_TEST_DATA))
    for limits, expected in (({"max": 1}, "pass"), ({"min": 1}, "fail")):
        (check,) = checks(content, "gap/train_loss", **limits)
        assert check.verdict == expected


@pytest.mark.parametrize(
    ("old", "new", "limits"),
    [
        ((1.0, 0.1), (1.001, 0.0), {"max_increase": "40%"}),  # three errors: up to 1.001 / 0.7
        ((1.0, 0.34), (1.001, 0.0), {"max_increase": "900%"}),  # the baseline may be 0
        ((1.0, 0.1), (1.01, 0.1), {"max_decrease": "45%"}),  # down to 0.71 / 1.3
    ],
)
def test_large_errors_are_not_taken_for_small_ones_of_a_logarithm(old, new, limits):
    given = [number(value, numerical_error=error) for value, error in (old, new)]
    assert verdict(given[1], baseline=given[0], **limits) == "unsure"


def test_differences_are_judged_where_that_is_allowed():
    content = number(1.0, status=Status.EXACT, settings={"hvp": "differences"})
    assert verdict(content, max=2, allow_differences=True) == "pass"
    (check,) = judge({"now.h5": content}, [threshold("eigenvalues/top", {"max": 2}, "")])
    assert check.verdict == "cannot be judged"


def test_without_a_baseline_changes_are_skipped_with_the_command_to_accept_one():
    first, second = checks(report(), max=1, max_increase="25%")
    assert (first.verdict, second.verdict) == ("pass", "skipped")
    assert (second.reason, second.limit, second.share) == ("there is no baseline yet", 0.25, True)
    assert second.settle.startswith('`gapscope baseline accept now.h5 --reason "..."`')
    assert exit_code([second]) == 0


def exact(value, **given):
    return number(value, status=Status.EXACT, **given)


@pytest.mark.parametrize(
    ("old", "new", "limits", "expected"),
    [
        (1.0, 1.25, {"max_increase": "25%"}, "pass"),
        (1.0, 1.26, {"max_increase": "25%"}, "fail"),
        (1.0, 1.1, {"max_increase": "10%"}, "pass"),  # 1.1 / 1 - 1 is not 0.1
        (92.8, 92.7, {"max_decrease": 0.1}, "pass"),
        (92.8, 92.69, {"max_decrease": 0.1}, "fail"),
        (1.0, 0.1, {"max_increase": "25%"}, "pass"),
        (4.0, 3.0, {"max_decrease": "25%"}, "pass"),
        (4.0, 2.9, {"max_decrease": "25%"}, "fail"),
        (1.0, 1.5, {"max_increase": 0.5}, "pass"),
        (1.0, 1.6, {"max_increase": 0.5}, "fail"),
        (1.0, -0.5, {"max_decrease": 1.0}, "fail"),
        (0.01, 0.012, {"max_increase": 0, "min_delta": 0.01}, "pass"),
        (0.01, 0.03, {"max_increase": 0, "min_delta": 0.01}, "fail"),
        (0.3, 0.4, {"max_increase": 0, "min_delta": 0.1}, "pass"),  # 0.4 - 0.3 is above 0.1
        (0.4, 0.3, {"max_decrease": 0, "min_delta": 0.1}, "pass"),
        (0.0, 0.1, {"max_increase": "25%"}, "fail"),
        (0.0, 0.0, {"max_increase": "25%"}, "pass"),
        (-1.0, -0.8, {"max_increase": "25%"}, "pass"),  # a share of the size
        (-1.0, -0.7, {"max_increase": "25%"}, "fail"),
        (0.01, -0.01, {"max_increase": "25%"}, "pass"),
        (1e9, 1.25e9 + 0.1, {"max_increase": "25%"}, "fail"),  # 1e-10 of the old value is no rounding
        (1.1, 3.3, {"max_increase": "200%"}, "pass"),  # 3.3 / 1.1 - 1 is not 2
        (0.7, 2.1, {"max_increase": "200%"}, "pass"),  # nor 2.1 / 0.7 - 1, which is above it
        (1000000.2, 1000000.3, {"max_increase": 0.1}, "pass"),  # nor is the difference 0.1, by 9e-11
        (1000000.2, 1000000.31, {"max_increase": 0.1}, "fail"),
    ],
)
def test_changes_against_the_baseline(old, new, limits, expected):
    assert verdict(exact(new), baseline=exact(old), **limits) == expected


def change(old, new, **limits):
    (check,) = checks(new, baseline=old, **limits)
    return check


def test_a_change_says_what_it_looked_at():
    found = change(exact(0.5), exact(0.75), max_increase="25%", min_delta=0.125)
    assert (found.verdict, found.limit, found.share) == ("fail", 0.25, True)
    assert (found.baseline, found.value, found.observed, found.interval) == (0.5, 0.75, 0.5, (0.5, 0.5))
    assert (found.reason, found.settle) == ("", "")
    amount = change(exact(0.5), exact(0.75), max_increase=0.125)
    assert (amount.limit, amount.share, amount.observed, amount.interval) == (0.125, False, 0.25, (0.25, 0.25))
    for old, new in ((-2.0, -1.0), (2.0, 0.0)):  # a share of the size of what has no ratio is an amount
        whole = change(exact(old), exact(new), max_increase="50%")
        assert (whole.limit, whole.share, whole.observed) == (1.0, False, new - old)
    unsure = change(number(1.0, numerical_error=0.01), number(1.3, numerical_error=0.01), max_increase="25%")
    assert (unsure.verdict, unsure.settle) == ("unsure", "double precision: `--dtype float64`")


def test_what_is_the_same_bit_by_bit_has_not_changed_at_all():
    same = number(1.0, numerical_error=0.5)
    found = change(same, same, max_increase=1)
    assert (found.verdict, found.observed, found.interval) == ("pass", 0.0, (0.0, 0.0))
    more = with_quantity(
        eigenvalues(), top=same.results["eigenvalues"].quantities["top"], bottom=Quantity(value=1.0, doc="")
    )
    assert change(same, report(replace(more, settings={})), max_increase=1).interval == (-3.0, 3.0)


def test_a_change_within_its_error_is_unsure():
    old, new = number(1.0, numerical_error=0.01), number(1.3, numerical_error=0.01)
    assert verdict(new, baseline=old, max_increase="25%") == "unsure"
    assert verdict(new, baseline=old, max_increase="50%") == "pass"
    assert verdict(new, baseline=old, max_increase="10%") == "fail"


def test_an_unconverged_bound_opens_a_change_on_its_side():
    def bound(value, status):
        return number(value, status=status, bound="lower", numerical_error=1e-6)

    done, open_ = (bound(1.0, status) for status in (Status.CONVERGED, Status.BUDGET_SPENT))
    higher = bound(2.0, Status.BUDGET_SPENT)
    assert verdict(bound(1.01, Status.BUDGET_SPENT), baseline=done, max_increase="25%") == "unsure"
    assert verdict(higher, baseline=done, max_increase="25%") == "fail"
    assert verdict(bound(2.0, Status.CONVERGED), baseline=open_, max_increase="25%") == "unsure"
    assert verdict(bound(1.01, Status.CONVERGED), baseline=open_, max_increase="25%") == "pass"
    assert change(done, bound(1.5, Status.BUDGET_SPENT), max_increase=1).interval[1] == math.inf


@pytest.mark.parametrize("side", [-1, 1])
def test_a_change_is_open_where_either_end_is(side):
    """Above where the new lower bound may rise or the old upper bound may sink; below likewise."""

    def content(value, bound, status):
        return number(value, status=status, bound=bound, numerical_error=0.125)

    up, down = ("lower", "upper") if side > 0 else ("upper", "lower")
    for old, new in (
        (content(1.0, up, Status.CONVERGED), content(2.0, up, Status.BUDGET_SPENT)),
        (content(1.0, down, Status.BUDGET_SPENT), content(2.0, down, Status.CONVERGED)),
    ):
        low, high = change(old, new, max_increase=1).interval
        assert (low, high) == ((0.25, math.inf) if side > 0 else (-math.inf, 1.75))


def test_a_change_whose_error_over_the_data_is_unknown_is_unsure():
    old, new = number(1.0, numerical_error=0.0), number(3.0, numerical_error=0.0)
    for limit in ("25%", 1):
        found = change(old, new, max_increase=limit, claim="population")
        assert (found.verdict, found.interval) == ("unsure", EVERYWHERE)


def test_for_the_population_a_change_is_paired_over_the_chunks():
    """Both are far more uncertain than their ratio, because they share the luck of the data."""
    luck = 1 + 0.5 * np.random.default_rng(0).normal(size=32)

    def content(value, *, paired):
        chunks = value * luck / luck.mean() if paired else None
        return number(value, numerical_error=0.0, sampling_error=0.3 * value, chunks=chunks)

    limits = {"max_increase": "25%", "claim": "population"}
    assert verdict(content(1.2, paired=True), baseline=content(1.0, paired=True), **limits) == "pass"
    assert verdict(content(1.2, paired=False), baseline=content(1.0, paired=False), **limits) == "unsure"
    assert verdict(content(1.3, paired=True), baseline=content(1.0, paired=True), **limits) == "fail"


def test_for_the_population_an_entry_of_an_array_is_paired_with_its_own_chunks():
    luck = np.random.default_rng(0).normal(size=(32, 2))
    luck = 1 + 0.5 * (luck - luck.mean(0))

    def content(values):
        dims = {"dims": ("x",), "labels": {"x": ("a", "b")}}
        found = Quantity(
            value=values,
            doc="",
            numerical_error=[0.0, 0.0],
            sampling_error=[0.3, 0.3],
            chunks=np.array(values) * luck,
            **dims,
        )
        return report(replace(with_quantity(eigenvalues(), values=found), settings={}))

    limits = {"selector": "eigenvalues/values[b]", "max_increase": "25%", "claim": "population"}
    found = change(content([1.0, 1.0]), content([7.0, 1.2]), **limits)
    assert (found.verdict, found.observed) == ("pass", pytest.approx(0.2))
    assert found.interval == pytest.approx((0.2, 0.2), abs=1e-9)  # the luck of the data cancels to the last digit


def test_for_the_population_accuracies_are_paired_over_the_samples():
    """Ten of 497 samples are lost and none gained: the score interval of paired rates, in percent."""
    old, new = gap(wrong=range(35)), gap(wrong=range(45))
    first, last = (record.quantities["test_accuracy"].samples for record in (old, new))
    low, high = paired_rates(first, last)
    for unit in ("%", "points"):
        contents = [with_unit(record, unit) for record in (old, new)]
        found = change(*contents, selector="gap/test_accuracy", max_decrease=1, claim="population")
        assert found.observed == pytest.approx(-1000 / 497)
        assert found.interval == (100 * low, 100 * high)
    shares = [with_unit(record, "", 0.01) for record in (old, new)]
    found = change(*shares, selector="gap/test_accuracy", max_decrease=1, claim="population")
    assert found.interval == (low, high)
    whole = change(*shares, selector="gap/test_accuracy", max_decrease=1)
    assert whole.interval[0] == whole.interval[1] == whole.observed  # on these data nothing is left to chance


def test_entries_of_an_array_are_not_paired_over_samples_that_are_of_none_of_them():
    outcomes = gap().quantities["test_accuracy"].samples
    axis = {"dims": ("x",), "labels": {"x": ("a",)}}
    old, new = (
        Quantity(value=[value], doc="", numerical_error=[0.0], sampling_error=[0.1], samples=outcomes, **axis)
        for value in (0.9, 0.8)
    )
    contents = [report(replace(with_quantity(eigenvalues(), top=one), settings={})) for one in (old, new)]
    found = change(*contents, max_decrease=1, claim="population")
    half = 1.96 * math.hypot(0.1, 0.1)
    assert found.interval == pytest.approx((-0.1 - half, -0.1 + half), abs=1e-4)


def with_unit(record, unit, factor=1.0):
    accuracy = record.quantities["test_accuracy"]
    return report(with_quantity(record, test_accuracy=replace(accuracy, value=factor * accuracy.value, unit=unit)))


def two_axes(*dims):
    labels = {"x": ("a", "b"), "y": ("1", "2")}
    return Quantity(value=np.eye(2), doc="", dims=dims, labels={dim: labels[dim] for dim in dims})


@pytest.mark.parametrize(
    "old",
    [
        two_axes("y", "x"),
        replace(two_axes("x", "y"), labels={"x": ("a", "c"), "y": ("1", "2")}),
    ],
)
def test_entries_in_another_order_or_of_other_names_are_incomparable(old):
    new = report(with_quantity(eigenvalues(), top=two_axes("x", "y")))
    found = checks(new, baseline=report(with_quantity(eigenvalues(), top=old)), max_increase="25%")
    assert {check.reason for check in found} == {"incomparable with the baseline: its entries have other labels"}


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
        (report(split="test", dtype="float64"), "baseline: dtype: float64 / float32; split: test / train"),
        (report(split="test"), "incomparable with the baseline: split: test / train"),
        (report(eigenvalues(k=3)), "incomparable with the baseline: eigenvalues.k: 3 / 1"),
        (report(replace(eigenvalues(), version="2")), "eigenvalues.version: 2 / 1"),
        (report(gap()), "the baseline does not have it: accept one that does"),
        (report(with_quantity(eigenvalues())), "the baseline does not have it"),
        (report(eigenvalues(math.nan, chunks=False)), "the baseline cannot be used: the value is not a finite number"),
        (
            report(with_quantity(eigenvalues(), top=Quantity(value=[1.0], doc="", dims=("x",), labels={"x": ("a",)}))),
            "incomparable with the baseline: its entries have other labels",
        ),
    ],
)
def test_what_was_not_measured_alike_is_incomparable(baseline, said):
    (check,) = checks(report(), baseline=baseline, max_increase="25%")
    assert check.verdict == "cannot be judged"
    assert said in check.reason
    assert verdict(report(), baseline=report(split="test"), max=1) == "pass"  # needs no baseline


def test_another_seed_is_comparable():
    assert verdict(report(), baseline=report(eigenvalues(seed=7)), max_increase="25%") == "pass"


@pytest.mark.parametrize("limit", [0, "0%", "25%"])
@pytest.mark.parametrize("seed", range(5))
def test_a_report_compared_with_itself_passes_every_change(limit, seed):
    rng = np.random.default_rng(seed)
    scale = float(rng.choice([-1.0, 1.0])) * 10 ** rng.uniform(-6, 6)
    records = (
        eigenvalues(scale, status=Status.BUDGET_SPENT),
        epsilon_sharpness(scale),
        adaptive_sharpness(scale),
        gap(),
    )
    content = report(*records)
    for claim in ("data", "population"):
        found = checks(content, "*/*", baseline=content, max_increase=limit, max_decrease=limit, claim=claim)
        assert len(found) > 40
        assert {c.verdict for c in found if math.isfinite(c.value)} == {"pass"}


def test_equal_numbers_of_another_measurement_keep_their_errors():
    """Equal ranks of two models are no proof that nothing changed: the other numbers tell them apart."""
    old, new = eigenvalues(1.0, bottom=-0.1), eigenvalues(1.0, bottom=-0.2)
    (check,) = checks(report(new), baseline=report(old), max_increase=0)
    assert check.verdict == "unsure"


def check(verdict, level="error"):
    return Check(report="r", path="a/b", title="b", unit="", rule="max", limit=1.0, verdict=verdict, level=level)


def test_exit_codes_and_their_precedence():
    worst_first = ["cannot be judged", "fail", "unsure", "pass"]
    codes = [2, 1, 3, 0]
    for position, code in enumerate(codes):
        assert exit_code([check(verdict) for verdict in reversed(worst_first[position:])]) == code
    assert exit_code([]) == exit_code([check("skipped")]) == 0
    assert [exit_code([check("unsure")], way) for way in ("pass", "fail", "3")] == [0, 1, 3]
    assert exit_code([check("unsure"), check("cannot be judged")], "fail") == 2


@pytest.mark.parametrize("verdict", ["fail", "unsure", "cannot be judged"])
def test_a_warning_never_changes_the_exit_code(verdict):
    assert exit_code([check(verdict, level="warn")], "fail") == 0


def test_several_thresholds_and_reports_are_each_judged():
    limits = [threshold("eigenvalues/top", {"max": 0.2}, ""), threshold("gap/*", {"min": -1e3}, "")]
    contents = {"a.h5": report(), "b.h5": report(eigenvalues(0.3), gap()), "c.h5": report(eigenvalues())}
    found = judge(contents, limits, known=KNOWN)
    tops = {c.report: c.verdict for c in found if c.path == "eigenvalues/top"}
    assert tops == {"a.h5": "pass", "b.h5": "fail", "c.h5": "pass"}
    assert [c.verdict for c in found if c.report == "c.h5"] == ["pass", "cannot be judged"]
    assert EVERYWHERE not in [c.interval for c in found]
