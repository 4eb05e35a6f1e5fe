"""From what the user typed and what a checkpoint recorded to a model with weights, data and a loss that fit.

The command line wins over the recorded names, which are used only when built in or trusted (`trust.py`).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gapscope.errors import GapscopeError, LoadError
from gapscope.measure.loading.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from gapscope.measure.loading.data import Data, Reading, data_of, load_data
from gapscope.measure.loading.fitting import fit
from gapscope.measure.loading.losses import Loss, build_loss, classes_last, infer_loss
from gapscope.measure.loading.models import all_arguments, build_model, find_factory, parse_args
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.loading.trust import Trust, one_line

__all__ = [
    "NETWORKS",
    "Checkpoint",
    "Data",
    "Loaded",
    "Loss",
    "Reading",
    "Request",
    "Trust",
    "build_loss",
    "build_model",
    "check_fit",
    "data_of",
    "infer_loss",
    "load",
    "load_data",
    "parse_args",
    "read_checkpoint",
    "save_checkpoint",
]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user typed; None means: what the checkpoint recorded."""

    checkpoint: Path
    model: str | None = None
    model_args: Mapping[str, Any] = field(default_factory=dict)
    data: str | None = None
    test_data: str | None = None
    loss: str | None = None
    setup: str | None = None  # a function that makes the whole problem from the checkpoint's path
    weights: str | None = None  # raw, ema, or where in the file
    parameters: tuple[str, ...] = ()  # patterns of names; none: all that require a gradient
    reading: Reading = field(default_factory=Reading)
    limit: int | None = None
    data_seed: int = 0
    trust: Trust = field(default_factory=Trust)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model with its weights (on the CPU, in its factory's mode), data and loss; `notes` say what was inferred."""

    checkpoint: Checkpoint
    model: nn.Module
    model_name: str
    model_args: Mapping[str, Any]
    weights_key: str
    train: Data | None
    test: Data | None
    loss: Loss
    notes: tuple[str, ...]


def load(request: Request) -> Loaded:
    """Load everything that a request names, and run the model on two samples to see that they fit."""
    checkpoint = read_checkpoint(request.checkpoint, request.trust)
    name, args, recorded = _model_of(request, checkpoint)
    with torch.random.fork_rng(devices=[]):  # initial weights and loaders draw numbers that are not kept
        model, name = build_model(name, args, recorded=recorded, trust=request.trust)
        factory = find_factory(name, recorded=recorded, trust=request.trust)
        fitted = fit(checkpoint, model, name, all_arguments(factory, args))
        train, test = _data_of(request, checkpoint)
    loss, notes = _loss_of(request, checkpoint, train)
    notes = fitted.notes + train.notes + (test.notes if test else ()) + notes
    if test and test.fingerprint == train.fingerprint:
        notes += ("data: the test data are the training data",)
    train = train.limited(request.limit, request.data_seed)
    test = test and test.limited(request.limit, request.data_seed)
    for data in (train, test) if test else (train,):
        check_fit(model, name, data, loss)
    return Loaded(
        checkpoint=checkpoint,
        model=model,
        model_name=name,
        model_args=args,
        weights_key=fitted.key,
        train=train,
        test=test,
        loss=loss,
        notes=notes,
    )


def _model_of(request: Request, checkpoint: Checkpoint) -> tuple[str, dict[str, Any], bool]:
    """Return the model's name, its arguments, and whether the name is the checkpoint's word alone."""
    about = checkpoint.recorded
    factory = about.get("factory")
    name = request.model or factory
    if name is None:
        raise LoadError(
            f"{checkpoint.name} does not say which model it holds. Name it: `-m mlp -a hidden=[32]`, "
            f"`-m pkg.mod:factory` or `-m path/file.py:factory`. Built in: {', '.join(NETWORKS)}."
        )
    inherited = about.get("model_args") or {} if name == factory else {}
    return name, {**inherited, **request.model_args}, request.model is None


def _data_of(request: Request, checkpoint: Checkpoint) -> tuple[Data, Data | None]:
    """Return train and test data: each as typed, else the typed data's own test split, else as recorded."""
    recorded_data, recorded_test = (checkpoint.recorded.get(key) for key in ("data", "test_data"))
    spec = request.data or recorded_data
    trust, recorded = request.trust, request.data is None
    if spec is None:
        raise LoadError(
            f"{checkpoint.name} does not say what it was trained on. Name it: `-d digits`, `-d data.npz`, "
            "`-d pkg.mod:factory` or `-d path/file.py:factory`."
        )
    train = load_data(spec, "train", recorded=recorded, trust=trust)
    assert train is not None  # only a test split can be absent
    if request.test_data:
        return train, load_data(request.test_data, "test", recorded=False, trust=trust, whole=True)
    own = load_data(spec, "test", recorded=recorded, trust=trust) if request.data or not recorded_test else None
    if own is None and recorded_test:
        own = load_data(recorded_test, "test", recorded=True, trust=trust, whole=True)
    return train, own


def _loss_of(request: Request, checkpoint: Checkpoint, train: Data) -> tuple[Loss, tuple[str, ...]]:
    spec: str | None = request.loss or checkpoint.recorded.get("loss")
    if spec:
        return build_loss(spec, recorded=not request.loss, trust=request.trust), ()
    loss = infer_loss(train.targets)
    kind = "real" if train.targets.is_floating_point() else "integer"
    return loss, (f"loss: {loss.name}, inferred from {kind} targets",)


def check_fit(model: nn.Module, name: str, data: Data, loss: Loss) -> None:
    """Run two samples through model and loss; whatever does not fit is said before hours of work."""
    x, y = data.inputs[:2], data.targets[:2]
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    x = x.to(dtype) if x.is_floating_point() else x
    shapes = f"`{name}` and {data.name} (samples of shape {tuple(x.shape[1:])}, {str(x.dtype)[6:]})"
    try:
        with _undisturbed(model), torch.no_grad():
            outputs = model(x)
    except Exception as error:  # the user's forward can raise anything
        hint = " If they are no token numbers, save them as floats." if not x.is_floating_point() else ""
        raise LoadError(
            f"{shapes} do not fit: {one_line(error)}. Check the model's arguments (`-a`) and the data (`-d`).{hint}"
        ) from error
    if not isinstance(outputs, torch.Tensor):
        hint = " `.logits`" if hasattr(outputs, "logits") else ""
        raise LoadError(
            f"`{name}` returns {type(outputs).__name__}. Expected one tensor: give a factory whose model returns its"
            f"{hint or ' scores'} alone."
        )
    if outputs.ndim == 0 or len(outputs) != len(x):
        raise LoadError(
            f"`{name}` returns {tuple(outputs.shape)} for {len(x)} samples. Expected one output per sample, "
            "batch first."
        )
    if loss.name == "cross-entropy":
        _check_labels(outputs, name, data)
    try:
        losses = loss.per_sample(outputs, y)
        ok = losses.shape == (len(x),) and losses.is_floating_point()
    except GapscopeError:
        raise
    except Exception as error:
        raise LoadError(
            f"The loss `{loss.name}` on outputs {tuple(outputs.shape)} and targets {tuple(y.shape)} "
            f"{str(y.dtype)[6:]} raised {one_line(error)}. Name another: `--loss cross-entropy` or `--loss mse`."
        ) from error
    if not ok:
        raise LoadError(f"The loss `{loss.name}` returned {losses.dtype}. Expected real numbers, one per sample.")


def _check_labels(outputs: torch.Tensor, name: str, data: Data) -> None:
    if data.targets.is_floating_point():
        raise LoadError(f"{data.name} has real targets. Cross-entropy expects class numbers; use `--loss mse`.")
    classes = classes_last(outputs, data.targets[: len(outputs)]).shape[-1]
    top = int(data.targets.max())
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
            model.eval()
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers and not torch.equal(buffer, buffers[name]):
                    buffer.copy_(buffers[name])
