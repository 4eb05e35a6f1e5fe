"""A baseline: an accepted report, and beside it a text that shows in a diff what was accepted, and why."""

import math
from collections.abc import Iterator

import numpy as np

from gapscope.errors import UsageError
from gapscope.report.figures import number, size
from gapscope.report.records import Report, differing
from gapscope.report.terminal import printable
from gapscope.report.thresholds import Element, elements

VERSIONS = ("gapscope", "torch", "python", "device")
TITLE = "gapscope baseline"  # the first line
ENTRIES = 20  # numbers of one array that are listed


def sidecar(report: Report, old: Report | None, *, reason: str, date: str) -> str:
    """Return the text: reason, date, what was measured with what, and every judged number, old -> new.

    Raises: UsageError without a reason.
    """
    why = " ".join(printable(reason).split())
    if not why:
        raise UsageError("The reason is empty. Expected why these numbers are accepted. Give it: `--reason TEXT`.")
    facts = [("reason", why), ("accepted", date)]
    facts += [(key, str(report.identity[key])) for key in ("checkpoint", "sha256") if key in report.identity]
    facts += [("measured", str(report.environment.get("created", "unknown")))]
    facts += [(key, str(report.environment[key])) for key in VERSIONS if key in report.environment]
    lines = [TITLE, *(f"{key}: {printable(value)}" for key, value in facts), "", "conditions"]
    before = {} if old is None else old.conditions
    changed = set() if old is None else set(differing(before, report.conditions))
    for key in sorted({*report.conditions, *changed}):
        was = f"{before.get(key, 'none')} -> " if key in changed else ""
        lines.append(printable(f"  {key}: {was}{report.conditions.get(key, 'none')}"))
    lines += ["", "numbers", *(f"  {printable(said)}" for said in _numbers(report, old))]
    return "\n".join(lines) + "\n"


def _numbers(report: Report, old: Report | None) -> Iterator[str]:
    before = {} if old is None else {element.path: element for element in elements(old)}
    for element in elements(report):
        headline = element.quantity is next(iter(element.record.quantities.values()))
        place = np.ravel_multi_index(element.index, element.quantity.value.shape) if element.index else 0
        if place >= ENTRIES or not (headline or element.quantity.better != "none"):
            continue
        was = before.get(element.path)
        change = "" if was is None else f"{_figure(was)} -> "
        unit = f" {element.quantity.unit}" if element.quantity.unit else ""
        yield f"{element.path}: {change}{_figure(element)}{unit}"
    gone = [] if old is None else [name for name in old.results if name not in report.results]
    yield from (f"{name}: was measured, now is not" for name in gone)


def _figure(element: Element) -> str:
    """Write six digits, whatever the error: a diff shows what moved."""
    errors = [element.at(element.quantity.numerical_error), element.at(element.quantity.sampling_error)]
    known = [error for error in errors if not math.isnan(error)]
    return number(element.at(element.quantity.value), 6) + (f" ± {size(math.hypot(*known))}" if any(known) else "")
