"""From a name and arguments to a model: `mlp`, `hf`, `timm:NAME`, `pkg.mod:attr`, `path/file.py:attr`, ..."""

import datetime
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from gapscope.errors import GapscopeError, LoadError, UsageError, did_you_mean
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.loading.sources import LIBRARIES, named_source
from gapscope.measure.loading.trust import (
    Trust,
    check_recorded,
    importable,
    one_line,
    resolve,
    resolve_recorded,
    signature,
)


def build_model(
    spec: str, args: Mapping[str, Any], *, recorded: bool, trust: Trust, folder: Path | None = None
) -> tuple[nn.Module, str]:
    """Return a freshly initialised model and its name; `recorded` names come from a checkpoint, so are untrusted.

    `folder` is the checkpoint's own, whose config.json `hf` reads.
    """
    factory = find_factory(spec, recorded=recorded, trust=trust, folder=folder)
    parameters = signature(factory)
    if parameters is not None:
        try:
            parameters.bind(**args)
        except TypeError as error:
            raise LoadError(_wrong_arguments(spec, args, list(parameters.parameters.values()), error)) from None
    try:
        with importable(spec):
            model = factory(**args)
    except GapscopeError:
        raise
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in args.items())
        raise LoadError(
            f"`{spec}` called with ({given}) raised {one_line(error)}. Check its arguments: `-a NAME=VALUE`."
        ) from error
    if not isinstance(model, nn.Module):
        raise LoadError(
            f"`{spec}` returned {type(model).__name__}. Expected a `torch.nn.Module`; name the model's class or "
            "factory."
        )
    return model, spec


def find_factory(spec: str, *, recorded: bool, trust: Trust, folder: Path | None = None) -> Callable[..., object]:
    """Return the class or function behind a model's name."""
    if spec.partition(":")[0] in LIBRARIES:
        if recorded:
            check_recorded(spec, kind="model", trust=trust)
        found: object = named_source(spec, folder)
    elif recorded:
        found = resolve_recorded(spec, kind="model", builtins=NETWORKS, trust=trust)
    elif spec in NETWORKS:
        found = NETWORKS[spec]
    elif ":" in spec:
        found = resolve(spec)
    else:
        raise LoadError(
            f"There is no built-in model `{spec}`.{did_you_mean(spec, NETWORKS)} "
            f"Expected one of {', '.join(NETWORKS)}, or `hf`, `timm:NAME`, `torchvision:NAME`, `pkg.mod:attr` or "
            "`path/file.py:attr`."
        )
    if isinstance(found, nn.Module) or not callable(found):
        raise LoadError(
            f"`{spec}` is an object of class {type(found).__name__}. Expected a class or function that returns "
            "a new model."
        )
    return found


def all_arguments(factory: Callable[..., object], args: Mapping[str, Any]) -> dict[str, Any]:
    """Return the given arguments and the factory's defaults."""
    known = signature(factory)
    defaults = {p.name: p.default for p in known.parameters.values() if p.default is not p.empty} if known else {}
    return defaults | dict(args)


def parse_args(texts: Sequence[str], flag: str = "-a") -> dict[str, Any]:
    """Read `NAME=VALUE` pairs; values are TOML, and a bare word is a string."""
    args: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise UsageError(
                f"`{flag} {text}` is no argument. Expected `{flag} NAME=VALUE`, for example `{flag} hidden=[32]`."
            )
        args[name] = _toml_value(value.strip(), f"{flag} {text}")
    return args


def _toml_value(value: str, text: str) -> Any:
    if value in ("True", "False"):
        raise UsageError(f"`{text}` is Python's spelling. Write `{text.replace(value, value.lower())}`.")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):  # of too long a number or too deep a list, tomllib raises Python's own errors
        parsed = {}
    if list(parsed) == ["value"] and not isinstance(parsed["value"], datetime.date | datetime.time):
        return parsed["value"]
    if re.fullmatch(r"[\w./:+-]+", value):
        return value
    raise UsageError(
        f"`{text}`: {value!r} is not a TOML value. Expected a number, true, false, [1, 2], or a word; quote other text."
    )


def _wrong_arguments(spec: str, args: Mapping[str, Any], parameters: list[Any], error: TypeError) -> str:
    names = [p.name for p in parameters]
    unknown = [name for name in args if name not in names]
    hint = did_you_mean(unknown[0], names) if unknown else ""
    shown = ", ".join(str(p) for p in parameters) or "no arguments"
    return (
        f"`{spec}`: {error}.{hint} It takes {shown}. Set them with `-a NAME=VALUE`; where one is an object, name a "
        "function that makes the model with it: `-m path/file.py:function`."
    )
