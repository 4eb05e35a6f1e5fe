"""Single steps against the formulas, where all batches can be listed and the loss is a parabola."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.measure.analyzers.noise import Noise
from gapscope.training.studies.gao_zhong.drawn import DrawnSteps
from tests.problems import bowl, context, problem

RATE = 0.3
F64 = torch.finfo(torch.float64).eps


def parabola(samples=6):
    """Return L = mean of 1/2 sum_j h_j (theta_j - c_ij)^2 away from its minimum, with h and c."""
    curvature = torch.tensor([1.0, 4.0, 0.5], dtype=torch.float64)
    centers = torch.randn(samples, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    start = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    given = bowl(curvature, torch.zeros(3, dtype=torch.float64), start, centers)
    return given, curvature.numpy(), centers.numpy(), start.numpy()


def measured(given, sizes, draws=2, **noise):
    steps = DrawnSteps(sizes, RATE, draws)
    noise = Noise(nonuniformity="no", tolerance=1e-9, probes=100, **noise)
    return context(noise, steps, train=given).result(steps.name)


def test_the_formulas_are_the_means_over_all_batches():
    given, h, centers, start = parabola()
    sizes = (1, 2, 5, 6)
    found = measured(given, sizes)

    def loss(theta):
        return (0.5 * h * (theta - centers) ** 2).sum(axis=1).mean()

    for place, size in enumerate(sizes):
        batches = [h * (start - centers[list(some)]).mean(axis=0) for some in itertools.combinations(range(6), size)]
        squares = np.mean([g @ g for g in batches])
        changes = np.mean([loss(start - RATE * g) - loss(start) for g in batches])
        assert found.gradient_square_formula.value[place].sum() == pytest.approx(squares, rel=1e3 * F64)
        assert found.loss_change_formula.value[place] == pytest.approx(changes, rel=1e-6)  # 10 x noise's own tolerance


def test_a_batch_of_all_samples_is_the_formula_itself():
    given, *_ = parabola()
    found = measured(given, (6,))
    assert found.gradient_square.value == pytest.approx(found.gradient_square_formula.value, rel=1e3 * F64)
    assert found.loss_change.value == pytest.approx(found.loss_change_formula.value, rel=1e3 * F64)
    assert found.own_loss_change.value == pytest.approx(found.loss_change.value, rel=1e3 * F64)
    assert found.gradient_square.sampling_error == pytest.approx(0, abs=1e3 * F64)


def test_steps_that_were_taken_agree_with_the_formulas_within_their_errors():
    given, *_ = parabola(samples=20)
    found = measured(given, (2, 8), draws=400)
    for logged, formula in (
        (found.gradient_square, found.gradient_square_formula),
        (found.loss_change, found.loss_change_formula),
    ):
        assert (np.abs(logged.value - formula.value) <= 5 * logged.sampling_error).all()
        assert (logged.sampling_error < np.abs(formula.value)).all()


def test_a_step_is_the_rate_times_the_gradient_and_leaves_the_weights_that_are_measured():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    given = problem(model, torch.randn(12, 4), torch.randint(3, (12,)))
    before = given.theta.clone()
    found = measured(given, (3, 12), draws=3)
    assert torch.equal(given.theta, before)
    eps = torch.finfo(torch.float32).eps
    assert found.step_square.value == pytest.approx(RATE**2 * found.gradient_square.value, rel=100 * eps)
    assert found.step_square.labels == {"batch size": ("3", "12"), "layer": ("0", "2")}
    assert (found.own_loss_change.value < 0).all()


def test_runs_of_other_seeds_draw_other_batches():
    given, *_ = parabola(samples=20)
    steps = DrawnSteps((2,), RATE, 3)

    def drawn(seed):
        whole = context(Noise(nonuniformity="no"), steps, training={"seed": seed}, train=given)
        return whole.result(steps.name).gradient_square.value.tolist()

    assert drawn(0) == drawn(0) != drawn(1)


def test_one_draw_has_no_error():
    given, *_ = parabola()
    assert measured(given, (2,), draws=1).gradient_square.sampling_error is None
