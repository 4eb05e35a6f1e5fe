"""Reports and comparisons as JSON: names and shape are a contract that scripts rely on.

NaN and infinity, which JSON lacks, are null; `status` is the name of a `Status`, `message` its sentence.
"""

import json
import math
from typing import Any

import numpy as np

from gapscope.report.file import COMPARISON, FORMAT_VERSION, REPORT
from gapscope.report.reading import whole_reading
from gapscope.report.records import Comparison, Record, Report, Row, Subject
from gapscope.results import Quantity


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
        "subjects": [{"label": subject.label, **_subject(subject)} for subject in comparison.subjects],
        "rows": [_row(row) for row in comparison.rows],
        "reading": whole_reading(comparison),
        "forced": comparison.forced,
        "environment": comparison.environment,
        "results": {name: _record(record) for name, record in comparison.results.items()},
    }
    return dict(_plain(content))


def dumps(content: dict[str, Any]) -> str:
    """Return JSON text in ASCII, which every pipe carries."""
    return json.dumps(content, indent=2, allow_nan=False)


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
    keys = ("path", "title", "unit", "values", "errors", "contrast", "estimate", "interval", "verdict", "better")
    return {key: getattr(row, key) for key in (*keys, "higher_is", "dims", "entries")}


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
