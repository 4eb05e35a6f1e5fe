import json

import pytest
import torch
from safetensors.torch import save_file

from gapscope.measure import resume
from gapscope.measure.landscape import Landscape
from gapscope.report.file import Comparison, read, read_report
from tests.loop import make_checkpoint
from tests.stored import stored


def test_a_path_is_a_comparison_file_small_batch_first(run, small, large, tmp_path):
    outcome = run("path", large, small, "-q")  # in the other order
    assert outcome.code == 0
    found = read(tmp_path / "digits-large-batch-vs-digits-small-batch.comparison.h5")
    assert isinstance(found, Comparison)
    assert [subject.training["batch_size"] for subject in found.subjects] == [8, 650]
    assert float(found.results["path"].quantities["barrier"].value) >= 0
    assert outcome.out.endswith("comparison: digits-large-batch-vs-digits-small-batch.comparison.h5\n")
    assert run("show", "digits-large-batch-vs-digits-small-batch.comparison.h5").code == 0


def test_results_join_in_one_file_and_compare_may_write_it_too(run, small, large, tmp_path):
    run("path", small, large, "-q", "-o", "pair.h5")
    outcome = run("plane", small, large, "--points", 3, "-q", "-o", "pair.h5")
    assert outcome.code == 0
    assert set(read(tmp_path / "pair.h5").results) == {"path", "plane"}
    assert "\npath\n" not in outcome.out  # only what was asked for is printed


def test_a_comparison_of_folders_has_their_whole_names(run, small, large, tmp_path, monkeypatch):
    for name, source in (("run-1.5", small), ("run-1.7", large)):
        (tmp_path / name).mkdir()
        save_file(torch.load(source, weights_only=True)["model"], tmp_path / name / "model.safetensors")
    arguments = ("-a", "inputs=64", "-a", "hidden=[64]", "-a", "outputs=10")
    how = ("-m", "mlp", *arguments, "-d", "digits", "--loss", "cross-entropy", "--points", "5", "-q")
    monkeypatch.chdir(tmp_path / "run-1.5")
    assert run("path", ".", "../run-1.7", *how).out.endswith("comparison: run-1.5-vs-run-1.7.comparison.h5\n")


def test_a_plane_of_one_checkpoint_belongs_to_its_report(run, small, tmp_path):
    assert run("plane", small, "--points", 3, "-q").code == 0
    assert "plane" in read_report(tmp_path / "digits-small-batch.report.h5").results


def test_compare_measures_the_pair_when_both_are_checkpoints(run, small, large, tmp_path, monkeypatch):
    (tmp_path / "gapscope.toml").write_text("[measure.epsilon-sharpness]\nmanifold = 0\n[measure.path]\npoints = 7\n")
    outcome = run("compare", small, large, "--pair", "path", "-o", "pair.h5", "--json", "-q")
    found = json.loads(outcome.out)
    assert found["results"]["path"]["settings"]["points"] == 7
    assert read(tmp_path / "pair.h5").results["path"].settings["points"] == 7
    assert "path" not in json.loads(run("compare", small, large, "--pair", "none", "--json", "-q").out)["results"]
    reports = ("digits-small-batch.report.h5", "digits-large-batch.report.h5")
    assert json.loads(run("compare", *reports, "--json").out)["results"] == {}


def test_models_without_a_path_between_them_are_compared_all_the_same(run, small, tmp_path):
    (tmp_path / "gapscope.toml").write_text("[measure.epsilon-sharpness]\nmanifold = 0\n")
    make_checkpoint("other.pt", steps=40, model_args={"hidden": [8]})
    outcome = run("compare", small, "other.pt", "--pair", "path", "-q")
    assert outcome.code == 0
    assert outcome.err.startswith("left out: path. The checkpoints have 4,810 and 610 parameters")


def test_an_interrupted_path_goes_on_where_it_stopped(run, small, large, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)
    calls, evaluate = [], Landscape.evaluate

    def counted(self, theta, weights):
        calls.append(weights)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return evaluate(self, theta, weights)

    monkeypatch.setattr(Landscape, "evaluate", counted)
    outcome = run("path", small, large, "-q", "-o", "pair.h5")
    assert outcome.code == 130
    state = tmp_path / "pair.h5.state"
    assert f"finished parts are in {state.name}: the same command with `--resume` goes on" in outcome.err
    run("path", small, large, "--points", 5, "-q", "-o", "other.h5")
    calls[20:] = []
    assert state.exists()
    outcome = run("path", small, large, "-q", "-o", "pair.h5", "--resume")
    assert len(calls) == 20 + 54 - 18  # one of the 19 is measured again, as a proof
    assert not state.exists()
    run("path", small, large, "-q", "-o", "whole.h5")
    assert stored(tmp_path / "pair.h5") == stored(tmp_path / "whole.h5")


def test_a_report_is_never_replaced_by_a_pair(run, small, large, tmp_path):
    run("gap", small, "-q", "-o", "pair.h5")
    before = (tmp_path / "pair.h5").read_bytes()
    outcome = run("path", small, large, "-q", "-o", "pair.h5")
    assert outcome.code == 2
    assert "pair.h5 is a report, not a comparison. Expected a new name or an old comparison." in outcome.err
    assert (tmp_path / "pair.h5").read_bytes() == before


def test_a_pair_of_others_is_never_replaced(run, small, large, tmp_path):
    run("path", small, large, "-q", "-o", "pair.h5")
    make_checkpoint("other.pt", steps=40, model_args={"hidden": [64]})
    outcome = run("path", small, "other.pt", "-q", "-o", "pair.h5")
    assert outcome.code == 2
    assert "The existing comparison is of something else" in outcome.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("path", "SMALL"), "There is 1 checkpoint. Expected two: `gapscope path A B`."),
        (("path", "SMALL", "LARGE", "SMALL"), "There are 3 checkpoints. Expected two: `gapscope path A B`."),
        (("plane", *["SMALL"] * 4), "There are 4 checkpoints. Expected 1 to 3: `gapscope plane A [B [C]]`."),
        (("compare", "SMALL", "LARGE", "--pair", "gap"), "`gap` does not measure two checkpoints together."),
        (("path", "SMALL", "SMALL"), "digits-small-batch.pt is named twice. Expected different checkpoints"),
        (("path", "SMALL", "OTHER"), "The checkpoints are not under the same conditions: data_fingerprint: "),
    ],
)
def test_nonsense_is_one_line_and_exit_2(run, small, large, tmp_path, words, message):
    if "OTHER" in words:
        make_checkpoint("other.pt", steps=40, model="lenet5", model_args={"size": 32}, data="digits:size=32")
    names = {"SMALL": small, "LARGE": large, "OTHER": "other.pt"}
    outcome = run(*(names.get(word, word) for word in words), "-q")
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_the_numbers_are_shown_although_the_file_cannot_be_written(run, small, large, monkeypatch):
    from gapscope.errors import ReportError
    from gapscope.report import file

    def full(*_):
        raise ReportError("The disk is full. Expected room. Make some.")

    monkeypatch.setattr(file, "write", full)
    outcome = run("path", small, large, "--points", 5, "-q")
    assert outcome.code == 2
    assert "barrier" in outcome.out
    assert "The disk is full" in outcome.err
