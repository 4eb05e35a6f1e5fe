"""A pickle is read without calling what it names, and cannot change what this process uses."""

import argparse
import collections
import datetime
import io
import os
import pickle
import re
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.conversion import convert
from gapscope.measure.loading.checkpoints.pickles import (
    PLAIN,
    NotAdmittedError,
    Record,
    Restricted,
    dense,
    dtype_of,
    load_plain,
    load_weights,
    names_in,
    record_of,
)
from gapscope.measure.loading.datasets.arrays import read_arrays
from gapscope.measure.loading.trust import HARMLESS, Trust


class Own:
    """A class of the user's own."""


class Other:
    """And another."""


class Evil:
    def __reduce__(self):
        return os.system, ("touch sang",)


def load(thing, *allowed, protocol=None):
    return load_plain(io.BytesIO(pickle.dumps(thing, protocol)), Trust(allowed_globals=allowed))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_arrays_and_plain_values_of_every_protocol(protocol):
    half = torch.arange(6.0).half().reshape(2, 3).t()
    content = {
        "half": half,
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "array": np.arange(4).reshape(2, 2),
        "scalar": np.float32(0.5),
        "args": argparse.Namespace(lr=0.1),
        "counts": collections.defaultdict(list, a=[1]),
        "size": torch.Size([2, 3]),
        "set": {1, 2},
        "nothing": b"",
    }
    found = load(content, protocol=protocol)
    assert found["nothing"] == b""
    assert torch.equal(found["half"], half)
    assert found["half"].dtype == torch.float16
    assert found["parameter"].tolist() == [1, 1]
    assert found["array"].tolist() == [[0, 1], [2, 3]]
    assert (found["scalar"], found["args"].lr, found["counts"]["a"], found["set"]) == (0.5, 0.1, [1], {1, 2})
    assert tuple(found["size"]) == (2, 3)


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("protocol", [4, 5])
def test_arrays_are_read_of_numpy_before_2_and_after(core, protocol):
    def renamed(found):
        name = b"numpy.%s.%s" % (core.encode(), found[1])
        return b"\x8c%c%s" % (len(name), name)

    content = pickle.dumps([np.arange(3), np.float32(0.5)], protocol)
    content = content[:2] + content[11:]  # without the length of what follows
    content, found = re.subn(rb"\x8c.numpy\._?core\.([a-z]+)", renamed, content)
    assert found
    array, number = load_plain(io.BytesIO(content), Trust())
    assert (array.tolist(), number) == ([0, 1, 2], 0.5)


def test_a_name_that_is_not_admitted_is_not_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotAdmittedError, match=r"(posix|nt)\.system"):
        load({"w": Evil()})
    assert not (tmp_path / "sang").exists()


@pytest.mark.parametrize("name", ["torch save", "torch.nn Linear", "os float32", "torch float33"])
def test_of_torch_only_dtypes_are_admitted_by_their_names(name):
    assert load({"dtype": torch.bfloat16}, protocol=2)["dtype"] is torch.bfloat16
    assert dtype_of("torch.float32") is torch.float32
    with pytest.raises(NotAdmittedError, match=name.replace(" ", ".")):
        load_plain(io.BytesIO(b"\x80\x02c%s\n." % name.replace(" ", "\n").encode()), Trust())


def test_a_class_that_the_user_allows_is_admitted():
    with pytest.raises(NotAdmittedError, match="Own"):
        load(Own())
    assert isinstance(load(Own(), f"{__name__}.Own"), Own)


def test_tensors_inside_a_tensor_are_read_as_weights_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inner = io.BytesIO()
    torch.save(Evil(), inner, _use_new_zipfile_serialization=False)

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load(Nested())
    assert not (tmp_path / "sang").exists()


def test_an_archive_inside_a_tensor_may_promise_no_more_than_it_holds():
    inner = io.BytesIO()
    torch.save(torch.ones(2), inner)
    content = bytearray(inner.getvalue())
    assert load(Call(torch.storage._load_from_bytes, bytes(content))).tolist() == [1, 1]
    at = content.index(b"PK\1\2") + 20  # the sizes of the first entry in the table of the archive
    content[at : at + 4] = content[at + 4 : at + 8] = (2**31).to_bytes(4, "little")
    with pytest.raises(
        LoadError, match=r"^holds an archive that has [\d,]+ bytes and declares 2,147,48\d,\d+ of content"
    ):
        load(Call(torch.storage._load_from_bytes, bytes(content)))


def test_a_pickle_cannot_change_the_classes_that_it_is_given():
    # argparse.Namespace itself, not an instance, with the state (None, {"spoilt": 1})
    content = b"\x80\x02cargparse\nNamespace\n(N}X\x06\x00\x00\x00spoiltK\x01stb."
    load_plain(io.BytesIO(content), Trust())
    assert not hasattr(argparse.Namespace, "spoilt")


@pytest.mark.parametrize("value", [{1}, collections.OrderedDict(a=1), datetime.date(2020, 1, 2)])
def test_what_is_of_a_class_that_cannot_be_changed_is_of_that_class(value):
    assert type(load(value, protocol=2)) is type(value)


def test_data_outside_the_pickle_are_refused():
    with pytest.raises(pickle.UnpicklingError, match="it refers to data outside itself"):
        load_plain(io.BytesIO(b"\x80\x02U\x01xQ."), Trust())


def test_an_unknown_object_is_kept_as_what_it_was_made_of():
    made = Restricted(io.BytesIO(pickle.dumps(Own())), record_of).load()
    assert isinstance(made, Record)
    assert made.name == f"{__name__}.Own"
    made.__setstate__({"a": 1})
    assert made["a"] == 1


ENDS = "^$|truncated|exhausted"  # an EOFError without words, or what later versions of Python say


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x96" + struct.pack("<Q", 2**40) + b"x.", "1,099,511,627,776 bytes are declared where 2 are left"),
        (b"\x96" + struct.pack("<Q", 2**64 - 1) + b"x.", "cannot fit|too large"),
        (b"\x8e" + struct.pack("<Q", 2**40) + b"x.", ENDS),
        (b"\x8d" + struct.pack("<Q", 2**40) + b"x.", ENDS),
        (b"\x8b" + struct.pack("<i", 2**31 - 1) + b"x.", ENDS),
        (b"\x95" + struct.pack("<Q", 2**40) + b"N", ENDS),
        (b"Nr" + struct.pack("<I", 2**26) + b"0.", "pop from empty list"),
    ],
)
def test_no_length_or_place_takes_memory_that_the_file_does_not_hold(content, message):
    tracemalloc.start()
    try:
        with pytest.raises(Exception, match=message):  # whatever unpickling raises
            load_plain(io.BytesIO(b"\x80\x05" + content), Trust())
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_an_array_of_bytes_is_read():
    assert load([bytearray(b"abc"), bytearray()], protocol=5) == [b"abc", b""]


PUTS = {"MEMOIZE": b"\x94", "BINPUT": b"q%c", "LONG_BINPUT": b"r%c\0\0\0", "PUT": b"p%d\n"}
GETS = {"BINGET": b"h%c", "LONG_BINGET": b"j%c\0\0\0", "GET": b"g%d\n"}


@pytest.mark.parametrize("put", PUTS)
@pytest.mark.parametrize("get", GETS)
def test_names_that_are_put_away_and_taken_up_again_are_listed(put, get):
    """The second and the third of three texts are kept, and fetched in the other order among others."""

    def text(content):
        return b"\x8c%c%s" % (len(content), content)

    def kept(index):
        return PUTS[put] % index if b"%" in PUTS[put] else PUTS[put]

    content = b"\x80\x04" + text(b"nothing") + kept(0) + text(b"system") + kept(1) + text(b"posix") + kept(2)
    content += text(b"later") + GETS[get] % 2 + GETS[get] % 1 + b"\x93."
    assert names_in(io.BytesIO(content)) == {"posix.system"}
    first = b"\x80\x04" + text(b"posix") + kept(0) + text(b"later") + GETS[get] % 0 + text(b"system") + b"\x93."
    assert names_in(io.BytesIO(first)) == {"posix.system"}


def test_names_of_every_opcode_are_listed():
    assert names_in(io.BytesIO(b"(iposix\nsystem\n.")) == {"posix.system"}
    assert names_in(io.BytesIO(b"cposix\nsystem\n.")) == {"posix.system"}
    framed = b"\x80\x04\x8c\x05posix\x95" + bytes(8) + b"\x8c\x06system\x93."  # a frame begins between the two
    assert names_in(io.BytesIO(framed)) == {"posix.system"}
    two = pickle.dumps([Own(), Other(), *map(str, range(300)), Other()], 4)  # the module once, and far from its end
    assert names_in(io.BytesIO(two)) == {f"{__name__}.Own", f"{__name__}.Other"}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_tensors_and_arrays_name_is_plain(protocol):
    half = torch.ones(2).half()
    content = [half, torch.nn.Parameter(half), torch.Size([1]), np.ones(2), collections.OrderedDict(a=1), b"x"]
    content += [half.to_sparse(), torch.nn.Parameter(half), torch.ones(2)]
    for tensor in content[-2:]:
        tensor.note = "kept with it"
    named = names_in(io.BytesIO(pickle.dumps(content, protocol)))
    assert {name for name in named if not dtype_of(name)} <= PLAIN.union(name for _, name in HARMLESS)
    for name in ("numpy._core.numeric._frombuffer", "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v3"):
        assert name in PLAIN
    assert {"numpy.core.numeric._frombuffer", "torch.device", "torch.nn.parameter.Parameter"} <= PLAIN


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_names_are_listed_without_running(protocol):
    named = names_in(io.BytesIO(pickle.dumps([Own(), Evil(), Own(), Evil()], protocol)))
    assert {f"{__name__}.Own", f"{os.system.__module__}.system"} <= named


def test_a_name_that_is_put_together_while_loading_is_marked():
    assert names_in(io.BytesIO(b"\x80\x04K\x01\x8c\x06system\x93.")) == {"?.system"}


def test_a_tensor_without_numbers_is_said_to_be_one(tmp_path):
    torch.save({"x": torch.ones(3, 2, device="meta"), "y": torch.zeros(3)}, tmp_path / "a.pt")
    message = r"A tensor of the shape \(3, 2\) was saved from the meta device, without its numbers. Expected numbers"
    with pytest.raises(LoadError, match=message):
        read_arrays(tmp_path / "a.pt", Trust())
    with pytest.raises(LoadError, match=message):
        convert(tmp_path / "a.pt", tmp_path / "out.safetensors", Trust())


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.parts = function, arguments

    def __reduce__(self):
        return self.parts


def swapped(path):
    """Write a sparse tensor that is sound while torch looks at it, and another that has its damage by then."""
    shape, value = torch.Size([2]), torch.ones(1)
    good = torch.sparse_coo_tensor(torch.tensor([[1]]), value, shape, check_invariants=True)
    bad = Call(torch._utils._rebuild_sparse_tensor, torch.sparse_coo, (torch.tensor([[10**8]]), value, shape))
    rebuild, kind = torch._tensor._rebuild_from_type_v2, torch.Tensor
    other = Call(rebuild, torch.sparse.FloatTensor, kind, (torch.tensor([[1]]), value, shape), {"data": bad})
    same = Call(torch._utils._rebuild_device_tensor_from_cpu_tensor, bad, torch.float32, "cpu", False)
    mended = Call(rebuild, same.parts[0], kind, same.parts[1], {"data": good})
    torch.save({"x": other, "y": torch.zeros(2), "mended": mended}, path)


@pytest.mark.filterwarnings("ignore:torch.sparse.SparseTensor")
def test_a_sparse_tensor_is_checked_where_its_numbers_are_used(tmp_path):
    swapped(tmp_path / "evil.pt")
    message = r"A sparse tensor of the shape \(2,\) is damaged \(RuntimeError: size is inconsistent .*\)\. Expected its"
    found = load_weights(str(tmp_path / "evil.pt"))["x"]
    with pytest.raises(LoadError, match=message):
        dense(found)
    with pytest.raises(LoadError, match=message):
        read_arrays(tmp_path / "evil.pt", Trust())
    with pytest.raises(LoadError, match=message):
        convert(tmp_path / "evil.pt", tmp_path / "out.safetensors", Trust())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc])
def test_sparse_tensors_of_every_layout_are_written_out(layout):
    matrix = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    assert torch.equal(dense(matrix.to_sparse(layout=layout)), matrix)
    assert dense(matrix) is matrix


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("kind", [torch.sparse_csr_tensor, torch.sparse_csc_tensor])
def test_numbers_outside_of_a_compressed_sparse_tensor_are_refused(kind):
    ends, places = torch.tensor([0, 1, 1]), torch.tensor([2])  # of two rows, or columns
    damaged = kind(ends, places, torch.ones(1), (2, 2), check_invariants=False)
    with pytest.raises(LoadError, match=r"A sparse tensor of the shape \(2, 2\) is damaged \(RuntimeError: .*indices"):
        dense(damaged)


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_bsr, torch.sparse_bsc])
def test_sparse_tensors_of_blocks_are_written_out(layout):
    matrix = torch.block_diag(torch.ones(2, 2), 2 * torch.ones(2, 2))
    assert torch.equal(dense(matrix.to_sparse(layout=layout, blocksize=(2, 2))), matrix)
