"""How near to 1 the interval of a ratio must lie for two numbers to be alike in this study."""

import functools

from gapscope.report.outcome import Claim, Part, alike

Made = tuple[Part, tuple[Claim, ...]]
ALIKE = 1.25  # gapscope's own: ratios up to here, or down to its inverse, count as agreement
WITHIN = f"{1 / ALIKE:g} to {ALIKE:g}"

agrees = functools.partial(alike, within=(1 / ALIKE, ALIKE))
