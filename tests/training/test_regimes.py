import math

import pytest
import torch

from gapscope.errors import UsageError
from gapscope.measure.loading import NETWORKS, Trust, infer_loss, load_data, read_checkpoint
from gapscope.training.looking import mean_loss
from gapscope.training.recipe import Recipe
from gapscope.training.regimes import LONGEST, Run, Task, make_regimes, make_run, matched, state_path
from gapscope.training.trainer import Running

ARGUMENTS = {"hidden": [16]}


@pytest.fixture(scope="module")
def task():
    data = load_data("digits", "train", recorded=False, trust=Trust()).limited(200, 0)
    return Task(lambda: NETWORKS["mlp"](**ARGUMENTS), data, infer_loss(data.targets), "mlp", ARGUMENTS)


def test_a_finished_run_is_read_and_not_trained_again(task, tmp_path):
    path, looks = tmp_path / "x.pt", []
    recipe = Recipe(epochs=2, seed=3, schedule="cosine")
    running = Running(watch=lambda *look: looks.append(look))
    made = make_run(recipe, task, path, running=running)
    assert len(looks) == 2
    content = path.read_bytes()
    again = make_run(recipe, task, path, running=running)
    assert len(looks) == 2
    assert path.read_bytes() == content
    assert made.record() == again.record()
    assert again.log is None
    assert mean_loss(again.model, task.data, task.loss) == made.train_loss
    assert all(torch.equal(made.initial[name], again.initial[name]) for name in made.initial)
    assert not again.model.training


@pytest.mark.parametrize("other", [Recipe(epochs=2), Recipe(epochs=1, lr=0.2), Recipe(epochs=1, seed=1)])
def test_other_settings_are_trained_anew(task, tmp_path, other):
    path = tmp_path / "x.pt"
    first = make_run(Recipe(epochs=1), task, path)
    made = make_run(other, task, path)
    assert made.log is not None
    assert made.digest != first.digest
    assert read_checkpoint(path, Trust()).training["train_loss"] == made.train_loss


def test_what_is_no_run_is_replaced(task, tmp_path):
    path = tmp_path / "x.pt"
    for content in (b"nothing", None):
        if content is None:
            torch.save(NETWORKS["mlp"](**ARGUMENTS).state_dict(), path)
        else:
            path.write_bytes(content)
        assert make_run(Recipe(epochs=1), task, path).log is not None
        path.unlink()


def test_the_state_is_beside_the_run_and_gone_at_its_end(task, tmp_path):
    seen = []
    path = tmp_path / "x.pt"
    running = Running(state_seconds=0.0, watch=lambda *_: seen.append(state_path(path).exists()))
    make_run(Recipe(epochs=2), task, path, running=running)
    assert seen == [True, True]  # 7 steps an epoch
    assert [one.name for one in tmp_path.iterdir()] == ["x.pt"]


def test_the_rules_of_equality(task, tmp_path):
    reference = make_run(Recipe(epochs=3, batch_size=10), task, tmp_path / "x.pt")
    recipe = Recipe(batch_size=100, until_loss=0.1, patience=5, lr=0.3)

    def stops(equal, most=None):
        found = matched(recipe, reference, equal, most)
        assert (found.batch_size, found.lr) == (100, 0.3)
        return found.epochs, found.steps, found.until_loss, found.patience

    assert stops("loss") == (LONGEST * 4, None, reference.train_loss, None)
    assert stops("loss", 7) == (7, None, reference.train_loss, None)
    assert stops("samples") == (3, None, None, None)
    assert stops("steps") == (None, 60, None, None)


def test_regimes_come_to_the_loss_of_the_first_of_each_seed_or_say_that_they_did_not(task, tmp_path):
    recipes = [Recipe(batch_size=size, lr=lr, epochs=8) for size, lr in ((16, 0.1), (100, 0.2), (200, 1e-6))]

    def make(recipe):
        path = tmp_path / f"{recipe.batch_size}-{recipe.seed}.pt"
        return Run(path, make_run(recipe, task, path))

    runs = list(make_regimes(recipes, make, seeds=(0, 1), max_epochs=60))
    assert [run.path.name for run in runs] == [f"{size}-{seed}.pt" for seed in (0, 1) for size in (16, 100, 200)]
    assert [run.reached for run in runs] == [True, True, False] * 2
    for first, second, late in (runs[:3], runs[3:]):
        assert second.trained.train_loss <= first.trained.train_loss
        assert late.trained.train_loss > first.trained.train_loss
        assert late.trained.stopped == "60 epochs done"
    assert not math.isclose(runs[0].trained.train_loss, runs[3].trained.train_loss)


def test_nothing_is_to_be_reached_where_the_samples_are_equal(task, tmp_path):
    def make(recipe):
        path = tmp_path / f"{recipe.batch_size}.pt"
        return Run(path, make_run(recipe, task, path))

    recipes = [Recipe(batch_size=16, epochs=4), Recipe(batch_size=200, epochs=1)]
    first, second = make_regimes(recipes, make, seeds=[0], equal="samples")
    assert second.trained.epochs == first.trained.epochs == 4
    assert second.trained.train_loss > first.trained.train_loss
    assert second.reached


def test_a_schedule_without_a_length_is_refused_where_regimes_train_to_a_loss():
    recipes = [Recipe(batch_size=size, epochs=3, schedule="cosine") for size in (8, 64)]
    with pytest.raises(UsageError, match="The schedule `cosine` has no length in regimes that train to a loss"):
        next(make_regimes(recipes, None, seeds=[0]))
