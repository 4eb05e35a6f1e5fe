"""Full plans on files of CIFAR-10, with their own networks: only counts and lists of rates are made small."""

import pickle
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

import gapscope
from gapscope.cli.study import StudyOptions, study_and_print
from gapscope.measure.analyzers.gap import Gap
from gapscope.report.file import read_report
from gapscope.training.recipe import Recipe
from gapscope.training.studies.lab import Lab, Spec
from gapscope.training.studies.plan import read_plan

STUDIES = Path(gapscope.__file__).parent / "training" / "studies"
TINY = (
    *("batch_sizes=[8,12]", "until_loss=2.4", "max_epochs=2", "draws=1", "epochs=2", "tuning_seeds=1"),
    *("curvature_times=1", "discards=[0.25]", "doublings=[1]"),
    *(f"{name}_rates=[0.01]" for name in ("sgd", "lars", "mclr", "cblr")),
)


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Write 24 and 8 samples as CIFAR-10 has them in Python: noise, brighter by class."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for name, count in (("data_batch_1", 12), ("data_batch_2", 12), ("test_batch", 8)):
        labels = rng.permutation(np.arange(count) % 10)
        pixels = (rng.integers(0, 120, (count, 3072)) + 13 * labels[:, None]).astype(np.uint8)
        (folder / name).write_bytes(pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=2))
    return folder


def test_a_full_plan_goes_to_its_end_on_cifar(cifar, tmp_path, capsys):
    options = StudyOptions(
        data=str(cifar), seeds=1, set=TINY, jobs=1, device="cpu", output=tmp_path / "out", quiet=True
    )
    study_and_print("gao-zhong", options)
    said = " ".join(capsys.readouterr().out.split())
    assert "24 training samples · lenet5 · batches of 8, 12 · 1 seed." in said
    assert "Of 11 claims of Gao and Zhong 2020, 11 cannot be told here." in said  # by one seed
    report = read_report(tmp_path / "out" / "study.h5")
    assert report.conditions["samples"] == 24
    assert len(report.results["claims"].quantities["verdict"].value) == 11
    page = (tmp_path / "out" / "study.html").read_text(encoding="utf-8")
    assert "Rates fitted to the curvature" in page


@pytest.mark.parametrize("name", ["keskar", "dai_zhu", "sngm"])
def test_the_other_networks_train_and_are_measured_on_cifar(cifar, tmp_path, name):
    kind = import_module(f"gapscope.training.studies.{name}").Plan
    plan = read_plan(kind, STUDIES / name / "plan.toml", "full", {"data": str(cifar)})
    recipe = Recipe(epochs=1, batch_size=12, lr=1e-3, augment=True)
    spec = Spec(recipe=recipe, model=plan.model, model_args=plan.model_args, data=plan.data)
    with Lab(tmp_path, device="cpu") as lab:
        (report,) = lab.measure(lab.train([spec]), (Gap(),))
    found = report.results["gap"].quantities
    assert (report.conditions["samples"], report.identity["model"]) == (24, plan.model)
    assert np.isfinite(found["train_loss"].value)
    assert np.isfinite(found["test_loss"].value)
