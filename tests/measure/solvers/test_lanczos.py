import itertools
import math

import numpy as np
import pytest
import torch

from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.basis import Basis
from gapscope.measure.solvers.lanczos import (
    Stopping,
    _Iteration,
    _off,
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_of_all_of_the_space_nothing_but_rounding_is_unknown(dtype):
    pairs = extreme_eigenpairs(diagonal(5.0, 4.0, 3.0, 2.0, 1.0, dtype=dtype), 5, rng())
    assert stated(pairs) <= 3 * pairs.rounding  # that of the Ritz value, of the verifying product and of its remainder
    assert pairs.bottom - pairs.lower <= 3 * pairs.rounding


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


def test_where_squares_vanish_in_float64_nothing_is_known():
    pairs = extreme_eigenpairs(diagonal(3e-145, 1e-145, 2e-145), 1, rng())
    assert pairs.status is Status.NONFINITE
    assert pairs.matvecs == 1


def test_a_matrix_that_is_not_finite_is_nonfinite():
    for bad in (float("nan"), float("inf")):
        dense = torch.eye(20)
        dense[3, 3] = bad
        pairs = extreme_eigenpairs(from_dense(dense), 2, rng())
        assert pairs.status is Status.NONFINITE
        assert np.isnan(pairs.values).all()


@pytest.mark.parametrize("k", [1, 2])
def test_a_verifying_product_that_is_not_finite_is_nonfinite(k):
    pairs = extreme_eigenpairs(diagonal(3.0, 1.0), k, rng(), verify=lambda v: v * float("nan"))
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


@pytest.mark.parametrize("sign", [1, -1])
def test_a_coupling_below_rounding_counts_as_rounding_of_the_largest_magnitude(sign):
    operator = diagonal(*[sign * 1.0] * 9, *[sign * 0.01] * 9)
    start = gaussian_start(operator, rng())
    iteration = _Iteration(operator, start, Basis(18, start))
    assert iteration.step()
    iteration.extend(0)
    assert not iteration.step()  # two eigenvalues
    values, inner = iteration.ritz()
    reach, unknown = iteration.reach(values, inner, 0.01), torch.finfo(torch.float64).eps
    assert iteration.beta[-1] < unknown
    assert np.abs(reach.residuals) == pytest.approx(unknown * np.abs(inner[-1]))
    assert reach.log_betas == pytest.approx(math.log(iteration.beta[0] * unknown))
    assert iteration.rounding(values) == pytest.approx(10 * unknown)


@pytest.mark.parametrize("budget", [2, 3, 4, 7, 10])
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


@pytest.mark.parametrize(
    ("name", "k", "budgets"), [("separated", 2, range(4, 13)), ("gap of 1.4 %", 4, range(20, 50, 5))]
)
def test_converged_are_all_of_the_pairs(name, k, budgets):
    operator = from_dense(matrix(SPECTRA[name]))
    ends = set()
    for budget in budgets:
        pairs = extreme_eigenpairs(operator, k, rng(), stopping=Stopping(max_matvecs=budget))
        first = stated(pairs) <= 1e-3 * pairs.values[0] and len(pairs.values) == k
        others = bool((pairs.residuals[1:] <= 1e-3 * pairs.values[0]).all())
        assert pairs.status is (Status.CONVERGED if first and others else Status.BUDGET_SPENT)
        assert pairs.matvecs <= budget
        ends.add((first, others))
    assert ends >= {(True, False), (True, True)}


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


def skewed(name, share):
    """Return an operator that is off symmetry by this much: its recurrence is more optimistic than its residuals."""
    skew = torch.triu(torch.randn(120, 120, generator=rng(), dtype=torch.float64), 1)
    dense = matrix(SPECTRA[name]) + share * (skew - skew.T)
    return Operator(120, lambda v: dense @ v, torch.float64)


@pytest.mark.parametrize(("name", "k", "budgets"), [("clustered", 1, (21, 24)), ("negative definite", 3, (54, 62))])
def test_the_budget_holds_where_pairs_are_verified_again(name, k, budgets):
    for budget in range(*budgets):
        pairs = extreme_eigenpairs(skewed(name, 2e-3), k, rng(), stopping=Stopping(max_matvecs=budget))
        assert pairs.status is Status.BUDGET_SPENT
        assert pairs.spent_on == "matvecs"
        assert pairs.matvecs <= budget


def test_where_verifying_does_not_help_the_precision_is_spent_and_not_the_budget():
    """The recurrence is asked for less four times, and to a hundredth of the tolerance."""
    verified = []
    operator = skewed("separated", 1e-2)
    pairs = extreme_eigenpairs(operator, 1, rng(), verify=lambda v: verified.append(v) or operator.matvec(v))
    assert (pairs.status, pairs.spent_on) == (Status.BUDGET_SPENT, "precision")
    assert len(verified) == 5
    assert pairs.matvecs < 30
    full = extreme_eigenpairs(skewed("separated", 1e-2), 1, rng(), stopping=Stopping(tolerance=1e-16, max_matvecs=121))
    assert (full.status, full.spent_on, full.matvecs) == (Status.BUDGET_SPENT, "precision", 121)


def test_going_on_after_a_verification_may_succeed():
    """The first product that verifies is noisy, the next is not."""
    dense, noise, seen = matrix(SPECTRA["separated"]), [0.1, 0.0, 0.0], []
    operator = Operator(120, lambda v: seen.append(v) or dense @ v, torch.float64)
    pairs = extreme_eigenpairs(operator, 1, rng(), verify=lambda v: dense @ v + noise.pop(0))
    assert pairs.status is Status.CONVERGED
    assert len(noise) == 1
    basis = torch.stack(seen)  # the same Krylov space throughout: no product twice
    assert torch.allclose(basis @ basis.T, torch.eye(len(seen), dtype=torch.float64), atol=1e-13)
    assert pairs.matvecs == len(seen) + 2


@pytest.mark.parametrize("k", [1, 2])
def test_what_the_verifying_product_is_off_widens_both_bounds(k):
    dense, wrong = matrix(SPECTRA["gap of 1.4 %"]), torch.linspace(-1e-3, 1e-3, 120, dtype=torch.float64)
    exact, off = (
        extreme_eigenpairs(
            from_dense(dense), k, rng(), stopping=Stopping(max_matvecs=8), verify=lambda v, e=e: dense @ v + e * wrong
        )
        for e in (0, 1)
    )
    size = float(wrong.norm())
    assert off.upper == pytest.approx(exact.upper + size, abs=1e-9)
    assert off.lower == pytest.approx(exact.lower - size, abs=1e-9)


# --- a cheaper operator that searches


def near(dense, size, seed=0):
    """Return an operator that is another matrix at every product, off by `size` of it: like one that rounds."""
    noise = torch.Generator().manual_seed(seed)

    def matvec(v):
        image = dense @ v
        return image + size * image.norm() * torch.randn(len(v), generator=noise, dtype=v.dtype) / len(v) ** 0.5

    return Operator(len(dense), matvec, dense.dtype)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("name", [name for name in SPECTRA if name != "zero"])
def test_what_a_rounded_operator_finds_lies_within_the_bounds_of_the_exact_one(name, k):
    dense, spectrum = matrix(SPECTRA[name]), SPECTRA[name].sort().values.numpy()
    outside = 0
    for seed in range(10):
        pairs = extreme_eigenpairs(
            near(dense, 3e-3, seed), k, rng(seed), exact=from_dense(dense), stopping=Stopping(tolerance=0.05)
        )
        assert pairs.status in (Status.CONVERGED, Status.BUDGET_SPENT)
        assert (np.diff(pairs.values) <= 0).all()
        assert pairs.residuals == pytest.approx(residuals_of(dense, pairs), abs=1e-9)
        off = np.abs(pairs.values[:, None] - spectrum).min(1)
        assert (off <= pairs.residuals + 1e-9).all()  # some eigenvalue is that close
        outside += not pairs.lower <= spectrum[0] <= spectrum[-1] <= pairs.upper
    assert outside <= 2  # each end fails with a probability of 1 %


def residuals_of(dense, pairs):
    return [float((dense @ u - float(theta) * u).norm()) for theta, u in zip(pairs.values, pairs.vectors, strict=True)]


def test_the_value_is_of_second_order_where_the_vector_is_rounded():
    dense = matrix(SPECTRA["separated"])
    found = [
        extreme_eigenpairs(near(dense, size), 1, rng(), exact=from_dense(dense), stopping=Stopping(tolerance=0.03))
        for size in (1e-2, 1e-3)
    ]
    truth = float(SPECTRA["separated"].max())
    large, small = (truth - float(pairs.values[0]) for pairs in found)
    assert 0 <= small <= 2e-6 * truth
    assert 0 <= large <= 2e-4 * truth
    assert found[0].apart == pytest.approx(10 * found[1].apart, rel=0.3)
    assert all(pairs.upper - pairs.values[0] >= pairs.apart for pairs in found)


def test_where_the_two_are_farther_apart_than_the_tolerance_no_more_products_are_spent():
    dense = matrix(SPECTRA["separated"])
    full = extreme_eigenpairs(from_dense(dense), 1, rng())
    pairs = extreme_eigenpairs(near(dense, 1e-2), 1, rng(), exact=from_dense(dense))
    assert (pairs.status, pairs.spent_on) == (Status.BUDGET_SPENT, "precision")
    assert pairs.apart > 1e-3 * pairs.values[0]
    assert pairs.matvecs <= full.matvecs + 20


def test_all_of_a_space_searched_by_a_rounded_operator_is_not_exact():
    dense = torch.diag(torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64))
    pairs = extreme_eigenpairs(near(dense, 1e-2), 1, rng(), exact=from_dense(dense), stopping=Stopping(tolerance=1e-3))
    assert (pairs.status, pairs.spent_on) == (Status.BUDGET_SPENT, "precision")
    assert pairs.lower <= -1 < 3 <= pairs.upper


@pytest.mark.parametrize("delta", [0.01, 1 - 1e-9])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_ends_of_a_spectrum_are_each_others_mirror_images(name, delta):
    dense, stopping = matrix(SPECTRA[name]), Stopping(delta=delta, max_matvecs=7)
    for seed in range(4):
        up, down = (extreme_eigenpairs(from_dense(a), 1, rng(seed), stopping=stopping) for a in (dense, -dense))
        if up.matvecs == down.matvecs:
            scale = 1e-9 * float(SPECTRA[name].abs().max())
            for one, other in ((up, down), (down, up)):
                assert one.bottom == pytest.approx(-other.values[0], abs=scale)
                assert one.lower == pytest.approx(-other.upper, abs=scale)


@pytest.mark.parametrize("seed", range(10))
def test_the_bound_is_never_closer_than_the_second_order_error(seed):
    """At a delta near 1 the bound from the start says next to nothing."""
    stopping = Stopping(delta=1 - 1e-9, max_matvecs=7)
    pairs = extreme_eigenpairs(from_dense(matrix(SPECTRA["gap of 1.4 %"])), 2, rng(seed), stopping=stopping)
    residual, gap = pairs.residuals[0], pairs.values[0] - pairs.values[1]
    assert stated(pairs) >= min(residual, residual**2 / gap) * (1 - 1e-9)


def test_a_value_is_off_by_its_residual_or_to_second_order():
    assert _off(np.array([1.0, 3.0]), 0.5) == 0.125
    assert _off(np.array([1.0, 1.5]), 0.25) == 0.125
    assert _off(np.array([-9.0, 1.0, 3.0]), 3.0) == 3
    assert _off(np.array([-9.0, 1.0, 3.0]), 1.0) == 0.5
    assert _off(np.array([3.0]), 0.5) == _off(np.array([3.0, 3.0]), 0.5) == 0.5


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("name", ["separated", "gap of 1.4 %", "negative definite"])
def test_watch_sees_every_step_and_ritz_values_that_never_fall(name, k):
    seen = []
    pairs = extreme_eigenpairs(from_dense(matrix(SPECTRA[name])), k, rng(), watch=lambda *step: seen.append(step))
    assert [m for m, _, _ in seen] == list(range(1, pairs.matvecs - k + 1))  # and one product to verify each pair
    assert pairs.status is Status.CONVERGED
    assert (pairs.residuals[1:] <= 1e-3 * abs(pairs.values[0])).all()
    assert seen[-1][2] == pytest.approx(max(stated(pairs), *pairs.residuals[1:], 0), rel=1e-6)
    assert all(width >= stated(pairs) * (1 - 1e-9) for _, _, width in seen)
    values = [value for _, value, _ in seen]
    assert all(b >= a - 1e-14 for a, b in itertools.pairwise(values))


def test_the_same_seed_gives_the_same_answer_and_another_start_does_not():
    operator = from_dense(matrix(SPECTRA["clustered"]))
    a, b, c = (extreme_eigenpairs(operator, 1, rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(a.vectors, b.vectors)
    assert not torch.equal(a.vectors, c.vectors)
