"""Convolutional networks without shortcuts: LeNet-5, C1 to C4 of Keskar et al. 2017, and VGG-16 for CIFAR.

`lenet5` is LeCun et al. 1998 with ReLU and max-pooling.  C1 (10 classes) and C3 (100) are small, C2 and C4 have the
convolutions of VGG-16; their dropout and the padding of their pooling are those of the authors' published code.
`vgg16` is Simonyan and Zisserman 2015 (configuration D) as it is used on CIFAR: BatchNorm after every convolution, and
one linear layer in the place of the three of 4096 units.
"""

from collections import OrderedDict

from torch import nn

from gapscope.errors import LoadError

Layers = OrderedDict[str, nn.Module]
_VGG16 = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


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


def c1(channels: int = 3, size: int = 32, outputs: int = 10) -> nn.Module:
    """Return Keskar's C1: two convolutions 64@5x5, then 384 and 192 units with dropout; images of 4 pixels or more."""
    side = _side("c1", size, halvings=2)
    layers: Layers = OrderedDict()
    for i, fan_in in enumerate((channels, 64), start=1):
        layers |= {f"conv{i}": nn.Conv2d(fan_in, 64, 5, padding=2), f"bn{i}": nn.BatchNorm2d(64)}
        # windows may reach over the far edge, as the padding "same" of the authors' code: 32, 16, 8 pixels
        layers |= {f"relu{i}": nn.ReLU(), f"pool{i}": nn.MaxPool2d(3, stride=2, ceil_mode=True)}
    layers["flatten"] = nn.Flatten()
    layers |= _dense(1, 3, 64 * side**2, 384) | _dense(2, 4, 384, 192)
    layers["fc3"] = nn.Linear(192, outputs)
    return nn.Sequential(layers)


def c2(channels: int = 3, size: int = 32, outputs: int = 10) -> nn.Module:
    """Return Keskar's C2: the convolutions of VGG-16 with dropout, then 512 units; images of 32 pixels or more."""
    side = _side("c2", size, halvings=len(_VGG16))
    layers = _vgg16(channels, dropout=True)
    layers["dropout13"] = nn.Dropout(0.5)
    layers |= _dense(1, 14, 512 * side**2, 512)
    layers["fc2"] = nn.Linear(512, outputs)
    return nn.Sequential(layers)


def c3(channels: int = 3, size: int = 32, outputs: int = 100) -> nn.Module:
    """Return Keskar's C3: C1 for 100 classes."""
    return c1(channels, size, outputs)


def c4(channels: int = 3, size: int = 32, outputs: int = 100) -> nn.Module:
    """Return Keskar's C4: C2 for 100 classes."""
    return c2(channels, size, outputs)


def vgg16(channels: int = 3, size: int = 32, outputs: int = 10) -> nn.Module:
    """Return VGG-16 with BatchNorm and one linear layer at its end; images of 32 pixels or more."""
    side = _side("vgg16", size, halvings=len(_VGG16))
    layers = _vgg16(channels, dropout=False)
    layers["fc"] = nn.Linear(512 * side**2, outputs)
    return nn.Sequential(layers)


def _vgg16(channels: int, *, dropout: bool) -> Layers:
    """Return thirteen convolutions 3x3 in five stacks, each halved at its end, flattened."""
    layers: Layers = OrderedDict()
    i = 0
    for stack, widths in enumerate(_VGG16, start=1):
        for place, width in enumerate(widths, start=1):
            i += 1
            layers |= {f"conv{i}": nn.Conv2d(channels, width, 3, padding=1), f"bn{i}": nn.BatchNorm2d(width)}
            layers[f"relu{i}"] = nn.ReLU()
            if dropout and place < len(widths):
                layers[f"dropout{i}"] = nn.Dropout(0.3 if i == 1 else 0.4)
            channels = width
        layers[f"pool{stack}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    return layers


def _dense(number: int, norm: int, fan_in: int, width: int) -> Layers:
    return OrderedDict(
        {
            f"fc{number}": nn.Linear(fan_in, width),
            f"bn{norm}": nn.BatchNorm1d(width),
            f"relu{norm}": nn.ReLU(),
            f"dropout{norm}": nn.Dropout(0.5),
        }
    )


def _side(network: str, size: int, halvings: int) -> int:
    """Return how many pixels of an image's side are left after so many halvings."""
    least = 1 << halvings
    if size < least:
        raise LoadError(
            f"`{network}` halves images {halvings} times and was asked for {size} pixels. Expected {least} or more. "
            "Take larger images, such as `-d digits:size=32`, and say so: `-a size=32`."
        )
    return size // least
