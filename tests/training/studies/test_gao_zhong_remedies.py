"""What each remedy changes, and the claims on them, by numbers made up for each answer."""

from types import SimpleNamespace

import numpy as np
import pytest

from gapscope.training.recipe import Recipe
from gapscope.training.studies.gao_zhong.remedies import claims, settings
from gapscope.training.studies.gao_zhong.runs import Bench
from gapscope.training.studies.gao_zhong.training import Group


def test_batches_grow_in_equal_parts_to_the_large_one():
    plan = SimpleNamespace(discards=(0.25,), doublings=(1, 2), epochs=12)
    found = settings(Bench(None, plan, 1300, (32, 650)))
    assert [one.name for one in found] == ["small batch", "large batch", "discarding 25 %", "batch x2", "batch x4"]
    assert [one.size for one in found[:3]] == [32, 650, 650]
    assert found[2].change == {"discard": 0.25}
    doubled, again = (
        [Recipe(epochs=12, batch_size=one.size, **one.change).batch_sizes(epoch) for epoch in range(12)]
        for one in found[3:]
    )
    assert doubled == [325] * 6 + [650] * 6
    assert again == [163] * 4 + [326] * 4 + [652] * 4  # no rest of a few samples


@pytest.mark.parametrize(
    ("remedied", "verdict"),
    [([92, 92.5, 92], "shows"), ([88, 87.5, 88], "does not show"), ([91, 89, 90], "cannot tell")],
)
def test_a_remedy_helps_by_test_accuracy_over_the_large_batch(remedied, verdict):
    def group(accuracy, loss=1.0):
        ones = np.ones(3)
        return Group(epochs=ones, train_loss=loss * ones, test_loss=ones, test_accuracy=np.array(accuracy, dtype=float))

    groups = {
        "small batch": group([93, 94, 93.5]),
        "large batch": group([90, 90, 90], 4.0),
        "batch x2": group(remedied),
    }
    premise, helps, absent = claims(groups, ("batch x2", "batch x4"))
    assert premise.verdict == "shows"
    assert premise.text == "large batches generalize worse, after as many epochs"
    assert premise.because.endswith("; training losses 4 ± 0 against 1 ± 0")
    assert helps.verdict == verdict
    assert absent.verdict == "cannot tell"
