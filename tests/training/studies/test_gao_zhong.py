"""The study of Gao and Zhong by its smallest plan: every number again from the files, and nothing made twice."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gapscope.errors import UsageError
from gapscope.measure.loading import build_model
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.trust import Trust
from gapscope.report.figures import NONE
from gapscope.report.file import read
from gapscope.report.outcome import outcome_document, outcome_report
from gapscope.training.studies import gao_zhong
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.plan import read_plan
from gapscope.training.studies.runs import training_data

PLAN = Path(gao_zhong.__file__).with_name("plan.toml")
SMALL, LARGE = 128, 650


def planned(table="smoke", **changes):
    return read_plan(gao_zhong.Plan, PLAN, table, changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gao-zhong")


@pytest.fixture(scope="module")
def outcome(folder):
    with Lab(folder, device="cpu") as lab:
        return gao_zhong.study(lab, planned())


def part(outcome, name):
    return next(part for part in outcome.parts if part.record.analyzer == name)


def rows(table):
    return [line.cells for line in table.lines if len(line.cells) > 1]


def trained(folder, **wanted):
    """Return the checkpoints with these settings, by seed."""
    found = [read_checkpoint(path, Trust()) for path in sorted(folder.glob("*.pt"))]
    found = [one for one in found if all(one.training.get(key) == value for key, value in wanted.items())]
    return sorted(found, key=lambda one: one.training["seed"])


def test_every_part_and_claim_is_there(outcome):
    names = ["gao-zhong-steps", "gao-zhong-layers", "gao-zhong-remedies", "gao-zhong-rates"]
    assert [part.record.analyzer for part in outcome.parts] == names
    assert all(part.tables and part.record.quantities for part in outcome.parts)
    assert len(outcome.claims) == 13
    assert all(claim.because for claim in outcome.claims)
    assert outcome.lead.startswith("Of 13 claims of Gao and Zhong 2020, ")


def test_the_formula_s_gradients_are_those_of_every_sample_of_the_checkpoints(outcome, folder):
    quantity = part(outcome, "gao-zhong-steps").record.quantities["gradient_norm_formula"]
    assert quantity.labels["batch size"] == (str(SMALL), str(LARGE))
    data = training_data("digits:size=8")
    early = trained(folder, batch_size=SMALL, lr=0.3, epochs=1, momentum=0.0)
    assert [one.training["seed"] for one in early] == [0, 1]
    norms = []
    for one in early:
        model = build_model("mlp", {"hidden": [8]}, recorded=False, trust=Trust())[0].double()
        model.load_state_dict(one.tensors["model"])
        losses = torch.nn.functional.cross_entropy(model(data.inputs.double()), data.targets, reduction="none")
        each = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
        layers = [[torch.cat([g[i].flatten(), g[i + 1].flatten()]) for g in each] for i in (0, 2)]
        stacked = [torch.stack(layer) for layer in layers]
        square = [float(layer.mean(0).square().sum()) for layer in stacked]
        trace = [float((layer - layer.mean(0)).square().sum(1).mean()) for layer in stacked]
        share = [(1300 - size) / (1299 * size) for size in (SMALL, LARGE)]
        norms.append([[math.sqrt(g + t * s) for s in share] for g, t in zip(square, trace, strict=True)])
    eps = torch.finfo(torch.float32).eps  # in which the study measures
    assert quantity.value[0] == pytest.approx(np.mean(norms, axis=0), rel=1e3 * eps)


def test_layers_are_those_of_the_reports(outcome, folder):
    reports = [read(path) for path in folder.glob("*.report.h5")]
    found = [report for report in reports if "curvature" in report.results]
    assert len(found) == 4
    medians = [report.results["curvature"].quantities["median"].value for report in found]
    sizes = [report.training["batch_size"] for report in found]
    shown = part(outcome, "gao-zhong-layers").record.quantities["curvature_median"]
    for place, size in enumerate((SMALL, LARGE)):
        own = np.mean([median for median, other in zip(medians, sizes, strict=True) if other == size], axis=0)
        assert shown.value[:, place] == pytest.approx(own, rel=1e-12)
    assert all(report.training["train_loss"] <= 1.5 for report in found)


def test_the_tuned_rate_is_that_of_the_lowest_training_loss_of_seeds_that_nothing_else_has(outcome, folder):
    shown = rows(part(outcome, "gao-zhong-rates").tables[0])
    for line, name in zip(shown, ("sgd", "lars", "mclr", "cblr") * 2, strict=True):
        assert line[0] == name
        size = SMALL if shown.index(line) < 4 else LARGE
        tried = trained(folder, optimizer=name, batch_size=size, seed=1000, schedule="cosine")
        losses = {one.training["lr"]: one.training["train_loss"] for one in tried}
        assert len(losses) == 2
        assert float(line[1]) == min(losses, key=losses.get)
        final = trained(folder, optimizer=name, batch_size=size, lr=float(line[1]), schedule="cosine")
        final = [one for one in final if one.training["seed"] < 2]
        mean = np.mean([one.training["train_loss"] for one in final])
        assert float(line[2].split(" ± ")[0]) == pytest.approx(mean, rel=0.02)


def test_remedies_are_set_beside_plain_batches(outcome):
    names = [
        f"small batch {SMALL}",
        f"large batch {LARGE}",
        "discarding 25 %",
        "discarding 50 %",
        "batch x2",
        "batch x4",
    ]
    equal, reached = part(outcome, "gao-zhong-remedies").tables
    assert [line[0] for line in rows(equal)] == names
    assert {line[0] for line in rows(reached)} <= set(names)
    assert [line[-1] == NONE for line in rows(equal)] == [False, True] + [False] * 4
    quantity = part(outcome, "gao-zhong-remedies").record.quantities["numbers"]
    assert (quantity.value[:, quantity.labels["measure"].index("epochs")] == 4).all()


def test_nothing_is_made_twice(outcome, folder):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with Lab(folder, device="cpu") as lab:
        again = gao_zhong.study(lab, planned())
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.claims == outcome.claims


def test_it_is_a_report_and_a_document(outcome):
    stored = outcome_report(outcome)
    assert stored.identity["study"] == "gao-zhong"
    assert "gao-zhong-steps" in stored.results
    assert outcome_document(outcome).blocks


def test_a_misspelt_key_is_refused():
    with pytest.raises(UsageError, match=r"no `batch_size`\. Did you mean `batch_sizes`\?"):
        planned(batch_size=[1, 2])


def test_one_batch_size_is_refused(tmp_path):
    with Lab(tmp_path) as lab, pytest.raises(UsageError, match=r"The batch sizes are 650\. Expected two or more\."):
        gao_zhong.study(lab, planned(batch_sizes=[650, "50 %"]))


@pytest.mark.parametrize(
    "change",
    [
        {"sgd_rates": [0.1]},
        {"tuning_seeds": 0},
        {"curvature_times": 0},
        {key: [] for key in ("sgd_rates", "lars_rates", "mclr_rates", "cblr_rates")},
    ],
)
def test_grids_of_several_lengths_or_of_nothing_are_refused(tmp_path, change):
    with Lab(tmp_path) as lab, pytest.raises(UsageError, match="Expected one or more of everything, and as many rates"):
        gao_zhong.study(lab, planned(**change))


@pytest.mark.parametrize("times", [2, 1000])  # seldom, so that the loss shows it, and at every step
def test_what_diverges_is_left_out_and_said(tmp_path, times):
    wild = planned(lr=1e30, sgd_rates=[1e30, 1e30], mclr_rates=[1e30, 1e30], draws=2, max_epochs=2)
    wild = replace(wild, curvature_times=times)
    with Lab(tmp_path, device="cpu") as lab:
        found = gao_zhong.study(lab, replace(wild, seeds=2))
    verdicts = {claim.verdict for claim in found.claims}
    assert verdicts == {"cannot tell"}
    assert "Left out: early: 2 of 2 runs diverged." in part(found, "gao-zhong-steps").notes
    assert f"Left out: batch {LARGE}: 2 of 2 runs diverged." in part(found, "gao-zhong-layers").notes
    assert any(
        "diverged at every rate" in note and "batch x4" in note for note in part(found, "gao-zhong-remedies").notes
    )
    lost = "small batch, sgd; small batch, mclr; large batch, sgd; large batch, mclr"
    assert f"Left out: {lost}: diverged at every rate." in part(found, "gao-zhong-rates").notes
    assert [line[0] for line in rows(part(found, "gao-zhong-rates").tables[0])] == ["lars", "cblr"] * 2
    assert not part(found, "gao-zhong-remedies").tables
    assert outcome_document(found).blocks
