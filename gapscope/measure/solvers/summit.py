"""The highest point of a curve on [0, 1] that is known on a grid: climbed from there, and what may be left of it.

Between points of a grid a curve may do anything.  So the climb starts at the highest point, and begins again wherever a
parabola through three neighbours promises more than what is known; what they still promise in the end is stated.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

NEAR = 0.01  # of the grid's step: how closely the top is placed, and how far from an end a hump may begin
_APART = 0.1  # of the grid's step: nearer neighbours are one point for a parabola, for their differences are rounding
_CLIMBS = 4


@dataclass(frozen=True)
class Summit:
    """The highest point found, and how much higher the curve may be."""

    place: float
    height: float
    missed: float


def climbed(height: Callable[[float], float], known: dict[float, float], step: float, rounding: float) -> Summit:
    """Climb a curve whose heights are `known` on a grid of this step, 0 and 1 among them, and on points beside.

    Heights that are asked for are added to `known`; those that are not finite are no tops.  Cost: one evaluation beside
    an end that is highest, 12 at most for the first climb, and 12 for each further one, of which there are few.
    """
    for end, beside in ((0.0, NEAR * step), (1.0, 1 - NEAR * step)):
        if known[end] >= max(_inside(known).values()):
            known[beside] = height(beside)
    missed, done = 0.0, list[tuple[float, float]]()
    for _ in range(_CLIMBS):
        best = max(_inside(known), key=_inside(known).__getitem__)
        bracket, promised = _promising(known, step)
        if 0 < best < 1 and not any(low <= best <= high for low, high in done):
            bracket = _neighbours(known, best, step)
        elif promised - known[best] <= max(missed, rounding):
            break
        missed = max(missed, _climb(height, known, bracket, step))
        done.append(bracket)
    inside = _inside(known)
    best = max(inside, key=inside.__getitem__)
    return Summit(best, inside[best], missed + max(0.0, _promising(known, step)[1] - inside[best]))


def _inside(known: dict[float, float]) -> dict[float, float]:
    return {a: value for a, value in known.items() if 0 <= a <= 1 and np.isfinite(value)}


def _thinned(known: dict[float, float], step: float) -> list[float]:
    """Return places in order, of neighbours that are too near only the highest."""
    kept: list[float] = []
    for a in sorted((a for a in known if np.isfinite(known[a])), key=lambda a: -known[a]):
        if all(abs(a - other) >= _APART * step for other in kept):
            kept.append(a)
    return sorted(kept)


def _neighbours(known: dict[float, float], best: float, step: float) -> tuple[float, float]:
    places = _thinned(known, step)
    low, high = max((a for a in places if a < best), default=0.0), min((a for a in places if a > best), default=1.0)
    return max(0.0, low), min(1.0, high)


def _promising(known: dict[float, float], step: float) -> tuple[tuple[float, float], float]:
    """Return where on [0, 1] the parabola through three neighbours with the highest top stands, and that height."""
    places, found = _thinned(known, step), ((0.0, 1.0), -np.inf)
    for a, b, c in zip(places, places[1:], places[2:], strict=False):
        left, right = (known[b] - known[a]) / (b - a), (known[c] - known[b]) / (c - b)
        bend = (right - left) / (c - a)
        low, high = max(0.0, a), min(1.0, c)
        if bend < 0 and low < high:
            top = min(max((a + b) / 2 - left / (2 * bend), low), high)
            value = known[a] + left * (top - a) + bend * (top - a) * (top - b)
            if value > found[1]:
                found = (low, high), float(value)
    return found


def _climb(
    height: Callable[[float], float], known: dict[float, float], bracket: tuple[float, float], step: float
) -> float:
    """Climb by Brent's method between two places, and return what is left by the bend seen on the way."""
    from scipy.optimize import minimize_scalar

    tried: dict[float, float] = {a: v for a, v in known.items() if bracket[0] <= a <= bracket[1] and np.isfinite(v)}

    def fall(a: float) -> float:
        known[float(a)] = found = height(float(a))
        if not np.isfinite(found):
            return np.inf
        tried[float(a)] = found
        return -found

    minimize_scalar(fall, bounds=bracket, method="bounded", options={"xatol": NEAR * step, "maxiter": 12})
    if not tried:
        return 0.0
    best = max(tried, key=tried.__getitem__)
    bends = [(tried[best] - v) / (a - best) ** 2 for a, v in tried.items() if abs(a - best) > NEAR * step]
    return max(bends, default=0.0) * (NEAR * step) ** 2
