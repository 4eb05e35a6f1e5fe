import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from gapscope.errors import ProblemError
from gapscope.measure.problem import Problem
from gapscope.measure.samples import Samples, noise_curvature
from tests.gauntlet import ROWS
from tests.measure.test_problem import assert_same, state_of
from tests.problems import ZOO, dense_hessian, problem

EPS = torch.finfo(torch.float64).eps
CLOSE = {"rtol": 1e4 * EPS, "atol": 1e4 * EPS}
TOGETHER = {"lstm": (False, False)}  # what vmap takes of the gradient and of the curvature; of all others, both


def dense_gradients(given):
    """Return all g_i (N, n) in float64, by torch.func.grad on one sample at a time."""
    named = {name: p.detach() for name, p in given.model.named_parameters() if p.requires_grad}
    x = given.data.inputs.double() if given.data.inputs.is_floating_point() else given.data.inputs

    def loss(parts, i):
        outputs = functional_call(given.model, parts, (x[i : i + 1],))
        return given.loss_function.per_sample(outputs, given.data.targets[i : i + 1]).sum()

    with sdpa_kernel(SDPBackend.MATH):
        rows = [grad(loss)(named, i) for i in range(given.samples)]
    return torch.stack([torch.cat([row[name].flatten() for name in named]) for row in rows])


def dense_hessians(given):
    one = [
        problem(given.model, given.data.inputs[i : i + 1], given.data.targets[i : i + 1], given.loss_function)
        for i in range(given.samples)
    ]
    return torch.from_numpy(np.stack([dense_hessian(each) for each in one]))


def by_layer(given, squares):
    return np.stack([squares[:, where].sum(1).numpy() for where in given.parameters.blocks().values()], axis=1)


@pytest.mark.parametrize("name", ZOO)
def test_gradients_are_those_of_every_sample_by_itself(name):
    given = ZOO[name].problem(samples=9, batch_size=4)
    g = dense_gradients(given)
    v, weights = torch.randn(given.size, dtype=torch.float64), np.random.default_rng(0).standard_normal(9)
    assert np.allclose(given.slopes_along(v), (g @ v).numpy(), **CLOSE)
    assert torch.allclose(given.weighted_gradient(weights), torch.from_numpy(weights) @ g / 9, **CLOSE)
    squares, mean = given.gradient_squares()
    assert np.allclose(squares, by_layer(given, g.square()), **CLOSE)
    assert torch.allclose(mean, g.mean(0), **CLOSE)
    about = given.gradient_squares(mean)[0]
    assert np.allclose(about, by_layer(given, (g - g.mean(0)).square()), **CLOSE)


@pytest.mark.parametrize("name", ZOO)
def test_curvatures_are_those_of_every_sample_by_itself(name):
    given = ZOO[name].problem(samples=5, batch_size=4)
    hessians = dense_hessians(given)
    v, center = torch.randn(2, given.size, dtype=torch.float64)
    squares, product = given.curvature_squares(v)
    assert np.allclose(squares, (hessians @ v).square().sum(1), **CLOSE)
    assert torch.allclose(product, (hessians @ hessians @ v).mean(0), **CLOSE)
    assert torch.equal(given.second_moment().matvec(v), product)
    squares, product = given.curvature_squares(v, center)
    assert np.allclose(squares, (hessians @ v - center).square().sum(1), **CLOSE)
    assert torch.allclose(product, (hessians @ (hessians @ v - center)[:, :, None]).mean(0)[:, 0], **CLOSE)


@pytest.mark.parametrize("name", ["relu mlp", "lstm"])
def test_the_noise_in_the_curvature_has_the_trace_of_sigma_h(name):
    given = ZOO[name].problem(samples=9, batch_size=4)
    g, hessian = dense_gradients(given), torch.from_numpy(dense_hessian(given))
    apart = g - g.mean(0)
    operator = noise_curvature(given, given.hessian())
    found = torch.stack([operator.matvec(e) for e in torch.eye(9, dtype=torch.float64)])
    assert torch.allclose(found, apart @ hessian @ apart.T / 9, **CLOSE)
    assert torch.allclose(found.trace(), (apart.T @ apart / 9 @ hessian).trace(), **CLOSE)


@pytest.mark.parametrize("name", ZOO)
def test_vmap_takes_what_it_can(name):
    samples = Samples(ZOO[name].problem(samples=3))
    assert (samples._gradients_agree, samples._curvatures_agree) == TOGETHER.get(name, (True, True))


class InPlace(nn.Linear):
    """Writes into a fresh tensor that does not know of the samples: vmap refuses that."""

    def forward(self, x):
        scores = torch.zeros(len(x), self.out_features, dtype=x.dtype)
        scores += super().forward(x)
        return scores


class Looking(nn.Linear):
    """Branches on the data."""

    def forward(self, x):
        return super().forward(x) * (2 if float(x.sum()) > 0 else 1)


class Alone(torch.autograd.Function):
    """A function in the old manner, which torch.func refuses even for one sample."""

    @staticmethod
    def forward(context, x):
        context.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(context, slope):
        (x,) = context.saved_tensors
        return 3 * x**2 * slope


class Custom(nn.Linear):
    def forward(self, x):
        return Alone.apply(super().forward(x))


@pytest.mark.parametrize("kind", [InPlace, Looking, Custom])
def test_a_model_that_vmap_refuses_is_measured_one_sample_at_a_time(kind):
    torch.manual_seed(0)
    given = problem(kind(3, 2).double(), torch.randn(7, 3, dtype=torch.float64), torch.randint(2, (7,)), batch_size=1)
    samples = Samples(given)
    assert not samples._gradients_agree
    assert not samples._curvatures_agree
    v = torch.randn(given.size, dtype=torch.float64)
    squares, mean = given.gradient_squares()
    rows = [problem(given.model, given.data.inputs[i : i + 1], given.data.targets[i : i + 1]) for i in range(7)]
    assert np.allclose(squares.sum(1), [float(row.gradient().square().sum()) for row in rows], **CLOSE)
    assert torch.allclose(mean, given.gradient(), **CLOSE)
    assert torch.allclose(
        given.second_moment().matvec(v), torch.stack([row.hvp(row.hvp(v)) for row in rows]).mean(0), **CLOSE
    )


@pytest.mark.parametrize("name", ["relu mlp", "conv batchnorm", "lstm", "tied embedding"])
@pytest.mark.parametrize("size", [1, 7, 20, 1000])
def test_numbers_do_not_depend_on_the_micro_batch_or_on_the_memory(name, size):
    whole, ragged = ZOO[name].problem(samples=20), ZOO[name].problem(samples=20, batch_size=size, memory_budget=200_000)
    v, weights = torch.randn(whole.size, dtype=torch.float64), np.random.default_rng(0).standard_normal(20)
    for method, *arguments in (
        ("slopes_along", v),
        ("weighted_gradient", weights),
        ("gradient_squares",),
        ("curvature_squares", v),
    ):
        a, b = (getattr(given, method)(*arguments) for given in (whole, ragged))
        for one, other in zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]:
            assert np.allclose(one, other, **CLOSE)


@pytest.mark.parametrize("name", ["relu mlp", "lstm"])
def test_float32_is_accurate_to_its_rounding(name):
    single, double = (ZOO[name].problem(samples=9, dtype=dtype) for dtype in (torch.float32, torch.float64))
    squares, mean = single.gradient_squares(single.gradient())
    assert squares.dtype == np.float64
    assert mean.dtype == torch.float32
    assert np.allclose(squares, double.gradient_squares(double.gradient())[0], rtol=1e-4, atol=1e-7)


def test_squares_below_those_of_float32_are_not_lost():
    small, unit = (
        problem(nn.Linear(3, 1, bias=False), x, torch.ones(5), "mse")
        for x in (torch.ones(5, 3) * 1e-25, torch.ones(5, 3))
    )
    nn.init.zeros_(small.model.weight)
    nn.init.zeros_(unit.model.weight)
    assert np.allclose(small.gradient_squares()[0], 1e-50 * unit.gradient_squares()[0], rtol=1e-5, atol=0)


def test_frozen_parameters_do_not_count():
    free = ZOO["conv batchnorm"].problem(samples=6)
    whole = free.gradient_squares()[0]
    layers = list(free.parameters.blocks())
    free.model[0].requires_grad_(False)
    given = Problem(model=free.model, data=free.data, loss_function=free.loss_function)
    squares, mean = given.gradient_squares()
    assert list(given.parameters.blocks()) == layers[1:]
    assert np.allclose(squares, whole[:, 1:], **CLOSE)
    assert len(mean) == given.size


def test_a_tied_weight_counts_once():
    given = ZOO["tied embedding"].problem(samples=6)
    assert list(given.parameters.blocks()) == ["embed", "mix"]
    assert given.gradient_squares()[0].shape == (6, 2)


@pytest.mark.parametrize("name", ["conv batchnorm", "lstm"])
@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched(name, training):
    given = ZOO[name].problem(samples=5)
    given.model.train(training)
    before = state_of(given.model)
    given.slopes_along(given.theta)
    given.weighted_gradient(np.ones(5))
    given.gradient_squares()
    given.second_moment().matvec(given.theta)
    assert_same(before, state_of(given.model))


def test_a_loss_that_does_not_know_theta_has_zero_slopes():
    class Blind(nn.Linear):
        def forward(self, x):
            return x.clone()

    given = problem(Blind(3, 3), torch.randn(4, 3), torch.randint(3, (4,)))
    v = torch.ones(given.size)
    assert not given.slopes_along(v).any()
    assert not given.weighted_gradient(np.ones(4)).any()
    assert not given.gradient_squares()[0].any()
    assert not given.second_moment().matvec(v).any()


# --- what is refused


@pytest.mark.parametrize("method", ["gradient_squares", "second_moment"])
def test_batch_statistics_leave_no_gradient_of_one_sample(method):
    given = ZOO["conv batchnorm"].problem(samples=8, batch_size=4, batchnorm="batch")
    with pytest.raises(ProblemError, match=r"there is no gradient of a single one.* Take `--batchnorm eval`"):
        given.gradient_squares() if method == "gradient_squares" else given.second_moment().matvec(given.theta)


def test_a_model_that_drops_the_batch_axis_is_refused():
    class Squeezing(nn.Linear):
        def forward(self, x):
            return super().forward(x).squeeze()

    given = problem(Squeezing(3, 2), torch.randn(4, 3), torch.randint(2, (4,)))
    with pytest.raises(
        ProblemError, match=r"returns \(2,\) for a batch of 1 and \(2, 2\) for one of 2.*Keep the batch"
    ):
        given.gradient_squares()


def test_a_model_that_mixes_its_batch_is_refused():
    class Centred(nn.Linear):
        def forward(self, x):
            return super().forward(x - x.mean(0))

    given = problem(Centred(3, 2), torch.randn(4, 3), torch.randint(2, (4,)))
    with pytest.raises(
        ProblemError, match=r"changes by .* with the company of another one\. Expected a model that maps"
    ):
        given.gradient_squares()


def test_what_is_truly_wrong_is_raised_again():
    given = ZOO["relu mlp"].problem(samples=4)

    def fail(*_):
        raise ValueError("in the model")

    given.model[0].register_forward_hook(fail)
    with pytest.raises(ValueError, match=r"in the model"):
        given.gradient_squares()


# --- inputs by name, several of them, parameters of 0 dimensions, repaired and differenced models


@pytest.mark.parametrize("name", ["named inputs", "two inputs", "constant gradient", "complex", "EmbeddingBag, max"])
def test_the_samples_of_every_kind_of_model_add_up(name):
    row = next(row for row in ROWS if row.name.startswith(name))
    given, v = row.problem(batch_size=7), None
    squares, mean = given.gradient_squares()
    assert torch.allclose(mean, given.gradient(), atol=1e-5)
    assert squares.sum() / given.samples > float(mean.square().sum())
    v = torch.randn(given.size, generator=torch.Generator().manual_seed(0))
    product, bends = given.curvature_along(v)
    assert bends.mean() == pytest.approx(float(v @ product), rel=1e-4)
    assert given.slopes_along(v).mean() == pytest.approx(float(v @ mean), rel=1e-4)
    lengths, image = given.curvature_squares(v)
    assert lengths.mean() == pytest.approx(float(v @ image), rel=1e-4)  # the mean of |H_i v|^2 is v' (mean of H_i^2) v
