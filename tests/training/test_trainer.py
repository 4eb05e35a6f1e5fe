import math

import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.measure.loading import Trust, infer_loss, load_data, read_checkpoint
from gapscope.training.trainer import Recipe, mean_loss, save, train


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
        ({"epochs": 100, "until_loss": 2.0}, "training loss reached 2"),
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
    trained = train(build, data, loss, Recipe(epochs=2), watch=lambda step, value: seen.append((step, value)))
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


def test_looking_more_often_does_not_change_the_path(data, loss):
    one, two = (train(build, data, loss, Recipe(epochs=2), check_every=every) for every in (None, 1))
    assert same(one.model.state_dict(), two.model.state_dict())


def test_a_loss_that_explodes_is_refused(data, loss):
    with pytest.raises(
        UsageError, match=r"The training loss became (nan|inf) after \d+ steps. Expected it to fall. Lower"
    ):
        train(build, data, loss, Recipe(epochs=3, lr=1e30))


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"lr": 0.0},
        {"lr": math.nan},
        {"lr": math.inf},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"steps": 0},
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(UsageError, match=r"The recipe has batch size .* Expected batch size and counts >= 1"):
        Recipe(**{"epochs": 1, **wrong})


def test_training_that_nothing_stops_is_refused():
    with pytest.raises(UsageError, match="Nothing stops this training"):
        Recipe()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_both_optimizers_learn(data, loss, optimizer):
    rate = 0.1 if optimizer == "sgd" else 1e-2
    trained = train(build, data, loss, Recipe(optimizer=optimizer, lr=rate, momentum=0.9, epochs=5, weight_decay=1e-4))
    assert trained.train_loss < 2.0


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
