import shutil

import pytest

from gapscope.report.file import Comparison, read


def test_demo_trains_to_one_loss_measures_and_compares_again_and_again(run, tmp_path):
    outcome = run("demo", "-o", "out")
    assert outcome.code == 0
    for word in ("small batch 8", "large batch 650", "Reading", "After equal epochs", "under-trained"):
        assert word in outcome.out
    assert "training losses within" in outcome.out  # so at the same loss
    assert outcome.err.count("training loss") == 3
    compared = read(tmp_path / "out" / "comparison.h5")
    assert isinstance(compared, Comparison)
    top = next(row for row in compared.rows if row.path == "eigenvalues/top")
    assert top.interval[0] > 1
    small, large, report = (
        f"out/digits-{name}" for name in ("small-batch.pt", "large-batch.pt", "small-batch.report.h5")
    )
    assert run("noise", small, "-q", "-o", report).code == 0
    assert run("path", small, large, "--points", 7, "-q", "-o", "out/comparison.h5").code == 0
    assert run("demo", "-o", "out", "-q").err == ""
    assert set(read(tmp_path / report).results) == {
        "eigenvalues",
        "epsilon-sharpness",
        "adaptive-sharpness",
        "gap",
        "noise",
    }  # what was added to it is there
    again = read(tmp_path / "out" / "comparison.h5")
    assert set(again.results) == {"path"}
    assert [row.path for row in again.rows] == [row.path for row in compared.rows]


def test_demo_leaves_a_report_of_another_subject_as_it_is(run, tmp_path, small):
    (tmp_path / "out").mkdir()
    report = tmp_path / "out" / "digits-small-batch.report.h5"
    assert run("gap", small, "-q", "--limit", 300, "-o", report).code == 0
    before = report.read_bytes()
    outcome = run("demo", "-o", "out", "-q")
    assert outcome.code == 2
    assert "out/digits-small-batch.report.h5 holds a report of another subject" in outcome.err
    assert report.read_bytes() == before


def test_demo_leaves_other_weights_that_have_a_report(run, tmp_path, small):
    folder = tmp_path / "out"
    folder.mkdir()
    ours = folder / "digits-small-batch.pt"
    shutil.copy(small, ours)
    assert run("gap", ours, "-q", "-o", folder / "digits-small-batch.report.h5").code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    outcome = run("demo", "-o", "out", "-q")
    assert outcome.code == 2
    assert "out/digits-small-batch.pt holds other weights than this machine trains" in outcome.err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_folder_that_cannot_be_made_is_refused(run, tmp_path):
    (tmp_path / "file").touch()
    outcome = run("demo", "-o", "file/x")
    assert outcome.code == 2
    assert "The folder file/x cannot be made" in outcome.err


@pytest.mark.parametrize("command", ["demo", "show", "train", "compare"])
def test_help_names_every_option(run, command):
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert "--debug" in outcome.out
