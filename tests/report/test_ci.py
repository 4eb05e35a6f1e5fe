import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from lxml import etree

from gapscope.report.ci import annotations, beside, cells, gate_document, gate_json, junit, line, markdown, summary
from gapscope.report.terminal import text
from gapscope.report.verdicts import Check

XSD = Path(__file__).parent / "junit.xsd"


def check(verdict="pass", title="top eigenvalue", **given):
    facts = {
        "report": "r.h5",
        "path": "eigenvalues/top",
        "unit": "",
        "rule": "max",
        "limit": 1.5,
        "level": "error",
        "value": 1.0,
        "observed": 1.0,
        "interval": (0.9, 1.1),
    }
    return Check(verdict=verdict, title=title, **{**facts, **given})


EVERY = (
    check(),
    check("fail", value=2.0, observed=2.0, interval=(1.9, 2.1)),
    check("unsure", interval=(0.9, math.inf), settle="more samples"),
    check("skipped", rule="max_increase", limit=0.25, share=True, observed=math.nan, interval=(math.nan,) * 2),
    check("cannot be judged", value=math.nan, observed=math.nan, interval=(math.nan,) * 2, reason="it is NaN"),
    check("fail", level="warn", report="s.h5", value=2.0, observed=2.0, interval=(2.0, 2.0)),
)
EVIL = "a|b`<script>*_[x](y)\r\n::error::z%0A,:\x1b[31m\u202e&\"'"


DOCUMENT = """\
check                     limit  observed  interval    verdict
r.h5
 top eigenvalue           ≤ 1.5         1  0.9 to 1.1  pass
 top eigenvalue           ≤ 1.5         2  1.9 to 2.1  fail
 top eigenvalue           ≤ 1.5         1  0.9 to inf  unsure
 top eigenvalue change  ≤ +25 %         –              skipped
 top eigenvalue           ≤ 1.5         –              cannot be judged
s.h5
 top eigenvalue           ≤ 1.5         2              fail (warns)

· unsure: r.h5, top eigenvalue: what would settle it: more samples
· cannot be judged: r.h5, top eigenvalue: it is NaN

gate: 1 cannot be judged, 2 fail (of them 1 only warns), 1 unsure, 1 skipped, 1
pass"""
MARKDOWN = """\
### gapscope gate

1 cannot be judged, 2 fail (of them 1 only warns), 1 unsure, 1 skipped, 1 pass

| report | check | limit | observed | interval | verdict |
|---|---|---|---|---|---|
| r.h5 | top eigenvalue | ≤ 1.5 | 1 | 0.9 to 1.1 | ✅ pass |
| r.h5 | top eigenvalue | ≤ 1.5 | 2 | 1.9 to 2.1 | ❌ fail |
| r.h5 | top eigenvalue | ≤ 1.5 | 1 | 0.9 to inf | ❔ unsure |
| r.h5 | top eigenvalue change | ≤ +25 % | – |  | ⏭️ skipped |
| r.h5 | top eigenvalue | ≤ 1.5 | – |  | 🚫 cannot be judged |
| s.h5 | top eigenvalue | ≤ 1.5 | 2 |  | ❌ fail (warns) |

- unsure: r.h5, top eigenvalue: what would settle it: more samples
- cannot be judged: r.h5, top eigenvalue: it is NaN
"""


def test_the_document_and_the_markdown_look_like_this():
    assert text(gate_document(EVERY)).replace("\u00a0", " ") == DOCUMENT
    assert markdown(EVERY).replace("\u00a0", " ") == MARKDOWN
    assert summary(EVERY[:1]) == "gate: 1 pass"


def test_many_passes_are_counted_and_nothing_else_is_left_out():
    shown = text(gate_document([check()] * 21 + [check("fail")] * 30))
    assert "21 more pass" in shown
    assert shown.count("fail") == 31  # and the summary's
    assert text(gate_document([check()] * 20)).count("0.9 to 1.1") == 20


@pytest.mark.parametrize("value", [1.50000001, 1.49999999, 1.5, math.nextafter(1.5, 2), math.nextafter(1.5, 1), -3.0])
def test_no_rounding_crosses_the_limit(value):
    shown = float(beside(value, 1.5))
    assert ((shown > 1.5), (shown < 1.5)) == ((value > 1.5), (value < 1.5))
    assert beside(1.23456789, 1.5) == "1.235"


def test_a_change_is_shown_with_its_sign_and_unit():
    (title, limit, observed, interval, _) = cells(
        check(rule="max_decrease", limit=0.25, share=True, observed=-0.1, interval=(-0.2, 0.05))
    )
    assert (title, limit) == ("top eigenvalue change", "≥\u00a0-25\u00a0%")
    assert (observed, interval) == ("-10", "-20 to +5")
    assert cells(check(rule="max_increase", unit="points", limit=2.0))[1] == "≤\u00a0+2\u00a0points"


def test_json_has_every_check_and_no_nan():
    found = json.loads(json.dumps(gate_json(EVERY, 2), allow_nan=False))
    assert (found["format"], found["format_version"], found["exit_code"]) == ("gapscope-gate", 1, 2)
    assert found["verdict"] == "cannot be judged"
    assert gate_json([check(), check("fail", level="warn")], 0)["verdict"] == "pass"
    assert [c["verdict"] for c in found["checks"]] == [c.verdict for c in EVERY]
    assert found["checks"][2]["interval"] == [0.9, None]
    assert set(found["checks"][0]) == set(vars(EVERY[0]))


def test_markdown_is_one_table_whatever_the_names_hold():
    lines = markdown([*EVERY, check("fail", title=EVIL, report=EVIL)]).splitlines()
    rows = [row for row in lines if row.startswith("|")]
    assert len(rows) == 2 + len(EVERY) + 1
    assert {row.replace("\\|", "").count("|") for row in rows} == {7}
    assert "<script>" not in "\n".join(lines)
    assert "\\[x\\](y)" in rows[-1]
    assert lines[0] == "### gapscope gate"


def test_annotations_are_one_command_each_and_names_cannot_add_any():
    found = annotations([*EVERY, check("fail", title=EVIL, report=EVIL)]).splitlines()
    assert [one.partition(" ")[0] for one in found] == [
        "::error",
        "::warning",
        "::notice",
        "::error",
        "::warning",
        "::error",
    ]
    assert found[0].startswith("::error title=gapscope gate%3A top eigenvalue::r.h5: fail: top eigenvalue 2 (1.9 to")
    title, message = found[-1].removeprefix("::error title=").split("::", 1)
    assert ":" not in title
    assert "," not in title
    assert "%250A" in message
    assert "\x1b" not in message
    assert annotations([check()]) == ""


def test_junit_is_accepted_by_a_schema():
    schema = etree.XMLSchema(etree.parse(XSD))
    for way in ("pass", "fail", "3"):
        tree = etree.fromstring(junit([*EVERY, check("fail", title=EVIL, report=EVIL)], way).encode())
        schema.assertValid(tree)
    assert not schema.validate(etree.fromstring("<testsuites><testsuite name='x'/></testsuites>"))


def test_junit_fails_exactly_what_the_exit_code_does():
    def outcomes(way):
        tree = etree.fromstring(junit(EVERY, way).encode())
        assert sum(int(suite.get("tests")) for suite in tree) == len(EVERY)
        return [case[0].tag for suite in tree for case in suite]

    first = ["system-out", "failure"]
    assert outcomes("3") == [*first, "error", "skipped", "error", "system-out"]
    assert outcomes("fail") == [*first, "failure", "skipped", "error", "system-out"]
    assert outcomes("pass") == [*first, "skipped", "skipped", "error", "system-out"]


def test_a_line_says_everything():
    assert line(replace(EVERY[2], level="warn")).replace("\u00a0", " ") == (
        "unsure (warns): top eigenvalue 1 (0.9 to inf), limit ≤ 1.5; what would settle it: more samples"
    )
