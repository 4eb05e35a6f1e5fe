"""Judging claims, and an outcome as text, file and JSON."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from example_outcomes import EVIL, claim, outcome, part

from gapscope.report.contrasts import Scalar, between
from gapscope.report.document import Table
from gapscope.report.export import dumps
from gapscope.report.file import read_report, write
from gapscope.report.outcome import (
    CLAIMS,
    LIMITS,
    alike,
    all_of,
    judged,
    outcome_document,
    outcome_json,
    outcome_report,
    verdict,
)
from gapscope.report.terminal import text
from gapscope.report.view import report_document

NONE = (math.nan, math.nan)


@pytest.mark.parametrize(
    ("interval", "wanted", "ratio", "answer"),
    [
        ((1.1, 2.0), "higher", True, "shows"),
        ((1.1, 2.0), "lower", True, "does not show"),
        ((0.5, 0.9), "lower", True, "shows"),
        ((0.5, 0.9), "higher", True, "does not show"),
        ((0.5, 2.0), "higher", True, "cannot tell"),
        ((1.0, 2.0), "higher", True, "cannot tell"),  # an interval that touches equality holds it
        ((0.1, 0.5), "higher", False, "shows"),
        ((-0.5, -0.1), "higher", False, "does not show"),
        ((-0.5, -0.1), "lower", False, "shows"),
        ((-0.5, 0.1), "lower", False, "cannot tell"),
        ((0.0, math.inf), "higher", True, "cannot tell"),
        ((1.5, math.inf), "higher", True, "shows"),
        (NONE, "higher", True, "cannot tell"),
        (NONE, "lower", False, "cannot tell"),
    ],
)
def test_a_claim_is_judged_by_its_interval_alone(interval, wanted, ratio, answer):
    assert verdict((1.5, interval), wanted, ratio=ratio) == answer


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((-0.9, 0.9), "shows"),
        ((0.2, 0.8), "shows"),
        ((-0.5, 1.1), "cannot tell"),
        ((-9.0, 9.0), "cannot tell"),
        ((0.9, 2.0), "cannot tell"),
        ((1.1, 2.0), "does not show"),
        ((-2.0, -1.1), "does not show"),
        ((math.nan, math.nan), "cannot tell"),
    ],
)
def test_likeness_is_an_interval_within_the_bounds(interval, verdict):
    claim = alike("alike", (sum(interval) / 2, interval), within=(-1.0, 1.0), source="abstract", what="points")
    assert claim.verdict == verdict
    assert ("no interval" in claim.because) == math.isnan(interval[0])


def test_a_verdict_comes_with_its_numbers():
    sides = [[Scalar(value=value) for value in values] for values in ((1.0, 1.1, 0.9), (2.0, 2.1, 1.9))]
    found = judged("it rises", between(*sides, "ratio"), "higher", source="Table 3", ratio=True, what="ratio")
    assert (found.verdict, found.text, found.source) == ("shows", "it rises", "Table 3")
    assert found.because.startswith("ratio 2.0")
    assert ", 95 % interval 1." in found.because
    single = judged("it rises", (2.0, NONE), "higher", source="", ratio=True, what="ratio")
    assert (single.verdict, single.because) == ("cannot tell", "ratio 2, no interval")
    nothing = judged("it rises", (math.nan, NONE), "higher", source="", ratio=True, what="ratio")
    assert nothing.because == "ratio –, no interval"


@pytest.mark.parametrize(
    ("verdicts", "answer"),
    [
        (("shows", "shows"), "shows"),
        (("shows", "does not show"), "does not show"),
        (("cannot tell", "does not show"), "does not show"),
        (("shows", "cannot tell"), "cannot tell"),
        ((), "cannot tell"),
    ],
)
def test_a_claim_of_several_parts_shows_where_all_do(verdicts, answer):
    found = all_of("both", [claim(one, text=f"part {one}") for one in verdicts], source="Table 1")
    assert found.verdict == answer
    assert found.because == "; ".join(f"part {one}: {one} (ratio 2)" for one in verdicts)


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        (
            ("shows", "shows", "does not show", "cannot tell"),
            "Of 4 claims of A et al. 2020, 2 show, 1 does not show and ",
        ),
        (("does not show",) * 2, "Of 2 claims of A et al. 2020, 2 do not show here."),
        (("cannot tell",), "Of 1 claim of A et al. 2020, 1 cannot be told here."),
        ((), "Of 0 claims of A et al. 2020, none was judged here."),
    ],
)
def test_the_answer_counts_the_verdicts(verdicts, said):
    assert outcome(claims=tuple(map(claim, verdicts))).lead.startswith(said)


def test_the_answer_counts_the_claims_of_the_study_apart():
    paper, own = claim("shows"), (claim("shows", own=True), claim("cannot tell", own=True), claim("shows", own=True))
    assert outcome(claims=(own[0], paper, *own[1:])).lead == (
        "Of 1 claim of A et al. 2020, 1 shows here; of 3 beside them of this study's own, 2 show and 1 cannot be told."
    )
    assert outcome(claims=own[:1]).lead == (
        "Of 0 claims of A et al. 2020, none was judged here; of 1 beside them of this study's own, 1 shows."
    )


def test_claims_of_the_study_stand_below_those_of_the_paper():
    shown = outcome(claims=(claim("shows", text="a control", own=True), claim("shows", text="it falls")))
    lines = text(outcome_document(shown)).split("\n")
    first = lines.index("it falls (Table 3)    ratio 2  shows")
    assert lines[first + 1 : first + 3] == ["beside the paper's claims", " a control (Table 3)  ratio 2  shows"]
    assert not any("beside the paper" in line for line in text(outcome_document(outcome())).split("\n"))


def test_the_text_ends_with_the_claims_and_what_a_verdict_is_about():
    shown = outcome(claims=(claim("shows", text="it rises"), claim("cannot tell", text="it falls")))
    drawn = text(outcome_document(shown))
    lines = drawn.split("\n")
    assert lines[0] == shown.title
    assert "it rises (Table 3)  ratio 2  shows" in lines
    assert "it falls (Table 3)  ratio 2  cannot tell" in lines
    assert drawn.replace("\n", " ").endswith(LIMITS)
    assert drawn.index("the sweep") < drawn.index("\nClaims\n")
    assert "it says nothing of speed" in drawn
    assert "said by the record" in drawn
    assert max(map(len, lines)) <= 80
    (table,) = (one for one in outcome_document(shown).blocks[-1] if isinstance(one, Table))
    assert [line.tone for line in table.lines] == ["plain", "unsure"]


def test_a_file_keeps_the_claims_and_every_number(tmp_path):
    shown = outcome(claims=(claim("shows"), claim("does not show", text="b"), claim("cannot tell", text="c")))
    report = outcome_report(shown)
    write(report, tmp_path / "study.h5")
    found = read_report(tmp_path / "study.h5")
    assert list(found.results) == [CLAIMS, "toy-sweep"]
    assert found.identity == {"checkpoint": shown.title, "study": "toy", "source": "A et al. 2020", "analyzers": "gap"}
    verdicts = found.results[CLAIMS].quantities["verdict"]
    assert verdicts.value.tolist() == [1, -1, 0]
    assert verdicts.doc.startswith("1 where a claim shows here, -1 where it does not")
    (part_shown,) = shown.parts
    for name, quantity in part_shown.record.quantities.items():
        kept = found.results["toy-sweep"].quantities[name]
        for key in ("value", "sampling_error", "numerical_error"):
            mine, theirs = getattr(quantity, key), getattr(kept, key)
            assert (mine is theirs is None) or np.array_equal(mine, theirs, equal_nan=True)
        assert (kept.unit, kept.doc, kept.dims, kept.labels) == (
            quantity.unit,
            quantity.doc,
            quantity.dims,
            dict(quantity.labels),
        )
    assert found.results["toy-sweep"].notes == (*part_shown.notes, *part_shown.record.notes)


def test_a_stored_study_reads_well(tmp_path):
    shown = outcome(claims=(claim("shows", text="it rises"), claim("cannot tell", text="it falls")))
    write(outcome_report(shown), tmp_path / "study.h5")
    drawn = text(report_document(read_report(tmp_path / "study.h5")))
    lines = drawn.split("\n")
    assert lines[0] == shown.title
    assert f"· {shown.lead}" in " ".join(lines).replace("  ", " ")
    assert "· shows: it rises (Table 3): ratio 2." in lines
    assert "· cannot tell: it falls (Table 3): ratio 2." in lines
    assert "· it says nothing of speed" in lines
    assert max(map(len, lines)) <= 80


def test_json_has_the_claims_and_no_nan():
    shown = outcome(claims=(claim("shows", own=True), claim("cannot tell", text=EVIL)))
    found = json.loads(dumps(outcome_json(shown)), parse_constant=pytest.fail)
    assert (found["format"], found["format_version"]) == ("gapscope-study", 1)
    assert [one["verdict"] for one in found["claims"]] == ["shows", "cannot tell"]
    assert [one["own"] for one in found["claims"]] == [True, False]
    assert found["claims"][1]["text"] == EVIL
    assert found["lead"] == shown.lead
    assert found["about"] == list(shown.about)
    assert None in found["results"]["toy-sweep"]["quantities"]["sharpness"]["value"]


def test_a_study_without_claims_or_parts_can_be_written(tmp_path):
    empty = replace(outcome(), claims=(), parts=())
    write(outcome_report(empty), tmp_path / "study.h5")
    assert "none was judged here" in text(report_document(read_report(tmp_path / "study.h5"))).replace("\n", " ")
    assert part().record.analyzer not in dumps(outcome_json(empty))
