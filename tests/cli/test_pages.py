import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
import example_reports as examples

from gapscope.cli import pages
from gapscope.errors import ReportError, UsageError
from gapscope.report.sheets import sheet

SHEET = sheet(examples.report(examples.curvature(), examples.gap()))


def test_what_cannot_be_written_is_refused_before_the_work(tmp_path):
    pages.refuse(None, None)
    pages.refuse(tmp_path / "out.html", tmp_path / "out.png")
    with pytest.raises(ReportError, match=r"does not exist. Expected a folder to write to. Make it, or mend `--html`."):
        pages.refuse(tmp_path / "none" / "out.html", None)
    with pytest.raises(ReportError, match=r"does not exist. Expected a folder to write to. Make it, or mend `--plot`."):
        pages.refuse(None, tmp_path / "none" / "out.png")
    with pytest.raises(UsageError, match=r"names no kind of picture. Expected a name that ends in .png, .svg, .pdf."):
        pages.refuse(None, tmp_path / "out.jpg")
    assert list(tmp_path.iterdir()) == []


def test_a_page_that_fails_does_not_keep_the_picture_from_being_written(tmp_path):
    html, plot = tmp_path / "out.html", tmp_path / "out.svg"
    html.write_text("<p>mine</p>")
    written, (failure,) = pages.write(SHEET, html, plot)
    assert written == [f"picture: {plot}"]
    assert "out.html exists and was not written by `--html`. Expected a new name" in str(failure)
    assert ">Curvature median</text>" in plot.read_text()
    assert html.read_text() == "<p>mine</p>"


def test_what_was_written_is_named_and_nothing_else(tmp_path):
    assert pages.write(SHEET, None, None) == ([], [])
    assert pages.write(SHEET, tmp_path / "out.html", None) == ([f"page: {tmp_path / 'out.html'}"], [])
    assert [path.name for path in tmp_path.iterdir()] == ["out.html"]
