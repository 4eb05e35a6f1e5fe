"""A few samples through model and loss: whatever does not fit is said before hours of work."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gapscope.errors import GapscopeError, LoadError, did_you_mean
from gapscope.measure.batches import Inputs, called, described, mapped, scores, taken
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.losses import Loss, classes_last
from gapscope.measure.loading.sources import own_loss
from gapscope.measure.loading.trust import one_line, signature

_OWN_LOSS_SAMPLES = 4
_OWN_LOSS_TOLERANCE = 1e-3  # relative; float32 leaves 1e-6


def check_fit(model: nn.Module, name: str, data: Data, loss: Loss) -> tuple[str, ...]:
    """Run two samples through model and loss, and return notes on what was chosen of the outputs.

    Raises: LoadError where model, data and loss do not fit.
    """
    x, y = _typed(taken(data.inputs, slice(2)), model), data.targets[:2]
    shapes = f"`{name}` and {data.name} (samples of {described(x)})"
    if isinstance(x, dict):
        _check_names(model, name, x)
    try:
        with _undisturbed(model), torch.no_grad():
            produced = called(model, x)
    except Exception as error:  # the user's forward can raise anything
        hint = " If they are no token numbers, save them as floats." if _all_integers(x) else ""
        raise LoadError(
            f"{shapes} do not fit: {one_line(error)}. Check the model's arguments (`-a`) and the data (`-d`).{hint}"
        ) from error
    try:
        outputs = scores(produced)
    except TypeError:
        raise LoadError(
            f"`{name}` returns {type(produced).__name__}. Expected one tensor, an object with `.logits`, or a tuple "
            "whose first is the scores. Give a factory whose model returns its scores."
        ) from None
    if outputs.ndim == 0 or len(outputs) != len(y):
        raise LoadError(
            f"`{name}` returns {tuple(outputs.shape)} for {len(y)} samples. Expected one output per sample, "
            "batch first."
        )
    _check_targets(outputs, name, data, loss)
    try:
        losses = loss.per_sample(outputs, y)
        ok = losses.shape == (len(y),) and losses.is_floating_point()
    except GapscopeError:
        raise
    except Exception as error:
        raise LoadError(
            f"The loss `{loss.name}` on outputs {tuple(outputs.shape)} and targets {tuple(y.shape)} "
            f"{str(y.dtype)[6:]} raised {one_line(error)}. Name another: `--loss cross-entropy` or `--loss mse`."
        ) from error
    if not ok:
        raise LoadError(f"The loss `{loss.name}` returned {losses.dtype}. Expected real numbers, one per sample.")
    if isinstance(produced, tuple | list) and not hasattr(produced, "logits"):
        return (f"outputs: the first of {len(produced)}",)
    return ()


def compare_loss(model: nn.Module, data: Data, loss: Loss) -> tuple[str, ...]:
    """Return a note where the model itself computes another loss than ours on up to 4 samples, as trained with."""
    x, y = _typed(taken(data.inputs, slice(_OWN_LOSS_SAMPLES)), model), data.targets[:_OWN_LOSS_SAMPLES]
    with _undisturbed(model), torch.no_grad():
        theirs = own_loss(model, x, y)
        if theirs is None:
            return ()
        ours = float(loss.bound(y).per_sample(scores(called(model, x)), y).mean())
    if abs(ours - theirs) <= _OWN_LOSS_TOLERANCE * abs(theirs):
        return ()
    return (f"loss: {loss.name} is {ours:.4g} on {len(y)} samples, the model's own .loss {theirs:.4g}: not the same",)


def _typed(inputs: Inputs, model: nn.Module) -> Inputs:
    """Return real inputs in the type and at the place of the model's parameters."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))
    return mapped(inputs, lambda x: x.to(like.device, like.dtype if x.is_floating_point() else x.dtype))


def _all_integers(inputs: Inputs) -> bool:
    return isinstance(inputs, Tensor) and not inputs.is_floating_point()


def _check_names(model: nn.Module, name: str, inputs: Mapping[str, Tensor]) -> None:
    """Refuse named inputs that forward does not take, or that it would swallow without a word."""
    known = signature(model.forward)
    if known is None:
        return
    parameters = known.parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    # those of transformers take any name, and leave out what they do not know
    unexpected = [] if open_ended and "labels" not in names else [one for one in inputs if one not in names]
    used = ",".join(one for one in inputs if one in names)
    if unexpected:
        raise LoadError(
            f"`{name}` takes no input `{unexpected[0]}`.{did_you_mean(unexpected[0], names)} It takes "
            f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}. Name those of the data to use: "
            f"`--x-key {used or 'NAME'}`."
        )
    missing = [p.name for p in parameters if p.name in names and p.default is p.empty and p.name not in inputs]
    if missing:
        raise LoadError(
            f"`{name}` needs the input `{missing[0]}`, which the data lack. They hold {', '.join(inputs)}. Add it to "
            f"the data and name it: `--x-key {','.join([*inputs, missing[0]])}`."
        )


def _check_targets(outputs: Tensor, name: str, data: Data, loss: Loss) -> None:
    kind = loss.name.partition(":")[0]
    if kind == "bce-with-logits":
        low, high = float(data.targets.min()), float(data.targets.max())
        if low < 0 or high > 1:
            raise LoadError(
                f"{data.name} has targets from {low:g} to {high:g}. Binary cross-entropy expects 0 to 1. Check the "
                "data, or name another loss: `--loss cross-entropy`."
            )
    elif loss.ignored is not None:
        _check_labels(outputs, name, data, loss.ignored)


def _check_labels(outputs: Tensor, name: str, data: Data, ignored: int) -> None:
    if data.targets.is_floating_point():
        raise LoadError(f"{data.name} has real targets. Cross-entropy expects class numbers; use `--loss mse`.")
    classes = classes_last(outputs, data.targets[: len(outputs)]).shape[-1]
    used = data.targets[data.targets != ignored]
    top, low = (int(used.max()), int(used.min())) if len(used) else (0, 0)
    if low < 0:
        raise LoadError(
            f"{data.name} has the label {low}. Expected classes 0, 1, 2, ...; {ignored} alone is left out. Name the "
            f"one that means no label: `--loss cross-entropy:ignore_index={low}`."
        )
    if classes < 2 or top >= classes:
        raise LoadError(
            f"{data.name} has labels up to {top}, `{name}` has {classes} output{'s' * (classes != 1)}. "
            f"Expected one output per class: `-a outputs={max(top + 1, 2)}` if that is its argument, or other "
            "data (`-d`)."
        )


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluate in eval mode, and put modes, buffers and random state back."""
    modes = {module: module.training for module in model.modules()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[]):
            for module in modes:
                module.training = False  # not eval(), which exported programs refuse
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
