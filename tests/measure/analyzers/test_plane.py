import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.measure.analyzers.plane import Plane
from gapscope.results import Status
from tests.problems import ZOO, both, context, double_well, problem


def alone(where, **options):
    return Plane(**options)(context(train=where))


def test_a_random_plane_keeps_the_norms_of_the_filters():
    given = ZOO["tanh mlp"].problem(samples=20)
    result = alone(given, points=5)
    matrices = [p.detach() for p in given.model.parameters() if p.dim() > 1]
    norm = float(torch.stack([p.square().sum() for p in matrices]).sum().sqrt())
    assert result.lengths.value == pytest.approx([norm, norm])
    assert result.loss.value[0, 2, 2] == pytest.approx(given.loss())  # the checkpoint is in the middle
    assert result.loss.labels["first"] == ("-1", "-0.5", "0", "0.5", "1")
    assert result.status is Status.EXACT
    assert result.loss.drawn == "map"
    again = alone(given, points=5)
    assert np.array_equal(again.loss.value, result.loss.value)


def test_rows_are_the_second_axis_and_columns_the_first():
    result = Plane(points=9)(both(double_well([-1.0, 0.0]), double_well([1.0, 0.0])))
    first = np.array(result.loss.labels["first"], dtype=float)
    second = np.array(result.loss.labels["second"], dtype=float)
    assert (first[0], first[-1]) == (-0.25, 1.25)
    x, y = -1 + 2 * first[None, :], 2 * second[:, None]  # the axis across has the length of the first
    # the direction across is random, and in two dimensions there is only one
    assert result.loss.value[0] == pytest.approx(0.25 * (x**2 - 1) ** 2 + y**2, abs=1e-9)
    assert result.points.value.tolist() == [[0, 0], [1, 0]]


def test_three_checkpoints_lie_on_their_plane():
    points = ([-1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 2.0])
    result = Plane(points=41)(both(*(double_well(point) for point in points)))
    assert result.points.value[2] == pytest.approx([0.5, np.sqrt(5) / 2])
    first = np.array(result.loss.labels["first"], dtype=float)
    second = np.array(result.loss.labels["second"], dtype=float)
    x = -1 + 2 * first[None, :]
    rest = (second[:, None] * 2) ** 2  # along (0, 1, 2), of any sign
    assert result.loss.value[0] == pytest.approx(0.25 * (x**2 - 1) ** 2 + rest, abs=1e-9)


def test_buffers_follow_the_coordinates():
    from gapscope.measure.analyzers.plane import _Frame

    frame = _Frame((), np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 2.0]]), (), "")
    assert frame.mixture(0.0, 0.0) == (1.0, 0.0, 0.0)
    assert frame.mixture(1.0, 0.0) == (0.0, 1.0, 0.0)
    assert frame.mixture(0.5, 2.0) == (0.0, 0.0, 1.0)
    assert _Frame((), np.zeros((2, 2)), (), "").mixture(0.25, 9.0) == (0.75, 0.25)


def test_points_that_span_no_plane_are_refused():
    one = double_well([1.0, 0.0])
    with pytest.raises(UsageError, match=r"The checkpoints coincide or lie on one line. Expected checkpoints that"):
        Plane(points=3)(both(one, double_well([1.0, 0.0])))
    with pytest.raises(UsageError, match=r"coincide or lie on one line"):
        Plane(points=3)(both(one, double_well([2.0, 0.0]), double_well([3.0, 0.0])))


@pytest.mark.parametrize("options", [{"points": 2}, {"reach": 0.0}])
def test_a_grid_of_nothing_is_refused(options):
    with pytest.raises(UsageError, match=r"plane got .*Expected 3 points or more and a reach above 0"):
        alone(double_well([1.0, 0.0]), **options)


def test_a_regression_has_no_accuracy():
    x = torch.randn(10, 3, dtype=torch.float64)
    assert alone(problem(nn.Linear(3, 1).double(), x, x[:, :1], "mse"), points=3).accuracy is None
