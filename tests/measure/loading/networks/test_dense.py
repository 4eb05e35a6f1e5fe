import pytest
import torch
import torch.nn.functional as F  # noqa: N812
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


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "sigmoid", "silu", "softplus"])
def test_an_activation_is_torchs_function_of_that_name(activation):
    model = mlp(inputs=3, hidden=(5,), outputs=2, activation=activation)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), model.fc2(getattr(F, activation)(model.fc1(x))))


def test_without_a_non_linearity_it_is_an_affine_map():
    model = mlp(inputs=3, hidden=(5, 4), outputs=2, activation="identity").double()
    x, y = torch.randn(2, 1, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        middle, mean = model((x + y) / 2), (model(x) + model(y)) / 2
    assert torch.allclose(middle, mean, rtol=0, atol=100 * torch.finfo(torch.float64).eps)


def test_an_unknown_activation_is_named():
    with pytest.raises(
        LoadError, match=r"knows no activation `rellu`. Did you mean `relu`\? Expected one of relu, tanh"
    ):
        mlp(activation="rellu")
