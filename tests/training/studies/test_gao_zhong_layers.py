"""The claim on steps at each run's own weights, and how far layers differ in curvature."""

import numpy as np
import pytest

from gapscope.training.studies.gao_zhong.layers import Layers, claim

NOISE = np.array([[1.0, 1.01], [1.02, 1.0], [1.0, 1.0]])


@pytest.mark.parametrize(
    ("large", "verdict"), [(0.5, "shows"), (2.0, "does not show"), (1.0, "cannot tell"), (np.nan, "cannot tell")]
)
def test_the_step_s_slope_decides(large, verdict):
    step = (NOISE * [1.0, large])[..., None]
    found = Layers(names=("fc1",), sizes=(8, 16), median=step, step=step, fall=step)
    assert claim(found).verdict == verdict


def test_without_runs_it_cannot_tell():
    assert (claim(None).verdict, claim(None).because) == ("cannot tell", "no batch size came to the loss")


def test_the_span_is_that_of_the_medians_of_a_run():
    median = np.array([[[1.0, 4.0, 2.0]]])
    assert Layers(names=("a", "b", "c"), sizes=(8,), median=median, step=median, fall=median).span.tolist() == [[4.0]]
