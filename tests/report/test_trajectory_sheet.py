from dataclasses import replace

import numpy as np
import pytest
from example_reports import epsilon_sharpness, gap, near_rank
from test_trajectory import RATE, eigenvalues, point, tops

from gapscope.report.charts import chart
from gapscope.report.document import Table
from gapscope.report.illustrations import MOST
from gapscope.report.page import page
from gapscope.report.plot import picture
from gapscope.report.trajectory import Trajectory
from gapscope.report.trajectory_sheet import trajectory_sheet
from gapscope.results import Quantity, Status

PLACES = ("10", "20", "30")


def whole(**more):
    def at(place):
        top = eigenvalues(int(place) / 8, momentum=more.get("momentum", 0.0))
        return point(place, gap(5 / int(place)), top, near_rank(), epsilon_sharpness(), **more)

    points = tuple(map(at, PLACES))
    return Trajectory(axis="steps", points=points, name="a run")


def titled(sheet):
    return {one.title: one for one in sheet.figures}


def text(drawing):
    return chart(drawing.panels[0][1])


def test_the_reading_comes_first_and_who_was_measured_is_told():
    sheet = trajectory_sheet(whole())
    assert sheet.name == "a run"
    assert sheet.lead.startswith(
        "The top eigenvalue stays below the limit of stability: at most 0.938 of it, at step 30"
    )
    assert sheet.said[0].text.startswith("It rises, from ")
    assert [note.text for note in sheet.about][-1] == "3 checkpoints by steps: 10 to 30"
    assert sheet.origin.startswith("Measured by gapscope")


def test_every_number_has_a_figure_over_the_steps():
    figures = titled(trajectory_sheet(whole()))
    assert list(figures) == [
        "top eigenvalue and limit 2/eta",
        "losses",
        "test accuracy",
        "epsilon-sharpness full keskar 1e-3",
        "near-rank of each layer at rel:1e-2",
    ]
    for figure in figures.values():
        ((_, content),) = figure.panels
        assert (content.places, content.across) == ((10.0, 20.0, 30.0), "steps")
        assert f"gapscope {figure.path.partition('/')[0]}" in figure.caption
        assert "on 1,300 train samples" in figure.caption


def test_the_top_eigenvalue_stands_against_its_limit_on_the_same_axes():
    figure = trajectory_sheet(whole()).figures[0]
    ((_, content),) = figure.panels
    assert content.names == ("top eigenvalue", "limit")
    assert content.values.tolist() == [[1.25, 2.5, 3.75], [2 / RATE] * 3]
    assert "above it the steps of gradient descent grow along that direction" in figure.caption
    moved = trajectory_sheet(whole(momentum=0.5)).figures[0]
    assert moved.title == "top eigenvalue and limit (2 + 2 momentum)/eta"
    assert moved.panels[0][1].values[1].tolist() == [3 / RATE] * 3
    nesterov = trajectory_sheet(whole(momentum=0.5, nesterov=True)).figures[0]
    assert nesterov.title == "top eigenvalue and limit of SGD with its momentum"


def test_without_a_limit_the_eigenvalue_stands_alone_and_no_limit_is_told_of():
    (figure,) = trajectory_sheet(tops(1.0, 2.0, stability=False)).figures
    assert figure.title == "top eigenvalue"
    assert "limit" not in figure.caption


def test_error_bars_join_both_errors_and_the_table_tells_them_apart():
    figure = trajectory_sheet(whole()).figures[0]
    ((_, content),) = figure.panels
    top = whole().points[0].report.results["eigenvalues"].quantities["top"]
    assert content.errors[0, 0] == pytest.approx(np.hypot(top.sampling_error, top.numerical_error))
    assert np.isnan(content.errors[1]).all()
    assert text(figure).count('class="error') == 1
    assert "one error to each side: that over the data and that of the computation" in figure.caption
    assert [column.header for column in figure.numbers.columns][2:] == ["value", "± data", "± numerical"]


def test_losses_share_their_axes_and_the_caption_counts_the_test_data():
    losses = titled(trajectory_sheet(whole()))["losses"]
    assert losses.panels[0][1].names == ("train", "test")
    tested = whole().points[0].report.results["gap"].quantities["test_accuracy"].samples
    assert f"Test data are {len(tested)} samples." in losses.caption
    bare = gap()
    quantities = {key: q for key, q in bare.quantities.items() if "test" not in key}
    points = tuple(point(place, replace(bare, quantities=quantities)) for place in PLACES)
    alone = trajectory_sheet(Trajectory(axis="steps", points=points)).figures[0]
    assert (alone.title, alone.panels[0][1].names) == ("train loss", ("",))
    assert "Test data" not in alone.caption


def test_unfinished_solvers_are_named_in_the_caption():
    statuses = {"1": Status.CONVERGED, "2": Status.CONVERGED, "3": Status.BUDGET_SPENT}
    points = tuple(point(place, eigenvalues(2.0, status=status)) for place, status in statuses.items())
    top = trajectory_sheet(Trajectory(axis="steps", points=points)).figures[0]
    assert "The solver did not finish at 3 (≥): a bound from below." in top.caption
    assert f"1 of 3 {Status.BUDGET_SPENT.value}" in top.caption
    assert "did not finish" not in trajectory_sheet(whole()).figures[0].caption


def test_many_places_are_counted_in_a_caption_and_marked_in_the_table():
    points = tuple(point(str(i), eigenvalues(1.0, status=Status.BUDGET_SPENT)) for i in range(1, 10))
    sheet = trajectory_sheet(Trajectory(axis="steps", points=points))
    assert "The solver did not finish at 9 of 9 checkpoints (≥): " in sheet.figures[0].caption
    assert all(line.cells[1].startswith("≥") for line in sheet.brief.blocks[0][0].lines)


def test_every_layer_has_its_near_rank_in_as_many_panels_as_they_need():
    layers = tuple(f"l{i}" for i in range(MOST["curves"] + 2))
    labels = {"layer": layers, "cut": ("rel:1e-2", "rel:1e-3")}
    value = np.stack([np.arange(8.0), np.full(8, 9.0)], axis=1)
    ranks = Quantity(value=value, dims=("layer", "cut"), labels=labels, doc="")
    record = replace(near_rank(), quantities={"near_rank": ranks})
    points = tuple(point(place, record) for place in PLACES)
    (figure,) = trajectory_sheet(Trajectory(axis="steps", points=points)).figures
    assert [(heading, content.names) for heading, content in figure.panels] == [
        ("l0 to l5", layers[:6]),
        ("l6 to l7", layers[6:]),
    ]
    assert figure.panels[1][1].values.tolist() == [[6.0] * 3, [7.0] * 3]
    assert len(figure.numbers.lines) == 3


def test_places_without_numbers_are_numbered():
    points = tuple(point(place, eigenvalues(2.0)) for place in ("1", "2"))
    points = tuple(replace(one, place=name) for one, name in zip(points, ("early", "late"), strict=True))
    ((_, content),) = trajectory_sheet(Trajectory(axis="order given", points=points)).figures[0].panels
    assert (content.places, content.words) == ((0.0, 1.0), ("early", "late"))


def test_one_checkpoint_has_numbers_and_no_figures():
    sheet = trajectory_sheet(tops(2.0))
    assert sheet.figures == ()
    assert sheet.about[-1].text == "1 checkpoint by steps: 100"
    assert "Nothing here is better seen than read." in page(sheet)


def test_a_checkpoint_without_a_number_leaves_a_gap():
    points = (point("1", eigenvalues(1.0)), point("2", gap()), point("3", eigenvalues(2.0)))
    top = trajectory_sheet(Trajectory(axis="steps", points=points)).figures[0]
    assert np.isnan(top.panels[0][1].values[0]).tolist() == [False, True, False]
    assert "2 of" not in top.caption


def test_behind_the_fold_are_all_numbers_with_errors_and_where_they_come_from():
    (numbers,), (checkpoints,) = trajectory_sheet(whole()).whole.blocks
    assert isinstance(numbers, Table)
    heads = [column.header for column in numbers.columns]
    assert "±" in numbers.lines[0].cells[heads.index("train loss")]
    assert {"near-rank fc1", "near-rank fc2", "near-rank fc3"} <= set(heads)
    assert checkpoints.lines[0].cells[:4] == (
        "10",
        "step-10.pt",
        whole().points[0].report.identity["sha256"][:12],
        "x/step-10.report.h5",
    )
    assert checkpoints.lines[0].cells[4:] == ("exact", "converged", "exact", "converged")


def test_an_unfinished_number_is_a_bound_behind_the_fold_too():
    (numbers,), _ = trajectory_sheet(tops(2.0, 3.0, status=Status.BUDGET_SPENT)).whole.blocks
    heads = [column.header for column in numbers.columns]
    assert numbers.lines[0].cells[heads.index("top eigenvalue")] == "≥ 2.00 ± 0.14"


def test_it_becomes_the_same_page_and_the_same_picture_each_time():
    first, second = trajectory_sheet(whole()), trajectory_sheet(whole())
    assert page(first) == page(second)
    assert picture(first.figures, ".svg") == picture(second.figures, ".svg")
    assert 'href="#definition-eigenvalues-top"' in page(first)
    assert 'id="definition-eigenvalues-top"' in page(first)
