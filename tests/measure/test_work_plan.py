import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from gapscope.errors import ProblemError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.pace import Pace
from gapscope.measure.plan import BESIDE, FEWEST, SHARE, clock, fit, graph_bytes, kinds, peak_bytes, plan
from tests.problems import ZOO

SPEED = Pace(gradient=2.0, product=5.0, first=10.0, others={"curvature_along": 13.0, "outcomes": 0.5})


def mlp(**how):
    return ZOO["tanh mlp"].problem(**how)


@dataclass(frozen=True)
class Known:
    """Says what it takes."""

    name: ClassVar[str] = "known"
    second_order: ClassVar[bool] = False
    cost: float = 7.0

    def passes(self, problem: Any) -> dict[str, float]:
        if self.cost < 0:
            raise ProblemError("No.")
        return {"gradient": self.cost}

    def memory(self, problem: Any) -> int:
        return 12_345


@dataclass(frozen=True)
class Unknown:
    name: ClassVar[str] = "unknown"


def test_seconds_are_gradients_and_products_at_their_pace_and_what_products_set_up():
    first, gap = plan(mlp(), [Eigenvalues(), Gap()], SPEED)
    rest = SPEED.gradient + 13.0 + SPEED.first + BESIDE
    assert (first.cost.gradients, first.cost.products) == (rest / SPEED.gradient, 12)
    assert first.cost.seconds == rest + 12 * SPEED.product
    assert (gap.cost.products, gap.cost.seconds) == (0, 0.5)
    assert set(kinds(mlp(), [Eigenvalues(), Gap(), Unknown()])) == {
        "gradient",
        "product",
        "curvature_along",
        "outcomes",
    }
    assert kinds(mlp(), [Gap(), Known(), Gap()]) == ("outcomes", "gradient")
    assert (first.why, first.analyzer) == ("", Eigenvalues())


def test_what_does_not_say_what_it_takes_is_run():
    (one,) = plan(mlp(), [Unknown()], SPEED, budget=1.0)
    assert math.isnan(one.cost.seconds)
    assert (one.why, one.cost.known_seconds) == ("", 0.0)
    (refusing,) = plan(mlp(), [Known(cost=-1.0)], SPEED, budget=1.0)
    assert math.isnan(refusing.cost.gradients)


def test_what_was_not_timed_is_not_begun_within_a_budget():
    given, slow = mlp(), Pace(2.0)
    (one,) = plan(given, [Gap()], slow, budget=1e6)
    assert one.why == (
        "was not timed: planning may take 20% of the time; raise `--time-budget`, or run `gapscope gap` alone"
    )
    assert plan(given, [Gap()], slow)[0].why == ""
    assert plan(given, [Unknown()], slow, budget=1e6)[0].why == ""
    assert plan(given, [Eigenvalues()], Pace(2.0, product=5.0), budget=1e6)[0].why.startswith("was not timed")


def test_the_budget_is_spent_in_order():
    fits = plan(mlp(), [Known(), Known(cost=20.0), Known(cost=8.0)], SPEED, budget=31.0)
    assert [bool(one.why) for one in fits] == [False, True, False]  # 14 s, 40 s of the 17 left, 16 s of these
    assert fits[1].why == (
        "would take about 40 s, and 17 s were left: raise `--time-budget`, or run `gapscope known` alone"
    )


def test_products_are_bounded_by_the_time_left_before_the_run():
    given = mlp()
    plenty = fit(given, Eigenvalues(), SPEED, 1e6)
    assert plenty.analyzer == Eigenvalues()  # the settings of a run that fits are those of one without a budget
    left = 190.0
    bounded = fit(given, Eigenvalues(), SPEED, left).analyzer
    rest = SPEED.gradient + 13.0 + SPEED.first + BESIDE
    assert bounded.max_matvecs == int((SHARE * left - rest) / SPEED.product) == 29
    assert rest + SPEED.product * bounded.max_matvecs <= left
    few = fit(given, Eigenvalues(), SPEED, SPEED.first + FEWEST * SPEED.product)
    assert few.analyzer == Eigenvalues()
    assert few.why.startswith("would take about")


def test_memory_is_what_an_analyzer_says_or_what_most_hold():
    given = mlp(samples=500)
    each, vector = given.graph_bytes_per_sample, 8 * given.size
    assert peak_bytes(given, Known()) == 12_345
    assert peak_bytes(given, Gap()) == int(1.25 * 500 * each) + 6 * vector
    graphs = 500 * each
    whole = int(3.5 * graphs) + 6 * vector + int(1.02 * graphs) + graphs // 2
    assert peak_bytes(given, Eigenvalues()) == whole + 30 * vector
    assert peak_bytes(given, Eigenvalues(max_matvecs=20)) == whole + 20 * vector
    assert peak_bytes(given, Unknown()) == whole


def test_half_of_the_budget_is_for_whole_micro_batches_and_half_for_the_basis():
    each = mlp().graph_bytes_per_sample
    tight = mlp(samples=50, memory_budget=16 * each, batch_size=3)
    assert graph_bytes(tight) == 6 * each  # two micro-batches of 3 are what half the budget holds
    vector = 8 * tight.size
    small = mlp(samples=400, memory_budget=8 * vector, batch_size=40)
    kept = int(1.02 * graph_bytes(small)) + graph_bytes(small) // 2
    assert peak_bytes(small, Eigenvalues()) == int(3.5 * 40 * each) + 6 * vector + kept + 4 * vector


def test_the_probe_of_second_derivatives_is_the_peak_of_tiny_micro_batches():
    given = mlp(samples=50, batch_size=1, memory_budget=2)
    assert peak_bytes(given, Unknown()) == int(32 * given.graph_bytes_per_sample * 4.7)


def test_many_samples_take_no_more_memory_than_the_budget():
    given = {count: mlp(samples=count, memory_budget=2_000_000) for count in (5_000, 20_000)}
    one, other = (peak_bytes(each, Eigenvalues()) for each in given.values())
    assert one == other


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0312, "0.031 s"), (9.94, "9.9 s"), (42.4, "42 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_clocks_are_for_people(seconds, shown):
    assert clock(seconds) == shown
