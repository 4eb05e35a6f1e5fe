import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from gapscope.errors import ProblemError
from gapscope.measure import traces
from gapscope.measure.loading import Loss
from tests.problems import ZOO, dense_hessian, problem, softmax_regression


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def estimate(given, seed=0, **options):
    return traces.estimate(given, rng(seed), **{"tolerance": 0.05, "least": 0.0, "most": 50, **options})


def test_the_trace_is_unbiased_and_the_stated_errors_hold():
    given = ZOO["relu mlp"].problem(samples=64)
    true = np.trace(dense_hessian(given))
    found = [estimate(given, seed, tolerance=0.2) for seed in range(30)]
    values, errors = np.array([one.trace for one in found]), np.array([one.error for one in found])
    assert abs(values.mean() - true) <= 4 * values.std(ddof=1) / np.sqrt(30)
    assert (np.abs(values - true) <= 3 * errors).sum() >= 29  # of a normal distribution 0.3 % lie beyond
    assert (errors <= 0.2 * np.abs(values)).all()


def test_blocks_add_up_and_hold_their_errors():
    given = softmax_regression()
    found, blocks = estimate(given.problem, tolerance=0.1), given.problem.parameters.blocks()
    true = [np.trace(given.hessian[where, where]) for where in blocks.values()]
    assert found.blocks.sum() == pytest.approx(found.trace)
    assert (np.abs(found.blocks - true) <= 4 * found.blocks_error + 1e-6).all()


def test_the_shares_of_samples_are_their_traces_on_average():
    """Of a linear model with squared errors tr(H_i) = 2 (|x_i|^2 + 1), the output has one component."""
    x = torch.randn(40, 5, generator=rng(), dtype=torch.float64)
    given = problem(nn.Linear(5, 1).double(), x, torch.zeros(40), "mse")
    tables = np.array([estimate(given, seed, most=1).shares.mean(0) for seed in range(50)])
    true = 2 * (x.square().sum(1).numpy() + 1)
    assert (np.abs(tables.mean(0) - true) <= 5 * tables.std(0, ddof=1) / np.sqrt(50)).all()


@pytest.mark.parametrize("loss", ["cross-entropy", "mse"])
def test_micro_batches_change_nothing(loss):
    given = ZOO["conv batchnorm"].problem(samples=70)
    targets = given.data.targets if loss == "cross-entropy" else one_hot(given.data.targets).double()
    sizes = [problem(given.model, given.data.inputs, targets, loss, batch_size=size) for size in (7, 64, 70, None)]
    first, *others = [estimate(one, most=3) for one in sizes]
    assert first.shares.shape == (2, 70)
    for other in others:
        assert other.passes == first.passes
        assert other.trace == pytest.approx(first.trace, rel=1e-12)
        assert other.error == pytest.approx(first.error, rel=1e-9)
        assert np.allclose(other.blocks, first.blocks, rtol=1e-12)
        assert np.allclose(other.shares, first.shares, rtol=1e-9, atol=1e-9)


def test_a_smaller_memory_makes_smaller_pieces():
    rich = ZOO["conv batchnorm"].problem(samples=70)
    poor = ZOO["conv batchnorm"].problem(samples=70, memory_budget=8 * 3 * rich.graph_bytes_per_sample)
    assert (traces.piece(rich), traces.piece(poor)) == (traces.SMALLEST, 3)
    one, two = estimate(rich), estimate(poor)
    assert abs(one.trace - two.trace) <= 4 * np.hypot(one.error, two.error)


def test_it_applies_where_no_output_bends_along_a_parameter():
    assert traces.applies(ZOO["relu mlp"].problem())
    assert not traces.applies(ZOO["tanh mlp"].problem())
    wide = problem(nn.Linear(3, 130), torch.randn(9, 3), torch.zeros(9, 130), "mse")
    assert not traces.applies(wide)  # too many outputs


def test_a_budget_of_one_pass_is_kept():
    found = estimate(ZOO["relu mlp"].problem(), tolerance=1e-6, most=1)
    assert found.passes == 1
    assert found.error > 0


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused():
    bumpy = Loss("bumpy", lambda outputs, _: outputs.cos().sum(1))
    given = problem(nn.Linear(6, 3), torch.randn(40, 6), torch.zeros(40), bumpy)
    with pytest.raises(ProblemError, match=r"not convex in the outputs .* Expected a convex one"):
        estimate(given)
