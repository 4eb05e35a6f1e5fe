import copy
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gapscope
from gapscope.errors import ComparisonError, GapscopeError, LoadError, RankError, UsageError
from gapscope.measure.interface import measure_together
from gapscope.measure.session import Session

FIXTURES = Path(__file__).parents[2] / "fixtures"
SMALL, LARGE = FIXTURES / "digits-small-batch.pt", FIXTURES / "digits-large-batch.pt"


def blobs(samples=120):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 5, generator=rng)
    return x, x[:, :3].argmax(1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def test_a_checkpoint_is_loaded_and_measured_in_the_words_of_the_command_line():
    problem = gapscope.load(SMALL)
    report = gapscope.measure(problem, [gapscope.Eigenvalues(k=2), gapscope.Gap()])
    assert list(report.results) == ["eigenvalues", "gap"]
    assert report.results["eigenvalues"].settings["k"] == 2
    assert report.identity["checkpoint"] == "digits-small-batch.pt"
    assert report.training["batch_size"] == 8
    assert problem.loss() == pytest.approx(float(report.results["gap"].quantities["train_loss"].value))


def test_it_is_the_report_that_the_command_line_writes(tmp_path, monkeypatch):
    from gapscope.__main__ import main

    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["eigenvalues", str(SMALL), "-q"])
    written = gapscope.read(tmp_path / "digits-small-batch.report.h5")
    here = gapscope.measure(gapscope.load(SMALL), [gapscope.Eigenvalues()])
    gapscope.write(here, tmp_path / "here.h5")
    again = gapscope.read(tmp_path / "here.h5")
    for part in ("identity", "training", "conditions"):
        assert dict(getattr(again, part)) == dict(getattr(written, part))
    one, other = (report.results["eigenvalues"] for report in (written, again))
    assert one.settings == other.settings
    assert np.array_equal(one.quantities["top"].value, other.quantities["top"].value)


def test_reports_and_pairs_are_compared():
    small, large = gapscope.load(SMALL), gapscope.load(LARGE)
    reports = [gapscope.measure(one, [gapscope.Eigenvalues()]) for one in (small, large)]
    assert gapscope.compare(reports).rows[0].verdict == "higher"
    pair = gapscope.measure([large, small], [gapscope.Path(points=7)])
    assert [subject.label for subject in pair.subjects] == ["small batch 8", "large batch 650"]
    assert "barrier" in pair.results["path"].quantities


def test_a_rank_that_is_gone_ends_what_is_measured_together(monkeypatch):
    def gone(self, context):
        raise RankError("One is gone. Expected all of them. Look there.")

    monkeypatch.setattr(gapscope.Path, "__call__", gone)
    told = []
    with pytest.raises(RankError, match="One is gone"):
        measure_together(
            [Session(gapscope.load(path)) for path in (SMALL, LARGE)],
            [gapscope.Path()],
            failed=lambda analyzer, error: told.append(error),
        )
    assert told == []


def test_reports_of_other_micro_batches_are_not_compared_where_the_loss_is_of_them():
    class Centered(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            return y - y.mean(0)

    x, y = blobs()
    reports = [
        gapscope.measure(gapscope.problem(Centered(*network()), (x, y), batch_size=size), [gapscope.Gap()])
        for size in (30, 60)
    ]
    assert [report.conditions["batch_size"] for report in reports] == [30, 60]
    losses = [float(report.results["gap"].quantities["train_loss"].value) for report in reports]
    assert abs(losses[0] - losses[1]) > 1e-4
    with pytest.raises(ComparisonError, match="do not measure the same thing: batch_size: 30 / 60"):
        gapscope.compare(reports, labels=["a", "b"])


def test_needs_of_an_analyzer_are_measured_with_their_defaults():
    pair = gapscope.measure([gapscope.load(SMALL), gapscope.load(LARGE)], [gapscope.Escape()])
    assert list(pair.results) == ["escape"]


@pytest.mark.parametrize("form", ["arrays", "dataset", "loader", "pairs"])
def test_a_model_at_hand_is_measured_on_any_data(form):
    x, y = blobs()
    data = {
        "arrays": (x, y),
        "dataset": TensorDataset(x, y),
        "loader": DataLoader(TensorDataset(x, y), batch_size=32),
        "pairs": list(zip(x, y, strict=True)),
    }[form]
    model = network()
    problem = gapscope.problem(model, data, test_data=(x[:20], y[:20]), training={"lr": 0.1, "batch_size": 4})
    report = gapscope.measure(problem, [gapscope.Gap()])
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(model(x), y))
    assert float(report.results["gap"].quantities["train_loss"].value) == pytest.approx(loss)
    assert report.identity["model"] == "Sequential"
    assert report.training == {"lr": 0.1, "batch_size": 4}
    assert report.conditions["loss"] == "cross-entropy"


def test_training_and_test_data_whose_classes_are_numbered_differently_are_refused():
    x, y = blobs()
    train, test = ([{"x": row, "y": names[i]} for row, i in zip(x, y, strict=True)] for names in ("abc", "bcd"))
    message = r"test data of model and data of model number their classes differently: only one has `a`"
    with pytest.raises(LoadError, match=message):
        gapscope.problem(network(), train, test_data=test)
    assert gapscope.problem(network(), train, test_data=train[:60]).size == gapscope.problem(network(), train).size


def test_training_may_go_on_while_a_problem_waits():
    x, y = blobs()
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    model[2].bias.requires_grad_(requires_grad=False)
    problem = gapscope.problem(model.eval(), (x, y))
    before = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    model.train()(x)
    with torch.no_grad():
        loss = float(nn.functional.cross_entropy(before(x), y))
    assert problem.loss() == pytest.approx(loss)
    assert model.training


def test_a_problem_knows_loss_gradient_and_product():
    x, y = blobs()
    problem = gapscope.problem(network().double(), (x, y))
    v = torch.ones(problem.size, dtype=torch.float64)
    step = 1e-5
    difference = (problem.gradient(problem.theta + step * v) - problem.gradient(problem.theta - step * v)) / (2 * step)
    assert torch.allclose(problem.hvp(v), difference, atol=1e-7)
    assert isinstance(problem, gapscope.Problem)


def test_the_default_dtype_of_the_caller_changes_nothing():
    x, y = blobs(1000)
    problems = [gapscope.problem(network(), (x, y)) for _ in range(2)]
    analyzers = [gapscope.Eigenvalues(), gapscope.Curvature(max_matvecs=12, directions=4, top_matvecs=4)]
    one = gapscope.measure(problems[0], analyzers)
    torch.set_default_dtype(torch.bfloat16)  # which has no number between 996 and 1000
    other = gapscope.measure(problems[1], analyzers)
    for name, quantity in (("eigenvalues", "values"), ("curvature", "median")):
        a, b = (report.results[name].quantities[quantity] for report in (one, other))
        assert np.array_equal(a.value, b.value)
        assert np.array_equal(a.numerical_error, b.numerical_error)


def test_the_wrong_number_of_problems_is_refused():
    x, y = blobs()
    problem = gapscope.problem(network(), (x, y))
    with pytest.raises(
        UsageError, match=r"`path` measures 2 at a time, and got 1. Expected `gapscope.measure\(\[a, b\]"
    ):
        gapscope.measure(problem, [gapscope.Path()])
    with pytest.raises(
        UsageError, match=r"`eigenvalues` measures 1 at a time, and got 2. Expected `gapscope.measure\(prob"
    ):
        gapscope.measure([problem, problem], [gapscope.Eigenvalues()])
    with pytest.raises(UsageError, match=r"`plane` measures 1 to 3 at a time, and got 4."):
        gapscope.measure([problem] * 4, [gapscope.Plane()])


def test_two_analyzers_of_one_name_are_refused():
    problem = gapscope.problem(network(), blobs())
    message = r"`eigenvalues` is in the list 2 times. Expected each analyzer once: .* Call `gapscope.measure` for each"
    with pytest.raises(UsageError, match=message):
        gapscope.measure(problem, [gapscope.Eigenvalues(), gapscope.Gap(), gapscope.Eigenvalues(gauss_newton=True)])
    with pytest.raises(UsageError, match=r"`path` is in the list 2 times."):
        gapscope.measure([problem, problem], [gapscope.Path(), gapscope.Path(points=7)])


@pytest.mark.parametrize("analyzers", [[], "eigenvalues", ["eigenvalues"], [gapscope.Eigenvalues], gapscope.Gap()])
def test_what_is_no_list_of_analyzers_is_refused(analyzers):
    x, y = blobs()
    with pytest.raises(UsageError, match=r"(The analyzers are .*Expected a list|is no analyzer. Expected an instance)"):
        gapscope.measure(gapscope.problem(network(), (x, y)), analyzers)
    with pytest.raises(UsageError, match=r"There are 1 problems in the list. Expected two or more"):
        gapscope.measure([gapscope.problem(network(), (x, y))], [gapscope.Gap()])


def test_a_text_is_no_list_of_trusted_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "canary.py").write_text("open('sang', 'w').close()\ndef build(): return None\n")
    gapscope.save_checkpoint("a.pt", nn.Linear(2, 2), factory="canary:build", data="digits")
    message = r"`trusted` is the text 'net:\*'. Expected a list of them. Write `trusted=\['net:\*'\]`."
    with pytest.raises(UsageError, match=message):
        gapscope.load("a.pt", trusted="net:*")
    with pytest.raises(LoadError, match="Nothing was imported"):
        gapscope.load("a.pt", trusted=["net:*"])
    assert not (tmp_path / "sang").exists()
    assert "canary" not in sys.modules


@pytest.mark.parametrize("name", ["parameters", "allow_global"])
def test_a_text_is_no_list_of_names(name):
    with pytest.raises(UsageError, match=rf"`{name}` is the text '0.*'. Expected a list of them."):
        gapscope.load(SMALL, **{name: "0.*"})


def test_a_text_is_no_list_of_parameters():
    with pytest.raises(UsageError, match=r"`parameters` is the text '2\.\*'. Expected a list of them."):
        gapscope.problem(network(), blobs(), parameters="2.*")
    assert gapscope.problem(network(), blobs(), parameters=["2.*"]).size == 27


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"batchnorm": "re_estimated"},
            "`batchnorm` is 're_estimated'. Did you mean `re-estimated`? Expected one of eval, batch, re-estimated.",
        ),
        (
            {"hvp": "exakt"},
            "`hvp` is 'exakt'. Did you mean `exact`? Expected one of auto, exact, differences. Mend it.",
        ),
        ({"hvp": None}, "`hvp` is None. Expected one of auto, exact, differences. Mend it."),
        ({"dtype": "float46"}, "`dtype` is 'float46'. Did you mean `float64`? Expected one of float32, float64. Mend"),
        ({"dtype": "int64"}, "`dtype` is 'int64'. "),
    ],
)
def test_a_misspelt_setting_is_refused_and_not_taken_for_the_default(setting, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        gapscope.load("there is no such file", **setting)
    if "dtype" not in setting:
        with pytest.raises(UsageError, match=re.escape(message)):
            gapscope.problem(network(), blobs(), **setting)


def test_data_that_do_not_fit_are_refused():
    x, y = blobs()
    with pytest.raises(LoadError, match=r"do not fit"):
        gapscope.problem(network(), (x[:, :3], y))


def test_the_public_names_are_there_and_no_torch_is_imported_for_the_package():
    assert all(hasattr(gapscope, name) for name in gapscope.__all__)
    assert issubclass(gapscope.GapscopeError, GapscopeError)
    script = "import gapscope, sys; gapscope.read; assert 'torch' not in sys.modules; assert callable(gapscope.measure)"
    subprocess.run([sys.executable, "-c", script], check=True)
    script = "import gapscope; import gapscope.measure.session; assert callable(gapscope.measure)"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_notebook_shows_a_report():
    x, y = blobs()
    report = gapscope.measure(gapscope.problem(network(), (x, y)), [gapscope.Gap()])
    assert "<table" in report._repr_html_()


def test_a_problem_is_one_line():
    x, y = blobs()
    said = repr(gapscope.problem(network(), (x, y)))
    assert said == (
        "Problem(Sequential, 75 parameters, 120 samples of data of model, train split, cross-entropy, eval mode, "
        "torch.float32, cpu)"
    )
