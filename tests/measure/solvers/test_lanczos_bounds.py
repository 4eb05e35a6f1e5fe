import math

import numpy as np
import pytest
import scipy.stats
import torch

from gapscope.measure.operators import from_dense
from gapscope.measure.solvers.basis import Basis
from gapscope.measure.solvers.bounds import Reach, log_tau
from gapscope.measure.solvers.lanczos import Stopping, _Iteration, decompose, extreme_eigenpairs, gaussian_start
from tests.spectra import SPECTRA, matrix

TAU = math.log(1e-3)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def reach(krylov, tau=TAU):
    t = np.diag(krylov.alpha) + np.diag(krylov.beta[:-1], 1) + np.diag(krylov.beta[:-1], -1)
    ritz, inner = np.linalg.eigh(t)
    return Reach(ritz, krylov.beta[-1] * np.abs(inner[-1]), np.empty(0), float(np.log(krylov.beta).sum()), tau)


def polynomials(krylov, t):
    found = [1.0]
    for j, (a, b) in enumerate(zip(krylov.alpha, krylov.beta, strict=True)):
        before = krylov.beta[j - 1] * found[j - 1] if j else 0.0
        found.append(((t - a) * found[j] - before) / b)
    return np.array(found)


def krylov(name="gap of 1.4 %", steps=8):
    operator = from_dense(matrix(SPECTRA[name]))
    return decompose(operator, gaussian_start(operator, rng()), steps)


@pytest.mark.parametrize("name", ["separated", "gap of 1.4 %", "negative definite"])
def test_at_the_bounds_the_squares_of_the_orthonormal_polynomials_sum_to_the_inverse_square_of_tau(name):
    run = krylov(name)
    for mu in (reach(run).upper(), reach(run).lower()):
        assert math.log((polynomials(run, mu) ** 2).sum()) == pytest.approx(-2 * TAU, rel=1e-4)  # searched for to 1e-6


@pytest.mark.parametrize("tau", [1e-2, 1e-200])  # far beyond the width of the Ritz values, too
@pytest.mark.parametrize(
    ("ritz", "residuals", "dropped"),
    [([-1.0, 0.5, 2.0], [0.3, 0.01, 0.2], [0.1, 1.5]), ([2.0], [0.7], []), ([-3.0, -1.0], [1e-9, 0.5], [])],
)
def test_at_the_bounds_the_sum_of_the_header_is_the_inverse_square_of_tau(ritz, residuals, dropped, tau):
    betas = 0.8
    bound = Reach(np.array(ritz), np.array(residuals), np.array(dropped), math.log(betas), math.log(tau))
    assert bound.lower() < min(ritz)
    assert bound.upper() > max(ritz)
    for mu in (bound.lower(), bound.upper()):
        phi = np.prod([mu - t for t in ritz + dropped]) / betas
        beside = 1 + sum((rho / (mu - t)) ** 2 for rho, t in zip(residuals, ritz, strict=True))
        assert abs(phi) * tau * math.sqrt(beside) == pytest.approx(1, rel=1e-4)  # searched for to 1e-6


@pytest.mark.parametrize("delta", [1e-2, 1e-4])
def test_a_normal_component_is_shorter_than_tau_with_the_stated_probability(delta):
    tau = math.exp(log_tau(1.0, delta))
    assert 2 * scipy.stats.norm.cdf(tau) - 1 == pytest.approx(delta, rel=delta**2)
    assert log_tau(7.0, delta) == pytest.approx(math.log(tau / 7))


def test_the_sum_is_never_less_sharp_than_its_last_term():
    run = krylov()
    far = reach(run).upper()
    assert polynomials(run, far)[-1] < math.exp(-TAU)


def test_a_smaller_failure_probability_widens_the_bounds():
    run = krylov()
    near, far = reach(run), reach(run, log_tau(10.0, 1e-6))
    assert far.upper() > near.upper() > max(near.ritz)
    assert far.lower() < near.lower() < min(near.ritz)


@pytest.mark.parametrize("capacity", [10, 14, 60])
@pytest.mark.parametrize("name", ["separated", "gap of 1.4 %"])
def test_through_restarts_the_components_of_an_eigenvector_are_what_its_polynomial_says(name, capacity):
    dense = matrix(SPECTRA[name])
    true, vectors = torch.linalg.eigh(dense)
    operator = from_dense(dense)
    start = gaussian_start(operator, rng(3))
    iteration = _Iteration(operator, start, Basis(capacity, start))
    for _ in range(17):
        assert iteration.step()
        iteration.extend(keep=4)
    iteration.step()
    assert (len(iteration.dropped) > 0) == (capacity < 18)
    ritz, inner = iteration.ritz()
    u, c = vectors[:, 60], float(vectors[:, 60] @ start / start.norm())  # of the bulk: far from converged
    t, roots = float(true[60]), np.append(ritz, iteration.dropped)
    grown = np.log(np.abs(t - roots)).sum() - iteration.log_betas - np.log(iteration.beta).sum()
    along = abs(float(u @ iteration.rest)) / iteration.beta[-1]
    assert abs(c) * math.exp(grown) == pytest.approx(along, rel=1e-6)
    inside = float((iteration.basis.all() @ u).norm())
    rho = iteration.beta[-1] * np.abs(inner[-1])
    total = along**2 * (1 + ((rho / (t - ritz)) ** 2).sum())
    assert total == pytest.approx(inside**2 + along**2, rel=1e-6)


def test_the_bound_fails_no_more_often_than_stated():
    spectrum = SPECTRA["gap of 1.4 %"].sort(descending=True).values
    operator, delta, runs = from_dense(torch.diag(spectrum)), 0.2, 150
    stopping = Stopping(delta=delta, max_matvecs=9, tolerance=1e-9)
    pairs = [extreme_eigenpairs(operator, 1, rng(seed), stopping=stopping) for seed in range(runs)]
    failed = np.mean([one.upper < spectrum[0] for one in pairs])
    assert failed <= delta + 4 * math.sqrt(delta * (1 - delta) / runs)
