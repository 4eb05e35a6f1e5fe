"""Of one string in a file any number of places may speak: reading them is bounded before the memory is taken."""

import struct
from dataclasses import replace

import h5py
import numpy as np
import pytest

from gapscope.errors import ReportError
from gapscope.report import file, hdf5
from tests.hardening.fuzz_reports import small_report
from tests.report import example_reports as examples
from tests.report.example_reports import compare

LONG, MANY = 1000, 100


@pytest.fixture
def stored(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "MOST_TEXT", 2**16)
    path = tmp_path / "a.h5"
    file.write(small_report(), path)
    return path


def strings():
    return np.array(["A" * LONG, *"b" * (MANY - 1)], dtype=h5py.string_dtype())


def multiply(path):
    """Let all references of that array lead to its long string."""
    raw = bytearray(path.read_bytes())
    heads = {struct.pack("<I", LONG + more) for more in (0, 1)}
    ones = {struct.pack("<I", 1 + more) for more in (0, 1)}
    at = next(i for i in range(len(raw)) if bytes(raw[i : i + 4]) in heads and bytes(raw[i + 16 : i + 20]) in ones)
    raw[at : at + 16 * MANY] = raw[at : at + 16] * MANY
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        ("results/curvature", "notes"),
        ("results/curvature", "quantities"),
        ("results/curvature", "status"),
        ("results/curvature", "matvecs"),
        ("results", "order"),
        ("subject/training", "odd"),
        ("/", "format"),
        ("/", "format_version"),
        ("/", "complete"),
    ],
)
def test_an_attribute_whose_strings_are_one_is_refused(stored, group, name):
    with h5py.File(stored, "r+") as opened:
        opened[group].attrs[name] = strings()
    multiply(stored)
    with pytest.raises(
        ReportError, match=rf"damaged at .*: `{name}` holds 100 strings, of up to 1,\d+ bytes\. Expected"
    ):
        file.read(stored)


def test_labels_that_are_one_are_refused_after_a_piece(stored, monkeypatch):
    with h5py.File(stored, "r+") as opened:
        del opened["results/curvature/layer"]
        opened["results/curvature"].create_dataset("layer", data=strings())
        wrapper, pieces = type(opened["results/curvature/layer"].asstr()), []
    multiply(stored)
    monkeypatch.setattr(wrapper, "__getitem__", _heard(pieces, wrapper.__getitem__))
    with pytest.raises(ReportError, match=r"curvature/\w+: its strings take more than 65,536 characters\. Expected"):
        file.read(stored)
    assert max(pieces) <= 2**16 // LONG + 1


def _heard(pieces, read):
    def heard(self, where):
        found = read(self, where)
        pieces.append(len(found))
        return found

    return heard


def test_many_long_strings_are_refused_in_all(stored):
    file.write(replace(small_report(), training={f"t{i}": "x" * 5000 for i in range(12)}), stored)
    file.read(stored)
    file.write(replace(small_report(), training={f"t{i}": "x" * 5000 for i in range(20)}), stored)
    with pytest.raises(ReportError, match=r"subject/training: its strings take more than 65,536 characters\. Expected"):
        file.read(stored)


def test_an_attribute_of_references_is_refused(stored):
    with h5py.File(stored, "r+") as opened:
        opened["subject/training"].attrs.create("odd", opened.ref, dtype=h5py.ref_dtype)
    with pytest.raises(ReportError, match=r"subject/training: `odd` holds neither strings nor numbers\. Expected"):
        file.read(stored)


def test_each_file_has_the_whole_room(tmp_path, monkeypatch):
    file.write(small_report(), tmp_path / "a.h5")
    file.write(compare([examples.report(), examples.large()]), tmp_path / "c.h5")
    for path in (tmp_path / "a.h5", tmp_path / "c.h5"):
        most = sum(len(one) for one in path.read_bytes().split(b"\0"))
        monkeypatch.setattr(hdf5, "MOST_TEXT", most)
        for _ in range(3):
            file.read(path)
