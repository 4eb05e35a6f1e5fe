"""Stated errors of random problems are honest; `python -m tests.hardening.many_problems` asks the same of many more."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from gapscope.measure.analyzers.curvature import Curvature
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.near_rank import NearRank
from gapscope.measure.analyzers.noise import Noise
from gapscope.results import Status
from tests.hardening.random_problems import drawn
from tests.hardening.stated import ANALYZERS, stated
from tests.problems import measure, problem

NUMBERS = [2, 4, 7, 13, 16, 17, 24, 25, 31, 32, 36, 45]  # small ones; every kind of awkwardness but two
INVARIANT = [2, 7, 17, 24, 36]
PLAIN = [Eigenvalues(), Curvature(), NearRank(), Noise(nonuniformity="no")]


@pytest.mark.parametrize("analyzer", ANALYZERS)
def test_true_errors_lie_within_three_stated_ones(analyzer):
    found = [row for number in NUMBERS for row in stated(drawn(number), analyzer)[1]]
    assert len(found) > len(NUMBERS)
    off = [row for row in found if row.share > 3]
    assert len(off) <= 0.01 * len(found), off
    assert not [row for row in off if row.status is Status.EXACT]


# a bound below where the start was unlucky, 31 errors off; a layer norm's rounding, 3.1; few skewed probes, 4.6; a hump
# between an end and the first point of the path, 30; rounding that was left out, without an error
@pytest.mark.parametrize(
    ("number", "analyzer"),
    [(52, "eigenvalues"), (19, "noise"), (39, "adaptive-sharpness"), (45, "path"), (21, "curvature")],
)
def test_what_once_lay_further_off(number, analyzer):
    found = stated(drawn(number), analyzer)[1]
    assert found
    assert not [row for row in found if row.share > 3]


@pytest.mark.parametrize("number", [5, 12, 19, 27, 33])
def test_float32_and_float64_agree_within_what_they_state(number):
    # 19: a layer norm on 8 samples, whose products are off by 20 epsilons of the top eigenvalue
    single, double = (measure(Eigenvalues(), drawn(number, dtype).problem) for dtype in (torch.float32, torch.float64))
    for name in ("top", "bottom"):
        a, b = single.quantities()[name], double.quantities()[name]
        assert abs(a.value - b.value) <= a.numerical_error + b.numerical_error, name


def test_what_the_model_rounds_is_measured():
    one = drawn(19)
    where, axes = one.problem, torch.eye(one.problem.size)
    operator = where.hessian()
    products = torch.stack([operator.matvec(axis) for axis in axes]).double().numpy()
    off = np.linalg.norm(products - one.hessian, 2)
    assert off > 10 * torch.finfo(torch.float32).eps * np.abs(one.spectrum).max()  # more than solvers expect
    assert off / 3 <= where.derivatives.error <= 3 * off


@pytest.mark.parametrize("number", INVARIANT)
@pytest.mark.parametrize("analyzer", PLAIN, ids=lambda analyzer: analyzer.name)
def test_micro_batches_and_the_order_of_samples_change_nothing(analyzer, number):
    whole = drawn(number, torch.float64).problem
    x, y, model = whole.data.inputs, whole.data.targets, whole.model
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    given = values(analyzer, whole)
    for other in (
        problem(model, x, y, whole.loss_function, batch_size=7),
        problem(model, x[order], y[order], whole.loss_function),
    ):
        found = values(analyzer, other)
        for name, (value, error) in given.items():
            again, and_error = found[name]
            # signs of samples belong to their places: another order is another draw
            room = 3 * (error + and_error) + 1e-9 * (1 + np.abs(value))
            assert (np.isnan(value) == np.isnan(again)).all(), name
            assert (np.nan_to_num(np.abs(value - again)) <= np.nan_to_num(room)).all(), name


def test_another_process_finds_the_same_bits():
    code = (
        "import torch; torch.set_num_threads(1); from tests.hardening.test_random_problems import *\n"
        f"print([shown(number) for number in {INVARIANT}])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str([shown(number) for number in INVARIANT])


def test_two_threads_find_what_one_does():
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append([values(Eigenvalues(), drawn(number, torch.float64).problem)["top"] for number in INVARIANT])
        finally:
            torch.set_num_threads(1)
    for (one, error), (two, _) in zip(*found, strict=True):
        assert abs(one - two) <= error


def test_a_problem_is_the_same_whenever_it_is_drawn():
    a, b = drawn(7), drawn(7)
    assert torch.equal(a.problem.theta, b.problem.theta)
    assert torch.equal(a.problem.data.inputs, b.problem.data.inputs)
    assert a.number == 7


def values(analyzer, where):
    """Return every number of a result with its error, 0 where none is stated, but counts of work and residuals."""
    found = measure(analyzer, where).quantities().items()
    return {
        name: (q.value, np.zeros_like(q.value) if q.numerical_error is None else np.nan_to_num(q.numerical_error))
        for name, q in found
        if name not in ("residuals", "noise_share", "negative_ratio", "condition", "numerical_rank")
    }


def shown(number):
    """Return the bits of a top eigenvalue."""
    return float(measure(Eigenvalues(), drawn(number).problem).top.value).hex()
