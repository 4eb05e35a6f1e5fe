import numpy as np
import pytest
import torch
from torch import nn

from gapscope.measure.loading import Trust, build_loss, infer_loss, load_data
from gapscope.training.recipe import Recipe
from gapscope.training.trainer import Running, train

EPS = float(np.finfo(np.float32).eps)


@pytest.fixture(scope="module")
def data():
    return load_data("digits", "train", recorded=False, trust=Trust()).limited(200, 0)


@pytest.fixture(scope="module")
def loss(data):
    return infer_loss(data.targets)


def noisy():
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 10))


def logged(build, data, loss, recipe, every=1):
    return train(build, data, loss, recipe, running=Running(log_every=every))


@pytest.mark.parametrize("recipe", [{"momentum": 0.9}, {"optimizer": "sam"}, {"conservative": 1e-2}, {"accumulate": 2}])
def test_logging_changes_no_bit_of_the_training(data, loss, recipe):
    plain, other = (logged(noisy, data, loss, Recipe(epochs=2, **recipe), every) for every in (0, 1))
    ours, theirs = plain.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert plain.train_loss == other.train_loss
    assert plain.log.gradient_norm is None
    assert len(other.log.gradient_norm.value) == other.steps


def test_a_step_of_plain_sgd_is_the_rate_times_the_gradient_in_every_layer(data, loss):
    rate = 0.25

    def build():
        return nn.Sequential(nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 10))

    log = logged(build, data, loss, Recipe(epochs=2, lr=rate)).log
    assert log.gradient_norm.dims == ("step", "layer")
    assert log.gradient_norm.labels["layer"] == ("0", "2")
    norms, lengths, promised = (getattr(log, n).value for n in ("gradient_norm", "step_length", "first_order_change"))
    assert norms.shape == (14, 2)
    # the step is what is left of the gradient after it was added to weights of order 1, and rounded
    rounding = 64 * EPS
    assert lengths == pytest.approx(rate * norms, rel=rounding)
    assert promised == pytest.approx(-rate * norms**2, rel=rounding)


def test_on_a_quadratic_the_loss_changes_by_its_two_terms(data):
    loss = build_loss("mse", recorded=False, trust=Trust())
    wanted = nn.functional.one_hot(data.targets, 10).float()
    data = data.__class__(data.inputs, wanted, "one-hot", "one-hot", len(data))
    recipe = Recipe(steps=1, batch_size=len(data), lr=0.5)
    trained = logged(lambda: nn.Linear(64, 10, bias=False), data, loss, recipe)
    moved = trained.model.weight - trained.initial["weight"]
    second = float((data.inputs.double() @ moved.detach().double().T).square().mean())
    change, promised = trained.log.loss_change, float(trained.log.first_order_change.value[0, 0])
    assert float(change.value[0]) < 0
    error = float(change.numerical_error[0])
    assert 0 < error < 1e-3 * abs(float(change.value[0]))
    assert float(change.value[0]) == pytest.approx(promised + second, abs=error)


def test_the_loss_change_is_seen_through_one_dropout_mask(data, loss):
    """At a rate of almost nothing the weights stay, so all that could change the loss is another mask."""
    log = logged(noisy, data, loss, Recipe(epochs=1, lr=1e-30)).log
    assert np.abs(log.loss_change.value).max() == 0
    assert log.batch_loss.value.std() > 0


def test_steps_and_looks_are_labelled(data, loss):
    trained = logged(noisy, data, loss, Recipe(epochs=2), every=5)
    assert trained.log.loss_change.labels["step"] == ("1", "6", "11")
    assert trained.log.train_loss.labels["steps"] == ("7", "14")
    assert trained.log.train_loss.value[-1] == trained.train_loss
    assert next(iter(trained.log.quantities())) == "train_loss"


def test_the_first_and_the_last_logged_step_stand_side_by_side_by_layer(data, loss):
    log = logged(noisy, data, loss, Recipe(epochs=2), every=5).log
    for name in ("gradient_norm", "step_length"):
        every, ends = getattr(log, name), getattr(log, f"{name}_at")
        assert ends.labels == {"layer": every.labels["layer"], "at": ("step 1", "step 11")}
        assert (ends.value == every.value[[0, 2]].T).all()
    once = logged(noisy, data, loss, Recipe(steps=1)).log
    assert once.step_length_at.labels["at"] == ("step 1",)
    assert logged(noisy, data, loss, Recipe(steps=1), every=0).log.gradient_norm_at is None


def test_what_stays_the_same_is_no_curve(data, loss):
    even = logged(noisy, data, loss, Recipe(epochs=2, batch_size=50)).log
    assert [even.rate.drawn, even.batch_size.drawn, even.batch_loss.drawn] == ["detail", "detail", "line"]
    falling = logged(noisy, data, loss, Recipe(epochs=2, schedule="cosine")).log
    assert (falling.rate.drawn, falling.batch_size.drawn) == ("line", "line")  # the last batch of an epoch is smaller


def test_a_layer_without_a_gradient_has_a_gradient_of_zero(data, loss):
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(64, 10), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    log = logged(Idle, data, loss, Recipe(steps=2)).log
    assert log.gradient_norm.labels["layer"] == ("used", "idle")
    assert log.gradient_norm.value[:, 1].tolist() == [0, 0]
    assert log.gradient_norm.value[:, 0].min() > 0
