"""HDF5 data are found by name at any depth; nothing outside the file is ever read."""

import re

import h5py
import numpy as np
import pytest

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.arrays import pick_pair
from gapscope.measure.loading.datasets.hdf5 import read_dataset, read_hdf5


@pytest.fixture
def path(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.full(3, 7.0)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["train/x"], file["train/y"] = np.ones((5, 2), "f4"), np.arange(5)
        file["test/x"], file["test/y"] = np.zeros((2, 2), "f4"), np.arange(2)
        file["empty/deep"] = np.arange(3)
        file["alias"] = h5py.SoftLink("/train/x")
        file["empty/near"] = h5py.SoftLink("deep")
        file["circle"] = h5py.SoftLink("/circle")
        file["outside"] = h5py.ExternalLink("other.h5", "/secret")
        file["through"] = h5py.SoftLink("/outside")
        layout = h5py.VirtualLayout(shape=(3,), dtype="f8")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "secret", shape=(3,))
        file.create_virtual_dataset("virtual", layout)
        inner = h5py.VirtualLayout(shape=(5, 2), dtype="f4")
        inner[:] = h5py.VirtualSource(file["train/x"])
        file.create_virtual_dataset("inner", inner)
        (tmp_path / "raw.bin").write_bytes(bytes(24))
        file.create_dataset("raw", (3,), "f8", external=[(str(tmp_path / "raw.bin"), 0, 24)])
        file["text"] = ["a", "b"]
        file.create_dataset("bomb", (2**40,), "f8", chunks=(2**10,), compression="gzip")
        file.create_dataset("unwritten", (2**21 + 1,), "f8")
        file.create_dataset("zeros", (2**21,), "f8")
        file.create_dataset("packed", data=np.zeros(2**22), chunks=(2**22,), compression="gzip", compression_opts=9)
        whole = h5py.VirtualLayout(shape=(2**22,), dtype="f8")
        whole[:] = h5py.VirtualSource(file["packed"])
        file.create_virtual_dataset("whole", whole)
        mapped = h5py.VirtualLayout(shape=(2**40,), dtype="f8")
        mapped[:] = h5py.VirtualSource(file["bomb"])
        file.create_virtual_dataset("mapped", mapped)
    return tmp_path / "a.h5"


def test_groups_name_their_split(path):
    pairs = [pick_pair(read_hdf5(path), split, "a.h5") for split in ("train", "test")]
    assert [len(pair.inputs) for pair in pairs] == [5, 2]


def test_links_inside_the_file_are_followed(path):
    assert read_dataset(path, "/alias").shape == read_dataset(path, "inner").shape == (5, 2)
    assert read_dataset(path, "empty/near").tolist() == [0, 1, 2]
    assert {"alias", "train/x"} <= set(read_hdf5(path))
    assert "train" not in read_hdf5(path)  # a group holds arrays and is none


def test_what_takes_less_room_in_the_file_than_in_memory_is_read(path):
    assert read_dataset(path, "zeros").count_nonzero() == 0  # which nobody wrote
    assert read_dataset(path, "packed").nbytes == read_dataset(path, "whole").nbytes == 2**25


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outside", "`outside` is a link into another file, which is never followed. Expected one file"),
        ("through", "is a link into another file"),
        ("virtual", "`virtual` keeps its values in other files, which are never followed"),
        ("raw", "`raw` keeps its values in other files"),
        ("circle", "`circle` is a link that leads in a circle"),
        ("train", "`train` is a group. Expected a dataset: x, y."),
        ("train/z", "`train/z` is not there."),
        ("trian", "`trian` is not there. Did you mean `train`? Expected the path of a dataset"),
        ("train/y/z", "is not there. Expected the path of a dataset"),
        ("train/x/y", "is not there. Expected the path of a dataset, like `file.h5::/x,/y`"),
        ("bomb", "`bomb` declares 8,796,093,022,208 bytes, but the file is too short to hold them"),
        ("unwritten", "`unwritten` declares 16,777,224 bytes, but the file is too short to hold them"),
        ("mapped", "`mapped` declares 8,796,093,022,208 bytes, but the file is too short to hold them"),
        ("text", "`text` holds texts or lists"),
    ],
)
def test_what_cannot_be_read_says_why(path, name, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        read_dataset(path, name)


def test_a_damaged_file_is_said_to_be(path):
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(LoadError, match=r"is a damaged HDF5 file \(OSError: .*Copy or write it again"):
        read_hdf5(path)
    with pytest.raises(LoadError, match=r"`train/x` cannot be read \(OSError"):
        read_dataset(path, "train/x")
