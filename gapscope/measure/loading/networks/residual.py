"""Residual networks of He et al. 2016 in their basic form, two 3x3 convolutions a block.

ResNet-20 and ResNet-56 for CIFAR have shortcuts of option A, without parameters; ResNet-18 for ImageNet has those of
option B, convolutions 1x1.  Its names and arithmetic are torchvision's, so that files of either fit.
"""

from collections import OrderedDict
from collections.abc import Mapping

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gapscope.errors import LoadError, did_you_mean

_STEMS: Mapping[str, tuple[int, int, int]] = {"imagenet": (7, 2, 3), "cifar": (3, 1, 1)}  # kernel, stride, padding


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut: that of the module `downsample`, else of option A."""

    def __init__(self, fan_in: int, width: int, *, projected: bool) -> None:
        super().__init__()
        self.widened = width - fan_in
        self.stride = 2 if self.widened else 1
        self.conv1 = nn.Conv2d(fan_in, width, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if projected and self.widened:
            self.downsample = nn.Sequential(nn.Conv2d(fan_in, width, 1, stride=2, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self._padded(x) if self.downsample is None else self.downsample(x)
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)

    def _padded(self, x: Tensor) -> Tensor:
        """Subsample and pad the channels with zeros (option A)."""
        if not self.widened:
            return x
        before = self.widened // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.widened - before))


def resnet20(channels: int = 3, outputs: int = 10) -> nn.Module:
    """Return the CIFAR ResNet-20: three stages of three blocks, 16-32-64 wide, option A shortcuts; any image size."""
    return _cifar(3, channels, outputs)


def resnet56(channels: int = 3, outputs: int = 10) -> nn.Module:
    """Return the CIFAR ResNet-56: as ResNet-20, with nine blocks in each stage."""
    return _cifar(9, channels, outputs)


def resnet18(channels: int = 3, outputs: int = 1000, stem: str = "imagenet") -> nn.Module:
    """Return ResNet-18: four stages of two blocks, 64 to 512 wide; any image size.

    The stem `imagenet` is a 7x7 convolution and a max-pool, each halving the image; `cifar` one 3x3 that keeps it.
    """
    if stem not in _STEMS:
        raise LoadError(
            f"`resnet18` knows no stem `{stem}`.{did_you_mean(stem, _STEMS)} Expected one of {', '.join(_STEMS)}: "
            "`-a stem=cifar`."
        )
    kernel, stride, padding = _STEMS[stem]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 64, kernel, stride=stride, padding=padding, bias=False),
        bn1=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
    )
    if stem == "imagenet":
        layers["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    for i, (fan_in, width) in enumerate(((64, 64), (64, 128), (128, 256), (256, 512)), start=1):
        layers[f"layer{i}"] = _stage(fan_in, width, 2, projected=True)
    return nn.Sequential(layers | _head(512, outputs))


def _cifar(blocks: int, channels: int, outputs: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(channels, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU()
    )
    for i, (fan_in, width) in enumerate(((16, 16), (16, 32), (32, 64)), start=1):
        layers[f"stage{i}"] = _stage(fan_in, width, blocks, projected=False)
    return nn.Sequential(layers | _head(64, outputs))


def _stage(fan_in: int, width: int, blocks: int, *, projected: bool) -> nn.Module:
    fans = [fan_in, *[width] * (blocks - 1)]
    return nn.Sequential(*(_Block(fan, width, projected=projected) for fan in fans))


def _head(width: int, outputs: int) -> OrderedDict[str, nn.Module]:
    return OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(width, outputs))
