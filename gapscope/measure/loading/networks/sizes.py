"""Which sizes a network must have for some data, where its own are others."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


def sizes_for(network: Callable[..., nn.Module], inputs: Any, targets: Tensor) -> dict[str, Any]:
    """Return the arguments of a network without which samples (N, ...) and their classes (N,) do not fit.

    inputs: numbers of a sample; channels and size: those of square images; outputs: classes.  An argument whose
    default is right is not returned.
    """
    known = {name: one.default for name, one in inspect.signature(network).parameters.items()}
    wanted: dict[str, int] = {}
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        shape = tuple(inputs.shape[1:])
        wanted["inputs"] = inputs[0].numel()
        if len(shape) == 3 and shape[1] == shape[2]:
            wanted |= {"channels": shape[0], "size": shape[1]}
    found = {name: value for name, value in wanted.items() if name in known and known[name] != value}
    if targets.ndim == 1 and not targets.is_floating_point():
        classes = int(targets.max()) + 1
        found |= {"outputs": classes} if known["outputs"] != classes > 1 else {}  # every network has these
    return found
