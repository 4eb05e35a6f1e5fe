import math

import numpy as np
import pytest
from oyedotun_found import falling, found
from scipy import stats

from gapscope.training.studies.oyedotun.slopes import (
    beyond_control,
    layer_slope,
    over,
    rank_correlation,
    rounding_of,
    slope,
    slopes,
    with_depth,
    with_width,
)

TIGHT = 1e-9  # the decimals that slopes are rounded to


def student(runs):
    """Return mean and interval by another way: scipy's."""
    low, high = stats.t.interval(0.95, len(runs) - 1, np.mean(runs), stats.sem(runs))
    return np.mean(runs), low, high


def flat(contrast):
    return contrast[0], *contrast[1]


def test_a_slope_is_per_doubling_and_its_interval_is_over_seeds():
    each = np.array([[-1.0, -3.0], [-2.0, -4.0], [-4.0, -5.0]])
    one = found(falling(each))
    np.testing.assert_allclose(slopes(one, one.own[0].layers), each, rtol=0, atol=TIGHT)
    np.testing.assert_allclose(flat(slope(one, one.own[0])), student(each.mean(axis=1)), rtol=0, atol=TIGHT)
    np.testing.assert_allclose(flat(layer_slope(one, one.own[0], 1)), student(each[:, 1]), rtol=0, atol=TIGHT)


def test_slopes_are_those_of_a_fit_over_log2_of_uneven_sizes():
    values = np.random.default_rng(0).normal(size=(3, 4))
    one = found(values[:, :, None], sizes=(10, 20, 100, 130))
    expected = [np.polyfit(np.log2([10, 20, 100, 130]), row, 1)[0] for row in values]
    np.testing.assert_allclose(slopes(one, values), expected, rtol=0, atol=TIGHT)


def test_what_the_control_shows_as_well_is_taken_out_seed_by_seed():
    own, control = np.array([[-3.0], [-5.0], [-9.0]]), np.array([[-1.0], [-4.0], [-6.0]])
    one = found(falling(own), control=falling(control))
    np.testing.assert_allclose(flat(beyond_control(one)), student((own - control)[:, 0]), rtol=0, atol=TIGHT)


def test_depth_is_the_last_layer_less_the_first():
    each = np.array([[-1.0, -2.0, -3.0], [-2.0, -4.0, -6.0]])
    one = found(falling(each))
    np.testing.assert_allclose(flat(with_depth(one)), student([-2.0, -4.0]), rtol=0, atol=TIGHT)


def test_one_hidden_layer_has_no_depth():
    assert all(map(math.isnan, flat(with_depth(found(falling([[-1.0], [-2.0]]))))))


def test_in_proportion_layers_that_halve_alike_are_alike():
    halving = 2.0 ** -np.arange(3.0)[None, :, None]
    one = found(np.concatenate([80 * halving, 20 * halving], axis=2).repeat(2, axis=0))
    assert with_depth(one)[0] > 0  # in points the small one loses less
    assert with_depth(one, proportion=True)[0] == 0


def test_a_dead_layer_has_no_proportion():
    one = found(np.zeros((2, 3, 2)))
    assert math.isnan(with_depth(one, proportion=True)[0])


def test_width_is_welchs_interval_of_wide_less_narrow():
    narrow, wide = np.array([-1.0, -2.0, -2.5]), np.array([-4.0, -5.0, -4.5, -6.0])
    contrast = with_width(found(falling(narrow[:, None])), found(falling(wide[:, None])))
    interval = stats.ttest_ind(wide, narrow, equal_var=False).confidence_interval(0.95)
    expected = (wide.mean() - narrow.mean(), interval.low, interval.high)
    np.testing.assert_allclose(flat(contrast), expected, rtol=0, atol=TIGHT)


def test_width_in_proportion_compares_logarithms():
    halving = 2.0 ** -np.arange(3.0)[None, :, None] * np.array([1.0, 1.0])[:, None, None]
    contrast = with_width(found(80 * halving), found(20 * halving), proportion=True)
    assert contrast[0] == 0


def test_seeds_that_agree_up_to_rounding_have_no_interval():
    runs = np.array([1.0, 1.0 + 4 * np.finfo(float).eps])
    assert all(map(math.isnan, over(runs)[1]))
    assert all(map(math.isnan, over(runs[:1], rounding=1.0)[1]))


def test_an_interval_is_no_narrower_than_whole_numbers_make_it():
    agreeing, far = np.array([-2.0] * 5), np.array([-2.0, -9.0, 5.0, -4.0, 0.0])
    mean, (low, high) = over(agreeing, rounding=0.3)
    half = stats.t.ppf(0.975, 4) * 0.3 / math.sqrt(5)
    np.testing.assert_allclose([mean, low, high], [-2, -2 - half, -2 + half], rtol=0, atol=TIGHT)
    np.testing.assert_allclose(flat(over(far, rounding=0.3)), student(far), rtol=0, atol=TIGHT)


def test_rounding_is_what_whole_numbers_do_to_a_slope():
    """Continuous shares, counted in whole singular values, give slopes whose deviation is as stated."""
    rng, step = np.random.default_rng(0), 4.0
    one = found(np.zeros((1, 3, 2)), steps=step)
    trials = 20_000
    cut = step * rng.uniform(size=(trials, 3, 2))
    measured = slopes(one, cut.mean(axis=2)).std()
    stated = rounding_of(one, [one.own[0]], np.array([0.5, 0.5]))
    assert abs(measured / stated - 1) < 4 / math.sqrt(2 * trials)  # standard error of a deviation


def test_rank_correlation_is_spearmans_with_a_jackknife_over_seeds():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(6, 3))
    y = x + rng.normal(size=(6, 3))
    estimate, (low, high) = rank_correlation(x, y)
    whole = stats.spearmanr(x.ravel(), y.ravel()).statistic
    others = [
        stats.spearmanr(np.delete(x, i, axis=0).ravel(), np.delete(y, i, axis=0).ravel()).statistic for i in range(6)
    ]
    error = math.sqrt(5 / 6 * np.sum((others - np.mean(others)) ** 2))
    half = stats.t.ppf(0.975, 5) * error
    expected = [whole, max(whole - half, -1), min(whole + half, 1)]
    np.testing.assert_allclose([estimate, low, high], expected, rtol=0, atol=TIGHT)


def test_a_rank_correlation_stays_within_one_and_needs_two_seeds_that_vary():
    x = np.array([[1.0, 2.0, 3.0], [3.0, 1.0, 2.0]])
    y = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    assert rank_correlation(x, y)[1] == (-1.0, 1.0)
    assert rank_correlation(x[:1], x[:1])[0] == pytest.approx(1.0, abs=TIGHT)
    assert math.isnan(rank_correlation(x[:1], x[:1])[1][0])
    assert math.isnan(rank_correlation(x, np.ones_like(x))[0])
