import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from gapscope.cli import study
from gapscope.errors import UsageError
from gapscope.measure.loading.datasets.data import load_data
from gapscope.measure.loading.models import build_model
from gapscope.measure.loading.trust import Trust
from gapscope.report.file import read, write
from gapscope.report.outcome import outcome_document, outcome_report
from gapscope.report.outcome_sheet import outcome_sheet
from gapscope.report.page import page
from gapscope.report.terminal import text
from gapscope.training.recipe import Recipe
from gapscope.training.studies import oyedotun
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.oyedotun.runs import network
from gapscope.training.studies.plan import read_plan
from gapscope.training.studies.runs import Spec, fitted

PLAN = Path(oyedotun.__file__).with_name("plan.toml")
NETWORKS = ("linear MLP", "MLP", "narrow MLP", "LeNet-5")


def plan(table="smoke", **changes):
    return read_plan(oyedotun.Plan, PLAN, table, changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("oyedotun")


@pytest.fixture(scope="module")
def outcome(folder):
    with Lab(folder, jobs=1, device="cpu") as lab:
        return oyedotun.study(lab, plan())


def test_every_part_and_claim_is_there(outcome):
    assert [part.title for part in outcome.parts] == [
        "Training",
        *(f"Near-rank in {name}" for name in NETWORKS),
        "All networks",
    ]
    names = [part.record.analyzer for part in outcome.parts]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch("oyedotun-[a-z0-9-]+", name) for name in names)
    assert len(outcome.claims) == 9
    assert {claim.verdict for claim in outcome.claims} <= {"shows", "does not show", "cannot tell"}


def test_no_smoke_run_is_left_out(outcome):
    assert not [said for said in outcome.about if said.startswith("Left out")]


def test_table_and_record_have_the_numbers_of_the_reports(folder, outcome):
    """The near-ranks of one network, read anew from the reports that lie in the folder."""
    shares = {}
    for path in folder.glob("mlp-*.report.h5"):
        report = read(path)
        record = report.results["near-rank"]
        counts, units = record.quantities["near_rank"], record.quantities["units"]
        linear = "identity" in str(report.identity)
        if record.settings["own_batch"] or linear or units.value[0] != 24:
            continue
        key = report.training["batch_size"], report.training["seed"], report.training["epochs"]
        shares[key] = 100 * counts.value[:-1, 0] / 24
    record = next(part.record for part in outcome.parts if part.title == "Near-rank in MLP")
    curves = record.quantities["share_of_full_rank"]
    assert curves.labels["measured"] == ("own, abs:1e-1", "control, abs:1e-1", "same, rel:1e-2")
    small = np.mean([found for (size, _, _), found in shares.items() if size == 32], axis=0)
    np.testing.assert_allclose(curves.value[:, 2, 0], small, rtol=1e-12)
    means = record.quantities["means"]
    np.testing.assert_allclose(means.value[2].mean(axis=0)[0], small.mean(), rtol=1e-12)
    slope = np.polyfit(np.log2([32, 130]), means.value[2].mean(axis=0), 1)[0]
    numbers = outcome.parts[-1].record.quantities["numbers"]
    assert numbers.labels["number"][3] == "same"
    np.testing.assert_allclose(numbers.value[3, NETWORKS.index("MLP"), 0], slope, rtol=0, atol=1e-9)


def test_it_reads_well_and_is_stored(outcome, tmp_path):
    shown = text(outcome_document(outcome))
    assert "beside the paper's claims" in shown
    assert all(f"Near-rank in {name}" in shown for name in NETWORKS)
    assert "test accuracy" in page(outcome_sheet(outcome))
    write(outcome_report(outcome), tmp_path / "study.h5")
    assert next(iter(read(tmp_path / "study.h5").results)) == "claims"


def test_a_second_call_makes_nothing_anew(folder, outcome):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with Lab(folder, jobs=1, device="cpu") as lab:
        again = oyedotun.study(lab, plan())
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.claims == outcome.claims


def test_a_model_of_the_users_takes_the_place_of_the_networks(tmp_path):
    own = plan(model="mlp", model_args={"inputs": 784, "hidden": [8]}, seeds=1)
    with Lab(tmp_path, jobs=1, device="cpu") as lab:
        outcome = oyedotun.study(lab, own)
    assert [part.title for part in outcome.parts] == ["Training", "Near-rank in mlp", "All networks"]
    assert len(outcome.claims) == 5  # depth and width are asked of networks of the plan
    assert {claim.verdict for claim in outcome.claims} == {"cannot tell"}  # one seed has no spread


NET = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 10))
"""


def test_a_model_in_a_file_is_named_without_its_folder(tmp_path, capsys):
    home = tmp_path / "alice"
    home.mkdir()
    (home / "net.py").write_text(NET)
    with Lab(tmp_path / "runs", jobs=1, device="cpu") as lab:
        outcome = oyedotun.study(lab, plan(model=f"{home}/net.py:Net", model_args={}, seeds=1))
    assert [part.title for part in outcome.parts] == ["Training", "Near-rank in net.py:Net", "All networks"]
    assert outcome.parts[1].record.analyzer == "oyedotun-net-py-net"
    study._show(outcome, tmp_path, json=True)
    found = [capsys.readouterr().out.encode(), *((tmp_path / name).read_bytes() for name in ("study.h5", "study.html"))]
    assert all(b"net.py:Net" in one and b"alice" not in one for one in found)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("a b", "A.b"), "The network `A.b` is called `oyedotun-a-b` in the report, as the network `a b` is. Expected"),
        (("Training",), "`Training` is called `oyedotun-training` in the report, as another part of the study is."),
        (("networks",), "`networks` is called `oyedotun-networks` in the report, as another part of the study is."),
        (("/one/net.py:Net", "/two/net.py:Net"), "as the network `net.py:Net` is. Expected a name of its own. Rename"),
    ],
)
def test_names_that_are_one_in_the_report_are_refused(tmp_path, names, said):
    model = {"model": "mlp", "model_args": {"inputs": 784, "hidden": [8]}}
    several = dataclasses.replace(plan(), networks=dict.fromkeys(names, model))
    with Lab(tmp_path / "runs", jobs=1, device="cpu") as lab, pytest.raises(UsageError) as error:
        oyedotun.study(lab, several)
    assert said in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_data_without_a_test_split_have_no_accuracy_to_judge(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "data.npz", x=rng.normal(size=(64, 5)).astype("f4"), y=rng.integers(0, 3, 64))
    own = plan(data=str(tmp_path / "data.npz"), model="mlp", model_args={"inputs": 5, "hidden": [8], "outputs": 3})
    with Lab(tmp_path / "runs", jobs=1, device="cpu") as lab:
        outcome = oyedotun.study(lab, dataclasses.replace(own, batches=(8, 16), until_loss=1.09))
    assert outcome.claims[-1].verdict == "cannot tell"
    assert "–" in text(outcome_document(outcome))


def test_when_no_seed_counts_nothing_is_judged_and_why_is_said(tmp_path):
    wild = plan(model="mlp", model_args={"inputs": 784, "hidden": [8]}, lr=1e30, seeds=1)
    with Lab(tmp_path, jobs=1, device="cpu") as lab:
        outcome = oyedotun.study(lab, wild)
    assert outcome.claims == outcome.parts == ()
    assert outcome.about[-1] == "Left out: seed 0 of mlp: batch 32 diverged."
    assert "none was judged" in outcome.lead


def test_a_network_that_diverged_is_missing_in_every_claim_and_said_to_be(tmp_path):
    model = {"model": "mlp", "model_args": {"inputs": 784, "hidden": [8]}}
    both = dataclasses.replace(plan(seeds=1), networks={"tame": model, "wild": {**model, "lr": 1e30}})
    with Lab(tmp_path, jobs=1, device="cpu") as lab:
        outcome = oyedotun.study(lab, both)
    assert len(outcome.claims) == 5
    assert all(claim.because.endswith("; wild: cannot tell (no seed is left)") for claim in outcome.claims)
    assert outcome.about[-1] == "Left out: seed 0 of wild: batch 32 diverged."


def test_a_misspelt_key_is_refused():
    with pytest.raises(UsageError, match=r"A plan of this study has no `own_cut`\. Did you mean `own_cuts`\?"):
        plan(own_cut=["abs:1"])


def test_a_plan_without_a_network_is_refused(tmp_path):
    with Lab(tmp_path, jobs=1, device="cpu") as lab, pytest.raises(UsageError) as error:
        oyedotun.study(lab, dataclasses.replace(plan(), networks={}))
    assert str(error.value) == (
        "The plan names no network. Expected a `model`, or tables under `networks`. Give `--model`."
    )


IMAGES = "teacher:samples=40,image={},outputs=10,seed=0"


@pytest.mark.parametrize(
    ("table", "data"), [("full", IMAGES.format("1x28x28")), ("full", IMAGES.format("3x32x32")), ("quick", "digits")]
)
def test_networks_of_the_other_plans_fit_their_data(table, data, tmp_path):
    found = dataclasses.replace(plan(table, data=data), batches=(4, 8))
    assert {found.wide, found.narrow} <= set(found.networks)
    usual = {"data": found.data, "lr": found.lr, "until_loss": found.until_loss}
    with Lab(tmp_path, jobs=1, device="cpu") as lab:
        for name, given in found.networks.items():
            one = network(name, given, usual, found.batches, lab)
            whole = fitted(Spec(recipe=Recipe(steps=1), model=one.model, model_args=one.model_args, data=one.data))
            model = build_model(whole.model, dict(whole.model_args), recorded=False, trust=Trust())[0]
            data = load_data(one.data, "train", recorded=False, trust=Trust())
            assert model(data.inputs[:2]).shape == (2, 10)
