"""What gapscope writes can be published: no folder, home, user or host name in it, however the files were named."""

import json
import socket
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import gapscope
from gapscope.cli import study
from gapscope.measure.session import skipped
from gapscope.report.folders import plain, without_folders
from tests.hardening.telling import FOLDER, HOME, HOST, USER, telling_folder
from tests.report import example_outcomes

FIXTURES = Path(__file__).parents[2] / "fixtures"
TELLING = [FOLDER, HOME, USER, HOST, *([socket.gethostname()] if len(socket.gethostname()) > 5 else [])]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Run every command that writes, in a folder that tells, with all inputs named by absolute paths."""
    return telling_folder(tmp_path_factory.mktemp("work"))


def everything(path):
    """Yield what a file holds, by place: its bytes, and all that is packed or kept in attributes."""
    whole = path.read_bytes()
    yield "bytes", whole
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            found = [("/", file)]
            file.visititems(lambda name, one: found.append((name, one)))
            for name, one in found:
                yield name, repr(dict(one.attrs)).encode()
                if isinstance(one, h5py.Dataset):
                    yield name, repr(np.asarray(one[()]).tolist()).encode()
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield name, name.encode() + archive.read(name)
    elif whole.startswith(b"\x89PNG"):
        at = 8
        while at < len(whole):
            size, kind = int.from_bytes(whole[at : at + 4]), whole[at + 4 : at + 8]
            chunk, at = whole[at + 8 : at + 8 + size], at + 12 + size
            yield kind.decode(), zlib.decompress(chunk.split(b"\0", 2)[2]) if kind == b"zTXt" else chunk


def forms(word):
    """Return how a name can stand in a file."""
    codes = {word.encode(code, "replace") for code in ("utf-8", "utf-16-le", "unicode_escape", "latin-1")}
    return codes | {json.dumps(word)[1:-1].encode()}


def test_no_file_tells_where_or_by_whom_it_was_made(written):
    # a checkpoint records the model and data of its training as they were typed: they must be found again; and what
    # `inspect` prints names the file, and is to be typed
    kept = ("trained.pt", "inspected.json")
    files = [path for path in written.rglob("*") if path.is_file() and not path.name.startswith(kept)]
    assert {"trained.h5.state.kept", "small.h5.state.kept"} <= {path.name for path in files}
    kinds = {path.suffix for path in files}
    assert {
        ".kept",
        ".h5",
        ".html",
        ".svg",
        ".png",
        ".pdf",
        ".csv",
        ".json",
        ".xml",
        ".md",
        ".txt",
        ".safetensors",
    } <= kinds
    told = [
        f"{path.name} {where}: {word}"
        for path in files
        for where, content in everything(path)
        for word in TELLING
        if any(form in content for form in forms(word))
    ]
    assert told == []


def test_a_name_that_is_there_would_be_found(tmp_path):
    """The search itself, on a checkpoint and a report that do tell."""
    torch.save({"note": f"/srv/{FOLDER}/x"}, tmp_path / "a.pt")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=np.array([f"{USER}".encode()]), chunks=True, compression="gzip")
        file["x"].attrs["where"] = HOME
    for name, word in (("a.pt", FOLDER), ("a.h5", HOME), ("a.h5", USER)):
        assert any(form in content for _, content in everything(tmp_path / name) for form in forms(word))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("/srv/a b/Köln/net.py:build", "net.py:build"),
        ("hf:/srv/models/bert", "hf:bert"),
        ("C:\\Users\\me\\data.npz", "data.npz"),
        ("data: /srv/x/data.npz: the labels", "data: data.npz: the labels"),
        ("models/net.py:build", "models/net.py:build"),
        ("teacher:samples=100", "teacher:samples=100"),
        ("loss 3 / 4", "loss 3 / 4"),
        ("a/b, (c)/d, {e}/f, ~/g, *.h/i, 50%/j, k-/l, ../m", "a/b, (c)/d, {e}/f, ~/g, *.h/i, 50%/j, k-/l, ../m"),
        ("/", "/"),
        ("/home/O'Brien/J. Smith/net.py", "net.py"),
        ("No such file: '/srv/x/v.json'. Expected one of a/b", "No such file: 'v.json'. Expected one of a/b"),
        ("['/srv/a/b', \"/srv/c/d\"] (/srv/e/f)", "['b', \"d\"] (f)"),
        ("--out=/srv/a/b,--log=<D:\\x\\y>", "--out=b,--log=<y>"),
        ("file:///srv/a/b", "file:b"),
        ("/srv/a/b/", "b/"),
    ],
)
def test_of_an_absolute_path_the_last_name_is_left(name, told):
    assert without_folders(name) == told


def test_tables_of_a_models_arguments_lose_their_folders_too():
    given = {"a": ["/srv/x/y", {"b": ("/srv/z", 1, None)}], "c": 2.5, "d": "e/f"}
    assert plain(given) == {"a": ["y", {"b": ["z", 1, None]}], "c": 2.5, "d": "e/f"}


def test_why_something_was_skipped_is_told_without_folders():
    record = skipped(gapscope.Gap(), 0, f"could not be measured: no '/srv/{FOLDER}/v.json'")
    assert record.notes == ("could not be measured: no 'v.json'",)


def test_a_study_tells_its_data_without_folders(tmp_path, capsys):
    about, data = (f"/srv/{FOLDER}/x.npz, 1,300 training samples",), f"/srv/{FOLDER}/x.npz"
    outcome = replace(example_outcomes.outcome(), about=about, conditions={"data": data, "samples": 1300})
    for as_json in (False, True):
        study._show(outcome, tmp_path, json=as_json)
    shown = capsys.readouterr().out
    assert "x.npz, 1,300 training samples" in shown
    written = [content for path in tmp_path.iterdir() for _, content in everything(path)]
    assert not [one for one in (shown.encode(), *written) for form in forms(FOLDER) if form in one]


def test_where_a_loss_lies_is_no_difference(run, small, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "n.py").write_text(
            "import torch.nn.functional as F\ndef ce(o, t): return F.cross_entropy(o, t, reduction='none')\n"
        )
        loss = f"{tmp_path / folder}/n.py:ce"
        assert run("gap", small, "--loss", loss, "--limit", "99", "-q", "-o", f"{folder}.h5").code == 0
    assert run("compare", "one.h5", "two.h5", "--pair", "none").code == 0
    assert gapscope.read("one.h5").conditions["loss"] == "n.py:ce"
