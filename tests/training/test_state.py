import dataclasses
import itertools
import signal
import threading

import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.measure.loading import Trust, infer_loss, load_data
from gapscope.measure.monitor import Monitor
from gapscope.training.recipe import Recipe
from gapscope.training.state import Kept, code_digest, settings_digest
from gapscope.training.trainer import Running, train


@pytest.fixture(scope="module")
def data():
    found = load_data("digits", "train", recorded=False, trust=Trust()).limited(150, 0)
    return dataclasses.replace(found, inputs=found.inputs.view(-1, 1, 8, 8))


@pytest.fixture(scope="module")
def loss(data):
    return infer_loss(data.targets)


def build():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(72, 10)
    )


class Heard(Monitor):
    def __init__(self):
        self.plans, self.passes, self.done = [], [], 0.0

    def begin(self, name, passes):
        self.passes.append(passes)

    def tick(self, fraction):
        self.done += fraction

    def plan(self, text):
        self.plans.append(text)


class StopError(Exception):
    """Stands for whatever ends a process."""


def stopping(after):
    looks = itertools.count(1)

    def watch(step, loss):
        if next(looks) == after:
            raise StopError

    return watch


EVERYTHING = {"epochs": 4, "batch_size": 40, "augment": True, "schedule": "cosine"}


@pytest.mark.parametrize(
    "recipe",
    [
        {"momentum": 0.9},
        {"optimizer": "adam", "lr": 0.01, "batch_schedule": "2@2"},
        {"optimizer": "sam", "momentum": 0.5},
        {"optimizer": "cblr", "lr": 1e-3, "curvature_every": 3, "curvature_probes": 1},
        {"conservative": 1e-2, "discard": 0.25},
    ],
)
@pytest.mark.parametrize("after", [3, 9])
def test_what_was_stopped_goes_on_to_the_same_bits(data, loss, tmp_path, recipe, after):
    recipe, path = Recipe(**EVERYTHING, **recipe), tmp_path / "x.state"
    whole = train(build, data, loss, recipe, check_every=1, running=Running(log_every=2))
    running = Running(log_every=2, state=path, state_seconds=0.0)
    with pytest.raises(StopError):
        train(build, data, loss, recipe, check_every=1, running=dataclasses.replace(running, watch=stopping(after)))
    heard, looks = Heard(), []
    again = dataclasses.replace(running, monitor=heard, watch=lambda step, _: looks.append(step))
    found = train(build, data, loss, recipe, check_every=1, running=again)
    assert heard.plans == [f"going on from step {after - 1} of {path}"]
    assert looks[0] == after
    ours, theirs = whole.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.record() == whole.record()
    assert found.log.notes == whole.log.notes
    for name, quantity in whole.log.quantities().items():
        assert quantity.value.tolist() == found.log.quantities()[name].value.tolist()
        assert quantity.labels == found.log.quantities()[name].labels


def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


@pytest.mark.parametrize(
    ("other", "more", "names"),
    [
        ({"seed": 1}, {}, "seed"),
        ({"lr": 0.2, "momentum": 0.5}, {}, "lr, momentum"),
        ({}, {"check_every": 10}, "check every"),
        ({"epochs": 3, "schedule": "cosine"}, {}, "epochs, schedule"),
        ({}, {"build": narrow}, "model"),
        ({}, {"code": "of an edited file"}, "code"),
    ],
)
def test_a_state_of_other_settings_is_refused_and_kept(data, loss, tmp_path, other, more, names):
    path = tmp_path / "x.state"
    running = Running(state=path, state_seconds=0.0)
    with pytest.raises(StopError):
        train(build, data, loss, Recipe(epochs=2), running=dataclasses.replace(running, watch=stopping(2)))
    before = path.read_bytes()
    given = {"build": build, **more}
    with pytest.raises(UsageError) as error:
        train(data=data, loss=loss, recipe=Recipe(**{"epochs": 2, **other}), running=running, **given)
    assert str(error.value) == (
        f"{path} is the state of a training of other settings: {names}. Expected one of these settings. Give the "
        "earlier ones, name another `--output`, or delete that file to start anew."
    )
    assert path.read_bytes() == before


def test_other_initial_weights_are_another_training(tmp_path):
    Kept(tmp_path / "x.state", "one", 0.0, {"seed": 1}).write(dict)
    with pytest.raises(UsageError, match=r"of other settings: initial weights\. Expected"):
        Kept(tmp_path / "x.state", "two", 0.0, {"seed": 1}).read()


def test_a_damaged_state_is_said(data, loss, tmp_path):
    path, heard = tmp_path / "x.state", Heard()
    path.write_bytes(b"PK\x03\x04 and no more")
    train(build, data, loss, Recipe(steps=1), running=Running(state=path, monitor=heard))
    assert heard.plans == [f"{path} is damaged: training starts anew"]


def interrupting(after):
    def watch(step, loss):
        if step == after:
            signal.raise_signal(signal.SIGINT)

    return watch


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"epochs": 3}, {"epochs": 4}),
        ({"until_loss": 1e-9}, {"epochs": 4}),
        ({"epochs": 3}, {"steps": 17, "patience": 50}),
        ({"epochs": 4, "schedule": "cosine", "until_loss": 1e-9}, {"epochs": 4, "schedule": "cosine"}),
    ],
)
@pytest.mark.parametrize("after", [5, 7])  # at the end of an epoch, and within one
def test_after_ctrl_c_a_training_goes_on_to_another_end_with_the_same_bits(data, loss, tmp_path, first, then, after):
    path = tmp_path / "x.state"
    running = Running(state=path, state_seconds=3600.0, log_every=2)
    sizes = {"batch_size": 30, "momentum": 0.9}
    before = signal.getsignal(signal.SIGINT)
    watched = dataclasses.replace(running, watch=interrupting(after))
    with pytest.raises(KeyboardInterrupt):
        train(build, data, loss, Recipe(**sizes, **first), check_every=1, running=watched)
    assert signal.getsignal(signal.SIGINT) is before
    heard, recipe = Heard(), Recipe(**sizes, **then)
    found = train(build, data, loss, recipe, check_every=1, running=dataclasses.replace(running, monitor=heard))
    assert heard.plans == [f"going on from step {after} of {path}"]
    whole = train(build, data, loss, recipe, check_every=1, running=Running(log_every=2))
    ours, theirs = whole.model.state_dict(), found.model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.record() == whole.record()


def test_ctrl_c_at_the_last_step_is_told_to_whoever_saves_the_training(data, loss, tmp_path):
    running = Running(state=tmp_path / "x.state", watch=interrupting(10))
    recipe = Recipe(epochs=2, batch_size=30)
    trained = train(build, data, loss, recipe, check_every=1, running=running)
    assert (trained.steps, trained.interrupted) == (10, True)
    assert not train(build, data, loss, recipe, check_every=1).interrupted


def test_ctrl_c_at_the_step_that_diverges_is_heeded_too(data, loss, tmp_path):
    def infinite_at_looks(outputs, targets):
        return loss.per_sample(outputs, targets) / torch.is_grad_enabled()

    kept = []
    running = Running(state=tmp_path / "x.state", watch=interrupting(1), kept=kept.append)
    with pytest.raises(KeyboardInterrupt):
        train(
            build,
            data,
            dataclasses.replace(loss, per_sample=infinite_at_looks),
            Recipe(epochs=2),
            check_every=1,
            running=running,
        )
    assert [one.stopped for one in kept] == ["training loss became inf"]


@pytest.mark.parametrize(("after", "left"), [(5, 3), (6, 3), (10, 2)])  # of 5 steps an epoch
def test_time_left_is_that_of_what_is_left(data, loss, tmp_path, after, left):
    recipe = Recipe(epochs=4, batch_size=30)
    running = Running(state=tmp_path / "x.state", state_seconds=3600.0)
    with pytest.raises(KeyboardInterrupt):
        train(build, data, loss, recipe, check_every=1, running=dataclasses.replace(running, watch=interrupting(after)))
    heard = Heard()
    train(build, data, loss, recipe, check_every=1, running=dataclasses.replace(running, monitor=heard))
    assert heard.passes == [left]
    assert heard.done == pytest.approx(4 - after / 5)


@pytest.mark.parametrize(
    ("recipe", "done"),
    [
        ({"epochs": 1}, "1 epoch"),
        ({"steps": 7}, "7 steps"),
        ({"until_loss": 100.0}, "a training loss of "),
    ],
)
def test_a_state_behind_the_end_is_refused(data, loss, tmp_path, recipe, done):
    running = Running(state=tmp_path / "x.state")
    watched = dataclasses.replace(running, watch=interrupting(7))
    with pytest.raises(KeyboardInterrupt):
        train(build, data, loss, Recipe(epochs=9, batch_size=30), check_every=1, running=watched)
    with pytest.raises(UsageError) as error:
        train(build, data, loss, Recipe(batch_size=30, **recipe), check_every=1, running=running)
    assert f"is the state of a training that has {done}" in str(error.value)
    assert "where this one would have stopped. Expected an earlier one. Let it train on, name " in str(error.value)


def test_a_second_ctrl_c_ends_at_once_with_nothing_written(data, loss, tmp_path):
    def watch(step, loss):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    running = Running(state=tmp_path / "x.state", watch=watch)
    with pytest.raises(KeyboardInterrupt):
        train(build, data, loss, Recipe(epochs=2), running=running)
    assert not running.state.exists()


def test_a_thread_beside_the_main_one_trains_with_a_state_too(data, loss, tmp_path):
    found = []
    running = Running(state=tmp_path / "x.state")
    thread = threading.Thread(target=lambda: found.append(train(build, data, loss, Recipe(steps=2), running=running)))
    thread.start()
    thread.join()
    assert found[0].steps == 2


def test_a_damaged_state_is_not_taken(tmp_path):
    path = tmp_path / "x.state"
    for content in (b"", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        assert Kept(path, "digest", 0.0).read() is None


def test_a_state_that_cannot_be_written_ends_no_training(data, loss, tmp_path):
    running = Running(state=tmp_path / "no folder" / "x.state", state_seconds=0.0)
    assert train(build, data, loss, Recipe(steps=2), running=running).steps == 2


def test_a_state_is_written_when_it_is_due_and_forgotten_at_the_end(tmp_path):
    path = tmp_path / "x.state"
    assert not Kept(path, "digest", 3600.0).due
    kept = Kept(path, "digest", 0.0)
    assert kept.due
    kept.write(lambda: {"steps": 3})
    assert kept.read() == {"digest": "digest", "settings": {}, "steps": 3}
    assert [one.name for one in tmp_path.iterdir()] == ["x.state"]
    kept.forget()
    assert not path.exists()


def test_the_digest_is_of_recipe_layers_weights_data_and_loss(data, loss):
    def digest(epochs=1, seed=0, data=data, kind=nn.ReLU, **others):
        torch.manual_seed(seed)
        return settings_digest(Recipe(epochs=epochs), nn.Sequential(nn.Linear(3, 3), kind()), data, loss, **others)

    same, *different = (
        digest(),
        digest(epochs=2),
        digest(seed=1),
        digest(data=data.limited(20, 0)),
        digest(kind=nn.Tanh),
        digest(check_every=2),
    )
    assert same == digest()
    assert len({same, *different}) == 1 + len(different)


def test_the_file_of_a_model_or_loss_counts_and_names_do_not(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("one")
    first = code_digest(f"{path}:Net", None)
    assert code_digest("mlp", "cross-entropy") == code_digest() != first
    path.write_text("two")
    assert code_digest(f"{path}:Net", None) != first
