"""`gapscope compare`: two or more checkpoints or reports side by side."""

import glob
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gapscope.cli import fields, pages
from gapscope.cli.measuring import SHARPNESS, Job, common_of, configured, prepare, refuse_unwritable, say
from gapscope.cli.planning import Planned, planned, show_plans
from gapscope.cli.settings import BUDGET, Common, Configuration
from gapscope.cli.stderr import tell
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
        list[Path] | None,
        typer.Argument(help="checkpoints or reports, two or more", metavar="SUBJECT", show_default=False),
    ],
    default=None,
)


@dataclass(frozen=True)
class Own:
    """What only `compare` takes."""

    labels: Annotated[str | None, "names of the columns, separated by commas"] = None
    force: Annotated[bool, "compare although conditions or settings differ; the output is marked"] = False
    pair: Annotated[tuple[str, ...], "measure this of two checkpoints together: path, escape, plane or none"] = PAIR
    by: Annotated[str | None, "recorded key of the training that makes regimes (default: batch_size)"] = None
    small: Annotated[str | None, "files of the small-batch regime: a quoted pattern, with --large"] = None
    large: Annotated[str | None, "files of the large-batch regime"] = None
    match_loss: Annotated[bool, "compare the saved epochs of each run that are nearest in training loss"] = False
    by_loss: Annotated[bool, "the same, and show all saved epochs against the training loss"] = False
    output: Annotated[Path | None, "comparison to write (HDF5; default: none)", "-o"] = None
    html: Annotated[Path | None, "write one self-contained page with figures"] = None
    plot: Annotated[Path | None, "write the figures as a .png, .svg or .pdf"] = None


def command(configuration: Configuration) -> Callable[..., int | None]:
    """Return the command."""

    def compare(subjects: list[Path] | None, **values: Any) -> None:
        own = fields.build(Own, values)
        common = common_of({**values, "output": None}, configuration)
        compare_and_print(subjects or [], common, own, configuration)

    return fields.command(
        "compare",
        """Compare two or more checkpoints or reports, freely mixed.

        Checkpoints are measured first, as by `gapscope sharpness`, with the same settings, and their reports
        are written to the current folder. The last column is contrasted with the first. The labels small and
        large come from the recorded batch sizes.

        Several checkpoints of one batch size are the runs of one regime: mean and standard deviation over seeds, and
        intervals over seeds. Checkpoints that differ only in epochs or steps, by their recorded training, are
        saved epochs of one run: --match-loss chooses one of each run.
        """,
        [
            SUBJECTS,
            *fields.options(Own, prefix="GAPSCOPE_COMPARE"),
            *fields.options(Common, without=("output", *BUDGET)),
        ],
        compare,
    )


def compare_and_print(subjects: Sequence[Path], common: Common, own: Own, configuration: Configuration) -> None:
    """Measure what is not a report yet, compare, write where asked, and print."""
    from gapscope.report import comparison, file
    from gapscope.report.groups import matched, sides_of

    subjects, names = _named(subjects, own)
    _refuse_missing(subjects, own)
    pair = of_pairs([name for name in own.pair if name != "none"], configuration)
    known = {path: file.read_report(path) for path in subjects if _is_report(path)}
    jobs: dict[Path, Job] = {}
    for path in dict.fromkeys(subjects):
        if path not in known:
            jobs[path] = prepare(path, common, list(jobs.values()))
    _refuse_reports(own.output, jobs)
    conditions = {
        path: known[path].conditions if path in known else jobs[path].session.conditions() for path in subjects
    }
    if not own.force:
        _refuse_unlike(conditions)  # before the work
    labels = [label.strip() for label in own.labels.split(",")] if own.labels else None
    how: dict[str, Any] = {"labels": labels, "by": own.by or "", "names": names}
    matching = own.match_loss or own.by_loss
    bare = [known[path] if path in known else jobs[path].session.report({}) for path in subjects]
    sides_of(bare, **how, matching=matching)  # refuses what cannot be grouped, before the work
    analyzers = configured(SHARPNESS, configuration) if jobs else []
    if not own.force:
        _refuse_other_settings(analyzers, known)
    pair = pair if len(subjects) == len(jobs) == 2 and not own.by and names is None else []
    further = [a for a in configured(needed(pair), configuration) if a.name not in SHARPNESS]
    if common.dry_run:
        _show_plans(jobs, analyzers, further, pair, common)
        return
    work = Work(known, dict(zip(known, known, strict=True)), jobs, quiet=common.quiet)
    wanted = list(jobs)
    if matching and not own.by_loss:
        # of all saved epochs the loss alone is needed to choose the few that are worth the rest
        work.measure(wanted, [analyzer for analyzer in analyzers if analyzer.name == "gap"])
        sides, _ = matched(sides_of([known[path] for path in subjects], **how, matching=True))
        picked = [id(report) for side in sides for report in side.reports]
        wanted = [path for path in jobs if id(known[path]) in picked]
    work.measure(wanted, analyzers, further)
    both = _measure_together(list(jobs.values()), list(work.contexts.values()), pair, labels)
    compared = comparison.compare(
        [known[path] for path in subjects],
        **how,
        force=own.force,
        together=both,
        match_loss=own.match_loss,
        by_loss=own.by_loss,
    )
    _deliver(compared, common, own, work, [work.paths[path] for path in subjects])


@dataclass(frozen=True)
class Work:
    """What is known of the subjects: reports, where they are, and how to measure those that have none yet."""

    known: "dict[Path, Report]"
    paths: dict[Path, Path]
    jobs: dict[Path, Job]
    quiet: bool
    contexts: "dict[Path, Context]" = field(default_factory=dict)
    failures: list[Exception] = field(default_factory=list)

    def measure(self, wanted: Sequence[Path], analyzers: Sequence[Any], further: Sequence[Any] = ()) -> None:
        """Measure and write these; what could not be written is a failure for later."""
        if not wanted:  # reports alone need no torch
            return
        from gapscope.measure.distributed import ALONE, as_ranks, ranks
        from gapscope.report.atomic import withheld

        group = ranks()
        if not len(wanted) > group.count > 1:
            self._measure(wanted, analyzers, further)
            return
        mine = wanted[group.share()]
        with as_ranks(ALONE), withheld(False):  # each process measures some by itself
            self._measure(mine, analyzers, further)
        group.wait(f"{len(wanted)} by {len(analyzers)}")
        for known, paths, failures in group.gathered(
            ({p: self.known[p] for p in mine}, {p: self.paths[p] for p in mine}, self.failures)
        ):
            self.known.update(known)
            self.paths.update(paths)
            self.failures.extend(failure for failure in failures if failures is not self.failures)

    def _measure(self, wanted: Sequence[Path], analyzers: Sequence[Any], further: Sequence[Any]) -> None:
        for path in wanted:
            if not self.quiet:
                tell(f"measuring {path}")
            self.contexts[path] = self.jobs[path].context([*analyzers, *further])
            measured = self.jobs[path].measure(analyzers, self.contexts[path])
            self.known[path], self.paths[path] = measured.report, measured.path
            self.failures.extend([measured.failure] if measured.failure else [])


def _show_plans(
    jobs: Mapping[Path, Job], analyzers: Sequence[Any], further: Sequence[Any], pair: Sequence[Any], common: Common
) -> None:
    """Print what each checkpoint would take, all saved epochs among them, and what both would together."""
    contexts = {path: job.context([*analyzers, *further]) for path, job in jobs.items()}
    plans: dict[str, tuple[Planned, Path | None]] = {
        str(path): (planned(context, analyzers, common), jobs[path].path) for path, context in contexts.items()
    }
    if pair:
        plans["together"] = (planned(next(iter(contexts.values())), pair, common), None)
    show_plans(plans, common)


def _deliver(compared: "Comparison", common: Common, own: Own, work: Work, reports: Sequence[Path]) -> None:
    """Write the comparison, its page and its picture where asked, and print it, also if it cannot be written."""
    from gapscope.report import file
    from gapscope.report.sheets import sheet
    from gapscope.report.sweep import BY_LOSS

    failures = list(work.failures)
    written = []
    try:
        if own.output is not None:
            file.write(compared, own.output)
            written.append(f"comparison: {own.output}")
    except ReportError as failure:
        failures.append(failure)
    if own.html is not None or own.plot is not None:
        drawn, failed = pages.write(sheet(compared), own.html, own.plot)
        written += drawn
        failures += failed
    if common.json:
        from gapscope.report.export import comparison_json, dumps

        print(dumps(comparison_json(compared)))
    else:
        from gapscope.report.terminal import output
        from gapscope.report.view import comparison_document

        output(comparison_document(compared, verbose=common.verbose))
        if not failures:
            new: list[Any] = [result for context in work.contexts.values() for result in context.results]
            new += [record for name, record in compared.results.items() if name != BY_LOSS]
            spent = sum(result.seconds for result in new), sum(result.matvecs for result in new)
            say("", _closing(reports, spent), *written)
    if failures:
        raise failures[0]


def _named(subjects: Sequence[Path], own: Own) -> tuple[list[Path], list[str] | None]:
    """Return the subjects, and the regime of each where patterns name them."""
    patterns = {name: pattern for name in ("small", "large") if (pattern := getattr(own, name)) is not None}
    if not patterns:
        return list(subjects), None
    if subjects or len(patterns) == 1 or own.by:
        observed = f"{subjects[0]} stands beside" if subjects else "`--by` stands beside" if own.by else "There is only"
        raise UsageError(
            f"{observed} `--{next(iter(patterns))}`. Expected `--small` and `--large` and nothing else to name the "
            "subjects. Quote the patterns: `--small 'runs/small-*.pt' --large 'runs/large-*.pt'`."
        )
    found = {name: sorted(map(Path, glob.glob(pattern, recursive=True))) for name, pattern in patterns.items()}
    for name, paths in found.items():
        if not paths:
            raise UsageError(f"No file matches `--{name} {patterns[name]}`. Expected one or more. Mend the pattern.")
    pairs = [(path, name) for name, paths in found.items() for path in paths]
    return [path for path, _ in pairs], [name for _, name in pairs]


def _measure_together(
    jobs: Sequence[Job], contexts: "Sequence[Context]", analyzers: Sequence[Any], labels: Sequence[str] | None
) -> "Comparison | None":
    """Run the analyzers of two subjects; one that cannot measure these says why, and the comparison goes on."""
    if not analyzers:
        return None
    from gapscope.measure.interface import measure_together

    reasons: dict[str, list[str]] = {}

    def failed(analyzer: Any, error: GapscopeError) -> None:
        reasons.setdefault(str(error), []).append(analyzer.name)

    sessions = [job.session for job in jobs]
    found = measure_together(sessions, analyzers, contexts=contexts, labels=labels, failed=failed)
    for reason, names in reasons.items():
        tell(f"left out: {', '.join(names)}. {reason}")
    return found


def _closing(paths: Sequence[Path], spent: tuple[float, int]) -> str:
    seconds, products = spent
    names = ", ".join(map(str, dict.fromkeys(paths)))
    cost = f" · {seconds:.1f}\u00a0s, {products}\u00a0matvecs" if seconds else ""
    return f"reports: {names}{cost} · `gapscope show FILE` for the rest"


def _refuse_unlike(conditions: "Mapping[Path, Mapping[str, Any]]") -> None:
    """Raise ComparisonError where `comparison.compare` would, so that it costs no measurement."""
    from gapscope.report.records import differing

    sides = list(conditions.values())
    keys = sorted({key for side in sides[1:] for key in differing(sides[0], side)})
    if keys:
        said = "; ".join(
            f"{key}: {' / '.join(dict.fromkeys(str(side.get(key, 'none')) for side in sides))}" for key in keys
        )
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


def _refuse_missing(subjects: Sequence[Path], own: Own) -> None:
    if len(subjects) < 2:
        there = f"is only {subjects[0]}" if subjects else "is nothing"
        raise UsageError(f"There {there} to compare. Expected two or more: `gapscope compare A B`.")
    for subject in subjects:
        if not subject.is_file() and not subject.is_dir():
            raise LoadError(f"{subject} is no file. Expected a checkpoint or a report. Mend the path.")
    labels = own.labels
    if len(subjects) == 2 and labels is not None and len(set(labels.split(","))) != 2:  # of more, `regimes` judges
        raise UsageError(
            f"`--labels {labels}` names {len(set(labels.split(',')))} different columns for {len(subjects)} subjects. "
            "Expected one for each: `--labels small,large`."
        )
    if own.output is not None:
        refuse_unwritable(own.output)
        _refuse_other(own.output)
    pages.refuse(own.html, own.plot)


def _refuse_other(output: Path) -> None:
    """Overwrite a comparison, and nothing else: a report took a measurement to make."""
    from gapscope.report.file import Comparison, read

    if output.exists() and not isinstance(read(output), Comparison):
        raise ReportError(
            f"{output} is a report, not a comparison. Expected a new name or an old comparison. Mend `--output`."
        )


def _refuse_reports(output: Path | None, jobs: Mapping[Path, Job]) -> None:
    """Raise ReportError where the comparison would replace a report that this command is about to write."""
    for path, job in jobs.items():
        if output is not None and output.resolve() == job.path.resolve():
            raise ReportError(
                f"{output} is where the report of {path} goes. Expected another name for the comparison. "
                "Mend `--output`."
            )


def _is_report(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as stream:
        return stream.read(len(HDF5_MAGIC)) == HDF5_MAGIC
