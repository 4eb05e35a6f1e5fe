import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import GapscopeError, ProblemError, UsageError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.loading import Loss
from gapscope.measure.solvers.lanczos import extreme_eigenpairs
from gapscope.results import Status
from tests.problems import ZOO, bowl, context, data, dense_hessian, least_squares, measure, problem, softmax_regression

DTYPES = [torch.float32, torch.float64]


@pytest.mark.parametrize("closed", [least_squares, softmax_regression])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_eigenvalues_of_a_closed_form_lie_within_their_errors(closed, dtype):
    given = closed(dtype=dtype)
    true = np.linalg.eigvalsh(given.hessian)
    result = measure(Eigenvalues(k=3), given.problem)
    assert abs(result.top.value - true[-1]) <= result.top.numerical_error
    assert abs(result.bottom.value - true[0]) <= result.bottom.numerical_error
    assert (np.abs(result.values.value - true[:-4:-1]) <= result.values.numerical_error).all()


def test_gradient_norm_and_negative_ratio_are_those_of_the_formula():
    h, c = torch.tensor([4.0, 1.0, -2.0], dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    result = measure(Eigenvalues(), bowl(h, c, theta=c + 0.5))
    assert result.gradient_norm.value == pytest.approx(float((0.5 * h).norm()))
    assert result.negative_ratio.value == pytest.approx(0.5)


def test_the_sampling_error_is_the_standard_error_of_the_per_sample_curvature():
    given = ZOO["tanh mlp"].problem(samples=100)
    result = measure(Eigenvalues(), given)
    pairs = extreme_eigenpairs(given.hessian(), 1, context(train=given).generator("eigenvalues"))
    _, along = given.curvature_along(pairs.vectors[0])
    assert along.mean() == pytest.approx(float(result.top.value), rel=1e-9)
    assert result.top.sampling_error == pytest.approx(along.std(ddof=1) / 10)
    assert result.top_ten_share.value == pytest.approx(100 * np.sort(along)[-10:].sum() / along.sum())
    assert result.effective_samples.value == pytest.approx(np.abs(along).sum() ** 2 / (along**2).sum())
    assert result.top.chunks == pytest.approx(given.chunk_means(along))


def test_the_sampling_error_is_the_spread_over_fresh_data():
    # mse through a linear model: H = 2 mean(x^2) for one parameter, so lambda is a mean over samples
    tops, errors = [], []
    for seed in range(200):
        x = torch.randn(100, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        result = measure(Eigenvalues(), problem(nn.Linear(1, 1, bias=False).double(), x, torch.zeros(100), "mse"))
        tops.append(float(result.top.value))
        errors.append(float(result.top.sampling_error))
    spread = np.std(tops, ddof=1)
    assert np.mean(errors) == pytest.approx(spread, rel=5 / np.sqrt(2 * 199))  # five standard errors of a deviation


def test_gauss_newton_is_measured_without_a_sampling_error():
    given = softmax_regression()
    result = measure(Eigenvalues(gauss_newton=True), given.problem)
    assert abs(result.top.value - np.linalg.eigvalsh(given.hessian)[-1]) <= result.top.numerical_error
    assert result.top.sampling_error is None
    assert result.top.chunks is None
    assert "Gauss-Newton" in result.notes[0]


# --- the edge of stability


def test_stability_is_rate_times_curvature_over_its_limit():
    training = {"optimizer": "SGD", "lr": 0.1, "momentum": 0.9, "weight_decay": 1e-2}
    result = measure(Eigenvalues(), least_squares().problem, training=training)
    assert result.stability.value == pytest.approx(0.1 * (float(result.top.value) + 1e-2) / 3.8)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optimizer": "adam", "lr": 0.1},
        {"optimizer": "sgd", "lr": "fast"},
        {"optimizer": "sgd"},
        {"optimizer": "sgd", "lr": 0.1, "momentum": "much"},
        {"optimizer": "sgd", "lr": 0.1, "weight_decay": [1]},
    ],
)
def test_what_the_checkpoint_did_not_record_well_gives_no_stability(training):
    assert measure(Eigenvalues(), least_squares().problem, training=training).stability is None


def test_adam_and_subsets_are_noted():
    given = softmax_regression().problem
    few = type(given)(
        model=given.model, data=data(given.data.inputs, given.data.targets, 999), loss_function=given.loss_function
    )
    result = measure(Eigenvalues(), few, training={"optimizer": "AdamW"})
    assert "measured on 70 of 999 samples: a subset overstates the top eigenvalue on average" in result.notes
    assert any("trained with Adam" in note for note in result.notes)


# --- hostile problems end in a true number or a refusal


def truthful(given, true, **options):
    """Measure, and hold the result against its own stated error."""
    result = measure(Eigenvalues(**options), given)
    assert abs(result.top.value - true[-1]) <= result.top.numerical_error
    assert abs(result.bottom.value - true[0]) <= result.bottom.numerical_error
    return result


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_few_parameters(size, dtype):
    h = torch.arange(1.0, size + 1)
    result = truthful(bowl(h, torch.ones(size, dtype=dtype)), h.numpy(), k=5)
    assert result.status is Status.CONVERGED
    assert len(result.values.value) == size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("samples", [1, 2, 3, 63, 64])
def test_few_samples(samples, dtype):
    given = ZOO["relu mlp"].problem(dtype=dtype, samples=samples)
    result = truthful(given, np.linalg.eigvalsh(dense_hessian(given)))
    assert (result.top.sampling_error is None) == (samples == 1)
    assert (result.top.chunks is None) == (samples < 64)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_zero_hessian(dtype):
    result = truthful(bowl(torch.zeros(5), torch.ones(5, dtype=dtype)), np.zeros(5))
    assert result.status is Status.CONVERGED
    assert np.isnan(result.top_ten_share.value)
    assert np.isnan(result.negative_ratio.value)
    assert measure(Eigenvalues(k=3), bowl(torch.zeros(5), torch.ones(5, dtype=dtype))).status is Status.BREAKDOWN


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_linear_in_theta(dtype):
    linear = Loss("linear", lambda outputs, targets: outputs.squeeze(1))
    truthful(problem(nn.Linear(4, 1).to(dtype), torch.randn(10, 4), torch.zeros(10), linear), np.zeros(5))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_negative_definite_hessian(dtype):
    h = -torch.linspace(0.5, 9.0, 30)
    result = truthful(bowl(h, torch.ones(30, dtype=dtype)), h.sort().values.numpy())
    assert np.isnan(result.negative_ratio.value)
    assert np.isnan(result.top_ten_share.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_loss_of_exactly_zero(dtype):
    model = nn.Linear(4, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    given = problem(model, torch.eye(4)[:3], torch.zeros(3, 1), "mse")
    assert given.loss() == 0
    assert truthful(given, [0, 2 / 3, 2 / 3, 2 / 3]).gradient_norm.value == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_degenerate_top_counts_once(dtype):
    h = torch.tensor([5.0, 5.0] + [1 / (i + 1) for i in range(28)])
    result = truthful(bowl(h, torch.ones(30, dtype=dtype)), h.sort().values.numpy(), k=2)
    near = np.abs(h.numpy()[:, None] - result.values.value).min(axis=0)
    assert (near <= result.values.numerical_error).all()
    assert "copies of one eigenvalue count once" in result.values.doc


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_scales_at_which_squares_leave_float32(scale, dtype):
    h = torch.linspace(0.1, 1.0, 30, dtype=torch.float64) * scale
    assert truthful(bowl(h, torch.zeros(30, dtype=dtype)), h.numpy()).status is Status.CONVERGED


def test_unused_and_frozen_parameters():
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.frozen = nn.Linear(4, 3), nn.Linear(9, 9), nn.Linear(4, 4)
            self.frozen.requires_grad_(False)

        def forward(self, x):
            return self.used(self.frozen(x))

    torch.manual_seed(0)
    given = problem(Partly(), torch.randn(20, 4), torch.randint(3, (20,)))
    truthful(given, np.linalg.eigvalsh(dense_hessian(given)))
    assert not given.model.frozen.weight.requires_grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(20,), (20, 1)])
def test_float64_targets_of_either_shape(shape, dtype):
    torch.manual_seed(0)
    y = torch.randn(shape, dtype=torch.float64)
    given = problem(nn.Linear(4, 1).to(dtype), torch.randn(20, 4), y, "mse")
    truthful(given, np.linalg.eigvalsh(dense_hessian(given)))


def test_integer_tokens():
    given = ZOO["tied embedding"].problem(dtype=torch.float32)
    truthful(given, np.linalg.eigvalsh(dense_hessian(given)))


@pytest.mark.parametrize("budget", [6, 7, 9])
def test_too_few_products_are_a_spent_budget_with_an_honest_error(budget):
    h = torch.cat([torch.linspace(0.1, 1, 199), torch.tensor([1.01])])
    result = truthful(bowl(h, torch.ones(200)), h.sort().values.numpy(), max_matvecs=budget, k=4)
    assert result.status is Status.BUDGET_SPENT
    assert len(result.values.value) == min(4, budget - 4)  # k products are for verification
    assert result.matvecs <= budget
    assert "the products ran out" in result.notes[0]


def test_too_little_memory_is_refused():
    given = bowl(torch.ones(200), torch.ones(200), memory_budget=1000)
    with pytest.raises(ProblemError, match=r"A Krylov basis of 9 vectors of 200 entries"):
        measure(Eigenvalues(), given)


def test_a_loss_that_overflows_is_nonfinite():
    huge = problem(nn.Linear(3, 1), torch.full((4, 3), 1e30), torch.zeros(4), "mse")
    result = measure(Eigenvalues(), huge)
    assert result.status is Status.NONFINITE
    assert np.isnan(result.top.value)
    assert result.top.numerical_error is result.bottom.numerical_error is result.values.numerical_error is None


# --- second opinions and nonsense


@pytest.mark.parametrize("tool", ["pyhessian", "scipy"])
def test_a_referee_stands_beside_the_value(tool):
    given = ZOO["multihead"].problem()
    result = measure(Eigenvalues(referee=tool), given)
    assert result.referee.value == pytest.approx(float(result.top.value), rel=1e-2)
    assert tool in result.referee.doc
    assert measure(Eigenvalues(), given).referee is None


def test_pyhessian_is_refused_for_gauss_newton_before_any_work():
    class Untouched:
        share = None

        def __getattr__(self, name):
            raise AssertionError(f"{name} was asked of the problem")

    with pytest.raises(UsageError, match=r"PyHessian knows only the Hessian. Expected `--referee scipy`"):
        Eigenvalues(gauss_newton=True, referee="pyhessian")(context(train=Untouched()))


# --- fewer bits


@pytest.mark.parametrize("name", ["tanh mlp", "conv groupnorm", "fused attention", "lstm"])
def test_what_is_searched_in_bfloat16_has_the_value_of_full_precision(name):
    given = ZOO[name].problem(samples=60, dtype=torch.float32)
    full = measure(Eigenvalues(k=2, tolerance=1e-2), given)
    low = measure(Eigenvalues(k=2, tolerance=5e-2, precision="bf16"), given)
    truth = np.linalg.eigvalsh(dense_hessian(given))[::-1]
    assert full.status is low.status is Status.CONVERGED
    assert abs(low.top.value - truth[0]) <= min(1e-3 * truth[0], low.top.numerical_error)
    assert 1e-4 * truth[0] < low.top.numerical_error <= 5e-2 * truth[0]
    assert (np.abs(low.values.value[:, None] - truth).min(1) <= low.values.numerical_error).all()
    assert low.top.sampling_error == pytest.approx(full.top.sampling_error, rel=0.05)
    assert (full.bottom.bound, low.bottom.bound) == ("upper", "none")  # a product that rounds may go below
    assert (full.top.bound, low.top.bound) == ("lower", "lower")
    assert low.notes[0].startswith("searched with products in bfloat16, checked with products in float32: along ")
    assert low.matvecs <= full.matvecs + 4
    again = measure(Eigenvalues(k=2, tolerance=1e-2), given)
    assert (again.top.value, again.matvecs) == (full.top.value, full.matvecs)  # nothing rounded is left


def test_a_tolerance_that_bfloat16_cannot_reach_is_said():
    result = measure(Eigenvalues(precision="bf16"), ZOO["tanh mlp"].problem(samples=60, dtype=torch.float32))
    assert result.status is Status.BUDGET_SPENT
    assert result.notes[0] == (
        "not converged: products in bfloat16 allow no smaller error; leave out `--precision` or take a larger "
        "`--tolerance`"
    )
    assert result.top.numerical_error > 1e-3 * result.top.value


@pytest.mark.parametrize(
    ("analyzer", "where", "said"),
    [
        ({"precision": "tf32"}, {}, r"was given, and the problem is on cpu. Expected `--device cuda`: TF32 is"),
        ({"precision": "bf16", "gauss_newton": True}, {}, r"with `--gauss-newton`. Expected the Hessian"),
        ({"precision": "bf16"}, {"dtype": torch.float64}, r"the problem is in float64. Expected float32"),
        ({"precision": "bf16"}, {"hvp_method": "differences"}, r"by differences of the gradient.*Expected.*autograd"),
    ],
)
def test_where_fewer_bits_make_no_sense_they_are_refused(analyzer, where, said):
    given = ZOO["tanh mlp"].problem(samples=20, **{"dtype": torch.float32, **where})
    with pytest.raises(
        UsageError, match=f"`--precision {analyzer['precision']}` was given.*" + said.split("given")[-1]
    ):
        measure(Eigenvalues(**analyzer), given)


@pytest.mark.parametrize("bad", [{"k": 0}, {"tolerance": 0.0}, {"tolerance": 1.0}, {"delta": 0.0}, {"max_matvecs": 1}])
def test_nonsense_is_refused(bad):
    with pytest.raises(UsageError, match=f"eigenvalues got .*{next(iter(bad))}=.*Expected k >= 1"):
        measure(Eigenvalues(**bad), least_squares().problem)


def test_every_refusal_is_a_gapscope_error():
    assert issubclass(ProblemError, GapscopeError)
    assert issubclass(UsageError, GapscopeError)
