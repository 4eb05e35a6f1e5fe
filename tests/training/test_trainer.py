import math

import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.measure.loading import Trust, infer_loss, load_data, read_checkpoint
from gapscope.training.looking import mean_loss
from gapscope.training.recipe import Recipe
from gapscope.training.trainer import DivergedError, Running, save, train


@pytest.fixture(scope="module")
def data():
    return load_data("digits", "train", recorded=False, trust=Trust()).limited(200, 0)


@pytest.fixture(scope="module")
def loss(data):
    return infer_loss(data.targets)


def build():
    return nn.Sequential(nn.Linear(64, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 10))


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_training_is_bitwise_repeatable_by_seed(data, loss):
    one, two, other = (train(build, data, loss, Recipe(epochs=3, seed=seed)) for seed in (1, 1, 2))
    assert same(one.model.state_dict(), two.model.state_dict())
    assert one.train_loss == two.train_loss
    assert not same(one.model.state_dict(), other.model.state_dict())


def test_the_caller_s_random_numbers_are_untouched(data, loss):
    before = torch.get_rng_state()
    train(build, data, loss, Recipe(steps=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_batch_size_does_not_change_the_start(data, loss):
    one, two = (train(build, data, loss, Recipe(steps=1, batch_size=size)) for size in (8, 100))
    assert same(one.initial, two.initial)
    assert not same(one.initial, one.model.state_dict())


@pytest.mark.parametrize(
    ("stop", "why"),
    [
        ({"epochs": 2}, "2 epochs done"),
        ({"steps": 5}, "5 steps done"),
        ({"epochs": 100, "until_loss": 2.0}, "training loss reached: 1.986 is at or below the 2 asked for"),
        ({"epochs": 100, "patience": 2, "lr": 1e-9}, "training loss stalled for 2 epochs"),
    ],
)
def test_it_says_why_it_stopped(data, loss, stop, why):
    trained = train(build, data, loss, Recipe(**stop))
    assert trained.stopped == why
    assert trained.record()["stopped"] == why
    if "until_loss" in stop:
        assert trained.train_loss <= 2.0


def test_the_loss_is_that_of_all_data_in_eval_mode(data, loss):
    seen = []
    running = Running(watch=lambda step, value: seen.append((step, value)))
    trained = train(build, data, loss, Recipe(epochs=2), running=running)
    assert not trained.model.training
    with torch.no_grad():
        whole = float(nn.functional.cross_entropy(trained.model(data.inputs).double(), data.targets))
    assert trained.train_loss == pytest.approx(whole, rel=1e-5)
    assert mean_loss(trained.model, data, loss, size=7) == pytest.approx(whole, rel=1e-5)
    assert [step for step, _ in seen] == [7, 14]  # 200 samples, batches of 32
    assert seen[-1][1] == trained.train_loss


def test_looking_at_the_loss_leaves_the_mode_alone(data, loss):
    model = build().train()
    mean_loss(model, data, loss)
    assert model.training


class Sized(nn.Linear):
    """Notes how many samples it is called with to be looked at, of each of which it makes so many bytes."""

    def __init__(self, made):
        super().__init__(64, 10)
        self.made, self.sizes = made, []

    def forward(self, x):
        if not self.training:
            self.sizes.append(len(x))
        x.new_zeros(1).expand(len(x), self.made // 4)
        return super().forward(x)


@pytest.mark.parametrize(
    ("made", "recipe", "most"),
    [
        (10**9, {"batch_size": 11, "accumulate": 2}, 6),  # what a step takes through the model at once
        (10**9, {"batch_size": 1}, 1),
        (20_000_000, {"batch_size": 1}, 4),  # a power of two within 100 MB
        (20_000_000, {"batch_size": 150}, 150),
        (4, {"batch_size": 1}, 200),
    ],
)
def test_a_look_takes_no_more_samples_at_once_than_a_step_unless_they_are_small(data, loss, made, recipe, most):
    trained = train(lambda: Sized(made), data, loss, Recipe(steps=1, **recipe))
    few, more, *looks = trained.model.sizes
    assert (few, more) == (2, 4)  # by which the bytes are counted
    assert max(looks) == most
    assert sum(looks) == len(data)
    assert trained.train_loss == pytest.approx(mean_loss(trained.model, data, loss), rel=1e-6)


def test_looking_more_often_does_not_change_the_path(data, loss):
    one, two = (train(build, data, loss, Recipe(epochs=2), check_every=every) for every in (None, 1))
    assert same(one.model.state_dict(), two.model.state_dict())


def test_a_loss_that_explodes_is_refused_at_its_step_and_the_weights_are_handed_over(data, loss):
    kept = []
    with pytest.raises(
        UsageError, match=r"The training loss became (nan|inf) after 2 steps. Expected it to fall. Lower"
    ):
        train(build, data, loss, Recipe(epochs=3, lr=1e30), running=Running(kept=kept.append))
    (diverged,) = kept
    assert diverged.steps == 2
    assert not math.isfinite(diverged.train_loss)
    assert diverged.stopped == f"training loss became {diverged.train_loss}"


@pytest.mark.parametrize("optimizer", ["mclr", "cblr"])
def test_a_curvature_that_is_not_finite_is_a_training_that_diverged(data, loss, optimizer):
    kept = []
    recipe = Recipe(epochs=3, optimizer=optimizer, lr=1e30, curvature_every=1, curvature_probes=1)
    with pytest.raises(DivergedError, match=r"The curvature became nan after 1 step\. Expected numbers\. Lower `--lr`"):
        train(build, data, loss, recipe, running=Running(kept=kept.append))
    (diverged,) = kept
    assert (diverged.steps, diverged.stopped) == (1, "curvature became nan")
    assert math.isnan(diverged.train_loss)


def test_weights_are_handed_over_on_the_way(data, loss):
    kept = []
    running = Running(save_every=2, kept=lambda one: kept.append((one.epochs, one.steps, one.train_loss, one.stopped)))
    trained = train(build, data, loss, Recipe(epochs=5), running=running)
    assert [one[:2] for one in kept] == [(2, 14), (4, 28)]
    assert kept[-1][3] == "saved after 4 epochs"
    assert same(trained.model.state_dict(), train(build, data, loss, Recipe(epochs=5)).model.state_dict())
    assert kept[0][2] == train(build, data, loss, Recipe(epochs=2)).train_loss


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sngm", "lars", "mclr", "cblr", "lamb", "sam"])
def test_every_optimizer_learns(data, loss, optimizer):
    rate = {"sgd": 0.1, "sam": 0.1, "lars": 0.05, "mclr": 0.01, "cblr": 0.01}.get(optimizer, 0.02)
    trained = train(build, data, loss, Recipe(optimizer=optimizer, lr=rate, epochs=8, weight_decay=1e-4))
    start = build()
    start.load_state_dict(dict(trained.initial))
    assert trained.train_loss < 0.95 * mean_loss(start, data, loss)
    assert trained.record()["optimizer"] == optimizer


@pytest.mark.parametrize("optimizer", ["sgd", "mclr", "cblr"])
def test_batches_in_which_no_target_counts_are_passed_over(data, loss, optimizer):
    some = data.part(torch.arange(12))
    first, _, _, fourth, *_ = torch.randperm(12, generator=torch.Generator().manual_seed(0)).split(2)
    some.targets[torch.cat([first, fourth])] = -100
    recipe = Recipe(epochs=1, batch_size=2, optimizer=optimizer, lr=1e-3, curvature_every=1, curvature_probes=1)
    trained = train(lambda: nn.Linear(64, 10), some, loss, recipe, running=Running(log_every=1))
    assert [bool(one) for one in trained.log.batch_loss.value] == [False, True, True, False, True, True]
    moved = trained.log.step_length.value.sum(1)  # of all layers
    assert moved[0] == 0  # without a gradient or momentum
    assert moved[4] > 0
    assert math.isfinite(trained.train_loss)


def test_the_cost_of_curvature_is_said(data, loss):
    recipe = Recipe(optimizer="mclr", lr=0.01, steps=4, curvature_every=2, curvature_probes=1)
    (note,) = train(build, data, loss, recipe).log.notes
    assert note.startswith("curvature took ")
    assert train(build, data, loss, Recipe(steps=1)).log.notes == ()


def test_batchnorm_over_the_parts_of_a_batch_is_said(data, loss):
    def mixing():
        return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))

    (note,) = train(mixing, data, loss, Recipe(steps=1, accumulate=4)).log.notes
    assert note.startswith("BatchNorm took its statistics from each of 4 parts of a batch")
    assert train(mixing, data, loss, Recipe(steps=1)).log.notes == ()


@pytest.mark.parametrize(
    "remedy",
    [
        {"discard": 0.5},
        {"conservative": 1e-3},
        {"adversarial": 0.1},
        {"accumulate": 3},
        {"schedule": "cosine"},
        {"batch_size": 64},
    ],
)
def test_what_the_recipe_says_changes_the_path(data, loss, remedy):
    def plain():
        return nn.Linear(64, 10)

    one, two = (train(plain, data, loss, Recipe(epochs=2, **more)) for more in ({}, remedy))
    assert not same(one.model.state_dict(), two.model.state_dict())
    assert set(remedy) <= set(two.record())


def test_augmentation_shifts_the_images(data, loss):
    def plain():
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    images = data.__class__(data.inputs.view(-1, 1, 8, 8), data.targets, "images", "images", len(data))
    one, two, again = (train(plain, images, loss, Recipe(epochs=2, augment=augment)) for augment in (False, True, True))
    assert not same(one.model.state_dict(), two.model.state_dict())
    assert same(two.model.state_dict(), again.model.state_dict())
    assert one.train_loss < two.train_loss  # of the images as they are


def test_conservative_steps_are_three_on_each_batch(data, loss):
    calls = []

    class Counted(nn.Linear):
        def forward(self, x):
            calls.append(self.training)
            return super().forward(x)

    train(lambda: Counted(64, 10), data, loss, Recipe(steps=4, conservative=1.0))
    assert calls.count(True) == 3 * 4


def test_schedules_and_batch_schedules_are_followed(data, loss):
    recipe = Recipe(epochs=3, batch_size=50, batch_schedule="2@1", schedule="polynomial:power=1", lr=0.4)
    trained = train(build, data, loss, recipe, running=Running(log_every=1))
    assert trained.steps == 4 + 2 + 2
    assert trained.log.batch_size.value.tolist() == [50] * 4 + [100] * 4
    assert trained.log.rate.value == pytest.approx([0.4 * (1 - step / 8) for step in range(8)])
    assert trained.record()["last_lr"] == pytest.approx(0.4 / 8)
    assert "last_lr" not in train(build, data, loss, Recipe(steps=1)).record()


def test_a_saved_checkpoint_records_everything(data, loss, tmp_path):
    recipe = Recipe(epochs=1, batch_size=50, momentum=0.5)
    trained = train(lambda: nn.Linear(64, 10), data, loss, recipe)
    path = tmp_path / "x.pt"
    save(trained, path, factory="mlp", model_args={"hidden": []}, data="digits", loss=loss.name)
    found = read_checkpoint(path, Trust())
    assert found.training["batch_size"] == 50
    assert found.training["momentum"] == 0.5
    assert found.training["steps"] == 4
    assert found.training["train_loss"] == trained.train_loss
    assert same(found.initial, trained.initial)
