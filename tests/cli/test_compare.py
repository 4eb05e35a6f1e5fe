import json

import pytest

from gapscope.report.file import Comparison, read


@pytest.fixture
def reports(run, small, large, tmp_path):
    for path in (small, large):
        assert run("gap", path, "-q").code == 0
    return [tmp_path / f"{path.stem}.report.h5" for path in (small, large)]


def test_labels_come_from_the_recorded_batch_sizes(run, reports):
    outcome = run("compare", *reversed(reports))
    assert outcome.code == 0
    assert "small batch 8" in outcome.out
    assert outcome.out.index("small batch 8") < outcome.out.index("large batch 650")
    assert "Reading" in outcome.out
    assert "reports:" in outcome.out


def test_checkpoints_and_reports_mix_freely(run, reports, large, tmp_path):
    (tmp_path / "gapscope.toml").write_text("[measure.epsilon-sharpness]\nmanifold = 0")
    outcome = run("compare", reports[0], large, "--labels", "one, two", "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["format"] == "gapscope-comparison"
    assert [subject["label"] for subject in found["subjects"]] == ["one", "two"]
    assert "gap/test_loss" in [row["path"] for row in found["rows"]]
    assert set(found["rows"][0]) >= {"path", "values", "errors", "contrast", "estimate", "interval", "verdict"}
    assert "measuring" in outcome.err


def test_a_comparison_is_written_shown_and_replaced(run, reports, tmp_path):
    assert "comparison: c.h5" in run("compare", *reports, "-o", "c.h5").out
    assert isinstance(read(tmp_path / "c.h5"), Comparison)
    shown = run("show", "c.h5")
    assert shown.code == 0
    assert "Reading" in shown.out
    assert run("compare", *reports, "-o", "c.h5").code == 0


def test_a_report_is_never_replaced_by_a_comparison(run, reports, tmp_path):
    before = reports[0].read_bytes()
    outcome = run("compare", *reports, "-o", reports[0].name)
    assert outcome.code == 2
    assert "is a report, not a comparison" in outcome.err
    assert reports[0].read_bytes() == before


def test_unlike_conditions_are_refused_before_any_measurement(run, reports, large, tmp_path):
    outcome = run("compare", reports[0], large, "--split", "test")
    assert outcome.code == 2
    assert "split: train / test" in outcome.err
    assert "--force" in outcome.err
    assert "measuring" not in outcome.err


def test_force_compares_all_the_same_and_says_so(run, reports, small, tmp_path):
    run("gap", small, "-q", "--limit", "300", "-o", "part.h5")
    outcome = run("compare", reports[1], "part.h5", "--force")
    assert outcome.code == 0
    assert "Forced" in outcome.out
    assert "limit" in outcome.out


def test_two_checkpoints_of_one_name_get_two_reports(run, small, large, tmp_path, monkeypatch):
    import shutil

    from gapscope.cli import compare

    monkeypatch.setattr(compare, "SHARPNESS", ("gap",))
    for folder, source in (("a", small), ("b", large)):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / "best.pt")
    outcome = run("compare", "a/best.pt", "b/best.pt")
    assert outcome.code == 0, outcome.err
    assert "reports: best.report.h5, b-best.report.h5" in outcome.out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("REPORT",), "Expected two or more: `gapscope compare A B`"),
        (("REPORT", "nowhere.pt"), "nowhere.pt is no file. Expected a checkpoint or a report."),
        (("REPORT", "REPORT", "--labels", "a"), "`--labels a` names 1 different columns for 2 subjects."),
        (("REPORT", "REPORT", "-o", "no/where.h5"), "mend `--output`"),
    ],
)
def test_nonsense_is_refused(run, reports, words, message):
    outcome = run("compare", *[str(reports[0]) if word == "REPORT" else word for word in words])
    assert outcome.code == 2
    assert message in outcome.err


def test_the_comparison_is_shown_although_it_cannot_be_written(run, reports, monkeypatch):
    import gapscope.report.file as file
    from gapscope.errors import ReportError

    def full(content, path):
        raise ReportError("the disk is full")

    monkeypatch.setattr(file, "write", full)
    outcome = run("compare", *reports, "-o", "c.h5")
    assert outcome.code == 2
    assert "Reading" in outcome.out
    assert outcome.err == "error: the disk is full\n"


def test_other_settings_are_refused_before_any_measurement(run, small, large, tmp_path):
    assert run("eigenvalues", small, "--k", "2", "-q").code == 0
    outcome = run("compare", "digits-small-batch.report.h5", large)
    assert outcome.code == 2
    assert "digits-small-batch.report.h5 was measured with eigenvalues.k = 2, and 1 would be used now" in outcome.err
    assert "[measure.eigenvalues] of gapscope.toml" in outcome.err
    assert "measuring" not in outcome.err
