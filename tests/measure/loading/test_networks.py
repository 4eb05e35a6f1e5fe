"""The built-in networks have the published sizes, take the published inputs, and have second derivatives."""

import itertools
import math

import pytest
import torch

from gapscope.measure.checks import check
from gapscope.measure.loading.losses import LOSSES, infer_loss
from gapscope.measure.loading.networks import (
    NETWORKS,
    c1,
    c2,
    c3,
    c4,
    f1,
    f2,
    gpt,
    lenet5,
    mlp,
    resnet18,
    resnet20,
    resnet56,
    vgg16,
    vit,
)
from tests.problems import problem

VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
SMALL = {  # arguments and the shape of a sample
    "mlp": ({}, (64,)),
    "f1": ({}, (784,)),
    "f2": ({}, (360,)),
    "c1": ({"size": 8, "channels": 1}, (1, 8, 8)),
    "c2": ({}, (3, 32, 32)),
    "c3": ({"size": 8}, (3, 8, 8)),
    "c4": ({}, (3, 32, 32)),
    "lenet5": ({}, (1, 28, 28)),
    "vgg16": ({}, (3, 32, 32)),
    "resnet20": ({}, (3, 8, 8)),
    "resnet56": ({}, (3, 8, 8)),
    "resnet18": ({"outputs": 10, "stem": "cifar"}, (3, 8, 8)),
    "vit": ({"size": 8, "patch": 2, "channels": 1}, (1, 8, 8)),
    "gpt": ({}, (32,)),
}
SAME_CONVOLUTIONS = ("c4", "vgg16")  # as c2, whose product takes seconds


def dense(*sizes):
    return sum(a * b + b for a, b in itertools.pairwise(sizes))


def conv(kernel, *channels):
    return sum(kernel**2 * a * b + b for a, b in itertools.pairwise(channels))


def norm(*widths):
    return 2 * sum(widths)


def residual(fan_in, width, blocks, *, projected):
    """Return the weights of a stage: convolutions without bias, their BatchNorm, and the 1x1 of option B."""
    weights = 9 * fan_in * width + (2 * blocks - 1) * 9 * width**2 + 2 * blocks * norm(width)
    return weights + projected * (fan_in * width + norm(width))


def cifar_resnet(blocks):
    stages = ((16, 16), (16, 32), (32, 64))
    return 27 * 16 + norm(16) + sum(residual(*s, blocks, projected=False) for s in stages) + dense(64, 10)


def resnet_18(kernel, outputs):
    stages = ((64, 64, False), (64, 128, True), (128, 256, True), (256, 512, True))
    first = 3 * kernel**2 * 64 + norm(64)
    return first + sum(residual(a, b, 2, projected=p) for a, b, p in stages) + dense(512, outputs)


def blocks(depth, dim):
    """Return a transformer's layers (12 d^2 + 13 d) and its last normalization."""
    return depth * (norm(dim, dim) + dense(dim, 3 * dim) + dense(dim, dim) + dense(dim, 4 * dim, dim)) + norm(dim)


PUBLISHED = [  # where a number stands, it is the published one
    (lambda: mlp(), dense(64, 32, 10), None, (8, 8)),
    (lambda: mlp(inputs=12, hidden=[], outputs=3, activation="tanh"), dense(12, 3), None, (12,)),
    (lambda: f1(), dense(784, *[512] * 5, 10) + norm(*[512] * 5), None, (1, 28, 28)),
    (lambda: f2(), dense(360, *[512] * 7, 1973) + norm(*[512] * 7), None, (360,)),
    (lambda: c1(), conv(5, 3, 64, 64) + dense(4096, 384, 192, 10) + norm(64, 64, 384, 192), None, (3, 32, 32)),
    (lambda: c1(size=28), conv(5, 3, 64, 64) + dense(3136, 384, 192, 10) + norm(64, 64, 384, 192), None, (3, 28, 28)),
    (lambda: c3(), conv(5, 3, 64, 64) + dense(4096, 384, 192, 100) + norm(64, 64, 384, 192), None, (3, 32, 32)),
    (lambda: c2(), conv(3, 3, *VGG) + dense(512, 512, 10) + norm(*VGG, 512), None, (3, 32, 32)),
    (lambda: c4(size=64), conv(3, 3, *VGG) + dense(2048, 512, 100) + norm(*VGG, 512), None, (3, 64, 64)),
    (lambda: lenet5(), conv(5, 1, 6, 16) + dense(400, 120, 84, 10), 61_706, (1, 28, 28)),
    (lambda: lenet5(channels=3, size=32), conv(5, 3, 6, 16) + dense(400, 120, 84, 10), None, (3, 32, 32)),
    # torchvision's vgg16_bn without its classifier is 14,723,136 = 14,714,688 + 8,448
    (lambda: vgg16(), conv(3, 3, *VGG) + norm(*VGG) + dense(512, 10), 14_723_136 + 5_130, (3, 32, 32)),
    (lambda: resnet20(), cifar_resnet(3), 269_722, (3, 32, 32)),  # He et al. 2016, table 6: 0.27M
    (lambda: resnet20(channels=1, outputs=7), cifar_resnet(3) - 2 * 144 - 3 * 65, None, (1, 8, 8)),
    (lambda: resnet56(), cifar_resnet(9), 853_018, (3, 32, 32)),  # the same table: 0.85M
    (lambda: resnet18(), resnet_18(7, 1000), 11_689_512, (3, 64, 64)),  # torchvision's table of weights
    (lambda: resnet18(outputs=10, stem="cifar"), resnet_18(3, 10), None, (3, 32, 32)),
    (lambda: vit(), 48 * 64 + 64 + 64 + 65 * 64 + blocks(4, 64) + dense(64, 10), None, (3, 32, 32)),
    (
        # ViT-B/16: Dosovitskiy et al. 2021, table 1: 86M; torchvision's vit_b_16
        lambda: vit(size=224, outputs=1000, patch=16, dim=768, depth=12, heads=12),
        conv(16, 3, 768) + 768 + 197 * 768 + blocks(12, 768) + dense(768, 1000),
        86_567_656,
        (3, 224, 224),
    ),
    (lambda: gpt(), 64 * 64 + 32 * 64 + blocks(2, 64), None, (32,)),
    # GPT-2: Radford et al. 2019, table 2, with the weights of OpenAI's smallest
    (
        lambda: gpt(outputs=50257, block=1024, dim=768, depth=12, heads=12),
        50257 * 768 + 1024 * 768 + blocks(12, 768),
        124_439_808,
        (1024,),
    ),
]


@pytest.mark.parametrize(("make", "counted", "published", "shape"), PUBLISHED)
def test_parameters_are_as_many_as_published(make, counted, published, shape):
    with torch.device("meta"):
        model = make().eval()
        takes_tokens = hasattr(model, "tokens")
        x = torch.zeros(2, *shape, dtype=torch.long if takes_tokens else torch.float32)
        assert model(x).shape[0] == 2
    assert sum(p.numel() for p in model.parameters()) == counted
    assert published in (None, counted)


def made(name, samples):
    """Return a network, inputs and class numbers, the same each time."""
    torch.manual_seed(0)
    args, shape = SMALL[name]
    model = NETWORKS[name](**args)
    if name == "gpt":
        return model, torch.randint(64, (samples, *shape)), torch.randint(64, (samples, *shape))
    return model, torch.randn(samples, *shape), torch.randint(10, (samples,))


def test_every_network_is_tried():
    assert list(SMALL) == list(NETWORKS)
    assert all(NETWORKS[name].__name__ == name for name in NETWORKS)


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in SAME_CONVOLUTIONS])
def test_every_network_has_exact_second_derivatives(name):
    given = problem(*made(name, 1 if name in ("c2", "resnet18") else 3))
    assert math.isfinite(check(given))
    assert given.derivatives.method == "exact"


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_trains_a_step(name):
    model, x, y = made(name, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.detach().clone() for p in model.parameters()]
    LOSSES["cross-entropy"].per_sample(model.train()(x), y).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    optimizer.step()
    moved = [not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True)]
    assert moved[0]
    assert moved[-1]


@pytest.mark.parametrize("name", ["mlp", "lenet5", "gpt"])
def test_the_loss_is_cross_entropy(name):
    model, x, y = made(name, 2)
    assert infer_loss(y, model, x).name == "cross-entropy"
