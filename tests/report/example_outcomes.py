"""An outcome of a study that never was: a part with a curve that has a gap, single numbers, a table and notes."""

import numpy as np

from gapscope.report.document import Column, Line, Table
from gapscope.report.outcome import Claim, Outcome, Part
from gapscope.report.records import Record
from gapscope.results import Quantity, Status

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>fc1\'"&'


def claim(verdict, *, text="it rises", own=False):
    return Claim(text=text, source="Table 3", verdict=verdict, because="ratio 2", own=own)


def part(*, label="32", doc="sharpness at the end, errors over seeds", unit="%"):
    curve = Quantity(
        value=np.array([1.0, np.nan, 3.0]),
        sampling_error=np.array([0.1, np.nan, 0.3]),
        doc=doc,
        unit=unit,
        drawn="line",
        dims=("batch size",),
        labels={"batch size": (label, "64", "128")},
    )
    single = Quantity(value=np.array(2.0), numerical_error=np.array(0.5), doc="how much it rises.")
    record = Record(
        analyzer="toy-sweep",
        version="1",
        status=Status.EXACT,
        notes=("said by the record",),
        quantities={"sharpness": curve, "rise": single},
    )
    table = Table(
        columns=(Column(header="batch", numeric=False), Column(header="%")), lines=(Line(cells=(label, "1")),)
    )
    return Part(record=record, title="the sweep", tables=(table,), notes=("it says nothing of speed",))


def outcome(**changes):
    known = {
        "study": "toy",
        "title": "A et al. 2020: a toy",
        "source": "A et al. 2020",
        "about": ("digits, 1,300 training samples · mlp · 3 seeds",),
        "claims": (claim("shows"),),
        "parts": (part(),),
        "analyzers": ("gap",),
        "conditions": {"data": "digits", "samples": 1300},
        "environment": {"gapscope": "0.1.0", "created": "2026-11-21T00:00:00+00:00"},
    }
    return Outcome(**{**known, **changes})
