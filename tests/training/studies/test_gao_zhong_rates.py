"""What the curvature costs, and the claims on optimizers."""

import numpy as np
import pytest

from gapscope.training.recipe import Recipe
from gapscope.training.studies.gao_zhong.rates import claims, share
from gapscope.training.studies.gao_zhong.training import Group
from gapscope.training.studies.lab import Spec
from gapscope.training.studies.runs import _task
from gapscope.training.trainer import train


@pytest.mark.parametrize(("size", "every"), [(300, 3), (650, 1)])
def test_the_share_of_the_curvature_is_what_training_says(size, every):
    recipe = Recipe(optimizer="mclr", lr=0.01, batch_size=size, epochs=2, curvature_every=every)
    task = _task(Spec(recipe=recipe, model="mlp", model_args={"hidden": [4]}, data="digits"))
    trained = train(task.build, task.data, task.loss, recipe)
    assert trained.log.notes == (f"curvature took {share(recipe, 1300, trained.steps):.0%} of the gradients",)


def test_other_optimizers_take_none():
    assert share(Recipe(epochs=1), 1300, 41) == 0


def group(accuracy):
    ones = np.ones(3)
    return Group(epochs=ones, train_loss=ones, test_loss=ones, test_accuracy=np.array(accuracy, dtype=float))


def test_mclr_is_set_beside_cblr_and_lars_with_both_batches():
    alike, far = group([90, 90.1, 90.2]), group([95, 95.1, 95.3])
    groups = {"small batch, mclr": group([90, 90, 90]), "small batch, cblr": alike, "small batch, lars": far}
    found = claims(groups)
    assert [claim.verdict for claim in found] == ["shows", "cannot tell", "does not show", "cannot tell"]
    assert [claim.text.rpartition(", ")[2] for claim in found] == ["small batch", "large batch"] * 2
