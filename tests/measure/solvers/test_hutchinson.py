import numpy as np
import pytest
import torch
from scipy.special import stdtrit
from scipy.stats import norm

from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.hutchinson import PILOT, estimate_trace
from gapscope.results import Status
from tests.spectra import SPECTRA, matrix

DTYPES = [torch.float32, torch.float64]
HALVES = {"first": slice(0, 50), "second": slice(50, 120)}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def estimates(dense, seeds, **options):
    return [estimate_trace(from_dense(dense), rng(seed), blocks=HALVES, **options) for seed in range(seeds)]


def decaying(size=120):
    return matrix(100 / torch.arange(1, size + 1, dtype=torch.float64) ** 2)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_every_spectrum_is_measured_within_its_errors(name, dtype, seed):
    dense = matrix(SPECTRA[name], dtype=dtype)
    true = dense.double()
    found = estimate_trace(from_dense(dense), rng(seed), blocks=HALVES)
    assert abs(found.trace - float(true.trace())) <= 4 * found.trace_error + found.rounding
    assert abs(found.frobenius - float(true.norm())) <= 5 * found.frobenius_error + found.rounding
    blocks = np.array([float(true[where, where].trace()) for where in HALVES.values()])
    assert (np.abs(found.blocks - blocks) <= 5 * found.blocks_error + found.rounding).all()
    assert found.blocks.sum() == pytest.approx(found.trace, abs=found.rounding + 1e-12)
    assert found.matvecs <= 200


@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_both_estimators_are_unbiased_and_their_errors_cover(method):
    # max_matvecs = 29 leaves no room for a sketch; a tolerance out of reach keeps the number of probes fixed
    dense = matrix(SPECTRA["separated"]) if method == "hutchinson" else decaying()
    found = estimates(dense, 400, tolerance=1e-9, max_matvecs=29 if method == "hutchinson" else 45)
    assert {one.method for one in found} == {method}
    errors = np.array([one.trace - float(dense.trace()) for one in found])
    stated = np.array([one.trace_error for one in found])
    assert abs(errors.mean()) <= 4 * errors.std() / 20
    assert (np.abs(errors) <= 3 * stated).mean() >= 0.99
    # 10 % wider than the spread for so few probes; after a deflation the sketch bounds the variance from above, about
    widest = 1.25 if method == "hutchinson" else 1.8
    assert 0.9 * errors.std() <= np.sqrt((stated**2).mean()) <= widest * errors.std()
    blocks = np.array([one.blocks[0] for one in found]) - float(dense[:50, :50].trace())
    assert abs(blocks.mean()) <= 4 * blocks.std() / 20
    squares = np.array([one.frobenius**2 for one in found])
    assert abs(squares.mean() - float(dense.norm()) ** 2) <= 4 * squares.std() / 20


def test_the_variance_of_one_probe_is_that_of_the_formula():
    dense = matrix(SPECTRA["separated"])
    probes = 29
    found = estimates(dense, 300, tolerance=1e-9, max_matvecs=probes)
    formula = 2 * (float(dense.norm()) ** 2 - float(dense.diagonal().square().sum()))
    caution = stdtrit(probes - 1, norm.cdf(3)) / 3  # so that 3 of them hold as often as 3 of a normal distribution
    variance = np.mean([one.trace_error**2 for one in found]) * probes / caution**2
    assert variance == pytest.approx(formula, rel=0.1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hutch_plus_plus_is_exact_on_low_rank(dtype):
    dense = matrix(SPECTRA["low rank"], dtype=dtype)
    found = estimate_trace(from_dense(dense), rng(), tolerance=1e-2)
    assert found.method == "hutch++"
    assert found.sketch == 5
    assert found.matvecs == PILOT + 5 + PILOT
    assert found.status is Status.CONVERGED
    assert found.trace == pytest.approx(15, abs=found.rounding)
    assert found.frobenius == pytest.approx(np.sqrt(55), abs=found.rounding)
    assert found.trace_error <= found.rounding


def test_deflation_beats_plain_probes_where_the_spectrum_decays():
    dense = decaying()
    free = estimates(dense, 20, tolerance=2e-3)
    plain = estimates(dense, 20, tolerance=2e-3, sketch_bytes=0)
    assert {one.method for one in free} == {"hutch++"}
    assert {one.method for one in plain} == {"hutchinson"}
    assert np.mean([one.trace_error for one in free]) < 0.2 * np.mean([one.trace_error for one in plain])


def test_a_flat_spectrum_is_not_deflated():
    flat = matrix(torch.linspace(1.0, 1.5, 120, dtype=torch.float64))
    found = estimates(flat, 20, tolerance=5e-3)
    assert {one.method for one in found} == {"hutchinson"}
    assert all(one.status is Status.CONVERGED for one in found)


def test_sign_probes_know_a_diagonal_exactly():
    found = estimate_trace(from_dense(torch.diag(torch.arange(1.0, 41.0, dtype=torch.float64))), rng())
    assert found.trace == pytest.approx(820)
    assert found.matvecs == PILOT
    assert found.trace_error == 0


def test_a_trace_that_cancels_converges_relative_to_the_frobenius_norm():
    dense = matrix(torch.cat([torch.ones(60), -torch.ones(60)]).double())
    found = estimate_trace(from_dense(dense), rng(), tolerance=0.2)
    assert found.status is Status.CONVERGED
    assert found.trace_error <= 0.2 * found.frobenius
    assert abs(found.trace) <= 4 * found.trace_error


def test_a_budget_that_is_too_small_is_spent_with_an_honest_error():
    found = estimate_trace(from_dense(matrix(SPECTRA["separated"])), rng(), tolerance=1e-3, max_matvecs=40)
    assert found.status is Status.BUDGET_SPENT
    assert found.matvecs == 40
    assert abs(found.trace - float(SPECTRA["separated"].sum())) <= 4 * found.trace_error


@pytest.mark.parametrize("size", [1, 2, PILOT])
def test_few_entries_are_measured_one_by_one(size):
    dense = matrix(torch.linspace(-3, 1, size, dtype=torch.float64))
    found = estimate_trace(from_dense(dense), rng(), blocks={"all": slice(0, size)})
    assert found.status is Status.EXACT
    assert found.matvecs == size
    assert found.trace == pytest.approx(float(dense.trace()))
    assert found.frobenius == pytest.approx(float(dense.norm()))
    assert found.blocks == pytest.approx([float(dense.trace())])
    assert found.trace_error == found.frobenius_error == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1e20, 1e-25])
def test_scales_at_which_squares_leave_float32(scale, dtype):
    dense = (matrix(SPECTRA["low rank"]) * scale).to(dtype)
    found = estimate_trace(from_dense(dense), rng())
    assert abs(found.trace - 15 * scale) <= 4 * found.trace_error + found.rounding
    assert found.frobenius == pytest.approx(np.sqrt(55) * scale, abs=4 * found.frobenius_error + found.rounding)


@pytest.mark.parametrize("size", [3, 30])
@pytest.mark.parametrize("after", [0, 2, 25])
def test_what_is_not_finite_is_not_a_number(size, after):
    dense, calls = matrix(100 / torch.arange(1, size + 1, dtype=torch.float64) ** 2), []

    def matvec(v):
        calls.append(v)
        return dense @ v * (float("nan") if len(calls) > after else 1.0)

    found = estimate_trace(Operator(size, matvec, torch.float64), rng(), tolerance=1e-9)
    if after < size:
        assert found.status is Status.NONFINITE
        assert np.isnan([found.trace, found.trace_error, found.frobenius, found.rounding]).all()


def test_a_seed_is_a_number():
    dense = decaying()
    one, same, other = (estimate_trace(from_dense(dense), rng(seed)) for seed in (1, 1, 2))
    assert (one.trace, one.frobenius) == (same.trace, same.frobenius)
    assert one.trace != other.trace


def test_few_probes_state_errors_that_hold():
    found = estimates(matrix(SPECTRA["separated"]), 1000, tolerance=0.9, max_matvecs=10)
    assert {one.probes for one in found} == {10}
    errors = np.array([(one.trace - float(matrix(SPECTRA["separated"]).trace())) / one.trace_error for one in found])
    assert (np.abs(errors) > 3).mean() <= 0.01
