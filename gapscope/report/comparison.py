"""Compare reports: rows of values with the last subject's contrast against the first's, as data.

Two reports are comparable when /subject/conditions agree and when each shared analyzer ran in the same version with
the same settings (all but `seed`: a different start of an estimator measures the same thing).  Anything else is
refused, or forced and marked.  A side is one report, or the runs of one regime (`groups`).  What the rows mean
together is said in `reading`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from gapscope.errors import ComparisonError, UsageError
from gapscope.report import contrasts
from gapscope.report.groups import matched, sides_of, singles
from gapscope.report.reading import losses_differ, reading
from gapscope.report.records import Comparison, Record, Report, Row, RowVerdict, Subject, differing
from gapscope.report.sweep import BY_LOSS, against_loss
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
    by: str = "",
    names: Sequence[str] | None = None,
    match_loss: bool = False,
    by_loss: bool = False,
) -> Comparison:
    """Compare two or more reports or regimes; with more, the contrast is the last against the first.

    Several reports of one recorded batch size are the runs of one regime, unless there is a label for each report.
    `by` groups by another recorded key, `names` (one per report) by the caller's word.  Single reports without labels
    are ordered and named by their batch sizes if these all differ.  `together` holds what was measured on the same
    subjects together.

    `match_loss` compares, of the saved epochs of each run, those nearest in training loss (see `groups`); `by_loss`
    does so too, and keeps every number of every saved epoch as the result "by-loss".

    Raises: UsageError for fewer than two reports or unfit labels or regimes; ComparisonError, unless forced, if the
    reports do not measure the same thing, and always if they share no analyzer or count one run twice.
    """
    if len(reports) < 2:
        raise UsageError(f"{len(reports)} report to compare; expected at least two: `gapscope compare A B`.")
    if studies := [report for report in reports if "study" in report.identity]:
        raise ComparisonError(
            f"`{studies[0].identity.get('checkpoint')}` is a study of many runs. Expected reports of checkpoints. Show "
            "it: `gapscope show STUDY`, or compare the reports in its folder of runs."
        )
    matching = match_loss or by_loss
    saved = sides_of(reports, labels=labels, by=by, names=names, matching=matching)
    sides, note = matched(saved) if matching else (saved, "")
    subjects = tuple(side.subject() for side in sides)
    runs = [side.reports for side in sides]
    every = [report for side in runs for report in side]
    shared = [name for name in sorted(every[0].results, key=place) if all(_measured(name, one) for one in every)]
    if not shared:
        measured = "; ".join(f"{side.label}: {', '.join(side.reports[0].results) or 'none'}" for side in sides)
        raise ComparisonError(
            f"The reports share no analyzer ({measured}). Expected at least one in all of them. "
            "Measure alike: `gapscope sharpness CHECKPOINT` for each."
        )
    unlike = differences(every, shared)
    for name in shared if by_loss else ():  # its curves also stand on the epochs that were not chosen
        unlike |= differences([one for side in saved for one in side.reports if _measured(name, one)], (name,))
    if unlike and not force:
        said = "; ".join(f"{key}: {values}" for key, values in unlike.items())
        raise ComparisonError(
            f"The reports do not measure the same thing: {said}. Expected equal conditions and settings. "
            "Measure alike, or compare all the same with `--force`."
        )
    paired = not any(key.startswith(DATA_KEYS) for key in unlike)
    blocked = losses_differ(runs[0], runs[-1])
    rows = tuple(row for name in shared for row in _rows(name, runs, paired=paired, blocked=bool(blocked)))
    forced = tuple(unlike)
    sentences = reading(runs, subjects, rows, blocked=blocked, forced=forced)
    results, environment = (together.results, together.environment) if together else ({}, {})
    if by_loss:
        results = {**results, BY_LOSS: against_loss(saved, rows)}
    return Comparison(
        subjects=subjects,
        rows=rows,
        reading=(*sentences, note) if note else sentences,
        forced=forced,
        results=results,
        environment=environment,
    )


def _measured(name: str, report: Report) -> bool:
    return name in report.results and report.results[name].status is not Status.SKIPPED


def differences(reports: Sequence[Report], shared: Sequence[str]) -> dict[str, str]:
    """Return "a / b" for each condition and setting that does not agree, by key."""
    sides = [_preconditions(report, shared) for report in reports]
    keys = sorted({key for side in sides[1:] for key in differing(sides[0], side)})
    return {key: " / ".join(dict.fromkeys(str(side.get(key, "none")) for side in sides)) for key in keys}


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
    """Return single reports in the order in which `compare` shows them, each as a subject with its label.

    Raises: UsageError for unfit labels.
    """
    sides = singles(reports, labels)
    return tuple(side.reports[0] for side in sides), tuple(side.subject() for side in sides)


def _rows(name: str, sides: Sequence[Sequence[Report]], *, paired: bool, blocked: bool) -> Iterator[Row]:
    records = [[report.results[name] for report in side] for side in sides]
    every = [record for side in records for record in side]
    for key, declared in every[0].quantities.items():
        quantities = [[record.quantities.get(key) for record in side] for side in records]
        alike = [[q for q in side if q is not None and _alike(q, declared)] for side in quantities]
        if sum(map(len, alike)) != len(every) or declared.value.size > MOST:
            continue
        unproven = any(_unproven(record, record.quantities[key]) for record in every)
        for index in np.ndindex(declared.value.shape):
            yield _row(f"{name}/{key}", alike, index, paired=paired, blocked=blocked, unproven=unproven)


def _alike(one: Quantity, other: Quantity) -> bool:
    return one.dims == other.dims and dict(one.labels) == dict(other.labels)


def _unproven(record: Record, quantity: Quantity) -> bool:
    """Say whether a value is a bound of unknown distance; noise-dominated ones lie further off than any error says."""
    if quantity.bound == "none" or record.status is Status.NOISE_DOMINATED:
        return quantity.bound != "none"
    return record.status in UNFINISHED and quantity.numerical_error is None


def _row(
    path: str,
    sides: Sequence[Sequence[Quantity]],
    index: tuple[int, ...],
    *,
    paired: bool,
    blocked: bool,
    unproven: bool,
) -> Row:
    declared, elements = sides[0][0], [[_element(quantity, index) for quantity in side] for side in sides]
    entries = [declared.labels[dim][i] for dim, i in zip(declared.dims, index, strict=True)]
    first, last = elements[0], elements[-1]
    several = any(len(side) > 1 for side in elements)
    judged = declared.better != "none"
    estimate, interval = _contrast(declared, first, last, paired=paired)
    blind = unproven or (blocked and declared.contrast == "ratio" and declared.higher_is == "sharper")
    return Row(
        path=path + (f"[{','.join(entries)}]" if entries else ""),
        title=", ".join([title(*path.split("/")), *entries]),
        unit=declared.unit,
        values=tuple(_mean(side) for side in elements),
        errors=tuple(_error(side) for side in elements),
        contrast=declared.contrast,
        estimate=estimate,
        interval=interval,
        verdict=_verdict(declared, estimate, interval, blind=blind),
        better=declared.better,
        higher_is=declared.higher_is,
        drawn=declared.drawn,
        doc=declared.doc,
        dims=declared.dims,
        entries=tuple(entries),
        p=contrasts.permutation(first, last, declared.contrast) if several and judged else math.nan,
        runs=tuple(tuple(run.value for run in side) for side in elements) if several else (),
    )


def _contrast(
    declared: Quantity, first: Sequence[contrasts.Scalar], last: Sequence[contrasts.Scalar], *, paired: bool
) -> contrasts.Contrasted:
    """Contrast two groups over seeds, or two single runs over the data."""
    if len(first) > 1 or len(last) > 1:
        return contrasts.between(first, last, declared.contrast)
    if declared.contrast == "ratio":
        return contrasts.ratio(first[0], last[0], paired=paired)
    outcome = 100.0 if declared.unit in ("%", "points") else 1.0
    return contrasts.difference(first[0], last[0], paired=paired, outcome=outcome)


def _mean(side: Sequence[contrasts.Scalar]) -> float:
    with np.errstate(invalid="ignore"):  # infinite values of both signs
        return float(np.mean([run.value for run in side]))


def _error(side: Sequence[contrasts.Scalar]) -> float:
    return contrasts.deviation(np.array([run.value for run in side])) if len(side) > 1 else side[0].error


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
