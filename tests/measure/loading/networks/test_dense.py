import pytest
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.networks import f1, f2, mlp


def test_layers_have_readable_names():
    assert [name for name, _ in mlp(hidden=(5, 6)).named_children()] == [
        "flatten",
        "fc1",
        "relu1",
        "fc2",
        "relu2",
        "fc3",
    ]


def test_a_single_width_is_one_hidden_layer():
    assert mlp(hidden=7).fc1.out_features == 7


@pytest.mark.parametrize(("model", "depth"), [(f1(), 5), (f2(), 7)])
def test_every_hidden_layer_is_normalized_before_its_relu(model, depth):
    kinds = [type(layer) for layer in model]
    assert kinds == [nn.Flatten, *[nn.Linear, nn.BatchNorm1d, nn.ReLU] * depth, nn.Linear]


def test_an_unknown_activation_is_named():
    with pytest.raises(
        LoadError, match=r"knows no activation `rellu`. Did you mean `relu`\? Expected one of relu, tanh"
    ):
        mlp(activation="rellu")
