import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file

from gapscope.measure.analyzers import names
from gapscope.report.atomic import replace
from gapscope.report.file import read_report


def settings(outcome, analyzer="gap"):
    return json.loads(outcome.out)["results"][analyzer]["settings"]


def conditions(outcome):
    return json.loads(outcome.out)["subject"]["conditions"]


def test_there_is_a_command_for_every_analyzer(run):
    for name in names():
        outcome = run(name, "--help")
        assert outcome.code == 0
        assert "CHECKPOINT" in outcome.out


def test_the_list_of_commands_cuts_nothing_off(run):
    outcome = run("--help")
    assert outcome.code == 0
    assert "..." not in outcome.out.split("Commands:")[1].split("Exit codes")[0]
    assert all(name in outcome.out for name in (*names(), "sharpness", "compare", "track", "gate", "show"))


def test_json_is_alone_on_stdout_and_the_report_is_written(run, small, tmp_path):
    outcome = run("gap", small, "--json")
    found = json.loads(outcome.out)
    assert outcome.code == 0
    assert (found["format"], found["format_version"]) == ("gapscope-report", 1)
    assert set(found) == {"format", "format_version", "subject", "environment", "results"}
    assert found["results"]["gap"]["status"] == "EXACT"
    assert read_report(tmp_path / "digits-small-batch.report.h5").results["gap"]


def test_quiet_says_nothing_on_stderr(run, small):
    outcome = run("gap", small, "-q")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.endswith("report: digits-small-batch.report.h5\n")


def test_command_line_over_environment_over_gapscope_toml_over_pyproject(run, small, tmp_path, monkeypatch):
    words = ("gap", small, "--json", "-q")
    (tmp_path / "pyproject.toml").write_text("[tool.gapscope]\nlimit = 101")
    assert conditions(run(*words))["limit"] == 101
    (tmp_path / "gapscope.toml").write_text("limit = 102")
    assert conditions(run(*words))["limit"] == 102
    monkeypatch.setenv("GAPSCOPE_LIMIT", "103")
    assert conditions(run(*words))["limit"] == 103
    assert conditions(run(*words, "--limit", "104"))["limit"] == 104


def test_it_is_said_which_file_gives_trust(run, small, tmp_path):
    (tmp_path / "gapscope.toml").write_text('trusted = ["net:*"]')
    assert "trusted as if typed: trusted of gapscope.toml" in run("gap", small).err.splitlines()
    assert run("gap", small, "-q").err == ""


def test_what_a_configuration_file_names_is_run(run, small, tmp_path):
    (tmp_path / "own.py").write_text('def ready(problem=None):\n    open("ran", "w").close()\n')
    (tmp_path / "gapscope.toml").write_text('setup = "own.py:ready"')
    assert "trusted as if typed: setup of gapscope.toml" in run("gap", small).err.splitlines()
    assert (tmp_path / "ran").exists()


def test_the_checkpoint_s_record_comes_last(run, small, tmp_path):
    (tmp_path / "gapscope.toml").write_text("model-arg = { hidden = [32] }")
    outcome = run("gap", small)
    assert outcome.code == 2
    assert "64" in outcome.err  # the checkpoint's own width, which the file overrides


def test_sharpness_reads_the_settings_of_its_analyzers(run, small, tmp_path, monkeypatch):
    (tmp_path / "gapscope.toml").write_text(
        "[measure.eigenvalues]\nk = 2\n[measure.epsilon-sharpness]\nepsilons = [1e-3]\nmanifold = 0"
    )
    words = ("sharpness", small, "--json", "-q", "--limit", "64")
    found = run(*words)
    assert settings(found, "eigenvalues")["k"] == 2
    assert settings(found, "epsilon-sharpness")["epsilons"] == [1e-3]
    monkeypatch.setenv("GAPSCOPE_EIGENVALUES_K", "3")
    assert settings(run(*words), "eigenvalues")["k"] == 3
    monkeypatch.setenv("GAPSCOPE_EIGENVALUES_K", "x")
    refused = run(*words)
    assert refused.code == 2
    assert "'--k'" in refused.err


def test_a_second_analyzer_joins_the_report_and_new_settings_are_said(run, small, tmp_path):
    run("gap", small, "-q")
    run("eigenvalues", small, "-q")
    assert set(read_report(tmp_path / "digits-small-batch.report.h5").results) == {"gap", "eigenvalues"}
    again = run("eigenvalues", small, "-q", "--k", "2")
    assert "replaced eigenvalues: settings changed: k 1 -> 2" in again.out


def test_other_conditions_get_a_file_of_their_own(run, small, tmp_path):
    run("gap", small, "-q")
    outcome = run("gap", small, "-q", "--split", "test")
    name = outcome.out.split("report: ")[1].strip()
    assert name != "digits-small-batch.report.h5"
    assert read_report(tmp_path / name).conditions["split"] == "test"
    assert run("gap", small, "-q", "--split", "test").out.split("report: ")[1].strip() == name


def test_another_checkpoint_of_the_same_name_is_named_by_its_folder(run, small, large, tmp_path):
    for folder, source in (("a", small), ("b", large)):
        (tmp_path / folder).mkdir()
        shutil.copy(source, tmp_path / folder / "best.pt")
    assert "report: best.report.h5" in run("gap", "a/best.pt", "-q").out
    assert "report: b-best.report.h5" in run("gap", "b/best.pt", "-q").out


def test_the_report_of_a_folder_has_its_whole_name_wherever_one_stands(run, small, tmp_path, monkeypatch):
    inside = tmp_path / "run-1.5" / "inside"
    inside.mkdir(parents=True)
    weights = torch.load(small, weights_only=True)["model"]
    save_file(weights, tmp_path / "run-1.5" / "model.safetensors")
    arguments = ("-a", "inputs=64", "-a", "hidden=[64]", "-a", "outputs=10")
    how = ("-m", "mlp", *arguments, "-d", "digits", "--loss", "cross-entropy", "-q")
    for place, name in ((tmp_path, "run-1.5"), (inside.parent, "."), (inside, "..")):
        monkeypatch.chdir(place)
        assert "report: run-1.5.report.h5" in run("gap", name, *how).out
        assert (place / "run-1.5.report.h5").exists()


def test_a_named_report_of_another_subject_is_left_alone(run, small, large, tmp_path):
    run("gap", small, "-q", "-o", "x.h5")
    before = (tmp_path / "x.h5").read_bytes()
    outcome = run("gap", large, "-q", "-o", "x.h5")
    assert outcome.code == 2
    assert "x.h5 holds a report of another subject" in outcome.err
    assert (tmp_path / "x.h5").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"not a report", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_a_damaged_file_in_the_report_s_place_is_left_alone(run, small, tmp_path, content):
    (tmp_path / "digits-small-batch.report.h5").write_bytes(content)
    outcome = run("gap", small, "-q")
    assert outcome.code == 2
    assert "Nothing was changed: move that file away" in outcome.err
    assert (tmp_path / "digits-small-batch.report.h5").read_bytes() == content


@pytest.mark.parametrize(
    ("name", "message"),
    [("none/x.h5", "does not exist"), ("file/x.h5", "does not exist"), ("folder", "is a folder")],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(run, small, tmp_path, name, message):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    outcome = run("gap", small, "-o", name)
    assert outcome.code == 2
    assert message in outcome.err
    assert "end `--output`" in outcome.err


def test_a_read_only_folder_is_refused_before_the_work(run, small, monkeypatch):
    monkeypatch.setattr("os.access", lambda _, mode: mode != os.W_OK)  # root may write anywhere
    outcome = run("gap", small)
    assert outcome.code == 2
    assert "cannot be written. Expected a place for it" in outcome.err


def test_numbers_are_shown_although_the_report_cannot_be_written(run, small, monkeypatch):
    import gapscope.report.file as file

    def full(path, content):
        return replace("/proc/nothing/x.h5", content)

    monkeypatch.setattr(file, "replace", full)
    outcome = run("gap", small, "-q")
    assert outcome.code == 2
    assert "train loss" in outcome.out
    assert "report:" not in outcome.out
    assert "cannot be written" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--limit", "0"), "The limit is 0. Expected 1 or more samples."),
        (("--threads", "0"), "There are 0 threads. Expected 1 or more."),
        (("--device", "tpu"), "The device is `tpu`. Expected auto, cpu"),
        (("--batch-size", "0"), "The batch size is `0`"),
        (("--memory-budget", "x"), "The memory budget is `x`"),
        (("--split", "both"), "'both' is not one of 'train', 'test'"),
        (("--lim", "3"), "No such option: --lim"),
        (("-a", "x"), "Expected `-a NAME=VALUE`"),
        (("-d", "digit"), "Did you mean `digits`?"),
        (("-m", "mpl"), "Did you mean `mlp`?"),
    ],
)
def test_nonsense_is_one_line_and_exit_2(run, small, words, message):
    outcome = run("gap", small, *words)
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1


def test_float64_gives_the_same_numbers_and_is_a_condition(run, small):
    tops = []
    for dtype in ("float32", "float64"):
        outcome = run("eigenvalues", small, "--json", "-q", "--dtype", dtype, "--limit", "200")
        assert conditions(outcome)["dtype"] == dtype
        tops.append(json.loads(outcome.out)["results"]["eigenvalues"]["quantities"]["top"]["value"])
    assert tops[0] == pytest.approx(tops[1], rel=1e-4)


def test_an_analyzer_that_cannot_be_loaded_is_a_warning(run, monkeypatch):
    from gapscope.cli import measuring

    def broken(name):
        raise ImportError(f"no {name} today")

    monkeypatch.setattr(measuring, "analyzer_class", broken)
    outcome = run("--help")
    assert outcome.code == 0
    assert "warning: the analyzer `gap` cannot be loaded: ImportError: no gap today" in outcome.err
    assert "compare" in outcome.out


def test_arguments_of_the_model_go_by_key_through_all_layers(run, small, tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[tool.gapscope]\nmodel-arg = { hidden = [16], inputs = 64 }")
    (tmp_path / "gapscope.toml").write_text("model-arg = { hidden = [32] }")
    refused = run("gap", small, "-a", "outputs=10", "-q")
    assert refused.code == 2
    assert "(32, 64) in the model" in refused.err
    assert run("gap", small, "-a", "hidden=[64]", "-q").code == 0
    monkeypatch.setenv("GAPSCOPE_MODEL_ARG", "hidden=[64]")
    assert run("gap", small, "-a", "outputs=10", "-q").code == 0
