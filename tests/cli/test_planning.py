import json
import math

import pytest
import torch

from gapscope.cli import planning
from gapscope.measure.analyzers import analyzer_class
from gapscope.report import file
from gapscope.report.file import read_report
from gapscope.results import Status


@pytest.mark.parametrize("command", ["sharpness", "analyze", "eigenvalues", "gap"])
def test_a_dry_run_measures_and_writes_nothing(run, small, tmp_path, monkeypatch, command):
    for name in ("eigenvalues", "gap"):
        monkeypatch.setattr(analyzer_class(name), "__call__", lambda *_: pytest.fail("it was measured"))
    outcome = run(command, small, "--dry-run", "-q")
    assert outcome.code == 0
    assert list(tmp_path.iterdir()) == []
    assert "gap" in outcome.out or command == "eigenvalues"
    assert "would write digits-small-batch.report.h5; nothing was measured" in outcome.out
    assert outcome.err == ""


def test_a_dry_run_as_json(run, small, tmp_path):
    found = json.loads(run("sharpness", small, "--dry-run", "--json", "--time-budget", "1h").out)
    assert list(found["plan"]) == ["eigenvalues", "epsilon-sharpness", "adaptive-sharpness", "gap"]
    assert found["seconds"] == pytest.approx(sum(each["seconds"] for each in found["plan"].values()))
    assert found["bytes"] == max(each["bytes"] for each in found["plan"].values())
    assert found["plan"]["eigenvalues"]["max_matvecs"] == 200
    assert (found["samples"], found["parameters"], found["report"]) == (1300, 4810, "digits-small-batch.report.h5")
    assert found["seconds_per_product"] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_skipped(run, small, monkeypatch):
    monkeypatch.setattr(analyzer_class("eigenvalues"), "passes", lambda *_: {"gradient": 1e12})
    outcome = run("eigenvalues", small, "--dry-run", "--time-budget", "90s")
    assert "skipped" in outcome.out
    assert "eigenvalues would take about " in outcome.out


def test_one_analyzer_that_does_not_fit_is_skipped_with_the_reason(run, small, tmp_path, monkeypatch):
    monkeypatch.setattr(analyzer_class("eigenvalues"), "passes", lambda *_: {"gradient": 1e12})
    outcome = run("sharpness", small, "--time-budget", "10min", "--limit", 64)
    assert outcome.code == 0
    results = read_report(tmp_path / "digits-small-batch.report.h5").results
    assert results["eigenvalues"].status is Status.SKIPPED
    assert "or run `gapscope eigenvalues` alone" in results["eigenvalues"].notes[0]
    assert results["gap"].status is not Status.SKIPPED


def test_a_budget_bounds_the_products_as_a_setting_that_repeats_the_run(run, small, tmp_path, monkeypatch):
    monkeypatch.setattr("gapscope.measure.pace.pace", lambda *_, **__: planning_pace())
    outcome = run("eigenvalues", small, "--time-budget", "200s", "--tolerance", 1e-6, "-o", "timed.h5")
    assert outcome.code == 0
    timed = read_report(tmp_path / "timed.h5").results["eigenvalues"]
    bounded = timed.settings["max_matvecs"]
    assert 12 <= bounded <= 17
    assert timed.status is Status.BUDGET_SPENT
    assert timed.notes[-1] == (
        f"the time budget allowed {bounded} of 200 products; `--max-matvecs {bounded}` repeats this"
    )
    assert timed.quantities["top"].numerical_error is not None
    run("eigenvalues", small, "--max-matvecs", bounded, "--tolerance", 1e-6, "-o", "again.h5")
    again = read_report(tmp_path / "again.h5").results["eigenvalues"]
    assert again.settings == timed.settings
    assert again.quantities["top"].value == timed.quantities["top"].value


def test_a_budget_counts_from_the_start_of_the_command_and_leaves_time_for_the_report(run, small, monkeypatch):
    monkeypatch.setattr("gapscope.measure.pace.pace", lambda *_, **__: planning_pace())
    monkeypatch.setattr(analyzer_class("gap"), "passes", lambda *_: {"gradient": 100.0})  # 50 s
    began = planning.Clock.start

    def earlier(clock):
        began(clock)
        clock.began -= 97  # importing took so long

    assert "skipped" not in run("gap", small, "--dry-run", "--time-budget", "100s").out
    monkeypatch.setattr(planning.Clock, "start", earlier)
    assert "gap would take about 50 s, and " in run("gap", small, "--dry-run", "--time-budget", "100s").out
    assert "skipped" not in run("gap", small, "--dry-run", "--time-budget", "10min").out


def test_timing_takes_a_fifth_of_what_is_left(run, small, monkeypatch):
    seen = []

    def pace(problem, kinds, *, within):
        seen.append(within)
        return planning_pace()

    monkeypatch.setattr("gapscope.measure.pace.pace", pace)
    run("analyze", small, "--dry-run", "--time-budget", "1000s")
    run("analyze", small, "--dry-run")
    run("analyze", small, "--only", "gap", "-q")  # nobody would see it
    run("analyze", small, "--only", "gap")
    assert 150 < seen[0] < 200
    assert seen[1:] == [math.inf, math.inf]


def test_what_is_skipped_is_written_with_what_was_measured(run, small, tmp_path, monkeypatch):
    monkeypatch.setattr("gapscope.measure.pace.pace", lambda *_, **__: planning_pace())
    written = []
    write = file.write
    monkeypatch.setattr(file, "write", lambda report, path: (written.append(list(report.results)), write(report, path)))
    words = ("--only", "gap", "--only", "noise", "--only", "curvature")
    assert run("analyze", small, *words, "--time-budget", "10min").code == 0
    assert [len(names) for names in written] == [1, 3]
    results = read_report(tmp_path / "digits-small-batch.report.h5").results
    assert {name: each.status is Status.SKIPPED for name, each in results.items()} == {
        "gap": False,
        "noise": True,
        "curvature": True,
    }


def planning_pace():
    from gapscope.measure.pace import Pace

    return Pace(gradient=0.5, product=10.0, first=1.0, others={"curvature_along": 20.0, "outcomes": 0.5})


def test_much_memory_is_said_beforehand(run, small, monkeypatch):
    monkeypatch.setattr(planning, "SAID_BYTES", 0)
    assert "memory: about 1 MB above the loaded model and data, at most\n" in run("gap", small).err
    assert "memory" not in run("gap", small, "-q").err


def test_a_path_is_planned_and_refused_where_it_does_not_fit(run, small, large, tmp_path, monkeypatch):
    assert "would write pair.h5; nothing was measured" in run("path", small, large, "--dry-run", "-o", "pair.h5").out
    monkeypatch.setattr(analyzer_class("path"), "passes", lambda *_: {"gradient": 1e12})
    outcome = run("path", small, large, "--time-budget", "1h", "-o", "pair.h5", "-q")
    assert outcome.code == 2
    assert outcome.err.startswith("error: path would take about ")
    assert "Expected work that ends within it. Raise `--time-budget`, or ask for less, such as fewer" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_a_comparison_plans_every_checkpoint_and_both_together(run, small, large, tmp_path, monkeypatch):
    for name in ("eigenvalues", "gap", "path"):
        monkeypatch.setattr(analyzer_class(name), "__call__", lambda *_: pytest.fail("it was measured"))
    out = run("compare", small, large, "--dry-run").out
    assert [line for line in out.splitlines() if line in (str(small), str(large), "together")] == [
        str(small),
        str(large),
        "together",
    ]
    assert "would write digits-small-batch.report.h5" in out
    assert out.rstrip().endswith("in all; nothing was measured")
    found = json.loads(run("compare", small, large, "--dry-run", "--json", "--pair", "none").out)
    assert list(found["plans"]) == [str(small), str(large)]
    assert found["seconds"] == pytest.approx(sum(each["seconds"] for each in found["plans"].values()))
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_of_reports_has_nothing_to_measure(run, small, large):
    run("gap", small, "-o", "a.h5")
    run("gap", large, "-o", "b.h5")
    assert run("compare", "a.h5", "b.h5", "--dry-run").out == "nothing is left to measure\n"


def test_a_dry_run_of_a_run_counts_what_has_no_report(run, small, tmp_path):
    state = torch.load(small, weights_only=True)
    (tmp_path / "r").mkdir()
    for step in (1, 2, 3):
        torch.save({**state, "step": step}, tmp_path / "r" / f"{step}.pt")
    words = ["track", "r", "--only", "gap"]
    assert run(*words, "--dry-run").out.startswith("r/1.pt, the first of 3 without a report\n")
    assert not (tmp_path / "r.track").exists()
    run(*words)
    (tmp_path / "r.track" / "2.report.h5").unlink()
    found = json.loads(run(*words, "--dry-run", "--json").out)
    assert list(found["plans"]) == ["r/2.pt, the first of 1 without a report"]
    assert found["times"] == 1
    assert found["seconds"] > found["seconds_of_loading"] > 0
    run(*words)
    assert run(*words, "--dry-run").out == "nothing is left to measure\n"
