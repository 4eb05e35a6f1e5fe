"""Which rate is taken, and what is said of the choice."""

import math

import numpy as np
import pytest

from gapscope.training.studies.gao_zhong.training import Group, Setting, Tuned, gained, kept, lowered

GRID = {"sgd": (0.1, 0.3, 1.0), "lars": (0.01, 0.03, 0.1)}


def group(accuracy, loss=(1.0, 1.0)):
    pair = np.array([1.0, 1.0])
    return Group(epochs=pair, train_loss=np.array(loss), test_loss=pair, test_accuracy=np.array(accuracy))


def setting(name, size, optimizer="sgd"):
    return Setting(name=f"{name} {size}", optimizer=optimizer, size=size)


def test_the_rate_is_that_of_the_lowest_training_loss_and_a_diverged_one_is_none():
    small, large, wild = setting("sgd", 8), setting("sgd", 64), setting("lars", 8, "lars")
    losses = {small: [0.5, 0.1, math.inf], large: [0.5, 0.2, 0.1], wild: [math.inf] * 3}
    tuned = Tuned(GRID, {one: np.array(several) for one, several in losses.items()})
    assert [tuned.rate(one) for one in (small, large, wild)] == [0.3, 1.0, None]
    assert tuned.notes == (
        "Left out: lars 8: diverged at every rate.",
        "At an end of its grid, so that a better rate may lie beyond: sgd 64.",
    )


def test_a_choice_within_the_grid_needs_no_word():
    assert Tuned(GRID, {setting("sgd", 8): np.array([0.5, 0.1, 0.2])}).notes == ()


def test_contrasts_are_by_seed():
    groups = {"first": group([90.0, 80.0], (1.0, 2.0)), "last": group([91.0, 82.0], (2.0, 8.0))}
    assert gained(groups, "last", "first")[0] == 1.5
    assert lowered(groups, "last", "first")[0] == pytest.approx(math.sqrt(8))
    for contrast in (gained(groups, "last", "none"), lowered(groups, "none", "first")):
        assert math.isnan(contrast[0])


def test_every_number_is_kept():
    quantity = kept({"first": group([90.0, 80.0])})["numbers"]
    assert quantity.value[0, quantity.labels["measure"].index("test_accuracy")].tolist() == [90.0, 80.0]
    assert kept({}) == {}
