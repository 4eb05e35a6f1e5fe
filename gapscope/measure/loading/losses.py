"""Losses as one number per sample, because every mean over data is `Problem.mean`'s."""

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.batches import Inputs
from gapscope.measure.loading.running import sizes_of
from gapscope.measure.loading.targets import are_labels, is_ambiguous, own_criterion, refuse, refuse_complex, squeezed
from gapscope.measure.loading.trust import Trust, importable, one_line, resolve, resolve_recorded, signature

IGNORED = -100  # the label that torch and Hugging Face leave out
PerSample = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss by name; `correct` exists for classification only.

    Shapes: outputs (B, ...), targets (B, ...); all functions return (B,).  For targets (B, T, ...) the loss
    is averaged over all but B, and `correct` is the fraction of right entries instead of a bool.  `weights` and
    `counts` (from targets alone; None: all equal) are the total weight and the number of a sample's entries, `ignored`
    the label that is left out (None: the targets are no class numbers).
    """

    name: str
    per_sample: PerSample
    correct: PerSample | None = None
    weights: Callable[[Tensor], Tensor] | None = None
    counts: Callable[[Tensor], Tensor] | None = None
    ignored: int | None = None

    def bound(self, targets: Tensor, *, whole: bool = True) -> "Loss":
        """Return the loss whose mean over the samples of these data is the mean over all their entries.

        per_sample becomes (sum over the sample's entries of w l) / (mean over the samples of their total weight), and
        `correct` likewise with every entry that counts as one.  Where nothing has any weight, both are 0 for a batch,
        that is not `whole`; else that raises LoadError.
        """
        per_sample = _scaled(self.per_sample, self.weights, targets, self.name, whole)
        correct = self.correct and _scaled(self.correct, self.counts, targets, self.name, whole)
        return replace(self, per_sample=per_sample, correct=correct, weights=None, counts=None)


def _scaled(
    each: PerSample, share: Callable[[Tensor], Tensor] | None, targets: Tensor, name: str, whole: bool
) -> PerSample:
    if share is None:
        return each
    shares = share(targets).cpu().double()
    mean = float(shares.mean()) or (0.0 if whole else 1.0)  # of shares that are all 0, 1 leaves them that
    if mean == 0:
        raise LoadError(
            f"The loss `{name}` leaves out every target. Expected some with a weight. Check the data's labels, or "
            "`ignore_index` and `weight` of `--loss`."
        )
    if bool((shares == mean).all()):
        return each

    def scaled(outputs: Tensor, targets: Tensor) -> Tensor:
        found = each(outputs, targets)
        found = found if found.is_floating_point() else found.to(_wide(found))
        return found * (share(targets).to(found.dtype) / mean)

    return scaled


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float32 if tensor.device.type == "mps" else torch.float64  # no float64 there


def _require_samples(outputs: Tensor, targets: Tensor) -> None:
    if outputs.ndim == 0:
        raise LoadError(
            f"The model returns () for targets {tuple(targets.shape)}. Expected one output for each sample. Keep the "
            "batch axis in `forward` (`squeeze()` drops it)."
        )


def classes_last(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return class scores as (B, ..., classes), whichever of the two usual layouts the model has."""
    _require_samples(outputs, targets)
    if outputs.ndim == targets.ndim + 1:
        if outputs.shape[:-1] == targets.shape:  # (B, C) or (B, T, V)
            return outputs
        if outputs.shape[:1] + outputs.shape[2:] == targets.shape:  # (B, C, H, W)
            return outputs.movedim(1, -1)
    if targets.ndim == 2 and outputs.ndim == 3 and outputs.shape[1] == 1:
        raise LoadError(
            f"The model returns {tuple(outputs.shape)} for targets {tuple(targets.shape)}: scores for one place of "
            f"{targets.shape[1]}. Expected them for all. If it needs the targets for that, name a subclass whose "
            "forward gives them: `-m path/file.py:Class`."
        )
    raise LoadError(
        f"The model returns {tuple(outputs.shape)} for targets {tuple(targets.shape)}. Cross-entropy expects "
        "one score per class: (B, C) for (B,), (B, T, C) or (B, C, ...) otherwise. Check the data, or name another "
        "loss: `--loss mse`."
    )


def _cross_entropy(
    name: str,
    *,
    label_smoothing: float = 0.0,
    weight: tuple[float, ...] = (),
    ignore_index: int = IGNORED,
    shifted: bool = False,
) -> Loss:
    """Return torch's cross-entropy; `shifted`: the scores at a place are of the next one's label.

    The loss of an entry of class y is (1 - s) w_y nll_y + s/C sum_c w_c nll_c, its weight w_y; one left out has none.
    """

    def entries(targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return labels that exist and whether each entry counts (B, entries)."""
        targets = targets[:, 1:] if shifted else targets
        flat = targets.reshape(len(targets), -1)
        counted = flat != ignore_index
        return torch.where(counted, flat, 0), counted

    def of_classes(like: Tensor) -> Tensor:
        kind = like.dtype if like.is_floating_point() else _wide(like)
        return torch.tensor(weight, dtype=kind, device=like.device)

    def weights(targets: Tensor) -> Tensor:
        labels, counted = entries(targets)
        return (of_classes(targets)[labels] * counted if weight else counted).sum(1)

    def counts(targets: Tensor) -> Tensor:
        return entries(targets)[1].sum(1)

    def scores_of(outputs: Tensor, targets: Tensor) -> Tensor:
        scores = classes_last(outputs, targets)
        scores = scores[:, :-1] if shifted else scores
        return scores.reshape(len(targets), -1, scores.shape[-1])

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        scores, (labels, counted) = scores_of(outputs, targets), entries(targets)
        classes = scores.shape[-1]
        if weight and len(weight) != classes:
            raise LoadError(
                f"The loss `{name}` has {len(weight)} weights for {classes} classes. Expected one for each class. Mend "
                "`weight=[...]`."
            )
        own = _log_loss(scores.reshape(-1, classes), labels.reshape(-1, 1)).view(labels.shape)
        share = counted.to(own.dtype)
        if weight:
            share = share * of_classes(own)[labels]
        total = own * share
        if label_smoothing:
            # nll_c = nll_y + z_y - z_c: only the first term is curved, and it keeps its digits
            every = of_classes(own) if weight else own.new_ones(classes)
            above = scores.gather(-1, labels.unsqueeze(-1)) - scores
            smooth = (own * every.sum() + (above * every).sum(-1)) * counted / classes
            total = (1 - label_smoothing) * total + label_smoothing * smooth
        sums = share.sum(1)
        return total.sum(1) / torch.where(sums > 0, sums, 1.0)

    def correct(outputs: Tensor, targets: Tensor) -> Tensor:
        scores, (labels, counted) = scores_of(outputs, targets), entries(targets)
        right = (scores.argmax(-1) == labels) & counted
        if targets.ndim == 1:
            return right[:, 0]
        return right.to(_wide(right)).sum(1) / counted.sum(1).clamp(min=1)

    return Loss(name, per_sample, correct, weights, counts, ignore_index)


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


def _like_outputs(outputs: Tensor, targets: Tensor, loss: str, other: str) -> Tensor:
    refuse_complex(targets, loss)
    _require_samples(outputs, targets)
    # numbers in another order, such as channels last, must not fit
    if len(outputs) == len(targets) and squeezed(outputs.shape[1:]) == squeezed(targets.shape[1:]):
        targets = targets.reshape(outputs.shape)  # (B,) against (B, 1) would broadcast to (B, B)
    if outputs.shape != targets.shape:
        raise LoadError(
            f"The model returns {tuple(outputs.shape)} for targets {tuple(targets.shape)}. {loss} expects "
            f"equal shapes. Check the data, or name another loss: `--loss {other}`."
        )
    return targets.to(outputs.dtype)


def _mse(outputs: Tensor, targets: Tensor) -> Tensor:
    wanted = _like_outputs(outputs, targets, "Mean squared error", "cross-entropy")
    return (outputs - wanted).square().reshape(len(outputs), -1).mean(1)


def _bce(name: str, *, pos_weight: tuple[float, ...] = ()) -> Loss:
    """Return the mean over outputs of p y softplus(-z) + (1 - y) softplus(z), y in [0, 1], p the weight of a 1."""

    def like(outputs: Tensor, targets: Tensor) -> Tensor:
        return _like_outputs(outputs, targets, "Binary cross-entropy", "cross-entropy")

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = like(outputs, targets)
        if len(pos_weight) not in (0, 1, outputs.shape[-1]):
            raise LoadError(
                f"The loss `{name}` has {len(pos_weight)} weights for outputs {tuple(outputs.shape)}. Expected one, or "
                "one for each of the last dimension. Mend `pos_weight=...`."
            )
        ones = torch.tensor(pos_weight or (1.0,), dtype=outputs.dtype, device=outputs.device)
        # softplus of either sign, and not 1 - p, keeps the digits of its derivatives where p rounds to 0 or 1
        losses = ones * wanted * F.softplus(-outputs, threshold=40) + (1 - wanted) * F.softplus(outputs, threshold=40)
        return (losses + 0.0 * outputs).reshape(len(outputs), -1).mean(1)

    def correct(outputs: Tensor, targets: Tensor) -> Tensor:
        right = (outputs > 0) == (like(outputs, targets) > 0.5)
        return right.reshape(len(right), -1).to(_wide(right)).mean(1)

    return Loss(name, per_sample, correct)


LOSSES = {
    "cross-entropy": _cross_entropy("cross-entropy"),
    "mse": Loss("mse", _mse),
    "bce-with-logits": _bce("bce-with-logits"),
    "causal-lm": _cross_entropy("causal-lm", shifted=True),
    "masked-lm": _cross_entropy("masked-lm"),
}
_OPTIONS = {
    "cross-entropy": ("label_smoothing", "weight", "ignore_index"),
    "bce-with-logits": ("pos_weight",),
}


def infer_loss(targets: Tensor, model: nn.Module | None = None, inputs: Inputs | None = None) -> Loss:
    """Return the criterion that the model holds, else the usual loss: mean squared error for real targets, else
    cross-entropy, or that of a language model.

    A `...ForCausalLM` (`...LMHeadModel`) over targets of its tokens' shape predicts the next token, unless the targets
    are already those.  Raises LoadError where the model's outputs leave open which loss it is.
    """
    output = sizes_of(inputs, model) if model is not None and inputs is not None else None
    if model is not None and (own := own_criterion(model)):
        return build_loss(own, recorded=False, trust=Trust())
    refuse_complex(targets, "The usual loss")
    if is_ambiguous(targets, output):
        raise refuse(targets, output)
    if targets.is_floating_point():
        return LOSSES["cross-entropy" if are_labels(targets, output) else "mse"]
    kind = type(model).__name__
    if kind.endswith("ForMaskedLM"):
        return LOSSES["masked-lm"]
    first = inputs[0] if isinstance(inputs, tuple) else inputs
    tokens = first.get("input_ids") if isinstance(first, dict) else first
    if kind.endswith(("ForCausalLM", "LMHeadModel")) and isinstance(tokens, Tensor) and tokens.shape == targets.shape:
        if tokens.ndim < 2:
            raise LoadError(
                f"The data are one row of {len(tokens):,} tokens, each a sample of its own. Expected blocks of them, "
                f"(samples, tokens), for a {kind}. Save the row alone and let it be cut: `-d tokens.npy:block=128`."
            )
        left_out = targets == IGNORED
        same = bool(((tokens == targets) | left_out).all())
        if same or not bool(((tokens[:, 1:] == targets[:, :-1]) | left_out[:, :-1]).all()):
            return LOSSES["causal-lm"]
    return LOSSES["cross-entropy"]


def build_loss(spec: str, *, recorded: bool, trust: Trust) -> Loss:
    """Return a built-in loss with its options, or the user's callable (outputs, targets) -> (B,)."""
    name, _, options = spec.partition(":")
    if name in LOSSES:
        return _with_options(name, options, spec)
    if recorded:
        found = resolve_recorded(spec, kind="loss", builtins={}, trust=trust)
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
    if isinstance(function, _ELEMENTWISE):
        return Loss(spec, _mean_of_entries(function, spec))
    if not callable(function):
        raise LoadError(
            f"`{spec}` is an object of class {type(found).__name__}. Expected a function of (outputs, targets)."
        )
    return Loss(spec, _per_sample(function, spec))


def _with_options(name: str, text: str, spec: str) -> Loss:
    """Return a built-in loss with options, under the one name that says the same: `cross-entropy:weight=[1,2]`."""
    try:
        given: Mapping[str, Any] = tomllib.loads(f"given = {{ {text} }}")["given"]
    except tomllib.TOMLDecodeError:
        given = {text: None}
    known = _OPTIONS.get(name, ())
    changed = {}
    for key, value in sorted(given.items()):
        if key not in known:
            raise LoadError(
                f"`{spec}`: `{name}` has no option `{key}`.{did_you_mean(key, known)} Expected "
                f"{' or '.join(f'`{one}=...`' for one in known) or 'none'}, separated by commas. Mend `--loss`."
            )
        changed[key] = _option(key, value, spec)
    changed = {key: value for key, value in changed.items() if value != _DEFAULTS[key]}
    if not changed:
        return LOSSES[name]
    if changed.get("label_smoothing") and 0 in changed.get("weight", ()):
        raise LoadError(
            f"`{spec}`: a class of weight 0 and label smoothing leave no mean. Expected weights above 0. Give "
            "`ignore_index` for the class to leave out."
        )
    shown = ",".join(f"{key}={_shown(value)}" for key, value in changed.items())
    build: Callable[..., Loss] = _bce if name == "bce-with-logits" else _cross_entropy
    return build(f"{name}:{shown}", **changed)


_DEFAULTS: Mapping[str, Any] = {"label_smoothing": 0.0, "weight": (), "ignore_index": IGNORED, "pos_weight": (1.0,)}


def _option(key: str, value: Any, spec: str) -> Any:
    def number(one: Any) -> bool:
        return type(one) in (int, float) and 0 <= one < math.inf

    if key == "ignore_index" and type(value) is int:
        return value
    if key == "label_smoothing" and number(value) and value <= 1:
        return float(value)
    if key == "pos_weight" and number(value):
        return (float(value),)
    if key in ("weight", "pos_weight") and isinstance(value, list) and value and all(map(number, value)):
        return tuple(float(one) for one in value)
    wanted = {"ignore_index": "a label", "label_smoothing": "a number from 0 to 1"}
    raise LoadError(
        f"`{spec}`: `{key}` is {value!r}. Expected {wanted.get(key, 'numbers, 0 or more, as [1, 2.5]')}. Mend `--loss`."
    )


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_shown, value))}]"
    return repr(value).removesuffix(".0")


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


_ELEMENTWISE = (nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss)


def _mean_of_entries(criterion: nn.Module, spec: str) -> PerSample:
    """Return torch's unreduced loss of equal shapes, averaged over all dimensions but the first."""

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = _like_outputs(outputs, targets, f"`{spec}`", "cross-entropy")
        losses: Tensor = criterion(outputs, wanted)
        return losses.reshape(len(outputs), -1).mean(1)

    return per_sample


def _per_sample(function: Callable[..., Any], spec: str) -> PerSample:
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
