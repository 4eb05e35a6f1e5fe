import pytest

from gapscope.report.file import read_report


@pytest.fixture
def reports(run, small, large):
    for path, name in ((small, "small.h5"), (large, "large.h5")):
        assert run("gap", path, "-q", "-o", name).code == 0


def test_accept_writes_the_report_and_a_text_that_a_diff_shows(run, reports, tmp_path):
    accepted = run("baseline", "accept", "small.h5", "--reason", "the first")
    assert (accepted.code, accepted.out) == (0, "baseline: baseline.h5, baseline.txt\n")
    assert (tmp_path / "baseline.h5").read_bytes() == (tmp_path / "small.h5").read_bytes()
    assert "reason: the first" in (tmp_path / "baseline.txt").read_text()
    limits = ("--max-increase", "gap/loss_gap=1%", "--baseline", "baseline.h5")
    assert run("gate", "small.h5", *limits).code == 0
    assert run("gate", "large.h5", *limits).code == 1
    assert run("baseline", "accept", "large.h5", "--reason", "a larger batch").code == 0
    assert run("gate", "large.h5", *limits).code == 0
    lines = (tmp_path / "baseline.txt").read_text().splitlines()
    assert any(line.startswith("  gap/loss_gap: 0.23") and " -> 0.25" in line for line in lines), lines


def test_the_text_names_no_folder(run, reports, tmp_path):
    run("baseline", "accept", tmp_path / "small.h5", "--reason", "x", "-o", tmp_path / "b.h5")
    assert str(tmp_path) not in (tmp_path / "b.txt").read_text()


def test_diff_compares_with_the_baseline(run, reports):
    run("baseline", "accept", "small.h5", "--reason", "the first")
    outcome = run("baseline", "diff", "large.h5")
    assert outcome.code == 0
    assert "baseline" in outcome.out.splitlines()[3]
    assert "loss gap" in outcome.out
    assert run("baseline", "diff", "large.h5", "--baseline", "small.h5").out == outcome.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("accept", "small.h5"), "The reason is empty. Expected why these numbers are accepted."),
        (("accept", "none.h5", "--reason", "x"), "none.h5 does not exist"),
        (("accept", "small.h5", "--reason", "x", "-o", "b.txt"), "`--output b.txt` is the name of the text."),
        (("accept", "small.h5", "--reason", "x", "-o", "notes.h5"), "notes.h5 is not a gapscope report"),
        (("accept", "small.h5", "--reason", "x", "-o", "mine.h5"), "mine.txt is no text of a baseline, and would be"),
        (("diff", "small.h5"), "There is no baseline baseline.h5. Expected one to compare with. Accept one: `gapscope"),
        (("reject", "small.h5"), "Invalid value"),
    ],
)
def test_what_cannot_be_done_is_refused_and_changes_nothing(run, reports, tmp_path, words, said):
    (tmp_path / "notes.h5").write_text("mine")
    (tmp_path / "mine.txt").write_text("gapscope base")
    outcome = run("baseline", *words)
    assert outcome.code == 2
    assert said in outcome.err
    assert (tmp_path / "notes.h5").read_text() == "mine"
    assert (tmp_path / "mine.txt").read_text() == "gapscope base"
    assert not (tmp_path / "mine.h5").exists()
    assert not list(tmp_path.glob("b*"))


def test_a_broken_configuration_does_not_matter(run, reports, tmp_path):
    (tmp_path / "gapscope.toml").write_text("= nonsense")
    assert run("baseline", "accept", "small.h5", "--reason", "x").code == 0
    assert read_report(tmp_path / "baseline.h5").results["gap"]
