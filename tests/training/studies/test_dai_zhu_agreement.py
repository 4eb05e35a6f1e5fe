import math

import pytest

from gapscope.training.studies.dai_zhu.agreement import WITHIN, agrees


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.9, 1.1, "shows"),
        (1.05, 1.2, "shows"),  # a difference that can be told, and is small
        (0.81, 1.24, "shows"),
        (0.5, 2.0, "cannot tell"),  # wide: holding 1 is no agreement
        (1.1, 1.3, "cannot tell"),
        (0.7, 0.9, "cannot tell"),
        (1.3, 1.5, "does not show"),
        (0.5, 0.7, "does not show"),
        (math.nan, math.nan, "cannot tell"),
    ],
)
def test_agreement_is_an_interval_within_bounds(low, high, verdict):
    claim = agrees("alike", (math.sqrt(low * high), (low, high)), source="theory", what="ratio")
    assert claim.verdict == verdict
    assert claim.because.startswith("ratio ")
    assert (claim.text, claim.source) == ("alike", "theory")


def test_the_bounds_are_said_as_they_are():
    assert WITHIN == "0.8 to 1.25"
