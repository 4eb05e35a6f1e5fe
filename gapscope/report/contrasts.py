"""How far apart two measurements are: ratios and differences with 95 % intervals, paired wherever possible.

Two checkpoints measured on the same data share its luck: the hard samples are hard for both.  Per-chunk values
(`Quantity.chunks`) let that common part cancel, which halves the noise of a ratio; 0/1 outcomes of the same samples
(`Quantity.samples`) do the same for a rate.  Numerical errors are bounds, not noise: they widen an interval linearly.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from gapscope.results import Array

LEVEL = 0.95
Z = float(ndtri((1 + LEVEL) / 2))
UNKNOWN = (math.nan, math.nan)


@dataclass(frozen=True, kw_only=True)
class Scalar:
    """One element of a quantity: errors are NaN where unknown, `chunks` and `samples` None."""

    value: float
    numerical: float = math.nan
    sampling: float = math.nan
    chunks: Array | None = None  # (chunks,)
    samples: NDArray[np.uint8] | None = None  # (N,)

    @property
    def error(self) -> float:
        """One standard error, both sources combined; NaN if neither is known."""
        known = [error for error in (self.numerical, self.sampling) if not math.isnan(error)]
        return math.hypot(*known) if known else math.nan


Contrasted = tuple[float, tuple[float, float]]


def ratio(first: Scalar, last: Scalar, *, paired: bool) -> Contrasted:
    """Return R = last / first and its interval.

    Paired chunks: with e_c = b_c/b - a_c/a, log R has the standard error std(e)/sqrt(C) and a t distribution with
    C - 1 degrees of freedom (delta method).  Otherwise the standard errors of the logarithms add in quadrature.
    A value that is not positive and finite has no ratio: NaN.
    """
    a, b = first.value, last.value
    if not (0 < a < math.inf and 0 < b < math.inf):
        return math.nan, UNKNOWN
    sampling = _paired_half_width(first, last, scales=(a, b)) if paired else math.nan
    if math.isnan(sampling):
        sampling = Z * math.hypot(first.sampling / a, last.sampling / b)
    half = sampling + _or_zero(first.numerical) / a + _or_zero(last.numerical) / b
    with np.errstate(over="ignore"):
        return b / a, (float(b / a * np.exp(-half)), float(b / a * np.exp(half)))


def difference(first: Scalar, last: Scalar, *, paired: bool, outcome: float = 1.0) -> Contrasted:
    """Return D = last - first and its interval: score interval of paired rates, paired t on chunks, or independent.

    `outcome` is what one positive sample counts, 100 for a rate in percent.
    """
    estimate = last.value - first.value
    if not math.isfinite(estimate):
        return math.nan, UNKNOWN
    numerical = _or_zero(first.numerical) + _or_zero(last.numerical)
    if paired and first.samples is not None and last.samples is not None and first.samples.size == last.samples.size:
        low, high = paired_rates(first.samples, last.samples)
        return estimate, (outcome * low - numerical, outcome * high + numerical)
    sampling = _paired_half_width(first, last, scales=(1.0, 1.0)) if paired else math.nan
    if math.isnan(sampling):
        sampling = Z * math.hypot(first.sampling, last.sampling)
    half = sampling + numerical
    return estimate, (estimate - half, estimate + half)


def _or_zero(error: float) -> float:
    return 0.0 if math.isnan(error) else error


def _paired_half_width(first: Scalar, last: Scalar, *, scales: tuple[float, float]) -> float:
    if first.chunks is None or last.chunks is None:
        return math.nan
    differences = last.chunks / scales[1] - first.chunks / scales[0]
    differences = differences[np.isfinite(differences)]  # fewer samples than chunks leave some chunks empty
    count = differences.size
    if count < 2:
        return math.nan
    return float(stdtrit(count - 1, (1 + LEVEL) / 2) * differences.std(ddof=1) / math.sqrt(count))


def paired_rates(first: NDArray[np.uint8], last: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the score interval of mean(last) - mean(first) for 0/1 outcomes of the same samples.

    It holds every D that the score test of p_last - p_first = D accepts; at D = 0 that test is McNemar's, so the
    interval excludes 0 exactly when McNemar's statistic (b - c)^2 / (b + c) exceeds z^2.
    Source: Tango, Statistics in Medicine 17 (1998) 891-908, eqs. for the constrained estimate; bisection is ours.
    """
    gained = int(np.sum((last == 1) & (first == 0)))
    lost = int(np.sum((last == 0) & (first == 1)))
    total = first.size
    if not total:
        return UNKNOWN
    estimate = (gained - lost) / total
    return _accepted(gained, lost, total, toward=-1.0, start=estimate), _accepted(
        gained, lost, total, toward=1.0, start=estimate
    )


def _accepted(gained: int, lost: int, total: int, *, toward: float, start: float) -> float:
    """Find by bisection where the score test begins to reject between the estimate and +-1."""
    inside, outside = start, toward
    for _ in range(60):  # 2^-60: exact in float64
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if _excess(gained, lost, total, middle) < 0 else (inside, middle)
    return (inside + outside) / 2


def _excess(gained: int, lost: int, total: int, delta: float) -> float:
    """(b - c - n D)^2 - z^2 n (2 q + D (1 - D)), with q the likeliest rate of losses given the difference D."""
    A = 2 * total
    B = -gained - lost + (2 * total - gained + lost) * delta
    C = -lost * delta * (1 - delta)
    q = (math.sqrt(max(B * B - 4 * A * C, 0.0)) - B) / (2 * A)
    return (gained - lost - total * delta) ** 2 - Z * Z * total * (2 * q + delta * (1 - delta))
