import math
from dataclasses import replace

import numpy as np
import pytest
from example_reports import eigenvalues, epsilon_sharpness, gap, report

from gapscope.errors import ComparisonError, UsageError
from gapscope.report.comparison import compare
from gapscope.report.contrasts import Scalar, between
from gapscope.report.groups import matched, regimes, runs_of

SMALL, LARGE = (0.15, 0.16, 0.14), (0.31, 0.29, 0.33)


def run(name, top=0.15, loss=0.012, *, batch_size=32, without=(), wrong=35, **training):
    """A report of one training; `without` names keys that it does not record."""
    made = report(
        eigenvalues(top), epsilon_sharpness(top / 0.15), gap(loss, wrong=range(wrong)), checkpoint=f"{name}.pt"
    )
    recorded = {"batch_size": batch_size, "lr": 0.1, "optimizer": "sgd", **training}
    return replace(made, training={key: value for key, value in recorded.items() if key not in without})


def groups(small=SMALL, large=LARGE, **training):
    sides = [
        [run(f"{word}-{seed}", top, batch_size=size, seed=seed, **training) for seed, top in enumerate(tops)]
        for word, size, tops in (("s", 32, small), ("l", 650, large))
    ]
    return [*sides[0], *sides[1]]


def row(comparison, path="eigenvalues/top"):
    return next(row for row in comparison.rows if row.path == path)


def refusal(kind, reports, **options):
    with pytest.raises(kind) as caught:
        compare(reports, **options)
    return str(caught.value)


# Regimes


def test_reports_of_repeated_batch_sizes_are_the_runs_of_two_regimes():
    comparison = compare(groups()[::-1])
    small, large = comparison.subjects
    assert (small.label, small.short, large.label) == ("small batch 32", "small", "large batch 650")
    assert [run.label for run in large.runs] == ["l-2", "l-1", "l-0"]
    assert small.training == {"batch_size": 32, "lr": 0.1, "optimizer": "sgd"}  # what all runs share
    assert "checkpoint" not in small.identity
    assert small.identity["model"] == "mlp 64-32-10"
    assert comparison.over == "over seeds (3 and 3 runs)"


def test_values_are_means_with_standard_deviations_over_runs():
    found = row(compare(groups()))
    assert found.values == pytest.approx((np.mean(SMALL), np.mean(LARGE)))
    assert found.errors == pytest.approx((np.std(SMALL, ddof=1), np.std(LARGE, ddof=1)))
    assert found.runs == (SMALL, LARGE)


def test_runs_that_all_agree_have_a_deviation_of_zero():
    alike = row(compare(groups(small=(0.1, 0.1, 0.1))))  # whose mean is no float
    assert alike.errors[0] == 0
    assert alike.interval[0] < alike.interval[1]
    assert math.isnan(row(compare(groups(small=(0.1,) * 3, large=(0.7,) * 3))).interval[0])


def test_the_contrast_is_welch_s_over_seeds_and_p_is_exact():
    found = row(compare(groups()))
    sides = [[Scalar(value=top, numerical=1e-6) for top in tops] for tops in (SMALL, LARGE)]
    assert (found.estimate, found.interval) == between(*sides, "ratio")
    assert found.estimate == pytest.approx(math.prod(LARGE) ** (1 / 3) / math.prod(SMALL) ** (1 / 3))
    assert found.verdict == "higher"
    assert found.p == pytest.approx(0.1)
    assert row(compare(groups()), "gap/test_accuracy").contrast == "difference"


def test_p_is_not_sought_for_what_nobody_judges():
    assert math.isnan(row(compare(groups()), "eigenvalues/gradient_norm").p)
    assert math.isnan(row(compare([run("a"), run("b", batch_size=650)])).p)


def test_any_recorded_key_makes_regimes_and_numbers_are_in_order():
    reports = [run(f"r{i}", lr=rate, seed=i) for i, rate in enumerate((0.4, 0.1, 0.4, 0.1))]
    assert [side.label for side in compare(reports, by="lr").subjects] == ["lr 0.1", "lr 0.4"]
    reports = [run(f"r{i}", optimizer=name, seed=i) for i, name in enumerate(("sgd", "adam", "sgd", "adam"))]
    assert [side.label for side in compare(reports, by="optimizer").subjects] == ["sgd", "adam"]


def test_three_batch_sizes_are_named_alike():
    reports = [run(f"r{i}", batch_size=size, seed=i) for i, size in enumerate((32, 8, 8, 650))]
    assert [side.label for side in compare(reports).subjects] == ["batch 8", "batch 32", "batch 650"]


def test_the_caller_may_name_the_regime_of_each_report():
    reports = [run(f"r{i}", batch_size=size, seed=i) for i, size in enumerate((8, 8, 16, 32))]
    sides = regimes(reports, by="batch_size", names=["small", "small", "large", "large"], labels=None)
    assert [(side.label, side.short) for side in sides] == [("small batch 8", "small"), ("large", "large")]
    assert [len(side.reports) for side in sides] == [2, 2]


def test_labels_name_regimes_or_if_there_are_as_many_the_reports():
    assert [side.label for side in compare(groups(), labels=["a", "b"]).subjects] == ["a", "b"]
    assert [side.label for side in compare(groups(), labels=list("abcdef")).subjects] == list("abcdef")
    assert refusal(UsageError, groups(), labels=["a", "b", "c"]) == (
        "There are 3 labels (a, b, c) for 2 regimes. Expected one for each, all different: `--labels small,large`."
    )


def test_what_cannot_be_grouped_is_refused():
    said = refusal(UsageError, groups(), by="learning_rate")
    assert said.startswith("s-0.pt records no `learning_rate` of its training, only: batch_size, lr, optimizer, seed.")
    assert said.endswith("Name another with `--by`, or the files of each regime with `--small` and `--large`.")
    assert "Did you mean `batch_size`?" in refusal(UsageError, groups(), by="batch_sizes")
    assert refusal(UsageError, groups(), by="lr") == (
        "All 6 reports have a lr of 0.1. Expected two regimes or more. Add some, or group with `--by`."
    )
    assert "All 6 reports have the regime x. Expected two" in refusal(UsageError, groups(), names=["x"] * 6)
    assert refusal(UsageError, groups(), names=["x"]) == (
        "There are 1 regimes for 6 reports. Expected one name per report. Mend `regimes`."
    )


# Runs


def test_one_run_that_counts_twice_is_refused():
    one, other, *rest = groups()
    said = refusal(ComparisonError, [one, replace(other, identity=one.identity), *rest])
    assert said.startswith(
        "s-0 (1) and s-0 (2) are one checkpoint. Expected one checkpoint of each run: more would pass"
    )
    later = replace(other, training={**one.training, "steps": 900})
    said = refusal(ComparisonError, [one, later, *rest])
    assert "s-0 and s-1 record the same recipe and seed: saved epochs of one run. Expected" in said
    assert said.endswith("Leave one out, or let `--match-loss` choose.")


def test_a_regime_of_several_models_is_refused():
    one, *rest = groups()
    other = replace(one, identity={**one.identity, "model": "mlp 64-8-10", "parameters": 610})
    assert refusal(ComparisonError, [*rest, other]) == (
        "The runs of small batch 32 are of different models (model: mlp 64-32-10 / mlp 64-8-10; parameters: 2410 / "
        "610). Expected runs of one model: a mean over several says nothing. Leave the others out."
    )


def test_conditions_must_agree_in_every_run():
    *rest, one = groups()
    other = replace(one, conditions={**one.conditions, "dtype": "float64"})
    assert "do not measure the same thing: dtype: float32 / float64. Expected" in refusal(
        ComparisonError, [*rest, other]
    )
    assert compare([*rest, other], force=True).forced == ("dtype",)


def test_without_recorded_seeds_reports_count_as_runs():
    bare = [replace(one, training={"batch_size": one.training["batch_size"]}) for one in groups()]
    assert compare(bare).over == "over seeds (3 and 3 runs)"


def test_a_group_of_one_has_no_interval_and_that_is_said():
    comparison = compare(groups(large=LARGE[:1]))
    found = row(comparison)
    assert math.isnan(found.interval[0])
    assert (found.verdict, found.errors[1]) == ("", pytest.approx(0.07 * LARGE[0], rel=1e-3))
    assert comparison.over == "over seeds (3 and 1 runs)"
    said = " ".join(comparison.reading)
    assert "is 2.07 by the top eigenvalue, without an interval over seeds" in said
    assert (
        "One run of large batch 650 shows no spread over seeds, so no interval can be had: train a second one." in said
    )
    assert "test accuracies" not in said


def test_single_reports_keep_the_interval_over_the_data():
    assert compare([run("a"), run("b", batch_size=650)]).over == "over the data (one run each)"


# Saved epochs


def saved(word, size, losses, seed=0, **more):
    return [
        run(f"{word}{step}", 0.1 + step / 100, loss, batch_size=size, seed=seed, steps=step, **more)
        for step, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize("key", ["global_step", "iteration", "iterations", "iter_num", "epoch"])
def test_saved_epochs_of_other_tools_are_no_seeds(key):
    one, two, three, four = (
        run(f"{word}{place}", batch_size=size, seed=0, **{key: place})
        for word, size in (("s", 32), ("l", 650))
        for place in (10, 20)
    )
    assert "s10 and s20 record the same recipe and seed: saved epochs" in refusal(
        ComparisonError, [one, two, three, four]
    )
    assert [
        len(runs_of(side)) for side in regimes([one, two, three, four], by="batch_size", names=None, labels=None)
    ] == [
        1,
        1,
    ]


def test_runs_without_a_seed_that_differ_in_progress_may_be_saved_epochs():
    small, large = saved("s", 32, (1.0, 0.1), without=("seed",)), saved("l", 650, (1.0, 0.101), without=("seed",))
    found = " ".join(compare([*small, *large]).reading)
    assert (
        "Mind that the runs of small batch 32 record no seed and differ in steps alone: saved epochs of one run"
        in found
    )
    with_seeds = [*saved("s", 32, (1.0,)), *saved("t", 32, (1.0,), seed=1), *saved("l", 650, (1.0,))]
    assert "no seed" not in " ".join(compare(with_seeds).reading)


def test_saved_epochs_of_a_run_are_those_that_differ_in_progress_alone():
    reports = [*saved("a", 32, (1.0, 0.5)), *saved("b", 32, (1.1, 0.6), seed=1), *saved("c", 650, (1.0,))]
    small, _ = regimes(reports, by="batch_size", names=None, labels=None)
    assert [[report.identity["checkpoint"] for report in run] for run in runs_of(small)] == [
        ["a1.pt", "a2.pt"],
        ["b1.pt", "b2.pt"],
    ]


def chosen(*reports):
    sides, note = matched(regimes(reports, by="batch_size", names=None, labels=None))
    return [[report.identity["checkpoint"] for report in side.reports] for side in sides], note


def test_of_pairs_at_one_loss_that_of_the_lowest_is_compared():
    small, large = saved("s", 32, (1.0, 0.1, 0.012)), saved("l", 650, (1.0, 0.103, 0.05))
    picked, note = chosen(*small, *large)
    assert picked == [["s2.pt"], ["l2.pt"]]
    assert note == (
        "Of the saved epochs of each run those nearest in training loss are compared, within 3 % of each other "
        "(small batch 32: s2 at 0.1; large batch 650: l2 at 0.103)."
    )


def test_where_none_are_at_one_loss_the_nearest_are_compared():
    picked, note = chosen(*saved("s", 32, (1.0, 0.2, 0.01)), *saved("l", 650, (2.0, 0.4, 0.25)))
    assert picked == [["s2.pt"], ["l3.pt"]]
    assert "within 25 % of each other" in note


def test_every_run_of_a_regime_is_matched():
    small = [*saved("a", 32, (1.0, 0.1, 0.01)), *saved("b", 32, (0.9, 0.099, 0.02), seed=1)]
    picked, _ = chosen(*small, *saved("l", 650, (0.5, 0.101, 0.05)))
    assert picked == [["a2.pt", "b2.pt"], ["l2.pt"]]


def test_matched_epochs_are_compared_as_if_they_were_alone():
    small, large = saved("s", 32, (1.0, 0.1)), saved("l", 650, (1.0, 0.101))
    together, alone = compare([*small, *large], match_loss=True), compare([small[1], large[1]])
    assert repr((together.rows, together.subjects)) == repr((alone.rows, alone.subjects))  # NaN is no NaN's equal
    assert together.reading[:-1] == alone.reading
    assert "nearest in training loss" in together.reading[-1]
    assert together.results == {}


def test_without_losses_or_regimes_nothing_is_matched():
    small, large = saved("s", 32, (1.0, 0.1)), saved("l", 650, (1.0, 0.101))
    blind = replace(small[0], results={"eigenvalues": small[0].results["eigenvalues"]})
    said = refusal(ComparisonError, [blind, *small[1:], *large], match_loss=True)
    assert said == (
        "s1.pt has no training loss. Expected a positive one to match by. Measure it with `gapscope gap`, or leave "
        "that checkpoint out."
    )
    zero = saved("z", 32, (0.0,), seed=3)
    said = refusal(ComparisonError, [*zero, *small, *large], match_loss=True)
    assert "z1.pt has a training loss of 0. Expected" in said
    said = refusal(UsageError, [small[0], large[0]], match_loss=True)
    assert said.startswith("The 2 subjects are no saved epochs of two regimes. Expected several with one recorded")


def test_epochs_that_had_come_equally_far_are_two_runs():
    small, large = saved("s", 32, (1.0, 0.1), without=("seed",)), saved("l", 650, (1.0, 0.101))
    twin = replace(small[0], identity={**small[0].identity, "checkpoint": "twin.pt", "sha256": "0"})
    said = refusal(ComparisonError, [*small, twin, *large], match_loss=True)
    assert said == (
        "s1 and twin record the same recipe and the same steps. Expected saved epochs of one run to differ in steps, "
        "and runs in their seed. Record the `seed`, or leave one out."
    )


# What sets regimes apart


def reading(reports):
    return " ".join(compare(reports).reading)


def test_other_differences_of_the_recipes_are_named():
    small, large = groups()[:3], [replace(one, training={**one.training, "lr": 0.4}) for one in groups()[3:]]
    assert (
        "Mind that the regimes differ in batch_size (32 / 650) and lr (0.1 / 0.4): no contrast is one of either alone."
        in reading([*small, *large])
    )
    assert "Mind that the" not in reading(groups())


def test_what_varies_within_a_regime_is_named():
    one, *rest = groups()
    mixed = replace(one, training={**one.training, "lr": 0.4, "steps": 12})
    assert "Mind that the runs of small batch 32 differ in lr: their spread is not one over seeds alone." in reading(
        [mixed, *rest]
    )
