import torch

from gapscope.measure.operators import from_dense
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
