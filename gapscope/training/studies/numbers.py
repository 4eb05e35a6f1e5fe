"""Numbers out of reports, and groups of them against each other."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from gapscope.errors import ReportError, did_you_mean
from gapscope.report.contrasts import Contrasted, Scalar, between, deviation
from gapscope.report.figures import figure
from gapscope.report.outcome import Claim
from gapscope.report.reading import losses_differ
from gapscope.report.records import Report
from gapscope.results import Array, Contrast, Quantity

ACCURACIES = ("gap/train_accuracy", "gap/test_accuracy")


def scalar(report: Report, path: str, **labels: str) -> Scalar:
    """Return one number of a report with its errors: "analyzer/quantity", and the label along each dimension.

    An accuracy is NaN where the loss knows no right answer.
    Raises: ReportError where the report has no such number.
    """
    known = {f"{name}/{key}": one for name, record in report.results.items() for key, one in record.quantities.items()}
    if path in ACCURACIES and path not in known and "gap" in report.results:
        return Scalar(value=math.nan)
    if path not in known:
        raise ReportError(
            f"The report of {report.identity.get('checkpoint')} has no `{path}`.{did_you_mean(path, known)} Expected "
            f"one of {', '.join(known) or 'some number'}. Measure it, or ask for another."
        )
    quantity = known[path]
    where = _place(quantity, path, labels)
    errors = (
        float("nan") if error is None else float(error[where])
        for error in (quantity.numerical_error, quantity.sampling_error)
    )
    numerical, sampling = errors
    return Scalar(value=float(quantity.value[where]), numerical=numerical, sampling=sampling)


def _place(quantity: Quantity, path: str, labels: dict[str, str]) -> tuple[int, ...]:
    """Return where the labels are; raises ReportError where they are not, or not one along each dimension."""
    if set(labels) != set(quantity.dims):
        raise ReportError(
            f"`{path}` was asked for along ({', '.join(labels)}). Expected a label along each of "
            f"({', '.join(quantity.dims)}). Name them, and no other."
        )
    for dim, label in labels.items():
        if label not in (known := quantity.labels[dim]):
            raise ReportError(
                f"`{path}` has no {dim} `{label}`.{did_you_mean(label, known)} Expected one of {', '.join(known)}. "
                "Name one of them."
            )
    return tuple(quantity.labels[dim].index(labels[dim]) for dim in quantity.dims)


def numbers(reports: Sequence[Report], path: str, **labels: str) -> Array:
    """Return one number of each report, (runs,)."""
    return np.array([scalar(report, path, **labels).value for report in reports])


def contrast(
    first: Sequence[Report], last: Sequence[Report], path: str, kind: Contrast = "ratio", **labels: str
) -> Contrasted:
    """Return the ratio or difference of two groups of runs, last over first, with Welch's interval over the runs."""
    sides = [[scalar(report, path, **labels) for report in side] for side in (first, last)]
    return between(sides[0], sides[1], kind)


def mean_std(values: Sequence[float] | Array) -> str:
    """Return "mean ± standard deviation" over runs, as the papers' tables have it; of none a dash."""
    given = np.asarray(values, dtype=np.float64)
    if not np.isfinite(given).all() or not given.size:
        return figure(float("nan"))
    spread = deviation(given) if given.size > 1 else float("nan")
    return figure(float(given.mean()), spread) + " ± 0" * (spread == 0)


def averaged(seeds: int) -> str:
    """Return what the numbers of a table are: means with deviations, or those of a single seed."""
    return f"mean ± standard deviation over {seeds} seeds" if seeds != 1 else "a single seed"


def averaged_doc(doc: str, seeds: int) -> str:
    """Return what a quantity is, of several seeds or of one."""
    return f"{doc}, mean over {seeds} seeds; errors are over seeds" if seeds != 1 else f"{doc}, a single seed"


def minding_loss(claim: Claim, first: Sequence[Report], last: Sequence[Report], *, judge: bool = False) -> Claim:
    """Return a claim on sharpness with how far apart the mean training losses are, where that is more than two-fold.

    Sharpness then differs by training progress alone: a claim that was to be one at equal loss (`judge`) cannot be
    told.
    """
    why = losses_differ(first, last)
    if not why:
        return claim
    said = f"{claim.because}; {why[:1].lower()}{why[1:]}"
    return replace(claim, because=said, verdict="cannot tell" if judge else claim.verdict)
