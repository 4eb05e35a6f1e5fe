"""What is written is read back; what others wrote is understood; nothing but plain types is recorded."""

import argparse
import re

import pytest
import torch
from torch import nn

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.checkpoint import read_checkpoint, save_checkpoint
from gapscope.measure.loading.networks import mlp
from gapscope.measure.loading.trust import Trust


def read(path):
    return read_checkpoint(path, Trust())


def save_all(path):
    torch.manual_seed(0)
    model = mlp(hidden=[8])
    initial = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    save_checkpoint(
        path,
        model,
        factory=mlp,
        model_args={"hidden": (8,)},
        data="digits",
        loss="cross-entropy",
        training={"batch_size": 32, "lr": 0.1},
        initial=initial,
        optimizer=optimizer,
    )
    return model


def test_everything_saved_is_read_back(tmp_path):
    model = save_all(tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.name == "a.pt"
    assert list(checkpoint.tensors) == ["model"]
    assert torch.equal(checkpoint.tensors["model"]["fc1.weight"], model.fc1.weight)
    assert checkpoint.initial["fc1.weight"].count_nonzero() == 0
    assert checkpoint.recorded["factory"] == "mlp"
    assert checkpoint.recorded["model_args"] == {"hidden": [8]}
    assert checkpoint.training == {"batch_size": 32, "lr": 0.1}
    assert checkpoint.optimizer["param_groups"][0]["momentum"] == 0.9


def test_the_same_model_gives_the_same_bytes_under_any_name(tmp_path):
    save_all(tmp_path / "a.pt")
    save_all(tmp_path / "other.pt")
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "other.pt"]


def test_a_view_does_not_drag_its_storage_into_the_file(tmp_path):
    model = nn.Linear(2, 2)
    model.weight = nn.Parameter(torch.zeros(10_000, 2)[:2])
    save_checkpoint(tmp_path / "a.pt", model)
    assert (tmp_path / "a.pt").stat().st_size < 5000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"training": {"lr": torch.tensor(0.1)}},
            "`training.lr` is an object of class torch.Tensor. Expected plain values",
        ),
        ({"model_args": {"sizes": [1, object()]}}, "`model_args.sizes[1]` is an object of class builtins.object"),
        ({"model_args": {"map": {1: 2}}}, "`model_args.map` is an object of class builtins.dict"),
        ({"optimizer": {"state": object()}}, "`optimizer.state` is an object of class builtins.object"),
        ({"factory": lambda: None}, "<lambda>`, which a later run cannot import. Expected a module-level function"),
        ({"factory": mlp()}, "which a later run cannot import"),
        ({"loss": nn.CrossEntropyLoss()}, "`loss` is `an object of class torch.nn.modules.loss.CrossEntropyLoss`"),
    ],
)
def test_what_is_not_plain_is_refused_and_named(tmp_path, arguments, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        save_checkpoint(tmp_path / "a.pt", mlp(), **arguments)
    assert not list(tmp_path.iterdir())


def test_a_factory_is_recorded_by_name(tmp_path):
    save_checkpoint(
        tmp_path / "a.pt", nn.Linear(2, 2), factory=nn.Linear, model_args={"in_features": 2, "out_features": 2}
    )
    assert read(tmp_path / "a.pt").recorded["factory"] == "torch.nn.modules.linear:Linear"


def test_a_failed_write_says_so_and_leaves_the_old_file(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"Cannot write .*: No such file or directory. Choose a folder"):
        save_checkpoint(tmp_path / "absent" / "a.pt", mlp())
    save_all(tmp_path / "a.pt")
    before = (tmp_path / "a.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gapscope.measure.loading.checkpoint.os.fsync", full)
    with pytest.raises(UsageError, match="No space left on device"):
        save_checkpoint(tmp_path / "a.pt", mlp())
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == before


def test_training_is_found_where_scripts_leave_it(tmp_path):
    model = nn.Linear(2, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.8, weight_decay=0.01)
    content = {
        "state_dict": model.state_dict(),
        "optimizer": sgd.state_dict(),
        "epoch": 7,
        "args": argparse.Namespace(batch_size=64, lr=1.0, extra=None),
    }
    torch.save(content, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.training == {
        "epoch": 7,
        "batch_size": 64,
        "lr": 0.3,
        "momentum": 0.8,
        "weight_decay": 0.01,
        "nesterov": False,
        "optimizer": "sgd",
    }
    assert list(checkpoint.tensors) == ["state_dict"]
    assert checkpoint.recorded == {}


def test_learning_rates_that_differ_by_group_are_not_one_rate(tmp_path):
    model = nn.Linear(2, 2)
    adam = torch.optim.Adam([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    torch.save({"model": model.state_dict(), "optimizer_states": [adam.state_dict()]}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert "lr" not in checkpoint.training
    assert "optimizer" not in checkpoint.training
    assert checkpoint.training["weight_decay"] == 0
    assert list(checkpoint.tensors) == ["model"]
    assert checkpoint.optimizer["state"]


def test_weights_are_found_beside_loose_tensors_and_schedulers(tmp_path):
    content = {
        "upscaler": nn.Linear(2, 2).state_dict(),
        "loss": torch.ones(()),
        "torch_rng_state": torch.zeros(8),
        "lr_scheduler": {"rates": torch.ones(3)},
    }
    torch.save(content, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt").tensors) == ["upscaler"]
    torch.save(content | {"best": torch.ones(())}, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt").tensors) == ["(file)", "upscaler"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds an object of class builtins.list. Expected a state_dict"),
        ({"epoch": 3, "lr": 0.1}, "holds no weights (its keys: `epoch`, `lr`)"),
        ({}, "holds no weights (its keys: none)"),
        (
            {"gapscope": {"format_version": 2}},
            "has checkpoint format 2; this gapscope reads up to 1. Upgrade gapscope.",
        ),
        (
            {"gapscope": {"format_version": 1, "factory": 3}},
            "records `factory` as an object of class builtins.int. Expected a string",
        ),
        (
            {"gapscope": {"format_version": 1, "model_args": "x"}},
            "records `model_args` as an object of class builtins.str. Expected a table",
        ),
        (
            {"gapscope": {"format_version": 1, "training": {"lr": torch.ones(1)}}},
            "`training.lr` is an object of class torch.Tensor",
        ),
    ],
)
def test_a_file_without_usable_content_says_what_it_holds(tmp_path, content, message):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(LoadError, match=re.escape(message)):
        read(tmp_path / "a.pt")
