"""Reports and comparisons as a `Document` of tables and notes: every number is formatted here, every renderer draws it.

Known keys of /subject/identity: checkpoint, data, model, model_args, parameters; of /subject/conditions: data, split,
samples, loss, batchnorm, dtype, limit.  Others are stored and compared, and shown with `verbose` only.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from gapscope.report.figures import NONE, count, figure, rounded, size, spread
from gapscope.report.records import Comparison, Facts, Record, Report, Row, differing
from gapscope.results import Quantity, Status

Tone = Literal["plain", "dim", "better", "worse", "unsure", "heading", "warning"]
WHOLE = 24  # elements: larger arrays are shown in part
PART = 8
PROVEN = (Status.EXACT, Status.CONVERGED, Status.BREAKDOWN)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column: numbers stand to the right, and what may be broken over lines `wraps`."""

    header: str
    numeric: bool = True
    wraps: bool = False


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a table; the tone colours its last cell, "dim" all of it.

    A single cell spans the table and is the title of the lines of level 1 below it.
    """

    cells: tuple[str, ...]
    tone: Tone = "plain"
    level: int = 0


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows under columns."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, kw_only=True)
class Note:
    """A paragraph; with a bullet it is one of a list."""

    text: str
    tone: Tone = "plain"
    bullet: bool = False


@dataclass(frozen=True, kw_only=True)
class Document:
    """What is shown, in order; an empty line stands between the blocks."""

    blocks: tuple[tuple[Table | Note, ...], ...] = field(default=())


# A report


def report_document(report: Report, verbose: bool = False, *, only: Sequence[str] | None = None) -> Document:
    """Show one report, or only some analyzers of it: who was measured, then each analyzer's headline first."""
    names = [str(report.identity["checkpoint"])] if "checkpoint" in report.identity else []
    head: list[Table | Note] = [Note(text=name, tone="heading") for name in names]
    head += _subject_notes(report.conditions, report.identity)
    if verbose:
        head += [
            Note(text=_facts(name, facts), tone="dim")
            for name in ("identity", "training", "conditions", "environment")
            if (facts := getattr(report, name))
        ]
    records = [record for name, record in report.results.items() if only is None or name in only]
    return Document(blocks=(tuple(head), *(_record_block(record, verbose) for record in records)))


def _facts(name: str, facts: Facts) -> str:
    return f"{name}: " + ", ".join(f"{key} {value}" for key, value in sorted(facts.items()))


def _subject_notes(conditions: Facts, identity: Facts) -> list[Table | Note]:
    """Return "digits, train split, 1,300 samples · mlp, 2,410 parameters · cross-entropy · eval mode · float32"."""
    parts = [
        _joined(
            _of(conditions, "data") or _of(identity, "data"),
            _of(conditions, "split", "{} split"),
            _of(conditions, "samples", "{} samples"),
        ),
        _joined(
            f"{_of(identity, 'model')} {_of(identity, 'model_args')}".strip(),
            _of(identity, "parameters", "{} parameters"),
        ),
        _of(conditions, "loss"),
        _of(conditions, "batchnorm", "{} mode"),
        _of(conditions, "dtype"),
    ]
    notes: list[Table | Note] = [Note(text=" · ".join(part for part in parts if part))] if any(parts) else []
    if conditions.get("limit"):
        notes.append(Note(text="A subset of the data: subsets overstate lambda_max.", tone="warning"))
    return notes


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _of(facts: Facts, key: str, pattern: str = "{}") -> str:
    value = facts.get(key, "")
    if value == "":
        return ""
    return pattern.format(count(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _record_block(record: Record, verbose: bool) -> tuple[Table | Note, ...]:
    shown = _shown(record, verbose)
    lines = [line for name, quantity in shown for line in _quantity_lines(name, quantity, record, verbose)]
    block: list[Table | Note] = [Note(text=record.analyzer, tone="heading")]
    if lines:
        headers = ("value", "± data", "± numerical")
        columns = (Column(header="", numeric=False, wraps=True), *(Column(header=header) for header in headers))
        block.append(Table(columns=columns, lines=tuple(lines)))
    cost = [f"{count(record.matvecs)} matvecs"] if record.matvecs else []
    if record.seconds:
        cost.append(f"{record.seconds:.1f}\u00a0s" if record.seconds >= 0.05 else "under 0.1\u00a0s")
    tone: Tone = "dim" if record.status in PROVEN else "warning"
    block.append(Note(text=" · ".join([record.message, *cost]), tone=tone))
    block += [Note(text=note, bullet=True) for note in record.notes]
    if verbose:
        block += [
            Note(text=f"{name}: {quantity.doc}", tone="dim", bullet=True) for name, quantity in shown if quantity.doc
        ]
        block += [Note(text=_facts("settings", record.settings), tone="dim")] if record.settings else []
    return tuple(block)


def _shown(record: Record, verbose: bool) -> list[tuple[str, Quantity]]:
    """Return the judged quantities, then single numbers without a direction; arrays of those only when verbose."""
    items = list(record.quantities.items())
    if verbose:
        return items
    judged = [item for i, item in enumerate(items) if i == 0 or item[1].better != "none"]
    return judged + [item for item in items[1:] if item[1].better == "none" and not item[1].dims]


def _quantity_lines(name: str, quantity: Quantity, record: Record, verbose: bool) -> Iterator[Line]:
    words = name.replace("_", " ") + (f" {quantity.unit}" if quantity.unit else "")
    tone: Tone = "plain" if quantity.better != "none" or name == next(iter(record.quantities)) else "dim"
    total = quantity.value.size
    whole = total <= WHOLE or verbose
    for position, index in enumerate(np.ndindex(quantity.value.shape)):
        if position == PART and not whole:
            rest = f"{words}, {count(total - PART)} more of {count(total)}: all with --verbose or --json"
            yield Line(cells=(rest, "", "", ""), tone="dim")
            return
        entries = [quantity.labels[dim][i] for dim, i in zip(quantity.dims, index, strict=True)]
        numbers = _numbers(quantity, index, proven=record.status in PROVEN)
        yield Line(cells=(", ".join([words, *entries]), *numbers), tone=tone)


def _numbers(quantity: Quantity, index: tuple[int, ...], *, proven: bool) -> tuple[str, str, str]:
    value, sampling, numerical = (
        math.nan if values is None else float(values[index])
        for values in (quantity.value, quantity.sampling_error, quantity.numerical_error)
    )
    error = math.hypot(*(part for part in (sampling, numerical) if math.isfinite(part)))
    sign = {"lower": "≥ ", "upper": "≤ ", "none": ""}[quantity.bound]
    shown = rounded(value, error)
    return sign + shown if shown != NONE and not proven else shown, size(sampling), size(numerical)


# A comparison


def comparison_document(comparison: Comparison, verbose: bool = False) -> Document:
    """Show a comparison: values, the contrast with its interval, who is what, and the reading."""
    subjects = comparison.subjects
    conditions = _shared([subject.conditions for subject in subjects])
    head = _subject_notes(conditions, _shared([subject.identity for subject in subjects]))
    if comparison.forced:
        text = f"Forced: these keys should agree and do not: {', '.join(comparison.forced)}"
        head.append(Note(text=text, tone="warning"))
    first, last = subjects[0].short, subjects[-1].short
    columns = (
        Column(header="", numeric=False, wraps=True),
        *(Column(header=subject.label) for subject in subjects),
        Column(header="ratio"),
        Column(header="95 % interval"),
        Column(header="", numeric=False, wraps=True),
    )
    lines = tuple(_row_lines([row for row in comparison.rows if verbose or row.better != "none"], first, last))
    reading = (
        Note(text="Reading", tone="heading"),
        *(Note(text=_bound(said), bullet=True) for said in comparison.reading),
    )
    legend = Note(text=f"ratio: {last} / {first}; with a sign: {last} - {first}", tone="dim")
    return Document(blocks=(tuple(head), (Table(columns=columns, lines=lines), legend), reading))


def _shared(sides: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    unlike = {key for side in sides[1:] for key in differing(sides[0], side)}
    return {key: value for key, value in sides[0].items() if key not in unlike}


def _bound(sentence: str) -> str:
    """Keep a percentage on one line."""
    return sentence.replace(" %", "\u00a0%")


def _row_lines(rows: Sequence[Row], first: str, last: str) -> Iterator[Line]:
    """Gather the elements of an array under its title: at 80 columns there is no room to repeat it."""
    for path, group in itertools.groupby(rows, key=lambda row: row.path.partition("[")[0]):
        elements = list(group)
        if len(elements) == 1:
            yield _row_line(elements[0], first, last)
            continue
        title = elements[0].title.partition(", ")[0]
        yield Line(cells=(f"{title} {elements[0].unit}".strip(),))
        for row in elements:
            entries = row.path[len(path) + 1 : -1].replace(",", ", ")
            yield dataclasses.replace(_row_line(row, first, last, name=entries), level=1)


def _row_line(row: Row, first: str, last: str, name: str = "") -> Line:
    estimate, interval = spread(row.estimate, row.interval)
    if row.contrast == "difference" and row.estimate > 0:
        estimate = f"+{estimate}"
    return Line(
        cells=(
            name or _bound(f"{row.title} {row.unit}".strip()),
            *(figure(value, error) for value, error in zip(row.values, row.errors, strict=True)),
            estimate,
            "" if interval == NONE else interval,
            _verdict_words(row, first, last),
        ),
        tone=_verdict_tone(row),
    )


def _verdict_words(row: Row, first: str, last: str) -> str:
    if row.verdict in ("", "cannot tell"):
        return row.verdict
    return f"{last if row.verdict == 'higher' else first}\u00a0is {row.higher_is or 'higher'}"


def _verdict_tone(row: Row) -> Tone:
    if row.verdict == "":
        return "dim" if row.better == "none" else "plain"
    if row.verdict == "cannot tell":
        return "unsure"
    return "better" if row.verdict == row.better else "worse"
