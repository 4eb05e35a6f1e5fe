"""A file is described without being run, and the next command works."""

import argparse
import collections
import hashlib
import json
import os
import pickle
import tracemalloc

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.checkpoint import save_checkpoint
from gapscope.measure.loading.checkpoints.inspection import Weights, inspect
from gapscope.measure.loading.networks import c3, f1, gpt, lenet5, mlp, resnet18, resnet20


class Own:
    """A class of the user's own."""


class Other:
    """And another."""


class Evil:
    def __reduce__(self):
        return os.system, ("touch sang",)


def test_everything_about_a_checkpoint(tmp_path):
    model = mlp(hidden=[8])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path / "a.pt", model, factory=mlp, data="digits", training={"lr": 0.1}, optimizer=optimizer)
    found = inspect(tmp_path / "a.pt")
    assert found.format == "torch checkpoint"
    assert found.bytes == (tmp_path / "a.pt").stat().st_size
    assert len(found.sha256) == 64
    assert found.weights == (Weights("model", 4, 610, {"float32": 610}, False, ()),)
    assert (found.names, found.trust, found.refusal) == ((), "nothing from the file runs", "")
    assert found.recorded == {
        "format_version": 1,
        "factory": "mlp",
        "model_args": {},
        "data": "digits",
        "training": {"lr": 0.1},
    }
    assert found.training == {"lr": 0.1}
    assert found.optimizer
    assert found.models == ()  # it is recorded
    assert found.next == f"gapscope sharpness {tmp_path / 'a.pt'}"


def test_settings_wrappers_and_averages_are_found(tmp_path):
    raw = {f"module.{name}": tensor.half() for name, tensor in nn.Linear(2, 2).state_dict().items()}
    both = {f"{part}.{name}": torch.ones(2) for part in ("net", "ema_net", "also") for name in ("a", "b")}
    both |= {f"ema_alone.{name}": torch.ones(4) for name in ("a", "b")}  # of nothing else here
    both |= {"other.a": torch.ones(2), "other.b": torch.ones(3), "third.a": torch.ones(2), "third.b": torch.ones(3)}
    both |= {"ema_one.weight": torch.ones(2), "one.weight": torch.ones(2)}  # a tensor each: no model
    content = {
        "pytorch-lightning_version": "2.5",
        "state_dict": raw | {"module.steps": torch.tensor(3)},
        "swa": raw | {"n_averaged": torch.tensor(3)},
        "pair": both,
        "two": {f"{part}.{name}": torch.ones(2) for part in ("net", "ema_net") for name in ("a", "b")},
        "hyper_parameters": {"width": 8, "space": argparse.Namespace(), "nested": {"lr": 0.1}},
        "args": argparse.Namespace(batch_size=4),
    }
    torch.save(content, tmp_path / "a.ckpt")
    found = inspect(tmp_path / "a.ckpt")
    assert found.format == "Lightning checkpoint"
    assert found.next.endswith(" -m path/file.py:LightningClass -d DATA")
    assert found.settings == {"width": 8, "nested": {"lr": 0.1}, "batch_size": 4}
    assert {one.key: one.averaged for one in found.weights} == {
        "state_dict": False,
        "swa": True,
        "pair": False,
        "pair.net": False,
        "pair.ema_net": True,
        "pair.also": False,
        "two": False,
        "two.net": False,
        "two.ema_net": True,
    }
    assert len(found.weights) == 9
    assert found.weights[0].types == {"float16": 6, "int64": 1}
    assert found.weights[0].wrappers == ("module",)


@pytest.mark.parametrize(
    ("network", "model", "given"),
    [
        ("mlp", mlp(inputs=6, hidden=[5, 4], outputs=3), " -a inputs=6 -a hidden=[5,4] -a outputs=3"),
        ("mlp", mlp(inputs=6, hidden=[], outputs=3), " -a inputs=6 -a hidden=[] -a outputs=3"),
        ("f1", f1(inputs=9, outputs=3), " -a inputs=9 -a outputs=3"),
        ("lenet5", lenet5(channels=3, outputs=7), " -a channels=3 -a outputs=7"),
        ("resnet20", resnet20(outputs=5), " -a channels=3 -a outputs=5"),
        ("c1", c3(size=8, channels=1), " -a channels=1 -a size=8 -a outputs=100"),
        ("resnet18", resnet18(stem="cifar"), " -a channels=3 -a outputs=1000 -a stem=cifar"),
        ("gpt", gpt(depth=1), " -a outputs=64 -a block=32 -a dim=64 -a depth=1 -a heads=4"),
    ],
)
def test_a_built_in_network_is_recognised_by_names_and_shapes(tmp_path, network, model, given):
    state = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "a.safetensors")
    found = inspect(tmp_path / "a.safetensors")
    assert found.models == (f"-m {network}{given}",)
    assert found.next == f"gapscope sharpness {tmp_path / 'a.safetensors'} -m {network}{given} -d DATA"


def test_another_network_gets_a_placeholder_and_its_name_is_quoted(tmp_path):
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "a b.pt")
    found = inspect(tmp_path / "a b.pt")
    assert found.models == ()
    assert found.next == f"gapscope sharpness '{tmp_path / 'a b.pt'}' -m path/file.py:factory -d DATA"


def test_a_recorded_name_is_shown_and_quoted_but_not_imported(tmp_path):
    save_checkpoint(tmp_path / "a.pt", nn.Linear(2, 2), factory="evil:run; rm -rf", data="digits")
    assert inspect(tmp_path / "a.pt").next.endswith("a.pt -m 'evil:run; rm -rf'")


def test_the_next_command_names_all_that_is_recorded_and_not_built_in(tmp_path):
    recorded = {"factory": "../net.py:net", "data": "../my data.npz", "loss": "net:loss"}
    save_checkpoint(tmp_path / "a.pt", nn.Linear(2, 2), **recorded)
    assert inspect(tmp_path / "a.pt").next.endswith("a.pt -m ../net.py:net -d '../my data.npz' --loss net:loss")
    save_checkpoint(tmp_path / "b.pt", nn.Linear(2, 2), factory="os:system", data="digits:size=28", loss="mse")
    assert inspect(tmp_path / "b.pt").next.endswith("b.pt -m NAME")  # what runs any command is not to be pasted
    save_checkpoint(tmp_path / "c.pt", nn.Linear(2, 2), factory="mlp:net", data="digits")  # a file mlp.py
    assert inspect(tmp_path / "c.pt").next.endswith("c.pt -m mlp:net")


def test_a_hugging_face_folder(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["Net"]}))
    found = inspect(tmp_path)
    assert (found.format, found.models) == ("Hugging Face folder", ("-m hf",))
    assert found.settings == {"architectures": ["Net"]}
    (tmp_path / "logs").mkdir()
    assert inspect(tmp_path).bytes == sum(
        (tmp_path / name).stat().st_size for name in ("model.safetensors", "config.json")
    )
    (tmp_path / "config.json").write_text("{}")
    assert inspect(tmp_path).models == ()
    torch.save({"model": {"w": torch.ones(2)}, "config": {"architectures": ["Net"]}}, tmp_path / "a.pt")
    assert inspect(tmp_path / "a.pt").models == ()


def test_types_of_numbers_and_of_python_need_no_trust(tmp_path):
    counts = collections.defaultdict(list)  # whose list is of `__builtin__` in files of torch
    torch.save({"model": {"w": torch.ones(2)}, "dtype": torch.bfloat16, "counts": counts}, tmp_path / "a.pt")
    found = inspect(tmp_path / "a.pt")
    assert (found.names, found.trust, found.refusal) == ((), "nothing from the file runs", "")


@pytest.mark.parametrize(
    ("thing", "trust", "following"),
    [
        (nn.Linear(2, 2), "--trust-file: it runs code of its maker", "--trust-file -d DATA"),
        ({"w": torch.ones(2), "c": Own()}, f"--allow-global {__name__}.Own: classes of its maker", "-d DATA"),
        (
            {"w": torch.ones(2), "c": [Own(), Other()]},
            f"--allow-global {__name__}.Other --allow-global {__name__}.Own: classes of its maker",
            "-d DATA",
        ),
        ({"w": torch.ones(2), "c": Evil()}, "none is enough: it names what runs commands", ""),
    ],
)
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_what_would_have_to_be_trusted_is_said(tmp_path, monkeypatch, thing, trust, following, kind):
    monkeypatch.chdir(tmp_path)
    if kind == "pickle":
        (tmp_path / "a.pt").write_bytes(pickle.dumps(thing))
    else:
        torch.save(thing, tmp_path / "a.pt", _use_new_zipfile_serialization=kind == "zip")
    found = inspect(tmp_path / "a.pt")
    assert found.trust == trust
    assert found.refusal
    assert found.sha256 == hashlib.sha256((tmp_path / "a.pt").read_bytes()).hexdigest()
    assert found.next.endswith(following)
    assert bool(found.next) == bool(following)
    assert not (tmp_path / "sang").exists()


@pytest.mark.parametrize("module", ["__main__", "torch.nn.modules.linear", "torch.fx.graph_module"])
def test_a_class_that_cannot_be_allowed_alone_takes_trust_in_the_whole_file(tmp_path, module):
    content = pickle.dumps({"w": torch.ones(2), "c": Own()}, 2)
    (tmp_path / "a.pt").write_bytes(content.replace(__name__.encode(), module.encode()))
    assert inspect(tmp_path / "a.pt").trust == "--trust-file: it runs code of its maker"


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_folder_names_nothing_unless_it_is_an_attack(tmp_path):
    dcp.save({"model": nn.Linear(2, 3).state_dict(), "lr": 0.1}, checkpoint_id=tmp_path / "a")
    found = inspect(tmp_path / "a")
    assert (found.format, found.names, found.weights[0].numbers) == ("torch distributed checkpoint", (), 9)
    (tmp_path / "a" / ".metadata").write_bytes(pickle.dumps(Evil()))
    found = inspect(tmp_path / "a")
    assert (found.names, found.next) == ((f"{os.system.__module__}.system",), "")
    assert found.trust == "none is enough: it names what runs commands"


@pytest.mark.filterwarnings("ignore")
def test_a_program_may_be_trusted_but_need_not(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "a.pt"))
    assert inspect(tmp_path / "a.pt").trust == "nothing from the file runs"
    net = nn.Linear(2, 2)
    net.register_buffer("packed", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    torch.jit.script(net).save(str(tmp_path / "c.pt"))
    assert inspect(tmp_path / "c.pt").trust == "--trust-file: it runs code of its maker"
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), tmp_path / "b.pt2")
    found = inspect(tmp_path / "b.pt2")
    assert found.trust == "nothing from the file runs; --trust-file to measure the program itself"
    assert (found.names, found.weights[0].numbers) == ((), 6)


def test_a_format_without_weights_and_a_damaged_file_are_described(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + bytes(60))
    found = inspect(tmp_path / "a.gguf")
    assert (found.format, found.bytes, found.next) == ("GGUF file of quantized weights", 64, "")
    assert (found.weights, found.optimizer) == ((), False)
    assert "is a GGUF file" in found.refusal
    (tmp_path / "b.pt").write_bytes(pickle.dumps({"w": torch.ones(9)})[:-20])
    assert "damaged" in inspect(tmp_path / "b.pt").refusal
    with pytest.raises(LoadError, match="does not exist"):
        inspect(tmp_path / "c.pt")


def test_a_large_file_is_looked_at_without_its_numbers(tmp_path):
    with (tmp_path / "a.safetensors").open("wb") as file:
        header = json.dumps({"w": {"dtype": "F32", "shape": [25_000_000], "data_offsets": [0, 100_000_000]}}).encode()
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + 100_000_000)
    tracemalloc.start()
    try:
        found = inspect(tmp_path / "a.safetensors")
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()
    assert found.weights == (Weights("(file)", 1, 25_000_000, {"float32": 25_000_000}, False, ()),)
