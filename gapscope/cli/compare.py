"""`gapscope compare`: two or more checkpoints or reports side by side."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.cli import fields
from gapscope.cli.measuring import SHARPNESS, Job, common_of, configured, prepare, refuse_unwritable, say
from gapscope.cli.settings import Common, Configuration
from gapscope.cli.together import needed, of_pairs
from gapscope.errors import ComparisonError, GapscopeError, LoadError, ReportError, UsageError

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.report.file import Comparison, Report

PAIR = ("path", "escape")
HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"

SUBJECTS = inspect.Parameter(
    "subjects",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[
        list[Path], typer.Argument(help="checkpoints or reports, two or more", metavar="SUBJECT", show_default=False)
    ],
)


@dataclass(frozen=True)
class Own:
    """What only `compare` takes."""

    labels: Annotated[str | None, "names of the columns, separated by commas"] = None
    force: Annotated[bool, "compare although conditions or settings differ; the output is marked"] = False
    pair: Annotated[tuple[str, ...], "measure this of two checkpoints together: path, escape, plane or none"] = PAIR
    output: Annotated[Path | None, "comparison to write (HDF5; default: none)", "-o"] = None


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""

    def compare(subjects: list[Path], **values: Any) -> None:
        own = fields.build(Own, values)
        common = common_of({**values, "output": None}, configuration)
        compare_and_print(subjects, common, own, configuration)

    return fields.command(
        "compare",
        """Compare two or more checkpoints or reports, freely mixed.

        Checkpoints are measured first, as by `gapscope sharpness`, with the same settings, and their reports
        are written to the current folder. The last column is contrasted with the first. The labels small and
        large come from the recorded batch sizes.
        """,
        [SUBJECTS, *fields.options(Own, prefix="GAPSCOPE_COMPARE"), *fields.options(Common, without=("output",))],
        compare,
    )


def compare_and_print(subjects: Sequence[Path], common: Common, own: Own, configuration: Configuration) -> None:
    """Measure what is not a report yet, compare, write where asked, and print."""
    from gapscope.report import comparison, file

    _refuse_missing(subjects, own.output, own.labels)
    pair = of_pairs([name for name in own.pair if name != "none"], configuration)
    known = {path: file.read_report(path) for path in subjects if _is_report(path)}
    jobs: dict[Path, Job] = {}
    for path in dict.fromkeys(subjects):
        if path not in known:
            jobs[path] = prepare(path, common, list(jobs.values()))
    conditions = {
        path: known[path].conditions if path in known else jobs[path].session.conditions() for path in subjects
    }
    if not own.force:
        _refuse_unlike(conditions)  # before the work
    failures, paths = [], dict(zip(known, known, strict=True))
    analyzers = configured(SHARPNESS, configuration) if jobs else []
    if not own.force:
        _refuse_other_settings(analyzers, known)
    pair = pair if len(subjects) == len(jobs) == 2 else []
    further = [a for a in configured(needed(pair), configuration) if a.name not in SHARPNESS]
    contexts = []
    for path, job in jobs.items():
        if not common.quiet:
            print(f"measuring {path}", file=sys.stderr)
        contexts.append(job.context([*analyzers, *further]))
        measured = job.measure(analyzers, contexts[-1])
        known[path], paths[path] = measured.report, measured.path
        failures += [measured.failure] if measured.failure else []
    found = [known[path] for path in subjects]
    labels = [label.strip() for label in own.labels.split(",")] if own.labels else None
    both = _measure_together(list(jobs.values()), contexts, pair, labels)
    compared = comparison.compare(found, labels=labels, force=own.force, together=both)
    if own.output is not None:
        try:
            file.write(compared, own.output)
        except ReportError as failure:  # shown all the same
            failures.append(failure)
    if common.json:
        from gapscope.report.export import comparison_json, dumps

        print(dumps(comparison_json(compared)))
    else:
        from gapscope.report.terminal import output
        from gapscope.report.view import comparison_document

        output(comparison_document(compared, verbose=common.verbose))
        if not failures:
            new: list[Any] = [result for context in contexts for result in context.results]
            new += [] if both is None else list(both.results.values())
            spent = sum(result.seconds for result in new), sum(result.matvecs for result in new)
            say("", *_closing([paths[path] for path in subjects], own.output, spent))
    if failures:
        raise failures[0]


def _measure_together(
    jobs: Sequence[Job], contexts: "Sequence[Context]", analyzers: Sequence[Any], labels: Sequence[str] | None
) -> "Comparison | None":
    """Run the analyzers of two subjects; one that cannot measure these says why, and the comparison goes on."""
    if not analyzers:
        return None
    from gapscope.measure.interface import measure_together
    from gapscope.report.terminal import printable

    reasons: dict[str, list[str]] = {}

    def failed(analyzer: Any, error: GapscopeError) -> None:
        reasons.setdefault(str(error), []).append(analyzer.name)

    sessions = [job.session for job in jobs]
    found = measure_together(sessions, analyzers, contexts=contexts, labels=labels, failed=failed)
    for reason, names in reasons.items():
        print(printable(f"left out: {', '.join(names)}. {reason}"), file=sys.stderr)
    return found


def _closing(paths: Sequence[Path], written: Path | None, spent: tuple[float, int]) -> list[str]:
    seconds, products = spent
    names = ", ".join(map(str, dict.fromkeys(paths)))
    cost = f" · {seconds:.1f}\u00a0s, {products}\u00a0matvecs" if seconds else ""
    lines = [f"reports: {names}{cost} · `gapscope show FILE` for the rest"]
    return lines + ([f"comparison: {written}"] if written else [])


def _refuse_unlike(conditions: "Mapping[Path, Mapping[str, Any]]") -> None:
    """Raise ComparisonError where `comparison.compare` would, so that it costs no measurement."""
    from gapscope.report.records import differing

    sides = list(conditions.values())
    keys = sorted({key for side in sides[1:] for key in differing(sides[0], side)})
    if keys:
        said = "; ".join(f"{key}: {' / '.join(str(side.get(key, 'none')) for side in sides)}" for key in keys)
        raise ComparisonError(
            f"The subjects are not under the same conditions: {said}. Expected equal ones. Measure alike (`--split`, "
            "`--data`, `--limit`, `--dtype` ...), or compare all the same with `--force`."
        )


def _refuse_other_settings(analyzers: "Sequence[Any]", known: "Mapping[Path, Report]") -> None:
    """Raise ComparisonError where a report was made with other settings than those about to be used."""
    from gapscope.report.comparison import FREE_SETTINGS

    for analyzer in analyzers:
        for path, report in known.items():
            record = report.results.get(analyzer.name)
            stored = {} if record is None else record.settings
            for key, old in stored.items():
                new = getattr(analyzer, key, None)
                new = list(new) if isinstance(new, tuple) else new
                if key not in FREE_SETTINGS and old != new:
                    option = f"{analyzer.name}.{key.replace('_', '-')}"
                    raise ComparisonError(
                        f"{path} was measured with {option} = {old}, and {new} would be used now. Expected equal "
                        f"settings. Set it in [measure.{analyzer.name}] of gapscope.toml, or compare all the same "
                        "with `--force`."
                    )


def _refuse_missing(subjects: Sequence[Path], output: Path | None, labels: str | None) -> None:
    if len(subjects) < 2:
        raise UsageError(f"There is only {subjects[0]} to compare. Expected two or more: `gapscope compare A B`.")
    for subject in subjects:
        if not subject.is_file():
            raise LoadError(f"{subject} is no file. Expected a checkpoint or a report. Mend the path.")
    if labels is not None and len(set(labels.split(","))) != len(subjects):
        raise UsageError(
            f"`--labels {labels}` names {len(set(labels.split(',')))} different columns for {len(subjects)} subjects. "
            "Expected one for each: `--labels small,large`."
        )
    if output is not None:
        refuse_unwritable(output)
        _refuse_other(output)


def _refuse_other(output: Path) -> None:
    """Overwrite a comparison, and nothing else: a report took a measurement to make."""
    from gapscope.report.file import Comparison, read

    if output.exists() and not isinstance(read(output), Comparison):
        raise ReportError(
            f"{output} is a report, not a comparison. Expected a new name or an old comparison. Mend `--output`."
        )


def _is_report(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
