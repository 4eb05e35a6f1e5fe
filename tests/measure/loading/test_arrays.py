"""Named arrays are found under their usual names; pickled objects never load."""

import re

import numpy as np
import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.arrays import pick_pair, read_arrays, to_tensor
from gapscope.measure.loading.trust import Trust


def read(path):
    return read_arrays(path, Trust())


@pytest.mark.parametrize(
    "names", [("x", "y"), ("X", "Y"), ("images", "labels"), ("inputs", "targets"), ("features", "label")]
)
def test_usual_names_are_found(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (np.ones((3, 2)), np.arange(3)), strict=True)))
    pair = pick_pair(read(tmp_path / "a.npz"), "train", "a.npz")
    assert (pair.inputs.shape, pair.targets.tolist()) == ((3, 2), [0, 1, 2])


@pytest.mark.parametrize("form", ["{}_{}", "{1}_{0}"])
def test_a_file_with_its_own_split_has_both_parts(tmp_path, form):
    sizes = {"train": 5, "test": 2}
    np.savez(
        tmp_path / "a.npz", **{form.format(name, split): np.ones(n) for split, n in sizes.items() for name in "xy"}
    )
    arrays = read(tmp_path / "a.npz")
    assert [len(pick_pair(arrays, split, "a.npz").inputs) for split in ("train", "test")] == [5, 2]


def test_torch_and_safetensors_files_hold_named_tensors(tmp_path):
    x, y = torch.ones(3, 2), torch.arange(3)
    torch.save({"x": x, "y": y, "about": "text"}, tmp_path / "named.pt")
    torch.save((x, y), tmp_path / "pair.pt")
    safetensors.torch.save_file({"x": x, "y": y}, tmp_path / "a.safetensors")
    for path in tmp_path.iterdir():
        assert pick_pair(read(path), "train", "a").targets.tolist() == [0, 1, 2]


def test_wrong_names_are_listed():
    with pytest.raises(LoadError, match=r"has the arrays `a`, `y`. Expected inputs and targets under `x` and `y`"):
        pick_pair({"a": torch.ones(1), "y": torch.ones(1)}, "train", "file")
    with pytest.raises(LoadError, match="has the arrays none"):
        pick_pair({}, "test", "file", whole=True)


def test_unreadable_files_say_why(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([object()], dtype=object), y=np.arange(1))
    np.savez(tmp_path / "good.npz", x=np.ones(200), y=np.arange(200))
    (tmp_path / "text.npz").write_bytes(b"hello")
    (tmp_path / "half.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:300])
    np.save(tmp_path / "one.npy", np.ones(2))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    torch.save(3, tmp_path / "number.pt")
    for name, message in {
        "objects.npz": "holds pickled objects",
        "text.npz": "holds pickled objects, or is no .npz file",
        "half.npz": "is damaged or no .npz file. Write it again",
        "one.npz": "is damaged or no .npz file",
        "godo.npz": "does not exist. Did you mean",
        "number.pt": "holds int. Expected named tensors",
    }.items():
        with pytest.raises(LoadError, match=re.escape(message)):
            read(tmp_path / name)
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(LoadError, match="cannot be read: Is a directory"):
        read(tmp_path / "folder.npz")


def test_numbers_of_every_kind_become_tensors():
    assert to_tensor(3, "x").dtype == torch.int64
    assert to_tensor(0.5, "x").dtype == torch.float32
    assert to_tensor([1.0, 2.0], "x").tolist() == [1, 2]
    assert to_tensor(np.array([1], np.uint16), "x").dtype == torch.int64
    assert to_tensor(np.array([1], ">i4"), "x").tolist() == [1]
    assert to_tensor(np.float32(2), "x").shape == ()
    assert to_tensor(np.ones((2, 3))[:, ::-1], "x").shape == (2, 3)
    for value in ("text", {"a": 1}, [[1], [1, 2]], None):
        with pytest.raises(LoadError, match=r"it is .*, not numbers. Expected a tensor, array or number"):
            to_tensor(value, "it")
