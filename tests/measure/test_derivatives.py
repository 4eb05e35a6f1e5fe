import numpy as np
import pytest
import torch
from torch import nn
from torch.autograd import Function

import gapscope
from gapscope.errors import ProblemError
from gapscope.measure import products
from gapscope.measure.differences import Differences
from gapscope.measure.loading import Loss
from tests.awkward import By, Cube, OnceCube, Rounded, SilentCube
from tests.problems import ZOO, dense_hessian, measure, problem, train

DTYPES = [torch.float32, torch.float64]


class Through(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.inner, self.head = function, nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.function.apply(self.inner(x)))


class Mixing(Function):
    """Sum of squares of each row, but the backward of its backward mixes the coordinates."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum(1)

    @staticmethod
    def backward(ctx, slope):
        (x,) = ctx.saved_tensors
        return 2 * x * slope[:, None] + (x.roll(1, 1) - x.detach().roll(1, 1))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 5)

    def forward(self, x):
        return Mixing.apply(self.inner(x))


FIRST = Loss("first", lambda outputs, targets: outputs)


def through(function, dtype=torch.float32, samples=40, **more):
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, 4, generator=rng), torch.randint(3, (samples,), generator=rng)
    torch.manual_seed(0)
    return problem(Through(function).to(dtype), x, y, **more)


def mixed(dtype=torch.float32, **more):
    torch.manual_seed(0)
    return problem(Mixed().to(dtype), torch.randn(20, 4), torch.zeros(20), FIRST, **more)


# --- exact where it can be


@pytest.mark.parametrize("name", ZOO)
def test_honest_models_are_differentiated_twice(name):
    given = ZOO[name].problem(0, torch.float32)
    found = given.derivatives
    assert (found.method, found.relative_error, found.note) == ("exact", 0.0, "")
    assert 0 < found.error <= 100 * torch.finfo(torch.float32).eps * np.linalg.norm(dense_hessian(given), 2)
    assert ZOO[name].problem(0, torch.float64).derivatives.error == 0
    assert found.ways is products


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("function", "fault"),
    [
        (OnceCube, r"is not symmetric: u'Hv = |cannot be differentiated again: .*once_differentiable"),
        (SilentCube, r"differs from a central difference of the gradient by .* \(its norm is "),
    ],
)
def test_a_function_without_its_second_derivative_is_named_and_taken_by_differences(function, fault, dtype):
    given, true = through(function, dtype).derivatives, through(Cube, torch.float64)
    assert given.method == "differences"
    assert isinstance(given.ways, Differences)
    assert given.dtype == torch.float64
    note = given.note
    assert "second derivatives by central differences of the gradient in float64, step" in note
    assert f"custom autograd Function `tests.awkward.{function.__name__}` in the model itself (Through)" in note
    with pytest.raises(ProblemError, match=fault) as refusal:
        _ = through(function, dtype, hvp_method="exact").derivatives
    assert "Expected a second derivative for `--hvp exact`" in str(refusal.value)
    v = torch.randn(true.size, dtype=torch.float64)
    found = through(function, torch.float64).hessian().matvec(v)
    assert (found - true.hessian().matvec(v)).norm() <= 1e-7 * found.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_asymmetric_second_derivative_is_found(dtype):
    given = mixed(dtype)
    assert given.derivatives.method == "differences"
    assert "second derivative is not symmetric: u'Hv = " in given.derivatives.note
    with pytest.raises(ProblemError, match=r"is not symmetric: u'Hv = "):
        _ = mixed(dtype, hvp_method="exact").derivatives


def test_a_curvature_that_autograd_loses_is_found():
    class Root(nn.Linear):
        def forward(self, x):
            return (0.0 * super().forward(x)).abs().pow(1.5)  # L is constant; autograd says 0 times infinity

    given = problem(Root(4, 3), torch.randn(20, 4), torch.zeros(20).long())
    assert given.derivatives.method == "differences"
    assert given.derivatives.error == 0
    assert not given.hessian().matvec(torch.ones(given.size)).any()


# --- differences as asked for


@pytest.mark.parametrize("name", ["tanh mlp", "relu mlp", "conv batchnorm", "lstm"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_differences_and_their_stated_error_hold_against_the_dense_hessian(name, dtype):
    given = ZOO[name].problem(0, dtype, hvp_method="differences", batch_size=16)
    true, how = dense_hessian(given), given.derivatives
    assert how.method == "differences"
    assert "As asked for." in how.note
    rng = np.random.default_rng(0)
    rounding = 20 * torch.finfo(dtype).eps * np.linalg.norm(true, 2)
    for v in (*rng.standard_normal((5, given.size)), np.linalg.eigh(true)[1][:, -1]):
        unit = torch.from_numpy(v / np.linalg.norm(v))
        found = given.hessian().matvec(unit.to(dtype)).double().numpy()
        assert np.linalg.norm(found - true @ unit.numpy()) <= 3 * how.error + rounding
    assert how.relative_error < 1e-6


def test_every_product_of_a_problem_is_by_differences_then():
    exact = ZOO["tanh mlp"].problem(batch_size=16)
    given = ZOO["tanh mlp"].problem(hvp_method="differences", batch_size=16)
    v = torch.randn(given.size, dtype=torch.float64)

    def close(a, b, tolerance=1e-6):
        return np.linalg.norm(np.asarray(a) - np.asarray(b)) <= tolerance * np.linalg.norm(np.asarray(b))

    for build in ("hessian", "gauss_newton", "residual"):
        assert close(getattr(given, build)().matvec(v), getattr(exact, build)().matvec(v))
    blocks, true = given.hessian_blocks(), exact.hessian_blocks()
    assert close(blocks.apart().matvec(v), true.apart().matvec(v))
    for layer, where in given.parameters.blocks().items():
        assert close(blocks.layer(layer).matvec(v[where]), true.layer(layer).matvec(v[where]))
    assert close(given.hvp(v, 2 * given.theta), exact.hvp(v, 2 * exact.theta))
    assert close(given.slopes_along(v), exact.slopes_along(v))
    for a, b in zip(given.curvature_along(v), exact.curvature_along(v), strict=True):
        assert close(a, b, 1e-4)
    for a, b in zip(given.curvature_squares(v), exact.curvature_squares(v), strict=True):
        assert close(a, b)
    with pytest.raises(ProblemError, match=r"Expected exact ones for the exact Gauss-Newton diagonal"):
        given.gauss_newton_diagonal()


def test_the_error_of_products_is_in_that_of_the_eigenvalues_and_of_the_trace():
    given = through(SilentCube)
    wider = through(SilentCube)
    _ = wider.derivatives
    wider.__dict__["derivatives"] = type(wider.derivatives)("differences", 0.25, 0.1, wider.derivatives.step)
    for analyzer, quantity, expected in (
        (gapscope.Eigenvalues(), "top", 0.25),
        (gapscope.Eigenvalues(), "values", 0.25),
        (gapscope.Eigenvalues(), "bottom", 0.25),
    ):
        small, large = (measure(analyzer, one).quantities()[quantity].numerical_error for one in (given, wider))
        assert large - small == pytest.approx(expected, rel=1e-4)
    trace = measure(gapscope.Trace(), wider).quantities()["trace"]
    assert trace.numerical_error >= 0.25 * given.size**0.5


# --- what is refused


def test_a_gradient_that_is_not_the_derivative_of_the_loss_is_refused():
    for method in ("auto", "exact", "differences"):
        with pytest.raises(ProblemError, match=r"The gradient is not the derivative of the loss: it differs by"):
            _ = through(Rounded, hvp_method=method).derivatives


class Landscape(nn.Module):
    def __init__(self, height, start):
        super().__init__()
        self.height, self.point = height, nn.Parameter(torch.tensor(start, dtype=torch.float64))

    def forward(self, x):
        return self.height(self.point).expand(len(x))


def landscape(height, start):
    here = torch.zeros(4, 1, dtype=torch.float64)
    return problem(Landscape(height, start), here, here[:, 0], FIRST, hvp_method="differences")


def test_a_gradient_that_is_that_of_no_function_is_refused():
    # (a, b) -> 5 a + b (a - 1): its slope by b is hidden, and 0 here
    with pytest.raises(ProblemError, match=r"The gradient is that of no function: its differences are not symmetric"):
        _ = landscape(lambda p: 5 * p[0] + p[1].detach() * (p[0] - 1), [1.0, 1.0]).derivatives


def test_differences_that_do_not_settle_are_refused():
    # a slope of 1 with waves far shorter than any step, and too low to be seen in the loss
    with pytest.raises(ProblemError, match=r"Central differences with two steps disagree by .* %. Expected 10 %"):
        _ = landscape(lambda p: p.sum() + 1e-15 * torch.sin(1e12 * p).sum(), [0.3, 0.4, 0.9]).derivatives


def test_a_model_that_rounds_inside_is_not_refused_near_its_minimum():
    class Rounding(nn.Linear):
        def forward(self, x):
            return (super().forward(x) + 1e3).float().to(x.dtype) - 1e3  # to 6e-5, where the gradient is 1e-3

    torch.manual_seed(0)
    given = train(problem(Rounding(4, 3), torch.randn(60, 4), torch.randint(3, (60,))), 100, 0.05)
    assert given.gradient().norm() < 1e-3 * given.loss()
    assert given.derivatives.relative_error < 0.1


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_that_is_float32_inside_is_measured_by_differences_of_float32(dtype):
    class Narrow(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            mixed = self.inner(x) @ torch.eye(5, dtype=torch.float32)  # no float64 here
            return self.head(SilentCube.apply(mixed))

    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 4, generator=rng), torch.randint(3, (40,), generator=rng)
    given = problem(Narrow().to(dtype), x, y)
    if dtype == torch.float64:
        with pytest.raises(RuntimeError, match=r"dtype"):
            _ = given.derivatives
        return
    assert given.derivatives.dtype == torch.float32
    assert 1e-6 < given.derivatives.relative_error < 0.05


class Wasteful(nn.Module):
    """Asks for more memory than there is, in float64 alone, at the first call or at that of the second derivative."""

    def __init__(self, calls):
        super().__init__()
        self.inner, self.calls = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), calls

    def forward(self, x):
        if self.inner[0].weight.dtype == torch.float64:
            self.calls -= 1
            if self.calls < 0:
                x.new_empty(10**15)
        return self.inner(x)


@pytest.mark.parametrize("calls", [0, 1])
def test_a_model_whose_float64_copy_does_not_fit_is_checked_in_float32(calls):
    torch.manual_seed(0)
    model, data = Wasteful(calls), (torch.randn(40, 4), torch.randint(3, (40,)))
    found = gapscope.measure(gapscope.problem(model, data), [gapscope.Eigenvalues()]).results["eigenvalues"]
    true = gapscope.measure(gapscope.problem(model.inner, data), [gapscope.Eigenvalues()]).results["eigenvalues"]
    assert found.status == true.status
    assert found.quantities["top"].value == pytest.approx(true.quantities["top"].value, rel=1e-5)
    assert any("checked in float32 alone" in note for note in found.notes)
    assert not any("checked in float32 alone" in note for note in true.notes)


def test_a_float64_model_that_does_not_fit_says_so():
    data = (torch.randn(40, 4).double(), torch.randint(3, (40,)))
    model = Wasteful(100).double()
    given = gapscope.problem(model, data)
    model.calls = 0
    with pytest.raises(RuntimeError, match="allocate memory"):
        _ = given.derivatives


@pytest.mark.parametrize("seed", range(6))
def test_differences_of_kinked_networks_give_the_top_eigenvalue_within_its_error(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))
    data = (torch.randn(200, 8), torch.randint(3, (200,)))
    exact, kinked = (gapscope.problem(model, data, hvp=way) for way in ("exact", "differences"))
    truth, found = (gapscope.measure(one, [gapscope.Eigenvalues()]).results["eigenvalues"] for one in (exact, kinked))
    top, known = found.quantities["top"], truth.quantities["top"]
    assert found.status.name == "CONVERGED"
    assert abs(top.value - known.value) <= 3 * (top.numerical_error + known.numerical_error)
    assert top.numerical_error < 0.01 * top.value


def test_products_less_certain_than_the_tolerance_are_not_converged():
    """A float32 constant inside keeps the model from float64, where differences would be accurate."""
    torch.manual_seed(0)
    constant = torch.randn(6, 6)
    between = By(lambda _, x: torch.tanh(x.float() @ constant).to(x.dtype))
    model = nn.Sequential(nn.Linear(5, 6), between, nn.Linear(6, 3))
    data = (torch.randn(60, 5), torch.arange(60) % 3)
    rough = gapscope.measure(gapscope.problem(model, data, hvp="differences"), [gapscope.Eigenvalues(tolerance=1e-7)])
    exact = gapscope.measure(gapscope.problem(model, data), [gapscope.Eigenvalues()])
    found, known = (report.results["eigenvalues"] for report in (rough, exact))
    assert found.status.name == "BUDGET_SPENT"
    assert any("rounding allows no smaller residual" in note for note in found.notes)
    assert found.quantities["top"].value == pytest.approx(
        float(known.quantities["top"].value), abs=3 * float(found.quantities["top"].numerical_error)
    )
