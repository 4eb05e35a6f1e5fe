"""What the reporting half handles: a `Report` of `Record`s, and a `Comparison` of reports in `Row`s."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gapscope.errors import ReportError
from gapscope.results import Better, Contrast, Quantity, Status

Scalar = str | int | float | bool
Facts = Mapping[str, Scalar]
RowVerdict = Literal["higher", "lower", "cannot tell", ""]


@dataclass(frozen=True, kw_only=True)
class Record:
    """One analyzer's result as stored; the first quantity is the headline."""

    analyzer: str
    version: str
    status: Status
    matvecs: int = 0
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    quantities: Mapping[str, Quantity] = field(default_factory=dict)

    @property
    def message(self) -> str:
        """The status as the sentence that people read."""
        return self.status.value


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything measured on one subject; results stand in the order in which they were measured."""

    identity: Facts
    training: Facts
    conditions: Facts
    environment: Facts
    results: Mapping[str, Record]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a comparison; `short` is its label inside a sentence."""

    label: str
    short: str
    identity: Facts
    training: Facts
    conditions: Facts


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of every subject, and the last subject's against the first's.

    `errors` are one standard error, sampling and numerical combined, NaN where unknown.  `interval` covers the
    contrast with 95 % confidence, (NaN, NaN) where unknown.  `verdict` is that of the last against the first.
    """

    path: str
    title: str
    unit: str
    values: tuple[float, ...]  # (subjects,)
    errors: tuple[float, ...]  # (subjects,)
    contrast: Contrast
    estimate: float
    interval: tuple[float, float]
    verdict: RowVerdict
    better: Better
    higher_is: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two or more reports side by side; `forced` names the keys that differ although they should agree."""

    subjects: tuple[Subject, ...]
    rows: tuple[Row, ...]
    reading: tuple[str, ...]
    forced: tuple[str, ...] = ()


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ or that only one side has, sorted; NaN does not differ from NaN."""
    missing = object()
    pairs = {key: (first.get(key, missing), second.get(key, missing)) for key in {*first, *second}}
    return sorted(key for key, (one, other) in pairs.items() if one != other and repr(one) != repr(other))


def merge(old: Report, new: Report) -> tuple[Report, tuple[str, ...]]:
    """Add new results to an older report of the same subject; the sentences name what was replaced.

    Raises: ReportError if identity or conditions differ.
    """
    differences = [
        f"{key} ({getattr(old, part).get(key, 'none')} there, {getattr(new, part).get(key, 'none')} now)"
        for part in ("identity", "conditions")
        for key in differing(getattr(old, part), getattr(new, part))
    ]
    if differences:
        raise ReportError(
            f"The existing report measures something else: {', '.join(differences)}. "
            "Expected the same subject under the same conditions. Name another file with `--output`."
        )
    said = tuple(
        f"replaced {name}: {change}" for name, record in new.results.items() if (change := _change(old, record))
    )
    merged = Report(
        identity=new.identity,
        training=new.training,
        conditions=new.conditions,
        environment=new.environment,
        results={**old.results, **new.results},
    )
    return merged, said


def _change(old: Report, record: Record) -> str:
    before = old.results.get(record.analyzer)
    if before is None:
        return ""
    keys = differing(before.settings, record.settings)
    changes = [f"{key} {before.settings.get(key, 'none')} -> {record.settings.get(key, 'none')}" for key in keys]
    if before.version != record.version:
        changes.append(f"version {before.version} -> {record.version}")
    return f"settings changed: {', '.join(changes)}" if changes else ""
