import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers import quadrature
from gapscope.measure.solvers.lanczos import decompose
from gapscope.measure.solvers.quadrature import spectral_density
from tests.spectra import SPECTRA, matrix

DTYPES = [torch.float32, torch.float64]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_moments_are_those_of_the_spectrum(name, dtype):
    spectrum = matrix(SPECTRA[name], dtype=dtype).double()
    found = spectral_density(from_dense(spectrum.to(dtype)), rng())
    assert found.weights.sum(2) == pytest.approx(np.ones(found.weights.shape[:2]))
    power, norm = torch.eye(120, dtype=torch.float64), float(spectrum.norm())
    for degree in (1, 2, 3):
        power = power @ spectrum
        of_probes = (found.weights * found.nodes**degree).sum(2).mean(1)
        error = of_probes.std(ddof=1) / np.sqrt(len(of_probes))
        # two eigenvalues of the coupling E, of at most the residuals' 1 % of the largest, change x^degree by that much
        largest = float(SPECTRA[name].abs().max())
        coupled = 2 * degree * largest**degree * 0.01 * np.sqrt(20) / 120 if degree > 1 else 0.0
        room = degree * found.rounding * norm ** (degree - 1) + coupled
        assert abs(of_probes.mean() - float(power.trace()) / 120) <= 5 * error + room


def test_gauss_quadratures_are_exact_up_to_their_degree():
    dense = matrix(SPECTRA["separated"])
    found = spectral_density(from_dense(dense), rng(), probes=2, steps=4)  # too few to find a pair
    generator = rng()
    torch.randn(120, generator=generator, dtype=torch.float64)  # of the first run
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        start = torch.randn(120, generator=generator, dtype=torch.float64)
        v = start / start.norm()
        for steps, at, mass in zip((3, 4), nodes, weights, strict=True):
            for degree in range(2 * steps):
                exact = float(v @ torch.linalg.matrix_power(dense, degree) @ v)
                assert (mass * at**degree).sum() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", ["separated", "gap of 1.4 %", "low rank"])
def test_an_eigenvalue_that_stands_out_weighs_one_of_n(name):
    found = spectral_density(from_dense(matrix(SPECTRA[name])), rng(), probes=3)
    top = float(SPECTRA[name].max())
    value, error, _ = found.mass(top - 1e-6, top + 1e-6)
    assert value == pytest.approx(1 / 120)
    assert error == pytest.approx(0, abs=1e-9)


def test_copies_and_clusters_keep_their_mass():
    # one copy of three is taken out; the others are known from the probes alone
    operator = from_dense(matrix(SPECTRA["degenerate"]))
    masses = [spectral_density(operator, rng(seed), probes=4).mass(2.9, 3.1) for seed in range(200)]
    values, errors, _ = np.array(masses).T
    assert abs(values.mean() - 3 / 120) <= 4 * values.std() / np.sqrt(len(values))
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.25)


@pytest.mark.parametrize("name", SPECTRA)
def test_no_count_is_off_by_more_than_one_eigenvalue(name):
    # what is taken out and the dense spectrum of what is left, against the whole
    dense = matrix(SPECTRA[name])
    run = decompose(from_dense(dense), torch.randn(120, generator=rng(), dtype=torch.float64), 12)
    values, inner, _ = quadrature._known(run, closed=False)
    vectors = torch.from_numpy(inner) @ run.basis
    others = torch.eye(120, dtype=torch.float64) - vectors.T @ vectors
    left = np.linalg.eigvalsh(others @ dense @ others + 100 * vectors.T @ vectors)[: 120 - len(values)]
    both, true = np.sort(np.r_[values, left]), SPECTRA[name].sort().values.numpy()
    edges = np.linspace(true[0] - 0.1, true[-1] + 0.1, 996)  # none of them is 0
    assert np.abs((both[:, None] < edges).sum(0) - (true[:, None] < edges).sum(0)).max() <= 1
    assert np.abs(both - true).max() <= 0.01 * np.sqrt(12) * np.abs(true).max() + 1e-12


@pytest.mark.parametrize("name", SPECTRA)
def test_all_ritz_values_lie_within_the_spectrum(name):
    found = spectral_density(from_dense(matrix(SPECTRA[name])), rng())
    assert found.smallest >= float(SPECTRA[name].min()) - found.rounding
    assert found.largest <= float(SPECTRA[name].max()) + found.rounding


@pytest.mark.parametrize("size", [30, 60, 64, 200])
def test_what_was_taken_out_does_not_come_back_by_rounding(size):
    # 0 is far outside this spectrum, and where a complement has what was taken out
    dense = torch.diag(torch.linspace(0.5, 1.0, size))
    found = spectral_density(from_dense(dense), rng())
    assert 0.5 - found.rounding <= found.smallest <= found.largest <= 1 + found.rounding


def test_masses_are_unbiased_and_their_standard_errors_cover():
    # four distinct eigenvalues: Krylov spaces close after four steps, and only the probes are left to chance
    spectrum = torch.tensor([-1.0] * 24 + [0.0] * 60 + [1.0] * 24 + [2.0] * 12, dtype=torch.float64)
    operator = from_dense(matrix(spectrum))
    masses = [spectral_density(operator, rng(seed), probes=8).mass(-0.01, 0.01) for seed in range(100)]
    values, errors, moved = np.array(masses).T
    assert abs(values.mean() - 0.5) <= 4 * values.std() / np.sqrt(len(values))
    assert moved.max() <= 2 / 120 + 1e-12  # what is taken out is coupled to the rest: an eigenvalue at each edge
    assert (np.abs(values - 0.5) <= errors).mean() == pytest.approx(0.67, abs=0.13)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.2)


def test_the_masses_of_an_unresolved_spectrum_lie_within_a_few_errors():
    spectrum = torch.linspace(-1, 3, 120, dtype=torch.float64)
    operator = from_dense(matrix(spectrum))
    true = float((spectrum < -0.013).double().mean())
    ratios = []
    for seed in range(40):
        value, error, moved = spectral_density(operator, rng(seed), steps=12).mass(-np.inf, -0.013)
        ratios.append(abs(value - true) / np.hypot(error, moved))
    assert np.mean(np.array(ratios) <= 3) >= 0.9


def test_a_broadened_density_integrates_to_one_and_keeps_the_mean():
    spectrum = SPECTRA["separated"]
    found = spectral_density(from_dense(matrix(spectrum)), rng(), probes=16)
    grid = np.linspace(found.smallest - 1, found.largest + 1, 2001)
    values, noise, moved = found.broadened(grid, 0.1)
    errors = np.hypot(noise, moved)
    assert trapezoid(values, grid) == pytest.approx(1, abs=1e-6)
    mean = (found.weights * found.nodes).sum(2).mean()
    assert trapezoid(values * grid, grid) == pytest.approx(mean, abs=1e-6)
    bells = np.exp(-0.5 * ((grid[:, None] - spectrum.numpy()) / 0.1) ** 2).mean(1) / (0.1 * np.sqrt(2 * np.pi))
    loud = bells > 1e-3
    assert (np.abs(values - bells)[loud] <= 6 * errors[loud] + 0.02).all()


def test_a_closed_space_is_known_exactly():
    found = spectral_density(from_dense(matrix(SPECTRA["low rank"])), rng(), steps=30)
    assert found.mass(-1e-6, 1e-6) == (pytest.approx(115 / 120), pytest.approx(0, abs=1e-12), pytest.approx(0))
    assert found.coupling == 0
    assert found.matvecs <= 7 + 8  # the rest is zero: one product for each probe


def test_all_of_the_space_is_every_eigenvalue():
    dense = matrix(torch.linspace(-1, 1, 7, dtype=torch.float64))
    found = spectral_density(from_dense(dense), rng(), steps=50)
    assert found.nodes[:, 0] == pytest.approx(np.tile(np.linspace(-1, 1, 7), (3, 1)))
    assert found.mass(-2, 2) == (pytest.approx(1), pytest.approx(0), 0)
    assert found.matvecs == 7


def test_what_is_not_finite_is_seen():
    found = spectral_density(Operator(9, lambda v: v * float("inf"), torch.float64), rng())
    assert not found.finite


def test_a_basis_that_does_not_fit_is_refused():
    with pytest.raises(ProblemError, match=r"20 vectors of 120 entries need 3.8e-05 GB; .* where 1 vectors each fit"):
        spectral_density(from_dense(matrix(SPECTRA["zero"])), rng(), basis_bytes=2000)


def test_a_seed_is_a_number():
    operator = from_dense(matrix(SPECTRA["separated"]))
    one, same, other = (spectral_density(operator, rng(seed)) for seed in (1, 1, 2))
    assert (one.nodes == same.nodes).all()
    assert one.smallest != other.smallest
