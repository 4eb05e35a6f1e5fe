"""What is written is read back; what others wrote is understood; nothing but plain types is recorded."""

import argparse
import functools
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint, save_checkpoint
from gapscope.measure.loading.checkpoints.fitting import fit
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


class Extra(nn.Linear):
    """A layer with something beside its tensors."""

    def get_extra_state(self):
        return object()


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


def test_a_checkpoint_has_the_name_by_which_it_was_given(tmp_path, monkeypatch):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "epoch9.pt")
    (tmp_path / "last.pt").symlink_to("epoch9.pt")
    assert read(tmp_path / "last.pt").name == "last.pt"
    (tmp_path / "net").mkdir()
    (tmp_path / "epoch9.pt").rename(tmp_path / "net" / "pytorch_model.bin")
    monkeypatch.chdir(tmp_path / "net")
    assert read(Path()).name == "net"


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


def test_weights_that_share_memory_are_in_the_file_once(tmp_path):
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False))
    model[1].weight = model[0].weight
    save_checkpoint(tmp_path / "a.pt", model)
    assert (tmp_path / "a.pt").stat().st_size < 60_000


def test_a_sparse_tensor_is_saved_as_it_is(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.eye(2).to_sparse())
    save_checkpoint(tmp_path / "a.pt", model)
    saved = read(tmp_path / "a.pt").tensors["model"]["mask"]
    assert saved.layout == torch.sparse_coo
    assert torch.equal(saved.to_dense(), torch.eye(2))


def test_what_was_not_given_is_not_in_the_file(tmp_path):
    save_checkpoint(tmp_path / "a.pt", nn.Linear(2, 2))
    assert set(torch.load(tmp_path / "a.pt", weights_only=True)) == {"gapscope", "model"}


def test_tensors_in_the_lists_of_an_optimizer_are_kept(tmp_path):
    model = nn.Linear(2, 2)
    adam = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.25))
    save_checkpoint(tmp_path / "a.pt", model, optimizer=adam)
    assert torch.equal(read(tmp_path / "a.pt").optimizer["param_groups"][0]["lr"], torch.tensor(0.25))


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
        ({"training": {"seed": 1 << 60_000}}, "`training.seed` is an integer of 60,001 bits. Expected at most 2,000"),
        ({"model_args": {"name": "a\ud800"}}, "`model_args.name` holds half of a letter: 'a\\ud800'. Expected text"),
        ({"training": {"\udfff": 1}}, "`training` holds half of a letter: '\\udfff'. Expected text that UTF-8 can"),
        (
            {"training": functools.reduce(lambda inner, _: {"a": inner}, range(40), {})},
            f"`training{'.a' * 26}...` is nested 32 levels deep. Expected lists and tables of few levels",
        ),
        ({"data": "a\udfff"}, "`data` holds half of a letter: 'a\\udfff'. Expected text"),
        ({"test_data": "a\udfff"}, "`test_data` holds half of a letter: 'a\\udfff'. Expected text"),
        ({"model": Extra(2, 2)}, "`model._extra_state` is an object of class builtins.object"),
        ({"initial": {"w": object()}}, "`initial.w` is an object of class builtins.object"),
        ({"factory": lambda: None}, "<lambda>`, which a later run cannot import. Expected a module-level function"),
        ({"factory": mlp()}, "which a later run cannot import"),
        ({"factory": [].append}, "`factory` is `None:list.append`, which a later run cannot import"),
        ({"factory": type("Net", (), {"__module__": "__main__"})}, "`__main__:Net`, which a later run cannot import"),
        ({"loss": nn.CrossEntropyLoss()}, "`loss` is `an object of class torch.nn.modules.loss.CrossEntropyLoss`"),
    ],
)
def test_what_is_not_plain_is_refused_and_named(tmp_path, arguments, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        save_checkpoint(tmp_path / "a.pt", **{"model": mlp(), **arguments})
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

    for kind in (RuntimeError, OSError):  # as torch says it of a full disk; and without a number of the system

        def failed(*_, kind=kind):
            raise kind("PytorchStreamWriter failed writing file data/0: file write failed\nframe #0: c10::Error")

        with monkeypatch.context() as patched:
            patched.setattr("torch.save", failed)
            with pytest.raises(UsageError, match=r"a\.pt: PytorchStreamWriter .* file write failed\. Choose a folder"):
                save_checkpoint(tmp_path / "a.pt", mlp())
    monkeypatch.setattr("gapscope.measure.loading.checkpoints.checkpoint.os.fsync", full)
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
        "iter_num": 900,
        "args": argparse.Namespace(batch_size=64, lr=1.0, extra=None),
    }
    torch.save(content, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.training == {
        "epoch": 7,
        "iter_num": 900,
        "batch_size": 64,
        "lr": 0.3,
        "momentum": 0.8,
        "dampening": 0,
        "weight_decay": 0.01,
        "nesterov": False,
        "optimizer": "sgd",
    }
    assert list(checkpoint.tensors) == ["state_dict"]
    assert checkpoint.recorded == {}


@pytest.mark.parametrize(
    "key", ["args", "config", "cfg", "hparams", "hyper_parameters", "hyperparameters", "opt", "model_args"]
)
def test_settings_are_found_under_every_usual_name(tmp_path, key):
    torch.save({"model": nn.Linear(2, 2).state_dict(), key: {"width": 8, "lr": 0.5}}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.settings == {"width": 8, "lr": 0.5}
    assert checkpoint.training == {"lr": 0.5}


def test_every_usual_word_about_training_is_found(tmp_path):
    words = """epoch epochs step steps global_step iteration iterations iter_num batch_size lr learning_rate momentum
        weight_decay seed"""
    said = {word: i for i, word in enumerate(words.split())}
    torch.save({"model": nn.Linear(2, 2).state_dict(), **said, "patience": 3}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").training == said


@pytest.mark.parametrize("key", ["optimizer", "optimizer_state_dict", "optimizer_state", "optim"])
def test_the_state_of_an_optimizer_is_found_under_every_usual_name(tmp_path, key):
    model = nn.Linear(2, 2)
    state = torch.optim.SGD(model.parameters()).state_dict()
    state["state"] = {"weight": {"momentum_buffer": torch.ones(2, 2)}}  # under names, as of FSDP
    torch.save({"model": model.state_dict(), key: state}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.optimizer["param_groups"]
    assert list(checkpoint.tensors) == ["model"]


@pytest.mark.parametrize("key", ["optimizer_states", "optimizers"])
def test_learning_rates_that_differ_by_group_are_not_one_rate(tmp_path, key):
    model = nn.Linear(2, 2)
    adam = torch.optim.Adam([{"params": [model.weight], "lr": 0.1}, {"params": [model.bias], "lr": 0.2}])
    model(torch.ones(1, 2)).sum().backward()
    adam.step()
    torch.save({"model": model.state_dict(), key: [adam.state_dict()]}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert "lr" not in checkpoint.training
    assert "optimizer" not in checkpoint.training
    assert checkpoint.training["weight_decay"] == 0
    assert list(checkpoint.tensors) == ["model"]
    assert checkpoint.optimizer["state"]


@pytest.mark.parametrize("key", ["nesterov", "dampening"])
def test_an_optimizer_with_one_setting_of_sgd_is_not_sgd(tmp_path, key):
    """Muon has `nesterov`, too."""
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, key: 0, "params": [0]}]}
    torch.save({"model": nn.Linear(2, 2).state_dict(), "optimizer": optimizer}, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").training == {"lr": 0.1, key: 0}


@pytest.mark.parametrize(
    "found",
    [
        {"optimizer_states": []},  # of Lightning, where weights alone were saved
        {"optimizer": {"state": {}, "param_groups": []}},
        {"optimizer": {"state": {}, "param_groups": 3}},
        {"optimizer": {"state": {}, "param_groups": [3]}},
        {"optimizer": {"lr": 0.1}},
    ],
)
def test_an_optimizer_without_settings_says_nothing_of_the_training(tmp_path, found):
    torch.save({"model": nn.Linear(2, 2).state_dict(), **found}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.training == {}
    assert (checkpoint.optimizer is not None) == ("param_groups" in str(found))


def test_what_others_call_as_gapscope_does_is_theirs(tmp_path):
    state = nn.Linear(2, 2).state_dict()
    torch.save({"model": state, "initial": state, "gapscope": {"depth": 3}}, tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert (list(checkpoint.tensors), checkpoint.initial, checkpoint.recorded) == (["model", "initial"], None, {})


def test_weights_beside_names_that_no_text_can_hold_are_read(tmp_path):
    about = {"format_version": 1, "factory": "ml\ud800p", "data": None}
    torch.save({"gapscope": about, "model": nn.Linear(2, 2).state_dict()}, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt").tensors) == ["model"]


def test_weights_are_found_down_to_four_tables_below_the_file(tmp_path):
    for names, found in (("abcd", ["a.b.c.d"]), ("abcde", [])):
        content = functools.reduce(lambda inner, name: {name: inner}, reversed(names), {"w": torch.ones(2)})
        torch.save({"net": {"w": torch.ones(2)}, **content}, tmp_path / "a.pt")
        assert list(read(tmp_path / "a.pt").tensors) == ["net", *found]


@pytest.mark.parametrize("listed", [[], [torch.ones(2), None], torch.ones(2)])
def test_a_list_of_averages_that_is_empty_or_holds_no_tensors_or_is_no_list_is_none(tmp_path, listed):
    ema = {"decay": 0.9, "num_updates": 3, "shadow_params": listed}
    torch.save({"net": {"w": torch.ones(2)}, "ema": ema}, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt").tensors) == ["net"]


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_a_tensor_without_a_shape_is_refused(tmp_path):
    ragged = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    torch.save({"v": torch.ones(2), "w": ragged}, tmp_path / "a.pt")
    with pytest.raises(LoadError, match=r"`w` is a nested tensor. Expected tensors of one shape each"):
        read(tmp_path / "a.pt")


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
    ("content", "key"),
    [
        ([{"a": torch.ones(2)}, {"state": {}, "param_groups": []}], "0"),
        ((3, {"a": torch.ones(2)}), "1"),
        ({"a": np.ones(2, np.float32)}, "(file)"),
        ({"net": {"a": np.ones(2, np.float32)}, "losses": [1.0]}, "net"),
        ({"net": {"a": torch.ones(2)}, "losses": [torch.ones(2)]}, "net"),
        ({"net": {"a": torch.ones(2)}, 3: {"b": torch.ones(2)}}, "net"),
    ],
)
def test_weights_in_a_list_or_as_arrays_are_found(tmp_path, content, key):
    torch.save(content, tmp_path / "a.pt")
    tensors = read(tmp_path / "a.pt").tensors
    assert {at: list(state) for at, state in tensors.items()} == {key: ["a"]}
    assert torch.equal(tensors[key]["a"], torch.ones(2))


def test_arrays_beside_the_tensors_of_a_checkpoint_are_no_weights(tmp_path):
    """They are a history, say; of a plain pickle nobody knows which kind its maker meant."""
    content = {"net": {"a": torch.ones(2)}, "history": {"loss": np.ones(2), "accuracy": np.ones(2)}}
    torch.save(content, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt").tensors) == ["net"]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    assert list(read(tmp_path / "a.pkl").tensors) == ["net", "history"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "holds an object of class builtins.int. Expected a state_dict"),
        ([1, 2], "holds an object of class builtins.list. Expected a state_dict"),
        (np.ones(2), "holds an object of class numpy.ndarray. Expected a state_dict"),
        (
            {"fc._packed_params": 0.1},
            "These are quantized, whose loss has no derivatives: give the weights",
        ),
        ({"epoch": 3, "lr": 0.1}, "holds no weights (its keys: `epoch`, `lr`)"),
        ({}, "holds no weights (its keys: none)"),
        ({0: torch.ones(2), 1: torch.ones(2)}, "holds no weights (its keys: `0`, `1`)"),
        ({f"k{i}": i for i in range(9)}, "`k4`, `k5`, `k6`, `k7`). Expected a state_dict"),
        (
            {"gapscope": {"format_version": 2}},
            "has checkpoint format 2; this gapscope reads up to 1. Upgrade gapscope.",
        ),
        (
            {"gapscope": {"format_version": "1.5"}},
            "has checkpoint format '1.5'; this gapscope reads up to 1. Upgrade gapscope.",
        ),
        (
            {"gapscope": {"format_version": 1, "factory": 3}},
            "records `factory` as an object of class builtins.int. Expected a string",
        ),
        *(
            (
                {"gapscope": {"format_version": 1, name: 3}},
                f"records `{name}` as an object of class builtins.int. Expected a {kind}",
            )
            for kind, names in (("string", ("data", "test_data", "loss")), ("table", ("model_args", "training")))
            for name in names
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


def test_settings_are_the_plain_values_that_a_script_left(tmp_path):
    content = {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": nn.Linear(2, 2).state_dict(),
        "hyper_parameters": {"width": 8, "sizes": (1, 2), "weight": torch.ones(2), "lr": 0.5},
        "args": argparse.Namespace(batch_size=64),
    }
    torch.save(content, tmp_path / "a.ckpt")
    checkpoint = read(tmp_path / "a.ckpt")
    assert checkpoint.format == "Lightning checkpoint"
    assert checkpoint.settings == {"width": 8, "sizes": [1, 2], "lr": 0.5, "batch_size": 64}
    assert checkpoint.training == {"lr": 0.5, "batch_size": 64}
    assert (checkpoint.folder, checkpoint.modules, checkpoint.trust) == (None, {}, "nothing from the file runs")


@pytest.mark.parametrize(
    "place",
    ["", "args", "config", "cfg", "hparams", "hyper_parameters", "hyperparameters", "opt", "model_args"],
)
def test_what_a_script_wrote_down_is_found_wherever_scripts_do_so(tmp_path, place):
    names = "epoch epochs step steps global_step iteration iterations iter_num batch_size lr learning_rate momentum"
    said = dict.fromkeys((*names.split(), "weight_decay", "seed"), 3)
    told = said | {"width": 8}
    torch.save({"model": nn.Linear(2, 2).state_dict()} | ({place: told} if place else told), tmp_path / "a.pt")
    checkpoint = read(tmp_path / "a.pt")
    assert checkpoint.training == said
    assert checkpoint.settings == (told if place else {})


def test_settings_are_saved_as_deep_as_they_are_read(tmp_path):
    nested = functools.reduce(lambda inner, level: [inner] if level % 2 else {"a": inner}, range(31), 3)
    save_checkpoint(tmp_path / "a.pt", mlp(), training=nested)
    assert read(tmp_path / "a.pt").training == nested
    with pytest.raises(LoadError, match="is nested 32 levels deep"):
        save_checkpoint(tmp_path / "a.pt", mlp(), training={"a": nested})


def test_the_longest_integers_that_are_saved_are_read_back(tmp_path):
    training = {"seed": 1 << 1999, "low": -(1 << 1999), "letter": "\U0001f600\ud7ff\ue000"}
    save_checkpoint(tmp_path / "a.pt", mlp(), training=training)
    assert read(tmp_path / "a.pt").training == training
    with pytest.raises(LoadError, match=r"2,001 bits"):
        save_checkpoint(tmp_path / "a.pt", mlp(), training={"seed": 1 << 2000})


def test_lists_that_are_shared_over_and_over_are_left_out(tmp_path):
    shared = [0]
    for _ in range(25):  # millions of values in all
        shared = [shared] * 2
    content = {"model": nn.Linear(2, 2).state_dict(), "args": {"shared": shared, "lr": 0.1}}
    torch.save(content, tmp_path / "a.pt")
    assert read(tmp_path / "a.pt").settings == {"lr": 0.1}
    about = {"format_version": 1, "training": {"shared": shared}}
    torch.save({**content, "gapscope": about}, tmp_path / "b.pt")
    with pytest.raises(
        LoadError, match=r"`training\.shared(\[\d\])*` lies in tables of more than 100,000 values\. Exp"
    ):
        read(tmp_path / "b.pt")


def test_tables_that_are_shared_over_and_over_are_refused(tmp_path, monkeypatch):
    table = {"w": torch.ones(2)}
    for _ in range(3):
        table = {str(i): table for i in range(30)}
    torch.save(table, tmp_path / "a.pt")
    assert len(read(tmp_path / "a.pt").tensors) == 30**3
    monkeypatch.setattr("gapscope.measure.loading.checkpoints.checkpoint.MOST_NAMES", 30**3)
    with pytest.raises(LoadError, match=r"Its tables hold more than 27,000 names, those that are shared counted wher"):
        read(tmp_path / "a.pt")
    torch.save({"model": nn.Linear(2, 2).state_dict()}, tmp_path / "b.pt")  # three names
    monkeypatch.setattr("gapscope.measure.loading.checkpoints.checkpoint.MOST_NAMES", 3)
    assert list(read(tmp_path / "b.pt").tensors) == ["model"]
    monkeypatch.setattr("gapscope.measure.loading.checkpoints.checkpoint.MOST_NAMES", 2)
    with pytest.raises(LoadError, match="more than 2 names"):
        read(tmp_path / "b.pt")


def test_a_trusted_file_of_modules_gives_their_weights_and_the_modules(tmp_path):
    torch.save({"epoch": 3, "model": nn.Linear(2, 3), "ema": nn.Linear(2, 3), "best": None}, tmp_path / "a.pt")
    with pytest.raises(LoadError, match="is a whole pickled model"):
        read(tmp_path / "a.pt")
    checkpoint = read_checkpoint(tmp_path / "a.pt", Trust(file=True))
    assert list(checkpoint.tensors) == ["model", "ema"]
    assert list(checkpoint.modules) == ["model", "ema"]
    assert torch.equal(checkpoint.modules["model"].weight, checkpoint.tensors["model"]["weight"])
    assert checkpoint.training == {"epoch": 3}
    assert checkpoint.trust == "the whole file was trusted"
    torch.save(checkpoint.modules["ema"], tmp_path / "b.pt")
    alone = read_checkpoint(tmp_path / "b.pt", Trust(file=True))
    assert list(alone.modules) == ["(file)"]
    assert torch.equal(alone.tensors["(file)"]["weight"], checkpoint.modules["ema"].weight)


def test_tables_in_a_circle_and_too_deep_are_read_as_far_as_they_go(tmp_path):
    path = tmp_path / "a.pkl"
    circle = {"model": {"w": np.ones(2)}}
    for name in "abcdef":  # six times as many ways at every level
        circle[name] = circle
    path.write_bytes(pickle.dumps(circle))
    assert read_checkpoint(path, Trust()).tensors["model"]["w"].tolist() == [1, 1]
    array = pickle.dumps(np.ones(2), 2)[2:-1]
    opened = b"}(X\1\0\0\0w" + array + b"X\1\0\0\0v" + array + b"X\1\0\0\0i"
    path.write_bytes(b"\x80\x02" + opened * 5000 + b"N" + b"u" * 5000 + b".")  # deeper than Python itself writes
    assert read_checkpoint(path, Trust()).tensors["(file)"]["w"].tolist() == [1, 1]
    del circle["model"]
    torch.save(circle, tmp_path / "none.pt")
    with pytest.raises(LoadError, match=r"none.pt holds no weights \(its keys: `a`, `b`"):
        read_checkpoint(tmp_path / "none.pt", Trust())


def test_arrays_of_a_plain_pickle_and_of_an_npz_are_weights(tmp_path):
    arrays = {"fc.weight": np.arange(6, dtype=">f4").reshape(2, 3), "fc.bias": np.zeros(2, np.float64)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": arrays, "names": np.array(["a", "b"])}))
    np.savez(tmp_path / "a.npz", **{name: array.astype("<f4") for name, array in arrays.items()})
    assert read(tmp_path / "a.pkl").tensors["model"]["fc.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read(tmp_path / "a.npz").tensors["(file)"]["fc.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert read(tmp_path / "a.pkl").format == "plain pickle"
    assert read(tmp_path / "a.npz").format == "NumPy archive (.npz)"


def test_a_list_of_averages_without_names_has_a_place_of_its_own(tmp_path):
    content = {"model": {"w": torch.ones(2)}, "ema": {"decay": 0.9, "shadow_params": [torch.zeros(2)]}}
    torch.save(content, tmp_path / "a.pt")
    assert list(read(tmp_path / "a.pt").tensors) == ["model", "ema.shadow_params"]
    assert list(read(tmp_path / "a.pt").tensors["ema.shadow_params"]) == ["0"]


def test_the_average_that_lightning_puts_in_the_place_of_the_weights_is_known_as_one(tmp_path):
    raw, average, other = (nn.Linear(2, 2) for _ in range(3))
    content = {
        "state_dict": average.state_dict(),
        "current_model_state": raw.state_dict(),
        "averaging_state": {"n_averaged": torch.tensor(3)},
    }
    torch.save(content, tmp_path / "a.ckpt")
    checkpoint = read(tmp_path / "a.ckpt")
    for asked, key, expected in ((None, "current_model_state", raw), ("ema", "state_dict", average)):
        assert fit(checkpoint, other, "linear", {}, asked).key == key
        assert torch.equal(other.weight, expected.weight)


def test_a_file_of_lightning_itself(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning")

        class Lit(lightning.LightningModule):
            def __init__(self, width=8):
                super().__init__()
                self.save_hyperparameters()
                self.net = nn.Linear(4, width)

            def training_step(self, batch, _):
                return self.net(batch[0]).square().mean()

            def configure_optimizers(self):
                return torch.optim.Adam(self.parameters(), lr=0.01)

        data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(8, 4)), 4)
        quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = lightning.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, **quiet)
        model = Lit(width=5)
        trainer.fit(model, data)
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    checkpoint = read(tmp_path / "a.ckpt")
    assert checkpoint.format == "Lightning checkpoint"
    assert checkpoint.settings == {"width": 5}
    assert torch.equal(checkpoint.tensors["state_dict"]["net.weight"], model.net.weight)
    assert checkpoint.training["lr"] == 0.01


def test_a_sharded_folder_of_transformers_itself_with_tied_weights(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers")
        config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=16)
        model, other = (transformers.GPT2LMHeadModel(config) for _ in range(2))
        model.save_pretrained(tmp_path / "net", max_shard_size="5KB")
    assert len(list((tmp_path / "net").glob("*.safetensors"))) > 1
    checkpoint = read(tmp_path / "net")
    assert (checkpoint.format, checkpoint.folder) == ("Hugging Face folder", tmp_path / "net")
    assert checkpoint.settings["architectures"] == ["GPT2LMHeadModel"]
    result = fit(checkpoint, other, "gpt2", {})
    assert result.notes == (
        "weights: `lm_head.weight` is not in the file; the model ties it to `transformer.wte.weight`",
    )
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in model.state_dict().items())
