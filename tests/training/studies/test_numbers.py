import math
from dataclasses import replace

import numpy as np
import pytest

from gapscope.errors import ReportError
from gapscope.report.outcome import Claim
from gapscope.report.records import Record, Report
from gapscope.results import Quantity, Status
from gapscope.training.studies.numbers import averaged, averaged_doc, contrast, mean_std, minding_loss, numbers, scalar

EMPTY = Report(identity={"checkpoint": "x.pt"}, training={}, conditions={}, environment={}, results={})


def report(values, **more):
    quantity = Quantity(
        value=np.asarray(values),
        doc="",
        dims=("solver", "epsilon"),
        labels={"solver": ("a", "b"), "epsilon": ("1e-3", "5e-4")},
        **more,
    )
    record = Record(analyzer="sharp", version="1", status=Status.EXACT, quantities={"full": quantity})
    return Report(
        identity={"checkpoint": "x.pt"}, training={}, conditions={}, environment={}, results={"sharp": record}
    )


def test_a_number_is_found_by_its_labels_in_any_order():
    found = scalar(
        report([[1, 2], [3, 4]], sampling_error=np.full((2, 2), 0.5)), "sharp/full", epsilon="5e-4", solver="b"
    )
    assert (found.value, found.sampling) == (4, 0.5)
    assert math.isnan(found.numerical)


@pytest.mark.parametrize(
    ("path", "labels", "said"),
    [
        (
            "sharp/ful",
            {},
            "The report of x.pt has no `sharp/ful`. Did you mean `sharp/full`? Expected one of sharp/full.",
        ),
        ("gap/loss", {}, "Expected one of sharp/full. Measure it, or ask for another."),
        (
            "sharp/full",
            {},
            "`sharp/full` was asked for along (). Expected a label along each of (solver, epsilon). Name",
        ),
        ("sharp/full", {"solver": "a", "epsilon": "1e-3", "x": "1"}, "was asked for along (solver, epsilon, x)."),
        (
            "sharp/full",
            {"solver": "a", "epsilon": "1e-4"},
            "has no epsilon `1e-4`. Did you mean `5e-4`? Expected one of",
        ),
    ],
)
def test_a_number_that_is_not_there_is_refused(path, labels, said):
    with pytest.raises(ReportError) as refused:
        scalar(report([[1, 2], [3, 4]]), path, **labels)
    assert said in str(refused.value)


def test_a_report_without_numbers_says_so():
    with pytest.raises(ReportError, match=r"has no `gap/loss`. Expected one of some number. Measure it"):
        scalar(EMPTY, "gap/loss")


def test_an_accuracy_is_unknown_where_the_loss_has_none():
    assert math.isnan(scalar(at(0.1), "gap/test_accuracy").value)
    with pytest.raises(ReportError, match="has no `gap/test_accuracy`"):
        scalar(EMPTY, "gap/test_accuracy")


def test_groups_are_contrasted_last_over_first():
    first, last = ([report([[value, 0], [0, 0]]) for value in side] for side in ((1.0, 2.0), (4.0, 8.0)))
    where = {"solver": "a", "epsilon": "1e-3"}
    assert numbers(first, "sharp/full", **where).tolist() == [1, 2]
    estimate, (low, high) = contrast(first, last, "sharp/full", **where)
    assert estimate == pytest.approx(4)
    assert low < 4 < high
    assert contrast(first, last, "sharp/full", "difference", **where)[0] == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([1.0, 2.0, 3.0], "2.0 ± 1.0"),
        ([2.0, 2.0], "2 ± 0"),
        ([0.5], "0.5"),
        ([], "–"),
        ([1.0, math.nan], "–"),
        ([1.0, math.inf], "–"),
    ],
)
def test_a_mean_has_its_deviation_where_there_are_several(values, said):
    assert mean_std(values) == said


def test_a_single_seed_is_called_so():
    assert averaged(5) == "mean ± standard deviation over 5 seeds"
    assert averaged(1) == "a single seed"
    assert averaged_doc("loss", 2) == "loss, mean over 2 seeds; errors are over seeds"
    assert averaged_doc("loss", 1) == "loss, a single seed"


def at(loss):
    gap = Record(
        analyzer="gap", version="1", status=Status.EXACT, quantities={"train_loss": Quantity(value=loss, doc="")}
    )
    return replace(EMPTY, results={"gap": gap})


@pytest.mark.parametrize(
    ("loss", "judge", "verdict"), [(0.02, True, "shows"), (0.5, True, "cannot tell"), (0.5, False, "shows")]
)
def test_sharpness_at_other_losses_says_so_and_is_not_judged_where_they_were_to_be_equal(loss, judge, verdict):
    claim = Claim(text="sharper", source="Table 3", verdict="shows", because="ratio 2")
    found = minding_loss(claim, [at(0.0121)], [at(loss)], judge=judge)
    assert found.verdict == verdict
    apart = "ratio 2; the training losses differ 41-fold (0.0121 and 0.5)"
    assert found.because == ("ratio 2" if loss == 0.02 else apart)
