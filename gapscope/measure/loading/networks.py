"""Networks that need no file of the user's: small ones, and those of the papers.

F1 is Keskar et al.'s (784 - 5 x [512, BatchNorm, ReLU] - 10), `lenet5` LeCun et al. 1998 with ReLU and
max-pooling, `resnet20` He et al. 2016 for CIFAR with option A shortcuts (no parameters): 269,722 of them.
"""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gapscope.errors import LoadError, did_you_mean

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}


def mlp(inputs: int = 64, hidden: Sequence[int] = (32,), outputs: int = 10, activation: str = "relu") -> nn.Module:
    """Return a fully connected network: fc1, activation, fc2, ...; inputs are flattened."""
    if activation not in ACTIVATIONS:
        raise LoadError(
            f"`mlp` knows no activation `{activation}`.{did_you_mean(activation, ACTIVATIONS)} "
            f"Expected one of {', '.join(ACTIVATIONS)}: `-a activation=relu`."
        )
    if isinstance(hidden, int):
        hidden = (hidden,)
    sizes = [inputs, *hidden, outputs]
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i <= len(hidden):
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
    return nn.Sequential(layers)


def f1(inputs: int = 784, outputs: int = 10) -> nn.Module:
    """Return Keskar's F1: five layers of 512 with BatchNorm and ReLU; inputs are flattened."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i, fan_in in enumerate([inputs, 512, 512, 512, 512], start=1):
        layers |= {f"fc{i}": nn.Linear(fan_in, 512), f"bn{i}": nn.BatchNorm1d(512), f"relu{i}": nn.ReLU()}
    layers["fc6"] = nn.Linear(512, outputs)
    return nn.Sequential(layers)


def lenet5(channels: int = 1, size: int = 28, outputs: int = 10) -> nn.Module:
    """Return LeNet-5 for images of 28 (padded by 2) or 32 pixels."""
    if size not in (28, 32):
        raise LoadError(f"`lenet5` was asked for images of {size} pixels. Expected 28 or 32: `-a size=32`.")
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, 5, padding=2 if size == 28 else 0),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(400, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, outputs),
        )
    )


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut that subsamples and pads channels with zeros (option A)."""

    def __init__(self, fan_in: int, width: int) -> None:
        super().__init__()
        self.widened = width - fan_in
        self.stride = 2 if self.widened else 1
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.widened:
            before = self.widened // 2
            shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.widened - before))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


def resnet20(channels: int = 3, outputs: int = 10) -> nn.Module:
    """Return the CIFAR ResNet-20: three stages of three blocks, 16-32-64 wide, option A shortcuts; any image size."""

    def stage(fan_in: int, width: int) -> nn.Module:
        return nn.Sequential(_Block(fan_in, width), _Block(width, width), _Block(width, width))

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 16, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(16),
            relu=nn.ReLU(),
            stage1=stage(16, 16),
            stage2=stage(16, 32),
            stage3=stage(32, 64),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(64, outputs),
        )
    )


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {"mlp": mlp, "f1": f1, "lenet5": lenet5, "resnet20": resnet20}
