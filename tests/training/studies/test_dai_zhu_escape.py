import math
import re

import numpy as np
import pytest

import gapscope
from gapscope.training.studies.dai_zhu.escape import Way, claims_of
from gapscope.training.studies.dai_zhu.wells import LEFT, RIGHT, Landscape, Passages, Walk

WELL, VALLEY = Landscape(), Landscape(across=(4.0, 0.25))
WALKS = [Walk(variance=25.0, rate=0.02, batch_size=size) for size in (4, 5, 6)]


def way(walks, factors, *, landscape=WELL, start=LEFT):
    """Return a way that takes the formula's time, times a factor for each walk."""
    found, rng = [], np.random.default_rng(int(1e6 * walks[0].rate + start))
    for walk, factor in zip(walks, factors, strict=True):
        mean = walk.predicted(landscape, start).iterations * factor * np.exp(rng.normal(0, 0.005, 3))  # between seeds
        found.append(Passages(arrivals=1e9 / mean, iterations=1_000_000_000))
    return Way(title="way", landscape=landscape, start=start, walks=walks, found=found)


def ways(*, slope=1.0, faster=1.0, heavy=1.0, flat=1.0):
    """Return the ways of a study, as by the formula but for what is asked for."""
    bent = [math.exp((slope - 1) * size) for size in (4, 5, 6)]
    return [
        way(WALKS, bent),
        way([walk.scaled(2) for walk in WALKS], [faster * one for one in bent]),
        way([walk.heavy(0.5) for walk in WALKS], [heavy * one for one in bent]),
        way(WALKS, [1.0] * 3, landscape=VALLEY),
        way(WALKS, [flat] * 3, landscape=VALLEY, start=RIGHT),
    ]


def test_where_the_formula_holds_all_claims_show():
    found = claims_of(ways())
    assert [claim.verdict for claim in found] == ["shows"] * 5
    slope = re.search(r"valley: shows \(slope over that of the formula ([\d.]+), 95 %", found[0].because)
    assert float(slope[1]) == pytest.approx(1, abs=0.01)
    ratio = re.search(r"\(formula 4\) ([\d.]+), 95 %", found[3].because)
    assert float(ratio[1]) == pytest.approx(4, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "number", "verdict"),
    [
        ({"slope": 0.5}, 0, "does not show"),
        ({"slope": 1.1}, 0, "shows"),
        ({"faster": 2.0}, 1, "does not show"),
        ({"faster": 1.25}, 1, "cannot tell"),
        ({"heavy": 0.5}, 2, "does not show"),
        ({"heavy": 0.8}, 2, "cannot tell"),
        ({"flat": 0.1}, 3, "does not show"),
        ({"flat": 0.25}, 3, "cannot tell"),
    ],
)
def test_what_differs_from_the_formula_changes_its_claim_alone(changes, number, verdict):
    found = [claim.verdict for claim in claims_of(ways(**changes))]
    assert found[number] == verdict
    assert {*found[:number], *found[number + 1 :]} == {"shows"}


def test_one_seed_and_walkers_that_never_arrive_can_tell_nothing():
    none = Passages(arrivals=np.array([0.0, 3.0, 4.0]), iterations=1000)
    lost = Way(title="lost", landscape=WELL, start=LEFT, walks=WALKS, found=[none] * 3)
    assert np.isnan(lost.logs[0]).all()
    assert np.isfinite(lost.logs[1:]).all()
    found = claims_of([lost, *ways()[1:]])
    assert [claim.verdict for claim in found] == ["cannot tell", "cannot tell", "cannot tell", "shows", "shows"]
    assert "no interval" in found[1].because


def test_a_row_has_the_formula_of_gapscope_and_the_pooled_mean():
    found = Passages(arrivals=np.array([40.0, 60.0]), iterations=600_000)
    line = Way(title="a way", landscape=VALLEY, start=RIGHT, walks=WALKS[:1], found=[found]).lines[1]
    formula = gapscope.escape_iterations(
        np.diag([2.0, 0.25]), np.diag([-1.0, 1.0]), 0.25, diffusion=0.02 * 25 / 8, rate=0.02
    ).iterations
    assert line.cells == ("B 4", "4", "12000 ± 1200", f"{round(formula, -1):.0f}", "0.49 ± 0.05")


def test_a_row_without_an_arrival_is_a_bound():
    found = Passages(arrivals=np.zeros(2), iterations=15_000)
    lines = Way(title="a way", landscape=WELL, start=LEFT, walks=WALKS[:1], found=[found]).lines
    assert lines[0].cells == ("a way",)
    assert lines[1].cells[2] == "> 10,000"
    assert lines[1].cells[4] == f"> {10_000 / WALKS[0].predicted(WELL, LEFT).iterations:.3f}"
