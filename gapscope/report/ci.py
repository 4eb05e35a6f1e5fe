"""The gate's verdicts for people and for machines: a `Document`, JSON, Markdown, JUnit XML, GitHub's annotations.

Strings come from files that anybody may have written: each format escapes what would mean something to its reader.
"""

import html
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

from gapscope.report.document import Column, Document, Line, Note, Table, Tone
from gapscope.report.figures import NONE, number
from gapscope.report.terminal import OBEYED, printable
from gapscope.report.verdicts import Check, OnUnsure, Verdict, exit_code

FORMAT_VERSION = 1
MOST = 20  # checks that pass and are listed for each report; of more, only their number is said
TONES: dict[Verdict, Tone] = {
    "pass": "better",
    "fail": "worse",
    "unsure": "unsure",
    "skipped": "unsure",
    "cannot be judged": "warning",
}
WORST: tuple[Verdict, ...] = ("cannot be judged", "fail", "unsure", "skipped", "pass")
SIGNS = {"max": "≤", "min": "≥", "max_increase": "≤", "max_decrease": "≥"}
KINDS = ("failure", "error", "skipped")  # of JUnit
COLUMNS = ("check", "limit", "observed", "interval", "verdict")


def summary(checks: Sequence[Check]) -> str:
    """Return "gate: 1 cannot be judged, 2 fail, 3 pass", worst first; warnings are counted apart."""
    counts = {verdict: [c for c in checks if c.verdict == verdict] for verdict in WORST}
    parts = []
    for verdict, found in counts.items():
        warnings = sum(check.level == "warn" for check in found)
        said = (
            f" (of them {warnings} only warn{'s' if warnings == 1 else ''})" if verdict != "pass" and warnings else ""
        )
        parts += [f"{len(found)} {verdict}{said}"] if found else []
    return f"gate: {', '.join(parts)}"


def gate_document(checks: Sequence[Check], *, verbose: bool = False) -> Document:
    """Show the verdicts as one table, and below it why each check that does not pass does not."""
    lines: list[Line] = []
    reports = list(dict.fromkeys(check.report for check in checks))
    for report in reports:
        own = [check for check in checks if check.report == report]
        passing = sum(check.verdict == "pass" for check in own)
        listed = verbose or passing <= MOST
        lines += [Line(cells=(report,))] * (len(reports) > 1)
        shown = [check for check in own if listed or check.verdict != "pass"]
        lines += [Line(cells=cells(check), tone=TONES[check.verdict], level=len(reports) > 1) for check in shown]
        lines += [] if listed else [Line(cells=(f"{passing} more pass",), tone="dim")]
    columns = tuple(Column(header=name, numeric=name in COLUMNS[1:3], wraps=name == "check") for name in COLUMNS)
    notes = tuple(Note(text=said, bullet=True) for said in _reasons(checks, several=len(reports) > 1))
    table = Table(columns=columns, lines=tuple(lines))
    return Document(blocks=((table,), notes, (Note(text=summary(checks), tone="heading"),)))


def cells(check: Check) -> tuple[str, ...]:
    """Return a check as texts, one for each of `COLUMNS`; no rounding hides on which side of the limit a number is."""
    scale = 100.0 if check.share else 1.0
    unit = "%" if check.share else check.unit
    limit = scale * (-check.limit if check.rule == "max_decrease" else check.limit)
    plus = check.rule in ("max_increase", "max_decrease")

    def text(value: float) -> str:
        said = beside(scale * value, limit)
        return f"+{said}" if plus and value > 0 else said

    low, high = check.interval
    known = not math.isnan(check.observed)
    sign = "+" if plus and limit > 0 else ""
    said = f"{SIGNS[check.rule]}\u00a0{sign}{number(limit, 15)}" + (f"\u00a0{unit}" if unit else "")
    warns = " (warns)" if check.level == "warn" and check.verdict != "pass" else ""
    return (
        f"{check.title}{' change' if plus else ''}",
        said,
        text(check.observed) if known else NONE if plus else beside(check.value, limit),
        f"{text(low)} to {text(high)}" if known and low < high else "",
        check.verdict + warns,
    )


def beside(value: float, limit: float) -> str:
    """Return a number with as many digits as it takes to stay on its side of the limit."""
    texts = [number(value, digits) for digits in (4, 6, 9, 12)]
    if not math.isfinite(value):
        return texts[0]
    # a number that is the limit may be shown as it, and no other one may
    right = (said for said in texts if (float(said) > limit, float(said) < limit) == (value > limit, value < limit))
    return next(right, repr(value))


def _reasons(checks: Iterable[Check], *, several: bool = False) -> Iterator[str]:
    """Yield why each check that does not pass does not, once for those of which the same is to be said."""
    alike: dict[tuple[str, str], list[Check]] = {}
    for check in checks:
        if check.verdict != "pass" and (check.reason or check.settle):
            alike.setdefault((check.verdict, sentence(check)), []).append(check)
    for (verdict, said), found in alike.items():
        names = [f"{check.report}, {check.title}" if several else check.title for check in found]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        yield f"{verdict}: {'; '.join(dict.fromkeys(names[:3]))}{more}: {said}"


def sentence(check: Check) -> str:
    """Return why a check has its verdict and what would settle it, or for one that is clear the limit it broke."""
    parts = [check.reason, f"what would settle it: {check.settle}" if check.verdict == "unsure" else check.settle]
    return "; ".join(part for part in parts if part)


def gate_json(checks: Sequence[Check], code: int) -> dict[str, Any]:
    """Return the verdicts as plain JSON values; NaN and infinity are null."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    verdict = next((one for one in WORST if any(c.verdict == one and c.level == "error" for c in checks)), "pass")
    return {
        "format": "gapscope-gate",
        "format_version": FORMAT_VERSION,
        "verdict": verdict,
        "exit_code": code,
        "checks": [{key: plain(value) for key, value in vars(check).items()} for check in checks],
    }


def markdown(checks: Sequence[Check]) -> str:
    """Return the verdicts as a table that GitHub and GitLab draw."""
    several = len({check.report for check in checks}) > 1
    marks = {"pass": "✅", "fail": "❌", "unsure": "❔", "skipped": "⏭️", "cannot be judged": "🚫"}
    lines = ["### gapscope gate", "", _marked(summary(checks).removeprefix("gate: ")), ""]
    head = (*(("report",) if several else ()), *COLUMNS)
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for check in checks:
        row = ([check.report] if several else []) + list(cells(check))
        row[-1] = f"{marks[check.verdict]} {row[-1]}"
        lines.append(f"| {' | '.join(map(_marked, row))} |")
    reasons = [f"- {_marked(said)}" for said in _reasons(checks, several=several)]
    return "\n".join([*lines, *([""] if reasons else []), *reasons]) + "\n"


def _marked(text: str) -> str:
    """Escape what Markdown and HTML would read."""
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(printable(text), quote=False))


def annotations(checks: Sequence[Check]) -> str:
    """Return one workflow command of GitHub for each check that does not pass."""
    lines = []
    for check in checks:
        if check.verdict == "pass":
            continue
        kind = "notice" if check.verdict == "skipped" else "warning"
        if check.level == "error" and check.verdict in ("fail", "cannot be judged"):
            kind = "error"
        title = _escaped(f"gapscope gate: {check.title}").replace(":", "%3A").replace(",", "%2C")
        lines.append(f"::{kind} title={title}::{_escaped(f'{check.report}: {line(check)}')}")
    return "\n".join(lines)


def line(check: Check) -> str:
    """Return a check on one line: "fail: top eigenvalue 1.72 (1.71 to 1.73), limit ≤ 1.5"."""
    title, limit, observed, interval, verdict = cells(check)
    parts = [f"{verdict}: {title} {observed}{f' ({interval})' if interval else ''}, limit {limit}", sentence(check)]
    return "; ".join(part for part in parts if part)


def _escaped(text: str) -> str:
    """Escape as the runner reads it; control characters are gone already, so no command can be smuggled in."""
    return OBEYED.sub(r"\1 [", printable(text)).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def junit(checks: Sequence[Check], on_unsure: OnUnsure = "3") -> str:
    """Return JUnit XML: a suite for each report, a case for each check.

    What makes the exit code 1 is a failure, what makes it 2 or 3 an error; warnings pass with their text.
    """
    root = ElementTree.Element("testsuites", name="gapscope gate")
    for report in dict.fromkeys(check.report for check in checks):
        own = [check for check in checks if check.report == report]
        kinds = [_kind(check, on_unsure) for check in own]
        counts: dict[str, str] = {f"{kind}s" if kind != "skipped" else kind: str(kinds.count(kind)) for kind in KINDS}
        suite = ElementTree.SubElement(root, "testsuite", counts, name=printable(report), tests=str(len(own)))
        for check, kind in zip(own, kinds, strict=True):
            name = printable(f"{check.path} {check.rule}")
            case = ElementTree.SubElement(
                suite, "testcase", classname=printable(check.path.partition("/")[0]), name=name
            )
            said = printable(line(check))
            inside = ElementTree.SubElement(case, kind or "system-out")
            if not kind:
                inside.text = said
                continue
            inside.set("message", said)
            if kind != "skipped":
                inside.set("type", check.verdict)
    ElementTree.indent(root)
    text = OBEYED.sub(r"\1&#91;", ElementTree.tostring(root, encoding="unicode"))  # it stands in texts alone
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _kind(check: Check, on_unsure: OnUnsure) -> str:
    code = exit_code([check], on_unsure)
    quiet = "skipped" if check.verdict in ("skipped", "unsure") else ""
    return {0: quiet, 1: "failure", 2: "error", 3: "error"}[code]
