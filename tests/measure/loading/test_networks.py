"""The built-in networks have the published sizes and take the published inputs."""

import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.networks import NETWORKS, f1, lenet5, mlp, resnet20


@pytest.mark.parametrize(
    ("model", "parameters", "shape"),
    [
        (mlp(), 64 * 32 + 32 + 32 * 10 + 10, (8, 8)),
        (mlp(inputs=12, hidden=[], outputs=3, activation="tanh"), 39, (12,)),
        (f1(), 784 * 512 + 4 * 512 * 512 + 5 * 512 + 5 * 2 * 512 + 512 * 10 + 10, (1, 28, 28)),
        (lenet5(), 61_706, (1, 28, 28)),
        (lenet5(channels=3, size=32), 61_706 + 2 * 150, (3, 32, 32)),
        (resnet20(), 269_722, (3, 32, 32)),
        (resnet20(channels=1, outputs=7), 269_722 - 2 * 144 - 3 * 65, (1, 8, 8)),
    ],
)
def test_parameters_are_as_many_as_published(model, parameters, shape):
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.eval()(torch.zeros(2, *shape)).shape[0] == 2


def test_layers_have_readable_names():
    assert [name for name, _ in mlp(hidden=(5, 6)).named_children()] == [
        "flatten",
        "fc1",
        "relu1",
        "fc2",
        "relu2",
        "fc3",
    ]


def test_the_table_holds_the_four():
    assert list(NETWORKS) == ["mlp", "f1", "lenet5", "resnet20"]


def test_a_single_width_is_one_hidden_layer():
    assert mlp(hidden=7).fc1.out_features == 7


def test_arguments_out_of_range_are_named():
    with pytest.raises(
        LoadError, match=r"knows no activation `rellu`. Did you mean `relu`\? Expected one of relu, tanh"
    ):
        mlp(activation="rellu")
    with pytest.raises(LoadError, match=r"images of 30 pixels. Expected 28 or 32"):
        lenet5(size=30)
