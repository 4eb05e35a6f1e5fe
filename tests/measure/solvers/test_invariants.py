import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn

from gapscope.measure.operators import from_dense
from gapscope.measure.solvers.hutchinson import error_of_mean
from gapscope.measure.solvers.invariants import matrices, relative_flatness
from tests.spectra import matrix


@pytest.mark.parametrize("draws", [20, 30, 100])
@pytest.mark.parametrize(("freedom", "share"), [(1, 0.015), (4, 0.006), (400, 0.003)])
def test_the_truth_is_seldom_beyond_three_errors(draws, freedom, share):
    values = np.random.default_rng(0).chisquare(freedom, (4000, draws))
    beyond = [abs(row.mean() - freedom) > 3 * error_of_mean(row) for row in values]
    assert np.mean(beyond) <= share


def test_of_many_normal_draws_it_is_the_standard_error():
    values = 10 + np.random.default_rng(0).standard_normal(100_000)
    assert error_of_mean(values) == pytest.approx(1 / math.sqrt(100_000), rel=0.01)


@pytest.mark.parametrize(("shift", "draws"), [(0, 3), (100, 3), (100, 30), (0, 30), (-1, 30), (-5, 7)])
def test_it_is_students_quantile_and_the_larger_of_two_skewnesses(shift, draws):
    values = shift + np.random.default_rng(draws).chisquare(2, draws)
    variance = scipy.stats.kstat(values, 2)
    seen = abs(scipy.stats.kstat(values, 3)) / variance**1.5
    least = min(2 * math.sqrt(variance) / abs(values.mean()), math.sqrt(8))
    student = scipy.stats.t.isf(scipy.stats.norm.sf(3), draws - 1)
    johnson = 19 / 18 * max(seen, least) / math.sqrt(draws)  # 1/3 (1/6 + 1/3 3^2)
    assert error_of_mean(values) == pytest.approx(math.sqrt(variance / draws) * (student / 3 + johnson), rel=1e-6)


def test_shift_aside_it_scales_with_the_values_and_has_no_sign():
    values = np.random.default_rng(1).chisquare(1, 30)
    assert error_of_mean(7 * values) == pytest.approx(7 * error_of_mean(values))
    for each in (values, 1 + np.random.default_rng(1).standard_normal(30)):  # skewed as seen, and as is the least
        assert error_of_mean(-each) == pytest.approx(error_of_mean(each))


def test_of_equal_values_it_is_zero_and_of_what_is_no_number_not_a_number():
    assert error_of_mean(np.ones(5)) == 0
    assert math.isnan(error_of_mean(np.array([1.0, math.nan, 2.0])))


def test_two_draws_say_little():
    assert error_of_mean(np.array([1.0, 2.0])) > 10
    student = scipy.stats.t.isf(scipy.stats.norm.sf(3), 1)
    about_zero = student / 3 + 19 / 18 * math.sqrt(8) / math.sqrt(2)  # times s / sqrt(m) = 1
    assert error_of_mean(np.array([1.0, -1.0])) == pytest.approx(about_zero, rel=1e-5)  # its probability has 8 digits


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


def stacked(*shapes):
    """Return layers of these shapes, one after the other: orthogonal rows or columns, each of another length."""
    layers, start, rng = {}, 0, torch.Generator().manual_seed(0)
    for out, into in shapes:
        turn = torch.linalg.qr(torch.randn(max(out, into), min(out, into), generator=rng, dtype=torch.float64)).Q
        weights = turn * torch.arange(1.0, 1 + min(out, into), dtype=torch.float64)
        weights = weights if out >= into else weights.T
        layers[f"{out} of {into}"] = (slice(start, start + out * into), weights)
        start += out * into
    return layers, start


def test_of_a_multiple_of_the_identity_every_probe_knows_the_flatness():
    """kappa = c inputs |W|^2, and v'Hv is that for every v = vec(A R) where A'A is diagonal."""
    layers, size = stacked((5, 3), (3, 5), (4, 4))
    c = torch.ones(size, dtype=torch.float64)
    for number, (where, _) in enumerate(layers.values()):
        c[where] = -2.0 + 3 * number
    found = relative_flatness(from_dense(torch.diag(c)), layers, 2, torch.Generator().manual_seed(0))
    true = [float(c[where][0] * w.shape[1] * w.square().sum()) for where, w in layers.values()]
    assert found.values == pytest.approx(true, rel=1e-13)
    assert found.matvecs == 2
    rounding = 10 * torch.finfo(torch.float64).eps * np.abs(true)  # |v||Hv| = |kappa|
    assert (0.999 * rounding < found.errors).all()
    assert (found.errors < 10 * rounding).all()  # with what rounding spread: two draws say little


@pytest.mark.parametrize("seed", range(3))
def test_the_flatness_is_the_trace_of_the_hessian_times_the_gram_matrix_of_the_rows(seed):
    layers, size = stacked((5, 3), (3, 5), (4, 4))
    dense = matrix(torch.linspace(-1, 3, size, dtype=torch.float64), seed)
    found = relative_flatness(from_dense(dense), layers, 400, torch.Generator().manual_seed(seed))
    grams = [torch.kron(w @ w.T, torch.eye(w.shape[1], dtype=w.dtype)) for _, w in layers.values()]
    true = [float((dense[where, where] * gram).sum()) for (where, _), gram in zip(layers.values(), grams, strict=True)]
    assert (np.abs(found.values - true) <= 3 * found.errors).all()
    assert (found.errors < 0.1 * np.abs(true)).all()
