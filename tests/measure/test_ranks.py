import ctypes
import math

import numpy as np
import pytest
import torch
from scipy.linalg import lapack

from gapscope.errors import UsageError
from gapscope.measure import ranks
from gapscope.measure.ranks import EPS, Columns, Cut, Gram, Spectrum


def matrix(units, columns, seed=0, dtype=torch.float64):
    return torch.randn(units, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def spectra(kind, a, step=7):
    found = kind()
    for piece in a.T.split(step):
        found.add(piece)
    return found.spectra()


def singular_values(a):
    return np.linalg.svd(a.double().numpy(), compute_uv=False)


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (9, 9), (300, 20), (20, 300), (1, 30)])
@pytest.mark.parametrize("kind", [Gram, Columns])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_spectra_are_those_of_a_dense_svd(shape, kind, dtype):
    a = matrix(*shape, dtype=dtype) + 3
    found = spectra(kind, a)
    centred = a.double() - a.double().mean(1, keepdim=True)
    for got, true in ((found.plain, singular_values(a)), (found.centred, singular_values(centred))):
        assert len(got.values) == min(shape)
        # perturbing sigma^2 by floor^2 moves sigma by floor^2 / sigma, and by the floor at most
        kept = got.values > 0
        assert (np.abs(got.values - true)[kept] <= got.floor).all()
        assert (true[~kept] <= 2 * got.floor).all()
    assert found.columns == shape[1]


def test_gram_and_svd_agree_above_the_noise_floor_and_only_qr_sees_below_it():
    left, right = (torch.linalg.qr(matrix(n, 12, seed))[0] for n, seed in ((60, 1), (200, 2)))
    true = np.logspace(0, -11, 12)
    a = left @ torch.diag(torch.tensor(true)) @ right.T
    gram, columns = spectra(Gram, a).plain, spectra(Columns, a).plain
    above = true > gram.floor
    assert gram.values[:12][above] == pytest.approx(true[above], abs=gram.floor)
    assert (gram.values[:12][true < gram.floor / 2] == 0).all()
    assert columns.values[:12] == pytest.approx(true, abs=columns.floor)
    assert (columns.values[12:] == 0).all()
    assert (gram.values[12:] == 0).all()


@pytest.mark.parametrize("units", [1, 64, 400])
def test_what_rounding_leaves_of_a_singular_gram_matrix_lies_under_the_floor(units):
    column = matrix(units, 1)
    assert (spectra(Gram, column @ matrix(1, 50, 3)).plain.values[1:] == 0).all()


@pytest.mark.parametrize("step", [100, 20_000])
@pytest.mark.parametrize("columns", [300, 20_000])
@pytest.mark.parametrize("units", [2, 4, 16, 150])
@pytest.mark.parametrize("kind", [Gram, Columns])
def test_what_rounding_leaves_of_long_sums_lies_under_the_floor(kind, units, columns, step):
    """Of equal columns every sum is rounded the same way: one sum of all left 300 to 500 eps, with a floor of k eps."""
    for seed in range(10):
        value = float(matrix(1, 1, seed + 50).abs())
        a = matrix(units, 1, seed) @ torch.full((1, columns), value, dtype=torch.float64)
        found = spectra(kind, a if kind is Gram else a.T.float(), step)
        assert (found.plain.values[1:] == 0).all()
        if kind is Gram:
            assert (found.centred.values == 0).all()


def test_scipys_blas_takes_the_threads_of_torch_and_has_its_own_back():
    library = ctypes.CDLL(lapack._flapack.__file__)
    told, asked = (getattr(library, f"scipy_openblas_{verb}_num_threads", None) for verb in ("set", "get"))
    if told is None or asked is None:
        pytest.skip("this SciPy brings no OpenBLAS of its own")
    before = asked()
    try:
        told(torch.get_num_threads() + 1)
        with ranks._as_many_threads_as_torch():
            assert asked() == torch.get_num_threads()
        spectra(Gram, matrix(3, 5))
        assert asked() == torch.get_num_threads() + 1
    finally:
        told(before)


def test_columns_in_float32_have_the_floor_of_the_smaller_side():
    """sqrt(k eps64) of a Gram matrix lies under k eps32, so that no numerical rank of float32 activations changes."""
    found = spectra(Columns, matrix(60, 12, dtype=torch.float32)).plain
    assert found.floor == pytest.approx(ranks.gram_floor(12, 60) * found.top)
    assert found.floor < 12 * np.finfo(np.float32).eps * found.top


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("size", [1, 2, 200])
def test_one_tridiagonal_matrix_has_both_spectra_that_two_eigenvalue_problems_have(size, streamed):
    a = matrix(size, size + 5) + 1
    gram = ranks._bordered(size, a)
    ranks._add_square(gram, a.T)
    gram[0, 1:] = a.sum(1) if streamed else 1
    pair = ranks._on_device(gram.clone(), a.shape[1], streamed=streamed)
    one = ranks._from_gram(gram, size, a.shape[1], ranks.gram_floor(size, size + 5), 0.0, streamed=streamed)
    for got, squares in zip((one.plain, one.centred), pair, strict=True):
        true = np.sqrt(squares[::-1].clip(min=0))
        assert got.values**2 == pytest.approx(true**2, abs=2 * one.plain.floor**2)  # each of the two has its own


@pytest.mark.parametrize("kind", [Gram, Columns])
def test_units_that_never_change_are_dead(kind):
    a = matrix(6, 30)
    a[0], a[3] = 0.0, 2.5
    assert spectra(kind, a).dead == pytest.approx(2 / 6)
    assert ranks.near_rank(spectra(kind, torch.full((3, 8), 2.0)).centred, Cut("rel", 0.1)) == 0


@pytest.mark.parametrize("kind", [Gram, Columns])
def test_a_micro_batch_of_padding_alone_changes_nothing(kind):
    a, found = matrix(6, 30), kind()
    for piece in (a.T[:0], a.T, a.T[:0]):
        found.add(piece)
    assert np.array_equal(found.spectra().plain.values, spectra(kind, a, 30).plain.values)


@pytest.mark.parametrize("kind", [Gram, Columns])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nonfinite_activations_have_no_spectrum_and_no_ranks(kind, dtype):
    a = matrix(4, 9, dtype=dtype)
    a[1, 2] = math.nan
    found = spectra(kind, a).plain
    assert not found.finite
    functions = (ranks.effective_rank, ranks.stable_rank, ranks.participation_ratio, ranks.condition)
    values = [f(found) for f in functions] + [ranks.near_rank(found, Cut("rel", 0.1))]
    assert np.isnan([*values, ranks.numerical_rank(found, (4, 9), EPS)]).all()


def test_ranks_without_a_cut_follow_their_formulas():
    spectrum = Spectrum.of(np.array([1.0, 2.0, 4.0]), 0.0)
    p = np.array([4, 2, 1]) / 7
    assert ranks.effective_rank(spectrum) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert ranks.stable_rank(spectrum) == pytest.approx(21 / 16)
    assert ranks.participation_ratio(spectrum) == pytest.approx(21**2 / (256 + 16 + 1))
    assert ranks.condition(spectrum) == 4


def test_all_ranks_of_an_orthogonal_matrix_are_its_size():
    spectrum = Spectrum.of(np.full(7, 3.0), 1e-7)
    for rank in (ranks.effective_rank, ranks.stable_rank, ranks.participation_ratio):
        assert rank(spectrum) == pytest.approx(7)
    assert ranks.numerical_rank(spectrum, (7, 7), EPS) == ranks.near_rank(spectrum, Cut("rel", 0.99)) == 7
    assert ranks.condition(spectrum) == 1


def test_a_zero_matrix_has_rank_zero_and_no_condition():
    spectrum = Spectrum.of(np.zeros(3), 0.0)
    for rank in (ranks.effective_rank, ranks.stable_rank, ranks.participation_ratio):
        assert rank(spectrum) == 0
    assert ranks.near_rank(spectrum, Cut("rel", 0.1)) == ranks.numerical_rank(spectrum, (3, 3), EPS) == 0
    assert np.isnan(ranks.condition(spectrum))
    assert Spectrum.of(np.zeros(0), 0.0).top == 0


def test_a_count_needs_a_cut_above_the_noise_floor():
    spectrum = Spectrum.of(np.array([1.0, 1e-3, 1e-9]), 1e-6)
    assert ranks.near_rank(spectrum, Cut("rel", 1e-4)) == 2
    assert ranks.near_rank(spectrum, Cut("abs", 0.5)) == 1
    assert np.isnan(ranks.near_rank(spectrum, Cut("rel", 1e-7)))
    assert ranks.condition(spectrum) == math.inf


def test_numerical_rank_uses_the_eps_of_the_activations():
    spectrum = Spectrum.of(np.array([1.0, 1e-5, 1e-12]), 0.0)
    assert ranks.numerical_rank(spectrum, (3, 200), float(np.finfo(np.float32).eps)) == 1
    assert ranks.numerical_rank(spectrum, (3, 200), EPS) == 3


def test_cuts_are_read_as_they_are_labelled():
    assert Cut.parse("rel:1e-2") == Cut("rel", 0.01)
    assert Cut.parse("abs:10").threshold(5.0) == 10
    assert Cut.parse("rel:0.5").threshold(5.0) == 2.5


@pytest.mark.parametrize(
    "text", ["", "1e-2", "rel:", "rel:0", "rel:1", "rel:-1", "abs:0", "rel:1.2.3", "abs:nan", "max:1"]
)
def test_other_cuts_are_refused(text):
    with pytest.raises(UsageError, match=r"The cut is `.*`\. Expected `rel:X` with 0 < X < 1, or `abs:X` with X > 0"):
        Cut.parse(text)
