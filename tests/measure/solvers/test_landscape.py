import math

import numpy as np
import pytest

from gapscope.errors import UsageError
from gapscope.measure.solvers.landscape import basin_odds, diffusion, escape_iterations, escape_time

# L = (x^2 - 1)^2 / 4: minima at -1 and 1 with L'' = 2, a saddle at 0 with L'' = -1, and a barrier of 1/4
WELL, SADDLE, BARRIER = 2.0, -1.0, 0.25


def slope(x):
    return x * (x * x - 1)


def passage(D, goal):
    """Return the exact mean first-passage time from -1 to `goal`: 1/D int e^(L/D) int e^(-L/D), by quadrature."""
    x = np.linspace(-3, goal, 200_001)
    loss = (x * x - 1) ** 2 / 4
    inner = np.cumsum(np.exp(-loss / D)) * (x[1] - x[0])
    there = x >= -1
    return float((np.exp(loss[there] / D) * inner[there]).sum() * (x[1] - x[0]) / D)


def simulate(D, *, rate, steps, walkers, goal, momentum=0.0, force=slope, dimensions=1):
    """Return mean and standard error of the iterations of SGD from -1 to `goal`; who arrives starts again."""
    rng = np.random.default_rng(0)
    x, u = np.zeros((dimensions, walkers)), np.zeros((dimensions, walkers))
    x[0] = -1
    spread, arrivals = math.sqrt(2 * D * (1 - momentum) / rate), 0  # of the gradient, so that D is what was asked
    for _ in range(steps):
        pull = force(x[0])[None] if dimensions == 1 else force(x)
        u = momentum * u + pull + spread * rng.standard_normal(x.shape)
        x = x - rate * u
        arrived = x[0] >= goal
        count = int(np.count_nonzero(arrived))
        if count:
            arrivals += count
            x[:, arrived], u[:, arrived] = 0, 0
            x[0, arrived] = -1
    mean = steps * walkers / arrivals
    return mean, mean / math.sqrt(arrivals)  # arrivals are those of a Poisson process


def test_the_formula_is_the_limit_of_the_exact_time_at_small_diffusion():
    excess = []
    for D in (0.05, 0.02, 0.01):
        tau = escape_time(WELL, SADDLE, BARRIER, diffusion=D)
        excess.append(passage(D, 1.0) / tau - 1)
        assert passage(D, 0.0) == pytest.approx(passage(D, 1.0) / 2, rel=0.1)  # to the saddle, half
    assert 0 < excess[2] < excess[1] < excess[0] < 0.12
    assert excess[1] / excess[2] == pytest.approx(2, rel=0.2)  # of first order in D


def test_the_double_well_has_the_formula_of_kramers():
    expected = 2 * math.pi / math.sqrt(2) * math.exp(5)
    assert escape_time(WELL, SADDLE, BARRIER, diffusion=0.05) == pytest.approx(expected)
    found = escape_iterations(WELL, SADDLE, BARRIER, diffusion=0.05, rate=0.02, momentum=0.5)
    assert found.time == pytest.approx(expected)
    assert found.iterations == pytest.approx(expected * 0.5 / 0.02)
    assert found.to_saddle == pytest.approx(found.iterations / 2)
    assert found.exponent == pytest.approx(5)


@pytest.mark.parametrize(("goal", "share"), [(1.0, 1.0), (0.0, 0.5)])
def test_sgd_escapes_after_the_predicted_iterations(goal, share):
    D, rate = 0.05, 0.02
    mean, error = simulate(D, rate=rate, steps=20_000, walkers=1000, goal=goal)
    # a walk in steps of sd sqrt(2 D rate) overshoots its goal by 0.5826 of it (Siegmund 1979); the steps themselves
    # change exponent and curvatures by 1.5 and 0.5 times the rate
    exact = passage(D, goal + 0.5826 * math.sqrt(2 * D * rate)) / rate
    assert abs(mean - exact) <= 4 * error + 2 * rate * exact
    predicted = share * escape_iterations(WELL, SADDLE, BARRIER, diffusion=D, rate=rate).iterations
    assert abs(mean - predicted) <= 4 * error + 0.09 * predicted  # known to run 3 to 9 % low


def test_momentum_escapes_as_much_sooner_as_predicted():
    D, rate, momentum = 0.05, 0.01, 0.5
    mean, error = simulate(D, rate=rate, steps=30_000, walkers=600, goal=1.0, momentum=momentum)
    predicted = escape_iterations(WELL, SADDLE, BARRIER, diffusion=D, rate=rate, momentum=momentum)
    # Kramers for any friction: (1 - m) / sqrt(rate) = 5 leaves 3.7 %, and D = 0.05 some 9 %
    assert predicted.iterations < mean + 4 * error
    assert mean < 1.15 * predicted.iterations + 4 * error


def test_a_second_direction_counts_by_its_curvature():
    # L = (x^2 - 1)^2 / 4 + (2 + 2 x^2) y^2 / 2: wider at the saddle, so left sooner, sqrt(2 / 4) of the time
    def force(point):
        x, y = point
        return np.stack([slope(x) + 2 * x * y * y, (2 + 2 * x * x) * y])

    D, rate = 0.05, 0.05
    mean, error = simulate(D, rate=rate, steps=12_000, walkers=600, goal=1.0, force=force, dimensions=2)
    predicted = escape_iterations(np.diag([2.0, 4.0]), np.diag([-1.0, 2.0]), BARRIER, diffusion=D, rate=rate)
    assert predicted.time == pytest.approx(escape_time(WELL, SADDLE, BARRIER, diffusion=D) / math.sqrt(2))
    assert mean == pytest.approx(predicted.iterations, rel=0.2, abs=4 * error)


def test_a_turned_landscape_has_the_same_times():
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
    low, high = np.diag([1.0, 2.0, 3.0]), np.diag([0.5, -2.0, 4.0])
    plain = escape_time(low, high, 1.0, diffusion=0.1)
    assert escape_time(turn @ low @ turn.T, turn @ high @ turn.T, 1.0, diffusion=0.1) == pytest.approx(plain)
    assert plain == pytest.approx(math.pi * math.sqrt(4 / 6) * math.exp(10))


def test_diffusion_is_that_of_the_definition_and_grows_with_momentum():
    assert diffusion(3.0, rate=0.1, batch_size=5) == pytest.approx(0.1 * 3 / 10)
    assert diffusion(3.0, rate=0.1, batch_size=5, momentum=0.9) == pytest.approx(0.3)


@pytest.mark.parametrize(("D", "gap"), [(0.02, 0.0), (0.01, 0.0), (0.02, 0.03), (0.02, -0.01)])
def test_the_odds_are_those_of_the_stationary_density(D, gap):
    x = np.linspace(-4, 4, 400_001)
    flat, sharp = (x - 1) ** 2 / 2 + gap, 9 * (x + 1) ** 2 / 2
    density = np.exp(-np.minimum(flat, sharp) / D)
    exact = density[flat < sharp].sum() / density[flat >= sharp].sum()
    assert basin_odds(1.0, 9.0, gap=gap, diffusion=D) == pytest.approx(exact, rel=1e-3)


def test_the_odds_at_equal_losses_do_not_depend_on_the_noise():
    assert basin_odds(np.diag([1.0, 2.0]), np.diag([9.0, 8.0])) == pytest.approx(6)
    assert basin_odds(1.0, 4.0, diffusion=0.1) == basin_odds(1.0, 4.0, diffusion=7.0) == pytest.approx(2)
    assert basin_odds(1.0, 4.0, gap=0.1, diffusion=0.1) == pytest.approx(2 / math.e)


def test_a_hessian_may_be_off_symmetry_by_rounding():
    near = np.array([[1.0, 5e-7], [0.0, 1.0]])
    assert basin_odds(near, np.eye(2)) == pytest.approx(1, rel=1e-6)


def test_a_time_beyond_all_floats_is_infinite():
    found = escape_iterations(WELL, SADDLE, 4e5, diffusion=1.0, rate=0.1)
    assert found.time == found.iterations == math.inf
    assert found.exponent == 4e5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: escape_time(-1.0, SADDLE, 1.0, diffusion=1.0), r"at a minimum has the eigenvalue -1\. Expected all"),
        (lambda: escape_time(0.0, SADDLE, 1.0, diffusion=1.0), r"at a minimum has the eigenvalue 0\. .* Leave that"),
        (lambda: escape_time(WELL, 1.0, 1.0, diffusion=1.0), r"has 0 negative and 0 zero eigenvalues\. Expected one"),
        (lambda: escape_time(np.eye(2), -np.eye(2), 1.0, diffusion=1.0), r"has 2 negative and 0 zero eigenvalues"),
        (lambda: escape_time(np.eye(2), np.diag([-1.0, 0]), 1.0, diffusion=1.0), r"has 1 negative and 1 zero"),
        (lambda: escape_time(np.eye(2), SADDLE, 1.0, diffusion=1.0), r"have 2 and 1 rows\. Expected those of one"),
        (lambda: escape_time(np.ones((2, 3)), SADDLE, 1.0, diffusion=1.0), r"has the shape \(2, 3\)\. Expected finite"),
        (lambda: escape_time(math.nan, SADDLE, 1.0, diffusion=1.0), r"Expected finite numbers"),
        (lambda: escape_time(np.diag([1.0, math.nan]), SADDLE, 1.0, diffusion=1.0), r"Expected finite numbers"),
        (lambda: diffusion(1.0, rate=1.0, batch_size=5, momentum=1.5), r"The momentum is 1\.5\."),
        (lambda: escape_time([[1.0, 2], [0, 1]], SADDLE, 1.0, diffusion=1.0), r"A Hessian is not symmetric"),
        (lambda: escape_time(WELL, SADDLE, 0.0, diffusion=1.0), r"The barrier is 0\.0\. Expected a number above 0"),
        (lambda: escape_time(WELL, SADDLE, 1.0, diffusion=0.0), r"The diffusion is 0\.0\. .* Mend `diffusion`"),
        (lambda: escape_iterations(WELL, SADDLE, 1.0, diffusion=1.0, rate=-1.0), r"The rate is -1\.0\."),
        (
            lambda: escape_iterations(WELL, SADDLE, 1.0, diffusion=1.0, rate=1.0, momentum=1.0),
            r"The momentum is 1\.0\.",
        ),
        (lambda: diffusion(1.0, rate=0.1, batch_size=0), r"The batch size is 0\. .* Mend `batch_size`"),
        (lambda: basin_odds(-1.0, 2.0), r"at a minimum has the eigenvalue -1\. Expected all"),
        (lambda: basin_odds(1.0, [[-2.0]]), r"at a minimum has the eigenvalue -2\. Expected all"),
        (lambda: basin_odds(1.0, 2.0, diffusion=-1.0), r"The diffusion is -1\.0\. .* Mend `diffusion`"),
        (lambda: escape_time([[1.0, 2e-6], [0, 1]], SADDLE, 1.0, diffusion=1.0), r"A Hessian is not symmetric"),
        (lambda: basin_odds(1.0, 2.0, gap=0.1), r"The losses differ by 0\.1\. .* Give `diffusion=`"),
    ],
)
def test_what_has_no_escape_time_is_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()
