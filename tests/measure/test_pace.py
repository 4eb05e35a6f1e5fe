import math
from types import SimpleNamespace

import pytest
import torch

from gapscope.measure.loading.losses import build_loss
from gapscope.measure.loading.trust import Trust
from gapscope.measure.pace import DEAR_PASSES, DENSE, PASSES, Pace, pace
from tests.problems import ZOO, problem


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
    assert math.isnan(found.product)
    assert math.isnan(found.others["outcomes"])
    assert set(pace(given, ["outcomes", "blocks"], within=60.0).others) == {"outcomes", "blocks"}


def test_kinds_are_timed_in_the_order_asked():
    kinds = ("slopes_along", "gradient", "outcomes", "slopes_along")
    found = pace(ZOO["tanh mlp"].problem(samples=50, batch_size=5), kinds)
    assert list(found.others) == ["slopes_along", "outcomes"]


def test_a_kind_that_is_not_known_is_not_timed():
    assert math.isnan(pace(ZOO["tanh mlp"].problem(), ["another"]).others["another"])


@pytest.mark.parametrize("count", [1, 2])
def test_a_kind_that_the_problem_does_not_allow_takes_no_time(count, monkeypatch):
    monkeypatch.setattr("gapscope.measure.pace.ranks", lambda: SimpleNamespace(count=count))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))
    given = problem(model, torch.randn(40, 3), torch.arange(40) % 2, batchnorm="batch", batch_size=20)
    found = pace(given, ["gradient_squares", "outcomes"])
    assert found.others["gradient_squares"] == 0
    assert found.others["outcomes"] > 0


def test_first_samples_without_a_target_that_counts_are_timed(monkeypatch):
    targets = torch.where(torch.arange(80) < 50, 0, 1)
    loss = build_loss("cross-entropy:ignore_index=0", recorded=False, trust=Trust())
    given = problem(torch.nn.Linear(3, 2), torch.randn(80, 3), targets, loss, batch_size=10)
    assert given.derivatives.method == "exact"
    monkeypatch.setattr("gapscope.measure.problem.examine", lambda _: pytest.fail("it was examined again"))
    found = pace(given, ["outcomes", "product", "curvature_along", "gradient_squares"])
    assert all(seconds > 0 for seconds in (found.product, *found.others.values()))


def test_every_rank_has_micro_batches_of_its_own(timed, monkeypatch):
    given, seen = timed
    monkeypatch.setattr("gapscope.measure.pace.ranks", lambda: SimpleNamespace(count=3))
    pace(given, ["outcomes", "gradient_squares"])
    assert set(seen) == {30, 6, 15}  # six of 5 samples, two samples each, and one micro-batch each
