"""Networks that need no file of the user's: those of the papers, and small ones of every family.

Each file is one family; a network is a function of sizes alone that returns a freshly initialised module, and
`recognition.py` reads those sizes off the names and shapes of a file.
"""

from collections.abc import Callable, Mapping

from torch import nn

from gapscope.measure.loading.networks.attention import gpt, vit
from gapscope.measure.loading.networks.convolutional import c1, c2, c3, c4, lenet5, vgg16
from gapscope.measure.loading.networks.dense import f1, f2, mlp
from gapscope.measure.loading.networks.recognition import arguments
from gapscope.measure.loading.networks.residual import resnet18, resnet20, resnet56
from gapscope.measure.loading.networks.sizes import sizes_for

__all__ = [
    "NETWORKS",
    "arguments",
    "c1",
    "c2",
    "c3",
    "c4",
    "f1",
    "f2",
    "gpt",
    "lenet5",
    "mlp",
    "resnet18",
    "resnet20",
    "resnet56",
    "sizes_for",
    "vgg16",
    "vit",
]

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    network.__name__: network
    for network in (mlp, f1, f2, c1, c2, c3, c4, lenet5, vgg16, resnet20, resnet56, resnet18, vit, gpt)
}
