import math
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from gapscope.report.svg import Axis, across, axis, drawing, element, fitted, line, text, upward, width


def test_elements_escape_what_is_not_markup():
    assert element("a", "<b/>", class_="x", stroke_width=2.04) == '<a class="x" stroke-width="2"><b/></a>'
    assert element("rect", x=-0.0, y=-0.04, title='"<>&\x1b') == '<rect x="0" y="0" title="&quot;&lt;&gt;&amp;"/>'
    assert text(1, 2, "<script>\u202e") == '<text x="1" y="2">&lt;script&gt;</text>'


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (-1, 2, [-1, -0.5, 0, 0.5, 1, 1.5, 2]),
        (0.0195, 0.0331, [0.02, 0.025, 0.03]),
        (90.2, 99.9, [92, 94, 96, 98]),
        (-5.2, -1.3, [-5, -4, -3, -2]),
    ],
)
def test_ticks_are_round_and_few(low, high, ticks):
    found = Axis(low=low, high=high, start=0, end=100).ticks()
    assert found == pytest.approx(ticks, abs=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.6, 3.1, [1, 2]),
        (0.02, 4, [0.03, 0.1, 0.3, 1, 3]),
        (1e-6, 1e2, [1e-6, 1e-4, 1e-2, 1, 100]),
        (1.05, 1.32, [1.05, 1.1, 1.15, 1.2, 1.25, 1.3]),
    ],
)
def test_ticks_of_a_log_axis_are_round_too(low, high, ticks):
    assert Axis(low=low, high=high, start=0, end=100, log=True).ticks() == pytest.approx(ticks)


def test_an_axis_maps_its_ends_and_holds_what_lies_beyond():
    linear, log = (Axis(low=1, high=100, start=200, end=0, log=log) for log in (False, True))
    assert (linear.at(1), linear.at(100), linear.at(math.inf), linear.at(-5)) == (200, 0, 0, 200)
    assert (log.at(10), log.at(0), log.at(-1)) == (100, 200, 200)
    assert math.isnan(log.at(math.nan))


def test_an_axis_is_logarithmic_where_positive_numbers_need_it():
    def made(*values, **given):
        return axis(np.array(values, dtype=float), start=0, end=1, **given)

    assert made(1, 1000).log
    assert not made(1, 99).log
    assert not made(0, 1000).log
    floor = made(0, 1e-12, 1000, log=True)
    assert floor.log
    assert floor.low == pytest.approx(1e-3, rel=0.6)
    assert made(5, 10, foot=0.0).low == 0
    assert made(math.nan, math.inf).high > made(math.nan).low
    assert made(3, 3).low < 3 < made(3, 3).high
    assert made(3, 3, log=True).low < 3 < made(3, 3, log=True).high


def test_a_path_is_interrupted_where_numbers_are_missing():
    assert line([(0, 1), (1, 2), (2, math.nan), (3, 4)]) == "M0.0 1.0L1.0 2.0M3.0 4.0"


def test_long_names_break_rather_than_lose_their_end():
    name = "encoder.layers.11.self_attention.output.dense.weight" * 2
    lines = fitted(name, 200)
    assert "".join(lines) == name
    assert all(width(each) <= 200 for each in lines)
    assert fitted("", 200) == [""]


def test_axes_and_drawings_are_well_formed():
    scale = Axis(low=0, high=1, start=20, end=200)
    parts = [*across(scale, top=0, foot=50, title="x & y"), *upward(scale, left=20, right=90, title="loss")]
    root = ElementTree.fromstring(drawing(80.2, 'what "it" is', parts))
    assert (root.attrib["role"], root.attrib["aria-label"]) == ("img", 'what "it" is')
    assert root.attrib["viewBox"] == "0 0 420 81"
    assert [t.text for t in root.iter("text") if t.get("class") == "axis"] == ["x & y", "loss"]
