import pytest
import torch

from gapscope.measure import operators
from gapscope.measure.operators import Operator, Share, from_dense, gaussian, inner, length, scaled, shifted
from tests.spectra import SPECTRA, matrix


def test_the_operator_of_a_matrix_is_the_matrix():
    dense = matrix(SPECTRA["separated"])
    operator = from_dense(dense)
    v = torch.randn(operator.size, dtype=torch.float64)
    assert torch.equal(operator.matvec(v), dense @ v)
    assert (operator.size, operator.dtype, operator.device) == (120, torch.float64, torch.device("cpu"))


def test_a_block_is_row_by_row():
    operator = from_dense(matrix(SPECTRA["clustered"]))
    rows = torch.randn(3, operator.size, dtype=torch.float64)
    assert torch.equal(operator.block(rows), torch.stack([operator.matvec(row) for row in rows]))


def test_a_scaled_operator_is_d_a_d():
    dense = matrix(SPECTRA["clustered"])
    d = torch.linspace(0.5, 3.0, len(dense), dtype=torch.float32)
    operator = scaled(from_dense(dense), d)
    rows = operator.block(torch.eye(len(dense), dtype=torch.float64))
    torch.testing.assert_close(rows, d.double()[:, None] * dense * d.double())
    assert (operator.size, operator.dtype) == (120, torch.float64)


def test_combinators_cost_one_matvec():
    spent = []
    counting = Operator(5, lambda v: spent.append(1) or v, torch.float64)
    shifted(counting, torch.ones(5)).matvec(torch.ones(5, dtype=torch.float64))
    scaled(counting, torch.ones(5)).matvec(torch.ones(5, dtype=torch.float64))
    assert len(spent) == 2


def test_a_shifted_operator_is_a_plus_d():
    dense = torch.randn(5, 5, dtype=torch.float64)
    dense, d = dense + dense.T, torch.arange(5.0, dtype=torch.float64)
    v = torch.ones(5, dtype=torch.float64)
    assert torch.allclose(shifted(from_dense(dense), d).matvec(v), (dense + d.diag()) @ v)


@pytest.mark.parametrize("around", [scaled, shifted])
def test_blocks_pass_through_as_blocks(around):
    dense, blocks = matrix(SPECTRA["separated"]), []
    whole = Operator(120, lambda v: dense @ v, torch.float64, together=lambda rows: blocks.append(1) or rows @ dense)
    d = torch.rand(120, dtype=torch.float64)
    operator = around(whole, d)
    rows = torch.randn(3, operator.size, dtype=torch.float64)
    torch.testing.assert_close(operator.block(rows), torch.stack([operator.matvec(row) for row in rows]))
    assert len(blocks) == 1


@pytest.mark.parametrize("size", [1, 70, 64 + 15, 3 * 64 + 17])
def test_shares_of_a_gaussian_vector_are_parts_of_one_draw(size, monkeypatch):
    monkeypatch.setattr(operators, "_PIECE", 64)
    whole = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(gaussian(size, torch.Generator().manual_seed(1), torch.float64), whole)
    ends = [0, size // 3, size // 3, 2 * size // 3, size]
    for which in (slice(0, None, 2), slice(1, None, 2)):
        places = tuple(map(slice, ends[:-1][which], ends[1:][which]))
        share = Share(places, size, lambda sums: sums)
        found = gaussian(size, torch.Generator().manual_seed(1), torch.float64, share)
        assert torch.equal(found, torch.cat([whole[place] for place in places]))


def test_a_length_is_that_of_all_shares():
    v = torch.tensor([3.0, 4.0], dtype=torch.float32)
    share = Share((slice(0, 2),), 3, lambda sums: sums + 12.0**2)
    assert length(v, share) == 13
    operator = Operator(5, lambda v: v, share=share)
    assert (operator.held, operator.length(v), operator.total(v.sum())) == (3, 13, 7 + 144)
    assert Operator(5, lambda v: v).held == 5


def test_inner_products_of_millions_lose_no_digits():
    v = torch.randn(5_000_000, generator=torch.Generator().manual_seed(0))
    true = float(v.double() @ v.double())
    eps = torch.finfo(torch.float32).eps
    assert abs(float(inner(v, v)) - true) <= eps * true  # each product rounds by half of that
    assert abs(float(length(v)) ** 2 - true) <= eps * true
    assert abs(float(torch.dot(v, v)) - true) > 100 * eps * true  # what they are there for
