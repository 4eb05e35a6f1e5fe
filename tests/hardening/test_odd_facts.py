"""What a checkpoint records of its training may be anything: no report is lost for it after the work."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import gapscope
from gapscope.measure import resume
from gapscope.report import file
from gapscope.report.file import read_report, write
from tests.report.example_reports import report

LONG = "k" * 1000
ODD = {
    "seed": 2**100,
    "below": -(2**63) - 1,
    "endless": 2**20000,  # of more digits than Python prints
    "largest": 2**64 - 1,
    "lowest": -(2**63),
    "a\0b\udcff": "c\0d\udcff",
    "a/b": 1,
    ".": 2.5,
    "/": True,
    LONG: "kept",
    LONG + "k": "left out",
    "\U0001f600" * 20_000: "left out",
    "": "left out",
}
STORED = {
    "seed": "1267650600228229401496703205376",
    "below": "-9223372036854775809",
    "endless": hex(2**20000),
    "largest": 2**64 - 1,
    "lowest": -(2**63),
    "a\\0b\\udcff": "c\\0d\\udcff",
    "a/b": 1,
    ".": 2.5,
    "/": True,
    LONG: "kept",
}


@pytest.mark.parametrize("part", ["identity", "training", "conditions", "environment"])
def test_odd_facts_read_as_what_hdf5_can_hold(tmp_path, part):
    write(replace(report(), **{part: ODD}), tmp_path / "r.h5")
    first = read_report(tmp_path / "r.h5")
    assert dict(getattr(first, part)) == STORED
    write(first, tmp_path / "again.h5")
    assert dict(getattr(read_report(tmp_path / "again.h5"), part)) == STORED


def test_a_report_in_memory_has_the_facts_of_its_file(tmp_path):
    problem = gapscope.problem(
        nn.Linear(3, 2), (torch.randn(20, 3), torch.arange(20) % 2), training={**ODD, 7: "left out", "list": [1]}
    )
    found = gapscope.measure(problem, [gapscope.Gap()])
    assert dict(found.training) == STORED
    gapscope.write(found, tmp_path / "r.h5")
    assert dict(gapscope.read(tmp_path / "r.h5").training) == STORED


def test_a_seed_of_more_than_64_bits_costs_no_report(run, tmp_path):
    for training, kept in (({"seed": 2**100}, {"seed": str(2**100)}), ({"": 1}, {})):
        gapscope.save_checkpoint(
            tmp_path / "a.pt", nn.Linear(64, 10), data="digits", loss="cross-entropy", training=training
        )
        words = ("gap", "a.pt", "-m", "torch.nn:Linear", "-a", "in_features=64", "-a", "out_features=10", "-q")
        for _ in range(2):  # the second is added to the first
            assert run(*words, "-o", f"{len(kept)}.h5").code == 0
        assert dict(read_report(tmp_path / f"{len(kept)}.h5").training) == kept


@pytest.mark.parametrize("command", [("gap",), ("analyze", "--only", "gap"), ("path", "--points", "5")])
def test_whatever_writing_raises_the_numbers_are_shown_and_the_work_is_kept(
    run, small, large, tmp_path, monkeypatch, command
):
    def broken(*_):
        raise TypeError("No conversion path")

    monkeypatch.setattr(file, "write", broken)
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    subjects = (small, large) if command[0] == "path" else (small,)
    outcome = run(command[0], *subjects, *command[1:], "-q", "-o", "r.h5")
    assert outcome.code == 2
    assert ("barrier" if command[0] == "path" else "train loss") in outcome.out
    assert "Unexpected TypeError: No conversion path" in outcome.err
    assert [one.name for one in tmp_path.iterdir()] == ["r.h5.state"]
