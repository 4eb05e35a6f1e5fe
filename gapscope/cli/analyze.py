"""`gapscope analyze`: every measurement of one checkpoint, on one loaded problem."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from gapscope.cli import fields
from gapscope.cli.measuring import CHECKPOINT, Job, common_of, configured, prepare, say
from gapscope.cli.planning import Planned, line, planned, show_plan
from gapscope.cli.settings import Common, Configuration
from gapscope.cli.stderr import tell
from gapscope.errors import GapscopeError, RankError, UsageError, did_you_mean
from gapscope.measure.analyzers import analyzer_class, names

if TYPE_CHECKING:
    from gapscope.cli.measuring import Measured
    from gapscope.measure.context import Context
    from gapscope.report.file import Record

# what tells most for its cost comes first: the order in which a time budget is spent; others' analyzers come last
ORDER = (
    "gap",
    "eigenvalues",
    "adaptive-sharpness",
    "epsilon-sharpness",
    "near-rank",
    "noise",
    "trace",
    "density",
    "curvature",
)


@dataclass(frozen=True)
class Own:
    """What only `analyze` takes."""

    only: Annotated[tuple[str, ...], "run this analyzer, repeatable; the default is all named above"] = ()
    skip: Annotated[tuple[str, ...], "leave this analyzer out, repeatable"] = ()


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""

    def analyze(checkpoint: Path, **values: Any) -> int:
        own = fields.build(Own, values)
        return analyze_and_print(checkpoint, common_of(values, configuration), own, configuration)

    return fields.command(
        "analyze",
        f"""Measure everything about one checkpoint: the whole picture.

        Runs {", ".join(ORDER)} and the analyzers of other packages on one loaded problem, and writes the report
        after each. Their settings stand in gapscope.toml, as [measure.eigenvalues] and so on; --only and --skip are
        keys of its table [analyze].
        """,
        [CHECKPOINT, *fields.options(Own, prefix="GAPSCOPE_ANALYZE"), *fields.options(Common)],
        analyze,
    )


def chosen(own: Own) -> list[str]:
    """Return the analyzers to run, most telling first; raises UsageError for names that there are not."""
    single = [name for name in names() if analyzer_class(name).arity == 1]
    ranked = [*(name for name in ORDER if name in single), *(name for name in single if name not in ORDER)]
    for option, asked in (("only", own.only), ("skip", own.skip)):
        for name in asked:
            if name not in ranked:
                hint = did_you_mean(name, ranked)
                if "," in name:
                    hint = f" Repeat the option: `--{option} A --{option} B`."
                elif name in names():
                    hint = f" It measures several: `gapscope {name} A B`."
                raise UsageError(
                    f"`--{option} {name}` names no analyzer of one checkpoint.{hint} Expected some of "
                    f"{', '.join(ranked)}."
                )
    wanted = [name for name in ranked if (not own.only or name in own.only) and name not in own.skip]
    if not wanted:
        raise UsageError("`--only` and `--skip` leave no analyzer. Expected one or more to be left. Drop one of them.")
    return wanted


def analyze_and_print(checkpoint: Path, common: Common, own: Own, configuration: Configuration) -> int:
    """Measure, writing after each analyzer, and print the report; exit code 2 where one could not be measured."""
    wanted = chosen(own)
    job = prepare(checkpoint, common)
    analyzers = configured(wanted, configuration)
    context = job.context(analyzers)
    plan = planned(context, analyzers, common)
    if common.dry_run:
        show_plan(plan, job.path, common)
        return 0
    if not common.quiet:
        tell(line(plan))
    records: dict[str, Record] = {}

    def done() -> str:
        from gapscope.results import Status

        names = [name for name, one in records.items() if one.status is not Status.SKIPPED]  # those may not be written
        return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} in {job.path}" if names else ""

    with job.keeping(context, done):
        measured, failures = _run(job, context, plan, records)
    if common.json:
        from gapscope.report.export import dumps, report_json

        print(dumps(report_json(measured.report)))
    else:
        from gapscope.report.terminal import output
        from gapscope.report.view import report_document

        output(report_document(measured.report, verbose=common.verbose, only=wanted))
        if measured.failure is None:
            say("", *measured.said, f"report: {measured.path}")
    if measured.failure is not None:
        raise measured.failure
    for name, failure in failures.items():
        tell(f"error: {name} could not be measured: {failure}")
    return 2 if failures else 0


def _run(
    job: Job, context: "Context", plan: Planned, records: "dict[str, Record]"
) -> "tuple[Measured, dict[str, GapscopeError]]":
    """Run one after the other; what does not fit into the time left, or fails, is recorded as skipped."""
    from gapscope.measure.session import record, skipped

    failures = {}
    measured: Measured | None = None
    for analyzer, work, why in plan.run():
        name = analyzer.name
        if why:
            records[name], measured = skipped(analyzer, context.seed, why), None
            continue
        try:
            records[name] = record(analyzer, work(), context.seed)
        except RankError:  # nothing can be measured together any more
            raise
        except GapscopeError as error:
            failures[name] = error
            records[name] = skipped(analyzer, context.seed, f"could not be measured: {error}")
        measured = job.written(records)
    measured = measured or job.written(records)
    if measured.failure is None:
        context.parts.forget()
    return measured, failures
