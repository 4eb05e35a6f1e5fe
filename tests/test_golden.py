"""Archived reports of every released format version are still read, and shown as they were.

Golden texts guard formatting only.  After a change of it that is meant: `python tests/test_golden.py` writes them anew.
"""

import io
from pathlib import Path

import pytest
from rich.console import Console

from gapscope.report.export import comparison_json, dumps, report_json
from gapscope.report.file import FORMAT_VERSION, Comparison, Report, read
from gapscope.report.terminal import render
from gapscope.report.view import comparison_document, report_document

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "reports"
NAMES = ("report", "comparison")


def shown(path, verbose):
    found = read(path)
    document = (comparison_document if isinstance(found, Comparison) else report_document)(found, verbose=verbose)
    stream = io.StringIO()
    render(document, Console(file=stream, width=80, markup=False, highlight=False, emoji=False))
    return stream.getvalue()


def golden(name, verbose):
    return ARCHIVE / f"{name}{'-verbose' * verbose}.txt"


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
    }
    assert dumps(report_json(report)).isascii()
    assert dumps(comparison_json(comparison)).isascii()


@pytest.mark.parametrize("verbose", [False, True], ids=["brief", "verbose"])
@pytest.mark.parametrize("name", NAMES)
def test_what_is_shown_is_golden(name, verbose):
    text = shown(ARCHIVE / f"v{FORMAT_VERSION}.{name}.h5", verbose)
    assert text == golden(name, verbose).read_text(encoding="utf-8")
    assert max(map(len, text.splitlines())) <= 80


if __name__ == "__main__":
    for name in NAMES:
        for verbose in (False, True):
            text = shown(ARCHIVE / f"v{FORMAT_VERSION}.{name}.h5", verbose)
            golden(name, verbose).write_text(text, encoding="utf-8")
