"""Reports and comparisons as JSON and CSV: names and shape are a contract that scripts rely on.

NaN and infinity, which JSON lacks, are null there and empty in CSV; `status` is the name of a `Status`, `message` its
sentence.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gapscope.errors import ReportError
from gapscope.report.atomic import replace
from gapscope.report.canvas import is_number
from gapscope.report.figures import contrast_unit
from gapscope.report.file import COMPARISON, FORMAT_VERSION, REPORT
from gapscope.report.reading import whole_reading
from gapscope.report.records import Comparison, Record, Report, Row, Subject
from gapscope.report.terminal import OBEYED, harmless
from gapscope.results import Quantity

ERRORS = ("numerical_error", "sampling_error")
FIXED = ("path", "value", *ERRORS, "error", "low", "high", "unit", "status")
TABLE = r"\Apath,(.+,)?value,.+,unit,status\n"  # what `tabled` begins with
Line = dict[str, str | float]


def report_json(report: Report) -> dict[str, Any]:
    """Return a report as plain JSON values."""
    content = {
        "format": REPORT,
        "format_version": FORMAT_VERSION,
        "subject": _subject(report),
        "environment": report.environment,
        "results": {name: _record(record) for name, record in report.results.items()},
    }
    return dict(_plain(content))


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as plain JSON values."""
    content = {
        "format": COMPARISON,
        "format_version": FORMAT_VERSION,
        "subjects": [
            {"label": s.label, **_subject(s), "runs": [{"label": r.label, **_subject(r)} for r in s.runs]}
            for s in comparison.subjects
        ],
        "interval_over": comparison.over,
        "rows": [_row(row) for row in comparison.rows],
        "reading": whole_reading(comparison),
        "forced": comparison.forced,
        "environment": comparison.environment,
        "results": {name: _record(record) for name, record in comparison.results.items()},
    }
    return dict(_plain(content))


def dumps(content: dict[str, Any]) -> str:
    """Return JSON text in ASCII, which every pipe carries, without what a runner of workflows obeys in any line."""
    return OBEYED.sub(r"\1\\u005b", json.dumps(content, indent=2, allow_nan=False))  # it stands in strings alone


def _subject(subject: Report | Subject) -> dict[str, Any]:
    return {"identity": subject.identity, "training": subject.training, "conditions": subject.conditions}


def _record(record: Record) -> dict[str, Any]:
    return {
        "version": record.version,
        "status": record.status.name,
        "message": record.message,
        "matvecs": record.matvecs,
        "seconds": record.seconds,
        "notes": record.notes,
        "settings": record.settings,
        "quantities": {name: _quantity(quantity) for name, quantity in record.quantities.items()},
    }


def _quantity(quantity: Quantity) -> dict[str, Any]:
    keys = ("value", "numerical_error", "sampling_error", "bound", "contrast", "better", "higher_is", "unit", "dims")
    return {key: getattr(quantity, key) for key in (*keys, "labels", "drawn", "doc")}


def _row(row: Row) -> dict[str, Any]:
    keys = ("path", "title", "unit", "values", "errors", "contrast", "estimate", "interval", "verdict", "better", "doc")
    return {key: getattr(row, key) for key in (*keys, "higher_is", "dims", "entries", "p", "runs")}


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if hasattr(value, "items"):
        return {str(key): _plain(one) for key, one in value.items()}
    return value


def tabled(content: Report | Comparison) -> str:
    """Return one row per number as CSV: path, a column for each dimension, value, errors, unit and status.

    A comparison has a row for each subject, with both errors combined, and one for the contrast with its interval.
    """
    compared = isinstance(content, Comparison)
    lines = [line for name, record in content.results.items() for line in _record_lines(name, record)]
    if isinstance(content, Comparison):
        lines = [line for row in content.rows for line in _row_lines(row, content)] + lines
    dims = dict.fromkeys(key for line in lines for key in line if key not in FIXED)
    extra = {"error", "low", "high"} if not compared else set()
    out = io.StringIO(newline="")
    names = ["path", *dims, *(key for key in FIXED[1:] if key not in extra)]
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writerow({name: _celled(name) for name in names})  # a plugin or a file names the dimensions
    writer.writerows({key: _celled(value) for key, value in line.items()} for line in lines)
    return out.getvalue()


def _record_lines(name: str, record: Record) -> Iterator[Line]:
    for key, quantity in record.quantities.items():
        for index in np.ndindex(quantity.value.shape):
            line: Line = {"path": f"{name}/{key}", "unit": quantity.unit, "status": record.status.name}
            line |= {_column(dim): quantity.labels[dim][i] for dim, i in zip(quantity.dims, index, strict=True)}
            errors = {one: getattr(quantity, one) for one in ERRORS}
            given = {"value": quantity.value} | {one: error for one, error in errors.items() if error is not None}
            yield line | {one: float(values[index]) for one, values in given.items()}


def _row_lines(row: Row, comparison: Comparison) -> Iterator[Line]:
    entries = {_column(dim): entry for dim, entry in zip(row.dims, row.entries, strict=True)}
    line: Line = {"path": row.path.removesuffix(f"[{','.join(row.entries)}]"), **entries, "unit": row.unit}
    for subject, value, error in zip(comparison.subjects, row.values, row.errors, strict=True):
        yield line | {"subject": subject.label, "value": value, "error": error}
    low, high = row.interval
    contrast = {"subject": row.contrast, "value": row.estimate, "low": low, "high": high, "status": row.verdict}
    yield line | contrast | {"unit": contrast_unit(row.contrast, row.unit)}


def _column(dim: str) -> str:
    """Return the column of a dimension: the other columns keep their names."""
    return f"{dim}_" if dim in FIXED else dim


def _celled(value: str | float) -> str:
    """Return a cell that no spreadsheet takes for a formula."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else ""
    text = harmless(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) and not is_number(text) else text


def save(path: str | os.PathLike[str], text: str, *, mark: str, option: str) -> None:
    """Write a text in one step; what is there must be of the same kind, which the pattern `mark` finds early on.

    Raises: ReportError if something else is there, or if the place cannot be written.
    """
    place = Path(path)
    if place.is_file() and place.stat().st_size:
        with place.open(encoding="utf-8", errors="replace") as stream:
            if not re.search(mark, stream.read(1000)):
                raise ReportError(
                    f"{place} exists and was not written by `{option}`. Expected a new name or an earlier output. "
                    f"Name another place with `{option}`."
                )
    replace(place, text.encode("utf-8"), option=option)
