import numpy as np
import pytest
import torch

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.quadrature import spectral_density
from tests.spectra import SPECTRA, matrix

DTYPES = [torch.float32, torch.float64]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("kind", ["sign", "gaussian"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SPECTRA)
def test_the_moments_are_those_of_the_spectrum(name, dtype, kind):
    spectrum = matrix(SPECTRA[name], dtype=dtype).double()
    found = spectral_density(from_dense(spectrum.to(dtype)), rng(), kind=kind)
    assert found.weights.sum(1) == pytest.approx(np.ones(8))
    power = torch.eye(120, dtype=torch.float64)
    for degree in (1, 2, 3):
        power = power @ spectrum
        mean, error = found.moment(degree)
        room = degree * found.rounding * float(spectrum.norm()) ** (degree - 1)
        assert abs(mean - float(power.trace()) / 120) <= 5 * error + room


def test_a_gauss_quadrature_is_exact_up_to_its_degree():
    dense = matrix(SPECTRA["separated"])
    found = spectral_density(from_dense(dense), rng(), probes=2, steps=4)
    generator = rng()
    for nodes, weights in zip(found.nodes, found.weights, strict=True):
        v = torch.randn(120, generator=generator, dtype=torch.float64).sign() / 120**0.5
        for degree in range(8):
            exact = float(v @ torch.linalg.matrix_power(dense, degree) @ v)
            assert (weights * nodes**degree).sum() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("name", SPECTRA)
def test_all_ritz_values_lie_within_the_spectrum(name):
    found = spectral_density(from_dense(matrix(SPECTRA[name])), rng())
    assert found.smallest >= float(SPECTRA[name].min()) - found.rounding
    assert found.largest <= float(SPECTRA[name].max()) + found.rounding


def test_masses_are_unbiased_and_their_standard_errors_cover():
    # four distinct eigenvalues: the Krylov space closes after four steps, and only the probes are left to chance
    spectrum = torch.tensor([-1.0] * 24 + [0.0] * 60 + [1.0] * 24 + [2.0] * 12, dtype=torch.float64)
    operator = from_dense(matrix(spectrum))
    masses = [spectral_density(operator, rng(seed), probes=16).mass(-0.01, 0.01) for seed in range(200)]
    values, errors, moved = np.array(masses).T
    assert abs(values.mean() - 0.5) <= 4 * values.std() / np.sqrt(200)
    assert moved.max() <= 1e-12
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
    values, errors = found.broadened(grid, 0.1)
    assert np.trapezoid(values, grid) == pytest.approx(1, abs=1e-6)
    assert np.trapezoid(values * grid, grid) == pytest.approx(found.moment(1)[0], abs=1e-6)
    bells = np.exp(-0.5 * ((grid[:, None] - spectrum.numpy()) / 0.1) ** 2).mean(1) / (0.1 * np.sqrt(2 * np.pi))
    loud = bells > 1e-3
    assert (np.abs(values - bells)[loud] <= 6 * errors[loud] + 0.02).all()


def test_a_closed_space_has_no_quadrature_error():
    found = spectral_density(from_dense(matrix(SPECTRA["low rank"])), rng(), steps=30)
    assert found.matvecs < 8 * 10
    assert found.mass(-1e-6, 1e-6)[2] == 0
    assert found.nodes.shape == (8, 30)


def test_all_of_the_space_is_every_eigenvalue():
    dense = matrix(torch.linspace(-1, 1, 7, dtype=torch.float64))
    found = spectral_density(from_dense(dense), rng(), steps=50)
    assert found.nodes == pytest.approx(np.tile(np.linspace(-1, 1, 7), (8, 1)))
    assert found.mass(-2, 2)[2] == 0


def test_what_is_not_finite_is_seen():
    found = spectral_density(Operator(9, lambda v: v * float("inf"), torch.float64), rng())
    assert not found.finite


def test_a_basis_that_does_not_fit_is_refused():
    with pytest.raises(ProblemError, match=r"30 vectors of 120 entries needs 2.9e-05 GB; .* where 1 vectors fit"):
        spectral_density(from_dense(matrix(SPECTRA["zero"])), rng(), basis_bytes=1000)


def test_a_seed_is_a_number():
    operator = from_dense(matrix(SPECTRA["separated"]))
    one, same, other = (spectral_density(operator, rng(seed)) for seed in (1, 1, 2))
    assert (one.nodes == same.nodes).all()
    assert not (one.nodes == other.nodes).all()
