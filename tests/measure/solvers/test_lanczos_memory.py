import numpy as np
import pytest
import torch

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.basis import Basis
from gapscope.measure.solvers.lanczos import (
    Room,
    Stopping,
    _Iteration,
    decompose,
    extreme_eigenpairs,
    gaussian_start,
)
from gapscope.results import Status
from tests.measure.solvers.test_lanczos import diagonal, rng, stated
from tests.spectra import SPECTRA, matrix

# --- memory


def test_a_basis_has_no_more_rows_than_steps():
    operator = Operator(1_000_000, lambda v: v)  # of n x n it would be 4 TB
    pairs = extreme_eigenpairs(operator, 1, rng(), stopping=Stopping(max_matvecs=10))
    assert pairs.values == pytest.approx([1], abs=stated(pairs))
    assert pairs.status is Status.BREAKDOWN  # closed at once, with too small a start to be sure of the rest
    assert decompose(operator, torch.ones(1_000_000), 3).matvecs == 1


def test_a_refusal_counts_the_ritz_vectors_that_were_asked_for():
    """k + 8 of the basis, k as found, k of unit length; twice the bytes, of which a half is the basis'."""
    with pytest.raises(ProblemError, match=r"of 11 vectors .* and 6 Ritz vectors need 0\.68 GB; .* to 1\.4GB,"):
        extreme_eigenpairs(Operator(10_000_000, lambda v: v), 3, rng(), room=Room(1000))


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


@pytest.mark.parametrize("name", SPECTRA)
def test_through_restarts_no_end_of_the_ritz_values_comes_back(name):
    operator = from_dense(matrix(SPECTRA[name]))
    start = gaussian_start(operator, rng())
    iteration, ends = _Iteration(operator, start, Basis(9, start)), []
    while iteration.step() and len(ends) < 30:
        ends.append(iteration.ritz()[0][[0, -1]])
        iteration.extend(keep=4)
    slack = 10 * torch.finfo(torch.float64).eps * float(SPECTRA[name].abs().max())
    lows, highs = np.array(ends).reshape(-1, 2).T
    assert (np.diff(lows) <= slack).all()
    assert (np.diff(highs) >= -slack).all()


# --- the decomposition and the bound


@pytest.mark.parametrize("steps", [1, 2, 7, 120, 200])
def test_decompose_takes_the_steps_asked_for_and_no_more_than_there_are(steps):
    operator = from_dense(matrix(SPECTRA["negative definite"]))
    krylov = decompose(operator, gaussian_start(operator, rng()), steps)
    assert len(krylov.alpha) == len(krylov.beta) == len(krylov.basis) == krylov.matvecs == min(steps, 120)
    gram = krylov.basis @ krylov.basis.T
    assert float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) <= 1e-13


def test_the_decomposition_of_a_multiple_is_the_multiple():
    dense = matrix(SPECTRA["separated"])
    start = gaussian_start(from_dense(dense), rng())
    one, tiny = (decompose(from_dense(factor * dense), start, 20) for factor in (1.0, 2.0**-100))
    assert tiny.alpha * 2.0**100 == pytest.approx(one.alpha, rel=1e-9)
    assert tiny.beta * 2.0**100 == pytest.approx(one.beta, rel=1e-9)


def test_in_the_complement_of_a_basis_the_run_is_that_of_what_is_left():
    operator = diagonal(9.0, 8.0, *[1.0] * 10, *[2.0] * 10)
    basis = Basis(10, torch.zeros(22, dtype=torch.float64))
    for row in torch.eye(22, dtype=torch.float64)[:2]:
        basis.append(row)
    krylov = decompose(operator, gaussian_start(operator, rng()), 8, basis)
    assert krylov.matvecs == 2
    assert float(krylov.basis[:, :2].abs().max()) == 0
    t = np.diag(krylov.alpha) + np.diag(krylov.beta[:-1], 1) + np.diag(krylov.beta[:-1], -1)
    assert np.linalg.eigvalsh(t) == pytest.approx([1, 2])


def test_a_zero_operator_closes_its_space_at_once():
    krylov = decompose(from_dense(torch.zeros(30, 30)), torch.ones(30), 20)
    assert (krylov.alpha, krylov.beta, krylov.matvecs) == ([0], [0], 1)


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
