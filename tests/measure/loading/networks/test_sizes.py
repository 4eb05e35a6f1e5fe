import pytest
import torch

from gapscope.measure.loading.networks import NETWORKS, sizes_for


@pytest.mark.parametrize(
    ("network", "shape", "classes", "expected"),
    [
        ("mlp", (64,), 10, {}),
        ("mlp", (1, 28, 28), 10, {"inputs": 784}),
        ("mlp", (3, 32, 32), 100, {"inputs": 3072, "outputs": 100}),
        ("c1", (3, 32, 32), 10, {}),
        ("c2", (3, 32, 32), 10, {}),
        ("c3", (3, 32, 32), 10, {"outputs": 10}),
        ("c4", (3, 32, 32), 100, {}),
        ("vgg16", (3, 32, 32), 10, {}),
        ("vit", (3, 32, 32), 10, {}),
        ("lenet5", (3, 32, 32), 10, {"channels": 3, "size": 32}),
        ("resnet20", (1, 8, 8), 10, {"channels": 1}),
    ],
)
def test_only_what_is_not_right_is_given(network, shape, classes, expected):
    inputs, targets = torch.randn(classes, *shape), torch.arange(classes)
    found = sizes_for(NETWORKS[network], inputs, targets)
    assert found == expected
    with torch.device("meta"):
        scores = NETWORKS[network](**found).eval()(inputs[:2].to("meta"))
    assert scores.shape[0] == 2
    assert scores.shape[1] >= classes


def test_one_sample_tells_its_sizes_and_no_number_of_classes():
    assert sizes_for(NETWORKS["mlp"], torch.randn(1, 5), torch.zeros(1, dtype=torch.int64)) == {"inputs": 5}


def test_tokens_and_real_targets_say_nothing_of_sizes():
    tokens = torch.zeros(3, 16, dtype=torch.int64)
    assert sizes_for(NETWORKS["gpt"], tokens, tokens) == {}
    assert sizes_for(NETWORKS["mlp"], tokens, torch.zeros(3, dtype=torch.int64)) == {}
    assert sizes_for(NETWORKS["mlp"], torch.randn(3, 64), torch.randn(3)) == {}
    assert sizes_for(NETWORKS["c1"], torch.randn(3, 3, 28, 30), torch.zeros(3, dtype=torch.int64)) == {}
    assert sizes_for(NETWORKS["mlp"], {"x": torch.randn(3, 64)}, torch.zeros(3, dtype=torch.int64)) == {}
