"""The arguments of a built-in network, read off the names and shapes of the tensors in a file."""

import contextlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class _Shapes:
    """Sizes by how names end, whatever wrappers put before; the shortest name wins."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        self.shapes = shapes

    def __call__(self, ending: str, axis: int) -> int:
        names = [name for name in self.shapes if f".{name}".endswith(f".{ending}")]
        if not names:
            raise KeyError(ending)
        return self.shapes[min(names, key=len)][axis]

    def along(self, pattern: str, start: int) -> list[int]:
        """Return the first sizes of tensors that are numbered from `start` on."""
        sizes: list[int] = []
        with contextlib.suppress(KeyError):
            for number in itertools.count(start):
                sizes.append(self(pattern.format(number), 0))
        return sizes


def arguments(network: str, shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return the arguments that make a built-in network of these shapes, if it is that one.

    `c3` and `c4` are `c1` and `c2` under another name, and are told as those.  Raises KeyError where names are
    missing, IndexError where tensors have fewer dimensions.
    """
    return _ARGUMENTS[network](_Shapes(shapes))


def _mlp(size: _Shapes) -> dict[str, Any]:
    inputs = size("fc1.weight", 1)
    *hidden, outputs = size.along("fc{}.weight", start=1)
    return {"inputs": inputs, "hidden": hidden, "outputs": outputs}


def _flat(size: _Shapes, first: str, last: str, width: int, halvings: int) -> dict[str, Any]:
    side = math.isqrt(size(f"{first}.weight", 1) // width) << halvings
    return {"channels": size("conv1.weight", 1), "size": side, "outputs": size(f"{last}.weight", 0)}


def _images(size: _Shapes, last: str) -> dict[str, Any]:
    return {"channels": size("conv1.weight", 1), "outputs": size(f"{last}.weight", 0)}


def _resnet18(size: _Shapes) -> dict[str, Any]:
    return _images(size, "fc") | {"stem": "imagenet" if size("conv1.weight", 2) == 7 else "cifar"}


def _transformer(size: _Shapes) -> dict[str, Any]:
    heads = size.along("blocks.{}.attention.scale", start=0)
    return {"dim": size("positions", 1), "depth": len(heads), "heads": heads[0]}


def _vit(size: _Shapes) -> dict[str, Any]:
    patch = size("patches.weight", 2)
    pixels = patch * math.isqrt(size("positions", 0) - 1)
    own = {"channels": size("patches.weight", 1), "size": pixels, "outputs": size("fc.weight", 0), "patch": patch}
    return own | _transformer(size)


def _gpt(size: _Shapes) -> dict[str, Any]:
    return {"outputs": size("tokens.weight", 0), "block": size("positions", 0)} | _transformer(size)


_ARGUMENTS: Mapping[str, Callable[[_Shapes], dict[str, Any]]] = {
    "mlp": _mlp,
    "f1": lambda size: {"inputs": size("fc1.weight", 1), "outputs": size("fc6.weight", 0)},
    "f2": lambda size: {"inputs": size("fc1.weight", 1), "outputs": size("fc8.weight", 0)},
    "c1": lambda size: _flat(size, "fc1", "fc3", 64, 2),
    "c2": lambda size: _flat(size, "fc1", "fc2", 512, 5),
    "lenet5": lambda size: _images(size, "fc3"),
    "vgg16": lambda size: _flat(size, "fc", "fc", 512, 5),
    "resnet20": lambda size: _images(size, "fc"),
    "resnet56": lambda size: _images(size, "fc"),
    "resnet18": _resnet18,
    "vit": _vit,
    "gpt": _gpt,
}
