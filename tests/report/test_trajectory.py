import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from gapscope.report.document import Series, Table
from gapscope.report.export import dumps
from gapscope.report.terminal import text
from gapscope.report.trajectory import Point, Trajectory, measures, reading, trajectory_document, trajectory_json
from gapscope.results import Quantity, Status
from tests.report import example_reports as example

RATE = 0.5  # so that the limit of stability is 4


def eigenvalues(top, *, decay=0.0, momentum=0.0, error=1e-6, stability=True, **more):
    record = example.eigenvalues(top, **more)
    share = Quantity(
        value=RATE * (top + decay) / (2 + 2 * momentum),
        numerical_error=RATE * error / (2 + 2 * momentum),
        doc="share of the limit",
    )
    return replace(record, quantities={**record.quantities, **({"stability": share} if stability else {})})


def point(place, *records, conditions=None, **training):
    report = example.report(*records, checkpoint=f"step-{place}.pt", **(conditions or {}))
    known = {"optimizer": "sgd", "lr": RATE, "batch_size": 1300, "steps": int(place), "seed": 0}
    return Point(place=place, report=replace(report, training={**known, **training}), path=f"x/step-{place}.report.h5")


def tops(*values, **more):
    points = tuple(point(str(100 * i), eigenvalues(top, **more)) for i, top in enumerate(values, start=1))
    return Trajectory(axis="steps", points=points)


def said(trajectory):
    return " ".join(reading(trajectory))


# --- numbers


def test_the_rows_are_those_of_the_reports():
    points = [point("10", example.gap(0.5), eigenvalues(1.0)), point("20", example.gap(0.25), eigenvalues(3.0))]
    found = measures(Trajectory(axis="steps", points=tuple(points)))
    assert list(found) == [
        *("gap/train_loss", "gap/test_loss", "gap/test_accuracy"),
        *("eigenvalues/top", "limit", "eigenvalues/stability"),
    ]
    assert found["gap/train_loss"].values.tolist() == [0.5, 0.25]
    assert found["eigenvalues/top"].errors == pytest.approx(np.hypot([0.07, 0.21], 1e-6))
    assert found["limit"].values.tolist() == [4.0, 4.0]
    assert found["eigenvalues/stability"].values.tolist() == [0.25, 0.75]


def test_momentum_raises_the_limit_and_its_title_says_so():
    points = tuple(point(place, eigenvalues(4.0, momentum=0.9), momentum=0.9) for place in ("1", "2"))
    limit = measures(Trajectory(axis="steps", points=points))["limit"]
    assert limit.values == pytest.approx([7.6, 7.6])
    assert limit.title == "limit (2 + 2 momentum)/eta"


def test_weight_decay_counts_beside_the_eigenvalue():
    points = (point("1", eigenvalues(3.0, decay=0.5), weight_decay=0.5),)
    share = measures(Trajectory(axis="steps", points=points))["eigenvalues/stability"]
    assert (share.title, *share.values) == ("(top + decay) / limit", 0.875)


def test_the_limit_of_preconditioned_adam_is_what_its_eigenvalue_was_judged_by():
    record = eigenvalues(3.0, preconditioned=True)
    share = Quantity(value=0.25, doc="share of Adam's limit")
    record = replace(record, quantities={**record.quantities, "stability": share})
    found = measures(Trajectory(axis="steps", points=(point("1", record, optimizer="adam"),)))
    assert found["limit"].values.tolist() == [12.0]


def test_of_few_layers_each_is_shown_and_of_many_the_median():
    few = Trajectory(axis="steps", points=(point("1", example.near_rank()),))
    assert [(path, each.title, *each.values) for path, each in measures(few).items()] == [
        ("near-rank/near_rank[fc1,rel:1e-2]", "near-rank fc1", 47),
        ("near-rank/near_rank[fc2,rel:1e-2]", "near-rank fc2", 9),
        ("near-rank/near_rank[fc3,rel:1e-2]", "near-rank fc3", 29),
    ]
    labels = {"layer": ("a", "b", "c", "d"), "cut": ("rel:1e-2", "rel:1e-3")}
    ranks = Quantity(value=[[1, 9], [5, 9], [4, 9], [2, 9]], dims=("layer", "cut"), labels=labels, doc="")
    record = replace(example.near_rank(), quantities={"near_rank": ranks})
    many = measures(Trajectory(axis="steps", points=(point("1", record),)))
    assert {path: each.values.tolist() for path, each in many.items()} == {"near-rank/near_rank[median,rel:1e-2]": [3]}


def test_another_analyzer_is_shown_by_its_first_number():
    found = measures(Trajectory(axis="steps", points=(point("1", example.epsilon_sharpness()),)))
    assert [(path, each.words) for path, each in found.items()] == [
        ("epsilon-sharpness/full[keskar,1e-3]", "epsilon-sharpness full keskar 1e-3 %")
    ]


def test_labels_that_are_each_report_s_own_are_passed_over():
    def spectrum(*grid):
        names = tuple(f"{one:g}" for one in grid)
        density = Quantity(value=np.ones(len(grid)), dims=("grid",), labels={"grid": names}, doc="density")
        mass = Quantity(value=grid[0], doc="mass near zero")
        return replace(example.gap(), analyzer="density", quantities={"density": density, "mass_near_zero": mass})

    points = (point("1", spectrum(0.5, 1)), point("2", spectrum(0.75, 2)), point("3", example.gap()))
    found = measures(Trajectory(axis="steps", points=points))
    assert found["density/mass_near_zero"].values[:2].tolist() == [0.5, 0.75]
    assert np.isnan(found["density/mass_near_zero"].values[2])
    assert not [path for path in found if path.startswith("density/density")]


def test_a_top_eigenvalue_of_products_that_are_off_proves_no_excess():
    def inexact(top):
        record = eigenvalues(top, error=0.01)
        quantities = dict(record.quantities)
        quantities["top"] = replace(quantities["top"], bound="none")
        return replace(record, quantities=quantities)

    (near, far), bound = (inexact(4.001), inexact(4.2)), eigenvalues(4.001, error=0.01)
    assert "exceeds" in said(Trajectory(axis="steps", points=(point("1", bound),)))
    one = said(Trajectory(axis="steps", points=(point("1", near),)))
    assert "exceeds" not in one
    assert "whether at step 1 cannot be told" in one
    assert "exceeds" in said(Trajectory(axis="steps", points=(point("1", far),)))


def test_without_test_data_the_training_accuracy_is_shown():
    gap = example.gap()
    quantities = {k: replace(q, value=np.nan) if "train" not in k else q for k, q in gap.quantities.items()}
    found = measures(Trajectory(axis="steps", points=(point("1", replace(gap, quantities=quantities)),)))
    assert list(found) == ["gap/train_loss", "gap/train_accuracy"]


# --- the table and the drawings


def test_a_checkpoint_without_a_number_leaves_a_gap():
    points = (point("1", eigenvalues(1.0)), point("2", example.gap()))
    shown = text(trajectory_document(Trajectory(axis="steps", points=points)))
    assert any(line.split()[:2] == ["2", "0.0121"] and line.rstrip().endswith("–") for line in shown.splitlines())


def test_every_number_that_has_an_error_is_shown_with_it():
    record = eigenvalues(2.0)
    share = replace(record.quantities["stability"], sampling_error=0.04)
    record = replace(record, quantities={**record.quantities, "stability": share})
    trajectory = Trajectory(axis="steps", points=(point("7", example.gap(0.5), record),))
    table = next(b for block in trajectory_document(trajectory).blocks for b in block if isinstance(b, Table))
    assert table.lines[0].cells == (
        *("7", "0.500 ± 0.025", "0.310 ± 0.030", "93.0 ± 1.1", "2.00 ± 0.14", "4", "0.50 ± 0.04"),
    )
    assert "at most 0.50 ± 0.04 of it, at step 7" in said(trajectory)


def test_an_unfinished_eigenvalue_is_shown_as_a_bound():
    shown = text(trajectory_document(tops(2.0, 3.0, status=Status.BUDGET_SPENT)))
    assert shown.count("≥ 2.00 ± 0.14") == 1
    assert "≥ 0.75" in shown


def test_a_share_is_never_rounded_across_the_limit():
    shown = text(trajectory_document(tops(3.9996, 4.0004)))
    assert "0.9999" in shown
    assert "1.0001" in shown


@pytest.mark.parametrize("verbose", [False, True])
def test_the_document_has_a_table_and_curves_along_the_axis(verbose):
    points = tuple(point(p, example.gap(0.5 / int(p)), eigenvalues(float(p)), example.near_rank()) for p in "123")
    document = trajectory_document(Trajectory(axis="steps", points=points), verbose)
    table = next(item for block in document.blocks for item in block if isinstance(item, Table))
    assert [line.cells[0] for line in table.lines] == ["1", "2", "3"]
    assert table.caption.endswith("; near-rank at rel:1e-2")
    series = [item for block in document.blocks for item in block if isinstance(item, Series)]
    assert all(one.labels == ("1", "2", "3") and one.axis == "steps" for one in series)
    assert [len(one.curves) for one in series] == ([1] * 8 if verbose else [7, 1])
    assert series[-1].title == "top / limit"
    shown = text(document)
    assert max(map(len, shown.splitlines())) <= 80
    assert "step-1.pt" not in shown
    assert "digits, train split, 1,300 samples" in shown


def test_one_checkpoint_has_numbers_and_no_curves():
    document = trajectory_document(tops(2.0))
    assert not [item for block in document.blocks for item in block if isinstance(item, Series)]
    assert "at most 0.5 of it, at step 100" in " ".join(text(document).split())


# --- the reading


@pytest.mark.parametrize(
    ("values", "claim"),
    [
        ((1.0, 2.0, 3.0), "stays below the limit of stability: at most 0.75 of it, at step 300."),
        ((1.0, 4.4, 4.8), "From step 200 on the top eigenvalue exceeds the limit of stability, up to 1.2 times."),
        ((5.0, 4.4, 3.0), "From step 100 to step 200 the top eigenvalue exceeds the limit of stability, up to 1.25"),
        ((5.0, 4.4, 4.8), "At every checkpoint the top eigenvalue exceeds the limit of stability, up to 1.25 times."),
        ((5.0, 3.0, 4.4), "At 2 of 3 checkpoints the top eigenvalue exceeds the limit of stability, most at step 100"),
    ],
)
def test_the_reading_says_where_the_limit_is_exceeded(values, claim):
    assert claim in said(tops(*values))


def test_an_error_or_an_open_bound_that_reaches_the_limit_cannot_be_told():
    assert "; whether at step 200 cannot be told." in said(tops(3.0, 3.9, error=0.2))
    assert "; whether at step 100, step 200 cannot be told." in said(tops(1.0, 2.0, status=Status.BUDGET_SPENT))
    assert "cannot be told" not in said(tops(4.5, 5.0, status=Status.BUDGET_SPENT))  # a lower bound is enough


def test_the_reading_says_how_the_eigenvalue_went():
    assert "It rises, from 1.00 ± 0.07 to 3.00 ± 0.21." in said(tops(1.0, 2.0, 3.0))
    assert "It moves within its error over the data, between 2.90 ± 0.20 and 3.00 ± 0.21." in said(tops(2.9, 3.0, 2.95))
    assert "It rises" not in said(tops(1.0, 2.0))  # two are no course


def test_the_limit_is_one_of_the_full_batch():
    assert "grow along that direction" in said(tops(1.0))
    points = (point("1", eigenvalues(1.0), batch_size=8, conditions={"samples_available": 1300}),)
    assert "with batches of 8 the noise keeps SGD below it as a rule" in said(Trajectory(axis="steps", points=points))


def test_without_a_rate_there_is_no_limit():
    trajectory = tops(1.0, 2.0, stability=False)
    assert "Nothing says where the limit of stability is: no checkpoint records SGD with its rate" in said(trajectory)
    assert {"limit", "eigenvalues/stability"}.isdisjoint(measures(trajectory))


def test_losses_are_followed_from_the_first_to_the_last():
    points = tuple(point(place, example.gap(loss)) for place, loss in (("1", 0.5), ("2", 0.3), ("3", 0.1)))
    assert "The training loss goes from 0.500 ± 0.025 to 0.100 ± 0.005." in said(
        Trajectory(axis="steps", points=points)
    )


def test_what_one_run_should_share_is_compared():
    points = (point("1", eigenvalues(1.0), seed=0, lr=0.5), point("2", eigenvalues(2.0), seed=1, lr=0.1))
    assert "Mind that these checkpoints record different seed: they may not be of one run." in said(
        Trajectory(axis="steps", points=points)
    )
    assert said(tops(1.0)).endswith("what goes together here need not cause each other.")
    assert "Mind" not in said(tops(1.0, 2.0))


# --- JSON, and no torch


def test_the_json_has_a_row_per_number_and_no_nan():
    points = (point("1", eigenvalues(1.0)), point("2", example.gap()))
    content = json.loads(dumps(trajectory_json(Trajectory(axis="steps", points=points), {"x.pt": "It is empty."})))
    assert (content["format"], content["format_version"], content["axis"]) == ("gapscope-trajectory", 1, "steps")
    rows = {row["path"]: row for row in content["rows"]}
    assert rows["eigenvalues/top"]["values"] == [1.0, None]
    assert rows["eigenvalues/top"]["errors"] == [pytest.approx(0.07), None]
    assert rows["eigenvalues/top"]["numerical_errors"] == [1e-6, None]
    assert rows["gap/test_loss"]["errors"] == [None, 0.03]
    assert rows["gap/test_loss"]["numerical_errors"] == rows["limit"]["errors"] == [None, None]
    assert set(rows["limit"]) == {"path", "title", "unit", "values", "errors", "numerical_errors"}
    assert content["points"][1]["report"] == "x/step-2.report.h5"
    assert content["failures"] == {"x.pt": "It is empty."}
    assert content["reading"]


def test_it_imports_no_torch():
    script = "import sys, gapscope.report.trajectory; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
