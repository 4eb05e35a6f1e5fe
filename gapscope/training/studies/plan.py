"""What a study is asked to do: tables of a TOML file, checked against the study's dataclass.

Every plan has three tables: `full` is the paper's setting in kind and needs data of the user's, `quick` is for the
digits that come with gapscope and ends within minutes, and `smoke` shows that everything runs.
"""

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gapscope.errors import UsageError, did_you_mean

Size = int | str  # samples, or a share of the data: "10 %"
KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What every study is told: the network, the data, and how many seeds."""

    data: str
    model: str
    model_args: Mapping[str, Any] = field(default_factory=dict)
    seeds: int = 1


Some = TypeVar("Some", bound=Plan)


def read_plan(kind: type[Some], path: Path, table: str, changes: Mapping[str, Any]) -> Some:
    """Return one table of a TOML file as a plan, with the user's changes in place; the model's arguments add up.

    Raises: UsageError for a table or key that is not there, a value of another type, and for missing data.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}. Expected a plan. Mend `--plan`.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no TOML: {error}. Expected tables of a plan. Mend `--plan`.") from error
    if not isinstance(found.get(table), dict):
        raise UsageError(
            f"{path.name} has no table [{table}].{did_you_mean(table, found)} Expected it beside what is there: "
            f"{', '.join(found) or 'nothing'}. Write it, or ask for another table."
        )
    given = {**found[table], **changes}
    if "model" not in changes and isinstance(found[table].get("model_args"), dict):  # another model takes others
        given["model_args"] = found[table]["model_args"] | changes.get("model_args", {})
    hints = typing.get_type_hints(kind)
    values = {key: _checked(key, value, hints) for key, value in given.items()}
    _refuse_missing(kind, values)
    plan = kind(**values)
    if plan.seeds < 1:
        raise UsageError(f"There are {plan.seeds} seeds. Expected 1 or more. Mend `--seeds`.")
    return plan


def _checked(key: str, value: Any, hints: Mapping[str, Any]) -> Any:
    """Return a value as its field has it; raises UsageError for a key without a field and for a wrong type."""
    if key not in hints:
        raise UsageError(
            f"A plan of this study has no `{key}`.{did_you_mean(key, hints)} Expected one of {', '.join(hints)}. Mend "
            "the plan, or `--set`."
        )
    frozen = _frozen(value)
    if not _fits(frozen, hints[key]):
        raise UsageError(f"`{key}` is {value!r}. Expected {_words(hints[key])}. Mend the plan, or `--set {key}=...`.")
    return float(frozen) if hints[key] is float else frozen  # 1 and 1.0 make one run


def _refuse_missing(kind: type[Plan], values: Mapping[str, Any]) -> None:
    absent = [
        one.name
        for one in dataclasses.fields(kind)
        if one.name not in values and one.default is one.default_factory is dataclasses.MISSING
    ]
    if "data" in absent:
        raise UsageError(
            "This plan is for data of your own, and names none. Expected `--data`. Name them, or take the digits that "
            "come with gapscope: `--quick`."
        )
    if absent:
        raise UsageError(
            f"The plan lacks {', '.join(absent)}. Expected all of the study's keys. Write them, or `--set KEY=VALUE`."
        )


def _frozen(value: Any) -> Any:
    """Return lists as tuples, at any depth; what is in a table is for others, and stays as it is."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _fits(value: Any, wanted: Any) -> bool:
    """Say whether a value of a TOML file has the type of a field; whole numbers are numbers."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is types.UnionType:
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return value in inner
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(one, inner[0]) for one in value)
    if origin is Mapping:
        return isinstance(value, Mapping) and all(_fits(one, inner[1]) for one in value.values())
    return wanted is Any or type(value) is wanted or (wanted is float and type(value) is int)


def _words(wanted: Any) -> str:
    """Return what a field takes, in words."""
    origin, inner = typing.get_origin(wanted), typing.get_args(wanted)
    if origin is types.UnionType:
        return " or ".join(_words(one) for one in inner if one is not types.NoneType)
    if origin is typing.Literal:
        return " or ".join(f'"{one}"' for one in inner)
    if origin is tuple:
        return f"a list, each {_words(inner[0])}"
    return KINDS.get(wanted, "a table")


def batch(size: Size, samples: int) -> int:
    """Return a batch size: as it is, or "10 %" of the samples.

    Raises: UsageError where it is neither, or not within the data.
    """
    text = str(size).strip()
    try:
        count = round(float(text.removesuffix("%")) / 100 * samples) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):  # "inf %"
        count = 0
    if not 1 <= count <= samples:
        raise UsageError(
            f"The batch size is `{size}` of {samples:,} samples. Expected 1 to {samples:,}, or a share such as "
            '"10 %". Mend the plan.'
        )
    return count
