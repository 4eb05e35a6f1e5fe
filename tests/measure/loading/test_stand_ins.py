"""NumPy's values come out of pickles as they went in, and no pickle makes NumPy read what is none."""

import pickle
import re

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading import stand_ins
from gapscope.measure.loading.checkpoints.torchfile import read_torch_file
from gapscope.measure.loading.trust import HARMLESS, Trust, safe_globals

SCALAR, RECONSTRUCT = np.float64(0).__reduce__()[0], np.zeros(0).__reduce__()[0]
FROMBUFFER = np.zeros(0).__reduce_ex__(5)[0]
VALUES = [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(24, dtype=np.int16).reshape(2, 3, 4).transpose(1, 0, 2),
    np.arange(5000, dtype=np.float32),  # from a thousand bytes on NumPy keeps the pickle's own
    np.arange(3, dtype=">i4"),
    np.float32(1.5).astype(">f4"),
    np.array(["häß", "b"]),
    np.array([b"abc", b""]),
    np.array([b"abc"]).view("V3"),
    np.array(["2020-01-02", "NaT"], "M8[D]"),
    np.array([1, 2], ">m8[25us]"),
    np.array([1], "m8[s]"),
    np.array([1], "m8"),
    np.array(7),
    np.zeros((0, 3)),
    np.array([1, 2], np.dtype("i4", metadata={"a": 1})),
    np.array([None, "a", [1]], object),
    np.longdouble(0.5),
    np.datetime64("2020-01-02T03"),
    np.datetime64("NaT"),
    np.str_("ä"),
    np.bytes_(b"b"),
    np.void(b"abc"),
    np.True_,
]


def dumped(value, path, protocol):
    if protocol is None:
        torch.save(value, path)
    else:
        path.write_bytes(pickle.dumps(value, protocol))
    return path


@pytest.mark.parametrize("protocol", [None, 2, 3, 4, 5])
@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}-{value.dtype.str}-{value.shape}")
def test_values_of_plain_types_are_read_as_pickle_reads_them(tmp_path, value, protocol):
    path = dumped({"x": value, "w": torch.ones(2)}, tmp_path / "a", protocol)
    found = read_torch_file(path, Trust()).value["x"]
    expected = pickle.loads(pickle.dumps(value, 2 if protocol is None else protocol))
    assert found.dtype == expected.dtype
    assert (found.shape, found.tolist()) == (expected.shape, expected.tolist())
    assert isinstance(found, np.ndarray) is isinstance(value, np.ndarray)


class Call:
    """Pickled as a call, and perhaps a state to set."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def dtype(code, *state):
    return Call(np.dtype, (code, False, True), state) if state else Call(np.dtype, (code, False, True))


def array(kind, content, shape=(1,)):
    return Call(RECONSTRUCT, (np.ndarray, (0,), b"b"), (1, shape, kind, False, content))


@pytest.mark.parametrize("protocol", [None, 4])
def test_a_type_is_known_by_its_name_alone(tmp_path, protocol):
    path = dumped({"x": array(dtype("f8"), np.float64(1.5).tobytes()), "w": torch.ones(2)}, tmp_path / "a", protocol)
    assert read_torch_file(path, Trust()).value["x"].tolist() == [1.5]


OBJECTS = dtype("O8", 3, "|", None, None, None, -1, -1, 63)
FIELDS = dtype("V8", 3, "|", None, ("a",), {"a": (OBJECTS, 0)}, 8, 1, 0)
PART = dtype("V8", 3, "|", (OBJECTS, (1,)), None, None, 8, 1, 0)
NUMBERS = dtype("f8", 3, "<", None, None, None, -1, -1, 0)
FIELDED = "with named fields or parts. Expected plain numbers, texts or times. Save every field as an array of its own."
ATTACKS = {
    "fields": (Call(list, (Call(SCALAR, (FIELDS, b"AAAAAAAA")),)), f"holds values of NumPy's type 'V8' {FIELDED}"),
    "fields in an array": (array(FIELDS, b"AAAAAAAA"), f"holds values of NumPy's type 'V8' {FIELDED}"),
    "a part": (array(PART, b"AAAAAAAA"), f"holds values of NumPy's type 'V8' {FIELDED}"),
    "honest fields": (np.zeros(2, "i4,f4"), FIELDED),
    "an array of addresses": (Call(np.ndarray, ((1,), "O", b"AAAAAAAA")), "takes 1 positional argument"),
    "a number that is an address": (Call(SCALAR, (OBJECTS, b"AAAAAAAA")), "bytes that are to be objects"),
    "bytes as objects": (array(OBJECTS, b"AAAAAAAA"), "of the shape (1,) with 8 bytes or objects"),
    "as many bytes as objects": (array(OBJECTS, b"AAAAAAAA", (8,)), "of the shape (8,) with 8 bytes or objects"),
    "as many objects as bytes": (array(NUMBERS, [1.0] * 8), "of the shape (1,) with 8 bytes or objects"),
    "objects as numbers": (array(NUMBERS, [1.0]), "of the shape (1,) with 1 bytes or objects"),
    "a list too short": (array(OBJECTS, [1], (10,)), "of the shape (10,) with 1 bytes or objects"),
    "a list of odd shape": (array(OBJECTS, [], (torch.tensor(64, dtype=torch.int8),) * 2), "of the shape (64, 64)"),
    "bytes too short": (array(NUMBERS, bytes(8), (2,)), "of the shape (2,) with 8 bytes or objects"),
    "texts of no length": (array(dtype("S0", 3, "|", None, None, None, 0, 1, 0), b"", (2**40,)), "with 0 bytes or"),
    "another size": (array(dtype("V8", 3, "|", None, None, None, 800, 1, 0), bytes(8)), "that take 800 bytes each"),
    "a type of its own": (array(dtype("V8,O8"), bytes(8)), "type 'V8,O8' " + FIELDED),
    "an order of its own": (array(dtype("f8", 3, "O,", None, None, None, -1, -1, 0), bytes(8)), "type 'f8' " + FIELDED),
    "no type": (array(None, bytes(8)), "an array of a type that is none"),
    "a start of another shape": (Call(RECONSTRUCT, (np.ndarray, (2**40,), b"b")), "starts with the shape (10995116277"),
}  # fmt: skip


@pytest.mark.parametrize("protocol", [None, 4])
@pytest.mark.parametrize("attack", ATTACKS)
def test_what_numpy_would_believe_is_refused(tmp_path, attack, protocol):
    hostile, message = ATTACKS[attack]
    path = dumped({"x": hostile, "w": torch.ones(2)}, tmp_path / "evil", protocol)
    if protocol is None and FIELDED not in message:
        message = "is damaged or truncated (torch: "  # and of what was raised one word
    with pytest.raises(LoadError, match=re.escape(message)):
        read_torch_file(path, Trust())


def test_protocol_5_cannot_make_objects_of_bytes(tmp_path):
    path = dumped({"x": Call(FROMBUFFER, (b"AAAAAAAA", OBJECTS, (1,), "C"))}, tmp_path / "evil", 5)
    with pytest.raises(LoadError, match="bytes that are to be objects"):
        read_torch_file(path, Trust())


def test_an_array_is_filled_once(tmp_path):
    """A tensor may share its memory by then, which NumPy would free."""
    more = pickle.dumps((1, (1,), np.dtype("f8"), False, bytes(8)), 2)[2:-1] + b"b."
    (tmp_path / "evil").write_bytes(pickle.dumps(np.ones(2), 2)[:-1] + more)
    with pytest.raises(LoadError, match="an array that is filled twice"):
        read_torch_file(tmp_path / "evil", Trust())


def test_arrays_with_fields_are_read_where_the_file_is_trusted(tmp_path):
    value = {"x": np.ones(2, "i4,f4")}
    for protocol in (None, 4):
        path = dumped(value, tmp_path / f"{protocol}.pt", protocol)
        assert read_torch_file(path, Trust(file=True)).value["x"]["f1"].tolist() == [1, 1]


def test_no_class_of_numpy_itself_is_given_to_a_pickle():
    given = {thing for thing, name in HARMLESS if name.startswith("numpy.")}
    assert given == {stand_ins.Array, stand_ins.Dtype, stand_ins.scalar, stand_ins.reconstruct}
    assert safe_globals(Trust(allowed_globals=("numpy.dtype", "numpy.ndarray"))) == HARMLESS
