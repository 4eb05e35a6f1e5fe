import itertools
import math

import numpy as np
import pytest
import torch

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.lanczos import (
    Room,
    Stopping,
    decompose,
    extreme_eigenpairs,
    gaussian_start,
)
from gapscope.results import Status
from tests.spectra import SPECTRA, matrix


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def diagonal(*entries, dtype=torch.float64):
    return from_dense(torch.diag(torch.tensor(entries, dtype=dtype)))


def stated(pairs):
    return pairs.upper - pairs.values[0]


# --- tiny and degenerate operators


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_number_is_its_own_eigenvalue(dtype):
    pairs = extreme_eigenpairs(diagonal(-3.0, dtype=dtype), 1, rng())
    assert pairs.values[0] == pytest.approx(-3, abs=stated(pairs))
    assert pairs.bottom == pairs.values[0]
    assert pairs.status is Status.CONVERGED
    assert pairs.vectors.shape == (1, 1)


def test_zero_is_found_exactly_in_one_step():
    pairs = extreme_eigenpairs(from_dense(torch.zeros(30, 30)), 1, rng())
    assert (pairs.values[0], pairs.upper, pairs.bottom, pairs.lower, pairs.residuals[0]) == (0, 0, 0, 0, 0)
    assert pairs.matvecs == 2
    assert pairs.status is Status.CONVERGED


def test_a_closed_krylov_space_with_too_few_values_is_a_breakdown():
    pairs = extreme_eigenpairs(from_dense(torch.eye(10)), 3, rng())
    assert pairs.status is Status.BREAKDOWN
    assert pairs.values == pytest.approx([1], abs=stated(pairs))


def test_what_a_closed_krylov_space_may_hide_is_inside_the_bound():
    # a start that misses the top eigenvector but for rounding: the space closes without having seen it
    matrix_ = torch.diag(torch.cat([torch.ones(99), torch.tensor([1.05])]))
    hidden = 1e-7  # of the start: in float32 no residual shows it
    start = torch.randn(100, generator=rng())
    start[-1] = hidden * start.norm()
    krylov = decompose(from_dense(matrix_), start, 100)
    assert len(krylov.alpha) == 1  # closed
    pairs = extreme_eigenpairs(from_dense(torch.diag(torch.ones(100))), 1, rng())
    tau = Stopping().delta * math.sqrt(math.pi / 200)
    assert pairs.upper - 1 >= torch.finfo(torch.float32).eps / tau


def test_all_eigenvalues_are_found_where_k_exceeds_n():
    pairs = extreme_eigenpairs(diagonal(5.0, 4.0, 3.0, 2.0, 1.0), 30, rng())
    assert pairs.values == pytest.approx([5, 4, 3, 2, 1], abs=pairs.rounding)
    assert pairs.status is Status.CONVERGED


def test_the_full_space_is_exact_where_rounding_keeps_the_bounds_open():
    pairs = extreme_eigenpairs(
        diagonal(3.0, 1.0, 0.5, dtype=torch.float32), 1, rng(), stopping=Stopping(tolerance=1e-6)
    )
    assert pairs.status is Status.EXACT
    assert pairs.values[0] == pytest.approx(3, abs=stated(pairs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e25, 1e-18, 1e-25, 1e-30])
def test_the_answer_scales_with_the_matrix(dtype, scale):
    h = torch.linspace(0.1, 1.0, 60, dtype=torch.float64)
    pairs = extreme_eigenpairs(from_dense(torch.diag(h * scale).to(dtype)), 1, rng())
    assert pairs.status is Status.CONVERGED
    assert abs(pairs.values[0] - scale) <= stated(pairs) <= 2e-3 * scale


def test_a_matrix_that_is_not_finite_is_nonfinite():
    for bad in (float("nan"), float("inf")):
        dense = torch.eye(20)
        dense[3, 3] = bad
        pairs = extreme_eigenpairs(from_dense(dense), 2, rng())
        assert pairs.status is Status.NONFINITE
        assert np.isnan(pairs.values).all()


def test_a_verifying_product_that_is_not_finite_is_nonfinite():
    pairs = extreme_eigenpairs(diagonal(3.0, 1.0), 1, rng(), verify=lambda v: v * float("nan"))
    assert pairs.status is Status.NONFINITE


# --- errors and statuses are truthful


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_stated_error_covers_the_true_one_on_random_small_matrices(dtype):
    rand = np.random.default_rng(0)
    for trial in range(300):
        size = int(rand.integers(1, 25))
        spectrum = rand.standard_normal(size) * 10.0 ** rand.integers(-3, 3, size)
        if trial % 3 == 0:
            spectrum = np.round(spectrum)
        dense = matrix(torch.tensor(spectrum), trial, dtype)
        true = np.linalg.eigvalsh(dense.double().numpy())
        stopping = Stopping(tolerance=(1e-3, 1e-6)[trial % 2], delta=1e-5)  # 600 bounds below
        pairs = extreme_eigenpairs(from_dense(dense), 1 + trial % 3, rng(trial), stopping=stopping)
        assert abs(pairs.values[0] - true[-1]) <= stated(pairs)
        assert abs(pairs.bottom - true[0]) <= pairs.bottom - pairs.lower
        for value, residual in zip(pairs.values, pairs.residuals, strict=True):
            assert np.abs(true - value).min() <= max(residual, pairs.rounding)
        if pairs.status is Status.CONVERGED:
            assert stated(pairs) <= stopping.tolerance * abs(pairs.values[0]) * (1 + 1e-9)


@pytest.mark.parametrize("budget", [3, 4, 7, 10])
def test_a_small_budget_is_spent_and_said(budget):
    spectrum = SPECTRA["gap of 1.4 %"]
    for seed in range(10):
        pairs = extreme_eigenpairs(
            from_dense(matrix(spectrum, seed)), 1, rng(seed), stopping=Stopping(max_matvecs=budget)
        )
        assert pairs.status is Status.BUDGET_SPENT
        assert pairs.matvecs == budget
        assert pairs.spent_on == "matvecs"
        assert pairs.values[0] <= 5 <= pairs.upper
        assert 5 - pairs.values[0] <= stated(pairs)


def test_fewer_steps_than_eigenvalues_asked_for_is_a_spent_budget():
    pairs = extreme_eigenpairs(from_dense(matrix(SPECTRA["separated"])), 5, rng(), stopping=Stopping(max_matvecs=8))
    assert pairs.status is Status.BUDGET_SPENT
    assert pairs.values.shape == pairs.residuals.shape == (3,)
    assert pairs.vectors.shape == (3, 120)


def test_matvecs_count_every_product():
    calls = 0
    dense = matrix(SPECTRA["separated"])

    def matvec(v):
        nonlocal calls
        calls += 1
        return dense @ v

    pairs = extreme_eigenpairs(Operator(120, matvec, torch.float64), 3, rng())
    assert pairs.matvecs == calls


def test_the_first_pair_is_verified_by_the_product_given():
    dense = matrix(SPECTRA["separated"])
    seen = []

    def verify(v):
        seen.append(v)
        return dense @ v

    pairs = extreme_eigenpairs(from_dense(dense), 2, rng(), verify=verify)
    assert torch.equal(seen[-1], pairs.vectors[0])
    assert len(seen) == 1


def test_an_asymmetric_product_cannot_be_called_converged():
    # the recurrence believes in symmetry; the recomputed residual does not
    dense = matrix(SPECTRA["separated"])
    skew = torch.triu(torch.randn(120, 120, generator=rng(), dtype=torch.float64), 1)
    pairs = extreme_eigenpairs(from_dense(dense + 0.1 * (skew - skew.T)), 1, rng())
    assert pairs.status is not Status.CONVERGED
    assert pairs.residuals[0] > 1e-3 * pairs.values[0]


def test_watch_sees_every_step_and_ritz_values_that_never_fall():
    seen = []
    extreme_eigenpairs(from_dense(matrix(SPECTRA["clustered"])), 1, rng(), watch=lambda *step: seen.append(step))
    assert [m for m, _, _ in seen] == list(range(1, len(seen) + 1))
    values = [value for _, value, _ in seen]
    assert all(b >= a - 1e-14 for a, b in itertools.pairwise(values))


def test_the_same_seed_gives_the_same_answer_and_another_start_does_not():
    operator = from_dense(matrix(SPECTRA["clustered"]))
    a, b, c = (extreme_eigenpairs(operator, 1, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(a.vectors, b.vectors)
    assert not torch.equal(a.vectors, c.vectors)


# --- memory


def test_a_basis_that_does_not_fit_is_refused_with_its_size():
    operator = from_dense(matrix(SPECTRA["separated"]))
    with pytest.raises(ProblemError, match=r"A Krylov basis of 9 vectors of 120 entries and 2 Ritz vectors need .* GB"):
        extreme_eigenpairs(operator, 1, rng(), room=Room(10 * 120 * 8))


def test_the_budget_that_the_refusal_names_is_enough():
    operator = Operator(10_000_000, lambda v: v)
    with pytest.raises(ProblemError, match=r"Raise `--memory-budget` to 0\.9GB") as refusal:
        extreme_eigenpairs(operator, 1, rng(), room=Room(1000))
    assert "where 0 fit" in str(refusal.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
def test_a_basis_that_is_full_is_restarted_and_its_bounds_hold(name, dtype):
    entries = 10 * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max())
    room = Room(11 * 120 * torch.finfo(dtype).bits // 8)  # 9 vectors beside two of the answer
    for seed in range(10):
        pairs = extreme_eigenpairs(from_dense(matrix(SPECTRA[name], seed, dtype)), 1, rng(seed), room=room)
        assert pairs.status is Status.CONVERGED
        assert pairs.values[0] - entries <= SPECTRA[name].max() <= pairs.upper + entries
        assert pairs.lower - entries <= SPECTRA[name].min() <= pairs.bottom + entries
        assert stated(pairs) <= 1e-3 * abs(pairs.values[0])


# --- the decomposition and the bound


def test_decompose_stops_where_the_krylov_space_closes():
    operator = diagonal(*[3.0] * 20, *[1.0] * 20, *[-2.0] * 20)
    krylov = decompose(operator, gaussian_start(operator, rng()), 50)
    assert len(krylov.alpha) == krylov.matvecs == 3  # as many as distinct eigenvalues


def test_the_start_is_standard_normal_and_the_same_in_every_precision():
    single, double = (
        gaussian_start(Operator(20_000, lambda v: v, dtype), rng()) for dtype in (torch.float32, torch.float64)
    )
    assert torch.equal(single, double.float())
    assert abs(float(double.mean())) < 5 / 20_000**0.5
    assert abs(float(double.square().mean()) - 1) < 5 * (2 / 20_000) ** 0.5
