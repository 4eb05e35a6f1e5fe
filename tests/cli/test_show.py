import json

from gapscope.report.file import read, write


def test_a_report_is_shown_in_full_or_as_json(run, small):
    run("gap", small, "-q")
    brief, whole, text = (run("show", "digits-small-batch.report.h5", *more) for more in ((), ("-v",), ("--json",)))
    assert (brief.code, whole.code, text.code) == (0, 0, 0)
    assert "train loss" in brief.out
    assert "environment:" in whole.out
    assert json.loads(text.out)["results"]["gap"]["status"] == "EXACT"


def test_what_is_no_report_is_refused(run, small, tmp_path):
    (tmp_path / "empty.h5").touch()
    for path, message in ((small, "not a gapscope report"), ("none.h5", "does not exist"), ("empty.h5", "empty")):
        outcome = run("show", path)
        assert outcome.code == 2
        assert message in outcome.err


def test_a_broken_configuration_keeps_nobody_from_reading(run, small, tmp_path):
    run("gap", small, "-q")
    (tmp_path / "gapscope.toml").write_text("= nonsense")
    assert run("show", "digits-small-batch.report.h5").code == 0
    assert run("--help").code == 0
    assert run("gap", "--help").code == 0
    assert run("gap", small).code == 2


def test_no_control_character_of_a_file_reaches_the_terminal(run, small, tmp_path):
    import dataclasses

    run("gap", small, "-q")
    path = tmp_path / "digits-small-batch.report.h5"
    report = read(path)
    identity = {**report.identity, "checkpoint": "a\x1b[31m\u202eb"}
    write(dataclasses.replace(report, identity=identity), path)
    shown, refused = run("show", path), run("gap", small)
    assert refused.code == 0  # another name is found
    for text in (shown.out, run("gap", small, "-o", path).err):
        assert "\x1b" not in text
        assert "\u202e" not in text


def test_a_page_and_a_table_are_written_and_named(run, small, tmp_path):
    run("gap", small, "-q")
    done = run("show", "digits-small-batch.report.h5", "--html", "out.html", "--csv", "out.csv")
    assert (done.code, done.out.split()) == (0, ["out.html", "out.csv"])
    assert (tmp_path / "out.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "out.csv").read_text().startswith("path,")
    assert run("show", "digits-small-batch.report.h5", "--csv", "-").out == (tmp_path / "out.csv").read_text()
    assert run("show", "digits-small-batch.report.h5", "--html", "out.html").code == 0
    assert run("show", "digits-small-batch.report.h5", "--csv", "out.csv").code == 0
    (tmp_path / "out.csv").write_text("image_path,label\n1,2\n")
    assert run("show", "digits-small-batch.report.h5", "--csv", "out.csv").code == 2
    assert (tmp_path / "out.csv").read_text() == "image_path,label\n1,2\n"
    (tmp_path / "out.html").write_text("<p>mine</p>")
    refused = run("show", "digits-small-batch.report.h5", "--html", "out.html")
    assert refused.code == 2
    assert "was not written by `--html`" in refused.err


def test_a_picture_is_written_and_named(run, small, tmp_path):
    run("eigenvalues", small, "--k", "3", "-q")
    run("epsilon-sharpness", small, "--manifold", "0", "-q")
    done = run("show", "digits-small-batch.report.h5", "--plot", "out.svg", "--html", "out.html")
    assert (done.code, done.out.split()) == (0, ["out.html", "out.svg"])
    assert ">Epsilon-sharpness full</text>" in (tmp_path / "out.svg").read_text()
    refused = run("show", "digits-small-batch.report.h5", "--plot", "out.jpg")
    assert refused.code == 2
    assert "`--plot out.jpg` names no kind of picture. Expected a name that ends in .png, .svg, .pdf." in refused.err


def test_a_report_is_cited(run, small):
    run("gap", small, "-q")
    run("eigenvalues", small, "-q")
    cited = run("show", "digits-small-batch.report.h5", "--cite")
    assert "1,300 train samples" in cited.out
    assert "@inproceedings{cohen2021gradient," in cited.out
    assert "keskar" not in cited.out


def test_two_things_do_not_share_stdout(run, small):
    run("gap", small, "-q")
    refused = run("show", "digits-small-batch.report.h5", "--json", "--csv", "-")
    assert refused.code == 2
    assert "--json and --csv - both print on stdout. Expected one of them. Give one command for each." in refused.err
