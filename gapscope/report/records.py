"""What the reporting half handles: a `Report` of `Record`s, and a `Comparison` of reports in `Row`s."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from gapscope.errors import ReportError
from gapscope.results import Array, Better, Contrast, Drawn, Quantity, Status

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


@dataclass(frozen=True, kw_only=True, repr=False)
class Report:
    """Everything measured on one subject; results stand in the order in which they were measured."""

    identity: Facts
    training: Facts
    conditions: Facts
    environment: Facts
    results: Mapping[str, Record]

    def number(self, path: str) -> float | None:
        """Return the single number at "analyzer/quantity", None where there is none."""
        analyzer, name = path.split("/")
        record = self.results.get(analyzer)
        quantity = record.quantities.get(name) if record else None
        return float(quantity.value) if quantity is not None and not quantity.dims else None

    def __repr__(self) -> str:
        return f"Report({self.identity.get('checkpoint', 'model')}: {', '.join(self.results) or 'nothing'})"

    def __str__(self) -> str:
        """Return what the command line prints of it."""
        from gapscope.report.terminal import text
        from gapscope.report.view import report_document

        return text(report_document(self))

    def _repr_html_(self) -> str:
        """Show the report in a notebook."""
        from gapscope.report.html import fragment
        from gapscope.report.view import report_document

        return fragment(report_document(self))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One side of a comparison; `short` is its label inside a sentence.

    Several training runs of one regime are one side: then the facts are those that all of them share, and `runs` has
    each run by itself.
    """

    label: str
    short: str
    identity: Facts
    training: Facts
    conditions: Facts
    runs: tuple["Subject", ...] = ()

    @property
    def size(self) -> int:
        """How many training runs it stands for."""
        return len(self.runs) or 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One number of every subject, and the last subject's against the first's.

    `errors` are one standard error, sampling and numerical combined, NaN where unknown.  `interval` covers the
    contrast with 95 % confidence, (NaN, NaN) where unknown.  `verdict` is that of the last against the first.

    Of a side of several runs the value is their mean, the error their standard deviation, and `runs` has each number.
    Between such sides a ratio is one of geometric means, the interval is over seeds, and `p` is that of the exact
    permutation test; NaN where there is none.
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
    drawn: Drawn = "numbers"
    dims: tuple[str, ...] = ()
    entries: tuple[str, ...] = ()  # the labels along dims: which element of an array this is
    p: float = math.nan
    runs: tuple[tuple[float, ...], ...] = ()  # (subjects, runs of each); empty where every side is one run
    doc: str = ""  # what it is, in its analyzer's words


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Two or more reports side by side; `forced` names the keys that differ although they should agree.

    `results` were measured on the subjects together, in their order.  Where only those were measured there are no rows.
    """

    subjects: tuple[Subject, ...]
    rows: tuple[Row, ...]
    reading: tuple[str, ...]
    forced: tuple[str, ...] = ()
    results: Mapping[str, Record] = field(default_factory=dict)
    environment: Facts = field(default_factory=dict)

    @property
    def over(self) -> str:
        """What the intervals are over: of new seeds and of new data, an interval is right about one only."""
        ends = self.subjects[0].size, self.subjects[-1].size
        return "over the data (one run each)" if ends == (1, 1) else f"over seeds ({ends[0]} and {ends[1]} runs)"

    def __repr__(self) -> str:
        names = " and ".join(subject.label for subject in self.subjects)
        return f"Comparison({names}: {len(self.rows)} rows{''.join(f', {name}' for name in self.results)})"

    def __str__(self) -> str:
        """Return what the command line prints of it."""
        from gapscope.report.terminal import text
        from gapscope.report.view import comparison_document

        return text(comparison_document(self))

    def _repr_html_(self) -> str:
        """Show the comparison in a notebook."""
        from gapscope.report.html import fragment
        from gapscope.report.view import comparison_document

        return fragment(comparison_document(self))


def combined(quantity: Quantity) -> Array:
    """Return both errors of a quantity combined, NaN where neither is known."""
    given = [error for error in (quantity.numerical_error, quantity.sampling_error) if error is not None]
    if not given:
        return np.full(quantity.value.shape, math.nan)
    known = np.array([np.where(np.isfinite(error), error, math.nan) for error in given])
    with np.errstate(over="ignore"):
        return np.where(np.isnan(known).all(axis=0), math.nan, np.hypot.reduce(np.nan_to_num(known)))


def differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ or that only one side has, sorted; NaN does not differ from NaN."""
    missing = object()
    pairs = {key: (first.get(key, missing), second.get(key, missing)) for key in {*first, *second}}
    return sorted(key for key, (one, other) in pairs.items() if one != other and repr(one) != repr(other))


def merge(old: Report, new: Report) -> tuple[Report, tuple[str, ...]]:
    """Add new results to an older report of the same subject; the sentences name what was replaced.

    Raises: ReportError if identity or conditions differ.
    """
    if differences := _unlike(old, new):
        raise ReportError(
            f"The existing report measures something else: {', '.join(differences)}. "
            "Expected the same subject under the same conditions. Name another file with `--output`."
        )
    return replace(new, results={**old.results, **new.results}), _replaced(old.results, new.results)


def merge_comparison(old: Comparison, new: Comparison) -> tuple[Comparison, tuple[str, ...]]:
    """Add new results to an older comparison of the same subjects, and keep its rows if there are no new ones.

    Raises: ReportError if the subjects, their order or their conditions differ.
    """
    sides = enumerate(zip(old.subjects, new.subjects, strict=False), start=1)
    differences = [f"subject {side}: {said}" for side, pair in sides for said in _unlike(*pair)]
    if len(old.subjects) != len(new.subjects):
        differences = [f"{len(old.subjects)} subjects there, {len(new.subjects)} now"]
    if differences:
        raise ReportError(
            f"The existing comparison is of something else: {', '.join(differences)}. "
            "Expected the same subjects in the same order under the same conditions. "
            "Name another file with `--output`."
        )
    merged = replace(new, results={**old.results, **new.results})
    if not new.rows:
        forced = tuple(dict.fromkeys((*old.forced, *new.forced)))
        merged = replace(merged, rows=old.rows, reading=old.reading, forced=forced)
    return merged, _replaced(old.results, new.results)


def _unlike(old: Report | Subject, new: Report | Subject) -> list[str]:
    return [
        f"{key} ({getattr(old, part).get(key, 'none')} there, {getattr(new, part).get(key, 'none')} now)"
        for part in ("identity", "conditions")
        for key in differing(getattr(old, part), getattr(new, part))
    ]


def _replaced(old: Mapping[str, Record], new: Mapping[str, Record]) -> tuple[str, ...]:
    changes = {name: _change(old.get(name), record) for name, record in new.items()}
    return tuple(f"replaced {name}: {change}" for name, change in changes.items() if change)


def _change(before: Record | None, record: Record) -> str:
    if before is None:
        return ""
    keys = differing(before.settings, record.settings)
    changes = [f"{key} {before.settings.get(key, 'none')} -> {record.settings.get(key, 'none')}" for key in keys]
    if before.version != record.version:
        changes.append(f"version {before.version} -> {record.version}")
    return f"settings changed: {', '.join(changes)}" if changes else ""
