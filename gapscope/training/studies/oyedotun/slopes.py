"""Slopes of near-ranks per doubling of the batch size, seed by seed, and their intervals over seeds."""

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import stdtrit
from scipy.stats import rankdata

from gapscope.report.contrasts import LEVEL, Contrasted, Scalar, between, deviation, mean_over
from gapscope.results import Array
from gapscope.training.studies.oyedotun.ranks import Found, Measure

DECIMALS = 9  # of slopes in points, and of correlations


def slopes(found: Found, values: Array) -> Array:
    """Return the least-squares slope of each seed over log2 of the batch size: values (seeds, sizes, ...)."""
    centred = np.array(found.doublings) - np.mean(found.doublings)
    return np.asarray(np.tensordot(values, centred, (1, 0)) / (centred @ centred), dtype=np.float64)


def over(runs: Array, rounding: float = 0.0) -> Contrasted:
    """Return the mean over seeds and Student's interval of it, with at least `rounding` as the seeds' deviation.

    Near-ranks are whole numbers, and seeds often agree in full: then they differ by less than rounding hides.
    """
    runs = np.round(runs, DECIMALS)  # what rounding of sums leaves between seeds that agree is no spread
    if not rounding or len(runs) < 2:
        return mean_over(runs)
    mean = float(runs.mean())
    quantile = float(stdtrit(len(runs) - 1, (1 + LEVEL) / 2))
    half = quantile * max(deviation(runs), rounding) / math.sqrt(len(runs))
    return mean, (mean - half, mean + half)


def rounding_of(found: Found, measures: Sequence[Measure], weights: Array) -> float:
    """Return the standard deviation that rounding to whole numbers gives a slope of weighted layers.

    A count is off by what is uniform between 0 and 1, of variance 1/12; a slope weighs sizes by their distance.
    """
    centred = np.array(found.doublings) - np.mean(found.doublings)
    each = np.stack([one.steps for one in measures]) * (centred / (centred @ centred))[:, None] * weights
    return float(np.sqrt((each**2).sum() / 12))


def _even(found: Found) -> Array:
    return np.full(len(found.layers), 1 / len(found.layers))


def slope(found: Found, measure: Measure) -> Contrasted:
    """Return the slope of a measure's mean over the hidden layers."""
    return over(slopes(found, measure.mean), rounding_of(found, [measure], _even(found)))


def beyond_control(found: Found) -> Contrasted:
    """Return the slope in own-batch mode less that of the control, seed by seed: what the columns do not explain."""
    own, control = found.own[0], found.control[0]
    return over(slopes(found, own.mean - control.mean), rounding_of(found, [own, control], _even(found)))


def with_depth(found: Found, *, proportion: bool = False) -> Contrasted:
    """Return by how much the slope on the same samples differs between the last and the first hidden layer.

    A seed's difference is that of the least-squares line through the slopes of its layers; a single layer has none.
    In proportion, slopes are of log2 of the near-rank.
    """
    places = np.linspace(-0.5, 0.5, len(found.layers))
    if len(places) < 2:
        return math.nan, (math.nan, math.nan)
    weights = places / (places @ places)
    shares = found.same[0].layers
    if proportion:
        return over(slopes(found, _log2(shares)) @ weights)
    return over(slopes(found, shares) @ weights, rounding_of(found, found.same[:1], weights))


def with_width(narrow: Found, wide: Found, *, proportion: bool = False) -> Contrasted:
    """Return the slope of the wide network less that of the narrow one, with Welch's interval over seeds."""
    shares = [_log2(one.same[0].mean) if proportion else one.same[0].mean for one in (narrow, wide)]
    sides = [
        [Scalar(value=float(run)) for run in slopes(one, of_one).round(DECIMALS)]
        for one, of_one in zip((narrow, wide), shares, strict=True)
    ]
    return between(sides[0], sides[1], "difference")


def _log2(shares: Array) -> Array:
    with np.errstate(divide="ignore"):  # a layer that is dead: then there is no slope
        logarithms = np.log2(shares)
    return np.where(np.isfinite(logarithms), logarithms, math.nan)


def rank_correlation(x: Array, y: Array) -> Contrasted:
    """Return Spearman's rank correlation over all runs, (seeds, sizes) each, and its jackknife interval over seeds.

    The pseudo-values k r - (k - 1) r_i leave one of the k seeds out each; their spread is the interval's.  NaN where
    one side is constant.
    """
    count, whole = len(x), _spearman(x, y)
    if count < 2:
        return whole, (math.nan, math.nan)
    others = np.array([_spearman(np.delete(x, i, axis=0), np.delete(y, i, axis=0)) for i in range(count)])
    center, (low, high) = over(count * whole - (count - 1) * others)
    return whole, (max(low - center + whole, -1.0), min(high - center + whole, 1.0))


def _spearman(x: Array, y: Array) -> float:
    ranks = np.array([rankdata(x.ravel()), rankdata(y.ravel())])
    ranks -= ranks.mean(axis=1, keepdims=True)
    spreads = (ranks**2).sum(axis=1)
    return float(ranks[0] @ ranks[1] / np.sqrt(spreads.prod())) if spreads.all() else math.nan


def layer_slope(found: Found, measure: Measure, layer: int) -> Contrasted:
    """Return the slope of one hidden layer."""
    alone = np.eye(len(found.layers))[layer]
    return over(slopes(found, measure.layers[:, :, layer]), rounding_of(found, [measure], alone))
