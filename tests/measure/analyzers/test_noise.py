import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.noise import Noise
from gapscope.measure.loading import Loss
from gapscope.measure.problem import Problem
from gapscope.results import Quantity, Status
from tests.measure.test_samples import dense_gradients, dense_hessians
from tests.problems import ZOO, Bowl, bowl, context, data, dense_hessian, measure, problem, train

SGD = {"optimizer": "sgd", "lr": 0.1, "batch_size": 4}


class Dense:
    """Sigma, H and what follows from them, from dense float64 gradients of every sample."""

    def __init__(self, given):
        self.given, g = given, dense_gradients(given).numpy()
        self.mean, self.apart = g.mean(0), g - g.mean(0)
        self.sigma = self.apart.T @ self.apart / len(g)
        self.hessian = dense_hessian(given)
        self.trace, self.square = np.trace(self.sigma), self.mean @ self.mean
        self.along = np.trace(self.sigma @ self.hessian)
        self.bend = self.mean @ self.hessian @ self.mean

    def nonuniformity(self):
        each = dense_hessians(self.given).numpy()
        spread = np.einsum("iab,ibc->ac", each, each) / len(each) - self.hessian @ self.hessian
        return np.sqrt(np.linalg.eigvalsh(spread)[-1])


def one_dimension(curvature=2.0, samples=200, spread=1.5, total=None):
    """Return L = mean of h/2 (x - c_i)^2 at its minimum, and s^2 = h^2 var c, the covariance of its gradient."""
    shifts = torch.randn(samples, 1, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * spread
    shifts -= shifts.mean()
    given = bowl(torch.tensor([curvature], dtype=torch.float64), torch.zeros(1, dtype=torch.float64), shifts=shifts)
    if total:
        some = data(given.data.inputs, given.data.targets, total)
        given = Problem(model=given.model, data=some, loss_function=given.loss_function)
    return given, curvature**2 * float(shifts.square().mean())


@pytest.mark.parametrize("name", ZOO)
def test_every_model_is_measured_within_its_errors(name):
    given = ZOO[name].problem(samples=24)
    dense = Dense(given)
    result = measure(Noise(nonuniformity="no", tolerance=0.01), given)
    assert result.status in (Status.CONVERGED, Status.BUDGET_SPENT)
    assert result.covariance_trace.value == pytest.approx(dense.trace)
    assert result.gradient_norm.value == pytest.approx(np.sqrt(dense.square))
    assert result.noise_scale.value == pytest.approx(dense.trace / dense.square)
    assert result.population_square.value == pytest.approx(dense.square - dense.trace / 23)
    blocks = {name: np.trace(dense.sigma[where, where]) for name, where in given.parameters.blocks().items()}
    assert result.covariance_trace_blocks.value == pytest.approx(list(blocks.values()))
    assert result.covariance_trace_blocks.labels["layer"] == tuple(blocks)
    assert abs(result.curvature_noise.value - dense.along) <= 5 * result.curvature_noise.numerical_error
    if dense.along > 0 and dense.bend > 0:
        error = result.critical_batch.numerical_error
        assert abs(result.critical_batch.value - dense.along / dense.bend) <= 5 * error


@pytest.mark.parametrize("name", ["tanh mlp", "conv batchnorm", "lstm"])
def test_the_nonuniformity_is_that_of_the_dense_hessians(name):
    given = ZOO[name].problem(samples=8)
    true = Dense(given).nonuniformity()
    result = measure(Noise(tolerance=0.01), given)
    found = result.nonuniformity
    assert result.status is Status.CONVERGED
    assert found.value <= true * (1 + 1e-9)
    assert true <= found.value + found.numerical_error
    assert found.numerical_error <= 0.01 * found.value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_linear_regression_has_the_noise_of_the_formula(dtype):
    rng = torch.Generator().manual_seed(3)
    x, y = torch.randn(300, 4, generator=rng, dtype=torch.float64), torch.randn(300, 1, generator=rng)
    model = nn.Linear(4, 1, bias=False).to(dtype)
    result = measure(Noise(nonuniformity="yes", tolerance=1e-4), problem(model, x, y, "mse"))
    # l_i = (w'x_i - y_i)^2: g_i = 2 r_i x_i, H_i = 2 x_i x_i'
    w = model.weight.detach().double()
    g = 2 * (x @ w.T - y) * x
    sigma = torch.cov(g.T, correction=0)
    each = 2 * x[:, :, None] * x[:, None, :]
    spread = torch.linalg.eigvalsh((each @ each).mean(0) - each.mean(0) @ each.mean(0))[-1]
    close = {"rel": 1e-4 if dtype == torch.float32 else 1e-9}
    assert result.covariance_trace.value == pytest.approx(float(sigma.trace()), **close)
    assert result.noise_scale.value == pytest.approx(float(sigma.trace() / g.mean(0).square().sum()), **close)
    assert result.nonuniformity.value == pytest.approx(float(spread.sqrt()), rel=1e-4)
    along = float((sigma @ each.mean(0)).trace())
    assert result.curvature_noise.value == pytest.approx(along, abs=5 * float(result.curvature_noise.numerical_error))


def test_few_samples_give_the_curvature_noise_exactly():
    given = ZOO["tanh mlp"].problem(samples=9)
    result = measure(Noise(nonuniformity="no"), given)
    assert result.status is Status.EXACT
    assert result.matvecs == 9
    assert result.curvature_noise.value == pytest.approx(Dense(given).along)
    assert result.curvature_noise.numerical_error < 1e-10


def test_the_noise_of_real_mini_batches_is_what_the_covariance_predicts():
    # 1812.06162, appendix A: the two-batch estimates of |G|^2 and tr(Sigma), over many pairs of batches
    given = ZOO["tanh mlp"].problem(samples=40)
    result = measure(Noise(nonuniformity="no"), given)
    g, rng, small, big = dense_gradients(given).numpy(), np.random.default_rng(0), 2, 16
    norms = [
        np.square(g[rng.integers(40, size=(20_000, size))].mean(1)).sum(1) for size in (small, big)
    ]  # with replacement
    square = (big * norms[1] - small * norms[0]) / (big - small)
    noise = (norms[0] - norms[1]) / (1 / small - 1 / big)
    for drawn, exact in ((square, result.gradient_norm.value**2), (noise, result.covariance_trace.value)):
        assert abs(drawn.mean() - exact) <= 4 * drawn.std() / np.sqrt(len(drawn))


def test_the_stationary_variance_of_sgd_is_what_the_noise_predicts():
    given, _ = one_dimension()
    rate, batch, h = 0.2, 4, 2.0
    result = measure(Noise(), given, training={**SGD, "lr": rate, "batch_size": batch})
    square = float(result.covariance_trace.value)
    shifts, rng = given.data.targets.numpy()[:, 0], np.random.default_rng(1)
    x, squares = np.zeros(4000), []
    for step in range(220):  # 4,000 walkers; the memory of the start is (1 - eta h)^20 < 1e-4
        x = x - rate * h * (x - shifts[rng.integers(len(shifts), size=(4000, batch))].mean(1))
        if step >= 20:
            squares.append(np.mean(x**2))
    exact = rate**2 * square / (batch * (1 - (1 - rate * h) ** 2))
    assert np.mean(squares) == pytest.approx(exact, rel=0.02)
    # in the limit of small rates: D / h
    assert result.diffusion.value == pytest.approx(rate * square / (2 * batch))
    assert exact == pytest.approx(float(result.diffusion.value) / h, rel=rate * h)


def test_momentum_raises_the_diffusion_as_it_does_the_variance():
    given, _ = one_dimension()
    plain, heavy = (
        measure(Noise(), given, training={**SGD, "lr": 0.01, "momentum": momentum}) for momentum in (0.0, 0.9)
    )
    assert heavy.diffusion.value == pytest.approx(10 * float(plain.diffusion.value))
    assert heavy.rate_over_batch.value == pytest.approx(10 * float(plain.rate_over_batch.value))
    shifts, rng = given.data.targets.numpy()[:, 0], np.random.default_rng(1)
    x, u, squares = np.zeros(2000), np.zeros(2000), []
    for step in range(1500):
        u = 0.9 * u + 2.0 * (x - shifts[rng.integers(len(shifts), size=(2000, 4))].mean(1))
        x = x - 0.01 * u
        if step >= 300:
            squares.append(np.mean(x**2))
    assert np.mean(squares) == pytest.approx(float(heavy.diffusion.value) / 2, rel=0.04)


def test_sgd_is_stable_up_to_the_limits_and_no_further():
    # l_i = a_i x^2 / 2: E x^2 is multiplied by (1 - eta H)^2 + eta^2 s^2 (N - B) / (B (N - 1)) in each step
    a = torch.tensor([0.0, 0.0, 0.0, 8.0], dtype=torch.float64)
    loss = Loss("parabolas", lambda outputs, targets: 0.5 * targets * outputs.squeeze(1).square())
    given = problem(Bowl(torch.ones(1, dtype=torch.float64)), a[:, None], a, loss)
    result = measure(Noise(tolerance=1e-6), given, training={**SGD, "lr": 0.5, "batch_size": 2})
    s, limit = float(result.nonuniformity.value), float(result.nonuniformity_limit.value)
    assert s == pytest.approx(float(a.std(correction=0)))
    assert limit == pytest.approx(np.sqrt(2 * 3 / 2) / 0.5)
    assert s == pytest.approx(limit)  # at it, the second term alone keeps the square where it is
    assert (0.5 * limit) ** 2 * (4 - 2) / (2 * 3) == pytest.approx(1)
    assert result.sharpness_limit.value == pytest.approx(4)
    grows = (1 - 0.5 * float(a.mean())) ** 2 + (0.5 * s) ** 2 * (4 - 2) / (2 * 3)
    batches = torch.combinations(a, 2).mean(1)
    assert (1 - 0.5 * batches).square().mean() == pytest.approx(grows)


def test_the_standard_errors_are_the_spread_over_draws_of_the_data():
    found = {}
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        x = torch.randn(400, 3, generator=rng, dtype=torch.float64)
        y = x.sum(1, keepdim=True) + torch.randn(400, 1, generator=rng, dtype=torch.float64)
        model = nn.Linear(3, 1, bias=False).double()
        nn.init.constant_(model.weight, 0.5)
        result = measure(Noise(probes=10, tolerance=0.5), problem(model, x, y, "mse"))
        for name in ("noise_scale", "covariance_trace", "gradient_norm", "population_square", "nonuniformity"):
            quantity = getattr(result, name)
            found.setdefault(name, []).append((float(quantity.value), float(quantity.sampling_error)))
    for name, pairs in found.items():
        values, errors = np.array(pairs).T
        assert np.mean(errors) == pytest.approx(values.std(ddof=1), rel=0.35), name
    # |G|^2 - tr(Sigma) / (N - 1) is right on average: the gradient of the distribution is 2 (w - w*) = -1 each
    values = np.array(found["population_square"])[:, 0]
    assert abs(values.mean() - 3) <= 4 * values.std() / np.sqrt(len(values))


def pulled(samples):
    """Return a regression far from its targets: all samples pull one way, so the noise scale is small."""
    given = ZOO["regression"].problem(samples=samples)
    return problem(given.model, given.data.inputs, given.data.targets + 20, "mse")


def test_chunks_weighted_by_their_sizes_give_the_values():
    given = pulled(77)
    result = measure(Noise(), given, training=SGD)
    assert result.noise_scale.value * 20 < 77
    weights = np.bincount(given.chunk_of.numpy()) / 77
    for name in ("noise_scale", "covariance_trace", "nonuniformity", "diffusion"):
        quantity = getattr(result, name)
        assert weights @ quantity.chunks == pytest.approx(float(quantity.value), rel=1e-6)


def test_equal_samples_make_no_noise():
    given = bowl(torch.ones(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64), theta=torch.ones(3))
    result = measure(Noise(), given)
    assert result.noise_scale.value == result.covariance_trace.value == 0
    assert result.nonuniformity.value == pytest.approx(0, abs=1e-6)
    assert result.critical_batch is None
    assert any(note.startswith("no critical batch: tr(Sigma H) is 0 ") for note in result.notes)


def test_a_vanishing_gradient_has_no_noise_scale():
    shifts = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    given = bowl(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), shifts=shifts)
    result = measure(Noise(), given)
    assert np.isnan(result.noise_scale.value)
    assert result.noise_scale.numerical_error is None
    assert result.noise_scale.sampling_error is None
    assert result.covariance_trace.value == 1
    assert result.gradient_norm.sampling_error is None


@pytest.mark.parametrize("samples", [1, 2, 63, 64])
def test_few_samples(samples):
    result = measure(Noise(), ZOO["tanh mlp"].problem(samples=samples), training=SGD)
    assert result.status is not Status.NONFINITE
    for quantity in (result.covariance_trace, result.nonuniformity):
        assert (quantity.sampling_error is None) == (samples == 1)
        assert (quantity.chunks is None) == (samples < 64)


def test_sharpness_stands_beside_its_limit_where_eigenvalues_ran_before():
    given = ZOO["tanh mlp"].problem(samples=20)
    training = {**SGD, "momentum": 0.5, "weight_decay": 0.01}
    missing = "no sharpness beside its limit: `eigenvalues` did not run before, in the same run, on the Hessian"
    alone = measure(Noise(), given, training=training)
    assert alone.sharpness is None
    assert missing in alone.notes
    together = context(Eigenvalues(), Noise(), training=training, train=given)
    top = together.result("eigenvalues").top
    result = together.result("noise")
    assert result.sharpness.value == top.value + 0.01
    assert result.sharpness.numerical_error == top.numerical_error
    assert result.sharpness_limit.value == pytest.approx(3 / 0.1)
    assert missing not in result.notes
    assert result.nonuniformity_limit is None
    assert "no limit of the non-uniformity: the one known is for SGD without momentum" in result.notes
    other = context(Eigenvalues(gauss_newton=True), Noise(), training=training, train=given)
    other.result("eigenvalues")
    assert other.result("noise").sharpness is None


def test_the_limit_counts_all_samples_also_when_measured_on_some():
    given, _ = one_dimension(samples=20, total=1000)
    result = measure(Noise(), given, training=SGD)
    assert result.nonuniformity_limit.value == pytest.approx(np.sqrt(4 * 999 / 996) / 0.1)
    assert "measured on 20 of 1,000 samples" in result.notes


def test_a_batch_of_all_samples_has_no_limit():
    given, _ = one_dimension(samples=20)
    result = measure(Noise(), given, training={**SGD, "batch_size": 20})
    assert result.nonuniformity_limit is None
    assert "no limit of the non-uniformity: the recorded batch holds all samples" in result.notes


@pytest.mark.parametrize(
    ("training", "lacking"),
    [
        ({}, "`optimizer` sgd, a positive `lr`, a `batch_size`"),
        ({**SGD, "optimizer": ""}, "`optimizer` sgd"),
        ({**SGD, "optimizer": ["sgd"]}, "`optimizer` sgd"),
        ({**SGD, "lr": "fast"}, "a positive `lr`"),
        ({**SGD, "lr": True}, "a positive `lr`"),
        ({**SGD, "lr": float("nan")}, "a positive `lr`"),
        ({**SGD, "lr": -0.1}, "a positive `lr`"),
        ({**SGD, "lr": 10**400}, "a positive `lr`"),
        ({**SGD, "batch_size": 0}, "a `batch_size`"),
        ({**SGD, "batch_size": torch.ones(3)}, "a `batch_size`"),
        ({**SGD, "momentum": 1.0}, "a `momentum` below 1"),
        ({**SGD, "momentum": np.ones(3)}, "a `momentum` below 1"),
        ({**SGD, "weight_decay": {}}, "a `weight_decay`"),
    ],
)
def test_what_was_not_recorded_is_named_and_left_out(training, lacking):
    result = measure(Noise(nonuniformity="no"), one_dimension()[0], training=training)
    assert f"no diffusion and no limits of stability: the checkpoint does not record {lacking}" in result.notes
    names = ("rate_over_batch", "diffusion", "sharpness", "sharpness_limit", "nonuniformity_limit")
    assert all(getattr(result, name) is None for name in names)
    assert result.covariance_trace.value > 0


def test_none_is_no_momentum():
    training = {**SGD, "momentum": None, "weight_decay": None}
    assert measure(Noise(), one_dimension()[0], training=training).rate_over_batch.value == pytest.approx(0.1 / 4)


def test_the_nonuniformity_is_left_out_where_it_is_dear(monkeypatch):
    given = ZOO["tanh mlp"].problem(samples=20)
    monkeypatch.setattr("gapscope.measure.analyzers.noise.AUTO_WORK", given.size * 20 - 1)
    note = f"non-uniformity left out: {given.size} parameters x 20 samples are dear; `--nonuniformity yes` measures it"
    auto, yes, no = (Noise(nonuniformity=wanted) for wanted in ("auto", "yes", "no"))
    assert measure(auto, given).nonuniformity is None
    assert note in measure(auto, given).notes
    assert measure(yes, given).nonuniformity is not None
    assert note not in measure(no, given).notes
    assert auto.passes(given) == no.passes(given)
    assert (auto.passes(given)["curvature_squares"], yes.passes(given)["curvature_squares"]) == (0, 10)


def test_spent_budgets_say_so():
    given = ZOO["tanh mlp"].problem(samples=40)
    result = measure(Noise(tolerance=1e-6, probes=10, max_matvecs=4), given)
    assert result.status is Status.BUDGET_SPENT
    assert "tr(Sigma H) not converged: raise `--probes`; the error stated still holds" in result.notes
    assert "non-uniformity not converged: the products ran out; raise `--max-matvecs`" in result.notes
    assert abs(result.curvature_noise.value - Dense(given).along) <= 5 * result.curvature_noise.numerical_error


def test_a_gradient_that_is_not_finite_is_a_status():
    loss = Loss("roots", lambda outputs, targets: outputs.sum(1).abs().sqrt())
    given = problem(nn.Linear(3, 1, bias=False).double(), torch.zeros(4, 3), torch.zeros(4), loss)
    result = measure(Noise(), given, training=SGD)
    assert result.status is Status.NONFINITE
    assert all(isinstance(quantity, Quantity) for quantity in result.quantities().values())


@pytest.mark.parametrize("options", [{"tolerance": 0.0}, {"tolerance": 1.0}, {"probes": 9}, {"max_matvecs": 2}])
def test_senseless_options_are_refused(options):
    with pytest.raises(
        UsageError, match=r"noise got .* Expected 0 < tolerance < 1, 10 probes or more, and max_matvecs"
    ):
        measure(Noise(**options), one_dimension()[0])


def test_batch_statistics_are_refused():
    given = ZOO["conv batchnorm"].problem(samples=8, batch_size=4, batchnorm="batch")
    with pytest.raises(ProblemError, match=r"there is no gradient of a single one"):
        measure(Noise(), given)


def test_only_the_seed_changes_the_probes():
    given = ZOO["tanh mlp"].problem(samples=30)
    first, again, other = (measure(Noise(nonuniformity="no"), given, seed=seed) for seed in (0, 0, 1))
    assert first.curvature_noise.value == again.curvature_noise.value != other.curvature_noise.value
    assert first.covariance_trace.value == other.covariance_trace.value


def test_another_optimizer_is_named():
    result = measure(Noise(), ZOO["tanh mlp"].problem(), training={**SGD, "optimizer": "adamw"})
    assert result.diffusion is None
    said = "no diffusion and no limits of stability: that is for SGD, and this was trained by adamw"
    assert said in result.notes


def test_a_gradient_that_cannot_be_told_from_zero_is_said():
    given = train(ZOO["tanh mlp"].problem(), 300)
    assert any("largely their own luck" in note for note in measure(Noise(), given).notes)
    assert not any("own luck" in note for note in measure(Noise(), pulled(400)).notes)


def test_what_vanishes_in_float32_is_not_zero():
    # gradients of 1e-16 and second derivatives along them: products of two would be 1e-46
    found = []
    for dtype in (torch.float32, torch.float64):
        given = ZOO["regression"].problem(0, dtype)
        with torch.no_grad():
            for parameter in given.model.parameters():
                parameter.mul_(1e-15)
        given = problem(given.model, given.data.inputs, torch.zeros_like(given.data.targets), "mse")
        found.append(measure(Noise(nonuniformity="no"), given).curvature_noise)
    single, double = found
    assert double.value > 0
    assert abs(single.value - double.value) <= single.numerical_error + double.numerical_error


def test_small_gradients_have_a_critical_batch_and_errors():
    found = []
    for unit in (1.0, 1e-24):
        given = ZOO["regression"].problem(0, torch.float32)
        loss = Loss("scaled", lambda outputs, targets, unit=unit: unit * (outputs - targets).square().mean(1))
        found.append(
            measure(Noise(nonuniformity="no"), problem(given.model, given.data.inputs, given.data.targets, loss))
        )
    plain, small = found
    assert small.critical_batch.value == pytest.approx(plain.critical_batch.value, rel=1e-3)
    assert small.noise_scale.value == pytest.approx(plain.noise_scale.value, rel=1e-3)
    errors = [float(one.population_square.sampling_error) for one in found]
    assert errors[1] / errors[0] == pytest.approx(1e-48, rel=1e-3, abs=0)
    assert small.critical_batch.numerical_error > 0
