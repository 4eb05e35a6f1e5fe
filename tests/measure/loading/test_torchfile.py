"""Files of every kind are read or refused by name, and none runs code."""

import argparse
import collections
import datetime
import hashlib
import pathlib
import pickle
import re
import types
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.torchfile import read_torch_file
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
        content, digest = read(path)
        assert content["w"].tolist() == [1, 1]
        assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


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
    elif kind == "damaged":
        path.write_bytes(data.replace(b"ctorch._utils", b"ctorch._utilz"))
    elif kind == "half":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "hdf5":
        path.unlink()
        h5py.File(path, "w").close()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"w": 1}))
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, x=np.zeros(2))
    elif kind in ("zip", "script"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/constants.pkl" if kind == "script" else "a/readme", "x")
    else:
        path.write_bytes(kind)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (b"", "is empty (0 bytes)"),
        ("half", "is truncated: the end of its archive is missing"),
        ("legacy", "is damaged or truncated"),
        ("safe", "is damaged or truncated (SafetensorError"),
        ("hdf5", "is an HDF5 file. If it is a gapscope report: `gapscope show"),
        ("pickle", "is a plain pickle, not made by `torch.save`"),
        ("npz", "is NumPy data. Give it with `-d`"),
        ("zip", "is a zip of something else. Expected a file made by `torch.save`"),
        ("script", "is an exported program (TorchScript or .pt2), which runs code"),
        (b"<!DOCTYPE html>", "is a web page or XML: the download probably failed"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer"),
        (b"hello, world, how are you?", "is not a checkpoint (it starts with b'hello, world, ho')"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_recognised(tmp_path, kind, message):
    path = tmp_path / "a.pt"
    write(path, kind)
    with pytest.raises(LoadError, match=re.escape(message)):
        read(path)


def test_a_missing_file_and_folders_say_what_is_there(tmp_path):
    torch.save({}, tmp_path / "best.pt")
    with pytest.raises(LoadError, match=r"does not exist. Did you mean `.*best.pt`?"):
        read(tmp_path / "bets.pt")
    with pytest.raises(LoadError, match=r"is a folder. Expected a file, such as .*best.pt"):
        read(tmp_path)
    (tmp_path / ".metadata").touch()
    with pytest.raises(LoadError, match=r"is a distributed-checkpoint folder. Expected one file"):
        read(tmp_path)
    with pytest.raises(LoadError, match="cannot be read: Not a directory"):
        read(tmp_path / "best.pt" / "x.pt")
