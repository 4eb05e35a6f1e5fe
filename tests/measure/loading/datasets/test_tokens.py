"""Blocks do not overlap, and each token's target is the one that follows."""

import pickle
import re

import numpy as np
import pytest

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets import arrays
from gapscope.measure.loading.datasets.tokens import read_tokens
from tests.measure.loading.conftest import Evil


def read(path, options):
    return read_tokens(path, options, f"{path.name}:{options}")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int32", "int64"])
def test_targets_are_the_next_tokens(tmp_path, dtype):
    tokens = np.arange(10, dtype=dtype)
    np.save(tmp_path / "t.npy", tokens)
    tokens.tofile(tmp_path / "t.bin")
    for pair in (read(tmp_path / "t.npy", "block=4"), read(tmp_path / "t.bin", f"block=4,dtype={dtype}")):
        assert pair.inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        assert pair.targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
        assert "2 blocks of 4 tokens that do not overlap; the last 1 tokens are left out" in pair.notes[0]


@pytest.mark.parametrize(
    "options",
    [
        *("block=0", "block=x", "block=\u00b2", "block=\u0663"),
        *("dtype=uint16", "block=4,dtype=float32", "block=4,size=3"),
    ],
)
def test_other_options_are_refused(tmp_path, options):
    with pytest.raises(LoadError, match=re.escape(f"`t.bin:{options}`: unknown options. Expected `block=128`")):
        read(tmp_path / "t.bin", options)


def test_a_pickle_under_the_name_of_an_array_is_not_run(folder):
    (folder / "t.npy").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(LoadError, match="cannot be read as tokens"):
        read(folder / "t.npy", "block=4")
    assert not (folder / "sang").exists()


def test_files_without_a_row_of_tokens_say_so(tmp_path, monkeypatch):
    np.save(tmp_path / "real.npy", np.ones(9))
    np.save(tmp_path / "table.npy", np.ones((3, 3), int))
    np.save(tmp_path / "few.npy", np.arange(4))
    np.save(tmp_path / "objects.npy", np.array([object()], dtype=object))
    np.savez(tmp_path / "archive.npz", tokens=np.arange(9))
    (tmp_path / "archive.npz").rename(tmp_path / "archive.npy")
    (tmp_path / "torn.npy").write_bytes((tmp_path / "few.npy").read_bytes().replace(b"}", b"\0"))
    (tmp_path / "odd.bin").write_bytes(b"123")
    for name, options, message in [
        ("real.npy", "block=4", "holds an array of shape (9,), float64. Expected one row of integer tokens"),
        ("table.npy", "block=4", "holds an array of shape (3, 3), int64"),
        ("few.npy", "block=4", "holds 4 tokens. Expected at least 5: give a smaller `block`"),
        ("objects.npy", "block=4", "cannot be read as tokens (Array can't be memory-mapped"),
        ("archive.npy", "block=4", "cannot be read as tokens (the magic string is not correct"),
        ("torn.npy", "block=4", "cannot be read as tokens ("),
        ("odd.bin", "block=1,dtype=uint16", "cannot be read as tokens ("),
        ("odd.bin", "block=1", "does not say how long a token is. Expected `:block=128,dtype=uint16`"),
    ]:
        with pytest.raises(LoadError, match=re.escape(message)):
            read(tmp_path / name, options)
    monkeypatch.setattr(arrays, "MEMORY_BYTES", 16)
    with pytest.raises(LoadError, match=r"takes 2.98e-08 GiB. Expected at most"):
        read(tmp_path / "few.npy", "block=3")  # 4 tokens of 8 bytes
