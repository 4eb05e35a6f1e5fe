"""The same numbers on a CUDA device as on the CPU; skipped where there is none."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import gapscope
from gapscope.measure.analyzers import analyzer_class
from gapscope.measure.loading import Request
from gapscope.measure.loading.sources import unwrapped
from gapscope.measure.session import Execution, open_session

FIXTURES = Path(__file__).parents[2] / "fixtures"
EXACT = {  # quantities that neither a random draw on the device nor an iteration's path can move
    "eigenvalues": ("top",),
    "gap": ("test_loss", "train_accuracy"),
    "near-rank": ("near_rank", "effective_rank"),
    "noise": ("covariance_trace", "noise_scale", "curvature_noise"),
    "trace": ("trace", "frobenius"),
    "density": ("mass_near_zero",),
    "adaptive-sharpness": ("average", "sam", "fisher_rao"),
}

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("regime", ["small", "large"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("float64", 1e-6)])
def test_the_device_changes_nothing_beyond_rounding(name, regime, dtype, tolerance):
    sides = []
    for device in ("cpu", "cuda"):
        request = Request(checkpoint=FIXTURES / f"digits-{regime}-batch.pt")
        session = open_session(request, Execution(device=device, dtype=dtype))
        sides.append(session.measure([analyzer_class(name)()]).results[name])
    for quantity in EXACT[name]:
        a, b = (side.quantities[quantity] for side in sides)
        stated = 0.0 if a.numerical_error is None else a.numerical_error
        assert (np.abs(a.value - b.value) <= tolerance * np.abs(a.value) + stated).all(), quantity


@pytest.mark.parametrize("name", ["epsilon-sharpness", "curvature"])
def test_iterations_that_amplify_rounding_end_close_by(name):
    sides = []
    for device in ("cpu", "cuda"):
        session = open_session(
            Request(checkpoint=FIXTURES / "digits-small-batch.pt"), Execution(device=device, dtype="float64")
        )
        sides.append(session.measure([analyzer_class(name)()]).results[name])
    a, b = (next(iter(side.quantities.values())).value for side in sides)
    assert np.allclose(a, b, rtol=1e-2)


def test_paths_and_planes_are_the_same_on_the_device():
    pairs = []
    for device in ("cpu", "cuda"):
        ends = [gapscope.load(FIXTURES / f"digits-{regime}-batch.pt", device=device) for regime in ("small", "large")]
        pairs.append(gapscope.measure(ends, [gapscope.Path(), gapscope.Plane(points=5)]))
    for name in ("path", "plane"):
        a, b = (pair.results[name].quantities["loss"].value for pair in pairs)
        assert np.allclose(a, b, rtol=1e-3)


def test_a_matvec_leaves_the_vector_on_the_device():
    session = open_session(Request(checkpoint=FIXTURES / "digits-small-batch.pt"), Execution(device="cuda"))
    problem = session.problem
    assert problem.hessian().matvec(torch.ones(problem.size, device="cuda")).is_cuda


def test_a_model_that_was_built_on_the_device_is_placed_anew():
    model, notes = unwrapped(nn.Linear(2, 3, device="cuda"))
    assert (model.weight.device.type, notes) == ("cpu", ("model: built on cuda:0, placed anew",))
