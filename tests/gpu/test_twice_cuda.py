"""Products of convolutions and BatchNorm on a CUDA device, against those of the CPU; skipped where there is none."""

import pytest
import torch

from tests.problems import ZOO

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", ["conv batchnorm", "conv groupnorm"])
def test_products_and_blocks_are_those_of_the_cpu(name):
    given = ZOO[name].problem(batch_size=20)
    moved = ZOO[name].problem(batch_size=20)
    moved.model.to("cuda")
    rows = torch.randn(3, given.size, dtype=torch.float64)
    there = moved.hessian().block(rows.cuda()).cpu()
    torch.testing.assert_close(there, given.hessian().block(rows), rtol=1e-9, atol=1e-9)
