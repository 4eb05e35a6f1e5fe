"""Analyzers of several checkpoints together (`path`, `plane`, `escape`): measure, write a comparison, print it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gapscope.cli.measuring import checked, configured, load, refuse_unwritable, say, stem_of
from gapscope.cli.planning import planned, refuse_unfit, show_plan
from gapscope.cli.resuming import keeping, missed, new_parts, remembered
from gapscope.cli.settings import Common, Configuration
from gapscope.errors import ComparisonError, ReportError
from gapscope.measure.analyzers import analyzer_class

if TYPE_CHECKING:
    from gapscope.measure.session import Session
    from gapscope.report.file import Comparison


def measure_together_and_print(
    paths: Sequence[Path], common: Common, analyzers: Sequence[Any], configuration: Configuration
) -> None:
    """Load every checkpoint, measure them together, write the comparison and print it."""
    from gapscope.measure.distributed import ranks
    from gapscope.measure.interface import measure_together

    output = common.output or Path(f"{'-vs-'.join(dict.fromkeys(stem_of(path) for path in paths))}.comparison.h5")
    ranks().first(lambda: refuse_unwritable(output))
    sessions = [load(path, common) for path in paths]
    refuse_unlike(sessions)
    ranks().first(lambda: _existing(output, sessions))
    missed(output, common)
    parts = new_parts(quiet=common.quiet)
    further = configured(needed(analyzers), configuration)
    contexts = [checked(remembered(session, parts), further, quiet=common.quiet) for session in sessions]
    if common.dry_run or common.time_budget is not None:
        plan = planned(contexts[0], analyzers, common)
        if common.dry_run:
            show_plan(plan, output, common)
            return
        refuse_unfit(plan)
    with keeping(parts, output, sessions, resume=common.resume):
        found = measure_together(sessions, analyzers, contexts=contexts, parts=parts)
    failure: Exception | None = None
    said: tuple[str, ...] = ()
    try:
        found, said = written(found, sessions, output)
        parts.forget()
    except Exception as error:  # the work must not go unseen because the disk is full, or by a bug
        failure = error
    if common.json:
        from gapscope.report.export import comparison_json, dumps

        print(dumps(comparison_json(found)))
    else:
        from dataclasses import replace

        from gapscope.report.terminal import output as show
        from gapscope.report.view import comparison_document

        names = [analyzer.name for analyzer in analyzers]
        shown = replace(
            found, rows=(), reading=(), forced=(), results={k: v for k, v in found.results.items() if k in names}
        )
        show(comparison_document(shown, verbose=common.verbose))
        if failure is None:
            say("", *said, f"comparison: {output}")
    if failure is not None:
        raise failure


def needed(analyzers: Sequence[Any]) -> list[str]:
    """Return the analyzers of one subject whose results these ask for."""
    return list(dict.fromkeys(name for analyzer in analyzers for name in getattr(analyzer, "needs", ())))


def refuse_unlike(sessions: "Sequence[Session]") -> None:
    """Raise ComparisonError where the checkpoints would not be measured on the same data in the same way."""
    from gapscope.report.records import differing

    sides = [session.conditions() for session in sessions]
    names = [str(session.identity().get("sha256")) for session in sessions]
    if len(set(names)) < len(names):
        raise ComparisonError(
            f"{sessions[0].identity()['checkpoint']} is named twice. Expected different checkpoints: nothing lies "
            "between a checkpoint and itself."
        )
    keys = sorted({key for side in sides[1:] for key in differing(sides[0], side)})
    if keys:
        said = "; ".join(f"{key}: {' / '.join(str(side.get(key, 'none')) for side in sides)}" for key in keys)
        raise ComparisonError(
            f"The checkpoints are not under the same conditions: {said}. Expected equal ones. Name the data with "
            "`--data`, the loss with `--loss`."
        )


def of_pairs(names: Sequence[str], configuration: Configuration) -> list[Any]:
    """Return configured analyzers of two subjects; raises UsageError for others."""
    from gapscope.errors import UsageError

    for name in names:
        cls = analyzer_class(name)
        if not getattr(cls, "least", cls.arity) <= 2 <= cls.arity:
            raise UsageError(
                f"`{name}` does not measure two checkpoints together. Expected path, plane, escape or none: `--pair`."
            )
    return configured(names, configuration)


def _existing(output: Path, sessions: "Sequence[Session]") -> "Comparison | None":
    """Return the comparison that is there; refuse a file of anything else before any work."""
    from gapscope.report.comparison import arranged
    from gapscope.report.file import Comparison, merge_comparison, read

    if not output.exists():
        return None
    old = read(output)
    if not isinstance(old, Comparison):
        raise ReportError(
            f"{output} is a report, not a comparison. Expected a new name or an old comparison. Mend `--output`."
        )
    _, subjects = arranged([session.report({}) for session in sessions])
    merge_comparison(old, Comparison(subjects=subjects, rows=(), reading=()))
    return old


def written(found: "Comparison", sessions: "Sequence[Session]", output: Path) -> "tuple[Comparison, tuple[str, ...]]":
    """Write a comparison, added to what is there by now: another process may have written during the work."""
    from gapscope.replacing import in_turn
    from gapscope.report.file import merge_comparison, write

    said: tuple[str, ...] = ()
    with in_turn(output):
        old = _existing(output, sessions)
        if old is not None:
            found, said = merge_comparison(old, found)
        write(found, output)
    return found, said
