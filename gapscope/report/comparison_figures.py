"""The figures of a comparison: ratios with their intervals, sweeps, and the subjects' arrays beside each other."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from gapscope.report.charts import Dot, Dots
from gapscope.report.document import Column, Line, Note, Series, Table
from gapscope.report.figures import spread
from gapscope.report.illustrations import (
    MOST,
    QUARTILES,
    SUBJECT,
    Figure,
    barred,
    figures,
    illustrated,
    numbered,
    stacked,
    worth,
)
from gapscope.report.records import Comparison, Row
from gapscope.report.sweep import bars_of
from gapscope.report.view import comparison_document
from gapscope.results import Quantity

FOREST = (
    "Ratio of {last} to {first}. A bar is its 95 % interval {over}; where it crosses 1, the two cannot be told apart."
)


def compared(comparison: Comparison) -> list[Figure]:
    """Return the figures of a comparison, those that answer its question first."""
    names = [subject.short for subject in comparison.subjects]
    together = figures(comparison.results, comparison.subjects[0].conditions, names)
    found = [*_forest(comparison), *_further(comparison), *_of_rows(comparison), *together]
    return sorted(found, key=lambda one: len(one.panels) > 1)  # wide ones would break the columns of the others


def _forest(comparison: Comparison) -> Iterator[Figure]:
    """Yield the ratios of the judged rows with their intervals."""
    rows = [
        row for row in comparison.rows if row.contrast == "ratio" and row.better != "none" and row.drawn != "detail"
    ]
    rows = [row for row in rows if math.isfinite(row.estimate) and math.isfinite(row.interval[0])]
    if not rows:
        return
    first, last = comparison.subjects[0], comparison.subjects[-1]
    shown = tuple((row.title, (_ratio(row, first.short, last.short),)) for row in rows[: MOST["dots"]])
    content = Dots(
        said=f"Ratios of {last.label} to {first.label}: "
        + "; ".join(f"{name} {dots[0].words}" for name, dots in shown[:12]),
        across=f"{last.short} / {first.short}",
        rows=shown,
        line=1.0,
        log=True,
    )
    columns = (Column(header="quantity", numeric=False), Column(header="ratio"), Column(header="95 % interval"))
    lines = tuple(Line(cells=(row.title, *spread(row.estimate, row.interval))) for row in rows)
    yield Figure(
        path="",
        title=f"ratios, {last.short} over {first.short}",
        panels=(("", content),),
        caption=FOREST.format(last=last.label, first=first.label, over=_over(comparison)),
        numbers=Table(columns=columns, lines=lines),
    )


def _ratio(row: Row, first: str, last: str) -> Dot:
    shown, _ = spread(row.estimate, row.interval)
    word = row.higher_is or "higher"
    verdict = {"higher": f"{last} {word}", "lower": f"{first} {word}"}.get(row.verdict, "cannot tell")
    return Dot(value=row.estimate, words=f"{shown} · {verdict}", interval=row.interval, series=0)


def _over(comparison: Comparison) -> str:
    return "over runs" if any(subject.runs for subject in comparison.subjects) else "over the data"


def _further(comparison: Comparison) -> Iterator[Figure]:
    """Yield the curves that a comparison shows beyond the arrays of its records: sweeps, and epochs by their loss."""
    drawn = {name for name, record in comparison.results.items() if any(map(_is_drawn, record.quantities.values()))}
    for block in comparison_document(comparison, verbose=True).blocks:
        if block and isinstance(block[0], Note) and block[0].text in drawn:
            continue
        for item in block:
            if isinstance(item, Series) and np.isfinite(item.curves).any():
                yield _of_series(item)


def _is_drawn(quantity: Quantity) -> bool:
    return quantity.drawn not in ("numbers", "detail")


def _of_series(series: Series) -> Figure:
    errors = np.array(series.errors, dtype=np.float64)
    known = errors if np.isfinite(errors).any() else None
    value = np.array(series.curves, dtype=np.float64)
    quantity = stacked(series.axis, series.labels, series.names or ("",), value=value, sampling_error=known)
    caption = f"{series.title[:1].upper()}{series.title[1:]} against {series.axis}."
    caption += f" {series.bars}" if known is not None else ""
    return illustrated("", quantity, caption, name=series.title, spread="±")


def quantity_of(row: Row) -> str:
    """Return the path without the entries."""
    return row.path.removesuffix(f"[{','.join(row.entries)}]")


def _of_rows(comparison: Comparison) -> Iterator[Figure]:
    """Yield the arrays of the subjects, gathered from their rows."""
    who = " and ".join(subject.label for subject in comparison.subjects)
    for path, group in itertools.groupby(comparison.rows, key=quantity_of):
        rows = list(group)
        quantity = _gathered(rows, comparison) if len(rows) > 1 else None
        analyzer, _, name = path.partition("/")
        if quantity is None or name in QUARTILES or not worth(quantity):
            continue
        bars = f"{bars_of(comparison)} " if barred(quantity) else ""
        yield illustrated(path, quantity, f"{bars}Measured by gapscope {analyzer} on each of {who}.", spread="±")


def _gathered(rows: Sequence[Row], comparison: Comparison) -> Quantity | None:
    """Return the rows of an array as one quantity with a dimension of subjects; None if rows are missing.

    It is the last dimension for dots and the last but one for curves.
    """
    dims, head = rows[0].dims, rows[0]
    labels = {dim: tuple(dict.fromkeys(row.entries[i] for row in rows)) for i, dim in enumerate(dims)}
    shape = tuple(len(labels[dim]) for dim in dims)
    if SUBJECT in dims or math.prod(shape) != len(rows):
        return None
    labels[SUBJECT] = tuple(subject.label for subject in comparison.subjects)
    value, error = (
        np.array([getattr(row, key) for row in rows], dtype=np.float64).reshape(*shape, -1)
        for key in ("values", "errors")
    )
    known = error if np.isfinite(error).any() else None
    gathered = Quantity(
        value=value,
        sampling_error=known,
        doc="",
        unit=head.unit,
        drawn=head.drawn,
        better=head.better,
        dims=(*dims, SUBJECT),
        labels=labels,
    )
    curves = head.drawn in ("line", "bars", "map") or numbered(labels[dims[-1]])
    if not curves:
        return gathered
    return replace(
        gathered,
        value=np.moveaxis(value, -1, -2),
        sampling_error=None if known is None else np.moveaxis(known, -1, -2),
        drawn="line" if head.drawn in ("bars", "map") else head.drawn,
        dims=(*dims[:-1], SUBJECT, dims[-1]),
    )
