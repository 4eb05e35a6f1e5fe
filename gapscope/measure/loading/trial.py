"""A few samples through model and loss: whatever does not fit is said before hours of work."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gapscope.errors import GapscopeError, LoadError, did_you_mean
from gapscope.measure.batches import Inputs, called, described, scores
from gapscope.measure.loading.datasets.data import Data
from gapscope.measure.loading.datasets.transforms import channels_last
from gapscope.measure.loading.losses import Loss, classes_last
from gapscope.measure.loading.running import few, undisturbed
from gapscope.measure.loading.sources import own_loss
from gapscope.measure.loading.targets import refuse_complex
from gapscope.measure.loading.trust import one_line, signature

_SAMPLES = 8  # logits that all look like probabilities by chance are rare then
_OWN_LOSS_SAMPLES = 4
_OWN_LOSS_TOLERANCE = 1e-3  # relative; float32 leaves 1e-6


def check_fit(model: nn.Module, name: str, data: Data, loss: Loss) -> tuple[str, ...]:
    """Run a few samples through model and loss, and return notes on what was chosen of the outputs.

    Raises: LoadError where model, data and loss do not fit.
    """
    x, y = few(data.inputs, model, _SAMPLES), data.targets[:_SAMPLES]
    shapes = f"`{name}` and {data.name} (samples of {described(x)})"
    if isinstance(x, dict):
        _check_names(model, name, x)
    try:
        with undisturbed(model), torch.no_grad():
            produced = called(model, x)
    except Exception as error:  # the user's forward can raise anything
        raise LoadError(
            f"{shapes} do not fit: {one_line(error)}. Check the model's arguments (`-a`) and the data (`-d`)."
            f"{_hint(x, data, error)}"
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
    if outputs.is_complex():
        raise LoadError(
            f"`{name}` returns complex numbers. Expected real ones, as second derivatives are taken through them. End "
            "`forward` in `torch.view_as_real(...)` or `.abs()`."
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
    several = isinstance(produced, tuple | list) and not hasattr(produced, "logits")
    notes = (f"outputs: the first of {len(produced)}",) if several else ()
    return notes + _seen(outputs, data, loss)


def _seen(outputs: Tensor, data: Data, loss: Loss) -> tuple[str, ...]:
    """Return notes on what targets and outputs look like."""
    notes = []
    if loss.ignored is not None and (left := int((data.targets == loss.ignored).sum())):
        notes.append(
            f"data: {data.name}: {left} of {data.targets.numel()} labels are {loss.ignored}, left out of the loss"
        )
    kind = loss.name.partition(":")[0]
    inside = bool(((outputs >= 0) & (outputs <= 1)).all())
    if inside and kind == "cross-entropy":
        sums = classes_last(outputs, data.targets[: len(outputs)]).sum(-1)
        if torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
            notes.append("outputs: they look like a softmax's; cross-entropy is of the scores before it")
    elif inside and kind == "bce-with-logits":
        notes.append(
            "outputs: all from 0 to 1, as a sigmoid's; bce-with-logits is of the scores before it: "
            "`--loss torch.nn:BCELoss` is of these"
        )
    return tuple(notes)


def compare_loss(model: nn.Module, data: Data, loss: Loss) -> tuple[str, ...]:
    """Return a note where the model itself computes another loss than ours on up to 4 samples, as trained with."""
    x, y = few(data.inputs, model, _OWN_LOSS_SAMPLES), data.targets[:_OWN_LOSS_SAMPLES]
    with undisturbed(model), torch.no_grad():
        theirs = own_loss(model, x, y)
        if theirs is None or math.isnan(theirs):  # as where all of their labels are left out
            return ()
        ours = float(loss.bound(y, whole=False).per_sample(scores(called(model, x)), y).mean())
    if abs(ours - theirs) <= _OWN_LOSS_TOLERANCE * abs(theirs):
        return ()
    return (f"loss: {loss.name} is {ours:.4g} on {len(y)} samples, the model's own .loss {theirs:.4g}: not the same",)


def _hint(inputs: Inputs, data: Data, error: Exception) -> str:
    """Return what usually helps where a model cannot take the inputs."""
    hints = []
    if isinstance(inputs, tuple):
        hints.append(f"Each sample gives {len(inputs)} inputs, called in their order, and the target last.")
    elif isinstance(inputs, Tensor):
        shape = tuple(inputs.shape[1:])
        if not inputs.is_floating_point():
            hints.append("If they are no token numbers, save them as floats; bytes take `--normalize scale`.")
        if channels_last(shape):
            hints.append(f"Channels last? `--reshape {shape[2]},{shape[0]},{shape[1]}` moves them first.")
        elif len(shape) == 2 and "channels" in str(error):
            hints.append(f"Gray pictures without a channel? `--reshape 1,{shape[0]},{shape[1]}`.")
    return "".join(f" {hint}" for hint in (*hints, *(f"({note}.)" for note in data.notes)))


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
    if kind == "bce-with-logits" or loss.ignored is not None:
        refuse_complex(data.targets, f"`{loss.name}`")
    if kind == "bce-with-logits":
        low, high = float(data.targets.min()), float(data.targets.max())
        if low < 0 or high > 1:
            raise LoadError(
                f"{data.name} has targets from {low:g} to {high:g}. Binary cross-entropy expects 0 to 1. Check the "
                "data, or name another loss: `--loss cross-entropy`."
            )
    elif loss.ignored is not None:
        _check_labels(outputs, name, data, loss, loss.ignored)


def _check_labels(outputs: Tensor, name: str, data: Data, loss: Loss, ignored: int) -> None:
    if data.targets.is_floating_point():
        raise LoadError(
            f"{data.name} has real targets. Cross-entropy expects class numbers, or one-hot rows of the outputs' "
            "shape. Use `--loss mse`, or for probabilities a loss of yours: `--loss path/file.py:function`."
        )
    if outputs.shape[1:] == data.targets.shape[1:]:
        raise LoadError(
            f"`{name}` returns {tuple(outputs.shape)} for targets {tuple(data.targets[: len(outputs)].shape)}. "
            "Cross-entropy expects scores for each class. For one output per label, as of several labels at once, use "
            "`--loss bce-with-logits`, or `--loss mse`."
        )
    labels = tuple(data.targets[: len(outputs)].shape)
    last, second = tuple(outputs.shape[:-1]) == labels, tuple(outputs.shape[:1] + outputs.shape[2:]) == labels
    if last and second and outputs.ndim > 2 and loss.name.startswith("cross-entropy"):
        raise LoadError(
            f"`{name}` returns {tuple(outputs.shape)} for targets {labels}: the classes could be the second or the "
            "last dimension. Expected one that can be told. If they are the last, as of language models, take `--loss "
            "masked-lm`; else a loss of yours: `--loss path/file.py:function`."
        )
    classes = classes_last(outputs, data.targets[: len(outputs)]).shape[-1]
    used = data.targets[data.targets != ignored]
    top, low = (int(used.max()), int(used.min())) if len(used) else (0, 0)
    if low < 0:
        raise LoadError(
            f"{data.name} has the label {low}. Expected classes 0, 1, 2, ...; {ignored} alone is left out. Name the "
            f"one that means no label: `--loss cross-entropy:ignore_index={low}`; or for a regression: `--loss mse`."
        )
    if classes < 2 or top >= classes:
        raise LoadError(
            f"{data.name} has labels up to {top}, `{name}` has {classes} output{'s' * (classes != 1)}. "
            + _way(used, classes, top, low)
        )


def _way(used: Tensor, classes: int, top: int, low: int) -> str:
    """Return what to do about labels that are too large."""
    if classes == 1:
        return "Expected one output per class. If it is one yes or no: `--loss bce-with-logits`."
    if low == 1 and top == classes:
        return (
            f"Expected classes 0 to {classes - 1}; these start at 1. Subtract 1 where the data are made, or in a "
            "factory: `-d path/file.py:factory`."
        )
    others = used[used != top]
    if len(others) and int(others.max()) < classes:
        return (
            f"Expected classes 0 to {classes - 1}. If {top} means no label: `--loss cross-entropy:ignore_index={top}`; "
            f"else one output more: `-a outputs={top + 1}` if that is its argument."
        )
    return f"Expected one output per class: `-a outputs={top + 1}` if that is its argument, or other data (`-d`)."
