"""Named arrays are found under their usual names; pickled objects never load."""

import io
import re
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets import arrays
from gapscope.measure.loading.datasets.arrays import (
    Keys,
    check_size,
    pick_pair,
    read_arrays,
    read_npy,
    read_npz,
    to_tensor,
)
from gapscope.measure.loading.trust import Trust
from tests.measure.loading.conftest import Evil


def read(path):
    return read_npz(path) if path.suffix == ".npz" else read_arrays(path, Trust())


INPUTS = ["x", "X", "inputs", "input", "data", "images", "image", "features", "samples", "tokens", "img"]
BY_NAME = [
    *("input_ids", "attention_mask", "token_type_ids", "position_ids", "decoder_input_ids", "decoder_attention_mask"),
    *("inputs_embeds", "pixel_values", "input_values", "input_features"),
]
TARGETS = [
    *("y", "Y", "targets", "target", "labels", "label", "classes", "class", "label_ids"),
    *("fine_labels", "fine_label"),
]


@pytest.mark.parametrize("names", [*((x, "y") for x in (*INPUTS, *BY_NAME)), *(("x", y) for y in TARGETS)])
def test_usual_names_are_found(tmp_path, names):
    np.savez(tmp_path / "a.npz", **dict(zip(names, (np.ones((3, 2)), np.arange(3)), strict=True)))
    pair = pick_pair(read(tmp_path / "a.npz"), "train", "a.npz")
    assert (pair.inputs.shape, pair.targets.tolist()) == ((3, 2), [0, 1, 2])


@pytest.mark.parametrize("words", [("train", "test"), ("tr", "te")])
@pytest.mark.parametrize("form", ["{}_{}", "{1}_{0}", "{}/{}"])
def test_a_file_with_its_own_split_has_both_parts(tmp_path, form, words):
    sizes = zip(words, (5, 2), strict=True)
    np.savez(tmp_path / "a.npz", **{form.format(name, part): np.ones(n) for part, n in sizes for name in "Xy"})
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
    many = {f"a{i}": torch.ones(1) for i in range(13)}
    with pytest.raises(LoadError, match=r"`a10`, `a11`\. Expected"):
        pick_pair(many, "train", "file")
    with pytest.raises(LoadError, match="has the arrays none"):
        pick_pair({}, "test", "file", whole=True)
    with pytest.raises(LoadError, match=r"has the arrays `_x`, `_y`"):
        pick_pair({"_x": torch.ones(1), "_y": torch.ones(1)}, "train", "file")
    assert pick_pair({"x": torch.ones(1), "y": torch.ones(1)}, "test", "file") is None


@pytest.mark.parametrize("keys", [Keys(inputs=("featurs",)), Keys(target="featurs"), Keys(("y",), "featurs")])
def test_a_name_that_is_not_there_is_said_with_the_nearest(keys):
    with pytest.raises(
        LoadError, match=r"Did you mean `features`\? Expected inputs and targets under (`y` and )?`featurs`"
    ):
        pick_pair({"features": torch.ones(2), "y": torch.ones(2)}, "train", "file", keys=keys)


def test_names_given_choose_one_input_or_several_in_order():
    held = {name: torch.full((2, 3), i) for i, name in enumerate(("a", "b", "c", "y", "z"))}
    pair = pick_pair(held, "train", "file", keys=Keys(("c", "a"), "z"))
    assert [int(x[0, 0]) for x in pair.inputs] == [2, 0]
    assert int(pair.targets[0, 0]) == 4
    assert pair.notes == ("data: file: not used: `b`, `y`",)
    assert torch.equal(pick_pair(held, "train", "file", keys=Keys(("b",))).inputs, held["b"])


def test_names_given_find_their_own_splits():
    held = {f"{name}_{split}": torch.ones(n) for split, n in (("train", 5), ("test", 2)) for name in "ab"}
    pairs = [pick_pair(held, split, "file", keys=Keys(("a",), "b")) for split in ("train", "test")]
    assert [len(pair.inputs) for pair in pairs] == [5, 2]
    assert pairs[0].notes == ("data: file: not used: `a_test`, `b_test`",)


def test_inputs_under_the_names_of_hugging_face_are_given_by_name():
    held = {"input_ids": torch.ones(2, 4), "attention_mask": torch.zeros(2, 4), "labels": torch.ones(2)}
    assert pick_pair(held, "train", "file").inputs.keys() == {"input_ids", "attention_mask"}
    every = dict.fromkeys((*BY_NAME, "labels"), torch.ones(2, 3))
    assert pick_pair(every, "train", "file").inputs.keys() == set(BY_NAME)
    chosen = pick_pair(held, "train", "file", keys=Keys(("attention_mask", "input_ids")))
    assert list(chosen.inputs) == ["attention_mask", "input_ids"]
    assert torch.equal(pick_pair(held, "train", "file", keys=Keys(("input_ids",))).inputs, held["input_ids"])
    texts = ("input_ids", "attention_mask", "token_type_ids", "position_ids", "inputs_embeds")
    others = ("decoder_input_ids", "decoder_attention_mask", "pixel_values", "input_values", "input_features")
    held = {name: torch.ones(2) for name in (*texts, *others)}
    assert pick_pair(held | {"labels": torch.ones(2)}, "train", "file").inputs.keys() == held.keys()


def test_an_array_that_is_left_out_is_said():
    held = {"x": torch.ones(2), "y": torch.ones(2), "weights": torch.ones(2), "x_test": torch.ones(1)}
    held["/test/y"] = held["X/test"] = torch.ones(1)  # of an HDF5 file
    assert pick_pair(held, "train", "file").notes == ("data: file: not used: `weights`",)


def test_only_the_arrays_that_are_used_are_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(2), y=np.ones(2), names=np.array(["a"], dtype=object))
    held = read_npz(tmp_path / "a.npz")
    assert len(held) == 3
    assert len(pick_pair(held, "train", "a.npz").inputs) == 2
    assert "names" in held
    assert "z" not in held


def test_unreadable_archives_say_why(tmp_path):
    np.savez(tmp_path / "objects.npz", x=np.array([object()], dtype=object))
    np.savez(tmp_path / "good.npz", x=np.arange(200.0))
    (tmp_path / "text.npz").write_bytes(b"hello")
    content = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(content[:300])
    at = content.rindex(b"PK\x01\x02") + 6  # the version that is needed to unpack it
    (tmp_path / "future.npz").write_bytes(content[:at] + b"\xff" + content[at + 1 :])
    (tmp_path / "flipped.npz").write_bytes(content[:900] + b"\xff" + content[901:])
    for name, message in {
        "objects.npz": "holds pickled objects. Loading those could run code, so nothing was loaded. Expected arrays",
        "text.npz": "is damaged or no .npz file. Write it again",
        "half.npz": "is damaged or no .npz file. Write it again",
        "future.npz": "is damaged or no .npz file. Write it again",
        "flipped.npz": "is damaged (Bad CRC-32",
    }.items():
        with pytest.raises(LoadError, match=re.escape(message)):
            read_npz(tmp_path / name)["x"]
    torch.save(3, tmp_path / "number.pt")
    torch.save((torch.ones(2), torch.ones(2), torch.ones(2)), tmp_path / "three.pt")
    for name, kind in (("number.pt", "int"), ("three.pt", "tuple")):
        with pytest.raises(LoadError, match=rf"holds {kind}. Expected named tensors"):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_no_object_is_loaded_even_where_its_header_was_read_as_one_of_numbers(folder, monkeypatch, name):
    held = np.array([Evil()], dtype=object)
    np.savez(folder / "x.npz", x=held)
    np.save(folder / "x.npy", held)
    monkeypatch.setattr(arrays, "_declared", lambda _: 8)
    with pytest.raises(LoadError, match=r"Object arrays cannot be loaded"):
        read_npz(folder / name)["x"] if name == "x.npz" else read_npy(folder / name)
    assert not (folder / "sang").exists()


def header(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue()


@pytest.mark.parametrize("packing", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_array_that_declares_more_than_its_archive_holds_is_not_allocated(tmp_path, packing):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", packing) as archive:
        archive.writestr("x.npy", header((2**40,)))
    with pytest.raises(LoadError, match=r"bomb.npz: `x` declares 8,796,093,022,208 bytes, but the file is too short"):
        read_npz(tmp_path / "bomb.npz")["x"]


def test_a_packing_whose_promises_cannot_be_checked_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", header((1000,)) + bytes(8000))
    with pytest.raises(LoadError, match=r"bomb.npz: `x` is packed by another method. Expected `np.savez"):
        read_npz(tmp_path / "bomb.npz")["x"]


def test_one_array_alone_is_read_and_checked(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3))
    assert read_npy(tmp_path / "x.npy").tolist() == [0, 1, 2]
    for version in ((2, 0), (3, 0)):  # for headers that are long, or have names in other scripts
        with (tmp_path / "x.npy").open("wb") as file:
            np.lib.format.write_array(file, np.arange(3), version=version)
        assert read_npy(tmp_path / "x.npy").tolist() == [0, 1, 2]
    np.save(tmp_path / "objects.npy", np.array([object()], dtype=object))
    (tmp_path / "bomb.npy").write_bytes(header((2**40,)))
    (tmp_path / "short.npy").write_bytes(header((3,)) + bytes(16))
    (tmp_path / "torn.npy").write_bytes(header((3,))[:30])
    for name, message in {
        "objects.npy": "holds pickled objects",
        "bomb.npy": "declares 8,796,093,022,208 bytes, but the file is too short to hold them",
        "short.npy": "is damaged (",
        "torn.npy": "is damaged (",
    }.items():
        with pytest.raises(LoadError, match=re.escape(message)):
            read_npy(tmp_path / name)


def test_what_memory_cannot_hold_is_refused(monkeypatch):
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 2**20)
    check_size(2**20, "x")
    with pytest.raises(LoadError, match=r"x takes 0.00195 GiB. Expected at most 0.000977 GiB, which fits into memory"):
        check_size(2**21, "x")


def test_sparse_tensors_become_dense():
    assert to_tensor(torch.eye(2).to_sparse(), "x").tolist() == [[1, 0], [0, 1]]


def test_numbers_of_every_kind_become_tensors():
    assert to_tensor(3, "x").dtype == torch.int64
    assert to_tensor(0.5, "x").dtype == torch.float32
    assert to_tensor([1.0, 2.0], "x").tolist() == [1, 2]
    assert to_tensor(np.array([1], np.uint16), "x").dtype == torch.int64
    assert to_tensor(np.array([2**63 - 1], np.uint64), "x").tolist() == [2**63 - 1]
    assert to_tensor(np.array([1, 2**63], np.uint64), "x").tolist() == [1.0, 2.0**63]  # no int64 holds it
    assert to_tensor(np.array([], np.uint64), "x").dtype == torch.int64
    assert to_tensor(np.array([1], ">i4"), "x").tolist() == [1]
    assert to_tensor(np.float32(2), "x").shape == ()
    assert to_tensor(np.ones((2, 3))[:, ::-1], "x").shape == (2, 3)
    mine = np.ones(3)
    assert to_tensor(mine, "x").data_ptr() == mine.ctypes.data  # which may be large: no copy is made
    for value in ("text", {"a": 1}, [[1], [1, 2]], None, np.array([None])):
        with pytest.raises(LoadError, match=r"it is .*, not numbers. Expected a tensor, array or number"):
            to_tensor(value, "it")


def test_a_picture_of_pillow_is_no_array():
    picture = pytest.importorskip("PIL.Image").new("RGB", (4, 3))
    with pytest.raises(
        LoadError, match=r"it is PIL.Image.Image, not numbers. Expected .*; for images add `torchvision"
    ):
        to_tensor(picture, "it")


@pytest.mark.parametrize("names", [np.array(["cat", "dog"]), np.array([b"cat", b"dog"])])
def test_names_of_classes_are_led_to_numbers(names):
    with pytest.raises(LoadError, match=r"a.npz: `y` holds text. Expected numbers, .*`np.unique\(names, return"):
        to_tensor(names, "a.npz: `y`")
