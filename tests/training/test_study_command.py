"""`gapscope study`: what it refuses, what it says on the way, and what is left when it is interrupted."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

from gapscope.__main__ import main
from gapscope.cli import study
from gapscope.report.file import read_report
from tests.pseudo_terminal import on_a_terminal

DEADLINE = 120.0
NAME = study.names()[0]


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run `gapscope study` in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as left:
            main(["study", *words])
        captured = capsys.readouterr()
        return Said(left.value.code, captured.out, captured.err)

    return run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((NAME[:-1],), f"There is no study `{NAME[:-1]}`. Did you mean `{NAME}`? Expected one of "),
        (
            (NAME, "--quick", "--plan", "smoke"),
            "`--quick` stands beside `--plan smoke`. Expected one of them.",
        ),
        (
            (NAME,),
            "This plan is for data of your own, and names none. Expected `--data`. Name them, or ",
        ),
        (
            (NAME, "--plan", "my.toml"),
            "my.toml cannot be read: No such file or directory. Expected a plan. Mend ",
        ),
        ((NAME, "--plan", "smoke", "--set", "sede=1"), "A plan of this study has no `sede`. Did you mean `seeds`?"),
        ((NAME, "--plan", "smoke", "--set", "seeds"), "`--set seeds` is no argument. Expected `--set NAME=VALUE`"),
        ((NAME, "--plan", "smoke", "--seeds", "0"), "There are 0 seeds. Expected 1 or more. Mend `--seeds`."),
        ((NAME, "--plan", "smoke", "--jobs", "0"), "There are 0 processes. Expected 1 or more. Mend `--jobs`."),
        ((NAME, "--plan", "smoke", "--device", "gpu"), "The device is `gpu`. Expected auto, cpu, cuda, cuda:N or mps."),
        (
            (NAME, "--plan", "smoke", "-o", "file/x"),
            "The folder file/x cannot be made: Not a directory. Expected ",
        ),
        (
            (NAME, "--plan", "smoke", "-o", "file"),
            "The folder file cannot be made: File exists. Expected a folder.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_before_any_work(run, tmp_path, words, said):
    (tmp_path / "file").touch()
    outcome = run(*words)
    assert outcome.code == 2
    assert said in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_refused(run, tmp_path):
    (tmp_path / "mine").mkdir(mode=0o500)
    assert "cannot be written" in run(NAME, "--plan", "smoke", "-o", "mine").err


def test_the_help_names_the_studies_and_every_option(run):
    outcome = run("--help")
    assert outcome.code == 0
    words = " ".join(outcome.out.split())
    for word in (*study.names(), "--quick", "--plan", "--set", "--seeds", "--jobs", "--device", "--output"):
        assert word in words


def changes(*words, **options):
    return study._changes(study.StudyOptions(set=words, **options))


def test_what_the_user_says_stands_over_the_plan():
    assert changes() == {}
    given = changes("lr=0.5", 'batch="10 %"', "rates=[1, 2]", data="x.npz", seeds=3)
    assert given == {"lr": 0.5, "batch": "10 %", "rates": [1, 2], "data": "x.npz", "seeds": 3}
    assert changes(model="c1") == {"model": "c1", "model_args": {}}
    assert changes(model_arg=("size=8",)) == {"model_args": {"size": 8}}


TELLING = """
import sys
from gapscope.cli import study
study.SELDOM = 0.0 if "often" in sys.argv else study.SELDOM
with study._teller(quiet="quiet" in sys.argv) as tell:
    for said in ("train: 0 of 9, time left unknown", "train: 1 of 9, 1 s, about 8 s left", "train: 9 of 9, 9 s"):
        tell(said)
        tell("long " * 60 + " left")
"""


@pytest.mark.parametrize(("how", "lines"), [("", 2), ("often", 6), ("quiet", 0)])
def test_a_pipe_gets_a_line_now_and_then(how, lines):
    done = subprocess.run(
        [sys.executable, "-c", TELLING, how], stderr=subprocess.PIPE, text=True, check=True, timeout=DEADLINE
    )
    assert len(done.stderr.splitlines()) == lines
    assert ("train: 9 of 9, 9 s" in done.stderr) == bool(lines)


def telling_on_a_terminal(**environment):
    """Return what the lines above write on standard error where it is a terminal."""
    known = {key: value for key, value in os.environ.items() if key != "CI"} | {"TERM": "xterm"} | environment
    code, drawn = on_a_terminal([sys.executable, "-c", TELLING], known, streams=["stderr"])
    assert code == 0
    return drawn


def test_a_terminal_gets_one_line_that_moves_and_goes_away():
    drawn = telling_on_a_terminal()
    kept = [line for line in drawn.split("\n") if "train: 9 of 9, 9 s" in line]
    assert len(kept) == 1
    assert "\x1b[2K" in drawn  # a line was taken away
    assert "long long" not in drawn.rpartition("\x1b[2K")[2]
    assert "\x1b" not in telling_on_a_terminal(CI="1")


def children(process):
    return [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true):
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


ENDLESS = ("--plan", "smoke", "--set", "until_loss=1e-9", "--set", "max_epochs=1000000", "-o", "out")


@pytest.mark.skipif("keskar" not in study.names(), reason="the study that runs is not there")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_the_one_that_is_ended(tmp_path, how):
    words = [sys.executable, "-m", "gapscope", "study", "keskar", *ENDLESS, "--jobs", "2", "--device", "cpu"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        wait_until(lambda: len(children(process.pid)) > 2 or process.poll() is not None)
        started = children(process.pid)
        assert len(started) > 2, process.communicate()  # two that work, and one that minds shared memory
        os.killpg(process.pid, how) if how == signal.SIGINT else os.kill(process.pid, how)
        _, err = process.communicate(timeout=DEADLINE)
    wait_until(lambda: not any(map(is_alive, started)))
    assert process.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGKILL: -9}[how]
    assert "Traceback" not in err or how == signal.SIGKILL  # which may come while a process is being started
    assert ("finished runs are kept in out: the same command goes on from there" in err) == (how != signal.SIGKILL)


@pytest.mark.skipif("keskar" not in study.names(), reason="the study that runs is not there")
def test_a_study_ends_in_a_report_a_page_and_one_json_text(run, tmp_path):
    words = ("keskar", "--plan", "smoke", "--jobs", "1", "--device", "cpu", "-o", "out")
    first = run(*words)
    assert first.code == 0, first.err
    assert "page: out/study.html" in first.out
    assert "report: out/study.h5" in first.out
    assert "train small batches: " in first.err
    again = run(*words, "--json", "-q")
    assert again.err == ""
    found = json.loads(again.out)
    assert found["format"] == "gapscope-study"
    assert found["lead"] in " ".join(first.out.split())
    report = read_report(tmp_path / "out" / "study.h5")
    assert list(report.results) == list(found["results"])
    (tmp_path / "out" / "study.html").write_text("mine")
    refused = run(*words, "-q")
    assert refused.code == 2
    assert "was not written by" in refused.err
    assert "Claims" in refused.out  # hours of work do not go unseen
    (tmp_path / "out" / "study.html").unlink()
    (tmp_path / "out" / "study.h5").unlink()
    (tmp_path / "out" / "study.h5").mkdir()
    assert "study.h5 is a folder. Expected the name of a file." in run(*words, "-q").err


def test_the_built_in_plans_are_printed_to_copy(run, tmp_path):
    outcome = run("keskar", "--show-plan")
    assert outcome.code == 0
    assert set(tomllib.loads(outcome.out)) == {"full", "quick", "smoke"}
    assert list(tmp_path.iterdir()) == []
