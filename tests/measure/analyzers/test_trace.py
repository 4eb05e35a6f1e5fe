import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.measure.analyzers.trace import Trace
from gapscope.measure.loading import Loss
from gapscope.results import Status
from tests.problems import ZOO, bowl, data, dense_hessian, least_squares, measure, problem, softmax_regression

DTYPES = [torch.float32, torch.float64]


def truthful(given, dense, errors=4, **options):
    """Measure, and hold the result against its own stated errors."""
    result = measure(Trace(**options), given)
    for quantity, true in (
        (result.trace, np.trace(dense)),
        (result.frobenius, np.linalg.norm(dense)),
        (result.blocks_trace, [np.trace(dense[where, where]) for where in given.parameters.blocks().values()]),
    ):
        assert (np.abs(quantity.value - true) <= errors * quantity.numerical_error).all()
    assert result.blocks_trace.value.sum() == pytest.approx(float(result.trace.value), rel=1e-4, abs=1e-12)
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("closed", [least_squares, softmax_regression])
def test_a_closed_form_is_measured_within_its_errors(closed, dtype):
    given = closed(dtype=dtype)
    truthful(given.problem, given.hessian)


@pytest.mark.parametrize("tolerance", [0.2, 0.02])
@pytest.mark.parametrize("kind", ZOO)
def test_every_model_is_measured_within_its_errors(kind, tolerance):
    given = ZOO[kind].problem()
    result = truthful(given, dense_hessian(given), errors=5, tolerance=tolerance)
    assert result.blocks_trace.labels["layer"] == tuple(given.parameters.blocks())
    if result.status is Status.CONVERGED:
        scale = max(abs(float(result.trace.value)), float(result.frobenius.value))
        assert result.trace.numerical_error <= 1.01 * tolerance * scale


def test_few_parameters_are_exact_with_the_sampling_error_of_the_formula():
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = problem(nn.Linear(3, 1, bias=False).double(), x, torch.zeros(100), "mse")
    result = measure(Trace(), given)
    traces = 2 * x.square().sum(1).numpy()  # tr(H_i) = 2 |x_i|^2
    assert result.status is Status.EXACT
    assert result.matvecs == 3
    assert result.trace.value == pytest.approx(traces.mean())
    assert result.trace.sampling_error == pytest.approx(traces.std(ddof=1) / 10)
    assert result.trace.chunks == pytest.approx(given.chunk_means(traces))


def test_the_sampling_error_is_the_spread_over_the_data_without_that_of_the_probes():
    x = torch.randn(400, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    given = problem(nn.Linear(30, 1, bias=False).double(), x, torch.zeros(400), "mse")
    true = float((2 * x.square().sum(1)).std()) / 20
    stated = [float(measure(Trace(tolerance=0.2), given, seed=seed).trace.sampling_error) for seed in range(30)]
    assert np.mean(stated) == pytest.approx(true, rel=0.15)  # the probes' own variance would double it
    result = measure(Trace(tolerance=0.2), given)
    weights = np.bincount(given.chunk_of.numpy()) / 400
    assert weights @ result.trace.chunks == pytest.approx(float(result.trace.value))


def test_gauss_newton_is_measured_and_named():
    given = softmax_regression()
    result = truthful(given.problem, given.hessian, gauss_newton=True)
    assert result.trace.sampling_error > 0
    assert "operator: Gauss-Newton, not the Hessian" in result.notes
    many = problem(nn.Linear(3, 130).double(), torch.randn(9, 3).double(), torch.zeros(9, 130).double(), "mse")
    other = measure(Trace(gauss_newton=True), many)
    assert other.trace.sampling_error is None
    assert "operator: Gauss-Newton, not the Hessian; no sampling error is measured for it" in other.notes


def test_a_piecewise_linear_network_needs_ten_products_and_a_smooth_one_more_and_says_why():
    straight, smooth = (measure(Trace(tolerance=0.02), ZOO[kind].problem()) for kind in ("relu mlp", "tanh mlp"))
    assert straight.matvecs == 10 < smooth.matvecs
    assert "random gradients of every piece" in straight.notes[0]
    assert "the network is piecewise linear in every parameter: the trace is that of Gauss-Newton" in straight.notes


@pytest.mark.parametrize(("kind", "products"), [("relu mlp", 0), ("tanh mlp", 10)])
def test_without_the_frobenius_norm_a_piecewise_linear_network_needs_no_product(kind, products):
    given = ZOO[kind].problem()
    result, both = (measure(Trace(frobenius=asked), given) for asked in (False, True))
    assert result.frobenius is None
    assert result.matvecs >= products
    assert (result.matvecs == 0) == (products == 0)
    assert abs(result.trace.value - np.trace(dense_hessian(given))) <= 5 * result.trace.numerical_error
    assert result.trace.numerical_error <= 0.05 * max(result.trace.value, both.frobenius.value)
    assert result.trace.sampling_error > 0


def test_a_loss_that_is_not_convex_in_the_outputs_is_probed():
    bumpy = Loss("bumpy", lambda outputs, _: outputs.cos().sum(1))
    given = problem(nn.Linear(6, 3).double(), torch.randn(40, 6).double(), torch.zeros(40), bumpy)
    result = truthful(given, dense_hessian(given), errors=5)
    assert "Hutch" in result.notes[0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 5, 40])
def test_a_zero_hessian(size, dtype):
    result = truthful(bowl(torch.zeros(size), torch.ones(size, dtype=dtype)), np.zeros((size, size)))
    assert result.status is (Status.CONVERGED if size == 40 else Status.EXACT)
    assert result.trace.numerical_error == result.trace.sampling_error == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 30])
def test_a_negative_trace(size, dtype):
    h = -torch.linspace(0.5, 9.0, size, dtype=torch.float64)
    result = truthful(bowl(h, torch.ones(size, dtype=dtype)), np.diag(h.numpy()))
    assert result.trace.value < 0
    assert result.status in (Status.CONVERGED, Status.EXACT)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_linear_in_theta(dtype):
    linear = Loss("linear", lambda outputs, targets: outputs.squeeze(1))
    given = problem(nn.Linear(20, 1).to(dtype), torch.randn(10, 20), torch.zeros(10), linear)
    assert truthful(given, np.zeros((21, 21))).trace.value == 0


@pytest.mark.parametrize("samples", [1, 2, 63, 64])
def test_few_samples(samples):
    given = ZOO["relu mlp"].problem(samples=samples)
    result = truthful(given, dense_hessian(given), errors=5)
    assert (result.trace.sampling_error is None) == (samples == 1)
    assert (result.trace.chunks is None) == (samples < 64)


def test_a_spent_budget_says_so():
    given = ZOO["tanh mlp"].problem()
    result = truthful(given, dense_hessian(given), errors=5, tolerance=1e-3, max_matvecs=12)
    assert result.status is Status.BUDGET_SPENT
    assert result.matvecs == 12
    assert result.notes[:2] == (
        "method: Hutchinson, 12 sign probes",
        "not converged: the products ran out; raise `--max-matvecs`; the error stated still holds",
    )


def test_the_method_and_subsets_are_noted():
    given = ZOO["tanh mlp"].problem()
    few = type(given)(
        model=given.model, data=data(given.data.inputs, given.data.targets, 999), loss_function=given.loss_function
    )
    result = measure(Trace(tolerance=0.01), few)
    assert "measured on 50 of 999 samples" in result.notes
    assert "Hutch" in result.notes[0]


def test_a_loss_that_overflows_is_nonfinite():
    result = measure(Trace(), problem(nn.Linear(30, 1), torch.full((4, 30), 1e30), torch.zeros(4), "mse"))
    assert result.status is Status.NONFINITE
    assert np.isnan(result.trace.value)
    assert result.trace.numerical_error is result.trace.sampling_error is result.trace.chunks is None
    assert result.blocks_trace.value.shape == (2,)  # weight and bias


def test_the_seed_decides():
    given = ZOO["tanh mlp"].problem()
    one, same, other = (float(measure(Trace(), given, seed=seed).trace.value) for seed in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("bad", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"max_matvecs": 9}])
def test_nonsense_is_refused(bad):
    with pytest.raises(UsageError, match=r"trace got tolerance=.*, max_matvecs=.*Expected 0 < tolerance < 1"):
        measure(Trace(**bad), least_squares().problem)


def test_cost_and_memory_are_those_of_the_way_it_takes():
    straight, smooth = ZOO["relu mlp"].problem(), ZOO["tanh mlp"].problem()
    assert Trace().passes(straight) == {"product": 10, "gradient": 10}
    assert Trace().passes(smooth) == {"product": 46, "curvature_along": 4}
    assert Trace(max_matvecs=20).passes(smooth) == {"product": 16, "curvature_along": 4}
    vector = smooth.size * smooth.theta.element_size()
    assert Trace().memory(smooth) >= 80 * vector  # directions deflated
