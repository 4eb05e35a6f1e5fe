"""Run a user's model on a few samples and leave no trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gapscope.measure.batches import Inputs, called, count, mapped, scores, taken


def few(inputs: Inputs, model: nn.Module, samples: int) -> Inputs:
    """Return the first samples, real numbers in the type and at the place of the model's parameters."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return mapped(
        taken(inputs, slice(samples)), lambda x: x.to(like.device, like.dtype if x.is_floating_point() else x.dtype)
    )


def sizes_of(inputs: Inputs, model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of a model's output for one sample; None where it fails, which `check_fit` explains."""
    some = few(inputs, model, 2)
    try:
        with undisturbed(model), torch.no_grad():
            found: Tensor = scores(called(model, some))
    except Exception:  # the user's forward can raise anything
        return None
    return tuple(found.shape[1:]) if found.ndim and len(found) == count(some) else None


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate in eval mode, and put modes, buffers and random state back."""
    modes = {module: module.training for module in model.modules()}
    values = {buffer: buffer.clone() for buffer in model.buffers()}
    bound = {module: dict(module._buffers.items()) for module in modes}
    try:
        with torch.random.fork_rng(devices=[]):
            for module in modes:
                module.training = False  # not eval(), which exported programs refuse
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for buffer, value in values.items():
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for module, own in bound.items():
            for name, before in own.items():
                if getattr(module, name, None) is not before:  # forward put another tensor there, the input itself, say
                    module._buffers[name] = before
