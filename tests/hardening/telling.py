"""A folder, a home, a user and a host whose names tell, and every kind of file that gapscope writes from there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parents[2] / "fixtures"
FOLDER, HOME, USER, HOST = "merger-with-Köhler", "home-of-quibble", "quibblesworth", "host-zanzibar-7"

MODEL = """
import torch.nn.functional as F
from torch import nn
def build(vocab="", table=None):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
def ce(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")
"""

# one process for all: importing torch takes longer than what is asked of it
RUN = """
import contextlib, io, json, os, shutil, sys
from gapscope.__main__ import main
from gapscope.measure import resume

def keeping(forget):
    # a copy of the file of unfinished work before it is removed: what a kill would leave behind
    def kept(self):
        if self.path is not None and self.path.is_file():
            shutil.copy(self.path, f"{self.path}.kept")
        forget(self)
    return kept

resume.SAVE_SECONDS, resume.Parts.forget = 0.0, keeping(resume.Parts.forget)
for words, out in json.loads(sys.argv[1]):
    said, complaint = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
        try:
            main(words)
        except SystemExit as left:
            code = left.code
    if code not in (0, 1, 3):
        sys.exit(f"{words}: {code} {complaint.getvalue()}")
    if out:
        open(out, "w", encoding="utf-8").write(said.getvalue())
"""


def telling_folder(root: Path) -> Path:
    """Return a folder with all that was written, of inputs elsewhere that are named by absolute paths."""
    import json

    secret, out = root / FOLDER, root / "out"
    for place in (secret, out, root / HOME):
        place.mkdir()
    for size in ("small", "large"):
        shutil.copy(FIXTURES / f"digits-{size}-batch.pt", secret / f"{size}.pt")
    digits = np.load(Path(__file__).parents[2] / "gapscope/measure/loading/digits.npz")
    x, y = (digits[name] for name in digits.files[:2])
    np.savez(secret / "data.npz", x=x[:200].astype(np.float32).reshape(len(x[:200]), -1), y=y[:200].astype(np.int64))
    (secret / "net.py").write_text(MODEL)
    names = ("small.pt", "large.pt", "data.npz", "net.py:build", "net.py:ce")
    small, large, data, net, ce = (str(secret / name) for name in names)
    record_folders(secret / "recorded.pt")
    quick = ["--only", "gap", "--only", "eigenvalues", "--only", "near-rank", "-q"]
    own = ["-m", net, "-a", f"vocab={secret / 'v.json'}", "-a", f'table={{a = ["{secret}/x"]}}', "--loss", ce]
    train = ["train", *own, "-d", data, "--epochs", "2", "-q", "--log-every", "2"]
    gate = ["gate", "small.h5", "--max", "eigenvalues/top=1"]
    work = [
        ([*train, "-o", "trained.pt"], None),
        (["analyze", str(out / "trained.pt"), *own, "-d", data, *quick, "-o", "trained.h5"], None),
        (["analyze", small, *quick, "-o", "small.h5"], None),
        (["show", "small.h5", "--json"], "small.json"),
        (["show", "trained.h5", "-v"], "trained.txt"),
        *((["show", "trained.h5", flag, f"trained.{kind}"], None) for flag, kind in KINDS),
        (["compare", small, large, "--limit", "100", "--pair", "path", "-q", "-o", "pair.h5"], "pair.txt"),
        (["track", small, "--limit", "60", "-q", "-o", "tracked"], "tracked.txt"),
        *(([*gate, "--format", kind], f"gate-{kind}.{end}") for kind, end in GATES),
        (["baseline", "accept", "small.h5", "--reason", "first"], "accepted.txt"),
        (["inspect", small, "--json"], "inspected.json"),
        (["convert", small, "small.safetensors"], None),
        (["gap", str(secret / "recorded.pt"), "-q", "-o", "recorded.h5"], None),
        (["compare", "recorded.h5", "small.h5", "--pair", "none", "-q", "-o", "recorded-pair.h5"], "recorded-pair.txt"),
        (["show", "recorded.h5", "--json"], "recorded.json"),
    ]  # fmt: skip
    around = {"HOME": str(root / HOME), "USER": USER, "LOGNAME": USER, "USERNAME": USER, "HOSTNAME": HOST}
    python = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(work)],
        cwd=out,
        env=os.environ | around | {"PYTHONPATH": python, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out


def record_folders(path: Path) -> None:
    """Write a checkpoint whose training recorded where it was."""
    import torch

    content = torch.load(FIXTURES / "digits-small-batch.pt", weights_only=True)
    folder = path.parent
    more = {"log_dir": f"{folder}/run1", "command": f'train.py --out="{folder}/a b" --data {folder}/x.npz'}
    content["gapscope"]["training"] = {**content["gapscope"]["training"], **more}
    torch.save(content, path)


KINDS = (("--html", "html"), ("--plot", "svg"), ("--plot", "png"), ("--plot", "pdf"), ("--csv", "csv"))
GATES = (("json", "json"), ("markdown", "md"), ("junit", "xml"), ("github", "txt"))
