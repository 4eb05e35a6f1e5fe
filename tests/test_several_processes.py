"""Several processes measure what one does, to rounding; one that fails ends all of them with one error."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError, RankError, UsageError
from gapscope.measure.distributed import ALONE, Ranks, _portable, as_ranks, local_device, ranks, waiting_time
from gapscope.report.file import read_report

ROOT = Path(__file__).parents[1]
SMALL, LARGE = (ROOT / "fixtures" / f"digits-{size}-batch.pt" for size in ("small", "large"))
NET = """
import os, signal, time, traceback
from torch import nn

calls = 0


class Net(nn.Module):
    def __init__(self, fails=""):
        super().__init__()
        self.fails, self.last = fails, nn.Linear(64, 10)

    def forward(self, x):
        global calls
        calls += 1
        if os.environ.get("RANK") == "1" and calls == 5:
            if self.fails == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fails == "raises":
                raise ValueError("it is the second's")
            if self.fails == "hangs":
                time.sleep(1000)
        if os.environ.get("RANK") == "1" and self.fails.endswith(".py"):  # hangs when called from there
            if any(frame.f_code.co_filename.endswith(self.fails) for frame, _ in traceback.walk_stack(None)):
                time.sleep(1000)
        return self.last(x)


def data():
    import torch
    rng = torch.Generator().manual_seed(int(os.environ["RANK"]))
    return torch.randn(20, 64, generator=rng), torch.arange(20) % 10
"""


def torchrun(count, *words, cwd, **environment):
    """Run `gapscope`, or a file, in several processes."""
    what = words if str(words[0]).endswith(".py") else ("-m", "gapscope", *words)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [*command, *map(str, what)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )


def errors(done):
    """Return the lines of gapscope's own; what torchrun adds starts with the time or is a traceback."""
    return [line for line in done.stderr.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("distributed")
    (found / "net.py").write_text(NET)
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 10)
    torch.save({f"last.{name}": p.detach() for name, p in layer.named_parameters()}, found / "net.pt")
    return found


@pytest.fixture(scope="module")
def found(folder):
    done = torchrun(3, ROOT / "tests" / "rank_work.py", folder / "found.json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def test_three_processes_find_what_one_does(found):
    """Shares of 24, 24 and 22 samples, of 1, 1 and 0, and of 2, 1 and 1 micro-batches with BatchNorm's own statistics.

    Iterations amplify rounding: up to 4e-11 of the largest number of a quantity was seen.
    """
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    assert {"gap", "noise", "near-rank of 2 samples", "re-estimated", "path", "plane"} <= set(numbers)
    assert {name: value for name, value in numbers.items() if not value < math.sqrt(np.finfo(float).eps)} == {}


def test_every_process_has_the_same_bits(found):
    assert found["one digest"]
    assert found["ranks"] == [0, 1, 2]


def test_a_process_without_a_part_sums_on_the_kind_of_device_where_the_others_have_theirs(found):
    assert found["elsewhere"] == [["cpu", [0.0, 1.0, 2.0]]] * 3


@pytest.mark.skipif(sys.platform != "linux", reason="threads are told by /proc")
def test_the_threads_of_the_group_end_with_it(found):
    assert found["threads left"] == []


def test_the_first_failure_is_raised_in_every_process_and_the_work_goes_on(found):
    assert found["said"] == [["ProblemError: in the second"]] * 3
    assert found["first"] == 0
    assert found["came apart"].startswith("The ranks have come apart: they sum vectors of 2 and 4 numbers. Expected")


def test_two_processes_write_the_report_that_one_does(folder, run):
    one, two = folder / "one.h5", folder / "two.h5"
    words = ("analyze", SMALL, "--only", "gap", "--only", "eigenvalues", "--limit", "101", "-q", "--dtype", "float64")
    assert run(*words, "-o", one).code == 0
    done = torchrun(2, *words, "-o", two, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("report: ") == 1
    assert done.stderr.splitlines() == []
    a, b = read_report(one), read_report(two)
    assert (a.identity, a.conditions) == (b.identity, b.conditions)
    assert (a.environment["world_size"], b.environment["world_size"]) == (1, 2)
    for name, record in a.results.items():
        assert record.settings == b.results[name].settings
        headline = next(iter(record.quantities))
        assert np.allclose(record.quantities[headline].value, b.results[name].quantities[headline].value, rtol=1e-8)


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        ("killed", r"error: (Rank 0 waited for the others, and one of them ended without a word|This rank was told)"),
        ("raises", r"error: Unexpected ValueError: it is the second's"),
        ("hangs", r"error: Rank 0 waited for the others, and one of them did not come within 4 s. Expected all 2"),
    ],
)
def test_one_that_fails_ends_all_with_one_error_and_the_old_report(folder, run, monkeypatch, fails, said):
    monkeypatch.chdir(folder)
    report = folder / f"{fails}.h5"
    shutil.copy(folder / "net.pt", folder / f"{fails}.pt")
    words = ("gap", f"{fails}.pt", "-m", "net.py:Net", "-a", f"fails='{fails}'", "-d", "digits", "-q", "-o", report)
    assert run(*words).code == 0  # alone nothing fails
    before = report.read_bytes()
    done = torchrun(2, *words, cwd=folder, GAPSCOPE_RANK_TIMEOUT="4" if fails == "hangs" else "100")
    assert done.returncode != 0
    assert len(errors(done)) == 1, done.stderr
    assert re.match(said, errors(done)[0])
    assert report.read_bytes() == before
    assert not list(folder.glob(".*.tmp"))


@pytest.mark.parametrize("command", ["analyze", "track"])
def test_one_that_hangs_in_an_analyzer_ends_all_with_one_error(folder, command):
    """An analyzer that cannot measure leaves the others to do so; a rank that is gone does not."""
    words = (command, "net.pt", "-m", "net.py:Net", "-a", "fails='gap.py'", "-d", "digits", "--only", "gap", "-q")
    done = torchrun(2, *words, "-o", f"hangs.{command}", cwd=folder, GAPSCOPE_RANK_TIMEOUT="4")
    assert done.returncode != 0
    assert len(errors(done)) == 1, done.stderr
    assert re.match(r"error: Rank 0 waited for the others, and one of them did not come within 4 s\.", errors(done)[0])
    assert not (folder / f"hangs.{command}").exists()


def test_processes_that_read_other_data_are_refused(folder):
    done = torchrun(2, "gap", "net.pt", "-m", "net.py:Net", "-d", "net.py:data", "-q", cwd=folder)
    assert done.returncode != 0
    assert errors(done) == [
        "error: Rank 1 has other data than rank 0. Expected the same in each. Give every rank the same files, and a "
        "seed of its own to whatever draws random numbers in a factory."
    ]


def test_processes_take_checkpoints_where_there_are_more_of_them(folder, run):
    run_folder = folder / "run"
    run_folder.mkdir()
    state = torch.load(folder / "net.pt", weights_only=True)
    for step in range(3):
        torch.save({"model": {k: v * (step + 1) for k, v in state.items()}, "step": step}, run_folder / f"{step}.pt")
    (run_folder / "3.pt").write_bytes(b"no checkpoint")
    words = ("track", run_folder, "--only", "gap", "-m", "net.py:Net", "-d", "digits")
    done = torchrun(2, *words, "-o", folder / "two.track", cwd=folder)
    assert "3 checkpoints by steps" in done.stderr
    assert done.stdout.count("train loss") >= 1, done.stderr
    assert len(errors(done)) == 1
    assert len(list((folder / "two.track").iterdir())) == 3
    worlds = {read_report(path).environment["world_size"] for path in (folder / "two.track").iterdir()}
    assert worlds == {1}


def test_one_process_by_itself_is_alone():
    vector = torch.arange(3.0)
    assert ranks() is ALONE
    assert ALONE.total(vector) is vector
    assert ALONE.from_first("here") == "here"
    assert ALONE.gathered("here") == ["here"]
    assert ALONE.even(10, 4) == 4
    assert local_device("auto") == "auto"


def test_one_that_waits_hears_that_another_has_failed():
    store = torch.distributed.HashStore()
    first, second = Ranks(0, 2, store), Ranks(1, 2, store)
    assert (second.speaks(), first.speaks()) == (True, False)
    with pytest.raises(RankError, match=r"Another rank has failed. Expected all of them to the end. See what it says."):
        first.wait("here")
    second.spoken()
    first.hear()


def test_an_error_that_cannot_be_sent_is_told_in_words():
    class OwnError(Exception):
        pass

    assert repr(_portable(OwnError("said"))) == repr(RuntimeError("OwnError: said"))
    error = LoadError("as it is")
    assert _portable(error) is error


@pytest.mark.parametrize("size", [1, 2, 7, 8])
def test_shares_are_the_whole_and_differ_by_one_at_most(size):
    shares = [list(range(size))[Ranks(rank, 3).share()] for rank in range(3)]
    assert sorted(one for share in shares for one in share) == list(range(size))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(("samples", "most"), [(1, 4), (7, 4), (100, 64), (1300, 64), (4096, 512)])
def test_micro_batches_are_dealt_evenly(samples, most):
    size = Ranks(0, 3).even(samples, most)
    shares = [len(range(0, samples, size)[Ranks(rank, 3).share()]) for rank in range(3)]
    assert 1 <= size <= most
    assert max(shares) == math.ceil(samples / (3 * most))  # as few in a row as there can be


def test_nonsense_of_the_environment_is_refused(monkeypatch):
    monkeypatch.setenv("GAPSCOPE_RANK_TIMEOUT", "soon")
    with pytest.raises(UsageError, match=r"GAPSCOPE_RANK_TIMEOUT is `soon`. Expected the seconds that ranks wait"):
        waiting_time()


def test_every_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with as_ranks(Ranks(5, 6)):
        monkeypatch.setenv("LOCAL_RANK", "1")  # of the second machine
        assert (local_device("auto"), local_device("cuda"), local_device("cpu")) == ("cuda:1", "cuda:1", "cpu")
        with pytest.raises(UsageError, match=r"`--device cuda:1` names one GPU for 3 ranks. Expected one for each."):
            local_device("cuda:1")
        with as_ranks(ALONE):  # as `track` and `compare` deal out checkpoints
            assert (local_device("auto"), local_device("cuda"), local_device("cpu")) == ("cuda:1", "cuda:1", "cpu")
        monkeypatch.setenv("LOCAL_RANK", "2")
        with pytest.raises(UsageError, match=r"This machine has 2 GPUs for 3 ranks. Expected one for each."):
            local_device("auto")
