import math

import pytest

from gapscope.errors import UsageError
from gapscope.training.recipe import Progress, Recipe


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": 0}, "batch size 0 (expected 1 or more)"),
        ({"lr": 0.0}, "rate 0 (expected more than 0)"),
        ({"lr": math.nan}, "rate nan (expected more than 0)"),
        ({"lr": math.inf}, "rate inf (expected more than 0)"),
        ({"momentum": 1.0}, "momentum 1 (expected 0 or more, less than 1)"),
        ({"weight_decay": -1.0}, "weight decay -1 (expected 0 or more)"),
        ({"conservative": -1.0}, "conservative -1 (expected 0 or more)"),
        ({"adversarial": math.inf}, "adversarial inf (expected 0 or more)"),
        ({"steps": 0}, "steps 0 (expected 1 or more)"),
        ({"accumulate": 0}, "accumulate 0 (expected 1 or more)"),
        ({"curvature_every": 0}, "curvature every 0 (expected 1 or more)"),
        ({"until_loss": math.nan}, "until loss nan (expected a number)"),
    ],
)
def test_of_a_recipe_that_makes_no_sense_only_what_is_wrong_is_said(wrong, said):
    with pytest.raises(UsageError) as error:
        Recipe(**{"epochs": 1, **wrong})
    assert str(error.value) == f"The recipe has {said}. Expected numbers that a training can have. Mend it."


def test_several_wrong_numbers_are_said_at_once():
    with pytest.raises(UsageError, match=r"has batch size 0 .*, rate -1 .*\. Expected .* Mend them\."):
        Recipe(epochs=1, batch_size=0, lr=-1.0)


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
    for loss, why in ((1.0, ""), (0.9, ""), (0.89999, "training loss stalled for 1 epoch")):
        progress.advance(60, 100)
        assert progress.place == 60
        progress.advance(40, 100)
        progress.loss = loss
        assert progress.why_stop(recipe) == why
    assert (progress.epochs, progress.steps, progress.place) == (3, 6, 0)


@pytest.mark.parametrize(
    ("recipe", "passes"),
    [
        (Recipe(epochs=3, batch_size=50), 3),  # of 3 steps each, the last one with 20 samples
        (Recipe(steps=9, batch_size=50), 3),
        (Recipe(steps=9, epochs=2, batch_size=50), 2),
        (Recipe(steps=1, epochs=9, batch_size=50), 1),
        (Recipe(steps=8, batch_size=50, batch_schedule="2@2"), 3),
        (Recipe(until_loss=0.1), 0),
    ],
)
def test_the_passes_are_those_of_epochs_or_of_steps_whichever_are_fewer(recipe, passes):
    assert recipe.passes(120) == passes


def test_other_stops_leave_the_steps_as_they_are_unless_a_schedule_runs_to_them():
    assert Recipe(epochs=3).moving() == Recipe(steps=7, until_loss=0.1, patience=2).moving()
    assert Recipe(epochs=3).moving() != Recipe(epochs=3, lr=0.2).moving()
    cosine = Recipe(epochs=3, schedule="cosine")
    assert cosine.moving() == Recipe(epochs=3, schedule="cosine", until_loss=0.1).moving()
    assert cosine.moving() != Recipe(epochs=4, schedule="cosine").moving()


@pytest.mark.parametrize(
    ("recipe", "done"),
    [
        (Recipe(until_loss=0.5), "a training loss of 0.4"),
        (Recipe(steps=8), "8 steps"),
        (Recipe(epochs=2), "2 epochs"),
        (Recipe(patience=3), "a stall of 3 epochs"),
        (Recipe(until_loss=0.3, steps=9, epochs=3, patience=4), ""),
    ],
)
def test_progress_behind_a_stop_is_told(recipe, done):
    assert Progress(epochs=2, steps=8, stalled=3).beyond(recipe, 0.4) == done


def test_the_words_of_a_stop_say_the_loss_that_was_asked_for():
    progress = Progress(loss=0.25551)
    assert progress.why_stop(Recipe(until_loss=0.25968)) == (
        "training loss reached: 0.2555 is at or below the 0.2597 asked for"
    )
    assert Progress(epochs=1, steps=1).why_stop(Recipe(epochs=1)) == "1 epoch done"
    assert Progress(steps=1).why_stop(Recipe(steps=1)) == "1 step done"
