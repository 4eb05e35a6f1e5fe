import math

import pytest
import torch

from gapscope.measure.solvers.ascent import ascent, keskar
from gapscope.results import Status
from tests.measure.solvers.test_ascent import SIZE, counted, rng


def by_the_header(objective, radius, start_value, starts, evaluations, known=None):
    """Return every point of the ascent and why it ended, written down once more: in u = y / r, g the gradient by u."""
    points, best, length, falls, rate = [], (-math.inf, torch.zeros_like(radius), None), 1.0, 0, 0.0
    here = slope = s = d = None

    def look(u):
        nonlocal best, length, falls, here, slope, s, d
        points.append(radius * u)
        value, g = objective(radius * u)
        s, d, here, slope = u - here, radius * g - slope, u, radius * g
        falls = falls + 1 if math.isfinite(value) else 3
        if value > best[0]:
            best, length, falls = (value, u, slope), 1.0, 0
        return value

    def vertex(g, u):
        return torch.where(g == 0, u, g.sign())

    for start in starts:
        here, slope = torch.zeros_like(radius), radius * start
        for share in [0.1] if len(starts) == 1 else [0.2, 1.0]:
            ahead = slope / radius if share < 1 else slope + d / 2
            look((ahead / ahead.abs().quantile(1 - share)).clip(-1, 1) if share < 1 else vertex(ahead, here))
    untried = len(starts) == 1
    evaluations -= untried
    if best[0] < start_value:
        look(torch.zeros_like(radius))
        untried = False
    while True:
        value, point, g = best
        gap, rise = float(g @ (vertex(g, point) - point)), value - start_value
        settled = gap <= 0.25e-3 * rise
        if untried and (settled or len(points) >= 6) and len(points) <= evaluations - 2:
            untried, stood = False, (here, slope, s, d, falls)
            if rise > 0 and rise - 2 * float((radius * starts[0]) @ point) <= 0.8 * rise:  # what a parabola promises
                continue
            other = look(-point)
            if other - start_value <= 0.8 * rise:
                here, slope, s, d, falls = stood
                continue
            if other <= value:
                look(vertex(slope, here))
            else:
                s = d = torch.zeros_like(radius)
        elif settled or length < 1 / 16 or len(points) >= evaluations:
            if known is None or known.value <= value:
                break
            look(known.point / radius)
            known = None
        elif falls > 2:  # shorter and shorter steps from the best point
            here, slope = point, g
            aim = (point + g * rate * length).clip(-1, 1) if rate else point + length * (vertex(g, point) - point)
            look(aim)
            if best[1] is not aim:
                length /= 4
        else:
            bend = float(s @ d)
            rate = float(s @ s) / -bend if bend < 0 else rate
            e = slope + d / 2
            to = (here + (slope * rate if bend < 0 else 30 * e / e.abs().mean())).clip(-1, 1)
            if torch.equal(to, here):
                falls = 3
            else:
                look(to)
    why = "fixed point" if settled else "no step up" if length < 1 / 16 else "out of evaluations"
    return points, why, gap <= 1e-3 * rise


def hills(seed, waves):
    matrix = waves * torch.randn(SIZE, SIZE, generator=rng(seed), dtype=torch.float64) / SIZE**0.5
    return lambda y: torch.cos(matrix @ y + 0.3).sum() + matrix[0] @ y


def hollow(center, bend):
    """Return a parabola that bends down in half of the coordinates, dead in one."""
    steep = bend * torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    steep[3] = 0
    return lambda y: (steep * (y - center).square()).sum()


@pytest.mark.parametrize("starts", [1, 2])
@pytest.mark.parametrize("evaluations", [3, 8, 12, 40])
@pytest.mark.parametrize("case", range(12))
def test_every_point_of_the_ascent_is_that_of_the_header(case, evaluations, starts):
    functions = [hills(seed, waves) for seed, waves in enumerate((0.3, 1.0, 1.0, 3.0, 3.0, 10.0))]
    functions += [hollow(center, bend) for center in (0.0, 0.3, 3.0) for bend in (1.0, -4.0)]
    objective, calls = counted(lambda y: functions[case](y) + (50 if case % 3 else 0))
    exponents = torch.randint(-2, 2, (SIZE,), generator=rng(case))  # powers of 2: u = y / r is without rounding
    radius, zero = 2.0 ** exponents.double(), torch.zeros(SIZE, dtype=torch.float64)
    start, slope = objective(zero)
    slopes = [slope, -slope][:starts] if slope.any() else [torch.ones_like(zero), -torch.ones_like(zero)][:starts]
    known = keskar(objective, radius, start, rng()) if case % 2 else None
    calls.clear()
    found = ascent(objective, radius, start, slopes, evaluations=evaluations, known=known)
    seen = list(calls)
    expected, why, settled = by_the_header(objective, radius, start, slopes, evaluations, known)
    assert len(seen) == len(expected) == found.evaluations
    assert torch.allclose(torch.stack(seen), torch.stack(expected), rtol=0, atol=1e-9)
    assert (found.message, found.status) == (why, Status.CONVERGED if settled else Status.BUDGET_SPENT)
    values = [objective(y)[0] for y in seen]
    assert found.value == max(values)
    assert found.iterations == sum(value > max([-math.inf, *values[:at]]) for at, value in enumerate(values))
    best, gradient = found.point, objective(found.point)[1]
    assert found.gap == pytest.approx(float(gradient.abs() @ radius - gradient @ best), abs=1e-9)
    assert found.start_value == start
