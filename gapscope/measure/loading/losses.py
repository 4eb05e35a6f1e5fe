"""Losses as one number per sample, because every mean over data is `Problem.mean`'s."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.trust import Trust, importable, one_line, resolve, resolve_recorded, signature


@dataclass(frozen=True)
class Loss:
    """A loss by name; `correct` exists for classification only.

    Shapes: outputs (B, ...), targets (B, ...); both functions return (B,).  For targets (B, T, ...) the loss
    is averaged over all but B, and `correct` is the fraction of right entries instead of a bool.
    """

    name: str
    per_sample: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor] | None = None


def classes_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return class scores as (B, ..., classes), whichever of the two usual layouts the model has."""
    if outputs.ndim == targets.ndim + 1:
        if outputs.shape[:-1] == targets.shape:  # (B, C) or (B, T, V)
            return outputs
        if outputs.shape[:1] + outputs.shape[2:] == targets.shape:  # (B, C, H, W)
            return outputs.movedim(1, -1)
    raise LoadError(
        f"The model returns {tuple(outputs.shape)} for targets {tuple(targets.shape)}. Cross-entropy expects "
        "one score per class: (B, C) for (B,), (B, T, C) or (B, C, ...) otherwise. Check the data, or name another "
        "loss: `--loss mse`."
    )


def _cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    scores = classes_last(outputs, targets)
    each = _log_loss(scores.reshape(-1, scores.shape[-1]), targets.reshape(-1, 1))
    return each.view(len(targets), -1).mean(1) if targets.ndim > 1 else each


def _log_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Return log(1 + sum_j exp(z_j - z_y)) over the other classes j (N,), from scores (N, C) and targets (N, 1).

    The same as -log softmax, whose derivatives hold 1 - p and so lose everything where p rounds to 1: at a loss of
    1e-6 the top eigenvalue came out 0.7 % off in float32, this way 1e-6.
    """
    if scores.shape[1] == 1:
        return 0.0 * scores.squeeze(1)  # one class is always right
    own, others = scores.gather(1, targets).squeeze(1), scores.scatter(1, targets, -torch.inf).logsumexp(1)
    # exp(-40) is below float64's eps; 0 * own lets an infinite score be seen, which would else read as a loss of 0
    return F.softplus(others - own, threshold=40) + 0.0 * own


def _correct(outputs: Tensor, targets: Tensor) -> Tensor:
    right = classes_last(outputs, targets).argmax(-1) == targets
    return right.flatten(1).double().mean(1) if right.ndim > 1 else right


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    if outputs.numel() == targets.numel() and len(outputs) == len(targets):
        targets = targets.reshape(outputs.shape)  # (B,) against (B, 1) would broadcast to (B, B)
    if outputs.shape != targets.shape:
        raise LoadError(
            f"The model returns {tuple(outputs.shape)} for targets {tuple(targets.shape)}. Mean squared error expects "
            "equal shapes. Check the data, or name another loss: `--loss cross-entropy`."
        )
    return (outputs - targets.to(outputs.dtype)).square().reshape(len(outputs), -1).mean(1)


LOSSES = {
    "cross-entropy": Loss("cross-entropy", _cross_entropy, _correct),
    "mse": Loss("mse", _mse),
}


def infer_loss(targets: Tensor) -> Loss:
    """Return the usual loss: cross-entropy for integer targets, mean squared error for real ones."""
    return LOSSES["mse" if targets.is_floating_point() else "cross-entropy"]


def build_loss(spec: str, *, recorded: bool, trust: Trust) -> Loss:
    """Return a built-in loss, or the user's callable (outputs, targets) -> (B,)."""
    if recorded:
        found = resolve_recorded(spec, kind="loss", builtins=LOSSES, trust=trust)
    elif spec in LOSSES:
        found = LOSSES[spec]
    elif ":" in spec:
        found = resolve(spec)
    else:
        raise LoadError(
            f"There is no built-in loss `{spec}`.{did_you_mean(spec, LOSSES)} "
            f"Expected one of {', '.join(LOSSES)}, or `pkg.mod:attr`, or `path/file.py:attr`."
        )
    if isinstance(found, Loss):
        return found
    function = _instance(found, spec) if isinstance(found, type) else found
    if not callable(function):
        raise LoadError(
            f"`{spec}` is an object of class {type(found).__name__}. Expected a function of (outputs, targets)."
        )
    return Loss(spec, _per_sample(function, spec))


def _instance(kind: type, spec: str) -> object:
    """Make a loss class such as `torch.nn:CrossEntropyLoss`, unreduced where it can be."""
    known = signature(kind)
    reduced = {"reduction": "none"} if known and "reduction" in known.parameters else {}
    try:
        with importable(spec):
            return kind(**reduced)
    except Exception as error:
        raise LoadError(
            f"`{spec}` without arguments raised {one_line(error)}. Name a function that returns it."
        ) from error


def _per_sample(function: Callable[..., Any], spec: str) -> Callable[[Tensor, Tensor], Tensor]:
    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        losses = function(outputs, targets)
        if not isinstance(losses, torch.Tensor) or losses.shape != targets.shape[:1]:
            got = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise LoadError(
                f"The loss `{spec}` returned {'a scalar' if got == () else got} for {len(targets)} samples. "
                'Return one loss per sample, for example with `reduction="none"` and a mean over the other axes.'
            )
        return losses

    return per_sample
