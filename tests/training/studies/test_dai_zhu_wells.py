import math

import numpy as np
import pytest
import torch

from gapscope.errors import UsageError
from gapscope.training.studies.dai_zhu.escape import SMALL_NOISE
from gapscope.training.studies.dai_zhu.wells import (
    BARRIER,
    LEFT,
    RIGHT,
    Landscape,
    Passages,
    Walk,
    arrivals,
    relaxation,
    shares,
    walk_on,
)

WELL, VALLEY = Landscape(), Landscape(across=(4.0, 0.25))
OVERSHOOT = 0.5826  # of a step's standard deviation (Siegmund 1979)


def loss(landscape, point):
    """Return L from its definition, with autograd: point (dimensions,)."""
    along = (point[0] ** 2 - 1) ** 2 / 4
    if landscape.across is None:
        return along
    left, right = landscape.across
    return along + math.sqrt(left * right) * (right / left) ** (point[0] / 2) * point[1] ** 2 / 2


@pytest.mark.parametrize("landscape", [WELL, VALLEY], ids=["well", "valley"])
@pytest.mark.parametrize("place", [(-1.0, 0.0), (0.0, 0.0), (1.0, 0.0), (0.7, -1.3)])
def test_gradients_and_hessians_are_those_of_the_loss(landscape, place):
    point = torch.tensor(place[: landscape.dimensions], dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(lambda at: loss(landscape, at), point)
    found = landscape.gradient(point.numpy()[:, None])[:, 0]
    np.testing.assert_allclose(found, expected, atol=1e-14)
    if not place[1]:
        hessian = torch.autograd.functional.hessian(lambda at: loss(landscape, at), point)
        np.testing.assert_allclose(landscape.hessian(place[0]), hessian, atol=1e-14)
    assert float(loss(landscape, torch.zeros(2, dtype=torch.float64))) == BARRIER


@pytest.mark.parametrize("spread", [0.125, 0.05])
def test_the_odds_are_those_of_the_density_on_the_plane(spread):
    x, y = np.linspace(-2.5, 2.5, 1_000), np.linspace(-8, 8, 1_601)
    height = np.array([loss(VALLEY, (one, y)) for one in x])
    density = np.exp(-height / spread).sum(axis=1)
    # the finer grid along x of the other sum is exact to rounding: both integrands are smooth and vanish at their ends
    assert VALLEY.odds(spread) == pytest.approx(density[x > 0].sum() / density[x < 0].sum(), rel=1e-4)


def test_the_odds_go_to_the_formula_as_the_noise_goes_to_zero():
    assert VALLEY.odds_of_formula() == pytest.approx(math.sqrt(4 / 0.25))
    assert VALLEY.odds(0.125) < VALLEY.odds(0.02) < VALLEY.odds(0.001) < 4
    assert VALLEY.odds(0.001) == pytest.approx(4, rel=0.01)


def test_a_walk_without_noise_is_torch_s_sgd_with_momentum():
    walk = Walk(variance=0.0, rate=0.05, batch_size=1, momentum=0.6)
    weights = torch.tensor([-0.3, 0.8], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([weights], lr=0.05, momentum=0.6)
    course = walk_on(VALLEY, walk, -0.3, (1,), np.random.default_rng(0))
    point, velocity = next(course)
    point[:, 0], velocity[:, 0] = weights.detach().numpy(), 0.0
    for _ in range(30):
        optimizer.zero_grad()
        loss(VALLEY, weights).backward()
        optimizer.step()
        point, _ = next(course)
        np.testing.assert_allclose(point[:, 0], weights.detach().numpy(), rtol=1e-12)


def test_gradient_noise_has_the_variance_of_a_mean_over_the_batch():
    walk = Walk(variance=12.0, rate=0.1, batch_size=3)
    (point, _) = next(walk_on(WELL, walk, LEFT, (40_000,), np.random.default_rng(0)))
    moved = (point[0] - LEFT) / walk.rate
    assert moved.var() == pytest.approx(4.0, rel=4 * math.sqrt(2 / 40_000))
    assert abs(moved.mean()) < 4 * 2 / math.sqrt(40_000)


def test_scaled_and_heavy_walks_have_the_same_diffusion_and_only_the_scaled_one_another_speed():
    walk = Walk(variance=25.0, rate=0.02, batch_size=5)
    assert BARRIER / walk.diffusion == pytest.approx(5)  # the plans' variance makes it the batch size
    for other, speed in ((walk.scaled(2), 0.04), (walk.heavy(0.9), 0.02)):
        assert other.diffusion == pytest.approx(walk.diffusion)
        assert other.speed == pytest.approx(speed)
    assert walk.heavy(0.9).rate == pytest.approx(0.002)


def passage_time(spread, goal):
    """Return the exact mean first-passage time from -1 to `goal`: 1/D int e^(L/D) int e^(-L/D), by quadrature."""
    x = np.linspace(-3, goal, 200_001)
    height = (x * x - 1) ** 2 / 4
    inner = np.cumsum(np.exp(-height / spread)) * (x[1] - x[0])
    return float((np.exp(height / spread) * inner)[x >= -1].sum() * (x[1] - x[0]) / spread)


@pytest.mark.parametrize("start", [LEFT, RIGHT])
def test_escape_takes_the_exact_mean_time(start):
    walk = Walk(variance=25.0, rate=0.02, batch_size=3)
    counts = arrivals(WELL, walk, start, shape=(2, 400), iterations=4_500, seed=1)
    found = Passages(arrivals=counts, iterations=4_500 * 400)
    mean, error = found.pooled
    exact = passage_time(walk.diffusion, 1 + OVERSHOOT * math.sqrt(2 * walk.diffusion * walk.rate)) / walk.rate
    # steps of a finite rate change the exponent by 1.5 and the curvatures by 0.5 times the rate
    assert abs(mean - exact) < 4 * error + 2 * walk.rate * exact
    assert mean > walk.predicted(WELL, start).iterations  # the limit of small noise is from below
    assert error == pytest.approx(mean / math.sqrt(found.arrivals.sum()))


@pytest.mark.parametrize(("size", "percent"), [(4, 14), (6, 8)])
def test_the_formula_is_short_by_as_much_as_is_said(size, percent):
    walk = Walk(variance=25.0, rate=0.02, batch_size=size)
    excess = passage_time(walk.diffusion, 1.0) / walk.predicted(WELL, LEFT).time - 1
    assert round(100 * excess) == percent
    assert "14 to 8 %" in SMALL_NOISE


def test_walkers_that_are_cut_off_count_by_how_long_they_walked():
    # of exponential times with the mean 100, cut off at 50, those that ended have a mean of 23; the estimate holds
    times = np.random.default_rng(0).exponential(100.0, (1, 20_000))
    found = Passages(arrivals=(times < 50).sum(axis=1), iterations=int(np.minimum(times, 50).sum()))
    mean, error = found.pooled
    assert abs(mean - 100) < 4 * error
    assert times[times < 50].mean() < 25


def test_without_an_arrival_there_is_a_bound_and_no_error():
    found = Passages(arrivals=np.zeros(2), iterations=3_000)
    assert found.pooled[0] == 2_000  # 6,000 iterations of all walkers, over 3
    assert math.isnan(found.pooled[1])
    assert np.isinf(found.mean).all()
    assert math.exp(-6_000 / found.pooled[0]) == pytest.approx(0.05, rel=0.005)


def test_walkers_leave_the_sharp_well_and_settle_as_the_density_says():
    walk = Walk(variance=25.0, rate=0.02, batch_size=2)
    iterations = 12 * math.ceil(relaxation(VALLEY, walk))
    share = shares(VALLEY, walk, shape=(4, 150), iterations=iterations, places=40, seed=0)
    assert share[:, 0].max() < 0.2
    late = share[:, 20:].mean(axis=1)
    odds = VALLEY.odds(walk.diffusion)
    error = late.std(ddof=1) / math.sqrt(4)
    # across the sharp side eta h / 2 = 4 % more variance than the density has: 2 % of the odds, and as much again
    assert abs(late.mean() - odds / (1 + odds)) < 4 * error + 0.04 * odds / (1 + odds) ** 2


def test_the_start_is_forgotten_at_both_rates_together():
    walk = Walk(variance=25.0, rate=0.02, batch_size=3)
    out, back = (walk.predicted(VALLEY, start).iterations for start in (LEFT, RIGHT))
    assert back / out == pytest.approx(4)
    assert relaxation(VALLEY, walk) == pytest.approx(out * back / (out + back))


def test_noise_that_is_none_has_no_diffusion():
    with pytest.raises(UsageError, match=r"The variance is 0\.0\. Expected a number above 0\. Mend `variance`\."):
        Walk(variance=0.0, rate=0.1, batch_size=1).diffusion  # noqa: B018
