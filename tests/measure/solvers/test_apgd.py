import itertools
import math

import pytest
import torch

from gapscope.measure.solvers.apgd import Ball, apgd
from gapscope.results import Status


def quadratic(seed=0, size=20, slope=0.0):
    """Return H (symmetric, top eigenvalue 9 and a gap), g, and u -> g'u + u'Hu/2 with its gradient."""
    rng = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(size, size, generator=rng, dtype=torch.float64)).Q
    values = torch.linspace(-1, 5, size, dtype=torch.float64)
    values[-1] = 9.0
    hessian = basis @ torch.diag(values) @ basis.T
    g = slope * torch.randn(size, generator=rng, dtype=torch.float64)
    return hessian, g, lambda u: (float(g @ u + 0.5 * u @ hessian @ u), g + hessian @ u)


def source(seed=0, size=20):
    rng = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(size, generator=rng, dtype=torch.float64)


def climb(objective, ball, seed=0, size=20, **more):
    return apgd(objective, ball, objective(torch.zeros(size, dtype=torch.float64)), source(seed, size), **more)


def wavy(seed=0, size=20):
    """Return a function with many maxima in the unit balls, and its gradient."""
    rng = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=rng, dtype=torch.float64) / 2
    return lambda u: (float(torch.sin(a @ u + 1).sum()), a.T @ torch.cos(a @ u + 1))


def step_up(u):
    """Return the square of what u_0 has above 0.3: flat at u = 0."""
    over = torch.relu(u[0] - 0.3)
    return float(over**2), 2 * over * torch.eye(len(u), dtype=u.dtype)[0]


def by_the_paper(objective, norm, radius, draw, steps):
    """Return every point of Croce and Hein's algorithm 1 with the starts of the header, written down once more."""
    points = []

    def project(u):
        return u.clip(-radius, radius) if norm == "linf" else u * min(1.0, radius / max(float(u.norm()), 1e-300))

    def unit(g):
        return g.sign() if norm == "linf" else g / g.norm()

    class Path:
        def __init__(self, x):
            self.xs, self.eta, self.seen = [x], 2 * radius, []
            self.look()

        def look(self):
            points.append(self.xs[-1])
            self.now = (*objective(self.xs[-1]), self.xs[-1])
            self.seen.append(self.now)

        def best(self):
            return max(self.seen, key=lambda one: one[0])

        def step(self):
            value, g, x = self.now
            if g.any():
                z = project(x + self.eta * unit(g))
                self.xs.append(z if len(self.xs) == 1 else project(x + 0.75 * (z - x) + 0.25 * (x - self.xs[-2])))
            else:
                self.xs = [radius * unit(draw())]
            self.look()
            return self.now[0] > value

    starts = max(2, steps // 10)
    g = objective(torch.zeros(20, dtype=torch.float64))[1]
    paths = []
    for number in range(starts):
        opposite = -paths[0].best()[2] if number == 1 else None
        first = opposite if number == 1 else radius * unit(g if number == 0 and g.any() else draw())
        paths.append(Path(first))
        for _ in range(min(4, steps // starts) - 1):
            paths[-1].step()
    path = max(paths, key=lambda one: one.best()[0])
    left = steps - len(points)
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    marks = sorted({min(left, math.ceil(share * left)) for share in shares})
    top, halved = path.best()[0], False
    for before, mark in itertools.pairwise(marks):
        rises = sum(path.step() for _ in range(mark - before))
        halved = rises < 0.75 * (mark - before) or (not halved and path.best()[0] == top)
        top = path.best()[0]
        if halved:
            path.eta /= 2
            path.now = path.best()
            path.xs = [path.now[2]]
    return points


@pytest.mark.parametrize("function", [wavy(0), wavy(1), wavy(2), wavy(17), quadratic(slope=1.0)[2], step_up])
@pytest.mark.parametrize("steps", [2, 7, 20, 47])
@pytest.mark.parametrize(("norm", "radius"), [("l2", 1.0), ("l2", 6.0), ("linf", 0.4), ("linf", 3.0)])
def test_every_step_is_that_of_the_paper(function, steps, norm, radius):
    calls, values = [], []

    def objective(u):
        calls.append(u)
        values.append(function(u)[0])
        return function(u)

    peak = apgd(objective, Ball(norm, radius), function(torch.zeros(20, dtype=torch.float64)), source(), steps=steps)
    expected = by_the_paper(function, norm, radius, source(), steps)
    assert torch.allclose(torch.stack(calls), torch.stack(expected), rtol=0, atol=1e-9 * radius)
    flat = not function(torch.zeros(20, dtype=torch.float64))[1].any()
    assert peak.first == (peak.start_value if flat else values[0])
    assert peak.halfway == max(peak.start_value, *values[: steps // 2])
    assert peak.value == max(peak.start_value, *values)
    assert peak.value in (peak.start_value, function(peak.point)[0])


@pytest.mark.parametrize("constant", [0.0, 1e3])
def test_converged_is_a_first_order_step_that_promises_one_percent(constant):
    shares = []
    for seed in range(4):
        function = wavy(seed)
        origin = function(torch.zeros(20, dtype=torch.float64))

        def shifted(u, function=function):
            value, slope = function(u)
            return value + constant, slope

        for steps in range(2, 20):
            peak = apgd(shifted, Ball("l2", 1.0), (origin[0] + constant, origin[1]), source(), steps=steps)
            slope = function(peak.point)[1]
            assert peak.gap == pytest.approx(float(slope.norm() - slope @ peak.point), abs=1e-12)
            shares.append(peak.gap / (peak.value - peak.start_value))
            assert peak.status is (Status.CONVERGED if shares[-1] <= 0.01 else Status.BUDGET_SPENT)
    assert any(0.01 < share < 0.02 for share in shares)  # near the limit, too


def test_the_steepest_point_of_a_ball_lies_along_the_slope():
    down = torch.tensor([-3.0, 0.0, -4.0])
    assert torch.allclose(Ball("l2", 2.0).steepest(down), torch.tensor([-1.2, 0.0, -1.6]))
    assert torch.equal(Ball("linf", 2.0).steepest(down), torch.tensor([-2.0, 0.0, -2.0]))


def test_coordinates_without_a_slope_are_not_a_flat_function():
    """Dead units have none: their weights are in theta all the same."""
    g = source(3)()
    g[0] = 0

    def level(u):  # from the first step on there is no slope: it is the maximum
        rise = abs(float(g @ u))
        return (rise, g) if rise < 1e-9 else (1e-9, torch.zeros_like(g))

    def never():
        raise AssertionError

    ramp = apgd(lambda u: (float(g @ u), g), Ball("l2", 1.0), (0.0, g), never)
    assert ramp.first == pytest.approx(float(g.norm()))
    end = climb(level, Ball("l2", 1.0))
    assert (end.status, end.value, end.gap) == (Status.CONVERGED, 1e-9, 0)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("radius", [1e-3, 1.0, 50.0])
def test_in_an_l2_ball_a_quadratic_at_its_minimum_rises_by_half_its_top_eigenvalue(seed, radius):
    _, _, objective = quadratic(seed)
    peak = climb(objective, Ball("l2", radius), seed, steps=200)
    assert peak.value == pytest.approx(0.5 * 9 * radius**2, rel=1e-9)
    assert float(peak.point.norm()) <= radius * (1 + 1e-12)
    assert climb(objective, Ball("l2", radius), seed).value == pytest.approx(0.5 * 9 * radius**2, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_in_an_l2_ball_with_a_slope_the_maximum_is_that_of_the_secular_equation(seed):
    hessian, g, objective = quadratic(seed, slope=1.0)
    values, basis = torch.linalg.eigh(hessian)
    low, high = 9.0, 1e6  # u = (mu - H)^-1 g with |u| = 1: |u| falls in mu
    for _ in range(200):
        mu = (low + high) / 2
        u = basis @ ((basis.T @ g) / (mu - values))
        low, high = (mu, high) if float(u.norm()) > 1 else (low, mu)
    peak = climb(objective, Ball("l2", 1.0), seed, steps=300)
    assert peak.value == pytest.approx(objective(u)[0], rel=1e-9)
    assert peak.status is Status.CONVERGED


@pytest.mark.parametrize("radius", [0.01, 2.0])
def test_in_an_linf_ball_a_diagonal_quadratic_ends_at_a_vertex(radius):
    h = torch.linspace(0.1, 7, 20, dtype=torch.float64)
    peak = climb(lambda u: (float(0.5 * h @ u**2), h * u), Ball("linf", radius))
    assert peak.evaluations == 20
    assert peak.value == pytest.approx(0.5 * radius**2 * float(h.sum()), rel=1e-9)
    assert float(peak.point.abs().max()) <= radius


def test_a_linear_function_is_done_at_the_first_step():
    g = source(3)()
    for norm, rise in (("l2", float(g.norm())), ("linf", float(g.abs().sum()))):
        peak = climb(lambda u: (float(g @ u), g), Ball(norm, 0.5))
        assert [peak.first, peak.halfway, peak.value] == pytest.approx([0.5 * rise] * 3, rel=1e-12)
        assert peak.gap == pytest.approx(0, abs=1e-12)


def test_an_interior_maximum_is_found_or_the_gap_says_that_it_was_not():
    def dome(u):
        return float(u[0] - u @ u), torch.eye(20, dtype=u.dtype)[0] - 2 * u

    assert climb(dome, Ball("l2", 2.0), steps=100).value == pytest.approx(0.25, rel=1e-3)
    far = climb(dome, Ball("l2", 100.0))
    assert 0 <= far.value <= 0.25 <= far.value + far.gap
    assert far.status is Status.BUDGET_SPENT


def test_never_below_the_start_or_the_first_order_step():
    def wiggly(u):
        return float(torch.cos(40 * u).sum() + u.sum()), -40 * torch.sin(40 * u) + 1

    for seed in range(5):
        peak = climb(wiggly, Ball("linf", 1.0), seed)
        assert peak.value >= max(peak.start_value, peak.first, peak.halfway)
    down = climb(lambda u: (-float(u @ u), -2 * u), Ball("l2", 1.0))  # every step goes down: u = 0 is the best point
    assert down.value == 0
    assert not down.point.any()


@pytest.mark.parametrize("steps", [2, 3, 5, 8, 20, 21, 47])
def test_exactly_the_steps_asked_for_are_taken(steps):
    calls = []
    _, _, objective = quadratic(slope=1.0)

    def counted(u):
        calls.append(u)
        return objective(u)

    peak = apgd(counted, Ball("l2", 1.0), objective(torch.zeros(20, dtype=torch.float64)), source(), steps=steps)
    assert len(calls) == peak.evaluations == steps
    assert all(float(u.norm()) <= 1 + 1e-12 for u in calls)


def test_with_a_slope_twenty_steps_draw_nothing_and_more_draw_a_start():
    _, _, objective = quadratic(slope=1.0)

    def never():
        raise AssertionError

    origin = objective(torch.zeros(20, dtype=torch.float64))
    apgd(objective, Ball("l2", 1.0), origin, never, steps=20)
    with pytest.raises(AssertionError):
        apgd(objective, Ball("l2", 1.0), origin, never, steps=30)


def test_a_flat_function_is_zero():
    peak = climb(lambda u: (0.0, torch.zeros_like(u)), Ball("l2", 1.0))
    assert (peak.value, peak.gap, peak.first) == (0, 0, 0)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("factor", [2.0**-90, 2.0**60])
def test_the_size_of_the_slope_does_not_matter_in_float32(norm, factor):
    hessian, g, _ = quadratic(slope=1.0)
    hessian, g = hessian.float(), g.float()
    ends = []
    for times in (1.0, factor):

        def scaled(u, times=times):
            return times * float(g @ u + 0.5 * u @ hessian @ u), times * (g + hessian @ u)

        ends.append(apgd(scaled, Ball(norm, 1.0), scaled(torch.zeros(20)), source()))
    a, b = ends
    assert torch.equal(a.point, b.point)
    assert b.value == factor * a.value > 0
    assert b.status is a.status


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("seed", range(5))
def test_where_there_is_no_slope_random_starts_find_one(norm, seed):
    peak = climb(step_up, Ball(norm, 1.0), seed, size=4)
    assert peak.value == pytest.approx(0.49, rel=1e-3)
    assert peak.status is Status.CONVERGED
    assert peak.first == 0


def test_no_slope_anywhere_is_no_maximum_unless_the_ball_is_a_point():
    flat = lambda u: (0.0, torch.zeros_like(u))  # noqa: E731
    peak = climb(flat, Ball("l2", 1.0))
    assert (peak.status, peak.message) == (Status.BUDGET_SPENT, "no slope")
    calls = []

    def seen(u):
        calls.append(u)
        return flat(u)

    climb(seen, Ball("l2", 1.0), steps=20)
    assert len({tuple(u.tolist()) for u in calls}) == 21  # the center and 20 random points
    half = apgd(flat, Ball("l2", 1.0), flat(torch.zeros(3)), lambda: torch.tensor([0.0, 1.0, 2.0]))
    assert half.message == "no slope"
    point = apgd(flat, Ball("l2", 1.0), flat(torch.zeros(3)), lambda: torch.zeros(3))
    assert point.status is Status.CONVERGED


def test_a_cliff_is_not_a_maximum():
    def cliff(u):
        return math.inf if float(u.norm()) > 0.9 else float(u.sum()), torch.ones_like(u)

    peak = climb(lambda u: (cliff(u)[0] + 3, cliff(u)[1]), Ball("l2", 1.0))
    assert peak.status is Status.NONFINITE
    assert peak.start_value == 3
    assert float(peak.point.norm()) > 0.9  # where it happened
    assert math.isnan(peak.value)
    assert math.isnan(peak.gap)

    def torn(u):
        slope = torch.ones_like(u)
        slope[3] = math.nan if u.any() else 1.0
        return float(u.sum()), slope

    broken = climb(torn, Ball("l2", 1.0))
    assert broken.status is Status.NONFINITE
    assert broken.evaluations == 1
    assert broken.message == "the loss is not finite"
