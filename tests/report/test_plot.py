import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from example_reports import adaptive_sharpness, curvature, density, eigenvalues, gap, near_rank, plane, report, together

from gapscope.errors import ReportError, UsageError
from gapscope.report.file import write as write_file
from gapscope.report.map_chart import Map
from gapscope.report.plot import MAGIC, _rows, _sheet, picture, write
from gapscope.report.plot_charts import PALETTE
from gapscope.report.sheets import sheet
from gapscope.results import Quantity

SVG = "{http://www.w3.org/2000/svg}"
REPORT = report(eigenvalues(), near_rank(), curvature(layers=9), density(), gap())
ODD = "$x_1$ <b>&amp; $\\frac$ \\$ %s {y}"


def figures(content):
    return sheet(content).figures


def words(content):
    """The texts of a picture, as they stand in the file."""
    return [
        "".join(one.itertext()) for one in ElementTree.fromstring(picture(figures(content), ".svg")).iter(f"{SVG}text")
    ]


def drawn(value, *, drawn="line", names=("a", "b"), error=None, **given):
    """A report of one array with these numbers."""
    value = np.asarray(value, dtype=np.float64)
    dims = ("layer", "place")[-value.ndim :]
    labels = {"layer": names, "place": tuple(map(str, range(value.shape[-1])))}
    labels = {dim: labels[dim] for dim in dims}
    one = Quantity(value=value, doc="", drawn=drawn, dims=dims, labels=labels, sampling_error=error, **given)
    return report(replace(gap(), quantities={"odd_ones": one}))


@pytest.mark.parametrize("suffix", MAGIC)
@pytest.mark.parametrize("content", [REPORT, together()])
def test_the_same_content_gives_the_same_bytes_of_the_kind_asked_for(content, suffix):
    first = picture(figures(content), suffix)
    assert first == picture(figures(content), suffix)
    assert re.match(MAGIC[suffix], first, re.DOTALL)
    assert b"Matplotlib" not in first[:1000] + first[-1000:]


def test_a_matplotlibrc_changes_nothing(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 30\naxes.facecolor: red\naxes.grid: True\nsavefig.dpi: 20\n")
    write_file(REPORT, tmp_path / "r.h5")
    show = [sys.executable, "-m", "gapscope", "show", "r.h5", "--plot"]
    for name, rc in (("own.png", tmp_path / "matplotlibrc"), ("plain.png", "")):
        environment = {**os.environ, "MATPLOTLIBRC": str(rc)}
        subprocess.run([*show, name], cwd=tmp_path, env=environment, check=True, timeout=60)
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "plain.png").read_bytes()


@pytest.mark.parametrize("content", [REPORT, together(), report(plane())])
def test_every_panel_of_the_page_is_one_area_and_a_map_has_its_scale_beside_it(content):
    shown = figures(content)
    panels = [chart for one in shown for _, chart in one.panels]
    maps = sum(isinstance(chart, Map) for chart in panels)
    assert len(_sheet(_rows(shown)).axes) == len(panels) + maps


def test_the_ratios_come_first_with_their_words_and_the_reference():
    said = words(together())
    titles = [one for one in said if one in ("Ratios, large over small", "Path loss", "Plane loss")]
    assert titles == ["Ratios, large over small", "Path loss", "Plane loss"]
    assert {"top eigenvalue", "1.60 · large sharper", "large / small (log scale)"} <= set(said)


def test_titles_units_and_names_are_all_there():
    said = set(words(REPORT))
    assert {"Density", "density (log scale)", "eigenvalue", "Singular values", "fc1", "fc2", "fc3"} <= said
    assert "0.40 ± 0.04" in said
    assert {"epsilon-sharpness full %", "small batch 32", "large batch 650"} <= set(words(together()))


def test_narrow_panels_share_a_row_and_figures_of_several_begin_one():
    one = figures(report(density()))
    two = [replace(one[0], panels=one[0].panels * 2)]
    assert [len(row) for row in _rows([*one, *one, *one, *two])] == [2, 1, 2]
    (forest, *_), wide = figures(together()), _rows(figures(together()))
    assert [panel.content for panel in wide[0]] == [forest.panels[0][1]]


def test_dollars_and_markup_in_names_stay_text():
    said = words(drawn([[1.0, 2.0], [2.0, 1.0]], names=(ODD, "plain")))
    assert ODD in said
    assert ODD in words(report(replace(curvature(), quantities=renamed(curvature().quantities["median"], ODD))))


def renamed(quantity, name):
    labels = {"layer": (name, *quantity.labels["layer"][1:])}
    return {"median": replace(quantity, labels=labels)}


def test_long_names_are_broken_and_lose_nothing():
    long = "".join(f"block{i}." for i in range(40))
    said = words(report(replace(curvature(), quantities=renamed(curvature().quantities["median"], long))))
    assert long in "".join(said)
    assert long not in said


@pytest.mark.parametrize("kind", ["line", "bars", "map", "numbers"])
@pytest.mark.parametrize(
    "value",
    [
        [[np.nan, 1, 2], [np.nan, np.nan, np.inf]],
        [[1e308, -1e308, 1], [0, 0, 0]],
        [[1e-300, 1e300, 1], [5e-324, 2, 3]],
        [[0, 0, 0], [0, 0, 0]],
        [[np.nan, np.nan, 7], [np.nan, np.nan, np.nan]],
        [[1, 1 + 2**-52, 1], [1, 1, 1]],
    ],
)
def test_extreme_and_missing_values_are_drawn(kind, value):
    content = drawn(value, drawn=kind, better="lower", error=np.full((2, 3), 1e307))
    assert picture(figures(content), ".png")


def test_characters_that_the_font_lacks_stay_in_an_svg():
    content = drawn([[1.0, 2.0], [2.0, 1.0]], names=("層一", "b"))
    assert "層一" in words(content)
    assert picture(figures(content), ".png")


def test_colours_are_those_of_the_page_and_curves_differ_without_them():
    text = picture(figures(REPORT), ".svg").decode()
    assert len(PALETTE) == 6
    assert all(colour in text for colour in PALETTE[:3])
    assert len(set(re.findall('stroke-dasharray: ([^;"]+)', text))) >= 2


def test_unknown_suffixes_foreign_files_and_nothing_to_draw_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"names no kind of picture. Expected a name that ends in .png, .svg, .pdf. M"):
        write(figures(REPORT), tmp_path / "out.jpg")
    for suffix in MAGIC:
        place = tmp_path / f"mine{suffix}"
        place.write_text("<?xml version='1.0'?>\n<notes/>")
        with pytest.raises(
            ReportError, match=rf"exists and is no {suffix[1:].upper()}. Expected a new name .* `--plot`."
        ):
            write(figures(REPORT), place)
        assert place.read_text().endswith("<notes/>")
    with pytest.raises(ReportError, match=r"there is no figure for `--plot`. Expected an array, .* `--json`."):
        write(figures(report(gap())), tmp_path / "out.png")
    with pytest.raises(ReportError, match=r"cannot be written: .* name another place with `--plot`"):
        write(figures(REPORT), tmp_path / "none" / "out.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.pdf", "mine.png", "mine.svg"]


@pytest.mark.parametrize("suffix", MAGIC)
def test_an_earlier_picture_is_replaced(tmp_path, suffix):
    place = tmp_path / f"out{suffix.upper()}"
    write(figures(report(adaptive_sharpness())), place)
    before = place.read_bytes()
    write(figures(REPORT), place)
    assert place.read_bytes() not in (b"", before)


WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from gapscope.__main__ import main
main(sys.argv[1:])
"""


def test_without_matplotlib_one_line_says_how_to_get_it(tmp_path):
    write_file(REPORT, tmp_path / "r.h5")
    run = [sys.executable, "-c", WITHOUT, "show", "r.h5"]
    done = subprocess.run([*run, "--plot", "out.png"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Expected matplotlib. Install it: `pip install 'gapscope[plot]'`." in done.stderr
    assert not (tmp_path / "out.png").exists()
    assert subprocess.run(run, cwd=tmp_path, capture_output=True, timeout=60).returncode == 0
