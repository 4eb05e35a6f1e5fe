import numpy as np
import pytest

from gapscope.measure.solvers.summit import NEAR, _climb, _promising, climbed

STEP = 0.125


def summit(curve, *, step=STEP, rounding=0.0):
    """Return the summit of a curve known on a grid of this step from -1 to 2, and where it was asked for."""
    grid = [i * step for i in range(-round(1 / step), round(2 / step) + 1)]
    asked = []

    def height(a):
        asked.append(a)
        return float(curve(a))

    return climbed(height, {a: float(curve(a)) for a in grid}, step, rounding), asked


def hump(a, at, width, height=1.0):
    return height * np.exp(-(((a - at) / width) ** 2))


@pytest.mark.parametrize("at", np.linspace(0.02, 0.98, 13))
@pytest.mark.parametrize("width", [0.06, 0.3])
def test_the_top_of_one_hump_is_found_to_the_stated_error(at, width):
    found, asked = summit(lambda a: hump(a, at, width))
    assert found.place == pytest.approx(at, abs=NEAR * STEP)
    assert 0 <= 1 - found.height <= found.missed <= 1e-3
    assert len(asked) <= 26
    assert len(set(asked)) == len(asked)


@pytest.mark.parametrize("seed", range(200))
def test_random_curves_have_no_higher_point_than_stated(seed):
    rng = np.random.default_rng(seed)
    waves = [(rng.normal() / f, f, rng.uniform(0, 7)) for f in (1, 2, 4, 7, 11)]  # the fastest: 4.6 points a wave

    def curve(a):
        return sum(size * np.sin(f * a + phase) for size, f, phase in waves)

    found, asked = summit(curve)
    truth = float(curve(np.linspace(0, 1, 100_001)).max())
    assert -1e-8 <= truth - found.height <= max(found.missed, 1e-8)
    assert len(asked) <= 38


def test_two_tops_within_a_step_are_both_seen():
    # between the points of the grid at .5 and .625 the lower of two tops; the higher one beside it
    found, _ = summit(lambda a: hump(a, 0.52, 0.02, 0.5) + hump(a, 0.6, 0.03))
    assert found.place == pytest.approx(0.6, abs=2 * NEAR * STEP)


@pytest.mark.parametrize("at", [0.03, 0.97])
def test_a_top_beside_a_high_end_is_found(at):
    found, _ = summit(lambda a: hump(a, at, 0.1))
    assert found.place == pytest.approx(at, abs=NEAR * STEP)


def test_where_an_end_is_the_top_one_evaluation_shows_it():
    found, asked = summit(lambda a: -a)
    assert (found.place, found.height, found.missed) == (0.0, 0.0, 0.0)
    assert asked == [NEAR * STEP]


def test_two_ends_of_one_height_are_both_looked_at():
    found, asked = summit(lambda a: (a - 0.5) ** 2)
    assert found.height == 0.25
    assert asked == [NEAR * STEP, 1 - NEAR * STEP]


def test_what_a_parabola_promises_below_rounding_is_stated_and_not_climbed():
    bent = {0.0: 0.0, 0.25: 0.9, 0.5: 1.0, 0.75: 0.9, 1.0: 1.0}
    plain, asked = summit(lambda a: np.interp(a, list(bent), list(bent.values())), step=0.25, rounding=1.0)
    assert len([a for a in asked if a > 0.75]) <= 1
    assert plain.height == 1.0


def test_heights_that_are_not_finite_are_no_tops():
    found, _ = summit(lambda a: np.nan if 0.55 < a < 0.7 and a != 0.625 else hump(a, 0.5, 0.2))
    assert found.height == pytest.approx(1.0, abs=1e-3)
    assert np.isfinite(found.missed)


def test_a_grid_that_ends_where_the_curve_does_is_enough():
    known = {i / 8: float(hump(i / 8, 0.4, 0.2)) for i in range(9)}
    found = climbed(lambda a: float(hump(a, 0.4, 0.2)), known, 1 / 8, 0.0)
    assert found.place == pytest.approx(0.4, abs=NEAR / 8)


def test_what_a_parabola_promises_is_its_top():
    places = np.linspace(0, 1, 5)
    known = dict(zip(places.tolist(), (1 - 4 * (places - 0.37) ** 2).tolist(), strict=True))
    assert _promising(known, 0.25)[1] == pytest.approx(1, abs=1e-12)


def test_of_two_near_places_one_counts():
    # rounding of float32 between places a thousandth of the step apart would be a slope, and promise a thousandth
    known = {0.0: 0.0, 0.25: 0.75, 0.5: 1.0, 0.5001: 1.00002, 0.75: 0.75, 1.0: 0.0}
    assert _promising(known, 0.25)[1] < 1.0005


@pytest.mark.parametrize("steep", [-1, 1])
def test_what_is_left_of_a_climb_is_by_the_sharper_side(steep):
    def height(a):
        return -((a - 0.5) ** 2) * (9.0 if (a - 0.5) * steep > 0 else 1.0)

    known = {a: height(a) for a in (0.4, 0.6)}
    left = _climb(height, known, (0.4, 0.6), 0.1)
    assert max(known.values()) >= -left
    assert 6 < left / (NEAR * 0.1) ** 2 < 12
