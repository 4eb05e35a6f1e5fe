"""`gapscope track`: the checkpoints of one training run, measured in order and shown over its steps."""

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.cli import analyze, fields, pages
from gapscope.cli.measuring import Job, common_of, configured, load, say
from gapscope.cli.news import News
from gapscope.cli.planning import planned, show_plans
from gapscope.cli.resuming import telling
from gapscope.cli.run_folder import Found, arranged
from gapscope.cli.settings import BUDGET, Common, Configuration
from gapscope.errors import ComparisonError, GapscopeError, LoadError, RankError, ReportError

if TYPE_CHECKING:
    from gapscope.measure.session import Session
    from gapscope.report.records import Record, Report
    from gapscope.report.trajectory import Point, Trajectory

CHEAP = ("gap", "eigenvalues", "near-rank")
ONE_MODEL = ("model", "model_args", "parameters")
SUBJECTS = inspect.Parameter(
    "subjects",
    inspect.Parameter.KEYWORD_ONLY,
    annotation=Annotated[
        list[Path],
        typer.Argument(help="folder of a run, or its checkpoints", metavar="RUN_DIR", show_default=False),
    ],
)


@dataclass(frozen=True)
class Own:
    """What only `track` takes."""

    only: Annotated[tuple[str, ...], f"run this analyzer, repeatable (default: {', '.join(CHEAP)})"] = ()
    skip: Annotated[tuple[str, ...], "leave this analyzer out, repeatable"] = ()
    html: Annotated[Path | None, "write one self-contained page with figures"] = None
    plot: Annotated[Path | None, "write the figures as a .png, .svg or .pdf"] = None


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""

    def track(subjects: list[Path], **values: Any) -> int:
        return track_and_print(subjects, common_of(values, configuration), fields.build(Own, values), configuration)

    output = "folder of the reports, one per checkpoint (default: NAME.track in the current folder)"
    return fields.command(
        "track",
        """Measure the checkpoints of one training run, and show them over its steps.

        The top eigenvalue stands against its limit of stability, beside losses, gap and near-rank. Checkpoints are
        ordered by their recorded steps, else epochs, else the last number in their names. Each gets its own report;
        what is measured already is not measured again, so the same command goes on after an interrupt or with new
        checkpoints. --only and --skip are also keys of the table [track] of gapscope.toml.
        """,
        [
            SUBJECTS,
            *fields.options(Own, prefix="GAPSCOPE_TRACK"),
            *fields.options(Common, without=BUDGET, say={"output": output}),
        ],
        track,
    )


@dataclass
class Work:
    """What has been done so far: finished points, and why others are none."""

    common: Common
    news: News
    points: "list[Point]" = field(default_factory=list)
    spent: list[tuple[float, int]] = field(default_factory=list)  # seconds and products of what was measured now


def track_and_print(subjects: Sequence[Path], common: Common, own: Own, configuration: Configuration) -> int:
    """Measure what has no report yet, and print the run; exit code 2 where a checkpoint could not be measured."""
    from gapscope.measure.distributed import ALONE, as_ranks, ranks
    from gapscope.report.trajectory import Trajectory

    wanted = analyze.chosen(analyze.Own(only=own.only or CHEAP, skip=own.skip))
    analyzers = configured(wanted, configuration)
    pages.refuse(own.html, own.plot)
    news, group = News(common.quiet), ranks()
    axis, found = arranged(subjects, common, news)
    run = subjects[0] if subjects[0].is_dir() and len(subjects) == 1 else subjects[0].parent
    folder = common.output or Path(f"{run.resolve().name}.track")

    news.tell(f"{len(found)} checkpoints by {axis}; their reports go to {folder}")
    if common.dry_run:
        _show_plan([one for one in found if not (folder / one.report).exists()], folder, analyzers, common)
        return 0
    spent: list[tuple[float, int]] = []
    with _made(folder):
        if len(found) > group.count > 1:
            spent = _deal(found, folder, analyzers, Work(common, News(common.quiet, later=True)))
            if group.rank:
                return 0
            group, news = ALONE, News(quiet=True)  # all is measured, and only to be read
        work = Work(common, news, spent=spent)
        with as_ranks(group):
            _measure_all(found, range(len(found)), folder, analyzers, work)
    if work.points:
        _show(Trajectory(axis=axis, points=tuple(work.points), name=run.resolve().name), folder, own, work)
    return 2 if work.news.failures else 0


def _show_plan(left: Sequence[Found], folder: Path, analyzers: Sequence[Any], common: Common) -> None:
    """Print what the first of those without a report would take, and all if they take the same."""
    plans, loading = {}, 0.0
    for one in left[:1]:
        load(one.path, common)  # the first also imports
        started = time.monotonic()
        context = Job(load(one.path, replace(common, quiet=True)), folder / one.report, common.quiet).context(analyzers)
        loading = time.monotonic() - started
        name = f"{one.path}, the first of {len(left):,} without a report"
        plans[name] = (planned(context, analyzers, common), folder / one.report)
    show_plans(plans, common, times=len(left), loading=loading)


def _deal(found: Sequence[Found], folder: Path, analyzers: Sequence[Any], work: Work) -> list[tuple[float, int]]:
    """Measure the checkpoints in several processes, each some of them by itself; return what all have spent."""
    from gapscope.measure.distributed import ALONE, as_ranks, ranks
    from gapscope.report.atomic import withheld

    group = ranks()
    first, last = (end * len(found) // group.count for end in (group.rank, group.rank + 1))
    with as_ranks(ALONE), withheld(False):
        _measure_all(found, range(first, last), folder, analyzers, work)
    group.wait("checkpoints")
    return [each for one in group.gathered(work.spent) for each in one]


def _measure_all(found: Sequence[Found], which: range, folder: Path, analyzers: Sequence[Any], work: Work) -> None:
    """Measure one after the other, whatever fails."""

    def done() -> str:
        return f"{len(work.points)} of {len(which)} checkpoints are in {folder}: the same command goes on from there"

    with telling(done), work.news.counting():
        for index in which:
            work.news.tell(f"{index + 1} of {len(found)}: {found[index].path}")
            try:
                _measure(found[index], folder / found[index].report, analyzers, work)
            except RankError:  # nothing can be measured together any more
                raise
            except GapscopeError as error:
                work.news.failed(found[index].path, error)


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """Make the folder of the reports, so that no work begins without one, and leave none behind without a report."""
    from gapscope.measure.distributed import ranks

    there, first = ranks().first(folder.is_dir), ranks().rank == 0
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ReportError(
            f"The folder {folder} cannot be made: {error.strerror}. Expected a place for the reports. Name one with "
            "`--output`."
        ) from error
    try:
        yield
    finally:
        if first and not there:
            with contextlib.suppress(OSError):  # it has a report, or is gone
                folder.rmdir()


# Measuring one


def _measure(one: Found, path: Path, analyzers: Sequence[Any], work: Work) -> None:
    """Measure what its report does not hold yet, each analyzer by itself, and add the point."""
    from gapscope.measure.distributed import ranks
    from gapscope.measure.session import skipped
    from gapscope.report.trajectory import Point

    common = work.common
    with work.news.once():
        session = load(one.path, common)
    if one.digest and session.identity().get("sha256") != one.digest:
        raise LoadError(
            "It has changed since the checkpoints were put in order. Expected the file that was there then. Run the "
            "same command again."
        )
    _refuse_other(session, work)
    old = ranks().first(lambda: _report_at(path, session))
    ready = {a.name for a in analyzers if old and _is_ready(old, skipped(a, session.seed, ""), a, common)}
    results = {name: old.results[name] for name in ready if old}  # what is there with other settings does not count
    if len(ready) == len(analyzers):
        work.news.tell(f"measured already: {path}")
    else:
        asked = [a for a in analyzers if a.name not in ready]
        results |= _run(Job(session, path, common.quiet, common.resume), asked, one.path, work)
    if results:
        ordered = {a.name: results[a.name] for a in analyzers if a.name in results}
        work.points.append(Point(place=one.place, report=session.report(ordered), path=str(path)))


def _run(job: Job, asked: Sequence[Any], who: Path, work: Work) -> "dict[str, Record]":
    """Measure and write one analyzer after the other, and return the records."""
    records = {}
    with work.news.once():
        context = job.context(asked)
    for analyzer in asked:
        try:
            measured = job.measure([analyzer], context)
        except RankError:
            raise
        except GapscopeError as error:
            work.news.failed(who, error, analyzer.name)
            continue
        records[analyzer.name] = measured.report.results[analyzer.name]
        for said in measured.said:
            work.news.tell(said)
        if measured.failure is not None:
            work.news.failed(job.path, measured.failure)
    work.spent += [(result.seconds, result.matvecs) for result in context.results]
    return records


def _refuse_other(session: "Session", work: Work) -> None:
    """Raise ComparisonError where a checkpoint is not of the first one's model under its conditions."""
    from gapscope.report.records import differing

    if not work.points:
        return
    first = work.points[0].report
    ours, theirs = session.identity(), first.identity
    keys = [*differing(first.conditions, session.conditions()), *(k for k in ONE_MODEL if ours.get(k) != theirs.get(k))]
    if keys:
        raise ComparisonError(
            f"It differs from {theirs.get('checkpoint', 'the first one')} in {', '.join(keys)}. Expected one model on "
            "the same data in the same way along a run. Name what is to be used (`-m`, `-d`, `--loss` ...), or leave "
            "it out."
        )


def _report_at(path: Path, session: "Session") -> "Report | None":
    """Return the report of this subject that is there already, if one is."""
    from gapscope.report.file import read_report
    from gapscope.report.records import differing

    if not path.exists():
        return None
    old = read_report(path)
    keys = differing(old.identity, session.identity()) + differing(old.conditions, session.conditions())
    if keys:
        raise ReportError(
            f"{path} holds a report of another subject ({', '.join(keys)} differ). Expected this checkpoint under the "
            "same conditions. Move that file away, or name another folder with `--output`."
        )
    return old


def _is_ready(old: "Report", expected: "Record", analyzer: Any, common: Common) -> bool:
    """Say whether a report holds what would be measured now."""
    from gapscope.results import Status

    record = old.results.get(expected.analyzer)
    if record is None or record.version != expected.version or record.status is Status.SKIPPED:
        return False
    settings = dict(record.settings)
    how = settings.pop("hvp", "exact")  # what came of `--hvp auto` is not known beforehand
    asked = common.hvp if getattr(analyzer, "second_order", True) else "auto"
    return settings == dict(expected.settings) and asked in ("auto", how)


def _show(trajectory: "Trajectory", folder: Path, own: Own, work: Work) -> None:
    """Write the page and the picture of the run where asked, and print it, also if they cannot be written."""
    from gapscope.report.trajectory import trajectory_document, trajectory_json
    from gapscope.report.trajectory_sheet import trajectory_sheet

    written, failures = pages.write(trajectory_sheet(trajectory), own.html, own.plot)
    if work.common.json:
        from gapscope.report.export import dumps

        print(dumps(trajectory_json(trajectory, work.news.failures)))
    else:
        from gapscope.report.terminal import output

        output(trajectory_document(trajectory, verbose=work.common.verbose))
        seconds, products = map(sum, zip(*work.spent, strict=True)) if work.spent else (0.0, 0)
        cost = f"{seconds:.1f}\u00a0s, {products}\u00a0matvecs" if work.spent else "nothing left to measure"
        say("", f"reports: {folder} · {cost} · `gapscope show FILE` for one of them", *written)
    if failures:
        raise failures[0]
