import json
from pathlib import Path

import numpy as np
import pytest
import torch

import gapscope
from gapscope.errors import LoadError, ProblemError, UsageError
from gapscope.measure.analyzers import analyzer_class, names
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.analyzers.gap import Gap
from gapscope.measure.loading import NETWORKS, Request
from gapscope.measure.monitor import Monitor
from gapscope.measure.session import Execution, open_session
from gapscope.results import Status
from tests import awkward


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "net.pt"
    training = {"batch_size": 32, "lr": 0.1, "optimizer": "sgd"}
    model = NETWORKS["mlp"](hidden=[4])
    gapscope.save_checkpoint(
        path, model, factory="mlp", model_args={"hidden": [4]}, data="digits", loss="cross-entropy", training=training
    )
    return path


def session(path, monitor=None, **more):
    request = {key: more.pop(key) for key in ("limit", "data_seed", "data") if key in more}
    return open_session(Request(checkpoint=path, **request), Execution(**more), monitor)


def test_a_report_says_who_was_measured_and_under_which_conditions(checkpoint):
    report = session(checkpoint, limit=100, device="cpu").measure([Gap(), Eigenvalues()])
    assert report.identity["checkpoint"] == "net.pt"
    assert report.identity["parameters"] == 64 * 4 + 4 + 4 * 10 + 10
    assert json.loads(report.identity["model_args"].partition("=")[2]) == [4]
    assert report.training["batch_size"] == 32
    assert report.conditions["samples"] == 100
    assert report.conditions["samples_available"] == 1300
    assert (report.conditions["limit"], report.conditions["limit_seed"]) == (100, 0)
    assert report.conditions["dtype"] == "float32"
    assert "batch_size" not in report.conditions
    assert list(report.results) == ["gap", "eigenvalues"]
    assert report.results["gap"].status is Status.EXACT
    assert report.results["eigenvalues"].settings["k"] == 1
    assert "referee" not in report.results["eigenvalues"].settings
    assert report.results["eigenvalues"].seconds > 0


def test_the_micro_batch_is_a_condition_only_in_batch_mode(checkpoint):
    assert session(checkpoint, batchnorm="batch", batch_size=100).conditions()["batch_size"] == 100
    assert "batch_size" not in session(checkpoint, batch_size=100).conditions()


def test_numbers_do_not_depend_on_which_analyzers_run_together(checkpoint):
    alone = session(checkpoint, limit=80).measure([Eigenvalues()])
    together = session(checkpoint, limit=80).measure([Gap(), Eigenvalues()])
    a, b = (report.results["eigenvalues"].quantities["top"] for report in (alone, together))
    assert np.array_equal(a.value, b.value)


def test_the_test_split_can_be_measured(checkpoint):
    report = session(checkpoint, split="test", dtype="float64").measure([Eigenvalues()])
    assert report.conditions["split"] == "test"
    assert report.conditions["samples"] == 497
    assert report.conditions["dtype"] == "float64"


def test_the_monitor_hears_of_the_work(checkpoint):
    class Listening(Monitor):
        def __init__(self):
            self.heard = []

        def begin(self, name, passes):
            self.heard.append(name)

        def end(self):
            self.heard.append("end")

    monitor = Listening()
    session(checkpoint, monitor, limit=64).measure([Gap(), Eigenvalues()])
    assert monitor.heard == ["gap", "end", "eigenvalues", "end"]


def test_a_silent_monitor_takes_everything():
    monitor = Monitor()
    for call in (
        lambda: monitor.begin("x", 3),
        lambda: monitor.tick(0.5),
        lambda: monitor.say("y"),
        lambda: monitor.plan("z"),
        monitor.end,
    ):
        assert call() is None


def test_threads_are_set_and_refused_below_one(checkpoint):
    session(checkpoint, threads=1)
    assert torch.get_num_threads() == 1
    with pytest.raises(UsageError, match=r"There are 0 threads. Expected 1 or more. Mend `--threads`"):
        session(checkpoint, threads=0)


def test_a_split_without_data_is_refused(checkpoint, tmp_path):
    np.savez(tmp_path / "own.npz", x=np.ones((5, 64), np.float32), y=np.zeros(5, np.int64))
    with pytest.raises(LoadError, match=r"There are no test data for net.pt. .*Name them with `--test-data`"):
        session(checkpoint, split="test", data=str(tmp_path / "own.npz"))


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_an_unknown_device_is_refused(checkpoint, name):
    with pytest.raises(UsageError, match=f"The device is `{name}`. Expected auto, cpu, cuda, cuda:N or mps"):
        session(checkpoint, device=name)


@pytest.mark.parametrize("name", ["cuda", "cuda:99", "mps"])
def test_an_absent_device_is_refused(checkpoint, name, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: name == "cuda:99")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"The device `{name}` is not available to torch here. Expected one of cpu"):
        session(checkpoint, device=name)


def test_float64_on_mps_is_refused(checkpoint, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    with pytest.raises(UsageError, match=r"The device mps has no float64"):
        session(checkpoint, device="mps", dtype="float64")


def test_analyzers_are_found_by_name():
    assert {"eigenvalues", "epsilon-sharpness", "gap"} <= set(names())
    assert analyzer_class("eigenvalues") is Eigenvalues
    with pytest.raises(UsageError, match=r"There is no analyzer `eigenvalue`.*Did you mean `eigenvalues`?"):
        analyzer_class("eigenvalue")


def problem_with(function):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 6), awkward.By(lambda _, x: function.apply(x)), torch.nn.Linear(6, 3)
    )
    return gapscope.problem(model, (torch.randn(40, 5), torch.arange(40) % 3))


def test_how_second_derivatives_were_taken_stands_with_every_number_that_needs_them(tmp_path):
    report = gapscope.measure(problem_with(awkward.OnceCube), [Gap(), Eigenvalues()])
    gapscope.write(report, tmp_path / "report.h5")
    results = gapscope.read(tmp_path / "report.h5").results
    assert results["eigenvalues"].settings["hvp"] == "differences"
    assert any("central differences of the gradient" in note for note in results["eigenvalues"].notes)
    assert "hvp" not in results["gap"].settings
    assert results["gap"].notes == ()
    smooth = gapscope.measure(problem_with(awkward.Cube), [Eigenvalues()])
    assert "hvp" not in smooth.results["eigenvalues"].settings


def test_what_needs_no_second_derivative_is_measured_where_there_is_none():
    problem = problem_with(awkward.Rounded)
    assert np.isfinite(gapscope.measure(problem, [Gap()]).results["gap"].quantities["train_loss"].value)
    with pytest.raises(ProblemError, match="The gradient is not the derivative of the loss"):
        gapscope.measure(problem, [Eigenvalues()])


def test_what_was_written_out_stands_in_the_environment():
    torch.manual_seed(0)
    layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(5, 3))
    problem = gapscope.problem(layer, (torch.randn(40, 5), torch.arange(40) % 3))
    assert gapscope.measure(problem, [Eigenvalues()]).environment["written_out"] == "weight_norm"
