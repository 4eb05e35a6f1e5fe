"""Krylov bases on a CUDA device and beside it; skipped where there is none."""

import pytest
import torch

from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers.lanczos import Room, extreme_eigenpairs
from gapscope.results import Status
from tests.spectra import SPECTRA, matrix

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("room", [Room(), Room(11 * 120 * 8), Room(0, host=10**6), Room(0, disk=10**6)])
@pytest.mark.parametrize("name", ["clustered", "gap of 1.4 %"])
def test_the_answer_is_the_same_wherever_the_basis_lies(room, name):
    operator = from_dense(matrix(SPECTRA[name]).cuda())
    pairs = extreme_eigenpairs(operator, 2, torch.Generator().manual_seed(0), room=room)
    assert pairs.status is Status.CONVERGED
    assert pairs.vectors.device.type == "cuda"
    assert pairs.values[0] - 1e-12 <= SPECTRA[name].max() <= pairs.upper


def test_a_basis_on_the_device_takes_memory_as_it_grows():
    size = 1_000_000
    diagonal = torch.linspace(0, 1, size, device="cuda").pow(40)
    operator = Operator(size, lambda v: diagonal * v, torch.float32, diagonal.device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    pairs = extreme_eigenpairs(operator, 1, torch.Generator().manual_seed(0))
    vectors = (torch.cuda.max_memory_allocated() - before) / (4 * size)
    assert vectors <= pairs.matvecs + 16 + 10  # a slab begun, and the vectors of a step
