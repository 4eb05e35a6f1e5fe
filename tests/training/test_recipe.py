import math

import pytest

from gapscope.errors import UsageError
from gapscope.training.recipe import Progress, Recipe


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"conservative": -1.0},
        {"steps": 0},
        {"accumulate": 0},
        {"curvature_every": 0},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError, match=r"The recipe has batch size .* Expected batch size and counts >= 1"):
        Recipe(**{"epochs": 1, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": None}, "Nothing stops this training. Expected `--epochs`"),
        ({"discard": 1.0}, "The share 1 of small losses is discarded. Expected 0 or more, and less than 1."),
        ({"discard": 0.5, "accumulate": 2}, "`--discard-small-losses` stands beside `--grad-accumulate`. Expected one"),
        ({"schedule": "cosin"}, "Did you mean `cosine`?"),
        ({"batch_schedule": "4"}, "The batch schedule is `4`"),
        ({"epochs": None, "patience": 3, "schedule": "cosine"}, "The schedule `cosine` has no end to run to. Expected"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(wrong, message):
    with pytest.raises(UsageError) as error:
        Recipe(**{"epochs": 1, **wrong})
    assert message in str(error.value)


def test_only_what_is_not_as_by_default_is_recorded_beside_what_always_counts():
    assert Recipe(epochs=3).record() == {
        "optimizer": "sgd",
        "batch_size": 32,
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.0,
        "seed": 0,
    }
    more = Recipe(optimizer="sam", options={"rho": 0.1}, patience=2, augment=True).record()
    assert (more["options"], more["patience"], more["augment"]) == ("rho=0.1", 2, True)


@pytest.mark.parametrize(
    ("recipe", "most"),
    [
        (Recipe(epochs=3, batch_size=50), 3 * 3),
        (Recipe(epochs=3, batch_size=50, batch_schedule="2@2"), 3 + 3 + 2),
        (Recipe(epochs=3, steps=4, batch_size=50), 4),
        (Recipe(until_loss=0.1), None),
    ],
)
def test_the_most_steps_are_known_where_something_bounds_them(recipe, most):
    assert recipe.bound(120) == most


def test_progress_counts_epochs_and_stalls():
    progress, recipe = Progress(), Recipe(patience=1)
    for loss, why in ((1.0, ""), (0.9, ""), (0.89999, "training loss stalled for 1 epochs")):
        progress.advance(60, 100)
        assert progress.place == 60
        progress.advance(40, 100)
        progress.loss = loss
        assert progress.why_stop(recipe) == why
    assert (progress.epochs, progress.steps, progress.place) == (3, 6, 0)
