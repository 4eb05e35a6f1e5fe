import matplotlib.figure
import numpy as np
import pytest

from gapscope.report.charts import Curves
from gapscope.report.plot_charts import PALETTE, draw, samples, wrapped


def curves(values, errors=None):
    values = np.array(values, dtype=np.float64)
    places = tuple(float(i) for i in range(values.shape[1]))
    names = ("train", "test")[: len(values)]
    given = {"said": "", "across": "a", "upward": "loss", "places": places, "words": tuple(map(str, places))}
    return Curves(**given, names=names, values=values, errors=None if errors is None else np.array(errors))


@pytest.fixture
def area():
    return matplotlib.figure.Figure().add_axes((0, 0, 1, 1))


def test_errors_are_bars_of_the_colour_of_their_curve(area):
    draw(area, curves([[1.0, 2, 3], [2, 3, 4]], [[0.5, np.nan, 0], [0.25] * 3]))
    lengths = {colour: [] for colour in PALETTE[:2]}
    for bars in area.collections:
        lengths[matplotlib.colors.to_hex(bars.get_color()[0])].append(np.ptp(bars.get_segments()[0][:, 1]))
    first, second = lengths.values()
    assert (len(first), len(second)) == (1, 3)
    assert first[0] == pytest.approx(2 * second[0])


def test_the_first_curve_lies_on_top_and_lonely_places_are_marked(area):
    draw(area, curves([[1.0, np.nan, *[2.0] * 20], [1.0] * 22]))
    last, first = area.lines
    assert (last.get_color(), first.get_color()) == (PALETTE[1], PALETTE[0])
    assert (first.get_markevery(), last.get_markevery()) == ([0], [])


def test_a_legend_shows_marks_only_where_the_curves_have_them():
    few, many = (samples(curves(np.ones((2, places)))) for places in (5, 30))
    assert [one.get_marker() for one in few] == ["o", "s"]
    assert [one.get_marker() for one in many] == ["", ""]
    assert few[0].get_linestyle() == "-"


def test_a_text_is_broken_where_its_room_ends_and_loses_nothing():
    said = "a title of many words that no column holds"
    assert wrapped(said, 10) == [said]
    assert len(wrapped(said, 1)) > 2
    assert " ".join(wrapped(said, 1)) == said
