"""Compare reports: rows of values with the last subject's contrast against the first's, as data.

Two reports are comparable when /subject/conditions agree and when each shared analyzer ran in the same version with
the same settings (all but `seed`: a different start of an estimator measures the same thing).  Anything else is
refused, or forced and marked.  What the rows mean together is said in `reading`.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from gapscope.errors import ComparisonError, UsageError
from gapscope.report import contrasts
from gapscope.report.reading import losses_differ, reading
from gapscope.report.records import Comparison, Record, Report, Row, RowVerdict, Subject, differing
from gapscope.report.titles import place, title
from gapscope.results import Quantity, Status

MOST = 2_000  # numbers of one quantity: spectra of many layers are read in the reports, not contrasted one by one
FREE_SETTINGS = ("seed",)
DATA_KEYS = ("data", "test", "samples", "split", "limit", "chunk")  # conditions that begin so say which samples
UNFINISHED = (Status.BUDGET_SPENT, Status.NONFINITE, Status.SKIPPED)


def compare(
    reports: Sequence[Report],
    *,
    labels: Sequence[str] | None = None,
    force: bool = False,
    together: Comparison | None = None,
) -> Comparison:
    """Compare two or more reports; with more, the contrast is the last against the first.

    Without labels, subjects whose recorded batch sizes all differ are ordered and named by them.  `together` holds
    what was measured on the same subjects together.

    Raises: UsageError for fewer than two reports or unfit labels; ComparisonError, unless forced, if the reports do
    not measure the same thing, and always if they share no analyzer.
    """
    if len(reports) < 2:
        raise UsageError(f"{len(reports)} report to compare; expected at least two: `gapscope compare A B`.")
    ordered, subjects = arranged(reports, labels)
    shared = [name for name in sorted(ordered[0].results, key=place) if all(_measured(name, one) for one in ordered)]
    if not shared:
        measured = "; ".join(
            f"{s.label}: {', '.join(r.results) or 'none'}" for s, r in zip(subjects, ordered, strict=True)
        )
        raise ComparisonError(
            f"The reports share no analyzer ({measured}). Expected at least one in all of them. "
            "Measure alike: `gapscope sharpness CHECKPOINT` for each."
        )
    differences = _differences(ordered, shared)
    if differences and not force:
        said = "; ".join(f"{key}: {values}" for key, values in differences.items())
        raise ComparisonError(
            f"The reports do not measure the same thing: {said}. Expected equal conditions and settings. "
            "Measure alike, or compare all the same with `--force`."
        )
    paired = not any(key.startswith(DATA_KEYS) for key in differences)
    blocked = losses_differ(ordered[0], ordered[-1])
    rows = tuple(row for name in shared for row in _rows(name, ordered, paired=paired, blocked=bool(blocked)))
    forced = tuple(differences)
    sentences = reading(ordered, subjects, rows, blocked=blocked, forced=forced)
    results, environment = (together.results, together.environment) if together else ({}, {})
    return Comparison(
        subjects=subjects, rows=rows, reading=sentences, forced=forced, results=results, environment=environment
    )


def _measured(name: str, report: Report) -> bool:
    return name in report.results and report.results[name].status is not Status.SKIPPED


def _differences(reports: Sequence[Report], shared: Sequence[str]) -> dict[str, str]:
    """Return "a / b" for each condition and setting that does not agree, by key."""
    sides = [_preconditions(report, shared) for report in reports]
    keys = sorted({key for side in sides[1:] for key in differing(sides[0], side)})
    return {key: " / ".join(str(side.get(key, "none")) for side in sides) for key in keys}


def _preconditions(report: Report, shared: Sequence[str]) -> dict[str, Any]:
    wanted: dict[str, Any] = dict(report.conditions)
    for name in shared:
        record = report.results[name]
        wanted[f"{name}.version"] = record.version
        wanted |= {f"{name}.{key}": value for key, value in record.settings.items() if key not in FREE_SETTINGS}
    return wanted


def arranged(
    reports: Sequence[Report], labels: Sequence[str] | None = None
) -> tuple[tuple[Report, ...], tuple[Subject, ...]]:
    """Return the reports in the order in which `compare` shows them, each with its label.

    Raises: UsageError for unfit labels.
    """
    sizes = [report.training.get("batch_size") for report in reports]
    names: Sequence[tuple[str, str]]
    if labels is not None:
        if len(labels) != len(reports) or len(set(labels)) != len(labels):
            raise UsageError(
                f"{len(labels)} labels ({', '.join(labels)}) for {len(reports)} reports; "
                "expected one for each, all different: `--labels small,large`."
            )
        names = [(label, label) for label in labels]
    elif all(isinstance(size, int) for size in sizes) and len(set(sizes)) == len(sizes):
        reports = sorted(reports, key=lambda report: int(report.training["batch_size"]))
        names = _batch_names([int(report.training["batch_size"]) for report in reports])
    else:
        names = [(name, name) for name in _stems(reports)]
    subjects = tuple(
        Subject(
            label=label,
            short=short,
            identity=report.identity,
            training=report.training,
            conditions=report.conditions,
        )
        for (label, short), report in zip(names, reports, strict=True)
    )
    return tuple(reports), subjects


def _batch_names(sizes: Sequence[int]) -> list[tuple[str, str]]:
    if len(sizes) == 2:
        return [(f"small batch {sizes[0]}", "small"), (f"large batch {sizes[1]}", "large")]
    return [(f"batch {size}", f"batch {size}") for size in sizes]


def _stems(reports: Sequence[Report]) -> list[str]:
    stems = [PurePath(str(report.identity.get("checkpoint", "report"))).stem for report in reports]
    return [f"{stem} ({stems[:i].count(stem) + 1})" if stems.count(stem) > 1 else stem for i, stem in enumerate(stems)]


def _rows(name: str, reports: Sequence[Report], *, paired: bool, blocked: bool) -> Iterator[Row]:
    records = [report.results[name] for report in reports]
    for key, declared in records[0].quantities.items():
        quantities = [record.quantities.get(key) for record in records]
        alike = [
            q
            for q in quantities
            if q is not None and q.dims == declared.dims and dict(q.labels) == dict(declared.labels)
        ]
        if len(alike) != len(records) or declared.value.size > MOST:
            continue
        unproven = any(_unproven(record, quantity) for record, quantity in zip(records, alike, strict=True))
        for index in np.ndindex(declared.value.shape):
            yield _row(f"{name}/{key}", alike, index, paired=paired, blocked=blocked, unproven=unproven)


def _unproven(record: Record, quantity: Quantity) -> bool:
    """Say whether a value is a bound of unknown distance; noise-dominated ones lie further off than any error says."""
    if quantity.bound == "none" or record.status is Status.NOISE_DOMINATED:
        return quantity.bound != "none"
    return record.status in UNFINISHED and quantity.numerical_error is None


def _row(
    path: str, quantities: Sequence[Quantity], index: tuple[int, ...], *, paired: bool, blocked: bool, unproven: bool
) -> Row:
    declared, elements = quantities[0], [_element(quantity, index) for quantity in quantities]
    entries = [declared.labels[dim][i] for dim, i in zip(declared.dims, index, strict=True)]
    first, last = elements[0], elements[-1]
    if declared.contrast == "ratio":
        estimate, interval = contrasts.ratio(first, last, paired=paired)
    else:
        outcome = 100.0 if declared.unit in ("%", "points") else 1.0
        estimate, interval = contrasts.difference(first, last, paired=paired, outcome=outcome)
    blind = unproven or (blocked and declared.contrast == "ratio" and declared.higher_is == "sharper")
    return Row(
        path=path + (f"[{','.join(entries)}]" if entries else ""),
        title=", ".join([title(*path.split("/")), *entries]),
        unit=declared.unit,
        values=tuple(element.value for element in elements),
        errors=tuple(element.error for element in elements),
        contrast=declared.contrast,
        estimate=estimate,
        interval=interval,
        verdict=_verdict(declared, estimate, interval, blind=blind),
        better=declared.better,
        higher_is=declared.higher_is,
        drawn=declared.drawn,
        dims=declared.dims,
        entries=tuple(entries),
    )


def _verdict(quantity: Quantity, estimate: float, interval: tuple[float, float], *, blind: bool) -> RowVerdict:
    if quantity.better == "none":
        return ""
    if math.isnan(estimate) or blind:
        return "cannot tell"
    if math.isnan(interval[0]):
        return ""
    equal = 1.0 if quantity.contrast == "ratio" else 0.0
    return "higher" if interval[0] > equal else "lower" if interval[1] < equal else "cannot tell"


def _element(quantity: Quantity, index: tuple[int, ...]) -> contrasts.Scalar:
    def at(values: Any) -> float:
        return math.nan if values is None else float(values[index])

    return contrasts.Scalar(
        value=at(quantity.value),
        numerical=at(quantity.numerical_error),
        sampling=at(quantity.sampling_error),
        chunks=None if quantity.chunks is None else np.moveaxis(quantity.chunks, 0, -1)[index],
        samples=None if quantity.dims else quantity.samples,
    )
