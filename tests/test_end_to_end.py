"""The real console script on real files, in processes of its own: exit codes, streams, signals and full disks."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from tests.pseudo_terminal import on_a_terminal

FIXTURES = Path(__file__).parents[1] / "fixtures"
SCRIPT = Path(sysconfig.get_path("scripts")) / "gapscope"
SMALL, LARGE = (FIXTURES / f"digits-{size}-batch.pt" for size in ("small", "large"))
BATCH = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout
from gapscope.__main__ import main
for words in json.loads(sys.stdin.read()):
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            main(words)
        except SystemExit as left:
            code = left.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""
NETS = """
import os
import time
import torch
from torch import nn

def good():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))

def quits():
    raise SystemExit(1)

class Drop(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = good()
    def forward(self, x):
        return nn.functional.dropout(self.inner(x), 0.5)

class Log(Drop):
    def forward(self, x):
        return torch.log(self.inner(x) - 1e9)

class Sender:
    def __init__(self, number):
        self.number = number
    def __del__(self):
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)  # what is raised here goes nowhere

class Stopped(Drop):
    def forward(self, x):
        Sender(int(os.environ["NUMBER"]))
        time.sleep(0.2)
        return self.inner(x)

class Slow(Drop):
    def forward(self, x):
        if len(x) > 2:
            open("started", "w").close()
            time.sleep(0.2)
        return self.inner(x)
"""


def environment(**more):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("GAPSCOPE_") and k not in ("CI", "FORCE_COLOR")}
    return {**kept, "GAPSCOPE_THREADS": "1", "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "80", **more}


def gapscope(*words, cwd, **more):
    done = {"capture_output": True, "text": True, "cwd": cwd, "timeout": 120, "env": environment(), **more}
    return subprocess.run([str(SCRIPT), *map(str, words)], **done)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files good and bad, and a report of the small-batch checkpoint."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "nets.py").write_text(NETS)
    sys.path.insert(0, str(folder))
    import nets

    sys.path.remove(str(folder))
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 4, generator=rng).numpy(), torch.randint(0, 3, (50,), generator=rng).numpy()
    hole, label = x.copy(), y.copy()
    hole[7, 1], label[3] = np.nan, 17
    arrays = {
        "ok": (x, y),
        "hole": (hole, y),
        "none": (x[:0], y[:0]),
        "wide": (np.ones((50, 9), "f4"), y),
        "label": (x, label),
    }
    for name, (inputs, targets) in arrays.items():
        np.savez(folder / f"{name}.npz", x=inputs, y=targets)
    weights = nets.good().state_dict()
    for name, content in {
        "plain": weights,
        "nan": {key: value * float("nan") for key, value in weights.items()},
        "whole": nn.Linear(2, 2),
        "drop": nets.Drop().state_dict(),
        "evil": {"model": weights, "args": Evil()},
    }.items():
        torch.save(content, folder / f"{name}.pt")
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("no checkpoint\n" * 9)
    (folder / "cut.pt").write_bytes(SMALL.read_bytes()[:8000])
    with zipfile.ZipFile(folder / "zip.pt", "w") as archive:
        archive.writestr("readme", "no checkpoint")
    done = gapscope("sharpness", SMALL, "-o", "small.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    (folder / "cut.h5").write_bytes((folder / "small.h5").read_bytes()[:5000])
    shutil.copy(folder / "small.h5", folder / "newer.h5")
    with h5py.File(folder / "newer.h5", "a") as file:
        file.attrs["format_version"] = 99
    with h5py.File(folder / "foreign.h5", "w") as file:
        file["x"] = 1
    return folder


class Evil:
    def __reduce__(self):
        return os.system, ("touch canary",)


GOOD = ("-m", "nets.py:good", "-d")
BAD = {  # words -> what the one error says: observed, and what to do
    ("gap", "missing.pt"): ("missing.pt does not exist", "Expected a checkpoint file"),
    ("gap", "empty.pt"): ("empty.pt is empty", "make it again"),
    ("gap", "text.pt"): ("text.pt is a file of an unknown kind", "Save the weights where it was made"),
    ("gap", "zip.pt"): ("zip.pt", "Expected"),
    ("gap", "cut.pt"): ("cut.pt is truncated", "Copy or save it again"),
    ("gap", "whole.pt"): ("whole.pt is a whole pickled model", "Save its weights"),
    ("gap", "evil.pt"): ("evil.pt would run posix.system", "Nothing was loaded"),
    ("gap", "small.h5"): ("small.h5 is an HDF5 file", "`gapscope show small.h5`"),
    ("gap", "plain.pt"): ("does not say which model it holds", "-m pkg.mod:factory"),
    ("gap", "plain.pt", "-m", "nets.py:good"): ("does not say what it was trained on", "`-d data.npz`"),
    ("gap", "plain.pt", "-m", "mlp", "-d", "ok.npz"): ("plain.pt does not fit `mlp`", "name it with `-m"),
    ("gap", "plain.pt", "-m", "mlp", "-a", "hiden=[3]", "-d", "ok.npz"): ("hiden", "Did you mean `hidden`?"),
    ("gap", "plain.pt", "-m", "nets.py:quits", "-d", "ok.npz"): ("raised SystemExit", "Check its arguments"),
    ("gap", "plain.pt", *GOOD, "hole.npz"): ("NaN or infinity (first in sample 7)", "Remove or repair"),
    ("gap", "plain.pt", *GOOD, "none.npz"): ("none.npz has no samples", "Expected at least one"),
    ("gap", "plain.pt", *GOOD, "wide.npz"): ("do not fit", "Check the model's arguments"),
    ("gap", "plain.pt", *GOOD, "label.npz"): ("labels up to 17", "Expected classes 0 to 2"),
    ("gap", "plain.pt", *GOOD, "missing.npz"): ("missing.npz", "exist"),
    ("gap", "nan.pt", *GOOD, "ok.npz"): ("67 of 67 weights are NaN or infinite", "measure an earlier checkpoint"),
    ("gap", "drop.pt", "-m", "nets.py:Drop", "-d", "ok.npz"): ("losses that differ", "dropout that ignores eval mode"),
    ("gap", "drop.pt", "-m", "nets.py:Log", "-d", "ok.npz"): ("NaN or infinite on 50 of 50", "Check the data"),
    ("gap", SMALL, "-o", "empty.pt/x.h5"): ("does not exist", "mend `--output`"),
    ("gap", SMALL, "-o", "plain.pt"): ("plain.pt is not a gapscope report", "move that file away"),
    ("gap", SMALL, "-o", "cut.h5"): ("cut.h5 cannot be opened", "move that file away"),
    ("gap", SMALL, "-o", "newer.h5"): ("format version 99", "move that file away"),
    ("gap", LARGE, "-o", "small.h5"): ("holds a report of another subject", "Name another file"),
    ("show", "plain.pt"): ("plain.pt is not a gapscope report", "gapscope sharpness"),
    ("show", "missing.h5"): ("missing.h5 does not exist", "gapscope sharpness"),
    ("show", "cut.h5"): ("cut.h5 cannot be opened", "measure again"),
    ("show", "foreign.h5"): ("foreign.h5 is not a gapscope report", "gapscope sharpness"),
    ("show", "newer.h5"): ("format version 99", "upgrade"),
    ("compare", "small.h5", "cut.h5"): ("cut.h5 cannot be opened", "measure again"),
    ("compare", "small.h5", "foreign.h5"): ("foreign.h5 is not a gapscope report", "Expected"),
    ("compare", "newer.h5", SMALL): ("format version 99", "upgrade"),
    ("compare", "small.h5", "nowhere.pt"): ("nowhere.pt is no file", "Mend the path"),
    ("train", "--epochs", "1", "-o", "empty.pt/x.pt"): ("does not exist", "mend `--output`"),
    ("demo", "-o", "empty.pt/x"): ("cannot be made", "Mend `--output`"),
}


@pytest.fixture(scope="module")
def refusals(folder):
    """What every bad request comes to, in one process: torch takes seconds to import."""
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    asked = json.dumps([[str(word) for word in words] for words in BAD])
    done = subprocess.run(
        [sys.executable, "-c", BATCH],
        input=asked,
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    return dict(zip(BAD, map(json.loads, done.stdout.splitlines()), strict=True)), before, after


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(Path(str(word)).name for word in words))
def test_bad_input_is_a_short_message_and_exit_2(refusals, words):
    code, out, err = refusals[0][words]
    lines = [line for line in err.splitlines() if not line.startswith("loss: ")]
    assert code == 2
    assert out == ""
    assert lines[0].startswith("error: ")
    assert len(lines) <= 4
    for part in BAD[words]:
        assert part in err


def test_bad_input_changes_no_file_and_runs_no_code(refusals):
    _, before, after = refusals
    assert after == before
    assert "canary" not in after


def test_two_checkpoints_without_a_flag_at_80_columns(folder):
    done = gapscope("compare", SMALL, LARGE, "-o", "both.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "\x1b" not in done.stdout
    for word in ("small batch 8", "large batch 650", "95 % interval", "±", "Reading", "sharper"):
        assert word in " ".join(done.stdout.split())
    shown = gapscope("show", "both.h5", "--json", cwd=folder)
    rows = {row["path"]: row for row in json.loads(shown.stdout)["rows"]}
    assert rows["eigenvalues/top"]["interval"][0] > 1
    assert rows["eigenvalues/top"]["verdict"] == "higher"


def test_json_of_a_measurement_is_the_contract(folder):
    done = gapscope("eigenvalues", SMALL, "--json", "--referee", "pyhessian", "-o", "j.h5", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found) == {"format", "format_version", "subject", "environment", "results"}
    record = found["results"]["eigenvalues"]
    assert set(record) >= {"status", "message", "matvecs", "seconds", "settings", "quantities"}
    top, referee = record["quantities"]["top"], record["quantities"]["referee"]
    keys = {"value", "numerical_error", "sampling_error", "bound", "contrast", "better", "unit", "dims", "labels"}
    assert set(top) >= keys
    assert referee["value"] == pytest.approx(top["value"], rel=1e-2)


@pytest.mark.parametrize("words", [("show", "small.h5"), ("show", "small.h5", "--json", "-v"), ("--help",)])
def test_a_reader_that_leaves_is_no_failure(folder, words):
    ours, theirs = os.pipe()
    os.close(ours)  # before the first line is written
    try:
        done = gapscope(*words, cwd=folder, stdout=theirs, stderr=subprocess.PIPE, capture_output=False)
    finally:
        os.close(theirs)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("ends", "unbuffered"), [(("stdout",), ""), (("stderr",), ""), (("stdout", "stderr"), ""), (("stdout",), "1")]
)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("gate", "none.h5", "--max", "a/b=1"), 2),
        (("gap", "--nonsense"), 2),
        (("gate", "small.h5", "--max", "eigenvalues/top=1e-9"), 1),
        (("gap", SMALL, "-o", "unread.h5"), 0),
    ],
)
def test_readers_that_leave_change_neither_the_work_nor_its_exit_code(folder, words, code, ends, unbuffered):
    (folder / "unread.h5").unlink(missing_ok=True)
    ours, theirs = os.pipe()
    os.close(ours)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **dict.fromkeys(ends, theirs)}
    try:
        done = gapscope(
            *words, cwd=folder, capture_output=False, env=environment(PYTHONUNBUFFERED=unbuffered), **streams
        )
    finally:
        os.close(theirs)
    assert done.returncode == code
    assert "Traceback" not in (done.stderr or "")
    assert (folder / "unread.h5").exists() == ("unread.h5" in words)


def test_a_full_disk_is_exit_2_though_nobody_reads_the_numbers(folder):
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = gapscope(
            *("gap", SMALL, "-o", "unread.h5"),
            cwd=folder,
            stdout=theirs,
            stderr=subprocess.PIPE,
            capture_output=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)),
        )
    finally:
        os.close(theirs)
    assert done.returncode == 2
    assert "unread.h5 cannot be written: File too large. Nothing was lost" in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_errors_that_do_not_fit_change_no_exit_code(folder):
    for words, code in ((("show", "small.h5"), 0), (("show", "none.h5"), 2), (("gap", SMALL, "-o", "unread.h5"), 0)):
        with open("/dev/full", "w") as full:
            done = gapscope(*words, cwd=folder, stdout=subprocess.PIPE, stderr=full, capture_output=False)
        assert done.returncode == code
        assert bool(done.stdout) == (code == 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_output_that_does_not_fit_is_exit_2(folder):
    with open("/dev/full", "w") as full:
        done = gapscope("show", "small.h5", cwd=folder, stdout=full, stderr=subprocess.PIPE, capture_output=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: The output cannot be written: No space left on device")


def test_a_full_disk_leaves_the_old_report_and_shows_the_numbers(folder):
    before = (folder / "small.h5").read_bytes()
    limit = 4096
    done = gapscope(
        *("gap", SMALL, "-o", "small.h5"),
        cwd=folder,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert done.returncode == 2
    assert "train loss" in done.stdout
    assert "small.h5 cannot be written: File too large. Nothing was lost" in done.stderr
    assert (folder / "small.h5").read_bytes() == before
    assert not list(folder.glob(".*.tmp"))


@pytest.fixture(scope="module")
def slow(folder):
    """A measurement that takes far longer than the test, with an old report in its place."""
    words = ("slow.pt", "-m", "nets.py:Slow", "-d", "ok.npz", "-o", "slow.h5")
    shutil.copy(folder / "drop.pt", folder / "slow.pt")
    done = gapscope("gap", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    return ("eigenvalues", *words, "--k", "3")


def started(folder, process):
    deadline = time.monotonic() + 60
    while not (folder / "started").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted: every file that was there before"), (signal.SIGTERM, 143, "")],
)
def test_a_signal_in_the_middle_leaves_the_old_report(folder, slow, number, code, said):
    before = (folder / "slow.h5").read_bytes()
    (folder / "started").unlink(missing_ok=True)
    with subprocess.Popen(
        [str(SCRIPT), *slow], cwd=folder, env=environment(), stdout=-1, stderr=-1, text=True, start_new_session=True
    ) as process:
        started(folder, process)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert (folder / "slow.h5").read_bytes() == before
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_python_would_drop_still_ends_the_work(folder, slow, number, code):
    words = ("gap", "drop.pt", "-m", "nets.py:Stopped", "-d", "ok.npz", "-o", "stopped.h5")
    done = gapscope(*words, cwd=folder, env=environment(NUMBER=str(int(number))), start_new_session=True)
    assert done.returncode == code
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not (folder / "stopped.h5").exists()


def test_a_terminal_gets_colour_and_a_bar_that_goes_away(folder):
    words = [str(SCRIPT), "sharpness", str(SMALL), "-o", "small.h5"]
    changed = {k: v for k, v in environment(TERM="xterm-256color").items() if k != "NO_COLOR"}
    code, text = on_a_terminal(words, changed, cwd=folder)
    assert code == 0
    assert "\x1b[1m" in text
    assert "passes" in text
    assert text.rindex("\x1b[?25h") < text.rindex("report: small.h5")  # the cursor is back
    assert "\x1b[?25l" not in text[text.rindex("\x1b[?25h") :]


def test_a_latin_terminal_gets_plain_letters(folder):
    odd = environment(PYTHONIOENCODING="ascii")
    done = gapscope("compare", "small.h5", "small.h5", cwd=folder, env=odd)
    assert done.returncode == 0, done.stderr
    assert "+-" in done.stdout
    assert done.stdout.isascii()


def test_ci_gets_no_bar_even_with_forced_colour(folder):
    done = gapscope("gap", SMALL, "-o", "small.h5", cwd=folder, env=environment(CI="1", FORCE_COLOR="1"))
    assert done.returncode == 0
    assert "\r" not in done.stderr
    assert "passes" not in done.stderr
