"""Claims that two things are alike: an interval must lie within stated bounds, not merely hold equality."""

import math

from gapscope.report.contrasts import Contrasted
from gapscope.report.outcome import Answer, Claim, Part, said

Made = tuple[Part, tuple[Claim, ...]]
ALIKE = 1.25  # gapscope's own: ratios up to here, or down to its inverse, count as agreement
WITHIN = f"{1 / ALIKE:g} to {ALIKE:g}"


def agrees(text: str, contrast: Contrasted, *, source: str, what: str) -> Claim:
    """Judge a claim of equality on a ratio by its 95 % interval.

    It shows where the whole interval lies between 1 / ALIKE and ALIKE, does not show where all of it lies beyond
    either, and else, or without an interval, cannot be told: a wide interval that holds 1 is no agreement.
    """
    low, high = contrast[1]
    verdict: Answer = "cannot tell"
    if not math.isnan(low + high):
        if high < 1 / ALIKE or low > ALIKE:
            verdict = "does not show"
        elif low > 1 / ALIKE and high < ALIKE:
            verdict = "shows"
    return Claim(text=text, source=source, verdict=verdict, because=said(contrast, what))
