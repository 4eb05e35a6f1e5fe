"""What overflows, vanishes or is not a number never looks like a result."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import ProblemError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.noise import Noise
from gapscope.measure.analyzers.trace import Trace
from gapscope.measure.operators import from_dense
from gapscope.measure.solvers.ascent import ascent
from gapscope.measure.solvers.hutchinson import estimate_trace
from gapscope.measure.solvers.lanczos import extreme_eigenpairs
from gapscope.results import Status
from tests.problems import bowl, measure, problem

ANALYZERS = [Eigenvalues(), Trace(), Noise(nonuniformity="no")]
GOOD = (Status.EXACT, Status.CONVERGED)
X = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
Y = torch.randint(3, (40,), generator=torch.Generator().manual_seed(2))


def rng():
    return torch.Generator().manual_seed(0)


def net(scale=1.0, first=None, dtype=torch.float32):
    state = torch.get_rng_state()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)
    torch.set_rng_state(state)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
        if first is not None:
            model[0].weight[0, 0] = first
    return model


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=lambda analyzer: analyzer.name)
@pytest.mark.parametrize("weights", [{"first": math.nan}, {"first": math.inf}, {"scale": 1e30}], ids=str)
def test_what_is_not_finite_is_no_result(analyzer, weights):
    found = measure(analyzer, problem(net(**weights), X, Y))
    assert found.status is Status.NONFINITE
    assert np.isnan(next(iter(found.quantities().values())).value)


@pytest.mark.parametrize("weight", [1e20, 1e30])
def test_a_single_huge_weight_is_named_as_what_hinders(weight):
    with pytest.raises(ProblemError, match=r"A weight is 1e\+[23]0 in size, .* Look whether the training diverged"):
        measure(Eigenvalues(), problem(net(first=weight), X, Y))


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20])
def test_of_weights_about_zero_the_bias_is_left(scale):
    # all outputs are 0: p = 1/3, and the last bias has the Hessian (I - 1/3) / 3, the largest block
    found = measure(Eigenvalues(), problem(net(scale), X, Y))
    assert found.status in GOOD
    assert abs(found.top.value - 1 / 3) <= found.top.numerical_error


@pytest.mark.parametrize("size", [1e-300, 1e-200, 1e-145])
def test_a_matrix_whose_squares_vanish_is_not_taken_for_known(size):
    operator = from_dense(size * torch.diag(torch.linspace(1, 9, 20, dtype=torch.float64)))
    assert extreme_eigenpairs(operator, 1, rng()).status is Status.NONFINITE
    assert estimate_trace(operator, rng()).status is Status.NONFINITE


@pytest.mark.parametrize("size", [1e-120, 1e-30, 1e30, 1e120])
def test_the_unit_of_the_loss_does_not_matter(size):
    operator = from_dense(size * torch.diag(torch.linspace(1, 9, 20, dtype=torch.float64)))
    found = extreme_eigenpairs(operator, 1, rng())
    assert found.status is Status.CONVERGED
    assert abs(found.values[0] - 9 * size) <= found.upper - found.values[0]


@pytest.mark.parametrize("value", [1.0, -1.0, 0.0])
def test_the_space_of_a_multiple_of_the_identity_closes_at_once(value):
    ones = torch.ones(20, dtype=torch.float64)
    found = measure(Eigenvalues(), bowl(value * ones, ones))
    assert found.matvecs <= 3
    assert found.status in (*GOOD, Status.BREAKDOWN)
    assert abs(found.top.value - value) <= found.top.numerical_error
    assert abs(found.bottom.value - value) <= found.bottom.numerical_error


def test_a_negative_definite_hessian_has_a_negative_top():
    curvature, ones = -torch.linspace(1, 9, 20, dtype=torch.float64), torch.ones(20, dtype=torch.float64)
    found = measure(Eigenvalues(), bowl(curvature, ones))
    assert abs(found.top.value + 1) <= found.top.numerical_error
    assert abs(found.bottom.value + 9) <= found.bottom.numerical_error


def test_one_parameter_and_one_sample_are_enough():
    found = measure(Eigenvalues(), problem(nn.Linear(1, 1, bias=False), X[:1, :1].clone(), X[:1, 1:2].clone(), "mse"))
    assert abs(found.top.value - 2 * float(X[0, 0]) ** 2) <= found.top.numerical_error
    assert found.top.sampling_error is None


def test_ten_million_parameters_are_measured_as_six_are():
    """A linear layer of 3,163 x 3,163 weights: H is 2/N X'X / 3163 for each row of them."""
    width, samples = 3163, 8
    x, y = (torch.randn(samples, width, generator=rng()) for _ in range(2))
    x *= 0.6 ** torch.arange(samples)[:, None]  # eigenvalues far apart: few products
    layer = nn.Linear(width, width, bias=False)
    torch.nn.init.zeros_(layer.weight)
    given = problem(layer, x, y, "mse")
    assert given.size > 1e7
    values = np.linalg.eigvalsh(2 / samples / width * (x.double() @ x.double().T).numpy())
    found = measure(Eigenvalues(), given)
    assert found.status in GOOD
    assert abs(found.top.value - values[-1]) <= 3 * found.top.numerical_error <= 0.01 * values[-1]


def test_at_a_loss_of_zero_the_curvature_stays():
    model = net()
    found = measure(Noise(nonuniformity="no"), problem(model, X, model(X).detach(), "mse"))
    assert found.covariance_trace.value == 0
    assert np.isnan(found.noise_scale.value)  # 0 / 0
    assert [note for note in found.notes if note.startswith("no noise scale: the mean gradient is exactly 0")]
    assert measure(Eigenvalues(), problem(model, X, model(X).detach(), "mse")).top.value > 0.1


@pytest.mark.parametrize("seed", range(20))
def test_ascent_never_ends_below_what_it_looked_at(seed):
    draw = torch.Generator().manual_seed(seed)
    h, g = (torch.randn(12, generator=draw, dtype=torch.float64) for _ in range(2))
    seen = []

    def objective(y):
        seen.append(float(g @ y + (h * y.square()).sum() / 2))
        return seen[-1], g + h * y

    radius = torch.rand(12, generator=draw, dtype=torch.float64)
    found = ascent(objective, radius, 0.0, [g])
    assert found.value == max(seen)
    assert (found.point.abs() <= radius).all()
