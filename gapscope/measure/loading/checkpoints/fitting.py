"""Put a checkpoint's weights into a model, whatever wrappers wrote their names; nothing is chosen silently."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.checkpoints.checkpoint import ROOT, SHADOW, Checkpoint
from gapscope.measure.loading.checkpoints.pickles import dense
from gapscope.measure.loading.trust import one_line

# DataParallel and AveragedModel, torch.compile, FSDP, activation checkpointing: also in the middle of a name
_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_PREFERRED = (ROOT, "model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "params")
_AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|averaged|average|shadow|teacher|target)", re.IGNORECASE)


@dataclass(frozen=True)
class Fit:
    """Where the loaded weights were found, and what was decided on the way."""

    key: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Option:
    """One state_dict under one prefix, renamed to the model's own names."""

    source: str  # of the state_dict; the location is below it where names have a prefix
    location: str
    tensors: Mapping[str, Tensor]
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]
    outside: int  # tensors that do not start with the prefix
    averaged: bool
    remarks: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.mismatched)

    @property
    def rank(self) -> tuple[bool, int]:
        first = self.location.split(".")[0]
        return self.averaged, _PREFERRED.index(first) if first in _PREFERRED else len(_PREFERRED)


def fit(
    checkpoint: Checkpoint,
    model: nn.Module,
    model_name: str,
    model_args: Mapping[str, Any],
    weights: str | None = None,
) -> Fit:
    """Load the state_dict that fits the model, strictly; unless `weights` says otherwise, raw before averaged ones.

    `weights` is `raw`, `ema` or a location; `model_args` are all of the factory's arguments, defaults included: a
    mismatch names the one to change.
    """
    state = model.state_dict()
    twins = _twins(model)
    options = [option for at, tensors in checkpoint.tensors.items() for option in _options(at, tensors, state, twins)]
    options += [shadow for at in checkpoint.tensors if (shadow := _shadow(at, checkpoint, model, options, twins))]
    options = [_with_buffers(option, model, options) for option in options]
    options = sorted(_asked(checkpoint, options, weights), key=lambda option: option.rank)
    fitting = [option for option in options if option.fits]
    if not fitting:
        best = max(options, key=lambda option: len(option.tensors), default=None)
        raise LoadError(_why_not(checkpoint, best, state, model_name, model_args, weights))
    chosen = fitting[0]
    _refuse_untied(checkpoint, chosen, twins, model_name)
    try:
        model.load_state_dict({name: _dense(tensor) for name, tensor in chosen.tensors.items()}, strict=True)
    except (RuntimeError, NotImplementedError) as error:
        raise LoadError(
            f"{checkpoint.name}: the weights under `{chosen.location}` cannot be loaded into `{model_name}`: "
            f"{one_line(error)}. Expected dense tensors of the model's shapes; save `model.state_dict()` "
            "unquantized."
        ) from error
    return Fit(chosen.location, _notes(chosen, fitting[1:], state, asked=weights is not None))


def held(checkpoint: Checkpoint, weights: str | None = None) -> Fit | None:
    """Return which of the modules in a trusted file to measure, by the rules of `fit`; None where it holds no model.

    A module without parameters, such as a criterion, is none.
    """
    modules = {key: module for key, module in checkpoint.modules.items() if any(True for _ in module.parameters())}
    if not modules:
        return None
    states = {key: module.state_dict() for key, module in modules.items()}
    options = [_Option(key, key, state, [], [], [], 0, is_averaged(key, state)) for key, state in states.items()]
    asked = _asked(replace(checkpoint, tensors=states), options, weights)
    chosen, *others = sorted(asked, key=lambda option: option.rank)
    different = [other.location for other in others if weights is None and not _equal(chosen, other)]
    if different:
        note = f"weights: `{chosen.location}`; the file also holds {_quoted(different)}: choose with `--weights KEY`"
        return Fit(chosen.location, (note,))
    return Fit(chosen.location, _notes(chosen, [], chosen.tensors, asked=weights is not None))


def places(checkpoint: Checkpoint, model: nn.Module) -> list[str]:
    """Return where in a file names and shapes of all of a model's tensors are; values are not looked at."""
    state, twins = model.state_dict(), _twins(model)
    options = [option for at, tensors in checkpoint.tensors.items() for option in _options(at, tensors, state, twins)]
    return [option.location for option in sorted(options, key=lambda option: option.rank) if option.fits]


def _asked(checkpoint: Checkpoint, options: list[_Option], weights: str | None) -> list[_Option]:
    """Return the options that the user's choice leaves; a location in the file goes before the words raw and ema."""
    known = list(dict.fromkeys([*checkpoint.tensors, *(option.location for option in options)]))
    if weights is None:
        return options
    if weights in known:
        return [option for option in options if weights in (option.source, option.location)]
    if weights not in ("raw", "ema"):
        raise LoadError(
            f"{checkpoint.name} has no weights under `{weights}`.{did_you_mean(weights, known)} Expected raw, ema or "
            f"one of {_quoted(known)}. Mend `--weights`."
        )
    kept = [option for option in options if option.averaged == (weights == "ema")]
    if not kept:
        kind = "averaged" if weights == "ema" else "raw"
        raise LoadError(
            f"{checkpoint.name} holds no {kind} weights that this model knows. Expected one of {_quoted(known)}. "
            "Name it: `--weights KEY`."
        )
    return kept


def _quoted(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(f"`{name}`" for name in names[:8]) + (", ..." if len(names) > 8 else "")


def _twins(model: nn.Module) -> Mapping[str, Sequence[str]]:
    """Return, for every name of a tied parameter, the names that it shares it with."""
    shared: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(name)
    return {name: names for names in shared.values() if len(names) > 1 for name in names}


def _refuse_untied(
    checkpoint: Checkpoint, chosen: _Option, twins: Mapping[str, Sequence[str]], model_name: str
) -> None:
    """Refuse weights that differ where the model has one parameter: the last of them would silently win."""
    for name, names in twins.items():
        mine, other = chosen.tensors.get(names[0]), chosen.tensors.get(name)
        if mine is not None and other is not None and not _same_values(mine, other):
            raise LoadError(
                f"{checkpoint.name} has different values for `{names[0]}` and `{name}`, which are one parameter of "
                f"`{model_name}`. Expected equal ones. Give the model that was trained, with the two untied."
            )


def _shadow(
    at: str, checkpoint: Checkpoint, model: nn.Module, options: Sequence[_Option], twins: Mapping[str, Sequence[str]]
) -> _Option | None:
    """Return a list of averaged parameters under the names that they have by their order; buffers are the raw ones."""
    if at.rpartition(".")[2] != SHADOW:
        return None
    listed, state = list(checkpoint.tensors[at].values()), model.state_dict()
    raw = next((option for option in options if option.fits and not option.averaged), None)
    for trainable in (False, True):
        named = {name: p for name, p in model.named_parameters() if p.requires_grad or not trainable}
        if [p.shape for p in named.values()] == [tensor.shape for tensor in listed]:
            averages = dict(zip(named, listed, strict=True))
            tied = {twin: averages[name] for name in named for twin in twins.get(name, ()) if twin in state}
            tensors = {**(raw.tensors if raw else {}), **averages, **tied}
            missing = [name for name in state if name not in tensors]
            return _Option(at, at, tensors, missing, [], [], 0, True, ("weights: named by their order in the model",))
    return None


def _with_buffers(option: _Option, model: nn.Module, options: Sequence[_Option]) -> _Option:
    """Complete an average of the parameters alone by the buffers of the raw weights, as its maker had them."""
    buffers = {name for name, _ in model.named_buffers()}
    raw = next((other for other in options if other.fits and not other.averaged), None)
    if raw is None or not option.averaged or not option.missing or not buffers.issuperset(option.missing):
        return option
    remark = f"weights: `{option.missing[0]}` and other buffers are those of `{raw.location}`: not in the average"
    filled = {name: raw.tensors[name] for name in option.missing}
    return replace(option, tensors={**option.tensors, **filled}, missing=[], remarks=(*option.remarks, remark))


def _options(
    location: str, tensors: Mapping[str, Tensor], state: Mapping[str, Tensor], twins: Mapping[str, Sequence[str]]
) -> list[_Option]:
    """Return one option per prefix under which at least one of the model's names is found."""
    clean = {_unwrapped(name): tensor for name, tensor in tensors.items() if name != "n_averaged"}
    names = {_unwrapped(name): name for name in state}
    if set(tensors) == set(state) or len(clean) < len(tensors.keys() - {"n_averaged"}) or len(names) < len(state):
        clean, names = dict(tensors), {name: name for name in state}  # `module` is this model's own word
    old, own_old = _weight_normed(clean), _weight_normed(names)
    clean = {old.get(name, name): tensor for name, tensor in clean.items()}
    names = {own_old.get(name, name): own for name, own in names.items()}
    renamed = ("weights: weight_norm's names were translated",) if bool(old) != bool(own_old) else ()
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in clean.items():
        parts = name.split(".")
        for i in range(len(parts)):
            if (short := ".".join(parts[i:])) in names:
                found.setdefault(name[: len(name) - len(short)], {})[names[short]] = tensor
    whole = {prefix for prefix, matched in found.items() if len(matched) == len(state)}
    averaged = is_averaged(location, tensors)
    options = []
    for prefix, matched in found.items():
        inside = [name for name in clean if name.startswith(prefix)]
        others = tuple(other for other in whole if other != prefix and other.startswith(prefix))
        tied = {n: twin for n in state if n not in matched for twin in twins.get(n, ()) if twin in matched}
        options.append(
            _Option(
                source=location,
                location=location if not prefix else f"{location}.{prefix[:-1]}".removeprefix(f"{ROOT}."),
                tensors={**matched, **{name: matched[twin] for name, twin in tied.items()}},
                # torch itself fills this counter in, as for files from before it existed
                missing=[
                    n for n in state if n not in matched and n not in tied and not n.endswith("num_batches_tracked")
                ],
                unexpected=[n for n in inside if n[len(prefix) :] not in names and not n.startswith(others)],
                mismatched=[n for n, tensor in matched.items() if not _same_shape(tensor, state[n])],
                outside=len(clean) - len(inside),
                averaged=averaged or bool(_AVERAGED.search(prefix)),
                remarks=(
                    *renamed,
                    *(f"weights: `{n}` is not in the file; the model ties it to `{twin}`" for n, twin in tied.items()),
                ),
            )
        )
    return options


def _weight_normed(names: Iterable[str]) -> dict[str, str]:
    """Return the present names of weight_norm's parameters for the old ones, `weight_g` and `weight_v`."""
    known = set(names)
    stems = {name[:-2] for name in known if name.endswith("_g")} & {name[:-2] for name in known if name.endswith("_v")}
    present = {}
    for stem in stems - known:
        module, dot, parameter = stem.rpartition(".")
        for ending, part in (("_g", "original0"), ("_v", "original1")):
            present[stem + ending] = f"{module}{dot}parametrizations.{parameter}.{part}"
    return present


def is_averaged(location: str, names: Iterable[str]) -> bool:
    """Return whether a state_dict is an average over training, by its place or by AveragedModel's counter."""
    return bool(_AVERAGED.search(location)) or "n_averaged" in names


def wrappers(names: Iterable[str]) -> set[str]:
    """Return the wrappers' words in the names of a state_dict."""
    return {part for name in names for part in name.split(".")} & _WRAPPERS


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _same_shape(stored: Tensor, own: Tensor) -> bool:
    return is_lazy(own) or (stored.shape == own.shape and (own.is_complex() or not stored.is_complex()))


def _dense(tensor: Tensor) -> Tensor:
    return dense(tensor.dequantize() if tensor.is_quantized else tensor)


def _same_values(one: Tensor, other: Tensor) -> bool:
    """Return whether all numbers are equal; NaN, as of a run that diverged, is NaN."""
    a, b = _dense(one), _dense(other)
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _notes(chosen: _Option, others: list[_Option], state: Mapping[str, Tensor], *, asked: bool) -> tuple[str, ...]:
    notes = list(chosen.remarks)
    different = [other.location for other in others if not asked and not _equal(chosen, other)]
    if different:
        notes.append(
            f"weights: `{chosen.location}`; {', '.join(f'`{at}`' for at in different)} would fit too and differ"
        )
    elif chosen.averaged:
        alone = "" if asked else ", the only ones that fit"
        notes.append(f"weights: `{chosen.location}`, an average over training{alone}")
    elif chosen.location not in (ROOT, "model"):
        notes.append(f"weights: `{chosen.location}`")
    if chosen.outside and not different:
        notes.append(f"weights: {chosen.outside} tensors outside `{chosen.location}` were left out")
    pairs = {(t.dtype, state[n].dtype) for n, t in chosen.tensors.items() if t.dtype != state[n].dtype}
    for stored, own in sorted(pairs, key=str):
        notes.append(f"weights: stored as {str(stored)[6:]}, loaded into {str(own)[6:]}")
    return tuple(notes)


def _equal(one: _Option, other: _Option) -> bool:
    pairs = ((tensor, other.tensors.get(name)) for name, tensor in one.tensors.items())
    return all(b is not None and a.dtype == b.dtype and _same_values(a, b) for a, b in pairs)


def _why_not(
    checkpoint: Checkpoint,
    best: _Option | None,
    state: Mapping[str, Tensor],
    model_name: str,
    model_args: Mapping[str, Any],
    weights: str | None,
) -> str:
    where = f"{checkpoint.name} does not fit `{model_name}`"
    held = [name for tensors in checkpoint.tensors.values() for name in tensors]
    if all("lora_" in name for name in held):
        return (
            f"{where}: it holds {len(held)} tensors of LoRA adapters and no weights of the model below them. Expected "
            "all weights. Merge them where it was trained: `model.merge_and_unload().save_pretrained(FOLDER)`."
        )
    if best is None:
        location = weights or next(iter(checkpoint.tensors))  # what is asked for and has no option is a key
        tensors = checkpoint.tensors[location]
        theirs = ", ".join(f"`{name}` {tuple(t.shape)}" for name, t in list(tensors.items())[:3])
        ours = ", ".join(f"`{name}`" for name in list(state)[:3]) or "no parameters"
        return (
            f"{where}: no name agrees. Under `{location}` it holds {theirs}, ...; the model has {ours}, .... "
            "Expected another architecture: name it with `-m pkg.mod:factory` or `-m path/file.py:factory`."
        )
    if best.mismatched:
        name = best.mismatched[0]
        more = f" (and {len(best.mismatched) - 1} more)" if len(best.mismatched) > 1 else ""
        # a missing or extra layer means another number of sizes, which no single change repairs
        guess = "" if best.missing or best.unexpected else _guess(best, state, model_args)
        more += f"; it lacks `{best.missing[0]}`" if best.missing else ""
        more += f"; it also has `{best.unexpected[0]}`" if best.unexpected else ""
        return (
            f"{where}: `{name}` is {tuple(best.tensors[name].shape)} in the checkpoint and {tuple(state[name].shape)} "
            f"in the model{more}. "
            + (f"Try `{guess}`." if guess else "Expected the arguments it was trained with: `-a NAME=VALUE`.")
        )
    kind, names = ("lacks", best.missing) if best.missing else ("also has", best.unexpected)
    shown = ", ".join(f"`{name}`" for name in names[:5]) + (", ..." if len(names) > 5 else "")
    tensors_word = "tensor" if len(names) == 1 else "tensors"
    return (
        f"{where}: it {kind} {len(names)} {tensors_word} ({shown}). Expected exactly the names of the model's "
        "state_dict. Check its arguments (`-a NAME=VALUE`), or name another model: `-m pkg.mod:factory`."
    )


def _guess(option: _Option, state: Mapping[str, Tensor], model_args: Mapping[str, Any]) -> str:
    """Find the arguments whose values are the model's sizes wherever the checkpoint has other ones, fewest first."""
    pairs = [
        pair
        for name in option.mismatched
        for pair in zip(option.tensors[name].shape, state[name].shape, strict=False)
        if pair[0] != pair[1]
    ]
    changes = []
    while pairs:
        votes: dict[str, list[tuple[int, int]]] = {}
        for theirs, ours in pairs:
            for argument, value in model_args.items():
                if type(value) is int and value == ours:
                    text = f"-a {argument}={theirs}"
                elif isinstance(value, list | tuple) and ours in value:
                    new = list(value)
                    new[new.index(ours)] = theirs
                    text = f"-a {argument}={new}".replace(" ", "").replace("-a", "-a ")
                else:
                    continue
                votes.setdefault(text, []).append((theirs, ours))
        if not votes:
            break
        best = max(votes, key=lambda text: len(votes[text]))
        changes.append(best)
        argument = best.partition("=")[0].removeprefix("-a ")
        model_args = {key: value for key, value in model_args.items() if key != argument}
        pairs = [pair for pair in pairs if pair not in votes[best]]
    return " ".join(changes)
