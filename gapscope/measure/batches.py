"""What a model is called with: one tensor, several, or named ones, samples first; the only file that knows which.

`inputs` is a tensor (N, ...), called as model(x); a tuple of them, as model(*inputs); or a dict, as model(**inputs).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
Index = slice | Tensor  # of samples


@dataclass(frozen=True)
class Batch:
    """One micro-batch: samples start..stop of the data."""

    inputs: Inputs
    targets: Tensor
    start: int
    stop: int


_MANY = 2048


def fitting(room: int, each: int, device: torch.device) -> int:
    """Return how many samples, a power of two, a micro-batch may have whose graph takes `each` bytes a sample.

    On a CPU, of more than 2,048 samples an eighth of the room: an MLP of 0.7 million parameters is as fast in 2,048s as
    in 8,192s, and needs 126 instead of 457 MB.
    """
    most = max(1, room // each)
    if device.type == "cpu":
        most = min(most, max(_MANY, most // 8))
    return 1 << (most.bit_length() - 1)


def tensors(inputs: Inputs) -> list[Tensor]:
    """Return the tensors, each (N, ...)."""
    if isinstance(inputs, Tensor):
        return [inputs]
    return list(inputs.values() if isinstance(inputs, dict) else inputs)


def count(inputs: Inputs) -> int:
    """Return N."""
    return len(tensors(inputs)[0])


def mapped(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """Return the same structure with every tensor changed."""
    if isinstance(inputs, Tensor):
        return change(inputs)
    if isinstance(inputs, dict):
        return {name: change(tensor) for name, tensor in inputs.items()}
    return tuple(change(tensor) for tensor in inputs)


def taken(inputs: Inputs, index: Index) -> Inputs:
    """Return some of the samples."""
    return mapped(inputs, lambda tensor: tensor[index])


def joined(parts: Sequence[Inputs]) -> Inputs:
    """Return the samples of several inputs of one structure, one after the other."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat([part for part in parts if isinstance(part, Tensor)])
    if isinstance(first, dict):
        return {name: torch.cat([part[name] for part in parts if isinstance(part, dict)]) for name in first}
    return tuple(torch.cat(column) for column in zip(*(tensors(part) for part in parts), strict=True))


def placed(inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Return them on a device, real numbers in the dtype given."""
    return mapped(inputs, lambda tensor: tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype))


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return real numbers in the dtype given, complex ones in twice its width, others as they are."""
    if tensor.is_complex():
        return tensor.to(torch.complex128 if dtype == torch.float64 else torch.complex64)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def pieces(inputs: Inputs, targets: Tensor, size: int) -> Iterator[tuple[Any, Tensor]]:
    """Yield up to `size` samples at a time."""
    for start in range(0, len(targets), size):
        which = slice(start, start + size)
        yield taken(inputs, which), targets[which]


def single(inputs: Inputs) -> Inputs:
    """Return one sample, given without its first dimension, as a batch of one."""
    return mapped(inputs, lambda tensor: tensor.unsqueeze(0))


def described(inputs: Inputs) -> str:
    """Return the shapes and types of one sample, for messages."""

    def one(tensor: Tensor) -> str:
        return f"shape {tuple(tensor.shape[1:])}, {str(tensor.dtype)[6:]}"

    if isinstance(inputs, Tensor):
        return one(inputs)
    named = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    return "; ".join(f"{name}: {one(tensor)}" for name, tensor in named)


def called(model: nn.Module, inputs: Inputs, state: Mapping[str, Tensor] | None = None) -> Any:
    """Call the model, with other tensors in the place of its own where `state` is given."""
    args = (inputs,) if isinstance(inputs, Tensor) else inputs if isinstance(inputs, tuple) else ()
    kwargs = inputs if isinstance(inputs, dict) else {}
    if state is None:
        return model(*args, **kwargs)
    return functional_call(model, dict(state), args, kwargs)


def scores(produced: Any) -> Tensor:
    """Return the tensor that the loss is of: the output itself, its `logits` or `out`, or the first of several.

    Raises TypeError where there is none; `loading.check_fit` has said so before.
    """
    if isinstance(produced, Tensor):
        return produced
    found = (
        produced.get("logits", produced.get("out"))
        if isinstance(produced, Mapping)
        else getattr(produced, "logits", None)
    )
    if found is None and isinstance(produced, tuple | list) and produced:
        found = produced[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"the model returns {type(produced).__name__}, which holds no scores")
    return found
