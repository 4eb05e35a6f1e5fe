"""How often a 95 % interval covers the truth, and how often a test of 5 % rejects it: by simulation of known truths.

The noise has the size seen on the digits: chunks of a top eigenvalue vary by 50 %, of which two networks share all but
some 20 %; training seeds vary by 5 to 30 %.
"""

import numpy as np
import pytest

from gapscope.report.contrasts import Scalar, between, difference, permutation, ratio, smallest_p
from gapscope.results import CHUNKS

TRIALS = 2_000  # standard error of a coverage: 0.5 points
TRUTH = 1.6
SEEDS = 5


def scalars(values):
    return [Scalar(value=float(value)) for value in values]


def chunks(rng, noise):
    """(trials, chunks, 2): luck of the data that both networks share, and some of each; expectations 1 and TRUTH."""
    common, own = rng.normal(size=(TRIALS, CHUNKS, 1)), rng.normal(size=(TRIALS, CHUNKS, 2))
    if noise == "normal":
        return np.array([1.0, TRUTH]) * (1 + 0.5 * common + 0.2 * own)
    return np.array([1.0, TRUTH]) * np.exp(0.5 * common + 0.2 * own - (0.5**2 + 0.2**2) / 2)


@pytest.mark.parametrize("noise", ["normal", "log-normal"])
@pytest.mark.parametrize(("contrast", "truth"), [(ratio, TRUTH), (difference, TRUTH - 1)])
def test_the_paired_interval_over_32_chunks_covers_the_truth(noise, contrast, truth):
    covered = 0
    for sides in chunks(np.random.default_rng(1), noise):
        first, last = (Scalar(value=side.mean(), chunks=side) for side in sides.T)
        _, (low, high) = contrast(first, last, paired=True)
        covered += low <= truth <= high
    assert 0.92 <= covered / TRIALS <= 0.98


def seeds(rng, *, spread=(0.1, 0.1 * 3**0.5), truth=TRUTH, trials=TRIALS):
    """(trials, 2, seeds): log-normal, with variances of 1 to 3; geometric means 1 and `truth`."""
    noise = rng.normal(size=(trials, 2, SEEDS)) * np.array(spread)[:, None]
    return np.exp(noise) * np.array([1.0, truth])[:, None]


@pytest.mark.parametrize("spread", [(0.1, 0.1), (0.1, 0.1 * 3**0.5), (0.3, 0.05)])
def test_the_ratio_of_five_seeds_each_covers_the_truth(spread):
    covered = 0
    for first, last in seeds(np.random.default_rng(2), spread=spread):
        _, (low, high) = between(scalars(first), scalars(last), "ratio")
        covered += low <= TRUTH <= high
    assert 0.92 <= covered / TRIALS <= 0.98


def test_the_difference_of_five_seeds_each_covers_the_truth():
    rng, covered = np.random.default_rng(3), 0
    for first, last in zip(rng.normal(90, 0.5, (TRIALS, SEEDS)), rng.normal(88, 0.9, (TRIALS, SEEDS)), strict=True):
        _, (low, high) = between(scalars(first), scalars(last), "difference")
        covered += low <= -2 <= high
    assert 0.92 <= covered / TRIALS <= 0.98


def test_a_bootstrap_of_five_seeds_would_cover_too_seldom():
    """Why Welch was taken: the percentile bootstrap of the same trials covers 85 %."""
    rng, covered = np.random.default_rng(2), 0
    for pair in np.log(seeds(rng)):
        drawn = np.array([rng.choice(side, (1000, SEEDS)).mean(axis=1) for side in pair])
        low, high = np.quantile(drawn[1] - drawn[0], [0.025, 0.975])
        covered += low <= np.log(TRUTH) <= high
    assert covered / TRIALS < 0.90


def test_the_permutation_test_rejects_equal_regimes_as_often_as_it_says():
    trials = seeds(np.random.default_rng(4), spread=(0.2, 0.2), truth=1.0)
    p = np.array([permutation(scalars(first), scalars(last), "ratio") for first, last in trials])
    for level in (0.05, 0.2, 0.5):
        error = (level * (1 - level) / TRIALS) ** 0.5
        assert abs(np.mean(p <= level) - level) < 3 * error


def test_three_against_three_never_reach_five_percent():
    first, last = scalars([1.0, 1.1, 1.2]), scalars([100.0, 110.0, 120.0])
    assert permutation(first, last, "ratio") == pytest.approx(smallest_p(3, 3)) == pytest.approx(0.1)
