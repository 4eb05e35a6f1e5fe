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


def step_up(u):
    """Return the square of what u_0 has above 0.3: flat at u = 0."""
    over = torch.relu(u[0] - 0.3)
    return float(over**2), 2 * over * torch.eye(len(u), dtype=u.dtype)[0]


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
    point = apgd(flat, Ball("l2", 1.0), flat(torch.zeros(3)), lambda: torch.zeros(3))
    assert point.status is Status.CONVERGED


def test_a_cliff_is_not_a_maximum():
    def cliff(u):
        return math.inf if float(u.norm()) > 0.9 else float(u.sum()), torch.ones_like(u)

    peak = climb(cliff, Ball("l2", 1.0))
    assert peak.status is Status.NONFINITE
    assert math.isnan(peak.value)
    assert math.isnan(peak.gap)
    broken = climb(lambda u: (float(u.sum()), u.new_full(u.shape, 1 if not u.any() else math.nan)), Ball("l2", 1.0))
    assert broken.status is Status.NONFINITE
    assert broken.message == "the loss is not finite"
