"""Archived reports of every released format version are still read, and shown as they were.

Golden texts guard formatting only.  After a change of it that is meant: `python tests/test_golden.py` writes them anew.
"""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gapscope.report.comparison import compare
from gapscope.report.export import comparison_json, dumps, report_json
from gapscope.report.file import FORMAT_VERSION, Comparison, Report, read
from gapscope.report.terminal import render
from gapscope.report.view import comparison_document, report_document

sys.path.insert(0, str(Path(__file__).parent / "report"))
import example_reports as examples

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "reports"
NAMES = ("report", "comparison")
# what is shown, how wide, and whether verbose
GOLDEN = [
    *((name, 80, verbose) for name in NAMES for verbose in (False, True)),
    *((f"layers-{name}", width, False) for name in NAMES for width in (80, 120)),
]


def found(name):
    """Return an archived file, or an example with many layers and every kind of drawing."""
    if name in NAMES:
        return read(ARCHIVE / f"v{FORMAT_VERSION}.{name}.h5")
    sides = [
        make(examples.curvature(scale, layers=12), examples.near_rank(loss), examples.adaptive_sharpness(scale))
        for make, scale, loss in ((examples.report, 1.0, 0), (examples.large, 1.7, 17))
    ]
    if name == "layers-comparison":
        return compare(sides, together=examples.together())
    return replace(sides[0], results={**sides[0].results, "density": examples.density(), "plane": examples.plane()})


def shown(name, width, verbose):
    content = found(name)
    document = (comparison_document if isinstance(content, Comparison) else report_document)(content, verbose=verbose)
    stream = io.StringIO()
    render(document, Console(file=stream, width=width, markup=False, highlight=False, emoji=False))
    return stream.getvalue()


def golden(name, width, verbose):
    return ARCHIVE / f"{name}{'-verbose' * verbose}{f'-{width}' * (width != 80)}.txt"


@pytest.mark.parametrize("version", range(1, FORMAT_VERSION + 1))
def test_every_format_version_is_still_read(version):
    report, comparison = (read(ARCHIVE / f"v{version}.{name}.h5") for name in NAMES)
    assert isinstance(report, Report)
    assert isinstance(comparison, Comparison)
    assert float(report.results["eigenvalues"].quantities["top"].value) == pytest.approx(0.888, rel=1e-2)
    assert report.conditions["samples"] == 1300
    assert {row.path for row in comparison.rows} > {
        "eigenvalues/top",
        "gap/test_loss",
        "epsilon-sharpness/full[keskar,1e-3]",
        "near-rank/near_rank[fc1,rel:1e-2]",
    }
    assert {"path", "plane"} <= set(comparison.results)
    assert dumps(report_json(report)).isascii()
    assert dumps(comparison_json(comparison)).isascii()


@pytest.mark.parametrize(("name", "width", "verbose"), GOLDEN)
def test_what_is_shown_is_golden(name, width, verbose):
    text = shown(name, width, verbose)
    assert text == golden(name, width, verbose).read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= width


if __name__ == "__main__":
    for case in GOLDEN:
        golden(*case).write_text(shown(*case), encoding="utf-8")
