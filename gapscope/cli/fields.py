"""From the fields of a frozen dataclass to command-line options, and back to an instance.

A field `Annotated[type, "help"]` is one option, one environment variable and one key of gapscope.toml;
a second string in the annotation is its short flag.
"""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer


def options(cls: type[Any], prefix: str = "GAPSCOPE") -> list[inspect.Parameter]:
    """Return one keyword parameter, as Typer reads them, for each field of a dataclass."""
    hints = typing.get_type_hints(cls, include_extras=True)
    found = []
    for field in dataclasses.fields(cls):
        base, help_text, *short = typing.get_args(hints[field.name])
        default = field.default
        if typing.get_origin(base) is tuple:
            base = list[typing.get_args(base)[0]]  # type: ignore[misc]
            default = list(typing.cast(tuple[Any, ...], default))
        elif isinstance(base, types.UnionType):
            base = base.__args__[0] | None
        flag = "--" + field.name.replace("_", "-")
        option = typer.Option(
            flag, *short, help=help_text, envvar=f"{prefix}_{field.name.upper()}", show_envvar=False, show_default=default not in (None, [], False)
        )
        found.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[base, option])
        )
    return found


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
