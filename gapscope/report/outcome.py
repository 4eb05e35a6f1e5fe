"""What a study found: a paper's claims, each judged by this run's numbers, and its tables beside the published ones.

A verdict is about the data, network and seeds of this run, and says so; a claim whose interval holds both answers is
"cannot tell", not half a success.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from gapscope.report.contrasts import Contrasted
from gapscope.report.document import Column, Document, Item, Line, Note, Series, Table
from gapscope.report.export import report_json
from gapscope.report.figures import spread
from gapscope.report.records import Facts, Record, Report
from gapscope.results import Quantity, Status

Answer = Literal["shows", "does not show", "cannot tell"]
SIGNS: dict[Answer, int] = {"shows": 1, "does not show": -1, "cannot tell": 0}
FORMAT, FORMAT_VERSION = "gapscope-study", 1
CLAIMS = "claims"
LIMITS = "A verdict is about this network, these data and these seeds: it is no verdict on the paper."


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence, whether it shows here, and the numbers that say so.

    `own` ones are of this study, which the paper does not make: a control, a check of the computation, a question.
    """

    text: str
    source: str  # "Table 3"
    verdict: Answer
    because: str
    own: bool = False


@dataclass(frozen=True, kw_only=True)
class Part:
    """One experiment of a study: its numbers as a record, and what is shown of them."""

    record: Record
    title: str
    tables: tuple[Table, ...] = ()
    drawn: tuple[Series, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything a study says; `about` are sentences on what was trained and measured."""

    study: str
    title: str
    source: str  # "Keskar et al. 2017"
    about: tuple[str, ...]
    claims: tuple[Claim, ...]
    parts: tuple[Part, ...]
    analyzers: tuple[str, ...] = ()  # by which it was measured
    conditions: Facts = field(default_factory=dict)
    environment: Facts = field(default_factory=dict)

    @property
    def lead(self) -> str:
        """The answer in one sentence, which counts the paper's claims apart from the study's own."""
        paper, own = _apart(self.claims)
        beside = f"; of {len(own)} beside them of this study's own, {_counted(own)}" if own else ""
        return f"Of {len(paper)} claim{'s' * (len(paper) != 1)} of {self.source}, {_counted(paper)} here{beside}."


def _apart(claims: Sequence[Claim]) -> tuple[list[Claim], list[Claim]]:
    """Return the paper's claims, and the study's own."""
    return [claim for claim in claims if not claim.own], [claim for claim in claims if claim.own]


def _counted(claims: Sequence[Claim]) -> str:
    """Return "2 show and 1 cannot be told"."""
    found = [claim.verdict for claim in claims]
    counted = {answer: found.count(answer) for answer in SIGNS}
    return _listed([f"{number} {_form(answer, number)}" for answer, number in counted.items() if number])


def _form(answer: str, number: int) -> str:
    if answer == "cannot tell":
        return "cannot be told"
    several = {"shows": "show", "does not show": "do not show"}
    return answer if number == 1 else several[answer]


def _listed(said: Sequence[str]) -> str:
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}" if said else "none was judged"


# Judging


def judged(
    text: str,
    contrast: Contrasted,
    wanted: Literal["higher", "lower"],
    *,
    source: str,
    ratio: bool,
    what: str,
) -> Claim:
    """Judge a claim on a ratio or a difference by its 95 % interval.

    It shows where the interval lies on the wanted side of no difference, does not show where it lies on the other, and
    else, or without an interval, cannot be told.
    """
    return Claim(text=text, source=source, verdict=verdict(contrast, wanted, ratio=ratio), because=said(contrast, what))


def verdict(contrast: Contrasted, wanted: Literal["higher", "lower"], *, ratio: bool) -> Answer:
    """Return what an interval says of a wanted sign."""
    (low, high), equal = contrast[1], 1.0 if ratio else 0.0
    if math.isnan(low) or math.isnan(high) or low <= equal <= high:
        return "cannot tell"
    return "shows" if (low > equal) == (wanted == "higher") else "does not show"


def alike(text: str, contrast: Contrasted, *, within: tuple[float, float], source: str, what: str) -> Claim:
    """Judge a claim that two numbers are alike by the 95 % interval of their ratio or difference.

    It shows where the whole interval lies within the bounds, does not show where all of it lies beyond either, and
    else, or without an interval, cannot be told: a wide interval that holds equality is no agreement.
    """
    (low, high), (least, most) = contrast[1], within
    answer: Answer = "cannot tell"  # also where the interval is NaN, of which no comparison holds
    if least < low and high < most:
        answer = "shows"
    elif high < least or low > most:
        answer = "does not show"
    return Claim(text=text, source=source, verdict=answer, because=said(contrast, what))


def said(contrast: Contrasted, what: str) -> str:
    """Return "ratio 1.93, 95 % interval 1.77 to 2.11"."""
    estimate, interval = spread(*contrast)
    held = f", 95 % interval {interval}" if not math.isnan(contrast[1][0]) else ", no interval"
    return f"{what} {estimate}{held}"


def all_of(text: str, claims: Sequence[Claim], *, source: str) -> Claim:
    """Return a claim that shows where all of its parts do, and does not show where one of them does not."""
    found = {claim.verdict for claim in claims}
    answer: Answer = "does not show" if "does not show" in found else "cannot tell"
    return Claim(
        text=text,
        source=source,
        verdict="shows" if found == {"shows"} else answer,
        because="; ".join(f"{claim.text}: {claim.verdict} ({claim.because})" for claim in claims),
    )


# Showing


def outcome_document(outcome: Outcome) -> Document:
    """Show a study: on what, the answer, each claim with its verdict, and every part's tables and curves."""
    head: list[Item] = [Note(text=outcome.title, tone="heading"), *(Note(text=text) for text in outcome.about)]
    answer = (
        Note(text="Claims", tone="heading"),
        Note(text=outcome.lead),
        claims_table(outcome),
        Note(text=LIMITS, tone="dim"),
    )
    blocks = (block for part in outcome.parts for block in part_blocks(part, *part.drawn))
    return Document(blocks=(tuple(head), *blocks, answer))


def claims_table(outcome: Outcome) -> Table:
    """Return each claim with the numbers behind its verdict, and the verdict; the study's own below the paper's."""
    columns = (
        Column(header="claim", numeric=False, wraps=True),
        Column(header="here", numeric=False, wraps=True),
        Column(header="verdict", numeric=False),
    )
    paper, own = _apart(outcome.claims)
    title = [Line(cells=("beside the paper's claims",))] * bool(own)
    return Table(columns=columns, lines=(*map(_line, paper), *title, *map(_line, own)))


def _line(claim: Claim) -> Line:
    return Line(
        cells=(f"{claim.text} ({claim.source})", claim.because, claim.verdict),
        tone="unsure" if claim.verdict == "cannot tell" else "plain",
        level=int(claim.own),
    )


def part_blocks(part: Part, *drawn: Item) -> Iterator[tuple[Item, ...]]:
    """Yield the tables of a part by themselves, the first below its title, and its notes below the last."""
    notes = [Note(text=text, tone="dim") for text in (*part.notes, *part.record.notes)]
    items: list[Item] = [*part.tables, *drawn]
    first, rest = items[:1], items[1:]
    blocks: list[list[Item]] = [[Note(text=part.title, tone="heading"), *first], *([item] for item in rest)]
    blocks[-1] += notes
    yield from map(tuple, blocks)


# Storing


def outcome_report(outcome: Outcome) -> Report:
    """Return an outcome as a report: the claims as a record of their own, and one per part with all of its notes."""
    parts = [replace(part.record, notes=(*part.notes, *part.record.notes)) for part in outcome.parts]
    return Report(
        identity={
            "checkpoint": outcome.title,
            "study": outcome.study,
            "source": outcome.source,
            "analyzers": " ".join(outcome.analyzers),
        },
        training={},
        conditions=outcome.conditions,
        environment=outcome.environment,
        results={CLAIMS: _claims(outcome), **{record.analyzer: record for record in parts}},
    )


def _claims(outcome: Outcome) -> Record:
    """Return the claims: the verdict on each as a number, and all in words."""
    verdict = Quantity(
        value=np.array([SIGNS[claim.verdict] for claim in outcome.claims], dtype=np.float64),
        doc="1 where a claim shows here, -1 where it does not, 0 where that cannot be told",
        drawn="detail",
        dims=("claim",),
        labels={"claim": tuple(claim.text for claim in outcome.claims)},
    )
    return Record(
        analyzer=CLAIMS,
        version="1",
        status=Status.EXACT,
        notes=(*outcome.about, outcome.lead, *map(_sentence, outcome.claims), LIMITS),
        quantities={"verdict": verdict},
    )


def _sentence(claim: Claim) -> str:
    return f"{claim.verdict}: {claim.text} ({claim.source}): {claim.because}."


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain JSON values: the answers, and the numbers as in the JSON of a report."""
    answers = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "title": outcome.title,
        "about": list(outcome.about),
        "lead": outcome.lead,
        "claims": [dict(vars(claim)) for claim in outcome.claims],
    }
    return {**report_json(outcome_report(outcome)), **answers}
