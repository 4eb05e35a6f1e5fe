import numpy as np
import pytest
import scipy.linalg
import torch

from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.diagonal import GROUPS, estimate_diagonal, halved, quartiles_of, ratio_quartiles
from gapscope.measure.solvers.hutchinson import error_of_mean
from gapscope.measure.solvers.lanczos import decompose, gaussian_start
from gapscope.results import Status
from tests.spectra import SPECTRA, matrix

QUARTILES = (0.25, 0.5, 0.75)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def halves(size):
    return {"a": slice(0, size // 3), "b": slice(size // 3, size)}


def small_beside_its_rows(size=400, rank=12, seed=3):
    """Return B B' + a small positive diagonal: most entries are tiny beside their rows."""
    basis = torch.randn(size, rank, generator=rng(seed), dtype=torch.float64)
    rows = torch.logspace(-3, 0, size, dtype=torch.float64)[torch.randperm(size, generator=rng(seed))]
    basis = rows[:, None] * basis * torch.logspace(1, -1, rank, dtype=torch.float64)
    return basis @ basis.T + torch.diag(1e-4 * rows)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("directions", [0, 10, 40])
def test_every_entry_and_trace_is_within_its_errors(spectrum, directions):
    dense = matrix(SPECTRA[spectrum])
    blocks = halves(len(dense))
    found = estimate_diagonal(
        from_dense(dense), rng(), blocks=blocks, tolerance=1e-9, max_matvecs=104, directions=directions
    )
    true, scale = torch.diagonal(dense), float(torch.linalg.matrix_norm(dense, 2))
    rounding = 1e4 * torch.finfo(dense.dtype).eps * max(scale, 1e-300)
    assert (((found.entries - true).abs() - rounding) <= 5 * found.errors).all()
    traces = np.array([float(true[where].sum()) for where in blocks.values()])
    assert (np.abs(found.traces - traces) <= 5 * found.trace_errors + 1e3 * rounding).all()
    quartiles = np.array([np.quantile(true[where].abs().numpy(), QUARTILES) for where in blocks.values()])
    live = found.zero_fraction == 0
    assert (np.abs(found.quartiles - quartiles) <= found.quartile_errors + rounding)[live].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_diagonal_operator_is_exact_with_one_probe(dtype):
    h = torch.linspace(-2, 5, 60, dtype=dtype)
    found = estimate_diagonal(from_dense(torch.diag(h)), rng(), blocks=halves(60), max_matvecs=1)
    assert torch.equal(found.entries, h)
    assert (found.matvecs, found.probes, found.directions) == (1, 1, 0)
    assert torch.isnan(found.errors).all()  # exact, but one probe cannot know that
    assert found.status is Status.NOISE_DOMINATED


def test_equal_probes_leave_no_error():
    h = torch.linspace(-2, 5, 60)
    found = estimate_diagonal(from_dense(torch.diag(h)), rng(), blocks=halves(60), directions=0)
    assert (found.status, found.matvecs) == (Status.CONVERGED, GROUPS)
    assert found.quartile_errors == pytest.approx(0, abs=1e-6)
    assert (found.noise_share == 0).all()


def test_few_entries_are_measured_one_by_one():
    dense = matrix(SPECTRA["separated"])[:20, :20]
    found = estimate_diagonal(from_dense(dense), rng(), blocks=halves(20))
    assert (found.status, found.matvecs, found.probes) == (Status.EXACT, 20, 0)
    torch.testing.assert_close(found.entries, torch.diagonal(dense))
    assert (found.quartile_errors == 0).all()
    assert (found.trace_errors == 0).all()


def signs(generator, size, count):
    return [
        2.0 * torch.randint(0, 2, (size,), generator=generator, dtype=torch.int8).double() - 1 for _ in range(count)
    ]


def by_the_header(offset, draws, blocks):
    """Return entries, their errors, and quartiles by block with theirs, from probes (m, n): groups of every eighth."""
    m = len(draws)
    entries, errors = offset + draws.mean(0), draws.std(0, ddof=1) / np.sqrt(m)
    quartiles, stated = [], []
    for where in blocks.values():
        full = np.quantile(np.abs(entries[where]), QUARTILES)
        halves, differences = [], []
        for row in scipy.linalg.hadamard(8)[1:]:
            pair = []
            for sign in (1, -1):
                chosen = np.isin(np.arange(m) % 8, np.flatnonzero(row == sign))
                pair.append(np.quantile(np.abs(offset + draws[chosen].mean(0))[where], QUARTILES))
            halves += pair
            differences.append((pair[0] - pair[1]) / 2)
        square = np.maximum(2 * full**2 - np.mean(np.square(halves), axis=0), 0)
        error = np.abs(full - np.sqrt(square)) + 4 * np.sqrt(np.mean(np.square(differences), axis=0))
        noisy = np.median(errors[where]) > full
        quartiles.append(full)
        stated.append(np.where(noisy, np.maximum(error, full), error))
    return entries, errors, np.array(quartiles), np.array(stated)


@pytest.mark.parametrize("probes", [8, 24, 29])
@pytest.mark.parametrize("directions", [0, 2, 6])
@pytest.mark.parametrize("dense", [matrix(SPECTRA["separated"]), small_beside_its_rows(120)])
def test_everything_stated_is_by_the_formulas_of_the_header(dense, directions, probes):
    blocks, seen = halves(120), []
    found = estimate_diagonal(
        from_dense(dense),
        rng(2),
        blocks=blocks,
        tolerance=1e-9,
        max_matvecs=probes + directions,
        directions=directions,
        watch=lambda *step: seen.append(step),
    )
    generator, inside = rng(2), torch.zeros_like(dense)
    if directions:  # the last vector of the run is what A Q has beyond Q
        run = decompose(from_dense(dense), gaussian_start(from_dense(dense), generator), directions)
        q = run.basis[:-1].T
        outside = torch.eye(120, dtype=torch.float64) - q @ q.T
        inside = dense - outside @ dense @ outside
    rest = dense - inside
    draws = torch.stack([z * (rest @ z) for z in signs(generator, 120, probes)]).numpy()
    entries, errors, quartiles, stated = by_the_header(inside.diagonal().numpy(), draws, blocks)
    assert (found.probes, found.directions, found.matvecs) == (probes, max(0, directions - 1), probes + directions)
    assert found.entries.numpy() == pytest.approx(entries, abs=1e-12)
    assert found.errors.numpy() == pytest.approx(errors, abs=1e-12)
    assert found.quartiles == pytest.approx(quartiles, abs=1e-12)
    assert found.quartile_errors == pytest.approx(stated, abs=1e-10)
    share = [np.median(errors[where]) / q[1] for where, q in zip(blocks.values(), quartiles, strict=True)]
    assert found.noise_share == pytest.approx(share)
    sums = np.array([draws[:, where].sum(1) for where in blocks.values()])
    traces = [float(inside.diagonal()[where].sum()) for where in blocks.values()]
    assert found.traces == pytest.approx(traces + sums.mean(1))
    assert found.trace_errors == pytest.approx([error_of_mean(np.asarray(each)) for each in sums])
    assert found.status is (Status.NOISE_DOMINATED if max(share) > 1 else Status.BUDGET_SPENT)
    assert [spent for spent, _, _ in seen] == [directions + count for count in range(8, probes + 1, 8)]
    if probes % 8 == 0:
        relative = stated[:, 1] / quartiles[:, 1]
        assert seen[-1][1:] == pytest.approx((quartiles[relative.argmax(), 1], relative.max()))


def test_rounds_of_probes_end_where_the_worst_median_is_within_the_tolerance():
    seen = []
    found = estimate_diagonal(
        from_dense(torch.block_diag(matrix(SPECTRA["negative definite"]), torch.zeros(9, 9, dtype=torch.float64))),
        rng(),
        blocks={"dead": slice(120, 129), **halves(120)},
        tolerance=0.05,
        max_matvecs=1000,
        directions=0,
        watch=lambda *step: seen.append(step),
    )
    assert found.status is Status.CONVERGED
    assert len(seen) > 1
    assert all(error > 0.05 for _, _, error in seen[:-1])
    assert seen[-1][2] <= 0.05
    assert found.matvecs == seen[-1][0] == 8 * len(seen)
    assert (found.quartile_errors[1:, 1] <= 0.05 * found.quartiles[1:, 1]).all()


@pytest.mark.parametrize(
    ("size", "directions", "products", "exact"),
    [(48, 40, 100, True), (49, 40, 100, False), (20, 40, 20, True), (20, 40, 19, False)],
)
def test_all_entries_are_measured_where_that_is_within_directions_and_eight_more(size, directions, products, exact):
    dense = matrix(torch.linspace(-1, 2, size, dtype=torch.float64))
    found = estimate_diagonal(
        from_dense(dense), rng(), blocks=halves(size), directions=directions, max_matvecs=products, tolerance=1e-9
    )
    assert (found.status is Status.EXACT) == exact
    assert (found.noise_share == 0).all() == exact
    assert found.matvecs <= products
    if exact:
        assert found.entries.numpy() == pytest.approx(torch.diagonal(dense).numpy())
        assert found.traces == pytest.approx([float(torch.diagonal(dense)[w].sum()) for w in halves(size).values()])


def test_an_estimate_that_is_zero_by_chance_is_noise():
    """Of a swap of two entries every estimate is a mean of signs, often 0; all others are dead."""
    swap = torch.zeros(60, 60)
    swap[0, 1] = swap[1, 0] = 1
    zeros = 0
    for seed in range(20):
        found = estimate_diagonal(from_dense(swap), rng(seed), blocks=halves(60), max_matvecs=8, directions=0)
        if found.quartiles[0, 1] == 0:
            zeros += 1
            assert (found.status, found.noise_share[0]) == (Status.NOISE_DOMINATED, np.inf)
    assert zeros


def test_one_block_of_noise_is_enough_to_be_dominated():
    dense = torch.block_diag(torch.diag(torch.linspace(1, 2, 100, dtype=torch.float64)), small_beside_its_rows())
    found = estimate_diagonal(
        from_dense(dense), rng(), blocks={"exact": slice(0, 100), "noise": slice(100, 500)}, max_matvecs=8, directions=0
    )
    assert found.noise_share[0] == pytest.approx(0, abs=1e-12)
    assert found.noise_share[1] > 1
    assert found.status is Status.NOISE_DOMINATED


def test_of_few_entries_one_may_be_zero_or_no_number():
    dense = torch.diag(torch.tensor([2.0, 0.0, -1.0, 3.0]))
    found = estimate_diagonal(from_dense(dense), rng(), blocks={"all": slice(0, 4)})
    assert found.zero_fraction == 0.25
    assert found.quartiles[0] == pytest.approx([1.5, 2, 2.5])
    broken = estimate_diagonal(
        Operator(4, lambda v: v * (torch.nan if v[3] else 1.0)), rng(), blocks={"all": slice(0, 4)}
    )
    assert broken.status is Status.NONFINITE


def test_noise_lifts_the_median_of_one_probe_several_times_and_the_status_says_so():
    dense = small_beside_its_rows()
    found = estimate_diagonal(from_dense(dense), rng(), blocks={"all": slice(0, 400)}, max_matvecs=1)
    assert found.quartiles[0, 1] > 4 * np.median(torch.diagonal(dense))
    assert found.status is Status.NOISE_DOMINATED
    assert found.noise_share == np.inf
    ten = estimate_diagonal(from_dense(dense), rng(), blocks={"all": slice(0, 400)}, max_matvecs=10, directions=0)
    assert ten.quartiles[0, 1] > 1.5 * np.median(torch.diagonal(dense))
    assert ten.status is Status.NOISE_DOMINATED
    assert ten.noise_share > 1


def test_deflation_takes_the_noise_out_for_equal_products():
    dense = small_beside_its_rows()
    true, blocks = float(torch.diagonal(dense).median()), {"all": slice(0, 400)}
    plain = estimate_diagonal(from_dense(dense), rng(), blocks=blocks, max_matvecs=48, directions=0)
    found = estimate_diagonal(from_dense(dense), rng(), blocks=blocks, max_matvecs=48)
    assert plain.status is Status.NOISE_DOMINATED
    assert found.status is Status.CONVERGED
    assert abs(found.quartiles[0, 1] / true - 1) < 0.02 < abs(plain.quartiles[0, 1] / true - 1)


@pytest.mark.parametrize(("directions", "products"), [(0, 32), (6, 32)])
def test_the_stated_error_holds_the_true_median_whether_noise_dominates_or_not(directions, products):
    dense = small_beside_its_rows()
    blocks = halves(400)
    true = np.array([np.quantile(torch.diagonal(dense)[where].numpy(), QUARTILES) for where in blocks.values()])
    runs = [
        estimate_diagonal(
            from_dense(dense), rng(seed), blocks=blocks, tolerance=1e-9, max_matvecs=products, directions=directions
        )
        for seed in range(40)
    ]
    inside = [np.abs(found.quartiles - true) <= found.quartile_errors for found in runs]
    assert np.mean(inside, axis=0)[:, 1].min() >= 0.9  # 95 % are meant; 40 runs show it to 3.4 %


def test_dead_entries_are_zero_and_stay_out_of_the_quartiles():
    dense = matrix(SPECTRA["separated"])
    dense[:30] = dense[:, :30] = 0
    blocks = {"dead": slice(0, 20), "half": slice(20, 40), "alive": slice(40, 120)}
    found = estimate_diagonal(from_dense(dense), rng(), blocks=blocks, max_matvecs=80)
    assert found.zero_fraction == pytest.approx([1, 0.5, 0])
    assert (found.entries[:30] == 0).all()
    assert np.isnan(found.quartiles[0]).all()
    true = np.quantile(torch.diagonal(dense)[30:40].abs().numpy(), QUARTILES)
    assert (np.abs(found.quartiles[1] - true) <= found.quartile_errors[1]).all()


def test_a_zero_operator_is_all_zeros():
    found = estimate_diagonal(from_dense(torch.zeros(70, 70)), rng(), blocks=halves(70))
    assert found.status is Status.CONVERGED
    assert (found.zero_fraction == 1).all()
    assert (found.traces == 0).all()
    assert np.isnan(found.quartiles).all()


def test_something_that_overflows_is_nonfinite():
    broken = Operator(60, lambda v: v * torch.nan)
    assert estimate_diagonal(broken, rng(), blocks=halves(60)).status is Status.NONFINITE
    first = Operator(60, lambda v: torch.where(torch.arange(60) == 0, torch.nan, v))  # of the other block, nothing is
    assert estimate_diagonal(first, rng(), blocks=halves(60), directions=0).status is Status.NONFINITE
    few = Operator(5, lambda v: v * torch.nan)
    assert estimate_diagonal(few, rng(), blocks=halves(5)).status is Status.NONFINITE


def test_the_products_and_the_memory_are_bounded():
    spent = []
    dense = matrix(SPECTRA["clustered"])
    counting = Operator(120, lambda v: spent.append(1) or dense @ v, torch.float64)
    found = estimate_diagonal(counting, rng(), blocks=halves(120), tolerance=1e-9, max_matvecs=31)
    assert len(spent) == found.matvecs == 31
    assert found.directions <= 15
    tight = estimate_diagonal(counting, rng(), blocks=halves(120), max_matvecs=31, basis_bytes=28 * 120 * 8)
    assert tight.directions == 3  # 24 vectors beside the basis; the last of its 4 is outside of Q
    none = estimate_diagonal(counting, rng(), blocks=halves(120), max_matvecs=31, basis_bytes=0)
    assert (none.directions, none.matvecs) == (0, none.probes)


@pytest.mark.parametrize("size", [20, 120])
def test_what_is_known_is_added_without_error(size):
    dense = matrix(SPECTRA["separated"])[:size, :size]
    known = torch.linspace(0, 3, size, dtype=torch.float64)
    known[:5] = dense[:5] = dense[:, :5] = 0
    plain, more = (
        estimate_diagonal(from_dense(dense), rng(), blocks=halves(size), tolerance=1e-9, max_matvecs=64, known=k)
        for k in (None, known)
    )
    torch.testing.assert_close(more.entries, plain.entries + known)
    assert torch.equal(more.errors, plain.errors)
    assert more.traces == pytest.approx(plain.traces + [float(known[w].sum()) for w in halves(size).values()])
    assert (more.zero_fraction == plain.zero_fraction).all()


def test_what_is_known_alone_is_alive_where_it_is_not_zero():
    known = torch.tensor([0.0, 2.0, -4.0] * 30)
    found = estimate_diagonal(from_dense(torch.zeros(90, 90)), rng(), blocks={"all": slice(0, 90)}, known=known)
    assert found.zero_fraction == pytest.approx(1 / 3)
    assert found.quartiles[0] == pytest.approx([2, 3, 4])
    assert (found.quartile_errors == 0).all()


def test_quartiles_of_entries_leave_zeros_out():
    found, zeros = quartiles_of(torch.tensor([0.0, -1.0, 2.0, 3.0, 0.0]), {"most": slice(0, 4), "none": slice(4, 5)})
    assert found[0] == pytest.approx([1.5, 2, 2.5])
    assert np.isnan(found[1]).all()
    assert zeros == pytest.approx([0.25, 1])


def test_halves_give_a_mean_its_standard_error():
    """One entry a block: its median and its trace are the mean over the data."""
    values = torch.rand(32, 2, dtype=torch.float64, generator=rng()) + 1
    blocks = {"a": slice(0, 1), "b": slice(1, 2)}
    quartiles, traces = halved(values.mean(0), values, np.ones(32), blocks)
    true = values.std(0).numpy() / 32**0.5
    assert quartiles[:, 1] == pytest.approx(true)
    assert traces == pytest.approx(true)


def test_halves_weigh_chunks_by_their_samples_and_leave_dead_entries_out():
    sums = torch.tensor([[1.0, 9.0, 3.0], [-2.0, 9.0, 1.0], [4.0, 9.0, 2.0], [8.0, 9.0, -9.0]], dtype=torch.float64)
    counts, entries = np.array([1, 2, 3, 4]), torch.tensor([1.1, 0.0, -0.3], dtype=torch.float64)
    quartiles, traces = halved(entries, sums, counts, {"a": slice(0, 2), "b": slice(2, 3)})
    splits = [((0, 2), (1, 3)), ((0, 1), (2, 3)), ((0, 3), (1, 2))]
    for at, name in enumerate((0, 2)):
        pairs = [[float(sums[list(h), name].sum()) / counts[list(h)].sum() for h in split] for split in splits]
        assert quartiles[at] == pytest.approx(np.sqrt(np.mean([((abs(a) - abs(b)) / 2) ** 2 for a, b in pairs])))
        if name == 2:
            assert traces[at] == pytest.approx(np.sqrt(np.mean([((a - b) / 2) ** 2 for a, b in pairs])))


def test_quartiles_of_what_is_not_finite_are_no_numbers():
    found, _ = quartiles_of(torch.tensor([1.0, torch.inf, 2.0, 3.0]), {"a": slice(0, 2), "b": slice(2, 4)})
    assert np.isnan(found[0]).all()
    assert found[1] == pytest.approx([2.25, 2.5, 2.75])


def test_unfinished_rounds_of_probes_count():
    dense = matrix(SPECTRA["separated"])
    found = estimate_diagonal(
        from_dense(dense), rng(), blocks=halves(120), tolerance=1e-9, max_matvecs=29, directions=0
    )
    assert found.probes == 29
    assert np.isfinite(found.quartile_errors).all()


def test_two_probes_know_the_error_of_a_trace():
    dense = matrix(SPECTRA["separated"])
    found = estimate_diagonal(from_dense(dense), rng(), blocks={"all": slice(0, 120)}, max_matvecs=2, directions=0)
    draws = [float(z @ dense @ z) for z in signs(rng(), 120, 2)]
    assert found.trace_errors == pytest.approx(error_of_mean(np.array(draws)))
    assert found.trace_errors > 10 * abs(draws[0] - draws[1]) / 2
    one = estimate_diagonal(from_dense(dense), rng(), blocks={"all": slice(0, 120)}, max_matvecs=1, directions=0)
    assert np.isnan(one.trace_errors).all()


def test_the_seed_decides():
    dense = matrix(SPECTRA["separated"])
    one, same, other = (
        estimate_diagonal(from_dense(dense), rng(seed), blocks=halves(120)).quartiles for seed in (1, 1, 2)
    )
    assert (one == same).all()
    assert (one != other).all()


def test_ratios_leave_zeros_out():
    above, below = torch.tensor([1.0, -2.0, 0.0, 4.0, 5.0]), torch.tensor([2.0, 1.0, 1.0, 0.0, 5.0])
    found, left_out = ratio_quartiles(above, below, {"most": slice(0, 5), "none": slice(2, 4)})
    assert found[0] == pytest.approx([0.75, 1, 1.5])
    assert np.isnan(found[1]).all()
    assert left_out == pytest.approx([0.4, 1])
