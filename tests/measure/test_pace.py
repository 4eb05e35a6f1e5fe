import math

import pytest

from gapscope.measure.pace import DEAR_PASSES, DENSE, PASSES, Pace, pace
from tests.problems import ZOO


@pytest.fixture
def timed(monkeypatch):
    """Return a problem, and how many samples each pass over its data went over."""
    given = ZOO["tanh mlp"].problem(samples=50, batch_size=5)
    seen = []
    mean = type(given).mean

    def counted(self, per_batch, **more):
        seen.append(self.samples)
        return mean(self, per_batch, **more)

    monkeypatch.setattr(type(given), "mean", counted)
    return given, seen


def test_gradients_and_products_are_timed_on_few_micro_batches(timed):
    given, seen = timed
    found = pace(given)
    assert seen == [20] * 4
    assert found.gradient > 0
    assert found.product > 0
    assert found.first >= 0
    seen.clear()
    assert pace(given, []).product == 0
    assert seen == [20] * 2


@pytest.mark.parametrize("kind", sorted({*PASSES, *DEAR_PASSES, *DENSE} - {"product"}))
def test_every_kind_has_a_pace(timed, kind):
    given, seen = timed
    found = pace(given, [kind])
    assert 0 < found.others[kind] < math.inf
    assert set(seen[2:]) <= ({20} if kind in PASSES else {2, 5})
    assert found.of({"gradient": 2, kind: 3, "other": 0}) == 2 * found.gradient + 3 * found.others[kind]


def test_what_was_not_timed_is_not_known():
    assert math.isnan(Pace(1.0).of({"gradient": 1, "blocks": 1}))


def test_no_kind_is_begun_after_the_time_for_it(timed):
    given, seen = timed
    found = pace(given, ["product", "outcomes"], within=0.0)
    assert seen == [20] * 2  # the gradient, which every plan needs
    assert (found.product, dict(found.others)) == (0, {})
    assert set(pace(given, ["outcomes", "blocks"], within=60.0).others) == {"outcomes", "blocks"}


def test_kinds_are_timed_in_the_order_asked():
    kinds = ("slopes_along", "gradient", "outcomes", "slopes_along")
    found = pace(ZOO["tanh mlp"].problem(samples=50, batch_size=5), kinds)
    assert list(found.others) == ["slopes_along", "outcomes"]
