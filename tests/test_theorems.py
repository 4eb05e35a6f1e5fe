"""Theorems that every solver must obey, over all spectra and both precisions."""

import numpy as np
import pytest
import torch

from gapscope.measure.operators import from_dense
from gapscope.measure.solvers.lanczos import Stopping, decompose, extreme_eigenpairs, gaussian_start
from gapscope.results import Status
from tests.spectra import SPECTRA, matrix

DTYPES = [torch.float32, torch.float64]
SIZE = 120
STEPS = (1, 5, 20, 60)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def start(operator, seed=0):
    return gaussian_start(operator, rng(seed))


def tridiagonal(krylov):
    off = krylov.beta[:-1]
    return np.diag(krylov.alpha) + np.diag(off, 1) + np.diag(off, -1)


pytestmark = [pytest.mark.parametrize("dtype", DTYPES), pytest.mark.parametrize("name", SPECTRA)]


@pytest.mark.parametrize("steps", STEPS)
def test_the_basis_is_orthonormal(name, dtype, steps):
    operator = from_dense(matrix(SPECTRA[name], dtype=dtype))
    basis = decompose(operator, start(operator), steps).basis.double()
    # two passes leave the rounding of dot products of length n
    assert (basis @ basis.T - torch.eye(len(basis))).abs().max() <= 2 * SIZE**0.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("steps", STEPS)
def test_a_q_is_q_t_plus_a_remainder_in_the_last_column(name, dtype, steps):
    dense = matrix(SPECTRA[name], dtype=dtype)
    operator = from_dense(dense)
    krylov = decompose(operator, start(operator), steps)
    q = krylov.basis.double().numpy().T
    remainder = dense.double().numpy() @ q - q @ tridiagonal(krylov)
    tolerance = SIZE * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max())
    assert np.abs(remainder[:, :-1]).max(initial=0) <= tolerance
    assert np.linalg.norm(remainder[:, -1]) == pytest.approx(krylov.beta[-1], abs=tolerance)
    assert np.abs(q.T @ remainder[:, -1]).max() <= tolerance


def test_ritz_values_interlace_as_the_space_grows(name, dtype):
    operator = from_dense(matrix(SPECTRA[name], dtype=dtype))
    t = tridiagonal(decompose(operator, start(operator), 40))
    tolerance = SIZE * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max())
    for m in range(1, len(t)):
        small, large = np.linalg.eigvalsh(t[:m, :m]), np.linalg.eigvalsh(t[: m + 1, : m + 1])
        assert (large[:-1] <= small + tolerance).all()
        assert (small <= large[1:] + tolerance).all()


def test_ritz_values_lie_within_the_spectrum(name, dtype):
    operator = from_dense(matrix(SPECTRA[name], dtype=dtype))
    ritz = np.linalg.eigvalsh(tridiagonal(decompose(operator, start(operator), 40)))
    tolerance = SIZE * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max())
    assert ritz.min() >= float(SPECTRA[name].min()) - tolerance
    assert ritz.max() <= float(SPECTRA[name].max()) + tolerance


def test_the_stated_residual_is_the_residual(name, dtype):
    dense = matrix(SPECTRA[name], dtype=dtype)
    pairs = extreme_eigenpairs(from_dense(dense), 3, rng())
    for value, vector, residual in zip(pairs.values, pairs.vectors, pairs.residuals, strict=True):
        true = float((dense.double() @ vector.double() - float(value) * vector.double()).norm())
        assert residual == pytest.approx(true, abs=SIZE * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max()))
        assert float(vector.norm()) == pytest.approx(1, abs=SIZE * torch.finfo(dtype).eps)


def test_the_value_is_a_lower_bound_and_within_its_error_for_every_seed(name, dtype):
    true = SPECTRA[name].max().item()
    for seed in range(30):
        pairs = extreme_eigenpairs(from_dense(matrix(SPECTRA[name], seed % 3, dtype)), 1, rng(seed))
        entries = 10 * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max())  # the matrix itself is rounded
        assert pairs.status is Status.CONVERGED
        assert pairs.values[0] <= true + entries
        assert true <= pairs.upper + entries
        assert abs(true - pairs.values[0]) <= pairs.upper - pairs.values[0] + entries


def test_the_smallest_ritz_value_and_its_bound_hold_the_smallest_eigenvalue(name, dtype):
    true = SPECTRA[name].min().item()
    for seed in range(10):
        pairs = extreme_eigenpairs(from_dense(matrix(SPECTRA[name], seed % 3, dtype)), 1, rng(seed))
        entries = 10 * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max())
        assert pairs.lower - entries <= true <= pairs.bottom + entries


def test_the_bounds_hold_at_every_budget(name, dtype):
    true = SPECTRA[name].max().item()
    entries = 10 * torch.finfo(dtype).eps * float(SPECTRA[name].abs().max())
    for budget in range(1, 12):
        pairs = extreme_eigenpairs(
            from_dense(matrix(SPECTRA[name], dtype=dtype)), 1, rng(budget), stopping=Stopping(max_matvecs=budget)
        )
        assert pairs.values[0] - entries <= true <= pairs.upper + entries
        assert pairs.status in (Status.BUDGET_SPENT, Status.CONVERGED, Status.BREAKDOWN)
        if pairs.status is Status.CONVERGED:
            assert true - pairs.values[0] <= 1e-3 * abs(true) + entries
