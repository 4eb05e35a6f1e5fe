import copy
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from gapscope.errors import UsageError
from gapscope.measure import interface
from gapscope.measure.analyzers.adaptive_sharpness import AdaptiveSharpness
from gapscope.measure.loading import Loss, Request, load
from gapscope.measure.monitor import Monitor
from gapscope.measure.problem import Problem
from gapscope.results import Status
from tests.problems import ZOO, bowl, context, data, dense_hessian, measure, problem, train

FIXTURES = Path(__file__).parents[3] / "fixtures"
QUICK = AdaptiveSharpness(rhos_l2=(0.5,), rhos_linf=(0.01,), rhos_average=(0.1,), steps=8, draws=2, probes=2)
RESCALED = ("worst_l2", "worst_linf", "average", "relative_flatness", "fisher_rao")


def curved(size=12, seed=0):
    """Return curvatures and a center with |c_j| and h_j c_j^2 that have a clear largest entry."""
    rng = torch.Generator().manual_seed(seed)
    h = 1 + 9 * torch.rand(size, generator=rng, dtype=torch.float64)
    c = (1 + torch.rand(size, generator=rng, dtype=torch.float64)) * torch.randn(size, generator=rng).sign()
    c[2], h[5] = 4.0, 40.0
    return h, c


def fitted_line(samples=60, size=7):
    """Return a linear least-squares problem at its minimum, and its dense Hessian."""
    rng = torch.Generator().manual_seed(4)
    x, y = (torch.randn(samples, width, generator=rng, dtype=torch.float64) for width in (size, 1))
    model = nn.Linear(size, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    return problem(model, x, y, "mse"), (2 / samples * x.T @ x).numpy()


def rescaled(given, factor):
    """Return the same function of the data with the first layer times a factor and the second divided by it."""
    model = copy.deepcopy(given.model)
    with torch.no_grad():
        model[0].weight.mul_(factor)
        model[0].bias.mul_(factor)
        model[2].weight.div_(factor)
    return dataclasses.replace(given, model=model)


def louder(given, factor):
    """Return the same decisions with the class scores times a factor."""
    model = copy.deepcopy(given.model)
    with torch.no_grad():
        model[4].weight.mul_(factor)
        model[4].bias.mul_(factor)
    return dataclasses.replace(given, model=model)


def fixture(regime, dtype=torch.float32):
    loaded = load(Request(checkpoint=FIXTURES / f"digits-{regime}-batch.pt"))
    return Problem(model=loaded.model.to(dtype), data=loaded.train, loss_function=loaded.loss)


# --- closed forms


@pytest.mark.parametrize("seed", range(3))
def test_a_diagonal_quadratic_agrees_with_its_closed_forms(seed):
    h, c = curved(seed=seed)
    result = measure(AdaptiveSharpness(steps=100, draws=400), bowl(h, c), seed=seed)
    weighted = (h * c**2).numpy()
    for j, (l2, linf, average) in enumerate(((0.5, 4e-3, 0.1), (0.25, 2e-3, 0.05))):
        assert result.worst_l2.value[j] == pytest.approx(0.5 * l2**2 * weighted.max(), rel=1e-6)
        assert result.worst_linf.value[j] == pytest.approx(0.5 * linf**2 * weighted.sum(), rel=1e-9)
        found, error = result.average.value[j], result.average.numerical_error[j]
        assert abs(found - 0.5 * average**2 * weighted.sum()) <= 4 * error
        # of u'Au with N(0, 1): 2 |A|_F^2; the estimate from 400 pairs is good to 1 / sqrt(2 * 399), times its kurtosis
        assert error == pytest.approx(0.5 * average**2 * np.sqrt(2 * (weighted**2).sum() / 400), rel=0.3)
    assert result.sam.value == pytest.approx(0.5 * 0.05**2 * 40, rel=1e-6)
    assert result.fisher_rao.value == 0
    assert result.status is Status.CONVERGED


def test_a_dense_quadratic_at_its_minimum_rises_by_half_the_top_eigenvalue():
    given, hessian = fitted_line()
    size = given.theta.abs().numpy()
    scaled = size[:, None] * hessian * size
    result = measure(AdaptiveSharpness(steps=150, draws=100), given)
    for quantity, rho, matrix in ((result.worst_l2, 0.5, scaled), (result.sam, 0.05, hessian)):
        exact = 0.5 * rho**2 * np.linalg.eigvalsh(matrix)[-1]
        assert exact * (1 - 1e-5) - quantity.numerical_error[0] <= quantity.value[0] <= exact * (1 + 1e-9)
    exact = 0.5 * 0.1**2 * np.trace(scaled)
    assert abs(result.average.value[0] - exact) <= 4 * result.average.numerical_error[0]
    signs = np.array(np.meshgrid(*[[-1, 1]] * len(size))).reshape(len(size), -1)  # convex: the maximum is at a vertex
    vertices = 0.5 * 4e-3**2 * np.einsum("ij,ik,kj->j", signs, scaled, signs)
    assert np.abs(vertices / result.worst_linf.value[0] - 1).min() <= 1e-9  # one of them, a local maximum
    assert 0.95 * vertices.max() <= result.worst_linf.value[0] <= vertices.max() * (1 + 1e-9)


def test_weights_of_zero_stay_zero_and_are_counted():
    h, c = curved()
    c[5] = c[7] = 0  # the steepest coordinate among them
    result = measure(AdaptiveSharpness(steps=100, draws=3), bowl(h, c))
    assert result.worst_l2.value[0] == pytest.approx(0.5 * 0.5**2 * float((h * c**2).max()), rel=1e-6)
    assert result.sam.value == pytest.approx(0.5 * 0.05**2 * 40, rel=1e-6)
    assert result.notes[0] == "2 of 12 parameters are exactly 0 and stay 0 in the adaptive balls"
    nothing = measure(AdaptiveSharpness(), bowl(h, torch.zeros_like(c)))
    assert not nothing.worst_l2.value.any()
    assert not nothing.worst_linf.value.any()
    assert nothing.sam.value > 0


@pytest.mark.parametrize("kind", ["tanh mlp", "conv groupnorm", "conv batchnorm"])
def test_relative_flatness_agrees_with_the_dense_hessian(kind):
    given = ZOO[kind].problem()
    quantity = measure(dataclasses.replace(QUICK, probes=150), given).relative_flatness
    hessian, exact, start = dense_hessian(given), [], 0
    for name, p in given.model.named_parameters():
        if name.endswith("weight") and p.ndim > 1:
            w = p.detach().flatten(1).numpy()
            out, rest = w.shape
            block = hessian[start : start + p.numel(), start : start + p.numel()].reshape(out, rest, out, rest)
            exact.append(sum(w[s] @ w[t] * np.trace(block[s, :, t, :]) for s in range(out) for t in range(out)))
        start += p.numel()
    assert len(exact) == len(quantity.value)
    assert (np.abs(quantity.value - exact) <= 4 * quantity.numerical_error).all()
    assert (quantity.numerical_error <= 0.3 * np.abs(exact).max()).all()


def test_fisher_rao_is_the_mean_squared_slope_along_theta():
    given = ZOO["tanh mlp"].problem()
    named, x, y = dict(given.model.named_parameters()), given.data.inputs.double(), given.data.targets
    losses = lambda p: nn.functional.cross_entropy(functional_call(given.model, p, (x,)), y, reduction="none")  # noqa: E731
    rows = jacrev(losses)({name: p.detach() for name, p in named.items()})
    slopes = sum((rows[name] * p.detach()).flatten(1).sum(1) for name, p in named.items()).numpy()
    quantity = measure(QUICK, given).fisher_rao
    assert quantity.value == pytest.approx((slopes**2).mean(), rel=1e-10)
    assert quantity.sampling_error == pytest.approx((slopes**2).std(ddof=1) / np.sqrt(len(slopes)), rel=1e-10)


def test_the_step_of_sam_is_the_rise_along_the_gradient():
    given = ZOO["tanh mlp"].problem()
    result, slope = measure(QUICK, given), given.gradient()
    there = given.loss(given.theta + 0.05 * slope / slope.norm())
    assert result.sam_step.value == pytest.approx(there - given.loss(), rel=1e-9)
    assert (result.sam.value >= result.sam_step.value).all()


# --- invariances


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [8.0, 2.0**-7])
def test_rescaling_layers_by_powers_of_two_changes_no_bit(dtype, factor):
    given = train(ZOO["relu mlp"].problem(dtype=dtype), 30)
    a, b = (measure(QUICK, where) for where in (given, rescaled(given, factor)))
    for name in RESCALED:
        first, second = (result.quantities()[name] for result in (a, b))
        assert np.array_equal(first.value, second.value), name
        if first.sampling_error is not None:
            assert np.array_equal(first.sampling_error, second.sampling_error), name
    assert abs(b.sam.value / a.sam.value - 1) > 0.5


@pytest.mark.parametrize("factor", [3.7, 0.01])
def test_rescaling_layers_changes_nothing_but_rounding(factor):
    given = train(ZOO["relu mlp"].problem(), 30)
    a, b = (measure(QUICK, where).quantities() for where in (given, rescaled(given, factor)))
    for name in RESCALED:
        assert a[name].value == pytest.approx(b[name].value, rel=1e-7), name
    assert abs(b["sam"].value / a["sam"].value - 1) > 0.05


def test_the_loudness_of_the_scores_moves_adaptive_sharpness_and_not_the_normalized_one():
    given = train(ZOO["relu mlp"].problem(), 60)
    settings = dataclasses.replace(QUICK, normalize_logits=True)
    a, b = (measure(settings, where).quantities() for where in (given, louder(given, 5.0)))
    for name in ("worst_l2", "worst_linf", "average"):
        assert abs(b[name].value / a[name].value - 1) > 0.1
        normalized = f"{name}_normalized"
        assert a[normalized].value == pytest.approx(b[normalized].value, rel=1e-7)
        assert (a[normalized].value > 0).all()
    plain = measure(QUICK, given).quantities()
    assert all(np.array_equal(plain[name].value, a[name].value) for name in plain)  # the option only adds


def test_scores_that_are_all_zero_and_scores_of_tokens_can_be_normalized():
    settings = dataclasses.replace(QUICK, normalize_logits=True)
    model = nn.Linear(4, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    blank = problem(model, torch.ones(9, 4), torch.zeros(9, dtype=torch.long))
    assert not measure(settings, blank).worst_l2_normalized.value.any()
    tokens = measure(settings, ZOO["tied embedding"].problem())
    assert (tokens.worst_l2_normalized.value > 0).all()


def test_only_the_seed_changes_what_is_random():
    given = ZOO["tanh mlp"].problem()
    a, b, c = (measure(QUICK, given, seed=seed) for seed in (0, 0, 1))
    assert all(np.array_equal(q.value, b.quantities()[name].value) for name, q in a.quantities().items())
    assert not np.array_equal(a.average.value, c.average.value)
    assert not np.array_equal(a.relative_flatness.value, c.relative_flatness.value)
    assert np.array_equal(a.worst_l2.value, c.worst_l2.value)  # with a slope, 20 steps or fewer draw nothing


@pytest.mark.parametrize("batchnorm", ["eval", "re-estimated", "batch"])
def test_the_model_is_given_back_as_it_was(batchnorm):
    given = ZOO["conv batchnorm"].problem(batchnorm=batchnorm, batch_size=25)
    given.model.train()
    before = copy.deepcopy(given.model.state_dict())
    measure(dataclasses.replace(QUICK, normalize_logits=True, m=0 if batchnorm == "batch" else 20), given)
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.model.state_dict().items())
    assert given.model.training
    assert all(p.grad is None and p.requires_grad for p in given.model.parameters())


def norms():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("batchnorm", ["eval", "re-estimated", "batch"])
@pytest.mark.parametrize("more", [{}, {"normalize_logits": True}, {"m": 32}])
def test_what_happens_to_the_model_later_changes_nothing(batchnorm, more):
    if batchnorm == "batch" and "m" in more:
        return  # refused
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(128, 6, generator=rng), torch.randint(3, (128,), generator=rng)
    settings = dataclasses.replace(QUICK, **more)
    size = 64 if batchnorm == "batch" else None
    a, b = (interface.problem(norms(), (x, y), batchnorm=batchnorm, batch_size=size) for _ in range(2))
    with torch.no_grad():
        for p in b.model.parameters():
            p.mul_(3)
        for buffer in b.model.buffers():
            if buffer.is_floating_point():
                buffer.add_(1)
    first, second = (measure(settings, where).quantities() for where in (a, b))
    assert all(np.array_equal(first[name].value, second[name].value) for name in first)
    assert list(first) == list(second)


# --- m-sharpness


@pytest.mark.parametrize("kind", ["tanh mlp", "conv batchnorm"])
def test_m_sharpness_is_the_mean_of_the_maxima_of_its_batches(kind):
    more = {"batchnorm": "re-estimated"} if kind == "conv batchnorm" else {}
    given = ZOO[kind].problem(samples=50, **more)
    settings = dataclasses.replace(QUICK, m=16, steps=40)  # three batches of 16 or 17
    places = np.array_split(np.random.default_rng(0).permutation(50), 3)
    model = copy.deepcopy(given.model)  # the statistics of all samples, whatever the batch
    model.load_state_dict({**model.state_dict(), **given.constants})
    direct = dict.fromkeys(("worst_l2", "worst_linf", "sam"), 0.0)
    for index in places:
        part = problem(model, given.data.inputs[index], given.data.targets[index])
        alone = measure(dataclasses.replace(settings, m=0), part).quantities()
        for name in direct:
            direct[name] += len(index) / 50 * float(alone[name].value[0])
    result = measure(settings, given)
    whole = measure(dataclasses.replace(settings, m=0), given).quantities()
    for name, value in direct.items():
        assert result.quantities()[name].value[0] == pytest.approx(value, rel=1e-3), name
        assert result.quantities()[name].value[0] >= whole[name].value[0], name
    assert np.array_equal(result.average.value, whole["average"].value)
    assert "m-sharpness: means over 3 batches of 16 to 17 samples" in " ".join(result.notes)


@pytest.mark.parametrize("m", [50, 51, 1000])
def test_m_beyond_the_data_is_one_ball(m):
    given = ZOO["tanh mlp"].problem(samples=50)
    a, b = (measure(dataclasses.replace(QUICK, m=size), given) for size in (m, 0))
    assert np.array_equal(a.worst_l2.value, b.worst_l2.value)


# --- errors, status, cost


@pytest.mark.parametrize("name", ["worst_l2", "worst_linf", "average", "sam", "fisher_rao"])
def test_chunks_add_up_to_the_value_and_spread_like_the_sampling_error(name):
    given = ZOO["regression"].problem(samples=320)
    quantity = measure(QUICK, given).quantities()[name]
    chunks = quantity.chunks.reshape(32)
    assert chunks.mean() == pytest.approx(float(quantity.value.reshape(())), rel=1e-9)
    # 32 means of ten samples: their spread is the same standard error, known to 1 / sqrt(2 * 31)
    assert chunks.std(ddof=1) / np.sqrt(32) == pytest.approx(
        float(quantity.sampling_error.reshape(())), rel=5 / 62**0.5
    )


def test_the_sampling_error_is_the_spread_over_fresh_data():
    h, c = curved(4 + 8)
    values, errors = [], []
    for seed in range(60):
        shifts = 0.05 * torch.randn(60, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        given = bowl(h, c, theta=c + 0.5, shifts=shifts)
        settings = AdaptiveSharpness(
            rhos_l2=(0.1,), rhos_linf=(), rhos_average=(), rhos_sam=(), steps=10, draws=2, probes=0
        )
        result = measure(settings, given)
        values.append(float(result.worst_l2.value[0]))
        errors.append(float(result.worst_l2.sampling_error[0]))
    # one maximum for all: the slope at theta outweighs the noise; five standard errors of a deviation
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=5 / np.sqrt(2 * 59))


@pytest.mark.parametrize("regime", ["small", "large"])
def test_twenty_steps_come_close_to_many_on_the_fixtures(regime):
    given = fixture(regime)
    quick, long = (
        measure(AdaptiveSharpness(steps=steps, rhos_average=(), probes=0), given).quantities() for steps in (20, 150)
    )
    for name in ("worst_l2", "worst_linf", "sam"):
        assert (quick[name].value >= 0.95 * long[name].value).all(), name
        assert (quick[name].numerical_error <= 0.1 * quick[name].value).all()
        assert quick[name].bound == "lower"


@pytest.mark.parametrize("kind", ["tanh mlp", "conv batchnorm", "fused attention"])
def test_float32_and_float64_agree_within_the_stated_errors(kind):
    single, double = (measure(QUICK, ZOO[kind].problem(dtype=dtype)) for dtype in (torch.float32, torch.float64))
    for name in ("worst_l2", "worst_linf", "average", "sam", "fisher_rao"):
        a, b = (result.quantities()[name] for result in (single, double))
        assert (np.abs(a.value - b.value) <= a.numerical_error + b.numerical_error).all(), name


def certain(factor):
    """Return a trained network with its scores times a factor, in float32 and float64: the loss falls exponentially."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=rng)
    y = (x @ torch.randn(6, 3, generator=rng)).argmax(1)
    torch.manual_seed(0)
    given = train(problem(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)), x, y), 500)
    with torch.no_grad():
        given.model[2].weight.mul_(factor)
        given.model[2].bias.mul_(factor)
    double = copy.deepcopy(given.model).double()
    return problem(given.model, x, y), problem(double, x.double(), y)


def test_a_slope_whose_square_is_zero_in_float32_is_a_slope():
    single, double = certain(20.0)
    assert single.gradient().any()
    assert single.gradient().norm() == 0
    a, b = (measure(dataclasses.replace(QUICK, steps=20), where).quantities() for where in (single, double))
    assert b["worst_l2"].value[0] > 0.1
    for name in ("worst_l2", "worst_linf", "sam"):
        assert a[name].value == pytest.approx(b[name].value, rel=1e-3), name


def test_no_slope_in_float32_is_said_and_not_called_converged():
    single, double = certain(50.0)
    assert not single.gradient().any()
    result = measure(QUICK, single)
    assert result.status is Status.BUDGET_SPENT
    assert any("no point that was tried has a slope" in note and "--dtype float64" in note for note in result.notes)
    assert not any("raise `--steps`" in note for note in result.notes)
    assert measure(dataclasses.replace(QUICK, steps=20), double).worst_l2.value[0] > 0.1


class Counter(Monitor):
    """Counts what was promised and what was done, in passes over the data."""

    promised, done = 0, 0.0

    def begin(self, name, passes):
        self.promised = passes

    def tick(self, fraction):
        self.done += fraction


@pytest.mark.parametrize("more", [{}, {"normalize_logits": True}, {"m": 16}, {"probes": 0}, {"rhos_average": ()}])
def test_the_work_is_what_was_promised(more):
    settings, monitor = dataclasses.replace(QUICK, **more), Counter()
    given = ZOO["tanh mlp"].problem(samples=50, monitor=monitor)
    where = dataclasses.replace(context(settings, train=given), monitor=monitor)
    result = where.result("adaptive-sharpness")
    assert monitor.done == pytest.approx(monitor.promised, abs=3)
    assert sum(settings.passes(given).values()) == monitor.promised
    assert result.matvecs == settings.probes


def test_what_was_not_asked_for_is_absent():
    settings = AdaptiveSharpness(rhos_linf=(), rhos_average=(), rhos_sam=(), probes=0)
    result = measure(settings, ZOO["relu mlp"].problem())
    assert list(result.quantities()) == ["worst_l2", "fisher_rao"]
    assert result.worst_l2.labels == {"rho_l2": ("0.5", "0.25")}


def test_a_model_without_layers_of_units_has_no_relative_flatness_and_says_so():
    h, c = curved()
    result = measure(QUICK, bowl(h, c))
    assert result.relative_flatness is None
    assert result.matvecs == 0
    assert any("no linear or convolutional layer" in note for note in result.notes)


def test_tied_and_frozen_weights_keep_their_places():
    tied = ZOO["tied embedding"].problem()
    assert measure(QUICK, tied).relative_flatness.labels["layer"] == ("embed", "mix")
    given = ZOO["tanh mlp"].problem()
    given.model[0].weight.requires_grad_(False)
    frozen = dataclasses.replace(given)
    assert measure(QUICK, frozen).relative_flatness.labels["layer"] == ("2", "4")


def test_a_budget_too_small_is_said():
    settings = dataclasses.replace(QUICK, steps=2, rhos_l2=(2.0,))
    result = measure(settings, train(ZOO["tanh mlp"].problem(), 60))
    assert result.status is Status.BUDGET_SPENT
    assert any("raise `--steps`" in note for note in result.notes)


def test_subsets_are_noted():
    given = ZOO["tanh mlp"].problem()
    few = dataclasses.replace(given, data=data(given.data.inputs, given.data.targets, 999))
    assert measure(QUICK, few).notes[-1].startswith("measured on 50 of 999 samples")


def test_one_sample_has_no_sampling_error():
    result = measure(dataclasses.replace(QUICK, normalize_logits=True), ZOO["relu mlp"].problem(samples=1))
    assert all(quantity.sampling_error is None for quantity in result.quantities().values())


def test_the_step_of_sam_is_a_detail():
    assert measure(QUICK, ZOO["relu mlp"].problem()).sam_step.drawn == "detail"


@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples_are_enough(samples):
    result = measure(dataclasses.replace(QUICK, m=1), ZOO["relu mlp"].problem(samples=samples))
    assert np.isfinite(result.worst_l2.value).all()
    assert result.worst_l2.chunks is None


def test_a_loss_that_overflows_is_not_a_number():
    def cliff(outputs, targets):
        return (outputs - targets).square().sum(1) + torch.where(outputs.abs().amax(1) > 1.01, torch.inf, 0.0)

    model = nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.5)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(20, 3, generator=rng, dtype=torch.float64) / 1.5, torch.zeros(20, 1, dtype=torch.float64)
    settings = dataclasses.replace(QUICK, rhos_average=(3.0,))
    result = measure(settings, problem(model, x, y, Loss("cliff", cliff)))
    assert result.status is Status.NONFINITE
    assert np.isnan(result.worst_l2.value).all()
    assert np.isnan(result.average.value).all()
    assert np.isfinite(result.sam.value).all()


@pytest.mark.parametrize(
    "bad",
    [
        {"rhos_l2": ()},
        {"rhos_l2": (0.0,)},
        {"rhos_linf": (-1.0,)},
        {"rhos_average": (float("nan"),)},
        {"rhos_sam": (float("inf"),)},
        {"steps": 1},
        {"draws": 1},
        {"probes": 1},
        {"probes": -1},
        {"m": -1},
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(UsageError, match=r"adaptive-sharpness got rhos_l2=.*Expected positive radii"):
        measure(AdaptiveSharpness(**bad), ZOO["relu mlp"].problem())


def test_normalizing_what_are_no_scores_is_refused():
    with pytest.raises(UsageError, match=r"The loss `mse` is not one of class scores\. Expected cross-entropy"):
        measure(AdaptiveSharpness(normalize_logits=True), ZOO["regression"].problem())


def test_m_sharpness_of_a_loss_that_depends_on_the_batches_is_refused():
    given = ZOO["conv batchnorm"].problem(batchnorm="batch", batch_size=25)
    with pytest.raises(UsageError, match=r"m-sharpness has batches of its own\. Expected fixed statistics for m=16"):
        measure(AdaptiveSharpness(m=16), given)
