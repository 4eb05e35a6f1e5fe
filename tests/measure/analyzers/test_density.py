import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from torch import nn

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.analyzers.density import Density
from gapscope.results import Status
from tests.problems import ZOO, bowl, data, dense_hessian, least_squares, measure, problem, softmax_regression

DTYPES = [torch.float32, torch.float64]


def grid_of(result):
    return np.array([float(label) for label in result.density.labels["grid"]])


def integral(result, power=0):
    return trapezoid(result.density.value * grid_of(result) ** power, grid_of(result))


@pytest.mark.parametrize("kind", ZOO)
def test_masses_and_moments_are_those_of_the_dense_hessian(kind):
    given = ZOO[kind].problem()
    dense = dense_hessian(given)
    true = np.linalg.eigvalsh(dense)
    result = measure(Density(probes=40, tolerance=1e-9), given)
    cut, width = float(result.cut.value), float(result.width.value)
    # five standard errors, and one eigenvalue that may lie on the other side of the cut
    room = 1 / len(true) + 1e-3
    near, below = (np.abs(true) <= cut).mean(), (true < -cut).mean()
    assert abs(result.mass_near_zero.value - near) <= 5 * result.mass_near_zero.numerical_error + room
    assert abs(result.mass_below_zero.value - below) <= 5 * result.mass_below_zero.numerical_error + room
    assert integral(result) == pytest.approx(1, abs=1e-3)
    # one probe's first moment has the variance 2 |H|_F^2 / n^2 at most
    n, frobenius = len(true), np.linalg.norm(dense)
    assert abs(integral(result, 1) - np.trace(dense) / n) <= 5 * np.sqrt(2 / 40) * frobenius / n + 1e-3 * width
    fourth = np.sqrt(2 / 40 * (true**4).sum()) / n
    assert abs(integral(result, 2) - width**2 - (true**2).mean()) <= 5 * fourth + 1e-3 * (true**2).mean()
    assert true[0] - 1e-9 <= result.smallest.value
    assert result.largest.value <= true[-1] + 1e-9
    assert result.largest.value == pytest.approx(true[-1], rel=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_prescribed_spectrum_in_four_points(dtype):
    h = torch.tensor([-1.0] * 20 + [0.0] * 50 + [1.0] * 20 + [2.0] * 10)
    result = measure(Density(probes=50, tolerance=1e-9), bowl(h, torch.ones(100, dtype=dtype)))
    assert 0 < abs(result.mass_near_zero.value - 0.5) <= 5 * result.mass_near_zero.numerical_error
    assert 0 < abs(result.mass_below_zero.value - 0.2) <= 5 * result.mass_below_zero.numerical_error
    assert result.cut.value == pytest.approx(0.02)
    assert result.width.value == pytest.approx(0.03)
    peak = np.abs(grid_of(result) - 2).argmin()
    assert result.density.value[peak] == pytest.approx(0.1 / (0.03 * np.sqrt(2 * np.pi)), rel=0.1)


def test_the_status_tells_whether_the_masses_are_known():
    h = torch.linspace(-1, 3, 200)
    result = measure(Density(probes=4, tolerance=1e-4), bowl(h, torch.ones(200)))
    assert result.status is Status.BUDGET_SPENT
    assert "not converged: the masses are not that well known; raise `--" in result.notes[0]
    error = max(result.mass_near_zero.numerical_error, result.mass_below_zero.numerical_error)
    enough = measure(Density(probes=4, tolerance=1.01 * float(error)), bowl(h, torch.ones(200)))
    assert enough.status is Status.CONVERGED
    assert enough.notes == ()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 50])
def test_a_zero_hessian_is_all_near_zero(size, dtype):
    result = measure(Density(), bowl(torch.zeros(size), torch.ones(size, dtype=dtype)))
    assert result.status is Status.CONVERGED
    assert result.mass_near_zero.value == 1
    assert result.mass_below_zero.value == 0
    assert integral(result) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("value", [-3.0, 1e-20, 1e15])
def test_one_parameter(value):
    result = measure(Density(), bowl(torch.tensor([value]), torch.zeros(1, dtype=torch.float64)))
    assert result.largest.value == result.smallest.value == pytest.approx(value)
    assert result.mass_near_zero.value == 0
    assert result.mass_below_zero.value == (value < 0)
    assert len(set(result.density.labels["grid"])) == 201
    assert integral(result) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_scales_at_which_squares_leave_float32(scale, dtype):
    h = torch.linspace(0.1, 1.0, 30, dtype=torch.float64) * scale
    result = measure(Density(), bowl(h, torch.zeros(30, dtype=dtype)))
    assert result.largest.value == pytest.approx(scale)
    assert integral(result) == pytest.approx(1, abs=1e-3)


def test_gauss_newton_has_nothing_below_zero():
    given = ZOO["tanh mlp"].problem()
    result = measure(Density(gauss_newton=True, cut=1e-6), given)
    assert result.mass_below_zero.value == 0
    assert result.notes[-1] == "operator: Gauss-Newton, not the Hessian"
    assert measure(Density(cut=1e-6), given).mass_below_zero.value > 0


def test_probes_that_agree_are_few_and_their_error_is_the_wider():
    h = torch.linspace(0.5, 1.0, 60)  # no mass near or below zero, whatever the probe
    assert measure(Density(), bowl(h, torch.ones(60))).matvecs == 4 * 20
    given = ZOO["tanh mlp"].problem()
    result = measure(Density(tolerance=0.9), given)
    assert result.matvecs == 4 * 20
    more = measure(Density(tolerance=1e-9), given)
    assert more.matvecs == 9 * 20
    assert "standard error over 3 probes" in result.mass_near_zero.doc
    assert abs(result.mass_near_zero.value - more.mass_near_zero.value) <= 3 * result.mass_near_zero.numerical_error


def test_products_are_counted_and_subsets_noted():
    given = softmax_regression().problem
    few = type(given)(
        model=given.model, data=data(given.data.inputs, given.data.targets, 999), loss_function=given.loss_function
    )
    result = measure(Density(probes=3, steps=4), few)
    assert result.matvecs == 16
    assert "measured on 70 of 999 samples" in result.notes


def test_a_loss_that_overflows_is_nonfinite():
    result = measure(Density(), problem(nn.Linear(3, 1), torch.full((4, 3), 1e30), torch.zeros(4), "mse"))
    assert result.status is Status.NONFINITE
    assert np.isnan(result.mass_near_zero.value)
    assert np.isnan(result.density.value).all()


def test_too_little_memory_is_refused():
    with pytest.raises(ProblemError, match=r"Two Krylov bases of 20 vectors of 200 entries"):
        measure(Density(), bowl(torch.ones(200), torch.ones(200), memory_budget=1000))


def test_the_seed_decides():
    given = ZOO["tanh mlp"].problem()
    one, same, other = (measure(Density(), given, seed=seed).density.value for seed in (1, 1, 2))
    assert (one == same).all()
    assert not (one == other).all()


@pytest.mark.parametrize(
    "bad", [{"probes": 1}, {"steps": 2}, {"cut": 0.0}, {"cut": 1.0}, {"tolerance": 0.0}, {"tolerance": 1.0}]
)
def test_nonsense_is_refused(bad):
    with pytest.raises(UsageError, match=f"density got .*{next(iter(bad))}=.*Expected probes >= 2"):
        measure(Density(**bad), least_squares().problem)


@pytest.mark.parametrize("bad", [{"broadening": 0.0}, {"broadening": 1.5}, {"points": 50}])
def test_a_grid_that_steps_over_its_peaks_is_refused(bad):
    with pytest.raises(UsageError, match=r"the grid must not step over a Gaussian"):
        measure(Density(**bad), least_squares().problem)


def test_cost_and_memory_follow_probes_and_steps():
    given = bowl(torch.ones(200), torch.ones(200))
    assert [Density(probes=probes).passes(given) for probes in (2, 8, 50)] == [
        {"product": 60},
        {"product": 80},
        {"product": 80},
    ]
    assert Density(steps=60).memory(given) - Density(steps=20).memory(given) == 80 * 200 * given.theta.element_size()
