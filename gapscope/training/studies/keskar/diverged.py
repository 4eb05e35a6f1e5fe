"""Runs that diverged: their seed is left out, and said; without any seed, a part's claims cannot be told."""

from collections.abc import Sequence

from gapscope.report.outcome import Claim, Part
from gapscope.report.records import Record
from gapscope.results import Status
from gapscope.training.studies.keskar.minima import Made
from gapscope.training.studies.lab import Run

DIVERGED = "of every seed a run diverged"
Left = tuple[str, ...]


def sound(*groups: Sequence[Run]) -> tuple[list[list[Run]], Left]:
    """Return groups of runs without the seeds of which a run diverged, in their order, and a note on those seeds."""
    lost = sorted({run.spec.recipe.seed for runs in groups for run in runs if run.diverged})
    said = f"Left out, because a run diverged: {', '.join(f'seed {seed}' for seed in lost)}."
    return [[run for run in runs if run.spec.recipe.seed not in lost] for runs in groups], (said,) * bool(lost)


def untold(analyzer: str, title: str, source: str, claims: Sequence[str], why: str = DIVERGED, left: Left = ()) -> Made:
    """Return a part without numbers, whose claims cannot be told."""
    record = Record(analyzer=analyzer, version="1", status=Status.SKIPPED, notes=(why, *left))
    told = tuple(Claim(text=text, source=source, verdict="cannot tell", because=why) for text in claims)
    return Part(record=record, title=title, notes=left), told
