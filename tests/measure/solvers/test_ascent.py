import math

import pytest
import torch

from gapscope.measure.solvers.ascent import KESKAR_ITERATIONS, ascent, keskar
from gapscope.results import Status

DTYPES = [torch.float32, torch.float64]
SIZE = 40


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def counted(function):
    calls = []

    def objective(y):
        calls.append(y.clone())
        y = y.detach().requires_grad_()
        value = function(y)
        (slope,) = torch.autograd.grad(value, y)
        return float(value.detach()), slope

    return objective, calls


def bowl(dtype=torch.float64, seed=0):
    """Return 1/2 sum h_i y_i^2, a box, and the box's maximum by formula; y = 0 is an exact minimizer.

    h >= 10: L-BFGS-B keeps no pair of negative curvature, so its steps are y <- y + h y, and ten of them reach the
    walls.
    """
    h = (10 + 90 * torch.rand(SIZE, generator=rng(seed), dtype=torch.float64)).to(dtype)
    radius = 1e-3 * (torch.randn(SIZE, generator=rng(seed + 1), dtype=torch.float64).abs().to(dtype) + 1)
    return lambda y: 0.5 * (h * y.square()).sum(), radius, float(0.5 * (h.double() * radius.double().square()).sum())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(5))
def test_both_reach_the_vertex_of_a_separable_bowl(dtype, seed):
    function, radius, top = bowl(dtype, seed)
    tolerance = 100 * torch.finfo(dtype).eps
    for found in (
        keskar(counted(function)[0], radius, 0.0, rng(seed)),
        ascent(counted(function)[0], radius, 0.0, [torch.randn(SIZE, generator=rng(seed), dtype=dtype)]),
    ):
        assert found.value == pytest.approx(top, rel=tolerance)
        assert torch.allclose(found.point.abs(), radius, rtol=tolerance)


def test_ten_iterations_may_end_short_of_the_maximum_but_never_above():
    function, radius, top = bowl()
    slow = keskar(counted(lambda y: 0.01 * function(y))[0], radius, 0.0, rng())
    assert 0 < slow.value < 0.01 * top
    assert slow.status is Status.EXACT  # the metric is what ten iterations find
    strong = ascent(counted(lambda y: 0.01 * function(y))[0], radius, 0.0, [torch.ones(SIZE, dtype=torch.float64)])
    assert strong.value == pytest.approx(0.01 * top, rel=1e-12)


def test_keskar_starts_at_a_random_point_of_a_tenth_of_the_box():
    function, radius, _ = bowl()
    objective, calls = counted(function)
    keskar(objective, radius, 0.0, rng(5))
    assert torch.allclose(calls[0], 0.1 * radius * (2 * torch.rand(SIZE, generator=rng(5), dtype=torch.float64) - 1))


def test_keskar_is_not_fooled_by_a_gradient_of_zero():
    function, radius, top = bowl()
    tiny = keskar(counted(lambda y: 1e-9 * function(y))[0], radius, 0.0, rng())  # every gradient is below pgtol's 1e-5
    assert 0 < tiny.value <= 1e-9 * top
    assert tiny.iterations > 0
    assert tiny.status is Status.EXACT


def test_keskar_stops_at_ten_iterations_and_counts_its_evaluations():
    matrix = torch.randn(SIZE, SIZE, generator=rng(), dtype=torch.float64)
    # a saddle whose maximum in the box is far: many iterations would be needed
    objective, calls = counted(lambda y: torch.sin(matrix @ y).square().sum() - y.square().sum())
    found = keskar(objective, torch.full((SIZE,), 2.0, dtype=torch.float64), 0.0, rng())
    assert found.iterations == KESKAR_ITERATIONS == 10  # the metric's definition
    assert found.evaluations == len(calls)
    assert found.message


def test_keskar_keeps_the_best_point_that_it_saw():
    matrix = torch.randn(SIZE, SIZE, generator=rng(), dtype=torch.float64)
    objective, calls = counted(lambda y: torch.cos(3 * matrix @ y).sum())
    found = keskar(objective, torch.ones(SIZE, dtype=torch.float64), 0.0, rng())
    values = [objective(y)[0] for y in list(calls)]
    assert found.value == max(values)
    assert objective(found.point)[0] == found.value


def test_keskar_keeps_it_where_the_line_search_ends_lower():
    calls = []

    def sinking(y):
        calls.append(y)
        return -float(len(calls)), torch.ones_like(y)

    found = keskar(sinking, torch.ones(5, dtype=torch.float64), -100.0, rng())
    assert len(calls) > 1
    assert found.value == -1
    assert torch.equal(found.point, calls[0])


def test_keskar_stays_inside_the_box_and_depends_on_the_seed_alone():
    function, radius, _ = bowl()
    objective, calls = counted(function)
    a, b = (keskar(objective, radius, 0.0, rng(3)) for _ in range(2))
    assert all(bool((y.abs() <= radius).all()) for y in calls)
    assert torch.equal(a.point, b.point)


def test_a_keskar_run_without_an_iteration_is_not_called_exact():
    found = keskar(counted(lambda y: 0 * y.sum() + 1.0)[0], torch.ones(5, dtype=torch.float64), 1.0, rng())
    assert found.iterations == 0
    assert found.status is Status.BUDGET_SPENT
    assert found.value == 1


def test_a_fixed_point_of_the_ascent_is_converged():
    function, radius, top = bowl()
    objective, calls = counted(function)
    found = ascent(objective, radius, 0.0, [torch.randn(SIZE, generator=rng(), dtype=torch.float64)])
    assert found.status is Status.CONVERGED
    assert found.gap <= 1e-3 * top
    assert found.evaluations == len(calls) <= 12
    again = objective(found.point)[1]
    assert torch.equal(radius * again.sign(), found.point)


@pytest.mark.parametrize("seed", range(10))
def test_the_ascent_never_ends_below_what_it_saw(seed):
    matrix = torch.randn(SIZE, SIZE, generator=rng(seed), dtype=torch.float64)
    objective, calls = counted(lambda y: torch.cos(matrix @ y).sum() + (matrix[0] @ y))
    start = torch.randn(SIZE, generator=rng(seed), dtype=torch.float64)
    found = ascent(objective, torch.ones(SIZE, dtype=torch.float64), float(SIZE), [start, -start])
    best = max(objective(y)[0] for y in list(calls))
    assert found.value == best
    assert objective(found.point)[0] == found.value


def test_a_linear_function_is_maximized_at_its_vertex_with_no_gap():
    slope = torch.randn(SIZE, generator=rng(), dtype=torch.float64)
    radius = torch.rand(SIZE, generator=rng(1), dtype=torch.float64)
    found = ascent(counted(lambda y: slope @ y)[0], radius, 0.0, [torch.ones(SIZE, dtype=torch.float64)])
    assert found.value == pytest.approx(float(slope.abs() @ radius), rel=1e-14)
    assert found.gap == pytest.approx(0, abs=1e-14)
    assert found.status is Status.CONVERGED


@pytest.mark.parametrize("dead", [slice(0, 30), slice(0, 0)])
def test_dead_coordinates_do_not_disturb_the_others(dead):
    function, radius, _ = bowl()
    alive = torch.ones(SIZE, dtype=torch.float64)
    alive[dead] = 0
    direction = torch.randn(SIZE, generator=rng(), dtype=torch.float64) * alive
    found = ascent(counted(lambda y: function(y * alive))[0], radius, 0.0, [direction])
    assert found.value == pytest.approx(float(function(radius * alive)), rel=1e-12)
    assert found.status is Status.CONVERGED
    assert bool((found.point.abs() <= radius).all())


def test_a_flat_objective_ends_at_once_with_a_finite_point():
    found = ascent(counted(lambda y: 0 * y.sum() + 2.0)[0], torch.ones(5), 2.0, [torch.zeros(5)])
    assert (found.value, found.gap) == (2, 0)
    assert found.status is Status.CONVERGED
    assert torch.isfinite(found.point).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_objective_that_is_not_a_number_is_nonfinite(dtype):
    def objective(y):
        return math.nan, torch.full_like(y, math.nan)

    radius = torch.ones(4, dtype=dtype)
    assert ascent(objective, radius, 1.0, [torch.ones(4, dtype=dtype)]).status is Status.NONFINITE
    assert keskar(objective, radius, 1.0, rng()).status is Status.NONFINITE


def test_a_loss_that_is_finite_at_the_start_alone_is_nonfinite():
    def objective(y):
        return (math.nan if y.any() else 1.0), torch.ones_like(y)

    assert ascent(objective, torch.ones(4), 1.0, [torch.ones(4)]).status is Status.NONFINITE


def test_the_wrong_sign_of_the_start_is_mended():
    """Both vertices of one coordinate are maxima, and a path from the lower one settles there."""
    found = ascent(counted(lambda y: y.square().sum() + y.sum())[0], torch.ones(1), 0.0, [-torch.ones(1)])
    assert found.value == 2


def test_the_higher_of_two_maxima_that_the_gradient_points_away_from_is_found():
    found = ascent(counted(lambda y: (50 * y**2 + y - 3 * y**3).sum())[0], torch.ones(1), 0.0, [torch.ones(1)])
    assert (found.value, float(found.point)) == (52, -1)


@pytest.mark.parametrize(("share", "looked"), [(0.05, True), (0.15, False)])
def test_the_opposite_is_looked_at_where_a_quadratic_function_could_be_nearly_as_high_there(share, looked):
    """Of bend + slope at the best point, bend - slope is left at its opposite: .9 or .7 of it."""
    radius, slope = torch.ones(SIZE, dtype=torch.float64), torch.ones(SIZE, dtype=torch.float64)
    objective, calls = counted(lambda y: (1 - share) * y @ y + share * (slope @ y))
    found = ascent(objective, radius, 0.0, [share * slope])
    assert found.value == pytest.approx(SIZE, rel=1e-14)
    assert any(torch.equal(y, -found.point) for y in calls) is looked


@pytest.mark.parametrize("evaluations", [3, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ascent_is_never_below_a_known_maximum_even_where_its_own_steps_are_too_few(dtype, evaluations):
    """A cap whose top lies inside the box: steps to its walls overshoot it."""
    top = 0.3 * torch.linspace(-1, 1, SIZE, dtype=dtype)
    steep = torch.linspace(1, 30, SIZE, dtype=dtype)

    def cap(y):
        return -(steep * (y - top) ** 2).sum()

    radius, direction = torch.ones(SIZE, dtype=dtype), torch.ones(SIZE, dtype=dtype)
    start = float(cap(torch.zeros(SIZE, dtype=dtype)))
    other = keskar(counted(cap)[0], radius, start, rng())
    alone = ascent(counted(cap)[0], radius, start, [direction], evaluations=evaluations)
    assert alone.value < other.value
    objective, calls = counted(cap)
    found = ascent(objective, radius, start, [direction], known=other, evaluations=evaluations)
    assert found.value >= other.value
    assert found.evaluations == len(calls)


@pytest.mark.parametrize("seed", range(5))
def test_a_single_start_counts_as_one_of_the_gradients(seed):
    matrix = torch.randn(SIZE, SIZE, generator=rng(seed), dtype=torch.float64)
    objective, calls = counted(lambda y: torch.cos(matrix @ y).sum() + (matrix[0] @ y))
    start = torch.randn(SIZE, generator=rng(seed), dtype=torch.float64)
    found = ascent(objective, torch.ones(SIZE, dtype=torch.float64), float(SIZE), [start], evaluations=8)
    assert found.evaluations == len(calls) <= 7


def test_from_several_starts_the_best_end_counts():
    """A ridge: of the box's maxima each start finds its own."""
    heights = torch.tensor([1.0, 3.0, 2.0])

    def ridge(y):
        return (heights * torch.stack([y.relu().sum(), (-y).relu().sum(), y[0].abs() + y[1:].sum()])).max()

    radius, starts = torch.ones(3), [torch.ones(3), -torch.ones(3)]
    assert [ascent(counted(ridge)[0], radius, 0.0, s).value for s in (starts, starts[::-1])] == [9.0, 9.0]


def test_the_slope_is_that_at_the_maximum():
    function, radius, _ = bowl()
    objective, _ = counted(function)
    found = ascent(objective, radius, 0.0, [torch.ones(SIZE, dtype=torch.float64)])
    assert torch.equal(found.slope, objective(found.point)[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_maximum_inside_the_box_is_reached(dtype):
    """Steps to walls alone never come near it, and ten iterations of L-BFGS-B not so near."""
    top, steep = 0.3 * torch.linspace(-1, 1, SIZE, dtype=dtype), torch.linspace(1, 30, SIZE, dtype=dtype)
    objective, _ = counted(lambda y: 1 - (steep * (y - top) ** 2).sum())
    start, slope = objective(torch.zeros(SIZE, dtype=dtype))
    found = ascent(objective, torch.ones(SIZE, dtype=dtype), start, [slope], evaluations=40)
    assert found.value == pytest.approx(1, abs=1e-5)
    assert keskar(objective, torch.ones(SIZE, dtype=dtype), start, rng()).value < 1 - 1e-3


@pytest.mark.parametrize("top", [0.0, 0.3])
@pytest.mark.parametrize("starts", [1, 2])
def test_a_maximum_inside_the_box_is_not_left_for_a_lower_wall(top, starts):
    """Around a maximum the solvers returned the best wall, a negative sharpness: the box holds x itself."""
    matrix = torch.randn(SIZE, SIZE, generator=rng(), dtype=torch.float64)
    center = top * torch.ones(SIZE, dtype=torch.float64)

    def hill(y):
        return -(matrix @ (y - center)).square().sum()

    radius, zero = torch.ones(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64)
    objective, calls = counted(hill)
    start, slope = objective(zero)
    calls.clear()
    found = ascent(objective, radius, start, [slope, -slope][:starts])
    assert found.value >= start
    assert objective(found.point)[0] == found.value
    assert found.evaluations == len(calls) - 1 <= 12
    assert torch.equal(found.slope, objective(found.point)[1])
    assert found.status is (Status.CONVERGED if top == 0 else Status.BUDGET_SPENT)
    if top:
        assert found.value > start  # shorter steps go up
    else:
        assert not found.point.any()
    other = keskar(objective, radius, start, rng())
    assert start <= other.value == objective(other.point)[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
def test_slopes_that_nearly_vanish_never_lead_to_a_point_that_is_not_a_number(dtype, sign):
    """Steps are over the mean slope, or what bends it: of a saturated loss an infinite factor, NaN where it is 0."""
    weights = torch.linspace(0, 1, SIZE, dtype=dtype) * (1e-38 if dtype is torch.float32 else 1e-300)
    objective, calls = counted(lambda y: (weights * (y + sign * 0.1 * y.square())).sum())
    start, slope = objective(torch.zeros(SIZE, dtype=dtype))
    ascent(objective, torch.full((SIZE,), 1e-3, dtype=dtype), start, [slope])
    assert all(bool(y.isfinite().all()) for y in calls)


def test_where_a_step_overflows_the_next_one_is_from_the_best_point():
    radius, objective = torch.ones(SIZE), lambda y: (math.nan, torch.full_like(y, math.nan))
    inside, calls = counted(lambda y: y.sum())

    def cliff(y):
        return inside(y) if float(y.sum()) < 0.9 * SIZE else objective(y)

    found = ascent(cliff, radius, 0.0, [torch.linspace(1, 2, SIZE)])
    assert all(bool(y.isfinite().all()) for y in calls)
    assert math.isfinite(found.value)
    assert found.value > 0
