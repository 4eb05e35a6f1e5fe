"""Structure of the charts: how many marks, where, and what they are called."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from gapscope.report.charts import Curves, Dot, Dots, chart, marked
from gapscope.report.map_chart import Map


def drawn(content):
    return ElementTree.fromstring(chart(content))


def of_class(root, name):
    return [one for one in root.iter() if name in one.get("class", "").split()]


def words(root, name):
    return [one.text for one in of_class(root, name)]


def curves(values, **given):
    values = np.array(values, dtype=float)
    places = tuple(float(i) for i in range(values.shape[1]))
    names = ("train", "test", "other")[: len(values)]
    given = {"places": places, "words": tuple(map(str, places)), "names": names, **given}
    return Curves(said="said", across="a", upward="loss", values=values, **given)


def test_curves_train_is_solid_and_test_dashed():
    root = drawn(curves([[1, 2, 3], [2, 3, 4]]))
    test, train = (one for one in of_class(root, "curve") if one.get("d").count("L") == 2)
    assert train.get("stroke-dasharray") is None
    assert test.get("stroke-dasharray") == "7 4"
    assert words(root, "label") == ["train", "test"]
    assert words(root, "axis") == ["loss", "a"]
    assert len(of_class(root, "mark")) == 6
    said = [hit.find("title").text for hit in of_class(root, "hit")]
    assert said[1] == "a 1.0\ntrain: 2\ntest: 3"


def test_curves_over_orders_of_magnitude_have_a_log_axis_and_gaps():
    root = drawn(curves([[1e-4, math.nan, 1, 10]]))
    assert words(root, "axis")[0] == "loss (log scale)"
    (curve,) = of_class(root, "curve")
    assert curve.get("d").count("M") == 2
    assert not words(root, "label")


def test_errors_are_bars_with_caps_and_said_where_the_pointer_rests():
    root = drawn(curves([[1, 2, 3], [2, 3, 4]], errors=np.array([[0.5, math.nan, 0], [math.nan] * 3])))
    (bars,) = of_class(root, "error")
    assert bars.get("class") == "error c0"
    assert (bars.get("d").count("V"), bars.get("d").count("h6")) == (1, 2)
    said = [hit.find("title").text for hit in of_class(root, "hit")]
    assert said[0] == "a 0.0\ntrain: 1.0 ± 0.5\ntest: 2"
    assert said[1] == "a 1.0\ntrain: 2\ntest: 3"
    low, high = map(float, re.search(r"M[\d.]+ ([\d.]+)V([\d.]+)", bars.get("d")).groups())
    ticks = {one.text: float(one.get("y")) - 4 for one in of_class(root, "tick") if one.get("text-anchor") == "end"}
    assert low - high == pytest.approx(ticks["1"] - ticks["2"], abs=0.3)  # from 0.5 to 1.5; SVG keeps one decimal


def test_a_bar_that_leaves_the_axis_has_no_cap_there():
    log = drawn(curves([[1, 10, 1000]], errors=np.array([[5.0, 1, 1]])))
    wide = drawn(curves([[1, 2, 3]], errors=np.array([[100.0, 1, 1]])))
    caps = [bars.get("d").count("h6") for root in (log, wide) for bars in of_class(root, "error")]
    assert caps == [5, 4]
    assert words(log, "axis")[0] == "loss (log scale)"
    assert "100" not in words(wide, "tick")  # it does not flatten the curve


def test_bars_of_many_places_have_no_caps():
    root = drawn(curves([np.linspace(1, 2, 30)], errors=np.full((1, 30), 0.1)))
    (bars,) = of_class(root, "error")
    assert (bars.get("d").count("V"), bars.get("d").count("h")) == (30, 0)


def test_of_long_curves_what_no_line_reaches_is_marked():
    values = [1.0, math.nan, *[2.0] * 20, math.nan, 3.0]
    assert marked(values) == [0, 23]
    assert marked(values[:5]) == [0, 2, 3, 4]
    assert len(of_class(drawn(curves([values])), "mark")) == 2


def test_the_first_curve_lies_on_top():
    root = drawn(curves([[1, 2], [2, 1]]))
    lines = [one.get("class") for one in of_class(root, "curve") if "L" in one.get("d")]
    assert lines == ["curve c1", "curve c0"]


def test_a_filled_curve_stands_on_zero_and_long_ones_have_no_marks():
    root = drawn(curves([np.linspace(1, 2, 300)], filled=True))
    (area,) = of_class(root, "area")
    assert area.get("d").endswith("Z")
    assert words(root, "tick")[0] == "0"
    assert not of_class(root, "mark")
    assert len(of_class(root, "hit")) == 150


def test_batch_sizes_are_spread_by_factors():
    root = drawn(curves([[1, 2, 3, 4]], places=(8.0, 32.0, 128.0, 650.0), words=("8", "32", "128", "650")))
    assert words(root, "axis")[1] == "a (log scale)"


def test_dots_have_intervals_boxes_shapes_and_words():
    rows = (
        ("fc1", (Dot(value=2, words="2 ± 1", interval=(1, 3), box=(0.5, 4)), Dot(value=3, words="3", series=1))),
        ("fc2", (Dot(value=math.nan, words="–"),)),
    )
    root = drawn(Dots(said="said", across="ratio", rows=rows, series=("small", "large")))
    assert words(root, "value") == ["2 ± 1", "3", "–"]
    assert words(root, "label") == ["small", "large"]
    assert words(root, "halo") == ["fc1", "fc2"]
    assert len(of_class(root, "box")) == 1
    assert len(of_class(root, "curve")) == 1
    marks = [one.get("d") for one in of_class(root, "mark")]
    assert len(marks) == 4  # two of them in the legend
    assert marks[0] == marks[2] != marks[1] == marks[3]
    titles = [one.find("title").text for one in root.iter("g") if one.find("title") is not None]
    assert titles == ["fc1 small 2 ± 1", "fc1 large 3", "fc2 small –"]


def test_a_forest_has_its_line_at_one_and_arrows_where_intervals_go_on():
    rows = tuple((str(i), (Dot(value=v, words=str(v), interval=ends),)) for i, (v, ends) in enumerate(FOREST))
    root = drawn(Dots(said="said", across="b / a", rows=rows, line=1.0, log=True))
    (even,) = of_class(root, "even")
    at = float(re.match(r"M([\d.]+)", even.get("d"))[1])
    places = [float(re.search(r"\(([\d.]+)", mark.get("transform"))[1]) for mark in of_class(root, "mark")]
    assert places[0] < at < places[1]
    cut = [one.get("d") for one in of_class(root, "curve")]
    assert ["l-5 4l5 4" in d for d in cut] == [False, False, True]
    assert words(root, "axis") == ["b / a (log scale)"]


def test_an_interval_without_an_end_runs_out_of_the_drawing():
    several = [((2.0, (1.5, math.inf)), "l5 4l-5 4"), ((0.5, (0.0, 0.8)), "l-5 4l5 4")]
    for (value, ends), arrow in several:
        rows = (("a", (Dot(value=value, words="", interval=ends),)), ("b", (Dot(value=1, words="", interval=(1, 1)),)))
        first, _ = of_class(drawn(Dots(said="said", across="b / a", rows=rows, line=1.0, log=True)), "curve")
        assert arrow in first.get("d")


FOREST = [(0.5, (0.4, 0.6)), (2.0, (1.5, 3.0)), (1.0, (1e-9, 2.0))]


def plane(values, **given):
    n = len(values)
    at = np.linspace(-1, 1, n)
    given = {"unit": "loss", "columns": at, "rows": at, **given}
    return Map(said="said", across="first", upward="second", values=np.array(values, dtype=float), **given)


@pytest.mark.parametrize(
    "values",
    [[[-1.7e308, 1.7e308]], [[5e-324, 1e-300]], [[math.inf, -math.inf]], [[0, 0]], [[1, 1 + 1e-15]], [[1e300, 1e-300]]],
    ids=str,
)
def test_extreme_numbers_are_drawn_all_the_same(values):
    rows = tuple((str(v), (Dot(value=v, words=str(v), interval=(v / 2, v * 2)),)) for v in values[0])
    square = [[values[0][0], values[0][1]], [values[0][1], values[0][0]]]
    errors = np.abs(np.array(values, dtype=float))
    erring = curves(values, errors=errors)
    for content in (
        curves(values),
        curves(values, log=True),
        erring,
        Dots(said="", across="", rows=rows),
        plane(square),
    ):
        text = chart(content)
        ElementTree.fromstring(text)
        assert not re.search(r'="[^"]*\b(nan|inf)', text)


def test_the_same_numbers_give_the_same_bytes_and_hostile_names_stay_text():
    evil = '"><script>alert(1)</script>\x1b'
    content = curves([[1, 2, 3], [3, 2, 1]], names=(evil, "b"))
    assert chart(content) == chart(content)
    root = drawn(content)
    assert "script" not in {one.tag for one in root.iter()}
    assert "\x1b" not in chart(content)
