"""Judge reports by thresholds: every check passes, fails, is unsure, is skipped, or cannot be judged.

A verdict comes from an interval [lo, hi] that holds the number: it passes within the limit, fails beyond, and is unsure
where the limit lies inside.  On whole data the interval is the numerical error alone: the model is fixed and the data
are the data.  The error over the data is added (95 %) where only a part of them was measured (`--limit`), or where the
claim is about the population that they were drawn from.

Exit codes, worst first: 2 a check cannot be judged, 1 one fails, 3 one is unsure, 0 none of these.  2 comes before 1
because whoever sees a 1 mends the model, and a gate that could not look at everything must be mended first; 1 comes
before 3 because a violation stays one, however the unsure check turns out.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gapscope.report.comparison import differences
from gapscope.report.contrasts import Z, rate
from gapscope.report.records import Record, Report
from gapscope.report.thresholds import (
    LIMITS,
    RELATIVE,
    Change,
    Element,
    Threshold,
    analyzers,
    elements,
    matches,
    select,
)
from gapscope.results import ROUNDING, Status

Verdict = Literal["pass", "fail", "unsure", "skipped", "cannot be judged"]
Interval = tuple[float, float]
OnUnsure = Literal["pass", "fail", "3"]

# Some numerical errors are standard errors of random probes.  At one of them, two seeds would contradict each other
# (one passes, one fails) with a probability of up to 2 * 0.159^2 = 0.05 near a limit, at three with 4e-6.
NUMERICAL = 3.0
EXACT = (Status.EXACT, Status.NO_TEST_DATA)  # what was measured has no error but rounding
REFUSED = (Status.NONFINITE, Status.NOISE_DOMINATED, Status.SKIPPED)
EVERYWHERE = (-math.inf, math.inf)
BUDGETS = ("max_matvecs", "probes", "draws", "steps")  # options that buy a smaller numerical error


@dataclass(frozen=True, kw_only=True)
class Check:
    """One limit on one number of one report, and its verdict.

    `observed` is what the limit is about: the value, or its change from the baseline, as an amount or as a share
    (`share`) of the baseline's size; `interval` holds it.
    """

    report: str
    path: str
    title: str
    unit: str
    rule: str
    limit: float
    verdict: Verdict
    level: Literal["error", "warn"]
    share: bool = False
    value: float = math.nan
    baseline: float = math.nan
    observed: float = math.nan
    interval: Interval = (math.nan, math.nan)
    reason: str = ""
    settle: str = ""


def judge(
    reports: Mapping[str, Report],
    thresholds: Sequence[Threshold],
    *,
    baseline: Report | None = None,
    known: Mapping[str, Iterable[str]] | None = None,
    allow_differences: bool = False,
) -> tuple[Check, ...]:
    """Return every check of every report, by the reports' names.

    `known` are the quantities of the analyzers: what is among them and was not measured cannot be judged, and what is
    in neither is a mistake.

    Raises: UsageError for a threshold that selects nothing.
    """
    found = {one.selector: select(one.selector, list(reports.values()), known or {}) for one in thresholds}
    checks: list[Check] = []
    for position, (name, report) in enumerate(reports.items()):
        for threshold in thresholds:
            selected = found[threshold.selector][position]
            checks += _missing(name, report, threshold, selected, baseline, known or {})
            for element in selected:
                case = _Case(name, report, element, threshold, baseline, allow_differences)
                checks += [_check(case, rule) for rule in LIMITS if getattr(threshold, rule) is not None]
    return tuple(checks)


def exit_code(checks: Iterable[Check], on_unsure: OnUnsure = "3") -> int:
    """Return the exit code of the checks whose level is error: 2 before 1 before 3 before 0, as said above."""
    unsure = {"pass": 0, "fail": 1, "3": 3}[on_unsure]
    codes = {"pass": 0, "skipped": 0, "fail": 1, "unsure": unsure, "cannot be judged": 2}
    found = {codes[check.verdict] for check in checks if check.level == "error"}
    return next((code for code in (2, 1, 3) if code in found), 0)


@dataclass(frozen=True)
class _Case:
    name: str
    report: Report
    element: Element
    threshold: Threshold
    baseline: Report | None
    allow_differences: bool

    @property
    def population(self) -> bool:
        return self.threshold.claim == "population" or bool(self.report.conditions.get("limit"))


def _blank(name: str, threshold: Threshold, rule: str, **facts: Any) -> Check:
    """Return a check that cannot be judged, for all that is known before one looks at the number."""
    limit = getattr(threshold, rule)
    change = limit if isinstance(limit, Change) else Change(amount=limit)
    return Check(
        report=name,
        rule=rule,
        limit=change.amount,
        share=change.share,
        verdict="cannot be judged",
        level=threshold.level,
        **facts,
    )


def _missing(
    name: str,
    report: Report,
    threshold: Threshold,
    selected: Sequence[Element],
    baseline: Report | None,
    known: Mapping[str, Iterable[str]],
) -> Iterator[Check]:
    """Yield what a selector stands for and a report lacks: no pattern passes for what was not measured."""
    selector, rules = threshold.selector, [rule for rule in LIMITS if getattr(threshold, rule) is not None]
    lacking: dict[str, tuple[str, str, Sequence[str]]] = {}  # by path: why, what to do, and the rules that ask for it
    analyzer, _, key = selector.partition("[")[0].partition("/")
    if not selected:
        record = report.results.get(analyzer)
        how = "as in the other reports" if "*" in analyzer else f"`gapscope {analyzer} CHECKPOINT`"
        why = "it is not in the report" + (f": {record.message}" if record else "")
        lacking[selector] = why, "" if record else f"measure it: {how}", rules
    else:
        for other in analyzers(selector, known):
            record = report.results.get(other)
            if record and record.status is Status.SKIPPED and all(one.record is not record for one in selected):
                lacking[f"{other}/{key}"] = "; ".join([record.message, *record.notes[:1]]), "", rules
        there = {element.path.partition("[")[0] for element in selected}
        for old in elements(baseline) if baseline else ():
            path = old.path.partition("[")[0]
            if path not in there and f"{old.record.analyzer}/{key}" not in lacking and matches(selector, old.path):
                asked = [rule for rule in rules if rule in RELATIVE]
                lacking[path] = "the baseline has it, and the report does not", "measure it, too", asked
    for path, (why, settle, broken) in lacking.items():
        for rule in broken:
            yield _blank(name, threshold, rule, path=path, title=path, unit="", reason=why, settle=settle)


def _check(case: _Case, rule: str) -> Check:
    element, limit = case.element, getattr(case.threshold, rule)
    value, unit = element.at(element.quantity.value), element.quantity.unit
    blank = _blank(case.name, case.threshold, rule, path=element.path, title=element.name, unit=unit, value=value)
    if reason := _unusable(element, allow_differences=case.allow_differences):
        return dataclasses.replace(blank, reason=reason)
    if rule in RELATIVE:
        return _relative(blank, case, limit)
    interval = interval_of(element, population=case.population)
    verdict = _beside(interval, limit, upper=rule == "max")
    settle = _settle(case) if verdict == "unsure" else ""
    return dataclasses.replace(blank, verdict=verdict, observed=value, interval=interval, settle=settle)


def _unusable(element: Element, *, allow_differences: bool) -> str:
    """Say why a number proves nothing, or return an empty string."""
    record = element.record
    if record.status in REFUSED:
        return "; ".join([record.message, *record.notes[:1]])
    if not math.isfinite(element.at(element.quantity.value)):
        return "the value is not a finite number"
    if record.settings.get("hvp") == "differences" and not allow_differences:
        return "second derivatives were taken by differences: `--allow-differences` judges them all the same"
    return ""


def interval_of(element: Element, *, population: bool) -> Interval:
    """Return the interval that holds the number; a bound of unknown distance has an open end."""
    quantity, value = element.quantity, element.at(element.quantity.value)
    numerical, sampling = _numerical(element), 0.0
    if population:
        error = element.at(quantity.sampling_error)
        sampling = math.inf if math.isnan(error) else Z * error
    below, above = value - sampling, value + sampling
    if population and quantity.samples is not None:
        below, above = _rate(quantity.samples, quantity.unit)
    proven = min(numerical, ROUNDING * abs(value))
    low = below - (proven if quantity.bound == "lower" else numerical)
    high = above + (proven if quantity.bound == "upper" else numerical)
    opened = _opened(element)
    return -math.inf if opened[0] else low, math.inf if opened[1] else high


def _rate(samples: NDArray[np.uint8], unit: str) -> Interval:
    low, high = rate(samples)
    scale = 100.0 if unit == "%" else 1.0
    return scale * low, scale * high


def _numerical(element: Element) -> float:
    """Return the numerical error as a half width; what was computed in full has none, others may lack a stated one."""
    error = element.at(element.quantity.numerical_error)
    if math.isnan(error):
        return 0.0 if element.record.status in EXACT else math.inf
    return NUMERICAL * error


def _opened(element: Element) -> tuple[bool, bool]:
    """Say whether the truth may lie any distance below, and above, the value."""
    unfinished = element.record.status is Status.BUDGET_SPENT
    return element.quantity.bound == "upper" and unfinished, element.quantity.bound == "lower" and unfinished


def _beside(interval: Interval, limit: float, *, upper: bool) -> Verdict:
    low, high = interval if upper else (-interval[1], -interval[0])
    limit = limit if upper else -limit
    return "pass" if high <= limit else "fail" if low > limit else "unsure"


def _relative(blank: Check, case: _Case, limit: Change) -> Check:
    """Judge a change: as a ratio where both values are positive, else against the same share of the baseline's size."""
    if case.baseline is None:
        return dataclasses.replace(
            blank,
            verdict="skipped",
            reason="there is no baseline yet",
            settle=f'`gapscope baseline accept {case.name} --reason "..."`, then `--baseline baseline.h5`',
        )
    found = _counterpart(case)
    if isinstance(found, str):
        return dataclasses.replace(blank, reason=found)
    old, new = found.at(found.quantity.value), blank.value
    upper = blank.rule == "max_increase"
    share = limit.share and old > 0 and new > 0
    allowed = limit.amount if share or not limit.share else limit.amount * abs(old)
    amounts = _contrast(case, found, share=False)
    interval = _contrast(case, found, share=True) if share else amounts
    if _identical(found.record, case.element.record):  # the same computation of the same thing: no error is its own
        interval = amounts = (0.0, 0.0)
    sign, least = 1.0 if upper else -1.0, case.threshold.min_delta
    scale = 1 + allowed if share else max(abs(old), abs(new))
    observed, *ends = _snapped((new / old - 1 if share else new - old, *interval), sign * allowed, scale)
    interval = (ends[0], ends[1])
    verdicts = {_beside(interval, sign * allowed, upper=upper)}
    if least:
        low, high = _snapped(amounts, sign * least, max(abs(old), abs(new)))
        verdicts |= {_beside((low, high), sign * least, upper=upper)}
    verdict: Verdict = "pass" if "pass" in verdicts else "unsure" if "unsure" in verdicts else "fail"
    return dataclasses.replace(
        blank,
        verdict=verdict,
        limit=allowed,
        share=share,
        baseline=old,
        observed=observed,
        interval=interval,
        settle=_settle(case) if verdict == "unsure" else "",
    )


def _snapped(changes: Iterable[float], limit: float, scale: float) -> list[float]:
    """Take the rounding of subtraction away: from 92.8 to 92.7 is 0.1, and passes where 0.1 is allowed."""
    return [limit if abs(change - limit) <= 1e-12 * scale else change for change in changes]


def _counterpart(case: _Case) -> Element | str:
    """Return the same number of the baseline, or why there is none to compare with."""
    assert case.baseline is not None
    name = case.element.record.analyzer
    record = case.baseline.results.get(name)
    quantity = None if record is None else record.quantities.get(case.element.path.partition("[")[0].partition("/")[2])
    if record is None or quantity is None:
        return "the baseline does not have it: accept one that does"
    if keys := differences((case.baseline, case.report), (record.analyzer,)):
        said = "; ".join(f"{key}: {values}" for key, values in keys.items())
        return f"incomparable with the baseline: {said}"
    alike = quantity.dims == case.element.quantity.dims and dict(quantity.labels) == dict(case.element.quantity.labels)
    if not alike:
        return "incomparable with the baseline: its entries have other labels"
    old = dataclasses.replace(case.element, record=record, quantity=quantity)
    said = _unusable(old, allow_differences=case.allow_differences)
    return f"the baseline cannot be used: {said}" if said else old


def _identical(old: Record, new: Record) -> bool:
    """Say whether every number of two records is the same, bit by bit."""
    return old.quantities.keys() == new.quantities.keys() and all(
        np.array_equal(quantity.value, new.quantities[key].value, equal_nan=True)
        for key, quantity in old.quantities.items()
    )


def _contrast(case: _Case, old: Element, *, share: bool) -> Interval:
    """Return the interval of new / old - 1, or of new - old: paired where the error over the data counts."""
    from gapscope.report import contrasts

    def scalar(element: Element) -> contrasts.Scalar:
        quantity, index = element.quantity, element.index
        return contrasts.Scalar(
            value=element.at(quantity.value),
            numerical=_numerical(element),
            sampling=element.at(quantity.sampling_error) if case.population else 0.0,
            chunks=None if quantity.chunks is None else np.moveaxis(quantity.chunks, 0, -1)[index],
            samples=None if quantity.dims else quantity.samples,
        )

    first, last = scalar(old), scalar(case.element)
    if share:
        _, (low, high) = contrasts.ratio(first, last, paired=case.population)
        low, high = low - 1, high - 1
    else:
        outcome = 100.0 if old.quantity.unit in ("%", "points") else 1.0
        _, (low, high) = contrasts.difference(first, last, paired=case.population, outcome=outcome)
    if math.isnan(low):
        return EVERYWHERE
    before, now = _opened(old), _opened(case.element)
    return -math.inf if now[0] or before[1] else low, math.inf if now[1] or before[0] else high


def _settle(case: _Case) -> str:
    """Return what would shrink the interval: more data where their error is the larger one, else more work."""
    element, settings = case.element, case.element.record.settings
    sampling = Z * element.at(element.quantity.sampling_error)
    if case.population and element.quantity.samples is not None:  # 20 of 20 right have a standard error of 0
        sampling = float(np.ptp(_rate(element.quantity.samples, element.quantity.unit))) / 2
    if case.population and not sampling <= _numerical(element):
        if not case.report.conditions.get("limit"):
            return 'more data, or `claim = "data"`'
        known = math.isfinite(sampling)
        return f"more samples: {'a larger `--limit`, or none' if known else 'no `--limit`: their error is not known'}"
    if element.quantity.bound == "none" and math.isinf(_numerical(element)):
        return "nothing: no numerical error is stated for it, and another seed may give another value"
    options = [f"`--{name.replace('_', '-')}`" for name in BUDGETS if settings.get(name)]
    if element.record.status is not Status.BUDGET_SPENT and "tolerance" in settings:
        return f"more work: a smaller `--tolerance` of `gapscope {element.record.analyzer} CHECKPOINT`"
    if not options:
        return "double precision: `--dtype float64`"
    return f"more work: more {' or '.join(options)} of `gapscope {element.record.analyzer} CHECKPOINT`"
