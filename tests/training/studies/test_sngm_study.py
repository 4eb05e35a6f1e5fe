import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from gapscope.errors import UsageError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.datasets.data import load_data
from gapscope.measure.loading.models import build_model
from gapscope.measure.loading.trust import Trust
from gapscope.report.file import read
from gapscope.report.outcome import outcome_document, outcome_report
from gapscope.report.records import Record, Report
from gapscope.report.terminal import text
from gapscope.results import Quantity, Status, scalar
from gapscope.training.studies import sngm
from gapscope.training.studies.lab import Lab
from gapscope.training.studies.numbers import mean_std
from gapscope.training.studies.plan import read_plan
from gapscope.training.studies.sngm.parts import accuracy, over_seeds, rivals
from gapscope.training.studies.sngm.runs import APART, Bench, Group, Tuned
from gapscope.training.studies.sngm.steps import claim, steps

TOML = Path(sngm.__file__).with_name("plan.toml")
NAMES = ("sgd", "lars", "lamb", "sngm")
EPS = torch.finfo(torch.float64).eps


def smoke(**changes):
    return read_plan(sngm.Plan, TOML, "smoke", changes)


def studied(folder, plan):
    with Lab(folder, jobs=1, device="cpu") as lab:
        return sngm.study(lab, plan)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sngm")
    return folder, studied(folder, smoke())


def record(outcome, name):
    return next(part.record for part in outcome.parts if part.record.analyzer == name)


def part_of(outcome, name):
    return next(part for part in outcome.parts if part.record.analyzer == name)


def trained(folder):
    """Return every checkpoint at the end of a run with what it records."""
    ends = [path for path in sorted(folder.glob("*.pt")) if "-epoch" not in path.name]
    return [(path, read_checkpoint(path, Trust())) for path in ends]


def found(folder, **wanted):
    """Return the checkpoints of a recipe, by seed."""
    kept = [one for one in trained(folder) if all(one[1].training.get(key) == value for key, value in wanted.items())]
    return sorted(kept, key=lambda one: one[1].training["seed"])


def test_accuracy(path):
    """Return the share of the test samples that a checkpoint gets right, in percent, by a plain forward pass."""
    data = load_data("digits:size=8", "test", recorded=False, trust=Trust())
    model, *_ = build_model("mlp", {"hidden": [8]}, recorded=False, trust=Trust())
    model.load_state_dict(read_checkpoint(path, Trust()).tensors["model"])
    with torch.no_grad():
        right = model(data.inputs).argmax(dim=1) == data.targets
    return 100 * int(right.sum()) / len(data)


test_accuracy.__test__ = False


def rows(table):
    """Return the cells of a table below the titles of their sections."""
    titled, title = {}, ""
    for line in table.lines:
        if len(line.cells) == 1:
            title = line.cells[0]
        else:
            titled[title, line.cells[0]] = line.cells[1:]
    return titled


def test_every_part_is_there_and_every_claim_is_judged(done):
    _, outcome = done
    assert [part.record.analyzer for part in outcome.parts] == [
        "sngm-tuning",
        "sngm-accuracy",
        "sngm-rivals",
        "sngm-untuned",
        "sngm-sharpness",
        "sngm-steps",
    ]
    assert all(claim.verdict in ("shows", "does not show", "cannot tell") for claim in outcome.claims)
    assert [claim.text for claim in outcome.claims] == [
        "SGD, LARS and LAMB lose test accuracy from batch 256 to 1,300",
        "at batch 1,300 SNGM's test accuracy is above SGD's",
        "at batch 1,300 SNGM's test accuracy is above LARS's",
        "no step is longer than eta / (1 - beta)",
    ]
    assert [claim.own for claim in outcome.claims] == [False, False, False, True]
    said = text(outcome_document(outcome))
    assert "24 steps at batch 256, 4 at 1,300" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80
    assert {part.record.analyzer for part in outcome.parts} <= set(outcome_report(outcome).results)


def test_the_rate_with_the_lowest_loss_on_the_tuning_seeds_is_taken(done):
    folder, outcome = done
    rates = record(outcome, "sngm-tuning").quantities["rate_taken"].value
    losses = record(outcome, "sngm-tuning").quantities["every_loss_by_rate"].value
    for i, name in enumerate(NAMES):
        for j, size in enumerate((256, 1300)):
            tried = [one.training for _, one in found(folder, optimizer=name, batch_size=size, seed=APART)]
            assert len(tried) == 2
            best = min(tried, key=lambda training: training["train_loss"])
            assert rates[i, j] == best["lr"]
            assert sorted(losses[i, j]) == sorted(training["train_loss"] for training in tried)


def test_the_accuracies_are_those_of_the_checkpoints_of_the_judged_seeds(done):
    folder, outcome = done
    part = part_of(outcome, "sngm-accuracy")
    rates = record(outcome, "sngm-tuning").quantities["rate_taken"].value
    quantity, table = part.record.quantities["test_accuracy"], rows(part.tables[0])
    for i, name in enumerate(NAMES):
        for j, (size, title) in enumerate(((256, "batch 256, 24 steps"), (1300, "batch 1,300, 4 steps"))):
            runs = found(folder, optimizer=name, batch_size=size, lr=rates[i, j])
            judged = [path for path, one in runs if one.training["seed"] < APART]
            values = np.array([test_accuracy(path) for path in judged])
            assert len(values) == 2
            assert quantity.value[i, j] == pytest.approx(values.mean(), rel=4 * EPS)
            assert quantity.sampling_error[i, j] == pytest.approx(values.std(ddof=1) / math.sqrt(2), rel=1e3 * EPS)
            assert table[title, name][3:] == (mean_std(values), "0 of 2")


def test_the_untuned_rates_are_that_of_the_smallest_batch_scaled(done):
    folder, outcome = done
    rates = record(outcome, "sngm-tuning").quantities["rate_taken"].value
    quantity = record(outcome, "sngm-untuned").quantities["untuned_accuracy"]
    assert quantity.labels["rates"] == ("tuned", "linear", "sqrt")
    for i, name in enumerate(NAMES):
        for j, power in ((1, 1.0), (2, 0.5)):
            runs = found(folder, optimizer=name, batch_size=1300, lr=rates[i, 0] * (1300 / 256) ** power)
            values = [test_accuracy(path) for path, _ in runs]
            assert len(values) == 2
            assert quantity.value[i, j, 0] == pytest.approx(np.mean(values), rel=4 * EPS)


def test_all_optimizers_have_the_momentum_and_the_decay_of_the_plan(done):
    folder, _ = done
    for _, one in trained(folder):
        training = one.training
        assert (training["weight_decay"], training["schedule"], training["epochs"]) == (1e-4, "polynomial:power=1.1", 4)
        if training["optimizer"] == "lamb":
            assert (training["momentum"], training["options"]) == (0.0, "beta1=0.9")
        else:
            assert training["momentum"] == 0.9


def test_a_first_step_is_eta_long_and_the_others_are_those_of_the_weights(done):
    folder, outcome = done
    quantity = record(outcome, "sngm-steps").quantities["step_length_over_bound"]
    assert quantity.value.shape == (2, 4)
    # u_1 is a unit vector: its share of the bound is 1 - beta
    assert (np.abs(quantity.value[:, 0] - 0.1) <= quantity.numerical_error[:, 0]).all()
    rate = record(outcome, "sngm-tuning").quantities["rate_taken"].value[3, 1]
    for seed in range(2):
        (path, one), *_ = (
            entry
            for entry in found(folder, optimizer="sngm", batch_size=1300, lr=rate, seed=seed)
            if (folder / f"{entry[0].stem}-epoch3.pt").exists()
        )
        before = torch.load(folder / f"{path.stem}-epoch3.pt", weights_only=True)["model"]
        moved = math.sqrt(sum(float((one.tensors["model"][key] - before[key]).square().sum()) for key in before))
        expected = moved / (rate * (1 / 4) ** 1.1 * 10)
        assert quantity.value[seed, 3] == pytest.approx(expected, abs=quantity.numerical_error[seed, 3])
    assert outcome.claims[-1].verdict == "shows"


def test_the_bound_is_judged_by_the_longest_move_less_rounding():
    error = np.full((1, 2), 1e-6)
    assert claim(np.array([[0.1, 1 + 1e-7]]), error).verdict == "shows"
    assert claim(np.array([[0.1, 1.01]]), error).verdict == "does not show"
    assert claim(np.array([[0.1, 1.01]]), error).because == "longest 1.01 of its bound, of 2 moves of 1 step each"
    nothing = claim(np.empty((0, 0)), np.empty((0, 0)), missing="all of them diverged")
    assert (nothing.verdict, nothing.because) == ("cannot tell", "all of them diverged")


def test_moves_of_several_steps_stand_beside_the_sum_of_their_bounds(tmp_path):
    batch_normed = {"model": "f1", "model_args": {"inputs": 64}}  # whose running statistics do not take steps
    plan = smoke(**batch_normed, batches=[325, 650], epochs=2, step_seeds=1)
    with Lab(tmp_path, jobs=1, device="cpu") as lab:
        bench = Bench(lab, plan, 1300, (325, 650))
        runs = lab.train([bench.spec("sngm", 650, 0.5, 0)])
        part, (judged,) = steps(bench, Group(rate=0.5, runs=tuple(runs)))
    ratio = part.record.quantities["step_length_over_bound"]
    rates = [0.5 * (1 - step / 4) ** 1.1 for step in range(4)]
    # |u_1| = 1 and |u_2| <= 1.9
    assert 0 < ratio.value[0, 0] <= (rates[0] + 1.9 * rates[1]) / (10 * sum(rates[:2])) + ratio.numerical_error[0, 0]
    first, last = (read_checkpoint(path, Trust()).tensors["model"] for _, path in runs[0].saved)
    weights = [name for name in first if name.endswith(("weight", "bias"))]
    moved = math.sqrt(sum(float((last[name] - first[name]).double().square().sum()) for name in weights))
    expected = moved / (10 * sum(rates[2:]))
    assert ratio.value[0, 1] == pytest.approx(expected, abs=ratio.numerical_error[0, 1])
    assert judged.verdict == "shows"
    assert judged.text == "2 steps together go no farther than their eta / (1 - beta) added up"
    assert judged.because.endswith("of 2 moves of 2 steps each")
    assert part.notes[0].startswith("Each move is 2 steps together, their bounds added up")


def test_the_sharpness_is_that_of_the_reports(done):
    folder, outcome = done
    part = part_of(outcome, "sngm-sharpness")
    assert set(part.record.quantities) == {"training_loss", "top_eigenvalue", "epsilon_sharpness"}
    table, top = rows(part.tables[0]), part.record.quantities["top_eigenvalue"].value
    reports = [one for path in folder.glob("*.report.h5") if "eigenvalues" in (one := read(path)).results]
    assert len(reports) == 16
    for i, name in enumerate(NAMES):
        sides = [
            [
                float(one.results["eigenvalues"].quantities["top"].value)
                for one in reports
                if (one.training["optimizer"], one.training["batch_size"]) == (name, size)
            ]
            for size in (256, 1300)
        ]
        assert top[i] == pytest.approx([np.mean(side) for side in sides], rel=4 * EPS)
        assert [table[name, size][1] for size in ("256", "1,300")] == [mean_std(sorted(side)) for side in sides]
        ratio, _ = table[name, "ratio"][1].split(" (")
        expected = math.exp(np.log(sides[1]).mean() - np.log(sides[0]).mean())
        assert float(ratio) == pytest.approx(expected, abs=10.0 ** -len(ratio.partition(".")[2]))


# Answers


def group(*accuracies, diverged=0, edge=""):
    def report(value):
        numbers = {"test_accuracy": value, "train_accuracy": value, "train_loss": 1 / value}
        quantities = {name: Quantity(value=scalar(number), doc="") for name, number in numbers.items()}
        gap = Record(analyzer="gap", version="1", status=Status.EXACT, quantities=quantities)
        return Report(identity={}, training={}, conditions={}, environment={}, results={"gap": gap})

    return Group(rate=0.1, reports=tuple(map(report, accuracies)), diverged=diverged, edge=edge)


def answered(large, small=(95.0, 95.2)):
    """Return the part and the claims for groups at the largest batch."""
    names = tuple(large)
    plan = dataclasses.replace(smoke(), scales=dict.fromkeys(names, 0.1))
    bench = Bench(None, plan, 1300, (256, 1300))
    cells = {(name, 256): group(*small) for name in names} | {(name, 1300): one for name, one in large.items()}
    groups = {(name, size): cells[name, size] for name in names for size in bench.sizes}
    (part, falling), (_, better) = accuracy(bench, groups), rivals(bench, groups)
    return part, (*better, *falling)


def answers(large, small=(95.0, 95.2)):
    """Return the part and the verdicts for groups at the largest batch."""
    part, claims = answered(large, small)
    return part, [claim.verdict for claim in claims]


def test_an_interval_on_one_side_of_zero_decides():
    _, found = answers({"sgd": group(80.0, 80.2), "lars": group(94.0, 94.2), "sngm": group(90.0, 90.2)})
    assert found == ["shows", "does not show", "shows"]


def test_intervals_that_hold_zero_tell_nothing():
    _, found = answers({"sgd": group(80.0, 90.0), "sngm": group(84.0, 88.0)})
    assert found == ["cannot tell", "cannot tell"]


def test_one_optimizer_that_gains_accuracy_refutes_that_all_lose_it():
    _, found = answers({"sgd": group(99.0, 99.2), "lamb": group(80.0, 80.2), "sngm": group(90.0, 90.2)})
    assert found == ["does not show", "does not show"]


def test_sngm_that_keeps_its_accuracy_does_not_refute_that_the_others_lose_theirs():
    _, found = answers({"sgd": group(80.0, 80.2), "sngm": group(99.0, 99.2)})
    assert found == ["shows", "shows"]


def test_without_runs_nothing_can_be_told_and_diverged_ones_are_counted():
    part, found = answers({"sgd": group(diverged=2), "sngm": group(90.0, 90.2)})
    assert found == ["cannot tell", "cannot tell"]
    assert rows(part.tables[0])["batch 1,300, 4 steps", "sgd"] == ("0.1", "–", "–", "–", "2 of 2")
    assert part.notes[1:] == (
        "Diverged runs are left out of the means, which favours the optimizers that they belong to.",
    )


def test_a_mean_over_one_seed_has_no_error():
    quantity = over_seeds({("sgd", 8): group(90.0), ("sgd", 16): group()}, "gap/test_accuracy", "accuracy")
    np.testing.assert_array_equal(quantity.value, [[90.0, math.nan]])
    np.testing.assert_array_equal(quantity.sampling_error, [[math.nan, math.nan]])


def test_a_claim_says_which_rates_are_at_an_end_of_their_grid():
    large = {"sgd": group(80.0, 80.2, edge="lowest"), "sngm": group(90.0, 90.2, edge="highest")}
    _, (better, falling) = answered(large)
    assert better.because.endswith("; at an end of its grid: sngm at 1,300 (highest), sgd at 1,300 (lowest)")
    assert falling.because.endswith("; at an end of its grid: sgd at 1,300 (lowest)")
    _, claims = answered({"sgd": group(80.0, 80.2), "sngm": group(90.0, 90.2)})
    assert not any("grid" in one.because for one in claims)


def test_a_rate_with_which_a_tuning_seed_diverged_is_not_taken():
    rates = np.array([1.0, 2.0, 3.0])
    one = Tuned(rates, np.array([[0.5, 0.7], [0.4, 0.6], [0.1, math.nan]]))
    assert (one.best, one.rate, one.edge) == (1, 2.0, "")
    assert Tuned(rates, np.array([[0.1], [0.2], [0.3]])).edge == "lowest"
    assert Tuned(rates, np.array([[0.3], [0.2], [0.1]])).edge == "highest"
    nothing = Tuned(rates, np.full((3, 1), math.nan))
    assert (nothing.best, nothing.rate, nothing.edge) == (None, None, "")


def test_optimizers_that_diverge_at_every_rate_are_said_to(tmp_path):
    outcome = studied(tmp_path, smoke(scales={"sgd": 1e36, "sngm": 1e37}, epochs=3, rules=()))
    assert [claim.verdict for claim in outcome.claims] == ["cannot tell"] * 3
    assert outcome.claims[-1].because == "no run of SNGM at the largest batch was saved on its way"
    table = rows(part_of(outcome, "sngm-accuracy").tables[0])
    assert table["batch 1,300, 3 steps", "sngm"] == ("–", "–", "–", "–", "no rate")
    said = " ".join(text(outcome_document(outcome)).split())
    assert "No rate: with each of its grid a tuning seed diverged" in said


# Plans


def test_the_same_plan_again_makes_nothing(done):
    folder, outcome = done
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = studied(folder, smoke())
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert again.claims == outcome.claims


def test_every_table_is_a_plan():
    assert read_plan(sngm.Plan, TOML, "quick", {}).tuning_seeds == 2
    assert read_plan(sngm.Plan, TOML, "full", {"data": "cifar/"}).augment
    with pytest.raises(UsageError, match="This plan is for data of your own, and names none"):
        read_plan(sngm.Plan, TOML, "full", {})


def test_a_misspelt_key_is_refused():
    with pytest.raises(UsageError, match=r"A plan of this study has no `momentun`.*Did you mean `momentum`"):
        smoke(momentun=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": [1300, "100 %"]}, "The batch sizes are 1300. Expected two or more. Mend `batches` in the plan."),
        ({"scales": {"sgd": 0.1}}, "The plan has scales for sgd. Expected `sngm`, and one or more to compare it with."),
        ({"scales": {"sngm": 0.1}}, "The plan has scales for sngm. Expected `sngm`, and one or more"),
        ({"points": 1}, "The grids have 1 points over 1 decades around 0.1, 0.01, 0.03, 0.1, on 1 tuning seeds"),
        ({"decades": 0}, "2 points over 0 decades .* Expected 2 points or more, decades and scales above 0"),
        ({"tuning_seeds": 0}, "on 0 tuning seeds. Expected .* and a tuning seed. Mend the plan."),
        ({"scales": {"sgd": 0.0, "sngm": 0.1}}, "around 0, 0.1, on 1 tuning seeds"),
    ],
)
def test_plans_that_leave_nothing_to_choose_or_compare_are_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        studied(tmp_path, smoke(**changes))
    assert not list(tmp_path.iterdir())
