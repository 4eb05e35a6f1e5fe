"""How far apart two measurements are: ratios and differences with 95 % intervals, paired wherever possible.

Two checkpoints measured on the same data share its luck: the hard samples are hard for both.  Per-chunk values
(`Quantity.chunks`) let that common part cancel, which halves the noise of a ratio; 0/1 outcomes of the same samples
(`Quantity.samples`) do the same for a rate.  Numerical errors are bounds, not noise: they widen an interval linearly.

Several training runs of each regime are independent draws of the seed: there the spread between runs is what counts.
"""

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from gapscope.results import Array, Contrast

LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
UNKNOWN = (math.nan, math.nan)
MOST_SPLITS = 200_000  # 10 against 10 runs have 184,756


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
    Numerical errors are bounds of both values: the ends are (b - nb) / (a + na) and (b + nb) / (a - na), the first 0
    and the second infinite where an error is as large as its value.
    A value that is not positive and finite has no ratio: NaN.
    """
    a, b = first.value, last.value
    if not (0 < a < math.inf and 0 < b < math.inf):
        return math.nan, UNKNOWN
    sampling = _paired_half_width(first, last, scales=(a, b)) if paired else math.nan
    if math.isnan(sampling):
        sampling = Z * math.hypot(first.sampling / a, last.sampling / b)
    x, y = _or_zero(first.numerical), _or_zero(last.numerical)
    low, high = (b - y) / (a + x) if y < b else 0.0, (b + y) / (a - x) if x < a else math.inf
    with np.errstate(over="ignore"):
        return b / a, (float(low * np.exp(-sampling)), float(high * np.exp(sampling)))


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


def between(first: Sequence[Scalar], last: Sequence[Scalar], kind: Contrast) -> Contrasted:
    """Return the contrast of two groups of runs and Welch's interval of it over seeds.

    Ratio: that of geometric means, Welch on logarithms.  Difference: that of means, Welch on values.  With the
    variances s^2 of a and b runs, the half width is t(v) sqrt(s_a^2/a + s_b^2/b), v by Welch and Satterthwaite.  The
    numerical errors, averaged over the runs of a group, widen it.  One run has no spread, and runs that all agree say
    nothing of it: then there is no interval.
    Why not a bootstrap: of 5 runs each it covers less than 90 % (tests/test_coverage.py).
    """
    sides = [_scale_of(side, kind) for side in (first, last)]
    if not all(side.size and np.isfinite(side).all() for side in sides):
        return math.nan, UNKNOWN
    a, b = sides
    estimate = float(b.mean() - a.mean())
    half = _welch(a, b) + sum(_numerical(side, kind) for side in (first, last))
    if kind == "difference":
        return estimate, (estimate - half, estimate + half)
    with np.errstate(over="ignore"):
        low, middle, high = np.exp([estimate - half, estimate, estimate + half]).tolist()
    return middle, (low, high)


def _scale_of(side: Sequence[Scalar], kind: Contrast) -> Array:
    """Return the runs' values on the scale on which regimes differ by a shift; NaN where a value has no logarithm."""
    values = np.array([run.value for run in side])
    if kind == "difference":
        return values
    return np.asarray(np.log(values, out=np.full(values.shape, math.nan), where=values > 0))


def _numerical(side: Sequence[Scalar], kind: Contrast) -> float:
    widths = [_or_zero(run.numerical) for run in side]
    if kind == "ratio":  # on logarithms, the wider side
        shares = [width / run.value for width, run in zip(widths, side, strict=True)]
        widths = [-math.log1p(-share) if share < 1 else math.inf for share in shares]
    return math.fsum(widths) / len(widths)


def _welch(a: Array, b: Array) -> float:
    """Return half the width of Welch's interval; NaN where a group is one run or neither shows any spread."""
    if min(a.size, b.size) < 2:
        return math.nan
    shares = [deviation(side) ** 2 / side.size for side in (a, b)]
    variance = sum(shares)
    if not variance:
        return math.nan
    freedom = variance**2 / (shares[0] ** 2 / (a.size - 1) + shares[1] ** 2 / (b.size - 1))
    return _quantile(freedom) * math.sqrt(variance)


def mean_over(values: Array, kind: Contrast = "difference") -> Contrasted:
    """Return the mean of one number per run and Student's interval of it: m -+ t(k - 1) s / sqrt(k) over k runs.

    Of ratios the mean is the geometric one, and the interval is on logarithms.  One run, or runs that all agree, say
    nothing of the spread: then there is no interval.
    """
    values = np.asarray(values, dtype=np.float64)
    if kind == "ratio":
        values = np.log(values, out=np.full(values.shape, math.nan), where=values > 0)
    mean = float(values.mean()) if np.isfinite(values).all() and values.size else math.nan
    spread = deviation(values) if values.size > 1 and math.isfinite(mean) else 0.0
    half = _quantile(values.size - 1) * spread / math.sqrt(values.size) if spread else math.nan
    if kind == "difference":
        return mean, (mean - half, mean + half)
    with np.errstate(over="ignore"):
        low, middle, high = np.exp([mean - half, mean, mean + half]).tolist()
    return middle, (low, high)


def slope_over(places: Sequence[float], runs: Array) -> Contrasted:
    """Return the mean over runs of the least-squares slope of each run's values (runs, places), as `mean_over` does.

    Places that are all one have no slope, nor has a run with a value that is not finite: NaN.
    """
    centred, values = np.asarray(places, dtype=np.float64) - np.mean(places), np.asarray(runs, dtype=np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        slopes = values @ centred / (centred @ centred)
        size = np.abs(values).max() / np.abs(centred).max()  # rounding is relative to it, and no spread over runs
        return mean_over(np.round(slopes / size, 12) * size if 0 < size < math.inf else slopes)


def deviation(values: Array) -> float:
    """Return the sample standard deviation; exactly 0 where all are one, as rounding of their mean would hide."""
    with np.errstate(invalid="ignore"):  # infinite values
        return float(values.std(ddof=1)) if values.min() != values.max() else 0.0


def permutation(first: Sequence[Scalar], last: Sequence[Scalar], kind: Contrast) -> float:
    """Return the two-sided p of the exact permutation test of equal regimes.

    It is the share of all ways to deal the runs to the two groups that set their means (of logarithms, for a ratio)
    at least as far apart as they are.  NaN where there is no contrast, or more than `MOST_SPLITS` ways.
    """
    a, b = (_scale_of(side, kind) for side in (first, last))
    values = np.concatenate([a, b])
    if not np.isfinite(values).all() or math.comb(values.size, a.size) > MOST_SPLITS:
        return math.nan
    dealt = _splits(values.size, a.size)
    values = values - values.mean()  # then the other group's sum is minus this one's, and |sum| orders the contrasts
    far = np.abs(dealt @ values)
    return float(np.mean(far >= abs(values[: a.size].sum()) - 1e-12 * np.abs(values).sum()))


def smallest_p(first: int, last: int) -> float:
    """Return the smallest p that `permutation` can reach: groups of one size have each split twice, mirrored."""
    return (2 if first == last else 1) / math.comb(first + last, first)


@functools.lru_cache(maxsize=2)
def _splits(total: int, chosen: int) -> Array:
    """Return all ways to choose, one per row: (splits, total) of 0 and 1."""
    rows = list(itertools.combinations(range(total), chosen))
    found = np.zeros((len(rows), total))
    found[np.arange(len(rows))[:, None], rows] = 1
    return found


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
    return _quantile(count - 1) * float(differences.std(ddof=1)) / math.sqrt(count)


def rate(samples: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the score interval of a rate from 0/1 outcomes (N,): also where all are alike it has a width.

    (p + z^2 / 2N -+ z sqrt(p (1 - p) / N + z^2 / 4N^2)) / (1 + z^2 / N).  Source: Wilson 1927 (J. Am. Stat. Assoc. 22).
    """
    if not samples.size:
        return UNKNOWN
    p, share = float(samples.mean()), Z**2 / samples.size
    half = math.sqrt(p * (1 - p) * share + share**2 / 4)
    return (p + share / 2 - half) / (1 + share), (p + share / 2 + half) / (1 + share)


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


def _quantile(freedom: float) -> float:
    """Return the quantile of Student's t for an interval at LEVEL."""
    from scipy.special import stdtrit  # here: importing it takes longer than all else that a gate does

    return float(stdtrit(freedom, (1 + LEVEL) / 2))
