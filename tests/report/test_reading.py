from dataclasses import replace

import pytest
from example_reports import adaptive_sharpness, eigenvalues, gap, large, path, report, together, with_quantity
from test_groups import groups, run

from gapscope.report.comparison import compare
from gapscope.report.reading import whole_reading
from gapscope.results import Quantity, Status

DISAGREE = "the raw contrast may be a matter of the scale of the weights"


def reading(raw, adaptive, **quantities):
    """The reading of two reports whose top eigenvalues and adaptive sharpness have these ratios."""
    small = report(eigenvalues(0.154), adaptive_sharpness(), gap())
    big = large(eigenvalues(0.154 * raw), adaptive_sharpness(adaptive, **quantities), gap())
    return " ".join(compare([small, big]).reading)


def test_raw_and_adaptive_sharpness_agree():
    said = reading(2, 1.5)
    assert "adaptive sharpness, the scale-aware companion, agrees." in said
    assert DISAGREE not in said
    assert "no scale-aware measure" not in said


def test_where_they_disagree_the_reading_says_what_rescaling_does():
    said = reading(2, 0.5)
    assert "adaptive sharpness, the scale-aware companion, says the opposite." in said
    assert f"{DISAGREE}; on that question believe the adaptive one." in said


def test_where_only_the_raw_one_can_tell_its_contrast_may_be_scale():
    said = reading(2, 1)
    assert "adaptive sharpness, the scale-aware companion, cannot tell." in said
    assert f"{DISAGREE}." in said


def test_where_only_the_adaptive_one_can_tell_it_is_believed_on_scale():
    said = reading(1, 2)
    assert "adaptive sharpness, the scale-aware companion, can." in said
    assert "Apart from the scale of the weights, large batch 650 is the sharper one" in said
    assert "Apart from the scale of the weights, small batch 32 is the sharper one" in reading(1, 0.5)
    assert "Apart from" not in reading(1, 1)


def test_a_checkpoint_that_may_be_flat_is_flatter_by_a_ratio_without_an_end():
    several = [eigenvalues(top, chunks=False, gradient_norm=0.0) for top in (10.0, 0.1)]
    errors = ({"numerical_error": 0.01}, {"numerical_error": 0.12})
    several = [
        with_quantity(one, top=replace(one.quantities["top"], sampling_error=1e-9, bound=None, **error))
        for one, error in zip(several, errors, strict=True)
    ]
    compared = compare([report(several[0], gap()), large(several[1], gap())])
    (row,) = (row for row in compared.rows if row.path == "eigenvalues/top")
    assert (row.verdict, row.interval[0]) == ("lower", 0.0)
    said = " ".join(compared.reading)
    assert "small batch 32" in said
    assert " to inf" in said


def test_parts_of_it_that_cannot_tell_are_not_overlooked():
    assert "companion, agrees where it can tell." in reading(2, 1.5, average=1)
    assert "companion, is divided." in reading(2, 1.5, average=0.5)
    assert "companion, can in part." in reading(1, 1.5, average=1)


def test_sharpness_that_feels_the_scale_is_no_companion():
    both = [adaptive_sharpness(ratio) for ratio in (1, 2)]
    only = [with_quantity(record, sam=record.quantities["sam"]) for record in both]
    said = " ".join(compare([report(eigenvalues(), gap(), only[0]), large(eigenvalues(0.3), gap(), only[1])]).reading)
    assert "no scale-aware measure is in these reports" in said
    assert "companion" not in said


def test_at_unequal_loss_scale_is_not_discussed():
    sides = [(eigenvalues(top), adaptive_sharpness(2), gap(loss)) for top, loss in ((0.1, 0.01), (0.3, 0.1))]
    said = " ".join(compare([report(*sides[0]), large(*sides[1])]).reading)
    assert "the sharpness contrast cannot tell. Train to equal loss." in said
    assert DISAGREE not in said


def test_of_layers_alone_verdicts_are_counted():
    def side(*values):
        labels = {"layer": ("fc1", "fc2", "fc3")}
        common = {"better": "lower", "higher_is": "sharper", "dims": ("layer",), "labels": labels}
        median = Quantity(value=values, sampling_error=[0.01] * 3, doc="", **common)
        return replace(gap(), analyzer="curvature", quantities={"median": median})

    said = compare([report(side(1, 1, 1)), large(side(2, 0.5, 1))]).reading[0]
    assert said.endswith(
        "of 3 values of curvature median by layer, small batch 32 is sharper in 1, large batch 650 is sharper in 1, "
        "1 cannot be told apart."
    )


@pytest.mark.parametrize("status", [Status.BUDGET_SPENT, Status.NOISE_DOMINATED, Status.NONFINITE])
def test_unfinished_records_are_named_once_with_their_sentence(status):
    sides = [report(eigenvalues(status=status), gap()), large(eigenvalues(status=status), gap())]
    assert f"Mind eigenvalues of small batch 32 and large batch 650 ({status.value})." in compare(sides).reading


def barrier(value, error=0.0, **changes):
    comparison = together(path(value, error=error), **changes)
    return whole_reading(comparison)[len(comparison.reading) :]


def test_a_barrier_is_one_on_this_line():
    assert barrier(0.4, 0.02) == (
        "On the straight line between them the training loss exceeds the line between their losses by 0.400 ± 0.020: "
        "a barrier on this line; another path may have none.",
    )
    (said,) = barrier(0.004, 0.0002)
    assert ", little beside their losses of 0.0121 and 0.0124: a barrier" in said


def test_no_barrier_is_said_as_such():
    assert barrier(0) == (
        "On the straight line between them no barrier was seen, at the points looked at: no rise of the training loss.",
    )
    (said,) = barrier(0.001, 0.002)
    assert said.endswith("by 0.0010 ± 0.0020: no barrier can be told from none.")


def test_a_barrier_that_is_not_there_or_not_a_number_is_passed_over():
    assert barrier(float("nan")) == ()
    comparison = together(replace(path(), quantities={"loss": path().quantities["loss"]}))
    assert whole_reading(comparison) == comparison.reading


def test_the_loss_is_called_the_training_loss_only_there():
    subjects = tuple(replace(one, conditions={**one.conditions, "split": "test"}) for one in together().subjects)
    assert "between them the loss exceeds" in barrier(0.4, subjects=subjects)[0]


def test_the_same_checkpoint_twice_is_said_first():
    same = "are the same checkpoint: the contrasts measure nothing."
    assert compare([report(), report(batch_size=650)]).reading[0] == f"Both {same}"
    three = [report(), large(), report(batch_size=1000)]
    assert compare(three).reading[0] == f"batch 32 and batch 1000 {same}"
    forced = compare([report(), report(batch_size=650, dtype="float64")], force=True).reading
    assert forced[1].startswith("Forced: dtype")
    assert same not in " ".join(compare([report(), large()]).reading)


def slopes(**given):
    said = compare([report(eigenvalues(), gap()), large(eigenvalues(0.2, **given), gap())]).reading
    return " ".join(sentence for sentence in said if "large batch 650 is n" in sentence or "slope" in sentence)


def test_slope_and_saddle_are_told_apart_with_their_numbers():
    slope = "large batch 650 is still on a slope: a gradient step promises 8.3 % of its loss"
    saddle = "is near a saddle: its smallest eigenvalue is at most -0.025, 12 % of the largest"
    assert slopes(gradient_norm=0.02) == f"{slope}."
    assert slopes(bottom=-0.025) == f"large batch 650 {saddle}."
    assert slopes(gradient_norm=0.02, bottom=-0.025) == f"{slope}, and {saddle}."
    assert slopes(gradient_norm=float("nan"), bottom=-0.025) == ""


def test_without_positive_curvature_nothing_is_a_minimum():
    sides = [report(eigenvalues(-0.1), gap()), large(eigenvalues(), gap())]
    assert "small batch 32 is not in a minimum: its largest eigenvalue is -0.1." in compare(sides).reading


def test_a_bulge_that_need_not_be_climbed_is_no_barrier():
    one = path(0.4, error=0.02)
    rise = Quantity(value=[0.5, 0.0], dims=("subject",), labels={"subject": ("first", "second")}, doc="rise")
    bulging = together(with_quantity(one, **one.quantities, rise=rise))
    assert whole_reading(bulging)[-1].endswith("a bulge, not a barrier to climb.")


def test_a_loss_of_zero_on_both_sides_is_the_same_loss():
    nothing = [report(eigenvalues(), gap(0.0)), large(eigenvalues(0.2), gap(0.0))]
    said = compare(nothing).reading
    assert not any("not at the same loss" in sentence for sentence in said)
    assert said[0].startswith("At training losses of 0, ")


@pytest.mark.parametrize(
    ("setting", "words"), [("preconditioned", "in Adam's metric"), ("gauss_newton", "of the Gauss-Newton matrix")]
)
def test_other_operators_are_named_and_prove_no_minimum(setting, words):
    sides = [replace(eigenvalues(top), settings={"k": 1, "seed": 0, setting: True}) for top in (0.1, 0.2)]
    said = " ".join(compare([report(sides[0], gap()), large(sides[1], gap())]).reading)
    assert f"by the top eigenvalue {words}" in said
    assert "sits in a minimum" not in said
    assert "slope" not in said


# Regimes of several runs


def test_of_regimes_the_first_sentence_says_how_much_sharper_and_over_how_many_seeds():
    said = compare(groups()).reading
    assert said[0].startswith(
        "At mean training losses within 1 % of each other, large batch 650 sits in a minimum 2.07 times sharper than "
        "small batch 32's by the top eigenvalue (95 % interval 1.78 to 2.40 over seeds, 3 and 3 runs)"
    )
    assert said[1] == (
        "An exact permutation test of the top eigenvalue gives p = 0.1; 3 against 3 runs reach no smaller one than 0.1."
    )
    assert said[-1].endswith(
        "The intervals are over seeds (3 and 3 runs) on these data: right for new seeds, silent on new data."
    )
    assert "proves nothing" not in " ".join(said)


def test_regimes_that_cannot_be_told_apart_are_said_so_with_their_seeds():
    said = compare(groups((0.1, 0.2), (0.12, 0.19))).reading[0]
    assert "cannot be told apart by the top eigenvalue (ratio 1.1, 95 % interval" in said
    assert "over seeds, 2 and 2 runs)" in said


def test_mean_losses_more_than_two_fold_apart_forbid_a_verdict_on_sharpness():
    small = [run(f"s{seed}", seed=seed) for seed in range(2)]
    late = [run(f"l{seed}", 0.5, loss, batch_size=650, seed=seed) for seed, loss in enumerate((0.012, 0.05))]
    comparison = compare([*small, *late])
    assert {row.verdict for row in comparison.rows if row.higher_is == "sharper"} == {"cannot tell"}
    assert comparison.reading[0].startswith("The mean training losses differ 2.6-fold (0.012 and 0.031)")
    assert not [said for said in comparison.reading if "permutation" in said]


def test_too_many_runs_for_an_exact_test_are_said_so():
    said = compare(groups([0.1 + i / 100 for i in range(11)], [0.2 + i / 100 for i in range(11)])).reading
    assert "No exact permutation test: 11 against 11 runs can be dealt in more than 200,000 ways." in said


def test_of_runs_at_no_minimum_there_is_one_example():
    def side(word, size):
        moving = [run(f"{word}{seed}", batch_size=size, seed=seed) for seed in range(2)]
        return [replace(one, results={**one.results, "eigenvalues": eigenvalues(gradient_norm=0.02)}) for one in moving]

    said = compare([*side("s", 32)[:1], *groups()[1:3], *side("l", 650)]).reading
    assert (
        "1 of 3 runs of small batch 32 and 2 of 2 runs of large batch 650 are at no minimum (s0 is still on a slope: a "
        "gradient step promises 11 % of its loss)."
    ) in said


def test_the_accuracies_of_regimes_differ_over_seeds():
    small = [run(f"s{seed}", seed=seed, wrong=20 + seed) for seed in range(3)]
    large = [run(f"l{seed}", batch_size=650, seed=seed, wrong=60 + seed) for seed in range(3)]
    said = " ".join(compare([*small, *large]).reading)
    assert "small batch 32 has the higher test accuracy on 497 test samples, by 8.05 points (95 % interval" in said
    assert "over seeds, 3 and 3 runs)." in said


def test_what_did_not_converge_is_named_once_per_regime():
    poor = [
        replace(one, results={**one.results, "eigenvalues": eigenvalues(0.2, status=Status.BUDGET_SPENT)})
        for one in groups()
    ]
    said = compare(poor).reading
    assert f"Mind eigenvalues of small batch 32 and large batch 650 ({Status.BUDGET_SPENT.value})." in said
