import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from example_reports import (
    adaptive_sharpness,
    curvature,
    density,
    eigenvalues,
    epsilon_sharpness,
    gap,
    near_rank,
    plane,
)

from gapscope.report.charts import chart
from gapscope.report.illustrations import (
    LISTED,
    MOST,
    errors,
    figures,
    illustrated,
    kind,
    measured,
    numbers,
    stacked,
    worth,
)
from gapscope.report.records import Record
from gapscope.results import Quantity, Status

CONDITIONS = {"samples": 1300, "split": "train"}


def found(*records, names=("checkpoint",)):
    return {one.path: one for one in figures({r.analyzer: r for r in records}, CONDITIONS, names)}


def array(shape, **given):
    dims = tuple("abcd"[: len(shape)])
    labels = {dim: tuple(map(str, range(size))) for dim, size in zip(dims, shape, strict=True)}
    value = given.pop("value", np.arange(1.0, math.prod(shape) + 1).reshape(shape))
    return Quantity(value=value, doc="what it is", dims=dims, labels=labels, **given)


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (array((3, 4), drawn="map"), "map"),
        (array((3, 1), drawn="map"), "dots"),
        (array((5,), drawn="map"), "curves"),
        (array((2, 5), drawn="line"), "curves"),
        (array((5,), drawn="bars"), "curves"),
        (array((5,), drawn="strip"), "dots"),
        (array((10,)), "curves"),
        (array((9,)), "dots"),
        (array((1,), drawn="line"), "dots"),
    ],
)
def test_a_quantity_says_itself_how_it_is_drawn(quantity, expected):
    assert kind(quantity) == expected


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        (array((3,), drawn="line"), True),
        (array((3,), drawn="detail"), False),
        (array((3,)), False),
        (array((3,), better="lower"), True),
        (array((3,), numerical_error=np.ones(3)), True),
        (array((1,), better="lower"), False),
        (Quantity(value=1.0, doc="", better="lower"), False),
        (array((3,), better="lower", value=np.full(3, np.nan)), False),
    ],
)
def test_figures_are_for_arrays_that_are_drawn_judged_or_uncertain(quantity, expected):
    assert worth(quantity) is expected


def test_known_analyzers_have_their_figures():
    shown = found(eigenvalues(), epsilon_sharpness(), adaptive_sharpness(), curvature(), near_rank(), density(), gap())
    assert {"epsilon-sharpness/full", "curvature/median", "near-rank/singular_values", "density/density"} <= set(shown)
    assert not [path for path in shown if path.startswith("gap/")]
    assert "density (log scale)" in chart(shown["density/density"].panels[0][1])
    assert "wide bar" not in shown["epsilon-sharpness/full"].caption
    for figure in shown.values():
        for _, content in figure.panels:
            assert ElementTree.fromstring(chart(content)).get("aria-label").startswith(figure.title)


def test_a_caption_says_how_it_was_measured():
    figure = found(epsilon_sharpness(status=Status.BUDGET_SPENT))["epsilon-sharpness/full"]
    assert "Measured on 1,300 train samples by gapscope epsilon-sharpness" in figure.caption
    assert Status.BUDGET_SPENT.value in figure.caption


def test_several_measurements_are_counted_by_how_they_ended_and_share_their_settings():
    done, spent = epsilon_sharpness(), epsilon_sharpness(status=Status.BUDGET_SPENT)
    said = measured([done, done, replace(spent, settings={**spent.settings, "limited": True})], " on 5 samples")
    assert said.startswith("Measured on 5 samples by gapscope epsilon-sharpness (")
    assert f": 2 of 3 {done.message}; 1 of 3 {spent.message}." in said
    assert "limited" not in said


@pytest.mark.parametrize(
    ("quantity", "bars"),
    [
        (array((2, 5), drawn="line", sampling_error=np.full((2, 5), 0.1)), 2),
        (array((2, 5), drawn="line"), 0),
        (array((12,), drawn="bars", numerical_error=np.ones(12)), 0),
    ],
)
def test_curves_have_bars_where_errors_are_known_and_areas_have_none(quantity, bars):
    figure = illustrated("moons/phase", quantity, errors(quantity))
    ((_, content),) = figure.panels
    assert chart(content).count('class="error') == bars
    assert ("A thin bar" in figure.caption) == bool(bars)


def test_medians_stand_before_their_quartiles():
    record = curvature()
    median = record.quantities["median"]
    quartiles = {
        name: replace(median, value=median.value * k) for name, k in (("lower_quartile", 0.5), ("upper_quartile", 2))
    }
    shown = found(replace(record, quantities={**record.quantities, **quartiles}))
    assert chart(shown["curvature/median"].panels[0][1]).count('class="box') == len(median.value)
    assert "wide bar reaches from the lower to the upper quartile" in shown["curvature/median"].caption
    assert not set(shown) & {"curvature/lower_quartile", "curvature/upper_quartile"}


def test_a_path_has_a_panel_per_path_and_a_curve_per_split():
    labels = {"path": ("linear", "curved"), "split": ("train", "test"), "a": ("-1", "0", "1", "2")}
    loss = Quantity(value=np.ones((2, 2, 4)), doc="", drawn="line", dims=("path", "split", "a"), labels=labels)
    figure = found(Record(analyzer="path", version="1", status=Status.EXACT, quantities={"loss": loss}))["path/loss"]
    assert [heading for heading, _ in figure.panels] == ["linear", "curved"]
    assert all(chart(content).count('class="curve') == 4 for _, content in figure.panels)  # two of them in the legend
    assert figure.caption.startswith("As in figures 3 and 7 of Keskar et al. (2017)")


def test_checkpoints_are_marked_on_a_plane_by_name():
    loss = plane()
    points = Quantity(
        value=[[0.0, 0.0], [1.0, 0.0]],
        doc="",
        dims=("subject", "axis"),
        labels={"subject": ("0", "1"), "axis": ("first", "second")},
    )
    record = replace(loss, quantities={**loss.quantities, "points": points})
    for names, expected in ((("small", "large"), ("small", "large")), (("one",), ("0", "1"))):
        (_, content), *_ = found(record, names=names)["plane/loss"].panels
        assert [f">{name}</text>" in chart(content) for name in expected] == [True, True]


def test_what_is_left_out_is_said_and_large_tables_are_cut():
    (figure,) = found(replace(gap(), quantities={"many": array((MOST["curves"] + 2, 30), drawn="line")})).values()
    assert f"Drawn: the first {MOST['curves']} of {MOST['curves'] + 2}." in figure.caption
    table = numbers(array((3000,), drawn="line"))
    assert len(table.lines) == LISTED // 2 + 1
    assert table.lines[-1].cells == ("2,500 more rows: gapscope show FILE --csv",)


def test_numbers_stand_in_columns_or_with_their_errors():
    plain = numbers(array((2, 3)))
    assert [column.header for column in plain.columns] == ["b", "0", "1"]
    assert [line.cells for line in plain.lines] == [("0", "1", "4"), ("1", "2", "5"), ("2", "3", "6")]
    erring = numbers(array((2,), sampling_error=[0.1, 0.2]))
    assert [column.header for column in erring.columns] == ["a", "value", "± data"]
    assert erring.lines[1].cells == ("1", "2", "0.20")


def test_an_analyzer_of_another_package_gets_its_figure():
    record = Record(analyzer="moons", version="1", status=Status.EXACT, quantities={"phase": array((4,), drawn="line")})
    (figure,) = found(record).values()
    assert (figure.path, figure.title) == ("moons/phase", "moons phase")


def test_a_single_curve_needs_no_dimension_of_its_own():
    two = stacked("t", ("0", "1"), ("a", "b"), value=np.ones((2, 2)), sampling_error=np.zeros((2, 2)))
    one = stacked("t", ("0", "1"), ("a",), value=np.ones((1, 2)), sampling_error=None)
    assert (two.dims, two.labels["curve"]) == (("curve", "t"), ("a", "b"))
    assert (one.dims, one.value.shape, one.sampling_error) == (("t",), (2,), None)


def test_falling_places_are_drawn_on_an_axis_of_numbers():
    quantity = stacked("loss", ("0.8", "0.3", "0.1"), ("a",), value=np.array([[1.0, 2, 3]]), sampling_error=None)
    figure = illustrated("", replace(quantity, sampling_error=np.array([0.1, 0.2, 0.3])), "", name="top")
    ((_, content),) = figure.panels
    assert (content.places, content.words, content.across) == ((0.1, 0.3, 0.8), ("0.1", "0.3", "0.8"), "loss")
    assert (content.values.tolist(), content.errors.tolist()) == ([[3, 2, 1]], [[0.3, 0.2, 0.1]])
    assert [line.cells[0] for line in figure.numbers.lines] == ["0.8", "0.3", "0.1"]
