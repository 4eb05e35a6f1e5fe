import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.errors import ProblemError
from gapscope.measure import gauss_newton
from gapscope.measure.loading import Loss
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.problem import Problem
from tests.gauntlet import ROWS
from tests.measure.test_problem import assert_same, state_of
from tests.measure.test_samples import Custom, InPlace, Looking
from tests.problems import ZOO, problem, softmax_regression

EPS = torch.finfo(torch.float64).eps
CLOSE = {"rtol": 1e4 * EPS, "atol": 1e4 * EPS}
BENT = {
    "tanh mlp": ("0.weight", "0.bias", "2.weight", "2.bias"),
    "relu mlp": (),
    "regression": ("0.weight", "0.bias", "2.weight", "2.bias"),
    "conv batchnorm": (),
    "conv groupnorm": ("0.weight", "0.bias", "1.weight", "1.bias"),
    "fused attention": ("qkv.weight", "qkv.bias"),
    "multihead": ("attention.in_proj_weight", "attention.in_proj_bias"),
    "lstm": ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"),
    "tied embedding": ("embed.weight", "mix.weight", "mix.bias"),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def dense_diagonals(given):
    """Return diag(J_i' Q_i J_i) of every sample (N, n) in float64, by torch.func alone."""
    named = {name: p.detach() for name, p in given.model.named_parameters() if p.requires_grad}
    x = given.data.inputs.double() if given.data.inputs.is_floating_point() else given.data.inputs
    rows = []
    with sdpa_kernel(SDPBackend.MATH):
        for i in range(given.samples):
            y = given.data.targets[i : i + 1]

            def outputs(parts, i=i):
                return functional_call(given.model, parts, (x[i : i + 1],))

            middle = outputs(named)
            inner = jacrev(jacrev(lambda z, y=y: given.loss_function.per_sample(z, y).sum()))(middle)
            jacobian = jacrev(outputs)(named)
            flat = torch.cat([jacobian[name].reshape(middle.numel(), -1) for name in named], 1)
            rows.append(((inner.reshape(middle.numel(), -1) @ flat) * flat).sum(0))
    return torch.stack(rows).detach()


# --- the diagonal


@pytest.mark.parametrize("name", ZOO)
def test_the_diagonal_is_jacobian_loss_hessian_jacobian(name):
    given = ZOO[name].problem(samples=9, batch_size=4)
    found, dense = gauss_newton.diagonal(given), dense_diagonals(given)
    assert torch.allclose(found.mean, dense.mean(0), **CLOSE)
    chunks = torch.stack([dense[given.chunk_of == chunk].sum(0) for chunk in range(32)])
    assert torch.allclose(found.chunks, chunks, **CLOSE)
    assert torch.equal(given.gauss_newton_diagonal(), found.mean)


@pytest.mark.parametrize("scale", [1e-3, 1e4])
def test_the_rounding_of_large_scores_is_in_the_error(scale):
    """At a score s the curvature is exp(-s) about, and |s| epsilons are not known of it."""
    torch.manual_seed(0)
    x, y = scale * torch.randn(6, 4), torch.tensor([0.0, 1, 1, 0, 1, 0])
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Flatten(0))
    given = problem(model, x, y, "bce-with-logits")
    scores = float(model(x).detach().abs().max())
    found = gauss_newton.diagonal(given)
    eps = torch.finfo(torch.float32).eps
    assert eps * min(scores, 1) / 100 < found.unsure < 16 * eps * max(scores, 1)
    narrow, true = (
        found.mean,
        dense_diagonals(problem(model.double(), x.double(), y.double(), "bce-with-logits")).mean(0),
    )
    assert bool(((narrow - true).abs() <= (found.unsure + 100 * eps) * true.abs()).all())


def test_the_diagonal_of_softmax_regression_is_its_closed_form():
    closed = softmax_regression()
    assert np.allclose(closed.problem.gauss_newton_diagonal(), np.diag(closed.hessian), **CLOSE)


@pytest.mark.parametrize("kind", [InPlace, Looking, Custom])
def test_a_model_that_vmap_refuses_is_measured_one_sample_at_a_time(kind):
    torch.manual_seed(0)
    given = problem(kind(3, 2).double(), torch.randn(7, 3, dtype=torch.float64), torch.randint(2, (7,)), batch_size=1)
    axes = torch.eye(given.size, dtype=torch.float64)
    dense = torch.stack([given.gauss_newton().matvec(axis) for axis in axes])
    assert torch.allclose(given.gauss_newton_diagonal(), dense.diagonal(), **CLOSE)


@pytest.mark.parametrize("name", ["relu mlp", "conv batchnorm", "lstm", "tied embedding"])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_numbers_do_not_depend_on_the_micro_batch_or_on_the_memory(name, size):
    whole, ragged = ZOO[name].problem(samples=20), ZOO[name].problem(samples=20, batch_size=size, memory_budget=100_000)
    one, other = gauss_newton.diagonal(whole), gauss_newton.diagonal(ragged)
    assert torch.allclose(one.mean, other.mean, **CLOSE)
    assert one.chunks is not None
    assert other.chunks is None  # 32 vectors are more than an eighth of the budget


@pytest.mark.parametrize("confidence", [14, 40, 80])
def test_confident_samples_keep_their_digits_in_float32(confidence):
    """At losses of 1e-6, 4e-18 and 2e-35, where p rounds to 1 and its smallest neighbours to 0."""
    x = torch.randn(64, 6, generator=rng()).abs() + 0.1
    found = []
    for dtype in (torch.float32, torch.float64):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
        torch.manual_seed(0)
        for layer in (model[0], model[2]):
            nn.init.uniform_(layer.weight, 0.1, 0.5)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            model[2].bias[0] = confidence
            model[2].weight[0] += 0.2
        given = problem(model.to(dtype), x, torch.zeros(64, dtype=torch.long))
        found.append(given.gauss_newton_diagonal())
    assert given.loss() < 1e-5
    assert (found[1] > 0).all()
    assert torch.allclose(found[0], found[1], rtol=1e-4, atol=0)  # float32 scores of 80 know exp(-80) to 1e-5


def test_a_loss_that_curves_down_has_a_negative_diagonal():
    x = torch.randn(12, 3, generator=rng(), dtype=torch.float64)
    saddle = Loss("saddle", lambda outputs, targets: outputs[:, 0].square() - 3 * outputs[:, 1].square())
    found = problem(nn.Linear(3, 2, bias=False).double(), x, torch.zeros(12), saddle).gauss_newton_diagonal()
    squares = x.square().mean(0)
    assert torch.allclose(found, torch.cat([2 * squares, -6 * squares]), **CLOSE)


def test_a_loss_with_constants_of_its_own_dtype_is_taken_as_it_is():
    weights = torch.tensor([1.0, 2.0, 0.5])
    weighted = Loss("weighted", nn.CrossEntropyLoss(weight=weights, reduction="none"))
    plain = Loss("plain", lambda z, y: weights[y] * nn.functional.cross_entropy(z, y, reduction="none"))
    x, y = torch.randn(12, 4, generator=rng()), torch.randint(3, (12,), generator=rng())
    model = nn.Linear(4, 3)
    one, other = (problem(model, x, y, loss).gauss_newton_diagonal() for loss in (weighted, plain))
    assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_linear_loss_and_a_model_without_theta_have_none():
    class Blind(nn.Linear):
        def forward(self, x):
            return x.clone()

    linear = Loss("linear", lambda outputs, targets: outputs.sum(1))
    assert not problem(nn.Linear(3, 3), torch.randn(4, 3), torch.zeros(4), linear).gauss_newton_diagonal().any()
    assert not problem(Blind(3, 3), torch.randn(4, 3), torch.randint(3, (4,))).gauss_newton_diagonal().any()


def test_what_overflows_is_not_finite():
    given = problem(nn.Linear(3, 1), torch.full((4, 3), 1e30), torch.zeros(4), "mse")
    assert given.gauss_newton_diagonal().isfinite().tolist() == [False, False, False, True]  # the bias is 2


@pytest.mark.parametrize("name", ["conv batchnorm", "lstm"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched(name, training):
    given = ZOO[name].problem(samples=5)
    given.model.train(training)
    before = state_of(given.model)
    given.gauss_newton_diagonal()
    gauss_newton.bent(given)
    assert_same(before, state_of(given.model))


def test_more_outputs_than_128_are_refused():
    given = problem(nn.Linear(3, 129), torch.randn(4, 3), torch.randint(3, (4,)))
    with pytest.raises(ProblemError, match=r"A sample has 129 outputs\. Expected at most 128.*--estimator hutchinson"):
        given.gauss_newton_diagonal()


def test_batch_statistics_leave_no_outputs_of_one_sample():
    given = ZOO["conv batchnorm"].problem(samples=8, batch_size=4, batchnorm="batch")
    with pytest.raises(ProblemError, match=r"there is no gradient of a single one"):
        given.gauss_newton_diagonal()


# --- where outputs bend


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ZOO)
def test_the_parameters_along_which_outputs_bend_are_found(name, dtype):
    for seed in range(3):
        assert gauss_newton.bent(ZOO[name].problem(seed=seed, dtype=dtype)) == BENT[name]


PIECEWISE = {"mlp": (64,), "f1": (784,), "f2": (360,), "lenet5": (1, 28, 28), "resnet20": (3, 8, 8)}


@pytest.mark.parametrize("name", PIECEWISE)
def test_the_built_in_networks_of_relus_do_not_bend(name):
    x = torch.randn(9, *PIECEWISE[name], generator=rng())
    assert gauss_newton.bent(problem(NETWORKS[name](), x, torch.randint(10, (9,), generator=rng()))) == ()


@pytest.mark.parametrize(
    ("activation", "bends"),
    [
        (nn.LeakyReLU, False),
        (nn.Hardtanh, False),
        (nn.PReLU, False),
        (nn.ELU, True),
        (nn.Softplus, True),
        (nn.Hardswish, True),
        (nn.Sigmoid, True),
    ],
)
def test_an_activation_bends_what_comes_before_it_and_zeros_are_asked_too(activation, bends):
    model = nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 3))
    nn.init.zeros_(model[0].bias)
    given = problem(model, torch.randn(20, 6, generator=rng()), torch.randint(3, (20,), generator=rng()))
    assert gauss_newton.bent(given) == (("0.weight", "0.bias") if bends else ())


def test_a_weight_used_twice_bends():
    class Twice(nn.Linear):
        def forward(self, x):
            return super().forward(torch.relu(super().forward(x)))

    given = problem(Twice(3, 3), torch.randn(20, 3, generator=rng()), torch.randint(3, (20,), generator=rng()))
    assert gauss_newton.bent(given) == ("weight",)


def test_factors_of_one_layer_are_asked_one_by_one():
    class Factors(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 3))

        def forward(self, x):
            return x @ self.a @ self.b

    given = problem(Factors(), torch.randn(20, 5, generator=rng()), torch.randint(3, (20,), generator=rng()))
    assert gauss_newton.bent(given) == ()


def test_frozen_parameters_are_not_asked():
    free = ZOO["tanh mlp"].problem()
    free.model[0].requires_grad_(False)
    given = Problem(model=free.model, data=free.data, loss_function=free.loss_function)
    assert gauss_newton.bent(given) == ("2.weight", "2.bias")


class Single(nn.Module):
    """One number for a sample, without an axis for it, and a scale of 0 dimensions."""

    def __init__(self):
        super().__init__()
        self.inner, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.scale * torch.tanh(self.inner(x)).sum(1)


def flat_outputs():
    torch.manual_seed(0)
    squares = Loss("squares", lambda outputs, targets: (outputs - targets).square())
    return problem(Single().double(), torch.randn(20, 4), torch.randn(20), squares, batch_size=6)


@pytest.mark.parametrize("name", ["named inputs", "two inputs", "flat outputs"])
def test_the_diagonal_is_that_of_the_operator_for_every_kind_of_input(name):
    given = flat_outputs() if name == "flat outputs" else next(r for r in ROWS if r.name.startswith(name)).problem()
    operator = given.gauss_newton()
    true = torch.stack([operator.matvec(e)[i] for i, e in enumerate(torch.eye(given.size, dtype=given.dtype))])
    assert torch.allclose(given.gauss_newton_diagonal().to(true), true, rtol=1e-4, atol=1e-5 * float(true.max()))
