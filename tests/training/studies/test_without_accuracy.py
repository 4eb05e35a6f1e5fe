"""Studies on numbers to predict: the loss knows no right answers, and nothing is said of accuracy."""

import importlib
from pathlib import Path

import numpy as np
import pytest

from gapscope.report.outcome import outcome_document, outcome_report
from gapscope.report.outcome_sheet import outcome_sheet
from gapscope.report.page import page
from gapscope.report.terminal import text
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.plan import read_plan


@pytest.mark.parametrize(("name", "untold", "told"), [("keskar", 7, 10), ("sngm", 3, 1), ("gao_zhong", 9, 4)])
def test_a_study_ends_and_cannot_tell_what_is_of_accuracy(tmp_path, name, untold, told):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 8)).astype("f4")
    y = np.tanh(x @ rng.normal(size=8)).astype("f4") + np.float32(0.1)
    np.savez(tmp_path / "data.npz", x_train=x[:300], y_train=y[:300], x_test=x[300:], y_test=y[300:])
    study = importlib.import_module(f"gapscope.training.studies.{name}")
    changes = {"data": str(tmp_path / "data.npz"), "model_args": {"outputs": 1}}
    plan = read_plan(study.Plan, Path(study.__file__).with_name("plan.toml"), "smoke", changes)
    with Lab(tmp_path / "runs", jobs=1, device="cpu") as lab:
        outcome = study.study(lab, plan)
    assert "The loss knows no right answers: nothing can be said of test accuracy." in outcome.about
    words = ("accurac", "generalize worse", "helps the large batch")
    of_accuracy = [claim for claim in outcome.claims if any(word in claim.text for word in words)]
    assert (len(of_accuracy), len(outcome.claims) - len(of_accuracy)) == (untold, told)
    assert {claim.verdict for claim in of_accuracy} == {"cannot tell"}
    assert outcome_report(outcome).results
    assert page(outcome_sheet(outcome))
    assert "+–" not in text(outcome_document(outcome))
