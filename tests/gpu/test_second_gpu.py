"""What is measured on another GPU than the current one; skipped where there are not two."""

import pytest
import torch

from gapscope.measure.referee import pyhessian_top
from tests.problems import problem, softmax_regression

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")]


def test_pyhessian_measures_where_the_problem_is():
    here = softmax_regression().problem
    there = problem(softmax_regression().problem.model.to("cuda:1"), here.data.inputs, here.data.targets)
    with torch.cuda.device(0):
        assert pyhessian_top(there) == pytest.approx(pyhessian_top(here), rel=1e-3)
        assert torch.cuda.current_device() == 0
