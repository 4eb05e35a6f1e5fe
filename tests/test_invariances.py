"""What must not change a number, what may change it within its error, and what does change it, documented."""

import copy

import numpy as np
import pytest
import torch

from gapscope.measure import traces
from gapscope.measure.analyzers.adaptive_sharpness import AdaptiveSharpness
from gapscope.measure.analyzers.density import Density
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.epsilon_sharpness import EpsilonSharpness
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.analyzers.near_rank import NearRank
from gapscope.measure.analyzers.noise import Noise
from gapscope.measure.analyzers.trace import Trace
from tests.problems import ZOO, measure, problem

ANALYZERS = [
    Eigenvalues(),
    EpsilonSharpness(manifold=10),
    AdaptiveSharpness(),
    Gap(),
    NearRank(),
    Noise(nonuniformity="no"),
    Trace(),
    Density(probes=2, steps=8),
]
KINDS = ["relu mlp", "conv batchnorm", "fused attention", "lstm"]
ROUNDING = 1e-9  # in float64: an eigenvalue or a loss increase of 1e-4 keeps 1e4 epsilons


def values(result):
    return {name: quantity.value for name, quantity in result.quantities().items()}


def assert_close(a, b, tolerance=ROUNDING, but=()):
    for name, value in values(a).items():
        if name in but:
            continue
        if "evaluations" not in name and "iterations" not in name and "residual" not in name:
            assert np.allclose(value, values(b)[name], rtol=tolerance, atol=tolerance, equal_nan=True), name


def by_name(analyzer):
    return analyzer.name


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=by_name)
@pytest.mark.parametrize("kind", KINDS)
def test_the_micro_batch_changes_nothing(analyzer, kind):
    whole, ragged = (measure(analyzer, ZOO[kind].problem(samples=70, batch_size=size)) for size in (70, 16))
    assert_close(whole, ragged)
    for name, quantity in whole.quantities().items():
        if quantity.sampling_error is not None:
            assert np.allclose(quantity.sampling_error, ragged.quantities()[name].sampling_error, rtol=1e-6, atol=1e-9)
        if quantity.chunks is not None:
            assert np.allclose(quantity.chunks, ragged.quantities()[name].chunks, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=by_name)
@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_samples_changes_nothing(analyzer, kind):
    given = ZOO[kind].problem(samples=70)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    shuffled = problem(given.model, given.data.inputs[order], given.data.targets[order])
    a, b = measure(analyzer, given), measure(analyzer, shuffled)
    signs = drawn_by_sample(analyzer, given)
    assert_close(a, b, but=(*signs, "probes") if signs else ())
    for name in signs:
        one, other = getattr(a, name), getattr(b, name)
        if one is not None:
            assert (np.abs(one.value - other.value) <= 4 * np.hypot(one.numerical_error, other.numerical_error)).all()


def drawn_by_sample(analyzer, given):
    """Return the quantities whose random signs belong to the samples: their order is another draw."""
    if analyzer.name == "trace" and traces.applies(given):
        return ("trace", "blocks_trace")
    return ("curvature_noise", "critical_batch") if analyzer.name == "noise" else ()


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=by_name)
def test_the_memory_budget_changes_nothing_but_the_batches(analyzer):
    rich, poor = (
        ZOO["conv groupnorm"].problem(samples=70, batch_size=16, memory_budget=room) for room in (10**9, 300_000)
    )
    a, b = measure(analyzer, rich), measure(analyzer, poor)
    if analyzer.name == "noise":  # single samples are differentiated as many at a time as there is room for
        assert_close(a, b)
        return
    for name, value in values(a).items():
        assert np.array_equal(value, values(b)[name], equal_nan=True)


def test_the_number_of_threads_changes_nothing():
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(measure(Eigenvalues(), ZOO["relu mlp"].problem()))
    torch.set_num_threads(1)
    assert_close(*found)


@pytest.mark.parametrize("analyzer", ANALYZERS, ids=by_name)
def test_the_same_run_twice_is_the_same_to_the_last_bit(analyzer):
    a, b = (measure(analyzer, ZOO["fused attention"].problem(dtype=torch.float32)) for _ in range(2))
    for name, value in values(a).items():
        assert np.array_equal(value, values(b)[name], equal_nan=True)


def test_the_global_generator_is_neither_read_nor_moved():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    a = measure(Eigenvalues(), ZOO["lstm"].problem())
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    assert_close(a, measure(Eigenvalues(), ZOO["lstm"].problem()), 0)


def test_a_seed_moves_an_eigenvalue_within_its_error_only():
    given = ZOO["tanh mlp"].problem()
    found = [measure(Eigenvalues(), given, seed=seed) for seed in range(10)]
    tops = np.array([float(result.top.value) for result in found])
    assert len(set(tops)) == 10  # the starts do differ
    assert np.ptp(tops) <= min(float(result.top.numerical_error) for result in found)


@pytest.mark.parametrize("kind", ZOO)
def test_float32_and_float64_agree_within_the_stated_error(kind):
    for seed in range(3):
        single, double = (
            measure(Eigenvalues(), ZOO[kind].problem(seed, dtype)) for dtype in (torch.float32, torch.float64)
        )
        for name in ("top", "bottom"):
            a, b = single.quantities()[name], double.quantities()[name]
            assert abs(a.value - b.value) <= max(a.numerical_error, b.numerical_error)


def test_rescaling_layers_leaves_the_function_but_moves_both_sharpnesses():
    # Dinh et al. 2017: relu(alpha W x) / alpha = relu(W x)
    given = ZOO["relu mlp"].problem()
    model = copy.deepcopy(given.model)
    with torch.no_grad():
        model[0].weight.mul_(8)
        model[0].bias.mul_(8)
        model[2].weight.div_(8)
    scaled = problem(model, given.data.inputs, given.data.targets)
    assert np.allclose(given.losses(), scaled.losses(), rtol=1e-12)
    a, b = (measure(Eigenvalues(), where).top for where in (given, scaled))
    assert b.value > 2 * a.value
    a, b = (measure(EpsilonSharpness(manifold=0), where).full for where in (given, scaled))
    assert (np.abs(b.value / a.value - 1) > 0.05).all()


def test_rescaling_layers_leaves_adaptive_sharpness_and_the_invariants():
    given = ZOO["relu mlp"].problem()
    model = copy.deepcopy(given.model)
    with torch.no_grad():
        model[0].weight.mul_(8)
        model[0].bias.mul_(8)
        model[2].weight.div_(8)
    a, b = (
        measure(AdaptiveSharpness(), problem(m, given.data.inputs, given.data.targets)) for m in (given.model, model)
    )
    for name in ("worst_l2", "worst_linf", "average", "relative_flatness", "fisher_rao"):
        assert np.allclose(getattr(a, name).value, getattr(b, name).value, rtol=1e-9), name
    assert (np.abs(b.sam.value / a.sam.value - 1) > 0.05).all()


def test_permuting_hidden_units_changes_nothing():
    given = ZOO["tanh mlp"].problem()
    model, order = copy.deepcopy(given.model), torch.randperm(8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model[0].weight.copy_(given.model[0].weight[order])
        model[0].bias.copy_(given.model[0].bias[order])
        model[2].weight.copy_(given.model[2].weight[:, order])
    settings = Eigenvalues(k=3, tolerance=1e-7)
    a, b = (measure(settings, problem(m, given.data.inputs, given.data.targets)) for m in (given.model, model))
    assert a.values.value == pytest.approx(b.values.value, rel=1e-9)
