"""The study of Keskar et al. by its smallest plan: every number again from the files, and nothing made twice."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from gapscope.errors import LoadError, UsageError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.trust import Trust
from gapscope.report.file import read
from gapscope.report.outcome import outcome_report
from gapscope.report.records import Report
from gapscope.results import Status
from gapscope.training.studies import keskar
from gapscope.training.studies.keskar import Bench, _left
from gapscope.training.studies.keskar.courses import _apart, _shared, against_loss, warm_start
from gapscope.training.studies.keskar.diverged import DIVERGED
from gapscope.training.studies.keskar.minima import PAPER, Minima, _label, unless_late
from gapscope.training.studies.keskar.recipes import remedies, sweep
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.plan import read_plan
from gapscope.training.studies.runs import DIGITS, fitted, training_data

PLAN = Path(keskar.__file__).with_name("plan.toml")
LARGE = 650


@pytest.fixture(scope="module")
def plan():
    return read_plan(keskar.Plan, PLAN, "smoke", {})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keskar")


@pytest.fixture(scope="module")
def outcome(folder, plan):
    with Lab(folder) as lab:
        return keskar.study(lab, plan)


def part(outcome, name):
    return next(part for part in outcome.parts if part.record.analyzer == name)


def rows(table):
    return {line.cells[0]: line.cells[1:] for line in table.lines if len(line.cells) > 1}


def test_every_part_of_the_paper_is_there(outcome):
    assert [part.record.analyzer for part in outcome.parts] == [
        "keskar-minima",
        "path",
        "keskar-sweep",
        "keskar-warm-start",
        "keskar-loss",
        "keskar-remedies",
    ]
    assert len(outcome.claims) == 19
    assert {claim.verdict for claim in outcome.claims} <= {"shows", "does not show", "cannot tell"}
    assert outcome.lead.startswith("Of 19 claims of Keskar et al. 2017, ")


def test_the_table_is_that_of_the_reports(outcome, folder):
    main = {"gap", "epsilon-sharpness", "eigenvalues", "adaptive-sharpness"}
    found = [
        one for one in map(read, folder.glob("*.report.h5")) if isinstance(one, Report) and set(one.results) == main
    ]
    assert len(found) == 6
    small = [one for one in found if one.training["batch_size"] == 64]
    values = np.array([float(one.results["gap"].quantities["test_accuracy"].value) for one in small])
    shown = rows(part(outcome, "keskar-minima").tables[0])["test accuracy %"][0]
    mean, spread = map(float, shown.split(" ± "))
    assert mean == pytest.approx(values.mean(), abs=0.06)
    assert spread == pytest.approx(values.std(ddof=1), rel=0.06, abs=0.06)
    kept = part(outcome, "keskar-minima").record.quantities["numbers"]
    where = kept.labels["measure"].index("test accuracy %"), kept.labels["regime"].index("small")
    assert sorted(kept.value[where]) == pytest.approx(sorted(values))


def test_at_equal_loss_the_large_batch_is_at_the_small_one_s_loss(outcome, plan):
    kept = part(outcome, "keskar-minima").record.quantities["numbers"]
    small, equal, long = kept.value[kept.labels["measure"].index("training loss")]
    assert (equal <= small * 1.001).all()
    assert (small <= plan.until_loss).all()
    assert (long > small).all()  # as many epochs are a tenth of the steps


def test_the_paper_s_columns_are_its_tables(outcome):
    shown = rows(part(outcome, "keskar-minima").tables[0])
    assert shown["full, 1e-3"][-1] == "167"
    large, small = 205.14, 1.23
    assert large / small == pytest.approx(167, abs=0.5)
    assert shown["test accuracy %"][-1] == "-0.22"
    paper = rows(part(outcome, "keskar-minima").tables[2])
    assert paper["test accuracy %"] == ("98.03", "97.81")
    assert all(large > small for _, *spaces in PAPER.values() for space in spaces for small, large in space)
    assert all(large < small for (small, large), *_ in PAPER.values())


def test_the_distance_from_the_start_is_that_of_the_checkpoints(outcome, folder):
    def distance(path):
        found = read_checkpoint(path, Trust())
        weights, start = found.tensors["model"], found.initial
        return math.sqrt(sum(float((weights[key] - start[key]).double().square().sum()) for key in start))

    runs = {}
    for path in folder.glob("mlp-adam-*.pt"):
        training = read_checkpoint(path, Trust()).training
        if (
            training["seed"] == 0
            and "reached" in training["stopped"]
            and not set(training) & {"augment", "adversarial"}
        ):
            runs.setdefault(training["batch_size"], []).append(distance(path))
    said = part(outcome, "path").notes[0]
    first = float(said.partition("over seeds: ")[2].split(",")[0])
    assert any(first == pytest.approx(runs[64][0] / other, rel=6e-3) for other in runs[LARGE])


def test_courses_meet_at_losses_that_all_went_through(outcome):
    quantity = part(outcome, "keskar-loss").record.quantities["sharpness"]
    losses = [float(label) for label in quantity.labels["training loss"]]
    assert losses == sorted(losses, reverse=True)
    assert quantity.value.shape == (2, len(losses))
    assert np.isfinite(quantity.value).all()


def test_courses_that_do_not_meet_say_so():
    apart = [(np.array([0.1, 0.2]), np.ones(2)), (np.array([0.3, 0.4]), np.ones(2))]
    assert _shared(apart) is None
    part, claims = _apart(apart)
    assert len(claims) == 2
    assert {claim.verdict for claim in claims} == {"cannot tell"}
    assert "0.1 to 0.2, 0.3 to 0.4" in claims[0].because
    assert part.record.notes == (claims[0].because,)


@pytest.mark.parametrize(
    ("stops", "every", "hurt"),
    [
        ({}, None, {"keskar-sweep"}),
        ({"until_loss": None, "epochs": 2}, 1, {"keskar-warm-start"}),
        ({"until_loss": None, "epochs": 6}, 2, {"keskar-loss"}),
    ],
)
def test_a_seed_with_a_run_that_diverged_is_left_out_where_it_would_stand_and_said(
    outcome, folder, plan, tmp_path, stops, every, hurt
):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with Lab(tmp_path) as lab:
        wild = fitted(replace(Bench(lab, plan, 64, LARGE).spec(1, 64, **stops), save_every=every))
        failure = f"{wild.stem}-{training_data(plan.data).fingerprint[:DIGITS]}.diverged.json"
        (tmp_path / failure).write_text(json.dumps({"epochs": 1, "steps": 3, "stopped": "diverged"}))
        found = keskar.study(lab, plan)
    said = "Left out, because a run diverged: seed 1."
    assert {one.record.analyzer for one in found.parts if said in one.notes} == hurt
    assert (said in found.about) == (not stops)
    assert [claim.text for claim in found.claims] == [claim.text for claim in outcome.claims]
    for name in hurt:
        assert part(found, name).tables[0].caption.endswith("a single seed")
        for quantity in part(found, name).record.quantities.values():
            assert np.isfinite(quantity.value).all()
    if not stops:
        numbers, whole = (part(one, "keskar-minima").record.quantities["numbers"] for one in (found, outcome))
        assert numbers.labels["seed"] == ("0",)
        np.testing.assert_array_equal(numbers.value[..., 0], whole.value[..., 0])


def test_where_every_seed_has_a_run_that_diverged_nothing_can_be_told(tmp_path, plan):
    plan = replace(plan, seeds=1)
    wild = replace(plan, lr=1e30)
    with Lab(tmp_path) as lab:
        tame = Bench(lab, plan, 64, LARGE)
        (run,) = lab.train([tame.spec(0, 64)])
        bench, found = Bench(lab, wild, 64, LARGE), Minima(small=[run], loss=[run], epochs=[run])
        kinds = {"adversarial": keskar.REMEDIES["adversarial"]}
        made = (
            warm_start(bench),
            against_loss(bench),
            sweep(bench, [64, LARGE]),
            remedies(bench, found, kinds),
        )
        for part, claims in made:
            assert part.record.status is Status.SKIPPED
            assert part.record.notes == (DIVERGED,)
            assert {(claim.verdict, claim.because) for claim in claims} == {("cannot tell", DIVERGED)}
        with pytest.raises(LoadError, match=r"was not made: .* Leave the run out, or lower its rate in the plan\."):
            keskar.study(lab, wild)


def test_nothing_is_made_twice(outcome, folder, plan):
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    with Lab(folder) as lab:
        again = keskar.study(lab, plan)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.claims == outcome.claims


def test_it_is_a_report(outcome):
    stored = outcome_report(outcome)
    assert stored.identity["study"] == "keskar"
    assert "keskar-sweep" in stored.results


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"remedies": ("augmentatoin",)}, "`augmentatoin` is no remedy. Did you mean `augmentation`?"),
        ({"saved_every": (2,)}, r"`saved_every` is \[2\]. Expected two numbers of epochs"),
        ({"paper": "C9"}, "The paper has no network `C9`"),
        ({"saved_every": (9, 20)}, r"Weights are saved every \[9, 20\] of \[6, 20\] epochs. Expected 1 or more"),
        ({"sweep": ()}, r"The plan has sweep \(\). Expected counts of 1 or more, lists that are not empty"),
        ({"switches": (-1, 2)}, r"The plan has switches \(-1, 2\). Expected counts of 1 or more"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(folder, plan, changes, said):
    with Lab(folder) as lab, pytest.raises(UsageError, match=said):
        keskar.study(lab, replace(plan, **changes))


def test_a_run_that_missed_the_loss_leaves_claims_at_equal_loss_untold(outcome):
    claim = next(claim for claim in outcome.claims if claim.verdict == "shows")
    first, late = (SimpleNamespace(train_loss=loss) for loss in (0.1, 0.2))
    assert unless_late([claim], [first], [first]) == (claim,)
    (told,) = unless_late([claim], [first], [first, late])
    assert told.verdict == "cannot tell"
    assert told.because == f"1 of 2 runs did not come to the loss; {claim.because}"


def test_data_without_images_and_without_test_samples_leave_out_what_they_cannot_be_asked(folder, plan):
    assert _left(plan) == (True, [])
    images, said = _left(replace(plan, data="digits"))
    assert not images
    assert said == ["Augmentation is left out: the data are no images."]
    np.savez(folder / "alone.npz", x=np.zeros((4, 3), np.float32), y=np.arange(4))
    _, said = _left(replace(plan, data=str(folder / "alone.npz")))
    assert said[-1] == "There are no test data: nothing can be said of test accuracy."


def test_labels_are_those_of_the_analyzer():
    assert [_label(epsilon) for epsilon in (1e-3, 5e-4, 2.5e-4)] == ["1e-3", "5e-4", "2.5e-4"]
