"""Processes that work on the same files at the same time."""

import os
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

from gapscope.cli.measuring import Job
from gapscope.measure import interface, resume
from gapscope.measure.resume import Parts
from gapscope.report.file import read, read_report
from tests.report.example_reports import report

WRITERS, TURNS = 3, 5
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_writers_of_one_report_lose_nothing(tmp_path):
    some = report()
    record = some.results["eigenvalues"]
    record = replace(record, quantities={"top": replace(record.quantities["top"], chunks=None)})
    session = SimpleNamespace(report=lambda records: replace(some, results=records))
    job = Job(session, tmp_path / "r.h5")
    begin, children = time.time() + 0.3, []
    for writer in range(WRITERS):
        if (child := os.fork()) == 0:
            time.sleep(max(0.0, begin - time.time()))
            names = [f"analyzer-{writer}-{turn}" for turn in range(TURNS)]
            failed = any(job.written({name: replace(record, analyzer=name)}).failure for name in names)
            os._exit(failed)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * WRITERS
    assert len(read_report(tmp_path / "r.h5").results) == WRITERS * TURNS
    assert os.listdir(tmp_path) == ["r.h5"]


def test_a_comparison_that_was_written_during_the_work_is_added_to(run, small, large, tmp_path, monkeypatch):
    few = ("--limit", 40, "--threads", 1, "-q", "-o")
    assert run("path", small, large, "--points", 5, *few, "other.h5").code == 0
    measure_together = interface.measure_together

    def meanwhile(*given, **options):
        shutil.copy(tmp_path / "other.h5", tmp_path / "pair.h5")
        return measure_together(*given, **options)

    monkeypatch.setattr(interface, "measure_together", meanwhile)
    assert run("plane", small, large, "--points", 3, *few, "pair.h5").code == 0
    assert set(read(tmp_path / "pair.h5").results) == {"path", "plane"}


def test_parts_that_another_process_keeps_are_left_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    first, second, said = Parts(), Parts(), []
    second.say = said.append
    first.begin(tmp_path / "r.h5", {}, resume=False)
    first.recall(lambda: "one", lambda: 1.0)
    kept = (tmp_path / "r.h5.state").read_bytes()
    for go_on in (False, True):
        second.begin(tmp_path / "r.h5", {}, resume=go_on)
        assert second.recall(lambda: "two", lambda: 2.0) == 2.0
        assert second.kept is None
        assert said.pop() == (
            "r.h5.state is kept by another process that measures for the same report: this run keeps no finished parts."
        )
    second.forget()
    assert (tmp_path / "r.h5.state").read_bytes() == kept
    first.forget()
    assert os.listdir(tmp_path) == []
