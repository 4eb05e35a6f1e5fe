import math
from dataclasses import replace

import numpy as np
import pytest
from example_reports import adaptive_sharpness, eigenvalues, epsilon_sharpness, gap, report, with_quantity

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


def test_an_unconverged_bound_proves_one_side_only():
    lower = number(1.0, status=Status.BUDGET_SPENT, bound="lower", numerical_error=0.01)
    assert [verdict(lower, max=limit) for limit in (5, 0.9)] == ["unsure", "fail"]
    assert [verdict(lower, min=limit) for limit in (5, 0.9)] == ["unsure", "pass"]
    upper = number(1.0, status=Status.BUDGET_SPENT, bound="upper", numerical_error=0.01)
    assert [verdict(upper, max=limit) for limit in (5, 0.9)] == ["pass", "unsure"]
    assert [verdict(upper, min=limit) for limit in (5, 0.9)] == ["fail", "unsure"]
    assert verdict(number(1.0, bound="lower", numerical_error=0.01), max=5) == "pass"


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
        assert exit_code([check]) == 2


def test_what_is_absent_is_explained():
    (plain,) = checks(report(gap()), max=1)
    assert plain.settle == "measure it: `gapscope eigenvalues CHECKPOINT`"
    silent = report(with_quantity(eigenvalues(status=Status.NO_TEST_DATA)))
    (check,) = checks(silent, max=1)
    assert check.reason.startswith("it is not in the report: no test data were given")
    both = judge({"a.h5": report(), "b.h5": report(gap())}, [threshold("eigen*/top", {"max": 1}, "")])
    assert [(c.verdict, c.settle) for c in both][1] == ("cannot be judged", "measure it: as in the other reports")


def test_differences_are_judged_where_that_is_allowed():
    content = number(1.0, status=Status.EXACT, settings={"hvp": "differences"})
    assert verdict(content, max=2, allow_differences=True) == "pass"


def test_without_a_baseline_changes_are_skipped_with_the_command_to_accept_one():
    first, second = checks(report(), max=1, max_increase="25%")
    assert (first.verdict, second.verdict) == ("pass", "skipped")
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
        (0.0, 0.1, {"max_increase": "25%"}, "fail"),
        (0.0, 0.0, {"max_increase": "25%"}, "pass"),
        (-1.0, -0.8, {"max_increase": "25%"}, "pass"),  # a share of the size
        (-1.0, -0.7, {"max_increase": "25%"}, "fail"),
        (0.01, -0.01, {"max_increase": "25%"}, "pass"),
    ],
)
def test_changes_against_the_baseline(old, new, limits, expected):
    assert verdict(exact(new), baseline=exact(old), **limits) == expected


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


@pytest.mark.parametrize(
    ("baseline", "said"),
    [
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
