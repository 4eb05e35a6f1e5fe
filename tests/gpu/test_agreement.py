"""The same numbers on a CUDA device as on the CPU; skipped where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch

from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.epsilon_sharpness import EpsilonSharpness
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.loading import Request
from gapscope.measure.session import Execution, open_session

FIXTURES = Path(__file__).parents[2] / "fixtures"

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("regime", ["small", "large"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-6)])
def test_the_device_changes_nothing_beyond_rounding(regime, dtype, tolerance):
    sides = []
    for device in ("cpu", "cuda"):
        request = Request(checkpoint=FIXTURES / f"digits-{regime}-batch.pt")
        session = open_session(request, Execution(device=device, dtype=dtype))
        sides.append(session.measure([Eigenvalues(), EpsilonSharpness(draws=1), Gap()]))
    here, there = (side.results for side in sides)
    for analyzer, quantity in (("eigenvalues", "top"), ("gap", "test_loss"), ("gap", "train_accuracy")):
        a, b = (side[analyzer].quantities[quantity].value for side in (here, there))
        assert np.allclose(a, b, rtol=tolerance)
    # ten iterations of L-BFGS-B amplify rounding; both end within a percent
    a, b = (side["epsilon-sharpness"].quantities["full"].value for side in (here, there))
    assert np.allclose(a, b, rtol=1e-2)


def test_a_matvec_leaves_the_vector_on_the_device():
    session = open_session(Request(checkpoint=FIXTURES / "digits-small-batch.pt"), Execution(device="cuda"))
    problem = session.problem
    assert problem.hessian().matvec(torch.ones(problem.size, device="cuda")).is_cuda
