"""What a gate demands: limits on quantities, named as rows of a comparison are, and what of a report they select.

A selector is `analyzer/quantity` or `analyzer/quantity[labels]`; `*` and `?` stand for any text and any character, in
every part.  Without labels it selects every element of an array; labels that are left out at the end match all:
`near-rank/near_rank[fc1]` selects every cut of the layer fc1.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gapscope.errors import UsageError, did_you_mean
from gapscope.report.figures import number
from gapscope.report.records import Record, Report
from gapscope.report.titles import title
from gapscope.results import Quantity

Level = Literal["error", "warn"]
Claim = Literal["data", "population"]
RELATIVE = ("max_increase", "max_decrease")
LIMITS = ("max", "min", *RELATIVE)
CHOICES = {"level": ("error", "warn"), "claim": ("data", "population")}
SELECTOR = re.compile(r"([^/\[\]]+)/([^/\[\]]+)(?:\[(.+)\])?")


@dataclass(frozen=True, kw_only=True)
class Change:
    """How far a number may move from the baseline: by an amount, or by a share of the baseline's size."""

    amount: float
    share: bool = False

    def __str__(self) -> str:
        return f"{number(100 * self.amount, 6)} %" if self.share else number(self.amount, 6)


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """The limits on what one selector selects.

    Changes up to `min_delta`, in the quantity's unit, never fail.  `claim` says of what the limits are demanded: of
    these data, or of the population that they were drawn from.
    """

    selector: str
    max: float | None = None
    min: float | None = None
    max_increase: Change | None = None
    max_decrease: Change | None = None
    min_delta: float = 0.0
    level: Level = "error"
    claim: Claim = "data"


@dataclass(frozen=True, kw_only=True)
class Element:
    """One number of a report, and all that is known of it."""

    path: str
    name: str
    record: Record
    quantity: Quantity
    index: tuple[int, ...]

    def at(self, values: Any) -> float:
        """Return the entry of an array of the quantity's shape; NaN if there is none."""
        return math.nan if values is None else float(values[self.index])


def threshold(selector: str, table: Any, source: str) -> Threshold:
    """Build a threshold from the keys of a TOML table.

    Raises: UsageError for a selector, key or value that makes no sense; it names the source.
    """
    where = f'"{selector}" in {source}'
    if not SELECTOR.fullmatch(selector):
        raise UsageError(f"{where} names no quantity. Expected ANALYZER/QUANTITY, such as `eigenvalues/top`. Mend it.")
    if not isinstance(table, dict):
        raise UsageError(f"{where} is {table!r}. Expected a table of limits, such as {{ max = 50 }}. Mend it.")
    known = [field.name for field in dataclasses.fields(Threshold)][1:]
    for key in table:
        if key not in known:
            raise UsageError(
                f"{where} has an unknown key `{key}`.{did_you_mean(key, known)} Expected some of {', '.join(known)}."
            )
    if not any(key in table for key in LIMITS):
        raise UsageError(f"{where} has no limit. Expected one or more of {', '.join(LIMITS)}. Add one, or drop it.")
    if "min_delta" in table and not any(key in table for key in RELATIVE):
        raise UsageError(
            f"{where} has min_delta and no change to limit. Expected one of {', '.join(RELATIVE)} beside it."
        )
    built = Threshold(selector=selector, **{key: _value(key, value, where) for key, value in table.items()})
    if built.max is not None and built.min is not None and built.min > built.max:
        raise UsageError(f"{where} has min = {built.min} above max = {built.max}. Expected a range. Mend one of them.")
    return built


def _value(key: str, value: Any, where: str) -> Any:
    expected = " or ".join(f'"{choice}"' for choice in CHOICES.get(key, ())) or "a finite number"
    share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value) if isinstance(value, str) else None
    amount = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if key in CHOICES:
        fits = value in CHOICES[key]
    elif key in RELATIVE:
        expected = 'a number from 0 up, or a share of the baseline such as "25%"'
        fits = share is not None or 0 <= amount < math.inf
    else:
        expected += " from 0 up" if key == "min_delta" else ""
        fits = math.isfinite(amount) and (key != "min_delta" or amount >= 0)
    if not fits:
        raise UsageError(f"{where} has `{key} = {value!r}`. Expected {expected}. Mend it.")
    if key in RELATIVE:
        return Change(amount=float(share[1]) / 100, share=True) if share else Change(amount=amount)
    return value if key in CHOICES else amount


def parsed(flag: str, text: str) -> tuple[str, dict[str, Any]]:
    """Read `SELECTOR=LIMIT` of an option such as `--max-increase`: the selector, and its table.

    Raises: UsageError if there is no selector or no number.
    """
    selector, _, limit = text.rpartition("=")
    value: Any = limit.strip()
    if not selector or not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*%?", value):
        raise UsageError(
            f"`--{flag} {text}` has no limit. Expected SELECTOR=NUMBER: `--{flag} eigenvalues/top="
            f"{'25%' if flag.startswith('max-') else '50'}`."
        )
    if not value.endswith("%"):
        value = float(value)
    return selector.strip(), {flag.replace("-", "_"): value}


def elements(report: Report) -> Iterator[Element]:
    """Yield every number of a report."""
    for name, record in report.results.items():
        for key, quantity in record.quantities.items():
            for index in np.ndindex(quantity.value.shape):
                labels = [quantity.labels[dim][i] for dim, i in zip(quantity.dims, index, strict=True)]
                path = f"{name}/{key}" + (f"[{','.join(labels)}]" if labels else "")
                said = ", ".join([title(name, key), *labels])
                yield Element(path=path, name=said, record=record, quantity=quantity, index=index)


def analyzers(selector: str, known: Mapping[str, Iterable[str]]) -> list[str]:
    """Return the analyzers that measure what a selector names; `known` are their quantities by name."""
    bare = selector.partition("[")[0]
    return [name for name, keys in known.items() if any(matches(bare, f"{name}/{key}") for key in keys)]


def select(selector: str, reports: Iterable[Report], known: Mapping[str, Iterable[str]]) -> list[list[Element]]:
    """Return what a selector selects in each report; nothing in a report that lacks a quantity of a known analyzer.

    Raises: UsageError if it selects nothing in any, and names no known quantity exactly.
    """
    everything = [list(elements(report)) for report in reports]
    found = [[element for element in one if matches(selector, element.path)] for one in everything]
    bare, _, labels = selector.partition("[")
    measured = {element.path.partition("[")[0] for one in everything for element in one}
    declared = {f"{name}/{key}" for name, keys in known.items() for key in keys}
    if any(found) or (bare in declared and bare not in measured):
        return found
    paths = [element.path for one in everything for element in one]
    near = did_you_mean(selector, paths if labels and bare in measured else sorted({*declared, *measured}))
    raise UsageError(
        f'The threshold "{selector}" selects nothing.{near} Expected a quantity that was measured: '
        "`gapscope show REPORT -v` lists them."
    )


def matches(selector: str, path: str) -> bool:
    """Say whether a selector stands for a number: its path, of which it may leave out the last labels."""
    bare, bracket, labels = selector.removesuffix("]").partition("[")
    pattern = _glob(bare, r"[^/\[]")
    # labels may be left out at the end
    pattern += rf"\[{_glob(labels, '.')}(,.*)?\]" if bracket else r"(\[.*\])?"
    return re.fullmatch(pattern, path, re.DOTALL) is not None


def _glob(text: str, character: str) -> str:
    """Write `*` and `?` as a regular expression; fnmatch would read `[fc1]` as one of three characters.

    Every star but the last takes as little as it can and gives nothing back, which finds whatever there is to find:
    six stars that may give back took 20 s over a label of 80 letters.
    """
    first, *others = (re.escape(part).replace(r"\?", character) for part in text.split("*"))
    if not others:
        return first
    *between, last = others
    return f"{first}{''.join(f'(?>{character}*?{part})' for part in between)}{character}*{last}"
