import math

import numpy as np
import pytest

from gapscope.report.canvas import COLOURS, SHADES, Canvas
from gapscope.report.document import Heat, Series
from gapscope.report.drawing import relabelled, series
from gapscope.report.figures import number
from gapscope.report.maps import heat

NAN, INF = math.nan, math.inf
PLAIN, COLOURED, ASCII = Canvas(width=80), Canvas(width=80, colours=True), Canvas(width=80, blocks=False)


def curve(*values, style="line", labels=None, names=(), curves=None):
    labels = labels or tuple(map(str, range(len(values))))
    return Series(title="loss", style=style, axis="t", labels=labels, curves=curves or (values,), names=names)


def grid(values, rows=None, columns=None, **more):
    rows = rows or tuple(f"{y:g}" for y in np.linspace(-1, 1, len(values)))
    columns = columns or tuple(f"{x:g}" for x in np.linspace(-1, 1, len(values[0])))
    return Heat(title="loss", axes=("y", "x"), rows=rows, columns=columns, values=tuple(map(tuple, values)), **more)


def text(drawing, canvas=PLAIN):
    drawn = series(drawing, canvas) if isinstance(drawing, Series) else heat(drawing, canvas)
    lines = ["".join(span.text for span in spans).rstrip() for spans in drawn]
    # words may be wrapped by a renderer, drawings may not be too wide
    assert all(len(line) <= canvas.width for line in lines if " · " not in line)
    return lines


# Lines


def test_a_line_has_a_title_heights_an_axis_and_its_numbers():
    title, *drawn, axis, said = text(curve(0.0, 1, 2, 3, 4))
    assert title == "loss along t"
    assert [line[4:] for line in drawn] == [
        " " * 32 + "████████",
        " " * 24 + "████████" * 2,
        " " * 16 + "████████" * 3,
        "▁▁▁▁▁▁▁▁" + "████████" * 4,
    ]
    assert [line[:4] for line in drawn] == ["  4 ", "    ", "    ", "  0 "]
    assert axis.split() == ["0", "1", "2", "3", "4"]
    assert said == "  first 0, last 4 · lowest 0 at 0 · highest 4 at 4"


def test_each_of_several_curves_has_its_own_scale_and_says_its_range():
    lines = text(curve(0, 0, 0, curves=((0.0, 1, 2), (2.0, 3, 8)), names=("train", "test")))
    assert lines[1] == f"  train {'▁' * 8}{'▄' * 8}{'█' * 8} 0 to 2"
    assert lines[2] == f"   test {'▁' * 16}{'█' * 8} 2 to 8"
    assert lines[-1] == "  each on its own scale · lowest 0 of train at 0 · highest 8 of test at 2"


def test_only_a_curve_over_more_than_two_decades_is_logarithmic_and_its_row_says_so():
    curves = ((1.0, 10, 1000), (1.0, 10, 90), (5.0, 5, 5), (NAN, NAN, NAN))
    lines = text(curve(0, 0, 0, curves=curves, names=("a", "b", "c", "d")))
    assert [line.split("  ")[-1].split(" ", 2)[-1] for line in lines[1:5]] == [
        "1 to 1000, log",
        "1 to 90",
        "all 5",
        "not finite",
    ]
    assert "▃" in lines[1]  # a third of three decades
    assert "▃" not in lines[2]
    assert "log" not in lines[-1]


def test_bars_under_the_log_scales_of_several_curves_are_counted():
    spectra = (tuple([1e-12] * 6 + [1.0]), tuple([0.0] * 6 + [1.0]))
    lines = text(curve(*range(7), style="bars", curves=spectra, names=("a", "b")))
    assert lines[1].endswith("█ 1e-12 to 1, log")
    assert lines[2].endswith(f"{'▁' * 8}{'█' * 8} 0 to 1")  # one bar among zeros needs no log scale
    assert lines[-1].endswith("highest 1 of a at 6 · 6 values under the log scales are blank")


def test_more_points_than_characters_are_said_to_share_them():
    values = np.zeros(1000)
    values[500] = 1
    lines = text(curve(*values))
    assert lines[-1].endswith("1,000 points: each column is the highest of 14")
    assert "█" in lines[1]


def test_whole_numbers_mark_a_short_axis_and_long_labels_do_not_break_it():
    steps = np.linspace(-1, 2, 25)
    peak = [float(abs(t) < 1e-9) for t in steps]
    lines = text(curve(*peak, labels=tuple(f"{t:.6g}" for t in steps)))
    assert lines[-2].split() == ["-1", "0", "1", "2"]
    assert 0 <= lines[-2].index("0") - lines[1].index("█") <= 1  # under the two characters of its point
    axis = text(curve(1.0, 2, 3, labels=("the first of all labels", "b", "the last of all labels")))[-2]
    assert axis.split("  ")[-1].strip() == "the first of all labels the last of all labels"


def test_places_that_are_whole_numbers_keep_all_their_digits_and_others_lose_some():
    sizes = ("8", "4096", "32768")
    axis, said = text(curve(1.0, 2.0, 3.0, labels=sizes))[-2:]
    assert (axis.split()[0], axis.split()[-1]) == ("8", "32768")
    assert said.endswith("highest 3 at 32768")
    assert text(curve(1.0, 2.0, labels=("007", "010"), style="strip"))[-1].endswith(
        "lowest 1 in 007 · highest 2 in 010"
    )
    assert text(curve(1.0, 2.0, labels=("0.123456", "1.23456e7")))[-1].endswith(
        "lowest 1 at 0.1235 · highest 2 at 1.235e7"
    )
    assert text(grid([[0.0, 1], [2, 3]], rows=("10000", "32768"), columns=("1", "65536")))[-3].split()[-1] == "65536"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((NAN, INF), "none of the 2 values is finite"),
        ((3.0, 3.0, 3.0), "all 3 values: 3"),
        ((3.0, NAN, 3.0), "all 2 values: 3, 1 not finite"),
        ((-2.5,), "0: -2.5"),
    ],
)
@pytest.mark.parametrize("style", ["line", "bars", "strip"])
def test_what_needs_no_drawing_is_said(values, said, style):
    assert text(curve(*values, style=style))[1:] == [f"  {said}"]


def test_single_points_of_several_curves_are_numbers():
    assert text(curve(0, labels=("0",), curves=((1.0,), (2.0,)), names=("a", "b")))[1:] == ["  a: 1", "  b: 2"]


def test_values_that_are_not_finite_show_as_such():
    lines = text(curve(1.0, NAN, INF, -INF, 2.0))
    assert lines[4][4:].count("?") == 3 * 8
    assert lines[-1].endswith("3 not finite: ?")
    assert lines[-1].startswith("  first 1, last 2 · lowest 1 at 0 · highest 2 at 4")


@pytest.mark.parametrize("extreme", [(-1e308, 1e308), (1e-300, 1e300), (-5.0, -1.0), (0.0, 5e-324), (-1e-9, 1e9)])
@pytest.mark.parametrize("style", ["line", "bars", "strip"])
def test_any_range_can_be_drawn(extreme, style):
    lines = text(curve(extreme[0], 0.5 * extreme[0] + 0.5 * extreme[1], extreme[1], style=style))
    assert len(lines) >= 3
    assert any("▁" in line or "█" in line or "▅" in line for line in lines)
    assert f"highest {number(extreme[1])} " in lines[-1]


def test_a_line_over_more_than_two_decades_is_logarithmic_and_says_so():
    assert "log scale" not in text(curve(1.0, 50.0))[-1]
    lines = text(curve(1.0, 10.0, 1000.0))
    assert lines[-1].endswith("log scale")
    assert lines[4].startswith("     1 ")
    assert lines[3][7:].startswith("        ▃▃▃▃▃▃▃▃")  # a third of 32 eighths: 8 below, 3 here


# Bars


def test_bars_stand_on_zero():
    lines = text(curve(2.0, 1.0, 2.0, style="bars"))
    assert lines[1].startswith("  2 ████████        ████████")
    assert lines[8].startswith("  0 ████████████████████████")
    assert lines[-1] == "  highest 2 at 0"


def test_a_spectrum_with_all_its_mass_in_one_place_is_logarithmic_and_says_what_is_blank():
    values = [1e-12] * 40 + [40.0] * 2 + [1e-9] * 50 + [0.0] * 3 + [0.01] * 2
    lines = text(curve(*values, style="bars"))
    assert lines[-1] == (
        "  highest 40 at 40 · log scale (93 values under 4e-5 are blank) · 97 points: each column is the highest of 2"
    )
    assert lines[1].startswith("    40 ")
    assert lines[8].startswith("  4e-5 ")
    # 20 columns of two points each are blank, then the peak, then those under the floor, then 0.01: 40 % of 6 decades
    assert lines[1][7:] == " " * 20 + "█"
    assert lines[8][7:].count("█") == 1 + 2
    assert lines[8].endswith("█")


# Strips


def test_a_strip_has_a_cell_per_entry_and_names_the_ends():
    names = ("fc1", "fc2", "fc3")
    title, cells, said = text(curve(1.0, 3.0, 2.0, style="strip", labels=names))
    assert (title, cells) == ("loss by t", "  ▁▁██▅▅")
    assert said == "  lowest 1 in fc1 · highest 3 in fc2"
    coloured = list(series(curve(1.0, 3.0, 2.0, style="strip", labels=names), COLOURED))[1]
    assert [span.fore for span in coloured[1:]] == [COLOURS[0], COLOURS[-1], COLOURS[4]]
    ascii_cells = text(curve(1.0, 3.0, 2.0, style="strip", labels=names), ASCII)[1]
    assert ascii_cells == f"  {SHADES[0] * 2}{SHADES[-1] * 2}{SHADES[4] * 2}"


def test_a_long_strip_takes_several_lines():
    lines = text(curve(*range(200), style="strip"))
    assert [len(line.strip()) for line in lines[1:4]] == [72, 72, 56]


# Maps


def test_a_map_without_colour_is_a_ramp_with_axes_and_legend():
    lines = text(grid([[0.0, 1, 2], [1, 2, 3], [2, 3, 4]]))
    assert lines[0] == "loss"
    cell = 8 * 2  # each value is repeated to 8 x 8 cells of two characters
    assert lines[1] == "   1 " + "+" * cell + "#" * cell + "@" * cell  # the last row is drawn first: y grows upwards
    assert lines[24] == "  -1 " + "." * cell + "-" * cell + "+" * cell
    assert [line[:4] for line in lines[1:25] if line[:4].strip()] == ["   1", "   y", "  -1"]
    assert lines[25].split() == ["-1", "x", "1"]
    assert lines[26:] == ["  0 .:-=+*#%@ 4", "  lowest at x -1, y -1 · X: the centre"]
    assert [line.count("X") for line in lines[1:25]] == [0] * 12 + [1] + [0] * 11


def test_a_map_in_colour_puts_two_rows_on_a_line():
    drawn = list(heat(grid([[0.0, 1], [2, 3]]), COLOURED))
    assert len(drawn) == 1 + 24 + 3
    upper, lower = drawn[1][1:], drawn[24][1:]
    assert [(span.text, span.fore) for span in upper] == [("▀" * 24, "#3ab776"), ("▀" * 24, COLOURS[-1])]
    assert [span.fore for span in lower] == [COLOURS[0], "#31678d"]
    assert [span.fore for span in drawn[-2][1:-1]] == list(COLOURS)


def test_an_odd_last_row_has_half_a_line():
    drawn = list(heat(grid(np.arange(49.0 * 49).reshape(49, 49).tolist()), COLOURED))
    assert len(drawn) == 1 + 25 + 3
    assert {span.back for span in drawn[25][1:]} == {""}


def test_colours_need_block_characters():
    canvas = Canvas(width=80, blocks=False, colours=True)
    assert text(grid([[0.0, 1], [2, 3]]), canvas) == text(grid([[0.0, 1], [2, 3]]), ASCII)
    assert all(line.isascii() for line in text(grid([[0.0, NAN], [2, 3]]), ASCII) if " · " not in line)


def test_cells_that_are_not_finite_are_question_marks_or_blank():
    values = [[NAN, 1.0, 2], [1, 2, 3], [2, 3, INF]]
    lines = text(grid(values))
    assert sum(line.count("?") for line in lines[1:-3]) == 2 * 8 * 16
    assert lines[-1].endswith("2 not finite: ?")
    coloured = list(heat(grid(values), COLOURED))
    assert coloured[-1][0].text.endswith("2 not finite: blank")
    assert coloured[1][-1].text.strip() == ""
    above = np.ones((49, 1))
    above[:-1:2] = NAN  # drawn upwards: the lower half of a line is blank, then the upper
    second = list(heat(grid(above.tolist()), COLOURED))[2]
    assert [span.text for span in second[1:]] == ["▄"]


@pytest.mark.parametrize("canvas", [PLAIN, COLOURED, ASCII])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (5, 1), (2, 2), (51, 51), (200, 3), (3, 200)])
def test_maps_of_any_shape_fit(shape, canvas):
    values = np.add.outer(np.arange(shape[0]), np.arange(shape[1])).astype(float).tolist()
    rows, columns = (tuple(f"{i}" for i in range(size)) for size in shape)
    lines = text(grid(values, rows, columns), canvas)
    assert len(lines) <= 60
    if shape[1] == 200 or (shape == (51, 51) and canvas is not COLOURED):
        assert "a cell is the mean of" in lines[-1]


def test_no_finite_cell_is_said():
    assert text(grid([[NAN, INF]]))[1:] == ["  none of the 2 values is finite"]


def test_a_map_over_more_than_two_decades_is_logarithmic():
    lines = text(grid([[1.0, 10], [100, 1000]]))
    assert lines[-1].startswith("  log scale · ")
    assert lines[-3 - 1].strip().startswith("-1 ....")


def test_subjects_are_marked_where_they_lie():
    values = np.arange(81.0).reshape(9, 9).tolist()
    lines = text(grid(values, marks=(("0", 0.0, 0.0), ("1", 0.0, 0.5), ("2", 9.0, 9.0))))
    row = next(line for line in lines if "0 " in line[6:-2] and "1 " in line[6:])
    assert row.index("0 ", 6) < row.index("1 ", 6)
    assert lines[-1].endswith("0, 1, 2: the subjects")


def test_a_map_over_names_keeps_its_order():
    lines = text(grid([[0.0, 1], [2, 3]], rows=("first", "second"), columns=("a", "b")))
    assert lines[1].startswith("   first ..")
    assert lines[-1] == "  lowest at x a, y first"


def test_every_string_of_a_drawing_passes_the_cleaner():
    changed = relabelled(curve(1.0, 2.0, names=("n",)), str.upper)
    assert (changed.title, changed.axis, changed.names) == ("LOSS", "T", ("N",))
    changed = relabelled(grid([[1.0]], rows=("a",), columns=("b",)), str.upper)
    assert (changed.title, changed.axes, changed.rows, changed.columns) == ("LOSS", ("Y", "X"), ("A",), ("B",))
