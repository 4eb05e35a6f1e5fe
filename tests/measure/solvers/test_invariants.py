import math

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.measure.solvers.invariants import error_of_mean, matrices


@pytest.mark.parametrize("draws", [20, 30, 100])
@pytest.mark.parametrize(("freedom", "share"), [(1, 0.015), (4, 0.006), (400, 0.003)])
def test_the_truth_is_seldom_beyond_three_errors(draws, freedom, share):
    values = np.random.default_rng(0).chisquare(freedom, (4000, draws))
    beyond = [abs(row.mean() - freedom) > 3 * error_of_mean(row) for row in values]
    assert np.mean(beyond) <= share


def test_of_many_normal_draws_it_is_the_standard_error():
    values = 10 + np.random.default_rng(0).standard_normal(100_000)
    assert error_of_mean(values) == pytest.approx(1 / math.sqrt(100_000), rel=0.01)


def test_shift_aside_it_scales_with_the_values_and_has_no_sign():
    values = np.random.default_rng(1).chisquare(1, 30)
    assert error_of_mean(7 * values) == pytest.approx(7 * error_of_mean(values))
    assert error_of_mean(-values) == pytest.approx(error_of_mean(values))


def test_of_equal_values_it_is_zero_and_of_what_is_no_number_not_a_number():
    assert error_of_mean(np.ones(5)) == 0
    assert math.isnan(error_of_mean(np.array([1.0, math.nan, 2.0])))


def test_two_draws_say_little():
    assert error_of_mean(np.array([1.0, 2.0])) > 10
    assert math.isfinite(error_of_mean(np.array([1.0, -1.0])))


def test_matrices_have_the_given_values_and_not_the_models():
    model = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Linear(4, 5))
    given = {name: torch.full_like(p, number) for number, (name, p) in enumerate(model.named_parameters())}
    found = matrices(model, given)
    assert list(found) == ["0", "2"]
    (first, convolution), (second, linear) = found.values()
    assert (first, second) == (slice(0, 24), slice(24 + 3 + 3 + 3, 24 + 9 + 20))
    assert (convolution.shape, linear.shape) == ((3, 8), (5, 4))
    assert (convolution == 0).all()
    assert (linear == 4).all()
