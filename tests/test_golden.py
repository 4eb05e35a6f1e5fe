"""Archived reports of every released format version are still read, and every renderer shows what it showed.

Golden texts guard formatting only.  After a change of it that is meant: `python tests/test_golden.py` writes them anew.
"""

import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from gapscope.report import ci
from gapscope.report.citations import citation
from gapscope.report.comparison import compare
from gapscope.report.export import comparison_json, dumps, report_json, tabled
from gapscope.report.file import FORMAT_VERSION, Comparison, Report, read
from gapscope.report.page import page
from gapscope.report.plot import picture
from gapscope.report.sheets import sheet
from gapscope.report.sidecar import sidecar
from gapscope.report.terminal import render
from gapscope.report.thresholds import threshold
from gapscope.report.trajectory import Point, Trajectory, trajectory_document, trajectory_json
from gapscope.report.trajectory_sheet import trajectory_sheet
from gapscope.report.verdicts import exit_code, judge
from gapscope.report.view import comparison_document, report_document

sys.path.insert(0, str(Path(__file__).parent / "report"))
import example_reports as examples

ARCHIVE = Path(__file__).parents[1] / "fixtures" / "reports"
WRITTEN = ARCHIVE.parent / "golden"
NAMES = ("report", "comparison")
# what is shown, how wide, and whether verbose
GOLDEN = [
    *((name, 80, verbose) for name in NAMES for verbose in (False, True)),
    *((f"layers-{name}", width, False) for name in NAMES for width in (80, 120)),
    ("trajectory", 80, False),
    ("trajectory", 80, True),
    ("gate", 80, False),
]
LIMITS = {  # every verdict by the archived report, one of them by its baseline
    "eigenvalues/top": {"max": 1.0, "max_increase": "25%"},
    "gap/test_accuracy": {"min": 99.0},
    "trace/trace": {"max": 4.87, "claim": "population"},
    "near-rank/near_rank[*,rel:1e-2]": {"min": 30, "level": "warn"},
}


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


def trajectory():
    """Return a run of four checkpoints on its way to the limit of stability."""
    points = []
    for step, top, loss in ((0, 0.9, 2.3), (100, 2.5, 0.9), (200, 4.6, 0.4), (300, 3.9, 0.2)):
        stability = replace(
            examples.eigenvalues(top).quantities["top"], value=top / 4, chunks=None, sampling_error=None
        )
        record = examples.eigenvalues(top)
        record = replace(record, quantities={**record.quantities, "stability": stability})
        report = examples.report(record, examples.gap(loss))
        training = {"optimizer": "SGD", "lr": 0.5, "batch_size": 32, "steps": step}
        points.append(Point(place=str(step), report=replace(report, training=training), path=f"{step}.report.h5"))
    return Trajectory(axis="steps", points=tuple(points))


def checks():
    """Return the checks of an archived report against its like with other numbers."""
    report = found("report")
    record = report.results["eigenvalues"]
    top = replace(record.quantities["top"], value=record.quantities["top"].value * 0.7)
    before = replace(record, quantities={**record.quantities, "top": top})
    baseline = replace(report, results={**report.results, "eigenvalues": before})
    thresholds = [threshold(selector, table, "gapscope.toml") for selector, table in LIMITS.items()]
    known = {"trace": ("trace",)}
    return judge({"small.report.h5": report}, thresholds, baseline=baseline, known=known)


def document(name, verbose):
    if name == "trajectory":
        return trajectory_document(trajectory(), verbose)
    if name == "gate":
        return ci.gate_document(checks(), verbose=verbose)
    content = found(name)
    return (comparison_document if isinstance(content, Comparison) else report_document)(content, verbose=verbose)


def shown(name, width, verbose):
    stream = io.StringIO()
    render(document(name, verbose), Console(file=stream, width=width, markup=False, highlight=False, emoji=False))
    return stream.getvalue()


def small(*, comparison=False):
    """Return a report, or a comparison, with every kind of number, that a person can still read as JSON."""
    sides = [
        make(examples.eigenvalues(top), examples.gap(0.01))
        for make, top in ((examples.report, 0.15), (examples.large, 0.3))
    ]
    return compare(sides) if comparison else sides[0]


def words(svg):
    """Return the words of a picture, one a line, and how many strokes it has: their shapes are matplotlib's."""
    found = re.findall(r"<text[^>]*>(.*?)</text>", svg.decode(), re.S)
    return "\n".join([*(text.strip() for text in found), f"{svg.count(b'<path')} strokes"])


RENDERED = {  # file name -> text
    "report.json": lambda: dumps(report_json(small())),
    "comparison.json": lambda: dumps(comparison_json(small(comparison=True))),
    "trajectory.json": lambda: dumps(trajectory_json(trajectory(), {"late.pt": "it is damaged"})),
    "report.csv": lambda: tabled(small()),
    "comparison.csv": lambda: tabled(small(comparison=True)),
    "citation.txt": lambda: citation(small(comparison=True)),
    "gate.json": lambda: dumps(ci.gate_json(checks(), exit_code(checks()))),
    "gate.md": lambda: ci.markdown(checks()),
    "gate.github": lambda: ci.annotations(checks()),
    "gate.xml": lambda: ci.junit(checks()),
    "report.html": lambda: page(sheet(small())),
    "comparison.html": lambda: page(sheet(small(comparison=True))),
    "trajectory.html": lambda: page(trajectory_sheet(trajectory())),
    "comparison.svg": lambda: words(picture(sheet(small(comparison=True)).figures, ".svg")),
    "trajectory.svg": lambda: words(picture(trajectory_sheet(trajectory()).figures, ".svg")),
    "baseline.txt": lambda: sidecar(
        small(), examples.large(examples.eigenvalues(0.3)), reason="as planned", date="2026-01-01"
    ),
}
LONG = re.compile(r"-?\d+\.\d{9,}(?:e[+-]?\d+)?")


def golden(name, width, verbose):
    return ARCHIVE / f"{name}{'-verbose' * verbose}{f'-{width}' * (width != 80)}.txt"


def rendered(name):
    """Return what a renderer writes; the last digits of numbers are the machine's."""
    return LONG.sub(lambda found: f"{float(found[0]):.9g}", RENDERED[name]())


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


@pytest.mark.parametrize("name", RENDERED)
def test_what_is_written_is_golden(name):
    assert rendered(name) == (WRITTEN / name).read_text(encoding="utf-8")


if __name__ == "__main__":
    for case in GOLDEN:
        golden(*case).write_text(shown(*case), encoding="utf-8")
    for written in RENDERED:
        (WRITTEN / written).write_text(rendered(written), encoding="utf-8")
