"""Checkpoints: what gapscope writes beside the weights, and what it finds in anybody's file.

A file of `save_checkpoint` is a dict of plain types and tensors:

    gapscope   {format_version: 1, factory, model_args, data, test_data, loss, training}; None where not given
    model      the state_dict;   initial (optional) the one before training;   optimizer (optional)
"""

import contextlib
import itertools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.checkpoints import formats
from gapscope.measure.loading.checkpoints.distributed import read_distributed
from gapscope.measure.loading.checkpoints.folders import DEEPEST, read_folder
from gapscope.measure.loading.checkpoints.formats import sniff
from gapscope.measure.loading.checkpoints.torchfile import NOTHING_RUNS, read_torch_file
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.loading.trust import Trust
from gapscope.replacing import replacing

FORMAT_VERSION = 1
SHADOW = "shadow_params"  # averaged parameters without names, in the model's order
ROOT = "(file)"  # the location of a state_dict that is the whole file
_RECORDED_TYPES: dict[str, type] = {
    "factory": str,
    "model_args": Mapping,
    "data": str,
    "test_data": str,
    "loss": str,
    "training": Mapping,
}
_NOT_WEIGHTS = re.compile(r"optimizer|(^|_)(optim|sched\w*|scaler|rng\w*)$|^(gapscope|callbacks|loops)$", re.I)
_OPTIMIZERS = ("optimizer", "optimizer_state_dict", "optimizer_state", "optim", "optimizer_states", "optimizers")
SETTINGS = ("args", "config", "cfg", "hparams", "hyper_parameters", "hyperparameters", "opt", "model_args")
_HINTS = (
    *("epoch", "epochs", "step", "steps", "global_step", "iteration", "iterations", "iter_num"),
    *("batch_size", "lr", "learning_rate", "momentum", "weight_decay", "seed"),
)
MOST_VALUES = 100_000  # plain values in a file's tables of settings: a list that is shared counts wherever it is met
MOST_NAMES = 5_000_000  # in all tables where weights may be
_LONGEST = 2000  # bits of an integer that torch's reader of weights takes, about
_GROUP_HINTS = ("lr", "momentum", "dampening", "weight_decay", "nesterov")


@dataclass(frozen=True)
class Checkpoint:
    """A file's state_dicts by location, with what it says about model, data and training."""

    name: str
    sha256: str  # of a folder: over `NAME SHA256` of the files that were read, one line each, sorted
    tensors: Mapping[str, dict[str, Tensor]]  # dotted location -> candidate state_dict
    recorded: Mapping[str, Any]  # what `save_checkpoint` wrote, untrusted, or {}
    training: Mapping[str, Any]  # batch_size, lr, ...: recorded, or found under usual keys
    initial: dict[str, Tensor] | None
    optimizer: Mapping[str, Any] | None
    format: str = formats.TORCH.name
    settings: Mapping[str, Any] = field(default_factory=dict)  # hyper_parameters, config.json, args: plain values
    folder: Path | None = None  # of Hugging Face, where `config.json` describes the model
    modules: Mapping[str, nn.Module] = field(default_factory=dict)  # whole ones by location, out of a trusted file
    trust: str = NOTHING_RUNS  # what the user had to allow


def save_checkpoint(
    path: str | os.PathLike[str],
    model: nn.Module,
    *,
    factory: str | Callable[..., nn.Module] | None = None,
    model_args: Mapping[str, Any] | None = None,
    data: str | None = None,
    test_data: str | None = None,
    loss: str | Callable[..., Tensor] | None = None,
    training: Mapping[str, Any] | None = None,
    initial: Mapping[str, Tensor] | None = None,
    optimizer: Mapping[str, Any] | torch.optim.Optimizer | None = None,
) -> None:
    """Write the model's weights and what later commands would otherwise ask for; the same input gives the same bytes.

    `factory` is a built-in name, `pkg.mod:attr`, or the class or function itself; `initial` the state_dict before
    training.  A failed or interrupted write leaves an existing file whole.
    """
    about = {
        "format_version": FORMAT_VERSION,
        "factory": _name_of(factory, "factory"),
        "model_args": _plain(dict(model_args or {}), "model_args"),
        "data": _plain(data, "data"),
        "test_data": _plain(test_data, "test_data"),
        "loss": _name_of(loss, "loss"),
        "training": _plain(dict(training or {}), "training"),
    }
    content: dict[str, Any] = {"gapscope": about, "model": _on_cpu(model.state_dict(), "model")}
    if initial is not None:
        content["initial"] = _on_cpu(initial, "initial")
    if optimizer is not None:
        state = optimizer.state_dict() if isinstance(optimizer, torch.optim.Optimizer) else optimizer
        content["optimizer"] = _on_cpu(state, "optimizer")
    _write_atomically(Path(path), content)


def read_checkpoint(path: Path, trust: Trust, *, values: bool = True) -> Checkpoint:
    """Read a file or folder; unless the user trusts it, without running or importing anything that it names.

    Without `values` the tensors are for looking at their names, shapes and types only.
    """
    found = sniff(path)
    settings: Mapping[str, Any] = {}
    if found in (formats.HUGGINGFACE, formats.SHARDED):
        folder = read_folder(path, trust, values=values)
        content: object = folder.tensors
        sha256, level, settings = folder.sha256, folder.trust, folder.settings
    elif found is formats.DISTRIBUTED:
        content, sha256 = read_distributed(path, values=values)
        level = NOTHING_RUNS
    else:
        content, sha256, found, level = read_torch_file(path, trust, values=values)
    content, modules = _without_modules(content)
    if found in (formats.PICKLE, formats.MODULE):
        content = _tensors(content)
    if isinstance(content, list | tuple) and any(isinstance(part, Mapping) for part in content):
        content = {str(place): part for place, part in enumerate(content)}  # weights and optimizer, side by side
    if not isinstance(content, Mapping):
        raise LoadError(
            f"{path} holds {_described(content)}. Expected a state_dict, or a dict with one: "
            "`torch.save(model.state_dict(), path)`."
        )
    recorded = _recorded(content.get("gapscope"), path)
    tensors = dict(_state_dicts(content)) or dict(_state_dicts(_tensors(content)))  # torch.save takes arrays too
    initial = tensors.pop("initial", None) if recorded else None
    if {"state_dict", "current_model_state", "averaging_state"} <= set(tensors):
        # Lightning's WeightAveraging: the average lies where raw weights are due, and its counter beside it
        tensors["state_dict"] |= tensors.pop("averaging_state")
    if not tensors:
        packed = any(str(key).endswith("_packed_params") for key in content)
        keys = ", ".join(f"`{key}`" for key in list(content)[:8])
        raise LoadError(
            f"{path} holds no weights (its keys: {keys or 'none'}). Expected a state_dict of named tensors."
            + " These are quantized, whose loss has no derivatives: give the weights from before." * packed
        )
    optimizer = next((content[key] for key in _OPTIMIZERS if key in content), None)
    if isinstance(optimizer, list | tuple) and optimizer:
        optimizer = optimizer[0]
    # pieces of one, as a distributed checkpoint has them, do not say whose they are
    optimizer = optimizer if isinstance(optimizer, Mapping) and "param_groups" in optimizer else None
    return Checkpoint(
        name=path.name or path.resolve().name,
        sha256=sha256,
        tensors=tensors,
        recorded=recorded,
        training=dict(recorded.get("training") or {}) or _training_hints(content, optimizer),
        initial=initial,
        optimizer=optimizer,
        format=(formats.LIGHTNING if "pytorch-lightning_version" in content else found).name,
        settings=settings or _settings(content),
        folder=(path.parent if path.is_file() else path) if found in (formats.HUGGINGFACE, formats.SHARDED) else None,
        modules=modules,
        trust=level,
    )


def _without_modules(content: object) -> tuple[object, dict[str, nn.Module]]:
    """Replace modules, which only a trusted file yields, by their state_dicts; return them by location, too."""
    if isinstance(content, nn.Module):
        return dict(content.state_dict()), {ROOT: content}
    if not isinstance(content, Mapping):
        return content, {}
    modules = {key: value for key, value in content.items() if isinstance(value, nn.Module)}
    states = {key: dict(module.state_dict()) for key, module in modules.items()}
    return {**content, **states}, {str(key): module for key, module in modules.items()}


def _tensors(value: Any, levels: int = DEEPEST, known: dict[int, dict[Any, Any]] | None = None) -> Any:
    """Return the tables of a pickle with arrays of numbers as tensors; a table may hold itself, or another twice."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiubc":
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    if levels == 0 or not isinstance(value, dict):
        return value
    known = {} if known is None else known
    if id(value) not in known:
        made = known[id(value)] = {}
        made |= {key: _tensors(item, levels - 1, known) for key, item in value.items()}
    return known[id(value)]


def _settings(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the hyper-parameters that a training script left, as far as they are plain values."""
    found: dict[str, Any] = {}
    for key in SETTINGS:
        value = content.get(key)
        found |= value if isinstance(value, Mapping) else getattr(value, "__dict__", {})
    plain, room = {}, iter(range(10 * MOST_VALUES))
    for name, value in found.items():
        with contextlib.suppress(LoadError):  # a list that is too long takes no room from what follows
            plain[str(name)] = _plain(value, str(name), itertools.islice(room, MOST_VALUES))
    return plain


def _recorded(about: object, path: Path) -> Mapping[str, Any]:
    if not isinstance(about, Mapping) or "format_version" not in about:
        return {}
    version = about["format_version"]
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise LoadError(
            f"{path} has checkpoint format {version!r}; this gapscope reads up to {FORMAT_VERSION}. Upgrade gapscope."
        )
    for key, kind in _RECORDED_TYPES.items():
        value = about.get(key)
        if value is not None and not isinstance(value, kind):
            raise LoadError(
                f"{path} records `{key}` as {_described(value)}. Expected "
                f"{'a table' if kind is Mapping else 'a string'}. "
                "The file was not written by `gapscope.save_checkpoint`; save it again."
            )
        if isinstance(value, Mapping):
            _plain(value, key)
    return about


def _state_dicts(
    content: Mapping[Any, Any], location: str = "", depth: int = 0, room: list[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every mapping that is mostly named tensors; optimizers' and schedulers' are left out."""
    room = [MOST_NAMES] if room is None else room
    room[0] -= len(content)
    if room[0] < 0:
        raise LoadError(
            f"Its tables hold more than {MOST_NAMES:,} names, those that are shared counted wherever they are met. "
            "Expected a state_dict. Save that alone: `torch.save(model.state_dict(), path)`."
        )
    tensors = {key: v for key, v in content.items() if isinstance(v, Tensor) and isinstance(key, str)}
    ragged = next((key for key, tensor in tensors.items() if tensor.is_nested), None)
    if ragged is not None:
        raise LoadError(f"`{ragged}` is a nested tensor. Expected tensors of one shape each. Save its parts by name.")
    if len(tensors) > len(content) / 2:
        yield location or ROOT, tensors
    for key, value in content.items():
        if not isinstance(key, str) or depth > 3 or _NOT_WEIGHTS.search(key):
            continue
        at = f"{location}.{key}" if location else key
        if isinstance(value, Mapping):
            yield from _state_dicts(value, at, depth + 1, room)
        elif key == SHADOW and isinstance(value, list) and value and all(isinstance(v, Tensor) for v in value):
            yield at, {str(position): tensor for position, tensor in enumerate(value)}


def _training_hints(content: Mapping[str, Any], optimizer: Mapping[str, Any] | None) -> dict[str, Any]:
    """Collect batch_size, lr, epoch, ... from where training scripts usually leave them."""
    hints: dict[str, Any] = {}
    settings = [content[key] for key in SETTINGS if key in content]
    for source in [*(s if isinstance(s, Mapping) else getattr(s, "__dict__", {}) for s in settings), content]:
        hints |= {key: source[key] for key in _HINTS if isinstance(source.get(key), int | float)}
    groups = optimizer.get("param_groups") if optimizer else None
    if isinstance(groups, list) and groups and all(isinstance(group, Mapping) for group in groups):
        for key in _GROUP_HINTS:
            values = [group.get(key) for group in groups]
            if isinstance(values[0], int | float) and all(value == values[0] for value in values):
                hints[key] = values[0]
        if "nesterov" in groups[0] and "dampening" in groups[0]:
            hints["optimizer"] = "sgd"
    return hints


def _plain(value: Any, key: str, room: Iterator[int] | None = None, levels: int = DEEPEST) -> Any:
    """Return a copy made of plain types only, of as many values as there is room for, or say which key is not."""
    room = iter(range(MOST_VALUES)) if room is None else room
    if next(room, None) is None:
        raise LoadError(
            f"`{key[:60]}` lies in tables of more than {MOST_VALUES:,} values. Expected fewer, lists that are shared "
            "counted wherever they are met. Keep them in a file of their own."
        )
    if levels == 0:
        raise LoadError(
            f"`{key[:60]}...` is nested {DEEPEST} levels deep. Expected lists and tables of few levels. Flatten it."
        )
    if type(value) is int and value.bit_length() > _LONGEST:
        raise LoadError(
            f"`{key}` is an integer of {value.bit_length():,} bits. Expected at most {_LONGEST:,}, or no reader of "
            "weights takes the file. Give it as text."
        )
    if type(value) is str and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise LoadError(
            f"`{key}` holds half of a letter: {value[:40]!a}. Expected text that UTF-8 can write. Decode its bytes "
            'with `errors="replace"`.'
        )
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item, f"{key}[{i}]", room, levels - 1) for i, item in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {
            _plain(name, key, room): _plain(item, f"{key}.{name}", room, levels - 1) for name, item in value.items()
        }
    raise LoadError(
        f"`{key}` is {_described(value)}. Expected plain values only (text, numbers, true or false, lists and tables "
        "of them), so that the file loads without running code. Convert it, for example with `float(...)`."
    )


def _on_cpu(value: Any, key: str) -> Any:
    if isinstance(value, Tensor):
        tensor = value.detach().cpu()
        # a view would drag its whole storage into the file
        whole = tensor.layout != torch.strided or tensor.untyped_storage().nbytes() <= tensor.nbytes
        return tensor if whole else tensor.clone()
    if isinstance(value, Mapping):
        return {name: _on_cpu(item, f"{key}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_on_cpu(item, f"{key}[{i}]") for i, item in enumerate(value)]
    return _plain(value, key)


def _name_of(thing: object, key: str) -> str | None:
    """Return the name under which a later run will find a factory or loss."""
    if thing is None or isinstance(thing, str):
        return thing
    for name, builtin in NETWORKS.items():
        if thing is builtin:
            return name
    module, qualname = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or "<" in qualname or module == "__main__":
        where = f"{module}:{qualname}" if qualname else _described(thing)
        raise LoadError(
            f"`{key}` is `{where}`, which a later run cannot import. Expected a module-level function or class, "
            "or its name: `pkg.mod:attr` or `path/file.py:attr`."
        )
    return f"{module}:{qualname}"


def _described(value: object) -> str:
    return f"an object of class {type(value).__module__}.{type(value).__qualname__}"


def _write_atomically(path: Path, content: Mapping[str, Any]) -> None:
    try:
        with replacing(path) as file:
            torch.save(content, file)  # to a file object: by path the archive, and so the bytes, would hold its name
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UsageError(
            f"Cannot write {path}: {reason}. Choose a folder that exists, is writable and has room."
        ) from error
