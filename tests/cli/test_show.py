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
