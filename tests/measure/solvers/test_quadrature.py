import dataclasses

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers import quadrature
from gapscope.measure.solvers.lanczos import decompose
from gapscope.measure.solvers.quadrature import SpectralDensity, spectral_density
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


def three_probes(coupling):
    """Return three probes of two rules and two nodes, with the first node taken out: 1/4, at 2."""
    nodes = np.array([[[2.0, 0.0], [2.0, 0.1]], [[2.0, 0.2], [2.0, 0.9]], [[2.0, 0.3], [2.0, 0.4]]])
    return SpectralDensity(nodes, np.broadcast_to([0.25, 0.75], (3, 2, 2)), 0.25, coupling, 7, 1e-9)


@pytest.mark.parametrize("coupling", [0.0, 0.5])
def test_a_mass_is_the_mean_over_rules_and_probes_with_what_differs_among_them(coupling):
    found = three_probes(coupling)
    assert (found.smallest, found.largest, found.finite) == (0, 2, True)
    inside = np.array([[0, 0.75], [0.75, 0], [0.75, 0.75]])  # of the nodes from .1 to .5
    value, error, moved = found.mass(0.1, 0.5)
    full = inside.mean(1)
    assert (value, error) == pytest.approx((full.mean(), full.std(ddof=1) / np.sqrt(3)))
    both = 2 * 0.25 if coupling else 0  # one eigenvalue at each edge
    assert moved == pytest.approx(max(inside.mean(0).std() + both, 0.25))
    assert found.mass(0.0, 2.0) == pytest.approx((1, 0, both or 0.25))  # edges belong to it
    assert found.mass(-0.5, 2.5) == pytest.approx((1, 0, both or 0.25))  # as far as the coupling reaches
    assert found.mass(-0.51, 2.51) == pytest.approx((1, 0, 0.25))  # nothing is known better than to one eigenvalue
    assert found.mass(-np.inf, 1.5)[2] == pytest.approx(0.25)
    assert found.mass(-9.0, -8.0) == pytest.approx((0, 0, 0.25))
    closed = dataclasses.replace(found, closed=True)
    assert closed.mass(-0.51, 2.51) == pytest.approx((1, 0, 0))
    assert closed.mass(-np.inf, 1.5)[2] == pytest.approx(both / 2)
    assert closed.mass(0.1, 0.5)[2] == pytest.approx(inside.mean(0).std() + both)
    found.nodes[1, 0, 0] = np.nan
    assert not found.finite


def test_a_broadened_density_is_the_mean_of_its_bells():
    grid, width = np.array([-0.4, 0.7, 2.2]), 0.3
    found = three_probes(0.0)
    bells = np.exp(-((grid - found.nodes[..., None]) ** 2) / (2 * width**2)) / np.sqrt(2 * np.pi * width**2)
    each = (found.weights[..., None] * bells).sum(2)  # (probes, rules, points)
    value, error, moved = found.broadened(grid, width)
    assert value == pytest.approx(each.mean((0, 1)))
    assert error == pytest.approx(each.mean(1).std(0, ddof=1) / np.sqrt(3))
    assert moved == pytest.approx(each.mean(0).std(0))


@pytest.mark.parametrize("steps", [4, 9, 20])
def test_the_rules_are_those_of_the_last_third_of_the_steps_and_products_are_counted(steps):
    spent, dense, seen = [], matrix(torch.linspace(-3, 1, 120, dtype=torch.float64)), []
    counting = Operator(120, lambda v: spent.append(1) or dense @ v, torch.float64)
    found = spectral_density(counting, rng(), probes=4, steps=steps, watch=lambda *step: seen.append(step))
    assert len(spent) == found.matvecs == 5 * steps
    assert found.nodes.shape[:2] == found.weights.shape[:2] == (4, steps // 3 + 1)
    assert found.one == 1 / 120
    assert [step[0] for step in seen] == [2 * steps, 3 * steps, 4 * steps, 5 * steps]
    assert seen[-1][1:] == (found.largest, 0)
    taken = int((found.nodes == found.nodes[0, 0]).all((0, 1)).sum())
    lengths = (found.weights[:, :, taken:] > 0).sum(2)
    assert (lengths == range(steps - steps // 3, steps + 1)).all()
    assert found.rounding == pytest.approx(10 * torch.finfo(torch.float64).eps * np.abs(found.nodes).max())


def test_probes_end_where_three_or_more_are_enough():
    asked = []

    def enough(found):
        asked.append(len(found.nodes))
        return asked[-1] == 5

    found = spectral_density(from_dense(matrix(SPECTRA["separated"])), rng(), probes=8, steps=4, enough=enough)
    assert asked == [3, 4, 5]
    assert len(found.nodes) == len(found.weights) == 5
    assert found.matvecs == 6 * 4
    assert len(spectral_density(from_dense(matrix(SPECTRA["separated"])), rng(), steps=4).nodes) == 8


def test_what_is_taken_out_is_coupled_by_its_residuals():
    """Those of the first run, of one percent of the largest magnitude at most."""
    dense = matrix(SPECTRA["separated"])
    found = spectral_density(from_dense(dense), rng(), probes=2, steps=9)
    run = decompose(from_dense(dense), torch.randn(120, generator=rng(), dtype=torch.float64), 9)
    t = np.diag(run.alpha) + np.diag(run.beta[:-1], 1) + np.diag(run.beta[:-1], -1)
    values, vectors = np.linalg.eigh(t)
    ritz = torch.from_numpy(vectors.T) @ run.basis
    residuals = np.array([float((dense @ y - v * y).norm()) for v, y in zip(values, ritz, strict=True)])
    near = residuals <= 0.01 * 8
    assert 0 < near.sum() < 9
    taken = found.nodes[0, 0, : near.sum()]
    assert taken == pytest.approx(values[near])
    assert found.weights[0, 0, : near.sum()] == pytest.approx(1 / 120)
    assert found.coupling == pytest.approx(np.sqrt((residuals[near] ** 2).sum()))
    assert found.weights[:, :, near.sum() :].sum(2) == pytest.approx(1 - near.sum() / 120)
    low = decompose(from_dense(-dense), torch.randn(120, generator=rng(), dtype=torch.float64), 9)
    assert len(quadrature._known(low, closed=False)[0]) == near.sum()  # of the largest magnitude, whatever its sign


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


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [30, 60, 64, 200])
def test_what_was_taken_out_does_not_come_back_by_rounding(size, sign):
    # 0 is far outside this spectrum, and where a complement has what was taken out
    dense = sign * torch.diag(torch.linspace(0.5, 1.0, size))
    found = spectral_density(from_dense(dense), rng())
    ends = sorted([sign * found.smallest, sign * found.largest])
    assert 0.5 - found.rounding <= ends[0] <= ends[1] <= 1 + found.rounding


@pytest.mark.parametrize("name", ["separated", "negative definite", "low rank"])
def test_the_density_scales_with_the_matrix(name):
    dense = matrix(SPECTRA[name])
    one, tiny = (spectral_density(from_dense(factor * dense), rng()) for factor in (1.0, 2.0**-80))
    assert tiny.matvecs == one.matvecs
    assert tiny.nodes * 2.0**80 == pytest.approx(one.nodes, abs=one.rounding)


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


def test_a_complement_that_is_wholly_seen_has_no_error_of_its_rules():
    """Of six eigenvalues, each twice, the first run takes out one each, and a probe sees all six of the others."""
    values = torch.arange(1.0, 7.0, dtype=torch.float64)
    found = spectral_density(from_dense(matrix(values.repeat(2))), rng(), probes=5, steps=20)
    assert found.matvecs == 6 + 5 * 6
    assert found.nodes == pytest.approx(np.tile([*range(1, 7)] * 2, (*found.nodes.shape[:2], 1)))
    assert found.mass(0.5, 3.5)[2] == pytest.approx(0, abs=1e-12)
    one = spectral_density(from_dense(torch.diag(torch.tensor([1.0, 2.0, 3.0, 3.0], dtype=torch.float64))), rng())
    assert one.mass(2.9, 3.1) == pytest.approx((0.5, 0, 0), abs=1e-12)


def test_what_is_not_finite_is_seen():
    found = spectral_density(Operator(9, lambda v: v * float("inf"), torch.float64), rng())
    assert not found.finite
    assert found.matvecs == 1
    assert not spectral_density(from_dense(1e-145 * matrix(SPECTRA["separated"])), rng()).finite  # squares vanish
    calls = []
    late = Operator(60, lambda v: calls.append(1) or v * (1 + torch.arange(60)) * (1.0 if len(calls) < 30 else np.nan))
    found = spectral_density(late, rng(), steps=10)
    assert not found.finite
    assert found.matvecs == 30


def test_a_basis_that_does_not_fit_is_refused():
    with pytest.raises(ProblemError, match=r"20 vectors of 120 entries need 3.8e-05 GB; .* where 1 vectors each fit"):
        spectral_density(from_dense(matrix(SPECTRA["zero"])), rng(), basis_bytes=2000)
    with pytest.raises(ProblemError, match=r"of 10,000,000 entries need 1\.6 GB; .* to 3\.2GB, or take fewer"):
        spectral_density(Operator(10_000_000, lambda v: v), rng(), basis_bytes=10**9)
    enough = 2 * 20 * 120 * 8  # two bases of 20 vectors
    assert spectral_density(from_dense(matrix(SPECTRA["zero"])), rng(), basis_bytes=enough).finite
    with pytest.raises(ProblemError):
        spectral_density(from_dense(matrix(SPECTRA["zero"])), rng(), basis_bytes=enough - 1)


def test_a_seed_is_a_number():
    operator = from_dense(matrix(SPECTRA["separated"]))
    one, same, other = (spectral_density(operator, rng(seed)) for seed in (1, 1, 2))
    assert (one.nodes == same.nodes).all()
    assert one.smallest != other.smallest
