"""The loss over all training data, looked at while a model trains, in no more memory than its steps have."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gapscope.measure.batches import Inputs, called, fitting, pieces, placed, scores, taken
from gapscope.measure.distributed import ALONE, Ranks
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss

MOST = 2048  # samples at once
_ROOM, _ROOM_CPU = 500_000_000, 100_000_000  # bytes that a look may take whatever a step takes; a CPU's cache is small


def mean_loss(model: nn.Module, data: Data, loss: Loss, *, size: int = MOST, ranks: Ranks = ALONE) -> float:
    """Return the mean loss over all data, in eval mode; of several processes each takes every so-manieth piece."""
    bound, like, total = loss.bound(data.targets), _like(model), 0.0
    with _looking(model):
        for number, (x, y) in enumerate(pieces(data.inputs, data.targets, size)):
            if number % ranks.count == ranks.rank:
                total += float(_losses(model, bound, x, y).cpu().sum(dtype=torch.float64))
    if ranks.count > 1:
        total = float(ranks.total(torch.tensor(total, dtype=torch.float64, device=like.device)))
    return total / len(data)


def at_once(model: nn.Module, data: Data, loss: Loss, step: int) -> int:
    """Return how many samples a look takes at once: as many as a step, which keeps a graph of them; if small, more.

    More where all that a forward pass makes of them fits in a fixed room: one by one, as in batches of 1, takes long.
    Cost: forward passes of 2 and of 4 samples.
    """
    bound, device, made = loss.bound(data.targets), _like(model).device, []
    with _looking(model), torch.random.fork_rng([device] if device.type == "cuda" else []):
        for count in (2, 4):
            with _Bytes() as seen:  # type: ignore[no-untyped-call]  # of torch
                _losses(model, bound, taken(data.inputs, slice(count)), data.targets[:count])
            made.append(seen.total)
    each = max(1, (made[1] - made[0]) // 2)  # what is made of the weights alone stands in both
    return min(MOST, max(step, fitting(_ROOM_CPU if device.type == "cpu" else _ROOM, each, device)))


class _Bytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # of torch
    """Adds up what operations return, those of frozen layers too: no more is alive at any time."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        several = found if isinstance(found, tuple | list) else (found,)
        self.total += sum(one.nbytes for one in several if isinstance(one, Tensor))
        return found


@contextlib.contextmanager
def _looking(model: nn.Module) -> Iterator[None]:
    """Hold the model in eval mode, without gradients."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)


def _losses(model: nn.Module, loss: Loss, inputs: Inputs, targets: Tensor) -> Tensor:
    like = _like(model)
    return loss.per_sample(scores(called(model, placed(inputs, like.device, like.dtype))), targets.to(like.device))


def _like(model: nn.Module) -> Tensor:
    """Return a tensor of the device and type in which the model takes its inputs."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
