"""`gapscope sharpness` and one command per analyzer: measure a checkpoint, write its report, print it."""

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.cli import fields
from gapscope.cli.planning import Planned, announce, line, planned, show_plan
from gapscope.cli.resuming import keeping, missed, new_parts, remembered
from gapscope.cli.settings import Common, Configuration, parse_batch_size, parse_bytes
from gapscope.cli.stderr import tell
from gapscope.errors import ReportError, UsageError
from gapscope.measure.analyzers import analyzer_class, names

if TYPE_CHECKING:
    from gapscope.measure.context import Context
    from gapscope.measure.session import Session
    from gapscope.report.file import Record, Report

SHARPNESS = ("eigenvalues", "epsilon-sharpness", "adaptive-sharpness", "gap")

CHECKPOINT = inspect.Parameter(
    "checkpoint",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[Path, typer.Argument(help="checkpoint to measure", metavar="CHECKPOINT", show_default=False)],
)


OUTPUT_TOGETHER = "comparison to write (default: A-vs-B.comparison.h5 in the current folder)"
TOGETHER = """

    The result is a comparison file, to which other results of the same checkpoints are added.
"""
SUBJECTS = inspect.Parameter(
    "subjects",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[
        list[Path], typer.Argument(help="checkpoints of one model", metavar="CHECKPOINT", show_default=False)
    ],
)


def commands(configuration: Configuration) -> Iterator[tuple[str, Callable[..., int | None]]]:
    """Yield the measuring commands by name; imports every analyzer, other packages' too: their fields are options."""

    def sharpness(checkpoint: Path, **values: Any) -> None:
        measure_and_print(checkpoint, common_of(values, configuration), configured(SHARPNESS, configuration))

    summary = f"""Measure sharpness and gap of one checkpoint: the main job.

    Runs {", ".join(SHARPNESS)} on one loaded problem. Their settings stand in gapscope.toml, as
    [measure.eigenvalues] and so on, or are given to the command of that name.
    """
    yield "sharpness", fields.command("sharpness", summary, [CHECKPOINT, *fields.options(Common)], sharpness)
    for name in names():
        try:
            cls = analyzer_class(name)
        except Exception as error:  # another package's: what it breaks must not be the whole command line
            tell(f"warning: the analyzer `{name}` cannot be loaded: {type(error).__name__}: {error}")
            continue
        yield name, _analyzer_command(name, cls, configuration)


def _analyzer_command(name: str, cls: type[Any], configuration: Configuration) -> Callable[..., int | None]:
    def alone(checkpoint: Path, **values: Any) -> None:
        measure_and_print(checkpoint, common_of(values, configuration), [fields.build(cls, values)])

    def together(subjects: list[Path], **values: Any) -> None:
        from gapscope.cli.together import measure_together_and_print

        least = getattr(cls, "least", cls.arity)
        if not least <= len(subjects) <= cls.arity:
            wanted = "two" if least == cls.arity == 2 else f"{least} to {cls.arity}"
            raise UsageError(
                f"There {'is 1 checkpoint' if len(subjects) == 1 else f'are {len(subjects)} checkpoints'}. Expected "
                f"{wanted}: `gapscope {name} {'A B' if least == 2 else 'A [B [C]]'}`."
            )
        if len(subjects) == 1:
            alone(subjects[0], **values)
        else:
            common = common_of(values, configuration)
            measure_together_and_print(subjects, common, [fields.build(cls, values)], configuration)

    own = fields.options(cls, prefix=_prefix(name))
    if cls.arity == 1:
        return fields.command(name, cls.__doc__ or "", [CHECKPOINT, *own, *fields.options(Common)], alone)
    shared = fields.options(Common, say={"output": OUTPUT_TOGETHER})
    return fields.command(name, (cls.__doc__ or "") + TOGETHER, [SUBJECTS, *own, *shared], together)


def common_of(values: Mapping[str, Any], configuration: Configuration) -> Common:
    """Build the common options; the model's arguments add up key by key: files, environment, command line."""
    common: Common = fields.build(Common, values)
    environment = os.environ.get("GAPSCOPE_MODEL_ARG", "").split()
    configuration.tell_trust(quiet=common.quiet)
    return replace(common, model_arg=(*configuration.common.get("model_arg", ()), *environment, *common.model_arg))


def _prefix(name: str) -> str:
    return f"GAPSCOPE_{name.upper().replace('-', '_')}"


def configured(wanted: Sequence[str], configuration: Configuration) -> list[Any]:
    """Return analyzers with the settings of environment and configuration files, as their own commands read them."""
    return [_converted(analyzer_class(name), configuration.measure.get(name, {})) for name in wanted]


def _converted(cls: type[Any], values: Mapping[str, Any]) -> Any:
    single = typer.Typer(add_completion=False, rich_markup_mode=None)
    single.command()(fields.command(cls.name, "", fields.options(cls, prefix=_prefix(cls.name)), lambda **_: None))
    parser = typer.main.get_command(single)
    return fields.build(cls, parser.make_context(f"gapscope {cls.name}", [], default_map=dict(values)).params)


@dataclass(frozen=True)
class Measured:
    """A report, where it belongs, what is to be said of that, and why it could not be written, if so."""

    report: "Report"
    path: Path
    said: tuple[str, ...]
    failure: Exception | None


@dataclass(frozen=True)
class Job:
    """A loaded checkpoint and the place of its report: what can be refused before any work has been."""

    session: "Session"
    path: Path
    quiet: bool = False
    resume: bool = False

    def context(self, analyzers: Sequence[Any]) -> "Context":
        """Check the problem; return where results are kept, and finished parts of long work."""
        parts = new_parts(quiet=self.quiet)
        context = replace(checked(remembered(self.session, parts), analyzers, quiet=self.quiet), parts=parts)
        if not self.quiet:
            announce(context, analyzers)
        return context

    def measure(
        self, analyzers: Sequence[Any], context: "Context | None" = None, plan: Planned | None = None
    ) -> Measured:
        """Measure and write, keeping what the file already held of the same subject; within a plan, if there is one."""
        from gapscope.measure.session import record, skipped

        context = context or self.context(analyzers)
        with self.keeping(context):
            if plan is None:
                records = {a.name: record(a, context.run(a.name), context.seed) for a in analyzers}
            else:
                records = {
                    a.name: skipped(a, context.seed, why) if why else record(a, work(), context.seed)
                    for a, work, why in plan.run()
                }
        measured = self.written(records)
        if measured.failure is None:
            context.parts.forget()
        return measured

    def keeping(
        self, context: "Context", done: Callable[[], str] = lambda: ""
    ) -> contextlib.AbstractContextManager[None]:
        """Keep finished parts beside the report; say, when interrupted, what is there and how to go on."""
        return keeping(context.parts, self.path, [self.session], resume=self.resume, done=done)

    def written(self, records: "Mapping[str, Record]") -> Measured:
        """Write what was measured, keeping what the file already held of the same subject."""
        from gapscope.replacing import in_turn

        report = self.session.report(records)
        try:
            with in_turn(self.path):
                return self._added(report)
        except Exception as failure:  # hours of work must not go unseen because the disk is full, or by a bug
            return Measured(report, self.path, (), failure)

    def _added(self, report: "Report") -> Measured:
        from gapscope.report.file import merge, read_report, write
        from gapscope.results import Status

        said: tuple[str, ...] = ()
        records = report.results
        if self.path.exists():
            old = read_report(self.path)
            # what was measured earlier says more than that it was not measured now
            skipped = [name for name, record in records.items() if record.status is Status.SKIPPED]
            kept = [n for n in skipped if n in old.results and old.results[n].status is not Status.SKIPPED]
            report = replace(report, results={k: r for k, r in records.items() if k not in kept})
            report, said = merge(old, report)
            said += tuple(f"kept the earlier {name}: {'; '.join(records[name].notes)}" for name in kept)
        write(report, self.path)
        return Measured(report, self.path, said, None)


def checked(session: "Session", analyzers: Sequence[Any], *, quiet: bool) -> "Context":
    """Check a problem, and say what had to be written out for its second derivatives."""
    context = session.context(analyzers)
    for repair in () if quiet else session.repairs():
        tell(f"second derivatives: {repair}")
    return context


def load(checkpoint: Path, common: Common) -> "Session":
    """Load a checkpoint and its data, and say what was inferred."""
    from gapscope.cli.progress import monitor
    from gapscope.measure.loading import Reading, Request
    from gapscope.measure.loading.models import parse_args
    from gapscope.measure.loading.trust import Trust
    from gapscope.measure.session import Execution, open_session

    if common.limit is not None and common.limit < 1:
        raise UsageError(f"The limit is {common.limit}. Expected 1 or more samples. Mend `--limit`.")
    request = Request(
        checkpoint=checkpoint,
        model=common.model,
        model_args=parse_args(list(common.model_arg)),
        data=common.data,
        test_data=common.test_data,
        loss=common.loss,
        setup=common.setup,
        weights=common.weights,
        parameters=common.parameters,
        reading=Reading(x_key=common.x_key, y_key=common.y_key, reshape=common.reshape, normalize=common.normalize),
        limit=common.limit,
        data_seed=common.data_seed,
        trust=Trust(common.trusted, common.trust_embedded, common.allow_global, common.trust_file),
    )
    execution = Execution(
        split=common.split,
        batchnorm=common.batchnorm,
        hvp=common.hvp,
        dtype=common.dtype,
        device=common.device,
        threads=common.threads,
        seed=common.seed,
        batch_size=parse_batch_size(common.batch_size),
        memory_budget=parse_bytes(common.memory_budget),
        shard_parameters=common.shard_parameters,
    )
    session = open_session(request, execution, monitor(quiet=common.quiet or common.json))
    if not common.quiet:
        for note in session.notes:
            tell(note)
    return session


def prepare(checkpoint: Path, common: Common, others: Sequence[Job] = ()) -> Job:
    """Load a checkpoint and find the place of its report; `others` will write theirs first."""
    from gapscope.measure.distributed import ranks

    if (output := common.output) is not None:
        ranks().first(lambda: refuse_unwritable(output))
    session = load(checkpoint, common)

    def place() -> Path:
        path = _asked(common.output, session) if common.output else _default(checkpoint, session, others)
        refuse_unwritable(path)
        return path

    path = ranks().first(place)  # by the files that the first process sees
    missed(path, common)
    return Job(session, path, common.quiet, common.resume)


def refuse_unwritable(path: Path, option: str = "--output") -> None:
    """Raise ReportError where nothing can be written, before the work."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ReportError(
            f"The folder of {path} does not exist. Expected a folder to write to. Make it, or mend `{option}`."
        )
    if path.is_dir():
        raise ReportError(f"{path} is a folder. Expected the name of a file. Mend `{option}`.")
    if not os.access(folder, os.W_OK):
        raise ReportError(f"The folder {folder} cannot be written. Expected a place for it. Name one with `{option}`.")


def stem_of(checkpoint: Path) -> str:
    """Return what a report is named after: of a file its stem, of a folder its whole name, also where it is `.`."""
    return os.path.basename(os.path.abspath(checkpoint)) if checkpoint.is_dir() else checkpoint.stem


def _taken(path: Path, session: "Session", others: Sequence[Job] = ()) -> list[str]:
    """Return the keys in which a report that is there, or is about to be, is of another subject."""
    from gapscope.report.file import read_report
    from gapscope.report.records import differing

    ours = (session.identity(), session.conditions())
    theirs = [(job.session.identity(), job.session.conditions()) for job in others if job.path == path]
    if path.exists():
        try:
            old = read_report(path)
        except ReportError as error:
            raise ReportError(
                f"{error} Nothing was changed: move that file away, or name another with `--output`."
            ) from error
        theirs.append((dict(old.identity), dict(old.conditions)))
    return [key for pair in theirs for mine, other in zip(ours, pair, strict=True) for key in differing(mine, other)]


def _asked(path: Path, session: "Session") -> Path:
    keys = _taken(path, session)
    if keys:
        raise ReportError(
            f"{path} holds a report of another subject ({', '.join(keys)} differ). Expected the same checkpoint "
            "under the same conditions. Name another file with `--output`, or move this one."
        )
    return path


def _default(checkpoint: Path, session: "Session", others: Sequence[Job]) -> Path:
    """Return the default name, or, where that is taken, one that is not.

    Another checkpoint puts its folder's name in front, other conditions (split, limit, dtype ...) their digest behind.
    """
    name = stem_of(checkpoint)
    for stem in (name, f"{checkpoint.resolve().parent.name}-{name}"):
        path = Path(f"{stem}.report.h5")
        keys = _taken(path, session, others)
        if not keys:
            return path
        if "sha256" not in keys:
            break  # the same checkpoint under other conditions
    facts = json.dumps([session.identity(), session.conditions()], sort_keys=True)
    path = Path(f"{stem}.{hashlib.sha256(facts.encode()).hexdigest()[:8]}.report.h5")
    if _taken(path, session, others):
        raise ReportError(f"{path} is taken by another subject. Expected a free name. Give one with `--output`.")
    return path


def measure_and_print(checkpoint: Path, common: Common, analyzers: Sequence[Any]) -> None:
    """Measure, write, and print the report: JSON alone on stdout where that was asked for."""
    job, plan = prepare(checkpoint, common), None
    context = job.context(analyzers)
    if common.dry_run or common.time_budget is not None:
        plan = planned(context, analyzers, common)
        if common.dry_run:
            show_plan(plan, job.path, common)
            return
        if not common.quiet:
            tell(line(plan))
    measured = job.measure(analyzers, context, plan)
    if common.json:
        from gapscope.report.export import dumps, report_json

        print(dumps(report_json(measured.report)))
    else:
        from gapscope.report.terminal import output
        from gapscope.report.view import report_document

        output(report_document(measured.report, verbose=common.verbose, only=[a.name for a in analyzers]))
        if measured.failure is None:
            say("", *measured.said, f"report: {measured.path}")
    if measured.failure is not None:
        raise measured.failure


def say(*lines: str) -> None:
    """Print sentences below a table, wrapped and cleaned like it."""
    from gapscope.report.terminal import output
    from gapscope.report.view import Document, Note

    output(Document(blocks=(tuple(Note(text=line) for line in lines),)))
