import numpy as np
import pytest

from gapscope.training.studies.dai_zhu.odds import PLACES, SETTLED, Settling, flatter
from gapscope.training.studies.dai_zhu.wells import Landscape, Walk, relaxation

VALLEY = Landscape(across=(4.0, 0.25))


def settling(size, odds, *, lengths=10.0, spread=0.02):
    """Return walkers whose late odds are these, up to a spread over three seeds, and which start in the sharp well."""
    walk = Walk(variance=25.0, rate=0.02, batch_size=size)
    late = np.array([odds * (1 + spread * shift) for shift in np.roll((-1, 0, 1), size)])
    share = np.zeros((3, PLACES))
    share[:, PLACES // 2 :] = (late / (1 + late))[:, None]
    return Settling(landscape=VALLEY, walk=walk, iterations=round(lengths * relaxation(VALLEY, walk)), share=share)


@pytest.mark.parametrize(
    ("first", "last", "verdict"),
    [
        (3.5, 3.6, "shows"),
        (0.5, 0.5, "does not show"),  # alike, and the sharp well is the likelier one
        (6.0, 3.0, "does not show"),  # both flat, and not alike
        (3.75, 3.0, "cannot tell"),  # a ratio of 1.25, give or take
        (1.0, 1.0, "cannot tell"),
    ],
)
def test_the_flat_well_must_be_likelier_and_as_likely_everywhere(first, last, verdict):
    claim = flatter([settling(2, first), settling(3, last)])
    assert claim.verdict == verdict
    assert "eta / B 0.01" in claim.because
    assert "exact 0.948" in claim.because


def test_what_has_not_settled_is_in_no_claim():
    slow = settling(4, 0.1, lengths=2 * SETTLED * 0.9)
    assert not slow.settled
    assert settling(4, 0.1, lengths=2 * SETTLED * 1.1).settled
    assert flatter([settling(2, 3.5), settling(3, 3.5), slow]).verdict == "shows"
    assert slow.name not in flatter([settling(2, 3.5), settling(3, 3.5), slow]).because
    alone = flatter([settling(2, 3.5), slow])
    assert alone.verdict == "cannot tell"
    assert "fewer than two eta / B settled: –, no interval" in alone.because
    assert slow.line.tone == "dim"


def test_a_well_that_is_left_by_all_has_no_odds():
    empty = settling(2, 3.5)
    empty.share[:, PLACES // 2 :] = 1.0
    assert np.isnan(empty.odds).all()
    assert flatter([empty, settling(3, 3.5)]).verdict == "cannot tell"


def test_a_row_has_simulated_exact_and_limiting_odds():
    cells = settling(3, 3.5).line.cells
    assert cells[:3] == ("0.00667", "3", "1785")
    assert cells[5:] == ("3.51", "4")
    assert float(cells[3]) == pytest.approx(3.5, rel=0.01)
