"""What a file is and holds, found without running anything from it and without its numbers where a header tells."""

import collections
import math
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints import formats
from gapscope.measure.loading.checkpoints.checkpoint import ROOT, Checkpoint, read_checkpoint
from gapscope.measure.loading.checkpoints.distributed import ADMITTED
from gapscope.measure.loading.checkpoints.fitting import is_averaged, places, wrappers
from gapscope.measure.loading.checkpoints.formats import Format, sniff
from gapscope.measure.loading.checkpoints.pickles import PLAIN, dtype_of
from gapscope.measure.loading.checkpoints.torchfile import NOTHING_RUNS, digest_file, pickled_names
from gapscope.measure.loading.datasets.data import BUILT_IN
from gapscope.measure.loading.losses import LOSSES
from gapscope.measure.loading.networks import NETWORKS, arguments
from gapscope.measure.loading.trust import FLAGS, HARMLESS, Trust, is_dangerous

_PROGRAMS = (formats.TORCHSCRIPT, formats.EXPORTED)


@dataclass(frozen=True)
class Weights:
    """One candidate state_dict; `key` is what `--weights` takes."""

    key: str
    tensors: int
    numbers: int
    types: Mapping[str, int]  # numbers by dtype
    averaged: bool
    wrappers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Everything that can be said about a file."""

    path: Path
    format: str
    bytes: int
    sha256: str = ""
    weights: tuple[Weights, ...] = ()
    names: tuple[str, ...] = ()  # what its pickles name beyond plain tensors
    trust: str = NOTHING_RUNS
    recorded: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    optimizer: bool = False
    models: tuple[str, ...] = ()  # what to type: `-m mlp -a hidden=[32]`
    refusal: str = ""  # what reading said, where it failed
    next: str = ""  # the command to type; none where nothing helps


def inspect(path: Path) -> Inspection:
    """Look at a file or folder.

    Raises: LoadError only where there is nothing to look at.
    """
    found = sniff(path)
    names = _names(path, found)
    size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [path]) if file.is_file())
    about = {"path": path, "bytes": size, "names": names}
    try:
        checkpoint = read_checkpoint(path, Trust(), values=False)
    except LoadError as error:
        trust, step = _needed(path, found, names)
        found = formats.MODULE if any(name.startswith("torch.nn.modules.") for name in names) else found
        digest = "" if path.is_dir() else digest_file(path)
        return Inspection(format=found.name, sha256=digest, trust=trust, refusal=str(error), next=step, **about)  # type: ignore[arg-type]
    weights = tuple(_weights(key, tensors) for key, tensors in _candidates(checkpoint.tensors))
    models = tuple(_models(checkpoint))
    return Inspection(
        format=checkpoint.format,
        sha256=checkpoint.sha256,
        weights=weights,
        trust=NOTHING_RUNS
        if found is not formats.EXPORTED
        else f"{NOTHING_RUNS}; --trust-file to measure the program itself",
        recorded={key: value for key, value in checkpoint.recorded.items() if value is not None},
        settings=checkpoint.settings,
        training=checkpoint.training,
        optimizer=checkpoint.optimizer is not None,
        models=models,
        next=_next(path, checkpoint, models),
        **about,  # type: ignore[arg-type]
    )


def _names(path: Path, found: Format) -> tuple[str, ...]:
    """Return the names of classes and functions in the pickles of a file that plain tensors do not need."""
    if found is formats.DISTRIBUTED:
        named, plain = pickled_names(path / ".metadata", formats.PICKLE), ADMITTED | {"torch.Size"}
    elif found in (formats.TORCH, formats.LEGACY, formats.PICKLE, formats.TORCHSCRIPT):
        named, plain = pickled_names(path, found), PLAIN.union(name for _, name in HARMLESS)
    else:
        return ()
    named = {name.replace("__builtin__.", "builtins.") for name in named}  # as protocol 2 spells it
    own = {name for name in named if re.fullmatch(r"torch\.\w+Storage|__torch__\..*", name) or dtype_of(name)}
    return tuple(sorted(named - plain - own))


def _needed(path: Path, found: Format, names: Sequence[str]) -> tuple[str, str]:
    """Return what the user would have to trust for a file that was refused, and the command that does."""
    if not names:
        return NOTHING_RUNS, ""
    if any(map(is_dangerous, names)):
        return "none is enough: it names what runs commands", ""
    if found in _PROGRAMS or any(name.startswith(("torch.nn.", "torch.fx.", "__main__.")) for name in names):
        return "--trust-file: it runs code of its maker", _command(path, "--trust-file -d DATA")
    flags = " ".join(f"--allow-global {shlex.quote(name)}" for name in names)
    return f"{flags}: classes of its maker", _command(path, f"{flags} -m path/file.py:factory -d DATA")


def _candidates(tensors: Mapping[str, dict[str, Tensor]]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield every state_dict, and below it the parts that hold the same names, such as `model` and `ema_model`."""
    for key, state in tensors.items():
        yield key, state
        parts: dict[str, dict[str, Tensor]] = collections.defaultdict(dict)
        for name, tensor in state.items():
            head, _, rest = name.partition(".")
            parts[head][rest] = tensor
        alike: dict[frozenset[tuple[str, torch.Size]], list[str]] = collections.defaultdict(list)
        for head, part in parts.items():
            if len(part) > 1:
                alike[frozenset((name, tensor.shape) for name, tensor in part.items())].append(head)
        for heads in alike.values():
            if len(heads) > 1 and any(is_averaged(head, ()) for head in heads):
                yield from ((f"{key}.{head}".removeprefix(f"{ROOT}."), parts[head]) for head in heads)


def _weights(key: str, state: Mapping[str, Tensor]) -> Weights:
    types: collections.Counter[str] = collections.Counter()
    for tensor in state.values():
        types[str(tensor.dtype).removeprefix("torch.")] += math.prod(tensor.shape)
    averaged = is_averaged(key, state)
    return Weights(key, len(state), types.total(), dict(types), averaged, tuple(sorted(wrappers(state))))


def _models(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the models that names and shapes allow, as options of the command line, best known first."""
    if "factory" in checkpoint.recorded:
        return
    if checkpoint.folder is not None and checkpoint.settings.get("architectures"):
        yield "-m hf"
    shapes = {name: tuple(t.shape) for state in checkpoint.tensors.values() for name, t in state.items()}
    for network, build in NETWORKS.items():
        try:
            args = arguments(network, shapes)
            with torch.device("meta"):
                model = build(**args)
            fits = places(checkpoint, model)
        except (LoadError, RuntimeError, ValueError, TypeError, IndexError, KeyError):  # sizes that make no network
            continue
        if fits:
            given = "".join(f" -a {name}={value}".replace(", ", ",") for name, value in args.items())
            yield f"-m {network}{given}"  # digits and brackets alone: nothing to quote


def named(model: str | None = None, data: str | None = None, loss: str | None = None) -> list[str]:
    """Return the options that name again what a checkpoint records and gapscope does not open on its word alone."""
    kinds = (("model", model, NETWORKS), ("data", data, BUILT_IN), ("loss", loss, LOSSES))
    return [
        f"{FLAGS[kind]} {'NAME' if is_dangerous(name.replace(':', '.')) else shlex.quote(name)}"
        for kind, name, known in kinds
        if name and (name if kind == "model" else name.partition(":")[0]) not in known
    ]


def _next(path: Path, checkpoint: Checkpoint, models: Sequence[str]) -> str:
    """Return the command that measures the file."""
    factory, data, loss = (checkpoint.recorded.get(key) for key in ("factory", "data", "loss"))
    missing = "" if data else "-d DATA"
    if factory:
        return _command(path, *named(factory, data, loss), missing)
    kind = "LightningClass" if checkpoint.format == formats.LIGHTNING.name else "factory"
    return _command(path, models[0] if models else f"-m path/file.py:{kind}", *named(None, data, loss), missing)


def _command(path: Path, *options: str) -> str:
    """Return a command to copy: quoted, for the name of a file may hold anything."""
    return " ".join(["gapscope sharpness", shlex.quote(str(path)), *filter(None, options)])
