import numpy as np
import pytest
import torch
from torch import nn

import gapscope
from gapscope.errors import ProblemError
from gapscope.measure.loading import Loss
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import Problem
from gapscope.results import CHUNKS
from tests.problems import ZOO, data, dense_hessian, least_squares, problem, softmax_regression

EPS = torch.finfo(torch.float64).eps
EPS32 = torch.finfo(torch.float32).eps


def columns(operator):
    return torch.stack([operator.matvec(e) for e in torch.eye(operator.size, dtype=operator.dtype)])


# --- closed forms


@pytest.mark.parametrize("closed", [least_squares, softmax_regression])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_the_closed_form(closed, dtype):
    given = closed(dtype=dtype)
    eps = torch.finfo(dtype).eps
    for operator in (given.problem.hessian(), given.problem.gauss_newton()):  # outputs are linear in theta: both agree
        error = np.abs(columns(operator).double().numpy() - given.hessian).max()
        assert error <= 100 * eps * np.abs(given.hessian).max()


def test_the_loss_and_gradient_of_least_squares_are_those_of_the_formula():
    given = least_squares().problem
    x, y, w = given.data.inputs, given.data.targets, given.theta
    rest = x @ w - y[:, 0]
    loss, gradient = given.loss_and_gradient()
    assert loss == pytest.approx(float(rest.square().mean()), rel=100 * EPS)
    assert given.loss() == pytest.approx(loss, rel=100 * EPS)
    assert torch.allclose(gradient, 2 / len(x) * x.T @ rest, rtol=100 * EPS, atol=100 * EPS)
    assert torch.equal(gradient, given.gradient())
    other = torch.zeros_like(w)
    assert given.loss(other) == pytest.approx(float(y.square().mean()), rel=100 * EPS)
    assert torch.allclose(given.gradient(other), -2 / len(x) * (x.T @ y)[:, 0], rtol=100 * EPS, atol=100 * EPS)


def test_hvp_at_another_theta_is_the_curvature_there():
    given = softmax_regression().problem
    zero, v = torch.zeros(given.size, dtype=torch.float64), torch.randn(given.size, dtype=torch.float64)
    x = given.data.inputs
    inner = torch.eye(3, dtype=torch.float64) / 3 - 1 / 9  # all classes equally likely
    expected = (inner @ v.view(3, -1) @ (x.T @ x / len(x))).flatten()
    assert torch.allclose(given.hvp(v, zero), expected, rtol=1e3 * EPS, atol=1e3 * EPS)


# --- the loop


@pytest.mark.parametrize("name", ["relu mlp", "lstm", "tied embedding"])
@pytest.mark.parametrize("size", [1, 7, 49, 50, 1000])
def test_numbers_do_not_depend_on_the_micro_batch(name, size):
    kind = ZOO[name]
    whole, ragged = kind.problem(batch_size=50), kind.problem(batch_size=size)
    v = torch.randn(whole.size, dtype=torch.float64)
    close = {"rtol": 1e3 * EPS, "atol": 1e3 * EPS}
    assert np.allclose(whole.losses(), ragged.losses(), **close)
    assert np.array_equal(whole.outcomes()[1], ragged.outcomes()[1])
    assert torch.allclose(whole.gradient(), ragged.gradient(), **close)
    assert torch.allclose(whole.hessian().matvec(v), ragged.hessian().matvec(v), **close)
    assert torch.allclose(whole.hvp(v), ragged.hvp(v), **close)
    for a, b in zip(whole.curvature_along(v), ragged.curvature_along(v), strict=True):
        assert np.allclose(a, b, **close)


def test_a_ragged_last_batch_weighs_what_it_should():
    given = softmax_regression(samples=130, batch_size=64)  # 64 + 64 + 2
    assert np.allclose(columns(given.problem.hessian()).numpy(), given.hessian, rtol=0, atol=100 * EPS)


def test_sums_over_the_data_are_float64():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.zero_()
    # 1 + 2^20 times 2^-24: in float32 every single addition would vanish
    y = torch.cat([torch.ones(1), torch.full((4096,), 2.0**-12)])
    given = problem(model, torch.zeros(4097, 1), y, "mse", batch_size=1)
    assert given.loss() * 4097 == 1 + 4096 * 2.0**-24
    collected = given.mean(lambda batch: batch.targets.square().sum())
    assert collected.dtype == torch.float64
    assert float(collected) * 4097 == 1 + 4096 * 2.0**-24


def test_every_pass_ticks_up_to_one():
    class Counting(Monitor):
        total = 0.0

        def tick(self, fraction):
            self.total += fraction

    monitor = Counting()
    given = softmax_regression(batch_size=32, monitor=monitor).problem
    given.loss()
    given.gradient()
    assert monitor.total == pytest.approx(2)


def test_kept_and_recomputed_products_are_equal():
    kind = ZOO["conv groupnorm"]
    kept, scarce = (kind.problem(batch_size=16, memory_budget=room) for room in (4_000_000_000, 2_000))
    v = torch.randn(kept.size, dtype=torch.float64)
    for build in ("hessian", "gauss_newton"):
        a, b = getattr(kept, build)(), getattr(scarce, build)()
        for _ in range(2):
            assert torch.equal(a.matvec(v), b.matvec(v))


def test_only_what_fits_the_memory_budget_is_kept():
    calls = 0

    class Counted(nn.Linear):
        def forward(self, x):
            nonlocal calls
            calls += 1
            return super().forward(x)

    def forwards(products, budget):
        nonlocal calls
        torch.manual_seed(0)
        given = problem(Counted(4, 3), torch.randn(64, 4), torch.randint(3, (64,)), batch_size=16, memory_budget=budget)
        operator = given.hessian()
        calls = 0
        for _ in range(products):
            operator.matvec(torch.ones(given.size))
        return calls, given.graph_bytes_per_sample

    plenty, per_sample = forwards(3, 10**9)
    assert plenty == 4
    assert forwards(3, 0)[0] == 12
    assert (
        forwards(3, 2 * 2 * 16 * per_sample)[0] == 2 + 3 * 2
    )  # half of the budget holds two of the four micro-batches


def test_the_micro_batch_is_a_function_of_sizes_and_budget():
    kind = ZOO["relu mlp"]
    assert kind.problem(samples=300, memory_budget=8).micro_batch == 1
    small, again = (kind.problem(samples=300, memory_budget=200_000).micro_batch for _ in range(2))
    assert small == again
    assert small & (small - 1) == 0
    assert small * kind.problem(samples=300).graph_bytes_per_sample <= 200_000 // 8
    assert kind.problem(samples=300).micro_batch == 300  # all at once where they fit
    assert kind.problem(samples=300, batch_size=1000).micro_batch == 300


@pytest.mark.parametrize("samples", [1, 2, 3, 5])
def test_few_samples_are_enough(samples):
    given = ZOO["tanh mlp"].problem(samples=samples)
    dense = torch.from_numpy(dense_hessian(given))
    v = torch.randn(given.size, dtype=torch.float64)
    assert torch.allclose(given.hessian().matvec(v), dense @ v, atol=1e3 * EPS)
    assert given.micro_batch <= samples


# --- chunks


def test_chunks_are_even_disjoint_and_blind_to_the_micro_batch():
    a, b = (ZOO["relu mlp"].problem(samples=200, batch_size=size) for size in (7, 200))
    assert torch.equal(a.chunk_of, b.chunk_of)
    counts = torch.bincount(a.chunk_of)
    assert len(counts) == CHUNKS
    assert int(counts.max() - counts.min()) <= 1
    assert not torch.equal(a.chunk_of, torch.arange(200) % CHUNKS)  # dealt, not in the order of the data


def test_chunk_means_weighted_by_chunk_size_are_the_mean():
    given = ZOO["relu mlp"].problem(samples=77)
    values = np.random.default_rng(0).standard_normal(77)
    counts = np.bincount(given.chunk_of.numpy(), minlength=CHUNKS)
    assert (given.chunk_means(values) * counts).sum() / 77 == pytest.approx(values.mean(), rel=100 * EPS)


def test_fewer_than_two_samples_a_chunk_have_no_chunk_means():
    assert ZOO["relu mlp"].problem(samples=63).chunk_means(np.ones(63)) is None
    assert ZOO["relu mlp"].problem(samples=64).chunk_means(np.ones(64)) is not None


# --- curvature along a vector


@pytest.mark.parametrize("name", ZOO)
def test_the_mean_of_the_per_sample_curvature_is_v_h_v(name):
    given = ZOO[name].problem(batch_size=16)
    v = torch.randn(given.size, dtype=torch.float64)
    product, along = given.curvature_along(v)
    assert (product - given.hvp(v)).norm() <= 1e3 * EPS * product.norm()
    assert along.mean() == pytest.approx(float(v @ product), abs=1e3 * EPS * float(v.norm() * product.norm()))


def test_the_curvature_of_a_sample_is_that_of_its_own_dense_hessian():
    kind = ZOO["conv batchnorm"]
    given = kind.problem(samples=6)
    v = torch.randn(given.size, dtype=torch.float64)
    _, along = given.curvature_along(v)
    for i in range(6):
        one = problem(given.model, given.data.inputs[i : i + 1], given.data.targets[i : i + 1])
        assert along[i] == pytest.approx(float(v @ torch.from_numpy(dense_hessian(one)) @ v), rel=1e-9)


# --- the model comes back as it was


def state_of(model):
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return (
        {name: (t.data_ptr(), t.clone(), t.requires_grad, t.grad) for name, t in tensors},
        [module.training for module in model.modules()],
        [module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)],
    )


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, (address, value, asks, grad) in before[0].items():
        assert after[0][name][0] == address
        assert torch.equal(after[0][name][1], value)
        assert after[0][name][2] == asks
        assert after[0][name][3] is grad


def measure_everything(given):
    v = torch.ones(given.size, dtype=given.dtype)
    given.losses()
    given.outcomes()[1]
    given.loss_and_gradient()
    given.hessian().matvec(v)
    given.gauss_newton().matvec(v)
    given.curvature_along(v)


@pytest.mark.parametrize("mode", ["eval", "batch", "re-estimated"])
@pytest.mark.parametrize("training", [True, False])
def test_weights_buffers_modes_flags_and_gradients_are_untouched(mode, training):
    plain = ZOO["conv batchnorm"].problem()
    plain.model.train(training)
    plain.model[0].eval()
    plain.model[5].bias.requires_grad_(False)
    plain.model[0].weight.grad = torch.ones_like(plain.model[0].weight)
    before = state_of(plain.model)
    given = Problem(
        model=plain.model, data=plain.data, loss_function=plain.loss_function, batch_size=20, batchnorm=mode
    )
    measure_everything(given)
    assert_same(before, state_of(plain.model))


@pytest.mark.parametrize("mode", ["eval", "batch", "re-estimated"])
@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["loss", "model"])
def test_the_model_is_untouched_after_a_failure(mode, failure, where):
    plain = ZOO["conv batchnorm"].problem()
    armed = False

    def fail(*_):
        if armed:
            raise failure("in the middle")

    def per_sample(outputs, targets):
        fail()
        return plain.loss_function.per_sample(outputs, targets)

    if where == "model":
        plain.model[2].register_forward_hook(fail)
    plain.model.train()
    before = state_of(plain.model)
    loss = Loss("failing", per_sample)
    given = Problem(model=plain.model, data=plain.data, loss_function=loss, batch_size=20, batchnorm=mode)
    armed = True
    v = torch.ones(given.size, dtype=torch.float64)
    for call in (given.losses, given.gradient, lambda: given.hvp(v), lambda: given.curvature_along(v), given.hessian):
        with pytest.raises(failure, match=r"in the middle"):
            call()
    assert_same(before, state_of(plain.model))


def test_dropout_is_off_while_measuring():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).train()
    given = problem(model, torch.randn(20, 4), torch.randint(3, (20,)))
    assert np.array_equal(given.losses(), given.losses())
    assert all(module.training for module in model.modules())


# --- batchnorm


def normalized(x, mean, var, layer):
    return (x - mean) / torch.sqrt(var + layer.eps) * layer.weight + layer.bias


def batchnorm_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    with torch.no_grad():
        model[0].running_mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
        model[0].running_var.copy_(torch.tensor([1.1, 1.2, 1.3]))
        model[0].weight.copy_(torch.tensor([1.5, 0.5, -1.0]))
    return model, torch.randn(50, 3, dtype=torch.float64) * 2 + 1, torch.randint(2, (50,))


def by_hand(model, pairs, targets):
    scores = torch.cat([model[1](normalized(x, mean, var, model[0])) for x, mean, var in pairs])
    return nn.functional.cross_entropy(scores, targets, reduction="none").detach().numpy()


def test_batchnorm_in_eval_mode_uses_the_running_statistics():
    model, x, y = batchnorm_model()
    expected = by_hand(model, [(x, model[0].running_mean, model[0].running_var)], y)
    assert np.allclose(problem(model, x, y).losses(), expected, rtol=100 * EPS)


def test_batchnorm_in_batch_mode_uses_those_of_each_micro_batch():
    model, x, y = batchnorm_model()
    pairs = [(part, part.mean(0), part.var(0, unbiased=False)) for part in x.split(20)]
    expected = by_hand(model, pairs, y)
    assert np.allclose(problem(model, x, y, batch_size=20, batchnorm="batch").losses(), expected, rtol=100 * EPS)


def test_re_estimated_batchnorm_averages_the_statistics_by_samples(monkeypatch):
    monkeypatch.setattr("gapscope.measure.batchnorm.BATCH", 20)
    model, x, y = batchnorm_model()
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    parts = x[order].split([16, 17, 17])  # 50 samples in even parts of at most 20
    weights = torch.tensor([len(part) for part in parts]) / 50
    mean = sum(w * part.mean(0) for w, part in zip(weights, parts, strict=True))
    var = sum(w * part.var(0) for w, part in zip(weights, parts, strict=True))
    assert torch.allclose(mean, x.mean(0))
    expected = by_hand(model, [(x, mean, var)], y)
    for size in (None, 7):  # the micro-batch is not the part: it must change nothing
        found = problem(model, x, y, batch_size=size, batchnorm="re-estimated").losses()
        assert np.allclose(found, expected, rtol=1e-6)  # the weights pass through a momentum


@pytest.mark.parametrize("samples", [2, 129, 257, 497, 16257])
def test_re_estimation_never_leaves_one_sample_alone(samples):
    model, _, _ = batchnorm_model()
    x = torch.randn(samples, 3, dtype=torch.float64)
    given = problem(model, x, torch.zeros(samples, dtype=torch.long), batchnorm="re-estimated")
    assert np.isfinite(given.losses()).all()


def test_statistics_of_data_that_lie_class_by_class_are_those_of_all():
    """The variance between classes is part of them: 1 within each, and 25 between two at -5 and 5."""
    torch.manual_seed(0)
    classes = torch.arange(512) // 256
    x = torch.randn(512, 3, dtype=torch.float64) + (10 * classes - 5)[:, None]
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    given = problem(model, x, classes, batchnorm="re-estimated")
    assert torch.allclose(given.constants["0.running_var"], x.var(0), rtol=0.02)


def test_the_statistics_of_every_split_are_those_of_the_training_data():
    torch.manual_seed(0)
    x, y = torch.randn(300, 3), torch.arange(300) % 2
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    both = gapscope.problem(model, (x, y), test_data=(x[:50] + 3, y[:50]), batchnorm="re-estimated")
    assert torch.equal(both.origin.other.constants["0.running_mean"], both.constants["0.running_mean"])
    assert torch.equal(both.origin.other.constants["0.running_var"], both.constants["0.running_var"])


def test_one_sample_has_no_statistics():
    model, x, y = batchnorm_model()
    with pytest.raises(
        ProblemError, match=r"BatchNorm has no statistics of one sample .*\. Expected more samples\. Raise"
    ):
        problem(model, x[:1], y[:1], batchnorm="re-estimated").losses()


def test_re_estimation_without_batchnorm_changes_nothing():
    kind = ZOO["relu mlp"]
    assert np.array_equal(kind.problem(batchnorm="re-estimated").losses(), kind.problem().losses())


# --- losses


def test_mse_pairs_n_by_1_with_n_whatever_the_float_type():
    model = nn.Linear(3, 1)
    x, y = torch.randn(20, 3), torch.randn(20, dtype=torch.float64)
    a, b = problem(model, x, y, "mse"), problem(model, x, y[:, None], "mse")
    assert np.array_equal(a.losses(), b.losses())
    by_hand = (model(x)[:, 0] - y.float()).square().detach().double().numpy()
    assert np.allclose(a.losses(), by_hand, rtol=10 * EPS32, atol=10 * EPS32)
    assert a.outcomes()[1] is None


def test_cross_entropy_and_correctness_are_those_of_the_formula():
    given = softmax_regression().problem
    scores = (given.data.inputs @ given.theta.view(3, -1).T).numpy()
    y = given.data.targets.numpy()
    expected = np.log(np.exp(scores).sum(1)) - scores[np.arange(len(y)), y]
    assert np.allclose(given.losses(), expected, rtol=100 * EPS, atol=100 * EPS)
    assert np.array_equal(given.outcomes()[1], (scores.argmax(1) == y).astype(float))


def test_a_model_may_return_an_object_with_logits():
    class Wrapped(nn.Linear):
        def forward(self, x):
            return type("Output", (), {"logits": super().forward(x)})()

    given = problem(Wrapped(4, 3), torch.randn(9, 4), torch.randint(3, (9,)))
    assert np.isfinite(given.losses()).all()
    assert torch.isfinite(given.hessian().matvec(torch.ones(given.size))).all()


def test_theta_is_a_copy_that_outlives_changes_of_the_model():
    given = least_squares().problem
    loss = given.loss()
    with torch.no_grad():
        given.model.weight.zero_()
    assert given.loss() == loss


# --- what is refused


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ProblemError, match=r"The model has no trainable parameter"):
        problem(nn.Linear(2, 2).requires_grad_(False), torch.ones(3, 2), torch.zeros(3, dtype=torch.long))


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(ProblemError, match=r"The batch size is 0"):
        least_squares(batch_size=0)


def test_batch_statistics_without_a_batch_size_are_refused():
    model, x, y = batchnorm_model()
    with pytest.raises(ProblemError, match=r"makes L depend on the micro-batches"):
        problem(model, x, y, batchnorm="batch")
    with pytest.raises(ProblemError, match=r"or without running statistics"):
        problem(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2)), x, y)


def test_batch_statistics_of_a_single_sample_are_refused():
    model, x, y = batchnorm_model()
    with pytest.raises(ProblemError, match=r"The last of the micro-batches of 7 has 1 of the 50 samples"):
        problem(model, x, y, batchnorm="batch", batch_size=7)


def test_data_of_a_subset_know_their_total():
    assert data(torch.ones(3, 1), torch.ones(3), total=9).total == 9
