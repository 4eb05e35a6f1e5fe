"""From the fields of a frozen dataclass to command-line options, and back to an instance.

A field `Annotated[type, "help"]` is one option, one environment variable and one key of gapscope.toml;
a second string in the annotation is its short flag.
"""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

METAVARS: dict[Any, str] = {str: "TEXT", int: "INT", float: "NUMBER", Path: "PATH"}


def options(
    cls: type[Any], prefix: str = "GAPSCOPE", *, without: tuple[str, ...] = (), say: Mapping[str, str] | None = None
) -> list[inspect.Parameter]:
    """Return one keyword parameter, as Typer reads them, for each field of a dataclass; `say` replaces helps."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        if field.name in without:
            continue
        _, help_text, *short = typing.get_args(hints[field.name])
        help_text = (say or {}).get(field.name, help_text)
        kind, default = element(cls, field.name), field.default
        base: Any = kind
        if isinstance(default, tuple):
            base, default = list[kind], list(default)  # type: ignore[valid-type]
            help_text += "" if "repeatable" in help_text else ", repeatable"
        elif default is None:
            base = kind | None
        name = "--" + field.name.replace("_", "-")
        option = typer.Option(
            f"{name}/--no-{name[2:]}" if default is True else name,
            *short,
            help=help_text,
            metavar=METAVARS.get(kind),
            envvar=f"{prefix}_{field.name.upper()}",
            show_envvar=False,
            show_default=default is not None and default is not False and default != [],
        )
        annotation: Any = Annotated[base, option]
        found.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        )
    return found


def element(cls: type[Any], name: str) -> Any:
    """Return what one value of a field is: str, int, float, bool, Path or a Literal; of a list, one entry."""
    kind = typing.get_args(typing.get_type_hints(cls, include_extras=True)[name])[0]
    if typing.get_origin(kind) is tuple:
        return typing.get_args(kind)[0]
    if isinstance(kind, types.UnionType):
        return next(part for part in typing.get_args(kind) if part is not type(None))
    return kind


def misfit(cls: type[Any], name: str, value: Any) -> str:
    """Return what a configuration file should hold for a field, or an empty string if `value` is that."""
    kind, default = element(cls, name), next(f.default for f in dataclasses.fields(cls) if f.name == name)
    if isinstance(default, tuple):
        fits = isinstance(value, list) and all(_is(entry, kind) for entry in value)
        return "" if fits else f"a list, like [{_example(kind)}]"
    return "" if _is(value, kind) else _example(kind)


def _is(value: Any, kind: Any) -> bool:
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    accepted = {bool: bool, int: int, float: int | float, Path: str}.get(kind, str | int)
    return isinstance(value, accepted) and isinstance(value, bool) == (kind is bool)


def _example(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(kind))
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(kind, '"text"')


def build(cls: type[Any], values: Mapping[str, Any]) -> Any:
    """Return an instance from parsed options; lists become tuples, and what is missing keeps its default."""
    names = {field.name for field in dataclasses.fields(cls)}
    return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names})


def command(
    name: str, summary: str, parameters: list[inspect.Parameter], run: Callable[..., int | None]
) -> Callable[..., int | None]:
    """Return a function that Typer reads as a command with these parameters."""

    def body(**values: Any) -> int | None:
        return run(**values)

    body.__name__ = name.replace("-", "_")
    body.__doc__ = summary
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__annotations__ = {p.name: p.annotation for p in parameters}
    return body


def headline(summary: str | None) -> str:
    """Return the first clause of a help text: what fits on one line of the list of commands."""
    first = " ".join((summary or "").strip().split("\n\n")[0].split())
    return re.split(r"[,:;.](?:\s|$)", first)[0] + "." * bool(first)
