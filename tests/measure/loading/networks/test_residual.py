from functools import partial

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from gapscope.errors import LoadError
from gapscope.measure.loading.networks import resnet18, resnet20, resnet56

RNG = torch.Generator().manual_seed(0)


def normalized(x):
    return x / (1 + 1e-5) ** 0.5  # BatchNorm in eval mode, before any statistics


def branch(block, x, stride):
    """Return the two convolutions of a block, by their weights alone."""
    inner = F.relu(normalized(F.conv2d(x, block.conv1.weight, stride=stride, padding=1)))
    return normalized(F.conv2d(inner, block.conv2.weight, padding=1))


def test_shortcuts_without_parameters_subsample_and_pad_with_zeros():
    block = resnet20().eval().stage2[0]
    x = torch.randn(2, 16, 8, 8, generator=RNG)
    short = torch.zeros(2, 32, 4, 4)
    short[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), F.relu(branch(block, x, 2) + short))


def test_other_blocks_add_what_comes_in():
    block = resnet56().eval().stage3[8]
    x = torch.randn(2, 64, 4, 4, generator=RNG)
    torch.testing.assert_close(block(x), F.relu(branch(block, x, 1) + x))


def test_shortcuts_of_resnet18_are_convolutions():
    block = resnet18().eval().layer3[0]
    x = torch.randn(2, 128, 4, 4, generator=RNG)
    short = normalized(F.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(x), F.relu(branch(block, x, 2) + short))


def test_names_of_resnet18_are_torchvisions():
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in resnet18().state_dict().items()}
    assert len(shapes) == 122  # as many as the published weights have
    assert [name for name, shape in shapes.items() if len(shape) == 4 and shape[-1] != 3] == [
        "conv1.weight",
        "layer2.0.downsample.0.weight",
        "layer3.0.downsample.0.weight",
        "layer4.0.downsample.0.weight",
    ]
    assert shapes["layer4.1.conv2.weight"] == (512, 512, 3, 3)
    assert shapes["layer2.0.downsample.1.running_var"] == (128,)
    assert shapes["fc.bias"] == (1000,)


@pytest.mark.parametrize(
    ("make", "width", "side"),
    [(resnet18, 64, 8), (partial(resnet18, stem="cifar"), 64, 32), (resnet20, 16, 32), (resnet56, 16, 32)],
)
def test_a_stem_halves_images_twice_or_keeps_them(make, width, side):
    with torch.device("meta"):
        x = torch.zeros(1, 3, 32, 32)
        for name, layer in make().named_children():
            if name in ("layer1", "stage1"):
                break
            x = layer(x)
    assert x.shape == (1, width, side, side)


def test_the_pooling_of_resnet18_is_torchvisions():
    with torch.device("meta"):
        pool = resnet18().maxpool
    x = torch.randn(2, 3, 8, 8, generator=RNG)
    assert torch.equal(pool(x), F.max_pool2d(x, 3, stride=2, padding=1))


def test_an_unknown_stem_is_named():
    with pytest.raises(
        LoadError, match=r"knows no stem `cifar10`. Did you mean `cifar`\? Expected one of imagenet, cif"
    ):
        resnet18(stem="cifar10")
