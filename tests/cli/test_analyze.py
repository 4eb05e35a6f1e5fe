import json
import re

import pytest
from torch import nn

import gapscope
from gapscope.cli import analyze
from gapscope.errors import ProblemError, RankError
from gapscope.measure.analyzers import analyzer_class, names
from gapscope.report.file import read_report
from gapscope.results import Status

QUICK = ("--only", "gap", "--only", "eigenvalues")


def test_it_runs_what_tells_most_first_and_writes_one_report(run, small, tmp_path):
    outcome = run("analyze", small, *QUICK, "--only", "near-rank")
    assert outcome.code == 0
    report = read_report(tmp_path / "digits-small-batch.report.h5")
    assert list(report.results) == ["gap", "eigenvalues", "near-rank"]
    assert outcome.err.startswith("plan: about ")
    assert all(f"{name} " in outcome.err for name in ("gap", "eigenvalues", "near-rank"))
    for name in report.results:
        assert f"\n{name}\n" in outcome.out


def test_every_analyzer_of_one_checkpoint_is_in_the_order(run):
    single = {name for name in names() if analyzer_class(name).arity == 1}
    assert set(analyze.ORDER) == single
    assert analyze.chosen(analyze.Own()) == list(analyze.ORDER)
    assert all(name in run("analyze", "--help").out for name in analyze.ORDER)


def test_skipped_analyzers_leave_the_rest():
    left = analyze.chosen(analyze.Own(skip=("gap", "trace")))
    assert "gap" not in left
    assert "trace" not in left
    assert len(left) == len(analyze.ORDER) - 2


@pytest.fixture
def endless(monkeypatch):
    """Make eigenvalues expect to take for ever."""
    monkeypatch.setattr(analyzer_class("eigenvalues"), "passes", lambda *_: {"gradient": 1e12})


@pytest.mark.usefixtures("endless")
def test_a_time_budget_skips_what_does_not_fit_and_says_so(run, small, tmp_path):
    outcome = run("analyze", small, *QUICK, "--time-budget", "5min")
    assert outcome.code == 0
    assert ", of which 5 min may be spent: gap " in outcome.err
    assert "eigenvalues skipped" in outcome.err
    record = read_report(tmp_path / "digits-small-batch.report.h5").results["eigenvalues"]
    assert record.status is Status.SKIPPED
    assert not record.quantities
    assert re.match(
        r"would take about [\d.e+]+ h, and 5 min were left: raise `--time-budget`, or run `gapscope eigenvalues` alone",
        record.notes[0],
    )
    assert "not measured, for the reason noted" in outcome.out


@pytest.mark.usefixtures("endless")
def test_a_skipped_analyzer_does_not_replace_what_was_measured(run, small, tmp_path):
    run("eigenvalues", small, "-q")
    outcome = run("analyze", small, *QUICK, "--time-budget", "300s", "-q")
    assert "kept the earlier eigenvalues: would take about" in " ".join(outcome.out.split())
    assert read_report(tmp_path / "digits-small-batch.report.h5").results["eigenvalues"].status is Status.CONVERGED


def test_one_that_cannot_be_measured_leaves_the_others(run, small, tmp_path, monkeypatch):
    def fails(self, context):
        raise ProblemError("No rank today. Expected one. Come back.")

    monkeypatch.setattr(analyzer_class("near-rank"), "__call__", fails)
    outcome = run("analyze", small, *QUICK, "--only", "near-rank", "-q")
    assert outcome.code == 2
    assert outcome.err == "error: near-rank could not be measured: No rank today. Expected one. Come back.\n"
    results = read_report(tmp_path / "digits-small-batch.report.h5").results
    assert results["near-rank"].status is Status.SKIPPED
    assert results["eigenvalues"].status is Status.CONVERGED


def test_a_rank_that_is_gone_ends_the_other_analyzers_too(run, small, tmp_path, monkeypatch):
    def gone(self, context):
        raise RankError("One is gone. Expected all of them. Look there.")

    monkeypatch.setattr(analyzer_class("eigenvalues"), "__call__", gone)
    outcome = run("analyze", small, *QUICK, "--only", "near-rank", "-q")
    assert (outcome.code, outcome.err) == (2, "error: One is gone. Expected all of them. Look there.\n")
    assert list(read_report(tmp_path / "digits-small-batch.report.h5").results) == ["gap"]


def test_an_interrupt_keeps_what_was_measured(run, small, tmp_path, monkeypatch):
    def stop(self, context):
        raise KeyboardInterrupt

    monkeypatch.setattr(analyzer_class("eigenvalues"), "__call__", stop)
    outcome = run("analyze", small, *QUICK, "-q")
    assert outcome.code == 130
    assert "gap is in digits-small-batch.report.h5" in outcome.err
    assert list(read_report(tmp_path / "digits-small-batch.report.h5").results) == ["gap"]


def test_an_interrupt_names_nothing_that_is_not_written(run, small, tmp_path, monkeypatch):
    def stop(self, context):
        raise KeyboardInterrupt

    monkeypatch.setattr(analyzer_class("eigenvalues"), "__call__", stop)
    monkeypatch.setattr(analyzer_class("gap"), "passes", lambda *_: {"gradient": 1e12})
    outcome = run("analyze", small, *QUICK, "-q", "--time-budget", "10min")
    assert outcome.code == 130
    assert " in digits-small-batch.report.h5" not in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_what_one_analyzer_cannot_do_keeps_no_other_from_being_planned(run, tmp_path):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))\n"
    )
    model = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))
    gapscope.save_checkpoint("a.pt", model, factory="net.py:net", data="digits")
    words = ("--only", "noise", "--only", "gap", "--batchnorm", "batch", "--batch-size", "650", "-m", "net.py:net")
    for how in ((), ("-q",)):
        outcome = run("analyze", "a.pt", *words, *how)
        assert outcome.code == 2
        assert "error: noise could not be measured: " in outcome.err
        results = read_report(tmp_path / "a.report.h5").results
        assert results["gap"].status is not Status.SKIPPED


def test_a_plan_in_toml_says_the_same_as_the_flags(run, small, tmp_path):
    flags = json.loads(run("analyze", small, *QUICK, "--json", "-q", "-o", "flags.h5").out)
    (tmp_path / "gapscope.toml").write_text(
        '[analyze]\nonly = ["gap", "eigenvalues"]\n[measure.eigenvalues]\nk = 2\ntolerance = 0.01'
    )
    plan = json.loads(run("analyze", small, "--json", "-q", "-o", "plan.h5").out)
    assert list(plan["results"]) == list(flags["results"])
    assert (
        plan["results"]["eigenvalues"]["settings"] | {"k": 1, "tolerance": 1e-3}
        == (flags["results"]["eigenvalues"]["settings"])
    )
    single = json.loads(run("eigenvalues", small, "--k", 2, "--tolerance", 0.01, "--json", "-q", "-o", "s.h5").out)
    assert single["results"]["eigenvalues"]["quantities"] == plan["results"]["eigenvalues"]["quantities"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--only", "gaps"), "`--only gaps` names no analyzer of one checkpoint. Did you mean `gap`? Expected some of"),
        (
            ("--skip", "path"),
            "`--skip path` names no analyzer of one checkpoint. It measures several: `gapscope path A B`.",
        ),
        (("--only", "gap,noise"), "Repeat the option: `--only A --only B`."),
        (("--only", "gap", "--skip", "gap"), "`--only` and `--skip` leave no analyzer. Expected one or more"),
        (("--time-budget", "soon"), "The time budget is `soon`. Expected a time, like 90s, 10min or 2h."),
        (("--time-budget", "0s"), "The time budget is `0s`."),
    ],
)
def test_nonsense_is_one_line_and_exit_2(run, small, words, message):
    outcome = run("analyze", small, *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
