"""Files that mean harm: none runs anything, and each ends in one error with exit code 2 and no traceback."""

import dataclasses
import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from gapscope.__main__ import main
from gapscope.measure.loading.checkpoints.checkpoint import save_checkpoint
from gapscope.report.file import read, write

SMALL = Path(__file__).parents[1] / "fixtures" / "digits-small-batch.pt"
HOSTILE = "\x1b[31mred\x1b]0;title\x07\u202e<script>alert(1)</script>[bold]x[/bold]\r\nline"


class Evil:
    """Leaves a file when unpickled."""

    def __reduce__(self):
        return os.system, ("touch sang",)


@pytest.fixture
def refuse(tmp_path, monkeypatch, capsys):
    """Run gapscope in an empty folder, and check that it refused in one error and ran nothing."""
    monkeypatch.chdir(tmp_path)

    def refuse(*words):
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert left.value.code == 2
        assert captured.err.count("error: ") == 1
        assert "Traceback" not in captured.err
        assert "Unexpected" not in captured.err
        assert not (tmp_path / "sang").exists()
        return captured.err

    return refuse


def evil_zip(path):
    torch.save({"model": {"w": torch.ones(2)}, "extra": Evil()}, path)


def evil_legacy(path):
    torch.save({"model": {"w": torch.ones(2)}, "extra": Evil()}, path, _use_new_zipfile_serialization=False)


def evil_pickle(path):
    path.write_bytes(pickle.dumps({"model": {"w": np.ones(2)}, "extra": Evil()}))


def evil_magic(path):
    """Look like a file of before 1.6, whose first pickle is read before its magic number is known."""
    path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + pickle.dumps(1001, 2) + pickle.dumps(Evil(), 2) * 3)


def evil_storage(path):
    """Hide the pickle inside the bytes of a tensor."""

    class Nested:
        def __reduce__(self):
            inner = io.BytesIO()
            torch.save(Evil(), inner, _use_new_zipfile_serialization=False)
            return torch.storage._load_from_bytes, (inner.getvalue(),)

    path.write_bytes(pickle.dumps({"w": Nested()}))


def evil_folder(path):
    path.mkdir()
    (path / ".metadata").write_bytes(pickle.dumps(Evil()))


def evil_program(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/archive_format", "pt2")
        archive.writestr("a/models/model.json", "{}")
        table = {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
        archive.writestr("a/data/weights/model_weights_config.json", json.dumps(table))
        archive.writestr("a/data/weights/weight_0", pickle.dumps(Evil()))


def evil_script(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/constants.pkl", pickle.dumps(Evil(), 2))
        archive.writestr("a/data.pkl", pickle.dumps(Evil(), 2))
        archive.writestr("a/code/__torch__/net.py", "import os")


def evil_npz(path):
    with path.open("wb") as file:
        np.savez(file, w=np.array([Evil()], dtype=object))


@pytest.mark.parametrize("command", ["gap", "inspect", "convert"])
@pytest.mark.parametrize(
    "make",
    [
        evil_zip,
        evil_legacy,
        evil_pickle,
        evil_magic,
        evil_storage,
        evil_folder,
        evil_program,
        evil_script,
        evil_npz,
    ],
)
def test_nothing_in_a_file_runs(refuse, tmp_path, make, command):
    make(tmp_path / "evil")
    said = refuse(command, "evil", *(["out.safetensors"] if command == "convert" else []))
    assert "evil" in said
    assert not (tmp_path / "out.safetensors").exists()


def test_the_canary_would_have_sung(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Evil()))
    assert (tmp_path / "sang").exists()


def test_the_console_script_refuses_too(tmp_path):
    evil_zip(tmp_path / "evil.pt")
    done = subprocess.run(
        [sys.executable, "-m", "gapscope", "sharpness", "evil.pt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: evil.pt would run")
    assert not (tmp_path / "sang").exists()


@pytest.mark.parametrize("name", ["canary:build", "os:system", "canary.py:build", "logging:os.system"])
def test_a_recorded_name_is_not_imported(refuse, tmp_path, name):
    (tmp_path / "canary.py").write_text("open('sang', 'w').close()\ndef build(): return None\n")
    save_checkpoint(tmp_path / "a.pt", nn.Linear(2, 2), factory=name, data="digits")
    assert "Nothing was imported" in refuse("gap", "a.pt")
    assert "canary" not in sys.modules


def test_an_allowed_class_may_not_be_one_that_runs_commands(refuse, tmp_path):
    evil_zip(tmp_path / "evil.pt")
    said = refuse("gap", "evil.pt", "--allow-global", f"{os.system.__module__}.system")
    assert "would let the file run any code" in said


def bomb_zip(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        with archive.open("a/data/0", "w", force_zip64=True) as member:
            for _ in range(66):
                member.write(bytes(2**20))


def bomb_npz(path):
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("w.npy", "w", force_zip64=True) as file,
    ):
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (66 * 2**18,)})
        for _ in range(66):
            file.write(bytes(2**20))


def bomb_inside(path):
    """Hide the archive inside the bytes of a tensor."""
    whole, packed = io.BytesIO(), io.BytesIO()
    torch.save({"w": torch.zeros(66 * 2**20, dtype=torch.uint8)}, whole)
    with zipfile.ZipFile(whole) as read, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in read.namelist():
            archive.writestr(name, read.read(name))

    class Nested:
        def __reduce__(self):
            return torch.storage._load_from_bytes, (packed.getvalue(),)

    path.write_bytes(pickle.dumps({"w": Nested()}))


@pytest.mark.parametrize("make", [bomb_zip, bomb_npz, bomb_inside])
def test_an_archive_that_unpacks_to_far_more_is_not_unpacked(refuse, tmp_path, make, monkeypatch):
    make(tmp_path / "bomb")
    assert (tmp_path / "bomb").stat().st_size < 2**17
    monkeypatch.setattr(
        "gapscope.measure.loading.checkpoints.archives._ROOMY", 2**24
    )  # so that packing a bomb takes no seconds
    assert "of content, far more than weights compress" in refuse("gap", "bomb")


def test_an_archive_whose_members_overlap_is_not_unpacked(refuse, tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb", "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/data/0", bytes(10_000))
        archive.infolist()[1].file_size = archive.infolist()[1].compress_size = 2**40
    assert "of content, far more than weights compress" in refuse("gap", "bomb")


def test_an_array_that_declares_more_than_it_holds_is_an_error(refuse, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("w.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (2**48,)})
    assert "holds arrays that cannot be read" in refuse("gap", "a.npz")


def test_a_shard_outside_its_folder_is_not_read(refuse, tmp_path):
    (tmp_path / "net").mkdir()
    safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    index = tmp_path / "net" / "model.safetensors.index.json"
    for place in ("../secret.safetensors", str(tmp_path / "secret.safetensors")):
        index.write_text(json.dumps({"weight_map": {"w": place}}))
        assert "Expected the plain name of a file in that folder" in refuse("gap", "net")
    index.write_text(json.dumps({"weight_map": {"w": "link.safetensors"}}))
    (tmp_path / "net" / "link.safetensors").symlink_to(tmp_path / "secret.safetensors")
    assert "outside its folder" in refuse("gap", "net")


def test_a_report_with_an_external_link_is_refused(refuse, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["gap", str(SMALL), "-q", "-o", str(tmp_path / "a.h5")])
    capsys.readouterr()
    h5py.File(tmp_path / "secret.h5", "w").create_dataset("x", data=[1.0])
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        result = file["results/gap"]
        name = next(iter(result))
        del result[name]
        result[name] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "/x")
    assert "a.h5" in refuse("show", "a.h5")


def harmless(text):
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "\r" not in text


def test_hostile_names_are_printed_harmlessly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    state = {f"{HOSTILE}.weight": torch.ones(2, 2), f"{HOSTILE}.bias": torch.ones(2)}
    torch.save({HOSTILE: state, "config": {HOSTILE: HOSTILE}, "ema": state}, "a.pt")
    shown = []
    for words in (["inspect", "a.pt"], ["inspect", "a.pt", "--json"], ["gap", "a.pt", "-m", "mlp", "-d", "digits"]):
        with pytest.raises(SystemExit):
            main(words)
        captured = capsys.readouterr()
        harmless(captured.out + captured.err)
        shown.append(captured.out)
    assert "[bold]x[/bold]" in shown[0]
    assert json.loads(shown[1])["settings"] == {HOSTILE: HOSTILE}


def test_hostile_names_in_a_report_are_shown_harmlessly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["gap", str(SMALL), "-q", "-o", "a.h5"])
    report = read(Path("a.h5"))
    gap = dataclasses.replace(report.results["gap"], notes=(HOSTILE,))
    write(
        dataclasses.replace(report, identity={**report.identity, "model": HOSTILE}, results={"gap": gap}), Path("a.h5")
    )
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main(["show", "a.h5", "-v"])
    assert left.value.code == 0
    harmless(capsys.readouterr().out)
