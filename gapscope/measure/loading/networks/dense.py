"""Fully connected networks: any of a few layers, and F1 and F2 of Keskar et al. 2017 (table 1, appendix B)."""

import itertools
from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from gapscope.errors import LoadError, did_you_mean

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,  # a linear network: a product of matrices
}
_WIDTH = 512


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
    """Return Keskar's F1 for MNIST: five layers of 512 with BatchNorm and ReLU; inputs are flattened."""
    return _normalized(inputs, 5, outputs)


def f2(inputs: int = 360, outputs: int = 1973) -> nn.Module:
    """Return Keskar's F2 for TIMIT: seven layers of 512 with BatchNorm and ReLU; inputs are flattened."""
    return _normalized(inputs, 7, outputs)


def _normalized(inputs: int, depth: int, outputs: int) -> nn.Module:
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for i in range(1, depth + 1):
        fan_in = inputs if i == 1 else _WIDTH
        layers |= {f"fc{i}": nn.Linear(fan_in, _WIDTH), f"bn{i}": nn.BatchNorm1d(_WIDTH), f"relu{i}": nn.ReLU()}
    layers[f"fc{depth + 1}"] = nn.Linear(_WIDTH, outputs)
    return nn.Sequential(layers)
