import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gapscope.cli import resuming
from gapscope.measure import resume
from tests.stored import stored
from tests.test_several_processes import torchrun

# the console script with a file from the first part on, killed after so many records
KILLED = """
import os, signal, sys
from gapscope.measure import resume
resume.SAVE_SECONDS, left, append = 0.0, [int(sys.argv[1])], resume.Parts._append
def counted(self, record):
    append(self, record)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
resume.Parts._append = counted
from gapscope.__main__ import main
main(sys.argv[2:])
"""

# of two processes: the first kills the other, torchrun and itself
TWO = KILLED.replace(
    "        os.kill(os.getpid(), signal.SIGKILL)",
    "        for pid in (int(open('other').read()), os.getppid(), os.getpid()): os.kill(pid, signal.SIGKILL)",
).replace(
    "from gapscope.__main__",
    "if os.environ['RANK'] == '1': open('other', 'w').write(str(os.getpid()))\nfrom gapscope.__main__",
)


def script(after, *words):
    command = [sys.executable, "-c", KILLED, str(after), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_work_that_was_killed_again_and_again_comes_to_the_same_bytes(run, small, tmp_path):
    wanted = ("eigenvalues", "epsilon-sharpness", "curvature")
    every = ("analyze", small, "--limit", 100, "--threads", 1, *(word for name in wanted for word in ("--only", name)))
    whole = run(*every, "-q", "-o", "whole.h5")
    assert whole.code == 0
    for after in (1, 50):
        killed = script(after, *every, "-q", "-o", "cut.h5", "--resume")
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert (tmp_path / "cut.h5.state").exists()
    outcome = run(*every, "-o", "cut.h5", "--resume")
    assert outcome.code == 0
    assert "finished parts are in cut.h5.state" in outcome.err
    assert stored(tmp_path / "cut.h5") == stored(tmp_path / "whole.h5")
    assert not (tmp_path / "cut.h5.state").exists()


def test_two_processes_that_were_killed_go_on_to_the_same_bytes(small, tmp_path):
    (tmp_path / "two.py").write_text(TWO)
    words = ("eigenvalues", small, "--limit", 100, "--threads", 1, "-o")
    whole = torchrun(2, *words, "whole.h5", "-q", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    killed = torchrun(2, Path("two.py"), 9, *words, "cut.h5", "-q", cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "cut.h5").exists()
    resumed = torchrun(2, *words, "cut.h5", "--resume", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed: 8 finished parts are in cut.h5.state" in resumed.stderr
    assert stored(tmp_path / "cut.h5") == stored(tmp_path / "whole.h5")
    assert list(tmp_path.glob("*.state")) == []


def test_other_work_in_its_place_is_left_aside(run, small, tmp_path):
    killed = script(9, "trace", small, "-q", "--threads", 1, "-o", "cut.h5")
    assert killed.returncode == -signal.SIGKILL
    outcome = run("trace", small, "--limit", 100, "--threads", 1, "-o", "cut.h5", "--resume", "--dtype", "float64")
    assert (
        "cut.h5.state was left aside: it is of other work (data_fingerprint, dtype, limit, limit_seed, micro_batch, "
        "samples, " in outcome.err
    )


@pytest.mark.parametrize("options", [(), ("-q",)])
def test_an_interrupt_says_how_to_go_on(run, small, tmp_path, monkeypatch, options):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    append, count = resume.Parts._append, []

    def counted(self, record):
        append(self, record)
        count.append(record)
        if len(count) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(resume.Parts, "_append", counted)
    outcome = run("trace", small, *options)
    assert outcome.code == 130
    said = "finished parts are in digits-small-batch.report.h5.state: the same command with `--resume` goes on"
    assert said in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["digits-small-batch.report.h5.state"]
    again = run("trace", small, *options)
    named = "digits-small-batch.report.h5.state holds work that was interrupted: with `--resume` this command goes on"
    assert (named in again.err) == (not options)


def test_nothing_to_go_on_from_is_said(run, small, large):
    said = "There is no digits-small-batch.report.h5.state to go on from: everything is measured anew.\n"
    assert said in run("gap", small, "--resume").err
    assert run("gap", small, "--resume", "-q").err == ""
    together = run("path", small, large, "--points", 5, "--resume", "-o", "pair.h5")
    assert "There is no pair.h5.state to go on from: everything is measured anew.\n" in together.err


def test_sigterm_says_it_too(capsys):
    with pytest.raises(SystemExit), resuming.telling(lambda: "", lambda: "how to go on"):
        raise SystemExit(128 + signal.SIGTERM)
    assert capsys.readouterr().err == "\nhow to go on"
