import math

import pytest
from example_reports import curvature, eigenvalues, gap, report

from gapscope.errors import UsageError
from gapscope.report.sidecar import ENTRIES, sidecar


def text(content, old=None, reason="first"):
    return sidecar(content, old, reason=reason, date="2026-01-02")


def test_it_says_what_was_measured_with_what_and_why():
    lines = text(report(), reason="a\nlonger  reason\x1b").splitlines()
    assert lines[:4] == ["gapscope baseline", "reason: a longer reason", "accepted: 2026-01-02", "checkpoint: small.pt"]
    for said in ("gapscope: 0.1.0", "device: cpu", "measured: 2026-01-01T00:00:00+00:00", "  split: train"):
        assert said in lines
    assert lines[4].startswith("sha256: ")
    assert "  eigenvalues/top: 0.154 ± 0.011" in lines
    assert not [line for line in lines if "gradient_norm" in line]  # has no direction to be judged by


def test_old_and_new_stand_beside_each_other():
    lines = text(report(eigenvalues(0.2)), report(eigenvalues(0.154), gap(), split="test")).splitlines()
    assert "  eigenvalues/top: 0.154 ± 0.011 -> 0.2 ± 0.014" in lines
    assert "  split: test -> train" in lines
    assert "  gap: was measured, now is not" in lines
    assert "  loss: cross-entropy" in lines


def test_long_arrays_are_listed_in_part():
    lines = text(report(curvature(layers=ENTRIES + 5))).splitlines()
    assert sum("curvature/median[" in line for line in lines) == ENTRIES


def test_a_change_within_the_error_shows():
    before, after = (
        next(x for x in text(report(eigenvalues(v))).splitlines() if "/top" in x) for v in (0.1540, 0.1541)
    )
    assert before != after


def test_nan_is_written():
    assert "eigenvalues/top: –" in text(report(eigenvalues(math.nan, chunks=False)))


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_reason_is_needed(reason):
    with pytest.raises(UsageError, match=r"The reason is empty\. Expected why these numbers are accepted\."):
        text(report(), reason=reason)
