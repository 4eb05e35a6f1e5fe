"""Files of every kind are read or refused by name, and none runs code."""

import argparse
import collections
import datetime
import hashlib
import pathlib
import pickle
import re
import types

import numpy as np
import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.torchfile import read_torch_file
from gapscope.measure.loading.trust import Trust


class Config:
    """A class of the user's own."""


def read(path, *allowed: str):
    return read_torch_file(path, Trust(allowed_globals=allowed))


def test_harmless_companions_of_weights_load_without_a_flag(tmp_path):
    content = {
        "args": argparse.Namespace(lr=0.1),
        "space": types.SimpleNamespace(a=1),
        "acc": np.float64(0.5),
        "n": np.int64(3),
        "ok": np.bool_(True),
        "history": np.arange(3.0),
        "path": pathlib.Path("runs/x"),
        "counts": collections.defaultdict(list),
        "ordered": collections.OrderedDict(a=1),
        "when": datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "w": torch.ones(2),
    }
    torch.save(content, tmp_path / "a.pt")
    read_back = read(tmp_path / "a.pt").value
    assert read_back["args"].lr == 0.1
    assert read_back["acc"] == 0.5
    assert read_back["history"].tolist() == [0, 1, 2]
    assert str(read_back["path"]) == "runs/x"
    assert read_back["when"] == content["when"]


def test_a_windows_path_loads_everywhere(tmp_path):
    torch.save({"w": torch.ones(2), "path": pathlib.PureWindowsPath("a\\b")}, tmp_path / "a.pt")
    assert str(read(tmp_path / "a.pt").value["path"]) == "a\\b"


def test_old_torch_files_and_safetensors_load_with_the_digest_of_their_bytes(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "new.safetensors")
    for path in tmp_path.iterdir():
        content = read(path)
        assert content.value["w"].tolist() == [1, 1]
        assert content.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_odd_tensors_do_not_crash(tmp_path):
    torch.save(
        {"w": torch.eye(3).to_sparse(), "e": torch.empty(0), "c": torch.ones(2, dtype=torch.complex64)},
        tmp_path / "a.pt",
    )
    assert read(tmp_path / "a.pt").value["w"].is_sparse


def test_a_pickle_that_calls_a_command_is_refused_and_not_run(evil_file, folder):
    with pytest.raises(LoadError, match=r"would run (posix|nt).system when loaded, which weights never need"):
        read(evil_file)
    assert not (folder / "sang").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_class_of_the_users_is_named_with_the_flag_that_allows_it(tmp_path, zipped):
    path = tmp_path / "a.pt"
    torch.save({"w": torch.ones(2), "config": Config()}, path, _use_new_zipfile_serialization=zipped)
    name = f"{__name__}.Config"
    with pytest.raises(LoadError, match="holds objects that are not plain tensors") as error:
        read(path)
    assert f"--allow-global {name}" in str(error.value)
    assert "nothing was loaded" in str(error.value)
    assert isinstance(read(path, name).value["config"], Config)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_whole_pickled_model_is_refused(tmp_path, zipped):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(LoadError, match="is a whole pickled model") as error:
        read(tmp_path / "a.pt")
    assert "torch.save(model.state_dict()" in str(error.value)


def write(path, kind):
    torch.save({"w": torch.ones(2000)}, path)
    data = path.read_bytes()
    if kind == "legacy":
        torch.save({"w": torch.ones(2000)}, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "safe":
        path.write_bytes(safetensors.torch.save({"w": torch.ones(2000)})[:-50])
    elif kind == "half":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"w": np.ones(2000)})[:-100])
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, x=np.array([{}]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("half", "is truncated: the end of its archive is missing"),
        ("legacy", "is damaged or truncated"),
        ("safe", "is damaged or truncated (SafetensorError"),
        ("pickle", "is a damaged pickle (UnpicklingError"),
        ("npz", "holds arrays that cannot be read (ValueError: Object arrays cannot be loaded"),
    ],
)
def test_a_damaged_file_is_named_as_one(tmp_path, kind, message):
    path = tmp_path / "a.pt"
    write(path, kind)
    with pytest.raises(LoadError, match=re.escape(message)):
        read(path)


def test_a_format_without_weights_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(
        LoadError, match=r"a.pt is a GGUF file of quantized weights. Expected the PyTorch or safetensors"
    ):
        read(tmp_path / "a.pt")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(LoadError, match=r"is a folder \(Hugging Face folder\). Expected a file"):
        read(tmp_path)


def test_a_plain_pickle_of_tensors_and_arrays_is_read_without_running_it(tmp_path):
    state = torch.nn.Linear(2, 3).state_dict()
    (tmp_path / "a.pkl").write_bytes(
        pickle.dumps({"w": np.arange(3.0), "model": state, "args": argparse.Namespace(a=1)})
    )
    content = read(tmp_path / "a.pkl")
    assert content.format.name == "plain pickle"
    assert torch.equal(content.value["model"]["weight"], state["weight"])
    assert content.value["args"].a == 1
    assert content.trust == "nothing from the file runs"


def test_weights_in_an_npz_are_tensors(tmp_path):
    np.savez(tmp_path / "a.npz", **{"fc.weight": np.ones((2, 3), np.float32)})
    assert read(tmp_path / "a.npz").value["fc.weight"].shape == (2, 3)


def test_what_had_to_be_trusted_is_returned(tmp_path):
    torch.save({"w": torch.ones(2), "config": Config()}, tmp_path / "a.pt")
    name = f"{__name__}.Config"
    assert read(tmp_path / "a.pt", name).trust == f"allowed globals: {name}"
    assert read_torch_file(tmp_path / "a.pt", Trust(file=True)).trust == "the whole file was trusted"
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    for trust in (Trust(file=True), Trust(allowed_globals=(name,))):
        assert read_torch_file(tmp_path / "plain.pt", trust).trust == "nothing from the file runs"


@pytest.mark.parametrize("dump", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_trusted_file_gives_its_module(tmp_path, dump):
    dump(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    content = read_torch_file(tmp_path / "a.pt", Trust(file=True))
    assert isinstance(content.value, torch.nn.Linear)
    assert content.format.name == "pickled module"


def test_a_trusted_file_whose_classes_are_gone_says_so(tmp_path):
    torch.save(Config(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes().replace(b"Config", b"Konfig"))
    with pytest.raises(LoadError, match=r"was trusted, and loading it raised AttributeError.*Run from the folder"):
        read_torch_file(tmp_path / "a.pt", Trust(file=True))


def test_looking_does_not_read_the_numbers(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    seen = read_torch_file(tmp_path / "a.safetensors", Trust(), values=False).value["w"]
    assert (seen.device.type, seen.shape, seen.dtype) == ("meta", (2, 3), torch.bfloat16)
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    assert read_torch_file(tmp_path / "a.pt", Trust(), values=False).value["w"].shape == (2,)
