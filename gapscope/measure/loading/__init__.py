"""From what the user typed and what a checkpoint recorded to a model with weights, data and a loss that fit.

The command line wins over the recorded names, which are used only when built in or trusted (`trust.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints import formats
from gapscope.measure.loading.checkpoints.checkpoint import ROOT, Checkpoint, read_checkpoint, save_checkpoint
from gapscope.measure.loading.checkpoints.fitting import fit, held
from gapscope.measure.loading.datasets.data import Data, Reading, data_of, load_data, same_classes
from gapscope.measure.loading.losses import Loss, build_loss, infer_loss
from gapscope.measure.loading.models import all_arguments, build_model, find_factory, parse_args
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.loading.sources import completed, holds_config, in_own_names, own_settings, unwrapped
from gapscope.measure.loading.targets import as_classes, is_sum, own_criterion
from gapscope.measure.loading.trial import check_fit, compare_loss
from gapscope.measure.loading.trust import Trust

__all__ = [
    "NETWORKS",
    "Checkpoint",
    "Data",
    "Loaded",
    "Loss",
    "Reading",
    "Request",
    "Trust",
    "as_classes",
    "build_loss",
    "build_model",
    "check_fit",
    "data_of",
    "infer_loss",
    "load",
    "load_data",
    "parse_args",
    "read_checkpoint",
    "same_classes",
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
    """Load everything that a request names, and run the model on a few samples to see that they fit."""
    checkpoint = read_checkpoint(request.checkpoint, request.trust)
    with torch.random.fork_rng(devices=[]):  # initial weights and loaders draw numbers that are not kept
        built = _built(request, checkpoint)
        train, test = _data_of(request, checkpoint)
    model, name = built.model, built.name
    train, test = completed(model, train), test and completed(model, test)
    loss, inferred = _loss_of(request, checkpoint, train, model)
    if loss.ignored is not None:
        train, test = as_classes(train, model), test and as_classes(test, model)
    notes = built.notes + train.notes + (test.notes if test else ()) + inferred
    if test:
        same_classes(train, test)
    if test and test.fingerprint == train.fingerprint:
        notes += ("data: the test data are the training data",)
    train = train.limited(request.limit, request.data_seed)
    test = test and test.limited(request.limit, request.data_seed)
    if test:
        check_fit(model, name, test, loss)
    notes += check_fit(model, name, train, loss) + compare_loss(model, train, loss)
    return Loaded(
        checkpoint=checkpoint,
        model=model,
        model_name=name,
        model_args=built.args,
        weights_key=built.key,
        train=train,
        test=test,
        loss=loss,
        notes=notes,
    )


@dataclass(frozen=True)
class _Built:
    """A model with its weights: under which name, with which arguments and from where."""

    model: nn.Module
    name: str
    args: Mapping[str, Any]
    key: str
    notes: tuple[str, ...]


def _built(request: Request, checkpoint: Checkpoint) -> _Built:
    if request.model is None and (found := held(checkpoint, request.weights)):
        model, notes = unwrapped(checkpoint.modules[found.key])
        name = type(model).__name__
        return _Built(model, name, {}, found.key, (f"model: the {name} that the file holds", *notes, *found.notes))
    folder = request.checkpoint if request.checkpoint.is_dir() else request.checkpoint.parent
    name, args, recorded, notes = _model_of(request, checkpoint, folder)
    factory = find_factory(name, recorded=recorded, trust=request.trust, folder=folder)
    own = {key: value for key, value in own_settings(factory, checkpoint.settings).items() if key not in args}
    if own:
        shown = ", ".join(f"{key}={value!r}"[:60] for key, value in own.items())
        notes += (f"model: {shown} as the checkpoint recorded; change them with `-a`",)
    args = own | args
    model, name = build_model(name, args, recorded=recorded, trust=request.trust, folder=folder)
    model, how = unwrapped(model)
    if name.partition(":")[0] == "hf":
        name = f"hf:{type(model).__name__}"
        if getattr(model.config, "auto_map", None):
            how += (f"model: config.json names code of its own, which is never run: this is transformers' {name[3:]}",)
        if own_names := in_own_names(model, next(iter(checkpoint.tensors.values()))):
            checkpoint = replace(checkpoint, tensors={ROOT: own_names})
            how += ("weights: renamed as transformers does when it loads them",)
    fitted = fit(checkpoint, model, name, all_arguments(factory, args), request.weights)
    return _Built(model, name, args, fitted.key, notes + how + fitted.notes)


def _model_of(
    request: Request, checkpoint: Checkpoint, folder: Path
) -> tuple[str, dict[str, Any], bool, tuple[str, ...]]:
    """Return the model's name, its arguments, whether the name is the checkpoint's word alone, and notes."""
    about = checkpoint.recorded
    factory = about.get("factory")
    name = request.model or factory
    if name is None and holds_config(folder):
        return "hf", dict(request.model_args), False, ("model: from config.json beside the weights",)
    if name is None:
        whole = checkpoint.format == formats.EXPORTED.name
        trusting = " Or run the program that the file itself holds, if you trust it: `--trust-file`." if whole else ""
        raise LoadError(
            f"{checkpoint.name} does not say which model it holds. Name it: `-m mlp -a hidden=[32]`, "
            "`-m hf`, `-m timm:NAME`, `-m torchvision:NAME`, `-m pkg.mod:factory` or `-m path/file.py:factory`. "
            f"Built in: {', '.join(NETWORKS)}.{trusting}"
        )
    inherited = about.get("model_args") or {} if name == factory else {}
    return name, {**inherited, **request.model_args}, request.model is None, ()


def _data_of(request: Request, checkpoint: Checkpoint) -> tuple[Data, Data | None]:
    """Return train and test data: each as typed, else the typed data's own test split, else as recorded."""
    recorded_data, recorded_test = (checkpoint.recorded.get(key) for key in ("data", "test_data"))
    spec = request.data or recorded_data
    trust, reading, recorded = request.trust, request.reading, request.data is None
    if spec is None:
        raise LoadError(
            f"{checkpoint.name} does not say what it was trained on. Name it: `-d digits`, `-d data.npz`, "
            "`-d pkg.mod:factory` or `-d path/file.py:factory`."
        )
    train = load_data(spec, "train", recorded=recorded, trust=trust, reading=reading)
    assert train is not None  # only a test split can be absent
    if request.test_data:
        return train, load_data(request.test_data, "test", recorded=False, trust=trust, whole=True, reading=reading)
    own = None
    if request.data or not recorded_test:
        own = load_data(spec, "test", recorded=recorded, trust=trust, reading=reading)
    if own is None and recorded_test:
        own = load_data(recorded_test, "test", recorded=True, trust=trust, whole=True, reading=reading)
    return train, own


def _loss_of(request: Request, checkpoint: Checkpoint, train: Data, model: nn.Module) -> tuple[Loss, tuple[str, ...]]:
    spec: str | None = request.loss or checkpoint.recorded.get("loss")
    if spec:
        return build_loss(spec, recorded=not request.loss, trust=request.trust), ()
    loss = infer_loss(train.targets, model, train.inputs)
    kind = "real" if train.targets.is_floating_point() else "integer"
    of = f" of a {type(model).__name__}" if loss.name.endswith("-lm") else ""
    own = f"the criterion that {type(model).__name__} holds{' (the mean of what it sums)' * is_sum(model)}"
    source = own if own_criterion(model) else f"{kind} targets{of}"
    return loss, (f"loss: {loss.name}, inferred from {source}",)
