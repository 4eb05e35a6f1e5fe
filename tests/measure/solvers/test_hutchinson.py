import numpy as np
import pytest
import torch
from scipy.special import stdtrit
from scipy.stats import norm

from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.hutchinson import (
    PILOT,
    _deflation_pays,
    _Probes,
    _span,
    caution,
    error_of_mean,
    estimate_trace,
)
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


T = 1e-4  # the probability within three deviations has five digits: of t with one degree of freedom, 8e-5


def signs(generator, count):
    return [2.0 * torch.randint(0, 2, (120,), generator=generator, dtype=torch.int8) - 1 for _ in range(count)]


def stated(values, least=0.0):
    """Return mean and error of draws whose variance is at least so much: t for few of them, so that 3 hold."""
    m = len(values)
    wide = stdtrit(m - 1, norm.cdf(3)) / 3
    return np.mean(values), wide * np.sqrt(max(np.var(values, ddof=1), least) / m)


@pytest.mark.parametrize("probes", [10, 29])
def test_plain_probes_are_averaged_by_the_formulas_of_the_header(probes):
    dense = matrix(SPECTRA["separated"])
    found = estimate_trace(from_dense(dense), rng(4), blocks=HALVES, tolerance=1e-9, max_matvecs=probes)
    drawn = signs(rng(4), probes)
    assert (found.method, found.probes, found.sketch, found.matvecs) == ("hutchinson", probes, 0, probes)
    parts = [z.double() * (dense @ z.double()) for z in drawn]
    assert (found.trace, found.trace_error) == pytest.approx(stated([float(part.sum()) for part in parts]), rel=T)
    for name, value, error in zip(HALVES, found.blocks, found.blocks_error, strict=True):
        own = np.array([float(part[HALVES[name]].sum()) for part in parts])
        assert (value, error) == pytest.approx((own.mean(), error_of_mean(own)), rel=T)
    squares = np.array([float(part.square().sum()) for part in parts])  # z_i^2 = 1
    square, off = squares.mean(), error_of_mean(squares)
    assert found.frobenius == pytest.approx(np.sqrt(square))
    assert found.frobenius_error == pytest.approx(off / (2 * np.sqrt(square)), rel=T)
    assert found.rounding == pytest.approx(10 * torch.finfo(torch.float64).eps * np.sqrt(120) * found.frobenius)


def test_after_a_deflation_probes_are_averaged_by_the_formulas_of_the_header():
    dense, seen = decaying(), []
    found = estimate_trace(
        from_dense(dense), rng(4), blocks=HALVES, tolerance=1e-9, max_matvecs=45, watch=lambda *step: seen.append(step)
    )
    generator = rng(4)
    images = torch.stack([dense @ z.double() for z in signs(generator, 10)])
    q = torch.linalg.qr(images.T).Q
    fresh = 45 - 10 - 10
    assert (found.method, found.probes, found.sketch, found.matvecs) == ("hutch++", fresh, 10, 45)
    p = torch.eye(120, dtype=torch.float64) - q @ q.T
    inside = dense - p @ dense @ p
    probes = [g.double() for g in signs(generator, fresh)]
    parts = [g * (p @ dense @ p @ g) for g in probes]
    others = [torch.cat([images[:j], images[j + 1 :]]).T for j in range(10)]
    missed = np.mean(
        [float((b - o @ torch.linalg.lstsq(o, b).solution).norm()) ** 2 for b, o in zip(images, others, strict=True)]
    )
    trace, error = stated([float(part.sum()) for part in parts], missed)
    assert found.trace == pytest.approx(float(inside.trace()) + trace)
    assert found.trace_error == pytest.approx(error, rel=T)
    for where, value, off in zip(HALVES.values(), found.blocks, found.blocks_error, strict=True):
        own = np.array([float(part[where].sum()) + float(inside.diagonal()[where].sum()) for part in parts])
        assert (value, off) == pytest.approx((own.mean(), error_of_mean(own)), rel=T)
    squares = np.array([float((dense @ p @ g).square().sum()) for g in probes])
    square, off = squares.mean() + float((dense @ q).square().sum()), error_of_mean(squares)
    assert found.frobenius == pytest.approx(np.sqrt(square))
    assert found.frobenius_error == pytest.approx(off / (2 * np.sqrt(square)), rel=T)
    assert seen[0][0] == 10
    assert [spent for spent, _, _ in seen[1:]] == list(range(30, 46))  # from ten probes on
    assert seen[-1] == (45, found.trace, found.trace_error)


def test_three_errors_of_few_draws_hold_as_often_as_those_of_a_normal_distribution():
    for freedom in (1, 9, 59, 10**9):
        assert 3 * caution(freedom) == pytest.approx(-stdtrit(freedom, norm.sf(3)), rel=T)
    assert (caution(9), caution(59)) == pytest.approx((1.36, 1.04), abs=0.005)
    assert np.isnan(caution(0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e19, 1e-19])
def test_a_span_knows_how_far_each_row_is_from_the_others(dtype, scale):
    one, two, three, four = torch.eye(4, dtype=dtype) * scale
    basis, missed = _span(torch.stack([one, one + two, 2 * three]))
    assert missed == pytest.approx((0.5 + 1 + 4) / 3 * scale**2, rel=1e-6)
    assert torch.allclose(basis @ basis.T, torch.eye(3, dtype=dtype), atol=1e-6)
    assert torch.allclose(basis.square().sum(0), torch.tensor([1, 1, 1, 0], dtype=dtype), atol=1e-6)
    basis, missed = _span(torch.stack([one, one * (1 + 1e-7), 0 * one, four]))
    assert missed == pytest.approx(scale**2 / 4, rel=1e-6)
    assert basis.square().sum(0) == pytest.approx([1, 0, 0, 1], abs=1e-6)
    assert _span(torch.zeros(3, 4, dtype=dtype))[1] == 0


def probes(variance, count):
    """Return so many probes with this sample variance."""
    each = _Probes({}, np.zeros(1), 0.0)
    each.traces = list(np.sqrt(variance * (count - 1) / count) * np.array([1.0, -1.0] * (count // 2)))
    return each


@pytest.mark.parametrize(
    ("variance", "missed", "left", "last", "pays"),
    [
        # wanted .1, 20 probes, a sketch of 20: plain needs v / .1 - 20 more, Hutch++ 20 + max(10, 2 missed / .1)
        (5.2, 0.1, 100, False, True),  # 32 against 30
        (4.8, 0.1, 100, False, False),  # 28
        (5.2, 0.6, 100, False, False),  # 32 against 32
        (6.3, 1.0, 100, False, True),  # 43 against 40
        (5.9, 1.0, 100, False, False),  # 39
        (1.0, 0.0, 100, False, False),  # -10
        (100.0, 0.1, 30, False, True),  # what fits the budget
        (100.0, 0.1, 29, False, False),
        (100.0, 0.1, 29, True, False),  # 9 fresh probes are too few for an error
        (5.0, 1.0, 31, False, False),  # 30 do
        (100.0, 100.0, 60, False, False),  # neither: variances at the end of the budget, 2 missed / 40 against v / 80
        (100.0, 24.0, 60, True, True),  # 1.2 against 1.25
        (100.0, 26.0, 60, True, False),
        (100.0, 12.0, 30, True, False),  # 2.4 against 2
        (100.0, 9.0, 30, True, True),  # 1.8
    ],
)
def test_what_reaches_the_tolerance_sooner_or_ends_with_the_smaller_error_is_taken(variance, missed, left, last, pays):
    assert _deflation_pays(probes(variance, 20), missed, 20, 0.1, left, last=last) is pays


@pytest.mark.parametrize("name", ["separated", "low rank", "decaying"])
@pytest.mark.parametrize("factor", [1.0, 2.0**30, 2.0**-30])
def test_after_ten_probes_the_choice_is_that_of_the_formula_at_every_scale(name, factor):
    dense = factor * (decaying() if name == "decaying" else matrix(SPECTRA[name]))
    images = torch.stack([dense @ z.double() for z in signs(rng(), 10)])
    drawn = _Probes({}, np.zeros(1), 0.0)
    for z, image in zip(signs(rng(), 10), images, strict=True):
        drawn.add(z.double(), image, float(image.square().sum()))
    missed = _span(images)[1]
    size = max(abs(np.mean(drawn.traces)), np.sqrt(np.mean(drawn.squares)))
    for tolerance in np.geomspace(1e-3, 0.3, 12):
        found = estimate_trace(from_dense(dense), rng(), tolerance=tolerance, max_matvecs=45)
        rank = len(_span(images)[0])
        pays = _deflation_pays(drawn, missed, rank, (tolerance * size) ** 2, 35, last=True)
        deflated = pays and drawn.error > tolerance * size
        assert (found.method, found.sketch) == (("hutch++", rank) if deflated else ("hutchinson", 0))


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


def test_errors_of_a_block_of_rank_one_allow_for_its_skewness():
    """Ten probes are enough for the whole trace; of the small block they are ten draws of about a chi-square."""
    dense = torch.diag(torch.full((50,), 40.0, dtype=torch.float64))
    dense[:16, :16] = 1.0
    blocks = {"small": slice(0, 16), "large": slice(16, 50)}
    found = [estimate_trace(from_dense(dense), rng(seed), blocks=blocks, max_matvecs=29) for seed in range(400)]
    assert {one.probes for one in found} == {PILOT}
    within = [abs(one.blocks[0] - 16) <= 3 * one.blocks_error[0] for one in found]
    plain = [abs(one.blocks[0] - 16) <= 3 * one.trace_error for one in found]
    assert np.mean(within) >= 0.98 > np.mean(plain)


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


def test_of_the_negative_everything_is_the_negative():
    dense = -matrix(SPECTRA["negative definite"])
    up, down = (estimate_trace(from_dense(a), rng(), blocks=HALVES, tolerance=0.005) for a in (dense, -dense))
    assert (down.trace, down.trace_error, down.matvecs) == (-up.trace, up.trace_error, up.matvecs)
    assert (down.blocks == -up.blocks).all()


def test_where_squares_vanish_in_float64_nothing_is_known():
    found = estimate_trace(from_dense(1e-145 * matrix(SPECTRA["separated"])), rng())
    assert found.status is Status.NONFINITE
    assert found.matvecs == 1


@pytest.mark.parametrize(
    ("products", "sketch_bytes", "method"),
    [
        (29, None, "hutchinson"),  # 10 images are more than a third of the products
        (30, None, "hutch++"),
        (29, 10**9, "hutchinson"),
        (30, 10**9, "hutch++"),
        (45, 4 * 10 * 120 * 8, "hutch++"),  # four times 10 vectors
        (45, 4 * 10 * 120 * 8 - 1, "hutchinson"),
    ],
)
def test_a_sketch_is_a_third_of_the_products_and_a_quarter_of_the_memory_at_most(products, sketch_bytes, method):
    found = estimate_trace(
        from_dense(decaying()), rng(), tolerance=1e-9, max_matvecs=products, sketch_bytes=sketch_bytes
    )
    assert (found.method, found.matvecs) == (method, products)


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


def test_after_a_deflation_what_is_not_finite_is_not_a_number():
    dense, calls = decaying(), []

    def matvec(v):
        calls.append(v)
        return dense @ v * (float("nan") if len(calls) > 25 else 1.0)

    found = estimate_trace(Operator(120, matvec, torch.float64), rng(), tolerance=1e-9, max_matvecs=45)
    assert (found.status, found.method, found.sketch, found.matvecs) == (Status.NONFINITE, "hutch++", 10, 26)
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


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize("method", ["hutchinson", "hutch++"])
def test_the_unit_of_the_matrix_changes_no_choice(method, factor):
    dense = matrix(SPECTRA["separated"]) if method == "hutchinson" else decaying()
    one, other = (
        estimate_trace(from_dense(dense * unit), rng(), tolerance=0.05, max_matvecs=300) for unit in (1.0, factor)
    )
    assert (one.method, one.status) == (method, Status.CONVERGED)
    assert (other.method, other.status, other.matvecs) == (one.method, one.status, one.matvecs)
    assert other.trace == pytest.approx(factor * one.trace, rel=1e-9)
    assert other.trace_error == pytest.approx(factor * one.trace_error, rel=1e-6)


def test_what_is_chosen_counts_the_products_that_are_left(monkeypatch):
    asked = []

    def never(plain, missed, directions, wanted, left, *, last):
        asked.append((len(plain), left, last))
        return False

    monkeypatch.setattr("gapscope.measure.solvers.hutchinson._deflation_pays", never)
    estimate_trace(from_dense(decaying()), rng(), tolerance=1e-9, max_matvecs=100)
    assert asked == [(PILOT, 100 - PILOT, False), (2 * PILOT, 100 - 2 * PILOT, True)]


def test_the_error_of_a_frobenius_norm_allows_for_skewness():
    """Of rank one, |Hz|^2 is as skewed as a chi-square: three errors of ten probes miss it as seldom as of many."""
    u = torch.zeros(60, dtype=torch.float64)
    u[:30] = 1 / 30**0.5
    dense, missed = torch.outer(u, u), 0
    for seed in range(1000):
        found = estimate_trace(from_dense(dense), rng(seed), tolerance=1.0, max_matvecs=PILOT, sketch_bytes=0)
        missed += abs(found.frobenius - 1) > 3 * found.frobenius_error
    assert missed <= 15
