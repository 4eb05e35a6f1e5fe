"""Reports and comparisons as a `Document`: every number is formatted here and in `record_view` and `row_view`.

Known keys of /subject/identity: checkpoint, data, model, model_args, parameters; of /subject/conditions: data, split,
samples, loss, batchnorm, dtype, limit.  Others are stored and compared, and shown with `verbose` only.
"""

from collections.abc import Sequence

from gapscope.report.document import Column as Column
from gapscope.report.document import Document as Document
from gapscope.report.document import Item
from gapscope.report.document import Line as Line
from gapscope.report.document import Note as Note
from gapscope.report.document import Table as Table
from gapscope.report.figures import count
from gapscope.report.groups import shared
from gapscope.report.reading import whole_reading
from gapscope.report.record_view import facts_line, record_block
from gapscope.report.records import Comparison, Facts, Report
from gapscope.report.row_view import row_tables
from gapscope.report.sweep import BY_LOSS, loss_block, sweep_blocks

FEW = 3  # records of which every number is explained: of more, the explanations would be longer than the numbers
EXPLAINED = Note(text="What each number means: --json, or --verbose of a single analyzer.", tone="dim")


def report_document(report: Report, verbose: bool = False, *, only: Sequence[str] | None = None) -> Document:
    """Show one report, or only some analyzers of it: who was measured, then each analyzer's headline first."""
    names = [str(report.identity["checkpoint"])] if "checkpoint" in report.identity else []
    head: list[Item] = [Note(text=name, tone="heading") for name in names]
    head += _subject_notes(report.conditions, report.identity)
    if verbose:
        head += [
            Note(text=facts_line(name, facts), tone="dim")
            for name in ("identity", "training", "conditions", "environment")
            if (facts := getattr(report, name))
        ]
    records = [record for name, record in report.results.items() if only is None or name in only]
    explained = len(records) <= FEW
    if verbose and not explained:
        head.append(EXPLAINED)
    return Document(blocks=(tuple(head), *(record_block(record, verbose, explained=explained) for record in records)))


def comparison_document(comparison: Comparison, verbose: bool = False) -> Document:
    """Show a comparison: values, the contrast with its interval, who is what, and the reading."""
    subjects = comparison.subjects
    conditions = shared([subject.conditions for subject in subjects])
    head: list[Item] = []
    if not comparison.rows:  # whose headers would name them
        head.append(Note(text=", ".join(subject.label for subject in subjects), tone="heading"))
    head += _subject_notes(conditions, shared([subject.identity for subject in subjects]))
    if comparison.forced:
        text = f"Forced: these keys should agree and do not: {', '.join(comparison.forced)}"
        head.append(Note(text=text, tone="warning"))
    explained = not comparison.rows and len(comparison.results) <= FEW
    if verbose and not explained:
        head.append(EXPLAINED)
    together = [
        loss_block(comparison, verbose) if name == BY_LOSS else record_block(record, verbose, explained=explained)
        for name, record in comparison.results.items()
    ]
    sentences = [Note(text=said.replace(" %", "\u00a0%"), bullet=True) for said in whole_reading(comparison)]
    reading = (Note(text="Reading", tone="heading"), *sentences) if sentences else ()
    blocks = (*sweep_blocks(comparison, verbose), *row_tables(comparison, verbose))
    return Document(blocks=(tuple(head), *blocks, *together, reading))


def _subject_notes(conditions: Facts, identity: Facts) -> list[Item]:
    """Return "digits, train split, 1,300 samples · mlp, 2,410 parameters · cross-entropy · eval mode · float32"."""
    parts = [
        _joined(
            _of(conditions, "data") or _of(identity, "data"),
            _of(conditions, "split", "{} split"),
            _of(conditions, "samples", "{} samples"),
        ),
        _joined(
            f"{_of(identity, 'model')} {_of(identity, 'model_args')}".strip(),
            _of(identity, "parameters", "{} parameters"),
        ),
        _of(conditions, "loss"),
        _of(conditions, "batchnorm", "{} mode"),
        _of(conditions, "dtype"),
    ]
    notes: list[Item] = [Note(text=" · ".join(part for part in parts if part))] if any(parts) else []
    if conditions.get("limit"):
        notes.append(Note(text="A subset of the data: subsets overstate lambda_max.", tone="warning"))
    return notes


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _of(facts: Facts, key: str, pattern: str = "{}") -> str:
    value = facts.get(key, "")
    if value == "":
        return ""
    return pattern.format(count(value) if isinstance(value, int) and not isinstance(value, bool) else value)
