import pytest
import torch

from gapscope.measure.loading.networks import NETWORKS, arguments

CASES = [
    ("mlp", {"inputs": 6, "hidden": [5, 4], "outputs": 3}),
    ("mlp", {"inputs": 6, "hidden": [], "outputs": 3}),
    ("f1", {"inputs": 9, "outputs": 3}),
    ("f2", {"inputs": 9, "outputs": 3}),
    ("c1", {"channels": 1, "size": 8, "outputs": 3}),
    ("c1", {"channels": 3, "size": 28, "outputs": 100}),
    ("c2", {"channels": 1, "size": 64, "outputs": 3}),
    ("lenet5", {"channels": 3, "outputs": 7}),
    ("vgg16", {"channels": 1, "size": 96, "outputs": 3}),
    ("resnet20", {"channels": 1, "outputs": 5}),
    ("resnet56", {"channels": 1, "outputs": 5}),
    ("resnet18", {"channels": 1, "outputs": 5, "stem": "imagenet"}),
    ("resnet18", {"channels": 3, "outputs": 10, "stem": "cifar"}),
    ("vit", {"channels": 1, "size": 28, "outputs": 3, "patch": 7, "dim": 48, "depth": 3, "heads": 6}),
    ("gpt", {"outputs": 50, "block": 9, "dim": 24, "depth": 1, "heads": 2}),
]


def shapes_of(network, args):
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in NETWORKS[network](**args).state_dict().items()}


@pytest.mark.parametrize(("network", "args"), CASES)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_arguments_are_read_off_names_and_shapes(network, args, prefix):
    shapes = {f"{prefix}{name}": shape for name, shape in shapes_of(network, args).items()}
    assert arguments(network, dict(sorted(shapes.items()))) == args


def test_every_network_but_two_other_names_is_told():
    assert {network for network, _ in CASES} == set(NETWORKS) - {"c3", "c4"}


@pytest.mark.parametrize("network", NETWORKS)
def test_names_that_are_missing_make_no_arguments(network):
    with pytest.raises(KeyError):
        arguments(network, {"w": (2, 2)})
