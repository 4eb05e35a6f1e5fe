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

import numpy as np
import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.torchfile import read_torch_file, unsafe_error
from gapscope.measure.loading.trust import HARMLESS, Trust


class Config:
    """A class of the user's own."""


class Other:
    """And another."""


class Keys(list):
    """A list of the user's own."""


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


VALUES = [
    collections.defaultdict(kind, a=kind()) for kind in (list, dict, set, int, float)
] + [
    types.SimpleNamespace(a=1),
    collections.OrderedDict(a=1),
    datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC),
    datetime.date(2020, 1, 2),
    datetime.time(1, 2),
    datetime.timedelta(seconds=3),
    pathlib.PurePosixPath("a/b"),
    pathlib.Path("a/b"),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("dump", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_every_harmless_class_is_read(tmp_path, dump, value):
    dump({"w": torch.ones(2), "value": value}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt").value["value"]  # of a defaultdict a dict
    assert str(found) == str(value) if isinstance(value, pathlib.PurePath) else found == value


@pytest.mark.parametrize("code", [code for code in np.typecodes["All"] if code != "O"])
def test_arrays_and_numbers_of_every_kind_are_read_and_of_objects_not_by_torch(tmp_path, code):
    array = np.zeros(2, "V3") if code == "V" else np.ones(2) if code in "Mm" else np.ones(2, code)
    array = array.astype(f"{code}8[s]") if code in "Mm" else array
    content = {"w": torch.ones(2), "array": array, "number": array[0]}
    torch.save(content, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt").value
    assert (found["array"].dtype, found["number"].dtype) == (array.dtype, array[0].dtype)
    assert "numpy.dtypes.ObjectDType" not in {name for _, name in HARMLESS}


def test_names_of_numpy_1_are_those_of_numpy_2(tmp_path):
    for value in (np.float64(0.5), np.arange(3)):
        old = pickle.dumps({"x": value}, 2).replace(b"numpy._core.", b"numpy.core.")
        for content in (old, old.replace(b"numpy.core.", b"numpy._core.")):
            (tmp_path / "a.pkl").write_bytes(content)
            np.testing.assert_equal(read(tmp_path / "a.pkl").value["x"], value)


def test_a_windows_path_loads_everywhere(tmp_path):
    torch.save({"w": torch.ones(2), "path": pathlib.PureWindowsPath("a\\b")}, tmp_path / "a.pt")
    assert str(read(tmp_path / "a.pt").value["path"]) == "a\\b"


@pytest.mark.parametrize("kind", ["PosixPath", "PurePosixPath", "WindowsPath", "PureWindowsPath"])
@pytest.mark.parametrize("module", ["pathlib", "pathlib._local"])
def test_a_path_is_read_as_every_python_on_every_system_names_it(tmp_path, module, kind):
    own = pickle.dumps({"w": torch.ones(2), "path": pathlib.PurePosixPath("a/b")}, 2)
    content, found = re.subn(rb"cpathlib(\._local)?\nPurePosixPath\n", f"c{module}\n{kind}\n".encode(), own)
    assert found
    (tmp_path / "a.pkl").write_bytes(content)
    assert read(tmp_path / "a.pkl").value["path"].parts == ("a", "b")


def test_old_torch_files_and_safetensors_load_with_the_digest_of_their_bytes(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "new.safetensors")
    for path in tmp_path.iterdir():
        content = read(path)
        assert content.value["w"].tolist() == [1, 1]
        assert content.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_another_protocol_is_read_without_a_warning(tmp_path, zipped):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt", pickle_protocol=3, _use_new_zipfile_serialization=zipped)
    assert read(tmp_path / "a.pt").value["w"].tolist() == [1, 1]


def test_odd_tensors_do_not_crash(tmp_path):
    torch.save(
        {"w": torch.eye(3).to_sparse(), "e": torch.empty(0), "c": torch.ones(2, dtype=torch.complex64)},
        tmp_path / "a.pt",
    )
    assert read(tmp_path / "a.pt").value["w"].is_sparse


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", [2, 10**8, -1])
def test_a_sparse_tensor_with_numbers_outside_of_it_is_refused(tmp_path, place, zipped):
    """Made dense it would write them where they point."""
    path, indices = tmp_path / "a.pt", torch.tensor([[place]])
    tensor = torch.sparse_coo_tensor(indices, torch.ones(1), (2,), check_invariants=False)
    torch.save({"w": torch.ones(2), "sparse": tensor}, path, _use_new_zipfile_serialization=zipped)
    before = torch.sparse.check_sparse_tensor_invariants.is_enabled()
    with pytest.raises(LoadError, match=r"a\.pt is damaged or truncated \(torch: RuntimeError"):
        read(path)
    assert torch.sparse.check_sparse_tensor_invariants.is_enabled() is before


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
    assert "nothing was loaded. Save its weights where it was made: `torch.save(model.state_dict()" in str(error.value)


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
        ("legacy", r"is damaged or truncated \(torch: \w+\)\. Copy or save it again"),
        ("safe", r"is damaged or truncated \(SafetensorError"),
        ("pickle", r"is a damaged pickle \(UnpicklingError"),
        ("npz", r"holds arrays that cannot be read \(ValueError: Object arrays cannot be loaded"),
    ],
)
def test_a_damaged_file_is_named_as_one(tmp_path, kind, message):
    path = tmp_path / "a.pt"
    write(path, kind)
    with pytest.raises(LoadError, match=message):
        read(path)


def test_a_format_without_weights_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "a.pt").write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(
        LoadError, match=r"a.pt is a GGUF file of quantized weights. Expected the PyTorch or safetensors"
    ):
        read(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes(b"\x89HDF\r\n\x1a\n")
    with pytest.raises(LoadError, match=r"a.pt is an HDF5 file. If it is a gapscope report: "):
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
    trusted = read_torch_file(tmp_path / "a.pt", Trust(file=True))
    assert (trusted.trust, trusted.format.name) == ("the whole file was trusted", "torch checkpoint")
    content = {"w": torch.ones(2), "config": Config()}
    torch.save(content, tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content))
    for path in ("legacy.pt", "a.pkl"):
        assert read(tmp_path / path, name, "argparse.Namespace").trust == f"allowed globals: {name}"
    torch.save({"w": torch.ones(2)}, tmp_path / "plain.pt")
    for trust in (Trust(file=True), Trust(allowed_globals=(name,))):
        assert read_torch_file(tmp_path / "plain.pt", trust).trust == "nothing from the file runs"
    # what lies behind the pickle that is read needs none
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"w": torch.ones(2)}) + pickle.dumps(Config()))
    assert read(tmp_path / "a.pkl", name).trust == "nothing from the file runs"


def test_what_the_last_pickle_of_an_old_file_needs_is_returned(tmp_path):
    """Behind the object is a list of its storages, none here."""
    path, name = tmp_path / "a.pt", f"{__name__}.Keys"
    torch.save({"epoch": 3}, path, _use_new_zipfile_serialization=False)
    none = pickle.dumps([], 2)
    assert path.read_bytes().endswith(none)
    path.write_bytes(path.read_bytes().removesuffix(none) + pickle.dumps(Keys(), 2))
    assert read(path, name).trust == f"allowed globals: {name}"


def test_what_had_to_be_trusted_is_returned_wherever_the_pickle_is_in_the_archive(tmp_path):
    torch.save({"w": torch.ones(2), "config": Config()}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in reversed(old.namelist()):
            new.writestr(name, old.read(name))
    name = f"{__name__}.Config"
    assert read(tmp_path / "b.pt", name).trust == f"allowed globals: {name}"


@pytest.mark.parametrize("dump", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_a_trusted_file_gives_its_module(tmp_path, dump):
    dump(torch.nn.Linear(2, 2), tmp_path / "a.pt")
    content = read_torch_file(tmp_path / "a.pt", Trust(file=True))
    assert isinstance(content.value, torch.nn.Linear)
    assert content.format.name == "pickled module"


def test_a_large_pickle_is_trusted_or_refused_from_its_beginning(tmp_path):
    """Reading has gone far beyond one buffer before it meets the first class."""
    path = tmp_path / "a.pkl"
    path.write_bytes(pickle.dumps({"long": "x" * 2**20, "config": Config(), "other": Other()}))
    assert isinstance(read_torch_file(path, Trust(file=True)).value["config"], Config)
    with pytest.raises(LoadError) as error:
        read(path)
    assert f"plain tensors: {__name__}.Config, {__name__}.Other\n" in str(error.value)
    assert f"file?     --allow-global {__name__}.Config --allow-global {__name__}.Other\n" in str(error.value)


def test_a_damaged_pickle_of_classes_is_refused_by_the_first(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([Config(), "x" * 1000, Other()], 2)[:-500])
    with pytest.raises(LoadError, match=rf"holds objects that are not plain tensors: {__name__}\.Config\n"):
        read(tmp_path / "a.pkl")


def test_a_whole_traced_model_is_no_class_to_allow():
    said = str(unsafe_error(pathlib.Path("a.pt"), ["torch.fx.graph_module.reduce_graph_module"]))
    assert said.startswith("a.pt is a whole pickled model (torch.fx.graph_module.reduce_graph_module), not weights.")
    assert said.endswith("--trust-file")


def test_at_most_five_names_are_shown():
    names = [f"a.B{i}" for i in range(7)]
    shown = ["a.B0, a.B1, a.B2, a.B3, a.B4" + more for more in ("", " and 1 more", " and 2 more")]
    for count, said in zip((5, 6, 7), shown, strict=True):
        assert f"not plain tensors: {said}\n" in str(unsafe_error(pathlib.Path("a.pt"), names[:count]))
    dangerous = [f"os.f{i}" for i in range(7)]
    assert "would run os.f0, os.f1, os.f2, os.f3, os.f4 when" in str(unsafe_error(pathlib.Path("a.pt"), dangerous))


def test_a_class_of_the_script_that_saved_it_cannot_be_allowed():
    said = str(unsafe_error(pathlib.Path("a.pt"), ["__main__.Config"]))
    assert "--allow-global" not in said
    assert said.endswith(
        "was loaded.\n  Keep only the weights:  " + '`torch.save(model.state_dict(), "weights.pt")` where it was made'
    )


def test_a_trusted_file_whose_classes_are_gone_says_so(tmp_path):
    torch.save(Config(), tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes().replace(b"Config", b"Konfig"))
    with pytest.raises(LoadError, match=r"was trusted, and loading it raised AttributeError.*Run from the folder"):
        read_torch_file(tmp_path / "a.pt", Trust(file=True))


def test_looking_does_not_read_the_numbers(tmp_path):
    safetensors.torch.save_file({"w": torch.ones(2, 3, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    seen = read_torch_file(tmp_path / "a.safetensors", Trust(), values=False).value["w"]
    assert (seen.device.type, seen.shape, seen.dtype) == ("meta", (2, 3), torch.bfloat16)
    for zipped in (True, False):
        torch.save({"w": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        assert read_torch_file(tmp_path / "a.pt", Trust(), values=False).value["w"].shape == (2,)


def test_numbers_that_are_only_looked_at_are_mapped(tmp_path):
    torch.save({"w": torch.ones(2000)}, tmp_path / "a.pt")
    seen = read_torch_file(tmp_path / "a.pt", Trust(), values=False).value["w"]
    content = (tmp_path / "a.pt").read_bytes()
    with (tmp_path / "a.pt").open("r+b") as file:
        file.write(content.replace(torch.ones(2000).numpy().tobytes(), bytes(8000)))
    assert seen.count_nonzero() == 0  # nobody had read them


def test_what_was_read_stays_when_the_file_changes(tmp_path):
    """The digest is that of the numbers: they are not mapped."""
    torch.save({"w": torch.ones(2000)}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt").value["w"]
    (tmp_path / "a.pt").write_bytes(bytes((tmp_path / "a.pt").stat().st_size))
    assert float(found.sum()) == 2000
