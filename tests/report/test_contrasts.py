import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import xlogy
from scipy.stats import permutation_test, ttest_1samp, ttest_ind

from gapscope.report.contrasts import (
    MOST_SPLITS,
    Scalar,
    Z,
    between,
    difference,
    mean_over,
    paired_rates,
    permutation,
    ratio,
    slope_over,
    smallest_p,
)
from gapscope.results import CHUNKS


def draw(rng, trials, truth=1.5):
    """Paired chunk values of a quantity of 1 and of `truth`, with luck that both share and luck of their own."""
    common = rng.normal(size=(trials, CHUNKS, 1))
    own = rng.normal(size=(trials, CHUNKS, 2))
    return np.array([1.0, truth]) * (1 + 0.5 * common + 0.15 * own)


def test_the_ratio_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for chunks in draw(np.random.default_rng(1), 500):
        first, last = (Scalar(value=side.mean(), chunks=side) for side in chunks.T)
        estimate, (low, high) = ratio(first, last, paired=True)
        assert low < estimate < high
        covered += low < 1.5 < high
    assert 0.92 <= covered / 500 <= 0.98


def test_the_difference_interval_covers_the_truth_as_often_as_it_says():
    covered = 0
    for chunks in draw(np.random.default_rng(2), 500):
        first, last = (Scalar(value=side.mean(), chunks=side) for side in chunks.T)
        _, (low, high) = difference(first, last, paired=True)
        covered += low < 0.5 < high
    assert 0.92 <= covered / 500 <= 0.98


def test_pairing_cancels_the_luck_that_both_share():
    first, last = (
        Scalar(value=side.mean(), chunks=side, sampling=side.std(ddof=1) / math.sqrt(CHUNKS))
        for side in draw(np.random.default_rng(3), 1)[0].T
    )
    paired, alone = (ratio(first, last, paired=paired)[1] for paired in (True, False))
    assert paired[1] - paired[0] < 0.6 * (alone[1] - alone[0])


def test_exact_ratios_of_identical_subjects_have_no_width():
    same = Scalar(value=2.0, chunks=np.full(CHUNKS, 2.0))
    assert ratio(same, same, paired=True) == (1.0, (1.0, 1.0))


def test_numerical_errors_widen_linearly():
    chunks = np.full(CHUNKS, 2.0)
    first, last = Scalar(value=2.0, chunks=chunks, numerical=0.02), Scalar(value=2.0, chunks=chunks, numerical=0.04)
    assert ratio(first, last, paired=True)[1] == pytest.approx((1.96 / 2.02, 2.04 / 1.98))
    assert difference(first, last, paired=True)[1] == pytest.approx((-0.06, 0.06))


@pytest.mark.parametrize(("before", "now"), [(0.3, 0.0), (0.3, 0.3), (1.0, 0.0), (1.5, 0.2), (0.1, 1.0), (0.1, 2.0)])
def test_the_interval_of_a_ratio_holds_every_ratio_of_values_within_the_errors(before, now):
    first, last = (Scalar(value=1.0, numerical=error, sampling=0.0) for error in (before, now))
    estimate, (low, high) = ratio(first, last, paired=False)
    assert estimate == 1
    for a, b in itertools.product(np.linspace(1 - before, 1 + before, 9), np.linspace(1 - now, 1 + now, 9)):
        if a > 0 and b > 0:
            assert low <= b / a * (1 + 1e-12)
            assert b / a <= high * (1 + 1e-12)
    assert (high == math.inf) == (before >= 1)
    assert (low == 0) == (now >= 1)


def test_independent_standard_errors_add_in_quadrature():
    first, last = Scalar(value=1.0, sampling=0.03), Scalar(value=2.0, sampling=0.08)
    assert ratio(first, last, paired=True)[1] == pytest.approx((2 * math.exp(-0.05 * Z), 2 * math.exp(0.05 * Z)))
    assert difference(first, Scalar(value=2.0, sampling=0.04), paired=True)[1] == pytest.approx(
        (1 - 0.05 * Z, 1 + 0.05 * Z)
    )


def test_without_any_error_there_is_no_interval():
    estimate, interval = ratio(Scalar(value=1.0), Scalar(value=2.0, sampling=0.1), paired=True)
    assert estimate == 2
    assert all(map(math.isnan, interval))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_what_is_not_positive_and_finite_has_no_ratio(value):
    assert math.isnan(ratio(Scalar(value=value), Scalar(value=1.0), paired=True)[0])
    assert math.isnan(ratio(Scalar(value=1.0), Scalar(value=value), paired=True)[0])


def test_empty_chunks_are_left_out():
    chunks = np.r_[np.linspace(1, 2, CHUNKS - 1), math.nan]
    first, last = Scalar(value=1.5, chunks=chunks), Scalar(value=2.5, chunks=chunks + 1)
    assert difference(first, last, paired=True)[1] == pytest.approx((1, 1))
    assert math.isnan(difference(Scalar(value=math.nan), last, paired=True)[0])


def outcomes(both, first_only, last_only, neither):
    counts = (both, first_only, last_only, neither)
    return np.repeat(np.uint8([1, 1, 0, 0]), counts), np.repeat(np.uint8([1, 0, 1, 0]), counts)


def test_the_score_interval_is_the_published_one():
    """Airway hyper-responsiveness of 21 children: Fagerland, Lydersen, Laake, Stat. Med. 33 (2014) 2850."""
    first, last = outcomes(1, 7, 1, 12)
    assert paired_rates(first, last) == pytest.approx((-0.517, -0.026), abs=6e-4)


@pytest.mark.parametrize(("gained", "lost", "total"), [(7, 1, 21), (6, 16, 161), (0, 3, 50), (40, 20, 160)])
def test_the_score_statistic_at_both_ends_is_z_under_the_likeliest_nuisance(gained, lost, total):
    """The constrained maximum of the multinomial likelihood is sought numerically, not by the closed form."""
    for delta in paired_rates(*outcomes(0, lost, gained, total - lost - gained)):

        def loss(q, delta=delta):
            same = total - gained - lost
            return -sum(
                xlogy(count, rate) for count, rate in ((gained, q + delta), (lost, q), (same, 1 - 2 * q - delta))
            )

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        q = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        variance = total * (2 * q + delta * (1 - delta))
        assert abs(gained - lost - total * delta) / math.sqrt(variance) == pytest.approx(Z, rel=1e-4)


@pytest.mark.parametrize("total", [10, 60])
def test_the_score_interval_excludes_zero_exactly_when_mcnemar_rejects(total):
    for lost in range(total + 1):
        for gained in range(total + 1 - lost):
            low, high = paired_rates(*outcomes(total - lost - gained, lost, gained, 0))
            rejected = lost + gained > 0 and (gained - lost) ** 2 / (lost + gained) > Z**2
            assert rejected == (not low <= 0 <= high), (lost, gained)
            assert -1 <= low <= (gained - lost) / total <= high <= 1


def test_rates_count_in_the_unit_of_the_quantity():
    first, last = outcomes(1, 7, 1, 12)
    sides = [Scalar(value=100 * side.mean(), samples=side) for side in (first, last)]
    estimate, interval = difference(*sides, paired=True, outcome=100)
    assert estimate == pytest.approx(-100 * 6 / 21)
    assert interval == pytest.approx((-51.7, -2.6), abs=0.06)


def test_no_samples_have_no_interval():
    assert all(map(math.isnan, paired_rates(np.zeros(0, np.uint8), np.zeros(0, np.uint8))))


# Groups of runs


def runs(*values, numerical=math.nan):
    return [Scalar(value=value, numerical=numerical) for value in values]


A, B = (1.0, 1.2, 0.9, 1.1), (2.1, 1.7, 2.6)


def test_the_interval_of_groups_is_welch_s():
    estimate, interval = between(runs(*A), runs(*B), "difference")
    referee = ttest_ind(B, A, equal_var=False).confidence_interval(0.95)
    assert estimate == pytest.approx(np.mean(B) - np.mean(A))
    assert interval == pytest.approx((referee.low, referee.high))
    estimate, interval = between(runs(*A), runs(*B), "ratio")
    referee = ttest_ind(np.log(B), np.log(A), equal_var=False).confidence_interval(0.95)
    assert estimate == pytest.approx(np.exp(np.mean(np.log(B)) - np.mean(np.log(A))))
    assert interval == pytest.approx((math.exp(referee.low), math.exp(referee.high)))


def test_numerical_errors_widen_the_interval_of_groups_linearly():
    narrow = between(runs(*A), runs(*B), "difference")[1]
    wide = between(runs(*A, numerical=0.1), runs(*B, numerical=0.3), "difference")[1]
    assert wide == pytest.approx((narrow[0] - 0.4, narrow[1] + 0.4))
    narrow = between(runs(*A), runs(*B), "ratio")[1]
    wide = between(runs(*A, numerical=0.1), runs(*B), "ratio")[1]
    assert wide[1] / narrow[1] == pytest.approx(math.exp(-np.mean(np.log(1 - 0.1 / np.array(A)))))
    assert between(runs(*A, numerical=max(A)), runs(*B), "ratio")[1] == (0, math.inf)


@pytest.mark.parametrize(("first", "last"), [(A, (2.0,)), ((1.0,), B), ((1.0, 1.0), (2.0, 2.0))])
def test_a_single_run_and_runs_that_all_agree_have_no_interval_over_seeds(first, last):
    for kind in ("ratio", "difference"):
        estimate, interval = between(runs(*first), runs(*last), kind)
        assert estimate > 0
        assert all(map(math.isnan, interval))


def test_groups_with_a_value_that_has_no_logarithm_have_no_ratio():
    for odd in (0.0, -1.0, math.nan, math.inf):
        assert math.isnan(between(runs(1.0, odd), runs(*B), "ratio")[0])
        assert math.isnan(permutation(runs(1.0, odd), runs(*B), "ratio"))
    assert between(runs(1.0, -1.0), runs(*B), "difference")[0] > 0


@pytest.mark.parametrize("kind", ["ratio", "difference"])
@pytest.mark.parametrize(("first", "last"), [(A, B), (A, (1.05, 0.8, 1.3)), (A, A), ((1.0, 2.0), B)])
def test_the_permutation_test_is_exact(kind, first, last):
    scale = np.log if kind == "ratio" else np.asarray
    referee = permutation_test(
        (scale(first), scale(last)), lambda a, b: abs(np.mean(a) - np.mean(b)), alternative="greater"
    )
    assert permutation(runs(*first), runs(*last), kind) == pytest.approx(referee.pvalue)


@pytest.mark.parametrize(("a", "b", "least"), [(3, 3, 0.1), (5, 5, 2 / 252), (3, 2, 0.1), (1, 4, 0.2)])
def test_the_smallest_p_is_reached_by_groups_far_apart(a, b, least):
    first, last = np.arange(a) / 100, 10.0 + np.arange(b) ** 2
    assert smallest_p(a, b) == pytest.approx(least)
    assert permutation(runs(*first), runs(*last), "difference") == pytest.approx(least)


def test_more_ways_than_can_be_tried_have_no_exact_test():
    assert math.comb(20, 10) < MOST_SPLITS < math.comb(22, 11)
    assert math.isnan(permutation(runs(*range(11)), runs(*range(11)), "difference"))


def test_the_interval_of_a_mean_is_student_s():
    values = np.random.default_rng(7).normal(3, 2, size=6)
    known = ttest_1samp(values, 0).confidence_interval(0.95)
    estimate, interval = mean_over(values)
    assert estimate == pytest.approx(values.mean())
    assert interval == pytest.approx((known.low, known.high))
    estimate, interval = mean_over(np.exp(values), "ratio")
    assert estimate == pytest.approx(math.exp(values.mean()))
    assert interval == pytest.approx((math.exp(known.low), math.exp(known.high)))


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    draws = np.random.default_rng(8).normal(1.5, 1.0, size=(500, 5))
    covered = sum(low < 1.5 < high for _, (low, high) in map(mean_over, draws))
    assert 0.92 <= covered / 500 <= 0.98


@pytest.mark.parametrize(
    ("values", "mean"), [([2.0], 2.0), ([2.0, 2.0, 2.0], 2.0), ([], math.nan), ([1.0, math.inf], math.nan)]
)
def test_a_mean_without_a_spread_has_no_interval(values, mean):
    for kind in ("difference", "ratio"):
        estimate, interval = mean_over(np.array(values), kind)
        assert estimate == pytest.approx(mean, nan_ok=True)
        assert all(map(math.isnan, interval))


def test_a_ratio_that_is_not_positive_has_no_geometric_mean():
    assert math.isnan(mean_over(np.array([1.0, 0.0]), "ratio")[0])


def test_ratios_far_apart_have_an_interval_without_end():
    assert mean_over(np.array([1e-300, 1e300]), "ratio") == (pytest.approx(1.0), (0.0, math.inf))


def test_the_mean_slope_is_that_of_least_squares():
    places, rng = [1.0, 2.0, 4.0, 8.0], np.random.default_rng(9)
    runs = 0.7 * np.array(places) + rng.normal(size=(5, 4))
    slopes = np.polyfit(places, runs.T, 1)[0]
    estimate, interval = slope_over(places, runs)
    assert estimate == pytest.approx(slopes.mean())
    assert interval == pytest.approx(mean_over(slopes)[1])


@pytest.mark.parametrize(
    ("places", "runs"), [([2.0, 2.0], [[1.0, 2.0]]), ([1.0, 2.0], [[1.0, math.nan]]), ([1.0, 2.0], [[1.0, math.inf]])]
)
def test_places_that_are_one_and_values_that_are_not_finite_have_no_slope(places, runs):
    estimate, interval = slope_over(places, np.array([runs]))
    assert all(map(math.isnan, (estimate, *interval)))
