"""What targets mean beside the outputs of a model, where their type alone does not say it."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.data import Data, fingerprint
from gapscope.measure.loading.running import sizes_of

_CRITERIA = {
    nn.CrossEntropyLoss: "cross-entropy",
    nn.NLLLoss: "cross-entropy",  # of log-softmax; and cross-entropy of log-softmax is the same number
    nn.BCEWithLogitsLoss: "bce-with-logits",
    nn.MSELoss: "mse",
    nn.L1Loss: "torch.nn:L1Loss",
    nn.BCELoss: "torch.nn:BCELoss",
}
_UNSET = {"ignore_index": -100, "label_smoothing": 0.0, "weight": None, "pos_weight": None}


def own_criterion(model: nn.Module) -> str:
    """Return the loss that a model holds as its only criterion, as `--loss` spells it; "" where there is none.

    Of one that sums over the batch this is the mean, which `is_sum` tells.
    """
    found = _criteria(model)
    weighted = any(isinstance(one, nn.BCELoss | nn.BCEWithLogitsLoss) and one.weight is not None for one in found)
    if len(found) != 1 or weighted:
        return ""
    options = {key: getattr(found[0], key, unset) for key, unset in _UNSET.items()}
    several = [value for value in options.values() if isinstance(value, Tensor) and value.ndim > 1]
    if any(value.numel() != value.shape[-1] for value in several):
        return ""  # weights of other dimensions than the last, as of channels, which `--loss` cannot spell
    given = [
        f"{key}={value.flatten().tolist() if isinstance(value, Tensor) else value}"
        for key, value in options.items()
        if value != _UNSET[key]
    ]
    return _CRITERIA[type(found[0])] + (f":{','.join(given)}" if given else "")


def is_sum(model: nn.Module) -> bool:
    """Return whether the only criterion that a model holds sums over the batch: every loss here is a mean."""
    return [one.reduction for one in _criteria(model)] == ["sum"]


def _criteria(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if type(module) in _CRITERIA]


def is_ambiguous(targets: Tensor, output: tuple[int, ...] | None) -> bool:
    """Return whether several losses take these targets: whole numbers, or zeros and ones, one for each output."""
    if output is None or squeezed(output) != squeezed(targets.shape[1:]):
        return False
    return not targets.is_floating_point() or bool(((targets == 0) | (targets == 1)).all())


def are_labels(targets: Tensor, output: tuple[int, ...] | None) -> bool:
    """Return whether real targets are whole numbers where the model has several scores for each of them."""
    return (
        output is not None
        and len(squeezed(output)) == len(squeezed(targets.shape[1:])) + 1
        and bool((targets == targets.round()).all())
    )


def as_classes(data: Data, model: nn.Module) -> Data:
    """Return class numbers in the place of whole real numbers and of one-hot rows; other targets as they are."""
    y, how = data.targets, []
    if y.is_floating_point() and bool((y == y.round()).all()):
        y = y.long()
        y = y.squeeze(1) if y.ndim == 2 else y  # several columns stay
        how.append("real numbers taken as class numbers")
    numbers = not (y.is_floating_point() or y.is_complex())
    if y.ndim > 1 and numbers and tuple(y.shape[1:]) == sizes_of(data.inputs, model):
        axis = next((axis for axis in (1, -1) if _one_hot(y, axis)), None)
        if axis is not None:
            y, how = y.argmax(axis), ["one-hot rows taken as class numbers"]
    if not how:
        return data
    notes = (*data.notes, f"data: {data.name}: targets: {how[0]}")
    return replace(data, targets=y, notes=notes, fingerprint=fingerprint(data.inputs, y))


def _one_hot(y: Tensor, axis: int) -> bool:
    return y.shape[axis] > 1 and bool(((y == 0) | (y == 1)).all() and (y.sum(axis) == 1).all())


def refuse(targets: Tensor, output: tuple[int, ...] | None) -> LoadError:
    """Return the error for targets from which no loss can be inferred."""
    flags = bool(((targets == 0) | (targets == 1)).all())
    losses = ["bce-with-logits"] * flags + ["mse"]
    losses += ["cross-entropy"] * (targets.ndim > 1 and (_one_hot(targets, 1) or _one_hot(targets, -1)))
    return LoadError(
        f"The targets are {'zeros and ones' if flags else 'whole numbers'}, one for each output of the model {output}. "
        "Expected to be told the loss that it was trained with, because they do not tell. Name it: "
        f"{' or '.join(f'`--loss {loss}`' for loss in losses)}; or, for a score per class, mend the model's arguments: "
        "`-a NAME=VALUE`."
    )


def refuse_complex(targets: Tensor, loss: str) -> None:
    """Raise LoadError where targets are complex, whose imaginary parts a loss of real numbers would drop."""
    if targets.is_complex():
        raise LoadError(
            f"The targets are complex numbers. {loss} takes real ones. Name a loss of yours, `--loss "
            "path/file.py:function`, or give pairs of real numbers: `torch.view_as_real`."
        )


def squeezed(sizes: tuple[int, ...] | torch.Size) -> list[int]:
    """Return the sizes that are not 1."""
    return [size for size in sizes if size != 1]
